"""The report over many runs: tables, curves, one HTML page."""

import base64
import html
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from rlzoo.algorithm import Refused
from rlzoo.report.curves import plot_curves
from rlzoo.report.reading import Dir, Group, Run, group, read_run, short
from rlzoo.report.statistics import probability_of_improvement

COSTS = {"steps/s": "steps_per_second", "compile s": "compile_seconds"}


HEAD = ["algorithm", "setting", "IQM [95% CI]", "mean ± std", "seeds", "steps", *COSTS, "status"]


ABOUT = """The score is the last {} of each seed: interquartile mean with its 95% stratified
bootstrap interval over seeds, mean and sample standard deviation. Diverged seeds are left out of
these, and counted. Steps are those of one seed; steps/s of all seeds of a run together, without
compilation and evaluation."""


IMPROVEMENT = """How likely a seed of X beats a seed of Y, averaged over the environments they
share. Of many settings, the one with the highest IQM, chosen on these same scores, stands for its
algorithm. A diverged seed loses. Only runs that are done take part."""


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Report</title><style>
body { font: 15px/1.5 system-ui, sans-serif; color: #333; max-width: 64rem; margin: auto;
  padding: 1rem; overflow-wrap: anywhere }
.table { overflow-x: auto; overflow-wrap: normal }
h2 { margin-top: 2.5rem }
img { max-width: 48rem; width: 100%; margin-top: 1rem }
summary { cursor: pointer }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td { padding: .3rem 1rem .3rem 0; white-space: nowrap; border-bottom: 1px solid #ddd }
tr:first-child { font-weight: 600 }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: 12px }
</style>
"""


def report(run_dirs: Iterable[Dir], out_dir: Dir, metric: str | None = None) -> list[Path]:
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
    about = ABOUT.format(
        ", ".join(sorted({g.metric for g in groups}))
    ) + f" Repeated seeds left out: {repeats}." * (repeats > 0)
    parts = [_tag("h1", "# ", "Report"), _tag("p", "", about)]  # (Markdown, HTML) of each
    for env in sorted({g.env for g in groups}):
        here = sorted((g for g in groups if g.env == env), key=lambda g: -g.rank)
        parts += [_tag("h2", "## ", env), _table([HEAD, *(_score_row(g) for g in here)])]
        if any(g.curves()[0].size for g in here):
            name = re.sub("[^A-Za-z0-9_.-]", "-", env)
            path = plot_curves(here, out / f"curves_{name}.png", title=env)
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
    costs = [short(max(r.steps for r in runs)), *(short(np.mean(v)) if v else "-" for v in known)]
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
    return text, f'<div class="table"><table>{"".join(page)}</table></div>'


def _run_entry(run: Run) -> tuple[str, str]:
    command = run.config.get("command", "(command not recorded)")
    command = command if isinstance(command, str) else shlex.join(command)
    name = f"{run.path} ({run.note or run.status})"
    shared = {key: value for key, value in run.config.items() if key != "home"}
    config = json.dumps(shared, indent=2)
    shown = "".join(f"<pre>{html.escape(text)}</pre>" for text in (command, config))
    return (
        f"* {name}: `{command}`",
        f"<details><summary>{html.escape(name)}</summary>{shown}</details>",
    )
