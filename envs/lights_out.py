"""Lights Out: press cells until all lights are out."""

import itertools

import jax.numpy as jnp
import numpy as np

from .puzzle import Array, Params, Puzzle, State, tiled

LIT = (255, 210, 60)
DARK = (90, 90, 100)


class LightsOut(Puzzle):
    """`side` x `side` lights in rows, 1 where lit; pressing a cell switches it and its neighbors
    in the same row or column. Presses commute, and pressing a cell twice does nothing: a state is
    solved by pressing some set of cells."""

    values = 2
    commutes = True
    goal: np.ndarray

    def __init__(self, side: int):
        self.side = side
        self.size = side * side
        self.name = f"lights-out{side}"
        cells = itertools.product(range(side), repeat=2)
        self.action_names = tuple(f"{row},{column}" for row, column in cells)
        self.costs = np.ones(self.size, np.float32)
        self.inverse = np.arange(self.size, dtype=np.int32)
        self.goal = np.zeros(self.size, np.uint8)
        self.params = Params(2 * self.size, 50)
        row, column = np.divmod(np.arange(self.size), side)
        rows_away = abs(row[:, None] - row)
        columns_away = abs(column[:, None] - column)
        self.switches = (rows_away + columns_away <= 1).astype(np.uint8)
        """uint8 [size, size], symmetric: the lights that each press switches"""
        self.solver, self.quiet = _solve(self.switches)

    @property
    def num_inputs(self) -> int:
        return self.size

    def apply(self, states: Array, actions: Array) -> Array:
        return states ^ jnp.asarray(self.switches)[actions]

    def apply_all(self, states: Array) -> Array:
        return states[:, None] ^ self.switches

    def inputs(self, states: Array) -> Array:
        """The lights as they are."""
        return states.astype(jnp.float32)

    def states_of(self, inputs: Array) -> Array:
        return inputs.astype(jnp.uint8)

    def fault(self, state: np.ndarray) -> str:
        wrong = np.flatnonzero((state < 0) | (state > 1))
        if wrong.size:
            return f"entry {wrong[0]} is {state[wrong[0]]}; a light is 0 or 1"
        presses = self.solver @ state % 2
        switched = self.switches @ presses % 2
        if (switched != state).any():
            return "it cannot be solved: no set of presses puts out all its lights"
        return ""

    def distance(self, states: Array) -> Array:
        """The smallest of the sets of cells that solve a state, by linear algebra over two
        elements."""
        presses = _times(self.solver, states)
        switched = _times(self.switches, presses)
        solved = (switched == states).all(-1)
        # Quiet sets, added to one that solves, give all that do.
        solutions = presses[..., None, :] ^ self.quiet
        least = solutions.sum(-1).min(-1)
        return jnp.where(solved, least, -1).astype(jnp.int32)

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        lit = np.asarray(state.position).reshape(self.side, self.side, 1)
        colors = np.where(lit, LIT, DARK)
        return tiled(colors.astype(np.uint8))


def _times(matrix: np.ndarray, vectors: Array) -> Array:
    """matrix @ vector over two elements: [m, n], [..., n] -> int32 [..., m]."""
    # floats: CPUs multiply matrices of whole numbers slowly
    product = vectors.astype(jnp.float32) @ matrix.T.astype(np.float32)
    return product.astype(jnp.int32) % 2


def _solve(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By Gauss and Jordan over two elements: `solver` such that x = solver @ b solves matrix @ x =
    b wherever that has a solution, and every x [k, n] with matrix @ x = 0."""
    n = len(matrix)
    identity = np.eye(n, dtype=np.uint8)
    rows = np.concatenate([matrix, identity], 1)
    pivots: list[int] = []
    for column in range(n):
        row = len(pivots)
        candidates = row + np.flatnonzero(rows[row:, column])
        if not candidates.size:
            continue
        pivot = candidates[0]
        rows[[row, pivot]] = rows[[pivot, row]]
        # Take the pivot's row from all others that have a 1 in its column.
        others = rows[:, column] * (np.arange(n) != row)
        rows ^= others[:, None] * rows[row]
        pivots.append(column)
    reduced = rows[: len(pivots)]
    solver = np.zeros_like(matrix)
    solver[pivots] = reduced[:, n:]

    # Each free column makes one vector of the null space.
    free = [column for column in range(n) if column not in pivots]
    basis = np.zeros((len(free), n), np.uint8)
    basis[np.arange(len(free)), free] = 1
    basis[:, pivots] = reduced[:, free].T
    sums = list(itertools.product((0, 1), repeat=len(free)))
    chosen = np.array(sums, np.uint8).reshape(len(sums), len(free))
    return solver, chosen @ basis % 2
