"""Offline DQN: double DQN with the CQL regulariser on a recorded data set, with every value loss of
hl_gauss.py.

Papers: Kumar et al. 2020 (arXiv 2006.04779), whose discrete CQL(H) is the loss here: the
temporal-difference error plus alpha * mean(logsumexp_a Q(s, a) - Q(s, a_data)), Q being the decoded
values under every loss, as in Farebrother et al. 2024 (arXiv 2403.03950, section 4.1.1); double:
van Hasselt et al. 2016 (arXiv 1509.06461, equation 4). What bootstraps is the action that the
online network would choose (`q_learning`), or the one that the data took next (`sarsa`, section
4.3.2 of the second). hl_gauss.py explains the losses hl_gauss, two_hot, c51, mse and mse_softmax.

Run:    python algorithms/dqn.py --env CartPole-v1 --total-steps 100_000 --buffer-size 100_000 --out runs/dqn
        rlzoo data collect runs/dqn --replay --out cartpole.npz        (or --episodes 100)
        python algorithms/offline_dqn.py --env CartPole-v1 --dataset cartpole.npz --seeds 8
Expect: on a DQN's replay of Breakout-MinAtar, 7.9 with mse and 7.5 with hl_gauss after 20,000
        updates, where the data's episodes have 2.2 on average (results/value_loss/noise)

The range [v_min, v_max] has to hold the discounted returns, and 3 sigma more at both ends: watch
`clipped`.

Metrics: `loss/td` is the squared error, or KL(target || prediction) in nats; `loss/cql` the
regulariser before its factor alpha; `q` the mean value of the data's actions; `agreement` the share
of them that are greedy; `kept` the share of samples that count; `clipped` the share of targets
outside the range, `near_edge` of those there or within 3 sigma of its ends; `target_max` the
largest |target| of a batch; `entropy` that of the predicted distributions (nats). All are of this
chunk's batches. Steps are gradient updates.

Where it departs from the papers: equation 2.4 of the second prints the successor in the
regulariser, which holds at the observation itself; a sample whose next action was not recorded,
because the episode was cut there, is left out under `sarsa`; networks are of MinAtar's size; for
the rest see hl_gauss.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.flatten_util import ravel_pytree
from jax.scipy.special import entr, erf, logsumexp

import rlzoo
from rlzoo.dataset import draw, rows
from rlzoo.env import Transition


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id, for evaluation"""
    total_steps: int = rlzoo.static(50_000)
    """gradient updates of each member"""
    loss: str = rlzoo.static("hl_gauss")
    """hl_gauss, two_hot, c51, mse or mse_softmax"""
    target: str = rlzoo.static("q_learning")
    """q_learning: bootstrap from the best action; sarsa: from the one that the data took next"""
    double: bool = rlzoo.static(True)
    """let the online network choose the best action, which the target network judges"""
    cql_alpha: float = 0.1
    """factor of the regulariser"""
    bins: int = rlzoo.static(51)
    """bins, or atoms, of the distribution of a value"""
    v_min: float = -120.0
    """lowest value that the bins can hold"""
    v_max: float = 120.0
    """highest value that the bins can hold"""
    sigma_ratio: float = 0.75
    """standard deviation of HL-Gauss in widths of a bin; below 0.5 it biases the values"""
    widen: bool = rlzoo.static(True)
    """HL-Gauss's outer bins reach half a bin beyond the range; otherwise they end with it, as in
    its paper"""
    hidden: tuple[int, ...] = rlzoo.static((120, 84))
    """widths of the hidden layers"""
    channels: int = rlzoo.static(16)
    """channels of a 3x3 convolution before them, where observations are images; 0: none"""
    width: int = rlzoo.static(1)
    """multiplies the hidden layers' widths and the channels"""
    batch_size: int = rlzoo.static(128)
    """transitions in each update"""
    target_every: int = rlzoo.static(500)
    """updates between copies to the target network"""
    learning_rate: float = 2.5e-4
    """Adam's step size"""
    adam_eps: float = 1e-8
    """Adam's epsilon; the paper's 3.1e-4"""
    discount: float = 0.99
    """gamma"""


# ---- networks ------------------------------------------------------------------------------------


def patches(x):
    """The 3x3 patches of images [..., h, w, c]: [..., h - 2, w - 2, 9 c]. A dense layer on them is
    a convolution."""
    h, w = x.shape[-3] - 2, x.shape[-2] - 2
    return jnp.concatenate(
        [x[..., i : i + h, j : j + w, :] for i in range(3) for j in range(3)], -1
    )


class Network(nn.Module):
    widths: tuple[int, ...]
    out: int
    channels: int
    bias_init: Callable

    @nn.compact
    def __call__(self, x):
        if self.channels:
            x = nn.relu(nn.Dense(self.channels)(patches(x))).reshape(*x.shape[:-3], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.out, bias_init=self.bias_init)(x)


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    params: Any


@struct.dataclass
class State:
    params: Any
    target_params: Any
    opt_state: Any
    key: jax.Array


class Sample(NamedTuple):
    batch: Transition
    """leaves [n, ...]"""
    next_action: jax.Array
    """int32 [n]: what the data took at next_obs; any action where there was none"""
    kept: jax.Array
    """float32 [n]: 0 where the target cannot be known"""


# ---- losses --------------------------------------------------------------------------------------

LOSSES = ("hl_gauss", "two_hot", "c51", "mse", "mse_softmax")
TARGETS = ("q_learning", "sarsa")


def centres(config):
    """The values [bins] that the bins stand for, and their spacing."""
    gaps = config.bins - 1 if config.widen or config.loss in ("two_hot", "c51") else config.bins
    width = (config.v_max - config.v_min) / gaps
    inset = 0.5 * width * (gaps - config.bins + 1)
    return jnp.linspace(
        config.v_min + inset, config.v_max - inset, config.bins, dtype=jnp.float32
    ), width


def decode(out, config):
    """Values [...] of a network's output: themselves [...], or the means of the distributions of
    logits [..., bins]."""
    return out if config.loss == "mse" else (jax.nn.softmax(out) * centres(config)[0]).sum(-1)


def two_hot(y, config):
    """The scalars y [...] as mass on the two nearest atoms [..., bins], with mean y clipped to the
    range."""
    z, width = centres(config)
    place = (jnp.clip(y, z[0], z[-1]) - z[0]) / width
    return jnp.maximum(1.0 - jnp.abs(place[..., None] - jnp.arange(config.bins)), 0.0)


def hl_gauss(y, config):
    """The scalars y [...], clipped to the range, as the mass [..., bins] of a Gaussian around them
    in each bin."""
    z, width = centres(config)
    edges = jnp.append(z - 0.5 * width, z[-1] + 0.5 * width)
    y = jnp.clip(y, config.v_min, config.v_max)
    cdf = erf((edges - y[..., None]) / (2.0**0.5 * config.sigma_ratio * width))
    return jnp.maximum(jnp.diff(cdf), 0.0) / (cdf[..., -1:] - cdf[..., :1])


def encode(y, config):
    """What scalar targets y [...] are learnt as: distributions [..., bins], or themselves where
    errors are squared."""
    if config.loss == "two_hot":
        return two_hot(y, config)
    return hl_gauss(y, config) if config.loss == "hl_gauss" else y


def project(probs, reward, discount, config):
    """The distribution of reward + discount z with z ~ probs [n, bins], brought back onto the
    atoms: [n, bins].

    Bellemare et al. 2017 (arXiv 1707.06887), equation 7: each atom's mass is divided as by
    `two_hot`.
    """
    moved = two_hot(reward[:, None] + discount[:, None] * centres(config)[0], config)
    return jnp.einsum("nj,nji->ni", probs, moved, precision="highest")


def first_bias(config, shape):
    """The head's bias at the start [num_actions (, bins)]: zeros, except where uniform
    distributions over a range that is not symmetric would decode to its middle; there the values
    start at 0 too."""
    if config.loss == "mse":
        return jnp.zeros(shape)
    off = jnp.abs(config.v_min + config.v_max) > 1e-3 * (config.v_max - config.v_min)
    bias = jnp.log(jnp.maximum(hl_gauss(jnp.zeros(()), config), 1e-6))
    return jnp.broadcast_to(jnp.where(off, bias, 0.0), shape)


def kl(target, logits):
    """KL(target || softmax(logits)) in nats [...]: its gradient is that of the cross-entropy,
    softmax - target."""
    return -(entr(target) + target * jax.nn.log_softmax(logits)).sum(-1)


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    return jnp.take_along_axis(x, action.reshape(-1, *[1] * (x.ndim - 1)), 1)[:, 0]


def cql_loss(q, action):
    """How far the values q [n, num_actions] of all actions are above those of the data's [n]: [n],
    at least 0.

    Kumar et al. 2020, equation 4 with its action distribution maximised out: logsumexp_a Q(s, a) -
    Q(s, a_data). Its gradient is softmax(q) less the data's action, one-hot.
    """
    return logsumexp(q, -1) - taken(q, action)


def td_loss(params, target_params, sample, net, config):
    """One of `LOSSES` for the data's actions, plus the regulariser; means over the samples kept.

    `net(params, obs)` gives values [n, num_actions] (mse) or logits [n, num_actions, bins]. Also
    returns metrics.
    """
    batch, discount = sample.batch, config.discount * (1.0 - sample.batch.terminated)
    next_out = jax.lax.stop_gradient(net(target_params, batch.next_obs))
    next_q, choice = decode(next_out, config), sample.next_action
    if config.target == "q_learning":
        choice = jnp.argmax(
            decode(net(params, batch.next_obs), config) if config.double else next_q, -1
        )
    target = batch.reward + discount * taken(next_q, choice)
    everything = net(params, batch.obs)
    q, out = decode(everything, config), taken(everything, batch.action)
    value = taken(q, batch.action)
    goal = encode(target, config)
    if config.loss == "c51":
        goal = project(jax.nn.softmax(taken(next_out, choice)), batch.reward, discount, config)
    squared = config.loss in ("mse", "mse_softmax")
    mean = lambda x: (sample.kept * x).sum() / jnp.maximum(sample.kept.sum(), 1.0)
    td, cql = (
        mean((value - target) ** 2 if squared else kl(goal, out)),
        mean(cql_loss(q, batch.action)),
    )
    margin = 3.0 * config.sigma_ratio * centres(config)[1]
    metrics = {
        "loss/td": td,
        "loss/cql": cql,
        "q": mean(value),
        "agreement": mean(jnp.argmax(q, -1) == batch.action),
        "kept": sample.kept.mean(),
        "clipped": mean((target < config.v_min) | (target > config.v_max)),
        "near_edge": mean((target < config.v_min + margin) | (target > config.v_max - margin)),
        "target_max": jnp.abs(sample.kept * target).max(),
    }
    if config.loss != "mse":
        metrics["entropy"] = mean(entr(jax.nn.softmax(out)).sum(-1))
    return td + config.cql_alpha * cql, metrics


# ---- algorithm -----------------------------------------------------------------------------------


def check(config, env, dataset):
    """Refuse what makes no sense; of floats, what is known where they are traced. Returns whether
    to convolve."""
    if dataset is None:
        raise rlzoo.Refused(
            "offline_dqn learns from a data set and none was given: --dataset FILE "
            "(rlzoo data collect RUN --replay --out FILE records one)"
        )
    if not dataset.discrete or dataset.obs.shape[1:] != env.obs_shape:
        raise rlzoo.Refused(
            f"the data set has obs {list(dataset.obs.shape[1:])} and actions "
            f"{dataset.action.dtype}{list(dataset.action.shape[1:])}, but {env.id} has obs "
            f"{list(env.obs_shape)} and {env.num_actions} discrete actions"
        )
    if config.loss not in LOSSES:
        raise rlzoo.Refused.unknown("--loss", config.loss, LOSSES)
    if config.target not in TARGETS:
        raise rlzoo.Refused.unknown("--target", config.target, TARGETS)
    for name, low in (
        ("bins", 2),
        ("channels", 0),
        ("width", 1),
        ("batch_size", 1),
        ("target_every", 1),
    ):
        if getattr(config, name) < low:
            raise rlzoo.Refused(f"{name}={getattr(config, name)} must be at least {low}")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(config)):
        if not config.v_min < config.v_max:
            raise rlzoo.Refused(f"v_min={config.v_min} must be less than v_max={config.v_max}")
        if not config.sigma_ratio > 0:
            raise rlzoo.Refused(f"sigma_ratio={config.sigma_ratio} must be more than 0")
        if config.cql_alpha < 0:
            raise rlzoo.Refused(f"cql_alpha={config.cql_alpha} must be at least 0")
    return config.channels > 0 and len(env.obs_shape) == 3 and min(env.obs_shape[:2]) >= 3


def sample(dataset, key, n, target):
    """n rows, drawn with replacement. The next action is that of the row after, which is the same
    episode's unless this row ends it: a terminated row needs none, a truncated one has none and is
    not kept under `sarsa`."""
    index = draw(dataset, key, n)
    batch = rows(dataset, index)
    kept = jnp.ones(n) if target == "q_learning" else 1.0 - batch.truncated
    return Sample(batch, dataset.action[jnp.minimum(index + 1, len(dataset) - 1)], kept)


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    conv = check(config, env, dataset)
    shape = (env.num_actions,) if config.loss == "mse" else (env.num_actions, config.bins)
    net = Network(
        widths=tuple(width * config.width for width in config.hidden),
        out=int(np.prod(shape)),
        channels=config.channels * config.width if conv else 0,
        bias_init=lambda key, size, dtype: first_bias(config, shape).reshape(size),
    )
    see = lambda obs: obs if conv else obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)

    def apply(params, obs):
        out = net.apply(params, see(obs))
        return out.reshape(*out.shape[:-1], *shape)

    optimizer = optax.scale_by_adam(eps=config.adam_eps)

    def init(key):
        net_key, key = jax.random.split(key)
        params = net.init(net_key, see(jnp.zeros(env.obs_shape)))
        return State(params, params, optimizer.init(ravel_pytree(params)[0]), key)

    def step(state, t):
        sample_key, key = jax.random.split(state.key)
        drawn = sample(dataset, sample_key, config.batch_size, config.target)
        vector, unravel = ravel_pytree(
            state.params
        )  # one vector: an optimiser step is then one fused loop
        objective = lambda p: td_loss(unravel(p), state.target_params, drawn, apply, config)
        grads, metrics = jax.grad(objective, has_aux=True)(vector)
        direction, opt_state = optimizer.update(grads, state.opt_state)
        params = unravel(vector - config.learning_rate * direction)
        target_params = jax.lax.cond(
            (t + 1) % config.target_every == 0, lambda: params, lambda: state.target_params
        )
        return State(params, target_params, opt_state, key), metrics

    def act(policy, obs, key):
        return jnp.argmax(decode(apply(policy.params, obs), config), -1)

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params),
        act,
        steps_per_call=1,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
