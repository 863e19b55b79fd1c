"""SMODICE: its losses against NumPy, the discriminator's ratio, stages, a small imitation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from offline import ENV, equal, some_batch
from rlzoo.algorithms import smodice
from scipy.special import logsumexp, softmax
from together import quick_jit

import rlzoo
from rlzoo import dataset

SMALL = smodice.Config(
    env=ENV,
    discriminator_steps=500,
    total_steps=800,
    hidden=(16,),
    batch_size=32,
    learning_rate=0.01,
    discount=0.9,
)


def by_dot(params, obs):
    return obs @ params


def test_discriminator_loss_is_the_numpy_reference():
    rng = np.random.default_rng(0)
    expert, mixed = rng.normal(size=(2, 30, 4)).astype(np.float32)
    params, mix = rng.normal(size=4).astype(np.float32), rng.random((30, 1)).astype(np.float32)
    discriminator = lambda p, x: (x**2) @ p
    config = smodice.Config(gradient_penalty=10.0)
    loss, metrics = smodice.discriminator_loss(params, expert, mixed, mix, discriminator, config)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    own, other = expert**2 @ params, mixed**2 @ params
    entropy = -np.mean(np.log(sigmoid(own))) - np.mean(np.log(1 - sigmoid(other)))
    slope = 2 * (mix * expert + (1 - mix) * mixed) * params
    penalty = np.mean((np.linalg.norm(slope, axis=1) - 1) ** 2)
    np.testing.assert_allclose(loss, entropy + 10 * penalty, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/reward_expert"], own.mean(), rtol=1e-3)


@pytest.mark.parametrize("name", ["kl", "chi_square"])
def test_value_loss_is_the_numpy_reference(name):
    batch, rng = some_batch()
    params = rng.normal(size=3).astype(np.float32)
    start, reward = rng.normal(size=(40, 3)).astype(np.float32), batch.reward
    config = smodice.Config(divergence=name, discount=0.9)

    def run(params):
        return smodice.value_loss(params, batch, start, reward, by_dot, config)[0]

    loss, grad = jax.value_and_grad(run)(params)
    live = 0.9 * ~batch.terminated
    delta = reward + live * (batch.next_obs @ params) - batch.obs @ params
    second = {
        "kl": logsumexp(delta) - np.log(40),
        "chi_square": np.mean(delta + delta**2 / 2),
    }[name]
    np.testing.assert_allclose(loss, 0.1 * np.mean(start @ params) + second, rtol=1e-4)
    # the gradient is full, through V(s') too
    weight = softmax(delta) if name == "kl" else (1 + delta) / 40
    full = 0.1 * start.mean(0) + weight @ (live[:, None] * batch.next_obs - batch.obs)
    np.testing.assert_allclose(grad, full, rtol=1e-3, atol=1e-5)
    assert np.abs(full - (0.1 * start.mean(0) - weight @ batch.obs)).max() > 0.05


def test_weights_are_the_derivative_of_the_conjugate():
    delta = np.array([-3.0, -0.5, 0.0, 2.0], np.float32)
    np.testing.assert_allclose(smodice.importance(delta, "kl"), 4 * softmax(delta), rtol=1e-5)
    relu = np.maximum(0, 1 + delta)
    np.testing.assert_allclose(
        smodice.importance(delta, "chi_square"), relu / relu.mean(), rtol=1e-5
    )


def sides(actions, obs, seed=0):
    """Episodes of one step with these observations and actions."""
    ended = np.ones(len(obs), bool)
    obs = np.asarray(obs, np.float32)[:, None]
    return dataset.from_arrays(
        {
            "obs": obs,
            "next_obs": obs,
            "action": np.asarray(actions, np.float32)[:, None],
            "reward": np.zeros(len(obs), np.float32),
            "terminated": ended,
            "truncated": ~ended,
        },
        env=ENV,
    )


@pytest.fixture(scope="module")
def learned():
    """Observations -1 and 1 lead nowhere; the expert has the action 0.5, which the discriminator
    is shown."""
    rng = np.random.default_rng(0)
    obs = np.where(np.arange(120) % 2 == 0, -1.0, 1.0)
    action = np.where(np.arange(120) % 6 < 2, 0.5, rng.uniform(-1, 0.2, 120))
    data = {"mixed": sides(action, obs), "expert": sides(np.full(20, 0.5), obs[:20])}
    env = rlzoo.make(ENV)
    config = dataclasses.replace(SMALL, use_actions=True, gradient_penalty=0.1)

    @quick_jit
    def run(data):
        alg = smodice.make(config, env, data)
        state, metrics = alg.init(jax.random.key(0)), {}
        for stage in alg.stages:
            state, more = jax.lax.scan(stage.step, state, jnp.arange(stage.calls))
            metrics |= more
        return state, metrics, alg.act(alg.policy(state), jnp.array([[-1.0], [1.0]]), None)

    return run(data)


@pytest.mark.slow
def test_the_discriminator_tells_them_apart(learned):
    _, metrics, _ = learned
    gap = metrics["train/reward_expert"] - metrics["train/reward_mixed"]
    assert np.mean(gap[-50:]) > 1.0 > np.abs(gap[0])


def test_the_expert_is_imitated(learned):
    _, metrics, actions = learned
    assert np.isfinite(metrics["loss/value"]).all()
    np.testing.assert_allclose(actions, 0.5, atol=0.2)  # the mean of the mixed data is -0.1
    assert np.mean(metrics["train/effective"][-50:]) < 0.8


def test_each_stage_moves_its_own():
    env, both = rlzoo.make(ENV), tiny_data.continuous()
    data = {"expert": tiny_data.good(both), "mixed": both}
    alg = smodice.make(dataclasses.replace(SMALL, batch_size=4), env, data)
    first = quick_jit(alg.init)(jax.random.key(0))
    second, _ = quick_jit(alg.stages[0].step)(first, 0)
    third, _ = quick_jit(alg.stages[1].step)(second, 0)
    assert equal(first.params[:2], second.params[:2])
    assert not equal(first.params.discriminator, second.params.discriminator)
    assert equal(second.params.discriminator, third.params.discriminator)
    assert not equal(second.params.actor, third.params.actor)
    assert not equal(second.params.value, third.params.value)


def test_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match=r"smodice .*--dataset expert=FILE mixed=FILE"):
        smodice.make(SMALL, rlzoo.make(ENV), tiny_data.continuous())
