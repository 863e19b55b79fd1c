"""What stands inside an environment: found where it is there, refused by name where it is not."""

import pytest

import rlzoo
from rlzoo import envs, worlds


@pytest.mark.parametrize(
    ("find", "id", "kind"),
    [
        (worlds.puzzle_of, "tile8", "Puzzle"),
        (worlds.finite_of, "river-swim", "Finite"),
        (worlds.game_of, "matrix-game2", "MarkovGame"),
    ],
)
def test_found_or_refused(find, id, kind):
    assert isinstance(find(rlzoo.make(id)), getattr(envs, kind))
    with pytest.raises(rlzoo.Refused, match=f"CartPole-v1 .* for example, .*{id[:5]}"):
        find(rlzoo.make("CartPole-v1"))
    wrapped = rlzoo.make(id, repeat=2)
    with pytest.raises(rlzoo.Refused, match="wrapper"):
        find(wrapped)
