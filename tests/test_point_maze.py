"""The point maze: its steps by hand and against MuJoCo's, its walls, its scripted drivers."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.envs import PointMaze
from rlzoo.envs.point_maze import EXPERT, ways

import rlzoo
from rlzoo import dataset
from rlzoo.algorithm import Refused

SHARED = Path(os.environ.get("RLZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
PUBLISHED = SHARED / "offline/mbrcsl_pointmaze_regen/pointmaze_1000x200_seed0.npz"
ENV = rlzoo.make("point-maze")


@jax.jit
@jax.vmap
def move(obs, action):
    """One step from observations [n, 4]."""
    moved = ENV.inner.move(obs[:2], obs[2:], action, ENV.params)
    return jnp.concatenate(moved)


def to_wall(position):
    """Distance of positions [n, 2] to the nearest wall."""
    nearest = np.clip(position[:, None], ENV.inner.centers - 0.5, ENV.inner.centers + 0.5)
    return np.linalg.norm(position[:, None] - nearest, axis=-1).min(1)


@pytest.fixture(scope="module")
def mujoco():
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here: set RLZOO_DATA to the folder that holds offline/")
    return np.load(PUBLISHED)


@pytest.fixture(scope="module")
def own():
    return jax.jit(lambda key: dataset.recorded(ENV, key))(jax.random.key(0))


# ---- steps ---------------------------------------------------------------------------------------


def test_a_step_in_free_space():
    """m v' + c dt v' = m v + dt gear a, with the speed clipped before and the action to [-1, 1]."""
    rng = np.random.default_rng(0)
    n = 200
    obs = np.concatenate([rng.uniform(-0.2, 0.2, (n, 2)), rng.uniform(-6, 6, (n, 2))], 1)
    obs[:, :2] += [0.4, -0.5]
    action = rng.uniform(-1.5, 1.5, (n, 2))
    mass = 4 / 3 * np.pi * 0.1**3 * 1000
    velocity = (mass * np.clip(obs[:, 2:], -5, 5) + 0.01 * 100 * np.clip(action, -1, 1)) / (
        mass + 0.01 * 1
    )
    want = np.concatenate([obs[:, :2] + 0.01 * velocity, velocity], 1)
    np.testing.assert_allclose(move(obs, action), want, atol=2e-6)
    late = np.clip((mass * obs[:, 2:] + np.clip(action, -1, 1)) / (mass + 0.01), -5, 5)
    assert np.abs(late - want[:, 2:]).max() > 0.1, "clipped after the step, it would be another"


def test_walls_stop_the_ball():
    """Pushed into a wall it rests on it; along the wall it slides; in a corner it stays."""
    obs = np.array([[1.5, -0.5, 0, 0], [0.5, -0.5, 1.0, 0], [1.5, -0.5, 0, 0]])
    action = np.array([[1.0, 0.0], [0.3, -1.0], [1.0, -1.0]])
    for _ in range(100):
        obs = np.asarray(move(obs, action))
    np.testing.assert_allclose(obs[0], [1.9, -0.5, 0, 0], atol=1e-5)
    assert obs[1, 1] == pytest.approx(-0.9, abs=1e-5) and obs[1, 0] > 1.0 and abs(obs[1, 3]) < 1e-5
    np.testing.assert_allclose(obs[2], [1.9, -0.9, 0, 0], atol=1e-5)


def test_an_episode():
    params = ENV.params
    starts = jax.vmap(lambda key: ENV.inner.reset_env(key, params)[1])
    states = starts(jax.random.split(jax.random.key(0), 500))
    for found, center in ((states.position, (-0.5, 0.5)), (states.goal, (1.5, -0.5))):
        away = np.asarray(found) - center
        assert 0.24 < np.abs(away).max() <= 0.25 and np.abs(away.mean(0)).max() < 0.03
    _, state = ENV.inner.reset_env(jax.random.key(1), params)
    obs, after, reward, terminated, _ = ENV.inner.step_env(
        jax.random.key(0), state, jnp.ones(2), params
    )
    distance = np.linalg.norm(np.asarray(obs[:2]) - np.asarray(state.goal))
    assert float(reward) == pytest.approx(np.exp(-distance), rel=1e-6) and not terminated
    assert ENV.max_steps == 200
    assert ENV.inner.is_truncated(after.replace(time=jnp.int32(200)), params)
    assert not ENV.inner.is_truncated(after.replace(time=jnp.int32(199)), params)


def test_cells_and_ways():
    maze = PointMaze()
    cells = np.argwhere(~maze.grid)
    np.testing.assert_array_equal(maze.cell(jnp.asarray(maze.center(cells))), cells)
    np.testing.assert_allclose(maze.center(np.array([1, 2])), [-0.5, 0.5])
    table = ways(maze.grid)
    assert table[2 * 6 + 4, 1 * 6 + 2] == 2 * 6 + 2  # down, to the corridor
    assert table[2 * 6 + 1, 1 * 6 + 2] == 1 * 6 + 1  # of two equally short ways, left first
    assert table[2 * 6 + 4, 2 * 6 + 2] == 2 * 6 + 3


def test_other_mazes():
    env = rlzoo.make("point-maze?walls='11111/10001/11111'&start=(1,1)&goal=(1,3)&dt=0.02")
    state = env.reset(jax.random.key(0), 3)
    assert np.abs(np.asarray(state.obs[:, 0]) + 1).max() <= 0.25 and env.params.dt == 0.02
    for options in ("walls='101/111'", "walls='111/1'", "start=(1,4)", "goal=(9,9)"):
        with pytest.raises(Refused, match="walls|start|goal"):
            rlzoo.make(f"point-maze?{options}")


def test_picture(own):
    from matplotlib.figure import Figure

    _, state = ENV.inner.reset_env(jax.random.key(0), ENV.params)
    ax = Figure().add_subplot()
    ENV.inner.render(state, ENV.params)(ax)
    assert len(ax.patches) == ENV.inner.grid.sum() + 1
    np.testing.assert_allclose(ax.patches[-1].center, state.position)


# ---- against MuJoCo ------------------------------------------------------------------------------


def test_steps_of_mujoco(mujoco):
    """Away from walls a step is MuJoCo's to rounding. At a wall its contact is soft."""
    obs = mujoco["obs"]
    now, after = obs[:, :-1].reshape(-1, 4), obs[:, 1:].reshape(-1, 4)
    error = np.abs(move(now, mujoco["action"][:, :-1].reshape(-1, 2)) - after)
    free = (to_wall(now[:, :2]) > 0.16) & (to_wall(after[:, :2]) > 0.16)
    assert 0.9 < free.mean() < 1
    assert error[free].max() < 2e-6
    touching = error[~free]
    assert np.median(touching[:, :2].max(1)) < 1e-6
    assert np.quantile(touching[:, :2].max(1), 0.9) < 0.01


def test_whole_episodes_of_mujoco(mujoco):
    """The actions alone, from the first observation: without contact there is only rounding."""

    def replay(obs, actions):
        def step(obs, action):
            obs = move(obs, action)
            return obs, obs

        return jax.lax.scan(step, obs, actions)[1]

    obs = mujoco["obs"]
    actions = mujoco["action"][:, :-1].swapaxes(0, 1)
    again = np.asarray(jax.jit(replay)(obs[:, 0], actions)).swapaxes(0, 1)
    error = np.linalg.norm(again[..., :2] - obs[:, 1:, :2], axis=-1)
    group = mujoco["group"]
    assert error[:, 100].max() < 1e-5
    assert np.median(error[group < 3, -1]) < 1e-5
    assert np.median(error[group == 3, -1]) < 0.2  # random actions hit walls


def test_drivers_are_the_published_ones(mujoco, own):
    """Mean and best return of each group, and the moments of observations."""
    returns = dataset.episodes(own).returns
    group = np.asarray(own.extra["group"])[own.starts[:-1]]
    for number in range(4):
        ours = returns[group == number]
        theirs = mujoco["reward"].sum(1)[mujoco["group"] == number]
        assert len(ours) == len(theirs) == 250
        deviation = np.sqrt(ours.var() / 250 + theirs.var() / 250)
        assert abs(ours.mean() - theirs.mean()) < 3 * deviation
        assert 0.75 < ours.std() / theirs.std() < 1.33
    theirs = mujoco["obs"].reshape(-1, 4)
    np.testing.assert_allclose(own.obs_mean, theirs.mean(0), atol=0.05)
    np.testing.assert_allclose(own.obs_std, theirs.std(0), atol=0.05)


# ---- drivers -------------------------------------------------------------------------------------


def test_own_data(own):
    dataset.validate(own)
    dataset.check(own, ENV)
    assert own.num_episodes == 1000 and len(own) == 200_000
    assert own.env == "point-maze" and not own.terminated.any()
    returns = dataset.episodes(own).returns
    assert 64 < returns.max() < 76  # 69.2 in the published draw
    with pytest.raises(Refused, match="makes no data set of its own"):
        dataset.recorded(rlzoo.make("CartPole-v1"), jax.random.key(0))


def test_no_route_does_both_halves(own):
    """Who goes down the short way stays at its end; who reaches the goal took the detour."""
    path = np.asarray(own.obs).reshape(1000, 200, 4)
    group = np.asarray(own.extra["group"])[own.starts[:-1]]
    detour = (path[:, :, 0] < -1).any(1)
    at_goal = (path[:, :, 0] > 1).any(1)
    assert not detour[group < 2].any() and not at_goal[group < 2].any()
    assert detour[group >= 2].all() and at_goal[group >= 2].all()


def test_the_expert(own):
    record = jax.jit(lambda key: ENV.inner.record(key, ENV.params, 40, (EXPERT,)))
    returns = np.asarray(record(jax.random.key(0))["reward"]).sum(1)
    assert 132 < returns.mean() < 142
    assert returns.min() > dataset.episodes(own).returns.max()
