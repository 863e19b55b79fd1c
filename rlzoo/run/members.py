"""Members: seeds times settings of the hyper-parameters, and the programs that they form."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

from rlzoo.algorithm import Refused, clean, clean_value, is_static
from rlzoo.run.options import Options


class Setting(NamedTuple):
    """A configuration, and those of its fields that are swept."""

    config: Any
    swept: dict


class Member(NamedTuple):
    """A seed of a setting."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nothing here needs
    seed: int
    config: Any
    swept: dict


def swept_values(sweep: Mapping[str, Any] | None) -> dict[str, list]:
    """A sweep as field -> list of values. Raises `Refused` where a field has no list of them."""
    found = {}
    for name, values in (sweep or {}).items():
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise Refused(f"--sweep {name}: {values!r} is one value; give a list of values")
        found[name] = list(values)
    return found


def expand_sweep(config: Any, sweep: dict[str, list]) -> list[Setting]:
    """Every combination of the swept values, each checked as `rlzoo.algorithm.clean` does.

    Raises `Refused` for an unknown field, no values, a value twice, and one that does not fit.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = get_type_hints(type(config))
    cleaned: dict[str, list] = {}
    for name, values in sweep.items():
        if name not in fields:
            raise Refused.unknown("--sweep field", name, fields)
        if not values:
            raise Refused(f"--sweep {name}= has no values")
        found = [clean_value(fields[name], hints[name], value, "--sweep ") for value in values]
        for i, value in enumerate(found):
            if value in found[:i]:
                raise Refused(f"--sweep {name}: {value!r} is there twice")
        cleaned[name] = found
    config = clean(config)
    settings = []
    for combination in itertools.product(*cleaned.values()):
        swept = dict(zip(cleaned, combination, strict=True))
        settings.append(Setting(dataclasses.replace(config, **swept), swept))
    return settings


def group_members(settings: list[Setting], options: Options) -> list[list[Member]]:
    """Members that share all static fields form one program."""
    groups: dict[Any, list[Member]] = {}
    numbers = itertools.count()
    for setting in settings:
        fields = dataclasses.fields(setting.config)
        shape = tuple(getattr(setting.config, f.name) for f in fields if is_static(f))
        for seed in range(options.seed, options.seed + options.seeds):
            member = Member(next(numbers), seed, setting.config, setting.swept)
            groups.setdefault(shape, []).append(member)
    return list(groups.values())
