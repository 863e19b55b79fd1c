"""Environments of navix, jumanji and craftax behind gymnax's interface; each package is an extra.

    navix/Empty-5x5-v0                     options: view=symbolic, or another function of
                                           navix.observations
    jumanji/Snake-v1                       options: field=grid, one array of the observation in its
                                           own shape; without it, all but the clock laid end to end,
                                           float32 [size]
    craftax/Craftax-Classic-Symbolic-v1    (also Craftax-Symbolic-v1, Craftax-Pixels-v1, ...)

Time limits are kept here, by a clock of our own, so that what a package reports as an end is the
end of the task: craftax and most of jumanji call a time limit a termination. Randomness comes from
the key of each step: navix and jumanji keep a key in their states, so that episodes which start
from one state of the pool would all be alike.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from rlzoo.algorithm import Refused

FOREVER = 2**30  # steps: a limit that no episode reaches
MOST_ACTIONS = 1000


@struct.dataclass
class State:
    inner: Any
    time: jax.Array


class Adapter(environment.Environment):
    """Subclasses say how many steps and actions there are, how an episode starts, and what a step
    does."""

    limit: int
    actions: int

    def __init__(self, name: str):
        self._name = name

    def start(self, key: jax.Array) -> tuple[Any, Any]:
        """Observation and state."""
        raise NotImplementedError

    def move(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        """Observation, state, reward, and whether the task ended."""
        raise NotImplementedError

    @property
    def default_params(self) -> Any:
        return environment.EnvParams(max_steps_in_episode=self.limit)

    @property
    def name(self) -> str:
        return self._name

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        obs, inner = self.start(key)
        return obs, State(inner, jnp.int32(0))

    def step_env(self, key: jax.Array, state: State, action: Any, params: Any) -> tuple:
        obs, inner, reward, terminated = self.move(key, state.inner, action)
        return obs, State(inner, state.time + 1), reward, terminated, {}

    def action_space(self, params: Any = None) -> Any:
        return spaces.Discrete(self.actions)

    def observation_space(self, params: Any) -> Any:
        obs = jax.eval_shape(self.start, jax.random.key(0))[0]
        whole = jnp.issubdtype(obs.dtype, jnp.integer)
        low, high = (0, jnp.iinfo(obs.dtype).max) if whole else (-jnp.inf, jnp.inf)
        return spaces.Box(low, high, obs.shape, obs.dtype)


class Navix(Adapter):
    """MiniGrid. States are kept without key, and without the tiles of their picture, which are
    large."""

    def __init__(self, name: str, view: str = "symbolic"):
        import navix

        super().__init__(name)
        known = _known("navix", name, navix.registry(), "Navix-")
        views = [
            key
            for key in vars(navix.observations)
            if key.startswith(("symbolic", "categorical", "rgb"))
        ]
        if view not in views:
            raise Refused.unknown(f"navix/{name}: view", str(view), views)
        self.view = getattr(navix.observations, view)
        self.env = navix.make(known, observation_fn=self.view)
        self.limit, self.actions = self.env.max_steps, len(self.env.action_set)

    def start(self, key: jax.Array) -> tuple[Any, Any]:
        timestep = self.env.reset(key)
        return timestep.observation, timestep.state.replace(key=None, cache=None)

    def move(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        before = inner.replace(key=key)
        after = self.env.transitions_fn(before, action, self.env.action_set)
        reward = self.env.reward_fn(before, action, after)
        terminated = self.env.termination_fn(before, action, after)
        return self.view(self._tiled(after)), after.replace(key=None), reward, terminated

    def render(self, state: State, params: Any) -> np.ndarray:
        from navix import observations

        return np.asarray(observations.rgb(self._tiled(state.inner)))

    def _tiled(self, inner: Any) -> Any:
        from navix.rendering.cache import RenderingCache

        return inner.replace(cache=RenderingCache.init(inner.grid))


class Jumanji(Adapter):
    """Those for one agent with discrete actions; several choices at once become one out of all
    combinations."""

    def __init__(self, name: str, field: str | None = None):
        import jumanji

        super().__init__(name)
        known = _known("jumanji", name, jumanji.registered_environments())
        self.env = jumanji.make(known)
        self.limit = getattr(self.env, "time_limit", 10_000)  # those without one end by themselves
        if hasattr(self.env, "time_limit"):
            self.env = jumanji.make(known, time_limit=FOREVER)
        self.choices = np.atleast_1d(getattr(self.env.action_spec, "num_values", 0))
        self.actions = int(np.prod(self.choices))
        if self.env.reward_spec.shape or not 0 < self.actions <= MOST_ACTIONS:
            raise Refused(
                f"jumanji/{name} is not for one agent with at most {MOST_ACTIONS} discrete "
                f"actions; it takes {self.env.action_spec}"
            )
        self.fields = list(
            _arrays(jax.eval_shape(self.env.reset, jax.random.key(0))[1].observation)
        )
        if field is not None and field not in self.fields:
            raise Refused.unknown(f"jumanji/{name}: field", str(field), self.fields)
        self.field = field

    def start(self, key: jax.Array) -> tuple[Any, Any]:
        inner, timestep = self.env.reset(key)
        return self._see(timestep), inner.replace(key=None)

    def move(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        if self.choices.size > 1:
            action = jnp.stack(jnp.unravel_index(action, self.choices.tolist()))
        inner, timestep = self.env.step(inner.replace(key=key), action)
        return self._see(timestep), inner.replace(key=None), timestep.reward, timestep.last()

    def _see(self, timestep: Any) -> jax.Array:
        arrays = _arrays(timestep.observation)
        if self.field is not None:
            return arrays[self.field]
        return jnp.concatenate(
            [jnp.ravel(x).astype(jnp.float32) for name, x in arrays.items() if name != "step_count"]
        )


class Craftax(Adapter):
    def __init__(self, name: str):
        from craftax.craftax_env import make_craftax_env_from_name

        super().__init__(name)
        names = [
            f"Craftax-{size}{kind}-v1"
            for size in ("", "Classic-")
            for kind in ("Symbolic", "Pixels")
        ]
        self.env = make_craftax_env_from_name(_known("craftax", name, names), auto_reset=False)
        self.limit, self.actions = self.env.default_params.max_timesteps, self.env.num_actions
        self.params = self.env.default_params.replace(max_timesteps=FOREVER)

    def start(self, key: jax.Array) -> tuple[Any, Any]:
        return self.env.reset_env(key, self.params)

    def move(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Any, Any, Any]:
        return self.env.step_env(key, inner, action, self.params)[:4]

    @functools.cached_property
    def _pixels(self) -> Callable:
        from craftax.craftax_env import make_craftax_env_from_name

        return jax.jit(
            make_craftax_env_from_name(
                self.name.replace("Symbolic", "Pixels"), auto_reset=False
            ).get_obs
        )

    def render(self, state: State, params: Any) -> np.ndarray:
        return np.asarray(255 * self._pixels(state.inner)).astype(np.uint8)


BY_PREFIX: dict[str, type[Adapter]] = {"navix": Navix, "jumanji": Jumanji, "craftax": Craftax}
"""What stands before the slash of an id, which is also the package's and the extra's name."""


def factory(id: str) -> Callable[..., Adapter]:
    """What makes the environment `id`, given its options. Raises `Refused` when called where the
    package is missing."""
    prefix, _, name = id.partition("/")
    return functools.partial(BY_PREFIX[prefix], name)


def _known(package: str, name: str, names: Any, before: str = "") -> str:
    """The package's own name for `name`."""
    if before + name not in names:
        raise Refused.unknown(
            "environment",
            f"{package}/{name}",
            (f"{package}/{x.removeprefix(before)}" for x in names),
        )
    return before + name


def _arrays(tree: Any) -> dict[str, Any]:
    """The arrays of a structure by name, `outer.inner` where it is nested."""
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}
