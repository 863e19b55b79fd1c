"""Sliding tiles: the 8-, 15-, 24-, 35- and 48-puzzle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .puzzle import (
    Params,
    Puzzle,
    State,
    breadth_first,
    not_permutation,
    odd,
    permutation_rank,
    tiled,
)

DIGITS = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111", "75757", "75717")
"""3 x 5 dots each: five rows from the top, three bits to a row"""
CELL = 32
"""pixels of a tile's side"""


class Tiles(Puzzle):
    """`side` x `side` cells in rows from the top left: 0 is the blank, and the goal is 1, 2, ...,
    0.

    An action moves the tile beside the blank into it: U moves the tile below the blank up, and so
    on.
    """

    action_names = ("U", "D", "L", "R")
    inverse = np.array([1, 0, 3, 2], np.int32)
    costs = np.ones(4, np.float32)
    goal: np.ndarray

    def __init__(self, side: int):
        self.side = side
        self.size = self.values = side * side
        self.name = f"tile{self.size - 1}"
        self.goal = np.roll(np.arange(self.size, dtype=np.uint8), -1)
        self.params = Params(side**4, 500 if side <= 5 else 1000)
        row, column = np.divmod(np.arange(self.size)[:, None], side)
        row, column = row + [1, -1, 0, 0], column + [0, 0, 1, -1]
        inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        self.moves = np.where(inside, row * side + column, np.arange(self.size)[:, None]).astype(
            np.int32
        )
        """int32 [size, 4]: where the blank goes; where it is, if it cannot move"""

    def apply(self, states: jax.Array, actions: jax.Array) -> jax.Array:
        cell = jnp.arange(self.size)
        blank = jnp.where(states == 0, cell, 0).sum(-1)
        after = jnp.asarray(self.moves)[blank, actions][..., None]
        tile = jnp.where(cell == after, states, 0).max(-1, keepdims=True)
        return jnp.where(
            cell == blank[..., None], tile, jnp.where(cell == after, 0, states)
        ).astype(jnp.uint8)

    def fault(self, state: np.ndarray) -> str:
        if why := not_permutation(state):
            return why
        # A move is a swap, and takes the blank one step: an even number of both leads to the goal.
        row, column = divmod(int(state.argmin()), self.side)
        away = 2 * (self.side - 1) - row - column
        if (odd(state) ^ odd(self.goal)) != away % 2:
            return "it cannot be solved: the permutation of the tiles has the wrong parity"
        return ""

    def distance(self, states: jax.Array) -> jax.Array:
        if self.side > 3:
            return super().distance(states)
        return jnp.asarray(_table())[permutation_rank(states)].astype(jnp.int32)

    # ---- heuristics, none above the distance -----------------------------------------------------

    def manhattan(self, states: jax.Array) -> jax.Array:
        """Rows and columns between each tile and its place: uint8 [..., size] -> int32 [...]."""
        cell, place = np.arange(self.size), states.astype(jnp.int32) - 1
        away = abs(place // self.side - cell // self.side) + abs(
            place % self.side - cell % self.side
        )
        return jnp.where(states > 0, away, 0).sum(-1, dtype=jnp.int32)

    def linear_conflict(self, states: jax.Array) -> jax.Array:
        """Manhattan distance, and two moves more for each tile that must leave its row or column to
        let others of that line pass (Hansson, Mayer and Yung 1992): uint8 [..., size] -> int32
        [...]."""
        grid = states.reshape(*states.shape[:-1], self.side, self.side).astype(jnp.int32)
        line = np.arange(self.side)[:, None]
        place = grid - 1
        across = jnp.where((grid > 0) & (place // self.side == line), place % self.side, -1)
        grid, place = grid.swapaxes(-1, -2), place.swapaxes(-1, -2)
        down = jnp.where((grid > 0) & (place % self.side == line), place // self.side, -1)
        return self.manhattan(states) + 2 * (_leave(across) + _leave(down)).sum(-1, dtype=jnp.int32)

    # ---- pictures --------------------------------------------------------------------------------

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        tiles = np.asarray(state.position).reshape(self.side, self.side)
        home = tiles == self.goal.reshape(tiles.shape)
        colours = np.where(home[..., None], [198, 224, 180], [250, 220, 170]).astype(np.uint8)
        colours[tiles == 0] = 90
        picture = tiled(colours, CELL)
        for (row, column), tile in np.ndenumerate(tiles):
            if tile:
                _write(str(tile), picture[row * CELL :, column * CELL :][:CELL, :CELL])
        return picture


def _leave(places: jax.Array) -> jax.Array:
    """How many tiles of a line must leave it so that the rest are in order: those beside a longest
    increasing subsequence. int32 [..., n], where -1 is no tile of this line -> int32 [...]."""
    longest: list[
        jax.Array
    ] = []  # increasing subsequence that ends in each cell; 0 where there is no tile of the line
    for j in range(places.shape[-1]):
        here = places[..., j]
        best = jnp.zeros_like(here)
        for i in range(j):
            best = jnp.where(places[..., i] < here, jnp.maximum(best, longest[i]), best)
        longest.append(jnp.where(here >= 0, 1 + best, 0))
    return (places >= 0).sum(-1) - jnp.stack(longest).max(0)


def _write(number: str, picture: np.ndarray) -> None:
    """Draw a number into the middle of a tile."""
    bits = [
        np.unpackbits(np.array([[int(row)] for row in DIGITS[int(digit)]], np.uint8), axis=1)
        for digit in number
    ]
    dots = (
        np.concatenate([rows[:, 4:] for rows in bits], 1)[:, 1:]
        .repeat(3, 0)
        .repeat(3, 1)
        .astype(bool)
    )
    top, left = (np.array(picture.shape[:2]) - dots.shape) // 2 + 1
    picture[top : top + len(dots), left : left + dots.shape[1]][dots] = 40


@functools.cache
def _table() -> np.ndarray:
    return breadth_first(Tiles(3), permutation_rank, 362_880)
