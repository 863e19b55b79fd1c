"""Best-first search on the device: an open list and a closed set of fixed capacity in one compiled
loop.

`Solver` runs a search whose expansion is given by an algorithm file (`algorithms/qstar.py`,
`algorithms/astar.py`). Each iteration takes the `batch` best entries from the open list and hands
them to the expansion. The search ends when no entry is better than `weight` times the cheapest goal
found, which bounds what that goal costs too much: `weight * cost <= C*` where the heuristic never
overestimates.

* Priorities and costs are float32; entries of equal priority leave in the order in which they came.
* A state is in the closed set once: equality is of whole states, never of fingerprints. Of equal
states in one batch
  the cheapest wins, among equally cheap ones the first.
* A cheaper path to a known state makes a new node and retires the old one, so that paths never
change afterwards.
* Nothing overflows in silence. A full closed set ends the search; a full open list drops its worse
half, and the
  smallest priority dropped enters the lower bound.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlzoo import machine
from rlzoo.algorithm import Refused

FREE = np.iinfo(np.int32).max
ENTRY_BYTES = 10
"""What an entry of the open list takes."""

SOLVED, EXHAUSTED, NODE_LIMIT, TABLE_FULL, DROPPED = STATUSES = (
    "solved",  # no entry is left below weight * cost
    "exhausted",  # every state within reach has been seen: there is no path
    "node limit",  # as many nodes generated as were allowed
    "table full",  # no room in the closed set for another batch
    "open list dropped",  # no entry is left, but some had been dropped: there may be a path
)


# ---- states as words -----------------------------------------------------------------------------


def _layout(size: int, values: int) -> tuple[int, int, int]:
    """(bits of an entry, entries of a word, words of a state)"""
    bits = max(1, (values - 1).bit_length())
    return bits, 32 // bits, -(-size // (32 // bits))


def pack(states: jax.Array, values: int) -> jax.Array:
    """uint8 [..., size] with entries in [0, values) as uint32 [..., words]."""
    size = states.shape[-1]
    bits, per_word, words = _layout(size, values)
    missing = words * per_word - size
    padded = jnp.pad(states, [(0, 0)] * (states.ndim - 1) + [(0, missing)])
    parts = padded.reshape(*states.shape[:-1], words, per_word).astype(jnp.uint32)
    shifts = bits * jnp.arange(per_word, dtype=jnp.uint32)
    return (parts << shifts).sum(-1, dtype=jnp.uint32)


def unpack(words: jax.Array, size: int, values: int) -> jax.Array:
    """The inverse of `pack`."""
    bits, per_word, _ = _layout(size, values)
    shifts = bits * jnp.arange(per_word, dtype=jnp.uint32)
    mask = np.uint32(2**bits - 1)
    parts = words[..., None] >> shifts & mask
    entries = parts.reshape(*words.shape[:-1], -1)[..., :size]
    return entries.astype(jnp.uint8)


def _hash(words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two hashes of uint32 [n, words]: where to look first, and the (odd) stride."""
    h = jnp.full(words.shape[:-1], np.uint32(0x9E3779B9))
    for column in range(words.shape[-1]):
        h = (h ^ words[..., column]) * np.uint32(0x85EBCA6B)
        h = (h ^ h >> 15) * np.uint32(0xC2B2AE35)
        h = h ^ h >> 13
    return h, (h * np.uint32(0x27D4EB2F) >> 7) | np.uint32(1)


# ---- counting beyond 32 bits ---------------------------------------------------------------------


class Count(NamedTuple):
    low: jax.Array
    high: jax.Array

    @classmethod
    def of(cls, n: int) -> "Count":
        return cls(jnp.uint32(n & 0xFFFFFFFF), jnp.uint32(n >> 32))

    def plus(self, n: jax.Array) -> "Count":
        """`n` at most 2^31."""
        low = self.low + n.astype(jnp.uint32)
        return Count(low, self.high + (low < self.low).astype(jnp.uint32))

    def less(self, other: "Count") -> jax.Array:
        tie = self.high == other.high
        return (self.high < other.high) | (tie & (self.low < other.low))

    def __int__(self) -> int:
        return int(self.low) + (int(self.high) << 32)


# ---- open list -----------------------------------------------------------------------------------


class Open(NamedTuple):
    """Entries in order of arrival; taken ones leave a hole (priority inf) until the next `tidy`."""

    priority: jax.Array
    """float32 [capacity]"""
    node: jax.Array
    """int32 [capacity]"""
    action: jax.Array
    """int16 [capacity], for the expansion to use"""
    size: jax.Array
    """entries and holes"""
    pushed: Count
    dropped: Count
    least_dropped: jax.Array
    """the smallest priority ever dropped, inf if none"""


class Entries(NamedTuple):
    priority: jax.Array
    node: jax.Array
    action: jax.Array
    valid: jax.Array


def empty_open(capacity: int) -> Open:
    return Open(
        jnp.full(capacity, jnp.inf),
        jnp.zeros(capacity, jnp.int32),
        jnp.zeros(capacity, jnp.int16),
        jnp.int32(0),
        Count.of(0),
        Count.of(0),
        jnp.float32(jnp.inf),
    )


def push(open_: Open, entries: Entries) -> Open:
    """Append the valid ones of `entries` [n], in their order. The caller sees to it that there is
    room."""
    place = _places(entries.valid, open_.size, len(open_.priority))
    count = entries.valid.sum()
    return open_._replace(
        priority=open_.priority.at[place].set(entries.priority, mode="drop"),
        node=open_.node.at[place].set(entries.node, mode="drop"),
        action=open_.action.at[place].set(entries.action.astype(jnp.int16), mode="drop"),
        size=open_.size + count,
        pushed=open_.pushed.plus(count),
    )


def pop(open_: Open, count: int) -> tuple[Open, Entries]:
    """Take the `count` entries of lowest priority, sorted; first come, first served among equals.

    A single one comes with a second, invalid row: XLA copies whole arrays where a scatter has one
    row.
    """
    capacity = len(open_.priority)
    # The list is mostly not full: look only at as long a prefix as holds all entries.
    shortest = max(count, 4096)
    longer = max(0, math.ceil(math.log(capacity / shortest, 4)))
    prefixes = [min(capacity, shortest << 2 * i) for i in range(1 + longer)]

    def best_of(prefix: int) -> Callable:
        return lambda priority: jax.lax.top_k(-priority[:prefix], count)

    which: Any = 0
    if longer:
        which = sum((open_.size > prefix).astype(jnp.int32) for prefix in prefixes[:-1])
    branches = [best_of(prefix) for prefix in prefixes]
    negated, place = jax.lax.switch(which, branches, open_.priority)
    if count == 1:
        negated = jnp.append(negated, -jnp.inf)
        place = jnp.append(place, capacity)
    node = open_.node.at[place].get(mode="clip")
    action = open_.action.at[place].get(mode="clip").astype(jnp.int32)
    entries = Entries(-negated, node, action, negated > -jnp.inf)
    priority = open_.priority.at[place].set(jnp.inf, mode="drop")
    return open_._replace(priority=priority), entries


def tidy(open_: Open, room: int) -> Open:
    """Close the holes; if there is still no room for `room` more entries, drop the worse ones of
    all."""
    capacity = len(open_.priority)
    live = jnp.isfinite(open_.priority)
    kept = jnp.minimum(live.sum(), capacity // 2)

    def drop_worse(live: jax.Array) -> jax.Array:
        order = jnp.argsort(open_.priority, stable=True)
        return live & jnp.zeros(capacity, bool).at[order].set(jnp.arange(capacity) < kept)

    keep = jax.lax.cond(live.sum() + room > capacity, drop_worse, lambda live: live, live)
    lost = live & ~keep
    place = _places(keep, jnp.int32(0), capacity)

    def move(x: jax.Array, fill: Any) -> jax.Array:
        return jnp.full_like(x, fill).at[place].set(x, mode="drop")

    least = jnp.where(lost, open_.priority, jnp.inf).min()
    return open_._replace(
        priority=move(open_.priority, jnp.inf),
        node=move(open_.node, 0),
        action=move(open_.action, 0),
        size=keep.sum(),
        dropped=open_.dropped.plus(lost.sum()),
        least_dropped=jnp.minimum(open_.least_dropped, least),
    )


def _places(chosen: jax.Array, start: jax.Array, nowhere: int) -> jax.Array:
    """Consecutive places from `start` for the chosen rows, `nowhere` (out of bounds) for the
    others."""
    return jnp.where(chosen, start + jnp.cumsum(chosen, dtype=jnp.int32) - 1, nowhere)


# ---- closed set ----------------------------------------------------------------------------------


class Closed(NamedTuple):
    """Nodes in order of arrival, found through a hash table of twice their number."""

    state: jax.Array
    """uint32 [nodes, words]"""
    cost: jax.Array
    """float32 [nodes] from the start; inf beyond `size`; of a retired node the cost of the cheaper
    path"""
    parent: jax.Array
    action: jax.Array
    """int16 [nodes] that led from the parent here"""
    current: jax.Array
    """bool [nodes]: no cheaper path to the same state is known"""
    size: jax.Array
    table: jax.Array
    """int32 [slots]: the current node of a state, or -1"""
    claim: jax.Array
    """int32 [slots]: scratch, FREE between calls"""


def empty_closed(nodes: int, words: int) -> Closed:
    slots = 2 << (nodes - 1).bit_length()
    return Closed(
        jnp.zeros((nodes, words), jnp.uint32),
        jnp.full(nodes, jnp.inf),
        jnp.full(nodes, -1, jnp.int32),
        jnp.full(nodes, -1, jnp.int16),
        jnp.ones(nodes, bool),
        jnp.int32(0),
        jnp.full(slots, -1, jnp.int32),
        jnp.full(slots, FREE, jnp.int32),
    )


def insert(
    closed: Closed,
    state: jax.Array,
    cost: jax.Array,
    parent: jax.Array,
    action: jax.Array,
    valid: jax.Array,
) -> tuple[Closed, jax.Array, jax.Array]:
    """Put the valid ones of n candidates into the closed set; those accepted are new states, or
    cheaper than before.

    Args:
      state: uint32 [n, words]; cost, parent, action, valid: [n]. The caller sees to it that there
      is room for n more.

    Returns: the set, the node of each candidate [n], and which were accepted, bool [n]: of equal
    states one at most.
    """
    nodes = len(closed.cost)
    slots = len(closed.table)
    home, stride = _hash(state)

    # --- look up each state, and store those that are new ---
    def probe(carry: tuple) -> tuple:
        store, table, claim, size, slot, node, pending = carry
        held = table[slot]
        taken = held >= 0
        same = pending & taken & (store[held] == state).all(-1)
        asking = pending & ~taken
        claim, first_of = _first(claim, slot, asking)
        # No row is both `asking` and `same`; naming both orders reading the store before writing.
        wins = asking & first_of & ~same
        new = _places(wins, size, nodes)
        table = table.at[jnp.where(wins, slot, slots)].set(new, mode="drop")
        store = store.at[new].set(state, mode="drop")
        node = jnp.where(wins, new, jnp.where(same, held, node))
        # Those that lost look again at the same slot.
        slot = jnp.where(pending & taken & ~same, (slot + stride) % slots, slot)
        pending &= ~same & ~wins
        return store, table, claim, size + wins.sum(), slot, node, pending

    store, table, claim, size, slot, node, _ = jax.lax.while_loop(
        lambda carry: carry[-1].any(),
        probe,
        (
            closed.state,
            closed.table,
            closed.claim,
            closed.size,
            home % slots,
            jnp.zeros(len(cost), jnp.int32),
            valid,
        ),
    )

    better = valid & (cost < closed.cost[node])
    target = jnp.where(better, node, nodes)
    least = closed.cost.at[target].min(cost, mode="drop")
    leads = better & (cost == least[node])
    claim, first_of = _first(claim, node, leads)
    accepted = leads & first_of

    again = accepted & (node < closed.size)
    new = _places(again, size, nodes)
    current = closed.current.at[jnp.where(again, node, nodes)].set(False, mode="drop")
    table = table.at[jnp.where(again, slot, slots)].set(new, mode="drop")
    store = store.at[new].set(state, mode="drop")
    node = jnp.where(again, new, node)
    at = jnp.where(accepted, node, nodes)
    return (
        Closed(
            store,
            least.at[at].set(cost, mode="drop"),
            closed.parent.at[at].set(parent, mode="drop"),
            closed.action.at[at].set(action.astype(jnp.int16), mode="drop"),
            current,
            size + again.sum(),
            table,
            claim,
        ),
        node,
        accepted,
    )


def _first(claim: jax.Array, place: jax.Array, asking: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of the rows that ask for a place is the first to do so, bool [n].

    Written so that each write depends on the read before it: otherwise XLA copies the whole of
    `claim`.
    """
    rows = jnp.arange(len(place), dtype=jnp.int32)
    nowhere = len(claim)
    asked = jnp.where(asking, place, nowhere)
    claim = claim.at[asked].min(rows, mode="drop")
    holder = claim[place]
    held = jnp.where(asking & (holder < FREE), place, nowhere)
    return claim.at[held].set(FREE, mode="drop"), holder == rows


# ---- the search ----------------------------------------------------------------------------------


class Search(NamedTuple):
    """Where a search stands."""

    open: Open
    closed: Closed
    goal: jax.Array
    """the node of the cheapest goal found, -1 if none"""
    upper: jax.Array
    """its cost, inf if none"""
    lower: jax.Array
    """the largest of the smallest priorities that the open list had"""
    generated: Count
    """nodes made by applying an action, repeated ones included, and the start"""
    calls: Count
    """states whose heuristic was computed"""
    iterations: jax.Array


def found(search: Search, node: jax.Array, cost: jax.Array, is_goal: jax.Array) -> Search:
    """Take note of the cheapest of the goals among nodes [n]."""
    cost = jnp.where(is_goal, cost, jnp.inf)
    best = cost.argmin()
    better = cost[best] < search.upper
    goal = jnp.where(better, node[best], search.goal)
    return search._replace(goal=goal, upper=jnp.minimum(cost[best], search.upper))


def look_up(search: Search, puzzle: Any, entries: Entries) -> tuple[jax.Array, jax.Array]:
    """The states of the entries' nodes, uint8 [n, size], and which are still worth a look: valid
    and not retired."""
    state = unpack(search.closed.state[entries.node], puzzle.size, puzzle.values)
    return state, entries.valid & search.closed.current[entries.node]


def add_nodes(
    search: Search,
    puzzle: Any,
    state: jax.Array,
    cost: jax.Array,
    parent: jax.Array,
    action: jax.Array,
    valid: jax.Array,
) -> tuple[Search, jax.Array, jax.Array]:
    """`insert` states uint8 [n, size], and take note of the goals among those accepted.

    Returns: the search, the node of each [n], and which were accepted and are no goal, bool [n].
    """
    closed, node, accepted = insert(
        search.closed, pack(state, puzzle.values), cost, parent, action, valid
    )
    goal = accepted & puzzle.is_goal(state)
    return found(search._replace(closed=closed), node, cost, goal), node, accepted & ~goal


def cutoff(search: Search, weight: jax.Array) -> jax.Array:
    """The priority from which on no entry leads to a goal cheaper than the one found, or not by
    more than `weight` allows; inf while none is found."""
    return jnp.where(search.goal >= 0, weight * search.upper, jnp.inf)


def evaluate(heuristic: Callable, states: jax.Array, wanted: jax.Array, rows: int) -> Any:
    """`heuristic(states)` where wanted, in as few calls of `rows` states each as it takes; rubbish
    elsewhere.

    Args:
      states: uint8 [n, size]; wanted: bool [n].
    """
    count = len(states)
    place = _places(wanted, jnp.int32(0), count)
    order = (
        jnp.zeros(-(-count // rows) * rows, jnp.int32)
        .at[place]
        .set(jnp.arange(count, dtype=jnp.int32), mode="drop")
    )
    spec = jax.eval_shape(heuristic, states[:1])
    out = jnp.zeros((len(order), *spec.shape[1:]), spec.dtype)

    def some(i: jax.Array, out: jax.Array) -> jax.Array:
        values = heuristic(states[jax.lax.dynamic_slice_in_dim(order, i * rows, rows)])
        return jax.lax.dynamic_update_slice_in_dim(out, values, i * rows, 0)

    out = jax.lax.fori_loop(0, -(-wanted.sum() // rows), some, out)
    return out[jnp.minimum(place, count - 1)]


class Solution(NamedTuple):
    status: str
    """one of STATUSES"""
    cost: float
    """of the path; inf where there is none"""
    lower_bound: float
    """no path is cheaper, if the heuristic never overestimates"""
    actions: list[int]
    generated: int
    network_calls: int
    pushed: int
    nodes: int
    """stored in the closed set"""
    dropped: int
    """entries that the open list had no room for"""
    iterations: int
    seconds: float
    split: dict[str, float]
    """seconds of each part, where the search was profiled"""


class Solver:
    """A compiled search for one puzzle.

    Args:
      puzzle: an `rlzoo.envs` puzzle.
      expansion: `expansion(params, weight) -> parts`, called inside the trace. `parts` are (name,
        function) pairs; the first is called with `(search, entries)`, each next one with what the
        one before returned, and the last one returns the search.
      root_action: what the expansion wants in the entry of the start.
      room: how many nodes, and how many entries, the parts may add for each entry.
      batch: entries taken in one iteration.
      rows: entries handed to the parts at a time, a divisor of `batch`.
      max_nodes: capacity of the closed set.
      max_entries: capacity of the open list.
      naive: end at the first goal, as others do. It is not sure to be the cheapest, whatever the
      heuristic.
    """

    def __init__(
        self,
        puzzle: Any,
        expansion: Callable,
        *,
        root_action: int,
        room: tuple[int, int],
        batch: int,
        rows: int | None = None,
        max_nodes: int,
        max_entries: int,
        naive: bool = False,
    ):
        rows = rows or batch
        if batch < 1 or batch % rows:
            raise Refused(
                f"a search takes batches of at least 1, in equal parts; batch is {batch}, parts of "
                f"{rows}"
            )
        room_nodes, room_entries = room
        self.room_nodes = room_nodes * max(batch, 2)
        self.room_entries = room_entries * max(batch, 2)
        if max_nodes <= self.room_nodes:
            raise Refused(
                f"there is room for {max_nodes:_} nodes, but one batch of {batch:_} may make "
                f"{self.room_nodes:_}: allow more nodes (--node-limit), or take smaller batches "
                "(--batch)"
            )
        if max_entries < 2 * self.room_entries:
            raise Refused(
                f"there is room for {max_entries:_} entries of the open list; one batch of "
                f"{batch:_} may add {self.room_entries:_}, and it takes twice that: allow more "
                "(--node-limit, --memory), or take smaller batches (--batch)"
            )
        self.puzzle = puzzle
        self.expansion = expansion
        self.root_action = root_action
        self.naive = naive
        self.batch = batch
        self.rows = rows
        self.max_nodes = max_nodes
        self.max_entries = max_entries
        self._run = jax.jit(self.run)
        self._compiled: Any = None
        self.compile_seconds = 0.0

    def bytes(self) -> int:
        """What the open list and the closed set take."""
        return memory(self.puzzle, self.max_nodes, self.max_entries)

    def begin(self, state: jax.Array) -> Search:
        """`state`: uint8 [size]."""
        one = jnp.ones(1, bool)
        none = jnp.full(1, -1)
        _, _, words = _layout(self.puzzle.size, self.puzzle.values)
        closed, node, _ = insert(
            empty_closed(self.max_nodes, words),
            pack(state[None], self.puzzle.values),
            cost=jnp.zeros(1),
            parent=none,
            action=none,
            valid=one,
        )
        root = Entries(jnp.zeros(1), node, jnp.full(1, self.root_action), one)
        start = Search(
            open=push(empty_open(self.max_entries), root),
            closed=closed,
            goal=jnp.int32(-1),
            upper=jnp.float32(jnp.inf),
            lower=jnp.float32(0),
            generated=Count.of(1),
            calls=Count.of(0),
            iterations=jnp.int32(0),
        )
        return found(start, node, jnp.zeros(1), self.puzzle.is_goal(state[None]))

    def take(self, search: Search, weight: jax.Array) -> tuple[Search, Entries]:
        """The next batch, and the lower bound that its first entry gives."""
        open_, entries = pop(search.open, self.batch)
        search = search._replace(
            open=open_,
            lower=jnp.maximum(search.lower, entries.priority[0]),
            iterations=search.iterations + 1,
        )
        return search, entries._replace(
            valid=entries.valid & (search.lower < self.limit(search, weight))
        )

    def limit(self, search: Search, weight: jax.Array) -> jax.Array:
        """Entries from this priority on are not worth taking."""
        return (
            jnp.where(search.goal >= 0, -jnp.inf, jnp.inf) if self.naive else cutoff(search, weight)
        )

    def goes_on(self, search: Search, weight: jax.Array, max_generated: Count) -> jax.Array:
        """Whether there is anything worth taking, and room for what comes of it."""
        room = search.closed.size + self.room_nodes <= self.max_nodes
        return (
            (search.lower < self.limit(search, weight))
            & search.generated.less(max_generated)
            & room
        )

    def run(self, params: Any, state: jax.Array, weight: jax.Array, max_generated: Count) -> Search:
        """The search itself, a pure function of arrays."""
        parts = self.expansion(params, weight)

        def step(search: Search) -> Search:
            search, entries = self.take(search, weight)
            if self.rows == self.batch:
                return _chain(parts, search, entries)

            def expand(i: jax.Array, search: Search) -> Search:
                piece = jax.tree.map(
                    lambda x: jax.lax.dynamic_slice_in_dim(x, i * self.rows, self.rows), entries
                )
                return _chain(parts, search, piece)

            # Valid entries come first.
            used = -(-entries.valid.sum() // self.rows)
            return jax.lax.fori_loop(0, used, expand, search)

        def more(search: Search) -> jax.Array:
            return self.goes_on(search, weight, max_generated)

        def has_room(search: Search) -> jax.Array:
            return search.open.size + self.room_entries <= self.max_entries

        def steps(search: Search) -> Search:
            """Until the open list must be tidied."""
            search = jax.lax.while_loop(
                lambda search: more(search) & has_room(search), step, search
            )
            open_ = jax.lax.cond(
                has_room(search),
                lambda open_: open_,
                lambda open_: tidy(open_, self.room_entries),
                search.open,
            )
            return search._replace(open=open_)

        return jax.lax.while_loop(more, steps, self.begin(state))

    def compile(self, params: Any) -> "Solver":
        """Compile now rather than at the first call."""
        if self._compiled is None:
            began = time.perf_counter()
            state = jax.ShapeDtypeStruct((self.puzzle.size,), jnp.uint8)
            self._compiled = self._run.lower(params, state, jnp.float32(0), Count.of(0)).compile(
                compiler_options=machine.compiler_options(jax.default_backend())
            )
            self.compile_seconds = time.perf_counter() - began
        return self

    def __call__(
        self, params: Any, state: Any, weight: float = 1.0, max_generated: int = 2**62
    ) -> Solution:
        """Search from `state`, uint8 [size]; `params` goes to the expansion."""
        self.compile(params)
        args = (params, jnp.asarray(state, jnp.uint8), jnp.float32(weight), Count.of(max_generated))
        began = time.perf_counter()
        search = jax.block_until_ready(self._compiled(*args))
        return self._solution(search, weight, max_generated, time.perf_counter() - began, {})

    def profile(
        self, params: Any, state: Any, weight: float = 1.0, max_generated: int = 2**62
    ) -> Solution:
        """The same search, its parts compiled and timed apart: slower as a whole, for
        `Solution.split`."""
        scale = jnp.float32(weight)
        names = [name for name, _ in self.expansion(params, scale)]

        def part(i: int) -> Callable:
            return jax.jit(lambda params, args: self.expansion(params, scale)[i][1](*args))

        parts = [(name, part(i)) for i, name in enumerate(names)]
        take = jax.jit(lambda search: self.take(search, scale))
        clean = jax.jit(lambda search: search._replace(open=tidy(search.open, self.room_entries)))
        split = dict.fromkeys(["pop", *names], 0.0)

        def timed(name: str, function: Callable, *args: Any) -> Any:
            began = time.perf_counter()
            out = jax.block_until_ready(function(*args))
            split[name] += time.perf_counter() - began
            return out

        # The first round compiles.
        for warm in (True, False):
            search = jax.jit(self.begin)(jnp.asarray(state, jnp.uint8))
            began = time.perf_counter()
            split = dict.fromkeys(split, 0.0)
            while self.goes_on(search, scale, Count.of(max_generated)):
                if int(search.open.size) + self.room_entries > self.max_entries:
                    search = timed("pop", clean, search)
                search, entries = timed("pop", take, search)
                for first in range(0, int(entries.valid.sum()), self.rows):
                    rows = slice(first, first + self.rows)
                    args: Any = (search, Entries(*(x[rows] for x in entries)))
                    for name, run in parts:
                        args = timed(name, run, params, args)
                    search = args
                if warm and int(search.iterations) == 3:
                    break
        return self._solution(search, weight, max_generated, time.perf_counter() - began, split)

    def _solution(
        self, search: Search, weight: float, max_generated: int, seconds: float, split: dict
    ) -> Solution:
        # --- why it ended ---
        cost = float(search.upper)
        lower = float(search.lower)
        solved = math.isfinite(cost)
        if solved and (self.naive or lower >= np.float32(weight) * np.float32(cost)):
            status = SOLVED
        elif math.isinf(lower):
            status = DROPPED if int(search.open.dropped) else EXHAUSTED
        else:
            status = NODE_LIMIT if int(search.generated) >= max_generated else TABLE_FULL
        reached = weight * cost if solved else math.inf
        bound = min(lower, float(search.open.least_dropped), reached)

        # --- the path, from the goal back to node 0, the start ---
        parent = np.asarray(search.closed.parent)
        action = np.asarray(search.closed.action)
        actions = []
        node = int(search.goal)
        while node > 0:
            actions.append(int(action[node]))
            node = int(parent[node])
        return Solution(
            status,
            cost,
            bound,
            actions[::-1],
            int(search.generated),
            int(search.calls),
            int(search.open.pushed),
            int(search.closed.size),
            int(search.open.dropped),
            int(search.iterations),
            seconds,
            split,
        )


def replay(puzzle: Any, state: Any, actions: list[int]) -> list[jax.Array]:
    """The states that `actions` lead through, uint8 [size] each, the first one included."""
    positions = [jnp.asarray(state)]
    for action in actions:
        positions.append(puzzle.apply(positions[-1], jnp.int32(action)))
    return positions


def _chain(parts: Any, *args: Any) -> Any:
    return functools.reduce(lambda args, part: part[1](*args), parts, args)


def memory(puzzle: Any, max_nodes: int, max_entries: int) -> int:
    """Bytes of a closed set and an open list of these capacities."""
    _, _, words = _layout(puzzle.size, puzzle.values)
    open_ = jax.eval_shape(lambda: empty_open(max_entries))
    closed = jax.eval_shape(lambda: empty_closed(max_nodes, words))
    arrays = jax.tree.leaves((open_, closed))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
