"""What a study says: robust statistics, learning curves, and the report over many runs.

Nothing here imports jax. matplotlib loads when first drawn with, and without pyplot, so that a
notebook keeps its backend.
"""

from rlzoo.report.curves import draw_curves, plot_curves, write_curve
from rlzoo.report.pages import report
from rlzoo.report.reading import Group, Run, group, read_metrics, read_run
from rlzoo.report.statistics import (
    bootstrap_ci,
    iqm,
    iqm_curve,
    probability_of_improvement,
    summarize,
)

__all__ = [
    "Group",
    "Run",
    "bootstrap_ci",
    "draw_curves",
    "group",
    "iqm",
    "iqm_curve",
    "plot_curves",
    "probability_of_improvement",
    "read_metrics",
    "read_run",
    "report",
    "summarize",
    "write_curve",
]
