"""DeepSea with its exact dynamics: gymnax's, with one action map for all episodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment
from gymnax.environments.bsuite import deep_sea

from .finite import Finite, Model


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 8
    """an episode ends after `size` steps in any case"""
    deterministic: bool = True
    """False: a move to the right fails with probability 1 / size, and rewards in the corners of the
    last row have standard normal noise"""
    unscaled_move_cost: float = 0.01
    """what `size` moves to the right cost"""
    # Not parameters here: every episode has the environment's own, random action map.
    sample_action_map = False
    randomize_actions = True


class DeepSea(Finite, deep_sea.DeepSea):
    """A square of `size` rows (Osband et al. 2020, bsuite). A step leads one row down and one
    column to the left or right; only `size` moves to the right reach the reward of 1. Which action
    is the right one differs from cell to cell, as drawn by the seed `map`.

    A state's index is its column; its row is the step.
    """

    def __init__(self, size: int = 8, map: int = 0):
        super().__init__(size, jax.random.key(map))
        self.map = map
        self.num_states = size

    @property
    def default_params(self) -> Params:
        return Params(max_steps_in_episode=self.size)

    def horizon(self, params: Params) -> int:
        return int(min(self.size, params.max_steps_in_episode))

    def state_index(self, obs: jax.Array) -> jax.Array:
        return jnp.argmax(obs.sum(-2), axis=-1)

    def model(self, params: Params) -> Model:
        horizon, size = self.horizon(params), self.size
        column = np.arange(size)
        identity = np.eye(size, dtype=np.float32)
        left = identity[np.maximum(column - 1, 0)]
        right = identity[np.minimum(column + 1, size - 1)]
        failing = 0.0 if params.deterministic else 1.0 / size
        right = (1.0 - failing) * right + failing * identity
        goal = (column == size - 1) - params.unscaled_move_cost / size

        is_right = np.arange(2) == np.asarray(self.action_mapping)[:horizon, :, None]
        return Model(
            start=identity[0],
            transition=np.where(is_right[..., None], right[:, None], left[:, None]),
            reward=np.where(is_right, goal[:, None], 0.0).astype(np.float32),
            cap=np.ones(horizon, np.float32),
        )

    @property
    def name(self) -> str:
        return f"deep-sea{self.size}"

    def is_truncated(self, state: Any, params: Params) -> jax.Array:
        return state.time >= params.max_steps_in_episode
