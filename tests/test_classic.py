"""Classic control against gymnasium, and the parameters of every gymnax environment."""

import dataclasses
import functools
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control import ContinuousMountainCar
from gymnax.utils import load_mnist

import rlzoo
from rlzoo import parameters
from rlzoo.algorithm import Refused
from rlzoo.env import Env
from rlzoo.tools import drawings

KEY = jax.random.key(0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CAR = "MountainCarContinuous-v0"


# ---- the car that stops at the wall --------------------------------------------------------------


def car(inner: Any, position: float, velocity: float, throttle: float) -> tuple:
    """position, velocity, reward and whether the car has arrived, after one step"""
    _, start = inner.reset_env(KEY, inner.default_params)
    start = start.replace(position=jnp.float32(position), velocity=jnp.float32(velocity))
    _, after, reward, over, _ = inner.step_env(
        KEY, start, jnp.array([throttle]), inner.default_params
    )
    return float(after.position), float(after.velocity), float(reward), bool(over)


RECORDED = [  # of gymnasium 1.3.0
    ((-1.19, -0.05, 0.0), (-1.2, 0.0, 0.0, False)),
    ((-1.2, 0.0, -1.0), (-1.19925815, 0.00074190, -0.1, False)),
    ((-1.2, 0.0, 0.5), (-1.19700813, 0.00299190, -0.025, False)),
    ((0.44, 0.07, 1.0), (0.51, 0.07, 99.9, True)),
    ((0.59, 0.07, 0.0), (0.6, 0.07, 100.0, True)),
    ((0.5, -0.01, 0.0), (0.48982316, -0.01017684, 0.0, False)),
]
"""position, velocity, throttle -> position, velocity, reward, arrived"""


@pytest.mark.parametrize(("before", "after"), RECORDED)
def test_the_car_moves_as_in_gymnasium(before, after):
    np.testing.assert_allclose(car(rlzoo.make(CAR).inner, *before), after, atol=1e-6)


def test_gymnaxs_own_car_fails_at_the_wall_and_behind_the_goal():
    wrong = [
        before
        for before, after in RECORDED
        if not np.allclose(car(ContinuousMountainCar(), *before), after, atol=1e-6)
    ]
    assert wrong == [(-1.19, -0.05, 0.0), (0.5, -0.01, 0.0)]


def steps_at_full_throttle(inner: Any, count: int) -> np.ndarray:
    """Steps to the goal with full throttle along the velocity, from `count` random starts."""
    params = inner.default_params

    def step(carry: tuple, _: None) -> tuple:
        state, over, steps = carry
        throttle = jnp.where(state.velocity < 0, -1.0, 1.0)[None]
        _, state, _, arrived, _ = inner.step_env(KEY, state, throttle, params)
        return (state, over | arrived, steps + ~over), None

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> jax.Array:
        state = inner.reset_env(key, params)[1].replace(time=jnp.int32(0))
        return jax.lax.scan(step, (state, jnp.bool_(False), jnp.int32(0)), length=300)[0][2]

    return np.asarray(run(jax.random.split(KEY, count)))


def test_full_throttle_along_the_velocity_needs_as_many_steps_as_in_gymnasium():
    ours = steps_at_full_throttle(rlzoo.make(CAR).inner, 500)
    assert (ours.min(), ours.max()) == (105, 111)
    assert steps_at_full_throttle(ContinuousMountainCar(), 500).min() > 150


def test_the_car_is_drawn_and_its_end_is_told_from_observations():
    env = rlzoo.make(CAR)
    assert drawings._drawing(env.inner) is drawings.DRAWINGS["ContinuousMountainCar"]
    obs = jnp.array([[0.46, 0.01], [0.46, -0.01], [0.44, 0.01]])
    np.testing.assert_array_equal(env.terminates(None, None, obs), [True, False, False])
    assert env.max_steps == 999


# ---- all of classic control, step by step --------------------------------------------------------

FIELDS = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Pendulum-v1": ("theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "MountainCar-v0": ("position", "velocity"),
    CAR: ("position", "velocity"),
}
"""the fields of a state, in the order of gymnasium's"""
RANGES = {
    "CartPole-v1": [2.4, 4, 0.209, 4],  # not beyond the end
    "Pendulum-v1": [7, 8],
    "Acrobot-v1": [np.pi, np.pi, 4 * np.pi, 9 * np.pi],
    "MountainCar-v0": [(-1.2, 0.6), 0.07],
    CAR: [(-1.2, 0.6), 0.07],
}
EDGES = {
    "CartPole-v1": [[2.4, 1, 0, 0], [-2.4, -1, 0, 0], [0, 0, 0.2094, 1], [0, 0, -0.2094, -1]],
    "Pendulum-v1": [[np.pi, 8], [-np.pi, -8], [0, 0], [3 * np.pi, 8]],
    "Acrobot-v1": [[np.pi, 0, 12.5, 28], [-np.pi, 0, -12.5, -28], [3.1, 3.1, 12, 28], [0, 0, 0, 0]],
    "MountainCar-v0": [[-1.2, 0], [-1.19, -0.05], [0.49, 0.05], [0.5, -0.01], [0.6, 0.07]],
    CAR: [[-1.2, 0], [-1.19, -0.05], [0.44, 0.05], [0.46, -0.01], [0.6, 0.07]],
}
"""walls, limits and goals"""


def states_of(id: str, count: int, rng: np.random.Generator) -> np.ndarray:
    bounds = [x if isinstance(x, tuple) else (-x, x) for x in RANGES[id]]
    low, high = np.array(bounds).T
    return np.concatenate([EDGES[id], rng.uniform(low, high, (count, len(low)))])


def gymnasium_step(env: Any, id: str, state: np.ndarray, action: Any) -> tuple:
    """obs, reward and terminated"""
    env.reset(seed=0)
    as_kept = np.float32 if id in ("Acrobot-v1", CAR) else np.float64
    env.unwrapped.state = np.asarray(state, as_kept)
    return env.unwrapped.step(action)[:3]


@pytest.mark.slow
@pytest.mark.parametrize("id", FIELDS)
def test_every_step_is_gymnasiums(id):
    gymnasium = pytest.importorskip("gymnasium")
    theirs, ours = gymnasium.make(id), rlzoo.make(id)
    rng = np.random.default_rng(0)
    states = states_of(id, 3000, rng)
    if ours.discrete:
        actions = native = rng.integers(0, ours.num_actions, len(states))
        assert ours.num_actions == theirs.action_space.n
    else:  # also beyond the bounds, to which our stepper clips
        actions = rng.uniform(-1.3, 1.3, (len(states), 1))
        native = np.clip(actions, -1, 1) * theirs.action_space.high
    expected = [gymnasium_step(theirs, id, *x) for x in zip(states, native, strict=True)]
    obs, reward, terminated = map(np.array, zip(*expected, strict=True))

    @jax.jit
    @jax.vmap
    def step(values, action):
        _, state = ours.inner.reset_env(KEY, ours.params)
        state = state.replace(**dict(zip(FIELDS[id], values, strict=True)))
        return ours.inner.step_env(KEY, state, ours._native(action, ours.params), ours.params)[:4]

    given = jnp.asarray(actions, jnp.int32 if ours.discrete else jnp.float32)
    our_obs, _, our_reward, our_terminated = step(jnp.asarray(states, jnp.float32), given)
    # where a state is on an edge, float32 may fall on the other side of it
    differ = np.flatnonzero(terminated != our_terminated)
    assert len(differ) <= 3, f"{states[differ]}"
    same = terminated == our_terminated
    np.testing.assert_allclose(our_obs[same], obs[same], rtol=3e-4, atol=1e-4)
    np.testing.assert_allclose(our_reward[same], reward[same], rtol=1e-4, atol=1e-4)
    assert id == "Pendulum-v1" or 10 < terminated.sum() < len(states) - 10


@pytest.mark.slow
@pytest.mark.parametrize("id", FIELDS)
def test_starts_and_time_limits_are_gymnasiums(id):
    gymnasium = pytest.importorskip("gymnasium")
    theirs, ours = gymnasium.make(id), rlzoo.make(id)
    assert ours.max_steps == theirs.spec.max_episode_steps
    expected = np.array([theirs.reset(seed=seed)[0] for seed in range(2000)])
    starts = np.asarray(ours.reset(KEY, 2000).obs)
    quantiles = [0.0, 0.1, 0.5, 0.9, 1.0]
    spread = np.ptp(expected, axis=0) + 1e-6
    gap = np.quantile(starts, quantiles, axis=0) - np.quantile(expected, quantiles, axis=0)
    assert (np.abs(gap) < 0.08 * spread).all(), gap / spread


# ---- parameters ----------------------------------------------------------------------------------


def test_what_follows_from_a_parameter_follows():
    params = rlzoo.make("CartPole-v1?length=0.7").params
    assert params.polemass_length == pytest.approx(0.07)
    params = rlzoo.make("CartPole-v1?masspole=0.3&masscart=2").params
    assert (params.total_mass, params.polemass_length) == pytest.approx((2.3, 0.15))
    assert rlzoo.make("CartPole-v1?gravity=9").params.polemass_length == pytest.approx(0.05)


def test_also_in_a_wrapper_and_in_a_subclass():
    class Heavy(gymnax.environments.CartPole):
        pass

    for env in (rlzoo.make("CartPole-v1?sticky=0.5&length=1"), rlzoo.make(Heavy, length=1)):
        assert env.params.polemass_length == pytest.approx(0.1)


def test_also_with_one_value_for_each_environment():
    lengths = jnp.array([0.2, 0.5, 2.0])
    env = rlzoo.make("CartPole-v1").replace(length=lengths)
    np.testing.assert_allclose(env.params.polemass_length, 0.1 * lengths, rtol=1e-6)
    assert env.param_axes.polemass_length == 0 and env.param_axes.total_mass is None
    state = env.reset(KEY, 3)
    together = env.step(state, jnp.ones(3, jnp.int32), KEY, jnp.int32(0))[1].next_obs
    for n, length in enumerate((0.2, 0.5, 2.0)):
        alone = rlzoo.make("CartPole-v1", length=length)
        inner = jax.tree.map(lambda x, n=n: x[n], state.inner)
        np.testing.assert_allclose(
            alone.inner.step_env(KEY, inner, 1, alone.params)[0], together[n], rtol=1e-5
        )


def test_also_with_traced_values():
    @jax.jit
    def half(length):
        return rlzoo.make("CartPole-v1").replace(length=length).params.polemass_length

    assert half(0.7) == pytest.approx(0.07)


def test_an_environment_of_ones_own_says_what_follows():
    class Short(gymnax.environments.Pendulum):
        follows = {"m": lambda params: params.l * 2}

    assert rlzoo.make(Short, l=0.25).params.m == 0.5
    with pytest.raises(Refused, match="m follows from other parameters; set those: .*max_speed"):
        rlzoo.make(Short, m=0.25)


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("CartPole-v1?polemass_length=1", "polemass_length follows from other parameters"),
        ("Acrobot-v1?link_length_2=2", "link_length_2 has no effect.*nothing.*reads it"),
        ("SimpleBandit-bsuite?optimal_return=2", "optimal_return has no effect"),
        ("CartPole-v1?length=[0.5,1]", "gives each environment a value of its own, an id none"),
        ("CartPole-v1?length=[0.5,[1]]", "length=.* must be a number"),
        ("Acrobot-v1?available_torque=2", r"available_torque has the shape \[\]; it must be \[3\]"),
        ("CartPole-v1?max_steps_in_episode=2.5", "must be a whole number of at least 1"),
        ("CartPole-v1?max_steps_in_episode=0", "must be a whole number of at least 1"),
        ("Asterix-MinAtar?ramp_interval=1.5", "ramp_interval=1.5 must be a whole number"),
        ("PointRobot-misc?dense_reward=2", "dense_reward=2 must be True or False"),
    ],
)
def test_options_that_make_no_sense_are_refused(id, message):
    with pytest.raises(Refused, match=message):
        rlzoo.make(id)


def test_numbers_are_taken_as_the_environment_takes_them():
    assert rlzoo.make("PointRobot-misc?dense_reward=1").params.dense_reward is True
    assert isinstance(rlzoo.make("CartPole-v1?length=1").params.length, float)
    assert rlzoo.make("CartPole-v1", length=np.float32(0.25)).params.length == 0.25
    assert rlzoo.make("CartPole-v1?max_steps_in_episode=1e2").max_steps == 100
    torque = rlzoo.make("Acrobot-v1?available_torque=[-2,0,2]").params.available_torque
    np.testing.assert_array_equal(torque, [-2.0, 0.0, 2.0])


# ---- every parameter of every environment --------------------------------------------------------

BASE = {
    "goal_velocity": {"goal_position": -0.52},
}
"""parameter -> others with which its effect comes soon"""


def rolled(env: Env, length: int, num_envs: int) -> Any:
    """One compiled function `params -> what an agent gets to see` of random episodes."""
    starts = jax.random.split(KEY, num_envs)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def run(params: Any, key: jax.Array) -> Any:
        def step(state: Any, key: jax.Array) -> tuple:
            choose, move = jax.random.split(key)
            if env.discrete:
                action = jax.random.randint(choose, (), 0, env.num_actions)
            else:
                action = env._native(
                    jax.random.uniform(choose, (env.action_dim,), minval=-1.0), params
                )
            obs, state, reward, over, _ = env.inner.step_env(move, state, action, params)
            state = jax.tree.map(lambda x, spec: jnp.asarray(x, spec.dtype), state, env._spec[1])
            return state, (obs, reward, over, env.inner.is_truncated(state, params))

        obs, state = env.inner.reset_env(key, params)
        state = jax.tree.map(lambda x, spec: jnp.asarray(x, spec.dtype), state, env._spec[1])
        return obs, jax.lax.scan(step, state, jax.random.split(key, length))[1]

    return lambda params: jax.tree.map(np.asarray, run(params, starts))


def candidates(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, max(1, value // 4), 2 * value]
    if np.ndim(value):
        return [value * 2, value + 1]
    return [value / 2, 2 * value, value + 1.0, value - 1.0, -value]


@pytest.fixture
def mnist(monkeypatch):
    images = np.arange(20 * 28 * 28, dtype=np.int64).astype(np.int8).reshape(20, 28, 28)
    data = (images, np.arange(20, dtype=np.uint8) % 10)
    monkeypatch.setattr(load_mnist, "load_mnist", lambda: (data, data))


GYMNAX = gymnax.registration._BUILTIN_ENV_IDS
SMALL = ("CartPole-v1", "Pendulum-v1", "MountainCar-v0", CAR, "PointRobot-misc", "Catch-bsuite")


@pytest.mark.parametrize(
    "id", [id if id in SMALL else pytest.param(id, marks=pytest.mark.slow) for id in GYMNAX]
)
def test_every_parameter_has_an_effect_or_is_refused(id, mnist):
    env = rlzoo.make(id)
    run = rolled(env, 300, 32)
    plain: dict[str, Any] = {}
    unseen = []
    for field in dataclasses.fields(env.params):
        base = env.replace(**BASE.get(field.name, {}))
        before = plain.setdefault(str(BASE.get(field.name)), run(base.params))
        changed = False
        for value in candidates(getattr(env.params, field.name)):
            try:
                other = base.replace(**{field.name: value})
            except Refused as refused:
                reasons = ("has no effect", "follows from", "at least 1")
                assert any(reason in str(refused) for reason in reasons)
                changed |= "at least 1" not in str(refused)
                continue
            pairs = zip(jax.tree.leaves(before), jax.tree.leaves(run(other.params)), strict=True)
            changed |= any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        if not changed:
            unseen.append(field.name)
    assert not unseen


def test_refused_are_just_those_that_are_known(mnist):
    refused = {}
    for id in GYMNAX:
        inner = rlzoo.make(id).inner
        names = [field.name for field in dataclasses.fields(inner.default_params)]
        refused[id] = parameters._unread(inner, names)
    assert {id: names for id, names in refused.items() if names} == {
        "Acrobot-v1": ["link_length_2"],
        "Asterix-MinAtar": ["shot_cool_down"],
        "CartPole-v1": ["total_mass", "polemass_length"],  # they follow
        "MNISTBandit-bsuite": ["optimal_return"],
        "Seaquest-MinAtar": ["ramp_interval", "enemy_move_interval"],
        "SimpleBandit-bsuite": ["optimal_return"],
    }
