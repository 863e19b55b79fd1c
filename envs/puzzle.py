"""What all puzzles share: a protocol for search and for training on states, and the gymnax side of
it.

A puzzle's state is a row of small whole numbers, uint8 [size]; every function takes batches over
leading axes, can be jitted, and is deterministic. The same object is a gymnax `Environment`, so
that any algorithm can be tried on it: it observes `inputs(state)`, pays the cost of each action,
and terminates at the goal.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

CHUNK = 4096
"""States that the breadth-first search expands in one go."""


@struct.dataclass
class State(environment.EnvState):
    time: jax.Array
    """steps made"""
    position: jax.Array
    """uint8 [size]"""


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 100
    scramble_steps: int = 30
    """an episode starts 1 to this many random moves away from the goal, all equally likely"""


class Puzzle(environment.Environment):
    """A puzzle with a finite set of actions, each with a cost, and states of one size.

    An action that is not possible in a state leaves it as it is, and costs the same. A subclass
    sets the fields, and writes `apply`, `fault` and `render`; what differs from most puzzles
    (`goal`, `costs`, `inputs`, ...) it overrides.
    """

    name: str = "puzzle"
    size: int
    """entries of a state"""
    values: int
    """entries lie in 0..values-1"""
    action_names: tuple[str, ...]
    costs: np.ndarray
    """float32 [num_actions], whole numbers of at least 1"""
    inverse: np.ndarray | None
    """int32 [num_actions]: the action that undoes each action wherever it was possible; None where
    moves cannot be undone"""
    commutes: bool = False
    """all actions commute and each undoes itself, so that a set of them is a path, in any order"""
    goal: np.ndarray | None
    """uint8 [size]; None where each state holds its own goal"""
    params: Params
    """as the environment has them by default"""

    @property
    def num_actions(self) -> int:
        return len(self.action_names)

    @property
    def num_inputs(self) -> int:
        return self.size * self.values

    # ---- the puzzle ------------------------------------------------------------------------------

    def apply(self, states: jax.Array, actions: jax.Array) -> jax.Array:
        """The states after one action each: uint8 [..., size], int32 [...] -> uint8 [..., size]."""
        raise NotImplementedError

    def apply_all(self, states: jax.Array) -> jax.Array:
        """The states after every action: uint8 [n, size] -> uint8 [n, num_actions, size]."""
        one = lambda action: self.apply(states, jnp.full(len(states), action))
        return jax.vmap(one, out_axes=1)(jnp.arange(self.num_actions))

    def is_goal(self, states: jax.Array) -> jax.Array:
        """uint8 [..., size] -> bool [...]"""
        return (states == jnp.asarray(self.goal)).all(-1)

    def inputs(self, states: jax.Array) -> jax.Array:
        """What a network sees: uint8 [..., size] -> float32 [..., num_inputs], here each entry
        one-hot."""
        return jax.nn.one_hot(states, self.values).reshape(*states.shape[:-1], self.num_inputs)

    def states_of(self, inputs: jax.Array) -> jax.Array:
        """The inverse of `inputs`."""
        return (
            inputs.reshape(*inputs.shape[:-1], self.size, self.values).argmax(-1).astype(jnp.uint8)
        )

    def distance(self, states: jax.Array) -> jax.Array:
        """The exact cost of the way to the goal, in moves: uint8 [..., size] -> int32 [...], -1
        where there is no way.

        Raises NotImplementedError where the puzzle is too large to know.
        """
        raise NotImplementedError(f"{self.name} has too many states for a table of exact distances")

    # ---- states ----------------------------------------------------------------------------------

    def walk(self, key: jax.Array, count: int, length: int) -> jax.Array:
        """`count` random walks backwards from the goal, uniform over actions, inverses allowed:
        uint8 [length + 1, count, size], where row k is after k moves (those that were not possible
        counted).

        With every action its inverse is an action too, so that a walk backwards is drawn like one
        forwards.
        """
        start, moves = jax.random.split(key)
        begin = self._begin(start, count)

        def move(states: jax.Array, key: jax.Array) -> tuple:
            states = self._move(key, states)
            return states, states

        path: jax.Array
        _, path = jax.lax.scan(move, begin, jax.random.split(moves, length))
        return self._pose(begin, jnp.concatenate([begin[None], path]))

    def scramble(self, key: jax.Array, steps: jax.Array, longest: int | jax.Array) -> jax.Array:
        """States after a walk of their own number of moves each: int32 [n], none above `longest` ->
        uint8 [n, size]."""
        start, moves = jax.random.split(key)
        begin = self._begin(start, len(steps))
        return self._pose(begin, self._wander(moves, begin, steps, longest))

    def _wander(
        self, key: jax.Array, states: jax.Array, steps: jax.Array, longest: int | jax.Array
    ) -> jax.Array:
        """Each state after its own number of random moves, int32 [n], none above `longest`."""

        def move(k: jax.Array, states: jax.Array) -> jax.Array:
            return jnp.where(
                k < steps[:, None], self._move(jax.random.fold_in(key, k), states), states
            )

        return jax.lax.fori_loop(0, longest, move, states)

    def _begin(self, key: jax.Array, count: int) -> jax.Array:
        """Where walks begin: uint8 [count, size]."""
        return jnp.broadcast_to(jnp.asarray(self.goal), (count, self.size))

    def _move(self, key: jax.Array, states: jax.Array) -> jax.Array:
        return self.apply(states, below(key, states.shape[:-1], self.num_actions))

    def _pose(self, begin: jax.Array, reached: jax.Array) -> jax.Array:
        """The states to solve, given where walks began [n, size] and what they reached [..., n,
        size]."""
        return reached

    def read(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """States out of a file of test problems, such as `np.load(path)` gives: uint8 [n, size].

        Raises ValueError for what is no position of this puzzle or cannot be solved, naming the
        first such state.
        """
        states = read_array(arrays, "states", (self.size,))
        for i, state in enumerate(states):
            if why := self.fault(state):
                raise ValueError(f"state {i}: {why}")
        return states.astype(np.uint8)

    def fault(self, state: np.ndarray) -> str:
        """What is wrong with one state of a file, in words; "" where it can be solved."""
        raise NotImplementedError

    # ---- the environment -------------------------------------------------------------------------

    @property
    def default_params(self) -> Params:
        return self.params

    def reset_env(self, key: jax.Array, params: Params) -> tuple:
        """A scrambled state; it is drawn anew where the walk came back to the goal."""
        longest = jnp.asarray(params.scramble_steps, jnp.int32)

        def draw(drawn: tuple) -> tuple:
            key, length, walk = jax.random.split(drawn[0], 3)
            steps = 1 + below(length, (1,), longest)
            return key, self.scramble(walk, steps, steps[0])[0]

        solved = jnp.zeros(self.size, jnp.uint8) if self.goal is None else jnp.asarray(self.goal)
        _, position = jax.lax.while_loop(lambda drawn: self.is_goal(drawn[1]), draw, (key, solved))
        return self.inputs(position), State(jnp.int32(0), position)

    def step_env(self, key: jax.Array, state: State, action: jax.Array, params: Params) -> tuple:
        position = self.apply(state.position, action)
        reward = -jnp.asarray(self.costs)[action]
        return (
            self.inputs(position),
            State(state.time + 1, position),
            reward,
            self.is_goal(position),
            {},
        )

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> jax.Array:
        return self.inputs(state.position)

    def is_terminated(self, state: State, params: Params) -> jax.Array:
        return self.is_goal(state.position)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.num_inputs,))

    def render(self, state: State, params: Any = None) -> np.ndarray:
        """A picture of a state: uint8 [height, width, 3]."""
        raise NotImplementedError


def below(key: jax.Array, shape: tuple[int, ...], count: int | jax.Array) -> jax.Array:
    """Whole numbers in 0..count-1, int32, uniform to within count / 2**32; `jax.random.randint`
    draws three times as many bits to come nearer, and compiles three times as long."""
    return (jax.random.bits(key, shape) % jnp.asarray(count).astype(jnp.uint32)).astype(jnp.int32)


# ---- files ---------------------------------------------------------------------------------------


def read_array(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`arrays[name]`, once it is known to hold whole numbers (or truth values), [n, *shape]."""
    if name not in arrays:
        raise ValueError(
            f"there is no array {name!r}, only {', '.join(sorted(arrays)) or 'none at all'}"
        )
    array = np.asarray(arrays[name])
    if array.dtype.kind not in "iub" or array.shape[1:] != shape or array.ndim != len(shape) + 1:
        raise ValueError(
            f"{name} is {array.dtype} {list(array.shape)}; it should hold whole numbers, "
            f"[n, {', '.join(map(str, shape))}]"
        )
    return array


def not_permutation(state: np.ndarray) -> str:
    """Why the numbers 0..n-1 are not each there once; "" where they are."""
    n = len(state)
    for i, value in enumerate(state):
        if not 0 <= value < n:
            return f"entry {i} is {value}; entries lie in 0..{n - 1}"
    count = np.bincount(state, minlength=n)
    return (
        f"{count.argmax()} is there {count.max()} times, {count.argmin()} never"
        if count.max() > 1
        else ""
    )


def odd(permutation: np.ndarray) -> bool:
    """Whether it takes an odd number of swaps to sort."""
    inversions = np.triu(permutation[:, None] > permutation, 1).sum()
    return bool(inversions % 2)


# ---- exact distances -----------------------------------------------------------------------------


def permutation_rank(states: jax.Array) -> jax.Array:
    """Place of each permutation of 0..n-1 in lexical order: [..., n], n <= 12 -> int32 [...]."""
    n = states.shape[-1]
    entries = [states[..., i] for i in range(n)]
    rank = jnp.zeros(states.shape[:-1], jnp.int32)
    for i, entry in enumerate(entries):
        rank = rank * (n - i)
        for later in entries[i + 1 :]:
            rank += later < entry
    return rank


def breadth_first(puzzle: Puzzle, rank: Any, ranks: int) -> np.ndarray:
    """Moves from every state to the goal: int8 [ranks], -1 where there is no way.

    Args:
      rank: uint8 [n, size] -> int32 [n], a number of each state below `ranks`.
    """
    with jax.ensure_compile_time_eval():  # also where a trace asks for the table
        return _breadth_first(puzzle, rank, ranks)


def _breadth_first(puzzle: Puzzle, rank: Any, ranks: int) -> np.ndarray:
    @jax.jit
    def expand(states: jax.Array) -> tuple:
        children = puzzle.apply_all(states).reshape(-1, puzzle.size)
        return children, rank(children)

    table, owner = np.full(ranks, -1, np.int8), np.zeros(ranks, np.int32)
    frontier = np.asarray(puzzle.goal)[None]
    table[np.asarray(rank(jnp.asarray(frontier)))] = 0
    depth = 0
    while len(frontier):
        depth += 1
        found = []
        for begin in range(0, len(frontier), CHUNK):
            chunk = np.resize(
                frontier[begin : begin + CHUNK], (CHUNK, puzzle.size)
            )  # repeats, so that it is full
            children, number = map(np.asarray, expand(chunk))
            new = np.flatnonzero(table[number] < 0)
            owner[number[new]] = new  # the last of equal children
            new = new[owner[number[new]] == new]
            table[number[new]] = depth
            found.append(children[new])
        frontier = np.concatenate(found)
    return table


# ---- pictures ------------------------------------------------------------------------------------


LINE = 40
"""grey of the lines between squares"""


def tiled(colours: np.ndarray, side: int = 32, line: int = 2) -> np.ndarray:
    """Squares of `side` pixels with dark lines between them: uint8 [h, w, 3] -> uint8 [h * side, w
    * side, 3]."""
    picture = colours.repeat(side, 0).repeat(side, 1)
    grid = np.arange(side) < line
    rows, columns = np.tile(grid, colours.shape[0]), np.tile(grid, colours.shape[1])
    picture[rows[:, None] | columns] = LINE
    return picture
