"""JAX environments that no package has, one file each, registered with gymnax."""

from functools import partial

from gymnax import register

from .cube import Cube2, Cube3
from .lights_out import LightsOut
from .pancake import Pancake
from .puzzle import Puzzle
from .sokoban import Sokoban
from .tiles import Tiles

__all__ = ["Cube2", "Cube3", "LightsOut", "Pancake", "Puzzle", "Sokoban", "Tiles"]

for side in (3, 4, 5, 6, 7):
    register(f"tile{side * side - 1}", partial(Tiles, side))
for side in (2, 3, 4, 5, 6, 7):
    register(f"lights-out{side}", partial(LightsOut, side))
for count in (7, 8, 10, 35):
    register(f"pancake{count}", partial(Pancake, count))
register("cube2", Cube2)
register("cube3", Cube3)
register("sokoban", Sokoban)
