"""Members: seeds times settings of the hyper-parameters, and the programs that they form."""

import dataclasses
import itertools
from typing import Any, NamedTuple

from rlzoo.algorithm import Refused, is_static
from rlzoo.run.options import Options


class Setting(NamedTuple):
    config: Any
    swept: dict


class Member(NamedTuple):
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nothing here needs
    seed: int
    config: Any
    swept: dict


def expand_sweep(config: Any, sweep: dict[str, list]) -> list[Setting]:
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, values in sweep.items():
        if name not in fields:
            raise Refused.unknown("--sweep field", name, fields)
        if not values:
            raise Refused(f"--sweep {name}= has no values")
        kind = type(getattr(config, name))
        for value in values:
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise Refused(
                    f"--sweep {name}: {value!r} is a {type(value).__name__}, but {name} takes "
                    f"{kind.__name__} (its default is {getattr(config, name)!r})"
                )
    return [
        Setting(
            dataclasses.replace(config, **dict(zip(sweep, values, strict=True))),
            dict(zip(sweep, values, strict=True)),
        )
        for values in itertools.product(*sweep.values())
    ]


def group_members(settings: list[Setting], options: Options) -> list[list[Member]]:
    """Members that share all static fields form one program."""
    groups: dict[Any, list[Member]] = {}
    numbers = itertools.count()
    for setting in settings:
        shape = tuple(
            getattr(setting.config, f.name)
            for f in dataclasses.fields(setting.config)
            if is_static(f)
        )
        for seed in range(options.seed, options.seed + options.seeds):
            groups.setdefault(shape, []).append(
                Member(next(numbers), seed, setting.config, setting.swept)
            )
    return list(groups.values())
