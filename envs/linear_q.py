"""LinearQ: an environment with a simple optimal value and a complicated reward.

Paper: Zhou et al. 2023 (arXiv 2310.19308): the optimal values need two ReLU units, but the reward
zigzags, so a class of functions that is closed under Bellman backups must grow with the size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

Array = jax.Array


@struct.dataclass
class State(environment.EnvState):
    time: Array
    place: Array
    """int32: 0 to 3 size + 2"""


class LinearQ(environment.Environment):
    """3 (size + 1) states in a row, two actions; it observes the state's number, float32 [1].

    Action 0 goes right up to state `size` and then ends up at the far end; action 1 goes right from
    state size + 1 on. The last state keeps whoever is in it. The optimal return is 4 size + 2: go
    right.
    """

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size={size}: must be at least 1")
        self.size = size
        self.states = 3 * (size + 1)
        place = np.arange(self.states)
        last = self.states - 1

        # --- where both actions lead ---
        right = np.minimum(place + 1, last)
        far_end = np.where(place % 2 == 0, last, last - 1)
        early = place <= size
        first = np.where(place <= 2 * size, far_end, last)
        first = np.where(early, right, first)
        second = np.where(early, far_end, right)
        next_place = np.stack([first, second], axis=1)
        self.next_place = next_place.astype(np.int32)
        """[states, 2]"""

        # --- the optimal values: two ReLU units ---
        first = 2.0 * np.maximum(2 * size + 1 - place, 0)
        second = np.maximum(3 * size + 1.5 - place, 0)
        optimal = np.stack([first, second], axis=1)
        self.optimal = optimal.astype(np.float32)
        """the optimal values [states, 2]"""

        # --- the rewards of which they are the optimal values ---
        next_value = self.optimal.max(axis=1)[self.next_place]
        self.rewards = self.optimal - next_value
        """[states, 2]"""

    @property
    def name(self) -> str:
        return f"linear-q{self.size}"

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=self.states)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(2)

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(0.0, float(self.states - 1), (1,))

    def reset_env(self, key: Array, params: Any) -> tuple:
        state = State(jnp.int32(0), jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key: Array, state: State, action: Array, params: Any) -> tuple:
        reward = jnp.asarray(self.rewards)[state.place, action]
        place = jnp.asarray(self.next_place)[state.place, action]
        state = State(state.time + 1, place)
        return self.get_obs(state), state, reward, jnp.bool_(False), {}

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> Array:
        return jnp.float32(state.place)[None]

    def is_terminated(self, state: State, params: Any) -> Array:
        return jnp.bool_(False)

    def is_truncated(self, state: State, params: Any) -> Array:
        return state.time >= params.max_steps_in_episode

    def render(self, state: State, params: Any) -> Any:
        """A function that draws the rewards of both actions, and where the state is."""

        def draw(ax: Any) -> None:
            place = np.arange(self.states)
            for action, color in enumerate(("#4477AA", "#EE6677")):
                rewards = self.rewards[:, action]
                ax.plot(place, rewards, "o-", color=color, ms=3, lw=1)
            ax.axvline(int(state.place), color="#222222", lw=2)
            ax.set(
                xlim=(-1, self.states),
                ylim=(-1, self.rewards.max() + 1),
                aspect="auto",
            )

        return draw

    def record(self, key: Array, params: Any) -> dict[str, Array]:
        """The paper's data: the optimal episode 3 |S| times, and |S| episodes of which the e-th
        takes the other action at step e. Arrays [4 |S|, |S|, ...], as of `PointMaze.record`."""
        length = self.states
        # --- the step at which each episode takes the other action; -1: at none ---
        never = np.full(3 * length, -1)
        flipped = np.concatenate([never, np.arange(length)])
        episodes = len(flipped)
        # --- all episodes, a step at a time ---
        best = self.optimal.argmax(axis=1)
        places = np.zeros((episodes, length + 1), np.int32)
        actions = np.zeros((episodes, length), np.int32)
        for step in range(length):
            place = places[:, step]
            action = np.where(flipped == step, 1 - best[place], best[place])
            actions[:, step] = action
            places[:, step + 1] = self.next_place[place, action]
        # --- rows ---
        now = places[:, :-1]
        after = places[:, 1:]
        ends = np.arange(length) == length - 1
        rows = {
            "obs": np.float32(now)[..., None],
            "action": actions,
            "reward": self.rewards[now, actions],
            "next_obs": np.float32(after)[..., None],
            "terminated": np.zeros(now.shape, bool),
            "truncated": np.broadcast_to(ends, now.shape),
        }
        return {name: jnp.asarray(x) for name, x in rows.items()}
