"""SMODICE: imitation by a discriminator's reward and weighted cloning, where visits match.

Paper: Ma et al. 2022 (arXiv 2202.02433): a discriminator of observations, the dual value problem
    with the full gradient, and cloning with its weights; losses as in the authors' code.
Kind: imitation, actor-critic, continuous
Run: python algorithms/smodice.py --dataset expert=FILE mixed=FILE --seeds 5
    The authors' sizes: python algorithms/smodice.py --dataset expert=FILE mixed=FILE
    --total-steps 1_000_000 --hidden 256 256 --batch-size 512
Result: what recoil.py is judged against (results/dual_rl)
Metrics:
    loss/discriminator     cross-entropy, with its gradient penalty
    train/reward_expert, train/reward_mixed   log(d_expert / d_mixed) of both data's observations
    loss/value             the dual objective
    loss/actor             weighted negative log-likelihood of the mixed data's actions
    train/v_max            largest |V|; it should not run away
    train/effective        effective share of the batch, (sum w)^2 / n sum w^2: 1 where all count
Deviations:
    No absorbing states; the weights of a batch are scaled to a mean of 1. The policy is a Gaussian
    with one deviation for all observations and no entropy constraint. The default is small.
"""

from typing import Any, Literal, NamedTuple

import chex
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.scipy.special import logsumexp

import rlzoo
from rlzoo import dataset as data
from rlzoo.fast import Linear


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id, for evaluation; empty: the data set's own"""
    discriminator_steps: int = rlzoo.static(2_000, least=1)
    """gradient updates of the discriminator, which come first"""
    total_steps: int = rlzoo.static(20_000, least=1)
    """gradient updates of values and policy, of each member"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of all networks"""
    batch_size: int = rlzoo.static(256, least=1)
    """transitions of each data set in each update"""
    learning_rate: float = rlzoo.traced(3e-4, above=0)
    """Adam's step size"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    divergence: Literal["kl", "chi_square"] = rlzoo.static("kl")
    """f, between the policy's visits and those of the mixed data"""
    use_actions: bool = rlzoo.static(False)
    """let the discriminator see actions too (as in DemoDICE)"""
    gradient_penalty: float = rlzoo.traced(10.0, least=0)
    """factor of the discriminator's penalty: its gradient is to have a norm of 1"""
    value_decay: float = rlzoo.traced(1e-4, least=0)
    """factor of the values' squared parameters"""


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


class Discriminator(nn.Module):
    """Dense layers with tanh between them: a logit [...] for inputs [..., size]."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width)(x))
        return Linear(1)(x)[..., 0]


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
    value: Any
    discriminator: Any


class Policy(NamedTuple):
    actor: Any
    stats: data.Stats
    """of the observations that it learnt from"""


@struct.dataclass
class State:
    params: Params
    opt_states: Params
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def discriminator_loss(params, expert, mixed, mix, discriminator, config):
    """Cross-entropy of inputs [n, size]: 1 for the expert's, 0 for the mixed, and a penalty.

    The penalty is (|gradient| - 1)^2 at points between both, which `mix` [n, 1] in [0, 1] chooses.
    """
    # --- cross-entropy ---
    expert_logit = discriminator(params, expert)
    mixed_logit = discriminator(params, mixed)
    entropy = jax.nn.softplus(-expert_logit).mean() + jax.nn.softplus(mixed_logit).mean()

    # --- penalty ---
    slope = jax.vmap(jax.grad(lambda x: discriminator(params, x)))
    between = mix * expert + (1.0 - mix) * mixed
    norm = jnp.linalg.norm(slope(between), axis=-1)
    penalty = ((norm - 1.0) ** 2).mean()

    loss = entropy + config.gradient_penalty * penalty
    return loss, {
        "loss/discriminator": loss,
        "train/reward_expert": expert_logit.mean(),
        "train/reward_mixed": mixed_logit.mean(),
    }


def advantages(params, batch, reward, value, config):
    """R + gamma V(s') - V(s) [n]."""
    next_value = (1.0 - batch.terminated) * value(params, batch.next_obs)
    return reward + config.discount * next_value - value(params, batch.obs)


def value_loss(params, batch, start_obs, reward, value, config):
    """The dual (equation 20 of the code): (1 - gamma) E V(start) + log E exp(advantage).

    With chi-square its second part is E f*(advantage), f*(y) = y + y^2 / 2. The gradient is full:
    it goes through V(s') too.
    """
    # --- where episodes start ---
    start = value(params, start_obs)

    # --- everywhere else ---
    advantage = advantages(params, batch, reward, value, config)
    chex.assert_equal_shape([advantage, reward])
    if config.divergence == "kl":
        conjugate = logsumexp(advantage) - jnp.log(len(advantage))
    else:
        conjugate = (advantage + advantage**2 / 2.0).mean()
    loss = (1.0 - config.discount) * start.mean() + conjugate
    return loss, {"loss/value": loss, "train/v_max": rlzoo.most(jnp.abs(start).max())}


def importance(advantage, divergence):
    """Weights [n] of mean 1, in proportion to the policy's visits over the data's."""
    if divergence == "kl":
        # exp(advantage), over its mean
        return len(advantage) * jax.nn.softmax(advantage)
    # the derivative of the conjugate where it is positive
    weight = nn.relu(1.0 + advantage)
    return weight / jnp.maximum(weight.mean(), 1e-8)


def actor_loss(params, batch, weight, actor):
    """The likelihood of the data's actions, weighted."""
    log_prob = actor(params, batch.obs).log_prob(batch.action)
    chex.assert_equal_shape([weight, log_prob])
    loss = -(weight * log_prob).mean()
    effective = weight.mean() ** 2 / jnp.maximum((weight**2).mean(), 1e-8)
    return loss, {"loss/actor": loss, "train/effective": effective}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    data.require(dataset, "smodice", "expert", "mixed", discrete=False)

    # --- networks, optimizers ---
    actor_net = Actor(config.hidden, env.action_dim)
    value_net = MLP(config.hidden, 1)
    discriminator_net = Discriminator(config.hidden)
    stats = data.stats(dataset["mixed"], eps=1e-3)
    # One vector of all parameters: an update is then one fused loop.
    adam = optax.adam(config.learning_rate)
    decayed = optax.chain(optax.add_decayed_weights(config.value_decay), adam)
    optimizers = Params(*map(optax.flatten, (adam, decayed, adam)))

    def standardize(stats, obs):
        return env.flatten((obs - stats.mean) / stats.std)

    def actor(params, obs, stats=stats):
        """The distribution of actions."""
        return actor_net.apply(params, standardize(stats, obs))

    def value(params, obs):
        return value_net.apply(params, standardize(stats, obs))[..., 0]

    def seen(batch):
        """What the discriminator sees of a batch, [n, size]."""
        obs = standardize(stats, batch.obs)
        return jnp.concatenate([obs, batch.action], -1) if config.use_actions else obs

    def init(key):
        actor_key, value_key, discriminator_key, key = jax.random.split(key, 4)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        size = obs.size + config.use_actions * env.action_dim
        params = Params(
            actor=actor_net.init(actor_key, obs),
            value=value_net.init(value_key, obs),
            discriminator=discriminator_net.init(discriminator_key, jnp.zeros(size)),
        )
        opt_states = [
            optimizer.init(part) for optimizer, part in zip(optimizers, params, strict=True)
        ]
        return State(params=params, opt_states=Params(*opt_states), key=key)

    def gradient_step(optimizer, loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    def discriminate(state, t):
        """An update of the discriminator."""
        # --- sample ---
        expert_key, mixed_key, mix_key, key = jax.random.split(state.key, 4)
        expert = data.sample(dataset["expert"], expert_key, config.batch_size)
        mixed = data.sample(dataset["mixed"], mixed_key, config.batch_size)

        # --- discriminator ---
        params, opt_state, metrics = gradient_step(
            optimizers.discriminator,
            discriminator_loss,
            state.params.discriminator,
            state.opt_states.discriminator,
            seen(expert),
            seen(mixed),
            jax.random.uniform(mix_key, (config.batch_size, 1)),
            discriminator_net.apply,
            config,
        )
        state = state.replace(
            params=state.params._replace(discriminator=params),
            opt_states=state.opt_states._replace(discriminator=opt_state),
            key=key,
        )
        return state, metrics

    def learn(state, t):
        """An update of values and policy."""
        params = state.params
        opt_states = state.opt_states

        # --- sample ---
        sample_key, start_key, key = jax.random.split(state.key, 3)
        mixed = dataset["mixed"]
        batch = data.sample(mixed, sample_key, config.batch_size)
        # The starts of episodes, all alike.
        episode = jax.random.randint(start_key, (config.batch_size,), 0, mixed.num_episodes)
        start_obs = mixed.obs[mixed.starts[episode]]
        reward = discriminator_net.apply(params.discriminator, seen(batch))

        # --- policy: by the weights of the values as they are ---
        advantage = advantages(params.value, batch, reward, value, config)
        actor_params, actor_opt, actor_metrics = gradient_step(
            optimizers.actor,
            actor_loss,
            params.actor,
            opt_states.actor,
            batch,
            importance(advantage, config.divergence),
            actor,
        )

        # --- values ---
        value_params, value_opt, value_metrics = gradient_step(
            optimizers.value,
            value_loss,
            params.value,
            opt_states.value,
            batch,
            start_obs,
            reward,
            value,
            config,
        )

        state = state.replace(
            params=Params(actor_params, value_params, params.discriminator),
            opt_states=Params(actor_opt, value_opt, opt_states.discriminator),
            key=key,
        )
        return state, actor_metrics | value_metrics

    def policy(state):
        return Policy(state.params.actor, stats)

    def act(policy, obs, key):
        return actor(policy.actor, obs, policy.stats).mean()

    return rlzoo.Algorithm(
        init,
        None,
        policy,
        act,
        stages=(
            rlzoo.Stage(
                "discriminator", discriminate, config.discriminator_steps, updates_per_call=1
            ),
            rlzoo.Stage("policy", learn, config.total_steps, updates_per_call=1, evaluate=True),
        ),
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
