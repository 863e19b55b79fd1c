"""Lets tests import what they share: `from probes import TimeLimitProbe`; and shared fixtures."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def shared_programs(compiled, monkeypatch):
    """Programs compiled by one test serve the others, and their subprocesses."""
    import jax

    before = jax.config.values["jax_compilation_cache_dir"]
    for name, value in {
        "compilation_cache_dir": str(compiled),
        "persistent_cache_min_compile_time_secs": 0.0,
        "persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(f"jax_{name}", value)
        monkeypatch.setenv(f"JAX_{name.upper()}", str(value))
    yield
    jax.config.update("jax_compilation_cache_dir", before)
