"""JAX environments that no package has, one file each, registered with gymnax."""

from functools import partial

from gymnax import register

from .cube import Cube2, Cube3
from .puzzle import Puzzle
from .tiles import Tiles

__all__ = ["Puzzle"]

for side in (3, 4, 5, 6, 7):
    register(f"tile{side * side - 1}", partial(Tiles, side))
register("cube2", Cube2)
register("cube3", Cube3)
