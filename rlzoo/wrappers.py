"""Wrappers around one gymnax environment.

A wrapper is itself a gymnax `Environment`: what it remembers lives in its state, so it maps over
environments and members like any other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from rlzoo.algorithm import Refused


@struct.dataclass
class State:
    """The state of the wrapped environment, and what the wrapper remembers."""

    inner: Any
    extra: Any


class Wrapper(environment.Environment):
    """Hands everything on; subclasses change one thing."""

    def __init__(self, env: Any):
        self.env = env

    @property
    def default_params(self) -> Any:
        return self.env.default_params

    @property
    def name(self) -> str:
        return self.env.name

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        return self.env.reset_env(key, params)

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        return self.env.step_env(key, state, action, params)

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        return self.env.is_truncated(state, params)

    def action_space(self, params: Any = None) -> Any:
        return self.env.action_space(params)

    def observation_space(self, params: Any) -> Any:
        return self.env.observation_space(params)

    def max_steps(self, params: Any) -> Any:
        return time_limit(self.env, params)


class Remembering(Wrapper):
    """A wrapper whose state is a `State`."""

    def is_truncated(self, state: State, params: Any) -> jax.Array:
        return self.env.is_truncated(state.inner, params)


def time_limit(env: Any, params: Any) -> Any:
    """The number of steps after which `env` truncates an episode: NumPy, so known inside a trace
    too."""
    if isinstance(env, Wrapper):
        return env.max_steps(params)
    return np.asarray(params.max_steps_in_episode)


class Sticky(Remembering):
    """With probability `probability` the previous action is repeated (Machado et al. 2018)."""

    def __init__(self, env: Any, probability: float):
        super().__init__(env)
        if not isinstance(probability, int | float) or not 0 <= probability < 1:
            raise Refused(f"sticky={probability!r} must be a probability in [0, 1)")
        self.probability = probability

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        obs, inner = self.env.reset_env(key, params)
        space = self.env.action_space(params)
        previous = jnp.zeros(space.shape, space.dtype)
        started = jnp.bool_(False)
        return obs, State(inner, (previous, started))

    def step_env(self, key: jax.Array, state: State, action: Any, params: Any) -> tuple:
        draw, key = jax.random.split(key)
        previous, started = state.extra
        repeat = started & jax.random.bernoulli(draw, self.probability)
        action = jnp.asarray(action, previous.dtype)
        action = jnp.where(repeat, previous, action)
        obs, inner, reward, terminated, info = self.env.step_env(key, state.inner, action, params)
        started = jnp.bool_(True)
        return obs, State(inner, (action, started)), reward, terminated, info


class ActionRepeat(Wrapper):
    """Every action acts `times` times; rewards add up and stop with the episode."""

    def __init__(self, env: Any, times: int):
        super().__init__(env)
        self.times = _positive_int("repeat", times)

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        keys = jax.random.split(key, self.times)
        first = self.env.step_env(keys[0], state, action, params)

        def again(step: tuple, key: jax.Array) -> tuple:
            obs, state, reward, terminated, info = step
            over = terminated | self.env.is_truncated(state, params)
            further = self.env.step_env(key, state, action, params)
            # Nothing changes once the episode is over, and the reward grows no more.
            kept = jax.tree.map(lambda old, new: jnp.where(over, old, new), step, further)
            obs, state, _, terminated, info = kept
            reward += jnp.where(over, 0, further[2])
            return (obs, state, reward, terminated, info), None

        first = jax.tree.map(jnp.asarray, first)
        step, _ = jax.lax.scan(again, first, keys[1:])
        return step

    def max_steps(self, params: Any) -> Any:
        return -(-time_limit(self.env, params) // self.times)


class TimeLimit(Remembering):
    """Truncates after `steps` steps, or at the environment's own limit if that comes first."""

    def __init__(self, env: Any, steps: int):
        super().__init__(env)
        self.steps = _positive_int("limit", steps)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        obs, inner = self.env.reset_env(key, params)
        return obs, State(inner, jnp.int32(0))

    def step_env(self, key: jax.Array, state: State, action: Any, params: Any) -> tuple:
        obs, inner, reward, terminated, info = self.env.step_env(key, state.inner, action, params)
        return obs, State(inner, state.extra + 1), reward, terminated, info

    def is_truncated(self, state: State, params: Any) -> jax.Array:
        return (state.extra >= self.steps) | super().is_truncated(state, params)

    def max_steps(self, params: Any) -> Any:
        return np.minimum(self.steps, time_limit(self.env, params))


class ClipReward(Wrapper):
    """Rewards clipped to [-bound, bound] for training; episode returns are still reported
    unclipped."""

    def __init__(self, env: Any, bound: float):
        super().__init__(env)
        if not isinstance(bound, int | float) or not bound > 0:
            raise Refused(f"clip={bound!r} must be a positive number")
        self.bound = bound

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, params)
        info = {"score": jnp.asarray(reward, jnp.float32)} | info
        return obs, state, jnp.clip(reward, -self.bound, self.bound), terminated, info


class FrameStack(Remembering):
    """The last `frames` observations, concatenated along the last axis (channels), oldest first."""

    def __init__(self, env: Any, frames: int):
        super().__init__(env)
        self.frames = _positive_int("stack", frames)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        obs, inner = self.env.reset_env(key, params)
        frames = jnp.stack([obs] * self.frames)
        return self._join(frames), State(inner, frames)

    def step_env(self, key: jax.Array, state: State, action: Any, params: Any) -> tuple:
        obs, inner, reward, terminated, info = self.env.step_env(key, state.inner, action, params)
        latest = obs[None].astype(state.extra.dtype)
        frames = jnp.concatenate([state.extra[1:], latest])
        return self._join(frames), State(inner, frames), reward, terminated, info

    def _join(self, frames: jax.Array) -> jax.Array:
        return jnp.concatenate(list(frames), axis=-1)

    def observation_space(self, params: Any) -> Any:
        space = self.env.observation_space(params)
        *rest, channels = space.shape
        shape = (*rest, channels * self.frames)
        low = self._bound(space.low, space.shape)
        high = self._bound(space.high, space.shape)
        return spaces.Box(low, high, shape, space.dtype)

    def _bound(self, bound: Any, shape: tuple[int, ...]) -> jax.Array:
        """A bound of one frame's entries, for all frames."""
        whole = jnp.broadcast_to(jnp.asarray(bound), shape)
        return jnp.concatenate([whole] * self.frames, -1)


class OneHot(Wrapper):
    """A whole-number observation as a float32 one-hot vector; `make` puts it on discrete spaces."""

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        obs, state = self.env.reset_env(key, params)
        return self._encode(obs, params), state

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        obs, *rest = self.env.step_env(key, state, action, params)
        return self._encode(obs, params), *rest

    def _encode(self, obs: jax.Array, params: Any) -> jax.Array:
        space = self.env.observation_space(params)
        return jax.nn.one_hot(obs, space.n)

    def observation_space(self, params: Any) -> Any:
        space = self.env.observation_space(params)
        return spaces.Box(0.0, 1.0, (space.n,))


class ResetTo(Wrapper):
    """Every episode starts in a state drawn from `states`, a stack of this environment's states,
    whose observations are `obs` (leading axis: how many)."""

    def __init__(self, env: Any, obs: Any, states: Any):
        super().__init__(env)
        self.stored = (obs, states)
        self.count = jax.tree.leaves(states)[0].shape[0]

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        index = jax.random.randint(key, (), 0, self.count)
        return jax.tree.map(lambda x: x[index], self.stored)


BY_OPTION = {
    "repeat": ActionRepeat,
    "sticky": Sticky,
    "limit": TimeLimit,
    "stack": FrameStack,
    "clip": ClipReward,
}
"""Wrappers that an environment id can ask for, in the order in which they are put on, innermost
first. `clip` comes last: only the outermost wrapper's `score`, the unclipped reward, reaches the
stepper."""


def _positive_int(option: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise Refused(f"{option}={value!r} must be a whole number of at least 1")
    return value


# ---- through all wrappers ------------------------------------------------------------------------


def innermost(env: Any) -> Any:
    """The environment inside all wrappers."""
    return innermost(env.env) if isinstance(env, Wrapper) else env


def inner_state(env: Any, state: Any) -> Any:
    """Its state, out of the state of `env`."""
    if not isinstance(env, Wrapper):
        return state
    if isinstance(env, Remembering):
        state = state.inner
    return inner_state(env.env, state)


def __getattr__(name: str) -> Any:
    """What stood here when files were copied that a run, or a user, still has."""
    if name in ("RewardScale", "RunningStats"):
        from rlzoo import normalize

        return getattr(normalize, name)
    raise AttributeError(f"module 'rlzoo.wrappers' has no attribute {name!r}")
