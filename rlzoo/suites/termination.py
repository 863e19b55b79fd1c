"""When a step terminates, told from observations alone: what rollouts in a learned model need."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlzoo import wrappers

Array = jax.Array
Rule = Callable[[Array, Any], Array]
"""`rule(next_obs, params) -> bool [...]`, `params` being the environment's"""


def rule(name: str, inner: Any) -> Rule | None:
    """The rule of the environment called `name`, with any brax backend: its own method
    `terminates(next_obs, params)`, or one of `RULES`. None where none is known, also where frames
    are stacked, which changes observations."""
    if _stacked(inner):
        return None
    return _own(inner) or RULES.get(name.partition(":")[0])


def _own(inner: Any) -> Rule | None:
    """The method `terminates` of an environment, or of the one that it wraps."""
    if isinstance(inner, wrappers.Wrapper) and not hasattr(inner, "terminates"):
        return _own(inner.env)
    return getattr(inner, "terminates", None)


def _stacked(inner: Any) -> bool:
    return isinstance(inner, wrappers.FrameStack) or (
        isinstance(inner, wrappers.Wrapper) and _stacked(inner.env)
    )


def _never(obs: Array, params: Any) -> Array:
    return jnp.zeros(obs.shape[:-1], bool)


def _cartpole(obs: Array, params: Any) -> Array:
    return (jnp.abs(obs[..., 0]) > params.x_threshold) | (
        jnp.abs(obs[..., 2]) > params.theta_threshold_radians
    )


def _mountain_car(obs: Array, params: Any) -> Array:
    return (obs[..., 0] >= params.goal_position) & (obs[..., 1] >= params.goal_velocity)


def _hopper(obs: Array, params: Any) -> Array:
    """The bound on the state leaves out velocities beyond 100: observations have them clipped to
    10."""
    upright = (obs[..., 0] > 0.7) & (jnp.abs(obs[..., 1]) < 0.2)
    return ~(upright & (jnp.abs(obs[..., 1:]) < 100).all(-1))


def _walker2d(obs: Array, params: Any) -> Array:
    return ~((obs[..., 0] > 0.8) & (obs[..., 0] < 2.0) & (jnp.abs(obs[..., 1]) < 1.0))


def _ant(obs: Array, params: Any) -> Array:
    return (obs[..., 0] < 0.2) | (obs[..., 0] > 1.0)


def _humanoid(obs: Array, params: Any) -> Array:
    return (obs[..., 0] < 1.0) | (obs[..., 0] > 2.0)


def _inverted_pendulum(obs: Array, params: Any) -> Array:
    return jnp.abs(obs[..., 1]) > 0.2


def _inverted_double_pendulum(obs: Array, params: Any) -> Array:
    """The height of the tip, from sines and cosines of the two joints' angles; each pole is 0.6
    long."""
    first, second = obs[..., 3], obs[..., 3] * obs[..., 4] - obs[..., 1] * obs[..., 2]
    return 0.6 * (first + second) <= 1


RULES: dict[str, Rule] = {
    "CartPole-v1": _cartpole,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "Pendulum-v1": _never,
    "brax/ant": _ant,
    "brax/halfcheetah": _never,
    "brax/hopper": _hopper,
    "brax/humanoid": _humanoid,
    "brax/humanoidstandup": _never,
    "brax/inverted_double_pendulum": _inverted_double_pendulum,
    "brax/inverted_pendulum": _inverted_pendulum,
    "brax/pusher": _never,
    "brax/reacher": _never,
    "brax/swimmer": _never,
    "brax/walker2d": _walker2d,
}
"""environment id -> rule"""
