"""The one training loop: compiled chunks, stages, evaluation, checkpoints, resume.

A *member* is a seed together with a setting of the float hyper-parameters. All members of one
compiled *program* train together (see `rlzoo/run/program.py`). A swept static field gives one
program per value, run one after the other under the same record.
"""

import contextlib
import dataclasses
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzoo import machine
from rlzoo.algorithm import Refused, Stage, clean
from rlzoo.run import learnt, source
from rlzoo.run.checkpoints import Saved
from rlzoo.run.members import expand_sweep, group_members, swept_values
from rlzoo.run.options import Options
from rlzoo.run.program import Program, check_precision
from rlzoo.run.record import Record
from rlzoo.run.trees import named
from rlzoo.suites import registry

DISPATCH_SECONDS = 0.5
"""How long one compiled call should run: Ctrl-C and the display wait for it."""
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
    sweep: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train every member and keep the record in a run directory.

    Args:
      make: `make(config, env, dataset) -> Algorithm`.
      config: a `Config` (or the class, for its defaults). Its `env`, also a swept one, is whatever
        `rlzoo.make` takes, or "" for the data set's own.
      dataset: for algorithms that learn from data: a data set, a file that holds one, or a mapping
        of names to these. It is handed to `make` as a traced argument, without the one called
        `validation`.
      sweep: field -> values. Values of float fields become members of one program, values of static
        fields programs of their own; several fields give their product.
      options: the fields of `rlzoo.run.options.Options`: seeds, seed, out, resume, eval_every, ...

    Returns the run's directory and its summary. Ctrl-C and SIGTERM save, and return a run whose
    status is `interrupted`.

    Raises `Refused` (a ValueError) with a message for the user where an option, the configuration
    or the output folder makes no sense.
    """
    check_precision()
    config = config() if isinstance(config, type) else config
    chosen = Options.of(dataset=dataset, **options)
    if dataset is None:
        chosen = learnt.default(make, chosen)
    config, values, envs = _with_ids(config, swept_values(sweep))
    expand_sweep(config, values)  # checks them before data are read
    if chosen.cache:
        machine.keep_compiled()
    data = learnt.read(chosen.dataset if dataset is None else dataset, chosen.validation)
    if config.env == "" and (data.train is not None or type(config)().env == ""):
        env = learnt.own_env(source.name_of(make), data)
        config, envs = dataclasses.replace(config, env=env.id), envs | {env.id: env}
    settings = expand_sweep(config, values)
    programs = _programs(make, settings, envs, data, chosen)
    swept = {name: list(dict.fromkeys(s.swept[name] for s in settings)) for name in values}
    record = Record.open(make, clean(config), swept, chosen, programs)
    with record, _interruptible() as stop:
        for program in programs:
            Training(program, record, chosen, stop).run()
            if stop.agreed:
                break
    return Run(record.dir, record.summary)


def _with_ids(config: Any, sweep: dict[str, list]) -> tuple[Any, dict[str, list], dict[str, Any]]:
    """`config` and `sweep` with ids in place of environments, and id -> what makes it."""
    envs: dict[str, Any] = {}

    def name(env: Any) -> str:
        id = registry.id_of(env)
        envs.setdefault(id, env if id.startswith(registry.NOTEBOOK) else id)
        return id

    config = dataclasses.replace(config, env=name(config.env))
    if "env" in sweep:
        sweep = sweep | {"env": [name(env) for env in sweep["env"]]}
    return config, sweep, envs


def _programs(
    make: Callable, settings: list, given: dict[str, Any], data: learnt.Data, options: Options
) -> list[Program]:
    """The programs of a run, checked as far as that goes without compiling them.

    Args:
      given: id of an environment -> what makes it.
    """
    ids = dict.fromkeys(setting.config.env for setting in settings)
    envs = {id: learnt.make_env(given[id], data) for id in ids}
    for env in envs.values():
        learnt.check(data, env)
    programs = []
    for index, members in enumerate(group_members(settings, options)):
        env = envs[members[0].config.env]
        programs.append(Program(make, members, env, data.train, options, index, data.validation))
    for program in programs:
        what = f"the training states of {len(program.members)} members (replay included)"
        machine.check_fits(program.state_bytes(), program.devices[0], what)
    if data.train is not None and not any(program.reads_data() for program in programs):
        name = source.name_of(make)
        raise Refused(f"{name} makes no use of a data set; leave --dataset out")
    return programs


# ---- one program ---------------------------------------------------------------------------------


class Clock(NamedTuple):
    """Seconds spent, over all runs of a program that was resumed."""

    train: float = 0.0
    eval: float = 0.0
    compile: float = 0.0


class Position(NamedTuple):
    """How far a program is. `call` counts within the stage, calls `at`,
    steps and updates over all stages."""

    stage: int = 0
    call: int = 0
    at: int = 0
    steps: int = 0
    updates: int = 0

    def after(self, calls: int, stage: Stage) -> "Position":
        """`calls` calls of `stage` later."""
        return self._replace(
            call=self.call + calls,
            at=self.at + calls,
            steps=self.steps + calls * stage.steps_per_call,
            updates=self.updates + calls * stage.updates_per_call,
        )


class Training:
    """One program on its way from its start, or from a checkpoint, to its end."""

    def __init__(
        self, program: Program, record: Record, options: Options, stop: types.SimpleNamespace
    ):
        self.program = program
        self.record = record
        self.options = options
        self.stop = stop
        self.burst = 1
        """Calls of the next chunk, if nothing is due before."""
        saved = record.restore(program.index)
        if saved is None:
            self.position = Position()
            self.clock = Clock()
            self.diverged = np.zeros(len(program.members), bool)
            self.frozen = program.nobody()
            self.states = program.init()
            self.totals = program.totals(0)
        else:
            self.position = self._position(saved)
            self.clock = Clock(*saved.clock)
            self.diverged = saved.diverged
            self.frozen = program.spread(saved.frozen)
            self.states = program.restore(saved.state)
            if self.position.stage < len(program.stages):
                self.totals = program.totals(self.position.stage, saved.totals)
        self.compiled_before = self.clock.compile
        self.kept = saved.at if saved else None
        """At how many calls the newest checkpoint was written."""
        self.kept_when = time.monotonic()

    def _position(self, saved: Saved) -> Position:
        if saved.stage is not None:
            return Position(saved.stage, saved.call, saved.at, saved.steps, saved.updates)
        # Written by a version in which stages never ended early.
        position = Position()
        for stage in self.program.stages:
            calls = min(stage.calls, saved.at - position.at)
            position = position.after(calls, stage)
            if position.call == stage.calls:
                position = position._replace(stage=position.stage + 1, call=0)
        return position

    def run(self) -> None:
        """Train to the end, or until asked to stop."""
        self.record.start(self.program, self.position, self.clock)
        first = self.program.stages[0]
        if self.position == Position() and first.evaluate and self.options.eval_every != 0:
            everyone = self.program.put(np.ones(len(self.program.seeds), bool))
            self._log({}, everyone, evaluate=True)
        while self.position.stage < len(self.program.stages) and not self.stop.agreed:
            self._stage(self.program.stages[self.position.stage])
        if self.position.stage == len(self.program.stages):
            self.record.finished.add(self.program.index)
        if self.kept != self.position.at:
            self._save()

    def _stage(self, stage: Stage) -> None:
        """Make the calls of a stage that are left."""
        number = self.position.stage
        if self.position.call == 0:
            self.states = self.program.enter(stage, self.states)
            self.frozen = self.program.nobody()
            self.totals = self.program.totals(number)
            self.burst = 1
        every = self._intervals(stage)
        ended = False
        while not ended and not self.stop.agreed:
            calls = self._calls_until_due(stage, every)
            finite = self._chunk(number, calls)
            self.position = self.position.after(calls, stage)
            ended = self._has_ended(stage)
            last = ended and number == len(self.program.stages) - 1
            due = {name: self.position.call % n == 0 for name, n in every.items()}
            evaluate = last or (stage.evaluate and due["evaluate"])
            if evaluate or due["log"] or ended:
                self._log(self.totals, finite, evaluate)
                self.totals = self.program.totals(number)
            self.record.progress(self.program, stage, self.position, self.clock)
            if ended:
                self.position = self.position._replace(stage=number + 1, call=0)
            if (self.overdue or due["save"]) and not last:
                self._save()

    def _intervals(self, stage: Stage) -> dict[str, int]:
        """After how many calls of a stage something is due."""

        def calls(steps: int | None, default: float) -> int:
            return max(1, round(default if steps is None else steps / stage.steps_per_call))

        options = self.options
        every = {
            "log": calls(None, stage.calls / LOG_POINTS),
            "evaluate": calls(options.eval_every or None, stage.calls / EVAL_POINTS),
            "save": calls(options.checkpoint_every, stage.calls),
        }
        if options.eval_every == 0:
            every["evaluate"] = stage.calls
        if stage.until is not None:
            every["until"] = stage.check_every
        return every

    def _calls_until_due(self, stage: Stage, every: dict[str, int]) -> int:
        """How many calls the next chunk makes: no chunk crosses a point where something is due."""
        call = self.position.call
        return min(self.burst, stage.calls - call, *(n - call % n for n in every.values()))

    def _chunk(self, number: int, calls: int) -> Any:
        """Make some calls. Returns whether each policy is finite."""
        program, call = self.program, self.position.call
        began = time.perf_counter()
        compiled = program.compile_seconds
        self.states, self.totals, self.frozen, finite = program.chunk(
            number, self.states, self.totals, self.frozen, call, call + calls
        )
        jax.block_until_ready(finite)
        seconds = time.perf_counter() - began - (program.compile_seconds - compiled)
        self._spend(train=seconds)
        # --- how long the next chunk may be, and whether a checkpoint is overdue ---
        wanted = DISPATCH_SECONDS * calls / max(seconds, 1e-6)
        burst = int(np.clip(wanted, 1, 16 * self.burst))
        waited = time.monotonic() - self.kept_when > CHECKPOINT_SECONDS
        overdue = waited and not self.options.checkpoint_every
        agreed = _agree(burst, overdue, self.stop.asked)
        self.burst, self.overdue, self.stop.agreed = agreed
        return finite

    def _has_ended(self, stage: Stage) -> bool:
        """Whether all calls of a stage are made, or no member needs any more of them."""
        if self.position.call == stage.calls:
            return True
        if stage.until is None:
            return False
        return bool(self.program.to_host(self.frozen).all())

    def _spend(self, train: float = 0.0, eval: float = 0.0) -> None:
        compiled = self.compiled_before + self.program.compile_seconds
        self.clock = Clock(self.clock.train + train, self.clock.eval + eval, compiled)

    def _log(self, totals: dict, finite: Any, evaluate: bool) -> None:
        """Write one row a member, and note which members have diverged."""
        program = self.program
        host = program.to_host(totals)
        row, blank = {}, {}
        for name, metric in host.items():
            blank[name] = metric.count == 0
            row[name] = metric.result()
        if evaluate:
            began, compiled = time.perf_counter(), program.compile_seconds
            row |= program.evaluate(self.states, self.position.steps)
            seconds = time.perf_counter() - began - (program.compile_seconds - compiled)
            self._spend(eval=seconds)
        bad = [
            ~np.isfinite(metric.value) for name, metric in host.items() if name.startswith("loss/")
        ]
        self.diverged = self.diverged | np.any([*bad, ~program.to_host(finite)], axis=0)
        self.record.add_rows(program, self.position, row, blank, self.diverged, self.clock)

    def _save(self) -> None:
        program, position = self.program, self.position
        under_way = position.call > 0
        saved = Saved(
            at=position.at,
            stage=position.stage,
            call=position.call,
            steps=position.steps,
            updates=position.updates,
            state=program.to_host(named(self.states)),
            totals=program.to_host(self.totals) if under_way else {},
            frozen=program.to_host(self.frozen),
            diverged=self.diverged,
            clock=tuple(self.clock),
        )
        self.record.save(program, saved)
        self.kept, self.kept_when = position.at, time.monotonic()


def _agree(*values: Any) -> tuple:
    """Process 0's view, so that all processes of a run do the same."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    told = multihost_utils.broadcast_one_to_all(np.array(values, np.int32))
    return tuple(np.asarray(told).tolist())


@contextlib.contextmanager
def _interruptible() -> Iterator[types.SimpleNamespace]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once."""
    # agreed: by all processes, at the same call
    stop = types.SimpleNamespace(asked=False, agreed=False)

    def ask(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread, where Python does not deliver signals anyway
        pass
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
