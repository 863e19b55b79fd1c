"""Wrappers on an environment that shows what reached it, and running normalization against
NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (registers the probes)
import pytest
from flax import struct
from gymnax.environments import environment, spaces

import rlzoo
from rlzoo import wrappers
from rlzoo.env import Env
from rlzoo.normalize import RewardScale, RunningStats

KEY = jax.random.key(0)
PARAMS = environment.EnvParams(max_steps_in_episode=8)


@struct.dataclass
class EchoState:
    time: Any
    noise: Any


class Echo(environment.Environment):
    """Shows [action, step of the episode, a random number]; rewards 1, 2, 3, ...; ends after `ends`
    steps."""

    def __init__(self, ends: int = 100):
        self.ends = ends

    @property
    def default_params(self) -> Any:
        return PARAMS

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        return jnp.zeros(3), EchoState(jnp.int32(0), jnp.float32(0))

    def step_env(self, key: jax.Array, state: EchoState, action: Any, params: Any) -> tuple:
        time, noise = state.time + 1, jax.random.uniform(key)
        obs = jnp.stack([jnp.float32(action), time.astype(jnp.float32), noise])
        return obs, EchoState(time, noise), time.astype(jnp.float32), time >= self.ends, {}

    def action_space(self, params: Any = None) -> Any:
        return spaces.Discrete(100_000)

    def observation_space(self, params: Any) -> Any:
        return spaces.Box(0.0, 1.0, (3,))


@functools.partial(jax.jit, static_argnums=0)
def roll(env: Env, actions: jax.Array) -> tuple:
    """Reset, then a rollout under `actions` [length, num_envs]."""
    length, num_envs = actions.shape
    act = lambda carry, obs, action: (carry, action, None)
    start = env.reset(KEY, num_envs)
    after, _, rows, _, metrics = env.rollout(
        start, act, None, actions, jax.random.key(1), length, jnp.int32(0)
    )
    return start, after, rows, metrics


def steps(env: Any, actions: Any) -> list[tuple]:
    """(obs, reward, terminated, truncated, info) of each step of an un-vectorized episode."""
    _, state = env.reset_env(KEY, PARAMS)
    step, out = jax.jit(env.step_env), []
    for i, action in enumerate(actions):
        obs, state, reward, terminated, info = step(
            jax.random.fold_in(KEY, i), state, action, PARAMS
        )
        out.append(
            (obs, float(reward), bool(terminated), bool(env.is_truncated(state, PARAMS)), info)
        )
    return out


# ---- wrappers ------------------------------------------------------------------------------------


def test_sticky_repeats_the_executed_action_with_the_given_probability():
    env, count = wrappers.Sticky(Echo(10**6), 0.25), 4000

    def body(state, x):
        key, action = x
        obs, state, *_ = env.step_env(key, state, action, PARAMS)
        return state, obs[0]

    chosen = jnp.arange(1, count + 1)  # all different, so a repeat can be told
    start = env.reset_env(KEY, PARAMS)[1]
    executed = np.asarray(jax.lax.scan(body, start, (jax.random.split(KEY, count), chosen))[1])
    repeated = executed[1:] != np.asarray(chosen)[1:]
    assert executed[0] == 1
    np.testing.assert_array_equal(executed[1:][repeated], executed[:-1][repeated])
    assert repeated.mean() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations
    assert repeated[1:][repeated[:-1]].mean() == pytest.approx(0.25, abs=0.06), (
        "repeats should not depend"
    )


def test_the_first_action_of_an_episode_is_never_sticky():
    env = Env("echo", wrappers.Sticky(Echo(2), 0.9), PARAMS)
    actions = jnp.arange(1, 4 * 64 + 1).reshape(4, 64)
    _, _, rows, _ = roll(env, actions)
    executed = np.asarray(rows.next_obs[..., 0])
    np.testing.assert_array_equal(executed[::2], actions[::2])
    assert (executed[1::2] != np.asarray(actions)[1::2]).mean() > 0.7


def test_sticky_zero_changes_nothing():
    assert [float(s[0][0]) for s in steps(wrappers.Sticky(Echo(), 0.0), [3, 1, 4])] == [3, 1, 4]


def test_repeat_sums_rewards_and_stops_where_the_episode_ends():
    env = wrappers.ActionRepeat(Echo(ends=7), 3)
    rows = steps(env, [1, 2, 3])
    assert [row[1] for row in rows] == [1 + 2 + 3, 4 + 5 + 6, 7]
    assert [row[2] for row in rows] == [False, False, True]
    assert [float(row[0][1]) for row in rows] == [3, 6, 7]
    assert not any(row[3] for row in rows)


def test_repeat_stops_at_the_time_limit():
    env = wrappers.ActionRepeat(Echo(), 3)
    rows = steps(env, [1, 2, 3])
    assert rows[-1][1] == 7 + 8 and [row[3] for row in rows] == [False, False, True]
    assert env.max_steps(PARAMS) == 3
    assert wrappers.ActionRepeat(Echo(), 1).max_steps(PARAMS) == 8
    assert steps(wrappers.ActionRepeat(Echo(), 1), [5])[0][1] == 1


def test_repeat_gives_each_step_its_own_randomness():
    """`fold_in(key, 1)` is `split(key)[1]`: keys derived so repeat what the environment itself
    draws."""
    seen = []

    class Spy(Echo):
        def step_env(self, key: jax.Array, state: EchoState, action: Any, params: Any) -> tuple:
            below = jax.random.split(key)
            keys = jnp.stack([key, *below, *jax.random.split(below[1])])
            note = lambda k: seen.extend(map(tuple, np.asarray(k).tolist()))
            jax.debug.callback(note, jax.random.key_data(keys))
            return super().step_env(key, state, action, params)

    wrappers.ActionRepeat(Spy(), 4).step_env(
        KEY, EchoState(jnp.int32(0), jnp.float32(0)), 0, PARAMS
    )
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 4 * 5


def test_limit_truncates_at_the_earlier_of_the_two_limits():
    env = wrappers.TimeLimit(Echo(), 3)
    assert [row[3] for row in steps(env, [0] * 4)] == [False, False, True, True]
    assert env.max_steps(PARAMS) == 3
    loose = wrappers.TimeLimit(Echo(), 50)
    assert loose.max_steps(PARAMS) == 8 and steps(loose, [0] * 8)[-1][3]


def test_max_steps_is_known_inside_a_trace():
    env = rlzoo.make("CartPole-v1?limit=9&repeat=2")
    assert jax.jit(lambda x: x + env.max_steps)(0) == 9


def test_stack_keeps_the_last_observations_oldest_first():
    env = wrappers.FrameStack(Echo(), 3)
    obs, _ = env.reset_env(KEY, PARAMS)
    np.testing.assert_array_equal(obs, np.zeros(9))
    rows = steps(env, [7, 8, 9, 10])
    np.testing.assert_array_equal(rows[0][0].reshape(3, 3)[:, 0], [0, 0, 7])
    np.testing.assert_array_equal(rows[3][0].reshape(3, 3)[:, 0], [8, 9, 10])
    np.testing.assert_array_equal(rows[3][0].reshape(3, 3)[:, 1], [2, 3, 4])
    assert env.observation_space(PARAMS).shape == (9,)
    assert env.observation_space(PARAMS).high.shape == (9,)


def test_stacked_images_have_more_channels():
    env, single = rlzoo.make("Breakout-MinAtar?stack=2"), rlzoo.make("Breakout-MinAtar")
    assert env.obs_shape == (*single.obs_shape[:2], 2 * single.obs_shape[2])
    assert env.obs_dtype == single.obs_dtype


def test_clip_bounds_the_reward_and_reports_the_unclipped_one():
    rows = steps(wrappers.ClipReward(Echo(), 2), [0, 0, 0])
    assert [row[1] for row in rows] == [1, 2, 2]
    assert [float(row[4]["score"]) for row in rows] == [1, 2, 3]


def test_options_are_put_on_in_a_fixed_order_whatever_their_order_in_the_id():
    env = rlzoo.make("CartPole-v1?clip=1&stack=2&limit=5&sticky=0.1&repeat=2").inner
    order = []
    while isinstance(env, wrappers.Wrapper):
        order.append(type(env).__name__)
        env = env.env
    assert order == ["ClipReward", "FrameStack", "TimeLimit", "Sticky", "ActionRepeat"]


def test_wrappers_together():
    """Two repeats of reward 1 make 2, clipped to 1.5; three such steps are one episode of return
    6."""
    env = rlzoo.make("probe-time-limit?repeat=2&limit=2&stack=2&clip=1.5")
    actions = jnp.zeros((4, 2), jnp.int32)
    _, _, rows, metrics = roll(env, actions)
    np.testing.assert_array_equal(rows.reward, np.full((4, 2), 1.5))
    np.testing.assert_array_equal(rows.truncated[:, 0], [False, True, False, True])
    np.testing.assert_allclose(metrics["train/return"], (4 * 4, 4))
    assert env.obs_shape == (2,) and env.max_steps == 2


def test_whole_number_observations_become_one_hot():
    env = rlzoo.make("FrozenLake-misc")
    assert env.obs_shape == (16,) and env.obs_dtype == jnp.float32
    actions = jax.random.randint(KEY, (6, 4), 0, 4)
    state, after, rows, _ = roll(env, actions)
    np.testing.assert_array_equal(rows.obs.sum(-1), np.ones((6, 4)))
    np.testing.assert_array_equal(state.obs.argmax(-1), np.zeros(4))  # starts at the top left
    np.testing.assert_array_equal(after.obs.argmax(-1), after.inner.position)


# ---- running normalization -----------------------------------------------------------------------


def test_running_stats_against_numpy_over_uneven_batches():
    rng = np.random.default_rng(0)
    shapes = [(1,), (7, 2), (3, 5, 2), (40,)]
    batches = [
        {"a": rng.normal(3, 5, (*shape, 4)), "b": rng.random(shape) < 0.5} for shape in shapes
    ]
    stats = RunningStats.init({"a": jnp.zeros(4), "b": jnp.zeros((), bool)})
    for batch in batches:
        stats = jax.jit(RunningStats.update)(stats, jax.tree.map(jnp.asarray, batch))
    a = np.concatenate([batch["a"].reshape(-1, 4) for batch in batches])
    b = np.concatenate([batch["b"].reshape(-1) for batch in batches])
    assert stats.count == len(a)
    np.testing.assert_allclose(stats.mean["a"], a.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats.var["a"], a.var(0), rtol=1e-4)
    np.testing.assert_allclose(stats.mean["b"], b.mean(), rtol=1e-4)
    np.testing.assert_allclose(stats.var["b"], b.var(), rtol=1e-4)
    normal = stats.normalize({"a": jnp.asarray(a), "b": jnp.asarray(b)})
    np.testing.assert_allclose(normal["a"], (a - a.mean(0)) / a.std(0), atol=1e-3)
    np.testing.assert_allclose(normal["b"].mean(), 0, atol=1e-4)


def test_running_stats_change_nothing_at_the_start_and_clip():
    stats = RunningStats.init(jnp.zeros(3))
    x = jnp.array([[-9.0, 0.5, 3.0], [1.0, 2.0, 9.9]])
    np.testing.assert_allclose(stats.normalize(x), x, rtol=1e-6)
    np.testing.assert_array_equal(stats.normalize(jnp.array([-50.0, 0, 50])), [-10, 0, 10])
    np.testing.assert_array_equal(stats.normalize(jnp.array([-50.0, 0, 50]), clip=3.0), [-3, 0, 3])


def test_running_stats_are_exact_far_from_zero():
    """Sums of squares, the naive way, lose everything here in float32."""
    rng = np.random.default_rng(1)
    x = (1e4 + rng.normal(0, 1, (20, 50))).astype(np.float32)
    stats = RunningStats.init(jnp.zeros(()))
    for batch in x:
        stats = stats.update(jnp.asarray(batch))
    assert float(stats.var) == pytest.approx(x.astype(np.float64).var(), rel=0.01)
    naive = np.float32((x**2).mean(dtype=np.float32)) - np.float32(x.mean(dtype=np.float32)) ** 2
    assert abs(naive - x.astype(np.float64).var()) > 0.1


def test_reward_scale_against_plain_python():
    rng, gamma, num_envs = np.random.default_rng(2), 0.9, 3
    scale, returns, seen = RewardScale.init(num_envs), [0.0] * num_envs, []
    for length in (5, 1, 8):
        reward = rng.normal(1, 4, (length, num_envs)).astype(np.float32)
        done = rng.random((length, num_envs)) < 0.3
        scale, scaled = jax.jit(RewardScale.update)(scale, reward, done, gamma)
        for i in range(length):
            for n in range(num_envs):
                returns[n] = float(reward[i, n]) + gamma * returns[n]
                seen.append(returns[n])
                if done[i, n]:
                    returns[n] = 0.0
        np.testing.assert_allclose(scaled, reward / np.std(seen), rtol=1e-3)
        np.testing.assert_allclose(scale.returns, returns, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.sign(scaled), np.sign(reward))  # scaled, not centred
