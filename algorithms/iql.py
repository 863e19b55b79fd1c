"""IQL: implicit Q-learning, which never asks for the value of an action that the data lack.

Paper: Kostrikov et al. 2022 (arXiv 2110.06169), equations 5 to 7 and algorithm 1; sizes and
    schedules as in the authors' code.
Kind: offline, actor-critic, continuous
Run: python algorithms/iql.py --seeds 5
    The paper's sizes: python algorithms/iql.py --dataset FILE --total-steps 1_000_000
    --hidden 256 256 --batch-size 256 (AntMaze: --expectile 0.9 --inverse-temperature 10)
Result: beside f_dvl.py, xql.py and others in results/dual_rl
Metrics:
    loss/value         expectile loss of the values
    loss/critic        mean squared error of the critics, summed over both
    loss/actor         weighted negative log-likelihood of the data's actions
    train/q, train/v   mean value of the data's actions, and of their observations
    train/v_max        largest |V|; healthy below the largest |reward| / (1 - gamma)
    train/saturated    share of the actor's weights at their cap; it should stay small
Deviations:
    No dropout in the actor, which the authors use for their kitchen and hand tasks.
    The default network is small and trains for 20,000 updates: it suits Pendulum.
"""

from typing import Any, NamedTuple

import chex
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import dataset as data
from rlzoo.fast import Linear

DATASET = "pendulum-medium-replay"


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id, for evaluation; empty: the data set's own"""
    total_steps: int = rlzoo.static(20_000, least=1)
    """gradient updates of each member"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of all networks"""
    value_layer_norm: bool = rlzoo.static(False)
    """normalize the hidden layers of the value network"""
    batch_size: int = rlzoo.static(256, least=1)
    """transitions in each update"""
    learning_rate: float = rlzoo.traced(3e-4, above=0)
    """Adam's step size"""
    anneal_actor: bool = rlzoo.static(True)
    """let the actor's step size fall to zero by a cosine"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the target critics move towards the critics in each update"""
    normalize_obs: bool = rlzoo.static(False)
    """standardize observations by the mean and deviation of the data"""
    normalize_rewards: bool = rlzoo.static(True)
    """scale rewards so that the returns of the data's episodes span 1000"""
    reward_scale: float = rlzoo.traced(1.0, above=0)
    """factor of the rewards, after that"""
    reward_shift: float = 0.0
    """added to the rewards, after that: -1 in AntMaze"""
    inverse_temperature: float = rlzoo.traced(3.0, least=0)
    """factor of the advantage in the exponent of the actor's weights"""
    max_weight: float = rlzoo.traced(100.0, above=0)
    """largest weight"""
    expectile: float = rlzoo.traced(0.7, above=0, most=1)
    """tau of the paper: 0.5 is the mean of the data's actions, 1 the best of them"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Dense layers with ReLUs, orthogonal at first: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x):
        orthogonal = nn.initializers.orthogonal(2**0.5)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=orthogonal)(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = nn.relu(x)
        return Linear(self.outputs, kernel_init=orthogonal)(x)


class Actor(nn.Module):
    """A Gaussian policy: mean in [-1, 1], the same deviation for all observations."""

    hidden: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        # The mean is squashed, samples are not: the density stays that of a Gaussian.
        mean = jnp.tanh(MLP(self.hidden, self.action_dim)(obs))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        std = jnp.exp(jnp.clip(log_std, -5.0, 2.0))
        return distrax.MultivariateNormalDiag(mean, std)


# ---- state ---------------------------------------------------------------------------------------


class Params(NamedTuple):
    actor: Any
    critics: Any
    """both, stacked"""
    value: Any


class Policy(NamedTuple):
    actor: Any
    stats: data.Stats
    """of the observations that it learnt from"""


@struct.dataclass
class State:
    params: Params
    target_params: Any
    """of the critics"""
    opt_states: Params
    reward_scale: jax.Array
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def value_loss(params, obs, q, value, config):
    """The expectile regression of q [batch] by the values of `obs` (equation 5)."""
    v = value(params, obs)
    chex.assert_equal_shape([v, q])
    gap = q - v
    # Values above the data's weigh more than those below.
    weight = jnp.where(gap > 0, config.expectile, 1.0 - config.expectile)
    loss = (weight * gap**2).mean()
    return loss, {
        "loss/value": loss,
        "train/v": v.mean(),
        "train/v_max": rlzoo.most(jnp.abs(v).max()),
    }


def critic_loss(params, batch, target, critics):
    """Mean squared errors of the critics against `target` [batch], summed over both."""
    value = critics(params, batch.obs, batch.action)
    chex.assert_shape(value, (2, *target.shape))
    error = value - target
    loss = (error**2).mean(-1).sum()
    return loss, {
        "loss/critic": loss,
        "train/q": value.mean(),
    }


def actor_loss(params, batch, advantage, actor, config):
    """The likelihood of the data's actions, weighted by exp(advantage [batch]) (equation 7)."""
    # --- weights, capped ---
    weight = jnp.exp(config.inverse_temperature * advantage)
    saturated = weight >= config.max_weight
    weight = jnp.minimum(weight, config.max_weight)

    # --- likelihood ---
    log_prob = actor(params, batch.obs).log_prob(batch.action)
    chex.assert_equal_shape([weight, log_prob])
    loss = -(weight * log_prob).mean()
    return loss, {"loss/actor": loss, "train/saturated": saturated.mean()}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    data.require(dataset, "iql", discrete=False)

    # --- networks, optimizers ---
    action_dim = dataset.action.shape[-1]
    actor_net = Actor(config.hidden, action_dim)
    critic_net = MLP(config.hidden, 1)
    value_net = MLP(config.hidden, 1, config.value_layer_norm)
    rate = config.learning_rate
    if config.anneal_actor:
        rate = optax.cosine_decay_schedule(rate, config.total_steps)
    # One vector of all parameters: an update is then one fused loop.
    adam = optax.flatten(optax.adam(config.learning_rate))
    actor_adam = optax.flatten(optax.adam(rate))
    optimizers = Params(actor=actor_adam, critics=adam, value=adam)

    # --- observations, as the networks see them ---
    if config.normalize_obs:
        stats = data.stats(dataset, eps=1e-3)
    else:
        stats = data.Stats(jnp.zeros(env.obs_shape), jnp.ones(env.obs_shape))

    def standardize(stats, obs):
        return env.flatten((obs - stats.mean) / stats.std)

    def actor(params, obs, stats=stats):
        """The distribution of actions."""
        return actor_net.apply(params, standardize(stats, obs))

    def critics(params, obs, action):
        """Values of both critics [2, ...]."""
        pair = jnp.concatenate([standardize(stats, obs), action], axis=-1)
        values = jax.vmap(critic_net.apply, (0, None))(params, pair)
        return values[..., 0]

    def value(params, obs):
        return value_net.apply(params, standardize(stats, obs))[..., 0]

    def init(key):
        actor_key, critic_key, value_key, key = jax.random.split(key, 4)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        pair = jnp.zeros(obs.size + action_dim)
        critic_keys = jax.random.split(critic_key)
        init_critics = jax.vmap(critic_net.init, (0, None))
        params = Params(
            actor=actor_net.init(actor_key, obs),
            critics=init_critics(critic_keys, pair),
            value=value_net.init(value_key, obs),
        )
        opt_states = [
            optimizer.init(part) for optimizer, part in zip(optimizers, params, strict=True)
        ]
        # By the returns of the whole data set: once, and not in every update.
        scale = data.reward_scale(dataset) if config.normalize_rewards else 1.0
        return State(
            params=params,
            # The targets start as the critics.
            target_params=params.critics,
            opt_states=Params(*opt_states),
            reward_scale=config.reward_scale * scale,
            key=key,
        )

    def gradient_step(optimizer, loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    def step(state, t):
        params = state.params
        opt_states = state.opt_states

        # --- sample ---
        sample_key, key = jax.random.split(state.key)
        batch = data.sample(dataset, sample_key, config.batch_size)
        reward = state.reward_scale * batch.reward + config.reward_shift

        # --- values: towards the better of the data's actions, as the target critics see them ---
        q = critics(state.target_params, batch.obs, batch.action).min(0)
        value_params, value_opt, value_metrics = gradient_step(
            optimizers.value,
            value_loss,
            params.value,
            opt_states.value,
            batch.obs,
            q,
            value,
            config,
        )

        # --- actor: by the new values ---
        advantage = q - value(value_params, batch.obs)
        actor_params, actor_opt, actor_metrics = gradient_step(
            optimizers.actor,
            actor_loss,
            params.actor,
            opt_states.actor,
            batch,
            advantage,
            actor,
            config,
        )

        # --- critics: towards the new values (equation 6) ---
        # Bootstrapping stops where the task ended, and not at a time limit.
        next_value = value(value_params, batch.next_obs)
        discount = config.discount * (1.0 - batch.terminated)
        target = reward + discount * next_value
        critic_params, critic_opt, critic_metrics = gradient_step(
            optimizers.critics,
            critic_loss,
            params.critics,
            opt_states.critics,
            batch,
            target,
            critics,
        )

        # --- target critics ---
        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)

        state = state.replace(
            params=Params(actor_params, critic_params, value_params),
            target_params=target_params,
            opt_states=Params(actor_opt, critic_opt, value_opt),
            key=key,
        )
        return state, value_metrics | actor_metrics | critic_metrics

    def policy(state):
        return Policy(state.params.actor, stats)

    def act(policy, obs, key):
        # The mean of a Gaussian has no noise, as policies are evaluated.
        return actor(policy.actor, obs, policy.stats).mean()

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
