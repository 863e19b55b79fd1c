"""RCSL: return-conditioned supervised learning, imitation that is told the return to reach.

Paper: Emmons et al. 2022 (arXiv 2112.10751), RvS with a network that sees the observation and the
    return to go; the baseline of Zhou et al. 2023 (arXiv 2310.19308), whose LinearQ it solves.
Kind: offline, supervised, discrete and continuous
Run: python algorithms/rcsl.py --env linear-q16 --seeds 5
    Without --dataset, environments that have a script make the data (point-maze, linear-q16).
Result: the optimal return of 66 on linear-q16, with 16 hidden units
Metrics:
    loss/actor        mean squared error, or cross-entropy, of the data's actions
    train/agreement   share of the data's actions that are the policy's (discrete actions)
    train/target      the return that the policy is asked for
Deviations:
    Updates are drawn with replacement; there is no held-out part and no early stop.
    Inputs are standardized (--no-normalize: not). Discrete actions are classified;
    --loss mse regresses their number and rounds, as the published LinearQ experiment does.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo.dataset import Dataset, draw, recorded, returns_to_go, rows


@rlzoo.config
class Config:
    env: str = rlzoo.static("linear-q16")
    """environment id, for evaluation"""
    total_steps: int = rlzoo.static(40_000, least=1)
    """gradient updates of each member"""
    loss: Literal["cross_entropy", "mse"] = rlzoo.static("cross_entropy")
    """of discrete actions; mse regresses the action's number"""
    hidden: tuple[int, ...] = rlzoo.static((16,), least=1)
    """widths of the hidden layers"""
    batch_size: int = rlzoo.static(128, least=1)
    """rows in each update"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size at the start; it falls to 0 along a cosine"""
    weight_decay: float = rlzoo.traced(0.0, least=0)
    """L2 coefficient, added to the gradient before Adam"""
    normalize: bool = rlzoo.static(True)
    """standardize observations and returns to go"""
    target_return: float = float("nan")
    """return to ask for in evaluation; nan: the best of the data"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Dense layers with ReLUs between them: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


# ---- state ---------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """Mean and deviation of what the network sees [obs_dim + 1]."""

    mean: jax.Array
    std: jax.Array


class Policy(NamedTuple):
    params: Any
    scale: Scale
    target: jax.Array
    """the return to ask for"""


@struct.dataclass
class State:
    policy: Policy
    opt_state: Any
    own: Dataset | None
    """the data set that the environment made, where none was given"""
    to_go: jax.Array
    """float32 [N]: return to go of each row"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def actor_loss(params, x, action, net, discrete):
    """How far the policy is from the data's actions at inputs x [n, obs_dim + 1].

    Continuous actions [n, action_dim]: mean squared error. Discrete ones [n]: cross-entropy of the
    logits, or, where the network has one output, the squared error of their number.
    """
    out = net.apply(params, x)

    # --- continuous ---
    if not discrete:
        loss = ((out - action) ** 2).mean()
        return loss, {"loss/actor": loss}

    # --- discrete ---
    if out.shape[-1] == 1:
        number = out[:, 0]
        loss = ((number - action) ** 2).mean()
        chosen = jnp.round(number)
    else:
        entropy = optax.softmax_cross_entropy_with_integer_labels(out, action)
        loss = entropy.mean()
        chosen = jnp.argmax(out, axis=-1)
    metrics = {
        "loss/actor": loss,
        "train/agreement": (chosen == action).mean(),
    }
    return loss, metrics


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    if dataset is not None:
        most = env.max_steps * dataset.reward.max()
        rlzoo.check(
            ~(jnp.asarray(config.target_return) > most),
            f"target_return={config.target_return} cannot be: {env.max_steps} steps of the data's "
            "highest reward make less; nan asks for the best return of the data",
        )

    # --- network, optimizer ---
    regress = env.discrete and config.loss == "mse"
    if env.discrete:
        outputs = 1 if regress else env.num_actions
    else:
        outputs = env.action_dim
    net = MLP(config.hidden, outputs)
    # One vector of all parameters: an update is then one fused loop.
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.flatten(optax.chain(decay, optax.scale_by_adam()))

    def inputs(scale, obs, to_go):
        """What the network sees: [..., obs_dim + 1]."""
        x = jnp.concatenate([env.flatten(obs), to_go[..., None]], axis=-1)
        return (x - scale.mean) / scale.std

    def init(key):
        net_key, data_key, key = jax.random.split(key, 3)
        # --- data ---
        own = recorded(env, data_key) if dataset is None else None
        data = own if dataset is None else dataset
        to_go = returns_to_go(data)
        best = to_go[data.starts[:-1]].max()
        wanted = jnp.asarray(config.target_return, jnp.float32)
        # --- scale of the inputs ---
        seen = jnp.concatenate([env.flatten(data.obs), to_go[:, None]], axis=-1)
        size = seen.shape[1]
        scale = Scale(jnp.zeros(size), jnp.ones(size))
        if config.normalize:
            scale = Scale(seen.mean(0), seen.std(0) + 1e-3)
        # --- policy ---
        params = net.init(net_key, seen[0])
        policy = Policy(
            params=params,
            scale=scale,
            target=jnp.where(jnp.isnan(wanted), best, wanted),
        )
        return State(
            policy=policy,
            opt_state=optimizer.init(params),
            own=own,
            to_go=to_go,
            key=key,
        )

    def step(state, t):
        # --- sample ---
        sample_key, key = jax.random.split(state.key)
        data = state.own if dataset is None else dataset
        index = draw(data, sample_key, config.batch_size)
        batch = rows(data, index)
        x = inputs(state.policy.scale, batch.obs, state.to_go[index])

        # --- gradient step ---
        params = state.policy.params
        grads, metrics = jax.grad(actor_loss, has_aux=True)(
            params, x, batch.action, net, env.discrete
        )
        directions, opt_state = optimizer.update(grads, state.opt_state, params)
        rate = config.learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * t / config.total_steps))
        updates = jax.tree.map(lambda x: -rate * x, directions)
        params = optax.apply_updates(params, updates)

        policy = state.policy._replace(params=params)
        metrics["train/target"] = rlzoo.last(policy.target)
        return state.replace(policy=policy, opt_state=opt_state, key=key), metrics

    def policy(state):
        return state.policy

    def memory(policy):
        """The return to go."""
        return policy.target

    def act(policy, memory, obs, reward, key):
        to_go = memory - reward
        x = inputs(policy.scale, obs, to_go)
        out = net.apply(policy.params, x)
        if not env.discrete:
            return jnp.clip(out, -1.0, 1.0), to_go
        if regress:
            number = jnp.round(out[..., 0]).astype(jnp.int32)
            return jnp.clip(number, 0, env.num_actions - 1), to_go
        return jnp.argmax(out, axis=-1), to_go

    return rlzoo.Algorithm(init, step, policy, act, memory=memory, updates_per_call=1)


if __name__ == "__main__":
    rlzoo.main(make, Config)
