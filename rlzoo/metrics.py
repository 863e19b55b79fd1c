"""Metrics that a call of `step` reports, and what may be left out of a call.

    return state, {
        "loss/td": loss,                       a mean over the calls of a chunk
        "train/return": (total, count),        a mean over `count` things
        "copies": rlzoo.last(state.copies),    the newest
        "target_max": rlzoo.most(largest),     the largest
    }

A count of 0 says that nothing happened: it leaves what was there before, and where nothing happened
in a whole chunk, the cell of metrics.csv is empty.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

State = TypeVar("State")


class Mean(NamedTuple):
    """What a scalar, or a (sum, count) pair, becomes."""

    value: Any
    """the sum"""
    count: Any

    def result(self) -> Any:
        """What a row shows; without meaning where the count is 0."""
        return self.value / np.maximum(self.count, 1e-30)


class Last(NamedTuple):
    value: Any
    count: Any

    def result(self) -> Any:
        return self.value


class Most(NamedTuple):
    value: Any
    count: Any

    def result(self) -> Any:
        return self.value


Metric = Mean | Last | Most


def last(value: Any, count: Any = 1) -> Last:
    """A metric of which the newest value counts, where a mean makes no sense: a total so far."""
    return Last(value, count)


def most(value: Any, count: Any = 1) -> Most:
    """A metric of which the largest value counts."""
    return Most(value, count)


def counted(metric: Any) -> Metric:
    """Any metric, in float32, with its count."""
    if isinstance(metric, Last | Most):
        found: Metric = metric
    elif isinstance(metric, tuple):
        found = Mean(*metric)
    else:
        found = Mean(metric, 1)
    value, count = (jnp.asarray(x, jnp.float32) for x in found)
    return type(found)(value, count)


def combine(old: Metric, new: Metric) -> Metric:
    """Two metrics of one kind, one after the other."""
    count = old.count + new.count
    if isinstance(old, Mean):
        return Mean(old.value + new.value, count)
    happened = new.count > 0
    if isinstance(old, Last):
        return Last(jnp.where(happened, new.value, old.value), count)
    larger = jnp.where(old.count > 0, jnp.maximum(old.value, new.value), new.value)
    return Most(jnp.where(happened, larger, old.value), count)


def total(metrics: dict[str, Any]) -> dict[str, Metric]:
    """Metrics with a leading axis, as `lax.scan` stacks them, combined along it."""
    return {name: _along_axis(jax.vmap(counted)(metric)) for name, metric in metrics.items()}


def _along_axis(metric: Metric) -> Metric:
    value, count = metric.value, metric.count.sum()
    happened = metric.count > 0
    if isinstance(metric, Mean):
        return Mean(value.sum(), count)
    if isinstance(metric, Last):
        newest = jnp.where(happened, jnp.arange(len(value)), 0).max()
        return Last(value[newest], count)
    largest = jnp.where(happened, value, -jnp.inf).max()
    return Most(jnp.where(count > 0, largest, 0.0), count)


def when(condition: Any, f: Callable[[State], tuple], state: State) -> tuple[State, dict]:
    """`f(state) -> (state, metrics)` where `condition` holds; otherwise the state as it is, and
    metrics with a count of 0.

    Let `condition` depend on `t` alone: under `vmap` over members a condition on the state would
    compute both branches.
    """

    def run(state: State) -> tuple:
        state, metrics = f(state)
        return state, {name: counted(metric) for name, metric in metrics.items()}

    def skip(state: State) -> tuple:
        metrics = jax.eval_shape(run, state)[1]
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    return jax.lax.cond(condition, run, skip, state)
