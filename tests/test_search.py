"""Search on the device: its open list and closed set against plain Python, and whole searches of Q*
and A* against exact distances and against plain Python with a heap."""

import functools
import heapq
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import astar, qstar
from rlzoo.envs import Cube3, Puzzle, Tiles
from rlzoo.envs.puzzle import permutation_rank
from together import quick_jit

from rlzoo import machine, search
from rlzoo.algorithm import Refused
from rlzoo.search import DROPPED, EXHAUSTED, NODE_LIMIT, SOLVED, TABLE_FULL, Count, Entries

TILE8 = Tiles(3)
TOLERANCE = 1e-4
"""of sums of float32 numbers that are not whole"""


@pytest.fixture(scope="module", autouse=True)
def quick_compiling():
    with pytest.MonkeyPatch.context() as patch:
        usual = machine.compiler_options
        patch.setattr(
            machine,
            "compiler_options",
            lambda backend: (
                usual(backend)
                | {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
            ),
        )
        yield


# ---- states as words, counts, calls in parts -----------------------------------------------------


@pytest.mark.parametrize(
    "size, values, words", [(9, 9, 2), (54, 6, 6), (49, 2, 2), (16, 16, 2), (1, 1, 1), (5, 256, 2)]
)
def test_states_are_packed_and_unpacked(size, values, words):
    states = np.random.default_rng(0).integers(0, values, (4, 50, size)).astype(np.uint8)
    states[0, 0], states[0, 1] = 0, values - 1
    packed = search.pack(states, values)
    assert packed.shape == (4, 50, words) and packed.dtype == np.uint32
    assert len(np.unique(packed.reshape(-1, words), axis=0)) == len(
        np.unique(states.reshape(-1, size), axis=0)
    )
    np.testing.assert_array_equal(search.unpack(packed, size, values), states)


def test_counts_go_beyond_32_bits():
    count, total = Count.of(2**32 - 3), 2**32 - 3
    for n in (1, 1, 1, 5, 2**31, 2**31, 2**31 - 1, 0):
        before, count, total = count, count.plus(jnp.uint32(n)), total + n
        assert int(count) == total and count.low.dtype == np.uint32
        assert bool(before.less(count)) == (n > 0) and not count.less(before)
    assert (
        int(Count.of(2**62)) == 2**62
        and Count.of(2**32).less(Count.of(2**62))
        and not Count.of(7).less(Count.of(7))
    )


@pytest.mark.parametrize("wanted", [0, 1, 8, 9, 40], ids=lambda n: f"{n} wanted")
def test_evaluating_in_parts_is_evaluating(wanted):
    rng = np.random.default_rng(wanted)
    states = rng.integers(0, 9, (40, 9)).astype(np.uint8)
    chosen = np.isin(np.arange(40), rng.permutation(40)[:wanted])
    called = []

    def heuristic(states):
        jax.debug.callback(lambda _: called.append(1), states)
        return states.astype(jnp.float32) @ np.ones((9, 2))

    found = jax.jit(search.evaluate, static_argnums=(0, 3))(heuristic, states, chosen, 8)
    jax.effects_barrier()
    assert found.shape == (40, 2) and len(called) == -(-wanted // 8)
    np.testing.assert_array_equal(found[chosen], states[chosen].sum(1, keepdims=True).repeat(2, 1))


# ---- open list -----------------------------------------------------------------------------------


class Heap:
    """What the open list should do: entries leave by (priority, arrival)."""

    def __init__(self):
        self.entries, self.arrivals = [], itertools.count()

    def push(self, priority, node, action):
        heapq.heappush(self.entries, (priority, next(self.arrivals), node, action))

    def pop(self, count):
        return [heapq.heappop(self.entries) for _ in range(min(count, len(self.entries)))]

    def drop_worse(self, kept):
        """Keep the best, and return the others."""
        self.entries.sort()
        self.entries, lost = self.entries[:kept], self.entries[kept:]
        return lost


def test_the_open_list_is_a_heap_that_is_fair_to_equals():
    capacity, batch, rows = 48, 5, 8
    push, tidy = quick_jit(search.push), quick_jit(search.tidy, static_argnums=1)
    pops = {count: quick_jit(search.pop, static_argnums=1) for count in (1, batch)}
    drops = 0
    for seed in range(6):
        rng, heap, open_ = np.random.default_rng(seed), Heap(), search.empty_open(capacity)
        pushed, dropped, least = 0, 0, np.inf
        for step in range(60):
            if open_.size + rows > capacity:
                live = len(heap.entries)
                lost = heap.drop_worse(capacity // 2) if live + rows > capacity else []
                open_ = tidy(open_, rows)
                dropped, least = dropped + len(lost), min([least, *(entry[0] for entry in lost)])
                assert open_.size == len(heap.entries)  # no holes are left
            priority = rng.integers(0, 4 if seed % 2 else 40, rows).astype(
                np.float32
            )  # many ties, or few
            node, action, valid = (
                rng.integers(0, 2**31 - 1, rows),
                rng.integers(0, 2**15, rows),
                rng.random(rows) < 0.7,
            )
            open_ = push(
                open_, Entries(priority, node.astype(np.int32), action.astype(np.int32), valid)
            )
            for i in np.flatnonzero(valid):
                heap.push(priority[i], node[i], action[i])
            pushed += valid.sum()
            count = 1 if step % 3 else batch
            open_, got = pops[count](open_, count)
            expected = heap.pop(count)
            assert (
                got.valid.sum() == len(expected)
                and not np.asarray(got.valid)[len(expected) :].any()
            )
            for row, (wanted, _, n, a) in enumerate(expected):
                assert (got.priority[row], got.node[row], got.action[row]) == (wanted, n, a)
            assert np.isinf(np.asarray(got.priority)[len(expected) :]).all()
        assert (int(open_.pushed), int(open_.dropped), float(open_.least_dropped)) == (
            pushed,
            dropped,
            least,
        )
        drops += dropped
    assert drops > 50


def test_a_long_open_list():
    """As many entries as make `pop` look at a longer and a longer part of it."""
    capacity, count = 20_000, 3
    rng = np.random.default_rng(0)
    push, pop = quick_jit(search.push), quick_jit(search.pop, static_argnums=1)
    open_, heap = search.empty_open(capacity), Heap()
    for begin, rows in ((0, 4096), (4096, 1), (4097, 12_287), (16_384, 3616)):
        priority = rng.integers(0, 2000, rows).astype(np.float32)
        if rows == 1:
            priority[0] = -1  # best of all, and just beyond the first part
        open_ = push(
            open_,
            Entries(
                priority, jnp.arange(begin, begin + rows), jnp.zeros(rows, int), np.ones(rows, bool)
            ),
        )
        for i in range(rows):
            heap.push(priority[i], begin + i, 0)
        open_, got = pop(open_, count)
        assert [n for _, _, n, _ in heap.pop(count)] == got.node.tolist()


# ---- closed set ----------------------------------------------------------------------------------


def agrees(insert: Any, seed: int, batches: int = 30, rows: int = 16) -> bool:
    """Whether `insert` does what a dict would, over random batches with repeated states, cheaper
    and cheaper."""
    rng, nodes, size = np.random.default_rng(seed), 600, 6
    closed = search.empty_closed(nodes, 1)
    known: dict[bytes, int] = {}
    stored: list[tuple] = []  # state, cost, parent, action, current
    reopened = 0
    for k in range(batches):
        states = rng.integers(0, 3, (rows, size)).astype(np.uint8) * rng.integers(
            0, 2, (rows, 1), np.uint8
        )
        cost = (rng.integers(0, 20, rows) + batches - k).astype(np.float32)
        parent, action, valid = (
            np.arange(rows) + 100,
            rng.integers(0, 2**15, rows),
            rng.random(rows) < 0.8,
        )
        closed, node, accepted = jax.device_get(
            insert(closed, states, cost, parent.astype(np.int32), action.astype(np.int32), valid)
        )
        best: dict[bytes, int] = {}
        for i in np.flatnonzero(valid):
            key = states[i].tobytes()
            if cost[i] < (cost[best[key]] if key in best else np.inf):
                best[key] = i
        winners = {
            i for key, i in best.items() if key not in known or cost[i] < stored[known[key]][1]
        }
        if winners != set(np.flatnonzero(accepted)):
            return False
        fresh = len(stored) + len(winners)
        if (
            sorted(node[i] for i in winners) != list(range(len(stored), fresh))
            or closed.size != fresh
        ):
            return False
        stored += [()] * len(winners)
        for i in winners:
            key = states[i].tobytes()
            if key in known:
                reopened += 1
                stored[known[key]] = (key, None, *stored[known[key]][2:4], False)
            known[key] = node[i]
            stored[node[i]] = (key, cost[i], parent[i], action[i], True)
        if any(known[states[i].tobytes()] != node[i] for i in winners):
            return False
    n = closed.size
    state = np.asarray(search.unpack(closed.state[:n], size, 3))
    found = [
        (s.tobytes(), c if now else None, p, a, now)
        for s, c, p, a, now in zip(
            state,
            closed.cost[:n],
            closed.parent[:n],
            closed.action[:n],
            closed.current[:n],
            strict=True,
        )
    ]
    used = sorted(closed.table[closed.table >= 0].tolist())
    assert reopened > 20
    return (
        found == stored
        and used == sorted(known.values())
        and np.isinf(closed.cost[n:]).all()
        and (closed.claim == search.FREE).all()
    )


def packing(change: Any) -> Any:
    """`search.insert` for states that are not packed yet, and then go through `change`."""
    return lambda closed, states, *rest: search.insert(
        closed, change(search.pack(states, 3)), *rest
    )


def test_the_closed_set_is_a_dict():
    insert = quick_jit(packing(lambda words: words))
    assert all(agrees(insert, seed) for seed in range(5))


def test_equality_is_of_states_not_of_fingerprints(monkeypatch):
    monkeypatch.setattr(
        search,
        "_hash",
        lambda words: (
            jnp.full(words.shape[:-1], 5, jnp.uint32),
            jnp.ones(words.shape[:-1], jnp.uint32),
        ),
    )
    insert = quick_jit(packing(lambda words: words))
    assert all(agrees(insert, seed) for seed in range(2))
    by_fingerprint = quick_jit(packing(lambda words: search._hash(words)[0][:, None]))
    assert not agrees(by_fingerprint, 0)


# ---- oracles -------------------------------------------------------------------------------------


class Oracle(NamedTuple):
    """q(s, a) = factor * (1 + part[s, a] * remains[s after a]): one compiled search serves them
    all."""

    remains: Any
    """float32 [RANKS]"""
    part: Any
    """float32 [RANKS, 4]"""
    factor: Any = np.float32(1)


RANKS = 362_880


def tile8_q(oracle: Oracle, states: jax.Array) -> jax.Array:
    remains = oracle.remains[permutation_rank(TILE8.apply_all(states))]
    return oracle.factor * (1 + oracle.part[permutation_rank(states)] * remains)


def tile8_value(oracle: Oracle, states: jax.Array) -> jax.Array:
    return oracle.factor * oracle.remains[permutation_rank(states)]


class Facts(NamedTuple):
    states: np.ndarray
    """uint8 [RANKS, 9]"""
    children: list
    """rank after each action: list [RANKS][4]"""
    distance: np.ndarray
    oracles: dict


@pytest.fixture(scope="module")
def facts() -> Facts:
    states = np.array(list(itertools.permutations(range(9))), np.uint8)

    @quick_jit
    def know(states):
        after = permutation_rank(TILE8.apply_all(states))
        return after, TILE8.distance(states), TILE8.manhattan(states)

    after, distance, manhattan = map(np.asarray, know(states))
    whole = np.ones((RANKS, 4), np.float32)
    part = np.random.default_rng(0).random((RANKS, 4), np.float32)
    exact = np.maximum(distance, 0).astype(np.float32)
    oracles = {
        "exact": Oracle(exact, whole),
        "manhattan": Oracle(manhattan.astype(np.float32), whole),
        "part of it": Oracle(exact, part),
        "up to half too much": Oracle(exact, part, np.float32(1.5)),
        "blind": Oracle(np.zeros(RANKS, np.float32), whole),
    }
    return Facts(states, after.tolist(), distance, jax.tree.map(jnp.asarray, oracles))


def sample(facts: Facts, count: int, most: int = 31) -> np.ndarray:
    """Ranks of random states that can be solved."""
    return np.random.default_rng(1).choice(
        np.flatnonzero((facts.distance >= 0) & (facts.distance <= most)), count
    )


SMALL = dict(max_nodes=6_000, max_entries=30_000)
LARGE = dict(max_nodes=190_000, max_entries=800_000)


@functools.cache
def q_search(**options: Any) -> search.Solver:
    return qstar.with_values(TILE8, tile8_q, **(SMALL | options))


@functools.cache
def a_search(**options: Any) -> search.Solver:
    return astar.with_values(TILE8, tile8_value, **(SMALL | options))


def raw(solver: search.Solver, oracle: Any, state: Any, weight: float = 1.0) -> search.Search:
    """The whole end of a search."""
    solver.compile(oracle)
    return solver._compiled(
        oracle, jnp.asarray(state, jnp.uint8), jnp.float32(weight), Count.of(2**62)
    )


def check_path(facts: Facts, rank: int, solution: search.Solution) -> None:
    at = int(rank)
    for action in solution.actions:
        at = facts.children[at][action]
    assert facts.distance[at] == 0 and solution.cost == len(solution.actions)


# ---- searches in plain Python --------------------------------------------------------------------


class Reference(NamedTuple):
    cost: float
    generated: int
    calls: int
    pushed: int
    order: list
    """ranks: of the nodes that Q* makes, of those that A* expands"""


class Closed(dict):
    """rank -> (cost, number of the node)"""

    def __init__(self):
        self.numbers = itertools.count()

    def add(self, rank, cost):
        """The number of a node that is new or cheaper than before; None otherwise."""
        if rank in self and self[rank][0] <= cost:
            return None
        self[rank] = cost, next(self.numbers)
        return self[rank][1]


def plain_qstar(facts: Facts, h: list, start: int) -> Reference:
    """With unit costs, q = 1 + h of the child and weight 1; `h` whole numbers by rank."""
    goals, closed, heap, upper = (
        facts.distance,
        Closed(),
        Heap(),
        0 if facts.distance[start] == 0 else np.inf,
    )
    closed.add(start, 0)
    generated, calls, pushed, order = 1, 0, 1, [start]
    heap.push(0, (start, 0, 0), None)
    while heap.entries and heap.entries[0][0] < upper:
        ((_, _, (rank, cost, number), action),) = heap.pop(1)
        if closed[rank][1] != number:
            continue
        if action is not None:
            generated += 1
            rank, cost = facts.children[rank][action], cost + 1
            number = closed.add(rank, cost)
            if number is None:
                continue
            order.append(rank)
            if goals[rank] == 0:
                upper = min(upper, cost)
                continue
        calls += 1
        for a, child in enumerate(facts.children[rank]):
            if (priority := cost + 1 + h[child]) < upper:
                heap.push(priority, (rank, cost, number), a)
                pushed += 1
    return Reference(upper, generated, calls, pushed, order)


def plain_astar(facts: Facts, h: list, start: int, deferred: bool = False) -> Reference:
    goals, closed, heap, upper = (
        facts.distance,
        Closed(),
        Heap(),
        0 if facts.distance[start] == 0 else np.inf,
    )
    closed.add(start, 0)
    generated, calls, pushed, order = 1, 0, 1, []
    heap.push(0, (start, 0, 0), None)
    while heap.entries and heap.entries[0][0] < upper:
        ((_, _, (rank, cost, number), _),) = heap.pop(1)
        if closed[rank][1] != number:
            continue
        order.append(rank)
        calls += deferred
        fresh = []
        for child in facts.children[rank]:
            generated += 1
            made = closed.add(child, cost + 1)
            if made is not None and goals[child] == 0:
                upper = min(upper, cost + 1)
            elif made is not None:
                fresh.append((child, made))
        for child, made in fresh:
            calls += not deferred
            if (priority := cost + 1 + (max(h[rank] - 1, 0) if deferred else h[child])) < upper:
                heap.push(priority, (child, cost + 1, made), None)
                pushed += 1
    return Reference(upper, generated, calls, pushed, order)


SEARCHES = {
    "Q*": (functools.partial(q_search, batch=1), plain_qstar),
    "A*": (functools.partial(a_search, batch=1), plain_astar),
    "deferred A*": (
        functools.partial(a_search, batch=1, deferred=True),
        functools.partial(plain_astar, deferred=True),
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_counts_are_those_of_plain_python(name, facts):
    solver, plain = SEARCHES[name][0](), SEARCHES[name][1]
    for heuristic, count, most in (("exact", 40, 31), ("manhattan", 15, 20)):
        oracle = facts.oracles[heuristic]
        h = np.asarray(oracle.remains).astype(int).tolist()
        for rank in [*sample(facts, count, most), 0 if facts.distance[0] >= 0 else 1]:
            found, expected = solver(oracle, facts.states[rank]), plain(facts, h, int(rank))
            assert found.status == SOLVED
            assert found.cost == found.lower_bound == expected.cost == facts.distance[rank]
            assert (found.generated, found.network_calls, found.pushed) == expected[1:4], heuristic
            check_path(facts, rank, found)
            if name != "Q*":
                assert found.generated == 4 * len(expected.order) + 1


@pytest.mark.slow
def test_qstar_takes_edges_in_the_order_in_which_astar_takes_nodes(facts):
    oracle = facts.oracles["manhattan"]
    h = np.asarray(oracle.remains).astype(int).tolist()
    ranks = lambda words: np.asarray(permutation_rank(search.unpack(words, 9, 9))).tolist()
    for rank in sample(facts, 3, 20):
        by_q, by_a = plain_qstar(facts, h, rank).order, plain_astar(facts, h, rank).order
        assert by_a == by_q[: len(by_a)] and len(by_q) > len(by_a) > 0
        q_end, a_end = (
            raw(solver(batch=1), oracle, facts.states[rank]) for solver in (q_search, a_search)
        )
        assert ranks(q_end.closed.state[: q_end.closed.size]) == by_q
        parents = dict.fromkeys(np.asarray(a_end.closed.parent[1 : a_end.closed.size]).tolist())
        expanded = ranks(a_end.closed.state[np.array(list(parents))])  # those with new children
        taken = iter(by_a)
        assert (
            all(any(rank == one for one in taken) for rank in expanded)
            and len(expanded) > len(by_a) / 2
        )


# ---- exact q-values ------------------------------------------------------------------------------

EVERY = {
    "Q*, 1": lambda: q_search(batch=1),
    "Q*, 7": lambda: q_search(batch=7),
    "Q*, 1000": lambda: q_search(batch=1000, **LARGE),
    "A*, 1": lambda: a_search(batch=1),
    "A*, 64 in parts": lambda: in_parts(),
    "deferred A*": SEARCHES["deferred A*"][0],
}


@functools.cache
def in_parts() -> search.Solver:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(astar, "MAX_CHILDREN", 32)
        solver = a_search(batch=64)
    assert (solver.batch, solver.rows) == (64, 8)
    return solver


@pytest.mark.parametrize("weight", [1.0, 0.6])
@pytest.mark.parametrize("name", EVERY)
def test_exact_values_give_shortest_paths(name, weight, facts):
    solver, oracle = EVERY[name](), facts.oracles["exact"]
    for rank in sample(
        facts, {"Q*, 1": 2000 if weight == 1 else 300, "Q*, 1000": 25}.get(name, 60)
    ):
        found = solver(oracle, facts.states[rank], weight)
        assert found.status == SOLVED and found.cost == facts.distance[rank]
        assert weight * found.cost == pytest.approx(found.lower_bound, rel=1e-6)
        check_path(facts, rank, found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_state_of_the_8_puzzle(facts):
    solver, oracle = q_search(batch=1), facts.oracles["exact"]
    for rank in np.flatnonzero(facts.distance >= 0):
        found = solver(oracle, facts.states[rank])
        assert found.status == SOLVED and found.cost == found.lower_bound == facts.distance[rank]


def test_weight_0_goes_where_the_value_leads(facts):
    for name in ("Q*, 1", "A*, 64 in parts"):
        for heuristic in ("exact", "manhattan"):
            for rank in sample(facts, 20):
                found = EVERY[name]()(facts.oracles[heuristic], facts.states[rank], 0.0)
                assert (
                    found.status == SOLVED
                    and found.cost >= facts.distance[rank]
                    and found.lower_bound == 0
                )
                check_path(facts, rank, found)
                assert heuristic == "manhattan" or found.cost == facts.distance[rank]


# ---- values that are not exact -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Q*, 1", "Q*, 7"])
def test_values_that_never_overestimate_give_shortest_paths(name, facts):
    """q = cost + u * h* with u in [0, 1] drawn for each edge, which is not consistent."""
    solver, oracle = EVERY[name](), facts.oracles["part of it"]
    for rank in sample(facts, 120, 14):
        for weight in (1.0, 0.6):
            found = solver(oracle, facts.states[rank], weight)
            best = facts.distance[rank]
            assert (
                found.status == SOLVED
                and best <= found.cost
                and weight * found.cost <= best + TOLERANCE
            )
            assert (
                found.lower_bound <= best + TOLERANCE
                and found.lower_bound >= weight * found.cost - TOLERANCE
            )
            check_path(facts, rank, found)


def test_values_half_too_large_cost_at_most_half_too_much(facts):
    oracle = facts.oracles["up to half too much"]
    ranks = sample(facts, 100)
    found = [q_search(batch=7)(oracle, facts.states[rank]) for rank in ranks]
    cost, bound = (np.array([getattr(s, name) for s in found]) for name in ("cost", "lower_bound"))
    best = facts.distance[ranks]
    assert (best <= cost).all() and (cost <= 1.5 * best).all()
    assert (cost > best).any() and (bound > best).any()  # such values bound nothing


# ---- a graph on which shortcuts fail -------------------------------------------------------------


class Graph(Puzzle):
    """0, 1, 2, 3, 4, 5, 6 is the shortest path to the goal 6, by steps that cost 1. Jumps cost 3
    and are too expensive: from 0 to 2, and from 4 to 6."""

    name, size, values = "graph", 1, 16
    action_names, inverse = ("step", "jump"), None
    costs = np.array([1, 3], np.float32)
    goal = np.array([6], np.uint8)
    table = np.array([[1, 2], [2, 1], [3, 2], [4, 3], [5, 6], [6, 5], [6, 6]], np.uint8)

    def apply(self, states, actions):
        return jnp.asarray(self.table)[states[..., 0], actions][..., None]


GRAPH = Graph()
BEST = np.array([6, 5, 4, 3, 2, 1, 0], np.float32)
LATE = np.array([0, 5, 0, 0, 0, 0, 0], np.float32)
"""right for 1 and nothing for the others, so that 2, 3 and 4 are first reached, and taken, by the
jump"""


def edges(remains: np.ndarray) -> np.ndarray:
    return GRAPH.costs + remains[GRAPH.table]


def graph_search(batch: int = 1, of: str = "Q*", **options: Any) -> search.Solver:
    """Guided by q [7, 2] or by values [7]."""
    read = lambda table, states: jnp.asarray(table)[states[:, 0]]
    return {"Q*": qstar, "A*": astar}[of].with_values(
        GRAPH, read, batch=batch, max_nodes=64, max_entries=128, **options
    )


shared_graph_search = functools.cache(graph_search)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("of, batch", [("Q*", 1), ("A*", 8), slow("Q*", 8), slow("A*", 1)])
def test_a_cheaper_path_opens_a_node_again(of, batch):
    solver, oracle = shared_graph_search(batch, of), LATE if of == "A*" else edges(LATE)
    found = solver(oracle, [0])
    assert (found.status, found.cost, found.lower_bound, found.actions) == (SOLVED, 6, 6, [0] * 6)
    end = raw(solver, oracle, [0])
    n = int(end.closed.size)
    state, current = np.asarray(end.closed.state[:n, 0]), np.asarray(end.closed.current[:n])
    assert (np.bincount(state, weights=~current)[2:4] > 0).all() and len(
        np.unique(state[current])
    ) == current.sum()


def test_without_opening_again_the_path_is_too_long(monkeypatch):
    insert = search.insert

    def once(closed, *args, **named):
        """As far as a state is known, nothing is cheaper."""
        least = jnp.where(jnp.isinf(closed.cost), jnp.inf, -1.0)
        after, node, accepted = insert(closed._replace(cost=least), *args, **named)
        return (
            after._replace(cost=jnp.where(jnp.isinf(closed.cost), after.cost, closed.cost)),
            node,
            accepted,
        )

    monkeypatch.setattr(search, "insert", once)
    found = graph_search()(edges(LATE), [0])
    assert (found.status, found.cost, found.actions) == (SOLVED, 7, [1, 0, 0, 0, 0])


def test_stopping_at_the_first_goal_is_too_early():
    """q = u * (cost + h*), where u is 1 but for the jump to the goal: it is taken first, and its
    cost learned too late."""
    too_early = edges(BEST)
    too_early[4, 1] = 0.5
    naive, sure = graph_search(naive=True), shared_graph_search()
    assert naive(edges(BEST), [0]).cost == sure(edges(BEST), [0]).cost == 6
    found = naive(too_early, [0])
    assert (found.status, found.cost, found.actions) == (
        SOLVED,
        7,
        [0, 0, 0, 0, 1],
    ) and found.lower_bound <= 6
    found = sure(too_early, [0])
    assert (found.status, found.cost, found.lower_bound) == (SOLVED, 6, 6)


# ---- ends ----------------------------------------------------------------------------------------


def test_a_goal_to_begin_with_and_a_single_move(facts):
    start = int(np.flatnonzero(facts.distance == 0)[0])
    for name in EVERY:
        for heuristic in ("exact", "blind"):
            for weight in (1.0, 0.6, 0.0):
                found = EVERY[name]()(facts.oracles[heuristic], facts.states[start], weight)
                assert (found.status, found.cost, found.lower_bound, found.actions) == (
                    SOLVED,
                    0,
                    0,
                    [],
                )
                assert (found.generated, found.network_calls, found.iterations) == (1, 0, 0)
            for rank in np.flatnonzero(facts.distance == 1):
                found = EVERY[name]()(facts.oracles[heuristic], facts.states[rank])
                assert (found.status, found.cost, found.lower_bound) == (SOLVED, 1, 1)
                check_path(facts, rank, found)


def test_states_without_a_solution_are_exhausted(facts):
    rank = int(np.flatnonzero(facts.distance < 0)[0])
    found = q_search(batch=1000, **LARGE)(facts.oracles["blind"], facts.states[rank])
    assert (found.status, found.cost, found.actions, found.nodes) == (
        EXHAUSTED,
        np.inf,
        [],
        181_440,
    )
    assert (
        found.lower_bound == np.inf
        and found.generated == 4 * 181_440 + 1
        and found.network_calls == 181_440
    )


def test_every_limit_is_reported(facts):
    far = int(np.flatnonzero(facts.distance == 31)[0])
    blind, exact = facts.oracles["blind"], facts.oracles["exact"]
    full = q_search(batch=7)(blind, facts.states[far])
    assert (full.status, full.cost) == (TABLE_FULL, np.inf) and 5_900 < full.nodes <= 6_000
    assert 0 < full.lower_bound <= 31
    limited = q_search(batch=7)(blind, facts.states[far], max_generated=500)
    assert (
        limited.status == NODE_LIMIT
        and 500 <= limited.generated < 507
        and 0 < limited.lower_bound <= 31
    )
    assert q_search(batch=7)(exact, facts.states[far], max_generated=2000).status == SOLVED


def test_what_the_open_list_drops_is_told(facts):
    small = q_search(batch=1, max_entries=40)
    lost = int(np.flatnonzero(facts.distance < 0)[0])
    found = small(facts.oracles["manhattan"], facts.states[lost])
    assert (
        found.status == DROPPED
        and found.dropped > 0
        and found.cost == np.inf
        and np.isfinite(found.lower_bound)
    )
    worse, loose = 0, 0
    for rank in sample(facts, 30, 22):
        found = small(facts.oracles["manhattan"], facts.states[rank])
        end = raw(small, facts.oracles["manhattan"], facts.states[rank])
        assert found.status in (SOLVED, DROPPED) and found.dropped == int(end.open.dropped)
        assert found.lower_bound <= min(float(end.open.least_dropped), facts.distance[rank])
        if found.status == SOLVED:
            check_path(facts, rank, found)
            worse += found.cost > facts.distance[rank]
            loose += found.lower_bound < found.cost
    assert worse and loose >= worse


def test_a_search_without_room_is_refused():
    for options, message in (
        (dict(batch=0), "batches of at least 1.*batch is 0"),
        (dict(batch=7, max_nodes=7), "room for 7 nodes, but one batch of 7 may make 7"),
        (dict(batch=7, max_entries=50), "room for 50 entries .* 7 may add 28"),
    ):
        with pytest.raises(Refused, match=message):
            qstar.with_values(TILE8, tile8_q, **(SMALL | options))


# ---- the same answer, however it is computed -----------------------------------------------------


def test_the_batch_does_not_change_what_a_path_costs(facts):
    oracle = facts.oracles["manhattan"]
    for rank in sample(facts, 8, 22):
        found = [solver()(oracle, facts.states[rank]) for solver in EVERY.values()]
        assert {(s.status, s.cost, s.lower_bound) for s in found} == {
            (SOLVED, *[facts.distance[rank]] * 2)
        }


@pytest.mark.slow
def test_a_block_of_edges_gives_the_same_nodes_in_the_same_order(facts):
    """And twice the capacity changes nothing."""
    lazy = q_search(batch=1, edge_block=2, max_nodes=12_000, max_entries=60_000)
    for rank in sample(facts, 40, 14):
        ends = [
            raw(solver, facts.oracles["part of it"], facts.states[rank])
            for solver in (q_search(batch=1), lazy)
        ]
        whole, part = (np.asarray(end.closed.state[: end.closed.size]).tolist() for end in ends)
        assert whole == part and int(ends[0].generated) == int(ends[1].generated)
    for heuristic in ("exact", "manhattan"):  # with many equal priorities
        for rank in sample(facts, 15, 20):
            found = lazy(facts.oracles[heuristic], facts.states[rank])
            assert (
                found.status == SOLVED and found.cost == found.lower_bound == facts.distance[rank]
            )
            check_path(facts, rank, found)


@pytest.mark.slow
def test_mapped_searches_are_the_same():
    solver, states = shared_graph_search(), np.arange(7, dtype=np.uint8)[:, None]
    mapped = quick_jit(jax.vmap(solver.run, in_axes=(None, 0, None, None)))(
        edges(LATE), states, 1.0, Count.of(2**62)
    )
    alone = jax.tree.map(
        lambda *ends: np.stack(ends), *[raw(solver, edges(LATE), state) for state in states]
    )
    np.testing.assert_array_equal(alone.upper, BEST)
    jax.tree.map(np.testing.assert_array_equal, mapped, alone)


@pytest.mark.slow
def test_an_uncompiled_search_is_the_same():
    solver, state = shared_graph_search(), jnp.array([3], jnp.uint8)
    with jax.disable_jit():
        slowly = solver.run(edges(LATE), state, jnp.float32(1), Count.of(2**62))
    jax.tree.map(np.testing.assert_array_equal, slowly, raw(solver, edges(LATE), state))


@pytest.mark.slow
def test_a_profile_is_the_same_search(facts):
    solver, rank = q_search(batch=7), sample(facts, 1, 14)[0]
    run = solver(facts.oracles["manhattan"], facts.states[rank])
    profile = solver.profile(facts.oracles["manhattan"], facts.states[rank])
    assert run._replace(seconds=0, split={}) == profile._replace(seconds=0, split={})
    assert list(profile.split) == ["pop", "apply", "closed set", "network", "push"]
    assert (
        all(value > 0 for value in profile.split.values())
        and sum(profile.split.values()) <= profile.seconds
    )


# ---- meta-actions --------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [slow(12), 156])
def test_meta_actions_cost_as_many_turns_as_they_make(actions):
    """Three states each that are 0, 1, 2 and 3 quarter turns away, with values that know of nothing
    but costs."""
    cube, turns = Cube3(actions), Cube3().table.astype(int)
    solver = qstar.with_values(
        cube,
        lambda params, states: jnp.broadcast_to(cube.costs, (len(states), actions)),
        batch=64,
        max_nodes=2048,
        max_entries=2**16,
    )
    spheres, seen = [cube.goal[None]], {cube.goal.tobytes()}
    for _ in range(3):
        children = {state.tobytes() for state in spheres[-1][:, turns].reshape(-1, 54)} - seen
        seen |= children
        spheres.append(np.array([np.frombuffer(state, np.uint8) for state in sorted(children)]))
    assert [len(sphere) for sphere in spheres] == [1, 12, 114, 1068]
    for distance, sphere in enumerate(spheres):
        for state in sphere[:: -(-len(sphere) // 3)]:
            found = solver(None, state)
            assert (found.status, found.cost, found.lower_bound) == (SOLVED, distance, distance)
            assert sum(cube.costs[action] for action in found.actions) == distance
            for action in found.actions:
                state = state[cube.table[action].astype(int)]
            assert (state == cube.goal).all()
