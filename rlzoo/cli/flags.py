"""The flags of every algorithm: one for each field of its `Config`, and those of every run.

A plain `Config` is read from the file's text and not imported, so that `--help` answers without
starting jax. Where the text is not enough (a base class, a name for a value), the file is imported.
"""

import ast
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Union, get_args, get_origin

from rlzoo.algorithm import Refused
from rlzoo.cli.parsing import BOUNDS, Field, documented, fields_of, parse, write_value

FOLDER = Path(__file__).parent.parent
ALGORITHMS = next(
    path for path in (FOLDER / "algorithms", FOLDER.parent / "algorithms") if path.is_dir()
)
MEMBERS = 1_000_000  # more would take all memory before anything could be said
SWEEP = Field(
    "sweep", tuple[str, ...], (), "sweep fields: field=v1,v2 ...; every combination trains"
)


# ---- reading a file ------------------------------------------------------------------------------


class Source(NamedTuple):
    """What an algorithm file says of itself."""

    path: Path
    doc: str
    fields: list[Field]
    module: Any = None
    """the file as a module, where it had to be imported"""
    dataset: str = ""
    """the data set that it learns from where none is given"""

    @property
    def about(self) -> str:
        """The first sentence of its docstring, without its name."""
        first = " ".join(self.doc.partition("\n\n")[0].split())
        return first or "(no docstring)"

    @property
    def kind(self) -> list[str]:
        """The words of its docstring's `Kind:` label."""
        found = re.search(r"^Kind:(.*)$", self.doc, re.MULTILINE)
        return [word.strip(" .") for word in found[1].split(",")] if found else []


def read(path: Path) -> Source:
    """Docstring and Config of the algorithm file at `path`."""
    try:
        text = path.read_text()
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise Refused(f"{path}, line {error.lineno}: {error.msg}") from None
    except ValueError as error:  # bytes that are no text
        raise Refused(f"{path} is not a Python file: {error}") from None
    doc, dataset = ast.get_docstring(tree) or "", _named_data(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            try:
                return Source(path, doc, _read_text(node), dataset=dataset)
            except NotPlain:
                break
    module: Any = load_file(path) if "Config" in text else None
    if not hasattr(module, "Config"):
        raise Refused(f"{path} has no class Config, so it is not an algorithm file")
    return Source(path, doc, fields_of(module.Config), module, dataset)


def _named_data(tree: ast.Module) -> str:
    """What a file's constant DATASET says."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DATASET":
            return str(ast.literal_eval(node.value))
    return ""


def load_file(path: Path) -> Any:
    """The algorithm file at `path` as a module. Raises `Refused` where it cannot be run."""
    from rlzoo.suites.files import load

    return load(path)


class NotPlain(Exception):
    """The text of a class does not say all of it."""


def _read_text(node: ast.ClassDef) -> list[Field]:
    """The fields of a class from its text. Raises `NotPlain`."""
    if node.bases or node.keywords:
        raise NotPlain
    docs = documented(node.body)
    fields = []
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        name, value, static = part.target.id, part.value, False
        bounds: dict[str, float] = {}
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            value, static, bounds = _read_call(value)
        kind, default = _value(part.annotation), _value(value)
        if isinstance(kind, str):
            raise NotPlain
        fields.append(Field(name, kind, default, docs.get(name, ""), static, bounds))
    return fields


def _read_call(call: ast.Call) -> tuple[ast.expr | None, bool, dict[str, float]]:
    """Of `rlzoo.static(default, least=2)` or `rlzoo.traced(...)`: default, which one, bounds."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else None
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    default = call.args[0] if len(call.args) == 1 else given.pop("default", None)
    if name not in ("static", "traced") or len(call.args) > 1 or not {*given} <= {*BOUNDS}:
        raise NotPlain
    bounds = {key: _value(bound) for key, bound in given.items() if key is not None}
    return default, name == "static", {key: x for key, x in bounds.items() if x is not None}


def _value(node: ast.expr | None) -> Any:
    """What an expression of plain numbers, texts and types gives. Raises `NotPlain`."""
    types: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str, tuple)}
    types |= {"Literal": Literal, "Optional": Optional, "Union": Union}
    try:
        return eval(ast.unparse(node or ast.Pass()), {"__builtins__": types})
    except Exception:
        raise NotPlain from None


def find(name: str) -> Path:
    """The algorithm file called `name`: one of rlzoo's, or a path to the user's own."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise Refused(f"there is no file {name}")
        return path
    if name not in names():
        raise Refused.unknown("algorithm", name, names())
    return ALGORITHMS / f"{name}.py"


def names() -> list[str]:
    """rlzoo's algorithms."""
    return sorted(path.stem for path in ALGORITHMS.glob("*.py") if not path.stem.startswith("_"))


# ---- flags ---------------------------------------------------------------------------------------


class Request(NamedTuple):
    """What a command line asks for."""

    config: dict[str, Any]
    sweep: dict[str, list]
    options: dict[str, Any]

    def members(self, fields: list[Field]) -> int:
        """How many members its largest program has."""
        count = self.options["seeds"]
        for field in fields:
            if not field.static:
                count *= len(self.sweep.get(field.name, [None]))
        return count


def read_request(source: Source, argv: list[str], prog: str) -> Request:
    """Flags to values. With --resume, the recorded run's values are the defaults."""
    from rlzoo.run.options import Options

    own, common = source.fields, fields_of(Options)
    if source.dataset:
        common = [_with_default(field, source.dataset) for field in common]
    groups = {source.path.stem: own, "every run": [SWEEP, *common]}
    given = parse(argv, prog, source.doc, groups)
    sweep = _read_sweep(given.pop("sweep", ()), own)
    values = {field.name: field.default for field in (*own, *common)}
    if source.dataset:
        values["dataset"] = (source.dataset,)
    if given.get("out"):
        given["out"] = str(Path(given["out"]).expanduser())
    if given.get("resume") and given.get("out"):
        recorded, swept = _read_record(given["out"])
        values |= {name: value for name, value in recorded.items() if name in values}
        sweep = sweep or swept
    else:
        for name in sweep:
            if name in given:
                raise Refused(f"--{name.replace('_', '-')} is given, and in --sweep, too")
    values |= given
    request = Request(
        {field.name: values[field.name] for field in own},
        sweep,
        {field.name: values[field.name] for field in common},
    )
    if request.members(own) > MEMBERS:
        raise Refused(f"this asks for {request.members(own):,} members; at most {MEMBERS:,} train")
    return request


def _with_default(field: Field, dataset: str) -> Field:
    """Says of --dataset what it is where it is not given."""
    if field.name != "dataset":
        return field
    return field._replace(doc=f"{field.doc} (default: {dataset}, made on first use)")


def _read_record(run: str) -> tuple[dict[str, Any], dict[str, list]]:
    """What a run was started with: values of fields and options, and its sweep."""
    from rlzoo.run.record import Record

    record = Record.read(run)
    values = record.description["config"] | vars(record.options)
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }, record.sweep


def _read_sweep(given: tuple[str, ...], fields: list[Field]) -> dict[str, list]:
    """Values by field, from all parts `field=value,value`."""
    known = {field.name: field for field in fields if field.text}
    sweep: dict[str, list] = {}
    for part in given:
        name, equals, text = part.partition("=")
        name = name.replace("-", "_")
        if not equals or not text:
            raise Refused(f"--sweep {part!r} should read field=value,value")
        if name not in known:
            raise Refused.unknown("--sweep field", name, known)
        if name in sweep:
            raise Refused(f"--sweep has {name} twice; give all its values in one place")
        sweep[name] = [_read_swept(known[name], value) for value in text.split(",")]
        shown = [write_value(value) for value in sweep[name]]
        for value in shown:
            if shown.count(value) > 1:
                raise Refused(f"--sweep {name} has {value} twice")
    return sweep


def _read_swept(field: Field, text: str) -> Any:
    try:
        return field.read_one(text)
    except ValueError as error:
        optional = type(None) in get_args(field.kind) and get_origin(field.kind) is not tuple
        example = "none" if optional else write_value(field.default)
        raise Refused(f"--sweep {field.name}: {error}; write it like {example}") from None
