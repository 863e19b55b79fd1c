"""Pytrees of states on their way between devices, host and files."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their places in it: `params/Dense_0/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    found = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = leaf
    return found


def is_key(x: Any) -> bool:
    """Whether an array, or its spec, holds keys of random numbers."""
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def to_host(tree: Any) -> Any:
    """NumPy copies of all members' arrays, also of those that other processes hold; keys become
    their raw data."""
    raw = jax.tree.map(_raw, tree)
    leaves = jax.tree.leaves(raw)
    if jax.process_count() > 1 and leaves:
        # A program that only copies gathers what is spread over processes.
        mesh = leaves[0].sharding.mesh
        everywhere = NamedSharding(mesh, PartitionSpec())
        raw = jax.jit(_same, out_shardings=everywhere)(raw)
    return jax.device_get(raw)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if is_key(x) else x


def _same(tree: Any) -> Any:
    return tree
