"""The vectorized stepper: every id, the true successor, the two ways to end, the auto-reset and its
cost."""

import functools
import urllib.error
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from gymnax.utils import load_mnist

import rlzoo
from rlzoo import wrappers
from rlzoo.algorithm import Refused
from rlzoo.env import POOL_ROWS, POOL_STEPS, Env, Transition, acting, advance, begin, done, episodes
from rlzoo.suites.brax import NAMES as BRAX
from rlzoo.suites.registry import ids

KEY = jax.random.key(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""each program runs once, so compiling is what takes time"""
GYMNAX = [
    id
    for id, factory in gymnax.registration._registry.items()
    if getattr(factory, "func", factory).__module__.startswith("gymnax.")
]
FAMILIES = (
    "CartPole-v1",
    "Pendulum-v1",
    "Breakout-MinAtar",
    "Catch-bsuite",
    "MNISTBandit-bsuite",
    "FourRooms-misc",
    "PointRobot-misc",
)
"""one or two of each, for the quick suite; the slow one has all"""


def random_actions(env: Env, key: jax.Array, *shape: int) -> jax.Array:
    if env.discrete:
        return jax.random.randint(key, shape, 0, env.num_actions)
    return jax.random.uniform(key, (*shape, env.action_dim), minval=-1.2, maxval=1.2)


def as_given(carry: Any, obs: Any, action: jax.Array) -> tuple:
    """For `Env.rollout`: the actions are those given as `xs`."""
    return carry, action, None


def pick(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def roll(env: Env, num_envs: int, length: int, actions: Any = None, key: jax.Array = KEY) -> tuple:
    """Reset, then one rollout under random or given actions [length, num_envs, ...]; one
    compilation."""
    if actions is None:
        actions = random_actions(env, jax.random.fold_in(key, 1), length, num_envs)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(key, actions):
        state = env.reset(key, num_envs)
        key = jax.random.fold_in(key, 2)
        after, _, steps, _, metrics = env.rollout(
            state, as_given, None, actions, key, length, jnp.int32(0)
        )
        return state, after, steps, metrics

    return jax.tree.map(np.asarray, run(key, actions))


# ---- every environment ---------------------------------------------------------------------------


@pytest.fixture
def mnist(monkeypatch):
    images = np.arange(20 * 28 * 28, dtype=np.int64).astype(np.int8).reshape(20, 28, 28)
    data = (images, np.arange(20, dtype=np.uint8) % 10)
    monkeypatch.setattr(load_mnist, "load_mnist", lambda: (data, data))


def check(env: Env, num_envs: int = 3, length: int = 12) -> None:
    """What holds for any environment with `limit=5`."""
    _, after, steps, metrics = roll(env, num_envs, length)
    for leaf, example in zip(jax.tree.leaves(steps), jax.tree.leaves(env.example()), strict=True):
        assert (leaf.shape, leaf.dtype) == ((length, num_envs, *example.shape), example.dtype)
        assert np.isfinite(np.asarray(leaf, float)).all()
    assert env.obs_shape == steps.obs.shape[2:] and env.obs_dtype == steps.obs.dtype
    ended = np.asarray(done(steps))
    assert ended.any(0).all() and not (steps.terminated & steps.truncated).any()
    on = ~ended[:-1]  # closeness: XLA may compute the observation and the state it comes from twice
    np.testing.assert_allclose(
        *(np.asarray(x, float)[on] for x in (steps.next_obs[:-1], steps.obs[1:])), atol=1e-5
    )
    assert metrics["train/length"][1] == ended.sum() and 1 <= env.max_steps <= 5
    assert (after.episode_length < 5).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "id", [id if id in FAMILIES else pytest.param(id, marks=pytest.mark.slow) for id in GYMNAX]
)
def test_every_gymnax_environment(id, mnist):
    assert rlzoo.make(id).max_steps >= 1
    check(rlzoo.make(id, limit=5))


def test_there_are_26_and_all_have_an_id():
    assert len(GYMNAX) == 26
    assert set(GYMNAX) < set(ids()) and {f"brax/{name}" for name in BRAX} < set(ids())


def test_mnist_without_the_network_is_refused(monkeypatch):
    def offline():
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(load_mnist, "load_mnist", offline)
    with pytest.raises(
        Refused, match=r"MNISTBandit-bsuite could not fetch .* network: .*no route to host"
    ):
        rlzoo.make("MNISTBandit-bsuite")


@pytest.mark.slow
def test_brax():
    env = rlzoo.make("brax/hopper:spring")
    assert (env.action_dim, env.max_steps, env.obs_shape) == (3, 1000, (11,))
    env = rlzoo.make("brax/hopper:spring?limit=5")
    check(env)


# ---- successors, starts, flags -------------------------------------------------------------------


@pytest.fixture(scope="module")
def cartpole() -> tuple:
    env = rlzoo.make("CartPole-v1?limit=5")
    return env, *roll(env, 3, 24)


def test_steps_match_a_simulation_without_vectorization(cartpole):
    env, state, after, steps, _ = cartpole
    step = jax.jit(env.inner.step_env)
    pool_obs, pool = jax.tree.map(np.asarray, after.pool)
    for n in range(3):
        inner = pick(state.inner, n)
        for i in range(24):
            obs, inner, reward, terminated, _ = step(KEY, inner, steps.action[i, n], env.params)
            np.testing.assert_allclose(steps.next_obs[i, n], obs, atol=1e-6)
            assert steps.reward[i, n] == reward and steps.terminated[i, n] == terminated
            if done(steps)[i, n] and i < 23:
                (row,) = np.flatnonzero((pool_obs[:, n] == np.asarray(steps.obs[i + 1, n])).all(-1))
                inner = pick(pool, (row, n))
            elif i < 23:
                np.testing.assert_array_equal(steps.obs[i + 1, n], steps.next_obs[i, n])


def test_cartpole_is_truncated_at_its_limit_and_not_terminated(cartpole):
    _, _, _, steps, _ = cartpole
    expected = np.arange(1, 25) % 5 == 0
    np.testing.assert_array_equal(steps.truncated, np.repeat(expected[:, None], 3, 1))
    assert not steps.terminated.any()
    assert rlzoo.make("CartPole-v1").max_steps == 500
    own = rlzoo.make("CartPole-v1", max_steps_in_episode=3)
    assert own.max_steps == 3
    np.testing.assert_array_equal(roll(own, 1, 4)[2].truncated[:, 0], [False, False, True, False])


def test_next_obs_is_not_the_reset_observation(cartpole):
    """gymnax's own `step` hands back the reset observation; then every end looks like a start."""
    _, _, _, steps, _ = cartpole
    ended = np.asarray(done(steps))[:-1]
    starts, successors = np.asarray(steps.obs[1:])[ended], np.asarray(steps.next_obs[:-1])[ended]
    assert (np.abs(starts) <= 0.05).all()  # CartPole starts in [-0.05, 0.05]
    assert (np.abs(successors).max(-1) > 0.05).all()


def test_starts_vary_over_episodes_and_environments(cartpole):
    _, state, _, steps, _ = cartpole
    ended = np.asarray(done(steps))[:-1]
    starts = [*np.asarray(state.obs), *np.asarray(steps.obs[1:])[ended]]
    assert len(np.unique(starts, axis=0)) >= 10  # of 3 + 3 * 4


def test_starts_vary_where_all_episodes_have_the_pools_length():
    """Taking row `clock % POOL_ROWS` starts all of these in one state until the pool is drawn
    anew."""
    env = rlzoo.make("CartPole-v1", limit=POOL_ROWS)
    actions = jnp.tile(
        jnp.array([[0, 0], [1, 1], [1, 1], [0, 0]]), (64, 1)
    )  # keeps the pole up for 16 steps
    _, _, steps, _ = roll(env, 2, 256, actions)
    starts = np.asarray(steps.obs[::POOL_ROWS])
    assert steps.truncated.sum() == 32
    for n in range(2):
        assert len(np.unique(starts[1:, n], axis=0)) >= 6


def test_terminated_wins_over_truncated():
    _, _, steps, _ = roll(rlzoo.make("probe-two-step?limit=2"), 2, 4)
    np.testing.assert_array_equal(steps.terminated[:, 0], [False, True, False, True])
    assert not steps.truncated.any()


def test_bootstrapping_at_time_limits():
    """The value of a task that never ends, from the stepper's flags; masking with `done` gets it
    wrong."""
    _, _, steps, _ = roll(rlzoo.make("probe-time-limit"), 2, 20)
    gamma = 0.9
    fixed_point = lambda mask: float(steps.reward.mean() / (1 - gamma * (1 - mask.mean())))
    assert fixed_point(steps.terminated) == pytest.approx(1 / (1 - gamma), rel=1e-5)
    assert fixed_point(done(steps)) < 4


# ---- carries -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out_of_step() -> Env:
    """Two environments whose episodes are truncated after 3 and after 5 steps."""
    return rlzoo.make("probe-time-limit").replace(max_steps_in_episode=jnp.array([3, 5]))


def remember(env: Env, act: Any, start: Any, **kwargs: Any) -> tuple:
    """Two rollouts of 6 steps, one after the other: carry, steps and extras [12, 2, ...]."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(key):
        def body(loop, t):
            state, carry = loop
            actions = random_actions(env, jax.random.fold_in(key, t), 6, 2)
            state, carry, *rows, _ = env.rollout(state, act, carry, actions, key, 6, t, **kwargs)
            return (state, carry), rows

        (_, carry), rows = jax.lax.scan(body, (env.reset(key, 2), start), jnp.arange(2))
        return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    carry, (steps, extras) = jax.tree.map(np.asarray, run(KEY))
    return carry, steps, extras


def count(carry: Any, obs: Any, action: jax.Array) -> tuple:
    """Remembers how often it was asked, in two leaves of different shapes."""
    return jax.tree.map(lambda x: x + 1, carry), action, carry


@pytest.mark.parametrize("of_each", [False, True])
def test_a_carry_starts_anew_with_each_episode(out_of_step, of_each):
    """Also from call to call, and where environments end at different times."""
    start = {"a": jnp.array([10, 20]), "b": jnp.zeros((2, 3))}
    fresh = start if of_each else {"a": jnp.int32(10), "b": jnp.zeros(3)}
    carry, steps, seen = remember(out_of_step, count, start, reset=fresh)
    step = np.arange(12)[:, None] % [3, 5]
    first = np.where(step == np.arange(12)[:, None], [10, 20], [10, 20] if of_each else 10)
    np.testing.assert_array_equal(done(steps), step == [2, 4])
    np.testing.assert_array_equal(seen["a"], first + step)
    np.testing.assert_array_equal(seen["b"], step[..., None].repeat(3, -1))
    np.testing.assert_array_equal(carry["b"][:, 0], [0, 2])  # after steps 12 of 3 and of 5


def test_a_carry_outlives_episodes_and_is_told_what_happened(out_of_step):
    """What RL^2 needs: the previous action, reward and end as inputs, no reset between episodes."""

    def act(carry, obs, action):
        return carry | {"asked": carry["asked"] + 1}, action, carry

    def after(carry, step):
        return carry | {"action": step.action, "reward": step.reward, "done": done(step)}

    none = jnp.zeros(2, jnp.int32)
    start = {"asked": none, "action": none, "reward": jnp.zeros(2), "done": none > 0}
    carry, steps, seen = remember(out_of_step, act, start, after=after)
    np.testing.assert_array_equal(seen["asked"], np.arange(12)[:, None].repeat(2, 1))
    for name, row in (("action", steps.action), ("reward", steps.reward), ("done", done(steps))):
        np.testing.assert_array_equal(seen[name][1:], row[:-1])
        np.testing.assert_array_equal(carry[name], row[-1])
        assert not seen[name][0].any() and row[:-1].any()
    # with a reset, an episode starts without a previous reward, as when it is evaluated
    _, steps, seen = remember(out_of_step, act, start, after=after, reset=start)
    ended = done(steps)[:-1]
    np.testing.assert_array_equal(seen["reward"][1:], np.where(ended, 0, steps.reward[:-1]))
    assert not seen["done"].any()


def test_no_carry_costs_nothing():
    """The loop carries observation, state, return and length, and holds no more operations than
    a policy without memory asks for."""
    env = rlzoo.make("CartPole-v1")
    state, actions = (
        jax.eval_shape(lambda key: env.reset(key, 2), KEY),
        jnp.zeros((6, 2), jnp.int32),
    )

    def scan(carry, **kwargs):
        run = lambda state: env.rollout(state, as_given, carry, actions, KEY, 6, 0, **kwargs)
        jaxpr = jax.make_jaxpr(run)(state).jaxpr
        (eqn,) = [e for e in jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == 6]
        return eqn.params["num_carry"], len(eqn.params["jaxpr"].eqns)

    now = (state.obs, state.inner, state.episode_return, state.episode_length)
    carried, operations = scan(None)
    assert carried == len(jax.tree.leaves(now))
    assert scan((), reset=(), after=lambda carry, step: carry) == (carried, operations)
    assert scan(jnp.zeros(2), reset=0.0) > (carried, operations)


# ---- the values of successors --------------------------------------------------------------------


def by_limit(value: Any, steps: Any, judge: Any, limit: int) -> Any:
    """What PPO and PQN had before: at most as many truncations as a time limit allows."""
    length = len(value)
    most = 1 + (length - 1) // limit
    cut = jax.lax.top_k(steps.truncated.T.astype(jnp.int32), most)[1].T
    at = (jnp.append(cut, jnp.full_like(cut[:1], length - 1), 0), jnp.arange(value.shape[1]))
    next_value = jnp.append(value[1:], value[-1:], 0)
    apart = (steps.truncated | (jnp.arange(length)[:, None] == length - 1))[at]
    return next_value.at[at].set(jnp.where(apart, judge(steps.next_obs[at]), next_value[at]))


def judge(obs: Any) -> Any:
    """A value [n, num_envs] of observations [n, num_envs, ...]."""
    return jnp.sin(obs.reshape(*obs.shape[:2], -1) * 3.0).sum(-1)


class Corridor(probes.Probe):
    """Episodes are truncated three steps to the left or right of where they start."""

    steps = 100
    length = None

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        after = probes.State(state.sign + jnp.where(action > 0, 1, -1), state.time + 1)
        return self.see(after), after, jnp.float32(0), jnp.bool_(False), {}

    def see(self, state: Any) -> jax.Array:
        return jnp.stack([state.sign, state.time.astype(jnp.float32)])

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        return (jnp.abs(state.sign - 1) >= 3) | (state.time >= params.max_steps_in_episode)

    def observation_space(self, params: Any) -> Any:
        return gymnax.environments.spaces.Box(-100.0, 100.0, (2,))


def corridor() -> Env:
    inner = Corridor()
    return Env("corridor", inner, inner.default_params)


def late() -> Env:
    """CartPole from stored states 1, 2 or 3 steps before the time limit."""
    plain = rlzoo.make("CartPole-v1")
    obs, inner = jax.vmap(plain.inner.reset_env, (0, None))(jax.random.split(KEY, 3), plain.params)
    inner = inner.replace(time=jnp.array([497, 498, 499]))
    return Env("late", wrappers.ResetTo(plain.inner, obs, inner), plain.params)


@pytest.mark.parametrize(
    ("make", "cut"),
    [
        (corridor, True),
        (late, True),
        (lambda: rlzoo.make("CartPole-v1?limit=7"), False),
        (lambda: rlzoo.make("CartPole-v1").replace(max_steps_in_episode=jnp.full(6, 3)), False),
    ],
    ids=["by position", "late starts", "limit", "limits of each"],
)
def test_successor_values_are_those_of_every_true_successor(make, cut):
    """`cut`: the environment truncates more often than its time limit says. Where it does not, one
    small batch is judged."""
    env, batches, shapes = make(), [], []
    limit = int(np.min(wrappers.time_limit(env.inner, env.params)))
    steps = roll(env, 6, 32)[2]

    def counted(obs):
        shapes.append(obs.shape[:2])
        jax.debug.callback(lambda: batches.append(1))
        return judge(obs)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(steps):
        value = judge(steps.obs)
        found = env.successor_values(value, steps, counted)
        return value, found, by_limit(value, steps, judge, limit), judge(steps.next_obs)

    value, found, before, right = map(np.asarray, run(steps))
    jax.effects_barrier()
    error = lambda found: np.abs(found - right)[~steps.terminated].max()  # targets use no others
    assert error(found) < 1e-5
    assert (error(before) > 0.1) == cut == (len(batches) > 1)
    assert set(shapes) == {(2 + 31 // limit, 6)}
    # the naive variant takes the observation acted on next
    assert steps.truncated[:-1].any() and error(np.append(value[1:], right[-1:], 0)) > 0.1


@pytest.mark.parametrize("length", [1, 2, 15])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_successor_values_for_any_pattern_of_truncations(length, share):
    """Of members that need different numbers of batches, with distributions as values, and with
    observations that are images."""
    env, rng = rlzoo.make("probe-time-limit", max_steps_in_episode=100), np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, 2, length, 8, 3, 2)).astype(np.float32)
    truncated = rng.random((2, length, 8)) < np.array([share, share / 4])[:, None, None]
    terminated = (rng.random(truncated.shape) < 0.2) & ~truncated
    next_obs[:, :-1] = np.where(
        (terminated | truncated)[:, :-1, :, None, None], next_obs[:, :-1], obs[:, 1:]
    )
    steps = Transition(obs, None, None, terminated, truncated, next_obs)
    both = lambda obs: jnp.stack([judge(obs), obs[..., 0, 0]], -1)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.vmap
    def run(steps):
        return env.successor_values(both(steps.obs), steps, both), both(steps.next_obs)

    found, right = map(np.asarray, run(jax.tree.map(jnp.asarray, steps)))
    assert found.shape == (2, length, 8, 2)
    np.testing.assert_allclose(found[~terminated], right[~terminated], rtol=1e-5, atol=1e-6)


# ---- the pool ------------------------------------------------------------------------------------


def inside_scan(jaxpr: Any, within: bool = False) -> set[str]:
    """Names of the primitives in the bodies of scans."""
    names = set()
    for eqn in jaxpr.eqns:
        names |= {eqn.primitive.name} if within else set()
        for value in eqn.params.values():
            for sub in value if isinstance(value, tuple | list) else [value]:
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    names |= inside_scan(sub, within or eqn.primitive.name == "scan")
    return names


def test_no_reset_at_every_step():
    """`probe-obs` draws at reset and never at a step, so randomness inside the scan would be a
    reset."""
    env = rlzoo.make("probe-obs")
    actions = jnp.zeros((6, 2), jnp.int32)

    def ours(key, t):
        return env.rollout(env.reset(key, 2), as_given, None, actions, key, 6, t)

    def naive(key):
        inner, params = gymnax.make("probe-obs")
        _, state = inner.reset(key, params)
        body = lambda state, key: (inner.step(key, state, 0, params)[1], None)
        return jax.lax.scan(body, state, jax.random.split(key, 6))

    random = {"random_bits", "threefry2x32"}
    assert not random & inside_scan(jax.make_jaxpr(ours)(KEY, jnp.int32(0)).jaxpr)
    assert random & inside_scan(jax.make_jaxpr(naive)(KEY).jaxpr)


def test_the_pool_is_drawn_anew_also_under_vmap_over_members():
    env = rlzoo.make("CartPole-v1?limit=1")
    length, calls, members, num_envs = 8, 40, 2, 2
    actions = jnp.zeros((length, num_envs), jnp.int32)

    def one(state, key, t):
        state, _, steps, *_ = env.rollout(state, as_given, None, actions, key, length, t)
        return state, steps.obs

    over_members = jax.vmap(one, in_axes=(0, 0, None))

    @jax.jit
    def run(keys):
        state = jax.vmap(lambda key: env.reset(key, num_envs))(keys)
        body = lambda state, t: over_members(
            state, jax.vmap(jax.random.fold_in, (0, None))(keys, t), t
        )
        return jax.lax.scan(body, state, jnp.arange(calls))[1], state

    keys = jax.random.split(KEY, members)
    obs, state = run(keys)  # [calls, members, length, num_envs, 4]
    one_call = jax.make_jaxpr(over_members)(state, keys, jnp.int32(1)).jaxpr
    assert "cond" in {eqn.primitive.name for eqn in one_call.eqns}, "a select: draws at every call"
    period = POOL_STEPS // length
    for member in range(members):
        for n in range(num_envs):
            starts = np.asarray(obs)[:, member, :, n].reshape(calls * length, 4)[1:]
            assert 2 * POOL_ROWS < len(np.unique(starts, axis=0)) <= -(-calls // period) * POOL_ROWS


# ---- returns, actions, parameters ----------------------------------------------------------------


def test_episode_metrics_match_a_manual_sum_and_ignore_clipping():
    plain, clipped = rlzoo.make("Pendulum-v1?limit=4"), rlzoo.make("Pendulum-v1?limit=4&clip=0.5")
    _, after, steps, metrics = roll(plain, 2, 10)
    _, _, bounded, unclipped = roll(clipped, 2, 10)
    expected = np.asarray(steps.reward)[
        :8
    ].sum()  # two whole episodes of 4 in each of 2 environments
    np.testing.assert_allclose(metrics["train/return"], (expected, 4), rtol=1e-5)
    np.testing.assert_allclose(unclipped["train/return"], (expected, 4), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/length"], (16, 4))
    np.testing.assert_allclose(after.episode_return, np.asarray(steps.reward)[8:].sum(0), rtol=1e-5)
    np.testing.assert_array_equal(after.episode_length, [2, 2])
    np.testing.assert_allclose(bounded.reward, np.clip(steps.reward, -0.5, 0.5), rtol=1e-6)
    assert np.abs(steps.reward).max() > 0.5


def test_returns_carry_over_from_call_to_call():
    env = rlzoo.make("probe-time-limit")  # episodes of 5 steps, reward 1
    step = jax.jit(env.step)
    state = env.reset(KEY, 2)
    for t in range(6):
        state, transition, metrics = step(state, jnp.zeros(2, jnp.int32), KEY, jnp.int32(t))
        np.testing.assert_allclose(metrics["train/return"], (10, 2) if t == 4 else (0, 0))
        assert transition.truncated.shape == (2,) and bool(transition.truncated.all()) == (t == 4)


@pytest.mark.parametrize(("id", "bound"), [("Pendulum-v1", 2.0), ("PointRobot-misc", 0.1)])
def test_actions_are_clipped_and_mapped_to_the_environments_bounds(id, bound):
    env = rlzoo.make(id)
    actions = jnp.array([-3.0, -1.0, 0.25, 1.0, 7.0])
    batch = jnp.repeat(actions[:, None], env.action_dim, 1)
    state, _, steps, _ = roll(env, 5, 1, batch[None])
    for n, native in enumerate(np.clip(actions, -1, 1) * bound):
        inner = pick(state.inner, n)
        obs = env.inner.step_env(KEY, inner, jnp.full(env.action_dim, native), env.params)[0]
        np.testing.assert_allclose(steps.next_obs[0, n], obs, atol=1e-5)


def test_parameters_may_vary_over_environments():
    lengths = jnp.array([0.2, 0.5, 2.0])
    env = rlzoo.make("CartPole-v1").replace(length=lengths)
    assert env.obs_shape == (4,) and env.max_steps == 500
    state, _, steps, _ = roll(env, 3, 3, jnp.ones((3, 3), jnp.int32))
    for n in range(3):
        inner = pick(state.inner, n)
        params = rlzoo.make("CartPole-v1").replace(length=lengths[n]).params
        for i in range(3):
            obs, inner, *_ = env.inner.step_env(KEY, inner, 1, params)
            np.testing.assert_allclose(steps.next_obs[i, n], obs, atol=1e-6)


def test_bounds_may_vary_over_environments_and_do_not_leak_tracers():
    torques = jnp.array([0.5, 2.0])
    env = rlzoo.make("Pendulum-v1").replace(max_torque=torques)
    for _ in range(2):  # a bound cached in the first trace would be a leaked tracer in the second
        state, _, steps, _ = roll(env, 2, 1, jnp.ones((1, 2, 1)))
    for n in range(2):
        inner = pick(state.inner, n)
        obs = env.inner.step_env(KEY, inner, torques[n : n + 1], rlzoo.make("Pendulum-v1").params)[
            0
        ]
        np.testing.assert_allclose(steps.next_obs[0, n], obs, atol=1e-6)


def test_parameters_may_be_traced():
    @jax.jit
    def first_obs(length):
        env = rlzoo.make("CartPole-v1").replace(length=length)
        state = env.reset(KEY, 2)
        return env.step(state, jnp.ones(2, jnp.int32), KEY, jnp.int32(0))[1].next_obs

    assert not np.allclose(first_obs(0.2), first_obs(2.0))


@pytest.mark.parametrize("id", ["CartPole-v1", "CartPole-v1?limit=7", "CartPole-v1?repeat=3"])
def test_episodes_against_a_manual_loop_from_a_stored_state(id):
    """Actions come from the policy's memory (right, right, left), and the start from `ResetTo`."""
    plain = rlzoo.make(id)
    obs, inner = jax.vmap(plain.inner.reset_env, (0, None))(jax.random.split(KEY, 1), plain.params)
    env = Env(id, wrappers.ResetTo(plain.inner, obs, inner), plain.params)

    def act(memory, obs, reward, keys):
        return jnp.where(memory % 3 < 2, 1, 0), memory + 1

    run = jax.jit(lambda keys: episodes(env, act, jnp.zeros(2, jnp.int32), keys))
    returns, lengths = run(jax.random.split(KEY, 2))

    state, total, step = jax.tree.map(lambda x: x[0], inner), 0.0, jax.jit(plain.inner.step_env)
    for i in range(plain.max_steps):
        _, state, reward, terminated, _ = step(KEY, state, int(i % 3 < 2), plain.params)
        total += float(reward)
        if terminated or plain.inner.is_truncated(state, plain.params):
            break
    np.testing.assert_allclose(returns, [total] * 2)
    np.testing.assert_array_equal(lengths, [i + 1] * 2)
    assert i + 1 < plain.max_steps or "limit" in id


def test_episodes_start_in_different_states_and_are_reproducible():
    env = rlzoo.make("probe-obs")
    run = jax.jit(
        lambda keys: episodes(env, lambda m, o, r, k: (jnp.zeros(32, jnp.int32), m), None, keys)
    )
    keys = jax.random.split(KEY, 32)
    returns, lengths = run(keys)
    assert set(returns.tolist()) == {-1.0, 1.0} and (lengths == 1).all()
    np.testing.assert_array_equal(returns, run(keys)[0])


def test_episodes_hand_the_previous_reward_and_fresh_keys_to_the_policy():
    env = rlzoo.make("probe-two-step?limit=2")
    seen = []

    def act(memory, obs, reward, keys):
        jax.debug.callback(
            lambda *x: seen.append(x), obs, reward, jax.random.key_data(keys), ordered=True
        )
        return jnp.zeros(1, jnp.int32), memory

    jax.block_until_ready(episodes(env, act, None, jax.random.split(KEY, 1)))
    jax.effects_barrier()
    assert [(float(obs[0, 0]), float(reward[0])) for obs, reward, _ in seen] == [(0, 0), (1, 0)]
    assert not np.array_equal(seen[0][2], seen[1][2])


def test_a_policy_with_and_without_memory_is_played_in_one_form():
    env = rlzoo.make("probe-time-limit")
    keys, asked = jax.random.split(KEY, 4), jnp.float32(2.0)
    plain = lambda policy, obs, key: jnp.int32(policy)
    remembers = lambda policy, memory, obs, reward, key: (jnp.int32(policy), memory + reward)
    act, memory = acting(plain, None, asked, 4)
    assert memory is None
    assert act(None, jnp.zeros((4, 1)), jnp.zeros(4), keys)[0].tolist() == [2] * 4
    act, memory = acting(remembers, lambda policy: {"total": policy}["total"], asked, 4)
    assert memory.tolist() == [2.0] * 4
    now = begin(env, memory, keys)
    for i in range(3):
        now, _ = advance(env, act, keys, now)
        assert now.memory.tolist() == [2.0 + i] * 4  # rewards of 1, known a step later


def test_the_player_gives_the_transitions_that_its_episodes_are_made_of():
    env = rlzoo.make("CartPole-v1?limit=12")
    keys = jax.random.split(KEY, 8)
    act, _ = acting(lambda policy, obs, key: env.random_action(key), None, None, 8)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(keys):
        step = lambda now, _: advance(env, act, keys, now)
        return jax.lax.scan(step, begin(env, None, keys), length=12), episodes(env, act, None, keys)

    (end, steps), (returns, lengths) = jax.tree.map(np.asarray, run(keys))
    ended = done(steps)
    counted = np.cumsum(ended, 0) - ended == 0
    np.testing.assert_array_equal(counted.sum(0), lengths)
    np.testing.assert_array_equal((counted * steps.reward).sum(0), returns)
    np.testing.assert_array_equal(end.episode_return, returns)
    np.testing.assert_array_equal(steps.obs[1:], steps.next_obs[:-1])
    assert end.over.all() and steps.truncated.any() and steps.terminated.any()


def test_reset_to_stored_states():
    plain = rlzoo.make("MountainCar-v0?limit=3")
    obs, inner = jax.vmap(plain.inner.reset_env, (0, None))(jax.random.split(KEY, 2), plain.params)
    env = Env("stored", wrappers.ResetTo(plain.inner, obs, inner), plain.params)
    state, _, steps, _ = roll(env, 8, 12)
    starts = np.concatenate([np.asarray(state.obs), np.asarray(steps.obs[3::3]).reshape(-1, 2)])
    np.testing.assert_allclose(np.unique(starts, axis=0), np.unique(obs, axis=0), atol=1e-7)


# ---- probes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-continuous"])
@pytest.mark.parametrize("id", list(probes.PROBES))
def test_probes(id, suffix):
    env = rlzoo.make(id + suffix)
    assert env.discrete == (suffix == "")
    assert env.obs_shape == (1,)
    num_envs = 8
    state = env.reset(KEY, num_envs)
    up = state.obs[:, 0] > 0
    best = up.astype(jnp.int32) if env.discrete else state.obs / 2
    step = env.step(state, best, KEY, jnp.int32(0))[1]
    wanted = {"probe-two-step": 0.0, "probe-obs": np.asarray(state.obs[:, 0])}.get(id, 1.0)
    np.testing.assert_allclose(step.reward, np.broadcast_to(wanted, num_envs))
    assert step.terminated.all() == (id in ("probe-one-step", "probe-obs", "probe-action"))
    assert id not in ("probe-obs", "probe-action") or 0 < up.sum() < num_envs


@pytest.mark.slow
def test_the_swimmer_swims():
    """brax's file of it asks for a jax of earlier days."""
    env = rlzoo.make("brax/swimmer")
    state, step, _ = jax.jit(env.step)(
        env.reset(KEY, 2), jnp.ones((2, env.action_dim)), KEY, jnp.int32(0)
    )
    assert np.isfinite(state.obs).all() and (step.obs != step.next_obs).any()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("CartPole-v2", "unknown environment 'CartPole-v2'; nearest: CartPole-v1"),
        ("brax/hoper", "unknown brax environment 'hoper'; nearest: hopper"),
        ("brax/hopper:sprng", "unknown brax backend 'sprng'.*generalized, positional, spring, mjx"),
        ("brax/swimmer:spring", "brax/swimmer has the backend generalized alone, not spring"),
        ("CartPole-v1?lenght=1", "no option 'lenght'; nearest: length"),
        ("CartPole-v1?stiky=0.1", "no option 'stiky'; nearest: sticky"),
        ("CartPole-v1?length=long", "length='long' must be a number"),
        ("CartPole-v1?sticky", "'sticky' should read option=value"),
        ("CartPole-v1?sticky=1.5", r"sticky=1.5 must be a probability in \[0, 1\)"),
        ("CartPole-v1?sticky=often", "sticky='often' must be a probability"),
        ("CartPole-v1?repeat=0", "repeat=0 must be a whole number of at least 1"),
        ("CartPole-v1?limit=2.5", "limit=2.5 must be a whole number"),
        ("CartPole-v1?stack=two", "stack='two' must be a whole number"),
        ("CartPole-v1?clip=-1", "clip=-1 must be a positive number"),
        ("CartPole-v1?clip=yes", "clip='yes' must be a positive number"),
        ("cube3?actions=13", r"^cube3\?actions=13: actions=13: must be 12, 156 or 1884$"),
    ],
)
def test_refusals_name_what_would_work(id, message):
    with pytest.raises(Refused, match=message):
        rlzoo.make(id)


def test_algorithms_for_the_other_kind_of_action_are_refused():
    with pytest.raises(Refused, match=r"Pendulum-v1 has continuous actions.*needs discrete ones"):
        _ = rlzoo.make("Pendulum-v1").num_actions
    with pytest.raises(Refused, match=r"CartPole-v1 has 2 discrete actions.*needs continuous ones"):
        _ = rlzoo.make("CartPole-v1").action_dim
    with pytest.raises(Refused, match="no option 'lengths'; nearest: length"):
        rlzoo.make("CartPole-v1").replace(lengths=jnp.ones(2))


def test_options_reach_the_constructor_and_the_parameters():
    assert rlzoo.make("DeepSea-bsuite", size=5).obs_shape == (5, 5)
    assert rlzoo.make("DeepSea-bsuite?size=6").obs_shape == (6, 6)
    assert rlzoo.make("CartPole-v1?length=0.7").params.length == 0.7
