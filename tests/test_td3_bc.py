"""TD3+BC: its losses against NumPy, its schedule, the pull towards the data."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from offline import ENV, bandit, equal, learn, one_step, some_batch, some_rows
from rlzoo.algorithms import td3_bc
from together import quick_jit

import rlzoo
from rlzoo import dataset

SMALL = td3_bc.Config(
    env=ENV,
    total_steps=1500,
    hidden=(16,),
    batch_size=32,
    learning_rate=0.01,
    tau=0.1,
    discount=0.9,
)


def linear_actor(params, obs):
    return jnp.tanh(obs @ params)


def linear_critics(params, obs, action):
    return params @ jnp.concatenate([obs, action], -1).T


@pytest.fixture(scope="module")
def case():
    batch, rng = some_batch()
    actor, critics = rng.normal(size=(3, 2)), rng.normal(size=(2, 5))
    params = td3_bc.Params(actor.astype(np.float32), critics.astype(np.float32))
    return params, batch, 2 * rng.normal(size=(40, 2)).astype(np.float32)


def test_target_is_the_numpy_reference(case):
    params, batch, noise = case
    config = td3_bc.Config(target_noise=0.4, target_noise_clip=0.3, discount=0.9)
    found = td3_bc.td_target(params, batch, noise, linear_actor, linear_critics, config)
    action = np.tanh(batch.next_obs @ params.actor) + np.clip(0.4 * noise, -0.3, 0.3)
    pair = np.concatenate([batch.next_obs, np.clip(action, -1, 1)], 1)
    value = (params.critics @ pair.T).min(0)
    expected = batch.reward + 0.9 * ~batch.terminated * value
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    ended = batch.terminated | batch.truncated
    assert np.abs(batch.reward + 0.9 * ~ended * value - expected).max() > 0.1


def test_actor_loss_is_the_numpy_reference(case):
    params, batch, _ = case
    config = td3_bc.Config(alpha=2.5)

    def objective(actor):
        return td3_bc.actor_loss(actor, params.critics, batch, linear_actor, linear_critics, config)

    (loss, metrics), grad = jax.value_and_grad(objective, has_aux=True)(params.actor)
    action = np.tanh(batch.obs @ params.actor)
    q = np.concatenate([batch.obs, action], 1) @ params.critics[0]
    scale = 2.5 / np.abs(q).mean()
    error = ((action - batch.action) ** 2).mean()
    np.testing.assert_allclose(loss, error - scale * q.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/action_mse"], error, rtol=1e-4)
    # the scale is held constant
    slope = (action - batch.action) - scale * params.critics[0, 3:]
    exact = batch.obs.T @ (slope * (1 - action**2)) / 40
    np.testing.assert_allclose(grad, exact, rtol=1e-3, atol=1e-5)


def test_schedule():
    alg = td3_bc.make(dataclasses.replace(SMALL, policy_delay=3), rlzoo.make(ENV), some_rows())
    states, step = [quick_jit(alg.init)(jax.random.key(0))], quick_jit(alg.step)
    for t in range(7):
        states.append(step(states[-1], t)[0])
    for t, (before, after) in enumerate(itertools.pairwise(states)):
        moving = t % 3 == 0
        assert not equal(before.params.critics, after.params.critics)
        assert equal(before.params.actor, after.params.actor) != moving
        assert equal(before.target_params, after.target_params) != moving


def test_observations_are_standardized():
    """Data at obs 1000 and 1002, with actions that depend on which; the policy keeps what it
    needs."""
    first, second = (
        one_step(np.full(20, a), np.zeros(20), obs) for a, obs in ((0.5, 1000.0), (-0.5, 1002.0))
    )
    data = dataset.concatenate([first, second])
    learned = learn(td3_bc.make, dataclasses.replace(SMALL, alpha=0.0), data)
    obs = jnp.array([[1000.0], [1002.0]])
    policy = learned.alg.policy(learned.state)
    np.testing.assert_allclose(learned.alg.act(policy, obs, None)[:, 0], [0.5, -0.5], atol=0.1)
    np.testing.assert_allclose(policy.stats.std, 1.001, rtol=1e-3)
    other = td3_bc.make(SMALL, rlzoo.make(ENV), bandit())
    np.testing.assert_array_equal(other.act(policy, obs, None), learned.alg.act(policy, obs, None))


@pytest.fixture(scope="module")
def pulls():
    """Actions and values by alpha, on rewards 2a for actions in [-0.5, 0.5]."""
    action = np.linspace(-0.5, 0.5, 21)
    data, env = one_step(action, 2 * action), rlzoo.make(ENV)

    @quick_jit
    @jax.vmap
    def run(alpha):
        alg = td3_bc.make(dataclasses.replace(SMALL, alpha=alpha), env, data)
        state, metrics = jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(1500))
        return alg.act(alg.policy(state), jnp.ones(1), None)[0], metrics["train/q"]

    return run(jnp.array([0.0, 0.1, 10.0]))


def test_alpha_trades_values_for_cloning(pulls):
    cloned, little, free = pulls[0]
    np.testing.assert_allclose(cloned, 0.0, atol=0.05)
    assert cloned + 0.05 < little and free > 0.55, "without a pull it leaves the data"


def test_values_of_the_data(pulls):
    np.testing.assert_allclose(np.mean(pulls[1][0][-100:]), 0.0, atol=0.1)


def test_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match="td3_bc needs continuous actions"):
        td3_bc.make(SMALL, rlzoo.make(ENV), tiny_data.discrete())
    with pytest.raises(rlzoo.Refused, match="td3_bc learns from a data set, but none was given"):
        td3_bc.make(SMALL, rlzoo.make(ENV))
