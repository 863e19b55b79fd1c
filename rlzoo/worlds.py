"""What stands inside an environment, for algorithms that ask more of it than steps.

Each function takes what `rlzoo.make` gives and raises `Refused` where it is something else.
"""

from typing import Any

from rlzoo.algorithm import Refused
from rlzoo.env import Env


def puzzle_of(env: Env) -> Any:
    """The `rlzoo.envs.Puzzle`: states that can be searched."""
    from rlzoo.envs.puzzle import Puzzle

    return _inside(env, Puzzle, "is not a puzzle", "tile8, lights-out5 or cube3")


def finite_of(env: Env) -> Any:
    """The `rlzoo.envs.Finite`: finitely many states, whose dynamics are known exactly."""
    from rlzoo.envs.finite import Finite

    return _inside(env, Finite, "has no table of its states", "deep-sea8 or river-swim")


def game_of(env: Env) -> Any:
    """The `rlzoo.envs.MarkovGame`: a zero-sum game of two players."""
    from rlzoo.envs.markov_game import MarkovGame

    return _inside(env, MarkovGame, "is no game of two players", "matrix-game3 or markov-game")


def _inside(env: Env, kind: type, lacks: str, examples: str) -> Any:
    if not isinstance(env.inner, kind):
        raise Refused(
            f"{env.id} {lacks}, or has a wrapper around it; this algorithm takes, for example, "
            f"{examples}"
        )
    return env.inner
