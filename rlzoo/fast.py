"""Forms that a CPU likes, each beside its plain form. tests/test_fast.py shows that both agree.

    form           plain form                 what is gained on a CPU
    Linear         nn.Dense                   with few outputs its gradient is several times faster
    Conv3x3        nn.Conv(features, (3, 3))  one matrix product: several times faster
    permutations   jax.random.permutation     one sort of single words: several times faster

On other devices they cost nothing.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Linear(nn.Module):
    """A dense layer with a kernel [features, inputs], in place of [inputs, features].

    `kernel_init` is called with the shape [features, inputs]: the input axis is the last.
    """

    features: int
    kernel_init: Callable = nn.initializers.lecun_normal(in_axis=1, out_axis=0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (self.features, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ kernel.T + bias


def patches3x3(images: Array) -> Array:
    """The 3x3 patches of images [..., h, w, c] that lie inside: [..., h - 2, w - 2, 9 c]."""
    height, width = images.shape[-3] - 2, images.shape[-2] - 2
    corners = [(row, column) for row in range(3) for column in range(3)]
    parts = [images[..., i : i + height, j : j + width, :] for i, j in corners]
    return jnp.concatenate(parts, axis=-1)


class Conv3x3(nn.Module):
    """A 3x3 convolution without padding, as a dense layer on patches: [..., h, w, c] to
    [..., h - 2, w - 2, features]."""

    features: int
    dtype: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        dense = nn.Dense(self.features, dtype=self.dtype, kernel_init=self.kernel_init)
        return dense(patches3x3(images))


def permutations(key: Array, count: int, size: int) -> Array:
    """`count` random orders of range(size): int32 [count, size].

    Sorts random words whose low bits are the index. The other bits decide, so two indices whose
    high bits are alike keep their order: for a size of 2**k this happens to a pair once in
    2**(32 - k).
    """
    low = jnp.uint32(2 ** (size - 1).bit_length() - 1)
    bits = jax.random.bits(key, (count, size))
    words = (bits & ~low) | jnp.arange(size, dtype=jnp.uint32)
    return (jax.lax.sort(words) & low).astype(jnp.int32)
