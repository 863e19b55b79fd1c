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


def summarize(
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
        swept | describe(np.array([s for s in scores if s is not None])) | {"seeds": len(scores)}
        for swept, scores in settings.values()
    ]


def describe(scores: np.ndarray) -> dict[str, Any]:
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
