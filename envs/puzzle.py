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

Array = jax.Array
Arrays = Mapping[str, np.ndarray]
"""of a file, by name"""
CHUNK = 4096
"""States that the breadth-first search expands in one go."""


@struct.dataclass
class State(environment.EnvState):
    time: Array
    """steps made"""
    position: Array
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

    def apply(self, states: Array, actions: Array) -> Array:
        """The states after one action each: uint8 [..., size], int32 [...] -> uint8 [..., size]."""
        raise NotImplementedError

    def apply_all(self, states: Array) -> Array:
        """The states after every action: uint8 [n, size] -> uint8 [n, num_actions, size]."""

        def after(action: Array) -> Array:
            return self.apply(states, jnp.full(len(states), action))

        actions = jnp.arange(self.num_actions)
        return jax.vmap(after, out_axes=1)(actions)

    def is_goal(self, states: Array) -> Array:
        """uint8 [..., size] -> bool [...]"""
        return (states == jnp.asarray(self.goal)).all(-1)

    def inputs(self, states: Array) -> Array:
        """What a network sees: uint8 [..., size] -> float32 [..., num_inputs], here each entry
        one-hot."""
        one_hot = jax.nn.one_hot(states, self.values)
        return one_hot.reshape(*states.shape[:-1], self.num_inputs)

    def states_of(self, inputs: Array) -> Array:
        """The inverse of `inputs`."""
        one_hot = inputs.reshape(*inputs.shape[:-1], self.size, self.values)
        return one_hot.argmax(-1).astype(jnp.uint8)

    def distance(self, states: Array) -> Array:
        """The exact cost of the way to the goal, in moves: uint8 [..., size] -> int32 [...], -1
        where there is no way.

        Raises NotImplementedError where the puzzle is too large to know.
        """
        raise NotImplementedError(f"{self.name} has too many states for a table of exact distances")

    # ---- states ----------------------------------------------------------------------------------

    def walk(self, key: Array, count: int, length: int) -> Array:
        """`count` random walks backwards from the goal, uniform over actions, inverses allowed:
        uint8 [length + 1, count, size], where row k is after k moves (those that were not possible
        counted).

        With every action its inverse is an action too, so that a walk backwards is drawn like one
        forwards.
        """
        start, moves = jax.random.split(key)
        begin = self._begin(start, count)

        def move(states: Array, key: Array) -> tuple:
            states = self._move(key, states)
            return states, states

        path: Array
        keys = jax.random.split(moves, length)
        _, path = jax.lax.scan(move, begin, keys)
        path = jnp.concatenate([begin[None], path])
        return self._pose(begin, path)

    def scramble(self, key: Array, steps: Array, longest: int | Array) -> Array:
        """States after a walk of their own number of moves each: int32 [n], none above `longest` ->
        uint8 [n, size]."""
        start, moves = jax.random.split(key)
        begin = self._begin(start, len(steps))
        reached = self._wander(moves, begin, steps, longest)
        return self._pose(begin, reached)

    def _wander(self, key: Array, states: Array, steps: Array, longest: int | Array) -> Array:
        """Each state after its own number of random moves, int32 [n], none above `longest`."""

        def move(k: Array, states: Array) -> Array:
            moved = self._move(jax.random.fold_in(key, k), states)
            return jnp.where(k < steps[:, None], moved, states)

        return jax.lax.fori_loop(0, longest, move, states)

    def _begin(self, key: Array, count: int) -> Array:
        """Where walks begin: uint8 [count, size]."""
        goal = jnp.asarray(self.goal)
        return jnp.broadcast_to(goal, (count, self.size))

    def _move(self, key: Array, states: Array) -> Array:
        """The states after one random action each."""
        actions = below(key, states.shape[:-1], self.num_actions)
        return self.apply(states, actions)

    def _pose(self, begin: Array, reached: Array) -> Array:
        """The states to solve, given where walks began [n, size] and what they reached [..., n,
        size]."""
        return reached

    def read(self, arrays: Arrays) -> np.ndarray:
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

    def reset_env(self, key: Array, params: Params) -> tuple:
        """A scrambled state; it is drawn anew where the walk came back to the goal."""
        longest = jnp.asarray(params.scramble_steps, jnp.int32)

        def draw(drawn: tuple) -> tuple:
            key, length, walk = jax.random.split(drawn[0], 3)
            steps = 1 + below(length, (1,), longest)
            return key, self.scramble(walk, steps, steps[0])[0]

        def solved(drawn: tuple) -> Array:
            return self.is_goal(drawn[1])

        # Any solved state will do: all zeros where states hold their own goal.
        goal = self.goal
        if goal is None:
            goal = np.zeros(self.size, np.uint8)
        begin = (key, jnp.asarray(goal))
        _, position = jax.lax.while_loop(solved, draw, begin)
        return self.inputs(position), State(jnp.int32(0), position)

    def step_env(self, key: Array, state: State, action: Array, params: Params) -> tuple:
        position = self.apply(state.position, action)
        reward = -jnp.asarray(self.costs)[action]
        terminated = self.is_goal(position)
        state = State(state.time + 1, position)
        return self.inputs(position), state, reward, terminated, {}

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> Array:
        return self.inputs(state.position)

    def is_terminated(self, state: State, params: Params) -> Array:
        return self.is_goal(state.position)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.num_inputs,))

    def render(self, state: State, params: Any = None) -> np.ndarray:
        """A picture of a state: uint8 [height, width, 3]."""
        raise NotImplementedError


def below(key: Array, shape: tuple[int, ...], count: int | Array) -> Array:
    """Whole numbers in 0..count-1, int32, uniform to within count / 2**32; `jax.random.randint`
    draws three times as many bits to come nearer, and compiles three times as long."""
    bits = jax.random.bits(key, shape)
    count = jnp.asarray(count).astype(jnp.uint32)
    return (bits % count).astype(jnp.int32)


# ---- files ---------------------------------------------------------------------------------------


def read_array(arrays: Arrays, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`arrays[name]`, once it is known to hold whole numbers (or truth values), [n, *shape]."""
    if name not in arrays:
        known = ", ".join(sorted(arrays)) or "none at all"
        raise ValueError(f"there is no array {name!r}, only {known}")
    array = np.asarray(arrays[name])
    whole = array.dtype.kind in "iub"
    fits = array.ndim == len(shape) + 1 and array.shape[1:] == shape
    if not whole or not fits:
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
    if count.max() > 1:
        return f"{count.argmax()} is there {count.max()} times, {count.argmin()} never"
    return ""


def odd(permutation: np.ndarray) -> bool:
    """Whether it takes an odd number of swaps to sort."""
    larger = permutation[:, None] > permutation
    inversions = np.triu(larger, 1).sum()
    return bool(inversions % 2)


# ---- exact distances -----------------------------------------------------------------------------


def permutation_rank(states: Array) -> Array:
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
    # A trace may ask for the table too.
    with jax.ensure_compile_time_eval():
        return _breadth_first(puzzle, rank, ranks)


def _breadth_first(puzzle: Puzzle, rank: Any, ranks: int) -> np.ndarray:
    @jax.jit
    def expand(states: Array) -> tuple:
        children = puzzle.apply_all(states)
        children = children.reshape(-1, puzzle.size)
        return children, rank(children)

    table = np.full(ranks, -1, np.int8)
    owner = np.zeros(ranks, np.int32)
    frontier = np.asarray(puzzle.goal)[None]
    number = rank(jnp.asarray(frontier))
    table[np.asarray(number)] = 0
    depth = 0
    while len(frontier):
        depth += 1
        found = []
        for begin in range(0, len(frontier), CHUNK):
            # The last chunk is filled up with repeats, so that all have one shape.
            chunk = frontier[begin : begin + CHUNK]
            chunk = np.resize(chunk, (CHUNK, puzzle.size))
            children, number = map(np.asarray, expand(chunk))
            # Of equal children, the last is kept.
            new = np.flatnonzero(table[number] < 0)
            owner[number[new]] = new
            new = new[owner[number[new]] == new]
            table[number[new]] = depth
            found.append(children[new])
        frontier = np.concatenate(found)
    return table


# ---- pictures ------------------------------------------------------------------------------------


LINE = 40
"""gray of the lines between squares"""


def tiled(colors: np.ndarray, side: int = 32, line: int = 2) -> np.ndarray:
    """Squares of `side` pixels with dark lines between them: uint8 [h, w, 3] -> uint8 [h * side, w
    * side, 3]."""
    picture = colors.repeat(side, 0).repeat(side, 1)
    height, width = picture.shape[:2]
    in_rows = np.arange(height) % side < line
    in_columns = np.arange(width) % side < line
    picture[in_rows[:, None] | in_columns] = LINE
    return picture
