"""A reward for moving at one speed alone, and a point mass under it.

The reward rule is that of the sparse tasks of MEX (Liu et al. 2023, arXiv 2305.18258, released
code). Outside a band around the target speed nothing is rewarded and actions cost, so that standing
still, with a return of about 0, is a local optimum. The tasks on brax's walkers are in
rlzoo/suites/velocity.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

EDGE = 1e-6
"""What rounding may put the edge of the band outside."""


@struct.dataclass
class Band(environment.EnvParams):
    """Parameters of the reward."""

    max_steps_in_episode: int = 1000
    target: float = 1.5
    """speed in metres per second"""
    band: float = 0.6
    """speeds this far from the target are rewarded, the edge included"""
    control_weight: float = 0.05
    """cost of the squared action"""


@struct.dataclass
class MassParams(Band):
    max_steps_in_episode: int = 200
    power: float = 2.0
    """acceleration by an action of 1, in metres per second squared"""
    friction: float = 0.5
    """deceleration per unit of speed, per second"""
    seconds: float = 0.05
    """time of a step"""


@struct.dataclass
class MassState:
    position: jax.Array
    velocity: jax.Array
    time: jax.Array


def band_reward(velocity: jax.Array, action: jax.Array, params: Band) -> jax.Array:
    """2 - |velocity - target| within the band and else 0, less the cost of the action.

    Args:
      velocity: [...], in metres per second.
      action: [..., action_dim] in [-1, 1].
    """
    error = jnp.abs(velocity - params.target)
    inside = error <= params.band + EDGE
    cost = params.control_weight * jnp.square(action).sum(-1)
    return jnp.where(inside, 2.0 - error, 0.0) - cost


class BandMass(environment.Environment):
    """A mass on a line that an action in [-1, 1] pushes against friction; it starts at rest.

    Observations are the velocity, float32 [1]. Episodes never terminate; they are truncated after
    200 steps, so that returns lie below 400.
    """

    @property
    def default_params(self) -> MassParams:
        return MassParams()

    @property
    def name(self) -> str:
        return "band-mass"

    def reset_env(self, key: jax.Array, params: MassParams) -> tuple:
        state = MassState(jnp.float32(0), jnp.float32(0), jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key: jax.Array, state: MassState, action: Any, params: MassParams) -> tuple:
        force = jnp.clip(jnp.asarray(action, jnp.float32).reshape(1), -1.0, 1.0)
        change = params.power * force[0] - params.friction * state.velocity
        velocity = state.velocity + params.seconds * change
        # the change of position over the step is velocity * seconds
        position = state.position + params.seconds * velocity
        after = MassState(position, velocity, state.time + 1)
        reward = band_reward(velocity, force, params)
        return self.get_obs(after), after, reward, jnp.bool_(False), {}

    def get_obs(self, state: MassState) -> jax.Array:
        return state.velocity[None]

    def terminates(self, next_obs: jax.Array, params: MassParams) -> jax.Array:
        """Never."""
        return jnp.zeros(next_obs.shape[:-1], bool)

    def action_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (1,))
