"""The contract that every algorithm file fulfils: a `Config`, and `make(config, env, dataset) ->
Algorithm`.

The training loop (`rlzoo/train.py`) calls `make` inside the trace, maps it over members (a member
is a seed together with its hyper-parameters) and runs `step` in compiled chunks. An algorithm file
therefore knows nothing of seeds, devices, logging or files.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_type_hints

T = TypeVar("T")


class Refused(ValueError):
    """Something the user asked for makes no sense; the message says what would. The command line
    shows the message alone, without a traceback."""

    @classmethod
    def unknown(cls, what: str, name: str, known: Iterable[str]) -> "Refused":
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, 3, 0.4) or known
        return cls(f"{what} {name!r} is unknown; nearest: {', '.join(nearest)}")


def static(default: T) -> T:
    """A `Config` field that decides shapes or control flow: another value is another compiled
    program."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that is a pytree: its plain `float` fields are leaves, which
    the loop passes as traced float32 scalars so that members of one program can differ in them;
    fields declared with `rlzoo.static(...)` are part of the tree's structure.

    Raises TypeError where a leaf is not a float, where a static value cannot be hashed, and where
    the two fields every algorithm has, `env: str` and `total_steps: int`, are missing or not
    static.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    hints = get_type_hints(cls)
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
    for name in ("env", "total_steps"):
        if not any(field.name == name and is_static(field) for field in fields):
            raise TypeError(f"{cls.__name__} needs a static field {name!r}")
    import jax  # here, so that the command line can read a Config without it

    jax.tree_util.register_dataclass(
        cls,
        data_fields=[field.name for field in fields if not is_static(field)],
        meta_fields=[field.name for field in fields if is_static(field)],
    )
    return cls


def is_static(field: dataclasses.Field) -> bool:
    return bool(field.metadata.get("static"))


class Stage(NamedTuple):
    """One stage of a pipeline (fit a model, fit a policy, ...). Stages run one after the other."""

    name: str
    step: Callable[..., Any]
    """`step(state, t) -> (state, metrics)`; `t` counts from 0 within the stage."""
    calls: int
    """How many times `step` runs."""
    enter: Callable[..., Any] | None = None
    """Optional hand-over on the host, outside the trace, before the stage's first step: takes and
    returns the state of all members, as NumPy arrays with a leading member axis. Leaf sizes may
    change, the tree's structure may not."""


class Algorithm(NamedTuple):
    """What `make` returns: pure functions of one member."""

    init: Callable[..., Any]
    """`init(key) -> State`"""
    step: Callable[..., Any] | None
    """`step(state, t) -> (State, metrics)`: one unit of training of fixed shape. `t` is the index
    of the call, one int32 for all members and never batched, so a `lax.cond` on it stays a branch
    under `vmap`. `metrics` is a dict of scalars, or of (sum, count) pairs, that the loop reduces
    over a chunk."""
    policy: Callable[..., Any]
    """`policy(state) -> policy`: the small pytree that acting needs."""
    act: Callable[..., Any]
    """`act(policy, obs, key) -> action`, as evaluated and deployed; with `memory`,
    `act(policy, memory, obs, reward, key) -> (action, memory)`, `reward` being the previous
    step's."""
    steps_per_call: int
    """Environment steps (offline: gradient updates) that one call of `step` makes."""
    updates_per_call: int = 0
    """Gradient updates that one call of `step` makes, for `updates_per_second`."""
    memory: Callable[..., Any] | None = None
    """`memory(policy) -> memory` at the start of an episode, for policies that remember."""
    evaluate: Callable[..., Any] | None = None
    """`evaluate(state, key) -> metrics` replaces rollouts where there is no environment to roll."""
    stages: tuple[Stage, ...] = ()
    """Stages in place of `step`; `total_steps` is then the sum of their calls times
    `steps_per_call`."""
