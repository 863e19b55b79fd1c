"""Files of a run that are not its metrics: strict JSON, and algorithm files as modules."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any


def strict(value: Any) -> Any:
    """`value` as strict JSON can hold it: null for not a number, a text for infinities, lists for
    tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(key): strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    return value


def restored(value: Any, default: Any) -> Any:
    """What `strict` made of the value of a field with this default."""
    if isinstance(value, list):
        inner = default[0] if isinstance(default, tuple) and default else None
        return tuple(restored(part, inner) for part in value)
    if isinstance(default, float) and value is None:
        return math.nan
    if isinstance(default, float) and isinstance(value, str):
        return float(value)
    return value


def write_json(path: Path, content: dict) -> None:
    """Write strict JSON; a write that is cut off leaves the old file whole."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(strict(content), indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def load_module(path: Path) -> Any:
    """Import the algorithm file at `path`."""
    name = f"rlzoo_file_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
