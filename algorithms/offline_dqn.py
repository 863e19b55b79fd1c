"""Offline DQN: double DQN with the CQL regularizer on a recorded data set.

Paper: Kumar et al. 2020 (arXiv 2006.04779), discrete CQL(H) on decoded values, as in Farebrother et
    al. 2024 (arXiv 2403.03950, sections 4.1.1 and 4.3.2: SARSA), whose losses hl_gauss.py explains.
    Double: van Hasselt et al. 2016 (arXiv 1509.06461, equation 4).
Kind: offline, value-based, discrete
Run: python algorithms/dqn.py --env CartPole-v1 --buffer-size 500_000 --out runs/dqn
    rlzoo data collect runs/dqn --replay --out cartpole.npz
    python algorithms/offline_dqn.py --env CartPole-v1 --dataset cartpole.npz --seeds 5
Result: 7.9 with mse and 7.5 with hl_gauss on a replay of Breakout-MinAtar whose episodes have 2.2
    on average, after 20,000 updates (results/value_loss/noise)
Metrics:
    loss/td                   squared error, or KL(target || prediction) in nats
    loss/cql                  the regularizer before its factor
    train/q                   mean value of the data's actions
    train/entropy             mean entropy of the predicted distributions, in nats
    train/agreement           share of the data's actions that are greedy
    train/mask                share of the samples that count
    train/targets_outside     share of targets outside [v_min, v_max]; it should stay near 0
    train/targets_near_edge   share of those there or within 3 sigma of the range's ends
    train/target_max          largest |target|
Deviations:
    The regularizer is taken at the observation; equation 2.4 of the second paper has the successor.
    SARSA leaves out samples whose next action was not recorded. Networks are of MinAtar's size.
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
from jax.scipy.special import logsumexp

import rlzoo
from rlzoo.bins import Bins, entropy, kl
from rlzoo.dataset import draw, rows
from rlzoo.env import Transition
from rlzoo.fast import Conv3x3


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id, for evaluation; empty: the data set's own"""
    total_steps: int = rlzoo.static(50_000, least=1)
    """gradient updates of each member"""
    loss: Literal["hl_gauss", "two_hot", "c51", "mse", "mse_softmax"] = rlzoo.static("hl_gauss")
    """how values are learnt"""
    target: Literal["q_learning", "sarsa"] = rlzoo.static("q_learning")
    """bootstrap from the best action, or from the one that the data took next"""
    double: bool = rlzoo.static(True)
    """let the online network choose the best action, whose value the target network gives"""
    cql_alpha: float = rlzoo.traced(0.1, least=0)
    """factor of the regularizer"""
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
    hidden: tuple[int, ...] = rlzoo.static((120, 84), least=1)
    """widths of the hidden layers"""
    channels: int = rlzoo.static(16, least=0)
    """channels of a 3x3 convolution before them, where observations are images; 0: none"""
    batch_size: int = rlzoo.static(128, least=1)
    """transitions in each update"""
    target_every: int = rlzoo.static(500, least=1)
    """updates between copies to the target network"""
    learning_rate: float = rlzoo.traced(2.5e-4, above=0)
    """Adam's step size"""
    adam_eps: float = rlzoo.traced(1e-8, above=0)
    """Adam's epsilon; the paper's 3.1e-4"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""


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
    key: jax.Array


class Sample(NamedTuple):
    batch: Transition
    """leaves [n, ...]"""
    next_action: jax.Array
    """int32 [n]: what the data took at next_obs; any action where there was none"""
    mask: jax.Array
    """float32 [n]: 0 where the target cannot be known"""


# ---- losses --------------------------------------------------------------------------------------


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    ones = [1] * (x.ndim - 1)
    index = action.reshape(-1, *ones)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def cql_loss(q, action):
    """How far the values q [n, num_actions] of all actions are above those of the data's [n]: [n].

    Kumar et al. 2020, equation 4 with its action distribution maximized out: logsumexp_a Q(s, a) -
    Q(s, a_data), at least 0. Its gradient is softmax(q) less the data's action, one-hot.
    """
    return logsumexp(q, -1) - taken(q, action)


def td_loss(params, target_params, sample, net, bins, config):
    """The temporal-difference loss of the data's actions, plus the regularizer, and metrics.

    `net(params, obs)` gives values [n, num_actions] for mse, and else logits [n, num_actions,
    num_bins]. Means are over the samples of the mask.
    """
    batch = sample.batch
    chex.assert_equal_shape([batch.reward, batch.action, sample.next_action, sample.mask])

    def mean(x):
        return (sample.mask * x).sum() / jnp.maximum(sample.mask.sum(), 1.0)

    # --- target ---
    next_out = jax.lax.stop_gradient(net(target_params, batch.next_obs))
    next_q = bins.decode(next_out)
    if config.target == "sarsa":
        next_action = sample.next_action
    else:
        chooser = bins.decode(net(params, batch.next_obs)) if config.double else next_q
        next_action = jnp.argmax(chooser, axis=-1)
    discount = config.discount * (1.0 - batch.terminated)
    target = batch.reward + discount * taken(next_q, next_action)

    # --- temporal-difference loss ---
    out = net(params, batch.obs)
    q = bins.decode(out)
    out = taken(out, batch.action)
    value = taken(q, batch.action)
    if bins.squared:
        td = mean((value - target) ** 2)
    elif bins.loss == "c51":
        next_probs = jax.nn.softmax(taken(next_out, next_action))
        td = mean(kl(bins.project(next_probs, batch.reward, discount), out))
    else:
        td = mean(kl(bins.encode(target), out))

    # --- regularizer ---
    cql = mean(cql_loss(q, batch.action))
    loss = td + config.cql_alpha * cql

    # --- metrics ---
    metrics = {
        "loss/td": td,
        "loss/cql": cql,
        "train/q": mean(value),
        "train/agreement": mean(jnp.argmax(q, axis=-1) == batch.action),
        "train/mask": sample.mask.mean(),
    }
    if not bins.scalar:
        metrics["train/entropy"] = mean(entropy(out))
    return loss, metrics | bins.target_metrics(sample.mask * target, mean)


# ---- algorithm -----------------------------------------------------------------------------------


def draw_sample(dataset, key, n, target):
    """n rows, drawn with replacement.

    The next action is that of the row after. This is of the same episode, unless the row ends it: a
    terminated row needs no action, a truncated one has none and is masked under `sarsa`.
    """
    index = draw(dataset, key, n)
    batch = rows(dataset, index)
    next_index = jnp.minimum(index + 1, len(dataset) - 1)
    mask = 1.0 - batch.truncated if target == "sarsa" else jnp.ones(n)
    return Sample(batch, dataset.action[next_index], mask)


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
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
    rlzoo.check(
        config.v_min < config.v_max, f"v_min={config.v_min} must be less than v_max={config.v_max}"
    )

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
    net = CategoricalQNetwork(
        hidden=config.hidden,
        out_shape=bias.shape,
        bias_init=nn.initializers.constant(bias.reshape(-1)),
        image_shape=env.obs_shape if convolved else (),
        channels=config.channels,
    )
    # One vector of all parameters: an update is then one fused loop.
    optimizer = optax.flatten(optax.adam(config.learning_rate, eps=config.adam_eps))

    def outputs(params, obs):
        return net.apply(params, env.flatten(obs))

    def init(key):
        net_key, key = jax.random.split(key)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        params = net.init(net_key, obs)
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            key=key,
        )

    def step(state, t):
        # --- sample ---
        sample_key, key = jax.random.split(state.key)
        sample = draw_sample(dataset, sample_key, config.batch_size, config.target)

        # --- gradient step ---
        grads, metrics = jax.grad(td_loss, has_aux=True)(
            state.params, state.target_params, sample, outputs, bins, config
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(params=params, opt_state=opt_state, key=key)

        # --- target network ---
        def copy_to_target(state):
            return state.replace(target_params=state.params), {}

        state, _ = rlzoo.when((t + 1) % config.target_every == 0, copy_to_target, state)
        return state, metrics

    def policy(state):
        return Policy(state.params)

    def act(policy, obs, key):
        return jnp.argmax(bins.decode(outputs(policy.params, obs)), axis=-1)

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=1,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
