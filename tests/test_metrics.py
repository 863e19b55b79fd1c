"""Metrics and their counts: how they are combined, and what is left out of a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlzoo
from rlzoo.metrics import Last, Mean, Most, combine, counted

CALLS = [(3.0, 1.0), (-5.0, 0.0), (7.0, 1.0), (2.0, 1.0), (9.0, 0.0)]  # (value, count)


def all_of(kind):
    found = kind(jnp.float32(0), jnp.float32(0))
    for value, count in CALLS:
        pair = (value * count, count) if kind is Mean else kind(value, count)
        found = combine(found, counted(pair))
    return found


@pytest.mark.parametrize(("kind", "wanted"), [(Mean, 4.0), (Last, 2.0), (Most, 7.0)])
def test_what_has_no_count_leaves_what_was_there(kind, wanted):
    found = all_of(kind)
    assert found.count == 3 and found.result() == wanted


def test_the_largest_may_be_negative():
    found = Most(jnp.float32(0), jnp.float32(0))
    for value in (-3.0, -2.0, -8.0):
        found = combine(found, counted(rlzoo.most(value)))
    assert found.result() == -2.0


@pytest.mark.parametrize("kind", [Mean, Last, Most])
def test_total_is_one_combination_after_the_other(kind):
    """Over the axis that a scan stacks."""
    values, counts = (jnp.array(column) for column in zip(*CALLS, strict=True))
    stacked = kind(values * counts if kind is Mean else values, counts)
    given = tuple(stacked) if kind is Mean else stacked
    found = rlzoo.total({"x": given})["x"]
    np.testing.assert_allclose(found, all_of(kind))
    nothing = rlzoo.total({"x": jax.tree.map(jnp.zeros_like, given)})["x"]
    assert nothing.count == 0 and np.isfinite(nothing.value)


def test_when_runs_or_leaves_the_state():
    def learn(state):
        return state + 1, {"loss/x": state, "copies": rlzoo.last(state), "pair": (state, 2.0)}

    @jax.jit
    def step(state, t):
        return rlzoo.when(t % 2 == 1, learn, state)

    state, metrics = step(jnp.float32(5), 0)
    assert state == 5 and all(metric.count == 0 for metric in metrics.values())
    state, metrics = step(state, 1)
    assert state == 6
    assert metrics["loss/x"] == Mean(5, 1) and metrics["pair"] == Mean(5, 2)
    assert metrics["copies"] == Last(5, 1)


def test_when_is_a_branch_over_members_where_it_depends_on_t_alone():
    def step(state, t):
        return rlzoo.when(t > 3, lambda x: (jnp.sin(x), {}), state)[0]

    over_members = jax.make_jaxpr(jax.vmap(step, (0, None)))(jnp.zeros(4), jnp.int32(0))
    assert "cond[" in str(over_members)
    clocks = jax.make_jaxpr(jax.vmap(step))(jnp.zeros(4), jnp.zeros(4, jnp.int32))
    assert "cond[" not in str(clocks), "the bug: a clock of its own for each member"
