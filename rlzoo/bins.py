"""Values as distributions over bins: the targets and losses of HL-Gauss, two-hot and C51.

    bins = Bins(num_bins=51, v_min=-10.0, v_max=10.0)
    target_probs = bins.hl_gauss(target)       # scalars [...] to distributions [..., 51]
    loss = kl(target_probs, logits).mean()     # logits [..., 51]
    value = bins.mean(jax.nn.softmax(logits))  # [...]

algorithms/hl_gauss.py spells the same out, since that is its subject. tests/test_bins.py shows that
both agree.
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.special import entr, erf

from rlzoo import metrics

Array = jax.Array
Loss = Literal["hl_gauss", "two_hot", "c51", "mse", "mse_softmax"]


@struct.dataclass
class Bins:
    """Bins of equal width. The floats may be traced.

    What a network puts out depends on `loss`: values [...] for `mse`; else logits [..., num_bins].
    """

    num_bins: int = struct.field(pytree_node=False)
    """at least 2"""
    v_min: Any
    v_max: Any
    """the range of the values; more than v_min"""
    sigma_ratio: Any = 0.75
    """standard deviation of HL-Gauss in widths of a bin; below 0.5 it biases the values"""
    widen: bool = struct.field(pytree_node=False, default=True)
    """HL-Gauss's outer bins reach half a bin beyond the range; otherwise they end with it"""
    loss: Loss = struct.field(pytree_node=False, default="hl_gauss")

    # ---- the bins --------------------------------------------------------------------------------

    @property
    def scalar(self) -> bool:
        """Whether a network puts out the values themselves, and no distributions."""
        return self.loss == "mse"

    @property
    def squared(self) -> bool:
        """Whether the loss is the squared error of values, and not `kl` of distributions."""
        return self.loss in ("mse", "mse_softmax")

    @property
    def width(self) -> Any:
        """The width of a bin."""
        return (self.v_max - self.v_min) / (self.num_bins - self._on_ends)

    @property
    def centers(self) -> Array:
        """The values [num_bins] that the bins stand for."""
        inset = 0.0 if self._on_ends else 0.5 * self.width
        low = self.v_min + inset
        high = self.v_max - inset
        return jnp.linspace(low, high, self.num_bins, dtype=jnp.float32)

    @property
    def _on_ends(self) -> bool:
        """Whether the outer centers are the ends of the range."""
        return self.widen or self.loss in ("two_hot", "c51")

    # ---- from scalars to distributions -----------------------------------------------------------

    def two_hot(self, y: Array) -> Array:
        """Mass [..., num_bins] on the two centers next to the scalars y [...].

        Its mean is y, clipped to the range.
        """
        centers = self.centers
        place = (jnp.clip(y, centers[0], centers[-1]) - centers[0]) / self.width
        distance = jnp.abs(place[..., None] - jnp.arange(self.num_bins))
        return jnp.maximum(1.0 - distance, 0.0)

    def hl_gauss(self, y: Array) -> Array:
        """Mass [..., num_bins] in each bin of a Gaussian around the scalars y [...], clipped to the
        range: 5.3 sigma outside of it they would be NaN."""
        centers = self.centers
        edges = jnp.append(centers - 0.5 * self.width, centers[-1] + 0.5 * self.width)
        y = jnp.clip(y, self.v_min, self.v_max)
        sigma = self.sigma_ratio * self.width
        cdf = erf((edges - y[..., None]) / (2.0**0.5 * sigma))
        mass = jnp.maximum(jnp.diff(cdf), 0.0)
        return mass / (cdf[..., -1:] - cdf[..., :1])

    def project(self, probs: Array, reward: Array, discount: Array) -> Array:
        """The distributions [n, num_bins] of reward + discount z, where z ~ probs [n, num_bins].

        The mass of each center is divided as by `two_hot` (Bellemare et al. 2017, arXiv
        1707.06887, equation 7). `reward` and `discount` are [n].
        """
        chex.assert_shape(probs, (*reward.shape, self.num_bins))
        moved = self.two_hot(reward[:, None] + discount[:, None] * self.centers)
        return jnp.einsum("nj,nji->ni", probs, moved, precision="highest")

    def encode(self, y: Array) -> Array:
        """What scalar targets y [...] are learned as, by `loss`.

        Distributions [..., num_bins] for `two_hot` and `hl_gauss`; for the others y itself.
        """
        if self.loss == "two_hot":
            return self.two_hot(y)
        if self.loss == "hl_gauss":
            return self.hl_gauss(y)
        return y

    # ---- from a network's output to values -------------------------------------------------------

    def mean(self, probs: Array) -> Array:
        """Means [...] of distributions [..., num_bins]."""
        return (probs * self.centers).sum(-1)

    def decode(self, out: Array) -> Array:
        """Values [...] of a network's output."""
        if self.scalar:
            return out
        return self.mean(jax.nn.softmax(out))

    def out_shape(self, num_values: int) -> tuple[int, ...]:
        """The shape of a network's output for so many values."""
        return (num_values,) if self.scalar else (num_values, self.num_bins)

    def initial_bias(self, num_values: int) -> Array:
        """A bias for a network's last layer, with the shape of its output, so that all values
        start near 0.

        It is zeros, except for a range that is not symmetric: there uniform distributions would
        decode to the middle of the range.
        """
        shape = self.out_shape(num_values)
        if self.scalar:
            return jnp.zeros(shape)
        lopsided = jnp.abs(self.v_min + self.v_max) > 1e-3 * (self.v_max - self.v_min)
        bias = jnp.log(jnp.maximum(self.hl_gauss(jnp.zeros(())), 1e-6))
        return jnp.broadcast_to(jnp.where(lopsided, bias, 0.0), shape)

    # ---- metrics ---------------------------------------------------------------------------------

    def target_metrics(
        self, target: Array, mean: Callable[[Array], Array] = jnp.mean
    ) -> dict[str, Any]:
        """How scalar targets [n] fit the range.

        `train/targets_outside` is the share of those outside the range, `train/targets_near_edge`
        that of those there or within 3 sigma of its ends, `train/target_max` the largest |target|.

        mean: `mean(x [n]) -> []`, for means over some of the targets. Where it leaves a target out,
          let that target be 0.
        """
        margin = 3.0 * self.sigma_ratio * self.width
        outside = (target < self.v_min) | (target > self.v_max)
        near_edge = (target < self.v_min + margin) | (target > self.v_max - margin)
        return {
            "train/targets_outside": mean(outside),
            "train/targets_near_edge": mean(near_edge),
            "train/target_max": metrics.most(jnp.abs(target).max()),
        }


def kl(target_probs: Array, logits: Array) -> Array:
    """KL(target_probs || softmax(logits)) in nats, [...] of [..., num_bins].

    Its gradient is that of the cross-entropy: softmax(logits) - target_probs.
    """
    chex.assert_equal_shape([target_probs, logits])
    log_probs = jax.nn.log_softmax(logits)
    return -(entr(target_probs) + target_probs * log_probs).sum(-1)


def entropy(logits: Array) -> Array:
    """The entropies [...] of the distributions of logits [..., num_bins], in nats."""
    return entr(jax.nn.softmax(logits)).sum(-1)
