"""The one training loop: compiled chunks, stages, evaluation, checkpoints, resume.

A *member* is a seed together with a setting of the float hyper-parameters. All members of one
compiled *program* train together (see `rlzoo/run/program.py`). A swept static field gives one
program per value, run one after the other under the same record.
"""

import contextlib
import signal
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzoo import machine
from rlzoo.run.checkpoints import Saved
from rlzoo.run.loading import read_dataset
from rlzoo.run.members import expand_sweep, group_members
from rlzoo.run.options import Options
from rlzoo.run.program import Program
from rlzoo.run.record import Record
from rlzoo.suites import registry

DISPATCH_SECONDS = 0.5  # how long one compiled call should run: Ctrl-C and the display wait for it


CHECKPOINT_SECONDS = 60.0


LOG_POINTS = 50


EVAL_POINTS = 20


class Run(NamedTuple):
    """What `train` returns."""

    dir: Path
    summary: dict
    """as in summary.json"""


def train(
    make: Callable,
    config: Any,
    dataset: Any = None,
    *,
    sweep: dict[str, list] | None = None,
    **options: Any,
) -> Run:
    """Train every member and keep the record in a run directory.

    Args:
      make: `make(config, env, dataset) -> Algorithm`.
      config: a `Config` (or the class, for its defaults).
      dataset: a data set or a file that holds one, handed to `make` as a traced argument; None for
        algorithms that learn online.
      sweep: field -> values. Values of float fields become members of one program, values of static
        fields programs of their own; several fields give their product.
      options: the fields of `rlzoo.run.options.Options`: seeds, seed, out, resume, eval_every, ...

    Raises `Refused` (a ValueError) with a message for the user where an option, the configuration
    or the output folder makes no sense. Ctrl-C and SIGTERM save, and return a run whose status is
    `interrupted`.
    """
    config = config() if isinstance(config, type) else config
    chosen = Options(**options, dataset=str(dataset) if isinstance(dataset, str | Path) else None)
    chosen.check()
    dataset = read_dataset(dataset)
    settings = expand_sweep(config, sweep or {})
    if chosen.cache:
        machine.keep_compiled()
    env = {}
    for setting in settings:
        if setting.config.env not in env:
            env[setting.config.env] = registry.make(setting.config.env)
    if chosen.dataset:
        from rlzoo.dataset import check

        for made in env.values():
            check(dataset, made)
    programs = [
        Program(make, members, env[members[0].config.env], dataset, chosen, index)
        for index, members in enumerate(group_members(settings, chosen))
    ]
    for program in programs:
        machine.check_fits(
            program.state_bytes(),
            program.devices[0],
            f"the training states of {len(program.members)} members (replay included)",
        )
    record = Record.open(make, config, sweep or {}, chosen, programs)
    with record, _interruptible() as stop:
        for program in programs:
            _run(program, record, chosen, stop)
            if stop.agreed:
                break
    return Run(record.dir, record.summary)


# ---- running -------------------------------------------------------------------------------------


class Clock(NamedTuple):
    """Seconds spent, over all runs of a program that was resumed."""

    train: float = 0.0
    eval: float = 0.0
    compile: float = 0.0


def _run(program: Program, record: Record, options: Options, stop: types.SimpleNamespace) -> None:
    """Train one program to its end, or until asked to stop."""
    in_calls = lambda steps: max(1, round(steps / program.algorithm.steps_per_call))
    log_every = in_calls(program.steps / LOG_POINTS)
    eval_every = in_calls(
        program.steps / EVAL_POINTS
        if options.eval_every is None
        else options.eval_every or program.steps
    )
    save_every = in_calls(options.checkpoint_every) if options.checkpoint_every else program.calls
    saved = record.restore(program.index)
    if saved:
        at, clock, diverged, totals = saved.at, Clock(*saved.clock), saved.diverged, saved.totals
        totals = jax.tree.map(program.spread, totals)
        states = program.restore(saved.leaves)
    else:
        at, clock, diverged, totals = 0, Clock(), np.zeros(len(program.members), bool), None
        states = program.init()
    earlier, kept, saved_when = clock.compile, saved.at if saved else None, time.monotonic()

    def log(totals: Any, finite: Any, evaluate: bool) -> None:
        """Write one row a member, and note which members have diverged."""
        nonlocal clock, diverged
        sums = program.to_host(totals)
        row = {
            name: np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
            for name, (total, count) in sums.items()
        }
        blank = {name: count == 0 for name, (_, count) in sums.items()}
        if evaluate:
            began, before = time.perf_counter(), program.compile_seconds
            row |= program.evaluate(states, at * program.algorithm.steps_per_call)
            seconds = time.perf_counter() - began - (program.compile_seconds - before)
            clock = clock._replace(
                eval=clock.eval + seconds, compile=earlier + program.compile_seconds
            )
        bad = [~np.isfinite(total) for name, (total, _) in sums.items() if name.startswith("loss/")]
        diverged = diverged | np.any([*bad, ~program.to_host(finite)], axis=0)
        record.rows(program, at, row, blank, diverged, clock)

    def save() -> None:
        nonlocal kept, saved_when
        leaves = program.to_host(jax.tree.leaves(states))
        record.save(program, Saved(at, leaves, program.to_host(totals), diverged, tuple(clock)))
        kept, saved_when = at, time.monotonic()

    record.start(program, at, clock)
    if at == 0 and options.eval_every != 0:
        log({}, program.put(np.ones(len(program.seeds), bool)), evaluate=True)
    first, burst = 0, 1
    for number, stage in enumerate(program.stages):
        last = first + stage.calls
        if at == first:
            states, totals = program.enter(stage, states), None
        if first <= at < last and totals is None:
            totals = program.totals(number)
        while at < last and not stop.agreed:
            until = min(
                at + burst,
                last,
                *(at - at % every + every for every in (log_every, eval_every, save_every)),
            )
            began = time.perf_counter()
            before = program.compile_seconds
            states, totals, finite = program.chunk(
                number, states, totals, at - first, until - first
            )
            jax.block_until_ready(finite)
            compiling = program.compile_seconds - before
            seconds = time.perf_counter() - began - compiling
            clock = clock._replace(
                train=clock.train + seconds, compile=earlier + program.compile_seconds
            )
            burst = int(
                np.clip(DISPATCH_SECONDS * (until - at) / max(seconds, 1e-6), 1, 16 * burst)
            )
            due = (
                time.monotonic() - saved_when > CHECKPOINT_SECONDS and not options.checkpoint_every
            )
            burst, due, stop.agreed = _agree(burst, due, stop.asked)
            at = until
            evaluate = at % eval_every == 0 or at == program.calls
            if evaluate or at % log_every == 0 or at == last:
                log(totals, finite, evaluate)
                totals = program.totals(number)
            record.progress(program, stage, at, clock)
            if (due or at % save_every == 0) and at < program.calls:
                save()
        if stop.agreed:
            break
        first = last
    if kept != at:
        save()


def _agree(*values: Any) -> tuple:
    """Process 0's view, so that all processes of a run do the same."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return tuple(
        np.asarray(multihost_utils.broadcast_one_to_all(np.array(values, np.int32))).tolist()
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[types.SimpleNamespace]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once."""
    stop = types.SimpleNamespace(
        asked=False, agreed=False
    )  # agreed: by all processes, at the same call

    def ask(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        previous = {
            number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread, where Python does not deliver signals anyway
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
