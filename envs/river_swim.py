"""RiverSwim: swim up a river, against the current, for a large reward, or rest for a small one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from .finite import Finite, Model

Array = jax.Array
REST, GOAL = 0.005, 1.0
"""rewards for action 0 in the first place, and for action 1 in the last"""


@struct.dataclass
class State(environment.EnvState):
    time: Array
    """steps made"""
    place: Array
    """int32: 0 is the downstream end"""


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 20
    ahead: float = 0.35
    """probability that swimming leads one place up, between the ends"""
    back: float = 0.05
    """probability that it leads one place down there"""
    first_ahead: float = 0.6
    """probability that it leads up from the first place; else it stays"""
    last_back: float = 0.4
    """probability that it leads down from the last place; else it stays"""


class RiverSwim(Finite):
    """Strehl and Littman 2008, with the numbers of Osband, Russo and Van Roy 2013 (arXiv
    1306.0940): 6 places, episodes of 20 steps that begin at the first. Action 0 drifts one place
    down, action 1 swims. An observation is the place, one-hot."""

    def __init__(self, size: int = 6):
        if not isinstance(size, int) or size < 2:
            raise ValueError(f"size={size!r} must be a whole number of at least 2")
        self.size = self.num_states = size

    @property
    def default_params(self) -> Params:
        return Params()

    @property
    def name(self) -> str:
        return "river-swim"

    @property
    def num_actions(self) -> int:
        return 2

    # ---- the river -------------------------------------------------------------------------------

    def moves(self, params: Params) -> Any:
        """Probabilities of swimming one place down and one up, [size] each."""
        up = jnp.full(self.size, params.ahead, jnp.float32).at[0].set(params.first_ahead)
        down = jnp.full(self.size, params.back, jnp.float32).at[0].set(0.0)
        return down.at[-1].set(params.last_back), up.at[-1].set(0.0)

    def reset_env(self, key: Array, params: Params) -> tuple:
        state = State(jnp.int32(0), jnp.int32(0))
        return self.see(state), state

    def step_env(self, key: Array, state: State, action: Any, params: Params) -> tuple:
        swims = jnp.asarray(action) == 1
        rests = ~swims & (state.place == 0)
        arrives = swims & (state.place == self.size - 1)
        reward = REST * rests + GOAL * arrives

        down, up = self.moves(params)
        draw = jax.random.uniform(key)
        current = jnp.where(draw < up[state.place], 1, 0)
        current = jnp.where(draw >= 1.0 - down[state.place], -1, current)
        place = jnp.clip(state.place + jnp.where(swims, current, -1), 0, self.size - 1)
        state = State(state.time + 1, place)
        return self.see(state), state, reward, jnp.bool_(False), {}

    def see(self, state: State) -> Array:
        return jax.nn.one_hot(state.place, self.size)

    def action_space(self, params: Params | None = None) -> spaces.Discrete:
        return spaces.Discrete(2)

    def observation_space(self, params: Params) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.size,))

    # ---- the dynamics ----------------------------------------------------------------------------

    def horizon(self, params: Params) -> int:
        return int(params.max_steps_in_episode)

    def state_index(self, obs: Array) -> Array:
        return jnp.argmax(obs, axis=-1)

    def model(self, params: Params) -> Model:
        horizon, size = self.horizon(params), self.size
        with jax.ensure_compile_time_eval():
            down, up = map(np.asarray, self.moves(params))
        identity = np.eye(size, dtype=np.float32)
        one_down = identity[np.maximum(np.arange(size) - 1, 0)]
        one_up = identity[np.minimum(np.arange(size) + 1, size - 1)]
        stay = 1.0 - down - up
        swim = down[:, None] * one_down + stay[:, None] * identity + up[:, None] * one_up

        reward = np.zeros((size, 2), np.float32)
        reward[0, 0] = REST
        reward[-1, 1] = GOAL
        shape = (horizon, size, 2)
        return Model(
            start=identity[0],
            transition=np.broadcast_to(np.stack([one_down, swim], 1), (*shape, size)),
            reward=np.broadcast_to(reward, shape),
            cap=GOAL * np.arange(horizon, 0, -1, dtype=np.float32),
        )
