"""Q*: its targets, when the network is copied to the target, its warm-up, and what it learns of a
small puzzle. Its search is tested in test_search.py."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import qstar
from rlzoo.envs import Tiles
from rlzoo.envs.puzzle import permutation_rank
from small_puzzle import (
    ALL,
    BATCH,
    ENV,
    FIELDS,
    WARMUP,
    beginnings,
    check_copies,
    check_halving,
    saying,
    trainer,
)
from together import quick_jit

import rlzoo
from rlzoo.algorithm import clean

CONFIG = qstar.Config(**FIELDS)


# ---- targets -------------------------------------------------------------------------------------


def test_target_is_the_numpy_reference():
    rng = np.random.default_rng(0)
    cost, goal = rng.integers(1, 4, 50).astype(np.float32), rng.random(50) < 0.3
    q = rng.normal(1, 2, (50, 6)).astype(np.float32)
    expected = [
        c + (0 if end else max(0, min(row))) for c, row, end in zip(cost, q, goal, strict=True)
    ]
    np.testing.assert_allclose(qstar.q_target(cost, q, goal), expected, rtol=1e-6)
    assert (q[~goal].min(1) < 0).any() and (
        q[goal].min(1) > 0
    ).any()  # clipping and the goal both matter


def test_actions_are_drawn_by_their_q():
    q = jnp.array([1.0, 1.2, 0.8, 3.0])
    drawn = qstar.sample_action(jax.random.key(0), jnp.tile(q, (20_000, 1)), 0.5)
    expected = np.exp(-q / 0.5) / np.exp(-q / 0.5).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, expected, atol=0.02)


# ---- calls ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train() -> Any:
    return trainer(qstar)


@pytest.fixture(scope="module")
def begin() -> Any:
    return beginnings(qstar)


def test_what_is_regressed_on(train, begin):
    """A network that says 1 everywhere, before and after the first copy."""
    says = lambda target, copies: begin.replace(
        variables=saying(begin.variables, 1),
        target_params=saying(begin.target_params, target),
        copies=jnp.full(2, copies, jnp.int32),
    )
    loss = lambda state: np.asarray(train(state, WARMUP, WARMUP + 1)[1]["loss/q"])
    assert (loss(says(5, copies=0)) == 0).all()  # the target is not used before it was copied
    assert (loss(says(-3, copies=1)) == 0).all()  # nor below 0
    share = (
        loss(says(5, copies=1)) / 25
    )  # (1 - (1 + 5))^2, but nothing where the action leads to the goal
    assert ((share > 0.5) & (share < 1)).all()


def test_one_action_of_each_state_learns(train, begin):
    state = begin.replace(variables=saying(begin.variables, [9, 9, 1.5, 9]))
    after, _, _ = train(state, WARMUP, WARMUP + 1, temperature=0.01)
    change = np.asarray(
        after.variables["params"]["Dense_4"]["bias"] - state.variables["params"]["Dense_4"]["bias"]
    )
    np.testing.assert_allclose(change, [[0, 0, -0.01, 0]] * 2, atol=1e-5)


def test_it_follows_its_own_actions(train, begin):
    """With a choice that is all but certain: a call learns where the last one's actions led, except
    at goals."""
    lit = np.tile(
        np.array([1, 1, 1, 0], np.uint8), (2, BATCH, 1)
    )  # what a press of the first light switches
    network = saying(begin.variables, [1, 9, 9, 9])
    sure = begin.replace(variables=network, target_params=network, walk=lit)
    walk = lambda follow, state=sure: np.asarray(
        train(state, WARMUP, WARMUP + 1, follow=follow, temperature=0.01, learning_rate=0)[0].walk
    )
    assert (walk(1e9) == 0).all()  # solved
    assert (
        walk(1e9, sure.replace(walk=0 * lit)) == walk(0)
    ).all()  # a goal is left for a scramble, as without `follow`
    half = (walk(1) == 0).all(-1)
    assert (
        (half.mean(1) > 0.4).all()
        and (half.mean(1) < 0.7).all()
        and len(np.unique(walk(0)[0], axis=0)) > 4
    )


def test_the_network_is_copied_after_a_block_if_the_loss_is_small(train, begin):
    check_copies(train, begin)


def test_the_step_size_halves(train, begin):
    check_halving(train, begin)


def test_it_learns_the_exact_values_and_solves(train, begin):
    state, _, found = train(begin, 0, WARMUP)
    first = np.asarray(found["eval/solved"])
    state, _, _ = train(state, WARMUP, 600, temperature=3)
    state, metrics, found = train(state, 600, 1200, temperature=3, learning_rate=0.001)
    puzzle = ENV.inner
    exact = 1 + np.asarray(puzzle.distance(puzzle.apply_all(ALL)))
    net = qstar.network(CONFIG, puzzle)
    q = np.stack(
        [
            net.apply(jax.tree.map(lambda x, i=i: x[i], state.variables), puzzle.inputs(ALL))
            for i in range(2)
        ]
    )
    assert (
        (first < 1).any()
        and (found["eval/solved"] == 1).all()
        and (metrics["train/copies"].value > 4).all()
    )
    assert np.abs(q - exact)[:, 1:].max() < 0.5 and np.abs(q - exact)[:, 1:].mean() < 0.15
    assert (q[0] != q[1]).any()
    act = qstar.make(CONFIG, ENV).act
    chosen = np.asarray(
        act(qstar.Policy(jax.tree.map(lambda x: x[0], state.variables)), puzzle.inputs(ALL), None)
    )
    assert (exact[np.arange(16), chosen] == exact.min(1))[1:].all()


# ---- warm-up -------------------------------------------------------------------------------------

TILE8 = Tiles(3)


class Table(nn.Module):
    """q-values of all states of the 8-puzzle: Adam's first step moves each that was regressed on
    towards its targets."""

    @nn.compact
    def __call__(self, x, train=False):
        return self.param("q", nn.initializers.zeros, (362_880, 4))[
            permutation_rank(TILE8.states_of(x))
        ]


@pytest.fixture(scope="module")
def warmed_up() -> tuple:
    """Distances of states, their exact q, and how far a call of warm-up moves each q: from the
    exact ones, and from 0.

    Scrambles of one move, or of none where it is not possible: after longer ones, targets that are
    too small would hide among larger ones for the same q.
    """
    config = qstar.Config(
        env="tile8", batch_size=256, warmup_steps=256, scramble=1, learning_rate=1.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qstar, "network", lambda config, puzzle: Table())
        alg = qstar.make(config, rlzoo.make("tile8"))

        def run(states, start):
            q = 1.0 + TILE8.distance(TILE8.apply_all(states))
            rank = permutation_rank(states)
            tables = [jnp.zeros((362_880, 4)).at[rank].set(values) for values in (q, 0 * q)]
            begin = [
                start.replace(
                    variables={"params": {"q": table}}, target_params={"params": {"q": table}}
                )
                for table in tables
            ]
            ends = [alg.step(state, jnp.int32(0))[0] for state in begin]
            return q, *[
                end.variables["params"]["q"][rank] - table[rank]
                for end, table in zip(ends, tables, strict=True)
            ]

        states = np.concatenate(
            [TILE8.goal[None], np.unique(TILE8.apply_all(TILE8.goal[None])[0], axis=0)]
        )
        states = np.unique(states, axis=0)
        start = jax.eval_shape(alg.init, jax.random.key(0))
        start = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), start.replace(key=None)
        ).replace(key=jax.random.key(3))
        return tuple(map(np.asarray, (TILE8.distance(states), *quick_jit(run)(states, start))))


def test_warm_up_is_an_upper_bound_and_exact_for_the_last_move(warmed_up):
    distance, exact, from_exact, from_zero = warmed_up
    assert (
        sorted(distance) == [0, 1, 1] and (from_zero > 0).sum() >= 10
    )  # others lead from the goal to the goal
    assert (from_exact >= -1e-3).all()  # no target is below the exact value
    last_move = (distance[:, None] == 1) & (exact == 1)
    assert (
        last_move.sum() == 2
        and (from_zero[last_move] > 0).all()
        and (np.abs(from_exact[last_move]) < 1e-3).all()
    )


class Exact(nn.Module):
    """The exact q-values of a puzzle, and a constant to learn."""

    puzzle: Any

    @nn.compact
    def __call__(self, x, train=False):
        children = self.puzzle.apply_all(self.puzzle.states_of(x))
        return 1.0 + self.puzzle.distance(children) + self.param("more", nn.initializers.zeros, ())


@pytest.mark.parametrize("side", [3, 4])
def test_warm_up_where_moves_commute(side, monkeypatch):
    """3 by 3 a set of presses is the only one, and exact; 4 by 4 there are 16, and any of them is
    an upper bound."""
    monkeypatch.setattr(qstar, "network", lambda config, puzzle: Exact(puzzle))
    config = qstar.Config(
        env=f"lights-out{side}", batch_size=256, warmup_steps=10**6, walk_beta=1.0
    )
    alg = qstar.make(config, rlzoo.make(config.env))
    state = alg.init(jax.random.key(0))
    state, loss = quick_jit(
        lambda state: jax.lax.scan(
            lambda s, t: (lambda s, m: (s, m["loss/q"]))(*alg.step(s, t)), state, jnp.arange(30)
        )
    )(state)
    assert len(np.unique(state.walk, axis=0)) > 100
    more = state.variables["params"]["more"]
    assert ((loss == 0).all() and more == 0) if side == 3 else (loss[5:] > 1).all() and more > 0


@pytest.mark.slow
def test_cold_walks_rather_have_few_lights():
    """Each light is on by itself, with the chance that Metropolis promises."""
    env = rlzoo.make("lights-out3")
    alg = lambda walk_beta: qstar.make(
        qstar.Config(
            env=env.id,
            batch_size=512,
            warmup_steps=10**6,
            walk_beta=walk_beta,
            hidden=(4,),
            periodic=True,
        ),
        env,
    )

    def walks(walk_beta):
        step = lambda state, t: (lambda state: (state, state.walk))(
            alg(walk_beta).step(state, t)[0]
        )
        return jax.lax.scan(step, alg(walk_beta).init(jax.random.key(0)), jnp.arange(300))[1][
            100::20
        ]

    for walk_beta, found in zip(
        (0.0, 1.0), np.asarray(quick_jit(jax.vmap(walks))(jnp.array([0.0, 1.0]))), strict=True
    ):
        on = 1 / (1 + np.exp(walk_beta))
        expected = [math.comb(9, k) * on**k * (1 - on) ** (9 - k) for k in range(10)]
        share = np.bincount(found.sum(-1).ravel(), minlength=10) / found[..., 0].size
        np.testing.assert_allclose(share, expected, atol=0.03)
        np.testing.assert_allclose(found.mean((0, 1)), on, atol=0.03)


@pytest.mark.slow
def test_cosines_learn_what_few_lights_say_of_all_states():
    """After warm-up with few lights, the smallest q is right in all states but a few, of any number
    of lights."""
    env = rlzoo.make("lights-out3")
    config = qstar.Config(
        env=env.id,
        batch_size=256,
        warmup_steps=10**6,
        hidden=(64,),
        periodic=True,
        learning_rate=0.01,
        eval_moves=9,
    )
    alg = qstar.make(config, env)
    run = lambda state: jax.lax.scan(
        lambda state, t: (alg.step(state, t)[0], None), state, jnp.arange(1500)
    )[0]
    state = quick_jit(run)(alg.init(jax.random.key(0)))
    states = (np.arange(512)[:, None] >> np.arange(9) & 1).astype(np.uint8)
    distance = env.inner.distance
    chosen = np.asarray(alg.act(qstar.Policy(state.variables), env.inner.inputs(states), None))
    left = distance(env.inner.apply(states, chosen))
    right = np.asarray(left == distance(states) - 1)[1:]
    assert right.mean() > 0.98


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
        qstar.make(clean(qstar.Config(env=env, **changed)), rlzoo.make(env))
