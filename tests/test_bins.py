"""Bins: the same numbers as hl_gauss.py, whose text test_hl_gauss.py holds against references."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import hl_gauss
from scipy.special import entr, softmax
from together import quick_jit

from rlzoo import bins
from rlzoo.bins import Bins, Loss

LOSSES = get_args(Loss)


def both(loss, widen, num_bins=21, low=-3.0, high=5.0, ratio=0.6):
    """Bins, and the Config of hl_gauss.py with the same fields."""
    fields = dict(
        num_bins=num_bins, v_min=low, v_max=high, sigma_ratio=ratio, widen=widen, loss=loss
    )
    return Bins(**fields), hl_gauss.Config(**fields)


@pytest.mark.parametrize("widen", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_bins_are_those_of_hl_gauss(loss, widen):
    rng = np.random.default_rng(0)
    y = rng.uniform(-5, 7, 200).astype(np.float32)  # some outside
    logits = (3 * rng.normal(size=(200, 21))).astype(np.float32)
    probs = softmax(logits, -1)
    reward = rng.normal(size=200).astype(np.float32)
    discount = rng.uniform(0, 1, 200).astype(np.float32)
    out = reward if loss == "mse" else logits

    @quick_jit
    def ours(b):
        project = b.project(probs, reward, discount)
        inputs = (b.centers, b.width, b.two_hot(y), b.hl_gauss(y), project)
        return *inputs, bins.kl(probs, logits), b.decode(out), b.initial_bias(3)

    @quick_jit
    def theirs(c):
        project = hl_gauss.project(probs, reward, discount, c)
        inputs = (*hl_gauss.centers(c), hl_gauss.two_hot(y, c), hl_gauss.hl_gauss(y, c), project)
        bias = hl_gauss.initial_bias(c, 3)
        return *inputs, hl_gauss.kl(probs, logits), hl_gauss.decode(out, c), bias

    b, c = both(loss, widen)
    for found, expected in zip(ours(b), theirs(c), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert b.initial_bias(3).shape == b.out_shape(3)


def test_wrong_bins_are_found():
    b, c = both("hl_gauss", True)
    y = jnp.linspace(-2.0, 4.0, 50)
    expected = hl_gauss.hl_gauss(y, c)
    np.testing.assert_array_equal(b.hl_gauss(y), expected)
    for wrong in (b.replace(widen=False), b.replace(sigma_ratio=0.5), b.replace(v_max=5.1)):
        assert np.abs(wrong.hl_gauss(y) - expected).max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_encode_is_what_the_loss_says(loss):
    b, _ = both(loss, True)
    y = jnp.linspace(-4.0, 6.0, 30)
    expected = {"two_hot": b.two_hot(y), "hl_gauss": b.hl_gauss(y)}.get(loss, y)
    np.testing.assert_array_equal(b.encode(y), expected)
    assert b.scalar == (loss == "mse")
    assert b.squared == (loss in ("mse", "mse_softmax"))


def test_floats_may_be_traced_and_differ_from_member_to_member():
    highs = jnp.array([5.0, 9.0])
    y = jnp.linspace(-2.0, 4.0, 7)
    found = quick_jit(jax.vmap(lambda high: Bins(21, -3.0, high).hl_gauss(y)))(highs)
    for row, high in zip(found, highs, strict=True):
        np.testing.assert_allclose(row, Bins(21, -3.0, high).hl_gauss(y), atol=1e-6)
    assert len(jax.tree.leaves(Bins(21, -3.0, 5.0))) == 3


def test_how_targets_fit():
    b = Bins(11, -5.0, 5.0, sigma_ratio=1.0)  # 3 sigma are 3
    target = jnp.array([0.0, 1.9, 2.1, -4.0, 5.5, -8.0])
    found = b.target_metrics(target)
    np.testing.assert_allclose(found["train/targets_outside"], 2 / 6, rtol=1e-6)
    np.testing.assert_allclose(found["train/targets_near_edge"], 4 / 6, rtol=1e-6)
    np.testing.assert_allclose(found["train/target_max"].value, 8.0)

    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    some = b.target_metrics(mask * target, lambda x: (mask * x).sum() / mask.sum())
    np.testing.assert_allclose(some["train/targets_outside"], 1 / 5, rtol=1e-6)
    np.testing.assert_allclose(some["train/target_max"].value, 5.5)


def test_entropy():
    logits = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    expected = entr(softmax(logits, -1)).sum(-1)
    np.testing.assert_allclose(bins.entropy(logits), expected, rtol=1e-5)


def test_wrong_shapes_are_refused_while_tracing():
    b = Bins(5, 0.0, 1.0)
    with pytest.raises(AssertionError):
        bins.kl(jnp.zeros((3, 5)), jnp.zeros((1, 5)))  # would broadcast
    with pytest.raises(AssertionError):
        b.project(jnp.zeros((1, 5)), jnp.zeros(3), jnp.zeros(3))
