"""The run directory: config.json, metrics.csv, summary.json, checkpoints, and what the terminal
shows meanwhile.

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
from typing import Any, NamedTuple

import numpy as np

from rlzoo import loggers, machine
from rlzoo.algorithm import Refused

THRESHOLDS = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
}
"""Returns at which gymnasium calls a task solved: `steps_to_threshold` in summary.json."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to learn. The same for every algorithm."""

    seeds: int = 1
    """how many seeds train together"""
    seed: int = 0
    """the first seed; the others follow it"""
    out: str | None = None
    """run directory (default runs/<algorithm>/<env>/<time>)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint"""
    force: bool = False
    """with --resume: continue under another configuration or layout, and record that"""
    dataset: str | None = None
    """data set to learn from, for algorithms that learn offline: .npz, .hdf5 or minari:ID"""
    eval_every: int | None = None
    """steps between evaluations (default: a twentieth of the run; 0: only at the end)"""
    eval_episodes: int = 32
    """episodes of each evaluation, for each member"""
    checkpoint_every: int | None = None
    """steps between checkpoints (default: once a minute, and at the end)"""
    devices: int | None = None
    """devices to spread members over (default: all)"""
    processes: int = 1
    """processes on this machine to spread members over; on a CPU one for each core is fastest"""
    cache: bool = True
    """keep compiled programs on disk, so that the next run starts at once"""
    quiet: bool = False
    """show nothing while training"""
    tensorboard: bool = False
    """write TensorBoard files too, into the run directory (extra: tensorboard)"""
    wandb: bool = False
    """log to Weights & Biases too (extra: wandb; WANDB_MODE=offline works)"""
    wandb_project: str = "rlzoo"
    """project of --wandb"""

    def check(self) -> None:
        for name, low in (
            ("seeds", 1),
            ("seed", 0),
            ("eval_every", 0),
            ("eval_episodes", 1),
            ("checkpoint_every", 1),
            ("devices", 1),
            ("processes", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise Refused(
                    f"--{name.replace('_', '-')} is {value!r}; it must be a whole number of at least {low}"
                )
        if self.seed + self.seeds > 2**32:
            raise Refused(f"--seed {self.seed} is too large: seeds are 32-bit numbers")
        if self.resume and self.out is None:
            raise Refused("--resume needs --out: the directory of the run to continue")
        loggers.check(self)


def run_folder(algorithm: str, env: str) -> Path:
    """Where a run goes that was not told where."""
    return Path("runs", algorithm, env.replace("/", "-"), time.strftime("%Y-%m-%d-%H%M%S"))


class Saved(NamedTuple):
    """A checkpoint of one program."""

    at: int
    """calls of `step` made"""
    leaves: list
    """of the stacked state, as NumPy arrays"""
    totals: dict
    """(sum, count) of each metric since the last row"""
    diverged: np.ndarray
    clock: tuple


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

    # ---- opening ------------------------------------------------------------------------------------------

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
            | {"rlzoo": version("rlzoo"), "python": ".".join(map(str, sys.version_info[:3]))},
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

    # ---- checkpoints --------------------------------------------------------------------------------------

    def save(self, program: Any, saved: Saved) -> None:
        """Write a checkpoint; the newest two are kept. A write that is cut off leaves the earlier
        ones whole."""
        if not self.writes:
            return
        import orbax.checkpoint as ocp

        folder = (self.dir / "checkpoints" / str(program.index)).resolve()
        meta = {
            "at": saved.at,
            "diverged": saved.diverged.tolist(),
            "clock": list(saved.clock),
            "metrics": sorted(saved.totals or {}),
        }
        arrays = {f"leaf{i:04d}": x for i, x in enumerate(saved.leaves)}
        arrays |= {
            f"total{i:04d}": np.stack(saved.totals[name]) for i, name in enumerate(meta["metrics"])
        }
        meta["empty"] = {
            key: [list(x.shape), str(x.dtype)] for key, x in arrays.items() if x.size == 0
        }
        arrays = {
            key: x for key, x in arrays.items() if x.size
        }  # orbax refuses arrays without elements
        with _checkpointer() as checkpointer:
            checkpointer.save(
                folder / str(saved.at),
                force=True,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
                ),
            )
        past = [path for path in self._checkpoints(program.index) if int(path.name) <= saved.at]
        for old in {*self._checkpoints(program.index)} - {
            *past[:2]
        }:  # a later one could not be read
            shutil.rmtree(old)

    def restore(self, program: int) -> Saved | None:
        """The newest checkpoint that can be read, None where there is none at all.

        Raises `Refused` where there are checkpoints, but none that can be read.
        """
        import orbax.checkpoint as ocp

        folders = self._checkpoints(program)
        for folder in folders:
            try:
                with _checkpointer() as checkpointer:
                    found = checkpointer.restore(
                        folder.resolve(),
                        args=ocp.args.Composite(
                            arrays=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore()
                        ),
                    )
                meta, arrays = found.meta, {key: np.asarray(x) for key, x in found.arrays.items()}
            except (
                Exception
            ) as error:  # whatever orbax meets in a damaged folder: say so, try the one before
                print(
                    f"note: checkpoint {folder} cannot be read ({type(error).__name__}); trying the one before it",
                    file=sys.stderr,
                )
                continue
            arrays |= {key: np.zeros(shape, kind) for key, (shape, kind) in meta["empty"].items()}
            leaves = [arrays[key] for key in sorted(arrays) if key.startswith("leaf")]
            totals = {
                name: tuple(arrays[f"total{i:04d}"]) for i, name in enumerate(meta["metrics"])
            }
            return Saved(
                meta["at"], leaves, totals, np.array(meta["diverged"]), tuple(meta["clock"])
            )
        if folders:
            raise Refused(
                f"none of the checkpoints in {folders[0].parent} can be read; start the run again in "
                "another --out"
            )
        return None

    def _checkpoints(self, program: int) -> list[Path]:
        """Checkpoint folders of a program, newest first; half-written ones have other names."""
        folder = self.dir / "checkpoints" / str(program)
        found = (
            [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        )
        return sorted(found, key=lambda path: -int(path.name))

    # ---- rows ---------------------------------------------------------------------------------------------

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

    # ---- the end ------------------------------------------------------------------------------------------

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
            self.display.end(self)

    def _made(self, program: Any) -> int:
        """Calls made by a program's newest checkpoint."""
        folders = self._checkpoints(program.index)
        return int(folders[0].name) if folders else 0

    def _finish(self, status: str, error: Any) -> None:
        from rlzoo import report

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
            "eval/return": report.summarise(members),
            metric: report.summarise(members, metric),
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
            report.write_curve(self.dir)

    def _write_json(self, name: str, content: dict) -> None:
        temporary = self.dir / f"{name}.new"
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.dir / name)


def _checkpointer() -> Any:
    """An orbax checkpointer of this process alone: process 0 writes, each process reads for
    itself."""
    import jax
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


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


# ---- the terminal --------------------------------------------------------------------------------


class Display:
    """A live line on a terminal, plain lines elsewhere."""

    PLAIN_SECONDS = 10.0

    def __init__(self, algorithm: str, env: str, programs: list, quiet: bool):
        from rich.console import Console

        self.title, self.programs, self.quiet = f"{algorithm} {env}", programs, quiet
        width = None if sys.stdout.isatty() else 160  # rich would fold tables at 80 columns
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, width=width)
        self.live: Any = None
        self.returns = ""
        self.printed = 0.0
        self.before = (0.0, 0)

    def open(self, folder: Path) -> None:
        members = sum(len(p.members) for p in self.programs)
        devices = len(self.programs[0].devices)
        size = sum(
            p.state_bytes() * (devices if p.devices[0].platform == "cpu" else 1)
            for p in self.programs
        )
        self.console.print(
            f"[bold]{self.title}[/]: {_plural(members, 'member')} on "
            f"{_plural(devices, self.programs[0].devices[0].platform + ' device')}, training state "
            f"{machine.readable(size)}, record in {folder}"
        )
        for p in self.programs:
            asked = p.members[0].config.total_steps
            if p.steps != asked and not p.algorithm.stages:
                self.console.print(
                    f"{asked:,} steps round up to {p.steps:,}: whole calls of {p.algorithm.steps_per_call}"
                )
        import jax

        kept = jax.config.values.get("jax_compilation_cache_dir")
        if kept:
            self.console.print(f"compiled programs are kept in {kept} (--no-cache: off)")
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self.live.start()

    def start(self, program: Any, at: int, clock: Any) -> None:
        self.before, self.returns, self.printed = (clock.train, at), "", time.monotonic()
        text = f"{program.name or self.title}: compiling" + (
            f", going on at step {at * program.algorithm.steps_per_call:,}" if at else ""
        )
        if self.live:
            for task in self.live.task_ids:
                self.live.remove_task(task)
            self.live.add_task(
                program.name or self.title, total=program.calls, completed=at, facts="compiling"
            )
        else:
            self.console.print(text)

    def show(self, metrics: dict, members: int) -> None:
        for name, label in (("eval/return", "return"), ("train/return", "training return")):
            values = metrics.get(name)
            values = (
                values[:members][np.isfinite(values[:members])]
                if values is not None
                else np.array([])
            )
            if len(values) and (name == "eval/return" or not self.returns.startswith("return")):
                spread = f" [{values.min():.1f} to {values.max():.1f}]" if len(values) > 1 else ""
                self.returns = f"{label} {values.mean():.1f}{spread}"
                break

    def progress(self, program: Any, stage: Any, at: int, clock: Any) -> None:
        seconds, calls = clock.train - self.before[0], at - self.before[1]
        rate = calls / seconds if seconds > 0 else 0.0
        per_call = program.algorithm.steps_per_call
        left = f"ETA {_duration((program.calls - at) / rate)}" if rate else ""
        name = f"{stage.name}, " if len(program.stages) > 1 else ""
        facts = (
            f"{name}step {at * per_call:,}/{program.steps:,}  "
            f"{rate * per_call * len(program.members):,.0f} steps/s  {left}  {self.returns}"
        )
        if self.live:
            self.live.update(self.live.task_ids[-1], completed=at, facts=facts)
        elif time.monotonic() - self.printed > self.PLAIN_SECONDS or at == program.calls:
            self.printed = time.monotonic()
            self.console.print(f"{program.name or self.title}: {facts}")

    def close(self) -> None:
        if self.live:
            self.live.stop()

    def end(self, record: Record) -> None:
        summary = record.summary
        if not summary:
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        swept = list(record.sweep)
        metric = summary["metric"]
        for name in (
            *swept,
            "seeds",
            f"IQM {metric.removeprefix('eval/')}",
            "95% interval",
            "mean ± std",
            "diverged",
        ):
            table.add_column(name, justify="right")
        text = lambda x: "-" if x is None else f"{x:,.2f}"
        for setting in summary[metric]:
            table.add_row(
                *(str(setting[name]) for name in swept),
                str(setting["seeds"]),
                text(setting["iqm"]),
                f"{text(setting['low'])} to {text(setting['high'])}",
                f"{text(setting['mean'])} ± {text(setting['std'])}",
                str(setting["diverged"]),
            )
        self.console.print(table)
        gone = [m for m in summary["members"] if m["diverged"]]
        for m in gone:
            what = ", ".join(f"{name} {m[name]}" for name in ("seed", *swept))
            self.console.print(
                f"[bold]diverged[/]: member {m['member']} ({what}): parameters or loss not finite"
            )
        if summary["steps_per_second"]:
            self.console.print(
                f"{summary['steps_per_second']:,.0f} steps/s; training {summary['train_seconds']:.1f} s, "
                f"evaluation {summary['eval_seconds']:.1f} s, compiling {summary['compile_seconds']:.1f} s"
            )
        if summary["status"] == "interrupted":
            script = Path(sys.argv[0])
            run = (
                f"python {shlex.quote(str(script))}"
                if script.suffix == ".py"
                else " ".join([script.name, *sys.argv[1:3]])
            )
            self.console.print(
                f"interrupted and saved; continue with: {run} --resume --out {shlex.quote(str(record.dir))}"
            )
        elif (record.dir / "curve.png").exists():
            self.console.print(f"learning curve: {record.dir / 'curve.png'}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
