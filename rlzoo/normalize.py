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
        ones = jax.tree.map(jnp.ones_like, zeros)
        return cls(zeros, ones, jnp.float32(0))

    def update(self, batch: Any) -> "RunningStats":
        """Take in `batch`, whose leaves have any number of leading axes before the example's."""
        leaf = jax.tree.leaves(batch)[0]
        example = jax.tree.leaves(self.mean)[0]
        axes = tuple(range(leaf.ndim - example.ndim))
        n = float(leaf.size // max(example.size, 1))
        total = self.count + n

        def new_mean(mean: jax.Array, x: jax.Array) -> jax.Array:
            delta = x.astype(jnp.float32).mean(axes) - mean
            return mean + delta * n / total

        def new_var(mean: jax.Array, var: jax.Array, x: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            delta = x.mean(axes) - mean
            between = delta**2 * self.count * n / total
            squares = var * self.count + x.var(axes) * n + between
            return squares / total

        mean = jax.tree.map(new_mean, self.mean, batch)
        var = jax.tree.map(new_var, self.mean, self.var, batch)
        return RunningStats(mean, var, total)

    def normalize(self, x: Any, clip: float = 10.0) -> Any:
        """Center and scale `x` (any leading axes), clipped to [-clip, clip]."""

        def one(mean: jax.Array, var: jax.Array, x: jax.Array) -> jax.Array:
            scaled = (x - mean) / jnp.sqrt(var + 1e-8)
            return jnp.clip(scaled, -clip, clip)

        return jax.tree.map(one, self.mean, self.var, x)


@struct.dataclass
class RewardScale:
    """Divides rewards by the running standard deviation of the discounted return; does not center
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

        def body(ret: jax.Array, step: tuple) -> tuple:
            reward, done = step
            ret = reward + discount * ret
            return jnp.where(done, 0.0, ret), ret

        returns: jax.Array
        last, returns = jax.lax.scan(body, self.returns, (reward, done))
        stats = self.stats.update(returns)
        scaled = reward / jnp.sqrt(stats.var + 1e-8)
        return RewardScale(stats, last), jnp.clip(scaled, -10.0, 10.0)
