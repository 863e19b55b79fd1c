"""Trained members of runs, ready to act."""

import dataclasses
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlzoo.algorithm import Algorithm, Refused
from rlzoo.run.members import expand_sweep, group_members
from rlzoo.run.options import parse_dataset
from rlzoo.run.program import Program
from rlzoo.run.record import Record
from rlzoo.suites import registry


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


def load(run: str | Path, member: int = 0, full: bool = False, dataset: Any = None) -> Any:
    """The trained policy of one member of a run: `act, policy = rlzoo.load(run_dir)`.

    Args:
      run: the run directory.
      member: which member, as numbered in metrics.csv and summary.json.
      full: return `(act, state)` with the whole training state instead of the policy.
      dataset: what the run learnt from, where it was not a file given by --dataset.

    Raises `Refused` where the directory holds no readable run, or no such member.
    """
    found = trained(run, member, dataset)
    return Loaded(jax.jit(found.algorithm.act), found.state if full else found.policy)


def trained(run: str | Path, member: int = 0, dataset: Any = None) -> Trained:
    """One member of a run; arguments and errors as of `load`."""
    record = Record.read(run)
    module = record.module()
    config = record.config(module.Config)
    settings = expand_sweep(config, record.sweep)
    options = dataclasses.replace(record.options, devices=1)
    dataset = read_dataset(options.dataset if dataset is None else dataset)
    for index, members in enumerate(group_members(settings, options)):
        for place, found in enumerate(members):
            if found.index == member:
                program = Program(
                    module.make,
                    members,
                    registry.make(found.config.env),
                    dataset,
                    options,
                    index,
                )
                saved = record.restore(index)
                if saved is None:
                    raise Refused(f"{record.dir} has no checkpoint for member {member}")
                state = jax.tree.map(operator.itemgetter(place), program.restore(saved.state))
                return Trained(program.env, module.make(found.config, program.env, dataset), state)
    raise Refused(
        f"{record.dir} has no member {member}; it has {len(settings) * options.seeds}, counted from 0"
    )


def read_dataset(given: Any) -> Any:
    """A data set, or a mapping of names to data sets, read where it is a file's name.

    Args:
      given: None, a data set, a file's name, a mapping of names to these, or what --dataset takes:
        `(file,)` or `(name=file, ...)`.
    """
    if given is None or given == ():
        return None
    from rlzoo import dataset

    return dataset.load_all(parse_dataset(given) if isinstance(given, tuple) else given)
