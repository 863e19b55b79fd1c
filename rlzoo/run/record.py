"""The run directory: config.json, metrics.csv, summary.json, checkpoints.

Everything here runs on the host between compiled chunks. In a run of several processes only process
0 writes.
"""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import rlzoo
from rlzoo import machine
from rlzoo.algorithm import Refused
from rlzoo.report import curves, reading
from rlzoo.run import checkpoints, loggers, source
from rlzoo.run.display import Display
from rlzoo.run.files import LOCK, Lock, command_line, restored, strict, write_json
from rlzoo.run.options import Options, run_folder
from rlzoo.run.rows import Rows
from rlzoo.run.summary import summarize
from rlzoo.suites import files, registry


class Record:
    """One run directory. `Record.open` for the loop, `Record.read` to look at a run that exists."""

    def __init__(self, folder: Path, description: dict):
        self.dir, self.description = folder, description
        self.summary: dict = {}
        self.writes = True
        self.rows = Rows(folder / "metrics.csv")
        self.reached: dict[Any, tuple] = {}
        """program -> (position, clock), of those that have started"""
        self.finished: set[int] = set()
        """indices of the programs that are at their ends"""
        self.display: Display | None = None
        self.loggers: list[loggers.Logger] = []
        self.programs: list = []
        self._resumed = False
        self._lock: Lock | None = None
        self._proven = False

    # ---- opening ---------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, make: Callable, config: Any, sweep: dict, options: Options, programs: list
    ) -> "Record":
        """Start a record, or take up an existing one. Raises `Refused` where the folder holds
        something else."""
        import jax

        algorithm = source.name_of(make)
        description = {
            "algorithm": algorithm,
            "env": registry.short(config.env),
            "config": dataclasses.asdict(config),
            "score": {
                "name": programs[0].score.name,
                "lower_is_better": programs[0].score.lower_is_better,
            },
            "sweep": sweep,
            "options": {
                key: value
                for key, value in dataclasses.asdict(options).items()
                if key not in ("out", "resume", "force", "quiet")
            },
            "layout": {
                "devices": len(programs[0].devices),
                "members": [len(p.members) for p in programs],
            },
            "command": command_line(sys.argv),
            "source": None,
            "home": str(source.folder_of(make)),
            "versions": {
                name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "gymnax", "brax")
            }
            | {"rlzoo": rlzoo.__version__, "python": ".".join(map(str, sys.version_info[:3]))},
            "commit": machine.git_commit(source.folder_of(make)),
            "hardware": machine.describe(),
            "prng": str(jax.random.key_impl(jax.random.key(0))),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        description = strict(description)  # as it will be read back
        if options.out is None and jax.process_count() > 1:
            raise Refused("a run of several processes needs --out")
        folder = Path(options.out or run_folder(algorithm, config.env))
        record = cls.read(folder) if options.resume else cls(folder, description)
        record.writes = jax.process_index() == 0
        record.programs = programs
        try:
            record._open(make, type(config), description, options)
        except BaseException:
            record._close()
            raise
        return record

    def _open(self, make: Callable, kind: type, description: dict, options: Options) -> None:
        if options.resume:
            self._continue(description, options.force)
        elif self.writes:
            self._create(make, kind)
        if self.writes:
            self.loggers = loggers.open_loggers(self.dir, self.description, options)
        title = f"{description['algorithm']} {description['env']}"
        self.display = Display(title, self.programs, options.quiet or not self.writes)

    def _close(self) -> None:
        """Close the loggers, and let others write."""
        try:
            for logger in self.loggers:
                logger.close(self.summary)
        finally:
            if self._lock:
                self._lock.release()

    def _create(self, make: Callable, kind: type) -> None:
        self._check_empty()
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.dir)
            self._check_empty()  # who had the lock before may have begun a run
            self.description["source"], why = source.keep(make, kind, self.dir)
            # Last: a folder that has it can be resumed and loaded.
            write_json(self.dir / "config.json", self.description)
        except OSError as error:
            raise Refused(
                f"cannot write to {self.dir}: {error.strerror}; choose another --out"
            ) from error
        if why:
            print(
                f"note: no copy of the algorithm is kept ({why}); to load the run, hand over the "
                "original: rlzoo.load(run, make=make, Config=Config)",
                file=sys.stderr,
            )

    def _check_empty(self) -> None:
        """Raise `Refused` where the folder holds anything."""
        if (self.dir / "config.json").exists():
            raise Refused(
                f"{self.dir} already holds a run: continue it with --resume, or choose another "
                "--out"
            )
        held = [p.name for p in self.dir.iterdir()] if self.dir.is_dir() else []
        if held not in ([], [LOCK]) or (self.dir.exists() and not self.dir.is_dir()):
            raise Refused(f"{self.dir} already holds other files: choose another --out")

    def _continue(self, now: dict, force: bool) -> None:
        if self.writes:
            self._lock = Lock(self.dir)
        before = self.description
        changes = _changes(before, now)
        if changes and not force:
            raise Refused(
                f"{self.dir} was started differently: {'; '.join(changes)}. Continue it as it "
                "was (--resume --out alone is enough), or add --force to go on regardless"
            )
        for name, old in before["versions"].items():
            if now["versions"].get(name) != old:
                print(
                    f"note: the run was started with {name} {old}, this is "
                    f"{now['versions'].get(name)}; its numbers may differ from those of an "
                    "uninterrupted run",
                    file=sys.stderr,
                )
        if self.writes:
            self.description = before | {
                key: now[key] for key in ("config", "sweep", "options", "layout", "score")
            }
            self.description["resumed"] = [
                *before.get("resumed", []),
                {"at": now["started"], "changes": changes},
            ]
            write_json(self.dir / "config.json", self.description)
        self._resumed = True

    @classmethod
    def read(cls, folder: str | Path) -> "Record":
        """An existing run. Raises `Refused` where `folder` holds none."""
        description = reading.read_description(folder)
        if not {"config", "sweep", "options", "layout"} <= {*description}:
            raise Refused(f"{folder} is not a run of rlzoo: its config.json is something else's")
        return cls(Path(folder), description)

    @property
    def sweep(self) -> dict:
        """Swept field -> values."""
        defaults = self.description["config"]
        found = {}
        for name, values in self.description["sweep"].items():
            # A float that was recorded as null is one that JSON does not know.
            number = isinstance(defaults.get(name), float) or None in values
            found[name] = [restored(value, 0.0 if number else None) for value in values]
        return found

    @property
    def options(self) -> Options:
        """How it was run."""
        return Options.recorded(self.description["options"])

    def config(self, kind: type) -> Any:
        """The recorded configuration as `kind`, the algorithm's Config."""
        known = {field.name: field.default for field in dataclasses.fields(kind)}
        recorded = self.description["config"]
        for name in recorded:
            if name not in known:
                raise Refused(
                    f"{self.dir}: its algorithm file has no field {name!r}, which config.json gives"
                )
        return kind(**{name: restored(value, known[name]) for name, value in recorded.items()})

    def module(self) -> Any:
        """The run's own copy of its algorithm, as a module."""
        if not self.description["source"]:
            raise Refused(
                f"{self.dir} has no copy of its algorithm; hand over the original: "
                "rlzoo.load(run, make=make, Config=Config)"
            )
        path = self.dir / self.description["source"]
        if not path.is_file():
            raise Refused(
                f"{self.dir} has lost {path.name}, its copy of its algorithm; put that file back"
            )
        home = self.description.get("home")
        return files.load(path, Path(home) if home else self.dir)

    # ---- checkpoints -----------------------------------------------------------------------------

    def checkpoint_folder(self, program: int) -> Path:
        """Where the checkpoints of a program are."""
        return self.dir / "checkpoints" / str(program)

    def save(self, program: Any, saved: checkpoints.Saved) -> None:
        """Write a checkpoint."""
        if not self.writes:
            return
        folder = self.checkpoint_folder(program.index)
        checkpoints.save(folder, saved)
        if not self._proven:
            checkpoints.prove(folder, saved.at)
            self._proven = True

    def restore(self, program: int) -> checkpoints.Saved | None:
        """The newest checkpoint that can be read, None where there is none at all.

        Raises `Refused` where there are checkpoints, but none that can be read.
        """
        return checkpoints.restore(self.checkpoint_folder(program))

    # ---- rows ------------------------------------------------------------------------------------

    def start(self, program: Any, position: Any, clock: Any) -> None:
        """A program starts, or goes on: rows that a later part of a killed run left are cut."""
        self.reached[program] = (position, clock)
        if self.display:
            self.display.start(program, position, clock)
        if not self.writes:
            return
        mine = {member.index for member in program.members}
        kept = []
        for row in self.rows.read():
            made = position.at > 0 and int(row["step"]) <= position.steps
            if int(row["member"]) not in mine or made:
                kept.append(row)
        if self._resumed:  # also where nothing is cut but half a line
            self.rows.write(kept)
        again = [row for row in kept if int(row["member"]) in mine]
        for _, group in itertools.groupby(again, lambda row: row["step"]):
            self._log(list(group))

    def add_rows(
        self,
        program: Any,
        position: Any,
        metrics: dict[str, np.ndarray],
        blank: dict[str, np.ndarray],
        diverged: np.ndarray,
        clock: Any,
    ) -> None:
        """Append one row for each member.

        Args:
          metrics: name -> [members].
          blank: name -> bool [members], True where nothing happened: an empty cell.
        """
        self.reached[program] = (position, clock)
        if self.display:
            self.display.show(metrics, len(program.members))
        if not self.writes:
            return
        rows = []
        for i, member in enumerate(program.members):
            row = {"member": member.index, "seed": member.seed, **member.swept}
            row["step"] = position.steps
            for name, values in sorted(metrics.items()):
                empty = name in blank and blank[name][i]
                row[name] = "" if empty else repr(float(values[i]))
            row["diverged"] = int(diverged[i])
            for name in ("train", "eval", "compile"):
                row[f"time/{name}"] = f"{getattr(clock, name):.3f}"
            rows.append(row)
        self.rows.add(rows)
        self._log(rows)

    def _log(self, rows: list[dict]) -> None:
        for logger in self.loggers:
            logger.rows(rows)

    def progress(self, program: Any, stage: Any, position: Any, clock: Any) -> None:
        """A program has come so far."""
        self.reached[program] = (position, clock)
        if self.display:
            self.display.progress(program, stage, position, clock)

    # ---- the end ---------------------------------------------------------------------------------

    def __enter__(self) -> "Record":
        if self.display:
            self.display.open(self.dir)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.display:
            self.display.close()
        whole = all(program.index in self.finished for program in self.programs)
        status = "failed" if error else "done" if whole else "interrupted"
        summary: dict = {}
        try:
            if self.writes:
                summary = self._finish(status, error)
        finally:
            self._close()
        if self.display and not error:
            self.display.end(self.dir, summary, list(self.sweep))

    def _finish(self, status: str, error: Any) -> dict:
        """Write what stands at the end of a run. Returns the summary with numbers that JSON does
        not know."""
        rows = self.rows.read()
        summary = summarize(status, error, self.description, rows, self.reached)
        self.summary = strict(summary)  # as it will be read back
        write_json(self.dir / "summary.json", summary)
        if any(row.get(self.description["score"]["name"]) for row in rows):
            curves.write_curve(self.dir)
        return summary


def _changes(before: dict, now: dict) -> list[str]:
    """How a command differs from the one that began the run, as far as its numbers depend on it."""
    free = {"cache", "tensorboard", "wandb", "wandb_project"}
    parts = [("config", set()), ("options", {"devices", "processes"}), ("layout", set())]
    changes = []
    for name in ("algorithm", "sweep"):
        if before[name] != now[name]:
            changes.append(f"{name} was {before[name]!r}, now {now[name]!r}")
    for part, also_free in parts:
        old, new = before[part], now[part]
        if part == "options":  # options that did not exist then have their defaults
            old = strict(dataclasses.asdict(Options.recorded(old)))
        for key in {**old, **new}.keys() - free - also_free - {"out", "resume", "force", "quiet"}:
            if old.get(key) != new.get(key):
                changes.append(f"{key} was {old.get(key)!r}, now {new.get(key)!r}")
    return sorted(changes)
