"""navix, jumanji and craftax: the steps are the package's own, time limits are no terminations,
keys make a difference.

Each package is an extra; where it is missing, its tests are skipped.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from together import quick_jit

import rlzoo
from rlzoo.algorithm import Refused
from rlzoo.suites import adapters

KEY = jax.random.key(0)


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (extra: {name})")


def step_of(env):
    return quick_jit(lambda key, state, action: env.inner.step_env(key, state, action, env.params))


def walk(env, actions, keys=None):
    """Observations, rewards, terminated and truncated after each action, from the start that KEY
    gives."""
    step, (obs, state) = step_of(env), quick_jit(env.inner.reset_env)(KEY, env.params)
    taken = [(obs, 0.0, False, False)]
    for key, action in zip(
        jax.random.split(KEY, len(actions)) if keys is None else keys, actions, strict=True
    ):
        obs, state, reward, terminated, info = step(key, state, action)
        assert info == {}  # craftax's has a "score", which is not a reward
        taken.append(
            (obs, float(reward), bool(terminated), bool(env.inner.is_truncated(state, env.params)))
        )
    return [np.array(column) for column in zip(*taken, strict=True)], state


@pytest.mark.parametrize("name", adapters.BY_PREFIX)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        Refused,
        match=rf"{name}/Some-v1 needs the package {name}.*pip install 'rlzoo-jax\[{name}\]'",
    ):
        rlzoo.make(f"{name}/Some-v1")


@pytest.mark.parametrize(
    "id, expected",
    [
        ("navix/Emty-5x5-v0", "nearest: navix/Empty-5x5-v0"),
        ("navix/Empty-5x5-v0?view=symbolc", "view 'symbolc' is unknown; nearest: symbolic"),
        ("navix/Empty-5x5-v0?size=3", "no option 'size'"),
        ("jumanji/Snak-v1", "nearest: jumanji/Snake-v1"),
        ("jumanji/Snake-v1?field=gird", "field 'gird' is unknown; nearest: grid"),
        (
            "jumanji/Connector-v3",
            "not for one agent with at most 1000 discrete actions",
        ),  # ten agents
        ("jumanji/LevelBasedForaging-v0", "not for one agent"),  # a reward for each
        ("jumanji/MultiCVRP-v0", "not for one agent"),
        ("craftax/Craftax-Clasic-Symbolic-v1", "nearest: craftax/Craftax-Classic-Symbolic-v1"),
    ],
)
def test_refusals(id, expected):
    package(id.partition("/")[0])
    with pytest.raises(Refused, match=expected):
        rlzoo.make(id)


@pytest.mark.parametrize(
    "id, shape, dtype, actions, limit",
    [
        ("navix/Empty-5x5-v0", (5, 5, 3), np.uint8, 7, 100),
        ("navix/Empty-8x8-v0?view=symbolic_first_person", (7, 7, 3), np.uint8, 7, 100),
        ("navix/Empty-5x5-v0?max_steps_in_episode=7", (5, 5, 3), np.uint8, 7, 7),
        ("jumanji/Snake-v1", (12 * 12 * 5 + 4,), np.float32, 4, 4000),
        ("jumanji/Snake-v1?field=grid", (12, 12, 5), np.float32, 4, 4000),
        ("jumanji/Tetris-v0?limit=20", (10 * 10 + 4 * 4 + 40,), np.float32, 40, 20),
        ("craftax/Craftax-Classic-Symbolic-v1", (1345,), np.float32, 17, 10_000),
    ],
)
def test_facts(id, shape, dtype, actions, limit):
    package(id.partition("/")[0])
    env = rlzoo.make(id)
    assert (env.obs_shape, env.obs_dtype, env.num_actions, env.max_steps) == (
        shape,
        dtype,
        actions,
        limit,
    )
    assert env.inner.observation_space(env.params).shape == shape


@pytest.mark.parametrize(
    "id", ["navix/DoorKey-5x5-v0?sticky=0.1", "jumanji/Maze-v0?stack=2&field=walls"]
)
def test_stepped_together(id):
    """Through the vectorized stepper, with its auto-reset: states with keys and nested parts
    included."""
    package(id.partition("/")[0])
    env = rlzoo.make(id + "&max_steps_in_episode=5")

    @quick_jit
    def run(key):
        actions = jax.random.randint(key, (12, 3), 0, env.num_actions)
        return env.rollout(
            env.reset(key, 3), lambda _, obs, x: (_, x, None), None, actions, key, 12, jnp.int32(0)
        )

    _, _, steps, _, metrics = run(KEY)
    ended = steps.terminated | steps.truncated
    assert steps.truncated.sum() >= 4 and not (steps.terminated & steps.truncated).any()
    assert metrics["train/length"][1] == ended.sum()
    np.testing.assert_array_equal(steps.obs[1:][~ended[:-1]], steps.next_obs[:-1][~ended[:-1]])


# ---- navix ---------------------------------------------------------------------------------------


def test_navix_steps_as_navix_does():
    navix = package("navix")
    path = [2, 0, 1, 2, 3, 1, 2, 2]  # to the goal
    (obs, reward, terminated, truncated), _ = walk(rlzoo.make("navix/Empty-5x5-v0"), path)
    env = navix.make("Navix-Empty-5x5-v0")
    timestep, step = env.reset(KEY), quick_jit(env.step)
    for i, action in enumerate(path, 1):
        timestep = step(timestep, action)
        np.testing.assert_array_equal(obs[i], timestep.observation)
        assert reward[i] == timestep.reward and terminated[i] == (timestep.step_type == 2)
    assert (
        reward.tolist() == [0.0] * 8 + [1.0]
        and terminated.tolist() == [False] * 8 + [True]
        and not truncated.any()
    )


def test_navix_limit_key_and_picture():
    package("navix")
    env = rlzoo.make("navix/Dynamic-Obstacles-8x8-v0?max_steps_in_episode=3")
    still = [6] * 3  # the action "done" does nothing
    (obs, _, terminated, truncated), state = walk(env, still)
    assert truncated.tolist() == [False, False, False, True] and not terminated.any()
    other = walk(env, still, jax.random.split(jax.random.key(5), 3))[0][0]
    assert (obs[0] == other[0]).all() and not (
        obs == other
    ).all()  # the balls go elsewhere under other keys
    assert not jax.tree.leaves((state.inner.key, state.inner.cache))
    picture = env.inner.render(state, env.params)
    assert (
        picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
        and picture.std() > 10
    )


# ---- jumanji -------------------------------------------------------------------------------------


def test_jumanji_steps_as_jumanji_does():
    """And several choices at once are one action out of all combinations."""
    jumanji = package("jumanji")
    turns = [0, 17, 4, 13]
    (obs, reward, *_), _ = walk(rlzoo.make("jumanji/RubiksCube-v0"), turns)
    env = jumanji.make("RubiksCube-v0")
    (state, timestep), step = env.reset(KEY), quick_jit(env.step)
    for i, action in enumerate(turns, 1):
        state, timestep = step(state, jnp.array([action // 3, 0, action % 3]))
        np.testing.assert_array_equal(obs[i], timestep.observation.cube.ravel())
        assert reward[i] == timestep.reward


def test_jumanji_time_limit_is_no_termination():
    jumanji = package("jumanji")
    (_, _, terminated, truncated), _ = walk(
        rlzoo.make("jumanji/Maze-v0?max_steps_in_episode=3"), [0, 0, 0]
    )
    assert truncated.tolist() == [False, False, False, True] and not terminated.any()
    env = jumanji.make("Maze-v0", time_limit=3)
    (state, timestep), step = env.reset(KEY), quick_jit(env.step)
    for _ in range(3):
        state, timestep = step(state, 0)
    assert timestep.last() and timestep.discount == 0  # jumanji itself says that the task ended
    (_, _, terminated, truncated), _ = walk(
        rlzoo.make("jumanji/Snake-v1"), [0] * 12
    )  # into the wall
    assert terminated.any() and not truncated.any()


def test_jumanji_randomness_comes_from_the_step():
    jumanji = package("jumanji")
    moves = [0, 1, 2, 3]
    keys = [jax.random.split(jax.random.key(seed), 4) for seed in (1, 2)]
    one, two = (walk(rlzoo.make("jumanji/Game2048-v1?field=board"), moves, k)[0][0] for k in keys)
    assert (one[0] == two[0]).all() and not (one == two).all()
    env = jumanji.make(
        "Game2048-v1"
    )  # its own way: from one start, with the same moves, always the same tiles
    boards = []
    for _ in range(2):
        (state, timestep), step = env.reset(KEY), quick_jit(env.step)
        for move in moves:
            state, timestep = step(state, move)
        boards.append(timestep.observation.board)
    assert (boards[0] == boards[1]).all()


# ---- craftax -------------------------------------------------------------------------------------


def test_craftax():
    package("craftax")
    env = rlzoo.make("craftax/Craftax-Classic-Symbolic-v1?max_steps_in_episode=2")
    (obs, reward, terminated, truncated), state = walk(env, [0, 0])
    assert truncated.tolist() == [False, False, True] and not terminated.any()
    assert np.isfinite(obs).all() and (reward == 0).all()
    inner = env.inner.env
    assert inner.is_terminal(
        state.inner, inner.default_params.replace(max_timesteps=2)
    )  # its own word for the limit
    dead = state.replace(
        inner=state.inner.replace(player_health=jnp.zeros_like(state.inner.player_health))
    )
    assert step_of(env)(KEY, dead, 0)[3]
    picture = env.inner.render(state, env.params)
    assert picture.dtype == np.uint8 and picture.shape == (63, 63, 3) and picture.std() > 10
