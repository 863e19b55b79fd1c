"""Every fast form agrees with its plain form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlzoo import fast

KEY = jax.random.key(0)


def test_linear_is_a_dense_layer():
    x = jax.random.normal(KEY, (5, 7))
    ours, plain = fast.Linear(3), nn.Dense(3)
    params = ours.init(KEY, x)["params"]
    transposed = {"kernel": params["kernel"].T, "bias": params["bias"] + 0.5}
    shifted = {"kernel": params["kernel"], "bias": params["bias"] + 0.5}

    def loss(layer):
        return lambda params: (layer.apply({"params": params}, x) ** 2).sum()

    value, grads = jax.value_and_grad(loss(ours))(shifted)
    wanted, wanted_grads = jax.value_and_grad(loss(plain))(transposed)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grads["kernel"], wanted_grads["kernel"].T, rtol=1e-4)
    np.testing.assert_allclose(grads["bias"], wanted_grads["bias"], rtol=1e-4)


def test_linear_starts_with_the_scale_of_a_dense_layer():
    x = jnp.zeros((1, 400))
    ours = fast.Linear(300).init(KEY, x)["params"]["kernel"]
    plain = nn.Dense(300).init(KEY, x)["params"]["kernel"]
    assert ours.shape == plain.T.shape
    assert float(ours.std()) == pytest.approx(float(plain.std()), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_convolution(leading):
    images = jax.random.normal(KEY, (*leading, 6, 5, 2))
    ours, plain = fast.Conv3x3(7), nn.Conv(7, (3, 3), padding="VALID")
    params = ours.init(KEY, images)["params"]["Dense_0"]
    kernel = params["kernel"].reshape(3, 3, 2, 7)
    wanted = plain.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, images)
    found = ours.apply({"params": {"Dense_0": params}}, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 512])
def test_permutations(size):
    orders = np.asarray(fast.permutations(KEY, 50, size))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(size), (50, 1)))


def test_permutations_are_uniform():
    """All 24 orders of four things are equally likely, as for jax.random.permutation."""
    for orders in (
        fast.permutations(KEY, 24_000, 4),
        jax.vmap(lambda key: jax.random.permutation(key, 4))(jax.random.split(KEY, 24_000)),
    ):
        _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
        chi_square = ((counts - 1000) ** 2 / 1000).sum()
        assert len(counts) == 24 and chi_square < 49.7  # 99.9% of 23 degrees of freedom


@pytest.mark.parametrize("size", [7, 64, 100])
def test_every_index_stands_at_every_position_equally_often(size):
    count = 4_000
    orders = np.asarray(jax.jit(fast.permutations, static_argnums=(1, 2))(KEY, count, size))
    if size == 7:
        assert len(np.unique(orders, axis=0)) > 2600  # of 5040; 4000 draws find 2761 on average
    counts = np.zeros((size, size))
    np.add.at(counts, (np.broadcast_to(np.arange(size), orders.shape), orders), 1)
    expected = count / size
    freedom = (size - 1) ** 2
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - freedom) <= 5 * np.sqrt(2 * freedom)
