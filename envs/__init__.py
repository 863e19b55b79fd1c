"""JAX environments that no package has, one file each, registered with gymnax.

A file is imported when an environment of it is made, or a class of it is asked for.
"""

import importlib
import inspect
from typing import Any

import gymnax

HOMES = {
    "BandMass": "velocity_band",
    "Cube2": "cube",
    "Cube3": "cube",
    "DeepSea": "deep_sea",
    "Finite": "finite",
    "Gripper": "gripper",
    "LightsOut": "lights_out",
    "LinearQ": "linear_q",
    "MarkovGame": "markov_game",
    "Pancake": "pancake",
    "PointMaze": "point_maze",
    "Puzzle": "puzzle",
    "RiverSwim": "river_swim",
    "Sokoban": "sokoban",
    "Stitching": "stitching",
    "Tiles": "tiles",
}
"""class -> its file"""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'rlzoo.envs' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)


class Factory:
    """Makes an environment of the class called `kind`, whose file it imports then."""

    def __init__(self, kind: str, *args: Any):
        self.kind = kind
        self.args = args

    def __call__(self, **options: Any) -> Any:
        return __getattr__(self.kind)(*self.args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """What is left to choose: the arguments of the class after those that are given."""
        whole = inspect.signature(__getattr__(self.kind))
        return whole.replace(parameters=list(whole.parameters.values())[len(self.args) :])


for side in (3, 4, 5, 6, 7):
    gymnax.register(f"tile{side * side - 1}", Factory("Tiles", side))
for side in (2, 3, 4, 5, 6, 7):
    gymnax.register(f"lights-out{side}", Factory("LightsOut", side))
for count in (7, 8, 10, 35):
    gymnax.register(f"pancake{count}", Factory("Pancake", count))
for size in (8, 12, 20, 30):
    gymnax.register(f"deep-sea{size}", Factory("DeepSea", size))
for choices in (2, 3):
    gymnax.register(f"matrix-game{choices}", Factory("MarkovGame", choices, 1, 1))
gymnax.register("markov-game", Factory("MarkovGame"))
gymnax.register("cube2", Factory("Cube2"))
gymnax.register("cube3", Factory("Cube3"))
gymnax.register("river-swim", Factory("RiverSwim"))
gymnax.register("sokoban", Factory("Sokoban"))
gymnax.register("band-mass", Factory("BandMass"))
for size in (4, *range(16, 161, 16)):
    gymnax.register(f"linear-q{size}", Factory("LinearQ", size))
gymnax.register("point-maze", Factory("PointMaze"))
gymnax.register("stitching", Factory("Stitching"))
for task in ("pick-place", "closed-drawer", "blocked-drawer"):
    gymnax.register(f"gripper-{task}", Factory("Gripper", task))
