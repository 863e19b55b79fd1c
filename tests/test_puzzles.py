"""Puzzles: moves, exact distances against breadth-first search, admissible heuristics, files, the
environment."""

import functools
import itertools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.envs import Cube2, Cube3, LightsOut, Pancake, Puzzle, Sokoban, Tiles
from rlzoo.envs.cube import RANKS, _table, quarter_turns
from rlzoo.envs.puzzle import State, breadth_first, permutation_rank
from rlzoo.envs.sokoban import AGENT, BOX, GOAL, WALL
from together import quick_jit

import rlzoo

KEY = jax.random.key(0)
FILES = Path(os.environ.get("RLZOO_DATA", Path(__file__).parents[2] / "shared" / "data")) / "qstar"
TILE8 = (
    1,
    2,
    4,
    8,
    16,
    20,
    39,
    62,
    116,
    152,
    286,
    396,
    748,
    1024,
    1893,
    2512,
    4485,
    5638,
    9529,
    10878,
    16993,
    17110,
    23952,
    20224,
    24047,
    15578,
    14560,
    6274,
    3910,
    760,
    221,
    2,
)
PANCAKE = {
    7: (1, 6, 30, 149, 543, 1357, 1903, 1016, 35),
    8: (1, 7, 42, 251, 1191, 4281, 10561, 15011, 8520, 455),
}
CUBE2 = (1, 6, 27, 120, 534, 2256, 8969, 33058, 114149, 360508, 930588, 1350852, 782536, 90280, 276)


def histogram(distance: Any) -> tuple[int, ...]:
    distance = np.asarray(distance)
    return tuple(np.bincount(distance[distance >= 0]).tolist())


def ball(puzzle: Puzzle, depth: int) -> list[int]:
    """How many states are at each number of moves from the goal, by sets, without ranks."""
    expand = lambda states: np.asarray(puzzle.apply_all(states)).reshape(-1, puzzle.size)
    before, frontier, counts = set(), {np.asarray(puzzle.goal).tobytes()}, [1]
    for _ in range(depth):
        states = np.array([np.frombuffer(state, np.uint8) for state in frontier])
        before |= frontier
        frontier = {state.tobytes() for state in expand(states)} - before
        counts.append(len(frontier))
    return counts


# ---- every puzzle --------------------------------------------------------------------------------

EVERY: dict[str, Any] = {
    "tile8": lambda: Tiles(3),
    "cube2 in pairs": lambda: Cube2(42),
    "cube3": Cube3,
    "lights-out3": lambda: LightsOut(3),
    "pancake7": lambda: Pancake(7),
    "sokoban": Sokoban,
}
COUNT, LENGTH = 18, 2


def solved_within(puzzle: Puzzle, states: jax.Array, moves: int) -> jax.Array:
    """Whether 0, 1, ... moves can solve each of `states` [n, size], by trying them all: bool [moves
    + 1, n]."""
    solved = [puzzle.is_goal(states)]
    for _ in range(moves):
        states = puzzle.apply_all(states.reshape(-1, puzzle.size))
        solved.append(solved[-1] | puzzle.is_goal(states).reshape(len(solved[0]), -1).any(1))
    return jnp.stack(solved)


@pytest.mark.parametrize("id", EVERY)
def test_moves(id):
    puzzle = EVERY[id]()
    actions = np.arange(puzzle.num_actions, dtype=np.int32)
    steps = np.arange(COUNT, dtype=np.int32) % (LENGTH + 1)

    @quick_jit
    def run(key):
        walk, scrambled = puzzle.walk(key, COUNT, LENGTH), puzzle.scramble(key, steps, LENGTH)
        states, every = walk[-1], jnp.broadcast_to(actions, (COUNT, len(actions)))
        children = puzzle.apply(jnp.repeat(states[:, None], len(actions), 1), every)
        back = (
            children
            if puzzle.inverse is None
            else puzzle.apply(children, jnp.asarray(puzzle.inverse)[every])
        )
        seen = (
            walk,
            scrambled,
            puzzle.apply_all(states),
            children,
            puzzle.apply(states[0], actions[-1]),
            back,
        )
        solved = solved_within(puzzle, jnp.concatenate([*walk, scrambled]), LENGTH)
        return seen, solved, puzzle.inputs(states)

    seen, solved, inputs = jax.tree.map(np.asarray, run(KEY))
    walk, _, all_children, children, single, back = seen
    assert all(states.dtype == np.uint8 and states.max() < puzzle.values for states in seen)
    np.testing.assert_array_equal(all_children, children)
    np.testing.assert_array_equal(single, children[0, -1])
    made = np.concatenate([np.repeat(np.arange(LENGTH + 1), COUNT), steps])
    assert (
        solved[made, np.arange(len(made))].all() and not solved[0].all()
    )  # as many moves solve what they made
    assert (
        inputs.shape == (COUNT, puzzle.num_inputs)
        and inputs.dtype == np.float32
        and set(np.unique(inputs)) == {0, 1}
    )
    different = len(np.unique(walk[-1], axis=0))
    assert len(np.unique(inputs, axis=0)) == different > 1
    moved = (children != walk[-1][:, None]).any(-1)
    if puzzle.inverse is not None:
        np.testing.assert_array_equal(back[moved], walk[-1][np.nonzero(moved)[0]])
    assert moved.any() and moved.all() == (id in ("cube3", "lights-out3", "pancake7"))
    assert (
        len(set(puzzle.action_names)) == len(puzzle.costs) == len(actions)
        and puzzle.costs.dtype == np.float32
    )


# ---- exact distances -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def permutations() -> np.ndarray:
    """All of 0..8, in order."""
    return np.array(list(itertools.permutations(range(9))), np.uint8)


def test_every_state_of_the_8_puzzle(permutations):
    puzzle = Tiles(3)

    @quick_jit
    def run(states):
        return (
            permutation_rank(states),
            puzzle.distance(states),
            puzzle.manhattan(states),
            puzzle.linear_conflict(states),
        )

    rank, distance, manhattan, conflict = map(np.asarray, run(permutations))
    np.testing.assert_array_equal(rank, np.arange(362_880))
    assert histogram(distance) == TILE8
    can = distance >= 0
    assert can.sum() == 181_440
    some = slice(None, None, 300)
    assert [puzzle.fault(state) == "" for state in permutations[some]] == can[some].tolist()
    assert (manhattan[can] <= conflict[can]).all() and (conflict[can] <= distance[can]).all()
    assert (conflict - manhattan)[can].mean() > 0.5
    # Two moves for each pair in conflict, in place of each tile that must leave, is too much.
    grid = permutations.reshape(-1, 3, 3).astype(int) - 1
    pairs = sum(
        (
            (line[..., i] > line[..., j])
            & (line[..., j] >= 0)
            & (line[..., i] // step % 3 == which)
            & (line[..., j] // step % 3 == which)
        ).sum(1)
        for line, step, which in ((grid, 3, np.arange(3)), (grid.swapaxes(1, 2), 1, np.arange(3)))
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert (manhattan + 2 * pairs > distance)[can].any()


@pytest.mark.parametrize("count", PANCAKE)
def test_every_stack_of_pancakes(count):
    puzzle = Pancake(count)
    states = np.array(list(itertools.permutations(range(count))), np.uint8)
    distance, gap = map(
        np.asarray, quick_jit(lambda states: (puzzle.distance(states), puzzle.gap(states)))(states)
    )
    assert histogram(distance) == PANCAKE[count]
    assert (
        (gap <= distance).all()
        and ((gap == 0) == (distance == 0)).all()
        and gap.mean() > 0.7 * distance.mean()
    )
    upside_down = states[-1]
    assert distance[-1] == gap[-1] == 1
    assert (
        np.diff(upside_down.astype(int)) != 1
    ).sum() > 1  # what counts pairs in the right order alone, is above it


@pytest.mark.parametrize("side", [2, 3, 4])
def test_every_state_of_lights_out(side):
    """Solving equations against searching breadth first; on 4 x 4 only one state in 16 can be
    solved."""
    puzzle, ranks = LightsOut(side), 2 ** (side * side)
    rank = lambda states: (states.astype(jnp.int32) << np.arange(puzzle.size)).sum(-1)
    table = breadth_first(puzzle, rank, ranks)
    states = (np.arange(ranks)[:, None] >> np.arange(puzzle.size) & 1).astype(np.uint8)
    np.testing.assert_array_equal(puzzle.distance(states), table)
    assert (table >= 0).sum() == 2 ** (12 if side == 4 else puzzle.size)
    some = slice(None, None, 97)
    assert [puzzle.fault(state) == "" for state in states[some]] == (table[some] >= 0).tolist()


@pytest.mark.parametrize("side, presses", [(5, 4), (6, 1), (7, 1)])
def test_lights_out_has_so_many_solutions(side, presses):
    puzzle = LightsOut(side)
    assert len(puzzle.quiet) == presses and not (puzzle.quiet @ puzzle.switches % 2).any()
    pressed = np.random.default_rng(0).integers(0, 2, (50, puzzle.size))
    distance = np.asarray(puzzle.distance((pressed @ puzzle.switches % 2).astype(np.uint8)))
    every = (pressed[:, None] + puzzle.quiet) % 2
    np.testing.assert_array_equal(distance, every.sum(2).min(1))


def test_the_first_states_of_cube2():
    assert ball(Cube2(), 8) == list(CUBE2[:9])
    walk = lambda key: Cube2().walk(key, 300, 30).reshape(-1, 24)
    states, rank = map(np.asarray, quick_jit(lambda key: (walk(key), Cube2().rank(walk(key))))(KEY))
    assert (
        len(np.unique(rank)) == len(np.unique(states, axis=0))
        and rank.min() >= 0
        and rank.max() < RANKS
    )


@pytest.mark.slow
def test_every_state_of_cube2():
    assert histogram(_table()) == CUBE2
    puzzle = Cube2()
    walk = puzzle.walk(KEY, 100, 40)
    distance = np.asarray(jax.jit(puzzle.distance)(walk))
    assert (abs(np.diff(distance, axis=0)) == 1).all()  # quarter turns are odd
    pairs = np.asarray(Cube2(42).distance(walk))
    np.testing.assert_array_equal(pairs, distance)


@pytest.mark.parametrize(
    "puzzle",
    [Cube3(), Tiles(4), Pancake(10), Sokoban(), Cube2(42, cost="one")],
    ids=lambda p: p.name,
)
def test_no_table_is_said(puzzle):
    with pytest.raises(NotImplementedError, match=f"{puzzle.name}.*table"):
        puzzle.distance(jnp.zeros((1, puzzle.size), jnp.uint8))


# ---- the cube ------------------------------------------------------------------------------------


def follow(word: str) -> np.ndarray:
    turns = quarter_turns(3)
    return functools.reduce(
        lambda stickers, turn: stickers[turns[turn]], word.split("."), np.arange(54)
    )


def test_turns_obey_known_identities():
    still = np.arange(54)
    for name, turn in quarter_turns(3).items():
        assert (follow(".".join([name] * 4)) == still).all() and (turn != still).sum() == 20
        assert (turn[quarter_turns(3)[name[0] + ("1" if "-" in name else "-1")]] == still).all()
    assert (follow("U1.D1") == follow("D1.U1")).all() and (follow("U1.R1") != follow("R1.U1")).any()
    order = lambda word: next(
        k for k in itertools.count(1) if (follow(".".join([word] * k)) == still).all()
    )
    assert [
        order(word) for word in ("R1.U1.R-1.U-1", "R1.U1", "R1.U-1", "F1.R1.U1.R-1.U-1.F-1")
    ] == [6, 105, 63, 6]


def test_the_first_states_of_cube3():
    assert ball(Cube3(), 3) == [1, 12, 114, 1068]


@pytest.mark.slow
def test_more_states_of_cube3():
    assert ball(Cube3(), 5) == [1, 12, 114, 1068, 10011, 93840]


@pytest.mark.parametrize(
    "actions, identities, distinct", [(12, 0, 12), (156, 12, 126), (1884, 12, 1194)]
)
def test_meta_actions(actions, identities, distinct):
    """The distinct ones, and the identity, are the states that are at most 1, 2 and 3 quarter turns
    away."""
    puzzle, few = Cube3(actions), Cube3(actions, distinct=True)
    still = np.arange(54)
    assert (
        puzzle.table.shape == (actions, 54) and (puzzle.table == still).all(1).sum() == identities
    )
    assert len(np.unique(puzzle.table, axis=0)) == distinct + (identities > 0)
    assert (
        few.num_actions == distinct == len(np.unique(few.table, axis=0))
        and not (few.table == still).all(1).any()
    )
    for cube in (puzzle, few):
        undone = np.take_along_axis(cube.table, cube.table[cube.inverse].astype(int), 1)
        assert (undone == still).all() and (
            cube.inverse[cube.inverse] == np.arange(cube.num_actions)
        ).all()
        assert cube.costs.tolist() == [name.count(".") + 1 for name in cube.action_names]
        some = slice(None, None, 37)
        assert (cube.table[some] == [follow(name) for name in cube.action_names[some]]).all()
    assert (Cube3(actions, cost="one").costs == 1).all()


# ---- Sokoban -------------------------------------------------------------------------------------

LOOKS = {"#": WALL, ".": 0, "$": BOX, "o": GOAL, "@": AGENT, "*": BOX | GOAL, "+": AGENT | GOAL}


def room(row: str) -> np.ndarray:
    """Walls but for the beginning of the first row."""
    return np.array([LOOKS[cell] for cell in row.ljust(100, "#")], np.uint8)


SOKOBAN = {
    "walk": ("@.", ".@"),
    "walk onto a goal": ("@o", ".+"),
    "wall": ("@#", "@#"),
    "out of the board": ("#########@", "#########@"),
    "push": ("@$.", ".@$"),
    "push onto a goal": ("@$o", ".@*"),
    "push off a goal": ("@*.", ".+$"),
    "off and on": ("+*o", "o+*"),
    "against a wall": ("@$#", "@$#"),
    "against a box": ("@$$.", "@$$."),
    "against a box on a goal": ("@$*.", "@$*."),
    "boxes are not pulled": ("$@.", "$.@"),
    "a push out of the board": ("########@$", "########@$"),
}  # fmt: skip
sokoban_apply = quick_jit(Sokoban().apply)


@pytest.mark.parametrize("name", SOKOBAN)
def test_sokoban_moves(name):
    """To the right, and turned to the other three directions."""
    for turn, action in enumerate(("col+1", "row-1", "col-1", "row+1")):
        before, after = (np.rot90(room(row).reshape(10, 10), turn).ravel() for row in SOKOBAN[name])
        np.testing.assert_array_equal(
            sokoban_apply(before, Sokoban.action_names.index(action)), after
        )


def test_rooms():
    puzzle = Sokoban()
    states = np.asarray(quick_jit(lambda key: puzzle.scramble(key, jnp.full(100, 100), 100))(KEY))
    grid, count = states.reshape(-1, 10, 10), lambda what: (states & what > 0).sum(1)
    assert (grid[:, [0, -1]] == WALL).all() and (grid[:, :, [0, -1]] == WALL).all()
    assert (count(AGENT) == 1).all() and (count(BOX) == 4).all()
    assert set(np.unique(states)) == {0, WALL, BOX, GOAL, AGENT, BOX | GOAL, AGENT | GOAL}
    assert (count(GOAL) == 4).all() and np.asarray(puzzle.is_goal(states)).mean() < 0.5
    assert len(np.unique(states & WALL, axis=0)) == 100
    for walls in grid & WALL:  # one floor: what is reached from any cell of it
        floor = walls == 0
        reached = np.zeros_like(floor)
        reached[tuple(np.argwhere(floor)[0])] = True
        for _ in range(64):
            reached = reached | floor & np.any(
                [np.roll(reached, shift, axis) for shift in (1, -1) for axis in (0, 1)], 0
            )
        assert (reached == floor).all() and floor.sum() >= 9


# ---- files ---------------------------------------------------------------------------------------


def test_what_read_gives_can_be_solved():
    for puzzle in (Tiles(6), LightsOut(5), Pancake(8)):
        read = puzzle.read({"states": puzzle.goal[None].astype(int)})
        assert (read == puzzle.goal).all() and read.dtype == np.uint8
    for cube in (Cube3(), Cube2()):
        stickers, colors = np.tile(np.arange(cube.size), (50, 1)), np.tile(cube.goal, (50, 1))
        for action in np.random.default_rng(0).integers(cube.num_actions, size=(30, 50)):
            source = cube.table[action].astype(int)
            stickers, colors = (np.take_along_axis(x, source, 1) for x in (stickers, colors))
        np.testing.assert_array_equal(cube.read({"states": stickers}), colors)
    boxes, walls = np.zeros((2, 10, 10), bool), np.zeros((2, 10, 10), bool)
    boxes[:, 5, 5] = True
    read = Sokoban().read(
        {"agent": np.array([[1, 2], [1, 2]]), "walls": walls, "boxes": boxes, "goals": boxes}
    )
    assert (
        np.asarray(Sokoban().is_goal(read)).all()
        and (read[:, 12] == AGENT).all()
        and read.dtype == np.uint8
    )


def swap(state: np.ndarray, *pairs: tuple[int, int]) -> np.ndarray:
    state = np.array(state)
    for a, b in pairs:
        state[[a, b]] = state[[b, a]]
    return state


def cycle(state: np.ndarray, *entries: int) -> np.ndarray:
    state = np.array(state)
    state[list(entries)] = state[[*entries[1:], entries[0]]]
    return state


IDS, IDS2 = np.arange(54), np.arange(24)
CORNER, CORNER2 = (list(cube().home[3][-1]) for cube in (Cube3, Cube2))
EDGE, OTHER = Cube3().home[2][0], Cube3().home[2][1]
BAD: dict[str, tuple[Puzzle, Any]] = {
    r"there is no array 'states', only boards": (Tiles(3), {"boards": np.zeros((1, 9), int)}),
    r"states is float64 \[4, 9\]; it should hold whole numbers, \[n, 9\]":
        (Tiles(3), np.zeros((4, 9))),
    r"states is int64 \[4, 16\]; .* \[n, 9\]": (Tiles(3), np.zeros((4, 16), int)),
    r"states is int64 \[9\]; .* \[n, 9\]": (Tiles(3), np.zeros(9, int)),
    r"state 3: entry 2 is 9; entries lie in 0..8": (Tiles(3), [1, 2, 9, 3, 4, 5, 6, 7, 0]),
    r"state 3: entry 0 is -1; entries lie in 0..8": (Tiles(3), [-1, 2, 8, 3, 4, 5, 6, 7, 0]),
    r"state 3: 5 is there 2 times, 4 never": (Tiles(3), [1, 2, 8, 3, 5, 5, 6, 7, 0]),
    r"state 3: it cannot be solved: .* parity": (Tiles(3), swap(Tiles(3).goal, (0, 1))),
    r"state 3: it cannot be solved: the permutation .* parity":
        (Tiles(4), swap(Tiles(4).goal, (3, 9))),
    r"state 3: entry 1 is 2; a light is 0 or 1": (LightsOut(2), [0, 2, 0, 0]),
    r"state 3: it cannot be solved: no set of presses": (LightsOut(5), np.eye(25, dtype=int)[0]),
    r"state 3: 0 is there 2 times": (Pancake(7), [0, 0, 2, 3, 4, 5, 6]),
    r"state 3: entry 53 is 54": (Cube3(), [*range(53), 54]),
    r"state 3: 0 is there 2 times, 1 never": (Cube3(), [0, 0, *range(2, 54)]),
    r"state 3: sticker 4 of a piece that does not move is 13": (Cube3(), swap(IDS, (4, 13))),
    r"state 3: there is no edge with the stickers 1, ": (Cube3(), swap(IDS, (EDGE[1], OTHER[1]))),
    r"state 3: there is no corner with the stickers": (Cube3(), swap(IDS, (CORNER[0], CORNER[1]))),
    r"state 3: it cannot be solved: a single corner is twisted": (Cube3(), cycle(IDS, *CORNER)),
    r"state 3: it cannot be solved: a single edge is flipped": (Cube3(), swap(IDS, tuple(EDGE))),
    r"state 3: it cannot be solved: a single pair of pieces is swapped":
        (Cube3(), swap(IDS, *zip(EDGE, OTHER, strict=True))),
    r"state 3: sticker \d+ of a piece that does not move is \d+: turn the cube as a whole":
        (Cube2(), quarter_turns(2)["D1"]),
    r"state 3: it cannot be solved: a single corner is twisted$":
        (Cube2(), cycle(IDS2, *Cube2().corners[0])),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_states_are_refused(message):
    puzzle, given = BAD[message]
    if not isinstance(given, dict):
        good = IDS2 if puzzle.name == "cube2" else IDS if puzzle.name == "cube3" else puzzle.goal
        given = {
            "states": given if message.startswith("states") else np.array([good] * 3 + [given] * 2)
        }
    with pytest.raises(ValueError, match=message):
        puzzle.read(given)


def sokoban(
    agent: Any = (1, 1), walls: Any = (), boxes: Any = ((5, 5),), goals: Any = ((6, 6),)
) -> dict:
    layers = np.zeros((3, 4, 10, 10), bool)
    layers[1, :, 5, 5] = layers[2, :, 6, 6] = True
    for layer, cells in zip(layers, (walls, boxes, goals), strict=True):
        layer[3] = False
        layer[3][tuple(np.array(cells, int).reshape(-1, 2).T)] = True
    return {
        "agent": np.array([(1, 1)] * 3 + [agent]),
        "walls": layers[0],
        "boxes": layers[1],
        "goals": layers[2],
    }


BAD_ROOMS = {
    "there is no array 'goals'": {k: v for k, v in sokoban().items() if k != "goals"},
    "agent, walls, boxes and goals hold 2, 4, 4, 4 states":
        sokoban() | {"agent": np.ones((2, 2), int)},
    r"boxes is bool \[4, 9, 10\]": sokoban() | {"boxes": np.zeros((4, 9, 10), bool)},
    r"state 3: the agent is at \(10, 0\)": sokoban(agent=(10, 0)),
    r"state 3: the agent is in a wall, at \(2, 3\)": sokoban(agent=(2, 3), walls=[(2, 3)]),
    r"state 3: the agent is in a box, at \(5, 5\)": sokoban(agent=(5, 5)),
    r"state 3: a box is in a wall, at \(5, 5\)": sokoban(walls=[(5, 5)]),
    r"state 3: a goal is in a wall, at \(6, 6\)": sokoban(walls=[(6, 6)]),
    "state 3: there are 1 boxes and 2 goals": sokoban(goals=[(6, 6), (7, 7)]),
    "state 3: there are no boxes": sokoban(boxes=(), goals=()),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_ROOMS)
def test_bad_rooms_are_refused(message):
    assert Sokoban().read(sokoban()).shape == (4, 100)
    with pytest.raises(ValueError, match=message):
        Sokoban().read(BAD_ROOMS[message])


def published(name: str) -> Any:
    """DeepCubeA's test states, which are not in the repository."""
    if not (FILES / name).is_file():
        pytest.skip(f"{FILES / name} is not here: set RLZOO_DATA to the folder that holds qstar/")
    return np.load(FILES / name)


def test_published_moves_of_the_cube():
    file, cube = published("cube3_test.npz"), Cube3()
    np.testing.assert_array_equal(cube.table, file["move_perm"])
    np.testing.assert_array_equal(cube.inverse, file["move_inverse"])
    assert list(cube.action_names) == file["move_names"].tolist()


@pytest.mark.parametrize(
    "puzzle, name", [(Cube3(), "cube3"), (Tiles(4), "puzzle15"), (Tiles(5), "puzzle24")]
)
def test_published_solutions(puzzle, name):
    file = published(f"{name}_test.npz")
    states, moves = puzzle.read(file), file["opt_moves"]
    assert ((moves < puzzle.num_actions).sum(1) == file["opt_len"]).all()

    @quick_jit
    def follow(states, moves):
        def move(states, action):
            after = puzzle.apply(states, action.astype(jnp.int32) % puzzle.num_actions)
            return jnp.where((action == 255)[:, None], states, after), None

        estimate = (
            puzzle.linear_conflict(states) if isinstance(puzzle, Tiles) else jnp.zeros(len(states))
        )
        return estimate, puzzle.is_goal(jax.lax.scan(move, states, moves.T)[0])

    estimate, solved = follow(states, moves)
    assert (
        (estimate <= file["opt_len"]).all()
        and solved.all()
        and not follow(states, moves[:, ::-1])[1].all()
    )


@pytest.mark.parametrize(
    "puzzle, name", [(Tiles(6), "puzzle35"), (Tiles(7), "puzzle48"), (Sokoban(), "sokoban")]
)
def test_published_states_are_read(puzzle, name):
    states = puzzle.read(published(f"{name}_test.npz"))
    assert (
        states.shape[1] == puzzle.size
        and len(states) in (250, 500)
        and not puzzle.is_goal(states).any()
    )


def test_published_optimum_of_lights_out():
    file, puzzle = published("lightsout7_test.npz"), LightsOut(7)
    np.testing.assert_array_equal(puzzle.distance(puzzle.read(file)), file["opt_len"])


# ---- the environment -----------------------------------------------------------------------------


def test_ids():
    sizes = {f"lights-out{n}": n * n for n in range(2, 8)} | {
        "tile8": 9,
        "tile15": 16,
        "tile24": 25,
        "tile35": 36,
        "tile48": 49,
        "cube2": 24,
        "cube3": 54,
        "pancake7": 7,
        "pancake8": 8,
        "pancake10": 10,
        "pancake35": 35,
        "sokoban": 100,
    }
    for id, size in sizes.items():
        env = rlzoo.make(id)
        assert (env.inner.name, env.inner.size, env.num_actions) == (
            id,
            size,
            env.inner.num_actions,
        )
        assert (
            env.obs_shape == (env.inner.num_inputs,)
            and env.params.scramble_steps >= 14
            and env.max_steps >= 8
        )
    env = rlzoo.make("cube3?actions=1884&distinct=True&cost=one&scramble_steps=5")
    assert (
        env.num_actions == 1194 and (env.inner.costs == 1).all() and env.params.scramble_steps == 5
    )
    assert env.inner.action_names[:13][-2:] == ("F1", "U-1.U-1")


@pytest.mark.parametrize(
    "option, message",
    [
        ("actions=13", "actions=13: must be 12, 156 or 1884"),
        ("cost=two", "cost='two': must be 'len' .* or 'one'"),
        ("distinct=2", "distinct=2: must be True or False"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        rlzoo.make(f"cube3?{option}")


@pytest.mark.parametrize(
    "id, steps", [("tile8", np.arange(64) // 16 + 1), ("sokoban", np.full(16, 50))]
)
def test_episodes(id, steps):
    """Starts, of which each environment has its own `scramble_steps`, and random steps to beyond
    the time limit."""
    env = rlzoo.make(id, max_steps_in_episode=6).replace(scramble_steps=jnp.asarray(steps))
    puzzle, length = env.inner, 8

    @quick_jit
    def run(key):
        keys = jax.random.split(key, len(steps))
        _, state = env.starts(keys)
        actions = jax.random.bits(key, (length, len(steps)), jnp.uint8) % env.num_actions

        def step(state, action):
            obs, state, reward, _, terminated, truncated = env.step_inner(
                keys, state, action.astype(jnp.int32)
            )
            return state, (obs, reward, terminated, truncated, state)

        return (
            state,
            solved_within(puzzle, state.position, 4),
            jax.lax.scan(step, state, actions)[1],
        )

    start, solved, (obs, reward, terminated, truncated, state) = jax.tree.map(np.asarray, run(KEY))
    assert not solved[0].any() and not solved[1].all() and (start.time == 0).all()
    assert all(solved[k, steps == k].all() for k in range(1, 5))
    np.testing.assert_array_equal(
        state.time, np.arange(1, length + 1)[:, None].repeat(len(steps), 1)
    )
    assert (reward == -1).all() and not terminated.all() and terminated.any()
    np.testing.assert_array_equal(terminated, puzzle.is_goal(state.position))
    np.testing.assert_array_equal(truncated, (state.time >= 6) & ~terminated)
    np.testing.assert_array_equal(obs, puzzle.inputs(state.position))


def test_rewards_are_costs():
    env = rlzoo.make("cube2?actions=42")
    puzzle, step = env.inner, quick_jit(env.inner.step_env)
    state, rewards = State(jnp.int32(0), jnp.asarray(puzzle.goal)), []
    for name in ("U1.R1", "R-1", "U-1"):
        _, state, reward, terminated, _ = step(
            KEY, state, puzzle.action_names.index(name), env.params
        )
        rewards.append((float(reward), bool(terminated)))
    assert rewards == [(-2, False), (-1, False), (-1, True)]


@pytest.mark.parametrize("id", ["tile24", "cube2", "cube3", "lights-out4", "pancake8", "sokoban"])
def test_pictures(id):
    puzzle = rlzoo.make(id).inner
    position = room("@$..*") if puzzle.goal is None else puzzle.goal
    after = (
        sokoban_apply(position, 3) if puzzle.goal is None else puzzle.apply(position, jnp.int32(1))
    )
    pictures = [puzzle.render(State(0, x), puzzle.params) for x in (position, after, position)]
    for picture in pictures:
        assert (
            picture.dtype == np.uint8
            and picture.ndim == 3
            and picture.shape[2] == 3
            and min(picture.shape[:2]) >= 64
        )
    assert (pictures[0] != pictures[1]).any() and (pictures[0] == pictures[2]).all()


def test_the_solved_cube_unfolded():
    cube = Cube3()
    picture = cube.render(State(0, cube.goal))
    face = lambda row, column: picture[10::32, 10::32][3 * row :, 3 * column :][:3, :3].reshape(
        -1, 3
    )
    sides = [face(*place) for place in ((0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 1))]
    assert (
        all(len(np.unique(side, axis=0)) == 1 for side in sides)
        and len({tuple(side[0]) for side in sides}) == 6
    )
    # A turn of F moves U's lowest row to the column of R next to F, all in F's own order.
    picture = cube.render(State(0, np.asarray(cube.apply(cube.goal, 11))))
    white = sides[0][0]
    assert (face(1, 2).reshape(3, 3, 3)[:, 0] == white).all() and (
        face(1, 2).reshape(3, 3, 3)[:, 1:] != white
    ).any(-1).all()
