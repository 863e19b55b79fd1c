"""The smallest problem of stitching: two episodes of return 1, whose better halves make 2.

Both steps and all actions are equally covered and nothing is random, yet what imitates episodes by
their return alone gets 1. The same conclusion as theorem 2 of Zhou et al. 2023 (arXiv 2310.19308),
whose own example differs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

Array = jax.Array
REWARDS = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
"""of [step, action]"""


@struct.dataclass
class State(environment.EnvState):
    time: Array


class Stitching(environment.Environment):
    """Two steps, two actions, an observation of the step, float32 [1]. Best: 0, then 1."""

    @property
    def name(self) -> str:
        return "stitching"

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=2)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(2)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(0.0, 2.0, (1,))

    def reset_env(self, key: Array, params: Any) -> tuple:
        state = State(jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key: Array, state: State, action: Array, params: Any) -> tuple:
        reward = jnp.asarray(REWARDS)[jnp.minimum(state.time, 1), action]
        state = State(state.time + 1)
        terminated = self.is_terminated(state, params)
        return self.get_obs(state), state, reward, terminated, {}

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> Array:
        return jnp.float32(state.time)[None]

    def is_terminated(self, state: State, params: Any) -> Array:
        return state.time >= 2

    def is_truncated(self, state: State, params: Any) -> Array:
        return state.time >= params.max_steps_in_episode

    def render(self, state: State, params: Any) -> Any:
        """A function that draws both steps, what their actions pay, and where the state is."""

        def draw(ax: Any) -> None:
            # --- an arrow for each action ---
            for step, action in np.ndindex(2, 2):
                height = 0.4 - 0.8 * action
                style = {
                    "arrowstyle": "->",
                    "connectionstyle": f"arc3,rad={-height}",
                }
                start = (step + 0.1, 0)
                end = (step + 0.9, 0)
                ax.annotate("", end, start, arrowprops=style)
                text = f"action {action}: {REWARDS[step, action]:g}"
                ax.text(step + 0.5, 0.7 * height, text, ha="center", va="center")
            # --- the steps, and the present one ---
            ax.plot([0, 1, 2], [0, 0, 0], "o", color="#BBBBBB", ms=20)
            ax.plot([int(state.time)], [0], "o", color="#4477AA", ms=20)
            ax.set(xlim=(-0.3, 2.3), ylim=(-0.8, 0.8), aspect="auto")

        return draw

    def record(self, key: Array, params: Any, episodes: int = 32) -> dict[str, Array]:
        """Both episodes, each `episodes` times, as of `PointMaze.record`: [2 episodes, 2, ...]."""
        action = np.repeat([[0, 0], [1, 1]], episodes, axis=0)
        action = action.astype(np.int32)
        step = np.broadcast_to(np.arange(2), action.shape)
        rows = {
            "obs": np.float32(step)[..., None],
            "action": action,
            "reward": REWARDS[step, action],
            "next_obs": np.float32(step + 1)[..., None],
            "terminated": step == 1,
            "truncated": np.zeros(action.shape, bool),
        }
        return {name: jnp.asarray(x) for name, x in rows.items()}
