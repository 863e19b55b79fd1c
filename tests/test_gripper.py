"""The gripper: its rules by hand, and its scripts against PyBullet's figures.

The published figures (success of 20 to 40 scripted episodes, median step of the first success) are
of the original simulator; this is a kinematic stand-in.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from rlzoo.envs import Gripper

import rlzoo
from rlzoo import dataset
from rlzoo.algorithm import Refused

KEY = jax.random.key(0)
PICK = rlzoo.make("gripper-pick-place")
DRAWER = rlzoo.make("gripper-closed-drawer")


def action(x=0.0, y=0.0, z=0.0, fingers=0.0, neutral=0.0):
    return jnp.array([x, y, z, 0, 0, 0, fingers, neutral], jnp.float32)


@jax.jit
def pick(state, action):
    return PICK.inner.step_env(
        KEY, state, action, PICK.params.replace(grasp_chance=1.0, scatter=0.0)
    )


@jax.jit
def draw(state, action):
    return DRAWER.inner.step_env(KEY, state, action, DRAWER.params.replace(grasp_chance=1.0))


def test_the_hand_lags():
    """Delta_t = .16 d_t + .25 Delta_(t-1), where d_t is the way to the command."""
    _, state = PICK.inner.reset_env(KEY, PICK.params)
    step = 0.0
    for _ in range(3):
        before = float(state.hand[0])
        step = 0.16 * (min(before + 0.18, 0.8) - before) + 0.25 * step
        _, state, *_ = pick(state, action(x=0.9))
        assert float(state.hand[0]) - before == pytest.approx(step, abs=1e-6)
    for _ in range(60):
        _, state, *_ = pick(state, action(1.0, 1.0, -1.0))
    np.testing.assert_allclose(state.hand, [0.8, 0.4, -0.34], atol=1e-3)
    _, state, *_ = pick(state, action(neutral=0.7))
    assert np.linalg.norm(np.asarray(state.hand) - [0.600, 0.155, -0.173]) < 0.04


def test_grasp_carry_and_release():
    _, state = PICK.inner.reset_env(KEY, PICK.params)
    above = state.replace(hand=state.thing + jnp.array([0.0, 0.0, 0.047]))
    _, far, *_ = pick(state, action(fingers=-0.7))
    assert not far.held and not far.open
    _, state, reward, _, _ = pick(above, action(fingers=-0.7))
    assert state.held and not state.open and reward == 0
    _, state, *_ = pick(state, action(z=0.9))
    np.testing.assert_allclose(state.thing, state.hand + jnp.array([0, -0.008, -0.047]), atol=1e-6)
    hand = jnp.array([0.5, 0.25, -0.2])
    state = state.replace(hand=hand, thing=hand + jnp.array([0, -0.008, -0.047]))
    _, state, reward, _, _ = pick(state, action(fingers=0.7))
    assert state.open and not state.held and state.thing[2] < -0.34 and reward == 1
    _, state, reward, _, _ = pick(state, action())
    assert reward == 1, "in every step in which it lies there"


def test_the_drawer_follows_the_hand():
    """Hooked at the handle it is pulled; from elsewhere, or covered by the other one, it is not."""
    _, state = DRAWER.inner.reset_env(KEY, DRAWER.params)
    hooked = state.replace(hand=DRAWER.inner.handle(state) + jnp.array([0.0, 0.0, 0.03]))
    _, pulled, *_ = draw(hooked, action(x=0.9))
    way = float(pulled.drawer - state.drawer)
    assert way == pytest.approx(float(pulled.hand[0] - hooked.hand[0]), abs=1e-6) and way > 0.02
    assert float(pulled.thing[0] - state.thing[0]) == pytest.approx(way, abs=1e-6)
    covered = hooked.replace(top=jnp.float32(0.529))
    for other in (state, covered):
        _, after, *_ = draw(other, action(x=0.9))
        assert after.drawer == state.drawer
    shut = hooked.replace(hand=state.thing + jnp.array([0.0, 0.0, 0.047]))
    _, after, *_ = draw(shut, action(fingers=-0.7))
    assert not after.held, "a closed drawer hides its ball"
    _, after, *_ = draw(shut.replace(drawer=jnp.float32(0.59)), action(fingers=-0.7))
    assert after.held


def drive(env, group, length, clumsy=0.0):
    one = lambda key: env.inner.drive(key, env.params, group, length, clumsy)
    rows = jax.jit(jax.vmap(one))(jax.random.split(KEY, 200))
    return {name: np.asarray(x) for name, x in rows.items()}


def first(solved):
    """Share of episodes [n, steps] in which it came true, and the median step."""
    ever = solved.any(1)
    return ever.mean(), np.median(solved.argmax(1)[ever] + 1)


@pytest.mark.slow
def test_scripts_of_pick_place():
    """PyBullet: 87.5% grasp, at step 11, 50% when clumsy; 87.5% of the whole task; 100% place at
    step 6."""
    grasped = lambda rows: (rows["next_obs"][..., 2] > -0.3) & (rows["next_obs"][..., 16] < 0.5)
    share, step = first(grasped(drive(PICK, 0, 25)))
    assert 0.775 < share < 0.975 and abs(step - 11) <= 3
    share, _ = first(grasped(drive(PICK, 0, 25, clumsy=1.0)))
    assert 0.4 < share < 0.6
    share, step = first(drive(PICK, 1, 20)["reward"] > 0)
    assert share > 0.9 and abs(step - 6) <= 3
    share, _ = first(drive(PICK, 2, 40)["reward"] > 0)
    assert 0.775 < share < 0.975


@pytest.mark.slow
def test_scripts_of_the_drawers():
    """PyBullet: opened always, at step 11, blocked at step 21; 65% lift the ball, at step 14."""
    opened = lambda rows: (rows["next_obs"][..., 18] - 0.47) / 0.125 > 0.95
    share, step = first(opened(drive(DRAWER, 0, 50)))
    assert share > 0.9 and abs(step - 11) <= 3
    share, step = first(drive(DRAWER, 1, 30)["reward"] > 0)
    assert 0.55 < share < 0.8 and abs(step - 14) <= 3
    share, step = first(opened(drive(rlzoo.make("gripper-blocked-drawer"), 0, 80)))
    assert share > 0.9 and abs(step - 21) <= 3


@pytest.mark.slow
def test_own_data():
    """The first halves earn nothing; none holds the whole task."""
    record = PICK.inner.record
    PICK.inner.record = lambda key, params: record(key, params, episodes=20)
    data = jax.jit(lambda key: dataset.recorded(PICK, key))(KEY)
    del PICK.inner.record
    dataset.validate(data)
    dataset.check(data, PICK)
    assert data.num_episodes == 40 and len(data) == 20 * 25 + 20 * 20
    returns = dataset.episodes(data).returns
    assert (returns[:20] == 0).all() and (returns[20:] > 0).mean() > 0.7


@pytest.mark.parametrize("env", (PICK, DRAWER))
def test_facts_and_picture(env):
    assert env.max_steps == {"pick-place": 40, "closed-drawer": 50}[env.inner.task]
    assert env.obs_shape == ((19,) if env.inner.has_drawers else (17,)) and env.action_dim == 8
    _, state = env.inner.reset_env(KEY, env.params)
    ax = Figure().add_subplot()
    env.inner.render(state, env.params)(ax)
    assert len(ax.lines) >= 4
    with pytest.raises(ValueError, match="must be one of"):
        Gripper("fold")
    with pytest.raises(Refused):
        rlzoo.make("gripper-fold")
