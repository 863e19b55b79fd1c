"""XQL: its loss against NumPy, what it estimates, what clipping does, the order of updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from offline import ACTIONS, bandit, check_update_order, learn, newest, some_batch
from rlzoo.algorithms import xql
from tabular_dual import soft_maximum
from together import quick_jit

import rlzoo

SMALL = xql.Config(
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


def same_for_all(params, obs):
    return jnp.full(len(obs), params)


def loss_at(v, q, config):
    return xql.value_loss(v, q, q, same_for_all, config)


def test_value_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    params, q = 3 * rng.normal(size=3).astype(np.float32), rng.normal(size=40).astype(np.float32)
    config = xql.Config(beta=0.8, max_clip=3.0)
    value = lambda p, obs: obs @ p
    loss, metrics = quick_jit(lambda c: xql.value_loss(params, batch.obs, q, value, c))(config)
    gap = q - batch.obs @ params
    z = np.minimum(gap / 0.8, 3.0)
    largest = max(z.max(), -1.0)
    np.testing.assert_allclose(loss, np.mean((np.exp(z) - z - 1) / np.exp(largest)), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/clipped"], np.mean(gap / 0.8 > 3.0))
    np.testing.assert_allclose(metrics["train/far_below"], np.mean(gap < -4.0))
    assert 0 < np.mean(gap / 0.8 > 3.0) < 1


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 5.0])
def test_minimum_is_the_soft_maximum(beta):
    q = np.repeat([0.0, 1.0, 2.0, 5.0, 9.0], [30, 30, 20, 15, 5]).astype(np.float32)
    exact = soft_maximum(q, np.full(100, 0.01), beta)
    config = xql.Config(beta=beta, max_clip=50.0)
    slope = lambda v: jax.grad(loss_at, has_aux=True)(v, q, config)[0]
    slopes = quick_jit(jax.vmap(slope))(jnp.array([exact - 1e-2, exact + 1e-2]))
    assert slopes[0] < 0 < slopes[1]


def test_rescaling_does_not_move_the_gradients_sign():
    """The gradient is that of exp(z) - z - 1 over exp(largest z), which is held constant."""
    q = np.array([0.0, 2.0, 3.0], np.float32)
    grad = jax.grad(loss_at, has_aux=True)(jnp.float32(0.5), q, xql.Config(beta=1.0))[0]
    z = q - 0.5
    np.testing.assert_allclose(grad, -np.mean(np.exp(z) - 1) / np.exp(z.max()), rtol=1e-5)
    through = -np.mean(np.exp(z) - 1) / np.exp(z.max()) + np.mean(np.exp(z) - z - 1) / np.exp(
        z.max()
    )
    assert abs(grad - through) > 0.1, "with a gradient through the largest it would be another"


def test_clipped_outliers_have_no_gradient():
    """An outlier of 100 among zeros does not move V, whose minimum without a clip is 97.7."""
    q = np.array([0.0] * 9 + [100.0], np.float32)
    slope = lambda v, clip: jax.grad(loss_at, has_aux=True)(
        jnp.float32(v), q, xql.Config(beta=1.0, max_clip=clip)
    )[0]
    np.testing.assert_allclose(slope(0.0, 7.0), 0.0, atol=1e-6)
    assert slope(0.0, 120.0) < 0 and slope(97.0, 7.0) < 0 < slope(98.0, 7.0)


def test_small_temperatures_overflow_without_rescaling():
    q = np.array([0.0, 100.0], np.float32)
    config = xql.Config(beta=0.1, max_clip=1000.0)
    loss, grad = jax.value_and_grad(loss_at, has_aux=True)(jnp.float32(0.0), q, config)
    assert np.isfinite(loss[0]) and np.isfinite(grad)
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(100 / 0.1))), "what this guards against"


@pytest.mark.slow
def test_update_order():
    check_update_order(xql, dataclasses.replace(SMALL, batch_size=16, value_layer_norm=True), 3)


def test_values_of_a_bandit_are_soft_maxima():
    learned = learn(xql.make, dataclasses.replace(SMALL, beta=1.0), bandit())
    exact = soft_maximum(2 * ACTIONS, np.full(len(ACTIONS), 1 / len(ACTIONS)), 1.0)
    assert 0.4 < exact < 0.8
    np.testing.assert_allclose(newest(learned.metrics, "train/v"), exact, atol=0.1)
    assert newest(learned.metrics, "train/clipped") == 0.0
    action = float(learned.alg.act(learned.alg.policy(learned.state), jnp.ones(1), None)[0])
    factor = np.minimum(np.exp(3 * (2 * ACTIONS - exact)), 100)
    np.testing.assert_allclose(action, (factor * ACTIONS).sum() / factor.sum(), atol=0.07)


def test_no_data_is_refused():
    with pytest.raises(rlzoo.Refused, match="xql learns from a data set, but none was given"):
        xql.make(SMALL, rlzoo.make(SMALL.env))
