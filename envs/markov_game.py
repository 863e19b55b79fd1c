"""Two-player zero-sum games with random payoffs: a matrix game, or several in a row with states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class State(environment.EnvState):
    time: jax.Array
    """steps made"""
    place: jax.Array
    """int32: which matrix is played"""


@struct.dataclass
class Params(environment.EnvParams):
    payoff: Any = None
    """[H, S, A, A]: mean payoffs of the first player, in [-1, 1]; the second's are the opposite"""
    transition: Any = None
    """[H, S, A, A, S]: probabilities of the next state"""
    max_steps_in_episode: int = 1
    noise: float = 0.5
    """standard deviation of payoffs"""


class MarkovGame(environment.Environment):
    """A game of `horizon` steps that begins in state 0. In each both players choose among
    `choices` at once. The action a * choices + b stands for the first player's choice a and the
    second one's b, and the reward is the first one's. An observation is the state, one-hot."""

    def __init__(self, choices: int = 2, num_states: int = 3, horizon: int = 3):
        sizes = {"choices": choices, "num_states": num_states, "horizon": horizon}
        for name, size in sizes.items():
            least = 2 if name == "choices" else 1
            if not isinstance(size, int) or size < least:
                raise ValueError(f"{name}={size!r} must be a whole number of at least {least}")
        self.choices = choices
        self.num_states = num_states
        self.horizon = horizon

    @property
    def default_params(self) -> Params:
        rng = np.random.default_rng(0)
        shape = (self.horizon, self.num_states, self.choices, self.choices)
        return Params(
            payoff=rng.uniform(-1, 1, shape).astype(np.float32),
            transition=rng.dirichlet(np.ones(self.num_states), shape).astype(np.float32),
            max_steps_in_episode=self.horizon,
        )

    def draw(self, key: jax.Array, params: Params) -> Params:
        """The parameters of a random game: payoffs uniform in [-1, 1], transitions uniform among
        all distributions."""
        payoff_key, transition_key = jax.random.split(key)
        weights = jax.random.exponential(transition_key, params.transition.shape)
        return params.replace(
            payoff=jax.random.uniform(payoff_key, params.payoff.shape, minval=-1.0),
            transition=weights / weights.sum(-1, keepdims=True),
        )

    @property
    def name(self) -> str:
        return "markov-game" if self.horizon > 1 else f"matrix-game{self.choices}"

    @property
    def num_actions(self) -> int:
        return self.choices**2

    def reset_env(self, key: jax.Array, params: Params) -> tuple:
        state = State(jnp.int32(0), jnp.int32(0))
        return self.see(state), state

    def step_env(self, key: jax.Array, state: State, action: Any, params: Params) -> tuple:
        noise_key, place_key = jax.random.split(key)
        first, second = jnp.divmod(action, self.choices)
        at = (state.time, state.place, first, second)
        reward = jnp.asarray(params.payoff)[at] + params.noise * jax.random.normal(noise_key)
        place = jax.random.categorical(place_key, jnp.log(jnp.asarray(params.transition)[at]))
        state = State(state.time + 1, place.astype(jnp.int32))
        return self.see(state), state, reward, jnp.bool_(False), {}

    def see(self, state: State) -> jax.Array:
        return jax.nn.one_hot(state.place, self.num_states)

    def state_index(self, obs: jax.Array) -> jax.Array:
        """The index of the state that is observed: [..., S] -> int32 [...]"""
        return jnp.argmax(obs, axis=-1)

    def action_space(self, params: Params | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Params) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.num_states,))
