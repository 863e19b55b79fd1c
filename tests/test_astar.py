"""A*: its targets, when the network is copied to the target, its warm-up, and what it learns of a small puzzle.
Its search is tested in test_search.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import astar
from together import quick_jit

import rlzoo

BATCH, WARMUP, BLOCK = 64, 8, 20
"""states in a call, calls of warm-up, calls between two chances to copy"""
CONFIG = astar.Config(env="lights-out2", batch_size=BATCH, warmup_steps=WARMUP * BATCH, block_steps=BLOCK * BATCH,
                      scramble=6, first=24, width=24, blocks=1, eval_moves=4, learning_rate=0.01, loss_threshold=0.1)
ENV = rlzoo.make(CONFIG.env)
ALL = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(np.uint8)
"""every state"""


# ---- targets --------------------------------------------------------------------------------------------------


def test_target_is_the_numpy_reference():
    rng = np.random.default_rng(0)
    costs, value = np.array([1, 2, 3], np.float32), rng.normal(1, 2, (50, 3)).astype(np.float32)
    next_goal, goal = rng.random((50, 3)) < 0.2, rng.random(50) < 0.2
    expected = [0 if solved else min(c + (0 if end else max(0, v)) for c, v, end in zip(costs, row, ends, strict=True))
                for row, ends, solved in zip(value, next_goal, goal, strict=True)]
    np.testing.assert_allclose(astar.value_target(costs, value, next_goal, goal), expected, rtol=1e-6)
    assert (value < 0).any() and next_goal[~goal].any() and goal.any()


# ---- calls ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train() -> Any:
    """Two members: (config, states, first call, last call) -> their states, metrics of the last call, evaluation."""

    def make(config: Any) -> Any:
        return astar.make(config, ENV)

    def run(config: Any, states: Any, start: Any, stop: Any) -> tuple:
        step = lambda t, states: jax.vmap(lambda s: make(config).step(s, t)[0])(states)
        states = jax.lax.fori_loop(start, stop - 1, step, states)
        states, metrics = jax.vmap(lambda s: make(config).step(s, stop - 1))(states)
        return states, metrics, jax.vmap(make(config).evaluate)(states, jax.random.split(jax.random.key(7), 2))

    compiled = quick_jit(run)
    return lambda states, start, stop, **changed: compiled(
        dataclasses.replace(CONFIG, **{name: float(value) for name, value in changed.items()}), states, start, stop)


@pytest.fixture(scope="module")
def begin() -> Any:
    return quick_jit(jax.vmap(lambda seed: astar.make(CONFIG, ENV).init(jax.random.key(seed))))(jnp.arange(2))


def saying(variables: Any, q: Any) -> Any:
    """Networks whose q is the same in all states."""
    params = variables["params"]
    head = {"kernel": jnp.zeros_like(params["Dense_4"]["kernel"]),
            "bias": jnp.broadcast_to(jnp.asarray(q, jnp.float32), params["Dense_4"]["bias"].shape)}
    return variables | {"params": params | {"Dense_4": head}}


def test_what_is_regressed_on(train, begin):
    """A network that says 1 everywhere, before and after the first copy. One state in a few is solved, whose value is 0."""
    says = lambda target, copies: begin.replace(
        variables=saying(begin.variables, 1), target=saying(begin.target, target), copies=jnp.full(2, copies, jnp.int32))
    loss = lambda state: np.asarray(train(state, WARMUP, WARMUP + 1)[1]["loss/value"])
    solved = loss(says(5, copies=0))  # the target is not used before it was copied: (1 - 1)^2, and (1 - 0)^2 at a goal
    assert ((solved > 0) & (solved < 0.5)).all()
    np.testing.assert_array_equal(loss(says(-3, copies=1)), solved)  # nor below 0
    far = (loss(says(5, copies=1)) - solved) / 25  # (1 - (1 + 5))^2, but nothing where a move leads to the goal
    assert ((far > 0.1) & (far < 1 - solved)).all()


def test_warm_up_is_on_the_moves_of_the_scramble(train, begin):
    """They are 0 to 6, all equally likely, and 0 at the goal."""
    loss = np.asarray(train(begin.replace(variables=saying(begin.variables, 0)), 0, 1)[1]["loss/value"])
    assert (abs(loss - np.mean(np.arange(7) ** 2)) < 5).all() and (loss != np.round(loss)).any()


def test_the_network_is_copied_after_a_block_if_the_loss_is_small(train, begin):
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    for threshold, copies in ((0, 0), (1e9, 1)):
        before, _, _ = train(begin, WARMUP, BLOCK - 1, loss_threshold=threshold)
        assert (before.copies == 0).all() and same(before.target, begin.target)
        after, metrics, _ = train(before, BLOCK - 1, BLOCK, loss_threshold=threshold)
        assert (after.copies == copies).all() and (metrics["updates"] == copies).all()
        assert same(after.target, after.variables if copies else begin.target)
        assert (train(after, BLOCK, 3 * BLOCK, loss_threshold=threshold)[0].copies == 3 * copies).all()


def test_the_step_size_halves(train, begin):
    bias = lambda state: np.asarray(state.variables["params"]["Dense_4"]["bias"])
    moved, half = (bias(train(begin, WARMUP, WARMUP + 1, halving_steps=steps)[0]) - bias(begin)
                   for steps in (1e12, BATCH * WARMUP))
    np.testing.assert_allclose(half, moved / 2, rtol=1e-3, atol=1e-6)


def test_it_learns_the_exact_values_and_solves(train, begin):
    state, _, found = train(begin, 0, WARMUP)
    first = np.asarray(found["eval/solved"])
    state, _, _ = train(state, WARMUP, 400)
    state, metrics, found = train(state, 400, 800, learning_rate=0.001)
    puzzle = ENV.inner
    exact = np.asarray(puzzle.distance(ALL))
    net = astar.network(CONFIG)
    value = np.stack([net.apply(jax.tree.map(lambda x, i=i: x[i], state.variables), puzzle.inputs(ALL)) for i in range(2)])
    assert (first < 1).any() and (found["eval/solved"] == 1).all() and (metrics["updates"] > 4).all()
    assert np.abs(value - exact).max() < 0.3 and (value[0] != value[1]).any()
    act = astar.make(CONFIG, ENV).act
    chosen = act(astar.Policy(jax.tree.map(lambda x: x[0], state.variables)), puzzle.inputs(ALL), None)
    after = np.asarray(puzzle.distance(puzzle.apply(ALL, chosen)))
    np.testing.assert_array_equal(after[1:], exact[1:] - 1)


# ---- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env, changed, message", [
    ("CartPole-v1", {}, "CartPole-v1 is not a puzzle; .* for example .*tile8"),
    ("sokoban", dict(warmup_steps=10), "warmup_steps is 10, but moves of sokoban cannot be undone"),
    ("tile8", dict(batch_size=1), "batch_size is 1; .* at least 2"),
])
def test_refusals(env, changed, message):
    with pytest.raises(rlzoo.Refused, match=message):
        astar.make(astar.Config(env=env, **changed), rlzoo.make(env))
