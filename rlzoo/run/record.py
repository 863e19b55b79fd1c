"""The run directory: config.json, metrics.csv, summary.json, checkpoints.

Everything here runs on the host between compiled chunks. In a run of several processes only process
0 writes.
"""

import csv
import dataclasses
import importlib.util
import inspect
import itertools
import json
import os
import shlex
import shutil
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
from rlzoo.report import curves, statistics
from rlzoo.run import checkpoints, loggers
from rlzoo.run.display import Display
from rlzoo.run.options import Options, run_folder

THRESHOLDS = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
}
"""Returns at which gymnasium calls a task solved: `steps_to_threshold` in summary.json."""


class Record:
    """One run directory. `Record.open` for the loop, `Record.read` to look at a run that exists."""

    def __init__(self, folder: Path, description: dict):
        self.dir, self.description = folder, description
        self.summary: dict = {}
        self.writes = True
        self.display: Display | None = None
        self.loggers: list[loggers.Logger] = []
        self.programs: list = []
        self._columns: list[str] = []
        self._resumed = False

    # ---- opening ---------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, make: Callable, config: Any, sweep: dict, options: Options, programs: list
    ) -> "Record":
        """Start a record, or take up an existing one. Raises `Refused` where the folder holds
        something else."""
        import jax

        source = Path(inspect.getsourcefile(make) or "")
        algorithm = source.stem if source.suffix == ".py" else make.__module__
        description = {
            "algorithm": algorithm,
            "env": config.env,
            "config": dataclasses.asdict(config),
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
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "source": source.name if source.suffix == ".py" else None,
            "versions": {
                name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "gymnax", "brax")
            }
            | {"rlzoo": rlzoo.__version__, "python": ".".join(map(str, sys.version_info[:3]))},
            "commit": machine.git_commit(source.parent),
            "hardware": machine.describe(),
            "prng": str(jax.random.key_impl(jax.random.key(0))),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        description = json.loads(json.dumps(description))  # as it will be read back
        if options.out is None and jax.process_count() > 1:
            raise Refused("a run of several processes needs --out")
        folder = Path(options.out or run_folder(algorithm, config.env))
        record = cls.read(folder) if options.resume else cls(folder, description)
        record.writes = jax.process_index() == 0
        if options.resume:
            record._continue(description, options.force)
        elif record.writes:
            record._create(source)
        if record.writes:
            record.loggers = loggers.open_loggers(record.dir, record.description, options)
        record.display = Display(
            algorithm, config.env, programs, options.quiet or not record.writes
        )
        record.programs = programs
        return record

    def _create(self, source: Path) -> None:
        if (self.dir / "config.json").exists():
            raise Refused(
                f"{self.dir} already holds a run: continue it with --resume, or choose another --out"
            )
        if self.dir.exists() and (not self.dir.is_dir() or any(self.dir.iterdir())):
            raise Refused(f"{self.dir} already holds other files: choose another --out")
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            if self.description["source"]:
                shutil.copy(source, self.dir / source.name)
            self._write_json(
                "config.json", self.description
            )  # last: what has it can be resumed and loaded
        except OSError as error:
            raise Refused(
                f"cannot write to {self.dir}: {error.strerror}; choose another --out"
            ) from error

    def _continue(self, now: dict, force: bool) -> None:
        before, changes = self.description, []
        for part in ("algorithm", "config", "sweep", "options", "layout"):
            old, new = (
                {part: x[part]} if part in ("algorithm", "sweep") else x[part]
                for x in (before, now)
            )
            changes += [
                f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
                for key in {**old, **new}
                if old.get(key) != new.get(key)
                and repr(old.get(key)) != repr(new.get(key))  # nan != nan
                and key
                not in (
                    "cache",
                    "tensorboard",
                    "wandb",
                    "wandb_project",
                    *(("devices", "processes") if part == "options" else ()),
                )
            ]
        if changes and not force:
            raise Refused(
                f"{self.dir} was started differently: {'; '.join(changes)}. Continue it as it was "
                "(--resume --out alone is enough), or add --force to go on regardless"
            )
        for name, old in before["versions"].items():
            if now["versions"].get(name) != old:
                print(
                    f"note: the run was started with {name} {old}, this is {now['versions'].get(name)}; its numbers "
                    "may differ from an uninterrupted run",
                    file=sys.stderr,
                )
        if self.writes:
            self.description = before | {
                key: now[key] for key in ("config", "sweep", "options", "layout")
            }
            self.description["resumed"] = [
                *before.get("resumed", []),
                {"at": now["started"], "changes": changes},
            ]
            self._write_json("config.json", self.description)
        self._resumed = True

    @classmethod
    def read(cls, folder: str | Path) -> "Record":
        """An existing run. Raises `Refused` where `folder` holds none."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise Refused(f"{folder} is not a run: it has no config.json")
        try:
            description = json.loads(path.read_text())
        except ValueError as error:
            raise Refused(f"{path} is damaged: {error}") from error
        if not isinstance(description, dict) or not {
            "algorithm",
            "config",
            "sweep",
            "options",
            "layout",
        } <= {*description}:
            raise Refused(f"{folder} is not a run of rlzoo: its config.json is something else's")
        return cls(Path(folder), description)

    @property
    def sweep(self) -> dict:
        return {
            name: [_tuples(value) for value in values]
            for name, values in self.description["sweep"].items()
        }

    @property
    def options(self) -> Options:
        return Options(**self.description["options"])

    def config(self, kind: type) -> Any:
        """The recorded configuration as `kind`, the algorithm's Config."""
        known = {field.name for field in dataclasses.fields(kind)}
        recorded = self.description["config"]
        for name in recorded:
            if name not in known:
                raise Refused(
                    f"{self.dir}: its algorithm file has no field {name!r}, which config.json gives"
                )
        return kind(**{name: _tuples(value) for name, value in recorded.items()})

    def module(self) -> Any:
        """The run's own copy of its algorithm file, as a module."""
        if not self.description["source"]:
            raise Refused(
                f"{self.dir} has no copy of its algorithm, which was not defined in a file"
            )
        path = self.dir / self.description["source"]
        if not path.is_file():
            raise Refused(
                f"{self.dir} has lost {path.name}, its copy of its algorithm; put that file back"
            )
        return load_module(path)

    # ---- checkpoints -----------------------------------------------------------------------------

    def checkpoint_folder(self, program: int) -> Path:
        """Where the checkpoints of a program are."""
        return self.dir / "checkpoints" / str(program)

    def save(self, program: Any, saved: checkpoints.Saved) -> None:
        """Write a checkpoint."""
        if self.writes:
            checkpoints.save(self.checkpoint_folder(program.index), saved)

    def restore(self, program: int) -> checkpoints.Saved | None:
        """The newest checkpoint that can be read, None where there is none at all.

        Raises `Refused` where there are checkpoints, but none that can be read.
        """
        return checkpoints.restore(self.checkpoint_folder(program))

    # ---- rows ------------------------------------------------------------------------------------

    @property
    def _metrics(self) -> Path:
        return self.dir / "metrics.csv"

    def start(self, program: Any, at: int, clock: Any) -> None:
        """A program starts, or goes on, at call `at`: rows that a later part of a killed run left
        are cut."""
        if self.display:
            self.display.start(program, at, clock)
        if not self.writes:
            return
        rows = self._read_rows()
        mine, step = {m.index for m in program.members}, at * program.algorithm.steps_per_call
        kept = [
            row
            for row in rows
            if int(row["member"]) not in mine or (at > 0 and int(row["step"]) <= step)
        ]
        if rows and not self._columns:
            self._columns = list(rows[0])
        if self._resumed and self._columns:  # also where nothing is cut but half a line
            self._write_rows(kept)
        for _, again in itertools.groupby(
            (row for row in kept if int(row["member"]) in mine), lambda row: row["step"]
        ):
            self._log(list(again))

    def rows(
        self, program: Any, at: int, metrics: dict, blank: dict, diverged: np.ndarray, clock: Any
    ) -> None:
        """Append one row for each member. `blank[name]` is True where nothing happened: an empty
        cell."""
        if self.display:
            self.display.show(metrics, len(program.members))
        if not self.writes:
            return
        step = at * program.algorithm.steps_per_call
        rows = []
        for i, member in enumerate(program.members):
            cells = {
                name: "" if blank.get(name, [False] * (i + 1))[i] else repr(float(value[i]))
                for name, value in sorted(metrics.items())
            }
            rows.append(
                {
                    "member": member.index,
                    "seed": member.seed,
                    **member.swept,
                    "step": step,
                    **cells,
                    "diverged": int(diverged[i]),
                    "time/train": f"{clock.train:.3f}",
                    "time/eval": f"{clock.eval:.3f}",
                    "time/compile": f"{clock.compile:.3f}",
                }
            )
        missing = [name for name in rows[0] if name not in self._columns]
        if missing:
            old = self._read_rows()
            tail = [
                name
                for name in (*self._columns, *missing)
                if name == "diverged" or name.startswith("time/")
            ]
            self._columns = [n for n in (*self._columns, *missing) if n not in tail] + list(
                dict.fromkeys(tail)
            )
            self._write_rows(old)
        with self._metrics.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerows(rows)
        self._log(rows)

    def _log(self, rows: list[dict]) -> None:
        for logger in self.loggers:
            logger.rows(rows)

    def _read_rows(self) -> list[dict]:
        """All whole lines of metrics.csv: one that a kill cut off is left out."""
        if not self._metrics.exists():
            return []
        text = self._metrics.read_text()
        lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
        if not lines:
            return []
        return [
            dict(zip(lines[0], line, strict=True))
            for line in lines[1:]
            if len(line) == len(lines[0])
        ]

    def _write_rows(self, rows: list[dict]) -> None:
        temporary = self._metrics.with_suffix(".new")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self._metrics)

    # ---- the end ---------------------------------------------------------------------------------

    def progress(self, program: Any, stage: Any, at: int, clock: Any) -> None:
        if self.display:
            self.display.progress(program, stage, at, clock)

    def __enter__(self) -> "Record":
        if self.display:
            self.display.open(self.dir)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.display:
            self.display.close()
        status = "failed" if error else "done"
        if not error and any(self._made(p) < p.calls for p in self.programs):
            status = "interrupted"
        if self.writes:
            self._finish(status, error)
        for logger in self.loggers:
            logger.close(self.summary)
        if self.display and not error:
            self.display.end(self.dir, self.summary, list(self.sweep))

    def _made(self, program: Any) -> int:
        """Calls made by a program's newest checkpoint."""
        folders = checkpoints.listed(self.checkpoint_folder(program.index))
        return int(folders[0].name) if folders else 0

    def _finish(self, status: str, error: Any) -> None:
        rows, programs = self._read_rows(), self.programs
        last: dict[int, dict] = {}
        first_over: dict[int, int] = {}
        threshold = THRESHOLDS.get(self.description["env"].partition("?")[0])
        number = lambda text: float(text) if text not in ("", None) else None
        measured = [name for name in self._columns if name.startswith("eval/")]
        metric = measured[0] if measured and "eval/return" not in measured else "eval/return"
        for row in rows:
            member, value = int(row["member"]), number(row.get(metric))
            last[member] = row | (
                {metric: row[metric]}
                if value is not None
                else {metric: last.get(member, {}).get(metric)}
            )
            if threshold is not None and value is not None and value >= threshold:
                first_over.setdefault(member, int(row["step"]))
        members = []
        for program in programs:
            for m in program.members:
                row = last.get(m.index, {})
                members.append(
                    {
                        "member": m.index,
                        "seed": m.seed,
                        **m.swept,
                        "eval/return": None,
                        metric: number(row.get(metric)),
                        "diverged": row.get("diverged") == "1",
                    }
                    | (
                        {"steps_to_threshold": first_over.get(m.index)}
                        if threshold is not None
                        else {}
                    )
                )
        spent = lambda name: {
            p.index: float(last.get(p.members[0].index, {}).get(f"time/{name}") or 0)
            for p in programs
        }
        train = sum(spent("train").values())
        made = {
            p.index: int(last.get(p.members[0].index, {}).get("step") or 0) * len(p.members)
            for p in programs
        }
        updates = sum(
            made[p.index] * p.algorithm.updates_per_call / p.algorithm.steps_per_call
            for p in programs
        )
        self.summary = {
            "status": status,
            "error": f"{type(error).__name__}: {error}" if error else None,
            "algorithm": self.description["algorithm"],
            "env": self.description["env"],
            "members": members,
            "metric": metric,
            "eval/return": statistics.summarize(members),
            metric: statistics.summarize(members, metric),
            "steps": max(int(row.get("step") or 0) for row in last.values()) if last else 0,
            "steps_per_second": sum(made.values()) / train if train else None,
            "updates_per_second": updates / train if train else None,
            "compile_seconds": sum(spent("compile").values()),
            "compiled": {p.name or "all": p.compiled for p in programs},
            "train_seconds": train,
            "eval_seconds": sum(spent("eval").values()),
            "peak_memory_bytes": machine.peak_bytes(programs[0].devices[0]),
            "threshold": threshold,
            "steps_to_threshold": [m["steps_to_threshold"] for m in members]
            if threshold is not None
            else None,
        }
        self._write_json("summary.json", self.summary)
        if any(m[metric] is not None for m in members):
            curves.write_curve(self.dir)

    def _write_json(self, name: str, content: dict) -> None:
        temporary = self.dir / f"{name}.new"
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.dir / name)


def _tuples(value: Any) -> Any:
    """What JSON wrote as a list was a tuple."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load_module(path: Path) -> Any:
    """Import the algorithm file at `path`."""
    name = f"rlzoo_file_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
