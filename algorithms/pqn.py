"""PQN: parallelized Q-learning with neither replay nor target network.

Paper: Gallici et al. 2024 (arXiv 2407.04811), algorithm 1: many environments are stepped
    epsilon-greedily, lambda-returns of short rollouts are the targets, LayerNorm gives stability.
    Its loss is mse; hl_gauss.py explains the others (arXiv 2403.03950).
Kind: online, value-based, discrete
Run: python algorithms/pqn.py --env CartPole-v1 --seeds 5
    python algorithms/pqn.py --env Breakout-MinAtar --total-steps 10_000_000 --num-envs 128 \
        --num-steps 32 --num-minibatches 32 --num-epochs 2 --hidden 128 --td-lambda 0.65 \
        --epsilon-end 0.05 --epsilon-fraction 0.1
Result: a return of 500 on CartPole within 500,000 steps (results/baselines)
Metrics:
    loss/td                   half the squared error, or KL(target || prediction) in nats
    train/q                   mean value of the actions taken; it should approach the true return
    train/entropy             mean entropy of the predicted distributions, in nats
    train/epsilon             share of random actions
    train/targets_outside     share of targets outside [v_min, v_max]
    train/targets_near_edge   share of those there or within 3 sigma of the range's ends
    train/target_max          largest |target|
Deviations:
    A truncated episode bootstraps from its true successor. Images are not divided by 255.
    C51 with lambda-returns is not in the paper: projecting at every step keeps the mean and blurs
    the distribution, the more the longer the rollout and the larger lambda.
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

import rlzoo
from rlzoo.bins import Bins, entropy, kl
from rlzoo.env import EnvState, done
from rlzoo.fast import Conv3x3, permutations


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(32, least=1)
    """environments stepped together"""
    num_steps: int = rlzoo.static(64, least=1)
    """steps in each environment between updates"""
    num_epochs: int = rlzoo.static(4, least=1)
    """passes over each rollout"""
    num_minibatches: int = rlzoo.static(16, least=1)
    """minibatches in each pass"""
    loss: Literal["mse", "hl_gauss", "two_hot", "c51", "mse_softmax"] = rlzoo.static("mse")
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
    """let HL-Gauss's outer bins reach half a bin beyond the range; its paper's end with it"""
    hidden: tuple[int, ...] = rlzoo.static((128, 128), least=1)
    """widths of the hidden layers"""
    channels: int = rlzoo.static(16, least=0)
    """channels of a 3x3 convolution before them, where observations are images; 0: none"""
    bf16: bool = rlzoo.static(False)
    """compute the layers before the last in bfloat16; all else stays in float32"""
    learning_rate: float = rlzoo.traced(5e-4, above=0)
    """RAdam's step size at the start"""
    anneal_lr: bool = rlzoo.static(True)
    """let the learning rate fall linearly to zero"""
    adam_eps: float = rlzoo.traced(1e-8, above=0)
    """RAdam's epsilon"""
    max_grad_norm: float = rlzoo.traced(10.0, above=0)
    """gradients are scaled down to this global norm"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    td_lambda: float = rlzoo.traced(0.9, least=0, most=1)
    """lambda of the returns"""
    epsilon_start: float = rlzoo.traced(1.0, least=0, most=1)
    """share of random actions at the start"""
    epsilon_end: float = rlzoo.traced(0.1, least=0, most=1)
    """share of random actions at the end"""
    epsilon_fraction: float = rlzoo.traced(0.2, least=0, most=1)
    """part of the run over which it falls, linearly"""


# ---- networks ------------------------------------------------------------------------------------


class NormalizedQNetwork(nn.Module):
    """The values of all actions, or logits, [..., *out_shape] at flat observations [..., size].

    A LayerNorm stands before every ReLU.
    """

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
        he_normal = nn.initializers.he_normal()
        batch_shape = x.shape[:-1]
        if self.image_shape:
            x = x.reshape(*batch_shape, *self.image_shape)
            x = Conv3x3(self.channels, self.dtype, he_normal)(x)
            x = nn.LayerNorm(dtype=self.dtype)(x)
            x = nn.relu(x)
            x = x.reshape(*batch_shape, -1)
        for width in self.hidden:
            x = nn.Dense(width, dtype=self.dtype, kernel_init=he_normal)(x)
            x = nn.LayerNorm(dtype=self.dtype)(x)
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
    opt_state: Any
    env: EnvState
    key: jax.Array


class Batch(NamedTuple):
    """Leading axis: samples."""

    obs: Any
    action: jax.Array
    target: jax.Array
    """values [n] (mse, mse_softmax) or distributions [n, num_bins]"""


# ---- losses --------------------------------------------------------------------------------------


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    ones = [1] * (x.ndim - 1)
    index = action.reshape(-1, *ones)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def greedy(out, bins):
    """The best actions [...] and their values [...], or for c51 distributions [..., num_bins]."""
    q = bins.decode(out)
    action = jnp.argmax(q, axis=-1)
    if bins.loss != "c51":
        return action, q.max(-1)
    logits = jnp.take_along_axis(out, action[..., None, None], axis=-2)
    return action, jax.nn.softmax(logits[..., 0, :])


def lambda_returns(reward, next_value, terminated, done, bins, config):
    """Targets [length, num_envs], or distributions [length, num_envs, num_bins], like `next_value`.

    G_t = r_t + gamma (1 - terminated_t) ((1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1})
    (section 4), s_{t+1} being the true successor. Lambda is 0 where the episode is done, so that a
    truncated one still bootstraps. Distributions are mixed, moved and projected likewise.
    """
    distributional = next_value.ndim > reward.ndim
    discount = config.discount * (1.0 - terminated)
    trace = config.td_lambda * (1.0 - done)
    chex.assert_equal_shape([reward, discount, trace])

    def body(after, x):
        reward, next_value, discount, trace = x
        if distributional:
            trace = trace[:, None]
        mixed = (1.0 - trace) * next_value + trace * after
        if distributional:
            target = bins.project(mixed, reward, discount)
        else:
            target = reward + discount * mixed
        return target, target

    xs = (reward, next_value, discount, trace)
    _, targets = jax.lax.scan(body, next_value[-1], xs, reverse=True)
    return targets


def td_loss(params, batch, net, bins):
    """The loss of the actions taken, and metrics.

    `net(params, obs)` gives values [n, num_actions] for mse, and else logits [n, num_actions,
    num_bins].
    """
    # --- value ---
    outputs = net(params, batch.obs)
    out = taken(outputs, batch.action)
    value = bins.decode(out)

    # --- loss ---
    if bins.squared:
        chex.assert_equal_shape([value, batch.target])
        loss = (0.5 * (value - batch.target) ** 2).mean()
    else:
        loss = kl(batch.target, out).mean()
    metrics = {
        "loss/td": loss,
        "train/q": value.mean(),
    }
    if not bins.scalar:
        metrics["train/entropy"] = entropy(out).mean()
    return loss, metrics


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    rlzoo.check(
        config.v_min < config.v_max, f"v_min={config.v_min} must be less than v_max={config.v_max}"
    )
    size = config.num_envs * config.num_steps
    if size % config.num_minibatches:
        raise rlzoo.Refused(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = "
            f"{size}"
        )

    # --- schedule ---
    num_calls = -(-config.total_steps // size)
    updates_per_call = config.num_epochs * config.num_minibatches
    num_updates = num_calls * updates_per_call

    # --- network, optimizer ---
    bins = Bins(
        num_bins=config.num_bins,
        v_min=config.v_min,
        v_max=config.v_max,
        sigma_ratio=config.sigma_ratio,
        widen=config.widen,
        loss=config.loss,
    )
    convolved = config.channels and env.is_image
    bias = bins.initial_bias(env.num_actions)
    net = NormalizedQNetwork(
        hidden=config.hidden,
        out_shape=bias.shape,
        bias_init=nn.initializers.constant(bias.reshape(-1)),
        image_shape=env.obs_shape if convolved else (),
        channels=config.channels,
        dtype=jnp.bfloat16 if config.bf16 else None,
    )
    # One vector of all parameters: an update is then a few fused loops.
    optimizer = optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.scale_by_radam(eps=config.adam_eps),
        )
    )

    def outputs(params, obs):
        return net.apply(params, env.flatten(obs))

    def init(key):
        net_key, env_key, key = jax.random.split(key, 3)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        params = net.init(net_key, obs)
        return State(
            params=params,
            opt_state=optimizer.init(params),
            env=env.reset(env_key, config.num_envs),
            key=key,
        )

    def collect(state, random_key, explore_key, env_key, t):
        """An epsilon-greedy rollout in every environment."""
        # --- epsilon ---
        decay_calls = jnp.maximum(num_calls * config.epsilon_fraction, 1e-6)
        progress = jnp.minimum(t / decay_calls, 1.0)
        change = config.epsilon_end - config.epsilon_start
        epsilon = config.epsilon_start + progress * change

        # --- act ---
        shape = (config.num_steps, config.num_envs)
        random = jax.random.randint(random_key, shape, 0, env.num_actions)
        explore = jax.random.uniform(explore_key, shape) < epsilon

        def choose(carry, obs, x):
            random, explore = x
            out = outputs(state.params, obs)
            best, value = greedy(out, bins)
            action = jnp.where(explore, random, best)
            return carry, action, value

        # --- roll out ---
        env_state, _, steps, value, metrics = env.rollout(
            state.env,
            choose,
            None,
            (random, explore),
            env_key,
            config.num_steps,
            t,
        )
        state = state.replace(env=env_state)
        return state, steps, value, metrics | {"train/epsilon": epsilon}

    def look_back(state, steps, value):
        """The batch of a rollout, and metrics of its targets."""

        def value_of(obs):
            out = outputs(state.params, obs)
            _, value = greedy(out, bins)
            return value

        def returns(next_value):
            ends = (steps.terminated, done(steps))
            return lambda_returns(steps.reward, next_value, *ends, bins, config)

        # --- targets ---
        next_value = env.successor_values(value, steps, value_of)
        if bins.loss == "c51":
            target = returns(next_value)
            scalar_target = returns(bins.mean(next_value))
        else:
            scalar_target = returns(next_value)
            target = bins.encode(scalar_target)

        # --- one axis of samples ---
        batch = Batch(steps.obs, steps.action, target)
        batch = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), batch)
        return batch, bins.target_metrics(scalar_target)

    def step(state, t):
        *collect_keys, shuffle_key, key = jax.random.split(state.key, 5)
        state, steps, value, metrics = collect(state, *collect_keys, t)
        batch, target_metrics = look_back(state, steps, value)

        def update(carry, rows):
            # --- sample ---
            params, opt_state, count = carry
            minibatch = jax.tree.map(lambda x: x[rows], batch)

            # --- gradient step ---
            grads, losses = jax.grad(td_loss, has_aux=True)(params, minibatch, outputs, bins)
            updates, opt_state = optimizer.update(grads, opt_state)
            rate = config.learning_rate
            if config.anneal_lr:
                rate = rate * (1.0 - count / num_updates)
            updates = jax.tree.map(lambda u: -rate * u, updates)
            params = optax.apply_updates(params, updates)
            return (params, opt_state, count + 1), losses

        # --- epochs of minibatches ---
        rows = permutations(shuffle_key, config.num_epochs, size)
        rows = rows.reshape(updates_per_call, -1)
        carry = (state.params, state.opt_state, t * updates_per_call)
        (params, opt_state, _), losses = jax.lax.scan(update, carry, rows)
        state = state.replace(params=params, opt_state=opt_state, key=key)
        return state, metrics | target_metrics | rlzoo.total(losses)

    def policy(state):
        return Policy(state.params)

    def act(policy, obs, key):
        out = outputs(policy.params, obs)
        action, _ = greedy(out, bins)
        return action

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=size,
        updates_per_call=updates_per_call,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
