"""Command lines from fields: one parser for every command, whose errors are one line."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from rlzoo.algorithm import Refused

REQUIRED = inspect.Parameter.empty
BOUNDS = {"least": "at least", "above": "more than", "most": "at most"}
"""bounds of a field, as `rlzoo.static` names them, in words"""


class Field(NamedTuple):
    """Something that a command line can give."""

    name: str
    kind: Any
    """its type"""
    default: Any
    """`REQUIRED` where there is none"""
    doc: str = ""
    static: bool = True
    bounds: Mapping[str, float] = {}

    @property
    def about(self) -> str:
        """What it is, in one line, and its bounds."""
        words = [f"{BOUNDS[name]} {bound:g}" for name, bound in self.bounds.items()]
        return " ".join(self.doc.split()).rstrip(".") + f" ({', '.join(words)})" * bool(words)

    @property
    def text(self) -> "Text | None":
        """How a command line writes it; None where it cannot."""
        return Text.of(self.kind, self.default)

    def read_one(self, text: str) -> Any:
        """The value that `text` gives, tuples being written 64x64. Raises ValueError."""
        assert self.text
        if self.text.nargs is None:
            return self.text.read(text)
        values = tuple(self.text.read(part) for part in text.split("x"))
        if isinstance(self.text.nargs, int) and len(values) != self.text.nargs:
            raise ValueError(f"{text!r} has {len(values)} parts; it takes {self.text.nargs}")
        return values


class Text(NamedTuple):
    """How values of a type are written."""

    read: Callable[[str], Any]
    """one value; raises ValueError that says what it takes"""
    metavar: str
    nargs: str | int | None = None
    """how many, in argparse's words: None is one"""

    @classmethod
    def of(cls, kind: Any, default: Any = None) -> "Text | None":
        """For `kind`, None where text cannot give it. A bare `tuple` is of its default's kind."""
        if kind in _SIMPLE:
            return cls(*_SIMPLE[kind])
        origin, parts = get_origin(kind), get_args(kind)
        if origin is Literal:
            return cls(_choice(parts), "{" + ",".join(map(str, parts)) + "}")
        if origin in (Union, types.UnionType):
            found = [cls.of(part, default) for part in parts if part is not type(None)]
            inner = found[0] if len(found) == 1 else None
            return inner and inner._replace(read=_or_none(inner.read))
        if kind is tuple and default:
            origin, parts = tuple, (type(default[0]), ...)
        if origin is not tuple or not parts:
            return None
        inner = cls.of(parts[0])
        many = parts[1:] == (...,)
        if inner is None or inner.nargs or not (many or len(set(parts)) == 1):
            return None
        return inner._replace(nargs="*" if many else len(parts))


def write_value(value: Any) -> str:
    """A value as --sweep takes it."""
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


# ---- values --------------------------------------------------------------------------------------


def _whole(text: str) -> int:
    """Also 1e6."""
    try:
        value = int(text)
    except ValueError:
        number = _number(text, "a whole number")
        if not number.is_integer():
            raise ValueError(f"{text!r} is not a whole number") from None
        value = int(number)
    if abs(value) >= 2**63:
        raise ValueError(f"{text!r} is too large: whole numbers have 64 bits")
    return value


def _number(text: str, what: str = "a number") -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None


def _truth(text: str) -> bool:
    words = {"true": True, "false": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty")
    return Path(text).expanduser()


_SIMPLE: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (_truth, "{true,false}"),
    int: (_whole, "INT"),
    float: (_number, "FLOAT"),
    str: (str, "TEXT"),
    Path: (_path, "PATH"),
}


def _choice(choices: Sequence[Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        for choice in choices:
            if str(choice) == text:
                return choice
        raise ValueError(f"{text!r} is not one of {', '.join(map(str, choices))}")

    return read


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else read(text)


# ---- parsing -------------------------------------------------------------------------------------


class _Lines(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


class _Parser(argparse.ArgumentParser):
    """Refuses where argparse would print a usage and exit."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise Refused(f"{message} ({self.prog} --help prints the flags)")


class _Switch(argparse.Action):
    """`--anneal` and `--no-anneal`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, option == self.option_strings[0])


def parse(
    argv: Sequence[str],
    prog: str,
    description: str,
    groups: Mapping[str, Sequence[Field]],
    positional: Sequence[Field] = (),
) -> dict[str, Any]:
    """The values that `argv` gives, by name; what it does not give is not there.

    Args:
      groups: fields that are flags, under their titles in --help, which keeps the lines of
        `description`.
      positional: fields that are given by their place.

    Raises `Refused` for what cannot be read. --help prints and exits.
    """
    names = " ".join(_metavar(field) for field in positional)
    parser = _Parser(
        prog=prog,
        usage=" ".join(filter(None, (prog, names, "[flags]"))),
        description=description,
        formatter_class=_Lines,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    # numbers, not flags: argparse before Python 3.14 knows -1 and -1.5 alone
    parser._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # type: ignore[attr-defined]
    for field in positional:
        _add_positional(parser, field)
    for title, fields in groups.items():
        group = parser.add_argument_group(title)
        for field in fields:
            _add_flag(group, field)
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    values, rest = parser.parse_known_intermixed_args([_hyphened(token) for token in argv])
    if rest:
        flag = next((token for token in rest if token.startswith("-")), None)
        if flag is None:
            raise Refused(f"{rest[0]!r} is one argument too many ({prog} --help prints the flags)")
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise Refused.unknown("flag", flag.partition("=")[0], known)
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
    }


def _hyphened(token: str) -> str:
    """`--total_steps` is --total-steps."""
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value if token.startswith("--") else token


def _add_flag(group: Any, field: Field) -> None:
    text, flag = field.text, field.name.replace("_", "-")
    if text is None:  # such a value keeps its default
        return
    about = field.about.replace("%", "%%")
    if field.default is not False and field.default not in (None, "", (), REQUIRED):
        shown = field.default if isinstance(field.default, tuple) else (field.default,)
        about += f" (default: {' '.join(map(str, shown))})".replace("%", "%%")
    if field.kind is bool:
        switch = [f"--{flag}", f"--no-{flag}"]
        group.add_argument(*switch, dest=field.name, help=about, action=_Switch, nargs=0)
        return
    group.add_argument(
        f"--{flag}",
        dest=field.name,
        help=about,
        type=_argument(text.read),
        metavar=text.metavar,
        nargs=text.nargs,
        required=field.default is REQUIRED,
        # what is said twice holds twice for lists of no fixed length, else the last one does
        action="extend" if text.nargs == "*" and field.default == () else "store",
    )


def _add_positional(parser: _Parser, field: Field) -> None:
    text = field.text
    assert text
    count = "+" if text.nargs else None if field.default is REQUIRED else "?"
    parser.add_argument(
        field.name,
        help=field.about.replace("%", "%%"),
        type=_argument(text.read),
        metavar=field.name.upper(),
        nargs=count,
        default=None if field.default is REQUIRED else field.default,
    )


def _metavar(field: Field) -> str:
    name = field.name.upper()
    if get_origin(field.kind) is tuple:
        return f"{name} [{name} ...]"
    return name if field.default is REQUIRED else f"[{name}]"


def _argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` for argparse, which keeps the words of this error alone."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


# ---- functions as commands -----------------------------------------------------------------------


def call(function: Callable, argv: Sequence[str], prog: str) -> Any:
    """Call `function` with what `argv` says: its parameters by their place, those after `*` as
    flags. Their types are its annotations, their texts stand under `Args:` in its docstring."""
    hints, docs = get_type_hints(function), arguments(function)
    positional: list[Field] = []
    flags: list[Field] = []
    for name, p in inspect.signature(function).parameters.items():
        field = Field(name, hints[name], p.default, docs.get(name, ""))
        (flags if p.kind is p.KEYWORD_ONLY else positional).append(field)
    about = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0]
    given = parse(argv, prog, about, {"flags": flags}, positional)
    values = {f.name: f.default for f in (*positional, *flags)} | given
    return function(
        *(values[field.name] for field in positional),
        **{field.name: values[field.name] for field in flags},
    )


def arguments(function: Callable) -> dict[str, str]:
    """What a docstring says of each argument under `Args:`."""
    lines = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")[2].splitlines()
    known, found, name = inspect.signature(function).parameters, {}, ""
    for line in lines:
        first, colon, rest = line.partition(":")
        if colon and first.strip() in known:
            name = first.strip()
            found[name] = rest.strip()
        elif name and line.startswith("  "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def dispatch(
    argv: Sequence[str], prog: str, description: str, commands: Mapping[str, Callable]
) -> Any:
    """Run the command that `argv` names first. A function whose one parameter is `argv` reads the
    rest itself."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {prog} COMMAND ...\n\n{description}\n")
        for name, function in commands.items():
            first = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
            print(f"  {name:{width}}  {' '.join(first.split())}")
        print(f"\n`{prog} COMMAND --help` prints what it takes.")
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name not in commands:
        raise Refused.unknown("command", name, commands)
    function = commands[name]
    if [*inspect.signature(function).parameters] == ["argv"]:
        return function(rest)
    return call(function, rest, f"{prog} {name}")


def fields_of(kind: type) -> list[Field]:
    """The fields of a dataclass, with the strings below them and below those that it inherits."""
    hints = get_type_hints(kind)
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _docs(base)
    return [
        Field(
            f.name,
            hints[f.name],
            f.default,
            docs.get(f.name, ""),
            bool(f.metadata.get("static")),
            {name: f.metadata[name] for name in BOUNDS if name in f.metadata},
        )
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]


def _docs(kind: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except OSError:  # made elsewhere than in a file
        return {}
    return documented(tree.body[0].body)  # type: ignore[attr-defined]


def documented(body: Sequence[Any]) -> dict[str, str]:
    """The string below each annotated name in the body of a class."""
    found = {}
    for node, after in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[node.target.id] = str(after.value.value)
    return found
