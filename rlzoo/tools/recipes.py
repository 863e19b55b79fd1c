"""Data sets of our own, made on demand from our own training runs, deterministic from seeds.

A name is TASK-TIER: `pendulum-medium-replay`, `hopper-generalized-expert`. One training run of a
task gives all its tiers, so they are made together, into `datasets/` of the cache folder:

    random          uniformly random actions
    medium          the first policy that is a third to a half of the way from random to expert
    medium-replay   all that the run had stored up to there, its random actions included
    medium-expert   medium and expert, one after the other
    expert          the best policy of the run's second half

Policies are played with a little noise. Scores of 0 and 100, recorded with each set, are the
returns of random actions and of the expert without noise. For imitation, after Dual RL (arXiv
2302.08560): `random+expert` and `medium+expert` hold a fifth as many episodes of the expert's as of
the other tier, `random+few-expert` and `medium+few-expert` a thirtieth, marked in
`extra["expert"]`; `one-expert` is one of those few, of median return.
"""

import dataclasses
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzoo import dataset as datasets
from rlzoo import machine
from rlzoo.algorithm import Algorithm, Refused
from rlzoo.dataset import Dataset
from rlzoo.env import Env
from rlzoo.run.members import Member
from rlzoo.run.options import Options
from rlzoo.run.program import Program
from rlzoo.suites import registry
from rlzoo.tools import collect

VERSION = 1
"""of the recipes: another one has files of its own"""
SEED = 0
MEDIUM = (1 / 3, 1 / 2)
"""how far `medium` has come from random to expert"""
POINTS = 40
"""how often a run is looked at"""
LOOKS = 16
"""episodes that it plays then"""
SAID = 5
"""looks for each that is told of"""
JUDGED = 100
"""episodes that give the expert's return"""
MANY, FEW = 5, 30
"""one episode of the expert's for so many others, in sets for imitation"""


class Task(NamedTuple):
    """An environment, and how its data are made."""

    env: str
    algorithm: str
    episodes: int
    """of each tier"""
    noise: float
    """as of `rlzoo.collect.policy`"""
    takes: str
    """how long the making takes on one core, in words"""
    fields: dict[str, Any]
    """of the algorithm's Config; the replay holds the whole run"""


def _spring(name: str) -> Task:
    """On a CPU, small."""
    return Task(
        env=f"brax/{name}:spring",
        algorithm="td3",
        episodes=200,
        noise=0.1,
        takes="an hour (not measured)",
        fields={
            "total_steps": 200_000,
            "num_envs": 4,
            "updates_per_step": 2,
            "hidden": (128, 128),
            "learning_starts": 5_000,
            "learning_rate": 3e-4,
        },
    )


def _generalized(name: str) -> Task:
    """The usual sizes; for a GPU."""
    return Task(
        env=f"brax/{name}:generalized",
        algorithm="sac",
        episodes=1_000,
        noise=0.1,
        takes="many hours (not measured; a GPU is wanted)",
        fields={
            "total_steps": 1_000_000,
            "num_envs": 8,
            "updates_per_step": 8,
            "hidden": (256, 256),
            "batch_size": 256,
            "learning_starts": 10_000,
            "learning_rate": 3e-4,
        },
    )


TASKS = {
    "pendulum": Task(
        env="Pendulum-v1",
        algorithm="sac",
        episodes=250,
        noise=0.1,
        takes="half a minute",
        fields={"total_steps": 80_000, "num_envs": 8, "learning_starts": 1_000},
    ),
    "mountaincar": Task(
        env="MountainCarContinuous-v0",
        algorithm="td3",
        episodes=100,
        noise=0.1,
        takes="half a minute",
        fields={
            "total_steps": 80_000,
            "num_envs": 8,
            "updates_per_step": 4,
            "learning_starts": 8_000,
            "exploration_noise": 1.5,  # some episodes reach the goal by chance
            "discount": 0.995,
        },
    ),
    "cartpole": Task(
        env="CartPole-v1",
        algorithm="dqn",
        episodes=250,
        noise=0.05,
        takes="half a minute",
        fields={
            "total_steps": 300_000,
            "learning_starts": 1_000,
            "learning_rate": 5e-4,
            "double": True,
        },
    ),
    "acrobot": Task(
        env="Acrobot-v1",
        algorithm="dqn",
        episodes=250,
        noise=0.05,
        takes="half a minute",
        fields={
            "total_steps": 150_000,
            "learning_starts": 1_000,
            "learning_rate": 1e-3,
            "double": True,
        },
    ),
    "hopper": _spring("hopper"),
    "walker2d": _spring("walker2d"),
    "halfcheetah": _spring("halfcheetah"),
    "hopper-generalized": _generalized("hopper"),
    "walker2d-generalized": _generalized("walker2d"),
    "halfcheetah-generalized": _generalized("halfcheetah"),
}
TIERS = ("random", "medium", "medium-replay", "medium-expert", "expert")
MIXES = {
    "random+expert": ("random", MANY),
    "random+few-expert": ("random", FEW),
    "medium+expert": ("medium", MANY),
    "medium+few-expert": ("medium", FEW),
}
"""name -> the tier, and how many of its episodes there are for one of the expert's"""
ONE = "one-expert"


def names(task: str = "") -> list[str]:
    """Every data set that there is a recipe for, or those of one task."""
    tasks = [task] if task else [*TASKS]
    return [f"{task}-{tier}" for task in tasks for tier in (*TIERS, *MIXES, ONE)]


def task_of(name: str) -> str:
    """The task of a data set. Raises `Refused` where there is none of this name."""
    if name not in names():
        raise Refused.unknown("data set", name, names())
    return next(task for task in TASKS if name in names(task))


def path_of(name: str) -> Path:
    """The file that a data set has once it is made."""
    folder = machine.cache_dir()
    if folder is None:
        raise Refused("data sets are made into the cache folder; name one with RLZOO_CACHE")
    return folder / "datasets" / f"v{VERSION}" / f"{name}.npz"


def find(name: str, again: bool = False) -> Path:
    """The file of a data set; all of its task are made where it is not there, or `again`.

    Raises `Refused` where there is no recipe for it.
    """
    task, path = task_of(name), path_of(name)
    if again or not path.exists():
        _say(f"{name} is made now, with all data sets of {task}: {TASKS[task].takes} on one core")
        began = time.monotonic()
        for tier, data in make(task, say=_say):
            _write(data, path_of(f"{task}-{tier}"))
        _say(f"made in {time.monotonic() - began:.0f} s, kept in {path.parent}")
    return path


def load(name: str) -> Dataset:
    """A data set by its name; made first where it is not there."""
    return datasets.load(find(name))


def resolve(given: Any) -> Any:
    """`given` with a file in place of the name of a data set; anything else as it is.

    Raises `Refused` for what looks like a name and is none.
    """
    text = str(given)
    if text in names():
        return find(text)
    bare = text and not Path(text).suffix and not {"/", ":", os.sep} & {*text}
    if bare and not Path(text).expanduser().exists():
        raise Refused(f"there is no file {text}; {Refused.unknown('data set', text, names())}")
    return given


def _write(data: Dataset, path: Path) -> None:
    """Whole or not at all, also where two processes make the same."""
    part = path.with_name(f"{os.getpid()}-{path.name}")
    datasets.save(data, part)
    part.replace(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- making --------------------------------------------------------------------------------------


class Look(NamedTuple):
    """A run, looked at on its way."""

    steps: int
    policy: Any
    ret: float
    """mean return of LOOKS episodes"""


def make(name: str, say: Callable[[str], None] = _say) -> Iterator[tuple[str, Dataset]]:
    """The data sets of a task: (tier, data) of each."""
    task = TASKS[name]
    env = registry.make(task.env)
    looks, state, algorithm = train(task, env, say)

    # --- random ---
    random = collect.random(task.env, task.episodes, seed=SEED)
    worst = datasets.episodes(random).returns.mean()

    # --- which policies ---
    looks = [look for look in looks if look.steps > task.fields["learning_starts"]]
    best = max(looks[len(looks) // 2 :], key=lambda look: look.ret)
    if best.ret <= worst:
        raise Refused(
            f"{name}: the run ended no better than random actions: its return is {best.ret:.5g}, "
            f"theirs {worst:.5g}"
        )
    middle = _middle(looks, worst, best.ret)
    key = jax.random.key(SEED)

    def played(look: Look, episodes: int, noise: float, number: int) -> Dataset:
        act, memory = algorithm.act, algorithm.memory
        each = jax.random.fold_in(key, number)
        return collect.record(env, act, look.policy, episodes, each, memory, noise)

    expert_return = datasets.episodes(played(best, JUDGED, 0.0, 0)).returns.mean()
    medium = played(middle, task.episodes, task.noise, 1)
    expert = played(best, task.episodes, task.noise, 2)
    say(
        f"{name}: random {worst:.5g}, medium after {middle.steps:,} steps {middle.ret:.5g}, "
        f"expert after {best.steps:,} steps {expert_return:.5g}"
    )
    tiers = {
        "random": random,
        "medium": medium,
        "medium-replay": datasets.from_arrays(collect.replayed(state, middle.steps), env=env.id),
        "medium-expert": datasets.concatenate([medium, expert]),
        "expert": expert,
    }
    tiers |= for_imitation(tiers)
    for tier, data in tiers.items():
        about: dict[str, Any] = {
            "source": f"rlzoo data make {name}-{tier}",
            "reference": (float(worst), float(expert_return)),
        }
        yield tier, dataclasses.replace(data, **about)


def _middle(looks: list[Look], worst: float, best: float) -> Look:
    """The first look within MEDIUM; where a run has leapt over that, the first beyond it."""
    low, high = (worst + share * (best - worst) for share in MEDIUM)
    within = (look for look in looks if low <= look.ret <= high)
    return next(within, None) or next(look for look in looks if look.ret >= low)


def for_imitation(tiers: dict[str, Dataset]) -> dict[str, Dataset]:
    """The sets for imitation, from those of the tiers."""
    expert, found = tiers["expert"], {}
    for mix, (tier, others) in MIXES.items():
        shown = datasets.first(expert, max(1, round(expert.num_episodes / others)))
        parts = [datasets.marked(tiers[tier], False), datasets.marked(shown, True)]
        found[mix] = datasets.concatenate(parts)
    few = datasets.first(expert, max(1, round(expert.num_episodes / FEW)))
    order = np.argsort(datasets.episodes(few).returns, kind="stable")
    one = datasets.take(few, order[len(order) // 2 :][:1])
    return found | {ONE: datasets.marked(one, True)}


def train(task: Task, env: Env, say: Callable[[str], None]) -> tuple[list[Look], Any, Algorithm]:
    """One member of the algorithm, as `rlzoo train` trains it: what it was on its way, and its
    state at the end."""
    module = importlib.import_module(f"rlzoo.algorithms.{task.algorithm}")
    size = task.fields["total_steps"]
    config = module.Config(env=env.id, buffer_size=size, **task.fields)
    options = Options(devices=1, eval_episodes=LOOKS)
    program = Program(module.make, [Member(0, SEED, config, {})], env, None, options, 0)
    states, totals, nobody = program.init(), program.totals(0), program.nobody()
    looks = []
    at = np.linspace(0, program.calls, POINTS + 1).astype(int)
    for start, stop in itertools.pairwise(at):
        states, totals, nobody, _ = program.chunk(0, states, totals, nobody, start, stop)
        steps = int(stop) * program.algorithm.steps_per_call
        ret = float(program.evaluate(states, steps)["eval/return"][0])
        state = jax.tree.map(lambda x: x[0], states)
        looks.append(Look(steps, jax.device_get(program.algorithm.policy(state)), ret))
        if len(looks) % SAID == 0:
            say(f"  step {steps:,} of {program.steps:,}: return {ret:.5g}")
    return looks, state, program.algorithm
