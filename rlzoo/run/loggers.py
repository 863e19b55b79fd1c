"""What else a run is written to, on request: TensorBoard event files (--tensorboard), Weights &
Biases (--wandb).

Both are copies of metrics.csv: they get its rows, one program and step at a time, and on resume
once more from the start. Beside the members' metrics stands the mean over the members of a setting
whose value is finite.
"""

import importlib
import json
import math
import re
import resource
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rlzoo import machine
from rlzoo.algorithm import Refused

Row = dict[str, Any]
"""a row of metrics.csv: member, seed, swept fields, step, and metrics as text, empty where nothing
happened"""
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""flag, which is also the extra's name -> package"""


class Logger(Protocol):
    def rows(self, rows: list[Row]) -> None:
        """Takes the rows of all members of a program at one step."""

    def close(self, summary: dict) -> None:
        """The run has ended; `summary` is that of summary.json."""


def check(options: Any) -> None:
    """Raise `Refused` where what the options ask for is not installed."""
    for flag, package in PACKAGES.items():
        if not getattr(options, flag):
            continue
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise Refused(
                f"--{flag} needs the package {package} ({error}): {machine.how_to_install(flag)}"
            ) from error


def open_loggers(folder: Path, description: dict, options: Any) -> list[Logger]:
    """Those that the options ask for, for the run in `folder` that config.json describes."""
    loggers: list[Logger] = []
    if options.tensorboard:
        loggers.append(TensorBoard(folder / "tensorboard", description))
    if options.wandb:
        loggers.append(WandB(folder, description, options.wandb_project, options.quiet))
    return loggers


def series(rows: list[Row], swept: list[str]) -> Iterator[tuple[str, Row, dict[str, float]]]:
    """(name, row, metrics) of each member, then of the mean over each setting's members, with its
    first row."""
    groups: dict[str, list[tuple[Row, dict[str, float]]]] = {}
    for row in rows:
        metrics = {
            name: float(cell)
            for name, cell in row.items()
            if name not in ("member", "seed", "step", *swept) and cell not in ("", None)
        }
        yield f"member{row['member']}", row, metrics
        setting = "".join(f" {field}={row[field]}" for field in swept)
        groups.setdefault(f"mean{setting}", []).append((row, metrics))
    for name, members in groups.items():
        names = dict.fromkeys(metric for _, metrics in members for metric in metrics)
        finite = {
            metric: [m[metric] for _, m in members if math.isfinite(m.get(metric, math.nan))]
            for metric in names
        }
        yield (
            name,
            members[0][0],
            {metric: sum(values) / len(values) for metric, values in finite.items() if values},
        )


class TensorBoard:
    """A run of TensorBoard for each member and each mean, so that they share their charts.

    Written anew when a run is resumed, since rows after the checkpoint no longer hold.
    """

    def __init__(self, folder: Path, description: dict):
        self.folder, self.config, self.swept = (
            folder,
            description["config"],
            list(description["sweep"]),
        )
        files, (soft, hard) = (
            sum(description["layout"]["members"]) + 256,
            resource.getrlimit(resource.RLIMIT_NOFILE),
        )
        if soft < files <= hard:  # one for each member, and what else is open
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        shutil.rmtree(folder, ignore_errors=True)
        self.score = description["score"]["name"]
        self.writers: dict[str, Any] = {}

    def rows(self, rows: list[Row]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        for name, row, metrics in series(rows, self.swept):
            if name not in self.writers:
                self._open(name, row)
            values = [
                Summary.Value(tag=metric, simple_value=value) for metric, value in metrics.items()
            ]
            self._write(name, Summary(value=values), int(row["step"]))
            self.writers[name].flush()

    def close(self, summary: dict) -> None:
        from tensorboardX.summary import hparams, text

        for name, writer in self.writers.items():
            if name.startswith("mean"):
                self._write(name, text("summary", f"```\n{json.dumps(summary, indent=1)}\n```"))
            else:
                self._write(name, hparams({}, {})[2])  # the session has ended
            writer.close()

    def _open(self, name: str, row: Row) -> None:
        """A writer without the thread and the queue that SummaryWriter has."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams

        folder = self.folder / re.sub(r"[^\w.=(), -]", "_", name)
        folder.mkdir(parents=True, exist_ok=True)
        self.writers[name] = EventsWriter(str(folder / "events"))
        if name.startswith("member"):
            config = {
                field: value if isinstance(value, int | float) else str(value)
                for field, value in self.config.items()
            }
            config |= {field: _number(row[field]) for field in ("seed", *self.swept)}
            experiment, session, _ = hparams(config, {self.score: math.nan})
            self._write(name, experiment)
            self._write(name, session)

    def _write(self, name: str, summary: Any, step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writers[name].write_event(Event(wall_time=time.time(), step=step, summary=summary))


def _number(cell: Any) -> float | str:
    """What a cell of metrics.csv says, as it is or as it is read back."""
    try:
        return float(str(cell))
    except ValueError:
        return str(cell)


class WandB:
    """One run of Weights & Biases; `member0/eval/return`, `mean/eval/return`, ... against `step`.

    wandb.json in the run directory keeps its id and the last step of each program: a resumed run
    goes on under the same id and repeats nothing.
    """

    def __init__(self, folder: Path, description: dict, project: str, quiet: bool):
        import wandb

        self.path, self.swept = folder / "wandb.json", list(description["sweep"])
        self.state: dict[str, Any] = {"id": secrets.token_hex(4), "logged": {}}
        if self.path.exists():
            self.state = json.loads(self.path.read_text())
        about = {key: value for key, value in description.items() if key != "config"}
        try:
            self.run = wandb.init(
                project=project,
                id=self.state["id"],
                resume="allow",
                reinit="create_new",
                dir=str(folder),
                name=f"{description['algorithm']} {description['env']} {folder.name}",
                config=description["config"] | about,
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=quiet),
            )
        except wandb.errors.Error as error:
            raise Refused(
                f"--wandb: {error} (WANDB_MODE=offline needs no account.) Continue with --resume "
                f"--out {folder}"
            ) from error
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def rows(self, rows: list[Row]) -> None:
        program, step = str(rows[0]["member"]), int(rows[0]["step"])
        if step <= self.state["logged"].get(program, -1):
            return
        values = {
            f"{name}/{metric}": value
            for name, _, metrics in series(rows, self.swept)
            for metric, value in metrics.items()
        }
        self.run.log({"step": step} | values)
        self.state["logged"][program] = step
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.path)

    def close(self, summary: dict) -> None:
        self.run.summary.update(summary)
        self.run.finish(exit_code={"done": 0, "interrupted": 130}.get(summary["status"], 1))
