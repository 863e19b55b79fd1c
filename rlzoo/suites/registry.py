"""Environments by their ids, or given as objects: `make`, `id_of` and `ids`.

Ids: gymnax's names (`CartPole-v1`, `Breakout-MinAtar`), `brax/hopper`, `brax/hopper:spring`
(backend after the colon), `hopper-vel-sparse` (see `rlzoo/suites/velocity.py`), rlzoo's own, and
with the extra of that name `navix/...`, `jumanji/...` and `craftax/...` (see
`rlzoo/suites/adapters.py`). One's own are `corridor.py:Corridor` or, of an
installed package, `package.module:Corridor`: a class, or a function that makes an environment.
Options follow a question mark, separated by `&`: fields of the environment's parameters
(`CartPole-v1?length=0.7`), arguments of its constructor, and the wrappers `sticky`, `repeat`,
`limit`, `clip` and `stack` (`Breakout-MinAtar?sticky=0.25`).

Where gymnax's dynamics differ from gymnasium's under the same name, ours follow gymnasium
(`rlzoo/suites/classic.py`).
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnax
import jax
import numpy as np
from gymnax.environments.environment import Environment
from gymnax.registration import _registry

import rlzoo.envs  # noqa: F401  (registers rlzoo's own environments with gymnax)
from rlzoo import machine, wrappers
from rlzoo.algorithm import Refused
from rlzoo.env import Env
from rlzoo.parameters import check_names, is_literal, join, plain, split
from rlzoo.suites import adapters, brax, classic, files, termination, velocity


def make(env: Any, **options: Any) -> Env:
    """Make an environment.

    Args:
      env: its id (see the module's docstring), a gymnax `Environment`, a class of one, or a
        function that makes one.
      options: as after the `?` of an id.

    Returns: the environment; its `id` makes an equal one, also in another process, unless it begins
      with `notebook:` (see `id_of`).

    Raises `Refused` for an unknown id, backend or option, naming the nearest ones, and for what is
    no JAX environment.
    """
    if isinstance(env, Env):
        return env.replace(**options) if options else env
    options = dict(options)
    if isinstance(env, str):
        name, given = split(env)
        name = _absolute(name)
        options = given | options
        id = join(name, options)
        inner = _by_name(id, name, options)
    elif found := _name(env):
        name = found
        id = join(name, options)
        inner = _construct(id, env, options)
    else:
        inner = env if isinstance(env, Environment) else _construct(repr(env), env, options)
        name, given = split(id_of(inner))
        id = join(name, given | options)
    return _wrapped(id, name, inner, options)


def ids() -> list[str]:
    """Every environment id: gymnax's, rlzoo's own, brax's."""
    return [*gymnax.registered_envs, *velocity.NAMES, *(f"brax/{name}" for name in brax.NAMES)]


def id_of(env: Any) -> str:
    """The id under which an environment is recorded: `make` of it gives an equal one, also in
    another process and another folder.

    Args:
      env: whatever `make` takes. Paths in ids become absolute, and names that the user registered
        with gymnax become the file and the class.

    Returns: the id. It begins with `notebook:` where the environment cannot be made again from
      anything recorded: its class stands in no file, its constructor's values are no literals or
      are not kept as attributes of the same name, or it was changed afterwards. Objects that are
      not equal have different ids.
    """
    if isinstance(env, str):
        name, options = split(env)
        if name not in _registry or _from(_registry[name], "gymnax", "rlzoo"):
            return join(_absolute(name), options)
        made = id_of(_construct(env, _registry[name], options))
        name, values = split(made)
        return env if made.startswith(NOTEBOOK) else join(name, values | options)
    if isinstance(env, Env):
        name, options = split(env.id)
        whole = name.startswith(NOTEBOOK) and Ellipsis not in options.values()
        if whole or _makes(env.id, env):
            return env.id
        return _unfindable(type(wrappers.innermost(env.inner)).__qualname__, {}, env)
    if isinstance(env, Environment):
        found, arguments = _name(type(env)), _constructor_values(env)
        if found is None or arguments is None:
            return _unfindable(type(env).__qualname__, arguments or {}, env)
        return join(found, arguments)
    return _name(env) or id_of(_construct(repr(env), env, {}))


def short(id: str) -> str:
    """An id without the folder of its file: what is shown, and what folders are called."""
    name, options = split(id)
    return join(name.rpartition("/")[2], options) if _FILE.fullmatch(name) else id


NOTEBOOK = "notebook:"
"""Before the name of what cannot be made again."""
_NAMED: dict[str, Any] = {}
"""Names that begin so -> what has them in this process."""


def _unfindable(name: str, values: dict[str, Any], env: Any) -> str:
    count = 1
    while True:
        id = join(f"{NOTEBOOK}{name}{f'#{count}' if count > 1 else ''}", values)
        if _same(_NAMED.setdefault(id, env), env):
            return id
        count += 1


# ---- from a name ---------------------------------------------------------------------------------


def _by_name(id: str, name: str, options: dict[str, Any]) -> Any:
    """The environment of this name, without wrappers. Takes its constructor's arguments out of
    `options`."""
    prefix = name.partition("/")[0]
    if name.startswith(NOTEBOOK):
        raise Refused(
            f"{name} cannot be made from its name: it was defined in a notebook, or changed after "
            "it was made. Give the environment itself: env=..."
        )
    if _FILE.fullmatch(name):
        return _construct(id, _find(name, files.load(name.rpartition(":")[0])), options)
    if name.startswith("data:"):
        raise Refused(f"{name} is known from its data set alone: give that too, --dataset FILE")
    if name.startswith("brax/"):
        return brax.make(name, options)
    if name.partition(":")[0].endswith(velocity.SUFFIX):
        return _construct(id, velocity.factory(name), options)
    if prefix in adapters.BY_PREFIX:
        try:
            return _construct(id, adapters.factory(name), options)
        except ModuleNotFoundError as error:
            raise Refused(
                f"{id} needs the package {prefix} ({error}): {machine.how_to_install(prefix)}"
            ) from error
    if name in classic.BY_NAME:
        return _construct(id, classic.BY_NAME[name], options)
    if name in _registry:
        return _construct(id, _registry[name], options)
    if _MODULE.fullmatch(name) and _importable(name.partition(":")[0]):
        module = name.partition(":")[0]
        found = files.explained(module, lambda: importlib.import_module(module))
        return _construct(id, _find(name, found), options)
    nearest = difflib.get_close_matches(name, ids(), 3, 0.4)
    raise Refused(
        f"unknown environment {name!r}; nearest: {', '.join(nearest) or 'none'} "
        "(`rlzoo list --envs` prints all; one of your own is given by its file and class: "
        "corridor.py:Corridor)"
    )


_FILE = re.compile(r".+\.py:[^\W\d][\w.]*", re.DOTALL)
_MODULE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def _absolute(name: str) -> str:
    """`name`; where it is one of a file, with the whole path."""
    if not _FILE.fullmatch(name):
        return name
    path, _, qualname = name.rpartition(":")
    return f"{Path(path).expanduser().resolve()}:{qualname}"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is said to be in
        return False


def _find(name: str, module: Any) -> Any:
    """What is called so in its module."""
    place, _, qualname = name.rpartition(":")
    found = module
    for part in qualname.split("."):
        if not hasattr(found, part):
            own = [
                key
                for key, value in vars(module).items()
                if getattr(value, "__module__", None) == module.__name__ and callable(value)
            ]
            if not own:
                raise Refused(f"{place} has no {qualname}, and no other class or function")
            raise Refused.unknown(f"{place}: the environment", qualname, own)
        found = getattr(found, part)
    return found


def _construct(id: str, factory: Any, options: dict[str, Any]) -> Any:
    """Call the factory with those options that are its arguments, and take them out of
    `options`; an environment is taken as it is."""
    _refuse_gymnasium(id, factory)
    if isinstance(factory, Environment):
        return factory
    if not callable(factory):
        raise Refused(
            f"{id} is a {type(factory).__name__}; an environment is an id, a gymnax Environment, a "
            "class of one, or a function that makes one"
        )
    known = [p for p in _signature(factory) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [parameter.name for parameter in known]
    kwargs = {key: options.pop(key) for key in list(options) if key in names}
    missing = [p.name for p in known if p.default is p.empty and p.name not in kwargs]
    if missing:
        raise Refused(
            f"{id} needs a value for {' and '.join(missing)}; options follow a question mark: "
            f"{join(split(id)[0], kwargs)}{'&' if kwargs else '?'}{missing[0]}=..."
        )
    env = _call(id, factory, kwargs)
    _refuse_gymnasium(id, env)
    if not isinstance(env, Environment):
        raise Refused(
            f"{id} gave a {type(env).__name__}; it should give an environment: a subclass of "
            "gymnax.environments.environment.Environment"
        )
    _check_options(id, env, options, names)
    return env


def _signature(factory: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except ValueError:  # of classes written in C some do not say
        return []


def _call(id: str, factory: Callable, kwargs: dict[str, Any]) -> Any:
    if not _from(factory, "gymnax", "rlzoo", "functools"):
        return files.explained(id, lambda: factory(**kwargs))
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


def _refuse_gymnasium(id: str, env: Any) -> None:
    kind = env if isinstance(env, type) else type(env)
    if any(base.__module__.partition(".")[0] in ("gymnasium", "gym") for base in kind.__mro__):
        raise Refused(
            f"{id} is a Gymnasium environment, which runs in NumPy, step by step; rlzoo compiles "
            "the environment together with the algorithm and needs one in JAX. Write its reset and "
            "step as a gymnax Environment, or learn from recorded steps with an offline algorithm"
        )


def _check_options(id: str, env: Any, options: dict[str, Any], arguments: list[str]) -> None:
    fields = [field.name for field in dataclasses.fields(env.default_params)]
    check_names(id, options, [*fields, *arguments, *wrappers.BY_OPTION])


def _wrapped(id: str, name: str, inner: Any, options: dict[str, Any]) -> Env:
    """The environment with the wrappers and the parameters that `options` ask for."""
    _check_options(id, inner, options, [])
    params = inner.default_params
    if not hasattr(params, "max_steps_in_episode"):
        raise Refused(f"{id}: its parameters need max_steps_in_episode, the time limit in steps")
    wrapping = {key: options.pop(key) for key in wrappers.BY_OPTION if key in options}
    space = inner.action_space(params)
    if not hasattr(space, "n") and not (
        np.isfinite(space.low).all() and np.isfinite(space.high).all()
    ):
        raise Refused(f"{id}: actions have no finite bounds, so they cannot be mapped from [-1, 1]")
    if hasattr(inner.observation_space(params), "n"):
        inner = wrappers.OneHot(inner)
    for key, value in wrapping.items():
        inner = wrappers.BY_OPTION[key](inner, value)
    env = Env(id, inner, params, termination=termination.rule(name, inner))
    env = env.replace(**options) if options else env
    if env.param_axes is not None:
        raise Refused(
            f"{id}: env.replace(...) gives each environment a value of its own, an id none"
        )
    return env


# ---- from an object ------------------------------------------------------------------------------


def _from(thing: Any, *packages: str) -> bool:
    """Whether a class, a function or an object is of one of these packages."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in packages


def _name(thing: Any) -> str | None:
    """The name of a class or a function: its id where it has one, or its place."""
    for name, factory in (_registry | classic.BY_NAME).items():
        if factory is thing and _from(thing, "gymnax", "rlzoo"):
            return name
    return _place(thing)


def _place(thing: Any) -> str | None:
    """Where a class or a function can be found again: `file.py:Name`, or `package.module:Name` of
    an installed package; None where it stands in no file."""
    if not isinstance(thing, type) and not inspect.isfunction(thing):
        return None
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    found = module
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not thing or file is None or not file.endswith(".py"):
        return None
    package = thing.__module__.partition(".")[0]
    if package in importlib.metadata.packages_distributions():
        return f"{thing.__module__}:{thing.__qualname__}"
    return f"{Path(file).resolve()}:{thing.__qualname__}"


def _constructor_values(env: Any) -> dict[str, Any] | None:
    """The arguments, other than defaults, that make an equal environment; None where they cannot be
    told. They are looked for in attributes of their names, and tried."""
    values = {}
    for parameter in _signature(type(env)):
        name = parameter.name
        value = vars(env).get(name, vars(env).get(f"_{name}", parameter.default))
        value = plain(value)
        if value is parameter.default:
            continue
        if not is_literal(value):
            return None
        if type(value) is not type(parameter.default) or value != parameter.default:
            values[name] = value
    try:
        again = type(env)(**values)
    except Exception:  # whatever it raises, these are not the values
        return None
    return values if _same(again, env) else None


def _makes(id: str, env: Env) -> bool:
    """Whether `id` makes an environment with the classes and the parameters of `env`."""
    try:
        made = make(id)
    except Refused:
        return False
    return _kinds(made.inner) == _kinds(env.inner) and _same(made.params, env.params)


def _kinds(env: Any) -> list[type]:
    return [type(env), *(_kinds(env.env) if isinstance(env, wrappers.Wrapper) else [])]


def _same(a: Any, b: Any, within: frozenset = frozenset()) -> bool:
    """Whether two objects hold the same, all the way down."""
    if a is b or (id(a), id(b)) in within:
        return True
    if type(a) is not type(b):
        return False
    within = within | {(id(a), id(b))}
    if isinstance(a, np.ndarray | jax.Array):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], within) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(functools.partial(_same, within=within), a, b))
    if hasattr(a, "__code__"):  # a function or a method: what it does, and what it has at hand
        at_hand = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (a, b)]
        return a.__code__ == b.__code__ and _same(at_hand[0], at_hand[1], within)
    if hasattr(a, "__dict__") and (vars(a) or type(a).__eq__ is object.__eq__):
        cached = {k for k, v in vars(type(a)).items() if isinstance(v, functools.cached_property)}
        held = [{k: v for k, v in vars(x).items() if k not in cached} for x in (a, b)]
        return _same(held[0], held[1], within)
    return bool(a == b)
