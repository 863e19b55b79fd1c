"""Environments by their ids: `make(id)` and `ids()`.

Ids: gymnax's names (`CartPole-v1`, `Breakout-MinAtar`), `brax/hopper`, `brax/hopper:spring` (backend
after the colon), rlzoo's own, and with the extra of that name `navix/...`, `jumanji/...` and
`craftax/...` (see `rlzoo/suites/adapters.py`). Options follow a question mark, separated by `&`:
fields of the environment's parameters (`CartPole-v1?length=0.7`), arguments of its constructor, and
the wrappers `sticky`, `repeat`, `limit`, `clip` and `stack` (`Breakout-MinAtar?sticky=0.25`).
"""

import ast
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from rlzoo import wrappers
from rlzoo.algorithm import Refused
from rlzoo.env import Env
from rlzoo.suites import adapters, brax, termination


def make(id: str, **options: Any) -> Env:
    """Make the environment named `id` (see the module's docstring for ids and their options).

    Options are given after a `?` in the id or as keyword arguments. Raises `Refused` for an unknown
    id, backend or option, naming the nearest ones.
    """
    import gymnax

    import rlzoo.envs  # noqa: F401  (registers rlzoo's own environments with gymnax)

    name, _, query = id.partition("?")
    options = _parse(id, query) | options
    prefix = name.partition("/")[0]
    if name.startswith("brax/"):
        inner = brax.make(name, options)
    elif prefix in adapters.BY_PREFIX:
        try:
            inner = _construct(id, adapters.factory(name), options)
        except ModuleNotFoundError as error:
            raise Refused(
                f"{id} needs the package {prefix} ({error}): pip install 'rlzoo-jax[{prefix}]' "
                f"(in a clone: pip install -e '.[{prefix}]')"
            ) from error
    elif name in gymnax.registered_envs:
        inner = _construct(id, gymnax.registration._registry[name], options)
    else:
        nearest = difflib.get_close_matches(name, ids(), 3, 0.4)
        raise Refused(
            f"unknown environment {name!r}; nearest: {', '.join(nearest) or 'none'} "
            "(`rlzoo list --envs` prints all)"
        )
    wrapping = {key: options.pop(key) for key in wrappers.BY_OPTION if key in options}
    if not hasattr(inner.action_space(inner.default_params), "n"):
        space = inner.action_space(inner.default_params)
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise Refused(
                f"{id}: actions have no finite bounds, so they cannot be mapped from [-1, 1]"
            )
    if hasattr(inner.observation_space(inner.default_params), "n"):
        inner = wrappers.OneHot(inner)
    for key, value in wrapping.items():
        inner = wrappers.BY_OPTION[key](inner, value)
    env = Env(id, inner, inner.default_params, termination=termination.rule(name, inner))
    return env.replace(**options) if options else env


def ids() -> list[str]:
    """Every environment id: gymnax's, rlzoo's own, brax's."""
    import gymnax

    import rlzoo.envs  # noqa: F401

    return [*gymnax.registered_envs, *(f"brax/{name}" for name in brax.NAMES)]


def _construct(id: str, factory: Callable, options: dict) -> Any:
    """Call the factory with those options that are its arguments, and take them out of
    `options`."""
    known = [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    kwargs = {key: options.pop(key) for key in list(options) if key in known}
    try:
        return factory(**kwargs)
    except OSError as error:
        raise Refused(
            f"{id} could not fetch the data it needs from the network: {error}"
        ) from error
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"{id}: {error}") from error


def _parse(id: str, query: str) -> dict:
    options = {}
    for part in filter(None, query.split("&")):
        key, equals, text = part.partition("=")
        if not equals:
            raise Refused(f"{id!r}: {part!r} should read option=value")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options
