"""The Rubik's cube, 3x3x3 and 2x2x2, in quarter turns and in meta-actions of two or three of them.

A state is the color of every sticker, face by face in the order U D L R B F (colors are numbered
like the faces), each face in rows. Turns are derived from where the stickers lie in space: the axes
x, y, z point out of R, B and U.
"""

import functools
import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from .puzzle import (
    LINE,
    Array,
    Arrays,
    Params,
    Puzzle,
    State,
    below,
    breadth_first,
    not_permutation,
    odd,
    permutation_rank,
    tiled,
)

FACES = "UDLRBF"
NORMALS = np.array(
    [
        [0, 0, 1],
        [0, 0, -1],
        [-1, 0, 0],
        [1, 0, 0],
        [0, 1, 0],
        [0, -1, 0],
    ]
)
"""what points out of each face"""
AXES = (
    ((0, 1), (1, 1)),
    ((0, 1), (1, -1)),
    ((1, -1), (2, 1)),
    ((1, 1), (2, 1)),
    ((0, -1), (2, 1)),
    ((0, 1), (2, 1)),
)
"""of each face: (axis, direction) along which its rows, and the stickers of a row, are counted"""
COLORS = np.array(
    [
        [250, 250, 250],
        [250, 215, 0],
        [255, 120, 0],
        [200, 30, 40],
        [0, 80, 200],
        [0, 150, 70],
    ],
    np.uint8,
)
NET = {
    "U": (0, 1, (1, 0, 0), (0, -1, 0)),
    "L": (1, 0, (0, -1, 0), (0, 0, -1)),
    "F": (1, 1, (1, 0, 0), (0, 0, -1)),
    "R": (1, 2, (0, 1, 0), (0, 0, -1)),
    "B": (1, 3, (-1, 0, 0), (0, 0, -1)),
    "D": (2, 1, (1, 0, 0), (0, 1, 0)),
}
"""of each face of the unfolded cube: row, column, and what is to the right and downwards in
space"""


# ---- geometry ------------------------------------------------------------------------------------


def sticker_places(side: int) -> np.ndarray:
    """Where the middle of each sticker is, in half widths of a small cube: int [6 * side**2, 3]."""
    places = []
    for normal, (by_row, by_column) in zip(NORMALS, AXES, strict=True):
        for row, column in itertools.product(range(side), repeat=2):
            place = normal * side
            for (axis, direction), step in ((by_row, row), (by_column, column)):
                place[axis] = direction * (2 * step - side + 1)
            places.append(place)
    return np.array(places)


@functools.cache
def quarter_turns(side: int) -> dict[str, np.ndarray]:
    """Each turn as a permutation: the stickers after it are `stickers[permutation]`. The 1 of "U1"
    is clockwise seen from outside, that is -90 degrees about the face's normal; "U-1" is
    counterclockwise."""
    places = sticker_places(side)
    index = {tuple(place): i for i, place in enumerate(places)}
    turns = {}
    for face, normal in zip(FACES, NORMALS, strict=True):
        height = places @ normal
        moves = height >= side - 1
        along = np.outer(height, normal)
        across = np.cross(normal, places)
        for name, sign in ((f"{face}-1", -1), (f"{face}1", 1)):
            # Where the sticker that comes to each place was: the turn the other way round.
            source = np.where(moves[:, None], along + sign * across, places)
            turns[name] = np.array([index[tuple(place)] for place in source])
    return turns


def pieces(side: int) -> dict[int, np.ndarray]:
    """The stickers of every corner (3: int [8, 3], clockwise seen from outside, that of U or D
    first), every edge (2: int [12, 2]) and every center (1: int [6, 1]) of a cube whose side is 2
    or 3."""
    places = sticker_places(side)
    cubes: dict[tuple, list[int]] = {}
    for i, place in enumerate(places):
        middle = place.clip(1 - side, side - 1)
        cubes.setdefault(tuple(middle), []).append(i)
    by_count: dict[int, list[list[int]]] = {}
    for stickers in cubes.values():
        # A positive determinant: this corner is counted counterclockwise.
        if len(stickers) == 3 and np.linalg.det(places[stickers]) > 0:
            stickers[1:] = reversed(stickers[1:])
        by_count.setdefault(len(stickers), []).append(stickers)
    return {count: np.array(found) for count, found in by_count.items()}


# ---- the puzzle ----------------------------------------------------------------------------------


class Cube(Puzzle):
    """What both sizes share.

    Args:
      side: 2 or 3.
      faces: those that may be turned.
      actions: how many: the b quarter turns alone, with all b**2 ordered pairs of them, or with all
        b**3 ordered triples as well (of cube3: 12, 156 or 1884).
      distinct: leave out actions that change nothing, and those that do what an earlier one does.
      cost: "len", the quarter turns in an action, or "one".
    """

    values = 6
    goal: np.ndarray

    def __init__(self, side: int, faces: str, actions: int, distinct: bool, cost: str):
        self.side = side
        self.size = 6 * side**2
        turns = quarter_turns(side)
        self.turns = tuple(name for name in turns if name[0] in faces)

        # --- options ---
        words_of = [len(self.turns) ** length for length in (1, 2, 3)]
        sizes = tuple(itertools.accumulate(words_of))
        if actions not in sizes:
            raise ValueError(f"actions={actions!r}: must be {sizes[0]}, {sizes[1]} or {sizes[2]}")
        if cost not in ("len", "one"):
            raise ValueError(f"cost={cost!r}: must be 'len' (quarter turns) or 'one'")
        if not isinstance(distinct, bool):
            raise ValueError(f"distinct={distinct!r}: must be True or False")

        # --- pieces ---
        self.home = pieces(side)
        self.where: dict[tuple[int, ...], tuple[int, int]] = {}
        """stickers of a piece, from any of them on -> which of its kind it is, and its twist"""
        for count, found in self.home.items():
            for i, piece in enumerate(found):
                for twist in range(count):
                    stickers = np.roll(piece, twist).tolist()
                    self.where[tuple(stickers)] = (i, twist)

        # --- actions: words of up to three quarter turns ---
        number: dict[tuple | bytes, int] = {}
        chosen: list[tuple] = []
        stands_for: dict[tuple, int] = {}
        unmoved = np.arange(self.size)
        for word in _words(self.turns, longest=sizes.index(actions) + 1):
            # "U1.R1" turns U first, and stickers[U1][R1] = stickers[U1[R1]]
            turn = unmoved
            for name in word:
                turn = turn[turns[name]]
            if distinct and (turn == unmoved).all():
                continue
            key = turn.tobytes() if distinct else word
            stands_for[word] = number.setdefault(key, len(chosen))
            if stands_for[word] == len(chosen):
                chosen.append((word, turn))
        words, table = zip(*chosen, strict=True)
        self.action_names = tuple(".".join(word) for word in words)
        self.table = np.array(table, np.uint8)
        """uint8 [num_actions, size]: the states after an action are `states[..., table[action]]`"""
        costs = [len(word) if cost == "len" else 1 for word in words]
        self.costs = np.array(costs, np.float32)
        inverse = [stands_for[_undo(word)] for word in words]
        self.inverse = np.array(inverse, np.int32)
        self.goal = np.arange(6, dtype=np.uint8).repeat(side**2)

    def _move(self, key: Array, states: Array) -> Array:
        """Walks are of single quarter turns, whatever the actions: they lead equally far for every
        set of them."""
        turns = below(key, states.shape[:-1], len(self.turns))
        return self.apply(states, turns)

    def apply(self, states: Array, actions: Array) -> Array:
        source = jnp.asarray(self.table)[actions].astype(jnp.int32)
        return jnp.take_along_axis(states, source, -1, mode="promise_in_bounds")

    def apply_all(self, states: Array) -> Array:
        return states[:, self.table.astype(np.int32)]

    def fault(self, state: np.ndarray) -> str:
        """`state` holds sticker ids as in the goal 0, 1, ..., whose colors are `id // side**2`."""
        if state.max() < 6:
            return (
                f"these are colors, 0..5; stickers are numbered, 0..{self.size - 1}, and the "
                f"color of one is its number // {self.side**2}"
            )
        if why := not_permutation(state):
            return why

        # --- stickers that no action moves ---
        moves = self.table != np.arange(self.size)
        stays = np.flatnonzero(~moves.any(0))
        wrong = stays[state[stays] != stays]
        if wrong.size:
            return (
                f"sticker {wrong[0]} of a piece that does not move is {state[wrong[0]]}: turn the "
                "cube as a whole"
            )

        # --- corners and edges, their twists and their permutation ---
        parity = 0
        for count, what in ((3, "corner"), (2, "edge")):
            if count not in self.home:
                continue
            places = state[self.home[count]]
            found = [self.where.get(tuple(stickers)) for stickers in places]
            if None in found:
                named = ", ".join(map(str, places[found.index(None)]))
                return f"there is no {what} with the stickers {named} in this order"
            piece, twist = np.array(found).T
            if twist.sum() % count:
                turned = "twisted" if count == 3 else "flipped"
                return f"it cannot be solved: a single {what} is {turned}"
            parity += odd(piece)
        # A quarter turn is an odd permutation of corners and one of edges.
        if self.side == 3 and parity % 2:
            return "it cannot be solved: a single pair of pieces is swapped"
        return ""

    def read(self, arrays: Arrays) -> np.ndarray:
        stickers = super().read(arrays)
        return (stickers // self.side**2).astype(np.uint8)

    def render(self, state: State, params: Params | None = None) -> np.ndarray:
        """The cube unfolded: U above, L F R B in a row, D below."""
        side = self.side
        places = sticker_places(side).reshape(6, -1, 3)
        colors = COLORS[np.asarray(state.position)].reshape(6, -1, 3)
        net = np.full((3 * side, 4 * side, 3), LINE, np.uint8)
        for name, (row, column, right, down) in NET.items():
            face = FACES.index(name)
            across = places[face] @ right
            along = places[face] @ down
            order = np.lexsort((across, along))
            square = net[row * side :, column * side :][:side, :side]
            square[:] = colors[face, order].reshape(side, side, 3)
        return tiled(net)


def _words(turns: tuple[str, ...], longest: int) -> Iterator[tuple[str, ...]]:
    """All sequences of 1 to `longest` turns, shorter ones first."""
    for length in range(1, longest + 1):
        yield from itertools.product(turns, repeat=length)


def _undo(word: tuple[str, ...]) -> tuple[str, ...]:
    """The turns that take back those of `word`."""
    opposite = {"1": "-1", "-1": "1"}
    return tuple(turn[0] + opposite[turn[1:]] for turn in reversed(word))


class Cube3(Cube):
    """The 3x3x3 cube: 12 quarter turns U-1, U1, D-1, ..., F1, and 54 stickers."""

    def __init__(self, actions: int = 12, distinct: bool = False, cost: str = "len"):
        super().__init__(3, FACES, actions, distinct, cost)
        self.name = "cube3"
        self.params = Params(100, 30)


class Cube2(Cube):
    """The 2x2x2 cube: the corner of D, L and B stays, so the quarter turns are 6, of U, R and F,
    and the states 3,674,160, none more than 14 turns from the goal."""

    def __init__(self, actions: int = 6, distinct: bool = False, cost: str = "len"):
        super().__init__(2, "URF", actions, distinct, cost)
        self.name = "cube2"
        self.params = Params(50, 20)
        corners = self.home[3]
        moves = self.table[:, corners] != corners
        self.corners = corners[moves.any((0, 2))]
        """int [7, 3]: the stickers of those that move"""
        self.unit_turns = cost == "len" or actions == 6

    def rank(self, states: Array) -> Array:
        """A number of each state, all different: uint8 [..., 24] -> int32 [...], below RANKS."""
        # The first two colors of a corner, clockwise, say which it is, and its twist.
        colors = self.goal[self.corners]
        known = np.zeros(36, np.int32)
        for twist in range(3):
            first, second, _ = np.roll(colors, twist, 1).T
            known[6 * first + second] = 3 * np.arange(7) + twist
        first = states[..., self.corners[:, 0]]
        second = states[..., self.corners[:, 1]]
        pair = 6 * first + second
        corner = jnp.asarray(known).at[pair].get(mode="promise_in_bounds")

        # The seventh twist follows from the other six.
        twists = sum(corner[..., i] % 3 * 3**i for i in range(6))
        return permutation_rank(corner // 3) * 729 + twists

    def distance(self, states: Array) -> Array:
        """In quarter turns."""
        if not self.unit_turns:
            raise NotImplementedError(
                f"{self.name}: there is no table of distances for actions that cost one whatever "
                "they turn; with cost=len there is"
            )
        table = jnp.asarray(_table())
        return table[self.rank(states)].astype(jnp.int32)


RANKS = 5040 * 729
"""orders of seven corners, times twists of six"""


@functools.cache
def _table() -> np.ndarray:
    cube = Cube2()
    return breadth_first(cube, cube.rank, RANKS)
