"""Parameters of environments: how options are written, which there are, and what follows from them.

A parameter that follows from others is a rule `params -> value` under its name in `follows`, an
attribute of the environment's class; those of gymnax's classes are here. It cannot be set by
itself. A parameter that nothing reads is refused.
"""

import ast
import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from rlzoo import machine
from rlzoo.algorithm import Refused

machine.start_backend()  # before gymnax, which starts jax
from gymnax.environments.classic_control import CartPole

from rlzoo.wrappers import innermost

# ---- options in an id ----------------------------------------------------------------------------

_OF_FILE = re.compile(r"(?P<name>.+?\.py:[^\W\d][\w.]*)(\?(?P<query>.*))?", re.DOTALL)
"""An id of a file; the folder may have a question mark in its name."""


def split(id: str) -> tuple[str, dict[str, Any]]:
    """The name in an id and its options: `CartPole-v1?limit=5` is `CartPole-v1` and
    `{"limit": 5}`. Raises `Refused` where an option has no value."""
    of_file = _OF_FILE.fullmatch(id)
    name, query = of_file.group("name", "query") if of_file else id.partition("?")[::2]
    options = {}
    for part in filter(None, (query or "").split("&")):
        key, equals, text = part.partition("=")
        if not equals:
            raise Refused(f"{id!r}: {part!r} should read option=value")
        options[key] = _read(text)
    return name, options


def _read(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def join(name: str, options: dict[str, Any]) -> str:
    """The id that `split` takes apart. Values that are no literals become `...`, which no
    environment takes."""
    parts = [f"{key}={_text(value)}" for key, value in options.items()]
    return "?".join(filter(None, (name, "&".join(parts))))


def _text(value: Any) -> str:
    if not is_literal(value):
        return "..."
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) and _read(value) == value:
        return value
    return repr(plain(value)).replace("&", r"\x26")


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def is_literal(value: Any) -> bool:
    """Whether Python reads back what it writes of `value`."""
    if isinstance(value, list | tuple | set | frozenset):
        return not isinstance(value, frozenset) and all(map(is_literal, value))
    if isinstance(value, dict):
        return all(map(is_literal, [*value, *value.values()]))
    if isinstance(value, float | np.floating):
        return bool(np.isfinite(value))
    return value is None or isinstance(value, bool | int | str | bytes | np.bool_ | np.integer)


# ---- changing ------------------------------------------------------------------------------------

FOLLOWS: dict[type, dict[str, Callable[[Any], Any]]] = {
    CartPole: {
        "total_mass": lambda params: params.masscart + params.masspole,
        "polemass_length": lambda params: params.masspole * params.length,
    }
}
"""gymnax's class -> its parameters that follow from others"""


def following(env: Any) -> dict[str, Callable[[Any], Any]]:
    """The rules of the parameters of `env` that follow from others."""
    for kind in type(innermost(env)).__mro__:
        own = vars(kind).get("follows")
        if own is not None:
            return own
        if kind in FOLLOWS:
            return FOLLOWS[kind]
    return {}


def replaced(id: str, env: Any, params: Any, values: dict[str, Any]) -> Any:
    """The parameters of `env`, called `id`, with other values, and what follows from them.

    A value may have the shape of the default, or one more axis in front: then it varies over
    environments. Raises `Refused` for a name or a value that makes no sense, for a parameter that
    follows from others, and for one that nothing reads.
    """
    defaults = env.default_params
    known = [field.name for field in dataclasses.fields(defaults)]
    rules = following(env)
    check_names(id, values, known)
    for name in values:
        if name in rules:
            others = ", ".join(other for other in known if other not in rules)
            raise Refused(f"{id!r}: {name} follows from other parameters; set those: {others}")
    values = {
        name: _checked(id, name, value, getattr(defaults, name)) for name, value in values.items()
    }
    for name in _unread(env, values):
        raise Refused(
            f"{id!r}: {name} has no effect, because nothing in this environment's dynamics, "
            "observations and rewards reads it; leave it out"
        )
    return _completed(rules, params.replace(**values))


def check_names(id: str, names: Iterable[str], known: list[str]) -> None:
    """Raises `Refused` for the first name that is not known."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 3, 0.4) or sorted(known)
            raise Refused(f"{id!r} has no option {name!r}; nearest: {', '.join(nearest)}")


def _completed(rules: dict[str, Callable[[Any], Any]], params: Any) -> Any:
    for name, rule in rules.items():
        params = params.replace(**{name: rule(params)})
    return params


def _checked(id: str, name: str, given: Any, default: Any) -> Any:
    """`given` as the environment's own code takes it."""
    value = plain(given)
    if isinstance(given, list | tuple | np.ndarray):
        floats = jnp.issubdtype(jnp.result_type(default), jnp.floating)
        with contextlib.suppress(TypeError, ValueError):  # of words, or of lists unequally long
            value = jnp.asarray(given, jnp.float32 if floats else None)
    if not isinstance(value, bool | int | float | jax.Array):
        raise Refused(f"{id!r}: {name}={given!r} must be a number")
    axes = jnp.ndim(value)
    shape = jnp.shape(default)
    if axes not in (len(shape), len(shape) + 1) or jnp.shape(value)[axes - len(shape) :] != shape:
        raise Refused(
            f"{id!r}: {name} has the shape {list(jnp.shape(value))}; it must be "
            f"{list(shape) or 'one number'}, or have one more axis, over environments"
        )
    if name == "max_steps_in_episode" and not isinstance(value, jax.core.Tracer):
        if not (np.asarray(value) >= 1).all() or (np.asarray(value) % 1 != 0).any():
            raise Refused(f"{id!r}: {name}={value!r} must be a whole number of at least 1")
        return value if axes else int(value)
    if not isinstance(value, bool | int | float):
        return value
    if isinstance(default, bool):
        if value not in (0, 1):
            raise Refused(f"{id!r}: {name}={value!r} must be True or False")
        return bool(value)
    if isinstance(default, int):
        if value % 1 != 0:
            raise Refused(f"{id!r}: {name}={value!r} must be a whole number")
        return int(value)
    return float(value)


# ---- what is read --------------------------------------------------------------------------------


def _unread(env: Any, names: Iterable[str]) -> list[str]:
    """Those of the parameters `names` on which no observation, reward, end or bound of an action
    depends, in any episode: found in the traced program."""
    names = [name for name in names if name != "max_steps_in_episode"]  # the stepper reads it
    if not names:
        return []
    defaults = env.default_params
    rules = following(env)

    def episode(values: dict[str, Any], key: jax.Array) -> Any:
        params = _completed(rules, defaults.replace(**values))
        space = env.action_space(params)
        action = space.sample(key)

        def step(state: Any, _: None) -> tuple:
            obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
            return state, (obs, reward, terminated, env.is_truncated(state, params))

        obs, state = env.reset_env(key, params)
        after = jax.eval_shape(step, state, None)[0]
        state = jax.tree.map(lambda x, spec: jnp.asarray(x, spec.dtype), state, after)
        bounds = () if hasattr(space, "n") else (space.low, space.high)
        # a loop, so that what reaches an observation through many states counts as well
        return obs, bounds, jax.lax.scan(step, state, length=2)[1]

    values = {name: getattr(defaults, name) for name in names}
    try:
        program = jax.make_jaxpr(episode)(values, jax.random.key(0)).jaxpr
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        return []  # Python decides by a value, so it is read
    _, read = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    leaves = jax.tree_util.tree_flatten_with_path(values)[0]
    used = {path[0].key for (path, _), is_read in zip(leaves, read, strict=False) if is_read}
    return [name for name in names if name not in used]
