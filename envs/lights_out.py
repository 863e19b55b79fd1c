"""Lights Out: press cells until all lights are out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from .puzzle import Params, Puzzle, State, tiled


class LightsOut(Puzzle):
    """`side` x `side` lights in rows, 1 where lit; pressing a cell switches it and its neighbours
    in the same row or column. Presses commute, and pressing a cell twice does nothing: a state is
    solved by pressing some set of cells."""

    values = 2
    commutes = True
    goal: np.ndarray

    def __init__(self, side: int):
        self.side, self.size = side, side * side
        self.name = f"lights-out{side}"
        self.action_names = tuple(
            f"{row},{column}" for row in range(side) for column in range(side)
        )
        self.costs = np.ones(self.size, np.float32)
        self.inverse = np.arange(self.size, dtype=np.int32)
        self.goal = np.zeros(self.size, np.uint8)
        self.params = Params(2 * self.size, 50)
        row, column = np.divmod(np.arange(self.size), side)
        away = abs(row[:, None] - row) + abs(column[:, None] - column)
        self.switches = (away <= 1).astype(np.uint8)
        """uint8 [size, size], symmetric: the lights that each press switches"""
        self.solver, self.quiet = _solve(self.switches)

    @property
    def num_inputs(self) -> int:
        return self.size

    def apply(self, states: jax.Array, actions: jax.Array) -> jax.Array:
        return states ^ jnp.asarray(self.switches)[actions]

    def apply_all(self, states: jax.Array) -> jax.Array:
        return states[:, None] ^ self.switches

    def inputs(self, states: jax.Array) -> jax.Array:
        """The lights as they are."""
        return states.astype(jnp.float32)

    def states_of(self, inputs: jax.Array) -> jax.Array:
        return inputs.astype(jnp.uint8)

    def fault(self, state: np.ndarray) -> str:
        if ((state < 0) | (state > 1)).any():
            i = int(((state < 0) | (state > 1)).argmax())
            return f"entry {i} is {state[i]}; a light is 0 or 1"
        if (self.switches @ (self.solver @ state % 2) % 2 != state).any():
            return "it cannot be solved: no set of presses puts out all its lights"
        return ""

    def distance(self, states: jax.Array) -> jax.Array:
        """The smallest of the sets of cells that solve a state, by linear algebra over two
        elements."""
        times = lambda x, matrix: (
            (x.astype(jnp.float32) @ matrix.T.astype(np.float32)).astype(jnp.int32) % 2
        )
        presses = times(states, self.solver)
        solved = (times(presses, self.switches) == states).all(-1)
        least = (presses[..., None, :] ^ self.quiet).sum(-1).min(-1)
        return jnp.where(solved, least, -1).astype(jnp.int32)

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        lit = np.asarray(state.position).reshape(self.side, self.side, 1)
        return tiled(np.where(lit, [255, 210, 60], [90, 90, 100]).astype(np.uint8))


def _solve(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By Gauss and Jordan over two elements: `solver` such that x = solver @ b solves matrix @ x =
    b wherever that has a solution, and every x [k, n] with matrix @ x = 0."""
    n = len(matrix)
    rows = np.concatenate([matrix, np.eye(n, dtype=np.uint8)], 1)
    pivots: list[int] = []
    for column in range(n):
        below = np.flatnonzero(rows[len(pivots) :, column]) + len(pivots)
        if not below.size:
            continue
        rows[[len(pivots), below[0]]] = rows[[below[0], len(pivots)]]
        others = rows[:, column] * (np.arange(n) != len(pivots))
        rows ^= others[:, None] * rows[len(pivots)]
        pivots.append(column)
    solver = np.zeros_like(matrix)
    solver[pivots] = rows[: len(pivots), n:]
    free = [column for column in range(n) if column not in pivots]
    basis = np.zeros((len(free), n), np.uint8)
    basis[np.arange(len(free)), free] = 1
    basis[:, pivots] = rows[: len(pivots)][:, free].T
    chosen = np.array(list(itertools.product((0, 1), repeat=len(free))), np.uint8).reshape(
        2 ** len(free), len(free)
    )
    return solver, chosen @ basis % 2
