"""Tabular MEX: its plans against direct maximization, its regret on deep-sea, its controls."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import mex_tabular as mex
from scipy.optimize import minimize
from together import quick_jit

import rlzoo
from rlzoo import machine

HORIZON, STATES, ACTIONS = 3, 3, 2
SHAPE = (HORIZON, STATES, ACTIONS)
CAP = np.arange(HORIZON, 0.0, -1.0)
START = np.eye(STATES)[0]


def random_data(rng, deterministic, most=6):
    """Data of a random world, of which a fifth was never seen."""
    count = np.zeros((*SHAPE, STATES))
    for at in np.ndindex(SHAPE):
        if rng.random() < 0.2:
            continue
        p = np.eye(STATES)[rng.integers(STATES)]
        p = p if deterministic else rng.dirichlet(np.ones(STATES) / 2)
        count[at] = rng.multinomial(rng.integers(1, most), p)
    return mex.Data(count, rng.uniform(0, 1, SHAPE) * count.sum(-1))


@functools.cache
def planner(method, num_sweeps):
    def plan(data, eta):
        config = mex.Config(method=method, eta=eta, num_sweeps=num_sweeps)
        order = jnp.asarray(np.random.default_rng(0).random(SHAPE))
        return mex.maximize(mex.estimate(data, jnp.asarray(CAP)), START, order, config)[1]

    return quick_jit(plan)


def maximum(data, method="mex", eta=1.0, num_sweeps=0):
    """The objective's maximum, as found in 64 bits."""
    with jax.enable_x64(True):
        return float(planner(method, num_sweeps)(data, eta))


def means(data):
    visits = data.count.sum(-1)
    divisor = np.maximum(visits, 1)
    return visits, data.reward / divisor, data.count / divisor[..., None]


# ---- planning ------------------------------------------------------------------------------------


def objective(q, data, eta):
    """V_1 - eta * sum of n (Q - r - V')^2, where what was never seen is worth the cap."""
    visits, reward, transition = means(data)
    q = np.where(visits > 0, q, CAP[:, None, None])
    value = np.append(q.max(-1)[1:], np.zeros((1, STATES)), 0)
    error = q - reward - np.einsum("hsat,ht->hsa", transition, value)
    return q[0, 0].max() - eta * (visits * error**2).sum()


def direct_maximum(data, eta):
    """Its maximum over all Q. With the argmax of Q held fixed it is a concave quadratic: the
    stationary points for every argmax are solved for, and the best is taken."""
    visits, reward, transition = means(data)
    index = np.arange(visits.size).reshape(SHAPE)
    seen = visits.ravel() > 0
    fixed = np.where(seen, 0.0, np.broadcast_to(CAP[:, None, None], SHAPE).ravel())
    best = -np.inf
    for choice in itertools.product(range(ACTIONS), repeat=HORIZON * STATES):
        chosen = np.reshape(choice, (HORIZON, STATES))
        error = np.eye(visits.size)
        for h, s, a, s2 in np.argwhere(transition[:-1]):
            error[index[h, s, a], index[h + 1, s2, chosen[h + 1, s2]]] -= transition[h, s, a, s2]
        gain = np.zeros(visits.size)
        gain[index[0, 0, chosen[0, 0]]] = 1.0
        weights = 2 * eta * visits.ravel()[:, None] * error
        left = (error.T @ weights)[np.ix_(seen, seen)]
        right = (gain + weights.T @ (reward.ravel() - error @ fixed))[seen]
        q = fixed.copy()
        q[seen] = np.linalg.solve(left, right)
        best = max(best, objective(q.reshape(SHAPE), data, eta))
    return best


def test_plan_is_the_direct_maximum():
    """In a deterministic world value iteration with a bonus of 1 / (4 eta n) is exact."""
    rng, wrong = np.random.default_rng(1), []
    for _ in range(6):
        data, eta = random_data(rng, deterministic=True), rng.uniform(0.3, 2)
        found = maximum(data, eta=eta)
        assert abs(found - direct_maximum(data, eta)) < 1e-8
        assert all(objective(rng.uniform(0, 4, SHAPE), data, eta) < found for _ in range(1000))
        wrong.append(maximum(data, eta=eta / 2) - found)  # with a bonus of 1 / (2 eta n)
    assert max(wrong) > 1e-2


def enumerated_maximum(data, eta):
    """Of the model-free objective, over all deterministic policies: a policy that meets a pair with
    probability d gains d^2 / (4 eta n) by its best residual."""
    visits, reward, transition = means(data)
    best = -np.inf
    for choice in itertools.product(range(ACTIONS), repeat=HORIZON * STATES):
        occupancy, total = START, 0.0
        for h, actions in enumerate(np.reshape(choice, (HORIZON, STATES))):
            ahead = np.zeros(STATES)
            for s, a in enumerate(actions):
                if visits[h, s, a] == 0:
                    total += occupancy[s] * CAP[h]
                    continue
                total += occupancy[s] * reward[h, s, a]
                total += occupancy[s] ** 2 / (4 * eta * visits[h, s, a])
                ahead += occupancy[s] * transition[h, s, a]
            occupancy = ahead
        best = max(best, total)
    return best


def test_ascent_in_stochastic_worlds():
    rng = np.random.default_rng(2)
    gaps, too_high = [], []
    for _ in range(12):
        data = random_data(rng, deterministic=False, most=20)
        best = enumerated_maximum(data, 0.3)
        ascent = [maximum(data, eta=0.3, num_sweeps=k) for k in (1, 4)]
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(ascent))
        assert ascent[-1] < best + 1e-9
        gaps.append(best - ascent[-1])
        too_high.append(maximum(data, eta=0.3) - best)
    assert np.mean(np.array(gaps) < 1e-9) >= 0.75, "mostly it is the maximum"
    assert min(too_high) > -1e-9 and max(too_high) > 1e-3, "without sweeps it is an upper bound"


def test_optimistic_transition():
    """Against a numerical optimizer; also where an unseen successor takes what is left."""
    rng, optimum = np.random.default_rng(3), quick_jit(mex.optimistic_transition)
    left_over = 0
    for _ in range(30):
        p_hat = rng.dirichlet(np.ones(4)) * (rng.random(4) < 0.6)
        if p_hat.sum() == 0:
            continue
        p_hat /= p_hat.sum()
        value, tilt = rng.uniform(0, 3, 4), 10 ** rng.uniform(-2, 1.5)
        with jax.enable_x64(True):
            p, loss = map(np.asarray, optimum(p_hat, value, tilt))

        def objective(p, p_hat=p_hat, value=value, tilt=tilt):
            seen = p_hat > 0
            return tilt * p @ value + p_hat[seen] @ np.log(p[seen])

        def negative(x):
            return -objective(np.exp(x - x.max()) / np.exp(x - x.max()).sum())

        numeric = max(-minimize(negative, rng.normal(size=4), tol=1e-12).fun for _ in range(4))
        assert p.min() >= 0 and abs(p.sum() - 1) < 1e-6
        assert objective(p) == pytest.approx(numeric, abs=1e-5)
        seen = p_hat > 0
        assert loss == pytest.approx(p_hat[seen] @ np.log(p_hat[seen] / p[seen]) / tilt, abs=1e-6)
        if p[~seen].sum() > 1e-3:
            left_over += 1
            kept = p * seen / (p * seen).sum()  # the variant that gives unseen ones nothing
            assert objective(kept) < numeric - 1e-6
    assert left_over >= 3


def test_model_based_ascent_is_monotone():
    rng = np.random.default_rng(4)
    grew = 0
    for _ in range(8):
        data = random_data(rng, deterministic=False)
        ascent = [maximum(data, "mex_mb", 0.2, k) for k in (1, 2, 6)]
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(ascent))
        grew += ascent[-1] > ascent[0] + 1e-6
        # a hypothesis may change transitions too, so that it reaches no less
        assert ascent[-1] >= maximum(data, "mex", 0.2, 6) - 0.05
    assert grew >= 2


def test_one_hot_features_are_the_table():
    """Linear values with one feature for each pair and hardly any ridge plan as the table does."""
    rng = np.random.default_rng(5)
    data = random_data(rng, deterministic=True, most=30)
    visits = data.count.sum(-1)

    def tabular(layer, value, eta=20.0):
        n = jnp.maximum(layer.visits, 1)
        q = layer.reward + layer.transition @ value + 1 / (4 * eta * n)
        return jnp.where(layer.visits > 0, q, layer.cap)

    def linear(layer, value, eta=20.0):
        target = layer.reward + layer.transition @ value
        fit, spread = mex.ridge_fit(features, layer.visits, target, 1e-7)
        return jnp.minimum(fit + spread / (4 * eta), layer.cap)

    with jax.enable_x64(True):
        features = jnp.asarray(mex.pair_features(STATES, ACTIONS, 0), float)
        est = mex.estimate(jax.tree.map(jnp.asarray, data), jnp.asarray(1.1 * CAP))
        q = np.asarray(mex.backward(tabular, est))
        np.testing.assert_allclose(mex.backward(linear, est), q, atol=1e-6)
        # fewer features than pairs: the covariance is that of the definition
        few = mex.pair_features(STATES, ACTIONS, 4).astype(float)
        flat = few.reshape(-1, 4)
        covariance = flat.T @ np.diag(visits[0].ravel()) @ flat + 0.3 * np.eye(4)
        fit, spread = mex.ridge_fit(jnp.asarray(few), visits[0], jnp.asarray(q[0]), 0.3)
    theta = np.linalg.solve(covariance, flat.T @ (visits[0] * q[0]).ravel())
    np.testing.assert_allclose(np.ravel(fit), flat @ theta, atol=1e-6)
    inverse = np.linalg.inv(covariance)
    np.testing.assert_allclose(np.ravel(spread), [x @ inverse @ x for x in flat], atol=1e-6)


def test_policy_value_is_the_mean_of_episodes():
    env = rlzoo.make("river-swim")
    model = env.inner.model(env.params)
    choice = np.random.default_rng(0).dirichlet(np.ones(2), model.reward.shape[:2])
    occupancy, total = model.start, 0.0
    for pi, transition, reward in zip(choice, model.transition, model.reward, strict=True):
        total += occupancy @ (pi * reward).sum(-1)
        occupancy = np.einsum("s,sa,sat->t", occupancy, pi, transition)
    assert float(mex.policy_value(choice.astype(np.float32), model)) == pytest.approx(total, 1e-5)


# ---- on deep-sea and river-swim ------------------------------------------------------------------


class Ran:
    """States after some episodes, of seeds 0, 1, ..., [seeds]."""

    def __init__(self, env="deep-sea8", seeds=3, quick=False, **fields):
        self.config = mex.Config(env=env, **fields)
        self.env = rlzoo.make(env)
        alg = mex.make(self.config, self.env)

        def run(seed):
            start = alg.init(jax.random.key(seed))
            calls = jnp.arange(self.config.total_steps)
            return jax.lax.scan(lambda s, t: (alg.step(s, t)[0], None), start, calls)[0]

        compiled = (quick_jit if quick else jax.jit)(jax.vmap(run))
        self.states = jax.device_get(compiled(jnp.arange(seeds)))
        self.regret = self.states.regret
        self.first = self.states.first_solved
        self.policy = self.states.policy


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("size", "regret", "first"),
    [
        (8, 36, (14, 35)),
        pytest.param(12, 78, (50, 80), marks=pytest.mark.slow),
        pytest.param(20, 225, (100, 230), marks=pytest.mark.slow),
        pytest.param(30, 537, (390, 530), marks=pytest.mark.slow),
    ],
)
def test_deep_sea(size, regret, first):
    """Regret against 0.99, and when the goal was first reached, as two other implementations."""
    ran = Ran(f"deep-sea{size}")
    assert np.allclose(ran.regret, regret, rtol=0.05)
    assert all((first[0] <= ran.first) & (ran.first <= first[1]))


@pytest.mark.slow
def test_controls_do_not_find_the_goal():
    greedy = Ran(method="epsilon_greedy", seeds=40)
    assert (greedy.first > 0).sum() <= 4
    assert np.median(greedy.regret) == pytest.approx(3962, rel=1e-3)
    estimation = Ran(method="estimation")
    assert (estimation.first == 0).all()
    assert np.allclose(estimation.regret, 3960, rtol=1e-3)


def test_etas_are_members_of_one_program():
    """Weaker optimism solves a deterministic world sooner: the cap explores."""
    env = rlzoo.make("deep-sea8")

    def regret(eta):
        alg = mex.make(mex.Config(eta=eta, num_sweeps=0), env)
        start = alg.init(jax.random.key(0))
        calls = jnp.arange(4000)
        return jax.lax.scan(lambda s, t: (alg.step(s, t)[0], None), start, calls)[0].regret

    found = jax.jit(jax.vmap(regret))(jnp.array([1.0, 100.0, 1e6]))
    assert np.allclose(found, [36, 33, 20], rtol=0.1)


@pytest.mark.slow
def test_an_order_of_actions_is_an_action_map():
    """Other names for actions, and the order that names them likewise: the same regret."""
    env = rlzoo.make("deep-sea8?deterministic=False")
    flip = np.random.default_rng(0).integers(0, 2, (8, 8))
    other = rlzoo.make("deep-sea8?deterministic=False")
    other.inner.action_mapping = env.inner.action_mapping ^ flip

    def regret(env, flip):
        alg = mex.make(mex.Config(), env)
        state = alg.init(jax.random.key(0))
        order = state.policy.order
        order = jnp.where(flip[..., None] == 1, order[..., ::-1], order)
        state = state.replace(policy=state.policy._replace(order=order))
        return jax.lax.scan(lambda s, t: alg.step(s, t), state, jnp.arange(60))[1]["train/regret"]

    renamed = quick_jit(functools.partial(regret, other))
    same = quick_jit(functools.partial(regret, env))(0 * flip)
    named, unlike = renamed(flip), renamed(0 * flip)
    assert np.allclose(same, named, atol=1e-6)
    assert not np.allclose(same, unlike, atol=1e-3)


@pytest.mark.slow
def test_controls_at_their_limits():
    """Without noise and prior rlsvi is estimation; without bonus ucb is mex with a huge eta."""
    few = {"total_steps": 40, "quick": True, "env": "river-swim"}
    rlsvi = Ran(method="rlsvi", noise_scale=0.0, prior_count=1e-12, **few)
    assert np.allclose(rlsvi.regret, Ran(method="estimation", **few).regret, rtol=1e-5)
    ucb = Ran(method="ucb", bonus=0.0, **few)
    assert np.allclose(ucb.regret, Ran(eta=1e12, num_sweeps=0, **few).regret, rtol=1e-5)
    assert not np.allclose(ucb.regret, Ran(method="ucb", bonus=1.0, **few).regret, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["mex_mb", "psrl", *[pytest.param(m, marks=pytest.mark.slow) for m in ("mex_linear", "ucb")]],
)
def test_learns_river_swim(method):
    """Less than a quarter of what estimation loses, which drifts for the small reward."""
    values = {"bonus": 0.1, "prior_count": 0.1, "noise_scale": 0.1}
    ran = Ran("river-swim", total_steps=300, method=method, num_sweeps=1, quick=True, **values)
    model = ran.env.inner.model(ran.env.params)
    never = 300 * (model.optimal_value() - 20 * 0.005)
    assert ran.regret.max() < never / 2


def test_q_learning_step():
    env = rlzoo.make("river-swim")
    alg = mex.make(mex.Config(method="epsilon_greedy", epsilon=0.5, step_size=0.3), env)
    step = quick_jit(alg.step)
    state = alg.init(jax.random.key(0))
    for t in range(20):
        after, metrics = step(state, jnp.int32(t))
        visits = np.asarray(after.data.count - state.data.count)
        rewards = np.asarray(after.data.reward - state.data.reward)
        assert visits.sum() == 20 and metrics["train/return"] == pytest.approx(rewards.sum(), 1e-3)
        q, expected = np.asarray(state.policy.q), np.array(state.policy.q)
        for h, s, a, s2 in np.argwhere(visits):
            ahead = q[h + 1, s2].max() if h < 19 else 0.0
            expected[h, s, a] += 0.3 * (rewards[h, s, a] + ahead - q[h, s, a])
        np.testing.assert_allclose(after.policy.q, expected, atol=1e-5)
        state = after


@pytest.mark.slow
def test_episodes_earn_what_is_reported():
    """`act`, which counts steps, plays the policy whose value is reported."""
    ran = Ran(total_steps=200, quick=True, num_sweeps=0)
    alg = mex.make(ran.config, ran.env)
    policy = jax.tree.map(lambda x: jnp.asarray(x[0]), ran.policy)
    state = jax.tree.map(lambda x: x[0], ran.states)
    keys = jax.random.split(jax.random.key(0), 2)
    act, memory = rlzoo.env.acting(alg.act, alg.memory, policy, 2)
    returns, lengths = rlzoo.env.episodes(ran.env, act, memory, keys)
    assert (np.asarray(lengths) == 8).all()
    expected = alg.evaluate(state, None)
    assert np.allclose(returns, expected["eval/return"], atol=1e-6)
    assert np.allclose(returns, 0.99, atol=1e-6)
    assert expected["eval/first_solved"] == (ran.first[0], True)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "deep-sea8?sticky=0.1"])
def test_refuses_worlds_without_tables(env):
    with pytest.raises(rlzoo.Refused, match="for example, deep-sea8 or river-swim"):
        mex.make(mex.Config(), rlzoo.make(env))


@pytest.mark.parametrize("eta", [1e-40, 1e39, float("nan")])
def test_refuses_an_eta_that_overflows(eta):
    with pytest.raises(rlzoo.Refused, match="eta is .* leaves float32"):
        mex.make(dataclasses.replace(mex.Config(), eta=eta), rlzoo.make("deep-sea8"))


def test_refuses_tables_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda device: 2**19)
    with pytest.raises(rlzoo.Refused, match=r"30 steps x 30 states x 2 actions .* 512 KiB is free"):
        mex.make(mex.Config(), rlzoo.make("deep-sea30"))
    mex.make(mex.Config(), rlzoo.make("deep-sea8"))


@pytest.mark.parametrize("env", ["deep-sea8", "river-swim"])
def test_refuses_a_horizon_of_zero(env):
    with pytest.raises(rlzoo.Refused, match="whole number of at least 1"):
        rlzoo.make(f"{env}?max_steps_in_episode=0")
