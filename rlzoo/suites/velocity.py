"""Sparse velocity tasks on brax's walkers: the reward rule of `rlzoo.envs.velocity_band` in place
of brax's own.

    hopper-vel-sparse                  a backend after a colon, as brax's: hopper-vel-sparse:spring
    hopper-vel-sparse?terminate=True   falling ends the episode (brax's rule, which is gym's)
    hopper-vel-sparse?target=3         also band, control_weight

Target, band and control weight are those of the code that Liu et al. 2023 (arXiv 2305.18258)
released: of its model-free tasks, where nothing terminates, and for the ant of its model-based one.
The physics is brax's and so are the observations, so that scores are not those of MuJoCo.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlzoo.algorithm import Refused
from rlzoo.envs.velocity_band import Band, band_reward
from rlzoo.suites import brax, termination
from rlzoo.wrappers import Wrapper

SUFFIX = "-vel-sparse"
TASKS = {
    "ant": Band(target=1.0, band=0.7, control_weight=0.5),
    "halfcheetah": Band(target=1.5, band=0.6, control_weight=0.05),
    "hopper": Band(target=1.5, band=0.6, control_weight=0.05),
    "walker2d": Band(target=1.0, band=0.5, control_weight=0.001),
}
"""brax's name -> the parameters"""
NAMES = tuple(name + SUFFIX for name in TASKS)


class VelocityBand(Wrapper):
    """A brax environment whose reward is `band_reward` of its velocity along x.

    Args:
      env: the environment, as of `rlzoo.suites.brax.make`; it must measure an x velocity.
      params: of the reward, and the time limit.
      rule: how its steps terminate; None: they do not, whatever the environment says.
    """

    def __init__(self, env: brax.Brax, params: Band, rule: termination.Rule | None = None):
        super().__init__(env)
        measured = jax.eval_shape(env.env.reset, jax.random.key(0)).metrics
        if "x_velocity" not in measured:
            raise Refused(
                f"{env.name} has no x velocity to reward (it measures {', '.join(measured)}); "
                f"tasks of speed are {', '.join(NAMES)}"
            )
        self.params = params
        self.rule = rule

    @property
    def default_params(self) -> Band:
        return self.params

    @property
    def name(self) -> str:
        return self.env.name.removeprefix("brax/") + SUFFIX

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Band) -> tuple:
        obs, state, _, terminated, info = self.env.step_env(key, state, action, params)
        velocity = state.physics.metrics["x_velocity"]
        reward = band_reward(velocity, action, params)
        return obs, state, reward, terminated & (self.rule is not None), info

    def terminates(self, next_obs: jax.Array, params: Band) -> jax.Array:
        if self.rule is None:
            return jnp.zeros(next_obs.shape[:-1], bool)
        return self.rule(next_obs, params)


def factory(id: str) -> Callable[..., VelocityBand]:
    """What makes the environment `id`, given its options."""
    return functools.partial(_make, id)


def _make(id: str, terminate: bool = False) -> VelocityBand:
    task, colon, backend = id.partition(":")
    name = task.removesuffix(SUFFIX)
    env = brax.make(name + colon + backend, {})
    rule = termination.RULES[f"brax/{name}"] if terminate else None
    return VelocityBand(env, TASKS.get(name, Band()), rule)
