"""What a run keeps of its algorithm, so that it can be loaded in another process: a copy of its
file or, where `make` and `Config` were written in a notebook or inside a function, a file put
together from all that they use."""

import __future__

import ast
import contextlib
import inspect
import linecache
import math
import shutil
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from rlzoo.algorithm import Refused
from rlzoo.parameters import is_literal, plain
from rlzoo.suites import files

HEAD = '"""What the algorithm of this run uses, put together from where it was written."""'


class Unwritable(Exception):
    """Something that `make` uses has no text; the message names it."""


def file_of(make: Callable) -> Path | None:
    """The Python file that `make` stands in, None where there is none."""
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(make)) or "")
    except TypeError:  # an object that is called
        return None
    return path.resolve() if path.suffix == ".py" and path.is_file() else None


def name_of(make: Callable) -> str:
    """What an algorithm is called: after its file, or `notebook`."""
    file = file_of(make)
    return file.stem if file else "notebook"


def folder_of(make: Callable) -> Path:
    """Where the algorithm finds what it imports."""
    file = file_of(make)
    return file.parent if file else Path.cwd()


def keep(make: Callable, Config: type, folder: Path) -> tuple[str | None, str]:
    """Write the algorithm into `folder`. Returns the file's name; where it cannot be written None,
    and why."""
    path = folder / f"{name_of(make)}.py"
    file = file_of(make)
    module = sys.modules.get(make.__module__) if file else None
    own = (getattr(module, "make", None), getattr(module, "Config", None))
    if file and own == (make, Config):
        shutil.copy(file, path)
        return path.name, ""
    try:
        text = gathered(make, Config)
    except Unwritable as error:
        return None, str(error)
    path.write_text(text, "utf-8")
    try:
        files.load(path, folder_of(make))
    except Refused as error:
        path.unlink()
        return None, str(error)
    return path.name, ""


def gathered(make: Callable, Config: type) -> str:
    """A file with `make`, `Config` and all that they use: functions and classes by their texts,
    modules and what stands in them as imports, constants as literals.

    Raises `Unwritable` where that cannot be told.
    """
    parts = _Parts()
    names = _names_at_hand(make) if isinstance(make, FunctionType) else {}
    parts.add("Config", Config, names)
    parts.add("make", make, names)
    head = [HEAD, ""]
    code = getattr(make, "__code__", None)
    if code and code.co_flags & __future__.annotations.compiler_flag:
        head += ["from __future__ import annotations", ""]
    imports = sorted(dict.fromkeys(parts.imports))
    return "\n".join([*head, *imports, "", "", *parts.texts]) + "\n"


class _Parts:
    """The lines of a file, each name after those that it needs when it is defined."""

    def __init__(self) -> None:
        self.imports: list[str] = []
        self.texts: list[str] = []
        self.held: dict[str, Any] = {}
        """name -> what it means"""

    def add(self, name: str, value: Any, names: Mapping[str, Any]) -> None:
        """Write what makes `name` mean `value`; `names` are those at hand where it was defined."""
        if name in self.held:
            if self.held[name] is not value:
                raise Unwritable(f"{name} means different things in different places")
            return
        self.held[name] = value
        if isinstance(value, ModuleType):
            self.imports.append(f"import {value.__name__} as {name}")
        elif found := _place(value):
            self.imports.append(f"from {found[0]} import {found[1]} as {name}")
        elif isinstance(value, float) and not math.isfinite(value):
            self.texts.append(f"{name} = float({str(value)!r})\n")
        elif is_literal(value):
            self.texts.append(f"{name} = {plain(value)!r}\n")
        else:
            self._define(name, value, names)

    def _define(self, name: str, value: Any, names: Mapping[str, Any]) -> None:
        inner = inspect.unwrap(value) if callable(value) else value
        if not isinstance(inner, FunctionType | type):
            raise Unwritable(f"{name} is a {type(value).__name__}, which has no text")
        if isinstance(inner, FunctionType):
            names = _names_at_hand(inner)
        own, text = _text(inner, name)
        for other in sorted(_used(symtable.symtable(text, name, "exec")) - {own}):
            if other in names:
                self.add(other, names[other], names)
        self.texts.append(text + "\n")
        if own != name:
            self.texts.append(f"{name} = {own}\n")
            self.held[own] = value


def _place(value: Any) -> tuple[str, str] | None:
    """Module and name from which a new process can import `value`."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    name = name or getattr(value, "__name__", "")
    home = sys.modules.get(module) if isinstance(module, str) else None
    own = module == "__main__" or "rlzoo_file_" in str(module)
    if own or getattr(home, "__spec__", None) is None or not str(name).isidentifier():
        return None
    return (str(module), name) if getattr(home, name, None) is value else None


def _names_at_hand(function: FunctionType) -> dict[str, Any]:
    """What names mean inside a function, other than Python's own."""
    found = dict(function.__globals__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            found[name] = cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    return found


def _used(table: symtable.SymbolTable) -> set[str]:
    """The names that a text uses and does not define."""
    top = table.get_type() == "module"
    mine = {
        s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())
    }
    return mine.union(*map(_used, table.get_children()))


# ---- texts ---------------------------------------------------------------------------------------


def _text(value: Any, name: str) -> tuple[str, str]:
    """The name and the text of a function's or a class's definition. Raises `Unwritable`."""
    for text in _texts(value):
        try:
            tree = ast.parse(text)
        except SyntaxError:  # of a function inside of an expression, or a cell of another language
            continue
        for node in reversed(tree.body):
            if _defines(node, value, name):
                lines = text.splitlines()
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                own = name if isinstance(node, ast.Assign) else value.__name__
                return own, "\n".join(lines[first - 1 : node.end_lineno])
    raise Unwritable(f"{name} is a {type(value).__name__} whose text is nowhere to be found")


def _defines(node: ast.stmt, value: Any, name: str) -> bool:
    """Whether a statement defines `value`."""
    if isinstance(value, type):
        return isinstance(node, ast.ClassDef) and node.name == value.__name__
    if isinstance(node, ast.Assign):
        targets = [ast.unparse(target) for target in node.targets]
        return isinstance(node.value, ast.Lambda) and targets == [name]
    return isinstance(node, ast.FunctionDef) and node.name == value.__name__


def _texts(value: Any) -> Iterator[str]:
    """Where the definition of a function or a class may stand, the likeliest first."""
    with contextlib.suppress(OSError, TypeError):  # Python does not find classes of a notebook
        yield textwrap.dedent(inspect.getsource(value))
    if isinstance(value, type):
        for entry in reversed(list(linecache.cache.values())):
            if len(entry) == 4 and entry[1] is None:  # a cell, not a file
                yield "".join(entry[2])
