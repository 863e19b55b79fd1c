"""The contract that every algorithm file fulfils: a `Config`, and
`make(config, env, dataset) -> Algorithm`.

The training loop (`rlzoo/run/loop.py`) calls `make` inside the trace, maps it over members (a
member is a seed together with its hyper-parameters) and runs `step` in compiled chunks. An
algorithm file therefore knows nothing of seeds, devices, logging or files.
"""

import dataclasses
import difflib
import numbers
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin
from typing import get_type_hints as type_hints

T = TypeVar("T")


class Refused(ValueError):
    """Something the user asked for makes no sense; the message says what would. The command line
    shows the message alone, without a traceback."""

    @classmethod
    def unknown(cls, what: str, name: str, known: Iterable[str]) -> "Refused":
        """`name` is none of `known`: the message gives the nearest of them."""
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, 3, 0.4) or known
        return cls(f"{what} {name!r} is unknown; nearest: {', '.join(nearest)}")


def check(condition: Any, message: str) -> None:
    """Raise `Refused` with `message` where `condition` is false.

    For conditions on float fields in `make`: inside the trace they are tracers, which are passed
    over. The host calls `make` with the real floats of every setting too. Join several conditions
    by `&`, not by `and`.
    """
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(condition, jax.core.Tracer):
        return
    if not condition:
        raise Refused(message)


# ---- configuration -------------------------------------------------------------------------------


def static(
    default: T,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> T:
    """A `Config` field that decides shapes or control flow: another value is another program.

    Args:
      least, above, most: bounds of a number, or of each number of a tuple: at least, more than, at
        most.
    """
    bounds = {"least": least, "above": above, "most": most}
    return dataclasses.field(default=default, metadata={"static": True, **_given(bounds)})


def traced(
    default: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> float:
    """A float `Config` field with bounds, as of `static`. Members of one program may differ in it.

    Not a number and infinity are within all bounds: such members train, and diverge.
    """
    bounds = {"least": least, "above": above, "most": most}
    return dataclasses.field(default=default, metadata=_given(bounds))


def _given(bounds: dict[str, float | None]) -> dict[str, float]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


@dataclass_transform(frozen_default=True, field_specifiers=(static, traced))
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that is a pytree: its plain `float` fields are leaves, which
    the loop passes as traced float32 scalars so that members of one program can differ in them;
    fields declared with `rlzoo.static(...)` are part of the tree's structure.

    Raises TypeError where a leaf is not a float, where a static value cannot be hashed, and where
    the field that every algorithm has, `env: str`, is missing or not static.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    hints = type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        where = f"{cls.__name__}.{field.name}"
        if field.default is dataclasses.MISSING:
            raise TypeError(f"{where} needs a default")
        if is_static(field):
            try:
                hash(field.default)
            except TypeError:
                raise TypeError(
                    f"{where} is static, so its value must be hashable: use a tuple, not "
                    f"{type(field.default).__name__}"
                ) from None
        elif hints[field.name] is not float or type(field.default) is not float:
            raise TypeError(
                f"{where} is a {type(field.default).__name__}; only floats can be traced: write "
                f"rlzoo.static({field.default!r}), or make it a float"
            )
    if not any(field.name == "env" and is_static(field) for field in fields):
        raise TypeError(f"{cls.__name__} needs a static field 'env'")
    import jax  # here, so that the command line can read a Config without it

    jax.tree_util.register_dataclass(
        cls,
        data_fields=[field.name for field in fields if not is_static(field)],
        meta_fields=[field.name for field in fields if is_static(field)],
    )
    return cls


def is_static(field: dataclasses.Field) -> bool:
    """Whether a field of a `Config` is static."""
    return bool(field.metadata.get("static"))


def clean(config: T) -> T:
    """`config` with Python's own numbers and tuples in place of NumPy's and lists.

    Raises `Refused` where a value has the wrong type, or is outside its field's bounds or choices.
    """
    hints = type_hints(type(config))
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    values = {f.name: clean_value(f, hints[f.name], getattr(config, f.name)) for f in fields}
    return type(config)(**values)


def clean_value(field: dataclasses.Field, hint: Any, value: Any, where: str = "") -> Any:
    """One value of a `Config` field, as of `clean`; `where` stands before the name in messages."""
    name = where + field.name
    value = plain(value)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise Refused.unknown(name, str(value), map(str, get_args(hint)))
    kind = hint if hint in (bool, float, int, str) else type(field.default)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    optional = value is None and type(None) in get_args(hint)
    if type(value) is not kind and not optional and field.default is not None:
        raise Refused(
            f"{name}: {value!r} is a {type(value).__name__}, but {field.name} takes "
            f"{kind.__name__} (its default is {field.default!r})"
        )
    for part in value if isinstance(value, tuple) else (value,):
        _check_bounds(name, part, field.metadata)
    return value


def plain(value: Any) -> Any:
    """Python's own number or tuple for NumPy's and JAX's, and for lists."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(plain(part) for part in value) if isinstance(value, list | tuple) else value


def _check_bounds(name: str, value: Any, bounds: Any) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return
    for bound, holds, words in (
        ("least", lambda low: not value < low, "at least"),
        ("above", lambda low: not value <= low, "more than"),
        ("most", lambda high: not value > high, "at most"),
    ):
        if bound in bounds and not holds(bounds[bound]):
            raise Refused(f"{name} is {value:g}; it must be {words} {bounds[bound]:g}")


# ---- algorithm -----------------------------------------------------------------------------------


class Stage(NamedTuple):
    """One stage of a pipeline (fit a model, fit a policy, ...). Stages run one after the other."""

    name: str
    step: Callable[..., Any]
    """`step(state, t) -> (state, metrics)`; `t` counts from 0 within the stage."""
    calls: int
    """How many times `step` runs; with `until`, at most."""
    enter: Callable[..., Any] | None = None
    """Optional hand-over on the host, outside the trace, before the stage's first step:
    `enter(states, configs) -> states`, the states of all members as NumPy arrays with a leading
    member axis, and the list of the members' configurations. Leaf sizes may change, the tree's
    structure may not."""
    until: Callable[..., Any] | None = None
    """`until(state) -> bool` ends the stage early for a member: from then on it waits, unchanged,
    until all have ended. It is asked after every `check_every` calls."""
    check_every: int = 1
    """Calls between two questions to `until`."""
    steps_per_call: int = 1
    """Steps that one call makes: environment steps, gradient updates, or what the stage counts."""
    updates_per_call: int = 0
    """Gradient updates that one call makes, for `updates_per_second`."""
    evaluate: bool = False
    """Evaluate the policy during this stage too, and not only at the end of the run."""


class Algorithm(NamedTuple):
    """What `make` returns: pure functions of one member."""

    init: Callable[..., Any]
    """`init(key) -> State`"""
    step: Callable[..., Any] | None
    """`step(state, t) -> (State, metrics)`: one unit of training of fixed shape. `t` is the index
    of the call, one int32 for all members and never batched, so a `lax.cond` on it stays a branch
    under `vmap`. `metrics` is a dict of scalars, of (sum, count) pairs, or of `rlzoo.last` and
    `rlzoo.most`, that the loop reduces over a chunk."""
    policy: Callable[..., Any]
    """`policy(state) -> policy`: the small pytree that acting needs."""
    act: Callable[..., Any]
    """`act(policy, obs, key) -> action`, as evaluated and deployed; with `memory`,
    `act(policy, memory, obs, reward, key) -> (action, memory)`, `reward` being the previous
    step's."""
    steps_per_call: int = 1
    """Environment steps (offline: gradient updates) that one call of `step` makes."""
    updates_per_call: int = 0
    """Gradient updates that one call of `step` makes, for `updates_per_second`."""
    memory: Callable[..., Any] | None = None
    """`memory(policy) -> memory` at the start of an episode, for policies that remember."""
    evaluate: Callable[..., Any] | None = None
    """`evaluate(state, key) -> metrics`, which are added to those of the rollouts."""
    rollouts: bool = True
    """Whether evaluation rolls the policy in the environment. Searches do not, nor does what
    learns from data without a simulator."""
    score: str = "eval/return"
    """The metric by which a run is judged."""
    lower_is_better: bool = False
    """Whether a small score is a good one."""
    stages: tuple[Stage, ...] = ()
    """Stages in place of `step`; each says for itself how many calls and steps it makes."""
