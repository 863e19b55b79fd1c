"""Trained members of runs, ready to act."""

import dataclasses
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzoo import env as environments
from rlzoo.algorithm import Algorithm, Refused
from rlzoo.run import learnt
from rlzoo.run.members import expand_sweep, group_members
from rlzoo.run.program import Program, check_precision
from rlzoo.run.record import Record


class Loaded(NamedTuple):
    """A member of a finished or interrupted run."""

    act: Callable
    """jitted `act(policy, obs, key) -> action` (with `memory`: see `rlzoo.Algorithm.act`)"""
    policy: Any


class Trained(NamedTuple):
    """A member of a run, with all that belongs to it."""

    env: Any
    algorithm: Algorithm
    state: Any
    """its training state"""

    @property
    def policy(self) -> Any:
        return self.algorithm.policy(self.state)


def load(run: str | Path, member: int = 0, full: bool = False, **given: Any) -> Any:
    """The trained policy of one member of a run: `act, policy = rlzoo.load(run_dir)`.

    Args:
      run: the run directory.
      member: which member, as numbered in metrics.csv and summary.json.
      full: return `(act, state)` with the whole training state instead of the policy.
      given: `dataset`, `env`, `make` and `Config`, as of `trained`.

    Raises `Refused` where the directory holds no readable run, or no such member.
    """
    found = trained(run, member, **given)
    return Loaded(jax.jit(found.algorithm.act), found.state if full else found.policy)


def evaluate(
    run: str | Path, episodes: int = 32, member: int = 0, seed: int = 0, **given: Any
) -> np.ndarray:
    """Play a trained policy as evaluation does.

    Args:
      run, member, given: as for `load`.
      episodes: how many, all played together.
      seed: of the episodes; training used other ones.

    Returns: undiscounted returns [episodes]. Raises `Refused` as `load` does, and where a number
      makes no sense.
    """
    for name, value, low in (("episodes", episodes, 1), ("seed", seed, 0)):
        if value < low:
            raise Refused(f"{name} is {value}; it must be at least {low}")
    found = trained(run, member, **given)
    algorithm = found.algorithm

    def play(policy: Any, keys: jax.Array) -> jax.Array:
        act, memory = environments.acting(algorithm.act, algorithm.memory, policy, episodes)
        return environments.episodes(found.env, act, memory, keys)[0]

    keys = jax.random.split(jax.random.key(seed), episodes)
    return np.asarray(jax.jit(play)(found.policy, keys))


def trained(
    run: str | Path,
    member: int = 0,
    dataset: Any = None,
    env: Any = None,
    make: Callable | None = None,
    Config: type | None = None,
) -> Trained:
    """One member of a run, with all that belongs to it.

    Args:
      run, member: as for `load`.
      dataset: what the run learnt from, where it was not a file given by --dataset.
      env: its environment, where it was one of a notebook: whatever `rlzoo.make` takes.
      make, Config: its algorithm, where the run could keep no copy of it.

    Raises `Refused` as `load` does.
    """
    check_precision()
    record = Record.read(run)
    if make is None or Config is None:
        module = record.module()
        make, Config = module.make, module.Config
    settings = expand_sweep(record.config(Config), record.sweep)
    options = dataclasses.replace(record.options, devices=1)
    data = learnt.read(options.dataset if dataset is None else dataset, options.validation)
    for index, members in enumerate(group_members(settings, options)):
        for place, found in enumerate(members):
            if found.index == member:
                made = learnt.make_env(found.config.env if env is None else env, data)
                program = Program(make, members, made, data.train, options, index)
                saved = record.restore(index)
                if saved is None:
                    raise Refused(f"{record.dir} has no checkpoint for member {member}")
                state = jax.tree.map(operator.itemgetter(place), program.restore(saved.state))
                return Trained(made, make(found.config, made, data.train), state)
    count = len(settings) * options.seeds
    raise Refused(f"{record.dir} has no member {member}; it has {count}, counted from 0")
