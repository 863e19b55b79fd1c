"""Reading run directories, ended or not."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlzoo.algorithm import Refused
from rlzoo.report.statistics import describe

Dir = str | Path


def read_description(run_dir: Dir) -> dict[str, Any]:
    """config.json of a run directory. Raises `Refused` where there is none, or it is broken."""
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise Refused(
            f"{run_dir} is not a run: it has no config.json (a run directory holds config.json, "
            "metrics.csv, checkpoints/, the algorithm's source and, at the end, summary.json and "
            "curve.png)"
        )
    description = _read_json(path)
    if not isinstance(description, dict) or "algorithm" not in description:
        raise Refused(f"{run_dir} is not a run of rlzoo: its config.json is something else's")
    return description


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise Refused(f"{path} is damaged: {error}") from None


def read_table(path: Dir) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a metrics.csv, as text. A last line that a kill cut off is left out."""
    text = Path(path).read_text("utf-8")
    lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    return (lines[0], lines[1:]) if lines else ([], [])


def read_metrics(path: Dir) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv, [rows] each: floats; ints for member, seed, step; strings where
    swept so.

    An empty cell (nothing happened) is NaN. A last line cut by a kill is left out; {} if the header
    is cut. Raises `Refused` that names file and line where an earlier line is malformed.
    """
    header, rows = read_table(path)
    if header and (not {"member", "seed", "step"} <= set(header) or len(set(header)) < len(header)):
        raise Refused(
            f"{path}, line 1: needs member, seed and step, and no name twice; got {header}"
        )
    swept = header[header.index("seed") + 1 : header.index("step")] if header else []
    parsed: list[list[Any]] = []
    for number, cells in enumerate(rows, start=2):
        try:
            named = zip(header, cells, strict=True)
            parsed.append([_cell(name, cell, name in swept) for name, cell in named])
        except ValueError as error:
            if number <= len(rows):  # not the last line
                wanted = f"{len(header)} cells wanted, found {cells}"
                raise Refused(f"{path}, line {number}: {error}; {wanted}") from None
    return {name: np.array([row[i] for row in parsed]) for i, name in enumerate(header)}


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
        return f"{word} {short(self.steps)}" + f" of {short(asked)}" * bool(asked) + " steps"

    @property
    def score(self) -> str:
        """The metric by which it is judged."""
        return str(self._score.get("name") or self.summary.get("metric") or "eval/return")

    @property
    def lower_is_better(self) -> bool:
        """Whether a small score is a good one."""
        return bool(self._score.get("lower_is_better"))

    @property
    def _score(self) -> dict[str, Any]:
        return self.config.get("score") or {}

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
    metric: str
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
        return describe(self.scores)

    @property
    def lower_is_better(self) -> bool:
        """Whether a small score is a good one."""
        run = self.members[0].run
        return run.lower_is_better and run.score == self.metric

    @property
    def rank(self) -> float:
        """The higher the better, whatever the direction of the score."""
        score = self.summary["iqm"]
        if score is None:
            return -np.inf
        return -score if self.lower_is_better else score

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps [points], values [members that did not diverge, points]; interpolated where steps
        differ."""
        parts = []
        for m in self.members:
            rows = (m.run.metrics["member"] == m.index) & m.run.points(self.metric)
            if rows.any() and np.isfinite(m.score):
                parts.append((m.run.metrics["step"][rows], m.run.metrics[self.metric][rows]))
        if not parts:
            return np.zeros(0), np.zeros((0, 0))
        grid = np.unique(np.concatenate([steps for steps, _ in parts]))
        grid = grid[(grid >= max(s[0] for s, _ in parts)) & (grid <= min(s[-1] for s, _ in parts))]
        return grid, np.stack([np.interp(grid, steps, values) for steps, values in parts])


def read_run(run_dir: Dir) -> Run:
    """Read a run directory, ended or not. Raises `Refused` where it is none or a file is broken."""
    path = Path(run_dir)
    description = read_description(path)
    ended = (path / "summary.json").is_file()
    summary = _read_json(path / "summary.json") if ended else {}
    metrics = read_metrics(path / "metrics.csv") if (path / "metrics.csv").is_file() else {}
    return Run(path, description, summary, metrics)


def group(runs: Iterable[Run], metric: str | None = None) -> list[Group]:
    """Put together the members that share algorithm, environment, status and every config field.

    Args:
      metric: what they are judged by (default: the score of each run).
    """
    found: dict[tuple[Any, ...], list[Member]] = {}
    for run in runs:
        judged = metric or run.score
        for fields, member in _members(run, judged):
            env = fields.pop("env", run.config.get("env") or "-")
            env = re.sub(r"^.*/(?=[^/]+\.py:)", "", env, flags=re.DOTALL)  # no folder of a file
            about = (run.config["algorithm"], env, judged, run.status)
            found.setdefault((*about, tuple(sorted(fields.items()))), []).append(member)
    groups = []
    for (algorithm, env, judged, status, fields), members in found.items():
        rivals = [dict(key[-1]) for key in found if key[:2] == (algorithm, env)]
        differing = [(k, v) for k, v in fields if any(rival.get(k) != v for rival in rivals)]
        setting = ", ".join(
            f"{k}={v:.10g}" if isinstance(v, float) else f"{k}={v}" for k, v in differing
        )
        first: dict[int, Member] = {}
        for member in members:
            first.setdefault(member.seed, member)
        repeats = len(members) - len(first)
        groups.append(Group(algorithm, env, judged, status, setting, list(first.values()), repeats))
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
        dataset = " ".join(dataset) if isinstance(dataset, list) else dataset
        config = run.config.get("config", {}) | ({"dataset": dataset} if dataset else {}) | swept
        number = {
            k: isinstance(v, int | float) and not isinstance(v, bool) for k, v in config.items()
        }
        fields = {k: float(v) if number[k] else str(v) for k, v in config.items()}
        yield fields, Member(run, int(index), int(data["seed"][first]), float(score))


def short(x: float) -> str:
    """12000 -> 12k, 1.5e6 -> 1.5M."""
    size, unit = next((s for s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(x) >= s[0]), (1, ""))
    return f"{x / size:.4g}{unit}"
