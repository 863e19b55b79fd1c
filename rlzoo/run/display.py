"""What the terminal shows while a run trains, and at its end."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlzoo import machine


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

    def end(self, folder: Path, summary: dict, swept: list[str]) -> None:
        if not summary:
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
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
                f"interrupted and saved; continue with: {run} --resume --out {shlex.quote(str(folder))}"
            )
        elif (folder / "curve.png").exists():
            self.console.print(f"learning curve: {folder / 'curve.png'}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
