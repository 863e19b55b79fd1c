"""What the terminal shows while a run trains, and at its end.

Names and paths are printed as they are: what stands in brackets is no markup.
"""

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

    def __init__(self, title: str, programs: list, quiet: bool):
        from rich.console import Console

        self.title = title
        self.programs = programs
        width = None if sys.stdout.isatty() else 160  # rich would fold tables at 80 columns
        self.console = Console(
            quiet=quiet, highlight=False, markup=False, soft_wrap=True, width=width
        )
        self.live: Any = None
        self.score = ""
        self.evaluated = False
        self.printed = 0.0
        self.began: tuple[float, Any] = (0.0, None)

    def _print(self, *parts: str) -> None:
        """Print a line whose first part is bold, if there are several."""
        from rich.text import Text

        head = Text(parts[0], style="bold" if len(parts) > 1 else "")
        self.console.print(head.append("".join(parts[1:]), style="not bold"))

    # ---- the start -------------------------------------------------------------------------------

    def open(self, folder: Path) -> None:
        """What is going to run, and where its record goes."""
        first = self.programs[0]
        members = _plural(sum(len(p.members) for p in self.programs), "member")
        devices = _plural(len(first.devices), f"{first.devices[0].platform} device")
        shared = len(first.devices) if first.devices[0].platform == "cpu" else 1
        size = machine.readable(sum(p.state_bytes() * shared for p in self.programs))
        facts = f"{members} on {devices}, training state {size}, record in {folder}"
        self._print(self.title, f": {facts}")
        for program in self.programs:
            if program.algorithm.stages:
                continue
            asked = program.members[0].config.total_steps
            if program.steps != asked:
                each = program.algorithm.steps_per_call
                self._print(f"{asked:,} steps round up to {program.steps:,}: whole calls of {each}")
        import jax

        kept = jax.config.values.get("jax_compilation_cache_dir")
        if kept:
            self._print(f"compiled programs are kept in {kept} (--no-cache: off)")
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self.console,
            )
            self.live.start()

    def start(self, program: Any, position: Any, clock: Any) -> None:
        """A program starts, or goes on."""
        self.began = (clock.train, position)
        self.score = ""
        self.evaluated = False
        self.printed = time.monotonic()
        name = program.name or self.title
        if self.live:
            for task in self.live.task_ids:
                self.live.remove_task(task)
            made = position.at
            self.live.add_task(name, total=program.calls, completed=made, facts="compiling")
            return
        going_on = f", going on at step {position.steps:,}" if position.at else ""
        self._print(f"{name}: compiling{going_on}")

    # ---- on the way ------------------------------------------------------------------------------

    def show(self, metrics: dict, members: int) -> None:
        """Remember the score to show: the last evaluation, or until there is one the return of
        training."""
        name = self.programs[0].score.name
        if name not in metrics:
            name = "train/return"
            if self.evaluated or name not in metrics:
                return
        else:
            self.evaluated = True
        values = metrics[name][:members]
        values = values[np.isfinite(values)]
        if len(values):
            self.score = f"{_label(name)} {values.mean():.4g}"
        if len(values) > 1:
            self.score += f" (members {values.min():.4g} to {values.max():.4g})"

    def progress(self, program: Any, stage: Any, position: Any, clock: Any) -> None:
        """How far a program has come."""
        seconds = clock.train - self.began[0]
        calls = position.at - self.began[1].at
        steps = position.steps - self.began[1].steps
        facts = [f"step {position.steps:,} of {program.steps:,} of each member"]
        if len(program.stages) > 1:
            facts[0] = f"{stage.name}, {facts[0]}"
        if seconds > 0:
            rate = steps * len(program.members) / seconds
            facts.append(f"{rate:,.0f} steps/s of all")
            left = (program.calls - position.at) * seconds / max(calls, 1)
            facts.append(f"ETA {_duration(left)}")
        facts.append(self.score)
        line = "  ".join(facts)
        if self.live:
            self.live.update(self.live.task_ids[-1], completed=position.at, facts=line)
        elif self._due() or position.at == program.calls:
            self.printed = time.monotonic()
            self._print(f"{program.name or self.title}: {line}")

    def _due(self) -> bool:
        return time.monotonic() - self.printed > self.PLAIN_SECONDS

    def close(self) -> None:
        """Stop the live line."""
        if self.live:
            self.live.stop()

    # ---- the end ---------------------------------------------------------------------------------

    def end(self, folder: Path, summary: dict, swept: list[str]) -> None:
        """The table of scores, who diverged, how fast it was, and what to do next."""
        if not summary:
            return
        self.console.print(_table(summary, swept))
        for member in summary["members"]:
            if member["diverged"]:
                what = ", ".join(f"{name} {member[name]}" for name in ("seed", *swept))
                why = "parameters or loss not finite"
                self._print("diverged", f": member {member['member']} ({what}): {why}")
        if summary["steps_per_second"]:
            self._print(
                f"{summary['steps_per_second']:,.0f} steps/s of all members; "
                f"training {summary['train_seconds']:.1f} s, "
                f"evaluation {summary['eval_seconds']:.1f} s, "
                f"compiling {summary['compile_seconds']:.1f} s"
            )
        if summary["status"] == "interrupted":
            script = Path(sys.argv[0])
            run = " ".join([script.name, *sys.argv[1:3]])
            if script.suffix == ".py":
                run = f"python {shlex.quote(str(script))}"
            out = shlex.quote(str(folder))
            self._print(f"interrupted and saved; continue with: {run} --resume --out {out}")
        elif (folder / "curve.png").exists():
            self._print(f"learning curve: {folder / 'curve.png'}")


def _table(summary: dict, swept: list[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    name = summary["score"]["name"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    head = (*swept, "seeds", f"IQM {name.removeprefix('eval/')}", "95% interval", "mean ± std")
    for column in (*head, "at step", "diverged"):
        table.add_column(Text(column), justify="right")
    for setting in summary[name]:
        low, high = _number(setting["low"]), _number(setting["high"])
        step = setting["step"]
        cells = [str(setting[field]) for field in swept]
        cells += [str(setting["seeds"]), _number(setting["iqm"]), f"{low} to {high}"]
        cells += [f"{_number(setting['mean'])} ± {_number(setting['std'])}"]
        cells += ["-" if step is None else f"{step:,}", str(setting["diverged"])]
        table.add_row(*map(Text, cells))
    return table


def _label(metric: str) -> str:
    """eval/return -> return, train/return -> training return."""
    if metric.startswith("train/"):
        return f"training {metric.removeprefix('train/')}"
    return metric.removeprefix("eval/")


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.4f}" if abs(x) < 1 else f"{x:,.2f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
