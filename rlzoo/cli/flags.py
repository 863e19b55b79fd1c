"""The flags of every algorithm script.

They come from the file's source, which is read and not imported, so `--help` answers without
starting jax.
"""

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from rlzoo.algorithm import Refused

FOLDER = Path(__file__).parent.parent


ALGORITHMS = next(
    path for path in (FOLDER / "algorithms", FOLDER.parent / "algorithms") if path.is_dir()
)


class Field(NamedTuple):
    name: str
    kind: Any
    default: Any
    doc: str
    static: bool


class Source(NamedTuple):
    """What an algorithm file says of itself."""

    path: Path
    doc: str
    fields: list[Field]


def read(path: Path) -> Source:
    """Docstring and Config of the algorithm file at `path`, without importing it."""
    tree = ast.parse(path.read_text(), str(path))
    classes = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"
    ]
    if not classes:
        raise Refused(f"{path} has no class Config, so it is not an algorithm file")
    body, fields = classes[0].body, []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        doc = (
            str(after.value.value)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            else ""
        )
        value, static = node.value, False
        if isinstance(value, ast.Call):  # rlzoo.static(default)
            value, static = value.args[0], True
        kind = eval(ast.unparse(node.annotation), {"Literal": Literal})
        fields.append(
            Field(
                node.target.id, kind, eval(ast.unparse(value), {}) if value else None, doc, static
            )
        )
    return Source(path, ast.get_docstring(tree) or "", fields)


def find(name: str) -> Path:
    """The algorithm file called `name`: one of rlzoo's, or a path to the user's own."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise Refused(f"there is no file {name}")
        return Path(name)
    if not (ALGORITHMS / f"{name}.py").is_file():
        raise Refused.unknown("algorithm", name, names())
    return ALGORITHMS / f"{name}.py"


def names() -> list[str]:
    return sorted(path.stem for path in ALGORITHMS.glob("*.py") if not path.stem.startswith("_"))


# ---- flags ---------------------------------------------------------------------------------------


class Request(NamedTuple):
    """What a command line asks for."""

    config: dict[str, Any]
    sweep: dict[str, list]
    options: dict[str, Any]


def parse(source: Source, argv: list[str], prog: str) -> Request:
    """Flags to values. With --resume, the recorded run's values are the defaults."""
    from rlzoo.run.options import Options
    from rlzoo.run.record import Record

    own = {field.name for field in source.fields}
    defaults: dict[str, Any] = {"sweep": ()}
    chosen = _parse(source, argv, prog, defaults)
    if chosen.resume and chosen.out:
        record = Record.read(chosen.out)
        defaults = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in (
                record.description["config"] | record.description["options"]
            ).items()
        }
        defaults["sweep"] = tuple(
            f"{name}={','.join(write_value(v) for v in values)}"
            for name, values in record.sweep.items()
        )
        chosen = _parse(source, argv, prog, defaults)
    values = vars(chosen)
    return Request(
        {name: values[name] for name in values if name in own},
        _sweep(values["sweep"], source.fields),
        {field.name: values[field.name] for field in dataclasses.fields(Options)},
    )


def _parse(source: Source, argv: list[str], prog: str, defaults: dict[str, Any]) -> Any:
    options = read_options()
    sweep = Field(
        "sweep",
        tuple[str, ...],
        (),
        "sweep fields: field=v1,v2 ...; every combination trains",
        True,
    )
    first = [field for field in source.fields if field.name in ("env", "total_steps")]
    fields = [*first, *options, sweep, *(field for field in source.fields if field not in first)]
    Args = dataclasses.make_dataclass(
        "Args",
        [
            (f.name, Annotated[f.kind, tyro.conf.arg(help=f.doc)], defaults.get(f.name, f.default))
            for f in fields
        ],
    )
    return tyro.cli(Args, args=argv, prog=prog, description=source.doc)


def read_options() -> list[Field]:
    from rlzoo.run.options import Options

    return [
        Field(f.name, f.type, f.default, doc, True)
        for f, doc in zip(dataclasses.fields(Options), docs(Options), strict=True)
    ]


def docs(kind: type) -> list[str]:
    """The strings below the fields of a dataclass, in order."""
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    return [
        str(node.value.value)
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ][-len(dataclasses.fields(kind)) :]  # type: ignore[arg-type]


def _sweep(given: tuple[str, ...], fields: list[Field]) -> dict[str, list]:
    known, sweep = {field.name: field for field in fields}, {}
    for part in given:
        name, equals, text = part.partition("=")
        name = name.replace("-", "_")
        if not equals or not text:
            raise Refused(f"--sweep {part!r} should read field=value,value")
        if name not in known:
            raise Refused.unknown("--sweep field", name, known)
        sweep[name] = [_read(known[name], value) for value in text.split(",")]
    return sweep


def _read(field: Field, text: str) -> Any:
    """One swept value; tuples are written 64x64."""
    try:
        if field.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if field.kind in (int, float, str):
            return field.kind(text)
        if isinstance(field.default, tuple):
            return tuple(type(field.default[0])(part) for part in text.split("x"))
        return type(field.default)(text)
    except (ValueError, KeyError):
        kind = (
            getattr(field.kind, "__name__", str(field.kind))
            if not isinstance(field.default, tuple)
            else "64x64"
        )
        raise Refused(
            f"--sweep {field.name}: {text!r} is not a value for it; it takes {kind}, for example "
            f"{write_value(field.default)}"
        ) from None


def write_value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
