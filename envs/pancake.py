"""Pancake sorting: put a stack in order by flipping the uppermost ones over, several at a time."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from .puzzle import Array, Params, Puzzle, State, breadth_first, not_permutation, permutation_rank

TABLE = 9
"""The tallest stack for which there is a table of distances."""


class Pancake(Puzzle):
    """A stack of `count` pancakes of sizes 0..count-1, from the top; the goal has the smallest on
    top. Action k flips the upper k + 2."""

    goal: np.ndarray

    def __init__(self, count: int):
        self.size = self.values = count
        self.name = f"pancake{count}"
        flips = range(2, count + 1)
        self.action_names = tuple(f"flip{k}" for k in flips)
        self.costs = np.ones(len(flips), np.float32)
        self.inverse = np.arange(len(flips), dtype=np.int32)
        self.goal = np.arange(count, dtype=np.uint8)
        self.params = Params(4 * count, 2 * count)
        place = np.arange(count)
        flipped = np.array(flips)[:, None]
        self.table = np.where(place < flipped, flipped - 1 - place, place)
        """int [count - 1, count]: the stacks after an action are `states[..., table[action]]`"""

    def apply(self, states: Array, actions: Array) -> Array:
        source = jnp.asarray(self.table, jnp.int32)[actions]
        return jnp.take_along_axis(states, source, -1, mode="promise_in_bounds")

    def apply_all(self, states: Array) -> Array:
        return states[:, self.table]

    def fault(self, state: np.ndarray) -> str:
        return not_permutation(state)

    def distance(self, states: Array) -> Array:
        if self.size > TABLE:
            return super().distance(states)
        table = jnp.asarray(_table(self.size))
        return table[permutation_rank(states)].astype(jnp.int32)

    def gap(self, states: Array) -> Array:
        """How many pancakes lie on one that is not the next larger or smaller, the plate counting
        as the largest: never above the distance, as a flip changes one such pair (Helmert 2010).
        uint8 [..., size] -> int32 [...]."""
        plate = jnp.full_like(states[..., :1], self.size)
        below = jnp.concatenate([states[..., 1:], plate], -1)
        difference = abs(states - below.astype(jnp.int32))
        is_gap = difference > 1
        return is_gap.sum(-1, dtype=jnp.int32)

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        """Bars, the browner the larger."""
        thick = max(4, 200 // self.size)
        unit = max(2, 100 // self.size)
        height = thick * self.size + 12
        width = 2 * unit * (self.size + 2)
        picture = np.full((height, width, 3), 255, np.uint8)
        stack = np.asarray(state.position).astype(int)
        for i, size in enumerate(stack):
            top = i * thick + 1
            left = unit * (self.size - size)
            right = left + 2 * unit * (size + 2)
            shade = size / (self.size - 1)
            color = (240 - 90 * shade, 200 - 120 * shade, 120 - 90 * shade)
            picture[top : top + thick - 1, left:right] = color
        picture[-10:-4] = 90  # the plate
        return picture


@functools.cache
def _table(count: int) -> np.ndarray:
    return breadth_first(Pancake(count), permutation_rank, math.factorial(count))
