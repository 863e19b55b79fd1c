"""Running normalization of observations and rewards.

Statistics belong to the whole batch of environments, so they are plain pytrees that the algorithm
keeps in its training state.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class RunningStats:
    """Mean and variance of everything seen so far (Chan et al.'s parallel update), leaf by leaf.

    `mean` and `var` have the shape of one example, `count` is a float32 scalar. With nothing seen,
    `normalize` only clips.
    """

    mean: Any
    var: Any
    count: jax.Array

    @classmethod
    def init(cls, example: Any) -> "RunningStats":
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), example)
        return cls(zeros, jax.tree.map(jnp.ones_like, zeros), jnp.float32(0))

    def update(self, batch: Any) -> "RunningStats":
        """Take in `batch`, whose leaves have any number of leading axes before the example's."""
        leaf, example = jax.tree.leaves(batch)[0], jax.tree.leaves(self.mean)[0]
        axes = tuple(range(leaf.ndim - example.ndim))
        n = float(leaf.size // max(example.size, 1))
        total = self.count + n

        def merge(mean: jax.Array, var: jax.Array, x: jax.Array) -> tuple:
            x = x.astype(jnp.float32)
            batch_mean = x.mean(axes)
            delta = batch_mean - mean
            m2 = var * self.count + x.var(axes) * n + delta**2 * self.count * n / total
            return mean + delta * n / total, m2 / total

        merged = jax.tree.map(merge, self.mean, self.var, batch)
        pick = lambda i: jax.tree.map(lambda _, pair: pair[i], self.mean, merged)
        return RunningStats(pick(0), pick(1), total)

    def normalize(self, x: Any, clip: float = 10.0) -> Any:
        """Centre and scale `x` (any leading axes), clipped to [-clip, clip]."""
        one = lambda mean, var, x: jnp.clip((x - mean) / jnp.sqrt(var + 1e-8), -clip, clip)
        return jax.tree.map(one, self.mean, self.var, x)


@struct.dataclass
class RewardScale:
    """Divides rewards by the running standard deviation of the discounted return; does not centre
    them."""

    stats: RunningStats
    returns: jax.Array
    """discounted return so far of each environment [num_envs]"""

    @classmethod
    def init(cls, num_envs: int) -> "RewardScale":
        return cls(RunningStats.init(jnp.zeros(())), jnp.zeros(num_envs))

    def update(
        self, reward: jax.Array, done: jax.Array, discount: Any
    ) -> tuple["RewardScale", jax.Array]:
        """Take in a rollout's `reward` and `done` [length, num_envs]; returns the scaled rewards
        too."""

        def body(ret: jax.Array, x: tuple) -> tuple:
            ret = x[0] + discount * ret
            return jnp.where(x[1], 0.0, ret), ret

        returns: jax.Array
        last, returns = jax.lax.scan(body, self.returns, (reward, done))
        stats = self.stats.update(returns)
        return RewardScale(stats, last), jnp.clip(reward / jnp.sqrt(stats.var + 1e-8), -10.0, 10.0)
