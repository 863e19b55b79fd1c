"""HL-Gauss with a SoftMoE: hl_gauss.py whose hidden layer is a mixture of experts.

Paper: Obando-Ceron et al. 2024 (arXiv 2402.08609), SoftMoE of Puigcerver et al. 2023 (arXiv
    2308.00951, section 2.1); its losses beside each other: Farebrother et al. 2024 (arXiv
    2403.03950, section 4.2.1).
Kind: online, value-based, discrete
Run: python scripts/programs/scaled_hl_gauss.py --experts 4 --v-min -1 --v-max 19
Result: results/value_loss/experts
Metrics: those of hl_gauss.py
Deviations: those of hl_gauss.py
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rlzoo.algorithms import hl_gauss

import rlzoo
from rlzoo.fast import Conv3x3


@rlzoo.config
class Config(hl_gauss.Config):
    env: str = rlzoo.static("Breakout-MinAtar")
    """environment id, of one whose observations are images"""
    hidden: tuple[int, ...] = rlzoo.static((128,), least=1)
    """width of the one hidden layer"""
    experts: int = rlzoo.static(1, least=1)
    """experts of the SoftMoE that stands in place of the hidden layer after the convolution"""


class Expert(nn.Module):
    """Two dense layers: [..., d] to [..., d]."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(hidden)


class SoftMoE(nn.Module):
    """Tokens [..., n, d] to tokens, with ceil(n / experts) slots for each expert."""

    experts: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # --- route tokens to slots ---
        tokens = x.shape[-2]
        slots = -(-tokens // self.experts)
        routes = nn.Dense(self.experts * slots, use_bias=False, dtype=self.dtype)(x)
        dispatch = jax.nn.softmax(routes, -2)
        combine = jax.nn.softmax(routes, -1)
        mixed = jnp.einsum("...td,...ts->...sd", x, dispatch)

        # --- experts ---
        experts = nn.vmap(
            Expert,
            in_axes=-3,
            out_axes=-3,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        by_expert = mixed.reshape(*mixed.shape[:-2], self.experts, slots, -1)
        out = experts(self.hidden, self.dtype)(by_expert)
        out = out.reshape(mixed.shape)

        # --- back to tokens ---
        return jnp.einsum("...sd,...ts->...td", out, combine)


class SoftMoENetwork(hl_gauss.CategoricalQNetwork):
    """As its parent, with a SoftMoE over the positions of the convolution as the hidden layer."""

    experts: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        lead = x.shape[:-1]
        x = x.reshape(*lead, *self.image_shape)
        x = nn.relu(Conv3x3(self.channels, self.dtype)(x))
        tokens = x.reshape(*lead, -1, self.channels)
        x = SoftMoE(self.experts, self.hidden[0], self.dtype)(tokens)
        x = x.reshape(*lead, -1).astype(jnp.float32)
        x = nn.Dense(math.prod(self.out_shape), bias_init=self.bias_init)(x)
        return x.reshape(*x.shape[:-1], *self.out_shape)


def make(config: Config, env: rlzoo.Env, dataset: Any = None) -> rlzoo.Algorithm:
    has_size = len(env.obs_shape) == 3 and min(env.obs_shape[:2]) >= 3
    is_image = config.channels and has_size
    if not is_image or len(config.hidden) != 1:
        raise rlzoo.Refused(
            f"experts={config.experts} stand in place of one hidden layer after a convolution, but "
            f"hidden={config.hidden} and obs {env.obs_shape}; try Breakout-MinAtar and --hidden 128"
        )
    network = functools.partial(SoftMoENetwork, experts=config.experts)
    return hl_gauss.make(config, env, dataset, network)


if __name__ == "__main__":
    rlzoo.main(make, Config)
