"""The rooms of the repository: who may import whom, and how large a file may be."""

import ast
import graphlib
from pathlib import Path

import pytest

from rlzoo.suites.files import load

ROOT = Path(__file__).parent.parent
style = load(ROOT / "scripts" / "check_style.py")
WINGS = ["suites", "report", "run", "tools", "cli"]
MAY_IMPORT = {
    "workbench": {"workbench", "envs"},
    "suites": {"workbench", "envs", "suites"},
    "report": {"workbench", "report"},
    "run": {"workbench", "suites", "report", "run"},
    "tools": {"workbench", "envs", "suites", "report", "run", "tools"},
    "cli": {"workbench", "envs", "suites", "report", "run", "tools", "cli"},
    "study": {"workbench", "report", "study"},
    "envs": {"envs", "refused"},
    "algorithms": {"workbench"},
}


def files():
    """Every Python file of the package, by its module's name."""
    found = {}
    for folder, name in (("rlzoo", "rlzoo"), ("envs", "rlzoo.envs")):
        for path in (ROOT / folder).glob("**/*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join([name, *parts])] = path
    for path in (ROOT / "algorithms").glob("*.py"):
        if path.stem != "__init__":
            found[f"rlzoo.algorithms.{path.stem}"] = path
    return found


FILES = files()


def room_of(module):
    parts = module.split(".")
    if len(parts) == 1:
        return "facade"  # rlzoo itself, which loads names when they are asked for
    if parts[1] in (*WINGS, "envs", "algorithms", "study"):
        return parts[1]
    return "cli" if parts[1] == "__main__" else "workbench"


def imports_of(path, module, everywhere=True):
    """The modules of ours that a file imports; those at its top level alone if not `everywhere`."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")
                is_package = path.name == "__init__.py"
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            while name not in FILES and "." in name:
                name = name.rpartition(".")[0]
            if name in FILES:
                found.add(name)
    return found - {module}


@pytest.mark.parametrize("module", FILES)
def test_imports_run_downwards(module):
    room = room_of(module)
    if room == "facade":
        return
    for imported in imports_of(FILES[module], module):
        if imported == "rlzoo":  # `import rlzoo` gives names of the contract and the workbench
            assert room in ("algorithms", "tools", "cli", "study", "run"), module
            continue
        if room == "envs" and imported == "rlzoo.algorithm":
            continue  # for `Refused`
        assert room_of(imported) in MAY_IMPORT[room], f"{module} imports {imported}"


def test_no_circles():
    graph = {
        module: imports_of(path, module, everywhere=False) - {"rlzoo"}
        for module, path in FILES.items()
        if module != "rlzoo"
    }
    # A package's own file gathers names from its modules, which do not import it back.
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("wing", WINGS)
def test_no_file_of_a_wing_is_long(wing):
    for path in (ROOT / "rlzoo" / wing).glob("*.py"):
        assert style.measure(path.read_text()).lines <= 400, path


def test_every_wing_is_packaged():
    """An editable install hides one that is not."""
    text = (ROOT / "pyproject.toml").read_text()
    for path in (ROOT / "rlzoo").glob("*/__init__.py"):
        assert f'"rlzoo.{path.parent.name}"' in text
