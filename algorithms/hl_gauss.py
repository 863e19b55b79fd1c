"""HL-Gauss: DQN whose values are learnt by classification instead of regression, beside the losses
it is compared with.

Paper: Farebrother et al. 2024, "Stop Regressing" (arXiv 2403.03950). A value is the mean of a
categorical distribution over bins; its target is the Bellman target, smoothed by a Gaussian into a
histogram. All but the loss is dqn.py, and `--loss mse` gives its numbers bit for bit.

    hl_gauss     cross-entropy to a Gaussian around the target (section 3.1)
    two_hot      cross-entropy to the two atoms next to the target (section 3.1)
    c51          cross-entropy to the distribution of the return (section 3.2; arXiv 1707.06887, algorithm 1)
    mse          squared error of a scalar (equation 2.1)
    mse_softmax  squared error of the categorical's mean: the parameterisation without the loss (section 4)

Run:    python algorithms/hl_gauss.py --env CartPole-v1 --seeds 8 --learning-rate 1e-3
        python algorithms/hl_gauss.py --env Breakout-MinAtar --hidden 128 --v-min -1 --v-max 19
Expect: a return of 500 on CartPole within 500,000 steps (results/baselines); what it gains:
results/value_loss

The range [v_min, v_max] is what has to fit: the discounted returns, and 3 sigma more at both ends.
Watch `clipped`. Where 0 is not its middle, the head's bias is set so that values start at 0
nevertheless.

Metrics: `loss/td` is the squared error, or KL(target || prediction) in nats: the cross-entropy less
what no prediction can remove; `q` the mean value of the actions taken; `entropy` that of their
distributions (nats); `clipped` the share of targets outside the range, `near_edge` of those there
or within 3 sigma of its ends; `target_max` the largest |target| of a batch; `epsilon` the share of
random actions. All but the last are of this chunk's batches.

Where it departs from the paper: bins are centred on the atoms of the other losses, so that all
decode alike (`--no-widen`: the paper's bins); targets are clipped to the range, since 5.3 sigma
outside of it they would be NaN; two-hot weights are those that keep the mean, which equation 3.2
has the other way round; networks are of MinAtar's size. A 3x3 convolution is one matrix product
over patches, several times faster on a CPU.
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
from rlzoo.env import EnvState


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(10)
    """environments stepped together; each such step is followed by one update"""
    loss: str = rlzoo.static("hl_gauss")
    """hl_gauss, two_hot, c51, mse or mse_softmax"""
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
    the paper"""
    hidden: tuple[int, ...] = rlzoo.static((120, 84))
    """widths of the hidden layers"""
    channels: int = rlzoo.static(16)
    """channels of a 3x3 convolution before them, where observations are images; 0: none"""
    width: int = rlzoo.static(1)
    """multiplies the hidden layers' widths and the channels"""
    experts: int = rlzoo.static(0)
    """experts of a SoftMoE in place of the hidden layer after the convolution; 0: none"""
    bf16: bool = rlzoo.static(False)
    """compute the layers before the head in bfloat16; all else, targets above all, stays in
    float32"""
    buffer_size: int = rlzoo.static(10_000)
    """transitions kept; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(1_000)
    """environment steps before the first update"""
    target_every: int = rlzoo.static(500)
    """environment steps between copies to the target network"""
    learning_rate: float = 2.5e-4
    """Adam's step size"""
    adam_eps: float = 1e-8
    """Adam's epsilon; the paper's 3.1e-4 for cross-entropy and 1.5e-4 for mse"""
    discount: float = 0.99
    """gamma"""
    epsilon_start: float = 1.0
    """share of random actions at the start"""
    epsilon_end: float = 0.05
    """share of random actions at the end"""
    epsilon_fraction: float = 0.5
    """part of the run over which it falls, linearly"""
    double: bool = rlzoo.static(False)
    """let the online network choose the action that the target network judges"""
    n_step: int = rlzoo.static(1)
    """rewards summed in each target"""
    prioritised: bool = rlzoo.static(False)
    """draw transitions in proportion to their last error, that of the decoded value"""
    priority_alpha: float = 0.6
    """exponent of the priorities"""
    priority_beta: float = 0.4
    """exponent of the importance weights at the start; it rises linearly to 1"""


# ---- networks ------------------------------------------------------------------------------------


def patches(x):
    """The 3x3 patches of images [..., h, w, c]: [..., h - 2, w - 2, 9 c]. A dense layer on them is
    a convolution."""
    h, w = x.shape[-3] - 2, x.shape[-2] - 2
    return jnp.concatenate(
        [x[..., i : i + h, j : j + w, :] for i in range(3) for j in range(3)], -1
    )


class Expert(nn.Module):
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(hidden)


class SoftMoE(nn.Module):
    """Tokens [..., n, d] to tokens (arXiv 2308.00951, section 2.1), with ceil(n / experts) slots
    for each expert; in place of a Q-network's last hidden layer as in arXiv 2402.08609."""

    experts: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        slots = -(-x.shape[-2] // self.experts)
        routes = nn.Dense(self.experts * slots, use_bias=False, dtype=self.dtype)(x)
        dispatch, combine = jax.nn.softmax(routes, -2), jax.nn.softmax(routes, -1)
        mixed = jnp.einsum("...td,...ts->...sd", x, dispatch)
        each = nn.vmap(
            Expert,
            in_axes=-3,
            out_axes=-3,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        out = each(self.hidden, self.dtype)(
            mixed.reshape(*mixed.shape[:-2], self.experts, slots, -1)
        )
        return jnp.einsum("...sd,...ts->...td", out.reshape(mixed.shape), combine)


class Network(nn.Module):
    widths: tuple[int, ...]
    out: int
    channels: int
    experts: int
    dtype: Any
    bias_init: Callable

    @nn.compact
    def __call__(self, x):
        lead, widths = x.shape[:-3], self.widths
        if self.channels:
            x = nn.relu(nn.Dense(self.channels, dtype=self.dtype)(patches(x)))
        if self.experts:
            x, widths = (
                SoftMoE(self.experts, widths[0], self.dtype)(x.reshape(*lead, -1, self.channels)),
                (),
            )
        if self.channels:
            x = x.reshape(*lead, -1)
        for width in widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.out, bias_init=self.bias_init)(x.astype(jnp.float32))


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    params: Any


@struct.dataclass
class State:
    params: Any
    target_params: Any
    opt_state: Any
    env: EnvState
    buffer: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------

LOSSES = ("hl_gauss", "two_hot", "c51", "mse", "mse_softmax")


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


def td_loss(params, target_params, sample, net, config):
    """One of `LOSSES` for the actions taken, weighted where replay is prioritised; the target is
    that of dqn.py.

    `net(params, obs)` gives values [n, num_actions] (mse) or logits [n, num_actions, bins]. Also
    returns the errors [n] of the decoded values, and metrics.
    """
    batch, discount = sample.batch, sample.discount * (1.0 - sample.batch.terminated)
    next_out = jax.lax.stop_gradient(net(target_params, batch.next_obs))
    next_q = decode(next_out, config)
    choice = jnp.argmax(
        decode(net(params, batch.next_obs), config) if config.double else next_q, -1
    )
    target = batch.reward + discount * taken(next_q, choice)
    out = taken(net(params, batch.obs), batch.action)
    value = decode(out, config)
    error = value - target
    goal = encode(target, config)
    if config.loss == "c51":
        goal = project(jax.nn.softmax(taken(next_out, choice)), batch.reward, discount, config)
    squared = config.loss in ("mse", "mse_softmax")
    loss = error**2 if squared else kl(goal, out)
    loss = (sample.weight * loss).mean()
    return loss, (error, {"loss/td": loss, "q": value.mean()} | describe(out, target, config))


def describe(out, target, config):
    """Metrics: how the targets [n] fit the range, and the entropy of the predicted distributions,
    if there are any."""
    margin = 3.0 * config.sigma_ratio * centres(config)[1]
    metrics = {
        "clipped": ((target < config.v_min) | (target > config.v_max)).mean(),
        "near_edge": ((target < config.v_min + margin) | (target > config.v_max - margin)).mean(),
        "target_max": jnp.abs(target).max(),
    }
    return (
        metrics
        if config.loss == "mse"
        else metrics | {"entropy": entr(jax.nn.softmax(out)).sum(-1).mean()}
    )


# ---- algorithm -----------------------------------------------------------------------------------


def check(config, env):
    """Refuse what makes no sense; of floats, what is known where they are traced. Returns whether
    to convolve."""
    if config.batch_size > config.buffer_size:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than buffer_size={config.buffer_size}"
        )
    if config.learning_starts < config.n_step * config.num_envs:
        raise rlzoo.Refused(
            f"learning_starts={config.learning_starts} leaves nothing to learn from; at least "
            f"n_step * num_envs = {config.n_step * config.num_envs} steps are needed"
        )
    if config.loss not in LOSSES:
        raise rlzoo.Refused.unknown("--loss", config.loss, LOSSES)
    for name, low in (("bins", 2), ("channels", 0), ("width", 1), ("experts", 0)):
        if getattr(config, name) < low:
            raise rlzoo.Refused(f"{name}={getattr(config, name)} must be at least {low}")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(config)):
        if not config.v_min < config.v_max:
            raise rlzoo.Refused(f"v_min={config.v_min} must be less than v_max={config.v_max}")
        if not config.sigma_ratio > 0:
            raise rlzoo.Refused(f"sigma_ratio={config.sigma_ratio} must be more than 0")
    conv = config.channels > 0 and len(env.obs_shape) == 3 and min(env.obs_shape[:2]) >= 3
    if config.experts and (not conv or len(config.hidden) != 1):
        raise rlzoo.Refused(
            f"experts={config.experts} stand in place of one hidden layer after a convolution, but "
            f"hidden={config.hidden} and obs {env.obs_shape}; try Breakout-MinAtar and --hidden 128"
        )
    return conv


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    conv = check(config, env)
    shape = (env.num_actions,) if config.loss == "mse" else (env.num_actions, config.bins)
    net = Network(
        widths=tuple(width * config.width for width in config.hidden),
        out=int(np.prod(shape)),
        channels=config.channels * config.width if conv else 0,
        experts=config.experts,
        dtype=jnp.bfloat16 if config.bf16 else None,
        bias_init=lambda key, size, dtype: first_bias(config, shape).reshape(size),
    )
    see = lambda obs: obs if conv else obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)

    def apply(params, obs):
        out = net.apply(params, see(obs))
        return out.reshape(*out.shape[:-1], *shape)

    q = lambda params, obs: decode(apply(params, obs), config)
    optimizer = optax.scale_by_adam(eps=config.adam_eps)
    sizes = dict(
        capacity=config.buffer_size,
        example=env.example(),
        num_envs=config.num_envs,
        n_step=config.n_step,
    )
    if config.prioritised:
        buffer = rlzoo.replay.Prioritized(**sizes, alpha=config.priority_alpha)
    else:
        buffer = rlzoo.replay.Uniform(**sizes)
    calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)
    target_every = max(1, config.target_every // config.num_envs)

    def init(key):
        net_key, env_key, key = jax.random.split(key, 3)
        params = net.init(net_key, see(jnp.zeros(env.obs_shape)))
        opt_state = optimizer.init(ravel_pytree(params)[0])
        return State(
            params, params, opt_state, env.reset(env_key, config.num_envs), buffer.init(), key
        )

    def collect(state, random_key, explore_key, env_key, t):
        """One step in every environment, epsilon-greedily."""
        progress = jnp.minimum(t / jnp.maximum(calls * config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + progress * (config.epsilon_end - config.epsilon_start)
        random = jax.random.randint(random_key, (config.num_envs,), 0, env.num_actions)
        explore = jax.random.uniform(explore_key, (config.num_envs,)) < epsilon
        action = jnp.where(explore, random, jnp.argmax(q(state.params, state.env.obs), -1))
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        state = state.replace(env=env_state, buffer=buffer.add(state.buffer, transition, t))
        return state, metrics | {"epsilon": epsilon}

    def update(params, target_params, opt_state, replay, key, t):
        beta = config.priority_beta + (1.0 - config.priority_beta) * t / calls
        sample = buffer.sample(replay, key, config.batch_size, config.discount, beta)
        vector, unravel = ravel_pytree(
            params
        )  # one vector: an optimiser step is then one fused loop
        objective = lambda p: td_loss(unravel(p), target_params, sample, apply, config)
        grads, (error, metrics) = jax.grad(objective, has_aux=True)(vector)
        direction, opt_state = optimizer.update(grads, opt_state)
        params = unravel(vector - config.learning_rate * direction)
        metrics = {name: (value, 1.0) for name, value in metrics.items()}
        return params, opt_state, (sample.index, jnp.abs(error) + 1e-6), metrics

    def step(state, t):
        *collect_keys, update_key, key = jax.random.split(state.key, 5)
        state, metrics = collect(state, *collect_keys, t)

        def learn():
            return update(
                state.params, state.target_params, state.opt_state, state.buffer, update_key, t
            )

        def wait():
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn))[2:]

        params, opt_state, priorities, losses = jax.lax.cond(
            t >= first_update, learn, lambda: (state.params, state.opt_state, *wait())
        )
        # apart from `learn`, which reads the priorities: otherwise they are copied at every call
        replay = jax.lax.cond(
            t >= first_update,
            lambda: buffer.update(state.buffer, *priorities),
            lambda: state.buffer,
        )
        target_params = jax.lax.cond(
            t % target_every == 0, lambda: params, lambda: state.target_params
        )
        state = state.replace(
            params=params, target_params=target_params, opt_state=opt_state, buffer=replay, key=key
        )
        return state, metrics | losses

    def act(policy, obs, key):
        return jnp.argmax(q(policy.params, obs), -1)

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params),
        act,
        steps_per_call=config.num_envs,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
