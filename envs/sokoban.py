"""Sokoban on 10 x 10 cells with four boxes: push every box onto a goal. What is pushed into a
corner stays there."""

import jax
import jax.numpy as jnp
import numpy as np

from .puzzle import Array, Arrays, Params, Puzzle, State, below, read_array, tiled

SIDE = 10
BOXES = 4
WALL, BOX, GOAL, AGENT = 1, 2, 4, 8
"""A cell is the sum of what is in it."""
PLANES = (AGENT, WALL, BOX, GOAL)
"""of a network's inputs"""
MIXING = 100
"""Most of the steps that are made at random before a problem begins."""
CARVE = 40
"""Steps of the walk that carves a room."""
CELL = 32
"""pixels of a cell's side"""
MOVES = np.array(
    [
        [-1, 0],
        [1, 0],
        [0, -1],
        [0, 1],
    ]
)
"""rows down and columns to the right, of each action"""
COLORS = {
    GOAL: (220, 90, 90),
    BOX: (165, 110, 50),
    BOX | GOAL: (70, 160, 80),
    AGENT: (50, 100, 200),
}
"""in the order in which they are drawn, later ones on top"""
INSETS = {GOAL: 11, BOX: 5, BOX | GOAL: 5, AGENT: 8}
"""pixels from a cell's edge"""
DARK = (70, 70, 80)
FLOOR = (235, 230, 215)


def _ahead(steps: int) -> np.ndarray:
    """int32 [100, 4]: the cell so many steps away in each direction; 100 where that is outside."""
    cells = np.indices((SIDE, SIDE)).reshape(2, -1).T
    place = cells[:, None] + steps * MOVES
    inside = (place >= 0) & (place < SIDE)
    number = place @ [SIDE, 1]
    ahead = np.where(inside.all(-1), number, SIDE * SIDE)
    return ahead.astype(np.int32)


NEXT = _ahead(1)
SECOND = _ahead(2)


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

    def apply(self, states: Array, actions: Array) -> Array:
        cell = jnp.arange(self.size)
        at_agent = states & AGENT > 0
        agent = jnp.where(at_agent, cell, 0).sum(-1)
        at_next = cell == jnp.asarray(NEXT)[agent, actions][..., None]
        at_second = cell == jnp.asarray(SECOND)[agent, actions][..., None]
        first = _content(states, at_next)
        second = _content(states, at_second)
        free = first & (WALL | BOX) == 0
        push = (first & BOX > 0) & (second & (WALL | BOX) == 0)
        walked = (at_agent | at_next) * AGENT
        pushed = ((at_next | at_second) & push[..., None]) * BOX
        changed = states ^ (walked ^ pushed).astype(jnp.uint8)
        return jnp.where((free | push)[..., None], changed, states)

    def is_goal(self, states: Array) -> Array:
        box = states & BOX > 0
        goal = states & GOAL > 0
        return (box == goal).all(-1)

    def inputs(self, states: Array) -> Array:
        """Four planes of cells: agent, walls, boxes, goals."""
        planes = [states & what > 0 for what in PLANES]
        return jnp.concatenate(planes, -1).astype(jnp.float32)

    def states_of(self, inputs: Array) -> Array:
        planes = inputs.reshape(*inputs.shape[:-1], 4, self.size)
        values = np.array(PLANES, np.uint8)[:, None]
        cells = planes.astype(jnp.uint8) * values
        return cells.sum(-2, dtype=jnp.uint8)

    def distance(self, states: Array) -> Array:
        raise NotImplementedError(
            "sokoban: each room would need a table of exact distances of its own"
        )

    # ---- problems --------------------------------------------------------------------------------

    def _begin(self, key: Array, count: int) -> Array:
        room_key, length_key, move_key = jax.random.split(key, 3)
        rooms = jax.vmap(_room)(jax.random.split(room_key, count))
        steps = 1 + below(length_key, (count,), MIXING)
        return self._wander(move_key, rooms, steps, MIXING)

    def _pose(self, begin: Array, reached: Array) -> Array:
        goals = (reached & BOX > 0).astype(jnp.uint8)
        return begin | goals * GOAL

    def read(self, arrays: Arrays) -> np.ndarray:
        """Files hold `agent` [n, 2], row and column, and `walls`, `boxes` and `goals`, bool [n, 10,
        10]."""
        agent = read_array(arrays, "agent", (2,)).astype(int)
        names = ("walls", "boxes", "goals")
        layers = [read_array(arrays, name, (SIDE, SIDE)) != 0 for name in names]
        lengths = [len(agent), *map(len, layers)]
        if len(set(lengths)) > 1:
            counts = ", ".join(map(str, lengths))
            raise ValueError(
                f"agent, walls, boxes and goals hold {counts} states; they should hold equally many"
            )
        for i, (place, *cells) in enumerate(zip(agent, *layers, strict=True)):
            if why := _fault(place, *cells):
                raise ValueError(f"state {i}: {why}")
        walls, boxes, goals = layers
        cells = walls * WALL + boxes * BOX + goals * GOAL
        states = cells.astype(np.uint8).reshape(-1, self.size)
        place = agent @ [SIDE, 1]
        states[np.arange(len(agent)), place] += AGENT
        return states

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        """Walls dark, goals red; a box is brown, green on a goal; the agent is blue."""
        cells = np.asarray(state.position).reshape(SIDE, SIDE)
        walls = cells & WALL > 0
        colors = np.where(walls[..., None], DARK, FLOOR)
        picture = tiled(colors.astype(np.uint8), CELL)
        for what, color in COLORS.items():
            first = INSETS[what]
            last = CELL + 2 - first
            for row, column in np.argwhere(cells & what == what):
                square = picture[row * CELL :, column * CELL :]
                square[first:last, first:last] = color
        return picture


def _content(states: Array, at: Array) -> Array:
    """What is in the cell that `at`, bool [..., 100], marks: uint8 [...]; a wall where it marks
    none."""
    content = jnp.where(at, states, 0)
    outside = jnp.where(at.any(-1), 0, WALL)
    return content.sum(-1, dtype=jnp.uint8) | outside


def _room(key: Array) -> Array:
    """A room with four boxes and no goals: uint8 [100]."""
    # All numbers are drawn in one go, which compiles in a third of the time.
    luck = jax.random.uniform(key, (2 + CARVE + SIDE * SIDE,))
    start, steps, luck = jnp.split(luck, [2, 2 + CARVE])
    inner = SIDE - 2
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)

    # --- the floor: where a random walk goes, and room for the boxes where it starts ---
    def carve(carry: tuple, step: Array) -> tuple:
        at, floor = carry
        move = jnp.asarray(MOVES)[step]
        at = jnp.clip(at + move, 1, inner - 1)
        down = row - at[0]
        right = column - at[1]
        in_rows = (down >= 0) & (down < 2)
        in_columns = (right >= 0) & (right < 2)
        floor |= in_rows & in_columns
        return (at, floor), None

    at = 2 + ((inner - 2) * start).astype(int)
    in_rows = abs(row - at[0]) <= 1
    in_columns = abs(column - at[1]) <= 1
    steps = (4 * steps).astype(int)
    (_, floor), _ = jax.lax.scan(carve, (at, in_rows & in_columns), steps)

    # --- boxes: on cells with floor on both sides in one direction ---
    grid = floor.reshape(SIDE, SIDE)
    in_column = jnp.roll(grid, 1, 0) & jnp.roll(grid, -1, 0)
    in_row = jnp.roll(grid, 1, 1) & jnp.roll(grid, -1, 1)
    can_be_pushed = floor & (in_column | in_row).ravel()
    luck_of_boxes = jnp.where(can_be_pushed, luck, -1)
    _, places = jax.lax.top_k(luck_of_boxes, BOXES)
    cell = jnp.arange(SIDE * SIDE)
    boxes = (cell == places[:, None]).any(0)

    # --- the agent: on another cell ---
    luck_of_agent = jnp.where(floor & ~boxes, luck, -1)
    agent = cell == jnp.argmax(luck_of_agent)
    room = jnp.where(floor, 0, WALL) + boxes * BOX + agent * AGENT
    return room.astype(jnp.uint8)


def _fault(agent: np.ndarray, walls: np.ndarray, boxes: np.ndarray, goals: np.ndarray) -> str:
    """What is wrong with a room, in words; "" where nothing is."""
    at = tuple(agent.tolist())
    if not ((agent >= 0) & (agent < SIDE)).all():
        return f"the agent is at {at}; rows and columns lie in 0..{SIDE - 1}"
    for what, cells in (("wall", walls), ("box", boxes)):
        if cells[at]:
            return f"the agent is in a {what}, at {at}"
    for what, cells in (("box", boxes), ("goal", goals)):
        wrong = np.argwhere(cells & walls)
        if wrong.size:
            return f"a {what} is in a wall, at {tuple(wrong[0].tolist())}"
    if boxes.sum() != goals.sum():
        return f"there are {boxes.sum()} boxes and {goals.sum()} goals"
    if not boxes.any():
        return "there are no boxes"
    return ""
