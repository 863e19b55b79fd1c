"""Sliding tiles: the 8-, 15-, 24-, 35- and 48-puzzle."""

import functools

import jax.numpy as jnp
import numpy as np

from .puzzle import (
    Array,
    Params,
    Puzzle,
    State,
    breadth_first,
    not_permutation,
    odd,
    permutation_rank,
    tiled,
)

DIGITS = (
    "75557",
    "26227",
    "71747",
    "71717",
    "55711",
    "74717",
    "74757",
    "71111",
    "75757",
    "75717",
)
"""3 x 5 dots each: five rows from the top, three bits to a row"""
CELL = 32
"""pixels of a tile's side"""
AT_HOME = (198, 224, 180)
ELSEWHERE = (250, 220, 170)
INK = 40
BLANK = 90


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
        tiles = np.arange(self.size, dtype=np.uint8)
        self.goal = np.roll(tiles, -1)
        self.params = Params(side**4, 500 if side <= 5 else 1000)
        cell = np.arange(self.size)[:, None]
        row = cell // side + [1, -1, 0, 0]
        column = cell % side + [0, 0, 1, -1]
        row_inside = (row >= 0) & (row < side)
        column_inside = (column >= 0) & (column < side)
        moves = np.where(row_inside & column_inside, row * side + column, cell)
        self.moves = moves.astype(np.int32)
        """int32 [size, 4]: where the blank goes; where it is, if it cannot move"""

    def apply(self, states: Array, actions: Array) -> Array:
        cell = jnp.arange(self.size)
        blank = jnp.where(states == 0, cell, 0).sum(-1)
        after = jnp.asarray(self.moves)[blank, actions]
        at_blank = cell == blank[..., None]
        at_after = cell == after[..., None]
        tile = jnp.where(at_after, states, 0).max(-1, keepdims=True)
        without = jnp.where(at_after, 0, states)
        swapped = jnp.where(at_blank, tile, without)
        return swapped.astype(jnp.uint8)

    def fault(self, state: np.ndarray) -> str:
        if why := not_permutation(state):
            return why
        # A move is a swap, and takes the blank one step: an even number of both leads to the goal.
        row, column = divmod(int(state.argmin()), self.side)
        away = 2 * (self.side - 1) - row - column
        if (odd(state) ^ odd(self.goal)) != away % 2:
            return "it cannot be solved: the permutation of the tiles has the wrong parity"
        return ""

    def distance(self, states: Array) -> Array:
        if self.side > 3:
            return super().distance(states)
        table = jnp.asarray(_table())
        return table[permutation_rank(states)].astype(jnp.int32)

    # ---- heuristics, none above the distance -----------------------------------------------------

    def manhattan(self, states: Array) -> Array:
        """Rows and columns between each tile and its place: uint8 [..., size] -> int32 [...]."""
        cell = np.arange(self.size)
        place = states.astype(jnp.int32) - 1
        rows = abs(place // self.side - cell // self.side)
        columns = abs(place % self.side - cell % self.side)
        away = jnp.where(states > 0, rows + columns, 0)
        return away.sum(-1, dtype=jnp.int32)

    def linear_conflict(self, states: Array) -> Array:
        """Manhattan distance, and two moves more for each tile that must leave its row or column to
        let others of that line pass (Hansson, Mayer and Yung 1992): uint8 [..., size] -> int32
        [...]."""
        grid = states.reshape(*states.shape[:-1], self.side, self.side)
        grid = grid.astype(jnp.int32)
        line = np.arange(self.side)[:, None]
        row, column = jnp.divmod(grid - 1, self.side)
        # Of each row, where its own tiles belong in it; -1 elsewhere. Then the same of columns.
        in_row = (grid > 0) & (row == line)
        in_column = (grid > 0) & (column == line.T)
        across = jnp.where(in_row, column, -1)
        down = jnp.where(in_column, row, -1)
        leaving = _leave(across) + _leave(down.swapaxes(-1, -2))
        return self.manhattan(states) + 2 * leaving.sum(-1, dtype=jnp.int32)

    # ---- pictures --------------------------------------------------------------------------------

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        tiles = np.asarray(state.position).reshape(self.side, self.side)
        home = tiles == self.goal.reshape(tiles.shape)
        colors = np.where(home[..., None], AT_HOME, ELSEWHERE)
        colors[tiles == 0] = BLANK
        picture = tiled(colors.astype(np.uint8), CELL)
        for (row, column), tile in np.ndenumerate(tiles):
            if tile:
                rest = picture[row * CELL :, column * CELL :]
                _write(str(tile), rest[:CELL, :CELL])
        return picture


def _leave(places: Array) -> Array:
    """How many tiles of a line must leave it so that the rest are in order: those beside a longest
    increasing subsequence. int32 [..., n], where -1 is no tile of this line -> int32 [...]."""
    # The longest increasing subsequence that ends in each cell; 0 without a tile of the line.
    longest: list[Array] = []
    for j in range(places.shape[-1]):
        here = places[..., j]
        best = jnp.zeros_like(here)
        for i in range(j):
            longer = jnp.maximum(best, longest[i])
            best = jnp.where(places[..., i] < here, longer, best)
        longest.append(jnp.where(here >= 0, 1 + best, 0))
    count = (places >= 0).sum(-1)
    return count - jnp.stack(longest).max(0)


def _write(number: str, picture: np.ndarray) -> None:
    """Draw a number into the middle of a tile."""
    digits = []
    for digit in number:
        rows = np.array(list(DIGITS[int(digit)]), np.uint8)
        bits = np.unpackbits(rows[:, None], axis=1)
        # Four bits a row: the first, a blank, keeps the digits apart.
        digits.append(bits[:, 4:])
    dots = np.concatenate(digits, 1)[:, 1:]
    dots = dots.repeat(3, 0).repeat(3, 1)
    height, width = dots.shape
    top = (picture.shape[0] - height) // 2 + 1
    left = (picture.shape[1] - width) // 2 + 1
    square = picture[top : top + height, left : left + width]
    square[dots > 0] = INK


@functools.cache
def _table() -> np.ndarray:
    return breadth_first(Tiles(3), permutation_rank, 362_880)
