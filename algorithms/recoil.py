"""ReCOIL: imitation of an expert beside unlabelled data, without a discriminator.

Paper: Sikchi et al. 2024 (arXiv 2302.08560): matching mixtures of occupancies, f being chi-square.
    `released` is the loss of the authors' code, an LS-IQ (arXiv 2303.00599) with fixed targets;
    `mixture` is the one that the mixtures lead to.
Kind: imitation, actor-critic, continuous
Run: python algorithms/recoil.py --dataset expert=FILE mixed=FILE --seeds 5
    The authors' sizes: python algorithms/recoil.py --dataset expert=FILE mixed=FILE
    --total-steps 1_000_000 --hidden 256 256 --batch-size 1024
Result: beside cloning, iq_learn.py and smodice.py in results/dual_rl. Where the values diverge,
    raise --temperature: 2.5, 5, 10, 20.
Metrics:
    loss/value         Gumbel loss of the values, rescaled by its largest exponential
    loss/critic        the critics' loss, summed over both
    loss/actor         weighted negative log-likelihood of the actions
    train/q_expert, train/q_mixed   mean values of both data's actions; the first should be higher
    train/v_max        largest |V|; with `released` about expert_reward / (1 - gamma) at most
    train/clipped      share with (Q - V) / temperature at max_clip: these have no gradient
    train/saturated    share of the actor's weights at their cap
Deviations:
    `released`, as in the code: labelled pairs have no Bellman error, only the mixed data train V
    and the actor, and beta has no part. `mixture` keeps the 1/4 of the conjugate. No dropout.
"""

from typing import Any, Literal, NamedTuple

import chex
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import dataset as data
from rlzoo.env import Transition
from rlzoo.fast import Linear


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
    """transitions of each data set in each update"""
    learning_rate: float = rlzoo.traced(3e-4, above=0)
    """Adam's step size"""
    anneal_actor: bool = rlzoo.static(True)
    """let the actor's step size fall to zero by a cosine"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the target critics move towards the critics in each update"""
    inverse_temperature: float = rlzoo.traced(3.0, least=0)
    """factor of the advantage in the exponent of the actor's weights"""
    max_weight: float = rlzoo.traced(100.0, above=0)
    """largest weight"""
    loss: Literal["released", "mixture"] = rlzoo.static("released")
    """how the critics are learnt, and from which data values and actor"""
    expert_reward: float = rlzoo.traced(2.0, above=0)
    """`released`: reward of the expert's steps, and negated that of the mixed data's"""
    beta: float = rlzoo.traced(0.5, above=0, most=1)
    """`mixture`: share of the expert in both mixtures"""
    temperature: float = rlzoo.traced(5.0, above=0)
    """of the soft maximum by which V follows from Q: small is near the maximum, large the mean"""
    max_clip: float = rlzoo.traced(7.0, above=0)
    """largest (Q - V) / temperature"""


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


@struct.dataclass
class State:
    params: Params
    target_params: Any
    """of the critics"""
    opt_states: Params
    key: jax.Array


class Rows(NamedTuple):
    """Mixed data, then as many rows of the expert's."""

    batch: Transition
    """leaves [2 n, ...]"""
    weight: jax.Array
    """float32 [2 n], of mean 1: how much each counts for values and actor"""


# ---- losses --------------------------------------------------------------------------------------


def value_loss(params, rows, q, value, config):
    """The Gumbel regression of q [2 n] by the values of the observations, weighted.

    That is exp(z) - z - 1, z = (q - v) / temperature, with its minimum at a soft maximum of q. It
    is divided by the batch's largest exp(z) and cannot overflow.
    """
    v = value(params, rows.batch.obs)
    chex.assert_equal_shape([v, q, rows.weight])
    gap = (q - v) / config.temperature
    z = jnp.minimum(gap, config.max_clip)
    # Constant, so that it scales the gradient alone.
    largest = jax.lax.stop_gradient(jnp.maximum(z.max(), -1.0))
    gumbel = jnp.exp(z - largest) - (z + 1.0) * jnp.exp(-largest)
    loss = (rows.weight * gumbel).mean()
    return loss, {
        "loss/value": loss,
        "train/v": v.mean(),
        "train/v_max": rlzoo.most(jnp.abs(v).max()),
        "train/clipped": (gap > config.max_clip).mean(),
    }


def released_loss(q_mixed, q_expert, next_value, terminated, config):
    """The loss of the code, of q_mixed and q_expert [2, n]: summed over critics.

    The expert's values are pinned at expert_reward for ever. The mixed data's have the negative
    reward and, where an episode terminated, have it for ever.
    """
    # the value of a reward in every step
    forever = config.expert_reward / (1.0 - config.discount)
    after = jnp.where(terminated, -forever, next_value)
    target = -config.expert_reward + config.discount * after
    mixed_error = (q_mixed - target) ** 2
    expert_error = (q_expert - forever) ** 2
    error = mixed_error + expert_error
    return 0.5 * error.mean(-1).sum()


def mixture_loss(q, expert, residual, config):
    """The loss that the mixtures lead to, of q [2, 2 n]: summed over critics.

    beta (E_mixed V - E_expert Q) + E_mixture (gamma V' - Q)^2 / 4, without its first part, which
    no critic changes. `expert` [2 n] marks rows; `residual` [2, 2 n] is gamma V' - Q.
    """
    share = jnp.where(expert, config.beta, 1.0 - config.beta)
    # Half of the rows are the expert's: twice a mean over all is one over each half.
    mixture = 2.0 * (share * residual**2 / 4.0).mean(-1)
    pull = 2.0 * config.beta * jnp.where(expert, q, 0.0).mean(-1)
    return (mixture - pull).sum()


def critic_loss(params, rows, next_value, critics, config):
    """`released_loss` or `mixture_loss` at the values of the next observations [2 n]."""
    batch = rows.batch
    q = critics(params, batch.obs, batch.action)
    chex.assert_shape(q, (2, *next_value.shape))
    n = len(next_value) // 2
    q_mixed = q[:, :n]
    q_expert = q[:, n:]
    if config.loss == "released":
        loss = released_loss(
            q_mixed,
            q_expert,
            next_value[:n],
            batch.terminated[:n],
            config,
        )
    else:
        expert = jnp.arange(2 * n) >= n
        discount = config.discount * (1.0 - batch.terminated)
        residual = discount * next_value - q
        loss = mixture_loss(q, expert, residual, config)
    return loss, {
        "loss/critic": loss,
        "train/q_mixed": q_mixed.mean(),
        "train/q_expert": q_expert.mean(),
    }


def actor_loss(params, rows, advantage, actor, config):
    """The likelihood of the data's actions, weighted by exp(advantage [2 n]) and the rows' own."""
    # --- weights, capped ---
    weight = jnp.exp(config.inverse_temperature * advantage)
    saturated = weight >= config.max_weight
    weight = rows.weight * jnp.minimum(weight, config.max_weight)

    # --- likelihood ---
    pi = actor(params, rows.batch.obs)
    log_prob = pi.log_prob(rows.batch.action)
    chex.assert_equal_shape([weight, log_prob])
    loss = -(weight * log_prob).mean()
    return loss, {"loss/actor": loss, "train/saturated": saturated.mean()}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    data.require(dataset, "recoil", "expert", "mixed", discrete=False)

    # --- networks, optimizers ---
    action_dim = env.action_dim
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

    def actor(params, obs):
        """The distribution of actions."""
        return actor_net.apply(params, env.flatten(obs))

    def critics(params, obs, action):
        """Values of both critics [2, ...]."""
        pair = jnp.concatenate([env.flatten(obs), action], axis=-1)
        values = jax.vmap(critic_net.apply, (0, None))(params, pair)
        return values[..., 0]

    def value(params, obs):
        return value_net.apply(params, env.flatten(obs))[..., 0]

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
        return State(
            params=params,
            # The targets start as the critics.
            target_params=params.critics,
            opt_states=Params(*opt_states),
            key=key,
        )

    def draw(mixed_key, expert_key):
        """A batch of both data sets, and the share of each in values and actor."""
        parts = (
            data.sample(dataset["mixed"], mixed_key, config.batch_size),
            data.sample(dataset["expert"], expert_key, config.batch_size),
        )
        batch = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
        share = config.beta if config.loss == "mixture" else 0.0
        weight = 2.0 * jnp.array([1.0 - share, share], jnp.float32)
        return Rows(batch, jnp.repeat(weight, config.batch_size))

    def gradient_step(optimizer, loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    def step(state, t):
        params = state.params
        opt_states = state.opt_states

        # --- sample ---
        mixed_key, expert_key, key = jax.random.split(state.key, 3)
        rows = draw(mixed_key, expert_key)
        batch = rows.batch

        # --- values: a soft maximum over what the target critics think of the actions ---
        q = critics(state.target_params, batch.obs, batch.action).min(0)
        value_params, value_opt, value_metrics = gradient_step(
            optimizers.value,
            value_loss,
            params.value,
            opt_states.value,
            rows,
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
            rows,
            advantage,
            actor,
            config,
        )

        # --- critics: towards the new values ---
        next_value = value(value_params, batch.next_obs)
        critic_params, critic_opt, critic_metrics = gradient_step(
            optimizers.critics,
            critic_loss,
            params.critics,
            opt_states.critics,
            rows,
            next_value,
            critics,
            config,
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
        return Policy(state.params.actor)

    def act(policy, obs, key):
        # The mean of a Gaussian has no noise, as policies are evaluated.
        return actor(policy.actor, obs).mean()

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
