"""DQN: deep Q-learning with a replay buffer and a target network; double, n-step and prioritised on
request.

Papers: Mnih et al. 2015 (Nature 518; the loss is its equation 2); double: van Hasselt et al. 2016
(arXiv 1509.06461, equation 4); n-step: Sutton 1988, as in Hessel et al. 2018 (arXiv 1710.02298,
section 3); prioritised: Schaul et al. 2016 (arXiv 1511.05952, algorithm 1). Discrete actions,
vector and image observations.

Run:    python algorithms/dqn.py --env CartPole-v1 --seeds 8
Expect: a return of 500 within 300,000 steps (results/baselines)

Metrics: `loss/td` is the loss of the batches of this chunk (empty before learning starts); `q` the
mean value of the actions taken in them; `epsilon` the share of random actions.

Where it departs from the papers: Adam in place of RMSProp, the squared error in place of the
clipped one, several environments, target copies counted in environment steps. Truncated episodes
bootstrap from the true successor.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

import rlzoo
from rlzoo.env import EnvState


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    """environment id"""
    total_steps: int = rlzoo.static(500_000)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(10)
    """environments stepped together; each such step is followed by one update"""
    hidden: tuple[int, ...] = rlzoo.static((120, 84))
    """widths of the hidden layers"""
    buffer_size: int = rlzoo.static(10_000)
    """transitions kept; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128)
    """transitions in each update"""
    learning_starts: int = rlzoo.static(1_000)
    """environment steps before the first update"""
    target_every: int = rlzoo.static(500)
    """environment steps between copies to the target network"""
    learning_rate: float = 2.5e-4
    """Adam's step size"""
    discount: float = 0.99
    """gamma"""
    epsilon_start: float = 1.0
    """share of random actions at the start"""
    epsilon_end: float = 0.05
    """share of random actions at the end"""
    epsilon_fraction: float = 0.5
    """part of the run over which it falls, linearly"""
    double: bool = rlzoo.static(False)
    """let the online network choose the action that the target network judges"""
    n_step: int = rlzoo.static(1)
    """rewards summed in each target"""
    prioritised: bool = rlzoo.static(False)
    """draw transitions in proportion to their last error"""
    priority_alpha: float = 0.6
    """exponent of the priorities"""
    priority_beta: float = 0.4
    """exponent of the importance weights at the start; it rises linearly to 1"""


# ---- networks ------------------------------------------------------------------------------------


class QNetwork(nn.Module):
    widths: tuple[int, ...]
    num_actions: int

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
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
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def td_loss(params, target_params, sample, q, config):
    """Mean squared temporal-difference error (Mnih et al. 2015, equation 2), weighted where replay
    is prioritised.

    Also returns the errors [batch] and the mean value of the actions taken.
    """
    batch = sample.batch
    next_q = q(target_params, batch.next_obs)
    choice = jnp.argmax(q(params, batch.next_obs) if config.double else next_q, -1)
    next_value = jnp.take_along_axis(next_q, choice[:, None], -1)[:, 0]
    target = batch.reward + sample.discount * (1.0 - batch.terminated) * next_value
    value = jnp.take_along_axis(q(params, batch.obs), batch.action[:, None], -1)[:, 0]
    error = value - jax.lax.stop_gradient(target)
    return (sample.weight * error**2).mean(), (error, value.mean())


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    if config.batch_size > config.buffer_size:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than buffer_size={config.buffer_size}"
        )
    if config.learning_starts < config.n_step * config.num_envs:
        raise rlzoo.Refused(
            f"learning_starts={config.learning_starts} leaves nothing to learn from; at least "
            f"n_step * num_envs = {config.n_step * config.num_envs} steps are needed"
        )
    net = QNetwork(config.hidden, env.num_actions)
    flat = lambda obs: obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1)
    q = lambda params, obs: net.apply(params, flat(obs))
    optimizer = optax.scale_by_adam()
    sizes = dict(
        capacity=config.buffer_size,
        example=env.example(),
        num_envs=config.num_envs,
        n_step=config.n_step,
    )
    if config.prioritised:
        buffer = rlzoo.replay.Prioritized(**sizes, alpha=config.priority_alpha)
    else:
        buffer = rlzoo.replay.Uniform(**sizes)
    calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)
    target_every = max(1, config.target_every // config.num_envs)

    def init(key):
        net_key, env_key, key = jax.random.split(key, 3)
        params = net.init(net_key, flat(jnp.zeros(env.obs_shape)))
        opt_state = optimizer.init(ravel_pytree(params)[0])
        return State(
            params, params, opt_state, env.reset(env_key, config.num_envs), buffer.init(), key
        )

    def collect(state, random_key, explore_key, env_key, t):
        """One step in every environment, epsilon-greedily."""
        progress = jnp.minimum(t / jnp.maximum(calls * config.epsilon_fraction, 1e-6), 1.0)
        epsilon = config.epsilon_start + progress * (config.epsilon_end - config.epsilon_start)
        random = jax.random.randint(random_key, (config.num_envs,), 0, env.num_actions)
        explore = jax.random.uniform(explore_key, (config.num_envs,)) < epsilon
        action = jnp.where(explore, random, jnp.argmax(q(state.params, state.env.obs), -1))
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        state = state.replace(env=env_state, buffer=buffer.add(state.buffer, transition, t))
        return state, metrics | {"epsilon": epsilon}

    def update(params, target_params, opt_state, replay, key, t):
        beta = config.priority_beta + (1.0 - config.priority_beta) * t / calls
        sample = buffer.sample(replay, key, config.batch_size, config.discount, beta)
        vector, unravel = ravel_pytree(
            params
        )  # one vector: an optimiser step is then one fused loop
        objective = lambda p: td_loss(unravel(p), target_params, sample, q, config)
        (loss, (error, value)), grads = jax.value_and_grad(objective, has_aux=True)(vector)
        direction, opt_state = optimizer.update(grads, opt_state)
        params = unravel(vector - config.learning_rate * direction)
        metrics = {"loss/td": (loss, 1.0), "q": (value, 1.0)}
        return params, opt_state, (sample.index, jnp.abs(error) + 1e-6), metrics

    def step(state, t):
        *collect_keys, update_key, key = jax.random.split(state.key, 5)
        state, metrics = collect(state, *collect_keys, t)

        def learn():
            return update(
                state.params, state.target_params, state.opt_state, state.buffer, update_key, t
            )

        def wait():
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn))[2:]

        params, opt_state, priorities, losses = jax.lax.cond(
            t >= first_update, learn, lambda: (state.params, state.opt_state, *wait())
        )
        # apart from `learn`, which reads the priorities: otherwise they are copied at every call
        replay = jax.lax.cond(
            t >= first_update,
            lambda: buffer.update(state.buffer, *priorities),
            lambda: state.buffer,
        )
        target_params = jax.lax.cond(
            t % target_every == 0, lambda: params, lambda: state.target_params
        )
        state = state.replace(
            params=params, target_params=target_params, opt_state=opt_state, buffer=replay, key=key
        )
        return state, metrics | losses

    def act(policy, obs, key):
        return jnp.argmax(q(policy.params, obs), -1)

    return rlzoo.Algorithm(
        init,
        step,
        lambda state: Policy(state.params),
        act,
        steps_per_call=config.num_envs,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
