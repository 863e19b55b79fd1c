"""Environments behind one functional, vectorized API.

`rlzoo.make(id)` returns an `Env`: many copies of one environment stepped together, with the true
successor observation, termination and truncation apart, and an auto-reset that draws from a pool of
start states instead of resetting at every step. What is inside is a gymnax (>= 1.0) `Environment`.
See `rlzoo/suites/registry.py` for the ids.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlzoo import machine
from rlzoo.algorithm import Refused

machine.start_backend()  # before gymnax, which starts jax
from rlzoo import parameters, wrappers

POOL_ROWS = 16
"""Start states kept for each environment."""
POOL_STEPS = 128
"""The pool is drawn anew once in about this many steps of an environment."""


class Transition(NamedTuple):
    """Leading axes are the call's: [num_envs, ...] for a step, [length, num_envs, ...] for a
    rollout."""

    obs: Any
    action: Any
    reward: Any
    """float32"""
    terminated: Any
    """bool: the task ended. Bootstrapping is masked with this alone."""
    truncated: Any
    """bool: a time limit cut the episode (never together with `terminated`)."""
    next_obs: Any
    """The true successor of `obs`, also where the episode ended."""


def done(transition: Transition) -> jax.Array:
    """True where the episode ended: returns and traces are cut here."""
    return transition.terminated | transition.truncated


@struct.dataclass
class EnvState:
    """The state of `num_envs` environments; `obs` [num_envs, ...] is what to act on next."""

    obs: Any
    inner: Any
    episode_return: jax.Array
    episode_length: jax.Array
    pool: Any
    """(obs, inner) start states [POOL_ROWS, num_envs, ...]"""


@dataclasses.dataclass(frozen=True, eq=False)
class Env:
    """`num_envs` copies of one environment, stepped together. Build it with `rlzoo.make`.

    Discrete actions are int32 in [0, num_actions). Continuous actions are float32 in [-1, 1]: the
    stepper clips them and maps them to the environment's own bounds, so that every algorithm works
    in one range.
    """

    id: str
    inner: Any
    """a gymnax Environment"""
    params: Any
    """its parameters; a leaf with one more axis than the default holds a value for each
    environment"""
    param_axes: Any = None
    termination: Callable | None = None
    """`rule(next_obs, params) -> bool [...]`, where it is known how a step terminates"""

    # ---- facts -----------------------------------------------------------------------------------

    @property
    def max_steps(self) -> int:
        """The time limit, in steps."""
        limit = wrappers.time_limit(self.inner, self.params)
        return int(np.max(limit))

    @property
    def action_space(self) -> Any:
        """Not cached: made inside a trace, its bounds may be tracers."""
        return self.inner.action_space(self.one_params())

    @property
    def discrete(self) -> bool:
        return hasattr(self.action_space, "n")

    @property
    def simulated(self) -> bool:
        """False where it is known from recorded data alone, so that nothing can be played."""
        return getattr(self.inner, "simulated", True)

    @property
    def num_actions(self) -> int:
        """Number of discrete actions. Raises `Refused` where actions are continuous."""
        if not self.discrete:
            raise Refused(
                f"{self.id} has continuous actions (shape {self.action_space.shape}); this "
                "algorithm needs discrete ones, for example CartPole-v1"
            )
        return int(self.action_space.n)

    @property
    def action_dim(self) -> int:
        """Size of a continuous action. Raises `Refused` where actions are discrete."""
        if self.discrete:
            raise Refused(
                f"{self.id} has {self.action_space.n} discrete actions; this algorithm needs "
                "continuous ones, for example Pendulum-v1"
            )
        return int(np.prod(self.action_space.shape))

    @property
    def obs_shape(self) -> tuple[int, ...]:
        return self._spec[0].shape

    @property
    def is_image(self) -> bool:
        """Whether observations are [height, width, channels], large enough for 3x3 patches."""
        return len(self.obs_shape) == 3 and min(self.obs_shape[:2]) >= 3

    @property
    def obs_dtype(self) -> Any:
        return self._spec[0].dtype

    def example(self) -> Transition:
        """One transition as shapes and dtypes, for building a replay buffer."""
        obs = self._spec[0]
        action = (
            jax.ShapeDtypeStruct((), jnp.int32)
            if self.discrete
            else jax.ShapeDtypeStruct(self.action_space.shape, jnp.float32)
        )
        reward, flag = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
        return Transition(obs, action, reward, flag, flag, obs)

    def flatten(self, obs: Any) -> jax.Array:
        """Observations [..., *obs_shape] as vectors [..., size]."""
        leading = obs.shape[: obs.ndim - len(self.obs_shape)]
        return obs.reshape(*leading, -1)

    def terminates(self, obs: Any, action: Any, next_obs: Any) -> jax.Array:
        """Whether steps terminate, told from observations alone: bool [...]. For rollouts in a
        learned model. Raises `Refused` where no such rule is known."""
        if self.termination is None:
            raise Refused(
                f"how {self.id!r} terminates is not known from observations (rules are in "
                "rlzoo/suites/termination.py; frames must not be stacked); give a function "
                "terminate(obs, action, next_obs) -> bool of your own"
            )
        return self.termination(next_obs, self.params)

    def replace(self, **fields: Any) -> "Env":
        """A copy with other parameters, and what follows from them. A value with one more axis than
        the default varies over environments.

        Raises `Refused` for a field that the environment's parameters do not have, for one that
        follows from others, and for one that nothing reads.
        """
        name, options = parameters.split(self.id)
        params = parameters.replaced(self.id, self.inner, self.params, fields)
        defaults = self.inner.default_params

        def axis_of(value: Any, default: Any) -> int | None:
            return 0 if jnp.ndim(value) > jnp.ndim(default) else None

        axes = jax.tree.map(axis_of, params, defaults)
        batched = any(axis == 0 for axis in jax.tree.leaves(axes))
        return dataclasses.replace(
            self,
            id=parameters.join(name, options | fields),
            params=params,
            param_axes=axes if batched else None,
        )

    # ---- stepping --------------------------------------------------------------------------------

    def reset(self, key: jax.Array, num_envs: int) -> EnvState:
        """Start `num_envs` episodes."""
        pool = jax.vmap(self.starts)(jax.random.split(key, (POOL_ROWS + 1, num_envs)))
        obs, inner = jax.tree.map(lambda x: x[0], pool)
        return EnvState(
            obs,
            inner,
            jnp.zeros(num_envs),
            jnp.zeros(num_envs, jnp.int32),
            jax.tree.map(lambda x: x[1:], pool),
        )

    def rollout(
        self,
        state: EnvState,
        act: Callable,
        carry: Any,
        xs: Any,
        key: jax.Array,
        length: int,
        t: jax.Array,
        reset: Any = None,
        after: Callable | None = None,
    ) -> tuple[EnvState, Any, Transition, Any, dict]:
        """Take `length` steps in every environment.

        Args:
          act: `act(carry, obs [num_envs, ...], x) -> (carry, action [num_envs, ...], extra)`, `x`
            being one slice of `xs`.
          carry: what `act` remembers from step to step, any pytree; None for a policy without
            memory. Where `reset` is given its leaves have a leading axis num_envs.
          xs: pytree with leading axis `length`: keys, or noise drawn beforehand in one go, which is
            faster.
          t: the index of this call, counted from 0 and not batched under `vmap`; every call has the
            same `length`.
          reset: the carry that an episode starts with, of one environment (as `Algorithm.memory`
            gives it) or of each. It takes the place of the carry of every environment whose episode
            has ended. None: the carry outlives episodes.
          after: `after(carry, transition) -> carry`, called after every step and before `reset`:
            for a policy that is told its previous action and reward, or that an episode ended.

        Returns:
          state, carry, transitions [length, num_envs, ...], extras [length, ...], and metrics:
          `train/return` and `train/length` of the episodes that ended, as (sum, count).
        """
        num_envs = state.episode_return.shape[0]
        keys = jax.random.split(key, (length + POOL_ROWS, num_envs))
        keys, pool_keys = keys[:length], keys[length:]

        def fresh() -> tuple:
            return jax.vmap(self.starts)(pool_keys)

        every = max(1, POOL_STEPS // length)
        if every == 1:
            pool = fresh()
        else:
            pool = jax.lax.cond(t % every == 0, fresh, lambda: state.pool)

        def body(loop: tuple, x: tuple) -> tuple:
            obs, inner, ret, steps, carry = loop
            x, keys, row = x
            carry, action, extra = act(carry, obs, x)
            next_obs, next_inner, reward, score, terminated, truncated = self.step_inner(
                keys, inner, action
            )
            transition = Transition(obs, action, reward, terminated, truncated, next_obs)
            ended = terminated | truncated
            if after is not None:
                carry = after(carry, transition)
            if reset is not None:
                carry = jax.tree.map(lambda a, b: where_each(ended, a, b), reset, carry)
            ret += score
            steps += 1
            # Where an episode has ended, the next one starts from the pool.
            start = jax.tree.map(
                lambda p: jax.lax.dynamic_index_in_dim(p, row, keepdims=False), pool
            )
            obs, inner = jax.tree.map(
                lambda a, b: where_each(ended, a, b), start, (next_obs, next_inner)
            )
            finished = (jnp.where(ended, ret, 0), jnp.where(ended, steps, 0))
            ret = jnp.where(ended, 0, ret)
            steps = jnp.where(ended, 0, steps)
            return (obs, inner, ret, steps, carry), (transition, extra, *finished)

        loop = (state.obs, state.inner, state.episode_return, state.episode_length, carry)
        clock = (t * length + jnp.arange(length)).astype(jnp.uint32)
        # Rows are scattered, for episodes of equal length.
        rows = (clock * np.uint32(2654435769) >> 16) % POOL_ROWS
        outs: tuple
        loop, outs = jax.lax.scan(body, loop, (xs, keys, rows))
        obs, inner, ret, steps, carry = loop
        transitions, extras, returns, lengths = outs
        count = done(transitions).sum()
        metrics = {"train/return": (returns.sum(), count), "train/length": (lengths.sum(), count)}
        return EnvState(obs, inner, ret, steps, pool), carry, transitions, extras, metrics

    def step(
        self, state: EnvState, action: Any, key: jax.Array, t: jax.Array
    ) -> tuple[EnvState, Transition, dict]:
        """Take one step in every environment: a `rollout` of length 1 without its leading axis."""
        state, _, transition, _, metrics = self.rollout(
            state, lambda carry, obs, x: (carry, action, None), None, None, key, 1, t
        )
        return state, jax.tree.map(lambda x: x[0], transition), metrics

    def successor_values(self, value: jax.Array, steps: Transition, judge: Callable) -> jax.Array:
        """Values of the true successors of a rollout, from those of the observations acted on.

        A successor is the next observation acted on, except in the last row and where an episode
        was truncated: these few are judged apart. A batch has room for what time limits can
        truncate, so it is the only one, unless episodes are cut for other reasons too.

        Args:
          value: of `steps.obs`, [length, num_envs] or, for distributions, [length, num_envs, ...].
          steps: the transitions of a `rollout`.
          judge: `judge(obs [n, num_envs, ...]) -> value [n, num_envs, ...]`.

        Returns: values like `value`, right wherever `steps.terminated` is False: a terminated
          successor has no value. In a loss, wrap this in `jax.lax.stop_gradient`: reverse-mode
          gradients do not pass its loop.
        """
        length, num_envs = steps.truncated.shape
        shortest = int(np.min(wrappers.time_limit(self.inner, self.params)))
        slots = min(length, 2 + (length - 1) // shortest)

        def judge_some(carry: tuple) -> tuple:
            values, left = carry
            asked, rows = jax.lax.top_k(left.T.astype(jnp.int32), slots)
            at = (rows.T, jnp.arange(num_envs))
            judged = judge(jax.tree.map(lambda x: x[at], steps.next_obs))
            values = values.at[at].set(where_each(asked.T > 0, judged, values[at]))
            return values, left.at[at].set(False)

        # A loop, not a cond: mapped over members, a cond would compute both branches.
        shifted = jnp.append(value[1:], value[-1:], 0)
        left = steps.truncated.at[-1].set(True)
        values, _ = jax.lax.while_loop(lambda carry: carry[1].any(), judge_some, (shifted, left))
        return values

    def random_action(self, key: jax.Array) -> jax.Array:
        """A uniformly random action of one environment."""
        if self.discrete:
            return jax.random.randint(key, (), 0, self.num_actions)
        return jax.random.uniform(key, self.action_space.shape, minval=-1.0, maxval=1.0)

    # ---- without auto-reset ----------------------------------------------------------------------

    def starts(self, keys: jax.Array) -> tuple:
        """(obs, inner) of fresh episodes for `keys` [num_envs], in the dtypes that a step gives.
        Raises `Refused` where nothing can be played."""
        if not self.simulated:
            raise Refused(
                f"{self.id} is known from its data alone, so nothing can be played there; with "
                "--env a run gets an environment"
            )
        starts = self._over_envs(self.inner.reset_env)(keys)
        return jax.tree.map(lambda x, spec: jnp.asarray(x, spec.dtype), starts, self._spec)

    def step_inner(self, keys: jax.Array, inner: Any, action: jax.Array) -> tuple:
        """One step from the states `inner`: (obs, inner, reward, score, terminated, truncated) for
        `keys` [num_envs], `score` being what counts for the episode's return."""

        def one(key: jax.Array, inner: Any, action: jax.Array, params: Any) -> tuple:
            action = self._native(action, params)
            obs, inner, reward, terminated, info = self.inner.step_env(key, inner, action, params)
            truncated = jnp.asarray(self.inner.is_truncated(inner, params), bool)
            terminated = jnp.asarray(terminated, bool)
            reward = jnp.asarray(reward, jnp.float32)
            score = jnp.asarray(info.get("score", reward), jnp.float32)
            return obs, inner, reward, score, terminated, truncated & ~terminated

        return self._over_envs(one)(keys, inner, action)

    # ---- inside ----------------------------------------------------------------------------------

    def _over_envs(self, one: Callable) -> Callable:
        """Map over environments all arguments but the last, `params`, which is mapped where it
        varies."""
        if self.param_axes is None:
            return jax.vmap(lambda *args: one(*args, self.params))

        def each(*args: Any) -> Any:
            in_axes = (*[0] * len(args), self.param_axes)
            return jax.vmap(one, in_axes=in_axes)(*args, self.params)

        return each

    def one_params(self) -> Any:
        """The parameters of one environment (the first, where they vary)."""
        if self.param_axes is None:
            return self.params
        return jax.tree.map(
            lambda p, axis: p if axis is None else p[0],
            self.params,
            self.param_axes,
            is_leaf=lambda x: x is None,
        )

    def _native(self, action: jax.Array, params: Any) -> jax.Array:
        space = self.inner.action_space(params)
        if hasattr(space, "n"):
            return action
        low = jnp.asarray(space.low, jnp.float32)
        high = jnp.asarray(space.high, jnp.float32)
        return low + (jnp.clip(action, -1.0, 1.0) + 1.0) * 0.5 * (high - low)

    @functools.cached_property
    def _spec(self) -> tuple:
        """(obs, inner) of one environment after a step, as shapes and dtypes."""

        def one() -> tuple:
            key, params = jax.random.key(0), self.one_params()
            _, inner = self.inner.reset_env(key, params)
            return self.inner.step_env(key, inner, self.action_space.sample(key), params)[:2]

        return jax.eval_shape(one)


# ---- whole episodes ------------------------------------------------------------------------------


class Episodes(NamedTuple):
    """Whole episodes under way, one for each key they began with [count]."""

    step: Any
    """steps made"""
    obs: Any
    inner: Any
    memory: Any
    reward: jax.Array
    over: jax.Array
    """bool [count]; episodes that are over go on, and count no more"""
    episode_return: jax.Array
    """undiscounted"""
    episode_length: jax.Array


def acting(act: Callable, memory: Callable | None, policy: Any, count: int) -> tuple[Callable, Any]:
    """A policy, with or without memory, in the form in which `count` episodes are played.

    Args:
      act, memory: as in `rlzoo.Algorithm`: `act(policy, obs, key) -> action`, or with
        `memory(policy)` also `act(policy, memory, obs, reward, key) -> (action, memory)`.

    Returns: `act` as of `advance`, and the memory [count, ...] to `begin` with; None where the
      policy has none.
    """

    def one(remembered: Any, obs: Any, reward: Any, key: jax.Array) -> tuple:
        if memory is None:
            return act(policy, obs, key), remembered
        return act(policy, remembered, obs, reward, key)

    start = None if memory is None else memory(policy)

    def copies(x: Any) -> jax.Array:
        return jnp.broadcast_to(x, (count, *jnp.shape(x)))

    return jax.vmap(one), jax.tree.map(copies, start)


def begin(env: Env, memory: Any, keys: jax.Array) -> Episodes:
    """Start an episode for each of `keys` [count]; `memory` is the policy's, as of `acting`."""
    count = len(keys)
    reset_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
    obs, inner = env.starts(reset_keys)
    now = Episodes(
        step=jnp.int32(0),
        obs=obs,
        inner=inner,
        memory=memory,
        reward=jnp.zeros(count),
        over=jnp.zeros(count, bool),
        episode_return=jnp.zeros(count),
        episode_length=jnp.zeros(count, jnp.int32),
    )
    return _settled(now)


def advance(env: Env, act: Callable, keys: jax.Array, now: Episodes) -> tuple[Episodes, Transition]:
    """Take one step in episodes that began with `keys`, also in those that are over.

    Args:
      act: `act(memory, obs [count, ...], reward [count], keys [count]) -> (action [count, ...],
        memory)`, `reward` being the previous step's, 0 at first.
    """

    def split(key: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.fold_in(key, now.step + 1))

    act_keys, step_keys = jax.vmap(split, out_axes=1)(keys)
    action, memory = act(now.memory, now.obs, now.reward, act_keys)
    obs, inner, reward, score, terminated, truncated = env.step_inner(step_keys, now.inner, action)
    transition = Transition(now.obs, action, reward, terminated, truncated, obs)
    now = Episodes(
        now.step + 1,
        obs,
        inner,
        memory,
        reward,
        now.over | terminated | truncated,
        now.episode_return + jnp.where(now.over, 0.0, score),
        now.episode_length + ~now.over,
    )
    return _settled(now), transition


def episodes(env: Env, act: Callable, memory: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Roll one whole episode for each of `keys` [count], and nothing more; arguments as of
    `advance`.

    Returns: undiscounted return [count] and length [count].
    """

    def going(now: Episodes) -> jax.Array:
        return (now.step < env.max_steps) & ~now.over.all()

    def step(now: Episodes) -> Episodes:
        now, _ = advance(env, act, keys, now)
        return now

    end = jax.lax.while_loop(going, step, begin(env, memory, keys))
    return end.episode_return, end.episode_length


def _settled(now: Episodes) -> Episodes:
    """Without weak types, so that a step compiles once."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), now)


def where_each(mask: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`a` where `mask` [n] is True, else `b` [n, ...]."""
    missing = b.ndim - mask.ndim
    return jnp.where(mask.reshape(mask.shape + (1,) * missing), a, b)
