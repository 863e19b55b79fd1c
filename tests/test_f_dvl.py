"""f-DVL: its losses against NumPy, what they estimate, dual-V on tables, the order of updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from offline import (
    ACTIONS,
    bandit,
    check_update_order,
    endless,
    learn,
    newest,
    some_batch,
    some_rows,
)
from rlzoo.algorithms import f_dvl
from tabular_dual import (
    chi_square,
    chi_square_maximum,
    dual_v,
    fixed_point,
    kl,
    primal_chi_square,
    quantile,
    random_problem,
    soft_maximum,
    support_values,
)
from together import quick_jit

import rlzoo

SMALL = f_dvl.Config(
    env="probe-action-continuous",
    total_steps=1500,
    hidden=(16,),
    batch_size=64,
    learning_rate=0.01,
    tau=0.2,
    discount=0.9,
    normalize_rewards=False,
    anneal_actor=False,
    value_layer_norm=False,
)
DIVERGENCES = ["total_variation", "chi_square", "chi_square_piecewise"]


# ---- conjugates (test 1 of the specification) ----------------------------------------------------

W = np.linspace(0, 60, 240_001)


def xlogx(w):
    return np.where(w > 0, w * np.log(np.maximum(w, 1e-300)), 0.0)


CONJUGATES = {
    "chi square": (lambda w: (w - 1) ** 2, chi_square),
    "kl": (lambda w: xlogx(w) - w + 1, kl),
    "total variation": (
        lambda w: 0.5 * abs(w - 1),
        lambda y: (np.maximum(y, -0.5), np.where(y > -0.5, 1.0, 0.0)),
    ),
}


@pytest.mark.parametrize("name", CONJUGATES)
def test_conjugates_are_legendre_transforms(name):
    f, conjugate = CONJUGATES[name]
    y = np.array([-5, -3, -1, -0.4, 0, 0.3, 0.45])
    numeric = np.array([np.max(each * W - f(W)) for each in y])
    closed, weight = conjugate(y)
    np.testing.assert_allclose(closed, numeric, atol=1e-6)
    slope = (conjugate(y + 1e-6)[0] - conjugate(y - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slope, weight, atol=1e-5)
    assert conjugate(np.zeros(1))[0] == 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_surrogates_are_the_conjugates_above_zero(name):
    y = np.array([0.0, 0.1, 0.3, 0.5])
    exact = {"t": lambda y: y, "c": lambda y: chi_square(y)[0]}[name[0]]
    np.testing.assert_allclose(f_dvl.surrogate(y, name), exact(y), rtol=1e-6)
    np.testing.assert_allclose(f_dvl.surrogate(np.array([-3.9, -1.0]), name), 0.0, atol=1e-6)
    below = float(f_dvl.surrogate(np.array(-6.0), name))
    assert below == (3.0 if name == "chi_square" else 0.0)


# ---- what the losses estimate (test 2) -----------------------------------------------------------

Q = np.array([0.0, 1.0, 2.0, 5.0, 9.0])
CHANCES = np.array([0.3, 0.3, 0.2, 0.15, 0.05])
MINIMA = {  # of section 2.3: (lambda, total variation, chi square, chi square piecewise)
    0.6: (1.0, 2.0, 2.0),
    0.7: (1.0, 3.714, 3.714),
    0.8: (2.0, 4.0, 5.0),
    0.9: (5.0, 4.0, 6.556),
    0.99: (9.0, 4.36, 9.0),
}


def minimum(config, q=Q, grid=None):
    """Where the value loss of one observation is least, on a grid."""
    grid = jnp.linspace(-5, 15, 20_001) if grid is None else grid
    copies = np.repeat(q, np.rint(100 * CHANCES).astype(int)).astype(np.float32)

    def loss(v):
        value = lambda params, obs: jnp.full(len(copies), params)
        return f_dvl.value_loss(v, copies, copies, value, config)[0]

    losses = quick_jit(lambda c: jax.lax.map(loss, grid))(config)
    return float(grid[np.argmin(losses)])


@pytest.mark.parametrize("weight", MINIMA)
@pytest.mark.parametrize("index", range(3))
def test_minima_are_those_of_the_table(weight, index):
    config = f_dvl.Config(divergence=DIVERGENCES[index], dual_lambda=weight)
    found = minimum(config)
    np.testing.assert_allclose(found, MINIMA[weight][index], atol=5e-3)
    if index == 0:
        np.testing.assert_allclose(quantile(Q, CHANCES, 2 - 1 / weight), found, atol=5e-3)
    else:
        exact = chi_square_maximum(Q, CHANCES, weight, piecewise=index == 2)
        np.testing.assert_allclose(exact, found, atol=5e-3)


def test_scale_of_the_rewards():
    """With Q 100 times as large the coded chi square is near the mean, the piecewise one near the
    maximum, total variation where it was."""
    grid = jnp.linspace(0, 1000, 20_001)
    scaled = lambda name: minimum(f_dvl.Config(divergence=name, dual_lambda=0.7), 100 * Q, grid)
    np.testing.assert_allclose(scaled("chi_square") / 100, 1.911, atol=2e-3)
    np.testing.assert_allclose(scaled("chi_square_piecewise") / 100, 8.849, atol=2e-3)
    np.testing.assert_allclose(scaled("total_variation") / 100, 1.0, atol=2e-3)


def test_total_variation_has_no_minimum_for_small_lambda():
    value = lambda params, obs: jnp.full(2, params)
    q = np.array([0.0, 1.0])
    config = f_dvl.Config(divergence="total_variation", dual_lambda=0.45)
    losses = [f_dvl.value_loss(v, q, q, value, config)[0] for v in (-10.0, -100.0, -1000.0)]
    assert losses[0] > losses[1] > losses[2]


# ---- dual-V on tables (tests 3 and 4) ------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    problem = random_problem(rng)
    return problem, rng.dirichlet(np.ones(3) * 2, size=6)


@pytest.mark.parametrize("alpha", [10, 1, 0.1, 0.03, 0.01])
def test_dual_of_chi_square_is_the_primal(table, alpha):
    problem, behavior = table
    dual = dual_v(problem, behavior, alpha, chi_square)
    data = problem.occupancy(behavior)
    primal = (dual.occupancy * problem.reward).sum()
    primal -= alpha * (data * (dual.weight - 1) ** 2).sum()
    np.testing.assert_allclose(dual.value, primal, atol=1e-6)
    flow = problem.flow @ dual.occupancy.ravel() - (1 - problem.gamma) * problem.start
    assert np.abs(flow).max() < 1e-7
    np.testing.assert_allclose(dual.value, primal_chi_square(problem, behavior, alpha), atol=1e-6)


def test_dual_goes_from_behavior_to_optimum(table):
    problem, behavior = table
    own = (problem.occupancy(behavior) * problem.reward).sum()
    best = problem.optimum()
    values = [dual_v(problem, behavior, a, chi_square).value for a in (1000, 1, 0.1, 0.01)]
    assert np.all(np.diff(values) > 0) and own <= values[0] and values[-1] < best
    np.testing.assert_allclose(values[0], own, atol=1e-3)
    assert best - values[-1] < 0.2 * (best - own)
    np.testing.assert_allclose([dual_v(problem, behavior, 1000, kl).value], own, atol=1e-3)


def test_telescoping_holds_for_occupancies_alone(table):
    """(test 5) E_start V = E_d [V - gamma V'] / (1 - gamma) for an occupancy d."""
    problem, behavior = table
    V = np.random.default_rng(1).normal(size=6)
    d = problem.occupancy(behavior)
    gap = lambda d: (d * (V[:, None] - problem.gamma * problem.P @ V)).sum()
    first = (1 - problem.gamma) * problem.start @ V
    np.testing.assert_allclose(gap(d), first, atol=1e-12)
    assert abs(gap(np.full((6, 3), 1 / 18)) - first) > 1e-2


ESTIMATES = {
    "total_variation": lambda w: lambda q, p: quantile(q, p, 2 - 1 / w),
    "chi_square": lambda w: lambda q, p: chi_square_maximum(q, p, w, piecewise=False),
    "chi_square_piecewise": lambda w: lambda q, p: chi_square_maximum(q, p, w, piecewise=True),
    "soft_maximum": lambda w: lambda q, p: soft_maximum(q, p, 1 - w),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_fixed_points_rise_to_the_best_value_in_the_data(table, name):
    problem, behavior = table
    best = support_values(problem)
    points = [fixed_point(problem, behavior, ESTIMATES[name](w)) for w in (0.6, 0.8, 0.99)]
    for point in points:
        assert (point <= best + 1e-6).all()
    assert points[0].sum() < points[1].sum() <= points[2].sum()
    np.testing.assert_allclose(points[2], best, atol=0.2)


def test_coded_chi_square_does_not_when_rewards_are_large(table):
    problem, behavior = table
    large = problem._replace(reward=100 * problem.reward)
    best = support_values(large)
    coded, piecewise = (
        fixed_point(large, behavior, ESTIMATES[name](0.99)) for name in DIVERGENCES[1:]
    )
    assert (best - coded).min() > 10 * (best - piecewise).max() > 0


# ---- losses and updates of the file --------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_loss_is_the_numpy_reference(name):
    batch, rng = some_batch()
    params, q = 3 * rng.normal(size=3).astype(np.float32), rng.normal(size=40).astype(np.float32)
    config = f_dvl.Config(divergence=name, dual_lambda=0.7)
    loss, metrics = quick_jit(lambda c: f_dvl.value_loss(params, batch.obs, q, by_dot, c))(config)
    d = q - batch.obs @ params
    terms = {
        "total_variation": [0.7 * max(x, 0) - 0.3 * x for x in d],
        "chi_square": [0.7 * max(x + x * x / 4, 0) - 0.3 * x for x in d],
        "chi_square_piecewise": [0.7 * (x + x * x / 4) * (x > 0) - 0.3 * x for x in d],
    }
    np.testing.assert_allclose(loss, np.mean(terms.pop(name)), rtol=1e-4)
    assert all(abs(loss - np.mean(other)) > 1e-2 for other in terms.values())
    np.testing.assert_allclose(metrics["train/far_below"], np.mean(d < -4))
    assert np.mean(d < -4) > 0


def by_dot(params, obs):
    return obs @ params


def test_critic_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    params = 20 * rng.normal(size=(2, 5)).astype(np.float32)
    critics = lambda p, obs, action: p @ jnp.concatenate([obs, action], -1).T
    config = f_dvl.Config(huber_delta=20.0)
    loss, _ = f_dvl.critic_loss(params, batch, batch.reward, critics, config)
    error = np.abs(params @ np.concatenate([batch.obs, batch.action], -1).T - batch.reward)
    assert 0.1 < (error > 20).mean() < 0.9
    huber = np.where(error < 20, error**2 / 2, 20 * (error - 10))
    np.testing.assert_allclose(loss, huber.mean(1).sum(), rtol=1e-4)


def test_pairs_that_values_are_fitted_to():
    batch, _ = some_batch()
    config = f_dvl.Config(random_actions=2, action_noise=0.3)
    obs, action = f_dvl.value_pairs(batch, jax.random.key(0), config)
    assert obs.shape == (120, 3) and action.shape == (120, 2)
    np.testing.assert_array_equal(obs, np.tile(batch.obs, (3, 1)))
    noise = np.abs(action[:40] - batch.action)
    assert 0.1 < noise.mean() < 0.3 and noise.max() <= 0.5 + 1e-6
    assert np.abs(action).max() <= 1.0 and 0.5 < action[40:].std() < 0.65


@pytest.mark.slow
def test_update_order():
    """By chi square: the gradient of total variation only knows the signs of Q - V."""
    config = dataclasses.replace(SMALL, batch_size=16, value_layer_norm=True)
    check_update_order(f_dvl, dataclasses.replace(config, divergence="chi_square"), 3)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"value_updates": 3}, {"random_actions": 1}])
def test_options_of_the_values(options):
    """Several updates move V further; random actions pull it to what the critics say of them."""
    data, env = some_rows(), rlzoo.make(SMALL.env)

    def momenta_after(**given):
        config = dataclasses.replace(SMALL, divergence="chi_square", **given)
        alg = f_dvl.make(config, env, data)
        state = quick_jit(alg.step)(quick_jit(alg.init)(jax.random.key(0)), 0)[0]
        return jax.tree.leaves(state.opt_states.value)

    plain, other = momenta_after(), momenta_after(**options)
    assert max(np.abs(a - b).max() for a, b in zip(plain, other, strict=True)) > 1e-4


@pytest.mark.parametrize(
    ("name", "weight"), [("total_variation", 0.8), ("chi_square_piecewise", 0.7)]
)
def test_values_of_a_bandit(name, weight):
    config = dataclasses.replace(SMALL, divergence=name, dual_lambda=weight)
    learned = learn(f_dvl.make, config, bandit())
    p = np.full(len(ACTIONS), 1 / len(ACTIONS))
    exact = {
        "total_variation": quantile(2 * ACTIONS, p, 2 - 1 / weight),
        "chi_square_piecewise": chi_square_maximum(2 * ACTIONS, p, weight, True),
    }[name]
    np.testing.assert_allclose(newest(learned.metrics, "train/v"), exact, atol=0.12)
    action = float(learned.alg.act(learned.alg.policy(learned.state), jnp.ones(1), None)[0])
    factor = np.minimum(np.exp(3 * (2 * ACTIONS - exact)), 100)
    np.testing.assert_allclose(action, (factor * ACTIONS).sum() / factor.sum(), atol=0.07)


def test_truncated_rows_bootstrap():
    config = dataclasses.replace(SMALL, learning_rate=0.03, total_steps=1000)
    whole = newest(learn(f_dvl.make, config, endless()).metrics, "train/v")
    np.testing.assert_allclose(whole, 10.0, rtol=0.1)
    assert newest(learn(f_dvl.make, config, endless(naive=True)).metrics, "train/v") < 5.0


@pytest.mark.slow
def test_a_member_is_itself_alone():
    """(test 9) Of members with other seeds and lambdas, each is what it is by itself."""
    env, data = rlzoo.make(SMALL.env), bandit()

    def run(weight, seed):
        alg = f_dvl.make(dataclasses.replace(SMALL, dual_lambda=weight), env, data)
        states = alg.init(jax.random.key(seed))
        return jax.lax.scan(alg.step, states, jnp.arange(10))[0].params

    weights, seeds = jnp.array([0.6, 0.9]), jnp.array([0, 1])
    both = quick_jit(jax.vmap(run))(weights, seeds)
    for i in range(2):
        alone = quick_jit(run)(weights[i], seeds[i])
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(both), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-4, atol=1e-5)


# ---- bad input -----------------------------------------------------------------------------------


def test_small_lambda_is_refused_for_total_variation():
    env, data = rlzoo.make(SMALL.env), tiny_data.continuous()
    make = lambda **fields: f_dvl.make(dataclasses.replace(SMALL, **fields), env, data)
    for weight in (0.5, 0.3):
        with pytest.raises(rlzoo.Refused, match=r"must be more than 0.5 .* quantiles"):
            make(dual_lambda=weight)
        make(dual_lambda=weight, divergence="chi_square")
    make(dual_lambda=0.51)


def test_no_data_is_refused():
    with pytest.raises(rlzoo.Refused, match="f_dvl learns from a data set, but none was given"):
        f_dvl.make(SMALL, rlzoo.make(SMALL.env))
