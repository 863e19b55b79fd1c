"""TD3: twin delayed deep deterministic policy gradient.

Paper: Fujimoto et al. 2018 (arXiv 1802.09477), algorithm 1: clipped double Q-learning (equation
10), target policy smoothing (equation 14), delayed policy updates. Continuous actions, vector
observations.

Run:    python algorithms/td3.py --env Pendulum-v1 --seeds 8 --total-steps 20_000 --learning-starts 1_000
Expect: a return of -150 or better (results/baselines, also for brax)

Metrics: `loss/critic` is the mean squared error of both critics together, `loss/actor` the negative
value of the policy's actions (of the updates that moved the policy), `q` the mean value of the
actions taken. All are empty before learning starts.

Where it departs from the paper: none in the algorithm; networks of 256-256 and a step size of 3e-4,
as in the authors' later code. Truncated episodes bootstrap from the true successor. With several
environments, `updates` says how many updates follow each step of all of them.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo.env import EnvState


@rlzoo.config
class Config:
    env: str = rlzoo.static("Pendulum-v1")
    """environment id"""
    total_steps: int = rlzoo.static(1_000_000)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(1)
    """environments stepped together"""
    updates: int = rlzoo.static(1)
    """updates after each such step"""
    hidden: tuple[int, ...] = rlzoo.static((256, 256))
    """widths of the hidden layers, of actor and critics alike"""
    buffer_size: int = rlzoo.static(1_000_000)
    """transitions kept, at most total_steps; a multiple of num_envs"""
    batch_size: int = rlzoo.static(256)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(10_000)
    """environment steps, with random actions, before the first update"""
    policy_delay: int = rlzoo.static(2)
    """critic updates for each update of the policy and the targets"""
    learning_rate: float = 3e-4
    """Adam's step size, of actor and critics"""
    discount: float = 0.99
    """gamma"""
    tau: float = 0.005
    """how far the targets move towards the networks in each update of them"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on actions in [-1, 1]"""
    target_noise: float = 0.2
    """standard deviation of the noise on the target policy's actions"""
    target_noise_clip: float = 0.5
    """where that noise is clipped"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """The last kernel is [out, width]: with few outputs, its gradient is then several times faster
    on a CPU."""

    widths: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        kernel = self.param("kernel", nn.initializers.lecun_normal(1, 0), (self.out, x.shape[-1]))
        return x @ kernel.T + self.param("bias", nn.initializers.zeros, (self.out,))


# ---- state ---------------------------------------------------------------------------------------


class Params(NamedTuple):
    actor: Any
    critics: Any
    """both, stacked"""


class Policy(NamedTuple):
    actor: Any


@struct.dataclass
class State:
    params: Params
    target_params: Params
    actor_opt: Any
    critic_opt: Any
    env: EnvState
    buffer: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def td_target(target_params, sample, noise, actor, critics, config):
    """Clipped double Q-learning (equation 10) with target policy smoothing (equation 14); noise:
    standard normal."""
    batch = sample.batch
    noise = jnp.clip(
        config.target_noise * noise, -config.target_noise_clip, config.target_noise_clip
    )
    action = jnp.clip(actor(target_params.actor, batch.next_obs) + noise, -1.0, 1.0)
    value = critics(target_params.critics, batch.next_obs, action).min(0)
    return batch.reward + sample.discount * (1.0 - batch.terminated) * value


def critic_loss(params, batch, target, critics):
    """Squared errors of both critics (algorithm 1), averaged over the batch; and the mean value."""
    value = critics(params, batch.obs, batch.action)
    return ((value - target) ** 2).mean(-1).sum(), value.mean()


def actor_loss(params, critic_params, batch, actor, critics):
    """The first critic's value of the policy's actions, negated (algorithm 1's deterministic policy
    gradient)."""
    first = jax.tree.map(lambda x: x[:1], critic_params)
    return -critics(first, batch.obs, actor(params, batch.obs)).mean()


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    capacity = min(config.buffer_size, -(-config.total_steps // config.num_envs) * config.num_envs)
    if config.batch_size > capacity:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than the {capacity} transitions that "
            "buffer_size and total_steps allow"
        )
    if config.learning_starts < 1:
        raise rlzoo.Refused(
            f"learning_starts={config.learning_starts} leaves nothing to learn from; at least 1"
        )
    for name in ("updates", "policy_delay"):
        if getattr(config, name) < 1:
            raise rlzoo.Refused(f"{name}={getattr(config, name)} must be at least 1")
    actor_net, critic_net = MLP(config.hidden, env.action_dim), MLP(config.hidden, 1)
    flat = lambda obs: obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)
    actor = lambda params, obs: jnp.tanh(actor_net.apply(params, flat(obs)))

    def critics(params, obs, action):
        pair = jnp.concatenate([flat(obs), action], -1)
        return jax.vmap(critic_net.apply, (0, None))(params, pair)[..., 0]

    optimizer = optax.scale_by_adam()
    buffer = rlzoo.replay.Uniform(capacity, env.example(), config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)

    def init(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
        obs = flat(jnp.zeros(env.obs_shape))
        pair = jnp.zeros(obs.size + env.action_dim)
        critic_keys = jax.random.split(critic_key)
        params = Params(
            actor_net.init(actor_key, obs), jax.vmap(critic_net.init, (0, None))(critic_keys, pair)
        )
        opt_states = (optimizer.init(part) for part in params)
        return State(
            params, params, *opt_states, env.reset(env_key, config.num_envs), buffer.init(), key
        )

    def collect(state, noise_key, env_key, t):
        """One step in every environment: random before learning starts, the policy with noise from
        then on."""
        shape = (config.num_envs, env.action_dim)

        def explore():
            noise = config.exploration_noise * jax.random.normal(noise_key, shape)
            return jnp.clip(actor(state.params.actor, state.env.obs) + noise, -1.0, 1.0)

        action = jax.lax.cond(
            t < first_update, lambda: jax.random.uniform(noise_key, shape, minval=-1.0), explore
        )
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        return state.replace(env=env_state, buffer=buffer.add(state.buffer, transition, t)), metrics

    def descend(loss, params, opt_state):
        (value, extra), grads = jax.value_and_grad(loss, has_aux=True)(params)
        direction, opt_state = optimizer.update(grads, opt_state)
        return (
            jax.tree.map(lambda p, d: p - config.learning_rate * d, params, direction),
            opt_state,
            value,
            extra,
        )

    def update(state, count, key):
        sample_key, noise_key = jax.random.split(key)
        sample = buffer.sample(state.buffer, sample_key, config.batch_size, config.discount)
        noise = jax.random.normal(noise_key, sample.batch.action.shape)
        target = td_target(state.target_params, sample, noise, actor, critics, config)
        critic_params, critic_opt, loss, value = descend(
            lambda p: critic_loss(p, sample.batch, target, critics),
            state.params.critics,
            state.critic_opt,
        )

        def improve():
            actor_params, actor_opt, loss, _ = descend(
                lambda p: (actor_loss(p, critic_params, sample.batch, actor, critics), None),
                state.params.actor,
                state.actor_opt,
            )
            params = Params(actor_params, critic_params)
            return (
                params,
                optax.incremental_update(params, state.target_params, config.tau),
                actor_opt,
                (loss, 1.0),
            )

        def keep():
            return (
                Params(state.params.actor, critic_params),
                state.target_params,
                state.actor_opt,
                (0.0, 0.0),
            )

        params, target_params, actor_opt, moved = jax.lax.cond(
            count % config.policy_delay == 0, improve, keep
        )
        state = state.replace(
            params=params, target_params=target_params, actor_opt=actor_opt, critic_opt=critic_opt
        )
        return state, {"loss/critic": (loss, 1.0), "q": (value, 1.0), "loss/actor": moved}

    def step(state, t):
        noise_key, env_key, update_key, key = jax.random.split(state.key, 4)
        state, metrics = collect(state, noise_key, env_key, t)

        def learn(state):
            counts = t * config.updates + jnp.arange(config.updates)
            keys = jax.random.split(update_key, config.updates)
            state, losses = jax.lax.scan(lambda s, x: update(s, *x), state, (counts, keys))
            return state, jax.tree.map(jnp.sum, losses)

        def wait(state):
            return state, jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn, state)[1]
            )

        state, losses = jax.lax.cond(t >= first_update, learn, wait, state)
        return state.replace(key=key), metrics | losses

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params.actor),
        lambda policy, obs, key: actor(policy.actor, obs),
        steps_per_call=config.num_envs,
        updates_per_call=config.updates,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
