"""IQ-Learn: its objective against NumPy, what its implied rewards are, what an update moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from offline import ENV, close, equal, one_step, some_batch, some_rows
from rlzoo.algorithms import iq_learn
from together import quick_jit

import rlzoo

SMALL = iq_learn.Config(
    env=ENV,
    total_steps=1000,
    hidden=(16,),
    batch_size=32,
    learning_rate=0.01,
    tau=0.1,
    discount=0.9,
)


def critics(params, obs, action):
    return params @ jnp.concatenate([obs, action], -1).T


def test_critic_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    params = rng.normal(size=(2, 5)).astype(np.float32)
    expert = (np.arange(40) < 15).astype(np.float32)
    next_value, shift = rng.normal(size=(2, 40)).astype(np.float32)
    values = lambda p: critics(p, batch.obs, batch.action) - shift
    config = iq_learn.Config(discount=0.9, chi_square=0.7)
    run = lambda p: iq_learn.critic_loss(p, batch, expert, next_value, values, critics, config)
    (loss, metrics), grad = jax.value_and_grad(run, has_aux=True)(params)
    pairs = np.concatenate([batch.obs, batch.action], -1)
    total = 0.0
    for i in range(2):
        q = pairs @ params[i]
        reward = q - 0.9 * next_value
        total += np.mean(reward**2) / 2.8 - reward[:15].mean()
        total += np.mean(q - shift - 0.9 * next_value)
        slope = 2 * reward / 2.8 / 40 + 1 / 40 - expert / 15
        np.testing.assert_allclose(grad[i], slope @ pairs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(loss, total, rtol=1e-4)
    rewards = (params @ pairs.T).mean(0) - 0.9 * next_value
    np.testing.assert_allclose(metrics["train/reward_expert"], rewards[:15].mean(), rtol=1e-3)
    mixed, count = metrics["train/reward_mixed"]
    np.testing.assert_allclose(mixed / count, rewards[15:].mean(), rtol=1e-3)


def test_actor_loss_has_the_entropy():
    batch, _ = some_batch(dims=1)
    actor = lambda params, obs: iq_learn.squashed_gaussian(jnp.broadcast_to(params, (len(obs), 2)))
    value = lambda params, obs, action: jnp.stack([3 * action[:, 0], 1 - action[:, 0]])
    config, key = iq_learn.Config(alpha=0.3), jax.random.key(0)
    head = jnp.array([0.4, -0.7])
    loss, metrics = iq_learn.actor_loss(head, None, batch, key, actor, value, config)
    action, log_prob = actor(head, batch.obs).sample_and_log_prob(seed=key)
    exact = np.mean(0.3 * log_prob - np.minimum(3 * action[:, 0], 1 - action[:, 0]))
    np.testing.assert_allclose(loss, exact, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/entropy"], -np.mean(log_prob), rtol=1e-4)


@pytest.mark.parametrize("use_mixed", [True, False])
def test_an_update(use_mixed):
    """The mixed data have a part where they are asked for, and only there."""
    env, given = rlzoo.make(ENV), {"expert": some_rows(), "mixed": some_rows(1)}
    config = dataclasses.replace(SMALL, use_mixed=use_mixed, batch_size=8)

    @quick_jit
    def run(data):
        alg = iq_learn.make(config, env, data)
        before = alg.init(jax.random.key(0))
        return before, *alg.step(before, 0)

    def after(data):
        before, state, metrics = run(data)
        assert metrics["train/reward_mixed"][1] == (8 if use_mixed else 0)
        old, new = before.target_params, state.params.critics
        mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new)
        assert close(state.target_params, mixed)
        return state.params.critics

    moved = given["mixed"].replace(obs=given["mixed"].obs + 1.0)
    assert equal(after(given), after(given | {"mixed": moved})) != use_mixed


def test_the_expert_is_imitated():
    action = np.linspace(-1, 1, 41)
    data = {
        "expert": one_step(np.full(8, 0.5), np.zeros(8)),
        "mixed": one_step(action, np.zeros(41)),
    }
    env = rlzoo.make(ENV)

    @quick_jit
    def run(data):
        alg = iq_learn.make(SMALL, env, data)
        state, metrics = jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(1000))
        return alg.act(alg.policy(state), jnp.ones(1), None)[0], metrics

    found, metrics = run(data)
    np.testing.assert_allclose(found, 0.5, atol=0.25)
    mixed, count = metrics["train/reward_mixed"]
    gap = metrics["train/reward_expert"] - mixed / count
    assert np.mean(gap[-100:]) > 0.02
    assert np.max(np.abs(metrics["train/q_max"].value)) < 10.0


def test_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match=r"iq_learn .*--dataset expert=FILE mixed=FILE"):
        iq_learn.make(SMALL, rlzoo.make(ENV), tiny_data.continuous())
