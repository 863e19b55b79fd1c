"""PPO: proximal policy optimisation with the clipped objective and generalised advantage
estimation.

Papers: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9; GAE: Schulman et al. 2015 (arXiv
1506.02438), equations 11-16. Discrete and continuous actions, vector and image observations.

Run:    python algorithms/ppo.py --env CartPole-v1 --seeds 8 --learning-rate 1e-3
Expect: a return of 500 within 100,000 steps (results/baselines, also for Pendulum and MinAtar)

Metrics: `loss/policy`, `loss/value` and `entropy` (nats) are averages over all minibatches; `kl` is
the estimate E[r - 1 - log r] of KL(old || new); `clipped` is the fraction of samples outside the
clip range; `explained` is the share of the returns' variance that the values of the rollout
explain.

Where it departs from the paper: actor and critic are separate networks; advantages are normalised
within each minibatch; the learning rate falls linearly to zero (`anneal`). Truncated episodes
bootstrap from the value of the true successor observation, which the paper leaves open and most
implementations get wrong.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

import rlzoo
from rlzoo.env import EnvState, done
from rlzoo.normalize import RewardScale, RunningStats


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(4)
    """environments stepped together"""
    num_steps: int = rlzoo.static(128)
    """steps in each environment between updates"""
    epochs: int = rlzoo.static(4)
    """passes over each rollout"""
    minibatches: int = rlzoo.static(4)
    """minibatches in each pass"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64))
    """widths of the hidden layers, of actor and critic alike"""
    learning_rate: float = 2.5e-4
    """Adam's step size at the start"""
    anneal: bool = rlzoo.static(True)
    """let the learning rate fall linearly to zero"""
    discount: float = 0.99
    """gamma"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    clip: float = 0.2
    """clip range epsilon of the probability ratio"""
    entropy_coef: float = 0.01
    """weight of the entropy bonus"""
    value_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this global norm"""
    normalize_obs: bool = rlzoo.static(False)
    """centre and scale observations by their running statistics"""
    normalize_reward: bool = rlzoo.static(False)
    """scale rewards by the running deviation of the discounted return"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """The last kernel is [out, width]: with few outputs, its gradient is then six times faster on a
    CPU."""

    widths: tuple[int, ...]
    out: int
    out_scale: float

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        kernel = self.param(
            "kernel", nn.initializers.orthogonal(self.out_scale), (self.out, x.shape[-1])
        )
        return x @ kernel.T + self.param("bias", nn.initializers.zeros, (self.out,))


# ---- state ---------------------------------------------------------------------------------------


class Params(NamedTuple):
    actor: Any
    critic: Any
    log_std: jax.Array | None
    """[action_dim]; None for discrete actions"""


class Policy(NamedTuple):
    params: Params
    stats: RunningStats | None


@struct.dataclass
class State:
    params: Params
    opt_state: Any
    env: EnvState
    stats: RunningStats | None
    reward_scale: RewardScale | None
    key: jax.Array


class Batch(NamedTuple):
    """Leading axis: samples."""

    obs: Any
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    target: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def gae(reward, value, next_value, terminated, done, discount, lam):
    """Generalised advantage estimation (arXiv 1506.02438, equation 16) over [length, num_envs].

    delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t), where s_{t+1} is the true
    successor, so that a truncated episode still bootstraps; the sum of deltas is cut wherever an
    episode is done.
    """
    delta = reward + discount * (1.0 - terminated) * next_value - value
    decay = discount * lam * (1.0 - done)

    def body(advantage, x):
        advantage = x[0] + x[1] * advantage
        return advantage, advantage

    return jax.lax.scan(body, jnp.zeros_like(delta[0]), (delta, decay), reverse=True, unroll=16)[1]


def log_prob_and_entropy(head, log_std, action):
    """Of a categorical with logits `head` [..., num_actions], or of a diagonal Gaussian with mean
    `head`."""
    if log_std is None:
        log_probs = jax.nn.log_softmax(head)
        taken = (log_probs * jax.nn.one_hot(action, head.shape[-1])).sum(-1)
        return taken, -(jnp.exp(log_probs) * log_probs).sum(-1)
    z = (action - head) * jnp.exp(-log_std)
    constant = 0.5 * jnp.log(2 * jnp.pi) + log_std
    return -(0.5 * z**2 + constant).sum(-1), jnp.broadcast_to((0.5 + constant).sum(), z.shape[:-1])


def loss(params, batch, actor, critic, config):
    """Equation 9: clipped surrogate (equation 7), squared value error, entropy bonus. Metrics: see
    METRICS."""
    log_prob, entropy = log_prob_and_entropy(
        actor(params.actor, batch.obs), params.log_std, batch.action
    )
    value = critic(params.critic, batch.obs)[..., 0]
    log_ratio = log_prob - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    terms = (
        -jnp.minimum(ratio * advantage, clipped * advantage),
        0.5 * (value - batch.target) ** 2,
        entropy,
    )
    policy_loss, value_loss, bonus = (term.mean() for term in terms)
    total = policy_loss + config.value_coef * value_loss - config.entropy_coef * bonus
    return total, jnp.stack([*terms, ratio - 1.0 - log_ratio, clipped != ratio]).mean(-1)


METRICS = ("loss/policy", "loss/value", "entropy", "kl", "clipped")


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


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    size = config.num_envs * config.num_steps
    if size % config.minibatches:
        raise rlzoo.Refused(
            f"minibatches={config.minibatches} does not divide num_envs * num_steps = {size}"
        )
    outputs = env.num_actions if env.discrete else env.action_dim
    actor_net = MLP(config.hidden, outputs, 0.01)
    critic_net = MLP(config.hidden, 1, 1.0)
    flat = lambda obs: obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)
    actor = lambda params, obs: actor_net.apply(params, flat(obs))
    critic = lambda params, obs: critic_net.apply(params, flat(obs))
    updates = -(-config.total_steps // size) * config.epochs * config.minibatches
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=1e-5)
    )

    def init(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
        obs = flat(jnp.zeros(env.obs_shape))
        log_std = None if env.discrete else jnp.zeros(outputs)
        params = Params(actor_net.init(actor_key, obs), critic_net.init(critic_key, obs), log_std)
        return State(
            params=params,
            opt_state=optimizer.init(ravel_pytree(params)[0]),
            env=env.reset(env_key, config.num_envs),
            stats=RunningStats.init(jnp.zeros(env.obs_shape)) if config.normalize_obs else None,
            reward_scale=RewardScale.init(config.num_envs) if config.normalize_reward else None,
            key=key,
        )

    def see(stats, obs):
        return obs.astype(jnp.float32) if stats is None else stats.normalize(obs)

    def collect(state, noise_key, env_key, t):
        """Roll the policy, then judge all steps at once: the critic runs over the whole rollout,
        not within it."""
        shape = (config.num_steps, config.num_envs, outputs)
        noise = (jax.random.gumbel if env.discrete else jax.random.normal)(noise_key, shape)

        def choose(carry, obs, noise):
            head = actor(state.params.actor, see(state.stats, obs))
            action = (
                jnp.argmax(head + noise, -1)
                if env.discrete
                else head + jnp.exp(state.params.log_std) * noise
            )
            return carry, action, head

        env_state, _, steps, head, metrics = env.rollout(
            state.env, choose, None, noise, env_key, config.num_steps, t
        )
        stats = state.stats
        obs = see(stats, steps.obs)
        if config.normalize_obs:
            stats = stats.update(steps.obs)
        reward, reward_scale = steps.reward, state.reward_scale
        if config.normalize_reward:
            reward_scale, reward = reward_scale.update(reward, done(steps), config.discount)
        judge = lambda obs: critic(state.params.critic, obs)[..., 0]
        value = judge(obs)
        next_value = env.successor_values(value, steps, lambda obs: judge(see(state.stats, obs)))
        log_prob, _ = log_prob_and_entropy(head, state.params.log_std, steps.action)
        advantage = gae(
            reward,
            value,
            next_value,
            steps.terminated,
            done(steps),
            config.discount,
            config.gae_lambda,
        )
        target = advantage + value
        metrics["explained"] = 1.0 - advantage.var() / (target.var() + 1e-8)
        batch = jax.tree.map(
            lambda x: x.reshape(size, *x.shape[2:]),
            Batch(obs, steps.action, log_prob, advantage, target),
        )
        return state.replace(env=env_state, stats=stats, reward_scale=reward_scale), batch, metrics

    def step(state, t):
        noise_key, env_key, shuffle_key, key = jax.random.split(state.key, 4)
        state, batch, metrics = collect(state, noise_key, env_key, t)
        params, unravel = ravel_pytree(
            state.params
        )  # one vector: an optimiser step is then a few fused loops

        def update(carry, rows):
            params, opt_state, count = carry
            minibatch = jax.tree.map(lambda x: x[rows], batch)
            objective = lambda p: loss(unravel(p), minibatch, actor, critic, config)
            grads, metrics = jax.grad(objective, has_aux=True)(params)
            direction, opt_state = optimizer.update(grads, opt_state)
            rate = config.learning_rate * (1.0 - count / updates if config.anneal else 1.0)
            return (params - rate * direction, opt_state, count + 1), metrics

        rows = shuffles(shuffle_key, config.epochs, size).reshape(
            config.epochs * config.minibatches, -1
        )
        carry = (params, state.opt_state, t * config.epochs * config.minibatches)
        (params, opt_state, _), losses = jax.lax.scan(update, carry, rows, unroll=min(4, len(rows)))
        metrics |= dict(zip(METRICS, losses.mean(0), strict=True))
        return state.replace(params=unravel(params), opt_state=opt_state, key=key), metrics

    def act(policy, obs, key):
        head = actor(policy.params.actor, see(policy.stats, obs))
        return jnp.argmax(head, -1) if env.discrete else head

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params, state.stats),
        act,
        steps_per_call=size,
        updates_per_call=config.epochs * config.minibatches,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
