"""PQN: parallelised Q-learning with neither replay nor target network, and with every value loss of
hl_gauss.py.

Paper: Gallici et al. 2024 (arXiv 2407.04811), algorithm 1: many environments stepped
epsilon-greedily, lambda-returns of short rollouts as targets, LayerNorm for stability. Its loss is
`mse`; hl_gauss.py explains the others:

    mse          half the squared error of a scalar
    hl_gauss     cross-entropy to a Gaussian around the target (arXiv 2403.03950, section 3.1)
    two_hot      cross-entropy to the two atoms next to the target
    c51          cross-entropy to the distribution of the lambda-return, mixed and projected step by step
    mse_softmax  half the squared error of the categorical's mean

Run:    python algorithms/pqn.py --env CartPole-v1 --seeds 8
        python algorithms/pqn.py --env Breakout-MinAtar --total-steps 10_000_000 --num-envs 128
        --num-steps 32 \
            --minibatches 32 --epochs 2 --hidden 128 --td-lambda 0.65 --epsilon-end 0.05
            --epsilon-fraction 0.1
Expect: a return of 500 on CartPole within 500,000 steps

Metrics: `loss/td` is half the squared error, or KL(target || prediction) in nats; `q` the mean
value of the actions taken; `entropy` that of their distributions (nats): averages over all
minibatches. `clipped` is the share of targets outside [v_min, v_max], `near_edge` of those there or
within 3 sigma of its ends; `target_max` the largest |target| of a rollout; `epsilon` the share of
random actions.

Where it departs from the paper: truncated episodes bootstrap from the true successor; images are
not divided by 255; a 3x3 convolution is one matrix product over patches. C51 with lambda-returns is
not in the paper: projecting at every step keeps the mean and blurs the distribution, the more the
longer the rollout and the larger lambda.
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
from jax.scipy.special import entr, erf

import rlzoo
from rlzoo.env import EnvState, done


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(32)
    """environments stepped together"""
    num_steps: int = rlzoo.static(64)
    """steps in each environment between updates"""
    epochs: int = rlzoo.static(4)
    """passes over each rollout"""
    minibatches: int = rlzoo.static(16)
    """minibatches in each pass"""
    loss: str = rlzoo.static("mse")
    """mse, hl_gauss, two_hot, c51 or mse_softmax"""
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
    hidden: tuple[int, ...] = rlzoo.static((128, 128))
    """widths of the hidden layers"""
    channels: int = rlzoo.static(16)
    """channels of a 3x3 convolution before them, where observations are images; 0: none"""
    width: int = rlzoo.static(1)
    """multiplies the hidden layers' widths and the channels"""
    bf16: bool = rlzoo.static(False)
    """compute the layers before the head in bfloat16; all else, targets above all, stays in
    float32"""
    learning_rate: float = 5e-4
    """RAdam's step size at the start"""
    anneal: bool = rlzoo.static(True)
    """let the learning rate fall linearly to zero"""
    adam_eps: float = 1e-8
    """RAdam's epsilon"""
    max_grad_norm: float = 10.0
    """gradients are scaled down to this global norm"""
    discount: float = 0.99
    """gamma"""
    td_lambda: float = 0.9
    """lambda of the returns"""
    epsilon_start: float = 1.0
    """share of random actions at the start"""
    epsilon_end: float = 0.1
    """share of random actions at the end"""
    epsilon_fraction: float = 0.2
    """part of the run over which it falls, linearly"""


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
    dtype: Any
    bias_init: Callable

    @nn.compact
    def __call__(self, x):
        dense = lambda width, x: nn.relu(
            nn.LayerNorm(dtype=self.dtype)(
                nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x)
            )
        )
        if self.channels:
            x = dense(self.channels, patches(x)).reshape(*x.shape[:-3], -1)
        for width in self.widths:
            x = dense(width, x)
        return nn.Dense(self.out, bias_init=self.bias_init)(x.astype(jnp.float32))


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    params: Any


@struct.dataclass
class State:
    params: Any
    opt_state: Any
    env: EnvState
    key: jax.Array


class Batch(NamedTuple):
    """Leading axis: samples."""

    obs: Any
    action: jax.Array
    target: jax.Array
    """values [n] (mse, mse_softmax) or distributions [n, bins]"""


# ---- losses --------------------------------------------------------------------------------------

LOSSES = ("mse", "hl_gauss", "two_hot", "c51", "mse_softmax")


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


def greedy(out, config):
    """The best actions [...] and their values [...]; for C51 the distributions of these [...,
    bins]."""
    q = decode(out, config)
    action = jnp.argmax(q, -1)
    if config.loss != "c51":
        return action, q.max(-1)
    return action, jax.nn.softmax(jnp.take_along_axis(out, action[..., None, None], -2)[..., 0, :])


def lambda_returns(reward, next_value, terminated, done, config):
    """Targets [length, num_envs], or for C51 their distributions [length, num_envs, bins], as
    `next_value` is.

    G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1})
    (section 4), s_{t+1} being the true successor; lambda is 0 where the episode is done, so that a
    truncated one still bootstraps. Distributions are mixed, moved and projected likewise.
    """

    def body(after, x):
        reward, next_value, discount, lam = x
        lam = lam.reshape(lam.shape + (1,) * (after.ndim - lam.ndim))
        mixed = (1.0 - lam) * next_value + lam * after
        target = (
            project(mixed, reward, discount, config)
            if after.ndim > reward.ndim
            else reward + discount * mixed
        )
        return target, target

    xs = (reward, next_value, config.discount * (1.0 - terminated), config.td_lambda * (1.0 - done))
    return jax.lax.scan(body, next_value[-1], xs, reverse=True)[1]


def td_loss(params, batch, net, config):
    """One of `LOSSES` for the actions taken. `net(params, obs)` gives values [n, num_actions] (mse)
    or logits [n, num_actions, bins]. Also returns metrics."""
    out = taken(net(params, batch.obs), batch.action)
    value = decode(out, config)
    squared = config.loss in ("mse", "mse_softmax")
    loss = (0.5 * (value - batch.target) ** 2 if squared else kl(batch.target, out)).mean()
    metrics = {"loss/td": loss, "q": value.mean()}
    return loss, metrics if config.loss == "mse" else metrics | {
        "entropy": entr(jax.nn.softmax(out)).sum(-1).mean()
    }


def describe(target, config):
    """Metrics: how the scalar targets fit the range."""
    margin = 3.0 * config.sigma_ratio * centres(config)[1]
    return {
        "clipped": ((target < config.v_min) | (target > config.v_max)).mean(),
        "near_edge": ((target < config.v_min + margin) | (target > config.v_max - margin)).mean(),
        "target_max": jnp.abs(target).max(),
    }


def shuffles(key, count, size):
    """`count` random orders of range(size), [count, size]: sorts random numbers whose low bits are
    the index.

    One sort of single words is several times faster on a CPU than `jax.random.permutation`.
    """
    low = jnp.uint32(2 ** (size - 1).bit_length() - 1)
    bits = jax.random.bits(key, (count, size))
    return (jax.lax.sort((bits & ~low) | jnp.arange(size, dtype=jnp.uint32)) & low).astype(
        jnp.int32
    )


# ---- algorithm -----------------------------------------------------------------------------------


def check(config, env):
    """Refuse what makes no sense; of floats, what is known where they are traced. Returns whether
    to convolve."""
    size = config.num_envs * config.num_steps
    if size % config.minibatches:
        raise rlzoo.Refused(
            f"minibatches={config.minibatches} does not divide num_envs * num_steps = {size}"
        )
    if config.loss not in LOSSES:
        raise rlzoo.Refused.unknown("--loss", config.loss, LOSSES)
    for name, low in (("bins", 2), ("channels", 0), ("width", 1)):
        if getattr(config, name) < low:
            raise rlzoo.Refused(f"{name}={getattr(config, name)} must be at least {low}")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(config)):
        if not config.v_min < config.v_max:
            raise rlzoo.Refused(f"v_min={config.v_min} must be less than v_max={config.v_max}")
        if not config.sigma_ratio > 0:
            raise rlzoo.Refused(f"sigma_ratio={config.sigma_ratio} must be more than 0")
    conv = config.channels > 0 and len(env.obs_shape) == 3 and min(env.obs_shape[:2]) >= 3
    return conv


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    conv = check(config, env)
    size = config.num_envs * config.num_steps
    shape = (env.num_actions,) if config.loss == "mse" else (env.num_actions, config.bins)
    net = Network(
        widths=tuple(width * config.width for width in config.hidden),
        out=int(np.prod(shape)),
        channels=config.channels * config.width if conv else 0,
        dtype=jnp.bfloat16 if config.bf16 else None,
        bias_init=lambda key, size, dtype: first_bias(config, shape).reshape(size),
    )
    see = lambda obs: obs if conv else obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)

    def apply(params, obs):
        out = net.apply(params, see(obs))
        return out.reshape(*out.shape[:-1], *shape)

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_radam(eps=config.adam_eps)
    )
    calls = -(-config.total_steps // size)
    updates = config.epochs * config.minibatches

    def init(key):
        net_key, env_key, key = jax.random.split(key, 3)
        params = net.init(net_key, see(jnp.zeros(env.obs_shape)))
        return State(
            params,
            optimizer.init(ravel_pytree(params)[0]),
            env.reset(env_key, config.num_envs),
            key,
        )

    def collect(state, random_key, explore_key, env_key, t):
        """Roll out epsilon-greedily, and look back over the rollout for its targets."""
        progress = jnp.minimum(t / jnp.maximum(calls * config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + progress * (config.epsilon_end - config.epsilon_start)
        random = jax.random.randint(
            random_key, (config.num_steps, config.num_envs), 0, env.num_actions
        )
        explore = jax.random.uniform(explore_key, random.shape) < epsilon

        def choose(carry, obs, x):
            best, value = greedy(apply(state.params, obs), config)
            return carry, jnp.where(x[0], x[1], best), value

        env_state, _, steps, value, metrics = env.rollout(
            state.env, choose, None, (explore, random), env_key, config.num_steps, t
        )
        judge = lambda obs: greedy(apply(state.params, obs), config)[1]
        next_value = env.successor_values(value, steps, judge)
        back = lambda value: lambda_returns(
            steps.reward, value, steps.terminated, done(steps), config
        )
        if config.loss == "c51":
            target, returns = back(next_value), back((next_value * centres(config)[0]).sum(-1))
        else:
            returns = back(next_value)
            target = encode(returns, config)
        batch = jax.tree.map(
            lambda x: x.reshape(size, *x.shape[2:]), Batch(steps.obs, steps.action, target)
        )
        return (
            state.replace(env=env_state),
            batch,
            metrics | {"epsilon": epsilon} | describe(returns, config),
        )

    def step(state, t):
        *collect_keys, shuffle_key, key = jax.random.split(state.key, 5)
        state, batch, metrics = collect(state, *collect_keys, t)
        params, unravel = ravel_pytree(
            state.params
        )  # one vector: an optimiser step is then a few fused loops

        def update(carry, rows):
            params, opt_state, count = carry
            minibatch = jax.tree.map(lambda x: x[rows], batch)
            objective = lambda p: td_loss(unravel(p), minibatch, apply, config)
            grads, metrics = jax.grad(objective, has_aux=True)(params)
            direction, opt_state = optimizer.update(grads, opt_state)
            rate = config.learning_rate * (
                1.0 - count / (calls * updates) if config.anneal else 1.0
            )
            return (params - rate * direction, opt_state, count + 1), metrics

        rows = shuffles(shuffle_key, config.epochs, size).reshape(updates, -1)
        (params, opt_state, _), losses = jax.lax.scan(
            update, (params, state.opt_state, t * updates), rows
        )
        metrics |= jax.tree.map(jnp.mean, losses)
        return state.replace(params=unravel(params), opt_state=opt_state, key=key), metrics

    def act(policy, obs, key):
        return greedy(apply(policy.params, obs), config)[0]

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params),
        act,
        steps_per_call=size,
        updates_per_call=updates,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
