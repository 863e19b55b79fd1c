"""Robust statistics over seeds.

Scores are summarized by the interquartile mean (IQM) with a stratified bootstrap interval, and
algorithms are compared by the probability of improvement: Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", section 4. Two rules hold throughout:

* a diverged run is never dropped in silence. Statistics hand NaN through; tables and curves leave
  diverged members out *and count them* (`diverged=k`); in the probability of improvement they lose
  to all others;
* one run has no interval: it is NaN (None in JSON, a dash in tables), and not of width zero.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np


def iqm(scores: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """Mean of the middle half of the scores: floor(n / 4) of them are cut at each end. NaN in, NaN
    out.

    All scores are pooled, runs and tasks together, unless `axis` names what to pool.
    """
    scores = np.asarray(scores, float)
    if not scores.size:
        raise ValueError("iqm of no scores")
    if axis is None:
        axis = tuple(range(scores.ndim))
    pooled = np.atleast_1d(axis).astype(int) % max(scores.ndim, 1)
    kept = [a for a in range(scores.ndim) if a not in pooled]
    shape = [scores.shape[a] for a in kept]
    rows = scores.transpose(*kept, *pooled).reshape(*shape, -1)
    rows = np.sort(rows, axis=-1)
    cut = rows.shape[-1] // 4
    middle = rows[..., cut : rows.shape[-1] - cut].mean(-1)
    # NaN is sorted last, where the cut hides it.
    has_nan = np.isnan(rows[..., -1])
    return np.where(has_nan, np.nan, middle)[()]


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
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(table), size=(reps, *table.shape))
    tasks = np.arange(table.shape[1])
    resampled = table[picks, tasks]  # [reps, runs, tasks]
    replicates = statistic(resampled, axis=(1, 2))
    low, high = _interval(replicates, level, runs=len(table))
    return float(low), float(high)


def iqm_curve(
    scores: Any, reps: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM, low and high, [points] each, of learning curves [runs, points]; whole runs are
    resampled."""
    scores = np.asarray(scores, float)
    rng = np.random.default_rng(seed)
    runs = len(scores)
    picks = rng.integers(runs, size=(reps, runs))
    replicates = [iqm(point[picks], axis=1) for point in scores.T]
    low, high = _interval(np.stack(replicates, axis=1), level, runs)
    return iqm(scores, axis=0), low, high


def probability_of_improvement(
    x: Any, y: Any, reps: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """P(X > Y), low, high: does a run of X beat a run of Y? Averaged over the shared tasks; a tie
    counts 1/2.

    x, y: [runs], [runs, tasks], or {task: [runs]}. A NaN loses to every number, and ties with
    another NaN.
    """
    x = _by_task(x)
    y = _by_task(y)
    shared = [task for task in x if task in y]
    if not shared:
        raise ValueError(f"no task in common: {list(x)} and {list(y)}")
    rng = np.random.default_rng(seed)
    estimate = 0.0
    replicates = np.zeros(reps)
    for task in shared:
        a = _nan_loses(x[task])[:, None]
        b = _nan_loses(y[task])
        wins = (a > b) + 0.5 * (a == b)  # [runs of x, runs of y]
        # Of a resample, it only matters how often it holds each run.
        times_a = _resampled(rng, len(a), reps)
        times_b = _resampled(rng, len(b), reps)
        total = np.einsum("ri,ri->r", times_a @ wins, times_b)
        replicates += total / (wins.size * len(shared))
        estimate += float(wins.mean()) / len(shared)
    fewest = min(len(side[task]) for side in (x, y) for task in shared)
    low, high = _interval(replicates, level, fewest)
    return estimate, float(low), float(high)


def summarize(
    members: Iterable[Mapping[str, Any]], metric: str = "eval/return"
) -> list[dict[str, Any]]:
    """One entry per swept setting: its fields, iqm, low, high, mean, std, seeds, diverged; None:
    undefined.

    members: {member, seed, <swept fields>, <metric>: float or None, diverged: bool}. `seeds` counts
    them all, `diverged` those that are marked as such or have a score that is not finite. None is
    no score, and no failure.
    """
    known = ("member", "seed", "diverged", "steps_to_threshold")
    settings: dict[str, tuple[dict[str, Any], list[float | None]]] = {}
    for member in members:
        swept = {k: v for k, v in member.items() if k not in known and "/" not in k}
        score = np.nan if member.get("diverged") else member.get(metric)
        _, scores = settings.setdefault(repr(swept), (swept, []))
        scores.append(score)
    rows = []
    for swept, scores in settings.values():
        there = np.array([score for score in scores if score is not None])
        rows.append(swept | describe(there) | {"seeds": len(scores)})
    return rows


def describe(scores: np.ndarray) -> dict[str, Any]:
    """The statistics of one setting's scores [runs], by name; None: undefined."""
    good = scores[np.isfinite(scores)]
    values = dict.fromkeys(("iqm", "low", "high", "mean", "std"), np.nan)
    if good.size:
        low, high = bootstrap_ci(good)
        values |= {"iqm": iqm(good), "low": low, "high": high, "mean": good.mean()}
    if good.size > 1:
        values["std"] = good.std(ddof=1)
    row = {name: float(x) if np.isfinite(x) else None for name, x in values.items()}
    return row | {"seeds": len(scores), "diverged": len(scores) - len(good)}


def _nan_loses(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), -np.inf, scores)


def _resampled(rng: np.random.Generator, runs: int, reps: int) -> np.ndarray:
    """How often each run is in each resample: int [reps, runs]."""
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=reps)


def _interval(replicates: np.ndarray, level: float, runs: int) -> np.ndarray:
    """The percentiles (low, high) over the first axis; NaN for a single run."""
    if runs < 2:
        return np.full((2, *replicates.shape[1:]), np.nan)
    ends = [50 - 50 * level, 50 + 50 * level]
    return np.percentile(replicates, ends, axis=0)


def _by_task(scores: Any) -> dict[Any, np.ndarray]:
    """{task: scores [runs]}"""
    if isinstance(scores, Mapping):
        return {task: np.asarray(runs, float) for task, runs in scores.items()}
    table = np.asarray(scores, float).reshape(len(scores), -1)
    return dict(enumerate(table.T))
