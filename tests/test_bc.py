"""BC: its loss against NumPy, which episodes it learns from, held-out data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from offline import ENV, learn, one_step, some_batch
from rlzoo.algorithms import bc
from scipy.special import log_softmax
from scipy.stats import norm
from together import quick_jit

import rlzoo
from rlzoo import dataset
from rlzoo.algorithm import clean

SMALL = bc.Config(env=ENV, total_steps=600, hidden=(16,), batch_size=32, learning_rate=0.02)


def test_loss_of_continuous_actions_is_the_numpy_reference():
    batch, _ = some_batch()
    actor = bc.GaussianActor((4,), 2)
    params = actor.init(jax.random.key(0), batch.obs)
    params["params"]["log_std"] = jnp.array([0.3, -0.7])
    loss, metrics = quick_jit(lambda p: bc.actor_loss(p, batch, actor.apply))(params)
    mean = np.asarray(actor.apply(params, batch.obs).mean())
    log_prob = norm.logpdf(batch.action, mean, np.exp([0.3, -0.7])).sum(1)
    np.testing.assert_allclose(loss, -log_prob.mean(), rtol=1e-4)
    error = np.mean((mean - batch.action) ** 2)
    np.testing.assert_allclose(metrics["train/action_mse"], error, rtol=1e-4)


def test_loss_of_discrete_actions_is_the_numpy_reference():
    batch, rng = some_batch()
    batch = batch._replace(action=rng.integers(0, 3, 40))
    actor = bc.CategoricalActor((4,), 3)
    params = actor.init(jax.random.key(0), batch.obs)
    loss, metrics = quick_jit(lambda p: bc.actor_loss(p, batch, actor.apply))(params)
    logits = np.asarray(actor.apply(params, batch.obs).logits)
    exact = -log_softmax(logits, -1)[np.arange(40), batch.action].mean()
    np.testing.assert_allclose(loss, exact, rtol=1e-4)
    agreement = np.mean(logits.argmax(-1) == batch.action)
    np.testing.assert_allclose(metrics["train/agreement"], agreement, rtol=1e-5)


def test_the_best_episodes_alone():
    """Actions 0.8 in the tenth with the highest returns, -0.4 elsewhere; as members."""
    best = np.arange(40) % 10 == 3
    data = one_step(np.where(best, 0.8, -0.4), np.where(best, 1.0, 0.0))
    env = rlzoo.make(ENV)

    def run(fraction):
        alg = bc.make(dataclasses.replace(SMALL, top_fraction=fraction), env, data)
        state, _ = jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(600))
        return alg.act(alg.policy(state), jnp.ones(1), None)[0]

    found = quick_jit(jax.vmap(run))(jnp.array([0.1, 0.2, 1.0]))
    np.testing.assert_allclose(found, [0.8, 0.2, -0.28], atol=0.06)


def test_discrete_actions_are_learned():
    data = tiny_data.discrete()
    good = np.asarray(dataset.episodes(data).returns) > 0
    learned = learn(
        bc.make, dataclasses.replace(SMALL, env="probe-action"), dataset.take(data, good)
    )
    obs = jnp.array([[-1.0], [1.0]])
    actions = learned.alg.act(learned.alg.policy(learned.state), obs, None)
    np.testing.assert_array_equal(actions, [0, 1])
    assert np.mean(learned.metrics["train/agreement"][-50:]) > 0.8


def test_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match="bc learns from a data set, but none was given"):
        bc.make(SMALL, rlzoo.make(ENV))
    with pytest.raises(rlzoo.Refused, match="top_fraction is 0; it must be more than 0"):
        clean(dataclasses.replace(SMALL, top_fraction=0.0))
