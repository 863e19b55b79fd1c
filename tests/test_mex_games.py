"""MEX in games: values against linear programs, optimism against grids, and what the exploiter
does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import mex_games as mex
from rlzoo.envs.markov_game import Params
from scipy.optimize import linprog, minimize
from together import quick_jit

import rlzoo

PARTS = 20
solve = quick_jit(mex.solve, static_argnums=2)


def linear_program(payoff):
    """The Nash value of a matrix game, and the max player's strategy."""
    m, n = payoff.shape
    found = linprog(
        [*[0] * m, -1],
        A_ub=np.c_[-payoff.T, np.ones(n)],
        b_ub=np.zeros(n),
        A_eq=[[*[1] * m, 0]],
        b_eq=[1],
        bounds=[*[(0, 1)] * m, (None, None)],
    )
    return -found.fun, found.x[:m]


def mean_estimate(rng, horizon=1, num_states=1, choices=3, unseen=0.2):
    """Estimates of a random game, of which a part was never seen."""
    shape = (horizon, num_states, choices, choices)
    visits = rng.integers(1, 9, shape) * (rng.random(shape) > unseen)
    count = visits[..., None] * rng.dirichlet(np.ones(num_states), shape)
    data = mex.Data(count, rng.uniform(-1, 1, shape) * visits)
    return mex.means(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), data))


# ---- strategies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [2, 3])
def test_nash_value_is_that_of_the_linear_program(choices):
    rng, coarse = np.random.default_rng(choices), []
    for _ in range(20):
        payoff = rng.uniform(-1, 1, (choices, choices)).astype(np.float32)
        value, mu, nu = map(np.asarray, solve(payoff, np.zeros_like(payoff), PARTS))
        expected, _ = linear_program(payoff)
        assert value == pytest.approx(expected, abs=2e-3)
        assert (mu @ payoff).min() == pytest.approx(value, abs=1e-3)
        assert mu.sum() == pytest.approx(1, abs=1e-5) and nu.sum() == pytest.approx(1, abs=1e-5)
        coarse.append(expected - (mex.simplex(choices, PARTS) @ payoff).min(-1).max())
    assert max(coarse) > 0.01, "without zooms it would be off"


@pytest.mark.slow
def test_answer_is_the_minimum():
    rng, answer = np.random.default_rng(0), quick_jit(mex.answer)
    for _ in range(20):
        linear = rng.uniform(-1, 1, 3).astype(np.float32)
        quadratic = rng.choice([0.0, 1.0], 3) * rng.uniform(0, 3, 3)
        quadratic = quadratic.astype(np.float32)
        nu, found = map(np.asarray, answer(linear, quadratic))
        points = mex.simplex(3, 200)
        worth = points @ linear + points**2 @ quadratic
        assert nu.min() >= 0 and nu.sum() == pytest.approx(1, abs=1e-5)
        assert worth.min() - 2e-3 < found < worth.min() + 2e-4


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_optimism_is_the_maximum_over_games(eta):
    """Nash value of a game M less eta * sum of n (M - mean)^2, over M, by an optimizer."""
    rng = np.random.default_rng(5)
    mean = rng.uniform(-1, 1, (2, 2))
    visits = rng.integers(1, 6, (2, 2))

    def nash(payoff):
        """Of a 2 x 2 game."""
        low, high = payoff.min(1).max(), payoff.max(0).min()
        if low >= high:  # a saddle point
            return low
        (a, b), (c, d) = payoff
        return (a * d - b * c) / (a + d - b - c)

    def negative(flat):
        payoff = flat.reshape(2, 2)
        return -nash(payoff) + eta * (visits * (payoff - mean) ** 2).sum()

    starts = [mean.ravel() + rng.normal(0, 1 / eta, 4) / 2 for _ in range(60)]
    best = max(-minimize(negative, start, method="Nelder-Mead", tol=1e-9).fun for start in starts)
    value, _, _ = solve(
        jnp.asarray(mean, jnp.float32), jnp.asarray(0.25 / (eta * visits), jnp.float32), PARTS
    )
    assert float(value) == pytest.approx(best, abs=2e-3)
    assert float(value) > linear_program(mean)[0] + 0.01, "optimism is worth something"


def test_exploiter_is_the_best_column():
    """Column by column, the payoffs that earn the least plus eta * loss, by an optimizer."""
    rng = np.random.default_rng(6)
    eta = 0.4
    run = quick_jit(mex.exploiter)
    chosen = set()
    for _ in range(10):
        est = mean_estimate(rng)
        mu = rng.dirichlet(np.ones(3))
        nu = np.asarray(run(est, eta, jnp.asarray(mu, jnp.float32)[None, None]))[0, 0]
        mean, visits = np.asarray(est.reward[0, 0]), np.asarray(est.visits[0, 0])
        columns = []
        for b in range(3):
            grid = np.linspace(-1, 1, 2001)
            worth = mu[:, None] * grid + eta * visits[:, b, None] * (grid - mean[:, b, None]) ** 2
            columns.append(worth.min(1).sum())
        assert nu.argmax() == np.argmin(columns) and nu.sum() == 1
        chosen.add(int(nu.argmax()) == int((mu @ mean).argmin()))
    assert chosen == {True, False}, "it is not always the best answer to the means"


def test_values_of_markov_games():
    """Backwards from the last step, each state a linear program."""
    env = rlzoo.make("markov-game")
    game = env.inner.draw(jax.random.key(3), env.params)
    payoff, transition = np.asarray(game.payoff), np.asarray(game.transition)
    assert np.allclose(transition.sum(-1), 1, atol=1e-5) and abs(payoff).max() <= 1
    value, first = np.zeros(3), np.zeros(payoff.shape[:3])
    for h in reversed(range(3)):
        solved = [linear_program(payoff[h, s] + transition[h, s] @ value) for s in range(3)]
        value, first[h] = np.array([v for v, _ in solved]), np.array([mu for _, mu in solved])
    nash = quick_jit(lambda g: mex.nash_value(g, PARTS))(game)
    assert float(nash) == pytest.approx(value[0], abs=5e-3)
    best = quick_jit(mex.best_answer_value)
    assert float(best(jnp.asarray(first, jnp.float32), game)) == pytest.approx(value[0], abs=1e-3)
    assert float(best(jnp.full_like(first, 0.5), game)) < value[0] - 1e-3


def test_rock_paper_scissors():
    payoff = jnp.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    value, mu, _ = solve(payoff, jnp.zeros((3, 3)), PARTS)
    assert abs(float(value)) < 1e-3 and np.allclose(mu, 1 / 3, atol=2e-3)
    game = Params(payoff=payoff[None, None], transition=jnp.ones((1, 1, 3, 3, 1)))
    always_rock = jnp.array([[[1.0, 0, 0]]])
    assert float(mex.best_answer_value(always_rock, game)) == -1.0


# ---- learning ------------------------------------------------------------------------------------


def played(seeds, **fields):
    """States after all episodes [seeds], and the regret of each episode [episodes, seeds]."""
    config = mex.Config(**fields)
    alg = mex.make(config, rlzoo.make(config.env))

    def run(seed):
        start = alg.init(jax.random.key(seed))
        calls = jnp.arange(config.total_steps)
        return jax.lax.scan(lambda s, t: alg.step(s, t), start, calls)

    states, metrics = jax.jit(jax.vmap(run, out_axes=(0, 1)))(jnp.arange(seeds))
    return jax.device_get(states), np.asarray(metrics["train/regret"])


@pytest.mark.slow
def test_learns_matrix_games():
    """Every seed has a game of its own. MEX ends near an equilibrium in nearly all of them; Nash
    of the means stays away from it in some."""
    fields = {"env": "matrix-game2", "total_steps": 400}
    states, regret = played(12, eta=0.3, **fields)
    assert np.unique(states.value).size == 12
    assert np.allclose(states.regret, regret.sum(0), rtol=1e-4)
    assert (states.data.count.sum((1, 2, 3, 4, 5)) == 400).all()
    assert regret.min() > -5e-3, "no strategy beats the value"
    late = regret[-50:].mean(0)
    assert (late < 0.05).mean() > 0.8 and late.mean() < regret[:20].mean() / 4
    _, means = played(12, method="nash", **fields)
    assert (means[-50:].mean(0) > 0.05).sum() >= (late > 0.05).sum()


@pytest.mark.slow
def test_an_episode_is_stored():
    env = rlzoo.make("markov-game")
    alg = mex.make(mex.Config(), env)
    state = alg.init(jax.random.key(0))
    after, metrics = quick_jit(alg.step)(state, jnp.int32(0))
    met = np.argwhere(np.asarray(after.data.count))
    assert len(met) == 3 and (met[:, 0] == [0, 1, 2]).all() and met[0, 1] == 0
    assert (met[1:, 1] == met[:-1, 4]).all(), "the next state is the one that was stored"
    assert after.data.reward.sum() == pytest.approx(float(metrics["train/return"]), abs=1e-5)
    action, memory = alg.act(alg.policy(after), jnp.int32(0), jnp.eye(3)[0], 0.0, jax.random.key(1))
    assert 0 <= action < 4 and memory == 1


# ---- what is refused -----------------------------------------------------------------------------


def test_refusals():
    game = rlzoo.make("matrix-game3")
    with pytest.raises(rlzoo.Refused, match="for example, matrix-game3 or markov-game"):
        mex.make(mex.Config(), rlzoo.make("deep-sea8"))
    for eta in (1e-40, 1e39):
        with pytest.raises(rlzoo.Refused, match="eta is .* leaves float32"):
            mex.make(dataclasses.replace(mex.Config(), eta=eta), game)
    with pytest.raises(rlzoo.Refused, match="a grid of 200 parts over 3 choices"):
        mex.make(mex.Config(grid=200), game)
    with pytest.raises(rlzoo.Refused, match="horizon=0 must be a whole number of at least 1"):
        rlzoo.make("markov-game?horizon=0")
