"""brax behind gymnax's interface."""

import difflib
import warnings
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from rlzoo.algorithm import Refused

NAMES = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)


BACKENDS = ("generalized", "positional", "spring", "mjx")


@struct.dataclass
class BraxState:
    physics: Any
    time: jax.Array


class Brax(environment.Environment):
    """A brax environment behind gymnax's interface, with its usual limit of 1000 steps as
    truncation."""

    def __init__(self, env: Any, name: str):
        self.env = env
        self._name = name
        # not env.observation_size, which resets the environment to look at what it gives
        self.sizes = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape[-1], env.action_size

    @property
    def default_params(self) -> Any:
        return environment.EnvParams(max_steps_in_episode=1000)

    @property
    def name(self) -> str:
        return self._name

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        state = self.env.reset(key)
        return state.obs, BraxState(state, jnp.int32(0))

    def step_env(self, key: jax.Array, state: BraxState, action: Any, params: Any) -> tuple:
        physics = self.env.step(state.physics, action)
        return physics.obs, BraxState(physics, state.time + 1), physics.reward, physics.done > 0, {}

    def action_space(self, params: Any = None) -> Any:
        return spaces.Box(-1.0, 1.0, (self.sizes[1],))

    def observation_space(self, params: Any) -> Any:
        return spaces.Box(-jnp.inf, jnp.inf, (self.sizes[0],))


class _Clip:
    """jax.numpy, whose clip once called its bounds a_min and a_max."""

    clip = staticmethod(lambda x, a_min=None, a_max=None: jnp.clip(x, a_min, a_max))

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)


def make(name: str, options: dict) -> Any:
    name, _, backend = name.removeprefix("brax/").partition(":")
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, 3, 0.4) or NAMES
        raise Refused(f"unknown brax environment {name!r}; nearest: {', '.join(nearest)}")
    if backend and backend not in BACKENDS:
        raise Refused(
            f"unknown brax backend {backend!r} in 'brax/{name}:{backend}'; it has "
            f"{', '.join(BACKENDS)}"
        )
    if name == "swimmer":
        if backend not in ("", "generalized"):
            raise Refused(f"brax/swimmer has the backend generalized alone, not {backend}")
        from brax import fluid

        fluid.jp = _Clip()  # brax 0.14.2 gives clip an argument that jax 0.10 took away
    # mujoco puts the model on jax.devices()[0], which in a run of several processes belongs to the
    # first
    with warnings.catch_warnings(), mock.patch.object(jax, "devices", jax.local_devices):
        # brax says at every construction that its environments are frozen.
        warnings.simplefilter("ignore")
        from brax.envs import get_environment

        env = get_environment(name, **({"backend": backend} if backend else {}))
    return Brax(env, f"brax/{name}")
