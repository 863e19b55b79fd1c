"""DQN: deep Q-learning with a replay buffer and a target network.

Paper: Mnih et al. 2015 (Nature 518, equation 2). Double: van Hasselt et al. 2016 (arXiv 1509.06461,
    equation 4). n-step: Hessel et al. 2018 (arXiv 1710.02298, section 3). Prioritized: Schaul et
    al. 2016 (arXiv 1511.05952, algorithm 1).
Kind: online, value-based, discrete
Run: python algorithms/dqn.py --env CartPole-v1 --seeds 5
Result: a return of 500 on CartPole within 300,000 steps (results/baselines)
Metrics:
    loss/td         mean squared error of the values; it rises while values grow, then levels off
    train/q         mean value of the actions in the batches; it should approach the true return
    train/epsilon   share of random actions
    train/return    return of the episodes that ended in training
    The first two are empty until learning starts.
Deviations:
    Adam in place of RMSProp, and the squared error in place of the clipped one.
    Several environments are stepped together; one update follows each such step.
    A truncated episode bootstraps from its true successor.
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
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(10, least=1)
    """environments stepped together; each such step is followed by one update"""
    hidden: tuple[int, ...] = rlzoo.static((120, 84), least=1)
    """widths of the hidden layers"""
    buffer_size: int = rlzoo.static(10_000, least=1)
    """transitions kept; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128, least=1)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(1_000, least=1)
    """environment steps before the first update"""
    target_every: int = rlzoo.static(500, least=1)
    """environment steps between copies to the target network"""
    learning_rate: float = rlzoo.traced(2.5e-4, above=0)
    """Adam's step size"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    epsilon_start: float = rlzoo.traced(1.0, least=0, most=1)
    """share of random actions at the start"""
    epsilon_end: float = rlzoo.traced(0.05, least=0, most=1)
    """share of random actions at the end"""
    epsilon_fraction: float = rlzoo.traced(0.5, least=0, most=1)
    """part of the run over which it falls, linearly"""
    double: bool = rlzoo.static(False)
    """let the online network choose the action whose value the target network gives"""
    n_step: int = rlzoo.static(1, least=1)
    """rewards summed in each target"""
    prioritized: bool = rlzoo.static(False)
    """draw transitions in proportion to their last error"""
    priority_alpha: float = rlzoo.traced(0.6, least=0, most=1)
    """exponent of the priorities"""
    priority_beta: float = rlzoo.traced(0.4, least=0, most=1)
    """exponent of the importance weights at the start; it rises linearly to 1"""


# ---- networks ------------------------------------------------------------------------------------


class QNetwork(nn.Module):
    """The values of all actions [..., num_actions] at flat observations [..., size]."""

    hidden: tuple[int, ...]
    num_actions: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_actions)(x)


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    params: Any


@struct.dataclass
class State:
    params: Any
    target_params: Any
    opt_state: Any
    env: EnvState
    buffer: Any
    priorities: Any
    """of the last batch: where its rows are stored [batch], and how large their errors were"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    ones = [1] * (x.ndim - 1)
    index = action.reshape(-1, *ones)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def td_loss(params, target_params, sample, q, config):
    """Mean squared temporal-difference error (Mnih et al. 2015, equation 2).

    Errors are weighted where replay is prioritized. Returns the loss, and metrics with the errors
    [batch].
    """
    batch = sample.batch

    # --- target ---
    next_q = q(target_params, batch.next_obs)
    chooser = q(params, batch.next_obs) if config.double else next_q
    next_action = jnp.argmax(chooser, axis=-1)
    next_value = taken(next_q, next_action)
    discount = sample.discount * (1.0 - batch.terminated)
    target = batch.reward + discount * next_value
    target = jax.lax.stop_gradient(target)

    # --- error ---
    outputs = q(params, batch.obs)
    value = taken(outputs, batch.action)
    error = value - target
    loss = (sample.weight * error**2).mean()
    metrics = {
        "loss/td": loss,
        "train/q": value.mean(),
        "error": error,
    }
    return loss, metrics


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    if config.batch_size > config.buffer_size:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than buffer_size={config.buffer_size}"
        )
    needed = config.n_step * config.num_envs
    if config.learning_starts < needed:
        raise rlzoo.Refused(
            f"learning_starts={config.learning_starts} leaves nothing to learn from; at least "
            f"n_step * num_envs = {needed} steps are needed"
        )

    # --- schedule, in calls of `step` ---
    num_calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)
    target_every = max(1, config.target_every // config.num_envs)

    # --- network, optimizer, replay ---
    net = QNetwork(config.hidden, env.num_actions)
    # One vector of all parameters: an update is then one fused loop.
    optimizer = optax.flatten(optax.adam(config.learning_rate))
    sizes = dict(
        capacity=config.buffer_size,
        example=env.example(),
        num_envs=config.num_envs,
        n_step=config.n_step,
    )
    if config.prioritized:
        buffer = rlzoo.replay.Prioritized(**sizes, alpha=config.priority_alpha)
    else:
        buffer = rlzoo.replay.Uniform(**sizes)

    def q(params, obs):
        return net.apply(params, env.flatten(obs))

    def init(key):
        net_key, env_key, key = jax.random.split(key, 3)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        params = net.init(net_key, obs)
        no_rows = jnp.zeros(config.batch_size, jnp.int32)
        no_errors = jnp.zeros(config.batch_size)
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            env=env.reset(env_key, config.num_envs),
            buffer=buffer.init(),
            priorities=(no_rows, no_errors),
            key=key,
        )

    def collect(state, random_key, explore_key, env_key, t):
        """One epsilon-greedy step in every environment."""
        # --- epsilon ---
        decay_calls = jnp.maximum(num_calls * config.epsilon_fraction, 1e-6)
        progress = jnp.minimum(t / decay_calls, 1.0)
        change = config.epsilon_end - config.epsilon_start
        epsilon = config.epsilon_start + progress * change

        # --- act ---
        values = q(state.params, state.env.obs)
        greedy = jnp.argmax(values, axis=-1)
        random = jax.random.randint(random_key, greedy.shape, 0, env.num_actions)
        explore = jax.random.uniform(explore_key, greedy.shape) < epsilon
        action = jnp.where(explore, random, greedy)

        # --- step and store ---
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        replay = buffer.add(state.buffer, transition, t)
        state = state.replace(env=env_state, buffer=replay)
        return state, metrics | {"train/epsilon": epsilon}

    def step(state, t):
        *collect_keys, sample_key, key = jax.random.split(state.key, 5)
        state, metrics = collect(state, *collect_keys, t)

        def learn(state):
            # --- sample ---
            beta = config.priority_beta + (1.0 - config.priority_beta) * t / num_calls
            sample = buffer.sample(
                state.buffer,
                sample_key,
                config.batch_size,
                config.discount,
                beta,
            )

            # --- gradient step ---
            grads, losses = jax.grad(td_loss, has_aux=True)(
                state.params, state.target_params, sample, q, config
            )
            updates, opt_state = optimizer.update(grads, state.opt_state)
            params = optax.apply_updates(state.params, updates)

            # --- priorities ---
            # No transition may be lost for good, so none gets a priority of 0.
            error = jnp.abs(losses.pop("error"))
            state = state.replace(
                params=params,
                opt_state=opt_state,
                priorities=(sample.index, error + 1e-6),
            )
            return state, losses

        def set_priorities(replay):
            return buffer.update(replay, *state.priorities), {}

        def copy_to_target(state):
            return state.replace(target_params=state.params), {}

        state, losses = rlzoo.when(t >= first_update, learn, state)
        # On its own: together with `learn`, XLA would copy all priorities at every call.
        replay, _ = rlzoo.when(t >= first_update, set_priorities, state.buffer)
        state, _ = rlzoo.when(t % target_every == 0, copy_to_target, state)
        return state.replace(buffer=replay, key=key), metrics | losses

    def policy(state):
        return Policy(state.params)

    def act(policy, obs, key):
        values = q(policy.params, obs)
        return jnp.argmax(values, axis=-1)

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=config.num_envs,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
