"""What a run learns from: its data sets, the episodes that it is judged by, and the environment
that they are of."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rlzoo
from rlzoo import dataset as datasets
from rlzoo.algorithm import Algorithm, Refused
from rlzoo.dataset import Dataset
from rlzoo.env import Env, Transition, where_each
from rlzoo.layouts import note
from rlzoo.run.options import Options, parse_dataset
from rlzoo.suites import recorded, registry

TRAIN, VALIDATION = "train", "validation"
"""names of --dataset that the loop takes for itself"""
DEFAULT = "DATASET"
"""what an algorithm file calls the name of the data set that it learns from where none is given"""
BLOCK = 1024
"""rows whose actions are predicted at a time"""


class Data(NamedTuple):
    """Both parts may be None."""

    train: Any
    """what `make` is handed: a data set, or several by name"""
    validation: Dataset | None = None
    """held out: the actions that a policy is judged by"""

    def by_name(self) -> dict[str, Dataset]:
        """All data sets, the first being one to learn from."""
        several = isinstance(self.train, Mapping)
        found = dict(self.train) if several else {TRAIN: self.train}
        return {k: x for k, x in (found | {VALIDATION: self.validation}).items() if x is not None}


class Score(NamedTuple):
    """The metric by which a run is judged."""

    name: str
    lower_is_better: bool


OF_ROLLOUTS = ("eval/return", "eval/score")
"""metrics that only played episodes give"""


# ---- reading -------------------------------------------------------------------------------------


def read(given: Any, fraction: float | None = None) -> Data:
    """The data of a run, read where they are files' names.

    Args:
      given: None, a data set, a file, the name of a recipe (then it is made first, if it has to
        be), a mapping of names to these, or what --dataset takes: `(file,)` or `(name=file, ...)`.
        The one called `validation` is held out, and `train` alone is as good as no name.
      fraction: share of the episodes of a single data set that is held out; always the same ones.

    Raises `Refused` where a file cannot be read, or there is nothing to hold out.
    """
    given = parse_dataset(given) if isinstance(given, tuple) and given else given
    found = datasets.load_all(None if given == () else _files(given))
    held_out = None
    if isinstance(found, Mapping):
        held_out = found.get(VALIDATION)
        found = {name: data for name, data in found.items() if name != VALIDATION}
        if not found:
            raise Refused(f"--dataset {VALIDATION}=... holds out data, and none is left to learn")
        found = found[TRAIN] if [*found] == [TRAIN] else found
    if fraction is None:
        return Data(found, held_out)
    if held_out is not None or not isinstance(found, Dataset):
        several = "several data sets were given" if found is not None else "no data set was given"
        why = f"{VALIDATION}=... was given too" if held_out is not None else several
        raise Refused(
            f"--validation {fraction:g} holds out episodes of a single data set, but {why}"
        )
    return Data(*datasets.split(found, fraction))


def _files(given: Any) -> Any:
    """`given` with files in place of the names of recipes."""
    if isinstance(given, Mapping):
        return {name: _files(x) for name, x in given.items()}
    return rlzoo.recipes.resolve(given) if isinstance(given, str) else given


def default(make: Callable, options: Options) -> Options:
    """`options` with the data set that the algorithm file names, where none is given."""
    name = getattr(sys.modules.get(make.__module__), DEFAULT, None)
    if options.dataset or name is None:
        return options
    return Options.recorded(vars(options) | {"dataset": (name,)})


# ---- the environment -----------------------------------------------------------------------------


def own_env(name: str, data: Data) -> Env:
    """The environment that the data are of, for the algorithm called `name`; one that cannot be
    played where they name none that we have.

    Raises `Refused` where there are no data, or they are of several environments.
    """
    found = [*data.by_name().values()]
    if not found:
        raise Refused(
            f"{name} learns from a data set and none was given: --dataset FILE, or the name of one "
            "that `rlzoo data list` shows, for example --dataset pendulum-medium-replay; "
            "`rlzoo data collect RUN --out FILE` records one"
        )
    names = list(dict.fromkeys(x.env for x in found if x.env))
    if len(names) > 1:
        raise Refused(f"the data are of {' and '.join(names)}; say which one it is with --env")
    why = "the data name no environment"
    if names:
        try:
            return registry.make(registry.id_of(names[0]))
        except Refused as error:
            why = str(error)
    note(
        f"nothing is rolled ({why}); "
        + ("judged by the actions held out" if data.validation is not None else UNJUDGED)
    )
    return make_env(recorded.id_of(found[0]), data)


UNJUDGED = (
    "nor is the policy judged: --validation 0.1 holds out a tenth of the episodes for that, "
    "--dataset train=FILE validation=FILE takes another file"
)


def make_env(env: Any, data: Data) -> Env:
    """What `rlzoo.make` makes, and of `data:...` the environment that is known from data alone."""
    sets = [*data.by_name().values()]
    if isinstance(env, str) and env.startswith(recorded.PREFIX) and sets:
        return recorded.make(env, sets)
    return registry.make(env)


def check(data: Data, env: Env) -> None:
    """Raise `Refused` where any of the data cannot be of `env`."""
    if data.train is not None:
        datasets.check(data.train, env)
    if data.validation is not None:
        datasets.check({VALIDATION: data.validation}, env)


# ---- judging -------------------------------------------------------------------------------------


def metric(data: Dataset) -> str:
    """What `action_error` is called."""
    return "eval/action_error" if data.discrete else "eval/action_mse"


def action_error(algorithm: Algorithm, state: Any, data: Dataset, key: jax.Array) -> jax.Array:
    """How far the policy's actions are from those of `data`: the squared error in [-1, 1], a mean
    over rows and dimensions; of discrete actions the share of rows in which they differ."""
    policy = algorithm.policy(state)
    rows = Transition(*(getattr(data, name) for name in Transition._fields))

    def error(row: Transition, action: Any) -> jax.Array:
        if data.discrete:
            return jnp.float32(action != row.action)
        return jnp.square(jnp.clip(action, -1.0, 1.0) - row.action).mean()

    def judge(x: tuple) -> jax.Array:
        row, index = x
        return error(row, algorithm.act(policy, row.obs, jax.random.fold_in(key, index)))

    def judge_next(carry: tuple, x: tuple) -> tuple:
        """A policy with a memory goes through each episode, told the rewards of the data."""
        memory, reward = carry
        row, index = x
        key_now = jax.random.fold_in(key, index)
        action, memory = algorithm.act(policy, memory, row.obs, reward, key_now)
        ended = row.terminated | row.truncated
        carry = jax.tree.map(lambda a, b: where_each(ended, a, b), start, (memory, row.reward))
        return carry, error(row, action)

    xs = (rows, jnp.arange(len(data)))
    if algorithm.memory is None:
        return jax.lax.map(judge, xs, batch_size=min(BLOCK, len(data))).mean()
    start = (algorithm.memory(policy), jnp.float32(0))
    return jax.lax.scan(judge_next, start, xs)[1].mean()
