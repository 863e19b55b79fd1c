"""Sokoban on 10 x 10 cells with four boxes: push every box onto a goal. What is pushed into a
corner stays there."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from .puzzle import Params, Puzzle, State, below, read_array, tiled

SIDE, BOXES = 10, 4
WALL, BOX, GOAL, AGENT = 1, 2, 4, 8
"""A cell is the sum of what is in it."""
MIXING = 100
"""Most of the steps that are made at random before a problem begins."""
CARVE = 40
"""Steps of the walk that carves a room."""
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])


def _ahead(steps: int) -> np.ndarray:
    """int32 [100, 4]: the cell so many steps away in each direction; 100 where that is outside."""
    place = np.stack(np.divmod(np.arange(SIDE * SIDE), SIDE), -1)[:, None] + steps * MOVES
    return np.where(((place >= 0) & (place < SIDE)).all(-1), place @ [SIDE, 1], SIDE * SIDE).astype(
        np.int32
    )


NEXT, SECOND = _ahead(1), _ahead(2)


class Sokoban(Puzzle):
    """Actions move the agent a row up, a row down, a column left or right, and with it the box that
    is there.

    A problem is made as DeepCubeA's are (Agostinelli et al. 2019): in a room, 1 to 100 steps at
    random; here it starts. Then k more: where the boxes are now are the goals, so that k moves
    solve it, and the boxes and the agent go back.

    Rooms are drawn from the key: a random walk of 40 steps, each in a direction of its own, inside
    the outer wall carves 2 x 2 cells wherever it is, so that the floor is connected and has no
    corridor of a single cell's width; boxes are put on cells where they can be pushed along a row
    or column, then the agent on one of the other cells.
    """

    name = "sokoban"
    size = SIDE * SIDE
    values = 13
    action_names = ("row-1", "row+1", "col-1", "col+1")
    costs = np.ones(4, np.float32)
    inverse = None
    goal = None
    params = Params(200, 1000)

    @property
    def num_inputs(self) -> int:
        return 4 * self.size

    def apply(self, states: jax.Array, actions: jax.Array) -> jax.Array:
        cell = jnp.arange(self.size)
        agent = jnp.where(states & AGENT > 0, cell, 0).sum(-1)
        to, beyond = jnp.asarray(NEXT)[agent, actions], jnp.asarray(SECOND)[agent, actions]
        at_to, at_beyond = cell == to[..., None], cell == beyond[..., None]
        first, second = (
            (jnp.where(at, states, 0).sum(-1, dtype=jnp.uint8) | jnp.where(at.any(-1), 0, WALL))
            for at in (at_to, at_beyond)
        )
        free, push = first & (WALL | BOX) == 0, (first & BOX > 0) & (second & (WALL | BOX) == 0)
        change = ((cell == agent[..., None]) | at_to) * AGENT ^ (
            (at_to | at_beyond) & push[..., None]
        ) * BOX
        return jnp.where((free | push)[..., None], states ^ change.astype(jnp.uint8), states)

    def is_goal(self, states: jax.Array) -> jax.Array:
        return ((states & BOX > 0) == (states & GOAL > 0)).all(-1)

    def inputs(self, states: jax.Array) -> jax.Array:
        """Four planes of cells: agent, walls, boxes, goals."""
        planes = [(states & what > 0).astype(jnp.float32) for what in (AGENT, WALL, BOX, GOAL)]
        return jnp.concatenate(planes, -1)

    def states_of(self, inputs: jax.Array) -> jax.Array:
        planes = inputs.reshape(*inputs.shape[:-1], 4, self.size).astype(jnp.uint8)
        return (planes * np.array([[AGENT], [WALL], [BOX], [GOAL]], np.uint8)).sum(
            -2, dtype=jnp.uint8
        )

    def distance(self, states: jax.Array) -> jax.Array:
        raise NotImplementedError(
            "sokoban: each room would need a table of exact distances of its own"
        )

    # ---- problems --------------------------------------------------------------------------------

    def _begin(self, key: jax.Array, count: int) -> jax.Array:
        rooms, length, moves = jax.random.split(key, 3)
        steps = 1 + below(length, (count,), MIXING)
        return self._wander(moves, jax.vmap(_room)(jax.random.split(rooms, count)), steps, MIXING)

    def _pose(self, begin: jax.Array, reached: jax.Array) -> jax.Array:
        return begin | (reached & BOX > 0).astype(jnp.uint8) * GOAL

    def read(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Files hold `agent` [n, 2], row and column, and `walls`, `boxes` and `goals`, bool [n, 10,
        10]."""
        agent = read_array(arrays, "agent", (2,)).astype(int)
        layers = [
            read_array(arrays, name, (SIDE, SIDE)).astype(bool)
            for name in ("walls", "boxes", "goals")
        ]
        if len({len(layer) for layer in (agent, *layers)}) > 1:
            counts = ", ".join(str(len(x)) for x in (agent, *layers))
            raise ValueError(
                f"agent, walls, boxes and goals hold {counts} states; they should hold equally many"
            )
        for i, (place, *cells) in enumerate(zip(agent, *layers, strict=True)):
            if why := _fault(place, *cells):
                raise ValueError(f"state {i}: {why}")
        walls, boxes, goals = layers
        states = (walls * WALL + boxes * BOX + goals * GOAL).astype(np.uint8).reshape(-1, self.size)
        states[np.arange(len(agent)), agent @ [SIDE, 1]] += AGENT
        return states

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        """Walls dark, goals red; a box is brown, green on a goal; the agent is blue."""
        cells = np.asarray(state.position).reshape(SIDE, SIDE)
        colours = np.where((cells & WALL > 0)[..., None], [70, 70, 80], [235, 230, 215]).astype(
            np.uint8
        )
        picture = tiled(colours)
        for where, colour, inset in (
            (cells & GOAL > 0, (220, 90, 90), 11),
            (cells & BOX > 0, (165, 110, 50), 5),
            (cells & (BOX | GOAL) == BOX | GOAL, (70, 160, 80), 5),
            (cells & AGENT > 0, (50, 100, 200), 8),
        ):
            for row, column in np.argwhere(where):
                picture[
                    row * 32 + inset : row * 32 + 34 - inset,
                    column * 32 + inset : column * 32 + 34 - inset,
                ] = colour
        return picture


def _room(key: jax.Array) -> jax.Array:
    """A room with four boxes and no goals: uint8 [100]."""
    luck = jax.random.uniform(
        key, (2 + CARVE + SIDE * SIDE,)
    )  # in one go, which compiles in a third of the time
    start, steps, luck = luck[:2], (4 * luck[2 : 2 + CARVE]).astype(int), luck[2 + CARVE :]
    inner = SIDE - 2
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)

    def carve(carry: tuple, step: jax.Array) -> tuple:
        at, floor = carry
        at = jnp.clip(at + jnp.asarray(MOVES)[step], 1, inner - 1)
        floor |= (
            (row - at[0] >= 0) & (row - at[0] < 2) & (column - at[1] >= 0) & (column - at[1] < 2)
        )
        return (at, floor), None

    at = 2 + ((inner - 2) * start).astype(int)
    floor = (abs(row - at[0]) <= 1) & (
        abs(column - at[1]) <= 1
    )  # room for the boxes, wherever the walk goes
    (_, floor), _ = jax.lax.scan(carve, (at, floor), steps)
    grid = floor.reshape(SIDE, SIDE)
    beside = lambda shift, axis: jnp.roll(grid, shift, axis).ravel()
    pushed = floor & (beside(1, 0) & beside(-1, 0) | beside(1, 1) & beside(-1, 1))
    _, most = jax.lax.top_k(jnp.where(pushed, luck, -1), BOXES)
    boxes = (jnp.arange(SIDE * SIDE) == most[:, None]).any(0)
    agent = jnp.argmax(jnp.where(floor & ~boxes, luck, -1))
    return (
        jnp.where(floor, 0, WALL) + boxes * BOX + (jnp.arange(SIDE * SIDE) == agent) * AGENT
    ).astype(jnp.uint8)


def _fault(agent: np.ndarray, walls: np.ndarray, boxes: np.ndarray, goals: np.ndarray) -> str:
    if not ((agent >= 0) & (agent < SIDE)).all():
        return f"the agent is at {tuple(agent.tolist())}; rows and columns lie in 0..{SIDE - 1}"
    at = tuple(agent.tolist())
    for what, cells in (("wall", walls), ("box", boxes)):
        if cells[at]:
            return f"the agent is in a {what}, at {at}"
    for what, cells in (("box", boxes), ("goal", goals)):
        if (cells & walls).any():
            return f"a {what} is in a wall, at {tuple(np.argwhere(cells & walls)[0].tolist())}"
    if boxes.sum() != goals.sum():
        return f"there are {boxes.sum()} boxes and {goals.sum()} goals"
    return "" if boxes.any() else "there are no boxes"
