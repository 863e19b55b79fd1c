"""Tiny environments whose values are known exactly, so that an algorithm that learns them wrong is
wrong.

Importing this module registers each with gymnax: with two discrete actions and, where `-continuous`
is added to the id, with one continuous action in [-1, 1]. Observations are float32 [1].

    id               episode                                  value of the best policy, discount g
    probe-one-step   1 step, reward 1                         1
    probe-two-step   2 steps, reward 0 then 1, obs 0 then 1   g at obs 0, 1 at obs 1
    probe-obs        1 step, reward = obs, -1 or 1            obs
    probe-action     1 step, obs -1 or 1, reward by action    1
    probe-time-limit never ends, truncated after 5, reward 1  1 / (1 - g)
"""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class State:
    sign: jax.Array
    """-1 or 1, drawn at reset; 1 where the probe draws nothing"""
    time: jax.Array
    """steps since the reset"""


class Probe(environment.Environment):
    """Subclasses say what is seen, what is rewarded and when it ends, all by the state before the
    step."""

    steps = 10
    length = 1
    """the episode terminates after this many steps; None: never"""
    random = False

    def __init__(self, continuous: bool = False):
        self.continuous = continuous

    @property
    def default_params(self) -> Any:
        return environment.EnvParams(max_steps_in_episode=self.steps)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        sign = jax.random.rademacher(key, (), jnp.float32) if self.random else jnp.float32(1)
        state = State(sign, jnp.int32(0))
        return self.see(state), state

    def step_env(self, key: jax.Array, state: State, action: Any, params: Any) -> tuple:
        after = State(state.sign, state.time + 1)
        action = jnp.asarray(action, jnp.float32).reshape(())
        terminated = jnp.bool_(False) if self.length is None else after.time >= self.length
        return self.see(after), after, jnp.float32(self.reward(state, action)), terminated, {}

    def see(self, state: State) -> jax.Array:
        return jnp.zeros(1)

    def reward(self, state: State, action: jax.Array) -> Any:
        return 1.0

    def action_space(self, params: Any = None) -> Any:
        return spaces.Box(-1.0, 1.0, (1,)) if self.continuous else spaces.Discrete(2)

    def observation_space(self, params: Any) -> Any:
        return spaces.Box(-1.0, 1.0, (1,))


class OneStepReward(Probe):
    """Wrong: the value loss."""


class TwoStepDiscount(Probe):
    """Wrong: discounting, or bootstrapping from the next observation."""

    length = 2

    def see(self, state: State) -> jax.Array:
        return jnp.minimum(state.time, 1).astype(jnp.float32)[None]

    def reward(self, state: State, action: jax.Array) -> Any:
        return jnp.where(state.time == 0, 0.0, 1.0)


class ObservationReward(Probe):
    """Wrong: the path from observation to value."""

    random = True

    def terminates(self, next_obs: jax.Array, params: Any) -> jax.Array:
        """Every step does."""
        return jnp.ones(next_obs.shape[:-1], bool)

    def see(self, state: State) -> jax.Array:
        return state.sign[None]

    def reward(self, state: State, action: jax.Array) -> Any:
        return state.sign


class ActionReward(ObservationReward):
    """Wrong: the policy's improvement. Discrete: 1 for action 1 at obs 1 and action 0 at obs -1,
    else -1.
    Continuous: 1 - (action - obs / 2)^2, best at half the observation."""

    def reward(self, state: State, action: jax.Array) -> Any:
        if self.continuous:
            return 1.0 - (action - state.sign / 2) ** 2
        return jnp.where((action > 0.5) == (state.sign > 0), 1.0, -1.0)


class TimeLimitProbe(Probe):
    """Wrong: bootstrapping at a time limit. Cutting it there gives a value of (1 - g^k) / (1 - g)
    at most."""

    steps = 5
    length = None


PROBES = {
    "probe-one-step": OneStepReward,
    "probe-two-step": TwoStepDiscount,
    "probe-obs": ObservationReward,
    "probe-action": ActionReward,
    "probe-time-limit": TimeLimitProbe,
}


def _register() -> None:
    def factory(probe: Any, continuous: bool) -> Any:
        return lambda: probe(continuous)

    for name, probe in PROBES.items():
        for id, continuous in ((name, False), (f"{name}-continuous", True)):
            if id not in gymnax.registered_envs:
                gymnax.registration.register(id, factory(probe, continuous))


_register()
