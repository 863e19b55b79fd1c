"""All probes in one environment, chosen by a parameter: an algorithm is compiled once and learns
them as members."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from probes import PROBES, Probe, State

import rlzoo
from rlzoo.env import Env

# Tiny programs run for milliseconds and compile for seconds; without optimization in half the time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@struct.dataclass
class Params:
    max_steps_in_episode: int = 5
    which: Any = 0
    """index into PROBES"""
    naive: Any = False
    """report the time limit as the end of the task, as many training loops do"""


class Together(Probe):
    random = True

    def __init__(self, continuous: bool = False):
        super().__init__(continuous)
        self.probes = [probe(continuous) for probe in PROBES.values()]

    @property
    def default_params(self) -> Params:
        return Params()

    def pick(self, params: Params, of: Any) -> jax.Array:
        return jnp.stack([jnp.asarray(of(probe)) for probe in self.probes])[params.which]

    def reset_env(self, key: jax.Array, params: Params) -> tuple:
        _, state = super().reset_env(key, params)
        return self.pick(params, lambda probe: probe.see(state)), state

    def step_env(self, key: jax.Array, state: State, action: Any, params: Params) -> tuple:
        steps = [probe.step_env(key, state, action, params) for probe in self.probes]
        after = steps[0][1]  # the clock is the same for all
        obs, reward, terminated = (
            jnp.stack([step[i] for step in steps])[params.which] for i in (0, 2, 3)
        )
        return (
            obs,
            after,
            reward,
            terminated | (params.naive & self.is_truncated(after, params)),
            {},
        )


class Learned(NamedTuple):
    state: Any
    """of each member, stacked"""
    metrics: dict
    """of each call and member"""
    policies: Any
    actions: Any
    """of each member at observations -1, 0 and 1: [members, 3, ...]"""


def learn(make: Any, config: Any, members: list[str], continuous: bool = False) -> Learned:
    """Train on each of `members` (a probe's id; ` naive` after it takes time limits for
    terminations)."""
    env = Env("together", Together(continuous), Params())
    names = list(PROBES)
    which = jnp.array([names.index(member.removesuffix(" naive")) for member in members])
    naive = jnp.array([member.endswith(" naive") for member in members])

    def alg(which: Any, naive: Any) -> rlzoo.Algorithm:
        return make(config, dataclasses.replace(env, params=Params(which=which, naive=naive)))

    def step(state: Any, t: Any) -> tuple:
        return jax.vmap(lambda w, n, s: alg(w, n).step(s, t))(which, naive, state)

    def run(key: jax.Array) -> Learned:
        state = jax.vmap(lambda w, n: alg(w, n).init(key))(which, naive)
        calls = config.total_steps // make(config, env).steps_per_call
        state, metrics = jax.lax.scan(step, state, jnp.arange(calls))
        policies = jax.vmap(lambda w, n, s: alg(w, n).policy(s))(which, naive, state)
        obs = jnp.array([[-1.0], [0.0], [1.0]])
        act = lambda w, n, p: jax.vmap(lambda o: alg(w, n).act(p, o, key))(obs)
        return Learned(state, metrics, policies, jax.vmap(act)(which, naive, policies))

    return quick_jit(run)(jax.random.key(0))
