"""IQ-Learn: imitation by values whose implied rewards are those of the expert.

Paper: Garg et al. 2021 (arXiv 2106.12142), equation 9 with chi-square: phi(r) = r - r^2 / 4c, and
    algorithm 1 with recorded data in place of the replay; SAC: arXiv 1812.05905.
Kind: imitation, actor-critic, continuous
Run: python algorithms/iq_learn.py --dataset expert=FILE mixed=FILE --seeds 5
    The expert's data alone: --no-use-mixed
Result: what recoil.py is judged against (results/dual_rl)
Metrics:
    loss/critic           the objective of the critics, negated, summed over both
    loss/actor            alpha log pi - Q of the policy's actions
    train/reward_expert   implied reward Q - gamma V' of the expert's actions; it should be positive
    train/reward_mixed    the same of the mixed data's; it should be lower
    train/q_max           largest |Q|; it should not run away
    train/entropy         entropy of the policy, in nats
Deviations:
    V' is that of the target critics and has no gradient, as with `use_target` in the authors' code.
    The temperature is fixed.
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


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id, for evaluation; empty: the data set's own"""
    total_steps: int = rlzoo.static(20_000, least=1)
    """gradient updates of each member"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critics alike"""
    batch_size: int = rlzoo.static(256, least=1)
    """transitions of each data set in each update"""
    learning_rate: float = rlzoo.traced(3e-4, above=0)
    """Adam's step size"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the target critics move towards the critics in each update"""
    alpha: float = rlzoo.traced(0.01, above=0)
    """the temperature"""
    chi_square: float = rlzoo.traced(0.5, above=0)
    """c: the larger, the larger implied rewards may be"""
    use_mixed: bool = rlzoo.static(True)
    """learn from the mixed data too, whose rewards are to be small; not the expert's alone"""


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


@struct.dataclass
class State:
    params: Params
    target_params: Any
    """of the critics"""
    opt_states: Params
    key: jax.Array


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


def soft_values(critic_params, actor_params, obs, key, actor, critics, config):
    """Q - alpha log pi of one action of the policy, by both critics: [2, batch]."""
    pi = actor(actor_params, obs)
    action, log_prob = pi.sample_and_log_prob(seed=key)
    value = critics(critic_params, obs, action)
    return value - config.alpha * log_prob


def critic_loss(params, batch, expert, next_value, values, critics, config):
    """Equation 9, negated, summed over both critics.

    -E_expert r + E r^2 / 4c + E [V(s) - gamma V'], where r = Q(s, a) - gamma V' is the implied
    reward. `expert` [batch] marks rows; `next_value` [batch] is V', 0 where terminated;
    `values(params)` are V(s) by both critics [2, batch].
    """
    # --- implied rewards: high for the expert's actions, and none too large ---
    q = critics(params, batch.obs, batch.action)
    chex.assert_shape(q, (2, *next_value.shape))
    reward = q - config.discount * next_value
    demonstrated = (expert * reward).sum(-1) / expert.sum()
    penalty = (reward**2).mean(-1) / (4.0 * config.chi_square)

    # --- the policy's own values: low ---
    own = values(params) - config.discount * next_value
    loss = (penalty + own.mean(-1) - demonstrated).sum()

    other = 1.0 - expert
    mixed_reward = (other * reward.mean(0)).sum()
    return loss, {
        "loss/critic": loss,
        "train/reward_expert": demonstrated.mean(),
        "train/reward_mixed": (mixed_reward, other.sum()),
        "train/q_max": rlzoo.most(jnp.abs(q).max()),
    }


def actor_loss(params, critic_params, batch, key, actor, critics, config):
    """The smaller soft value of the policy's actions, negated."""
    # --- actions of the policy, with gradients through them ---
    pi = actor(params, batch.obs)
    action, log_prob = pi.sample_and_log_prob(seed=key)

    # --- the smaller of both values, and the entropy ---
    value = critics(critic_params, batch.obs, action).min(0)
    chex.assert_equal_shape([value, log_prob])
    loss = (config.alpha * log_prob - value).mean()
    return loss, {"loss/actor": loss, "train/entropy": -log_prob.mean()}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    data.require(dataset, "iq_learn", "expert", "mixed", discrete=False)

    # --- networks, optimizer ---
    actor_net = MLP(config.hidden, 2 * env.action_dim)
    critic_net = MLP(config.hidden, 1)
    # One vector of all parameters: an update is then one fused loop.
    optimizer = optax.flatten(optax.adam(config.learning_rate))

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
        pair = jnp.zeros(obs.size + env.action_dim)
        critic_keys = jax.random.split(critic_key)
        init_critics = jax.vmap(critic_net.init, (0, None))
        params = Params(
            actor=actor_net.init(actor_key, obs),
            critics=init_critics(critic_keys, pair),
        )
        return State(
            params=params,
            # The targets start as the critics.
            target_params=params.critics,
            opt_states=Params(*map(optimizer.init, params)),
            key=key,
        )

    def draw(key):
        """A batch, and which of its rows are the expert's (float32)."""
        expert_key, mixed_key = jax.random.split(key)
        parts = [data.sample(dataset["expert"], expert_key, config.batch_size)]
        if config.use_mixed:
            parts.append(data.sample(dataset["mixed"], mixed_key, config.batch_size))
        batch = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
        count = len(batch.reward)
        return batch, (jnp.arange(count) < config.batch_size).astype(jnp.float32)

    def gradient_step(loss, params, opt_state, *args):
        """Parameters and optimizer state after a step on `loss(params, *args)`, and metrics."""
        grads, metrics = jax.grad(loss, has_aux=True)(params, *args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    def step(state, t):
        params = state.params
        opt_states = state.opt_states

        # --- sample ---
        draw_key, value_key, next_key, actor_key, key = jax.random.split(state.key, 5)
        batch, expert = draw(draw_key)

        # --- critics ---
        next_value = soft_values(
            state.target_params, params.actor, batch.next_obs, next_key, actor, critics, config
        )
        next_value = (1.0 - batch.terminated) * next_value.min(0)

        def values(critic_params):
            return soft_values(
                critic_params, params.actor, batch.obs, value_key, actor, critics, config
            )

        critic_params, critic_opt, critic_metrics = gradient_step(
            critic_loss,
            params.critics,
            opt_states.critics,
            batch,
            expert,
            next_value,
            values,
            critics,
            config,
        )
        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)

        # --- actor ---
        actor_params, actor_opt, actor_metrics = gradient_step(
            actor_loss,
            params.actor,
            opt_states.actor,
            critic_params,
            batch,
            actor_key,
            actor,
            critics,
            config,
        )

        state = state.replace(
            params=Params(actor_params, critic_params),
            target_params=target_params,
            opt_states=Params(actor_opt, critic_opt),
            key=key,
        )
        return state, critic_metrics | actor_metrics

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
