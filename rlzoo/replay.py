"""Replay that lives on the device: uniform, n-step, prioritized, rows with a mask, and windows of
trajectories.

A buffer is a description (sizes, the shape of a row); what is stored is a pytree that its pure
functions take and return, so that all of it works under `jit`, `scan` and `vmap`, with the state
donated:

    buffer = rlzoo.replay.Uniform(10_000, example, num_envs=8, n_step=3)
    state = buffer.init()
    # every leaf [num_envs, ...]; t = 0, 1, 2, ...
    state = buffer.add(state, transitions, t)
    # Sample(batch, discount, index, weight)
    sample = buffer.sample(state, key, 128, discount, beta)
    target = sample.batch.reward + sample.discount * (1 - sample.batch.terminated) * next_value
    state = buffer.update(state, sample.index, abs(target - value))

`Uniform` and `Prioritized` have these verbs alike: `Uniform` weighs every row 1, ignores `beta` and
does nothing in `update`, so that neither is in the compiled program. `Masked` differs in `add`, to
which a mask says which rows are real; `Trajectory` draws windows. The target is right for every
buffer that draws transitions, and for every `n_step`.

Rows are kept in a ring: the call `add(..., t)` writes the *block* of `num_envs` rows from
`t % (capacity // num_envs) * num_envs` on, so environment e owns rows e, e + num_envs, ... in the
order of time; n-step returns and windows are read from rows stored once. The position comes from
`t`, which all members share (`in_axes=None`), and not from the state: under vmap the write still
compiles to one dynamic-update-slice per leaf, where a position per member becomes a scatter
(`Masked` has no other choice).

`Prioritized` and `Trajectory` draw from a tree of sums (see `_find`): a draw reads O(log capacity)
nodes, and a parent is always the fresh sum of its children, so errors do not accumulate.
Microseconds inside a compiled scan on 2 CPU cores, batch 128, capacity 10,000 (in brackets
1,000,000): uniform 6 (20); 3-step 10 (30); prioritized 10 (30-60), its update 4 (6); windows of 16
steps 30 (150); any add 1-3 (1-3). For 8 members, all together, capacity 10,000: uniform 50, 3-step
70, prioritized 150, its update 40, windows 160-260, add 1-4. Beware bfloat16 leaves on CPU, where
XLA converts the whole array at every write (100-200 at a million rows).

A draw from a buffer in which nothing can be drawn is not an error (sizes are not known inside a
compiled program): it returns row 0, all zeros. Guard it with `t`: after the call of `add` with
index t there are `min(t + 1, capacity // num_envs) * num_envs` rows, less `(n_step - 1) * num_envs`
starts. How many rows `Masked` has does not follow from `t`: see `state.size`.
"""

import dataclasses
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from rlzoo.algorithm import Refused

Array = jax.Array
Levels = tuple[Array, ...]  # a tree of sums: leaves first, at most FANOUT nodes last
FANOUT = (
    8  # fastest of 4, 8, 16, 32, 128 on CPU: a cumsum over wide nodes costs more than more levels
)


@struct.dataclass
class ReplayState:
    data: Any  # the rows: every leaf [capacity, ...]
    size: Array  # int32 []: rows stored
    pos: Array  # int32 []: the row that the next `add` writes first


@struct.dataclass
class PrioritizedState(ReplayState):
    tree: Levels  # float32: leaf i is priority ** alpha of row i; 0 where no draw may start
    max_priority: Array  # float32 []: the largest priority ** alpha seen so far, at first 1


@struct.dataclass
class TrajectoryState(ReplayState):
    tree: Levels  # int32: leaf i is 1 where a window starts at row i
    run: Array  # int32 [num_envs]: steps of the running episode that were added


class Sample(NamedTuple):
    """What `sample` returns: n rows drawn with replacement, the same for every buffer and every
    n_step.

    With n_step > 1, `batch.reward` is the discounted sum of up to n_step rewards, cut after the
    first row that ends an episode, and `batch.next_obs`, `terminated`, `truncated` are those of the
    last row used.
    """

    batch: Any  # rows: every leaf [n, ...]
    discount: (
        Array  # float32 [n]: discount ** k, k = number of rewards summed; mask it with `terminated`
    )
    index: Array  # type: ignore[assignment]  # int32 [n]: where each row is stored, for `update`
    weight: Array  # float32 [n]: importance weights in (0, 1]; 1 where drawn uniformly


State = TypeVar("State", bound=ReplayState)


class _Buffer:
    """What all buffers share: the rows and the checks of them. `rows`: how many one `add` takes,
    called `rows_name`."""

    def __init__(self, capacity: int, example: Any, rows: int, rows_name: str):
        for name, value in (("capacity", capacity), (rows_name, rows)):
            if value < 1:
                raise Refused(f"{name}={value}: must be at least 1")
        if capacity >= 2**30:
            raise Refused(f"capacity={capacity}: must be below 2**30, rows are counted in int32")
        if capacity < rows:
            raise Refused(
                f"capacity={capacity} is less than {rows_name}={rows}: one add would not fit"
            )
        if not jax.tree.leaves(example):
            raise Refused(f"example={example!r} has no leaves: give one row, a pytree of arrays")
        self.capacity = capacity
        self.row = jax.eval_shape(lambda row: jax.tree.map(jnp.asarray, row), example)

    def nbytes(self) -> int:
        """Bytes that one state takes (of one member); nothing is allocated to find out."""
        leaves = jax.tree.leaves(jax.eval_shape(self.init))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    def init(self) -> ReplayState:
        raise NotImplementedError

    def _init(self) -> dict[str, Any]:
        def empty(x: Any) -> Array:
            return jnp.zeros((self.capacity, *x.shape), x.dtype)

        data = jax.tree.map(empty, self.row)
        return {"data": data, "size": jnp.int32(0), "pos": jnp.int32(0)}

    def _rows(self, batch: Any, lead: tuple[int, ...], lead_name: str) -> Any:
        """`batch` as arrays, each leaf [*lead, ...]; refused where it does not fit the example."""
        batch = jax.tree.map(jnp.asarray, batch)
        have = str(jax.tree.structure(batch))
        want = str(jax.tree.structure(self.row))
        if have != want:
            raise Refused(f"add: batch is a {have}, the example was a {want}")
        leaves = jax.tree_util.tree_leaves_with_path(batch)
        for (path, leaf), row in zip(leaves, jax.tree.leaves(self.row), strict=True):
            if leaf.shape != (*lead, *row.shape) or leaf.dtype != row.dtype:
                raise Refused(
                    f"add: batch{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)}, "
                    f"must be {row.dtype}{[*lead, *row.shape]} ([{lead_name}, *example])"
                )
        return batch

    def _check(self, n: int) -> None:
        if not 1 <= n <= self.capacity:
            raise Refused(
                f"sample: batch n={n} with capacity={self.capacity}: must be from 1 to capacity "
                f"(a replay smaller than its batch repeats rows in every batch)"
            )


class _Ring(_Buffer):
    """A ring of blocks: a row of every environment a call. `span`: steps that one draw reads."""

    def __init__(self, capacity: int, example: Any, num_envs: int, span: int, span_name: str):
        super().__init__(capacity, example, num_envs, "num_envs")
        if span < 1:
            raise Refused(f"{span_name}={span}: must be at least 1")
        if capacity % num_envs:
            below = capacity // num_envs * num_envs
            raise Refused(
                f"capacity={capacity} is not a multiple of num_envs={num_envs}: "
                f"the nearest are {below} and {below + num_envs}"
            )
        if span * num_envs > capacity:
            raise Refused(
                f"{span_name}={span} with num_envs={num_envs} needs {span * num_envs} rows, "
                f"but capacity={capacity}: at most {span_name}={capacity // num_envs}"
            )
        self.num_envs, self.span = num_envs, span

    def _start(self, t: Array | int) -> Array:
        """First row of the block that call t writes; remainder first, so that nothing overflows."""
        blocks = self.capacity // self.num_envs
        return jnp.asarray(t, jnp.int32) % blocks * self.num_envs

    def _add(self, state: State, batch: Any, t: Array | int) -> State:
        batch = self._rows(batch, (self.num_envs,), "num_envs")
        start = self._start(t)
        last = self.capacity // self.num_envs - 1

        def write(stored: Array, new: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(stored, new, start, axis=0)

        data = jax.tree.map(write, state.data, batch)
        size = (jnp.minimum(jnp.asarray(t, jnp.int32), last) + 1) * self.num_envs
        pos = (start + self.num_envs) % self.capacity
        return dataclasses.replace(state, data=data, size=size, pos=pos)

    def _open(self, tree: Levels, t: Array | int, weight: Array) -> Levels:
        """The tree after call t: its rows start no draw yet, those `span - 1` calls older now
        do."""
        ready = self._start(jnp.asarray(t, jnp.int32) - (self.span - 1))
        if self.span == 1:
            return _write(tree, (ready,), (weight,))
        return _write(tree, (self._start(t), ready), (jnp.zeros_like(weight), weight))

    def _starts(self, state: ReplayState) -> tuple[Array, Array]:
        """Where draws may start: the oldest row, and how many rows from there on have `span` rows
        to read."""
        return (state.pos - state.size) % self.capacity, state.size - (
            self.span - 1
        ) * self.num_envs

    def _following(self, index: Array) -> Array:
        """[n] rows -> [n, span] rows: each with those of the same environment that follow in
        time."""
        return (index[:, None] + self.num_envs * jnp.arange(self.span)) % self.capacity


class _Transitions(_Ring):
    """What `Uniform` and `Prioritized` share: reading rows as n-step transitions."""

    def __init__(self, capacity: int, example: Any, num_envs: int, n_step: int):
        super().__init__(capacity, example, num_envs, n_step, "n_step")
        if n_step > 1:
            _require(
                self.row, ("reward", "next_obs", "terminated", "truncated"), f"n_step={n_step}"
            )
            if not jnp.issubdtype(self.row.reward.dtype, jnp.floating):
                raise Refused(
                    f"n_step={n_step}: reward is {self.row.reward.dtype}, must be a float type"
                )

    def _read(
        self, state: ReplayState, index: Array, discount: Array | float, weight: Array
    ) -> Sample:
        batch = _take(state.data, index)
        # powers[k - 1] = discount ** k
        powers = jnp.cumprod(jnp.full(self.span, discount, jnp.float32))
        if self.span == 1:
            return Sample(batch, jnp.broadcast_to(powers, index.shape), index, weight)
        rows = self._following(index)
        data = state.data
        reward, terminated, truncated = _take((data.reward, data.terminated, data.truncated), rows)

        # --- the rows before which no episode ended ---
        ends = (terminated | truncated).astype(jnp.int32)
        used = jnp.cumsum(ends, axis=1) - ends == 0
        last = used.sum(axis=1) - 1

        # --- their discounted sum, and what the last of them leads to ---
        factor = used * jnp.concatenate([jnp.ones(1), powers[:-1]])
        factor = factor.reshape(factor.shape + (1,) * (reward.ndim - 2))
        total = (factor * reward.astype(jnp.float32)).sum(axis=1)
        total = total.astype(reward.dtype)
        final = jnp.take_along_axis(rows, last[:, None], axis=1)[:, 0]
        next_obs, terminated, truncated = _take(
            (data.next_obs, data.terminated, data.truncated), final
        )
        batch = batch._replace(
            reward=total, next_obs=next_obs, terminated=terminated, truncated=truncated
        )
        return Sample(batch, powers[last], index, weight)


class Uniform(_Transitions):
    """Uniform replay, with n-step returns on request.

    Args:
      capacity: rows (transitions) kept; a multiple of `num_envs`.
      example: one row: a pytree of arrays, `ShapeDtypeStruct`s or scalars, without a leading axis.
      num_envs: rows that one `add` writes, one per environment, always in the same order.
      n_step: rewards summed per draw. More than 1 needs a NamedTuple with the fields reward
        (float), next_obs, terminated and truncated. Only rows from which n_step rows are stored are
        starts: those of the last n_step - 1 calls wait, even where an episode has ended, and no
        return crosses the write head.

    Raises `Refused` (a ValueError), here and at trace time, for sizes, shapes and dtypes that do
    not fit.
    """

    def __init__(self, capacity: int, example: Any, num_envs: int = 1, n_step: int = 1):
        super().__init__(capacity, example, num_envs, n_step)

    def init(self) -> ReplayState:
        """The empty state; rows are zero."""
        return ReplayState(**self._init())

    def add(self, state: ReplayState, batch: Any, t: Array | int) -> ReplayState:
        """Write `batch` (every leaf [num_envs, ...]) over the oldest rows; t: 0, 1, 2, ... by
        call."""
        return self._add(state, batch, t)

    def sample(
        self,
        state: ReplayState,
        key: Array,
        n: int,
        discount: Array | float,
        beta: Array | float = 1.0,
    ) -> Sample:
        """Draw n starts uniformly, with replacement; discount: per step, may be traced.

        Weights are 1, whatever `beta` is.
        """
        self._check(n)
        oldest, starts = self._starts(state)
        drawn = jax.random.randint(key, (n,), 0, jnp.maximum(starts, 1))
        index = (oldest + drawn) % self.capacity
        return self._read(state, index, discount, jnp.ones(n))

    def update(self, state: ReplayState, index: Array, priority: Array) -> ReplayState:
        """The state as it is: there are no priorities. Refuses what `Prioritized` does."""
        _check_priorities(index, priority)
        return state


class Prioritized(_Transitions):
    """Proportional prioritized replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952,
    section 3.3).

    Row i is drawn with P(i) = p_i ** alpha / sum_j p_j ** alpha. New rows get the largest priority
    so far. Arguments as for `Uniform`, and
      alpha: 0 (uniform) to 1 (proportional); may be traced.
    """

    def __init__(
        self,
        capacity: int,
        example: Any,
        num_envs: int = 1,
        n_step: int = 1,
        alpha: Array | float = 0.6,
    ):
        super().__init__(capacity, example, num_envs, n_step)
        if not isinstance(alpha, jax.core.Tracer) and not 0 <= alpha <= 1:
            raise Refused(f"alpha={alpha}: must lie in [0, 1] (0: uniform, 1: proportional)")
        self.alpha = alpha

    def init(self) -> PrioritizedState:
        """The empty state; rows are zero."""
        return PrioritizedState(
            **self._init(), tree=_zeros(self.capacity, jnp.float32), max_priority=jnp.float32(1)
        )

    def add(self, state: PrioritizedState, batch: Any, t: Array | int) -> PrioritizedState:
        """Write `batch` (every leaf [num_envs, ...]) over the oldest rows; t: 0, 1, 2, ... by
        call."""
        state = self._add(state, batch, t)
        weight = jnp.where(jnp.asarray(t) >= self.span - 1, state.max_priority, 0)
        tree = self._open(state.tree, t, jnp.broadcast_to(weight, (self.num_envs,)))
        return dataclasses.replace(state, tree=tree)

    def sample(
        self,
        state: PrioritizedState,
        key: Array,
        n: int,
        discount: Array | float,
        beta: Array | float = 1.0,
    ) -> Sample:
        """Draw n starts, one from each of n equal segments of the summed priorities.

        Weights are (N P(i)) ** -beta over their maximum in the batch; beta may be traced, and goes
        from 0 (no correction) to 1 (the full one).
        """
        self._check(n)
        width = state.tree[-1].sum() / n
        begin = jnp.arange(n) * width
        within = jax.random.uniform(key, (n,)) * width
        index = _find(state.tree, begin, within)
        leaf = jnp.maximum(_take(state.tree[0], index), jnp.finfo(jnp.float32).tiny)
        # N and the sum of priorities cancel against the maximum.
        weight = (leaf.min() / leaf) ** beta
        return self._read(state, index, discount, weight)

    def update(self, state: PrioritizedState, index: Array, priority: Array) -> PrioritizedState:
        """Set the priorities [n] of rows `index` [n], as `Sample.index` gave them.

        Where a row occurs twice, the larger priority counts. Add a small constant to errors that
        may be 0: a priority that is 0, negative or not finite is taken as 0, and that row is not
        drawn.

        Under `lax.cond`, keep `sample` and `update` in two of them: in one, the tree is copied at
        every call, which costs O(capacity).
        """
        _check_priorities(index, priority)
        priority = priority.astype(jnp.float32)
        priority = jnp.where((priority > 0) & jnp.isfinite(priority), priority**self.alpha, 0)
        # Rows written after the draw may not be starts any more.
        oldest, starts = self._starts(state)
        priority = jnp.where((index - oldest) % self.capacity < starts, priority, 0)
        return dataclasses.replace(
            state,
            tree=_set(state.tree, index, priority),
            max_priority=jnp.maximum(state.max_priority, priority.max()),
        )


class Masked(_Buffer):
    """Uniform replay for rows of varying number: each call gives `num_rows`, of which a mask says
    which are real, as do rollouts in a model that may end early, or a filter of them.

        rows, valid = rlzoo.dynamics.rollout(step, act, obs, key, horizon)    # [horizon, n, ...]
        state = buffer.add(state, rows, valid)

    Real rows are stored one after the other, over the oldest ones, so any number of rows that are
    not real takes no space.

    Args:
      capacity: rows kept; at least `num_rows`.
      example: one row, as for `Uniform`.
      num_rows: rows that one `add` is given, real or not.

    How many rows there are differs between calls and between members, so positions come from the
    state and not from `t`, and the write is a scatter: on 2 CPU cores about 0.05 microseconds a row
    given and member, in place (30 microseconds for 400 rows, 360 for 8 members, all together).

    The capacity is fixed. To forget rows earlier than that, as MBPO does while its rollouts are
    short, draw from the newest ones only: `sample(..., newest=...)`.

    Raises `Refused` as `Uniform` does.
    """

    def __init__(self, capacity: int, example: Any, num_rows: int):
        super().__init__(capacity, example, num_rows, "num_rows")
        self.num_rows = num_rows

    def init(self) -> ReplayState:
        """The empty state; rows are zero."""
        return ReplayState(**self._init())

    def add(self, state: ReplayState, batch: Any, mask: Array) -> ReplayState:
        """Write the rows of `batch` (every leaf [*mask.shape, ...]) where `mask` is True over the
        oldest rows, in their order; mask: bool, `num_rows` in all, of any shape."""
        mask = jnp.asarray(mask)
        if mask.dtype != bool or mask.size != self.num_rows:
            raise Refused(
                f"add: mask is {mask.dtype}{list(mask.shape)}, "
                f"must be bool with num_rows={self.num_rows} in all"
            )
        batch = self._rows(batch, mask.shape, "*mask")
        mask = mask.reshape(-1)
        count = mask.sum(dtype=jnp.int32)
        place = (state.pos + jnp.cumsum(mask, dtype=jnp.int32) - 1) % self.capacity
        # Rows that are not real go to places beyond the end, which are dropped; all places differ.
        beyond = self.capacity + jnp.arange(self.num_rows, dtype=jnp.int32)
        place = jnp.where(mask, place, beyond)

        def write(stored: Array, new: Array) -> Array:
            new = new.reshape(self.num_rows, *stored.shape[1:])
            return stored.at[place].set(new, mode="drop", unique_indices=True)

        return ReplayState(
            data=jax.tree.map(write, state.data, batch),
            size=jnp.minimum(state.size + count, self.capacity),
            pos=(state.pos + count) % self.capacity,
        )

    def sample(
        self,
        state: ReplayState,
        key: Array,
        n: int,
        discount: Array | float,
        beta: Array | float = 1.0,
        newest: Array | int | None = None,
    ) -> Sample:
        """Draw n rows uniformly, with replacement, from the `newest` rows stored (None: all).

        `newest` may be traced; what is below 1 counts as 1, and more than are stored as all.
        Weights are 1, whatever `beta` is.
        """
        self._check(n)
        size = state.size
        if newest is not None:
            size = jnp.minimum(size, jnp.maximum(newest, 1))
        after = jax.random.randint(key, (n,), 0, jnp.maximum(size, 1))
        index = (state.pos - size + after) % self.capacity
        discounts = jnp.full(n, discount, jnp.float32)
        return Sample(_take(state.data, index), discounts, index, jnp.ones(n))

    def update(self, state: ReplayState, index: Array, priority: Array) -> ReplayState:
        """The state as it is, as for `Uniform`."""
        _check_priorities(index, priority)
        return state


class Trajectory(_Ring):
    """Windows of `length` consecutive steps of one environment.

    No window crosses the end of an episode (which may be its last row) nor the write head; all
    others are equally likely. Arguments as for `Uniform`, and
      example: needs the fields terminated and truncated.
      length: steps per window; at most capacity // num_envs.
    """

    def __init__(self, capacity: int, example: Any, length: int, num_envs: int = 1):
        super().__init__(capacity, example, num_envs, length, "length")
        _require(self.row, ("terminated", "truncated"), "Trajectory")

    def init(self) -> TrajectoryState:
        """The empty state; rows are zero."""
        tree, run = _zeros(self.capacity, jnp.int32), jnp.zeros(self.num_envs, jnp.int32)
        return TrajectoryState(**self._init(), tree=tree, run=run)

    def add(self, state: TrajectoryState, batch: Any, t: Array | int) -> TrajectoryState:
        """Write `batch` (every leaf [num_envs, ...]) over the oldest rows; t: 0, 1, 2, ... by
        call."""
        state = self._add(state, batch, t)
        run = state.run + 1
        tree = self._open(state.tree, t, (run >= self.span).astype(jnp.int32))
        run = jnp.where(batch.terminated | batch.truncated, 0, run)
        return dataclasses.replace(state, tree=tree, run=run)

    def num_windows(self, state: TrajectoryState) -> Array:
        """How many windows there are, int32 []; while it is 0, `sample` returns rows without
        meaning."""
        return state.tree[-1].sum()

    def sample(self, state: TrajectoryState, key: Array, n: int) -> Any:
        """Draw n windows uniformly, with replacement: rows with leaves [n, length, ...]."""
        self._check(n)
        windows = jnp.maximum(self.num_windows(state), 1)
        which = jax.random.randint(key, (n,), 0, windows)
        start = _find(state.tree, jnp.zeros_like(which), which)
        return _take(state.data, self._following(start))


def _check_priorities(index: Array, priority: Array) -> None:
    if index.shape != priority.shape or index.ndim != 1:
        shapes = f"index has shape {index.shape} and priority {priority.shape}"
        raise Refused(f"update: {shapes}: must both be [n]")


def _require(row: Any, fields: tuple[str, ...], who: str) -> None:
    have = getattr(row, "_fields", ())
    if missing := [field for field in fields if field not in have]:
        raise Refused(
            f"{who} needs a NamedTuple row with the fields {', '.join(fields)}: "
            f"the example has no {', '.join(missing)}"
        )
    for field in ("terminated", "truncated"):
        leaf = getattr(row, field)
        if leaf.shape != () or leaf.dtype != bool:
            raise Refused(
                f"{who}: {field} is {leaf.dtype}{list(leaf.shape)} per row, must be one bool"
            )


def _take(data: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)


# A tree of sums: node j of one level is the sum of the FANOUT nodes from j * FANOUT on in the level
# below.


def _zeros(leaves: int, dtype: Any) -> Levels:
    depth = 0
    while leaves > FANOUT:
        leaves = -(-leaves // FANOUT)
        depth += 1
    sizes = [leaves * FANOUT**level for level in range(depth, -1, -1)]
    return tuple(jnp.zeros(size, dtype) for size in sizes)


def _write(tree: Levels, starts: tuple[Array, ...], blocks: tuple[Array, ...]) -> Levels:
    """Write each block of leaves at its start, as `_Ring._add` writes rows: no scatter under
    vmap."""
    level = tree[0]
    size = len(blocks[0])
    for start, block in zip(starts, blocks, strict=True):
        level = lax.dynamic_update_slice(level, block, (start,))
    levels = [level]
    for level in tree[1:]:
        # The most parents that `size` neighbors can have.
        size = min((size + FANOUT - 2) // FANOUT + 1, len(level))
        starts = tuple(jnp.minimum(start // FANOUT, len(level) - size) for start in starts)
        for start in starts:
            children = lax.dynamic_slice(levels[-1], (start * FANOUT,), (size * FANOUT,))
            sums = children.reshape(size, FANOUT).sum(axis=1)
            level = lax.dynamic_update_slice(level, sums, (start,))
        levels.append(level)
    return tuple(levels)


def _set(tree: Levels, index: Array, values: Array) -> Levels:
    """Set the leaves `index` [n]. Scatters are unordered: every duplicate must end in the same
    number."""
    levels = [tree[0].at[index].set(0).at[index].max(values)]
    for parents in tree[1:]:
        index = index // FANOUT
        children = _take(levels[-1].reshape(-1, FANOUT), index)
        levels.append(parents.at[index].set(children.sum(axis=1)))
    return tuple(levels)


def _find(tree: Levels, base: Array, offset: Array) -> Array:
    """Leaves [n] in whose part of the running sum the points base + offset [n] lie; never one that
    holds 0.

    Descends into the last positive child that begins at or before the point. Rounding can thus move
    a point to a neighbor but not to an empty child (flashbax#52), and a positive node has a
    positive child. Splitting the point lets float32 resolve single rows among millions: `offset`
    stays small.
    """
    node = jnp.zeros(offset.shape, jnp.int32)
    for level in reversed(tree):
        width = min(FANOUT, len(level))
        children = _take(level.reshape(-1, width), node)
        begin = jnp.cumsum(children, axis=1) - children - base[:, None]
        reached = (children > 0) & (begin <= offset[:, None])
        child = jnp.where(reached, jnp.arange(width, dtype=jnp.int32), 0).max(axis=1)
        node = node * width + child
        offset = offset - jnp.where(reached, begin, -base[:, None]).max(axis=1)
        base = jnp.zeros_like(base)
    return node
