"""How good are the features that a value loss leaves behind? PQN, then a new linear head on its
frozen network.

    python scripts/programs/frozen.py --loss hl_gauss --learning-rate 5e-4

Study A5 of results/value_loss (figure 16 of arXiv 2403.03950). The first half of the steps trains
PQN with `loss`; the second trains a head alone, by the squared error whatever the loss was, on the
layers that the first half left.
"""

import dataclasses
from typing import Any

import jax
from rlzoo.algorithms import pqn

import rlzoo


@rlzoo.config
class Config:
    env: str = rlzoo.static("Breakout-MinAtar")
    """environment id"""
    total_steps: int = rlzoo.static(200_000)
    """environment steps of each member, half of them for the head"""
    loss: str = rlzoo.static("mse")
    """mse, hl_gauss, two_hot, c51 or mse_softmax, or untrained: layers as they are at the start"""
    learning_rate: float = 1e-3
    """RAdam's step size at the start, for the layers"""
    head_rate: float = 1e-3
    """RAdam's step size at the start, for the head"""


def make(config: Config, env: rlzoo.Env, dataset: Any = None) -> rlzoo.Algorithm:
    steps = config.total_steps // 2
    loss = "mse" if config.loss == "untrained" else config.loss
    # The settings of the other studies on MinAtar: ONLINE of arms.py.
    first = pqn.Config(
        env=config.env,
        total_steps=steps,
        loss=loss,
        learning_rate=config.learning_rate,
        num_envs=32,
        num_steps=8,
        num_minibatches=4,
        num_epochs=2,
        td_lambda=0.65,
        epsilon_end=0.05,
        hidden=(128,),
        v_min=-1.0,
        v_max=19.0,
    )
    whole = pqn.make(first, env)
    probe = pqn.make(dataclasses.replace(first, loss="mse", learning_rate=config.head_rate), env)

    def shapes(params: Any) -> Any:
        return jax.tree.map(lambda x: x.shape, params)

    before = shapes(jax.eval_shape(whole.init, jax.random.key(0)).params)

    def act(policy: Any, obs: jax.Array, key: jax.Array) -> jax.Array:
        return (whole if shapes(policy.params) == before else probe).act(policy, obs, key)

    def enter(states: Any, configs: list) -> Any:
        """Of all members, on the host: the state of a new run but for the layers."""
        fresh = jax.vmap(probe.init)(jax.random.wrap_key_data(states.key))
        return fresh.replace(
            params=with_head(states.params, fresh.params), key=jax.random.key_data(fresh.key)
        )

    def step(state: Any, t: jax.Array) -> tuple:
        learned, metrics = probe.step(state, t)
        return learned.replace(params=with_head(state.params, learned.params)), metrics

    def stay(state: Any, t: jax.Array) -> tuple:
        return state, {}

    calls = -(-steps // whole.steps_per_call)
    counts = {"steps_per_call": whole.steps_per_call, "evaluate": True}
    features = stay if config.loss == "untrained" else whole.step
    return whole._replace(
        step=None,
        act=act,
        stages=(
            rlzoo.Stage("layers", features, calls, **counts),
            rlzoo.Stage("head", step, calls, enter, **counts),
        ),
    )


def with_head(layers: dict, head: dict) -> dict:
    """Parameters: all but the last layer of `layers`, and the last one of `head`."""
    last = max(
        (name for name in layers["params"] if name.startswith("Dense_")),
        key=lambda name: int(name[6:]),
    )
    return {"params": layers["params"] | {last: head["params"][last]}}


if __name__ == "__main__":
    rlzoo.main(make, Config)
