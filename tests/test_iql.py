"""IQL: its losses against NumPy, the order of its updates, values that are known in closed form."""

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
    equal,
    learn,
    newest,
    some_batch,
    some_rows,
)
from rlzoo.algorithms import iql
from scipy.optimize import brentq
from scipy.stats import norm
from together import quick_jit

import rlzoo
from rlzoo.algorithm import clean

SMALL = iql.Config(
    env="probe-action-continuous",
    total_steps=400,
    hidden=(16,),
    batch_size=32,
    learning_rate=0.01,
    tau=0.2,
    discount=0.9,
    normalize_rewards=False,
    anneal_actor=False,
)


# ---- losses --------------------------------------------------------------------------------------


def test_value_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    params, q = rng.normal(size=3).astype(np.float32), rng.normal(size=40).astype(np.float32)
    loss, metrics = quick_jit(
        lambda c: iql.value_loss(params, batch.obs, q, lambda p, o: o @ p, c)
    )(iql.Config(expectile=0.8))
    v = batch.obs @ params
    expected = np.mean([abs(0.8 - (q[i] < v[i])) * (q[i] - v[i]) ** 2 for i in range(40)])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    other = np.mean([abs(0.8 - (q[i] > v[i])) * (q[i] - v[i]) ** 2 for i in range(40)])
    assert abs(expected - other) > 0.1, "the other side would be another loss"
    np.testing.assert_allclose(metrics["train/v"], v.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/v_max"].value, abs(v).max(), rtol=1e-5)


def test_critic_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    params, target = rng.normal(size=(2, 5)).astype(np.float32), batch.reward
    critics = lambda p, obs, action: p @ jnp.concatenate([obs, action], -1).T
    loss, _ = iql.critic_loss(params, batch, target, critics)
    value = params @ np.concatenate([batch.obs, batch.action], -1).T
    np.testing.assert_allclose(loss, ((value - target) ** 2).mean(1).sum(), rtol=1e-5)


def test_actor_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    advantage = rng.normal(size=40).astype(np.float32)
    actor = iql.Actor((4,), 2)
    params = actor.init(jax.random.key(0), batch.obs)
    params["params"]["log_std"] = jnp.array([0.3, -0.7])
    config = iql.Config(inverse_temperature=3.0, max_weight=5.0)
    slopes = jax.value_and_grad(iql.actor_loss, has_aux=True)
    (loss, metrics), grads = quick_jit(lambda p: slopes(p, batch, advantage, actor.apply, config))(
        params
    )
    mean = np.asarray(actor.apply(params, batch.obs).mean())
    assert np.abs(mean).max() <= 1.0
    log_prob = norm.logpdf(batch.action, mean, np.exp([0.3, -0.7])).sum(1)
    weight = np.minimum(np.exp(3 * advantage), 5.0)
    np.testing.assert_allclose(loss, -(weight * log_prob).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/saturated"], (weight == 5.0).mean())
    assert 0 < (weight == 5.0).mean() < 1
    slope = ((((batch.action - mean) / np.exp([0.3, -0.7])) ** 2 - 1) * weight[:, None]).mean(0)
    np.testing.assert_allclose(grads["params"]["log_std"], -slope, rtol=1e-3)


# ---- training ------------------------------------------------------------------------------------


def test_update_order():
    check_update_order(iql, dataclasses.replace(SMALL, batch_size=16, value_layer_norm=True), 2)


def expectile(x, tau):
    """The root of the derivative of its loss."""
    return brentq(lambda m: np.mean(np.where(x > m, tau, 1 - tau) * (x - m)), x.min(), x.max())


@pytest.fixture(scope="module")
def learned():
    return learn(iql.make, dataclasses.replace(SMALL, total_steps=1500, expectile=0.9), bandit())


def test_values_of_a_bandit_are_expectiles(learned):
    exact = expectile(2 * ACTIONS, 0.9)
    assert 0.9 < exact < 1.1  # far from the mean, 0, and from the maximum, 2
    found = newest(learned.metrics, "train/v")
    np.testing.assert_allclose(found, exact, atol=0.1)


def test_policy_of_a_bandit_is_the_weighted_mean(learned):
    obs = jnp.ones(1)
    found = float(learned.alg.act(learned.alg.policy(learned.state), obs, None)[0])
    weight = np.minimum(np.exp(3 * (2 * ACTIONS - expectile(2 * ACTIONS, 0.9))), 100)
    exact = (weight * ACTIONS).sum() / weight.sum()
    assert exact > 0.7  # the mean of the data is 0
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_truncated_rows_bootstrap():
    config = dataclasses.replace(SMALL, total_steps=1000, learning_rate=0.03)
    whole = newest(learn(iql.make, config, endless()).metrics, "train/v")
    np.testing.assert_allclose(whole, 10.0, rtol=0.1)
    cut = newest(learn(iql.make, config, endless(naive=True)).metrics, "train/v")
    assert cut < 5.0, "the bug this guards against"


def test_rewards_are_normalized():
    """Returns from -4 to 4 are to span 1000: a factor of 125, before that of the configuration."""
    data = bandit(scale=2.0)
    config = dataclasses.replace(SMALL, normalize_rewards=True, reward_scale=3.0)
    init = quick_jit(iql.make(config, rlzoo.make(config.env), data).init)
    np.testing.assert_allclose(init(jax.random.key(0)).reward_scale, 3 * 125, rtol=1e-5)


def test_observations_are_standardized():
    """Those of the data; the policy keeps what it needs, and acts alike where data are others."""
    data, env = some_rows(), rlzoo.make(SMALL.env)
    shifted = data.replace(obs_mean=data.obs_mean + 1.0)
    plain = iql.make(SMALL, env, data)
    alg = iql.make(dataclasses.replace(SMALL, normalize_obs=True), env, data)
    state = quick_jit(alg.init)(jax.random.key(0))
    policy, obs = alg.policy(state), data.obs[:5]
    np.testing.assert_allclose(policy.stats.mean, data.obs.mean(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(plain.policy(state).stats.mean, 0.0)
    action = alg.act(policy, obs, None)
    scaled = (obs - policy.stats.mean) / policy.stats.std
    np.testing.assert_allclose(plain.act(plain.policy(state), scaled, None), action, rtol=1e-4)
    other = iql.make(dataclasses.replace(SMALL, normalize_obs=True), env, shifted)
    np.testing.assert_array_equal(other.act(policy, obs, None), action)


def test_the_actors_rate_falls_to_zero():
    config = dataclasses.replace(SMALL, total_steps=20, anneal_actor=True, batch_size=8)
    env, data = rlzoo.make(config.env), some_rows()
    alg = iql.make(config, env, data)
    step, states = quick_jit(alg.step), [quick_jit(alg.init)(jax.random.key(0))]
    for t in range(21):
        states.append(step(states[-1], t)[0])
    assert equal(states[-1].params.actor, states[-2].params.actor)
    assert not equal(states[-1].params.value, states[-2].params.value)
    assert not equal(states[1].params.actor, states[0].params.actor)


# ---- networks, bad input -------------------------------------------------------------------------


def test_networks():
    config = dataclasses.replace(SMALL, hidden=(8, 6), value_layer_norm=True)
    alg = iql.make(config, rlzoo.make(config.env), some_rows())
    params = quick_jit(alg.init)(jax.random.key(0)).params
    others = {*params.critics["params"], *params.actor["params"]["MLP_0"]}
    assert {*params.value["params"]} - others == {"LayerNorm_0", "LayerNorm_1"}
    kernel = np.asarray(params.value["params"]["Dense_1"]["kernel"])  # [8, 6], gain sqrt(2)
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(6), atol=1e-4)
    first, second = np.asarray(params.critics["params"]["Dense_0"]["kernel"])
    assert np.abs(first - second).max() > 0.1, "the critics start apart"
    np.testing.assert_array_equal(params.actor["params"]["log_std"], 0.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "iql learns from a data set, but none was given: --dataset FILE .*data list"),
        (tiny_data.discrete(), "iql needs continuous actions, but .* discrete: int32.*bc take"),
        ({"expert": tiny_data.continuous()}, "but expert were given"),
    ],
)
def test_wrong_data_is_refused(data, message):
    with pytest.raises(rlzoo.Refused, match=message):
        iql.make(SMALL, rlzoo.make(SMALL.env), data)


@pytest.mark.parametrize("expectile", [0.0, 1.5])
def test_bounds(expectile):
    with pytest.raises(rlzoo.Refused, match="expectile is"):
        clean(dataclasses.replace(SMALL, expectile=expectile))
