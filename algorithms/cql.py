"""CQL: conservative Q-learning, which is SAC on a recorded data set with low values elsewhere.

Paper: Kumar et al. 2020 (arXiv 2006.04779), CQL(H): equation 4 with its integral by sampling
    (appendix F); SAC: arXiv 1812.05905. Discrete actions: offline_dqn.py.
Kind: offline, actor-critic, continuous
Run: python algorithms/cql.py --dataset FILE --seeds 5
    The authors' sizes: python algorithms/cql.py --dataset FILE --total-steps 1_000_000
    --hidden 256 256 256 --num-actions 10
Result: beside iql.py, f_dvl.py and others in results/dual_rl
Metrics:
    loss/critic     half the squared error of the critics, summed over both
    loss/cql        how far values of sampled actions are above the data's, before its factor
    loss/actor      alpha log pi - Q of the policy's actions
    loss/alpha      loss of the temperature
    train/q         mean value of the data's actions
    train/q_max     largest |value| of them; healthy below the largest |reward| / (1 - gamma)
    train/entropy, train/alpha   entropy of the policy in nats, and the temperature
Deviations:
    A fixed factor cql_alpha, no Lagrange multiplier; the actor has no warm-up by cloning.
    Targets have no entropy, as in the authors' code. Smaller networks and fewer sampled actions.
"""

from typing import Any, NamedTuple

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
    total_steps: int = rlzoo.static(20_000, least=1)
    """gradient updates of each member"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critics alike"""
    batch_size: int = rlzoo.static(256, least=1)
    """transitions in each update"""
    learning_rate: float = rlzoo.traced(3e-4, above=0)
    """Adam's step size, of the critics"""
    actor_learning_rate: float = rlzoo.traced(1e-4, above=0)
    """Adam's step size, of the actor and the temperature"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the target critics move towards the critics in each update"""
    cql_alpha: float = rlzoo.traced(5.0, least=0)
    """factor of the regularizer"""
    num_actions: int = rlzoo.static(4, least=1)
    """sampled actions of each kind: uniform, the policy's, the policy's at the next observation"""
    tune_alpha: bool = rlzoo.static(True)
    """learn the temperature"""
    alpha: float = rlzoo.traced(1.0, above=0)
    """the temperature, at the start where it is learnt"""
    target_entropy: float = -1.0
    """entropy per action dimension (nats) that a learnt temperature aims at"""


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
    key: jax.Array


class Proposals(NamedTuple):
    """Sampled actions of every observation in a batch."""

    action: jax.Array
    """[count, batch, action_dim]"""
    log_prob: jax.Array
    """[count, batch]: log-density with which each was drawn"""


# ---- losses --------------------------------------------------------------------------------------


def squashed_gaussian(head):
    """The distribution of tanh(u), u being Gaussian (equation 26).

    `head` [..., 2 * action_dim] holds the means, then the logarithms of the deviations.
    """
    mean, log_std = jnp.split(head, 2, axis=-1)
    # Unbounded, the deviation could overflow.
    std = jnp.exp(jnp.clip(log_std, -20.0, 2.0))
    normal = distrax.MultivariateNormalDiag(mean, std)
    return distrax.Transformed(normal, distrax.Block(distrax.Tanh(), 1))


def propose(actor_params, batch, key, actor, count):
    """`count` actions each: uniform, of the policy, and of the policy at the next observation."""
    uniform_key, now_key, next_key = jax.random.split(key, 3)

    # --- uniform ---
    shape = (count, *batch.action.shape)
    uniform = jax.random.uniform(uniform_key, shape, minval=-1.0)
    density = jnp.full(shape[:-1], -shape[-1] * jnp.log(2.0))

    # --- of the policy ---
    now = actor(actor_params, batch.obs)
    later = actor(actor_params, batch.next_obs)
    now_action, now_log_prob = now.sample_and_log_prob(seed=now_key, sample_shape=count)
    next_action, next_log_prob = later.sample_and_log_prob(seed=next_key, sample_shape=count)
    return Proposals(
        jnp.concatenate([uniform, now_action, next_action]),
        jnp.concatenate([density, now_log_prob, next_log_prob]),
    )


def td_target(actor_params, target_params, batch, key, actor, critics, config):
    """Targets of both critics [batch], by the smaller value of one action of the policy."""
    # --- action of the policy ---
    pi = actor(actor_params, batch.next_obs)
    action = pi.sample(seed=key)

    # --- the smaller of both values ---
    next_values = critics(target_params, batch.next_obs, action)
    next_value = next_values.min(axis=0)
    discount = config.discount * (1.0 - batch.terminated)
    return batch.reward + discount * next_value


def critic_loss(params, batch, target, proposals, critics, config):
    """Equation 4, summed over both critics: cql_alpha (log int exp Q - Q(data)) + error^2 / 2.

    The integral over actions is estimated from `proposals` by their densities.
    """
    # --- temporal-difference error of the data's actions ---
    value = critics(params, batch.obs, batch.action)
    chex.assert_shape(value, (2, *target.shape))
    td_loss = 0.5 * ((value - target) ** 2).mean(-1).sum()

    # --- values of other actions ---
    action, log_prob = proposals
    obs = jnp.broadcast_to(batch.obs, (len(action), *batch.obs.shape))
    other = critics(params, obs, action)
    chex.assert_shape(other, (2, *log_prob.shape))
    soft_maximum = logsumexp(other - log_prob, axis=1) - jnp.log(len(action))
    cql_loss = (soft_maximum - value).mean(-1).sum()

    loss = td_loss + config.cql_alpha * cql_loss
    return loss, {
        "loss/critic": td_loss,
        "loss/cql": cql_loss,
        "train/q": value.mean(),
        "train/q_max": rlzoo.most(jnp.abs(value).max()),
    }


def actor_loss(params, critic_params, log_alpha, batch, key, actor, critics):
    """The smaller value of the policy's actions with its entropy, negated (equation 9)."""
    alpha = jnp.exp(log_alpha)
    pi = actor(params, batch.obs)
    action, log_prob = pi.sample_and_log_prob(seed=key)
    value = critics(critic_params, batch.obs, action).min(0)
    chex.assert_equal_shape([value, log_prob])
    loss = (alpha * log_prob - value).mean()
    return loss, {
        "loss/actor": loss,
        "train/entropy": -log_prob.mean(),
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
    data.require(dataset, "cql", discrete=False)

    # --- networks, optimizers ---
    action_dim = dataset.action.shape[-1]
    actor_net = MLP(config.hidden, 2 * action_dim)
    critic_net = MLP(config.hidden, 1)
    target_entropy = config.target_entropy * action_dim
    # One vector of all parameters: an update is then one fused loop.
    optimizers = Params(
        actor=optax.flatten(optax.adam(config.actor_learning_rate)),
        critics=optax.flatten(optax.adam(config.learning_rate)),
        log_alpha=optax.adam(config.actor_learning_rate),
    )

    def actor(params, obs):
        """The distribution of actions."""
        return squashed_gaussian(actor_net.apply(params, env.flatten(obs)))

    def critics(params, obs, action):
        """Values of both critics [2, ...]."""
        pair = jnp.concatenate([env.flatten(obs), action], axis=-1)
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
            log_alpha=jnp.log(jnp.float32(config.alpha)),
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

    def gradient_step(optimizer, loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    def step(state, t):
        params = state.params
        opt_states = state.opt_states

        # --- sample ---
        sample_key, next_key, propose_key, actor_key, key = jax.random.split(state.key, 5)
        batch = data.sample(dataset, sample_key, config.batch_size)

        # --- critics ---
        target = td_target(
            params.actor, state.target_params, batch, next_key, actor, critics, config
        )
        proposals = propose(params.actor, batch, propose_key, actor, config.num_actions)
        critic_params, critic_opt, critic_metrics = gradient_step(
            optimizers.critics,
            critic_loss,
            params.critics,
            opt_states.critics,
            batch,
            target,
            proposals,
            critics,
            config,
        )
        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)

        # --- actor ---
        actor_params, actor_opt, actor_metrics = gradient_step(
            optimizers.actor,
            actor_loss,
            params.actor,
            opt_states.actor,
            params.critics,
            params.log_alpha,
            batch,
            actor_key,
            actor,
            critics,
        )

        # --- temperature ---
        log_alpha = params.log_alpha
        alpha_opt = opt_states.log_alpha
        alpha_metrics = {}
        if config.tune_alpha:
            log_alpha, alpha_opt, alpha_metrics = gradient_step(
                optimizers.log_alpha,
                alpha_loss,
                log_alpha,
                alpha_opt,
                actor_metrics["train/entropy"],
                target_entropy,
            )

        state = state.replace(
            params=Params(actor_params, critic_params, log_alpha),
            target_params=target_params,
            opt_states=Params(actor_opt, critic_opt, alpha_opt),
            key=key,
        )
        return state, critic_metrics | actor_metrics | alpha_metrics

    def policy(state):
        return Policy(state.params.actor)

    def act(policy, obs, key):
        pi = actor(policy.actor, obs)
        return jnp.tanh(pi.distribution.mean())

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
