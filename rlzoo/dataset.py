"""Offline data: load, check, split, mix, and draw from on the device.

A `Dataset` is a pytree of transitions in the order of time, one episode after the other. It is
handed to `make(config, env, dataset)` as a traced argument, and batches are drawn from it inside
compiled code:

    # or .hdf5, or minari:ID; says what is wrong and where, and what it leaves out
    data = dataset.load("hopper.npz")
    # an env.Transition, as in a replay's Sample.batch
    batch = dataset.sample(data, key, 256)
    target = batch.reward + discount * (1 - batch.terminated) * next_value

Bootstrapping stops at `terminated` alone; returns and windows are cut where an episode ends,
truncated or not. Drawing and `returns_to_go` are for compiled code, everything else is of the host.
See `rlzoo/formats.py` for the files that can be read, `rlzoo/layouts.py` for names and layouts,
`rlzoo/tools/collect.py` to record data of your own, and `rlzoo/tools/recipes.py` for the data sets
that rlzoo makes itself.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlzoo import formats, layouts, machine
from rlzoo.algorithm import Refused
from rlzoo.env import Env, Transition

SHOWN_DIMENSIONS = 32
"""`describe` lists the range of every dimension up to this many."""
BLOCK = 65_536
"""Rows whose statistics are computed at a time."""
ALMOST = 1e-3
"""so much of an episode is not rounded up: 0.07 times 100 is a little more than 7"""
LOOSE = ("GaussianBandit-misc", "MemoryChain-bsuite", "MetaMaze-misc")
"""gymnax's environments whose own observations leave the bounds that they declare"""


@struct.dataclass
class Dataset:
    """N transitions in E episodes; made by `load`, `from_arrays` and `rlzoo.collect`."""

    obs: Any
    """[N, ...], float32, bool, or integers of up to 32 bits"""
    action: Any
    """int32 [N] in [0, num_actions), or float32 [N, action_dim] in [-1, 1]"""
    reward: Any
    """float32 [N]"""
    next_obs: Any
    """the true successor of `obs`"""
    terminated: Any
    """bool [N]: the task ended; bootstrapping is masked with this alone"""
    truncated: Any
    """bool [N]: the episode was cut there, never together with `terminated`"""
    starts: Any
    """int32 [E + 1]: the first row of each episode, and N"""
    extra: dict[str, Any] = struct.field(default_factory=dict)
    """further arrays [N, ...], for example the behaviour's log-probabilities"""
    obs_mean: Any = None
    """float32 [...], of `obs` over the rows, see `stats`"""
    obs_std: Any = None
    """float32 [...], the standard deviation"""
    returns: Any = None
    """float32 [E], the sum of each episode's rewards, not discounted"""
    weights: Any = None
    """float32 [E], see `weighted`; None: all rows are drawn alike"""
    cumulative: Any = None
    """uint32 [E]: chance of drawing one of the first 1, 2, ... episodes, in units of 2**-31"""
    env: str = struct.field(pytree_node=False, default="")
    """environment id, "" where it is not known"""
    source: str = struct.field(pytree_node=False, default="")
    """where the data came from"""
    reference: tuple[float, float] | None = struct.field(pytree_node=False, default=None)
    """return of a random and of an expert policy, for `normalized_score`"""

    def __len__(self) -> int:
        return self.reward.shape[0]

    @property
    def num_episodes(self) -> int:
        return self.starts.shape[0] - 1

    @property
    def discrete(self) -> bool:
        return self.action.ndim == 1

    @property
    def nbytes(self) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))


# ---- drawing, inside compiled code ---------------------------------------------------------------


class Windows(NamedTuple):
    """What `windows` returns; leading axes [n, length]."""

    batch: Transition
    """zero where padded"""
    mask: jax.Array
    """bool: False where padded"""
    step: jax.Array
    """int32: steps since the episode's first row; 0 where padded"""
    index: jax.Array  # type: ignore[assignment]  # shadows tuple.index, which nothing here needs
    """int32: the rows, for arrays of your own such as `returns_to_go(data)[index]`; where padded,
    the nearest row"""


def sample(dataset: Dataset, key: jax.Array, n: int) -> Transition:
    """Draw n transitions with replacement: all alike, or as `weighted` says."""
    return rows(dataset, draw(dataset, key, n))


def draw(dataset: Dataset, key: jax.Array, n: int) -> jax.Array:
    """The rows [n] that `sample` takes, for use with `rows` and with arrays of your own."""
    if n < 1:
        raise Refused(f"draw: n={n}: must be at least 1")
    if dataset.cumulative is None:
        return jax.random.randint(key, (n,), 0, len(dataset))
    episode_key, step_key = jax.random.split(key)
    # Whole numbers, since a float32 in [0, 1) takes only 2**23 values: too few for a million
    # episodes.
    point = jax.random.bits(episode_key, (n,), jnp.uint32) >> 1
    episode = jnp.searchsorted(dataset.cumulative, point, side="right", method="scan_unrolled")
    first = dataset.starts[episode]
    return first + jax.random.randint(step_key, (n,), 0, dataset.starts[episode + 1] - first)


def rows(dataset: Dataset, index: jax.Array) -> Transition:
    """The transitions at rows `index`, of any shape."""
    fields = Transition(*(getattr(dataset, name) for name in Transition._fields))
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), fields)


def windows(
    dataset: Dataset, key: jax.Array, n: int, length: int, pad: Literal["left", "right"] = "left"
) -> Windows:
    """Draw n windows of `length` steps of one episode each.

    Rows are drawn as by `sample`. With pad="left" a window ends at its row and is padded before the
    episode's first step, as a policy that remembers sees it; with pad="right" it starts there and
    is padded after the last.
    """
    if length < 1 or pad not in ("left", "right"):
        raise Refused(
            f"windows: length={length}, pad={pad!r}: needs a length of at least 1, and 'left' or "
            "'right'"
        )
    row = draw(dataset, key, n)[:, None]
    episode = jnp.searchsorted(dataset.starts, row, side="right", method="scan_unrolled") - 1
    first, last = dataset.starts[episode], dataset.starts[episode + 1] - 1
    wanted = row + jnp.arange(length) - (length - 1 if pad == "left" else 0)
    index = jnp.clip(wanted, first, last)
    mask = wanted == index

    def blank(x: jax.Array) -> jax.Array:
        inside = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
        return jnp.where(inside, x, jnp.zeros((), x.dtype))

    return Windows(jax.tree.map(blank, rows(dataset, index)), mask, blank(index - first), index)


def returns_to_go(dataset: Dataset, discount: Any = 1.0) -> jax.Array:
    """The discounted sum of rewards from each row to the end of its episode, float32 [N].

    Nothing is bootstrapped, also where an episode was truncated. It passes over all rows: call it
    once, in `init` and not in `step`.
    """
    keep = discount * (1.0 - (dataset.terminated | dataset.truncated))

    def body(total: jax.Array, x: tuple) -> tuple:
        total = x[0] + x[1] * total
        return total, total

    return jax.lax.scan(body, jnp.float32(0), (dataset.reward, keep), reverse=True, unroll=16)[1]


class Stats(NamedTuple):
    """What a policy needs to standardize observations; float32 [*obs_shape]."""

    mean: jax.Array
    std: jax.Array


def stats(dataset: Dataset, eps: float = 0.0) -> Stats:
    """Mean and standard deviation + `eps` of each number of an observation, over all rows alike.

    They were computed in float64 when the data set was built. A number that never changes has a
    deviation of 0: `eps` keeps (obs - mean) / std finite (1e-3 in TD3+BC, arXiv 2106.06860).
    """
    return Stats(dataset.obs_mean, dataset.obs_std + eps)


def reward_scale(dataset: Dataset, over: float = 1000.0) -> jax.Array:
    """`over` / (largest - smallest return of an episode): rewards times it have returns that lie
    within `over` of one another, as IQL and Dual RL have them (arXiv 2110.06169, 2302.08560).

    1 where all episodes have the same return, so that nothing is divided by 0.
    """
    spread = dataset.returns.max() - dataset.returns.min()
    return jnp.where(spread > 0, over / jnp.where(spread > 0, spread, 1.0), 1.0)


def clip_actions(action: jax.Array, margin: float = 1e-5) -> jax.Array:
    """Actions in [-1 + margin, 1 - margin], where the density of a squashed Gaussian is finite."""
    return jnp.clip(action, -1.0 + margin, 1.0 - margin)


def prefer_top(dataset: Dataset, fraction: Any) -> Dataset:
    """The same data, drawn alike from the `fraction` of the episodes whose returns are highest,
    rounded up, and from no others; ties go to the first.

    As `top`, but for compiled code and fractions that are traced: nothing is copied. Call it in
    `init` and keep `cumulative`, which costs a sort of the episodes. An episode's chance is right
    to within 2**-24.
    """
    count = dataset.num_episodes
    rank = jnp.argsort(jnp.argsort(-dataset.returns, stable=True))
    wanted = rank < jnp.maximum(1.0, jnp.ceil(fraction * count - ALMOST))
    lengths = jnp.where(wanted, jnp.diff(dataset.starts), 0)
    total = jnp.cumsum(lengths).astype(jnp.float32)
    cumulative = jnp.round(total / total[-1] * 2.0**31).astype(jnp.uint32)
    return dataclasses.replace(dataset, weights=wanted.astype(jnp.float32), cumulative=cumulative)


def normalized_score(dataset: Dataset, ret: Any) -> Any:
    """100 * (ret - random) / (expert - random) (Fu et al. 2020, arXiv 2004.07219, section 5).

    Raises `Refused` where the data set has no two different reference scores.
    """
    if dataset.reference is None or dataset.reference[0] == dataset.reference[1]:
        raise Refused(
            f"reference={dataset.reference}: a score needs the returns of a random and of an "
            "expert "
            "policy; set them with dataset.replace(reference=(random_return, expert_return)) "
            "(rlzoo data collect --reference RANDOM EXPERT)"
        )
    random, expert = dataset.reference
    return 100.0 * (ret - random) / (expert - random)


# ---- episodes ------------------------------------------------------------------------------------


class Episodes(NamedTuple):
    """NumPy arrays [E]."""

    starts: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray
    """float64, not discounted"""


def episodes(dataset: Dataset) -> Episodes:
    """Where each episode starts, how long it is, and its return."""
    starts = np.asarray(dataset.starts)
    returns = np.add.reduceat(np.asarray(dataset.reward, np.float64), starts[:-1])
    return Episodes(starts[:-1], np.diff(starts), returns)


def take(dataset: Dataset, which: Any) -> Dataset:
    """The episodes `which` [k] (numbers, in this order, or a bool for each), with their weights."""
    which = np.asarray(which)
    if which.dtype == bool and which.shape == (dataset.num_episodes,):
        which = np.flatnonzero(which)
    if which.dtype.kind not in "iu" or which.ndim != 1 or not which.size:
        raise Refused(
            "take: episodes are given as whole numbers [k], k >= 1, or bools "
            f"[{dataset.num_episodes}], not as "
            f"{which.dtype}{list(which.shape)}"
        )
    if which.min() < 0 or which.max() >= dataset.num_episodes:
        raise Refused(
            f"take: episode {which[(which < 0) | (which >= dataset.num_episodes)][0]} does not "
            "exist: there are "
            f"{dataset.num_episodes}, counted from 0"
        )
    starts = np.asarray(dataset.starts)
    index = np.concatenate([np.arange(starts[e], starts[e + 1]) for e in which])
    taken = _build({name: x[index] for name, x in _arrays(dataset).items()}, _about(dataset))
    return taken if dataset.weights is None else weighted(taken, np.asarray(dataset.weights)[which])


def split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(training, validation): a random `fraction` of the episodes goes to the second, both keep
    their order."""
    count = round(fraction * dataset.num_episodes)
    if not 0 < count < dataset.num_episodes:
        raise Refused(
            f"split: fraction={fraction} of {dataset.num_episodes} episodes would be {count}: "
            "each part needs "
            "at least one"
        )
    chosen = np.zeros(dataset.num_episodes, bool)
    chosen[np.random.default_rng(seed).permutation(dataset.num_episodes)[:count]] = True
    return take(dataset, ~chosen), take(dataset, chosen)


def top(dataset: Dataset, fraction: float) -> Dataset:
    """The `fraction` of the episodes, rounded up, whose returns are highest, in their order (as for
    10%BC)."""
    if not 0 < fraction <= 1:
        raise Refused(f"top: fraction={fraction}: must lie in (0, 1]")
    best = np.argsort(-episodes(dataset).returns, kind="stable")
    count = max(1, int(np.ceil(fraction * dataset.num_episodes - ALMOST)))
    return take(dataset, np.sort(best[:count]))


def first(dataset: Dataset, count: int) -> Dataset:
    """The first `count` episodes. Raises `Refused` where there are fewer."""
    if not 1 <= count <= dataset.num_episodes:
        raise Refused(
            f"first: {count} episodes of {dataset.num_episodes}: must be from 1 to that many"
        )
    return take(dataset, np.arange(count))


def marked(dataset: Dataset, expert: bool) -> Dataset:
    """The same data with `extra["expert"]`, bool [N], set to `expert` in every row: after
    `concatenate` it tells the expert's rows from the others."""
    extra = dataset.extra | {"expert": jnp.full(len(dataset), expert)}
    return dataclasses.replace(dataset, extra=extra)


def weighted(dataset: Dataset, weights: Any) -> Dataset:
    """The same data, with transitions drawn in proportion to the weight [E] of their episode.

    An episode is thus drawn in proportion to its weight times its length, to within 2**-32 of all
    draws.
    """
    weights = np.asarray(weights)
    if weights.shape != (dataset.num_episodes,):
        raise Refused(
            f"weights have shape {list(weights.shape)}, must have one for each of the "
            f"{dataset.num_episodes} "
            "episodes"
        )
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        raise Refused(
            f"weights: episode {bad.argmax()} has {weights[bad.argmax()]}; must be finite and at "
            "least 0"
        )
    if not weights.any():
        raise Refused("weights are all 0: at least one must be positive")
    weights = (weights / weights.max()).astype(np.float32)
    total = np.cumsum(weights.astype(np.float64) * np.diff(np.asarray(dataset.starts)))
    cumulative = np.rint(total / total[-1] * 2.0**31).astype(np.uint32)
    return dataclasses.replace(
        dataset, weights=jnp.asarray(weights), cumulative=jnp.asarray(cumulative)
    )


def concatenate(datasets: Sequence[Dataset], ratio: Sequence[float] | None = None) -> Dataset:
    """One data set of several with the same environment and shapes.

    Args:
      ratio: how often transitions of each are drawn, say (1, 1) for batches that take half from
        either, whatever their sizes; it sets `weights`. None: all rows are drawn alike, or by their
        weights within each data set.
    """
    _check_alike(datasets)
    if ratio is not None and (
        len(ratio) != len(datasets) or not all(0 < r < np.inf for r in ratio)
    ):
        raise Refused(
            f"concatenate: ratio={ratio}: must be {len(datasets)} positive numbers, one for each "
            "data set"
        )
    about = _about(datasets[0]) | {
        "source": " + ".join(dict.fromkeys(data.source for data in datasets)),
        "reference": next((data.reference for data in datasets if data.reference), None),
    }
    parts = [_arrays(data) for data in datasets]
    joined = _build(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, about
    )
    if ratio is None and all(data.weights is None for data in datasets):
        return joined
    shares = [len(data) for data in datasets] if ratio is None else ratio
    return weighted(
        joined,
        np.concatenate([s * _relative(data) for s, data in zip(shares, datasets, strict=True)]),
    )


def _relative(dataset: Dataset) -> np.ndarray:
    """Weights [E] that draw each row with a chance that sums to 1."""
    lengths = np.diff(np.asarray(dataset.starts))
    weights = (
        np.ones(len(lengths))
        if dataset.weights is None
        else np.asarray(dataset.weights, np.float64)
    )
    return weights / (weights * lengths).sum()


def _check_alike(datasets: Sequence[Dataset]) -> None:
    if not datasets:
        raise Refused("concatenate: no data sets")
    first, spec = datasets[0], _spec(datasets[0])
    for i, data in enumerate(datasets[1:], 1):
        if data.env != first.env:
            raise Refused(
                f"concatenate: data set {i} is of {data.env!r}, data set 0 of {first.env!r}"
            )
        if None not in (data.reference, first.reference) and data.reference != first.reference:
            raise Refused(
                f"concatenate: reference of data set {i} is {data.reference}, of data set 0 "
                f"{first.reference}"
            )
        for name in spec | (other := _spec(data)):
            if spec.get(name) != other.get(name):
                raise Refused(
                    f"concatenate: {name} of data set {i} is {other.get(name, 'missing')}, of "
                    "data set 0 "
                    f"{spec.get(name, 'missing')}"
                )


def _spec(dataset: Dataset) -> dict[str, str]:
    """Type and shape of a row of each array."""
    return {
        name: f"{x.dtype}{['N', *x.shape[1:]]}".replace("'", "")
        for name, x in _arrays(dataset).items()
    }


# ---- building and checking -----------------------------------------------------------------------


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    env: str = "",
    source: str = "",
    reference: tuple[float, float] | None = None,
    weights: Any = None,
    finish: Literal["truncate"] | None = None,
    bounds: tuple[Any, Any] | None = None,
    clip: bool = False,
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """A checked data set from arrays with any of the names and layouts in `rlzoo/layouts.py`.

    Floats become float32 and 64-bit integers int32, with a note on stderr. Arrays called
    `extra/NAME` are kept as `extra[NAME]`; others that are not known are left out, with a note.

    Args:
      env, source, reference, weights: as in `Dataset`.
      finish: "truncate" ends an episode as truncated where the data break off without saying so: at
        the last row, and where a successor is not the observation of the row after. Otherwise that
        is an error. A note says how many it ended.
      bounds: (low, high) of the actions as they are given, numbers or [action_dim]; maps them to
        [-1, 1].
      clip: clip actions to [-1, 1], as the environment does, after `bounds`. Otherwise one outside
        is an error.
      names: what an array is called here, for example {"terminated": "dones"}, where it has another
        name than those known. For a flag also "1-NAME", "NAME-NAME" (bools as 0 and 1), or "never"
        where no row has it.

    Raises `Refused`, naming arrays and rows, for all that `validate` finds and for what has no such
    reading.
    """
    data = _build(
        layouts.standard(arrays, finish, bounds, clip, names),
        {"env": env, "source": source, "reference": reference},
    )
    return data if weights is None else weighted(data, weights)


def load(
    path: str | Path,
    *,
    finish: Literal["truncate"] | None = None,
    bounds: tuple[Any, Any] | None = None,
    clip: bool = False,
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """The data set in a .npz or .hdf5 file, or the local Minari data set called `minari:ID`.

    A Minari data set can also be given as its folder or its main_data.hdf5. Where it observes
    dictionaries, say which parts to join: `minari:ID?obs=observation,desired_goal`. Its actions are
    mapped from their bounds to [-1, 1]. The arguments are as for `from_arrays`.

    Raises `Refused`, naming file, arrays and rows.
    """
    wanted = {part for name in (names or {}).values() for part in (name, *name.split("-"))}
    arrays, about = formats.read(path, wanted)
    if bounds is not None:
        about["bounds"] = bounds
    try:
        return from_arrays(arrays, finish=finish, clip=clip, names=names, **about)
    except Refused as error:
        raise Refused(f"{path}: {error}") from None


def load_all(given: Any) -> Any:
    """The data that an algorithm is handed: a data set, a dict of them by name, or None.

    Args:
      given: None, a `Dataset`, what `load` reads, or a mapping from names to any of the last two.

    Raises `Refused`, naming the entry.
    """
    if given is None or isinstance(given, Dataset):
        return given
    if isinstance(given, str | Path):
        return load(given)
    if not isinstance(given, Mapping) or not given:
        raise Refused(
            f"dataset is {type(given).__name__}: must be a data set, a file, or a mapping from "
            "names "
            "to one of these"
        )
    return {name: _load_entry(name, entry) for name, entry in given.items()}


def _load_entry(name: Any, entry: Any) -> Dataset:
    if not isinstance(name, str) or not isinstance(entry, str | Path | Dataset):
        raise Refused(
            f"dataset {name!r} is {type(entry).__name__}: must be a name with a data set or a "
            "file; "
            "arrays become a data set by dataset.from_arrays"
        )
    with _naming(name):
        return load_all(entry)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which data set what is refused inside."""
    try:
        yield
    except Refused as error:
        raise Refused(f"dataset {name}: {error}") from None


def recorded(env: Env, key: jax.Array) -> Dataset:
    """The data set that an environment makes of itself, by its own scripts; in compiled code too.

    Such an environment has `record(key, params)`, which gives arrays [episodes, length, ...] by the
    names of a transition's fields, and others, which become `extra`; or a tuple of such, where
    lengths differ.

    Raises `Refused` where the environment has none.
    """
    if not hasattr(env.inner, "record"):
        raise Refused(
            f"{env.id} makes no data set of its own, so give one: --dataset FILE "
            "(rlzoo data collect RUN --out FILE records one)"
        )
    parts = env.inner.record(key, env.one_params())
    parts = parts if isinstance(parts, tuple) else (parts,)
    shapes = [part["reward"].shape for part in parts]
    lengths = np.concatenate([np.full(episodes, length) for episodes, length in shapes])
    flat = {
        name: jnp.concatenate([part[name].reshape(-1, *part[name].shape[2:]) for part in parts])
        for name in parts[0]
    }
    known: dict[str, Any] = {name: flat.pop(name) for name in Transition._fields}
    return Dataset(
        **known,
        starts=jnp.asarray(np.append(0, np.cumsum(lengths)), jnp.int32),
        extra=flat,
        obs_mean=known["obs"].mean(0),
        obs_std=known["obs"].std(0),
        returns=jnp.concatenate([part["reward"].sum(1) for part in parts]),
        env=env.id,
        source="its own script",
    )


def save(dataset: Dataset, path: str | Path) -> None:
    """Write a data set as .npz, or as .hdf5 with D4RL's names; `load` gives back the same bits."""
    weights = {} if dataset.weights is None else {"weights": np.asarray(dataset.weights)}
    formats.write(path, _arrays(dataset) | weights, _about(dataset))


def validate(dataset: Dataset) -> None:
    """Raise `Refused` with everything that is wrong, each with its array and first row.

    That is: arrays of the wrong rank, type or length; numbers that are not finite; rows both
    terminated and truncated; an unfinished episode; a successor that is not the next row's
    observation; actions out of range. Whatever is read is checked like this; call it yourself after
    changing arrays with `dataset.replace`.
    """
    arrays = _arrays(dataset)
    layouts.refuse(layouts.wrong_shapes(arrays) or layouts.wrong_values(arrays))
    if not np.array_equal(dataset.starts, _starts(arrays)):
        raise Refused(
            "starts do not fit terminated | truncated: build the data set again with from_arrays"
        )


def check(dataset: Dataset | Mapping[str, Dataset], env: Env) -> None:
    """Raise `Refused` where the data, or one of several data sets, cannot be of `env`.

    That is: another shape of observations, another kind, size or number of actions, observations
    outside of the environment's finite bounds by more than rounding.
    """
    if isinstance(dataset, Mapping):
        for name, entry in dataset.items():
            with _naming(name):
                check(entry, env)
        return
    if dataset.obs.shape[1:] != env.obs_shape:
        raise Refused(
            f"obs of the data set are {list(dataset.obs.shape[1:])}, those of {env.id} are "
            f"{list(env.obs_shape)}"
        )

    def kind(discrete: bool) -> str:
        return "discrete" if discrete else "continuous"

    if dataset.discrete != env.discrete:
        raise Refused(
            f"actions of the data set are {kind(dataset.discrete)}, those of {env.id} are "
            f"{kind(env.discrete)}"
        )
    if not env.discrete and dataset.action.shape[1:] != env.action_space.shape:
        raise Refused(
            f"actions of the data set are {list(dataset.action.shape[1:])}, those of {env.id} are "
            f"{list(env.action_space.shape)}"
        )
    action = np.asarray(dataset.action)
    if env.discrete and action.max() >= env.num_actions:
        raise Refused(
            f"action: row {(action >= env.num_actions).argmax()} is {action.max()}, but {env.id} "
            "has "
            f"{env.num_actions} actions, counted from 0"
        )
    if not env.discrete:
        layouts.check_range("action", action, -1.0, 1.0, env.id)
    space = env.inner.observation_space(env.one_params())
    if env.id.partition("?")[0] not in LOOSE:
        for name in ("obs", "next_obs"):
            layouts.check_range(
                name, np.asarray(getattr(dataset, name)), space.low, space.high, env.id
            )


def require(dataset: Any, algorithm: str, *names: str, discrete: bool | None = None) -> None:
    """Raise `Refused` where `algorithm` was not given the data that it learns from.

    Args:
      names: those of the data sets that it needs; none: it needs a single one.
      discrete: whether actions must be discrete, or continuous; None: either.
    """
    if names:
        found = isinstance(dataset, Mapping) and {*dataset} == {*names}
    else:
        found = isinstance(dataset, Dataset)
    if not found:
        if dataset is None:
            given = "none was given"
        elif isinstance(dataset, Dataset):
            given = "a single one was given"
        else:
            given = f"{' and '.join(dataset)} were given"
        what = f"data sets called {' and '.join(names)}" if names else "a data set"
        files = " ".join(f"{name}=FILE" for name in names) or "FILE"
        raise Refused(
            f"{algorithm} learns from {what}, but {given}: --dataset {files} "
            "(`rlzoo data list` shows the names of some, `rlzoo data collect RUN --out FILE` "
            "records one)"
        )
    kinds = {True: "discrete", False: "continuous"}
    for entry in dataset.values() if names else [dataset]:
        if discrete is not None and entry.discrete != discrete:
            hint = "offline_dqn and bc take" if entry.discrete else "iql and bc take"
            raise Refused(
                f"{algorithm} needs {kinds[discrete]} actions, but those of the data set are "
                f"{kinds[entry.discrete]}: {entry.action.dtype}{list(entry.action.shape)}; "
                f"{hint} these"
            )


def _starts(arrays: layouts.Arrays) -> np.ndarray:
    ends = np.flatnonzero(arrays["terminated"] | arrays["truncated"]) + 1
    return np.append(0, ends).astype(np.int32)


def _build(arrays: layouts.Arrays, about: dict[str, Any]) -> Dataset:
    mean, std = map(jnp.asarray, _moments(arrays["obs"]))
    starts = _starts(arrays)
    returns = np.add.reduceat(arrays["reward"].astype(np.float64), starts[:-1])
    device: dict[str, Any] = {name: jnp.asarray(x) for name, x in arrays.items()}
    extra = {
        name.removeprefix("extra/"): device.pop(name)
        for name in arrays
        if name not in layouts.NAMES
    }
    return Dataset(
        **device,
        starts=jnp.asarray(starts),
        extra=extra,
        obs_mean=mean,
        obs_std=std,
        returns=jnp.asarray(returns, jnp.float32),
        **about,
    )


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over rows, float32, by float64 and a block of rows at a time."""

    def average(center: np.ndarray, power: int) -> np.ndarray:
        total = np.zeros(x.shape[1:])
        for first in range(0, len(x), BLOCK):
            total += ((x[first : first + BLOCK] - center) ** power).sum(axis=0)
        return total / len(x)

    first = x[0].astype(np.float64)
    mean = first + average(first, 1)  # exact where a number never changes
    return mean.astype(np.float32), np.sqrt(average(mean, 2)).astype(np.float32)


def _arrays(dataset: Dataset) -> layouts.Arrays:
    """The arrays [N, ...] on the host, `extra` under `extra/NAME`."""
    named = {name: getattr(dataset, name) for name in layouts.NAMES}
    named |= {f"extra/{name}": x for name, x in dataset.extra.items()}
    return {name: np.asarray(x) for name, x in named.items()}


def _about(dataset: Dataset) -> dict[str, Any]:
    return {"env": dataset.env, "source": dataset.source, "reference": dataset.reference}


# ---- describing ----------------------------------------------------------------------------------


def describe(dataset: Dataset) -> str:
    """What is in a data set, as a table for people."""
    _, lengths, returns = episodes(dataset)
    table = {"return": returns, "length": lengths}
    if dataset.reference:
        table["score"] = normalized_score(dataset, returns)
    terminated = np.asarray(dataset.terminated).sum() / dataset.num_episodes
    size = machine.readable(dataset.nbytes)
    facts = {
        "environment": dataset.env or "unknown",
        "source": dataset.source or "unknown",
        "transitions": f"{len(dataset):,} in {dataset.num_episodes:,} episodes, {size}",
        "ends": f"{terminated:.1%} of the episodes terminated, {1 - terminated:.1%} truncated",
    }
    if dataset.reference:
        facts["score"] = "0 is a return of {:.6g}, 100 one of {:.6g}".format(*dataset.reference)
    if dataset.weights is not None:
        chance = np.diff(np.asarray(dataset.cumulative, np.int64), prepend=0) / 2.0**31
        facts["drawn"] = f"by weight: from episodes of return {chance @ returns:.4g} on average"

    def spread(x: np.ndarray) -> list[str]:
        quantiles = np.quantile(x, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1))
        return [f"{value:.4g}" for value in (x.mean(), *quantiles)]

    return "\n".join(
        [
            *(f"{name:12} {value}" for name, value in facts.items()),
            "",
            _row("episodes", ("mean", "min", "10%", "25%", "50%", "75%", "90%", "max")),
            *(_row(name, spread(x)) for name, x in table.items()),
            "",
            _row("rows", ("mean", "min", "max")),
            *(
                line
                for name in ("obs", "action", "reward")
                for line in _ranges(name, np.asarray(getattr(dataset, name)))
            ),
        ]
    )


def _row(name: str, values: Iterable[str]) -> str:
    """A line of the table."""
    return f"{name:12}" + "".join(f"{value:>10}" for value in values)


def _ranges(name: str, x: np.ndarray) -> list[str]:
    """One line for an array, and one for each of its dimensions if they are few; shares of discrete
    actions."""

    def line(name: str, x: np.ndarray) -> str:
        numbers = (x.mean(dtype=np.float64), x.min(), x.max())
        return _row(name, [f"{value:.4g}" for value in numbers])

    lines = [f"{line(name, x)}  {x.dtype}{list(x.shape)}"]
    if name == "action" and x.ndim == 1:
        shares = np.bincount(x) / len(x)
        return [
            *lines,
            *(
                f"  action {i:<4} {share:>8.1%}"
                for i, share in enumerate(shares[:SHOWN_DIMENSIONS])
            ),
        ]
    if x.ndim == 2 and x.shape[1] <= SHOWN_DIMENSIONS:
        lines += [line(f"  {name}[{i}]", x[:, i]) for i in range(x.shape[1])]
    return lines
