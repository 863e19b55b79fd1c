"""SAC: soft actor-critic with a learnt temperature and twin critics.

Papers: Haarnoja et al. 2018 (arXiv 1812.05905): equations 5-7 (critics), 9 (policy), 18
(temperature), 26 (density of squashed actions). Discrete actions, where all expectations over
actions are exact: Christodoulou 2019 (arXiv 1910.07207), equations 10-12.

Run:    python algorithms/sac.py --env Pendulum-v1 --seeds 8 --total-steps 20_000 --learning-starts 1_000
Expect: a return of -150 or better (results/baselines, also for brax)

Metrics: `loss/critic` is the mean squared error of both critics together, `loss/actor` the negative
soft value of the policy, `alpha` the temperature, `entropy` the policy's entropy (nats; estimated
from its samples where actions are continuous), `q` the mean value of the actions taken. All are
empty before learning starts.

Where it departs from the papers: none in the algorithm; with several environments, `updates` says
how many updates follow each step of all of them. Truncated episodes bootstrap from the true
successor. Evaluation takes the mean (or most likely) action.
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
    learning_rate: float = 3e-4
    """Adam's step size, of actor, critics and temperature"""
    discount: float = 0.99
    """gamma"""
    tau: float = 0.005
    """how far the target critics move towards the critics in each update"""
    tune_alpha: bool = rlzoo.static(True)
    """learn the temperature"""
    alpha: float = 1.0
    """the temperature, at the start where it is learnt"""
    target_entropy: float = -1.0
    """entropy per action dimension (nats) that a learnt temperature aims at"""
    target_share: float = 0.98
    """discrete actions: share of the largest possible entropy that it aims at"""


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
    log_alpha: jax.Array


class Policy(NamedTuple):
    actor: Any


@struct.dataclass
class State:
    params: Params
    target_critics: Any
    opt_states: Params
    env: EnvState
    buffer: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def squashed(head, noise):
    """Action tanh(mean + std * noise) [..., action_dim] of a Gaussian head [..., 2 * action_dim],
    and its log density.

    Equation 26, with log(1 - tanh(u)^2) as 2 (log 2 - u - softplus(-2 u)), which does not lose
    digits at large u.
    """
    mean, log_std = jnp.split(head, 2, -1)
    log_std = jnp.clip(log_std, -20.0, 2.0)
    u = mean + jnp.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.tanh(u), (normal - 2 * (jnp.log(2.0) - u - nn.softplus(-2 * u))).sum(-1)


def soft_value(head, noise, alpha, value):
    """Equation 6: V = E[Q - alpha log pi], from one action, or exactly where they are discrete
    (`noise` None).

    `value(action)` gives Q [twins, ...], of all actions [twins, ..., num_actions] where `action` is
    None; the smaller twin counts. Also returns the policy's entropy, estimated likewise.
    """
    if noise is None:
        log_prob = nn.log_softmax(head)
        expect = lambda x: (jnp.exp(log_prob) * x).sum(-1)
        return expect(value(None).min(0) - alpha * log_prob), -expect(log_prob)
    action, log_prob = squashed(head, noise)
    return value(action).min(0) - alpha * log_prob, -log_prob


def critic_loss(value, target):
    """Equation 5 for both critics: squared errors of `value` [twins, batch] against `target`
    [batch]."""
    return ((value - target) ** 2).mean(-1).sum()


def alpha_loss(log_alpha, entropy, target):
    """Equation 18: the temperature rises while the policy's entropy is below its target."""
    return jnp.exp(log_alpha) * jax.lax.stop_gradient(entropy.mean() - target)


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    capacity = min(config.buffer_size, -(-config.total_steps // config.num_envs) * config.num_envs)
    if config.batch_size > capacity:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than the {capacity} transitions that "
            "buffer_size and total_steps allow"
        )
    for name in ("learning_starts", "updates"):
        if getattr(config, name) < 1:
            raise rlzoo.Refused(f"{name}={getattr(config, name)} must be at least 1")
    actor_net = MLP(config.hidden, env.num_actions if env.discrete else 2 * env.action_dim)
    critic_net = MLP(config.hidden, env.num_actions if env.discrete else 1)
    flat = lambda obs: obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)
    actor = lambda params, obs: actor_net.apply(params, flat(obs))

    def critics(params, obs, action):
        """[twins, batch]; of all actions, [twins, batch, num_actions], where they are discrete and
        `action` is None."""
        x = flat(obs) if env.discrete else jnp.concatenate([flat(obs), action], -1)
        value = jax.vmap(critic_net.apply, (0, None))(params, x)
        if env.discrete and action is None:
            return value
        return (
            jnp.take_along_axis(value, action[None, :, None], -1)[..., 0]
            if env.discrete
            else value[..., 0]
        )

    optimizer = optax.scale_by_adam()
    buffer = rlzoo.replay.Uniform(capacity, env.example(), config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)
    if env.discrete:
        target_entropy = config.target_share * jnp.log(env.num_actions)
    else:
        target_entropy = config.target_entropy * env.action_dim

    def init(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
        obs = flat(jnp.zeros(env.obs_shape))
        x = obs if env.discrete else jnp.zeros(obs.size + env.action_dim)
        params = Params(
            actor=actor_net.init(actor_key, obs),
            critics=jax.vmap(critic_net.init, (0, None))(jax.random.split(critic_key), x),
            log_alpha=jnp.log(jnp.float32(config.alpha)),
        )
        opt_states = Params(*map(optimizer.init, params))
        return State(
            params,
            params.critics,
            opt_states,
            env.reset(env_key, config.num_envs),
            buffer.init(),
            key,
        )

    def draw(key, count):
        return None if env.discrete else jax.random.normal(key, (count, env.action_dim))

    def collect(state, key, env_key, t):
        """One step in every environment: random before learning starts, the policy from then on."""

        def random():
            if env.discrete:
                return jax.random.randint(key, (config.num_envs,), 0, env.num_actions)
            return jax.random.uniform(key, (config.num_envs, env.action_dim), minval=-1.0)

        def explore():
            head = actor(state.params.actor, state.env.obs)
            return (
                jax.random.categorical(key, head)
                if env.discrete
                else squashed(head, draw(key, config.num_envs))[0]
            )

        action = jax.lax.cond(t < first_update, random, explore)
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        return state.replace(env=env_state, buffer=buffer.add(state.buffer, transition, t)), metrics

    def update(state, key):
        sample_key, next_key, now_key = jax.random.split(key, 3)
        sample = buffer.sample(state.buffer, sample_key, config.batch_size, config.discount)
        batch, params = sample.batch, state.params
        alpha = jnp.exp(params.log_alpha)
        next_value, _ = soft_value(
            actor(params.actor, batch.next_obs),
            draw(next_key, config.batch_size),
            alpha,
            lambda action: critics(state.target_critics, batch.next_obs, action),
        )
        target = (
            batch.reward + sample.discount * (1.0 - batch.terminated) * next_value
        )  # equation 7

        def for_critics(critic_params):
            value = critics(critic_params, batch.obs, batch.action)
            return critic_loss(value, target), value.mean()

        def for_actor(actor_params):
            value, entropy = soft_value(
                actor(actor_params, batch.obs),
                draw(now_key, config.batch_size),
                alpha,
                lambda action: critics(params.critics, batch.obs, action),
            )
            return -value.mean(), entropy

        (loss, value), critic_grads = jax.value_and_grad(for_critics, has_aux=True)(params.critics)
        (actor_loss, entropy), actor_grads = jax.value_and_grad(for_actor, has_aux=True)(
            params.actor
        )
        alpha_grad = jax.grad(alpha_loss)(params.log_alpha, entropy, target_entropy)
        grads = Params(
            actor_grads,
            critic_grads,
            alpha_grad if config.tune_alpha else jnp.zeros_like(alpha_grad),
        )
        steps, opt_states = zip(*map(optimizer.update, grads, state.opt_states), strict=True)
        params = jax.tree.map(lambda p, d: p - config.learning_rate * d, params, Params(*steps))
        target_critics = optax.incremental_update(params.critics, state.target_critics, config.tau)
        metrics = {
            "loss/critic": loss,
            "loss/actor": actor_loss,
            "q": value,
            "entropy": entropy.mean(),
            "alpha": alpha,
        }
        state = state.replace(
            params=params, target_critics=target_critics, opt_states=Params(*opt_states)
        )
        return state, {name: (value, 1.0) for name, value in metrics.items()}

    def step(state, t):
        act_key, env_key, update_key, key = jax.random.split(state.key, 4)
        state, metrics = collect(state, act_key, env_key, t)

        def learn(state):
            state, losses = jax.lax.scan(
                update, state, jax.random.split(update_key, config.updates)
            )
            return state, jax.tree.map(jnp.sum, losses)

        def wait(state):
            return state, jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn, state)[1]
            )

        state, losses = jax.lax.cond(t >= first_update, learn, wait, state)
        return state.replace(key=key), metrics | losses

    def act(policy, obs, key):
        head = actor(policy.actor, obs)
        return jnp.argmax(head, -1) if env.discrete else jnp.tanh(jnp.split(head, 2, -1)[0])

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params.actor),
        act,
        steps_per_call=config.num_envs,
        updates_per_call=config.updates,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
