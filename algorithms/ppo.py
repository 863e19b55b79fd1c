"""PPO: proximal policy optimization with the clipped objective.

Paper: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9. Generalized advantage
    estimation: Schulman et al. 2015 (arXiv 1506.02438), equations 11 to 16.
Kind: online, actor-critic, discrete and continuous
Run: python algorithms/ppo.py --env CartPole-v1 --seeds 5
Result: a return of 500 on CartPole within 500,000 steps (results/baselines, also Pendulum and
    MinAtar)
Metrics:
    loss/policy     the clipped objective, negated; its size says little
    loss/value      half the mean squared error of the values
    train/entropy   entropy of the policy in nats; it should fall slowly
    train/kl        estimate E[r - 1 - log r] of KL(old || new); healthy below 0.03
    train/clip_fraction         share of the samples outside the clip range; healthy below 0.3
    train/explained_variance    share of the returns' variance that the values explain
    train/return    return of the episodes that ended in training
    All but the last two are averages over all minibatches.
Deviations:
    Actor and critic are separate networks. Advantages are normalized within each minibatch.
    The learning rate falls linearly to zero (anneal_lr).
    A truncated episode bootstraps from its true successor, which the paper leaves open.
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
from rlzoo.env import EnvState, done
from rlzoo.fast import Linear, permutations
from rlzoo.normalize import RewardScale, RunningStats


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(4, least=1)
    """environments stepped together"""
    num_steps: int = rlzoo.static(128, least=1)
    """steps in each environment between updates"""
    num_epochs: int = rlzoo.static(4, least=1)
    """passes over each rollout"""
    num_minibatches: int = rlzoo.static(4, least=1)
    """minibatches in each pass"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critic alike"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size at the start"""
    anneal_lr: bool = rlzoo.static(True)
    """let the learning rate fall linearly to zero"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    gae_lambda: float = rlzoo.traced(0.95, least=0, most=1)
    """lambda of generalized advantage estimation"""
    clip_eps: float = rlzoo.traced(0.2, above=0)
    """clip range epsilon of the probability ratio"""
    entropy_coef: float = rlzoo.traced(0.01, least=0)
    """weight of the entropy bonus"""
    value_coef: float = rlzoo.traced(0.5, least=0)
    """weight of the value loss"""
    max_grad_norm: float = rlzoo.traced(0.5, above=0)
    """gradients are scaled down to this global norm"""
    normalize_obs: bool = rlzoo.static(False)
    """center and scale observations by their running statistics"""
    normalize_reward: bool = rlzoo.static(False)
    """scale rewards by the running deviation of the discounted return"""


# ---- networks ------------------------------------------------------------------------------------


class TanhMLP(nn.Module):
    """Dense layers with tanh between them, orthogonal at first: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int
    output_scale: float

    @nn.compact
    def __call__(self, x):
        orthogonal = nn.initializers.orthogonal
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=orthogonal(2**0.5))(x)
            x = nn.tanh(x)
        return Linear(self.outputs, kernel_init=orthogonal(self.output_scale))(x)


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


def gae(reward, value, next_value, terminated, done, discount, gae_lambda):
    """Generalized advantage estimates [length, num_envs] (arXiv 1506.02438, equation 16).

    delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t), where s_{t+1} is the true
    successor, so that a truncated episode still bootstraps. The sum of deltas is cut wherever an
    episode is done.
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, done])
    delta = reward + discount * (1.0 - terminated) * next_value - value
    decay = discount * gae_lambda * (1.0 - done)

    def backward(next_advantage, x):
        delta, decay = x
        advantage = delta + decay * next_advantage
        return advantage, advantage

    last = jnp.zeros_like(delta[0])
    _, advantage = jax.lax.scan(backward, last, (delta, decay), reverse=True, unroll=16)
    return advantage


def distribution(head, log_std):
    """Of actions: categorical with logits `head` [..., num_actions], or, where `log_std`
    [action_dim] is given, Gaussian with mean `head` [..., action_dim]."""
    if log_std is None:
        return distrax.Categorical(head)
    std = jnp.broadcast_to(jnp.exp(log_std), head.shape)
    return distrax.MultivariateNormalDiag(head, std)


def loss(params, batch, actor, critic, config):
    """Equation 9: clipped surrogate (equation 7), squared value error, entropy bonus."""
    pi = distribution(actor(params.actor, batch.obs), params.log_std)
    log_prob = pi.log_prob(batch.action)
    value = critic(params.critic, batch.obs)
    chex.assert_equal_shape([log_prob, batch.log_prob, value, batch.target, batch.advantage])

    # --- policy ---
    log_ratio = log_prob - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped_ratio = jnp.clip(ratio, 1.0 - config.clip_eps, 1.0 + config.clip_eps)
    advantage = batch.advantage - batch.advantage.mean()
    advantage = advantage / (batch.advantage.std() + 1e-8)
    surrogate = jnp.minimum(ratio * advantage, clipped_ratio * advantage)
    policy_loss = -surrogate.mean()

    # --- value ---
    error = value - batch.target
    value_loss = 0.5 * (error**2).mean()

    # --- sum ---
    entropy = pi.entropy().mean()
    total = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    return total, {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "train/entropy": entropy,
        "train/kl": (ratio - 1.0 - log_ratio).mean(),
        "train/clip_fraction": (clipped_ratio != ratio).mean(),
    }


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- sizes ---
    size = config.num_envs * config.num_steps
    if size % config.num_minibatches:
        raise rlzoo.Refused(
            f"num_minibatches={config.num_minibatches} does not divide num_envs * num_steps = "
            f"{size}"
        )
    num_calls = -(-config.total_steps // size)
    updates_per_call = config.num_epochs * config.num_minibatches

    # --- networks ---
    outputs = env.num_actions if env.discrete else env.action_dim
    actor_net = TanhMLP(config.hidden, outputs, output_scale=0.01)
    critic_net = TanhMLP(config.hidden, 1, output_scale=1.0)

    def actor(params, obs):
        """Logits or means [..., outputs]."""
        return actor_net.apply(params, env.flatten(obs))

    def critic(params, obs):
        """Values [...]."""
        return critic_net.apply(params, env.flatten(obs))[..., 0]

    # --- optimizer ---
    learning_rate = config.learning_rate
    if config.anneal_lr:
        learning_rate = optax.linear_schedule(learning_rate, 0.0, num_calls * updates_per_call)
    # One vector of all parameters: an update is then a few fused loops.
    optimizer = optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm), optax.adam(learning_rate, eps=1e-5)
        )
    )

    def init(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
        obs = jnp.zeros(env.obs_shape)
        params = Params(
            actor=actor_net.init(actor_key, env.flatten(obs)),
            critic=critic_net.init(critic_key, env.flatten(obs)),
            log_std=None if env.discrete else jnp.zeros(outputs),
        )
        return State(
            params=params,
            opt_state=optimizer.init(params),
            env=env.reset(env_key, config.num_envs),
            stats=RunningStats.init(obs) if config.normalize_obs else None,
            reward_scale=RewardScale.init(config.num_envs) if config.normalize_reward else None,
            key=key,
        )

    def preprocess(stats, obs):
        return obs.astype(jnp.float32) if stats is None else stats.normalize(obs)

    def collect(state, noise_key, env_key, t):
        """A rollout of the policy, and the batch [size, ...] to learn from.

        The critic runs once over the whole rollout, not within it.
        """
        # --- act ---
        shape = (config.num_steps, config.num_envs, outputs)
        draw = jax.random.gumbel if env.discrete else jax.random.normal
        noise = draw(noise_key, shape)

        def choose(carry, obs, noise):
            head = actor(state.params.actor, preprocess(state.stats, obs))
            if env.discrete:
                action = jnp.argmax(head + noise, axis=-1)
            else:
                action = head + jnp.exp(state.params.log_std) * noise
            return carry, action, head

        env_state, _, steps, head, metrics = env.rollout(
            state.env, choose, None, noise, env_key, config.num_steps, t
        )
        log_prob = distribution(head, state.params.log_std).log_prob(steps.action)

        # --- normalize ---
        stats = state.stats
        reward = steps.reward
        reward_scale = state.reward_scale
        obs = preprocess(stats, steps.obs)
        if config.normalize_obs:
            stats = stats.update(steps.obs)
        if config.normalize_reward:
            reward_scale, reward = reward_scale.update(reward, done(steps), config.discount)

        # --- values and advantages ---
        def value_of(obs):
            return critic(state.params.critic, preprocess(state.stats, obs))

        value = critic(state.params.critic, obs)
        advantage = gae(
            reward,
            value,
            env.successor_values(value, steps, value_of),
            steps.terminated,
            done(steps),
            config.discount,
            config.gae_lambda,
        )
        target = advantage + value
        unexplained = advantage.var() / (target.var() + 1e-8)
        metrics["train/explained_variance"] = 1.0 - unexplained

        # --- flatten ---
        batch = Batch(obs, steps.action, log_prob, advantage, target)
        batch = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), batch)
        state = state.replace(env=env_state, stats=stats, reward_scale=reward_scale)
        return state, batch, metrics

    def step(state, t):
        noise_key, env_key, shuffle_key, key = jax.random.split(state.key, 4)
        state, batch, metrics = collect(state, noise_key, env_key, t)

        def update(carry, rows):
            """One gradient step on the samples `rows`."""
            params, opt_state = carry
            minibatch = jax.tree.map(lambda x: x[rows], batch)

            # --- gradient step ---
            grads, metrics = jax.grad(loss, has_aux=True)(params, minibatch, actor, critic, config)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        # --- minibatches ---
        rows = permutations(shuffle_key, config.num_epochs, size)
        rows = rows.reshape(updates_per_call, -1)
        (params, opt_state), losses = jax.lax.scan(
            update, (state.params, state.opt_state), rows, unroll=min(4, updates_per_call)
        )
        state = state.replace(params=params, opt_state=opt_state, key=key)
        return state, metrics | rlzoo.total(losses)

    def policy(state):
        return Policy(state.params, state.stats)

    def act(policy, obs, key):
        head = actor(policy.params.actor, preprocess(policy.stats, obs))
        return jnp.argmax(head, axis=-1) if env.discrete else head

    return rlzoo.Algorithm(
        init, step, policy, act, steps_per_call=size, updates_per_call=updates_per_call
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
