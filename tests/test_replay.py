"""Replay against a plain Python reference, and against the bugs that other projects had."""

import functools
import math
import time
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlzoo import replay
from rlzoo.replay import Masked, Prioritized, Trajectory, Uniform

CAPACITY, ENVS, GAMMA, BETA = 12, 3, 0.9, 0.7


class Row(NamedTuple):
    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    extra: Any


EXAMPLE = Row(
    obs=jax.ShapeDtypeStruct((2, 2), jnp.uint8),
    action=jax.ShapeDtypeStruct((), jnp.int32),
    reward=0.0,
    next_obs=jax.ShapeDtypeStruct((2, 2), jnp.uint8),
    terminated=False,
    truncated=np.bool_(False),
    extra={"mask": np.zeros(3, bool), "z": jnp.zeros((), jnp.bfloat16)},
)


def block(t, ends="...", envs=ENVS):
    """What add number t writes; `action` names the row; ends: per environment `.`, `e`
    (terminated), `u`."""
    name = t * envs + np.arange(envs)
    byte = np.broadcast_to(name[:, None, None], (envs, 2, 2))
    return Row(
        obs=byte.astype(np.uint8),
        action=name.astype(np.int32),
        reward=np.sin(name).astype(np.float32),
        next_obs=(byte + 1).astype(np.uint8),
        terminated=np.array([c == "e" for c in ends]),
        truncated=np.array([c == "u" for c in ends]),
        extra={"mask": np.stack([name % 2 == 0] * 3, 1), "z": jnp.asarray(name % 7, jnp.bfloat16)},
    )


class Reference:
    """The ring in plain Python: every row that was ever added, and which of them are stored."""

    def __init__(self, capacity=CAPACITY, envs=ENVS):
        self.blocks, self.ends, self.envs, self.keep = [], [], envs, capacity // envs

    def add(self, ends):
        self.blocks.append(block(len(self.blocks), ends, self.envs))
        self.ends.append(ends)

    def stored(self):
        return range(max(0, len(self.blocks) - self.keep), len(self.blocks))

    def starts(self, span):
        """(t, env) of the rows that have `span` stored rows of their environment from themselves
        on."""
        return [
            (t, e) for t in self.stored() for e in range(self.envs) if t + span <= len(self.blocks)
        ]

    def windows(self, length):
        calm = lambda t, e: all(self.ends[t + k][e] == "." for k in range(length - 1))
        return [start for start in self.starts(length) if calm(*start)]

    def index(self, t, e):
        return t % self.keep * self.envs + e

    def n_step(self, t, e, n):
        total, k = 0.0, 0
        while k < n:
            row = jax.tree.map(lambda x, at=t + k: x[e], self.blocks[t + k])
            total += GAMMA**k * float(row.reward)
            k += 1
            if row.terminated or row.truncated:
                break
        return total, k, row


@functools.cache
def compiled(kind, span):
    """(buffer, add, sample of CAPACITY rows for 24 keys, update), each compiled once for the whole
    file."""
    if kind == "uniform":
        buffer = Uniform(CAPACITY, EXAMPLE, ENVS, span)
        draw = lambda state, key: buffer.sample(state, key, CAPACITY, GAMMA, BETA)
    elif kind == "prioritized":
        buffer = Prioritized(CAPACITY, EXAMPLE, ENVS, span, alpha=0.5)
        draw = lambda state, key: buffer.sample(state, key, CAPACITY, GAMMA, BETA)
    else:
        buffer = Trajectory(CAPACITY, EXAMPLE, span, ENVS)
        draw = lambda state, key: buffer.sample(state, key, CAPACITY)
    draws = jax.jit(jax.vmap(draw, (None, 0)))
    return (
        buffer,
        jax.jit(buffer.add, donate_argnums=0),
        draws,
        jax.jit(getattr(buffer, "update", lambda: 0)),
    )


def split(seed):
    return jax.random.split(jax.random.key(seed), 24)


def flat(sample):
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), sample)


ENDS = st.text("...eu", min_size=ENVS, max_size=ENVS)
fast = settings(max_examples=15, deadline=None)


def check_transitions(sample, reference, span):
    """Every row drawn is what the reference says that n-step transition is."""
    names = sample.batch.action
    for i in np.unique(names, return_index=True)[1]:
        t, e = divmod(int(names[i]), reference.envs)
        total, k, last = reference.n_step(t, e, span)
        first = jax.tree.map(lambda x, e=e: x[e], reference.blocks[t])
        want = first._replace(
            next_obs=last.next_obs, terminated=last.terminated, truncated=last.truncated
        )
        got = jax.tree.map(lambda x, i=i: x[i], sample.batch)
        chex.assert_trees_all_equal(got._replace(reward=0), want._replace(reward=0))
        assert got.reward == pytest.approx(total, abs=1e-6)
        assert sample.discount[i] == pytest.approx(GAMMA**k, rel=1e-6)
        assert sample.index[i] == reference.index(t, e)


@pytest.mark.parametrize("span", [1, 3])
@fast
@given(adds=st.lists(ENDS, min_size=3, max_size=14), seed=st.integers(0, 1000))
def test_uniform_is_the_reference(span, adds, seed):
    buffer, add, draws, _ = compiled("uniform", span)
    state, reference = buffer.init(), Reference()
    for t, ends in enumerate(adds):
        reference.add(ends)
        state = add(state, reference.blocks[-1], t)
    assert (int(state.size), int(state.pos)) == (
        min(CAPACITY, len(adds) * ENVS),
        len(adds) * ENVS % CAPACITY,
    )
    sample = flat(draws(state, split(seed)))
    drawn = {divmod(int(name), ENVS) for name in sample.batch.action}
    assert drawn == set(reference.starts(span))  # 288 draws of at most 12 rows: none is missed
    assert (sample.weight == 1).all()
    check_transitions(sample, reference, span)


PRIORITY = st.sampled_from([0.0, 0.25, 1.0, 4.0, 9.0, math.nan])
OPERATION = st.one_of(
    ENDS,  # an add, or an update of 4 rows
    st.lists(st.tuples(st.integers(0, CAPACITY - 1), PRIORITY), min_size=4, max_size=4),
)


@pytest.mark.parametrize("span", [1, 3])
@fast
@given(operations=st.lists(OPERATION, max_size=16), seed=st.integers(0, 1000))
def test_prioritized_is_the_reference(span, operations, seed):
    buffer, add, draws, update = compiled("prioritized", span)
    state, reference = buffer.init(), Reference()
    priority, largest, t = {}, 1.0, 0  # (t, env) of a start -> priority
    for operation in [*["..."] * span, *operations]:
        if isinstance(operation, str):
            reference.add(operation)
            state, t = add(state, reference.blocks[-1], t), t + 1
            starts = reference.starts(span)
            priority = {s: priority.get(s, largest) for s in starts}
        else:
            at = {reference.index(*s): s for s in priority}
            index, values = (np.array(column) for column in zip(*operation, strict=True))
            state = update(state, index, values.astype(np.float32))
            values = np.nan_to_num(
                values
            )  # neither NaN nor rows that cannot be drawn get a priority
            for i in set(index) & set(at):
                priority[at[i]] = max(values[index == i])  # of duplicates the largest
                largest = max(largest, priority[at[i]])
    leaves = np.zeros(CAPACITY)
    for s, p in priority.items():
        leaves[reference.index(*s)] = p**0.5
    np.testing.assert_allclose(state.tree[0][:CAPACITY], leaves, rtol=1e-6)
    np.testing.assert_allclose(float(state.tree[-1].sum()), leaves.sum(), rtol=1e-6)
    np.testing.assert_allclose(float(state.max_priority), largest**0.5, rtol=1e-6)
    if not leaves.any():
        return
    sample = draws(state, split(seed))
    drawn = {divmod(int(name), ENVS) for name in np.ravel(sample.batch.action)}
    assert drawn <= {s for s, p in priority.items() if p > 0}
    check_transitions(flat(sample), reference, span)
    chance = leaves[np.asarray(sample.index)] / leaves.sum()
    weight = (len(priority) * chance) ** -BETA
    np.testing.assert_allclose(sample.weight, weight / weight.max(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("span", [1, 3])
@fast
@given(adds=st.lists(ENDS, max_size=14), seed=st.integers(0, 1000))
def test_trajectory_is_the_reference(span, adds, seed):
    buffer, add, draws, _ = compiled("trajectory", span)
    state, reference = buffer.init(), Reference()
    for t, ends in enumerate(adds):
        reference.add(ends)
        state = add(state, reference.blocks[-1], t)
    windows = set(reference.windows(span))
    assert int(buffer.num_windows(state)) == len(windows)
    if not windows:
        return
    sample = flat(draws(state, split(seed)))
    assert sample.obs.shape[1:] == (span, 2, 2)
    assert {divmod(int(name), ENVS) for name in sample.action[:, 0]} == windows
    assert (
        np.diff(sample.action, axis=1) == ENVS
    ).all()  # consecutive steps: the write head is not crossed
    assert not (sample.terminated | sample.truncated)[:, :-1].any()
    rows = jax.tree.map(lambda *x: np.concatenate(x), *reference.blocks)
    chex.assert_trees_all_equal(sample, jax.tree.map(lambda x: x[sample.action], rows))


def test_naive_windows_cross():
    """The sampler that takes any stored row as a start crosses both the write head and episode
    ends."""
    buffer, add, draws, _ = compiled("trajectory", 3)
    state = buffer.init()
    for t in range(6):
        state = add(state, block(t, "e.." if t == 3 else "..."), t)
    crosses = lambda w: (
        (np.diff(w.action, axis=1) != ENVS).any(),
        (w.terminated | w.truncated)[:, :-1].any(),
    )
    naive = replay._take(state.data, buffer._following(jnp.arange(CAPACITY)))
    assert crosses(naive) == (True, True)
    assert crosses(flat(draws(state, split(0)))) == (False, False)


MANY = {
    "uniform": lambda: compiled("uniform", 3),
    "prioritized": lambda: compiled("prioritized", 3),
    "trajectory": lambda: compiled("trajectory", 3),
}


@pytest.mark.parametrize("kind", MANY)
def test_every_leaf_keeps_its_dtype(kind):
    buffer, _, _, _ = MANY[kind]()
    want = jax.tree.map(lambda x: x.dtype, buffer.row)
    state = buffer.init()
    after = jax.eval_shape(buffer.add, state, block(0), jnp.int32(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert jax.tree.map(lambda x: x.dtype, after.data) == want
    extra = () if kind == "trajectory" else (GAMMA, BETA)
    sample = jax.eval_shape(lambda s: buffer.sample(s, jax.random.key(0), 5, *extra), state)
    rows = sample if kind == "trajectory" else sample.batch
    assert jax.tree.map(lambda x: x.dtype, rows) == want
    assert all(x.shape[0] == 5 for x in jax.tree.leaves(rows))


def test_low_precision_rewards_are_summed_in_float32():
    row = EXAMPLE._replace(reward=jnp.bfloat16(0))
    buffer = Uniform(300, row, n_step=300)
    data = jax.tree.map(lambda x: jnp.zeros((300, *x.shape), x.dtype), buffer.row)
    data = data._replace(reward=jnp.ones(300, jnp.bfloat16))
    state = replay.ReplayState(data, jnp.int32(300), jnp.int32(0))
    sample = jax.jit(lambda s: buffer.sample(s, jax.random.key(0), 1, 1.0))(state)
    assert sample.batch.reward.dtype == jnp.bfloat16
    assert float(sample.batch.reward[0]) == 300  # a running sum in bfloat16 stops at 256


@pytest.mark.parametrize("kind", MANY)
def test_members_are_what_they_are_alone(kind):
    buffer, add, draws, update = MANY[kind]()
    ends = np.random.default_rng(0).choice(list("....eu"), (3, 7, ENVS))

    def run(add, draw, learn, adds, keys):
        """7 adds, a draw, and where there are transitions an update and another draw."""
        state = jax.tree.map(lambda x: np.zeros((*keys.shape, *x.shape), x.dtype), buffer.init())
        if kind == "prioritized":
            state = state.replace(max_priority=np.ones(keys.shape, np.float32))
        for t, batch in enumerate(adds):
            state = add(state, batch, t)
        sample = draw(state, keys)
        if kind != "trajectory":
            state = learn(state, sample)
            sample = draw(state, keys)
        return jax.device_get((state, sample))

    keys = split(1)[:3]
    draw = jax.jit(lambda state, key: jax.tree.map(lambda x: x[0], draws(state, key[None])))
    stack = lambda t: jax.tree.map(
        lambda *x: np.stack(x), *[block(t, ends[m, t]) for m in range(3)]
    )
    learn = jax.jit(lambda state, sample: update(state, sample.index, sample.batch.reward**2 + 0.1))
    mapped = jax.jit(jax.vmap(add, (0, 0, None))), jax.jit(jax.vmap(draw)), jax.jit(jax.vmap(learn))
    together = run(*mapped, [stack(t) for t in range(7)], keys)
    for m in range(3):
        alone = run(add, draw, learn, [block(t, ends[m, t]) for t in range(7)], keys[m])
        chex.assert_trees_all_close(jax.tree.map(lambda x, m=m: x[m], together), alone, rtol=1e-6)


@pytest.mark.parametrize("kind", MANY)
def test_add_under_vmap_is_no_scatter(kind):
    """The jaxpr says scatter either way, as jax batches the write so: what counts is what is
    compiled."""
    buffer, _, _, _ = MANY[kind]()
    many = lambda x: jnp.broadcast_to(x, (4, *x.shape))
    state, batch = jax.tree.map(many, (buffer.init(), jax.tree.map(jnp.asarray, block(0))))
    compile = lambda f, *args: jax.jit(f, donate_argnums=0).lower(*args).compile().as_text()
    program = compile(jax.vmap(buffer.add, (0, 0, None)), state, batch, jnp.int32(0))
    assert (
        " dynamic-update-slice(" in program
        and " scatter(" not in program
        and " while(" not in program
    )
    naive = compile(jax.vmap(lambda s, b: buffer.add(s, b, s.pos // ENVS)), state, batch)
    assert " scatter(" in naive or " while(" in naive


def test_inside_make_with_traced_hyper_parameters():
    """alpha, beta and discount as traced leaves, state donated, all in one compiled scan over
    members."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state, alpha, discount, ts):
        def member(state, alpha, discount, t):
            buffer = Prioritized(CAPACITY, EXAMPLE, ENVS, 2, alpha)
            batch = jax.tree.map(lambda x: jnp.zeros((ENVS, *x.shape), x.dtype), buffer.row)
            state = buffer.add(state, batch, t)
            sample = buffer.sample(
                state, jax.random.fold_in(jax.random.key(0), t), 4, discount, alpha
            )
            return buffer.update(state, sample.index, jnp.full(4, 4.0)), sample.discount

        step = lambda state, t: jax.vmap(member, (0, 0, 0, None))(state, alpha, discount, t)
        return jax.lax.scan(step, state, ts)

    state = jax.tree.map(
        lambda x: jnp.stack([x, x]), Prioritized(CAPACITY, EXAMPLE, ENVS, 2).init()
    )
    state, discount = train(state, jnp.array([0.0, 1.0]), jnp.array([0.5, 0.9]), jnp.arange(6))
    np.testing.assert_allclose(state.max_priority, [1, 4])
    np.testing.assert_allclose(discount[-1], [[0.25] * 4, [0.81] * 4], rtol=1e-6)


def test_position_for_the_largest_t():
    buffer = Uniform(1_000_000, {"x": jnp.int8(0)}, num_envs=100)
    for t in (0, 9_999, 10_000, 2**31 - 2, 2**31 - 1):
        state = jax.eval_shape(buffer.init)
        assert int(buffer._start(jnp.int32(t))) == t % 10_000 * 100
    small = Uniform(6, {"x": jnp.int8(0)}, num_envs=2)
    state = small.add(small.init(), {"x": jnp.ones(2, jnp.int8)}, jnp.int32(2**31 - 1))
    assert (int(state.size), int(state.pos)) == (6, ((2**31 - 1) % 3 * 2 + 2) % 6)


def test_empty_buffers_give_row_zero_and_finite_numbers():
    for kind in MANY:
        buffer, _, draws, _ = MANY[kind]()
        sample = flat(draws(buffer.init(), split(0)))
        assert all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(sample))
        if kind != "trajectory":
            assert (sample.index == 0).all()


def chi_square(count, chance, z=4.0):
    """Whether the counts fit the chances: Wilson and Hilferty's critical value at z standard
    deviations."""
    expected, df = count.sum() * chance / chance.sum(), len(count) - 1
    assert expected.min() > 5
    critical = df * (1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3
    return ((count - expected) ** 2 / expected).sum() < critical


def test_prioritized_frequencies():
    priority = np.random.default_rng(0).exponential(size=100).astype(np.float32)
    buffer = Prioritized(100, {"x": 0}, num_envs=100, alpha=0.6)
    state = jax.jit(buffer.add)(buffer.init(), {"x": np.arange(100, dtype=np.int32)}, 0)
    state = jax.jit(buffer.update)(state, np.arange(100), priority)
    draw = jax.jit(jax.vmap(lambda k: buffer.sample(state, k, 1, 1.0, 1.0).index))
    # One draw per key: the draws of one batch are stratified, hence not independent.
    count = np.bincount(np.ravel(draw(jax.random.split(jax.random.key(0), 40_000))), minlength=100)
    keep = priority > np.quantile(
        priority, 0.1
    )  # the rarest rows are expected too seldom for the test
    assert chi_square(count[keep], priority[keep] ** 0.6)
    assert not chi_square(count[keep], priority[keep])
    # Over a batch of n, a row with chance P is drawn n P times, give or take one at each edge of
    # its segment.
    several = jax.jit(jax.vmap(lambda k: buffer.sample(state, k, 50, 1.0, 1.0).index))
    share = 50 * priority**0.6 / (priority**0.6).sum()
    for row in np.asarray(several(jax.random.split(jax.random.key(1), 500))):
        assert (np.abs(np.bincount(row, minlength=100) - share) < 2 + 1e-3).all()


@pytest.mark.parametrize("kind", ["uniform", "trajectory"])
def test_uniform_frequencies(kind):
    rows = Ends(np.arange(100, dtype=np.int32), np.zeros(100, bool), np.zeros(100, bool))
    if kind == "uniform":
        buffer = Uniform(100, Ends(0, False, False), 100)
        draw = lambda state, key: buffer.sample(state, key, 100, 1.0).batch.x
    else:
        buffer = Trajectory(100, Ends(0, False, False), 1, 100)
        draw = lambda state, key: buffer.sample(state, key, 100).x
    state = jax.jit(buffer.add)(buffer.init(), rows, 0)
    drawn = jax.jit(jax.vmap(draw, (None, 0)))(state, jax.random.split(jax.random.key(0), 500))
    assert chi_square(np.bincount(np.ravel(drawn), minlength=100), np.ones(100))


# ---- one set of verbs ----------------------------------------------------------------------------


@pytest.mark.parametrize("span", [1, 3])
def test_uniform_and_prioritized_run_the_same_program_text(span):
    """With alpha = 0 and beta = 0 priorities change nothing: both draw starts alike, weighted 1."""
    drawn = {}
    for kind in ("uniform", "prioritized"):
        sizes = dict(capacity=CAPACITY, example=EXAMPLE, num_envs=ENVS, n_step=span)
        buffer = Prioritized(**sizes, alpha=0.0) if kind == "prioritized" else Uniform(**sizes)

        def step(state, t, buffer=buffer):
            """What dqn.py does: the one line above is all that differs."""
            batch = jax.tree.map(lambda x: jnp.zeros((ENVS, *x.shape), x.dtype), buffer.row)
            name = t * ENVS + jnp.arange(ENVS, dtype=jnp.int32)
            state = buffer.add(state, batch._replace(action=name), t)
            key = jax.random.fold_in(jax.random.key(0), t)
            sample = buffer.sample(state, key, CAPACITY, GAMMA, beta=t / 50)
            state = buffer.update(state, sample.index, jnp.abs(sample.batch.reward) + 1.0)
            return state, sample

        run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(50)), donate_argnums=0)
        sample = run(buffer.init())[1]
        assert (sample.weight[span:] == 1).all() and (sample.discount > 0).all()
        for t in range(span, 50):
            first = max(0, t + 1 - CAPACITY // ENVS) * ENVS
            starts = set(range(first, (t + 2 - span) * ENVS))
            assert set(np.asarray(sample.batch.action[t]).tolist()) <= starts
        drawn[kind] = jax.tree.map(lambda x: (x.shape, x.dtype), sample)
    assert drawn["uniform"] == drawn["prioritized"]


def test_beta_is_the_full_correction_unless_said():
    buffer, add, _, update = compiled("prioritized", 1)
    state = update(add(buffer.init(), block(0), 0), np.arange(3), np.array([1.0, 4.0, 9.0], "f4"))
    draw = jax.jit(lambda *beta: buffer.sample(state, jax.random.key(0), 12, GAMMA, *beta).weight)
    np.testing.assert_array_equal(draw(), draw(1.0))
    assert not np.array_equal(draw(), draw(0.5))


@pytest.mark.parametrize("only_for", ["beta", "priority"])
def test_uniform_pays_nothing_for_priorities(only_for):
    """An arctangent that only `beta` or the priorities ask for is not in the compiled program, nor
    is the `cond` around `update`; where rows have priorities, both are."""

    def program(kind):
        buffer, _, _, _ = compiled(kind, 1)

        def step(state, t):
            beta = jnp.arctan2(t * 0.1, 2.0) if only_for == "beta" else 0.5
            sample = buffer.sample(state, jax.random.key(0), 4, GAMMA, beta)

            def learn():
                error = sample.batch.reward
                priority = jnp.arctan2(error, 2.0) if only_for == "priority" else error
                return (sample.weight * error).sum(), priority

            loss, priority = jax.lax.cond(t > 3, learn, lambda: (0.0, jnp.zeros(4)))
            change = lambda: buffer.update(state, sample.index, priority)
            return jax.lax.cond(t > 3, change, lambda: state), loss

        lowered = jax.jit(step, donate_argnums=0).lower(buffer.init(), jnp.int32(0))
        text = lowered.compile().as_text()
        return " atan2(" in text, text.count(" conditional(")

    assert program("prioritized") == (True, 2)
    assert program("uniform") == (False, 1)


@pytest.mark.parametrize("buffer", [Uniform(10, EXAMPLE), Masked(10, EXAMPLE, 6)])
def test_update_of_a_buffer_without_priorities_is_the_state(buffer):
    state = buffer.init()
    assert buffer.update(state, jnp.zeros(4, jnp.int32), jnp.ones(4)) is state


# ---- rows of varying number ----------------------------------------------------------------------

GIVEN = 6
MASKED = Masked(10, EXAMPLE, GIVEN)
masked_add = jax.jit(MASKED.add, donate_argnums=0)


def masks(seed, calls):
    """[calls, GIVEN]: masks from empty to full."""
    rng = np.random.default_rng(seed)
    return rng.random((calls, GIVEN)) < rng.choice([0.0, 0.3, 0.7, 1.0], (calls, 1))


def masked_reference(given, masks, capacity):
    """The ring in plain NumPy: (rows [capacity, ...], rows stored, where the next one goes)."""
    data = jax.tree.map(lambda x: np.zeros((capacity, *x.shape), x.dtype), MASKED.row)
    count = 0
    for batch, mask in zip(given, masks, strict=True):
        for i in np.flatnonzero(mask):
            for stored, new in zip(jax.tree.leaves(data), jax.tree.leaves(batch), strict=True):
                stored[count % capacity] = np.asarray(new[i])
            count += 1
    return data, min(count, capacity), count % capacity


@fast
@given(
    calls=st.lists(st.lists(st.booleans(), min_size=GIVEN, max_size=GIVEN), max_size=8),
    seed=st.integers(0, 1000),
)
def test_masked_is_the_reference(calls, seed):
    state = MASKED.init()
    given = [block(t, "." * GIVEN, GIVEN) for t in range(len(calls))]
    for batch, mask in zip(given, calls, strict=True):
        state = masked_add(state, batch, np.array(mask))
    data, size, pos = masked_reference(given, calls, 10)
    chex.assert_trees_all_equal(state, replay.ReplayState(data, np.int32(size), np.int32(pos)))
    sample = flat(jax.vmap(lambda key: MASKED.sample(state, key, 10, GAMMA))(split(seed)))
    chex.assert_trees_all_equal(sample.batch, jax.tree.map(lambda x: x[sample.index], data))
    stored = {(pos - 1 - back) % 10 for back in range(size)}
    assert set(sample.index.tolist()) == (stored or {0})  # 240 draws: no row is missed
    assert (sample.weight == 1).all() and (sample.discount == np.float32(GAMMA)).all()


@pytest.mark.parametrize("capacity", [GIVEN, 10, 100])
def test_masked_members_have_masks_of_their_own(capacity):
    """Every member's ring is at a place of its own; state donated, in a compiled scan."""
    buffer, calls, members = Masked(capacity, EXAMPLE, GIVEN), 9, 4
    each = np.stack([masks(m, calls) for m in range(members)], axis=1)
    each[:, 0] = False
    given = [block(t, "." * GIVEN, GIVEN) for t in range(calls)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *given)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state):
        body = lambda state, x: (jax.vmap(buffer.add, (0, None, 0))(state, *x), None)
        return jax.lax.scan(body, state, (stacked, each))[0]

    start = jax.tree.map(lambda x: jnp.stack([x] * members), buffer.init())
    state = run(start)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert len(set(state.pos.tolist())) > 1
    for m in range(members):
        data, size, pos = masked_reference(given, each[:, m], capacity)
        want = replay.ReplayState(data, np.int32(size), np.int32(pos))
        chex.assert_trees_all_equal(jax.tree.map(lambda x, m=m: x[m], state), want)


def test_masked_takes_rollouts_as_they_are():
    """Rows [horizon, n, ...] with a mask [horizon, n] are those rows one after the other."""
    batch, mask = block(0, "." * GIVEN, GIVEN), np.array([True, False, True, True, False, True])
    fold = lambda x: x.reshape(2, 3, *x.shape[1:])
    folded = jax.jit(MASKED.add)(MASKED.init(), jax.tree.map(fold, batch), fold(mask))
    chex.assert_trees_all_equal(folded, masked_add(MASKED.init(), batch, mask))
    assert np.asarray(folded.data.action[:4]).tolist() == [0, 2, 3, 5]


def test_a_call_without_real_rows_changes_nothing():
    state = masked_add(MASKED.init(), block(1, "." * GIVEN, GIVEN), np.ones(GIVEN, bool))
    before = jax.device_get(state)
    after = masked_add(state, block(9, "." * GIVEN, GIVEN), np.zeros(GIVEN, bool))
    chex.assert_trees_all_equal(after, before)


def test_masked_is_written_in_place():
    """Compiled with the state donated, an add needs no memory of the buffer's size."""
    buffer = Masked(100_000, {"x": jnp.zeros(8)}, 50)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), buffer.init())
    batch = {"x": jax.ShapeDtypeStruct((3, 50, 8), jnp.float32)}
    mask = jax.ShapeDtypeStruct((3, 50), bool)
    run = jax.jit(jax.vmap(buffer.add), donate_argnums=0).lower(state, batch, mask).compile()
    assert run.memory_analysis().temp_size_in_bytes < buffer.nbytes() / 10


def test_masked_frequencies_and_newest():
    buffer = Masked(100, {"x": 0}, 60)
    state, add = buffer.init(), jax.jit(buffer.add)
    for t in range(4):  # 160 rows, the last of them at place 59
        name = np.arange(60, dtype=np.int32) + 100 * t
        state = add(state, {"x": name}, np.arange(60) % 3 != t % 3 if t else np.ones(60, bool))
    real = int(state.pos)
    assert int(state.size) == 100 and real == (60 + 3 * 40) % 100
    keys = jax.random.split(jax.random.key(0), 500)

    @jax.jit
    def draw(newest):
        sample = jax.vmap(lambda key: buffer.sample(state, key, 100, 1.0, newest=newest))(keys)
        return (real - 1 - sample.index) % 100  # how many rows are newer

    everything = np.bincount(np.ravel(draw(None)), minlength=100)
    assert chi_square(everything, np.ones(100))
    for newest, want in ((30, 30), (99, 99), (100, 100), (2**31 - 1, 100), (1, 1), (0, 1)):
        count = np.bincount(np.ravel(draw(jnp.int32(newest))))
        assert len(count) == want and (want == 1 or chi_square(count, np.ones(want)))
    np.testing.assert_array_equal(draw(jnp.int32(100)), draw(None))


def test_an_empty_masked_buffer_gives_row_zero():
    for newest in (None, 0, 5):
        sample = MASKED.sample(MASKED.init(), jax.random.key(0), 5, GAMMA, newest=newest)
        assert (sample.index == 0).all()
        assert not any(np.any(x) for x in jax.tree.leaves(sample.batch))


class Ends(NamedTuple):
    x: Any
    terminated: Any
    truncated: Any


@pytest.fixture(scope="module")
def million():
    """A million rows, half of them with priority 0, after many updates whose sizes span 12
    decades."""
    n, rng = 1_000_000, np.random.default_rng(0)
    buffer = Prioritized(n, {"x": jnp.int8(0)}, num_envs=n, alpha=1.0)
    state = jax.jit(buffer.add)(buffer.init(), {"x": np.zeros(n, np.int8)}, 0)
    update = jax.jit(buffer.update, donate_argnums=0)
    for _ in range(10):
        index = jnp.asarray(rng.integers(0, n, 50_000))
        state = update(state, index, jnp.asarray(10.0 ** rng.uniform(-6, 6, 50_000), jnp.float32))
    last = np.where(rng.random(n) < 0.5, 0, rng.random(n)).astype(np.float32)
    return buffer, jax.jit(buffer.update)(state, np.arange(n), last), last


@pytest.mark.slow
def test_a_million_rows_never_give_one_without_priority(million):
    buffer, state, last = million
    for level, nodes in enumerate(state.tree):  # the sums are right at every level
        width = replay.FANOUT**level
        exact = np.add.reduceat(last.astype(np.float64), np.arange(0, len(last), width))
        np.testing.assert_allclose(nodes[: len(exact)], exact, rtol=1e-6)
    draw = jax.jit(jax.vmap(lambda k: buffer.sample(state, k, 512, 1.0, 0.5)))
    sample = draw(jax.random.split(jax.random.key(0), 200))
    assert (last[np.asarray(sample.index)] > 0).all()
    assert np.isfinite(sample.weight).all()
    # Draw i of the batch lies in segment i of the exact running sum.
    total = np.cumsum(last.astype(np.float64))
    begin, end = (total - last)[np.asarray(sample.index)], total[np.asarray(sample.index)]
    width = total[-1] / 512
    assert (begin < (np.arange(512) + 1) * width + 0.2).all() and (
        end > np.arange(512) * width - 0.2
    ).all()
    hundredths = np.add.reduceat(last, np.arange(0, 1_000_000, 10_000))
    assert chi_square(np.bincount(np.ravel(sample.index) // 10_000), hundredths)


def test_a_million_rows_are_resolved_singly(million):
    """Neighbors amid the running sum get their shares, though one ulp of the sum is 3% of a
    row."""
    _, state, last = million
    offset = jax.random.uniform(jax.random.key(0), (200_000,)) * 100
    count = np.bincount(jax.jit(replay._find)(state.tree, jnp.full(200_000, 200_000.0), offset))
    rows = np.nonzero(count)[0][1:-1]
    assert (last[rows] > 0).all()
    rows = rows[last[rows] > 0.05]
    assert chi_square(count[rows], last[rows])


def test_sums_kept_by_differences_would_fail():
    """flashbax#52: a parent that hears only of changes ends with a sum that is not its
    children's."""
    rng, leaves, parent = np.random.default_rng(0), np.zeros(8, np.float32), np.float32(0)
    tree = replay._zeros(64, jnp.float32)
    write = jax.jit(replay._set)
    for _ in range(50):
        i, new = rng.integers(8), np.float32(10.0 ** rng.uniform(-4, 4))
        parent, leaves[i] = parent + (new - leaves[i]), new
        tree = write(tree, jnp.array([i]), jnp.array([new]))
    for i in range(8):
        parent, leaves[i] = parent + (0 - leaves[i]), 0
        tree = write(tree, jnp.array([i]), jnp.zeros(1))
    assert parent != 0  # a draw would go on into these empty leaves, or miss others
    assert float(tree[1][0]) == 0


@pytest.mark.parametrize("leaves", [1, 8, 9, 65, 700])
def test_tree(leaves):
    """Contiguous and scattered writes agree with a flat array at any alignment; integers draw
    exactly."""
    rng = np.random.default_rng(leaves)
    flat_values, tree = np.zeros(leaves, np.int32), replay._zeros(leaves, jnp.int32)
    assert leaves <= len(tree[0]) < 2 * leaves + replay.FANOUT and len(tree[-1]) <= replay.FANOUT
    size = min(leaves, 5)
    write = jax.jit(lambda tree, start, values: replay._write(tree, (start,), (values,)))
    scatter = jax.jit(replay._set)
    for _ in range(10):
        start, index = rng.integers(leaves - size + 1), rng.permutation(leaves)[:size]
        flat_values[start : start + size] = rng.integers(0, 3, size)
        tree = write(tree, start, jnp.asarray(flat_values[start : start + size]))
        flat_values[index] = rng.integers(0, 3, size)
        tree = scatter(tree, jnp.asarray(index), jnp.asarray(flat_values[index]))
    for level, nodes in enumerate(tree):
        sums = np.add.reduceat(flat_values, np.arange(0, leaves, replay.FANOUT**level))
        np.testing.assert_array_equal(nodes[: len(sums)], sums)
        assert not np.any(nodes[len(sums) :])
    point = np.arange(flat_values.sum())
    found = jax.jit(replay._find)(tree, jnp.zeros_like(point), jnp.asarray(point))
    np.testing.assert_array_equal(found, np.repeat(np.arange(leaves), flat_values))


def test_nbytes():
    row = {"obs": jnp.zeros((84, 84, 4), jnp.uint8), "done": False}
    assert (
        Uniform(1_000_000, row).nbytes() == 1_000_000 * (84 * 84 * 4 + 1) + 8
    )  # 28 GB: not allocated
    for kind in MANY:
        buffer = MANY[kind]()[0]
        assert buffer.nbytes() == sum(x.nbytes for x in jax.tree.leaves(buffer.init()))


NO_REWARD = Ends(0, False, False)
BAD = {
    "capacity=0: must be at least 1": lambda: Uniform(0, EXAMPLE),
    "num_envs=0: must be at least 1": lambda: Uniform(10, EXAMPLE, 0),
    "n_step=0: must be at least 1": lambda: Uniform(10, EXAMPLE, 1, 0),
    "length=0: must be at least 1": lambda: Trajectory(10, EXAMPLE, 0),
    "must be below 2\\*\\*30": lambda: Uniform(2**30, EXAMPLE),
    "capacity=4 is less than num_envs=8": lambda: Uniform(4, EXAMPLE, 8),
    "capacity=10 .* num_envs=4: the nearest are 8 and 12": lambda: Uniform(10, EXAMPLE, 4),
    "n_step=4 with num_envs=4 needs 16 rows, but capacity=12: at most n_step=3":
        lambda: Uniform(12, EXAMPLE, 4, 4),
    "length=7 with num_envs=2 .* at most length=6": lambda: Trajectory(12, EXAMPLE, 7, 2),
    "num_rows=0: must be at least 1": lambda: Masked(10, EXAMPLE, 0),
    "capacity=5 is less than num_rows=6: one add would not fit": lambda: Masked(5, EXAMPLE, 6),
    "mask is int32\\[6\\], must be bool with num_rows=6 in all":
        lambda: MASKED.add(MASKED.init(), block(0, "......", 6), np.ones(6, np.int32)),
    "mask is bool\\[5\\], must be bool with num_rows=6":
        lambda: MASKED.add(MASKED.init(), block(0, ".....", 5), np.ones(5, bool)),
    "batch.obs is uint8\\[3, 2, 2\\], must be uint8\\[6, 2, 2\\] .*mask, ":
        lambda: MASKED.add(MASKED.init(), block(0), np.ones(6, bool)),
    "batch n=11 with capacity=10": lambda: MASKED.sample(MASKED.init(), jax.random.key(0), 11, 1.0),
    "has no leaves": lambda: Uniform(10, ()),
    "n_step=2 needs a NamedTuple .* has no reward, next_obs": lambda: Uniform(10, NO_REWARD, 1, 2),
    "n_step=2 needs a NamedTuple": lambda: Uniform(10, {"reward": 0.0}, 1, 2),
    "reward is int32, must be a float": lambda: Uniform(10, EXAMPLE._replace(reward=0), 1, 2),
    "terminated is float32\\[\\] per row, must be one bool":
        lambda: Uniform(10, EXAMPLE._replace(terminated=0.0), 1, 2),
    "Trajectory needs a NamedTuple .* has no terminated, truncated":
        lambda: Trajectory(10, {"x": 0}, 2),
    "alpha=1.5: must lie in \\[0, 1\\]": lambda: Prioritized(10, EXAMPLE, alpha=1.5),
    "alpha=nan": lambda: Prioritized(10, EXAMPLE, alpha=math.nan),
    "batch n=13 with capacity=12": lambda: sample_of("uniform", 13),
    "batch n=0 with capacity=12": lambda: sample_of("uniform", 0),
    "batch n=14 with capacity=12": lambda: sample_of("trajectory", 14),
    "batch.obs is uint8\\[4, 2, 2\\], must be uint8\\[3, 2, 2\\]":
        lambda: add_of(block(0, "....", 4)),
    "batch.reward is int32\\[3\\], must be float32\\[3\\]":
        lambda: add_of(block(0)._replace(reward=np.zeros(3, int))),
    "add: batch is a .* the example was a": lambda: add_of({"x": 1}),
    "index has shape \\(3,\\) and priority \\(2,\\)":
        lambda: update_of("prioritized", jnp.zeros(3, int), jnp.zeros(2)),
    "index has shape \\(3,\\) and priority \\(3, 1\\)":
        lambda: update_of("uniform", jnp.zeros(3, int), jnp.zeros((3, 1))),
    "index has shape \\(\\) and priority \\(\\)":
        lambda: MASKED.update(MASKED.init(), jnp.int32(0), jnp.float32(0)),
}  # fmt: skip


def sample_of(kind, n):
    buffer = MANY[kind]()[0]
    return buffer.sample(
        buffer.init(), jax.random.key(0), n, *((1.0,) if kind == "uniform" else ())
    )


def add_of(batch):
    buffer = MANY["uniform"]()[0]
    return jax.jit(buffer.add)(buffer.init(), batch, 0)


def update_of(kind, index, priority):
    buffer = MANY[kind]()[0]
    return buffer.update(buffer.init(), index, priority)


@pytest.mark.parametrize("message", BAD)
def test_what_makes_no_sense_is_refused(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.slow
def test_cost_does_not_grow_with_capacity():
    """A compiled loop of add, sample and update in place: 100 times the rows cost far less than 100
    times."""

    def seconds(capacity):
        row = EXAMPLE._replace(extra=())  # without bfloat16, which XLA writes in O(capacity) on CPU
        buffer = Prioritized(capacity, row, 4, 3)

        def step(state, t):
            batch = jax.tree.map(lambda x: jnp.zeros((4, *x.shape), x.dtype), buffer.row)
            state = buffer.add(state, batch, t)
            sample = buffer.sample(state, jax.random.fold_in(jax.random.key(0), t), 128, 0.9, 0.5)
            return buffer.update(state, sample.index, sample.batch.reward + 1), None

        run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(300))[0], donate_argnums=0)
        state, best = jax.block_until_ready(run(buffer.init())), math.inf
        for _ in range(5):
            begin = time.perf_counter()
            state = jax.block_until_ready(run(state))
            best = min(best, time.perf_counter() - begin)
        return best

    assert seconds(1_000_000) < 15 * seconds(10_000)
