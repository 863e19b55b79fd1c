"""What a study says: robust statistics, learning curves, and the report over many runs.

Scores are summarised by the interquartile mean (IQM) with a stratified bootstrap interval, and
algorithms are compared by the probability of improvement: Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", section 4. Two rules hold throughout:

* a diverged run is never dropped in silence. Statistics hand NaN through; tables and curves leave
diverged
  members out *and count them* (`diverged=k`); in the probability of improvement they lose to all
  others;
* one run has no interval: it is NaN (None in JSON, a dash in tables), and not of width zero.

Nothing here imports jax. matplotlib loads when first drawn with, and without pyplot, so that a
notebook keeps its backend.
"""

import base64
import csv
import html
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from rlzoo.algorithm import Refused

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Dir = str | Path
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#333333",
)  # Okabe and Ito, 2008

# --------------------------------------------------------------------------------------- statistics


def iqm(scores: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """Mean of the middle half of the scores: floor(n / 4) of them are cut at each end. NaN in, NaN
    out.

    All scores are pooled, runs and tasks together, unless `axis` names what to pool.
    """
    scores = np.asarray(scores, float)
    pooled = np.atleast_1d(np.arange(scores.ndim) if axis is None else axis) % max(scores.ndim, 1)
    kept = [a for a in range(scores.ndim) if a not in pooled]
    if not scores.size:
        raise ValueError("iqm of no scores")
    rows = scores.transpose(*kept, *pooled).reshape([scores.shape[a] for a in kept] + [-1])
    rows, cut = np.sort(rows, axis=-1), rows.shape[-1] // 4
    middle = rows[..., cut : rows.shape[-1] - cut].mean(-1)
    return np.where(np.isnan(rows[..., -1]), np.nan, middle)[
        ()
    ]  # NaN is sorted last, where the cut hides it


def bootstrap_ci(
    scores: Any,
    statistic: Callable[..., Any] = iqm,
    reps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval (low, high) of `statistic(scores, axis=...)` for scores [runs] or [runs,
    tasks].

    Stratified: runs are resampled within each task, so that the tasks' scales do not widen the
    interval.
    """
    scores = np.asarray(scores, float)
    if scores.ndim not in (1, 2) or not scores.size:
        raise ValueError(
            f"scores must be [runs] or [runs, tasks], and not empty; got shape {scores.shape}"
        )
    table = scores.reshape(len(scores), -1)
    picks = np.random.default_rng(seed).integers(len(table), size=(reps, *table.shape))
    resampled = table[picks, np.arange(table.shape[1])]  # [reps, runs, tasks]
    low, high = _interval(statistic(resampled, axis=(1, 2)), level, runs=len(table))
    return float(low), float(high)


def iqm_curve(
    scores: Any, reps: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM, low and high, [points] each, of learning curves [runs, points]; whole runs are
    resampled."""
    scores = np.asarray(scores, float)
    picks = np.random.default_rng(seed).integers(len(scores), size=(reps, len(scores)))
    low, high = _interval(
        np.stack([iqm(v[picks], axis=1) for v in scores.T], axis=1), level, len(scores)
    )
    return iqm(scores, axis=0), low, high


def probability_of_improvement(
    x: Any, y: Any, reps: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """P(X > Y), low, high: does a run of X beat a run of Y? Averaged over the shared tasks; a tie
    counts 1/2.

    x, y: [runs], [runs, tasks], or {task: [runs]}. A NaN loses to every number, and ties with
    another NaN.
    """
    x, y = _by_task(x), _by_task(y)
    shared = [task for task in x if task in y]
    if not shared:
        raise ValueError(f"no task in common: {list(x)} and {list(y)}")
    rng, estimate, replicates = np.random.default_rng(seed), 0.0, np.zeros(reps)
    for task in shared:
        a, b = (np.where(np.isnan(scores), -np.inf, scores) for scores in (x[task], y[task]))
        wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)  # [runs of x, runs of y]
        # of a resample, it only matters how often it holds each run
        of_a, of_b = (rng.multinomial(n, np.full(n, 1 / n), size=reps) for n in wins.shape)
        replicates += np.einsum("ri,ri->r", of_a @ wins, of_b) / (wins.size * len(shared))
        estimate += float(wins.mean()) / len(shared)
    low, high = _interval(
        replicates, level, runs=min(len(side[task]) for side in (x, y) for task in shared)
    )
    return estimate, float(low), float(high)


def summarise(
    members: Iterable[Mapping[str, Any]], metric: str = "eval/return"
) -> list[dict[str, Any]]:
    """One entry per swept setting: its fields, iqm, low, high, mean, std, seeds, diverged; None:
    undefined.

    members: {member, seed, <swept fields>, <metric>: float or None, diverged: bool}. `seeds` counts
    them all, `diverged` those that are marked as such or have a score that is not finite. None is
    no score, and no failure.
    """
    settings: dict[str, tuple[dict[str, Any], list[float | None]]] = {}
    for member in members:
        known = ("member", "seed", "diverged", "steps_to_threshold")
        swept = {k: v for k, v in member.items() if k not in known and "/" not in k}
        score = np.nan if member.get("diverged") else member.get(metric)
        settings.setdefault(repr(swept), (swept, []))[1].append(score)
    return [
        swept | _describe(np.array([s for s in scores if s is not None])) | {"seeds": len(scores)}
        for swept, scores in settings.values()
    ]


def _describe(scores: np.ndarray) -> dict[str, Any]:
    good = scores[np.isfinite(scores)]
    values = [np.nan] * 5
    if good.size:
        values = [
            iqm(good),
            *bootstrap_ci(good),
            good.mean(),
            good.std(ddof=1) if good.size > 1 else np.nan,
        ]
    named = zip(("iqm", "low", "high", "mean", "std"), values, strict=True)
    row = {name: float(value) if np.isfinite(value) else None for name, value in named}
    return row | {"seeds": len(scores), "diverged": len(scores) - len(good)}


def _interval(replicates: np.ndarray, level: float, runs: int) -> np.ndarray:
    if runs < 2:
        return np.full((2, *replicates.shape[1:]), np.nan)
    return np.percentile(replicates, [50 - 50 * level, 50 + 50 * level], axis=0)


def _by_task(scores: Any) -> dict[Any, np.ndarray]:
    if isinstance(scores, Mapping):
        return {task: np.asarray(runs, float) for task, runs in scores.items()}
    return dict(enumerate(np.asarray(scores, float).reshape(len(scores), -1).T))


# ------------------------------------------------------------------------------------------ reading


def read_metrics(path: Dir) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv, [rows] each: floats; ints for member, seed, step; strings where
    swept so.

    An empty cell (nothing happened) is NaN. A last line cut by a kill is left out; {} if the header
    is cut. Raises ValueError that names file and line where an earlier line is malformed.
    """
    header, *rows = list(csv.reader(Path(path).read_text("utf-8").split("\n")[:-1])) or [[]]
    if header and (not {"member", "seed", "step"} <= set(header) or len(set(header)) < len(header)):
        raise Refused(
            f"{path}, line 1: needs member, seed and step, and no name twice; got {header}"
        )
    swept = header[header.index("seed") + 1 : header.index("step")] if header else []
    parsed: list[list[Any]] = []
    for number, cells in enumerate(rows, start=2):
        try:
            parsed.append(
                [_cell(k, cell, k in swept) for k, cell in zip(header, cells, strict=True)]
            )
        except ValueError as error:
            if number <= len(rows):  # not the last line
                wanted = f"{len(header)} cells wanted, found {cells}"
                raise Refused(f"{path}, line {number}: {error}; {wanted}") from None
    return {k: np.array([row[i] for row in parsed]) for i, k in enumerate(header)}


def _cell(name: str, cell: str, swept: bool) -> Any:
    try:
        return int(cell) if name in ("member", "seed", "step") else float(cell or "nan")
    except ValueError:
        if not swept:
            raise
        return cell


@dataclass(frozen=True)
class Run:
    """A run directory as read: config.json, summary.json ({} while there is none), columns of
    metrics.csv."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, np.ndarray]

    @property
    def status(self) -> str:
        """`done`, `interrupted` or `failed`; `unfinished` while there is no summary."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def steps(self) -> int:
        """Steps that each member made."""
        return int(self.summary.get("steps") or max(self.metrics.get("step", ()), default=0))

    @property
    def note(self) -> str:
        """What to know of a run that is not whole, such as `interrupted at 300k of 1M steps`; else
        empty."""
        asked = self.config.get("config", {}).get("total_steps", 0)
        if self.status == "done" and self.steps >= asked:
            return ""
        word = "reduced to" if self.status == "done" else f"{self.status} at"
        return f"{word} {_short(self.steps)}" + f" of {_short(asked)}" * bool(asked) + " steps"

    def points(self, metric: str) -> np.ndarray:
        """Which rows have a value of `metric`, [rows] bool."""
        return np.isfinite(self.metrics.get(metric, np.full(len(self.metrics["step"]), np.nan)))


@dataclass(frozen=True)
class Member:
    """One seed of a setting in a run; `score` is its last evaluation, NaN where it diverged."""

    run: Run
    index: int
    seed: int
    score: float


@dataclass(frozen=True)
class Group:
    """The members, of one or several runs, that differ in nothing but the seed. A seed is held
    once."""

    algorithm: str
    env: str
    status: str
    setting: str  # the fields in which it differs from the others of its algorithm and environment
    members: list[Member]
    # members left out: another run has their seed, and the same numbers twice are no evidence
    repeats: int

    @cached_property
    def scores(self) -> np.ndarray:
        return np.array([m.score for m in self.members])

    @cached_property
    def summary(self) -> dict[str, Any]:
        return _describe(self.scores)

    @property
    def rank(self) -> float:
        return -np.inf if self.summary["iqm"] is None else self.summary["iqm"]

    def curves(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [points], values [members that did not diverge, points]; interpolated where steps
        differ."""
        parts = []
        for m in self.members:
            rows = (m.run.metrics["member"] == m.index) & m.run.points(metric)
            if rows.any() and np.isfinite(m.score):
                parts.append((m.run.metrics["step"][rows], m.run.metrics[metric][rows]))
        if not parts:
            return np.zeros(0), np.zeros((0, 0))
        grid = np.unique(np.concatenate([steps for steps, _ in parts]))
        grid = grid[(grid >= max(s[0] for s, _ in parts)) & (grid <= min(s[-1] for s, _ in parts))]
        return grid, np.stack([np.interp(grid, steps, values) for steps, values in parts])


def read_run(run_dir: Dir) -> Run:
    """Read a run directory, ended or not. Raises `Refused` where it is none or a file is broken."""
    path, found = Path(run_dir), {}
    if not (path / "config.json").is_file():
        raise Refused(
            f"{path} is not a run directory, for it has no config.json. A run directory holds config.json, "
            "metrics.csv, checkpoints/, the algorithm's source and, at the end, summary.json and curve.png."
        )
    for name in ("config.json", "summary.json"):
        try:
            found[name] = (
                json.loads((path / name).read_text("utf-8")) if (path / name).is_file() else {}
            )
        except json.JSONDecodeError as error:
            raise Refused(f"{path / name} is not JSON: {error}") from None
    metrics = read_metrics(path / "metrics.csv") if (path / "metrics.csv").is_file() else {}
    return Run(path, found["config.json"], found["summary.json"], metrics)


def group(runs: Iterable[Run], metric: str = "eval/return") -> list[Group]:
    """Put together the members that share algorithm, environment, status and every config field."""
    found: dict[tuple[Any, ...], list[Member]] = {}
    for run in runs:
        for fields, member in _members(run, metric):
            env = fields.pop("env", run.config.get("env") or "-")
            key = (run.config["algorithm"], env, run.status, tuple(sorted(fields.items())))
            found.setdefault(key, []).append(member)
    groups = []
    for (algorithm, env, status, fields), members in found.items():
        rivals = [dict(key[3]) for key in found if key[:2] == (algorithm, env)]
        differing = [(k, v) for k, v in fields if any(rival.get(k) != v for rival in rivals)]
        setting = ", ".join(
            f"{k}={v:.10g}" if isinstance(v, float) else f"{k}={v}" for k, v in differing
        )
        first: dict[int, Member] = {}
        for member in members:
            first.setdefault(member.seed, member)
        repeats = len(members) - len(first)
        groups.append(Group(algorithm, env, status, setting, list(first.values()), repeats))
    return groups


def _members(run: Run, metric: str) -> Iterable[tuple[dict[str, Any], Member]]:
    """Each evaluated member with its config: numbers as floats, the rest as str, as metrics.csv
    reads."""
    data, names = run.metrics, list(run.metrics)
    known = {m["member"]: m for m in run.summary.get("members", [])}
    for index, first in zip(*np.unique(data.get("member", ()), return_index=True), strict=True):
        swept = {
            k: data[k][first].item() for k in names[names.index("seed") + 1 : names.index("step")]
        }
        alike = np.all(
            [np.ones(len(data["step"]), bool), *(data[k] == v for k, v in swept.items())], axis=0
        )
        own, scored = data["member"] == index, run.points(metric)
        # Without a summary: lost is who has a row, but no value, where another of its setting was
        # evaluated.
        due = np.intersect1d(data["step"][own], data["step"][alike & scored])
        lost = metric.startswith("eval/") and not np.isin(due, data["step"][own & scored]).all()
        entry = known.get(index, {"diverged": lost})
        last = data[metric][own & scored][-1] if (own & scored).any() else None
        score = np.nan if entry.get("diverged") else entry.get(metric, last)
        if score is None:
            continue  # not evaluated yet: neither a score nor a failure
        dataset = run.config.get("options", {}).get("dataset")
        config = run.config.get("config", {}) | ({"dataset": dataset} if dataset else {}) | swept
        number = {
            k: isinstance(v, int | float) and not isinstance(v, bool) for k, v in config.items()
        }
        fields = {k: float(v) if number[k] else str(v) for k, v in config.items()}
        yield fields, Member(run, int(index), int(data["seed"][first]), float(score))


# ----------------------------------------------------------------------------------------- pictures

Curves = Sequence[Run] | Sequence[Group]  # runs are grouped by setting


def draw_curves(what: Curves, metric: str = "eval/return", title: str | None = None) -> "Figure":
    """One line per setting, its IQM over seeds against steps, with the 95% bootstrap band.

    Up to ten seeds of up to four settings are drawn too, as faint lines.
    Raises ValueError if no run has a value of `metric`.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    groups = [g for g in what if isinstance(g, Group)]
    groups += group([r for r in what if isinstance(r, Run)], metric)
    lines = [g.curves(metric) for g in groups]
    if not any(steps.size for steps, _ in lines):
        have = _drawable(r for r in what if isinstance(r, Run))
        raise Refused(f"no seed has a curve of {metric}; there are {', '.join(have) or 'none'}")
    outside = len(groups) > 4
    figure = Figure(figsize=(9.6 if outside else 7.2, 4.3), layout="constrained")
    axes = figure.add_subplot()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(groups)))
    colours = COLOURS if len(groups) <= len(COLOURS) else shades
    for g, name, colour, (steps, scores) in zip(
        groups, _names(groups), colours, lines, strict=False
    ):
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
            color=colour,
            lw=1.9,
            label="\n".join(wrap(label, 48 if outside else 76)),
            zorder=4,
        )
        if 1 < len(scores) <= 10 and not outside:
            axes.plot(steps, scores.T, color=colour, lw=0.6, alpha=0.35, zorder=2)
        if len(scores) > 1 and steps.size:
            axes.fill_between(
                steps, *iqm_curve(scores)[1:], color=colour, alpha=0.18, lw=0, zorder=3
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
        axis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
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
    what: Curves, out: Dir, metric: str = "eval/return", title: str | None = None
) -> Path:
    """Write the picture of `draw_curves` to the PNG `out`."""
    draw_curves(what, metric, title).savefig(out, dpi=160)
    return Path(out)


def write_curve(run_dir: Dir, metric: str | None = None) -> Path:
    """Write `curve.png` of a run: of `eval/return`, or where it has none, of the first metric that
    it has."""
    run = read_run(run_dir)
    have = _drawable([run])
    metric = metric or ("eval/return" if "eval/return" in have or not have else have[0])
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


def _short(x: float) -> str:
    """12000 -> 12k, 1.5e6 -> 1.5M."""
    size, unit = next((s for s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(x) >= s[0]), (1, ""))
    return f"{x / size:.4g}{unit}"


# --------------------------------------------------------------------------------------- the report

COSTS = {"steps/s": "steps_per_second", "compile s": "compile_seconds"}
HEAD = ["algorithm", "setting", "IQM [95% CI]", "mean ± std", "seeds", "steps", *COSTS, "status"]
ABOUT = """The score is the last {} of each seed: interquartile mean with its 95% stratified bootstrap
interval over seeds, mean and sample standard deviation. Diverged seeds are left out of these, and counted.
Steps are those of one seed; steps/s of all seeds of a run together, without compilation and evaluation."""
IMPROVEMENT = """How likely a seed of X beats a seed of Y, averaged over the environments they share. Of many
settings, the one with the highest IQM, chosen on these same scores, stands for its algorithm. A diverged seed
loses. Only runs that are done take part."""
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title><style>
body { font: 15px/1.5 system-ui, sans-serif; color: #333; max-width: 64rem; margin: auto; padding: 1rem }
h2 { margin-top: 2.5rem } img { max-width: 48rem; width: 100%; margin-top: 1rem } summary { cursor: pointer }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #ddd } tr:first-child { font-weight: 600 }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: 12px }
</style>
"""


def report(run_dirs: Iterable[Dir], out_dir: Dir, metric: str = "eval/return") -> list[Path]:
    """Write report.md, report.html (self-contained) and curves_<env>.png over many runs; return
    their paths.

    Seeds of the same setting are put together, whatever run they come from; a seed that two runs
    share counts once. Runs that are not done stand apart, under their status.
    """
    runs = [read_run(path) for path in run_dirs]
    if not runs:
        raise Refused("no runs to report on")
    groups, out = group(runs, metric), Path(out_dir)
    pictures: list[Path] = []
    out.mkdir(parents=True, exist_ok=True)
    repeats = sum(g.repeats for g in groups)
    about = ABOUT.format(metric) + f" Repeated seeds left out: {repeats}." * (repeats > 0)
    parts = [_tag("h1", "# ", "Report"), _tag("p", "", about)]  # (Markdown, HTML) of each
    for env in sorted({g.env for g in groups}):
        here = sorted((g for g in groups if g.env == env), key=lambda g: -g.rank)
        parts += [_tag("h2", "## ", env), _table([HEAD, *(_score_row(g) for g in here)])]
        if any(g.curves(metric)[0].size for g in here):
            path = plot_curves(
                here, out / f"curves_{re.sub('[^A-Za-z0-9_.-]', '-', env)}.png", metric, env
            )
            image = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            parts.append((f"![curves]({path.name})", f'<img alt="curves" src="{image}">'))
            pictures.append(path)
    if rows := _improvement_rows(groups):
        head = ["X", "Y", "P(X > Y) [95% CI]", "environments"]
        title = _tag("h2", "## ", "Probability of improvement")
        parts += [title, _tag("p", "", IMPROVEMENT), _table([head, *rows])]
    parts += [_tag("h2", "## ", "Runs"), *(_run_entry(run) for run in runs)]
    (out / "report.md").write_text("\n\n".join(markdown for markdown, _ in parts) + "\n", "utf-8")
    (out / "report.html").write_text(
        PAGE + "\n".join(page for _, page in parts) + "\n</html>\n", "utf-8"
    )
    return [out / "report.md", out / "report.html", *pictures]


def _score_row(g: Group) -> list[str]:
    s, runs = g.summary, {m.run.path: m.run for m in g.members}.values()
    known = [[r.summary[k] for r in runs if r.summary.get(k) is not None] for k in COSTS.values()]
    seeds = f"{s['seeds']}" + f" (diverged={s['diverged']})" * (s["diverged"] > 0)
    score = [
        _number(s["iqm"], s["low"], s["high"]),
        f"{_number(s['mean'])} ± {_number(s['std'])}",
        seeds,
    ]
    costs = [_short(max(r.steps for r in runs)), *(_short(np.mean(v)) if v else "-" for v in known)]
    return [g.algorithm, g.setting or "-", *score, *costs, g.status]


def _improvement_rows(groups: Sequence[Group]) -> list[list[str]]:
    best: dict[str, dict[str, np.ndarray]] = {}
    for g in sorted(groups, key=lambda g: g.rank):  # the highest comes last, and stays
        if g.status == "done":
            best.setdefault(g.algorithm, {})[g.env] = g.scores
    rows = []
    for x, y in combinations(sorted(best), 2):
        if shared := sorted(best[x].keys() & best[y].keys()):
            rows.append(
                [x, y, _number(*probability_of_improvement(best[x], best[y])), ", ".join(shared)]
            )
    return rows


def _number(value: float | None, *interval: float | None) -> str:
    known = value is not None and np.isfinite(value)
    text = "-" if not known else f"{value:.0f}" if abs(value or 0) >= 1000 else f"{value:.4g}"
    return text + f" [{', '.join(_number(v) for v in interval)}]" * bool(interval)


def _tag(tag: str, mark: str, text: str) -> tuple[str, str]:
    return mark + text, f"<{tag}>{html.escape(text)}</{tag}>"


def _table(rows: Sequence[Sequence[str]]) -> tuple[str, str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    page = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    ]
    text = "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
    return text, f"<table>{''.join(page)}</table>"


def _run_entry(run: Run) -> tuple[str, str]:
    command = run.config.get("command", "(command not recorded)")
    command = command if isinstance(command, str) else shlex.join(command)
    name, config = f"{run.path} ({run.note or run.status})", json.dumps(run.config, indent=2)
    shown = "".join(f"<pre>{html.escape(text)}</pre>" for text in (command, config))
    return (
        f"* {name}: `{command}`",
        f"<details><summary>{html.escape(name)}</summary>{shown}</details>",
    )
