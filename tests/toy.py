"""A toy algorithm for tests of the house: noisy gradient steps on a linear policy. It learns
nothing of use.

It has every kind of leaf, metric and mode that the training loop knows, and compiles in well under
a second.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import rlzoo

TRACED: list[int] = []  # grows each time Python runs `step`


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(200)
    """steps of each member"""
    width: int = rlzoo.static(4, least=1)
    """columns of the parameters"""
    hidden: tuple[int, ...] = rlzoo.static((3, 2))
    """a static tuple"""
    noisy: bool = rlzoo.static(True)
    """add noise to the gradients"""
    mode: str = rlzoo.static("plain")
    """plain, stages, until, memory, evaluate or both"""
    learning_rate: float = 0.1
    """step size; nan makes the member diverge"""
    goal: float = 1.0
    """where the parameters go"""
    near: float = rlzoo.traced(0.1, above=0.0)
    """how near they must come where stages end early"""


@struct.dataclass
class State:
    params: Any
    count: Any
    key: Any
    extra: Any
    """float32 [n]; stages change n"""
    flags: Any
    half: Any


def make(config, env, dataset=None):
    def init(key):
        w_key, key = jax.random.split(key)
        params = {
            "w": jax.random.normal(w_key, (*env.obs_shape, config.width)),
            "b": jnp.zeros(config.width),
        }
        return State(
            params, 0, key, jnp.arange(3.0), jnp.array([True, False]), jnp.ones(2, jnp.bfloat16)
        )

    def step(state, t):
        TRACED.append(1)
        key, noise_key = jax.random.split(state.key)
        noise = jax.random.normal(noise_key, state.params["w"].shape) if config.noisy else 0.0
        error = state.params["w"] - config.goal
        params = {
            "w": state.params["w"] - config.learning_rate * (error + 0.1 * noise),
            "b": state.params["b"] + jnp.tanh(state.extra.sum()) * config.learning_rate,
        }
        metrics = {
            "loss/square": ((error**2).mean(), 1.0),  # a count that is a plain Python number
            "count": state.count,
            "rare": (state.params["b"].sum(), t % 30 == 7),
            "t": t,
        }
        return state.replace(
            params=params,
            count=state.count + 1,
            key=key,
            flags=~state.flags,
            half=state.half * jnp.bfloat16(1.01),
        ), metrics

    def policy(state):
        return state.params

    def act(policy, obs, key):
        return jnp.argmax((obs @ policy["w"] + policy["b"])[:2])

    def remembering(policy, memory, obs, reward, key):
        """Takes turns between the actions, if memory and rewards (1 a step) reach it rightly."""
        total = memory["total"] + reward
        return (total % 2).astype(jnp.int32), {"total": total}

    def evaluate(state, key):
        return {
            "eval/distance": ((state.params["w"] - config.goal) ** 2).mean(),
            "eval/noise": jax.random.uniform(key),
        }

    def grow(states, configs):  # the size depends on the data
        size = 4 + int(np.asarray(states.count).max()) // 100
        return states.replace(extra=np.repeat(states.extra.sum(1, keepdims=True), size, 1) / 10)

    def empty(states, configs):
        """The bias becomes each member's own goal."""
        goals = np.array([member.goal for member in configs], np.float32)[:, None]
        bias = np.broadcast_to(goals, states.params["b"].shape)
        return states.replace(
            extra=states.extra[:, :0], params={"w": states.params["w"] / 2, "b": bias}
        )

    def second(state, t):
        state, _ = step(state, t)
        return state, {
            "loss/second": state.params["b"].sum(),
            "newest": rlzoo.last(t, t % 7 == 3),
            "largest": rlzoo.most(-t),
        }

    def near(state):
        return jnp.abs(state.params["w"] - config.goal).max() < config.near

    learner = rlzoo.Algorithm(init, step, policy, act, steps_per_call=2, updates_per_call=1)
    if config.mode == "stages":
        return rlzoo.Algorithm(
            init,
            None,
            policy,
            act,
            stages=(
                rlzoo.Stage("fit", step, 40, steps_per_call=2),
                rlzoo.Stage("grow", second, 30, enter=grow, steps_per_call=3, evaluate=True),
                rlzoo.Stage("end", step, 30, enter=empty),
            ),
        )
    if config.mode == "until":
        return rlzoo.Algorithm(
            init,
            None,
            policy,
            act,
            stages=(
                rlzoo.Stage("fit", step, 60, until=near, check_every=4, steps_per_call=2),
                rlzoo.Stage("end", second, 10),
            ),
        )
    if config.mode == "memory":
        remember = lambda policy: {"total": 0.0}
        return learner._replace(act=remembering, memory=remember)
    if config.mode == "evaluate":
        return learner._replace(
            evaluate=evaluate, rollouts=False, score="eval/distance", lower_is_better=True
        )
    if config.mode == "both":
        return learner._replace(evaluate=evaluate)
    return learner


if __name__ == "__main__":
    rlzoo.main(make, Config)
