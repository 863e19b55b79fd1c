"""The environment of data that no environment of ours made: what it looks like is known, how it
moves is not."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import environment, spaces

from rlzoo.dataset import Dataset, episodes
from rlzoo.env import Env

PREFIX = "data:"
"""Before the name in the id of such an environment."""


class Recorded(environment.Environment):
    """Shapes, types and actions of recorded transitions. `rlzoo.Env.starts` refuses to play it."""

    simulated = False

    def __init__(self, obs: Any, action: Any, num_actions: int, longest: int):
        """Rows of observations and actions, how many discrete actions there are, and the steps of
        the longest episode."""
        self._obs = obs[0]
        self._action = action[0]
        self._num_actions = num_actions
        self._longest = longest

    @property
    def default_params(self) -> Any:
        return environment.EnvParams(max_steps_in_episode=self._longest)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        return jnp.zeros_like(self._obs), jnp.int32(0)

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        obs = jnp.zeros_like(self._obs)
        reward = jnp.float32(0)
        terminated = jnp.bool_(False)
        return obs, state, reward, terminated, {}

    def is_truncated(self, state: Any, params: Any) -> Any:
        return jnp.bool_(False)

    def action_space(self, params: Any = None) -> Any:
        if self._num_actions:
            return spaces.Discrete(self._num_actions)
        return spaces.Box(-1.0, 1.0, self._action.shape)

    def observation_space(self, params: Any) -> Any:
        return spaces.Box(-jnp.inf, jnp.inf, self._obs.shape, self._obs.dtype)


def id_of(data: Dataset) -> str:
    """The id of the environment that `data` are of: after the name of that, or of their source."""
    name = data.env or re.sub(r"\.(npz|hdf5|h5)$", "", data.source) or "unknown"
    return PREFIX + re.sub(r"[^\w./-]+", "-", name).strip("-")


def make(id: str, data: Sequence[Dataset]) -> Env:
    """The environment of all `data`, which can be learned about and not be played. Discrete actions
    are those up to the largest that occurs."""
    first = data[0]
    same = [x for x in data if x.discrete and first.discrete]
    num_actions = max((int(np.max(x.action)) + 1 for x in same), default=0)
    longest = max(int(episodes(x).lengths.max()) for x in data)
    inner = Recorded(first.obs, first.action, num_actions, longest)
    return Env(id, inner, inner.default_params)
