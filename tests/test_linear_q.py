"""LinearQ and the stitching problem: tables, returns and data by hand, and tabular methods."""

import itertools

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from rlzoo.envs import LinearQ, Stitching
from rlzoo.envs.stitching import REWARDS

import rlzoo
from rlzoo import dataset

SIZES = (4, 16, 64, 160)


def follow(env, policy):
    """Return of `policy(place) -> action` in the tables."""
    place, total = 0, 0.0
    for _ in range(env.states):
        action = policy(place)
        total += float(env.rewards[place, action])
        place = int(env.next_place[place, action])
    return total


# ---- LinearQ -------------------------------------------------------------------------------------


def test_tables_of_size_4():
    env = LinearQ(4)
    for place, after in {0: [1, 14], 1: [2, 13], 5: [13, 6], 6: [14, 7]}.items():
        assert env.next_place[place].tolist() == after
    for place, pay in {
        0: [2, 13.5],
        4: [1.5, 9.5],
        5: [7.5, 1],
        8: [2, 1],
        13: [0, 0.5],
    }.items():
        assert env.rewards[place].tolist() == pay


@pytest.mark.parametrize("size", SIZES)
def test_values_and_returns(size):
    env = LinearQ(size)
    assert env.states == 3 * (size + 1) and (env.rewards >= 0).all()
    value = np.zeros((env.states, 2))
    for _ in range(env.states):
        value = env.rewards + value.max(1)[env.next_place]
    np.testing.assert_array_equal(value, env.optimal)
    assert follow(env, lambda place: int(place > size)) == 4 * size + 2
    assert follow(env, lambda place: 0) == 4 * size + 1
    assert follow(env, lambda place: 1) == 3 * size + 1.5


@pytest.mark.parametrize("size", (16, 64, 160))
def test_the_reward_needs_many_kinks(size):
    """The slopes of r(., a) change u + 3 and u + 2 times, those of the values once."""
    env = LinearQ(size)
    kinks = lambda table: (np.abs(np.diff(table, 2, axis=0)) > 1e-6).sum(0).tolist()
    assert kinks(env.rewards) == [size + 3, size + 2]
    assert kinks(env.optimal) == [1, 1]


def test_linear_q_steps():
    env = rlzoo.make("linear-q16")
    assert env.max_steps == 51 and env.num_actions == 2 and env.obs_shape == (1,)
    tables = env.inner
    state, advance = env.reset(jax.random.key(0), 1), jax.jit(env.step)
    total = 0.0
    for t in range(51):
        place = int(state.obs[0, 0])
        action = np.array([int(place > 16)], np.int32)
        state, step, _ = advance(state, action, jax.random.key(t), t)
        assert float(step.reward[0]) == tables.rewards[place, action[0]]
        assert float(step.next_obs[0, 0]) == tables.next_place[place, action[0]]
        total += float(step.reward[0])
        assert not step.terminated[0] and bool(step.truncated[0]) == (t == 50)
    assert total == 66


def test_linear_q_data():
    env = rlzoo.make("linear-q16")
    data = dataset.recorded(env, jax.random.key(0))
    dataset.validate(data)
    dataset.check(data, env)
    returns = dataset.episodes(data).returns
    assert len(returns) == 4 * 51 and (returns[: 3 * 51] == 66).all()
    flipped = returns[3 * 51 :]
    assert flipped[:2].tolist() == [49.5, 50.5] and flipped[-2:].tolist() == [65.5, 66]
    assert (flipped <= 66).all() and flipped[:17].tolist() == sorted(flipped[:17])
    pairs = {
        *zip(np.asarray(data.obs)[:, 0].tolist(), np.asarray(data.action).tolist(), strict=True)
    }
    assert len(pairs) == 2 * 51, "every action was tried in every state"


# ---- stitching -----------------------------------------------------------------------------------


def tabular_rcsl(episodes, goal):
    """The return of the policy that imitates the episodes [n, 2 actions] by their return-to-go.

    Raises KeyError where it is asked for what no episode shows.
    """
    shown = {}
    for actions in episodes:
        pays = REWARDS[np.arange(2), actions]
        for step in range(2):
            shown.setdefault((step, pays[step:].sum()), []).append(actions[step])

    def expected(step, goal):
        if step == 2:
            return 0.0
        pays = [REWARDS[step, action] for action in shown[step, goal]]
        return np.mean([pay + expected(step + 1, goal - pay) for pay in pays])

    return expected(0, goal)


def test_what_can_stitch():
    """Imitation gets 1, by returns alone or with histories too; rollouts and values get 2."""
    data = Stitching().record(jax.random.key(0), None)
    episodes = np.asarray(data["action"])
    returns = np.asarray(data["reward"]).sum(1)
    assert {*map(tuple, episodes.tolist())} == {(0, 0), (1, 1)} and (returns == 1).all()
    assert tabular_rcsl(episodes, 1.0) == 1
    with pytest.raises(KeyError):
        tabular_rcsl(episodes, 2.0)
    # with the history: only one episode continues each first action
    assert np.mean([REWARDS[0, a] + REWARDS[1, b] for a, b in episodes]) == 1
    # rollouts of the behavior policy in an exact model, filtered by the best return
    shares = [np.bincount(episodes[:, step], minlength=2) / len(episodes) for step in range(2)]
    rolled = [pair for pair in itertools.product(range(2), repeat=2)]
    chance = {pair: shares[0][pair[0]] * shares[1][pair[1]] for pair in rolled}
    kept = [pair for pair in rolled if REWARDS[0, pair[0]] + REWARDS[1, pair[1]] > returns.max()]
    assert kept == [(0, 1)] and chance[kept[0]] == 0.25
    assert tabular_rcsl(np.array(kept), 2.0) == 2
    # Q-learning
    value = REWARDS[1].max()
    best = [int((REWARDS[0] + value).argmax()), int(REWARDS[1].argmax())]
    assert REWARDS[0, best[0]] + REWARDS[1, best[1]] == 2


def test_stitching_steps_and_data():
    env = rlzoo.make("stitching")
    data = dataset.recorded(env, jax.random.key(0))
    dataset.validate(data)
    dataset.check(data, env)
    step = jax.jit(env.inner.step_env)
    for actions, total in (((0, 0), 1), ((1, 1), 1), ((0, 1), 2), ((1, 0), 0)):
        _, state = env.inner.reset_env(jax.random.key(0), env.params)
        rewards = []
        for time, action in enumerate(actions):
            obs, state, reward, terminated, _ = step(jax.random.key(0), state, action, env.params)
            rewards.append(float(reward))
            assert bool(terminated) == (time == 1) and float(obs[0]) == time + 1
        assert sum(rewards) == total


@pytest.mark.parametrize("id", ("linear-q4", "stitching"))
def test_pictures(id):
    env = rlzoo.make(id)
    _, state = env.inner.reset_env(jax.random.key(0), env.params)
    ax = Figure().add_subplot()
    env.inner.render(state, env.params)(ax)
    assert len(ax.lines) >= 2
