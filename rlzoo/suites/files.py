"""Python files of the user, imported by their path."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import gymnax
from gymnax import registration

from rlzoo.algorithm import Refused


def load(path: str | Path, home: Path | None = None) -> ModuleType:
    """The module of the file at `path`: the one that is imported already, or a new one. A file
    that has changed since is run again.

    Its folder comes onto the path, so that it finds what stands beside it; a file of a package is
    imported as a part of it. Raises `Refused` where there is no such file, or it cannot be run.

    Args:
      home: of a copy, the folder of the original.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    text = f"{path}\n".encode() + path.read_bytes()
    name = f"{OWN}{path.stem}_{hashlib.sha256(text).hexdigest()[:8]}"
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        old = OWN in module.__name__ and not module.__name__.endswith(name)
        if file and Path(file).resolve() == path and not old:
            return module
    root = home or path.parent
    package: list[str] = []
    while (root / "__init__.py").exists():
        root, package = root.parent, [root.name, *package]
    if root.is_dir() and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    known = bool(package) and home is None
    full = ".".join([*package, path.stem if known else name])
    return explained(str(path), lambda: _run(path, full, known))


OWN = "rlzoo_file_"
"""What the names of modules begin with that cannot be imported by a name."""


def _run(path: Path, name: str, known: bool) -> ModuleType:
    """The file as the module `name`, which Python finds by itself where it is `known`."""
    with (
        mock.patch.multiple(registration, register=_register),
        mock.patch.object(gymnax, "register", _register),
    ):
        if known:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


_register_once = registration.register


def _register(env_id: str, factory: Callable) -> None:
    """gymnax's `register`, but a name of the user's own may be taken again: a file and its copy in
    a run register the same."""
    if env_id in registration._registry and env_id not in registration._builtins:
        registration._registry[env_id] = factory
    else:
        _register_once(env_id, factory)


def explained(what: str, call: Callable[[], Any]) -> Any:
    """What `call` gives. Where the user's code fails, `Refused` says at which line."""
    try:
        return call()
    except Refused:
        raise
    except Exception as error:
        if isinstance(error, SyntaxError):
            where = f"{error.filename}, line {error.lineno}"
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename}, line {frame.lineno}"
        raise Refused(f"{what} failed: {type(error).__name__}: {error} ({where})") from error
