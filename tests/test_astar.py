"""A*: its targets, when the network is copied to the target, its warm-up, and what it learns of a
small puzzle. Its search is tested in test_search.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import astar
from small_puzzle import (
    ALL,
    ENV,
    FIELDS,
    WARMUP,
    beginnings,
    check_copies,
    check_halving,
    saying,
    trainer,
)

import rlzoo
from rlzoo.algorithm import clean

CONFIG = astar.Config(**FIELDS)


# ---- targets -------------------------------------------------------------------------------------


def test_target_is_the_numpy_reference():
    rng = np.random.default_rng(0)
    costs, value = np.array([1, 2, 3], np.float32), rng.normal(1, 2, (50, 3)).astype(np.float32)
    next_goal, goal = rng.random((50, 3)) < 0.2, rng.random(50) < 0.2
    expected = [
        0
        if solved
        else min(c + (0 if end else max(0, v)) for c, v, end in zip(costs, row, ends, strict=True))
        for row, ends, solved in zip(value, next_goal, goal, strict=True)
    ]
    np.testing.assert_allclose(
        astar.value_target(costs, value, next_goal, goal), expected, rtol=1e-6
    )
    assert (value < 0).any() and next_goal[~goal].any() and goal.any()


# ---- calls ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train() -> Any:
    return trainer(astar)


@pytest.fixture(scope="module")
def begin() -> Any:
    return beginnings(astar)


def test_what_is_regressed_on(train, begin):
    """A network that says 1 everywhere, before and after the first copy. One state in a few is
    solved, whose value is 0."""
    says = lambda target, copies: begin.replace(
        variables=saying(begin.variables, 1),
        target_params=saying(begin.target_params, target),
        copies=jnp.full(2, copies, jnp.int32),
    )
    loss = lambda state: np.asarray(train(state, WARMUP, WARMUP + 1)[1]["loss/value"])
    solved = loss(
        says(5, copies=0)
    )  # the target is not used before it was copied: (1 - 1)^2, and (1 - 0)^2 at a goal
    assert ((solved > 0) & (solved < 0.5)).all()
    np.testing.assert_array_equal(loss(says(-3, copies=1)), solved)  # nor below 0
    far = (
        loss(says(5, copies=1)) - solved
    ) / 25  # (1 - (1 + 5))^2, but nothing where a move leads to the goal
    assert ((far > 0.1) & (far < 1 - solved)).all()


def test_warm_up_is_on_the_moves_of_the_scramble(train, begin):
    """They are 0 to 6, all equally likely, and 0 at the goal."""
    loss = np.asarray(
        train(begin.replace(variables=saying(begin.variables, 0)), 0, 1)[1]["loss/value"]
    )
    assert (abs(loss - np.mean(np.arange(7) ** 2)) < 5).all() and (loss != np.round(loss)).any()


def test_the_network_is_copied_after_a_block_if_the_loss_is_small(train, begin):
    check_copies(train, begin)


def test_the_step_size_halves(train, begin):
    check_halving(train, begin)


def test_it_learns_the_exact_values_and_solves(train, begin):
    state, _, found = train(begin, 0, WARMUP)
    first = np.asarray(found["eval/solved"])
    state, _, _ = train(state, WARMUP, 400)
    state, metrics, found = train(state, 400, 800, learning_rate=0.001)
    puzzle = ENV.inner
    exact = np.asarray(puzzle.distance(ALL))
    net = astar.network(CONFIG)
    value = np.stack(
        [
            net.apply(jax.tree.map(lambda x, i=i: x[i], state.variables), puzzle.inputs(ALL))[:, 0]
            for i in range(2)
        ]
    )
    assert (
        (first < 1).any()
        and (found["eval/solved"] == 1).all()
        and (metrics["train/copies"].value > 4).all()
    )
    assert np.abs(value - exact).max() < 0.3 and (value[0] != value[1]).any()
    act = astar.make(CONFIG, ENV).act
    chosen = act(
        astar.Policy(jax.tree.map(lambda x: x[0], state.variables)), puzzle.inputs(ALL), None
    )
    after = np.asarray(puzzle.distance(puzzle.apply(ALL, chosen)))
    np.testing.assert_array_equal(after[1:], exact[1:] - 1)


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env, changed, message",
    [
        ("CartPole-v1", {}, "CartPole-v1 is not a puzzle.* for example.*tile8"),
        (
            "sokoban",
            dict(warmup_steps=10),
            "warmup_steps is 10, but moves of sokoban cannot be undone",
        ),
        ("tile8", dict(batch_size=1), "batch_size is 1; it must be at least 2"),
    ],
)
def test_refusals(env, changed, message):
    with pytest.raises(rlzoo.Refused, match=message):
        astar.make(clean(astar.Config(env=env, **changed)), rlzoo.make(env))
