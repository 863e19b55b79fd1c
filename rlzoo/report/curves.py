"""Learning curves."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from rlzoo.algorithm import Refused
from rlzoo.report.reading import Dir, Group, Run, group, read_run, short
from rlzoo.report.statistics import iqm, iqm_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#333333",
)
"""of Okabe and Ito, 2008"""


Curves = Sequence[Run] | Sequence[Group]  # runs are grouped by setting


def draw_curves(what: Curves, metric: str | None = None, title: str | None = None) -> "Figure":
    """One line per setting, its IQM over seeds against steps, with the 95% bootstrap band.

    Up to ten seeds of up to four settings are drawn too, as faint lines. Where all seeds have
    diverged, the axes stay empty and say so.

    Args:
      metric: what is drawn (default: the score of the runs).

    Raises `Refused` if no run has a value of `metric`.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    groups = [g for g in what if isinstance(g, Group)]
    groups += group([r for r in what if isinstance(r, Run)], metric)
    if not groups:
        runs_given = [r for r in what if isinstance(r, Run)]
        wanted = metric or ", ".join(sorted({r.score for r in runs_given}))
        have = ", ".join(_drawable(runs_given)) or "none"
        raise Refused(f"no seed has a curve of {wanted}; there are {have}")
    lines = [g.curves() for g in groups]
    metric = ", ".join(sorted({g.metric for g in groups}))
    outside = len(groups) > 4
    figure = Figure(figsize=(9.6 if outside else 7.2, 4.3), layout="constrained")
    axes = figure.add_subplot()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(groups)))
    colors = COLORS if len(groups) <= len(COLORS) else shades
    for g, name, color, (steps, scores) in zip(groups, _names(groups), colors, lines, strict=False):
        lost = len(g.members) - len(scores)
        label = (
            f"{name}, {len(scores)} seed"
            + "s" * (len(scores) != 1)
            + f" (diverged={lost})" * (lost > 0)
        )
        middle = iqm(scores, axis=0) if steps.size else []
        axes.plot(
            steps,
            middle,
            color=color,
            lw=1.9,
            label="\n".join(wrap(label, 48 if outside else 76)),
            zorder=4,
        )
        if 1 < len(scores) <= 10 and not outside:
            axes.plot(steps, scores.T, color=color, lw=0.6, alpha=0.35, zorder=2)
        if len(scores) > 1 and steps.size:
            axes.fill_between(
                steps, *iqm_curve(scores)[1:], color=color, alpha=0.18, lw=0, zorder=3
            )
    runs = {m.run.path: m.run.note for g in groups for m in g.members}
    notes = [note for note in runs.values() if note]
    notes = [f"{len(notes)} of {len(runs)} runs not whole"] if notes and len(runs) > 1 else notes
    lost = sum(len(g.members) - len(scores) for g, (_, scores) in zip(groups, lines, strict=True))
    notes += [f"diverged={lost}"] * (lost > 0)
    who = [", ".join(sorted({getattr(g, k) for g in groups})) for k in ("algorithm", "env")]
    title = (title or " on ".join(who)) + f" ({', '.join(notes)})" * bool(notes)
    title = "\n".join(wrap(title, 76))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10)
    online = metric.endswith("/return") and not any(
        m.run.config.get("options", {}).get("dataset") for g in groups for m in g.members
    )
    axes.set_xlabel("environment steps" if online else "steps")
    axes.set_ylabel(metric)
    axes.margins(x=0.01)
    axes.grid(color="#E6E6E6", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#AAAAAA")
    axes.tick_params(length=0, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    style: dict[str, Any] = {
        "edgecolor": "none",
        "fontsize": 9,
        "title_fontsize": 9,
        "alignment": "left",
    }
    style |= {"title": "IQM, 95% CI"} if len(groups) > 1 else {}
    if outside:
        figure.legend(loc="outside right upper", ncols=1 + (len(groups) - 1) // 18, **style)
    else:
        axes.legend(loc="best", **style)
    return figure


def plot_curves(
    what: Curves, out: Dir, metric: str | None = None, title: str | None = None
) -> Path:
    """Write the picture of `draw_curves` to the PNG `out`."""
    draw_curves(what, metric, title).savefig(out, dpi=160)
    return Path(out)


def write_curve(run_dir: Dir, metric: str | None = None) -> Path:
    """Write `curve.png` of a run: of its score, or where it has no value of it, of the first
    metric that it has."""
    run = read_run(run_dir)
    have = _drawable([run])
    if metric is None and have and run.score not in have and run.score not in run.metrics:
        metric = have[0]
    return plot_curves([run], run.path / "curve.png", metric)


def _drawable(runs: Iterable[Run]) -> list[str]:
    """The metrics (evaluations first, without times) that have values."""
    names = {
        k
        for run in runs
        for k in run.metrics
        if re.match("(?!time/).+/", k) and run.points(k).any()
    }
    return sorted(names, key=lambda k: (not k.startswith("eval/"), not k.startswith("train/"), k))


def _names(groups: Sequence[Group]) -> list[str]:
    """A name per line: its setting, and its algorithm, environment and status where those
    differ."""
    shown = [k for k in ("algorithm", "env") if len({getattr(g, k) for g in groups}) > 1]
    names, mixed = [], len({g.status for g in groups}) > 1
    for g in groups:
        name = ", ".join(part for part in (*(getattr(g, k) for k in shown), g.setting) if part)
        name = name or ("IQM, 95% CI" if len(groups) == 1 else g.algorithm)
        names.append(name + f" [{g.status}]" * (mixed and g.status != "done"))
    return names
