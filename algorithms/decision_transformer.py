"""Decision Transformer: a causal transformer that is told the return to go, and gives actions.

Paper: Chen et al. 2021 (arXiv 2106.01345), algorithm 1; a baseline of Zhou et al. 2023 (arXiv
    2310.19308).
Kind: offline, sequence model, discrete and continuous
Run: python algorithms/decision_transformer.py --env point-maze --seeds 3
    As the baseline was coded, at a constant rate of learning_rate / warmup_steps:
    python algorithms/decision_transformer.py --env point-maze --width 128 --batch-size 256
    --learning-rate 6e-3 --released-rate
    Without --dataset, environments that have a script make the data.
Result: what single episodes of the data show; it does not stitch them
Metrics:
    loss/actor        squared error, or cross-entropy, of the data's actions
    train/agreement   share of the data's actions that are the policy's (discrete actions)
    train/target      the return that the policy is asked for
Deviations:
    No dropout. Returns to go are divided by the largest of the data.
    The rate rises linearly over `warmup_steps` and then stays.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo.dataset import Dataset, Stats, recorded, returns_to_go, stats, windows


@rlzoo.config
class Config:
    env: str = rlzoo.static("point-maze")
    """environment id, for evaluation"""
    total_steps: int = rlzoo.static(5_000, least=1)
    """gradient updates of each member"""
    batch_size: int = rlzoo.static(64, least=1)
    """windows in each update"""
    context: int = rlzoo.static(20, least=1)
    """steps that the policy sees, the present one included"""
    layers: int = rlzoo.static(3, least=1)
    """blocks of the transformer"""
    heads: int = rlzoo.static(1, least=1)
    """heads of its attention"""
    width: int = rlzoo.static(64, least=1)
    """numbers that stand for a token; a multiple of heads"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """AdamW's step size after the warm-up"""
    warmup_steps: int = rlzoo.static(500, least=1)
    """updates over which it rises, or what it is divided by under released_rate"""
    released_rate: bool = rlzoo.static(False)
    """never let it rise, as in the released code of the baseline"""
    weight_decay: float = rlzoo.traced(1e-4, least=0)
    """of AdamW"""
    max_grad_norm: float = rlzoo.traced(1.0, above=0)
    """where the norm of the gradient is clipped"""
    target_return: float = float("nan")
    """return to ask for in evaluation; nan: the best of the data"""


# ---- networks ------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention and a small network, each on normalized tokens: [n, tokens, width]."""

    heads: int

    @nn.compact
    def __call__(self, x, mask):
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.heads)
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        hidden = nn.LayerNorm()(x)
        hidden = nn.gelu(nn.Dense(4 * width)(hidden))
        return x + nn.Dense(width)(hidden)


class Transformer(nn.Module):
    """Actions, or logits, at every step of windows [n, context].

    Each step is three tokens: return to go, observation, action; the action is read off the second,
    which sees what came before it.
    """

    layers: int
    heads: int
    width: int
    outputs: int
    max_steps: int

    @nn.compact
    def __call__(self, window):
        # --- tokens ---
        time = nn.Embed(self.max_steps, self.width)(window.step)
        parts = (window.to_go[..., None], window.obs, window.action)
        tokens = [nn.Dense(self.width)(part) + time for part in parts]
        tokens = jnp.stack(tokens, axis=2)
        count, context = window.to_go.shape
        x = tokens.reshape(count, 3 * context, self.width)
        x = nn.LayerNorm()(x)
        # --- who sees whom ---
        real = jnp.repeat(window.mask, 3, axis=1)
        causal = jnp.tril(jnp.ones((3 * context, 3 * context), bool))
        alone = jnp.eye(3 * context, dtype=bool)
        mask = (causal & real[:, None, :]) | alone
        # --- blocks ---
        for _ in range(self.layers):
            x = Block(self.heads)(x, mask[:, None])
        # --- actions, off the observations' tokens ---
        x = nn.LayerNorm()(x).reshape(count, context, 3, self.width)
        return nn.Dense(self.outputs)(x[:, :, 1])


# ---- state ---------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Leading axes [n, context]; the newest step comes last."""

    obs: Any
    """standardized"""
    action: Any
    """[..., action_dim], or one-hot"""
    to_go: Any
    """divided by its largest"""
    step: Any
    """int32: steps since the start of the episode"""
    mask: Any
    """bool: False before the start"""


class Policy(NamedTuple):
    params: Any
    stats: Stats
    """of observations"""
    scale: Any
    """of returns"""
    target: Any
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


def actor_loss(params, window, action, net, discrete):
    """Mean over the real steps of how far the policy is from the data's actions.

    Continuous actions [n, context, action_dim]: squared error. Discrete ones [n, context]:
    cross-entropy.
    """
    out = net.apply(params, window)

    def mean(x):
        return (window.mask * x).sum() / window.mask.sum()

    # --- continuous ---
    if not discrete:
        error = (jnp.tanh(out) - action) ** 2
        loss = mean(error.mean(-1))
        return loss, {"loss/actor": loss}

    # --- discrete ---
    entropy = optax.softmax_cross_entropy_with_integer_labels(out, action)
    loss = mean(entropy)
    metrics = {
        "loss/actor": loss,
        "train/agreement": mean(jnp.argmax(out, axis=-1) == action),
    }
    return loss, metrics


# ---- algorithm -----------------------------------------------------------------------------------


def rate_at(t, config):
    """The step size of update t, counted from 0."""
    if config.released_rate:
        return config.learning_rate / config.warmup_steps
    risen = jnp.minimum((t + 1) / config.warmup_steps, 1.0)
    return config.learning_rate * risen


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    if config.width % config.heads:
        raise rlzoo.Refused(f"width={config.width} must be a multiple of heads={config.heads}")
    if dataset is not None:
        most = env.max_steps * dataset.reward.max()
        rlzoo.check(
            ~(jnp.asarray(config.target_return) > most),
            f"target_return={config.target_return} cannot be: {env.max_steps} steps of the data's "
            "highest reward make less; nan asks for the best return of the data",
        )

    # --- network, optimizer ---
    outputs = env.num_actions if env.discrete else env.action_dim
    net = Transformer(
        layers=config.layers,
        heads=config.heads,
        width=config.width,
        outputs=outputs,
        max_steps=env.max_steps,
    )
    # One vector of all parameters: an update is then a few fused loops.
    optimizer = optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adamw(1.0, weight_decay=config.weight_decay),
        )
    )

    def standardize(policy, obs):
        mean = env.flatten(policy.stats.mean)
        std = env.flatten(policy.stats.std)
        return (env.flatten(obs) - mean) / std

    def encode(action):
        return jax.nn.one_hot(action, outputs) if env.discrete else action

    def empty(count):
        """Windows that hold nothing yet."""
        shape = (count, config.context)
        obs_dim = env.flatten(jnp.zeros(env.obs_shape)).size
        return Window(
            obs=jnp.zeros((*shape, obs_dim)),
            action=jnp.zeros((*shape, outputs)),
            to_go=jnp.zeros(shape),
            step=jnp.zeros(shape, jnp.int32),
            mask=jnp.zeros(shape, bool),
        )

    def init(key):
        net_key, data_key, key = jax.random.split(key, 3)
        # --- data ---
        own = recorded(env, data_key) if dataset is None else None
        data = own if dataset is None else dataset
        to_go = returns_to_go(data)
        best = to_go[data.starts[:-1]].max()
        largest = jnp.abs(to_go).max()
        wanted = jnp.asarray(config.target_return, jnp.float32)
        # --- policy ---
        params = net.init(net_key, empty(1))
        policy = Policy(
            params=params,
            stats=stats(data, 1e-3),
            scale=jnp.maximum(largest, 1e-6),
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
        drawn = windows(data, sample_key, config.batch_size, config.context)
        policy = state.policy
        window = Window(
            obs=standardize(policy, drawn.batch.obs),
            action=encode(drawn.batch.action),
            to_go=state.to_go[drawn.index] / policy.scale,
            step=jnp.minimum(drawn.step, env.max_steps - 1),
            mask=drawn.mask,
        )

        # --- gradient step ---
        grads, metrics = jax.grad(actor_loss, has_aux=True)(
            policy.params, window, drawn.batch.action, net, env.discrete
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, policy.params)
        rate = rate_at(t, config)
        updates = jax.tree.map(lambda x: rate * x, updates)
        params = optax.apply_updates(policy.params, updates)
        policy = policy._replace(params=params)
        metrics["train/target"] = rlzoo.last(policy.target)
        return state.replace(policy=policy, opt_state=opt_state, key=key), metrics

    def policy(state):
        return state.policy

    def memory(policy):
        """The window of the latest steps, the return to go, and the steps made."""
        return empty(1), policy.target, jnp.int32(0)

    def act(policy, memory, obs, reward, key):
        window, to_go, time = memory
        # --- the window, one step on ---
        to_go = to_go - reward
        now = Window(
            obs=standardize(policy, obs),
            action=jnp.zeros(outputs),
            to_go=to_go / policy.scale,
            step=jnp.minimum(time, env.max_steps - 1),
            mask=jnp.bool_(True),
        )

        def shift(x, new):
            return jnp.roll(x, -1, axis=1).at[0, -1].set(new)

        window = jax.tree.map(shift, window, now)
        # --- act, and remember the action ---
        out = net.apply(policy.params, window)[0, -1]
        action = jnp.argmax(out) if env.discrete else jnp.tanh(out)
        taken = window.action.at[0, -1].set(encode(action))
        window = window._replace(action=taken)
        return action, (window, to_go, time + 1)

    return rlzoo.Algorithm(init, step, policy, act, memory=memory, updates_per_call=1)


if __name__ == "__main__":
    rlzoo.main(make, Config)
