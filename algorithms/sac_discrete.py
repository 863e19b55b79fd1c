"""SAC-discrete: soft actor-critic for discrete actions, where all expectations are exact.

Paper: Christodoulou 2019 (arXiv 1910.07207), equations 10 to 12, after Haarnoja et al. 2018
    (arXiv 1812.05905). Continuous actions: sac.py.
Kind: online, actor-critic, discrete
Run: python algorithms/sac_discrete.py --env CartPole-v1 --seeds 5
Result: a return of 475 or better on CartPole within 200,000 steps
Metrics:
    loss/critic     mean squared error of the critics, summed over both
    loss/actor      negative soft value of the policy
    loss/alpha      the temperature times the entropy above its target
    train/q         mean value of the actions in the batches; it should approach the true return
    train/entropy   entropy of the policy in nats; it should settle at its target
    train/alpha     the temperature
    train/return    return of the episodes that ended in training
    All but the last are empty until learning starts.
Deviations:
    Several environments may be stepped together; updates_per_step updates follow each such step.
    A truncated episode bootstraps from its true successor.
    The target entropy is 0.3 of the largest one, where the paper has 0.98: on CartPole the
    temperature then grows without end. Replay is small: with all transitions kept, some seeds
    end near 200. Evaluation takes the most likely action.
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
from rlzoo.env import EnvState
from rlzoo.fast import Linear


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(200_000, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(8, least=1)
    """environments stepped together"""
    updates_per_step: int = rlzoo.static(1, least=1)
    """updates after each such step"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critics alike"""
    buffer_size: int = rlzoo.static(10_000, least=1)
    """transitions kept, at most total_steps; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128, least=1)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(1_000, least=1)
    """environment steps, with random actions, before the first update"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.05, least=0, most=1)
    """how far the target critics move towards the critics in each update"""
    tune_alpha: bool = rlzoo.static(True)
    """learn the temperature"""
    alpha: float = rlzoo.traced(1.0, above=0)
    """the temperature, at the start where it is learnt"""
    target_entropy_scale: float = rlzoo.traced(0.3, least=0, most=1)
    """share of the largest possible entropy that a learnt temperature aims at"""


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
    log_alpha: jax.Array


class Policy(NamedTuple):
    actor: Any


@struct.dataclass
class State:
    params: Params
    target_params: Any
    """of the critics"""
    opt_states: Params
    env: EnvState
    buffer: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    ones = [1] * (x.ndim - 1)
    index = action.reshape(-1, *ones)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def soft_value(pi, value, alpha):
    """E[Q - alpha log pi] over all actions [batch] (equation 10).

    Of two values [2, batch, num_actions] the smaller counts.
    """
    # distrax normalizes logits: they are log-probabilities.
    chex.assert_shape(value, (2, *pi.logits.shape))
    soft = value.min(0) - alpha * pi.logits
    return (pi.probs * soft).sum(-1)


def td_target(params, target_params, sample, actor, critics):
    """Targets of both critics [batch]."""
    batch = sample.batch
    alpha = jnp.exp(params.log_alpha)
    pi = actor(params.actor, batch.next_obs)

    # --- soft value of the next observation ---
    next_value = soft_value(pi, critics(target_params, batch.next_obs), alpha)
    return batch.reward + sample.discount * (1.0 - batch.terminated) * next_value


def critic_loss(params, batch, target, critics):
    """Mean squared errors of the critics against `target` [batch], summed over both."""
    value = critics(params, batch.obs)
    value = jax.vmap(taken, (0, None))(value, batch.action)
    chex.assert_shape(value, (2, *target.shape))
    error = value - target
    loss = (error**2).mean(-1).sum()
    return loss, {
        "loss/critic": loss,
        "train/q": value.mean(),
    }


def actor_loss(params, critic_params, log_alpha, batch, actor, critics):
    """The policy's soft value, negated (equation 12)."""
    alpha = jnp.exp(log_alpha)
    pi = actor(params, batch.obs)
    value = critics(critic_params, batch.obs)
    loss = -soft_value(pi, value, alpha).mean()
    return loss, {
        "loss/actor": loss,
        "train/entropy": pi.entropy().mean(),
        "train/alpha": alpha,
    }


def alpha_loss(log_alpha, entropy, target_entropy):
    """The temperature rises while the policy's entropy is below its target.

    Haarnoja et al. 2018 (arXiv 1812.05905), equation 18.
    """
    loss = jnp.exp(log_alpha) * (entropy - target_entropy)
    return loss, {"loss/alpha": loss}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- schedule, in calls of `step` ---
    num_calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)

    # --- replay ---
    capacity = min(config.buffer_size, num_calls * config.num_envs)
    if config.batch_size > capacity:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than the {capacity} transitions that "
            "buffer_size and total_steps allow"
        )
    buffer = rlzoo.replay.Uniform(capacity, env.example(), config.num_envs)

    # --- networks, optimizer ---
    actor_net = MLP(config.hidden, env.num_actions)
    critic_net = MLP(config.hidden, env.num_actions)
    optimizer = optax.adam(config.learning_rate)
    target_entropy = config.target_entropy_scale * jnp.log(env.num_actions)

    def actor(params, obs):
        """The distribution of actions."""
        return distrax.Categorical(actor_net.apply(params, env.flatten(obs)))

    def critics(params, obs):
        """Values of all actions from both critics [2, ..., num_actions]."""
        return jax.vmap(critic_net.apply, (0, None))(params, env.flatten(obs))

    def init(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        critic_keys = jax.random.split(critic_key)
        params = Params(
            actor=actor_net.init(actor_key, obs),
            critics=jax.vmap(critic_net.init, (0, None))(critic_keys, obs),
            log_alpha=jnp.log(jnp.float32(config.alpha)),
        )
        return State(
            params=params,
            target_params=params.critics,
            opt_states=Params(*map(optimizer.init, params)),
            env=env.reset(env_key, config.num_envs),
            buffer=buffer.init(),
            key=key,
        )

    def collect(state, act_key, env_key, t):
        """One step in every environment: random until learning starts, then the policy."""

        # --- act ---
        def random():
            return jax.random.randint(act_key, (config.num_envs,), 0, env.num_actions)

        def explore():
            pi = actor(state.params.actor, state.env.obs)
            return pi.sample(seed=act_key)

        action = jax.lax.cond(t < first_update, random, explore)

        # --- step and store ---
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        replay = buffer.add(state.buffer, transition, t)
        return state.replace(env=env_state, buffer=replay), metrics

    def gradient_step(loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    def update(state, key):
        params, opt_states = state.params, state.opt_states

        # --- sample ---
        sample = buffer.sample(state.buffer, key, config.batch_size, config.discount)
        batch = sample.batch

        # --- critics ---
        target = td_target(params, state.target_params, sample, actor, critics)
        critic_params, critic_opt, critic_metrics = gradient_step(
            critic_loss, params.critics, opt_states.critics, batch, target, critics
        )
        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)

        # --- actor ---
        actor_params, actor_opt, actor_metrics = gradient_step(
            actor_loss,
            params.actor,
            opt_states.actor,
            params.critics,
            params.log_alpha,
            batch,
            actor,
            critics,
        )

        # --- temperature ---
        log_alpha = params.log_alpha
        alpha_opt = opt_states.log_alpha
        alpha_metrics = {}
        if config.tune_alpha:
            log_alpha, alpha_opt, alpha_metrics = gradient_step(
                alpha_loss, log_alpha, alpha_opt, actor_metrics["train/entropy"], target_entropy
            )

        state = state.replace(
            params=Params(actor_params, critic_params, log_alpha),
            target_params=target_params,
            opt_states=Params(actor_opt, critic_opt, alpha_opt),
        )
        return state, critic_metrics | actor_metrics | alpha_metrics

    def step(state, t):
        act_key, env_key, update_key, key = jax.random.split(state.key, 4)
        state, metrics = collect(state, act_key, env_key, t)

        def learn(state):
            keys = jax.random.split(update_key, config.updates_per_step)
            state, losses = jax.lax.scan(update, state, keys)
            return state, rlzoo.total(losses)

        state, losses = rlzoo.when(t >= first_update, learn, state)
        return state.replace(key=key), metrics | losses

    def policy(state):
        return Policy(state.params.actor)

    def act(policy, obs, key):
        return actor(policy.actor, obs).mode()

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=config.num_envs,
        updates_per_call=config.updates_per_step,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
