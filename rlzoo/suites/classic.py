"""Classic control that gymnax steps otherwise than gymnasium: here it follows gymnasium."""

from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments.classic_control import continuous_mountain_car as gymnax_car


class ContinuousMountainCar(gymnax_car.ContinuousMountainCar):
    """A car that hits the left wall stops. gymnax's keeps its speed there; and behind the goal it
    stops one that rolls back, which then counts as arrived."""

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        # --- move ---
        throttle = jnp.asarray(action).squeeze()
        force = jnp.clip(throttle, params.min_action, params.max_action) * params.power
        slope = jnp.cos(3 * state.position)
        velocity = state.velocity + force - params.gravity * slope
        velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
        position = state.position + velocity
        position = jnp.clip(position, params.min_position, params.max_position)

        # --- the left wall ---
        stopped = (position == params.min_position) & (velocity < 0)
        velocity = jnp.where(stopped, 0.0, velocity)
        state = gymnax_car.EnvState(position=position, velocity=velocity, time=state.time + 1)

        arrived = self.is_terminated(state, params)
        reward = 100.0 * arrived - 0.1 * throttle**2
        obs, state = self._apply_transition_gradient_policy(self.get_obs(state), state)
        info = {"discount": self.discount(state, params)}
        return obs, state, reward, arrived, info


BY_NAME = {"MountainCarContinuous-v0": ContinuousMountainCar}
"""gymnax's name -> the class that takes its place"""
