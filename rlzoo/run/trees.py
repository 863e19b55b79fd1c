"""Pytrees of states on their way between devices, host and files."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their places in it: `params/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_key(x: Any) -> bool:
    """Whether an array, or its spec, holds keys of random numbers."""
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def to_host(tree: Any) -> Any:
    """NumPy copies of all members' arrays, also of those that other processes hold; keys become
    their raw data."""
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
    if jax.process_count() > 1 and jax.tree.leaves(raw):
        mesh = jax.tree.leaves(raw)[0].sharding.mesh
        everywhere = NamedSharding(mesh, PartitionSpec())
        raw = jax.jit(_same, out_shardings=everywhere)(raw)
    return jax.device_get(raw)


def _same(tree: Any) -> Any:
    return tree
