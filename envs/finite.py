"""What environments with finitely many states share: their exact dynamics, for algorithms that keep
tables and for the regret of any algorithm.

All episodes are of one length, the horizon H, and tables have one slice for each step. A state has
an index in 0..S-1, by which it is told from the other states of the same step.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from gymnax.environments import environment


class Model(NamedTuple):
    """Exact dynamics, NumPy float32."""

    start: np.ndarray
    """[S]: probabilities of the first state"""
    transition: np.ndarray
    """[H, S, A, S]: probabilities of the next state"""
    reward: np.ndarray
    """[H, S, A]: mean rewards"""
    cap: np.ndarray
    """[H]: the most that can be earned from each step on. An agent may know it beforehand."""

    def optimal_value(self) -> float:
        """The expected return of the best policy."""
        value = np.zeros_like(self.start)
        for transition, reward in zip(self.transition[::-1], self.reward[::-1], strict=True):
            value = (reward + transition @ value).max(-1)
        return float(self.start @ value)


class Finite(environment.Environment):
    """An environment with finitely many states, whose dynamics are known exactly."""

    num_states: int
    """S"""

    def horizon(self, params: Any) -> int:
        """H, the number of steps of every episode."""
        raise NotImplementedError

    def model(self, params: Any) -> Model:
        """The exact dynamics with these parameters, which must be numbers, not tracers."""
        raise NotImplementedError

    def state_index(self, obs: jax.Array) -> jax.Array:
        """The index of the state that is observed: [..., *obs_shape] -> int32 [...]. After the last
        step it means nothing."""
        raise NotImplementedError
