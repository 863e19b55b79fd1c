"""Pancake sorting: put a stack in order by flipping the uppermost ones over, several at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .puzzle import Params, Puzzle, State, breadth_first, not_permutation, permutation_rank

TABLE = 9
"""The tallest stack for which there is a table of distances."""


class Pancake(Puzzle):
    """A stack of `count` pancakes of sizes 0..count-1, from the top; the goal has the smallest on
    top. Action k flips the upper k + 2."""

    goal: np.ndarray

    def __init__(self, count: int):
        self.size = self.values = count
        self.name = f"pancake{count}"
        self.action_names = tuple(f"flip{k}" for k in range(2, count + 1))
        self.costs = np.ones(count - 1, np.float32)
        self.inverse = np.arange(count - 1, dtype=np.int32)
        self.goal = np.arange(count, dtype=np.uint8)
        self.params = Params(4 * count, 2 * count)
        flipped = np.arange(2, count + 1)[:, None]
        self.table = np.where(
            np.arange(count) < flipped, flipped - 1 - np.arange(count), np.arange(count)
        )
        """int [count - 1, count]: the stacks after an action are `states[..., table[action]]`"""

    def apply(self, states: jax.Array, actions: jax.Array) -> jax.Array:
        source = jnp.asarray(self.table, jnp.int32)[actions]
        return jnp.take_along_axis(states, source, -1, mode="promise_in_bounds")

    def apply_all(self, states: jax.Array) -> jax.Array:
        return states[:, self.table]

    def fault(self, state: np.ndarray) -> str:
        return not_permutation(state)

    def distance(self, states: jax.Array) -> jax.Array:
        if self.size > TABLE:
            return super().distance(states)
        return jnp.asarray(_table(self.size))[permutation_rank(states)].astype(jnp.int32)

    def gap(self, states: jax.Array) -> jax.Array:
        """How many pancakes lie on one that is not the next larger or smaller, the plate counting
        as the largest: never above the distance, as a flip changes one such pair (Helmert 2010).
        uint8 [..., size] -> int32 [...]."""
        below = jnp.concatenate(
            [states[..., 1:], jnp.full_like(states[..., :1], self.size)], -1
        ).astype(jnp.int32)
        return (abs(states - below) > 1).sum(-1, dtype=jnp.int32)

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        """Bars, the browner the larger."""
        thick, unit = max(4, 200 // self.size), max(2, 100 // self.size)
        picture = np.full((thick * self.size + 12, 2 * unit * (self.size + 2), 3), 255, np.uint8)
        for i, size in enumerate(np.asarray(state.position).astype(int)):
            shade = size / (self.size - 1)
            picture[i * thick + 1 : (i + 1) * thick, unit * (self.size - size) :][
                :, : 2 * unit * (size + 2)
            ] = [240 - 90 * shade, 200 - 120 * shade, 120 - 90 * shade]
        picture[-10:-4] = 90
        return picture


@functools.cache
def _table(count: int) -> np.ndarray:
    return breadth_first(Pancake(count), permutation_rank, int(np.prod(range(1, count + 1))))
