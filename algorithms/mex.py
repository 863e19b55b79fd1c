"""MEX: TD3 whose critics also prefer the value of the policy (maximize to explore, MEX-MF).

Paper: Liu et al. 2023 (arXiv 2305.18258), the deep, model-free form of their released code;
    all else is td3.py, Fujimoto et al. 2018 (arXiv 1802.09477).
Kind: online, actor-critic, continuous
Run: python algorithms/mex.py --env band-mass --seeds 5 --sweep eta=-5e-3,0,5e-4,1e-3,5e-3
    The authors' sizes: python algorithms/mex.py --env hopper-vel-sparse --total-steps 1_000_000
    --learning-starts 25_000 --hidden 256 256 --batch-size 256 --learning-rate 3e-4
Result: results/mex, beside td3.py
Metrics:
    loss/critic     mean squared error of the critics, summed over both
    loss/actor      negative value of the policy's actions, in the updates that moved the policy
    train/optimism  what eta multiplies
    train/q         mean value of the actions in the batches; it should approach the true return
    train/return    return of the episodes that ended in training
    All but the last are empty until learning starts.
Deviations:
    The paper's objective has eta on the data's loss; eta is here on the optimism, as in the
    released code, so that a small eta is little optimism. Negative: pessimism, as CQL has.
    The logsumexp of a critic holds its own values alone; lse2_data_q1 brings the released slip.
    td3.py's deviations are here too.
"""

from typing import Any, Literal, NamedTuple

import chex
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
    env: str = rlzoo.static("Pendulum-v1")
    """environment id"""
    total_steps: int = rlzoo.static(20_000, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(1, least=1)
    """environments stepped together"""
    updates_per_step: int = rlzoo.static(1, least=1)
    """updates after each such step"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critics alike"""
    buffer_size: int = rlzoo.static(1_000_000, least=1)
    """transitions kept, at most total_steps; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128, least=1)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(1_000, least=1)
    """environment steps, with random actions, before the first update"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the targets move towards the networks in each update of them"""
    policy_delay: int = rlzoo.static(2, least=1)
    """critic updates for each update of the policy and the targets"""
    exploration_noise: float = rlzoo.traced(0.1, least=0)
    """standard deviation of the noise on actions in [-1, 1]"""
    target_noise: float = rlzoo.traced(0.2, least=0)
    """standard deviation of the noise on the target policy's actions"""
    target_noise_clip: float = rlzoo.traced(0.5, least=0)
    """where that noise is clipped"""
    optimism: Literal["relative", "random", "data", "none"] = rlzoo.static("relative")
    """what the critics raise: the policy's actions over the batch's, the next policy's and random
    ones; over random ones alone; the batch's actions; nothing (td3.py)"""
    eta: float = rlzoo.traced(0.005)
    """weight of the optimism; negative: of pessimism"""
    lse2_data_q1: bool = rlzoo.static(False)
    """the first critic's value of the batch's action in the second one's logsumexp, as released"""


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
    target_params: Params
    opt_states: Params
    env: EnvState
    buffer: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def td_target(target_params, sample, noise, actor, critics, config):
    """Targets of both critics [batch] (equations 10 and 14).

    `noise` [batch, action_dim] is standard normal; it smooths the target policy.
    """
    batch = sample.batch

    # --- action of the target policy, smoothed ---
    limit = config.target_noise_clip
    noise = jnp.clip(config.target_noise * noise, -limit, limit)
    action = actor(target_params.actor, batch.next_obs) + noise
    action = jnp.clip(action, -1.0, 1.0)

    # --- the smaller of both values ---
    next_values = critics(target_params.critics, batch.next_obs, action)
    next_value = next_values.min(axis=0)
    discount = sample.discount * (1.0 - batch.terminated)
    return batch.reward + discount * next_value


def candidate_actions(actor_params, batch, key, actor, config):
    """The policy's actions at obs, those at next_obs, and random ones: [3, batch, action_dim].

    All are valued at obs, also those of next_obs, as in the released code. Where the optimism needs
    none there are none: [0, batch, action_dim].
    """
    if config.optimism in ("data", "none"):
        return batch.action[None][:0]
    obs = jnp.stack([batch.obs, batch.next_obs])
    policy = jax.lax.stop_gradient(actor(actor_params, obs))
    random = jax.random.uniform(key, batch.action.shape, minval=-1.0)
    return jnp.concatenate([policy, random[None]])


def optimism(value, config):
    """The term that eta multiplies: a mean over the batch, summed over both critics.

    `value` [2, 1 + candidates, batch]: of the batch's actions, then of `candidate_actions`.
    """
    data = value[:, 0]
    if config.optimism == "data":
        return data.mean(-1).sum()
    policy, next_policy, random = jnp.moveaxis(value[:, 1:], 1, 0)
    if config.optimism == "random":
        return (policy - random).mean(-1).sum()
    if config.lse2_data_q1:
        data = jnp.stack([data[0], data[0]])
    others = jnp.stack([data, next_policy, random])
    return (policy - jax.nn.logsumexp(others, axis=0)).mean(-1).sum()


def critic_loss(params, batch, target, candidates, critics, config):
    """Mean squared errors of the critics against `target` [batch], less eta times `optimism`."""
    # --- values of all actions in one pass ---
    if len(candidates):
        count = 1 + len(candidates)
        obs = jnp.concatenate([batch.obs] * count)
        actions = jnp.concatenate([batch.action, *candidates])
        values = critics(params, obs, actions).reshape(2, count, -1)
    else:
        values = critics(params, batch.obs, batch.action)[:, None]

    # --- squared errors ---
    value = values[:, 0]
    chex.assert_shape(value, (2, *target.shape))
    error = value - target
    loss = (error**2).mean(-1).sum()
    metrics = {"loss/critic": loss, "train/q": value.mean()}

    # --- optimism ---
    if config.optimism == "none":
        return loss, metrics
    term = optimism(values, config)
    return loss - config.eta * term, metrics | {"train/optimism": term}


def actor_loss(params, critic_params, batch, actor, critics):
    """The first critic's value of the policy's actions, negated (algorithm 1)."""
    first = jax.tree.map(lambda x: x[:1], critic_params)
    action = actor(params, batch.obs)
    loss = -critics(first, batch.obs, action).mean()
    return loss, {"loss/actor": loss}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- schedule, in calls of `step` ---
    num_calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)

    largest = float(jnp.finfo(jnp.float32).max)
    rlzoo.check(
        abs(config.eta) <= largest,
        f"eta={config.eta} overflows a float32; the authors take 0.0001 to 0.005",
    )

    # --- replay ---
    capacity = min(config.buffer_size, num_calls * config.num_envs)
    if config.batch_size > capacity:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than the {capacity} transitions that "
            "buffer_size and total_steps allow"
        )
    buffer = rlzoo.replay.Uniform(capacity, env.example(), config.num_envs)

    # --- networks, optimizer ---
    actor_net = MLP(config.hidden, env.action_dim)
    critic_net = MLP(config.hidden, 1)
    optimizer = optax.adam(config.learning_rate)

    def actor(params, obs):
        """Actions [..., action_dim]."""
        output = actor_net.apply(params, env.flatten(obs))
        return jnp.tanh(output)

    def critics(params, obs, action):
        """Values of both critics [2, ...]."""
        pair = jnp.concatenate([env.flatten(obs), action], axis=-1)
        values = jax.vmap(critic_net.apply, (0, None))(params, pair)
        return values[..., 0]

    def init(key):
        actor_key, critic_key, env_key, key = jax.random.split(key, 4)
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
            target_params=params,
            opt_states=Params(*map(optimizer.init, params)),
            env=env.reset(env_key, config.num_envs),
            buffer=buffer.init(),
            key=key,
        )

    def collect(state, act_key, env_key, t):
        """One step in every environment: random until learning starts, then the noisy policy."""
        # --- act ---
        shape = (config.num_envs, env.action_dim)

        def random():
            return jax.random.uniform(act_key, shape, minval=-1.0)

        def explore():
            noise = config.exploration_noise * jax.random.normal(act_key, shape)
            action = actor(state.params.actor, state.env.obs)
            return jnp.clip(action + noise, -1.0, 1.0)

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

    def update(state, x):
        count, key = x
        sample_key, noise_key = jax.random.split(key)
        # Another split would change the two keys above; 0 and 1 would give them once more.
        random_key = jax.random.fold_in(key, 2)
        params, opt_states = state.params, state.opt_states

        # --- sample ---
        sample = buffer.sample(state.buffer, sample_key, config.batch_size, config.discount)
        batch = sample.batch

        # --- critics ---
        noise = jax.random.normal(noise_key, batch.action.shape)
        target = td_target(state.target_params, sample, noise, actor, critics, config)
        candidates = candidate_actions(params.actor, batch, random_key, actor, config)
        critic_params, critic_opt, critic_metrics = gradient_step(
            critic_loss,
            params.critics,
            opt_states.critics,
            batch,
            target,
            candidates,
            critics,
            config,
        )
        state = state.replace(
            params=Params(params.actor, critic_params),
            opt_states=Params(opt_states.actor, critic_opt),
        )

        # --- actor and targets ---
        def improve(state):
            actor_params, actor_opt, actor_metrics = gradient_step(
                actor_loss, params.actor, opt_states.actor, critic_params, batch, actor, critics
            )
            new_params = Params(actor_params, critic_params)
            state = state.replace(
                params=new_params,
                target_params=optax.incremental_update(new_params, state.target_params, config.tau),
                opt_states=Params(actor_opt, critic_opt),
            )
            return state, actor_metrics

        state, actor_metrics = rlzoo.when(count % config.policy_delay == 0, improve, state)
        return state, critic_metrics | actor_metrics

    def step(state, t):
        act_key, env_key, update_key, key = jax.random.split(state.key, 4)
        state, metrics = collect(state, act_key, env_key, t)

        def learn(state):
            counts = t * config.updates_per_step + jnp.arange(config.updates_per_step)
            keys = jax.random.split(update_key, config.updates_per_step)
            state, losses = jax.lax.scan(update, state, (counts, keys))
            return state, rlzoo.total(losses)

        state, losses = rlzoo.when(t >= first_update, learn, state)
        return state.replace(key=key), metrics | losses

    def policy(state):
        return Policy(state.params.actor)

    def act(policy, obs, key):
        return actor(policy.actor, obs)

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
