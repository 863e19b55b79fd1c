"""Recording data sets: of trained policies, of random actions, and of what a run's replay holds.

    data = collect.policy("runs/dqn/...", episodes=100, noise=0.1)
    data = collect.random("Pendulum-v1", episodes=100)
    data = collect.replay("runs/dqn/...")

Every episode is whole and has its true successors, also where it was truncated; actions are those
that the environment took, in the zoo's range [-1, 1].
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlzoo.algorithm import Refused
from rlzoo.dataset import Dataset, concatenate, from_arrays
from rlzoo.env import Env, EnvState, Episodes, Transition, acting, advance, begin, done
from rlzoo.formats import NAMES, Arrays
from rlzoo.replay import ReplayState
from rlzoo.run.loading import Trained, trained
from rlzoo.run.record import Record
from rlzoo.suites.registry import make

ENVS = 64
"""Episodes that are played at the same time."""
STEPS = 128
"""Steps of one compiled call."""
NOISE = 0x0153  # folded into a policy's key, so that noise never touches its randomness


def policy(
    run: str | Path,
    episodes: int,
    *,
    member: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    env: Any = None,
) -> Dataset:
    """Whole episodes of a trained policy, acting as it is evaluated.

    Args:
      run: the run directory.
      episodes: how many, of each member.
      member: which member, as numbered in metrics.csv; None: every one, one after the other.
      noise: discrete actions: share of random ones; continuous actions: standard deviation of
        Gaussian noise, in units of [-1, 1]. What is recorded is the action that the environment
        took.
      env: the run's environment, where it was one of a notebook.

    Raises `Refused` where there is no such run or member.
    """
    parts = []
    for index, name, (made, algorithm, state) in _members(run, member, env):
        key = jax.random.fold_in(jax.random.key(seed), index)
        data = record(
            made, algorithm.act, algorithm.policy(state), episodes, key, algorithm.memory, noise
        )
        source = f"{name}, member {index}, noise {noise:g}, seed {seed}"
        parts.append(dataclasses.replace(data, source=source))
    return concatenate(parts)


def random(env: str, episodes: int, *, seed: int = 0) -> Dataset:
    """Whole episodes of uniformly random actions in the environment called `env`."""
    made = make(env)

    def act(policy: Any, obs: Any, key: jax.Array) -> jax.Array:
        return made.random_action(key)

    data = record(made, act, None, episodes, jax.random.key(seed))
    return dataclasses.replace(data, source=f"random, seed {seed}")


def replay(run: str | Path, *, member: int | None = None, env: Any = None) -> Dataset:
    """The replay buffer that a run ended with: the rows of one environment after the other, in the
    order of time.

    Episodes that were still running are truncated. Where the buffer wrapped around, the first
    episode of each environment lacks its beginning, so its return is that of a part.

    Args:
      run, member, env: as for `policy`.

    Raises `Refused` where there is no such run or member, or its training state holds no replay of
    transitions.
    """
    parts = []
    for index, name, found in _members(run, member, env):
        source = f"{name}, replay of member {index}"
        parts.append(from_arrays(replayed(found.state), env=found.env.id, source=source))
    return concatenate(parts)


def record(
    env: Env,
    act: Callable,
    policy: Any,
    episodes: int,
    key: jax.Array,
    memory: Callable | None = None,
    noise: float = 0.0,
) -> Dataset:
    """Whole episodes of any policy, ENVS at a time.

    How many are played together changes nothing. Each environment plays one episode from a fresh
    start and waits for the others: taking those that end first would make short ones too frequent.

    Args:
      act, policy, memory: as in `rlzoo.Algorithm`: `act(policy, obs, key)`, with `memory(policy)`
        also `act(policy, memory, obs, reward, key)`.
      noise: as for `policy`.
    """
    if episodes < 1:
        raise Refused(f"episodes={episodes}: must be at least 1")
    if not 0 <= noise <= (1 if env.discrete else np.finfo(np.float32).max):
        raise Refused(
            f"noise={noise}: must "
            + (
                "lie in [0, 1], the share of random actions"
                if env.discrete
                else "be at least 0, the standard deviation"
            )
        )
    start, go = _player(env, act, memory, noise)

    def play(first: int) -> Transition:
        """The rows of up to ENVS episodes from number `first` on."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(min(episodes, ENVS)))
        now, parts = start(policy, keys), []
        while now.step < env.max_steps and not now.over.all():
            now, part = go(policy, keys, now)
            parts.append(jax.device_get(part))
        batch = jax.tree.map(
            lambda *x: np.concatenate(x).swapaxes(0, 1)[: episodes - first], *parts
        )
        ended = done(batch)
        before_end = np.cumsum(ended, axis=1) - ended == 0
        return jax.tree.map(lambda x: x[before_end], batch)

    played = [play(first) for first in range(0, episodes, ENVS)]
    return from_arrays(jax.tree.map(lambda *x: np.concatenate(x), *played)._asdict(), env=env.id)


def _player(
    env: Env, act: Callable, memory: Callable | None, noise: float
) -> tuple[Callable, Callable]:
    """Compiled `start(policy, keys) -> Episodes` and `go(policy, keys, now) -> (Episodes, their
    next STEPS transitions)`."""

    def start(policy: Any, keys: Any) -> Episodes:
        return begin(env, acting(act, memory, policy, len(keys))[1], keys)

    def go(policy: Any, keys: Any, now: Episodes) -> tuple:
        choose, _ = acting(act, memory, policy, len(keys))

        def taken(action: Any, key: jax.Array) -> jax.Array:
            return _taken(env, action, noise, jax.random.fold_in(key, NOISE))

        def noisy(remembered: Any, obs: Any, reward: Any, keys: Any) -> tuple:
            action, remembered = choose(remembered, obs, reward, keys)
            return jax.vmap(taken)(action, keys), remembered

        def step(now: Episodes, _: None) -> tuple:
            return advance(env, noisy, keys, now)

        return jax.lax.scan(step, now, length=STEPS)

    return jax.jit(start), jax.jit(go)


def _taken(env: Env, action: Any, noise: float, key: jax.Array) -> jax.Array:
    """The action that the environment takes, noise included, in the type that a data set holds."""
    if not env.discrete:
        action = jnp.asarray(action, jnp.float32)
        return jnp.clip(action + noise * jax.random.normal(key, action.shape), -1.0, 1.0)
    which_key, random_key = jax.random.split(key)
    random = jax.random.uniform(which_key) < noise
    return jnp.where(random, env.random_action(random_key), jnp.asarray(action, jnp.int32))


def _members(run: str | Path, member: int | None, env: Any) -> Iterator[tuple[int, str, Trained]]:
    """Number, algorithm and training of one member of a run, or of all of them."""
    about = Record.read(run).description
    for index in range(sum(about["layout"]["members"])) if member is None else [member]:
        yield index, about["algorithm"], trained(run, index, env=env)


def replayed(state: Any, steps: int | None = None) -> Arrays:
    """The rows of the one replay buffer in a training state: of one environment after the other, in
    the order of time; the first `steps` of them alone, if that is given."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, ReplayState | EnvState))
    buffers = [x for x in found if isinstance(x, ReplayState)]
    envs = [x for x in found if isinstance(x, EnvState)]
    if len(buffers) != 1 or len(envs) != 1:
        raise Refused(
            f"the run's training state holds {len(buffers)} replay buffers, must hold one"
        )
    buffer, num_envs = buffers[0], len(envs[0].episode_return)
    if missing := [name for name in NAMES if not hasattr(buffer.data, name)]:
        raise Refused(f"the run's replay buffer does not keep {', '.join(missing)}")
    size, capacity = int(buffer.size), len(buffer.data.reward)
    if not size:
        raise Refused("the run's replay buffer is empty")
    oldest = int(buffer.pos) - size
    # It is written in blocks of num_envs rows.
    places = (oldest + np.arange(size)) % capacity
    index = places.reshape(-1, num_envs).T
    if steps is not None:
        index = index[:, : max(1, steps // num_envs)]
    arrays = {name: np.asarray(getattr(buffer.data, name))[index] for name in NAMES}
    arrays["truncated"][:, -1] |= ~arrays["terminated"][:, -1]
    arrays = {name: x.reshape(-1, *x.shape[2:]) for name, x in arrays.items()}
    if arrays["action"].dtype.kind == "f":
        arrays["action"] = np.clip(arrays["action"], -1.0, 1.0)  # as the environment took them
    return arrays
