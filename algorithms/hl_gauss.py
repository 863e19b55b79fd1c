"""HL-Gauss: DQN whose values are learnt by classification, beside the losses it is compared with.

Paper: Farebrother et al. 2024, "Stop Regressing" (arXiv 2403.03950). The losses are hl_gauss and
    two_hot (section 3.1); c51 (section 3.2; arXiv 1707.06887, algorithm 1); mse (equation 2.1:
    bit for bit dqn.py); mse_softmax (section 4), the squared error of a distribution's mean.
Kind: online, value-based, discrete
Run: python algorithms/hl_gauss.py --env CartPole-v1 --seeds 5
    python algorithms/hl_gauss.py --env Breakout-MinAtar --hidden 128 --v-min -1 --v-max 19
Result: 500 on CartPole within 500,000 steps (results/baselines); what it gains: results/value_loss
Metrics:
    loss/td                   squared error, or KL(target || prediction) in nats
    train/q                   mean value of the actions in the batches
    train/epsilon             share of random actions
    train/entropy             mean entropy of the predicted distributions, in nats
    train/targets_outside     share of targets outside [v_min, v_max]; it should stay near 0
    train/targets_near_edge   share of those there or within 3 sigma of the range's ends
    train/target_max          largest |target|; the range should hold it, and 3 sigma more
Deviations:
    Bins are centered on the atoms of the other losses; `--no-widen` gives the paper's.
    Targets are clipped to the range: 5.3 sigma outside of it they would be NaN.
    Two-hot weights keep the mean; equation 3.2 has them the other way round.
    The last bias lets values start near 0 where that is not the middle of the range.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.scipy.special import entr, erf

import rlzoo
from rlzoo.env import EnvState
from rlzoo.fast import Conv3x3


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(10, least=1)
    """environments stepped together; each such step is followed by one update"""
    loss: Literal["hl_gauss", "two_hot", "c51", "mse", "mse_softmax"] = rlzoo.static("hl_gauss")
    """how values are learnt"""
    num_bins: int = rlzoo.static(51, least=2)
    """bins, or atoms, of the distribution of a value"""
    v_min: float = -120.0
    """lowest value that the bins can hold"""
    v_max: float = 120.0
    """highest value that the bins can hold"""
    sigma_ratio: float = rlzoo.traced(0.75, above=0)
    """standard deviation of HL-Gauss in widths of a bin; below 0.5 it biases the values"""
    widen: bool = rlzoo.static(True)
    """let HL-Gauss's outer bins reach half a bin beyond the range; the paper's end with it"""
    hidden: tuple[int, ...] = rlzoo.static((120, 84), least=1)
    """widths of the hidden layers"""
    channels: int = rlzoo.static(16, least=0)
    """channels of a 3x3 convolution before them, where observations are images; 0: none"""
    bf16: bool = rlzoo.static(False)
    """compute the layers before the last in bfloat16; all else stays in float32"""
    buffer_size: int = rlzoo.static(10_000, least=1)
    """transitions kept; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128, least=1)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(1_000, least=1)
    """environment steps before the first update"""
    target_every: int = rlzoo.static(500, least=1)
    """environment steps between copies to the target network"""
    learning_rate: float = rlzoo.traced(2.5e-4, above=0)
    """Adam's step size"""
    adam_eps: float = rlzoo.traced(1e-8, above=0)
    """Adam's epsilon; the paper's 3.1e-4 for cross-entropy and 1.5e-4 for mse"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    epsilon_start: float = rlzoo.traced(1.0, least=0, most=1)
    """share of random actions at the start"""
    epsilon_end: float = rlzoo.traced(0.05, least=0, most=1)
    """share of random actions at the end"""
    epsilon_fraction: float = rlzoo.traced(0.5, least=0, most=1)
    """part of the run over which it falls, linearly"""
    double: bool = rlzoo.static(False)
    """let the online network choose the action whose value the target network gives"""
    n_step: int = rlzoo.static(1, least=1)
    """rewards summed in each target"""
    prioritized: bool = rlzoo.static(False)
    """draw transitions in proportion to their last error"""
    priority_alpha: float = rlzoo.traced(0.6, least=0, most=1)
    """exponent of the priorities"""
    priority_beta: float = rlzoo.traced(0.4, least=0, most=1)
    """exponent of the importance weights at the start; it rises linearly to 1"""


# ---- networks ------------------------------------------------------------------------------------


class CategoricalQNetwork(nn.Module):
    """The values of all actions, or logits, [..., *out_shape] at flat observations [..., size]."""

    hidden: tuple[int, ...]
    out_shape: tuple[int, ...]
    """(num_actions,) or (num_actions, num_bins)"""
    bias_init: Callable
    image_shape: tuple[int, ...] = ()
    """of observations that go through a convolution first"""
    channels: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        batch_shape = x.shape[:-1]
        if self.image_shape:
            x = x.reshape(*batch_shape, *self.image_shape)
            x = Conv3x3(self.channels, self.dtype)(x)
            x = nn.relu(x)
            x = x.reshape(*batch_shape, -1)
        for width in self.hidden:
            x = nn.Dense(width, dtype=self.dtype)(x)
            x = nn.relu(x)
        x = x.astype(jnp.float32)
        x = nn.Dense(math.prod(self.out_shape), bias_init=self.bias_init)(x)
        return x.reshape(*batch_shape, *self.out_shape)


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
    priorities: Any
    """of the last batch: where its rows are stored [batch], and how large their errors were"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    ones = [1] * (x.ndim - 1)
    index = action.reshape(-1, *ones)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def centers(config):
    """The values [num_bins] that the bins stand for, and the width of a bin."""
    on_ends = config.widen or config.loss in ("two_hot", "c51")
    width = (config.v_max - config.v_min) / (config.num_bins - on_ends)
    inset = 0.0 if on_ends else 0.5 * width
    ends = (config.v_min + inset, config.v_max - inset)
    return jnp.linspace(*ends, config.num_bins, dtype=jnp.float32), width


def decode(out, config):
    """Values [...] of the network's output: itself [...], or means of logits [..., num_bins]."""
    if config.loss == "mse":
        return out
    middles, _ = centers(config)
    probs = jax.nn.softmax(out)
    return (probs * middles).sum(-1)


def two_hot(y, config):
    """Mass [..., num_bins] on the two atoms next to the scalars y [...], with mean y."""
    atoms, width = centers(config)
    y = jnp.clip(y, atoms[0], atoms[-1])
    place = (y - atoms[0]) / width
    index = jnp.arange(config.num_bins)
    distance = jnp.abs(place[..., None] - index)
    return jnp.maximum(1.0 - distance, 0.0)


def hl_gauss(y, config):
    """Mass [..., num_bins] in each bin of a Gaussian around the scalars y [...]."""
    middles, width = centers(config)
    lower_edges = middles - 0.5 * width
    last_edge = middles[-1] + 0.5 * width
    edges = jnp.append(lower_edges, last_edge)
    y = jnp.clip(y, config.v_min, config.v_max)
    sigma = config.sigma_ratio * width
    cdf = erf((edges - y[..., None]) / (2.0**0.5 * sigma))
    mass = jnp.maximum(jnp.diff(cdf), 0.0)
    inside = cdf[..., -1:] - cdf[..., :1]
    return mass / inside


def project(probs, reward, discount, config):
    """The distributions [n, num_bins] of reward + discount z, z ~ probs, on the atoms of z."""
    atoms, _ = centers(config)
    moved_atoms = reward[:, None] + discount[:, None] * atoms
    moved = two_hot(moved_atoms, config)
    return jnp.einsum("nj,nji->ni", probs, moved, precision="highest")


def kl(target_probs, logits):
    """KL(target_probs || softmax(logits)) [...]: the cross-entropy, less the target's entropy."""
    log_probs = jax.nn.log_softmax(logits)
    negative = entr(target_probs) + target_probs * log_probs
    return -negative.sum(-1)


def initial_bias(config, num_actions):
    """A bias [num_actions (, num_bins)] with which values start near 0 whatever the range."""
    if config.loss == "mse":
        return jnp.zeros(num_actions)
    shift = jnp.abs(config.v_min + config.v_max)
    lopsided = shift > 1e-3 * (config.v_max - config.v_min)
    mass = hl_gauss(jnp.zeros(()), config)
    bias = jnp.log(jnp.maximum(mass, 1e-6))
    bias = jnp.where(lopsided, bias, 0.0)
    return jnp.tile(bias, (num_actions, 1))


def td_loss(params, target_params, sample, net, config):
    """The loss named `config.loss`; `net(params, obs)` gives values, or logits, of all actions.

    Errors are weighted where replay is prioritized. Returns the loss, and metrics with the errors
    [batch].
    """
    batch = sample.batch

    # --- target ---
    next_out = jax.lax.stop_gradient(net(target_params, batch.next_obs))
    next_q = decode(next_out, config)
    chooser = decode(net(params, batch.next_obs), config) if config.double else next_q
    next_action = jnp.argmax(chooser, axis=-1)
    next_value = taken(next_q, next_action)
    discount = sample.discount * (1.0 - batch.terminated)
    target = batch.reward + discount * next_value

    # --- error ---
    outputs = net(params, batch.obs)
    out = taken(outputs, batch.action)
    value = decode(out, config)
    error = value - target
    chex.assert_equal_shape([value, target, sample.weight])

    # --- loss ---
    if config.loss == "hl_gauss":
        loss = kl(hl_gauss(target, config), out)
    elif config.loss == "two_hot":
        loss = kl(two_hot(target, config), out)
    elif config.loss == "c51":
        next_probs = jax.nn.softmax(taken(next_out, next_action))
        target_probs = project(next_probs, batch.reward, discount, config)
        loss = kl(target_probs, out)
    else:
        loss = error**2
    loss = (sample.weight * loss).mean()

    # --- how targets fit the range ---
    margin = 3.0 * config.sigma_ratio * centers(config)[1]
    outside = (target < config.v_min) | (target > config.v_max)
    near_low = target < config.v_min + margin
    near_high = target > config.v_max - margin
    near_edge = near_low | near_high
    metrics = {
        "loss/td": loss,
        "train/q": value.mean(),
        "train/targets_outside": outside.mean(),
        "train/targets_near_edge": near_edge.mean(),
        "train/target_max": rlzoo.most(jnp.abs(target).max()),
        "error": error,
    }
    if config.loss != "mse":
        probs = jax.nn.softmax(out)
        metrics["train/entropy"] = entr(probs).sum(-1).mean()
    return loss, metrics


# ---- algorithm -----------------------------------------------------------------------------------


def make(config, env, dataset=None, network=CategoricalQNetwork) -> rlzoo.Algorithm:
    # --- checks ---
    rlzoo.check(
        config.v_min < config.v_max, f"v_min={config.v_min} must be less than v_max={config.v_max}"
    )
    if config.batch_size > config.buffer_size:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than buffer_size={config.buffer_size}"
        )
    needed = config.n_step * config.num_envs
    if config.learning_starts < needed:
        raise rlzoo.Refused(
            f"learning_starts={config.learning_starts} leaves nothing to learn from; at least "
            f"n_step * num_envs = {needed} steps are needed"
        )

    # --- schedule, in calls of `step` ---
    num_calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)
    target_every = max(1, config.target_every // config.num_envs)

    # --- network, optimizer, replay ---
    convolved = config.channels and env.is_image
    bias = initial_bias(config, env.num_actions)
    net = network(
        hidden=config.hidden,
        out_shape=bias.shape,
        bias_init=nn.initializers.constant(bias.reshape(-1)),
        image_shape=env.obs_shape if convolved else (),
        channels=config.channels,
        dtype=jnp.bfloat16 if config.bf16 else None,
    )
    # One vector of all parameters: an update is then one fused loop.
    optimizer = optax.flatten(optax.adam(config.learning_rate, eps=config.adam_eps))
    sizes = dict(
        capacity=config.buffer_size,
        example=env.example(),
        num_envs=config.num_envs,
        n_step=config.n_step,
    )
    if config.prioritized:
        buffer = rlzoo.replay.Prioritized(**sizes, alpha=config.priority_alpha)
    else:
        buffer = rlzoo.replay.Uniform(**sizes)

    def outputs(params, obs):
        return net.apply(params, env.flatten(obs))

    def q(params, obs):
        return decode(outputs(params, obs), config)

    def init(key):
        net_key, env_key, key = jax.random.split(key, 3)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        params = net.init(net_key, obs)
        no_rows = jnp.zeros(config.batch_size, jnp.int32)
        no_errors = jnp.zeros(config.batch_size)
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            env=env.reset(env_key, config.num_envs),
            buffer=buffer.init(),
            priorities=(no_rows, no_errors),
            key=key,
        )

    def collect(state, random_key, explore_key, env_key, t):
        """One epsilon-greedy step in every environment."""
        # --- epsilon ---
        decay_calls = jnp.maximum(num_calls * config.epsilon_fraction, 1e-6)
        progress = jnp.minimum(t / decay_calls, 1.0)
        change = config.epsilon_end - config.epsilon_start
        epsilon = config.epsilon_start + progress * change

        # --- act ---
        values = q(state.params, state.env.obs)
        greedy = jnp.argmax(values, axis=-1)
        random = jax.random.randint(random_key, greedy.shape, 0, env.num_actions)
        explore = jax.random.uniform(explore_key, greedy.shape) < epsilon
        action = jnp.where(explore, random, greedy)

        # --- step and store ---
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        replay = buffer.add(state.buffer, transition, t)
        state = state.replace(env=env_state, buffer=replay)
        return state, metrics | {"train/epsilon": epsilon}

    def step(state, t):
        *collect_keys, sample_key, key = jax.random.split(state.key, 5)
        state, metrics = collect(state, *collect_keys, t)

        def learn(state):
            # --- sample ---
            beta = config.priority_beta + (1.0 - config.priority_beta) * t / num_calls
            sample = buffer.sample(
                state.buffer,
                sample_key,
                config.batch_size,
                config.discount,
                beta,
            )

            # --- gradient step ---
            grads, losses = jax.grad(td_loss, has_aux=True)(
                state.params, state.target_params, sample, outputs, config
            )
            updates, opt_state = optimizer.update(grads, state.opt_state)
            params = optax.apply_updates(state.params, updates)

            # --- priorities ---
            # No transition may be lost for good, so none gets a priority of 0.
            error = jnp.abs(losses.pop("error"))
            state = state.replace(
                params=params,
                opt_state=opt_state,
                priorities=(sample.index, error + 1e-6),
            )
            return state, losses

        def set_priorities(replay):
            return buffer.update(replay, *state.priorities), {}

        def copy_to_target(state):
            return state.replace(target_params=state.params), {}

        state, losses = rlzoo.when(t >= first_update, learn, state)
        # On its own: together with `learn`, XLA would copy all priorities at every call.
        replay, _ = rlzoo.when(t >= first_update, set_priorities, state.buffer)
        state, _ = rlzoo.when(t % target_every == 0, copy_to_target, state)
        return state.replace(buffer=replay, key=key), metrics | losses

    def policy(state):
        return Policy(state.params)

    def act(policy, obs, key):
        values = q(policy.params, obs)
        return jnp.argmax(values, axis=-1)

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=config.num_envs,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
