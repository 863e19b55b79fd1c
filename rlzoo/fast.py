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
        shape = (self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[:1])
        return x @ kernel.T + bias


def patches3x3(images: Array) -> Array:
    """The 3x3 patches of images [..., h, w, c] that lie inside: [..., h - 2, w - 2, 9 c]."""
    height = images.shape[-3] - 2
    width = images.shape[-2] - 2
    parts = []
    for row in range(3):
        for column in range(3):
            rows = images[..., row : row + height, :, :]
            parts.append(rows[..., column : column + width, :])
    return jnp.concatenate(parts, axis=-1)


class Conv3x3(nn.Module):
    """A 3x3 convolution without padding, as a dense layer on patches: [..., h, w, c] to
    [..., h - 2, w - 2, features]."""

    features: int
    dtype: Any = None
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        patches = patches3x3(images)
        dense = nn.Dense(self.features, dtype=self.dtype, kernel_init=self.kernel_init)
        return dense(patches)


def permutations(key: Array, count: int, size: int) -> Array:
    """`count` random orders of range(size): int32 [count, size].

    Sorts random words whose low bits are the index. The other bits decide, so two indices whose
    high bits are alike keep their order: for a size of 2**k this happens to a pair once in
    2**(32 - k).
    """
    index = jnp.arange(size, dtype=jnp.uint32)
    low = jnp.uint32(2 ** (size - 1).bit_length() - 1)
    bits = jax.random.bits(key, (count, size))
    words = jax.lax.sort((bits & ~low) | index)
    return (words & low).astype(jnp.int32)
