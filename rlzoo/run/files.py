"""Files of a run that are not its metrics: strict JSON, the lock of who writes, and what a command
line was."""

import json
import math
import os
import re
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from rlzoo.algorithm import Refused

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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


class Lock:
    """The right to write into a run directory. The system takes it back from a process that ends,
    however it ends."""

    def __init__(self, folder: Path):
        """Raises `Refused` where another process, or another run of this one, has it."""
        self.file: IO[str] | None = None
        if fcntl is None:
            return
        file = (folder / LOCK).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise Refused(
                f"{folder} is being written by {holder}; wait for its end, or stop it"
            ) from None
        except OSError:  # a file system without locks
            file.close()
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self.file = file

    def release(self) -> None:
        """Let others write."""
        if self.file:
            self.file.truncate(0)
            self.file.close()
            self.file = None


LOCK = ".lock"
"""The file in a run directory that is locked, and names who writes."""


def command_line(argv: Sequence[str]) -> str:
    """The command that `argv` gives, without paths that lead outside of the working directory: of
    what is in the home directory the path from there, of other files the name alone."""
    program = Path(argv[0])
    start = ["python", _portable(argv[0])] if program.suffix == ".py" else [program.name]
    if program.name == "__main__.py":
        start = ["python", "-m", program.parent.name]
    return " ".join([*start, *(_quoted(_portable(part)) for part in argv[1:])])


def _portable(text: str) -> str:
    return re.sub(r"(^|[=,])(/[^,]*)", lambda found: found[1] + _nearest(Path(found[2])), text)


def _nearest(path: Path) -> str:
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and home != home.parent and path.is_relative_to(home):
        return f"~/{path.relative_to(home)}"
    return path.name


def _quoted(text: str) -> str:
    """A shell replaces the ~ at the beginning of an argument, unless it is quoted."""
    return "~/" + shlex.quote(text[2:]) if text.startswith("~/") else shlex.quote(text)
