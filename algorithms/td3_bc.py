"""TD3+BC: TD3 on a recorded data set, with behavior cloning in the actor's loss.

Paper: Fujimoto and Gu 2021 (arXiv 2106.06860), equations 3 to 5; TD3: arXiv 1802.09477,
    equations 10 and 14.
Kind: offline, actor-critic, continuous
Run: python algorithms/td3_bc.py --dataset FILE --seeds 5
    The paper's sizes: python algorithms/td3_bc.py --dataset FILE --total-steps 1_000_000
    --hidden 256 256 --learning-rate 3e-4
Result: beside iql.py, f_dvl.py and others in results/dual_rl
Metrics:
    loss/critic        mean squared error of the critics, summed over both
    loss/actor         the actor's loss, in the updates that moved it
    train/action_mse   its second part: mean squared distance to the data's actions
    train/q            mean value of the data's actions
    train/q_max        largest |value|; healthy below the largest |reward| / (1 - gamma)
Deviations:
    The default network is small and trains for 20,000 updates: it suits Pendulum.
"""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import dataset as data
from rlzoo.fast import Linear


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id, for evaluation; empty: the data set's own"""
    total_steps: int = rlzoo.static(20_000, least=1)
    """gradient updates of each member"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critics alike"""
    batch_size: int = rlzoo.static(256, least=1)
    """transitions in each update"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the targets move towards the networks in each update of them"""
    alpha: float = rlzoo.traced(2.5, least=0)
    """weight of the values against the distance to the data's actions"""
    policy_delay: int = rlzoo.static(2, least=1)
    """critic updates for each update of the policy and the targets"""
    target_noise: float = rlzoo.traced(0.2, least=0)
    """standard deviation of the noise on the target policy's actions"""
    target_noise_clip: float = rlzoo.traced(0.5, least=0)
    """where that noise is clipped"""
    normalize_obs: bool = rlzoo.static(True)
    """standardize observations by the mean and deviation of the data"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Dense layers with ReLUs between them: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return Linear(self.outputs)(x)


# ---- state ---------------------------------------------------------------------------------------


class Params(NamedTuple):
    actor: Any
    critics: Any
    """both, stacked"""


class Policy(NamedTuple):
    actor: Any
    stats: data.Stats
    """of the observations that it learnt from"""


@struct.dataclass
class State:
    params: Params
    target_params: Params
    opt_states: Params
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def td_target(target_params, batch, noise, actor, critics, config):
    """Targets of both critics [batch], by the smaller value of the smoothed target policy.

    `noise` [batch, action_dim] is standard normal.
    """
    # --- action of the target policy, smoothed ---
    limit = config.target_noise_clip
    noise = jnp.clip(config.target_noise * noise, -limit, limit)
    action = actor(target_params.actor, batch.next_obs) + noise
    action = jnp.clip(action, -1.0, 1.0)

    # --- the smaller of both values ---
    next_values = critics(target_params.critics, batch.next_obs, action)
    next_value = next_values.min(axis=0)
    discount = config.discount * (1.0 - batch.terminated)
    return batch.reward + discount * next_value


def critic_loss(params, batch, target, critics):
    """Mean squared errors of the critics against `target` [batch], summed over both."""
    value = critics(params, batch.obs, batch.action)
    chex.assert_shape(value, (2, *target.shape))
    error = value - target
    loss = (error**2).mean(-1).sum()
    return loss, {
        "loss/critic": loss,
        "train/q": value.mean(),
        "train/q_max": rlzoo.most(jnp.abs(value).max()),
    }


def actor_loss(params, critic_params, batch, actor, critics, config):
    """The first critic's value, on a scale of alpha, against the distance to the data's actions.

    Equations 3 and 5: -alpha / mean |Q| Q(s, pi(s)) + (pi(s) - a)^2.
    """
    # --- values, on a scale that the rewards' has no part in ---
    first = jax.tree.map(lambda x: x[:1], critic_params)
    action = actor(params, batch.obs)
    value = critics(first, batch.obs, action)
    size = jax.lax.stop_gradient(jnp.abs(value).mean())
    scale = config.alpha / size

    # --- distance to the data's actions ---
    error = ((action - batch.action) ** 2).mean()
    loss = error - scale * value.mean()
    return loss, {"loss/actor": loss, "train/action_mse": error}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    data.require(dataset, "td3_bc", discrete=False)

    # --- networks, optimizer ---
    action_dim = dataset.action.shape[-1]
    actor_net = MLP(config.hidden, action_dim)
    critic_net = MLP(config.hidden, 1)
    # One vector of all parameters: an update is then one fused loop.
    optimizer = optax.flatten(optax.adam(config.learning_rate))

    # --- observations, as the networks see them ---
    if config.normalize_obs:
        stats = data.stats(dataset, eps=1e-3)
    else:
        stats = data.Stats(jnp.zeros(env.obs_shape), jnp.ones(env.obs_shape))

    def standardize(stats, obs):
        return env.flatten((obs - stats.mean) / stats.std)

    def actor(params, obs, stats=stats):
        """Actions [..., action_dim]."""
        return jnp.tanh(actor_net.apply(params, standardize(stats, obs)))

    def critics(params, obs, action):
        """Values of both critics [2, ...]."""
        pair = jnp.concatenate([standardize(stats, obs), action], axis=-1)
        values = jax.vmap(critic_net.apply, (0, None))(params, pair)
        return values[..., 0]

    def init(key):
        actor_key, critic_key, key = jax.random.split(key, 3)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        pair = jnp.zeros(obs.size + action_dim)
        critic_keys = jax.random.split(critic_key)
        init_critics = jax.vmap(critic_net.init, (0, None))
        params = Params(
            actor=actor_net.init(actor_key, obs),
            critics=init_critics(critic_keys, pair),
        )
        return State(
            params=params,
            # The targets start as the networks.
            target_params=params,
            opt_states=Params(*map(optimizer.init, params)),
            key=key,
        )

    def gradient_step(loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    def step(state, t):
        params = state.params
        opt_states = state.opt_states

        # --- sample ---
        sample_key, noise_key, key = jax.random.split(state.key, 3)
        batch = data.sample(dataset, sample_key, config.batch_size)

        # --- critics ---
        noise = jax.random.normal(noise_key, batch.action.shape)
        target = td_target(state.target_params, batch, noise, actor, critics, config)
        critic_params, critic_opt, critic_metrics = gradient_step(
            critic_loss, params.critics, opt_states.critics, batch, target, critics
        )
        state = state.replace(
            params=Params(params.actor, critic_params),
            opt_states=Params(opt_states.actor, critic_opt),
            key=key,
        )

        # --- actor and targets ---
        def improve(state):
            actor_params, actor_opt, actor_metrics = gradient_step(
                actor_loss,
                params.actor,
                opt_states.actor,
                critic_params,
                batch,
                actor,
                critics,
                config,
            )
            new_params = Params(actor_params, critic_params)
            state = state.replace(
                params=new_params,
                target_params=optax.incremental_update(new_params, state.target_params, config.tau),
                opt_states=Params(actor_opt, critic_opt),
            )
            return state, actor_metrics

        state, actor_metrics = rlzoo.when(t % config.policy_delay == 0, improve, state)
        return state, critic_metrics | actor_metrics

    def policy(state):
        return Policy(state.params.actor, stats)

    def act(policy, obs, key):
        return actor(policy.actor, obs, policy.stats)

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
