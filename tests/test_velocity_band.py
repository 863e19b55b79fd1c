"""The reward for moving at one speed: its table, its edge, its time limit."""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.base import State
from rlzoo.envs.velocity_band import Band, BandMass, band_reward

import rlzoo
from rlzoo import replay
from rlzoo.suites.brax import Brax
from rlzoo.suites.velocity import TASKS, VelocityBand

KEY = jax.random.key(0)
SETTINGS = [
    ("1.5", "0.6", "0.05"),
    ("1.0", "0.5", "0.001"),
    ("1.0", "0.7", "0.5"),
    ("3", "0.6", "0.1"),
]
"""target, band, control weight: hopper's and halfcheetah's, walker2d's, ant's, a faster one"""


# ---- the reward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_reward_table(setting):
    """Against exact fractions, on a grid that has both edges of the band on it."""
    target, band, weight = map(Fraction, setting)
    params = Band(target=float(target), band=float(band), control_weight=float(weight))
    velocities = [Fraction(i, 100) for i in range(-100, 501)]
    actions = np.array([[0.5, -1.0], [0.0, 0.0]])
    expected = []
    for velocity in velocities:
        error = abs(velocity - target)
        expected.append(float(2 - error) if error <= band else 0.0)
    assert target - band in velocities and target + band in velocities
    cost = float(weight) * np.array([1.25, 0.0])
    found = jax.jit(band_reward)(
        jnp.array([float(v) for v in velocities])[:, None], jnp.array(actions), params
    )
    np.testing.assert_allclose(found, np.array(expected)[:, None] - cost, atol=1e-5)


def test_the_edge_is_inside_where_rounding_puts_it_outside():
    """2.1 - 1.5 is more than 0.6 in double precision, 1.0 - 0.3 more than 0.7 in single."""
    assert 2.1 - 1.5 > 0.6 and np.float32(1.7) - np.float32(1.0) > np.float32(0.7)
    params = Band(target=1.0, band=0.7, control_weight=0.0)
    np.testing.assert_allclose(band_reward(jnp.float32(1.7), jnp.zeros(1), params), 1.3, rtol=1e-6)
    assert band_reward(jnp.float32(1.701), jnp.zeros(1), params) == 0


# ---- the point mass ------------------------------------------------------------------------------


def test_the_mass_moves_as_it_should():
    env, params = BandMass(), BandMass().default_params
    obs, state = env.reset_env(KEY, params)
    assert obs == 0 and env.name == "band-mass"
    speed = place = 0.0
    for step in range(60):
        action = np.float32(np.sin(step) + 0.6)
        _, state, reward, terminated, _ = env.step_env(KEY, state, jnp.array([action]), params)
        force = np.clip(action, -1, 1)
        speed += 0.05 * (2 * force - 0.5 * speed)
        before, place = place, place + 0.05 * speed
        np.testing.assert_allclose([state.velocity, state.position], [speed, place], rtol=1e-4)
        # the speed is the difference of positions, as in the rule
        rule = band_reward((place - before) / 0.05, jnp.array([force]), params)
        np.testing.assert_allclose(reward, rule, rtol=1e-3, atol=1e-5)
        assert not terminated


def episode_return(push, **options):
    """The return of an episode in which the action is push(velocity)."""
    env = rlzoo.make("band-mass", **options)
    act = lambda memory, obs, reward, keys: (push(obs), memory)
    returns, lengths = rlzoo.env.episodes(env, act, None, jax.random.split(KEY, 1))
    return float(returns[0]), int(lengths[0])


def test_standing_still_gives_nothing_and_moving_at_the_target_nearly_all():
    assert episode_return(lambda obs: jnp.zeros_like(obs)) == (0.0, 200)
    drive = lambda obs: jnp.clip(0.25 * 1.5 + 5 * (1.5 - obs), -1, 1)
    found, _ = episode_return(drive)
    assert 250 < found < 400
    slow, _ = episode_return(lambda obs: 0.2 * jnp.ones_like(obs))
    assert slow < 0, "below the band a push only costs"
    assert episode_return(drive, control_weight=0.0)[0] > found
    assert episode_return(drive, target=3.0)[0] < 0
    assert episode_return(drive, max_steps_in_episode=7)[1] == 7


def test_actions_at_random_seldom_reach_the_band():
    """So that the task is sparse, but not hopeless."""
    env = rlzoo.make("band-mass")
    act = lambda memory, obs, reward, keys: (
        jax.vmap(lambda key: jax.random.uniform(key, (1,), minval=-1.0))(keys),
        memory,
    )
    returns, _ = jax.jit(lambda keys: rlzoo.env.episodes(env, act, None, keys))(
        jax.random.split(KEY, 200)
    )
    share = float((returns > 0).mean())
    assert share < 0.1
    assert float(returns.mean()) < 0


def test_a_time_limit_is_no_end_and_keeps_the_true_next_observation():
    env = rlzoo.make("band-mass", max_steps_in_episode=1000)
    buffer = replay.Uniform(1001, env.example())

    def body(carry, t):
        state, stored = carry
        state, step, _ = env.step(state, jnp.ones((1, 1)), jax.random.fold_in(KEY, t), t)
        return (state, buffer.add(stored, step, t)), None

    start = env.reset(KEY, 1), buffer.init()
    (_, stored), _ = jax.jit(lambda x: jax.lax.scan(body, x, jnp.arange(1001)))(start)
    rows = jax.tree.map(np.asarray, stored.data)
    assert not rows.terminated.any()
    assert rows.truncated[999] and rows.truncated.sum() == 1
    np.testing.assert_allclose(rows.next_obs[999], 2 / 0.5, rtol=1e-2)
    assert rows.obs[1000] == 0, "the next episode starts at rest"
    np.testing.assert_array_equal(rows.next_obs[:999], rows.obs[1:1000])


def test_a_model_may_roll_it_out():
    env = rlzoo.make("band-mass")
    obs = jnp.ones((4, 1))
    assert not env.terminates(obs, obs, obs).any() and env.terminates(obs, obs, obs).shape == (4,)


# ---- brax ----------------------------------------------------------------------------------------


class Fake(NamedTuple):
    """What stands for a brax environment: it reports the action as velocity, and ends each step."""

    action_size: int = 1

    def reset(self, key):
        zero = jnp.float32(0)
        return State(None, jnp.zeros(2), zero, zero, {"x_velocity": zero})

    def step(self, state, action):
        return state.replace(
            reward=jnp.float32(7), done=jnp.float32(1), metrics={"x_velocity": 9 * action[0]}
        )


@pytest.mark.parametrize("terminate", [True, False])
def test_reward_and_termination_are_its_own(terminate):
    rule = (lambda obs, params: jnp.ones(obs.shape[:-1], bool)) if terminate else None
    env = VelocityBand(Brax(Fake(), "brax/fake"), Band(), rule)
    _, state = env.reset_env(KEY, Band())
    for action, expected in ((0.2, 1.7 - 0.05 * 0.04), (0.3, -0.05 * 0.09)):
        _, _, reward, terminated, _ = env.step_env(KEY, state, jnp.array([action]), Band())
        np.testing.assert_allclose(reward, expected, rtol=1e-5)
        assert terminated == terminate == env.terminates(jnp.zeros((1, 2)), Band())[0]
    assert env.name == "fake-vel-sparse"


@pytest.mark.slow
def test_hopper_is_rewarded_by_the_change_of_its_position():
    """On 60 steps, in which it reaches the band and falls."""
    env = rlzoo.make("hopper-vel-sparse:spring?terminate=True")
    assert env.max_steps == 1000 and env.params == Band()
    keys = jax.random.split(KEY, 1)

    def body(inner, t):
        action = jnp.where(t % 20 < 10, 1.0, -1.0) * jnp.ones((1, 3))
        obs, inner, reward, _, terminated, _ = env.step_inner(keys, inner, action)
        physics = inner.physics
        place = physics.pipeline_state.x.pos[:, 0, 0]
        return inner, (obs, action, reward, terminated, physics.done > 0, place)

    run = lambda: jax.lax.scan(body, env.starts(keys)[1], jnp.arange(60))[1]
    rows = jax.tree.map(lambda x: np.asarray(x)[:, 0], jax.jit(run)())
    obs, action, reward, terminated, fallen, place = rows

    # --- reward ---
    velocity = np.diff(place.astype(float)) / 0.008
    error = abs(velocity - 1.5)
    expected = np.where(error <= 0.6, 2 - error, 0) - 0.05 * (action[1:] ** 2).sum(-1)
    sure = abs(error - 0.6) > 1e-3  # single precision decides the others
    np.testing.assert_allclose(reward[1:][sure], expected[sure], atol=1e-3)
    assert sure.mean() > 0.9 and (reward > 0).any() and (reward < 0).any()

    # --- termination ---
    np.testing.assert_array_equal(terminated, fallen)
    np.testing.assert_array_equal(env.terminates(obs, obs, obs), fallen)
    assert fallen.any() and not fallen.all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ant", "halfcheetah", "walker2d"])
def test_the_other_walkers(name):
    env = rlzoo.make(f"{name}-vel-sparse:spring")
    keys = jax.random.split(KEY, 1)
    _, inner = jax.jit(env.starts)(keys)
    action = jnp.full((1, env.action_dim), 0.5)
    obs, inner, reward, _, _, _ = jax.jit(env.step_inner)(keys, inner, action)
    velocity = inner.physics.metrics["x_velocity"]
    expected = band_reward(velocity, action, env.params)
    np.testing.assert_allclose(reward, expected, rtol=1e-4, atol=1e-5)
    assert env.params == TASKS[name] and not env.terminates(obs, action, obs).any()


@pytest.mark.slow
def test_parameters_are_options():
    env = rlzoo.make("hopper-vel-sparse:spring?target=3&band=0.5&control_weight=0.0")
    assert (env.params.target, env.params.band, env.params.control_weight) == (3, 0.5, 0)
    assert rlzoo.make(env.id).params == env.params


def test_an_environment_without_a_velocity_is_refused():
    with pytest.raises(rlzoo.Refused, match=r"brax/reacher has no x velocity .*hopper-vel-sparse"):
        rlzoo.make("reacher-vel-sparse")
    with pytest.raises(rlzoo.Refused, match="unknown brax environment 'hoper'; nearest: hopper"):
        rlzoo.make("hoper-vel-sparse")
