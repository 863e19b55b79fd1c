"""Recording: what is written is what the environment did."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (registers the probe environments)
import pytest
import toy
from rlzoo.algorithms import dqn

import rlzoo
from rlzoo import cli, dataset, machine
from rlzoo.algorithm import Refused
from rlzoo.env import EnvState, done, episodes
from rlzoo.replay import Uniform
from rlzoo.tools import collect

LIMIT = 30
CART = f"CartPole-v1?max_steps_in_episode={LIMIT}"


def train(make, config, out, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            machine, "compiler_options", lambda backend: {"xla_backend_optimization_level": 0}
        )  # as quick_jit
        return rlzoo.train(
            make,
            config,
            out=str(out),
            quiet=True,
            eval_every=0,
            eval_episodes=2,
            cache=False,
            **options,
        ).dir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two members of a DQN whose replay of 40 rows was overwritten: 66 steps in 2 environments."""
    config = dqn.Config(
        env=CART,
        total_steps=66,
        num_envs=2,
        buffer_size=40,
        batch_size=4,
        learning_starts=6,
        hidden=(4,),
    )
    return train(dqn.make, config, tmp_path_factory.mktemp("runs") / "dqn", seeds=2)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory):
    """The toy whose policy takes turns, if its memory starts anew with each episode and is told the
    rewards."""
    return train(
        toy.make,
        toy.Config(env=CART, total_steps=4, mode="memory"),
        tmp_path_factory.mktemp("runs") / "toy",
    )


@pytest.fixture(scope="module")
def cart():
    return collect.random(CART, 70)  # more than are played at the same time


# ---- whole and exact episodes --------------------------------------------------------------------


def test_every_step_is_what_the_environment_does(cart):
    """CartPole's observation is its state: each recorded step is taken again."""
    env = rlzoo.make(CART)
    starts, lengths, returns = dataset.episodes(cart)
    assert (cart.num_episodes, cart.env, cart.source) == (70, CART, "random, seed 0")
    step_of_row = np.concatenate([np.arange(n) for n in lengths])
    key = jax.random.key(0)  # its steps draw nothing

    @jax.jit
    @jax.vmap
    def again(obs, action, time):
        named = dict(zip(("x", "x_dot", "theta", "theta_dot"), obs, strict=True))
        inner = env.inner.reset_env(key, env.params)[1].replace(**named, time=time)
        obs, inner, reward, terminated, _ = env.inner.step_env(key, inner, action, env.params)
        return obs, reward, terminated, env.inner.is_truncated(inner, env.params)

    obs, reward, terminated, truncated = again(cart.obs, cart.action, step_of_row)
    np.testing.assert_allclose(cart.next_obs, obs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(cart.reward, reward)
    np.testing.assert_array_equal(cart.terminated, terminated)
    np.testing.assert_array_equal(cart.truncated, truncated & ~terminated)
    assert cart.terminated.any() and cart.truncated.any() and lengths.max() == LIMIT
    np.testing.assert_array_equal(returns, lengths)
    first = np.asarray(cart.obs)[starts]
    assert (np.abs(first) <= 0.05).all()  # fresh starts,
    assert len(np.unique(first, axis=0)) == 70  # and no two alike
    dataset.validate(cart)
    dataset.check(cart, env)


def test_episodes_are_those_of_evaluation(cart):
    """Number i depends on the seed and i alone, so none is favored. A loop over environments that
    reset themselves, which takes the episodes that end first, favors short ones."""
    env = rlzoo.make(CART)
    act = lambda memory, obs, reward, keys: (
        jax.vmap(env.random_action)(keys),
        memory,
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(500))
    returns, lengths = map(np.asarray, jax.jit(lambda keys: episodes(env, act, None, keys))(keys))
    np.testing.assert_array_equal(dataset.episodes(cart).lengths, lengths[:70])
    np.testing.assert_array_equal(dataset.episodes(cart).returns, returns[:70])
    ends = lengths.reshape(50, 10).cumsum(axis=1)  # 50 environments, 10 episodes each
    naive = lengths.reshape(50, 10)[ends <= np.sort(ends, axis=None)[49]]
    assert naive.mean() < lengths.mean() - 1


def test_compiles_once_for_all_steps():
    """Also where the dtype of a state is weaker at its start, as in MetaMaze."""
    traced = []

    def act(policy, obs, key):
        traced.append(1)
        return jnp.int32(0)

    data = collect.record(rlzoo.make("MetaMaze-misc"), act, None, 2, jax.random.key(0))
    assert len(data) > 2 * collect.STEPS and len(traced) == 1


def test_continuous_actions_are_those_taken():
    """The policy asks for 3 at obs 1 and for 0.2 at obs -1; the reward 1 - (action - obs / 2)^2
    tells what was done."""
    env = rlzoo.make("probe-action-continuous")
    act = lambda policy, obs, key: jnp.where(obs > 0, policy, 0.2)
    data = collect.record(env, act, jnp.float32(3.0), 200, jax.random.key(0), noise=0.1)
    action, obs = np.asarray(data.action)[:, 0], np.asarray(data.obs)[:, 0]
    np.testing.assert_allclose(data.reward, 1 - (action - obs / 2) ** 2, atol=1e-6)
    assert (action[obs > 0] == 1).all() and 60 < (obs > 0).sum() < 140
    low = action[obs < 0]
    assert abs(low.mean() - 0.2) < 0.04 and low.std() == pytest.approx(0.1, abs=0.03)
    assert data.truncated.sum() == 0 and data.num_episodes == 200
    with pytest.raises(Refused, match="noise=nan: must be at least 0"):
        collect.record(env, act, None, 1, jax.random.key(0), noise=float("nan"))


def test_random_actions_fill_the_range():
    draw = jax.vmap(rlzoo.make("probe-action-continuous").random_action)
    action = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    assert action.shape == (500, 1) and np.abs(action).max() <= 1
    assert (
        abs(action.mean()) < 0.1 and action.min() < -0.95 and action.max() > 0.95
    )  # not [0, 1], young-geng/JaxCQL#1


def test_time_limits_and_discrete_noise():
    env = rlzoo.make("probe-time-limit")
    act = lambda policy, obs, key: jnp.int32(1)
    data = collect.record(env, act, None, 100, jax.random.key(0), noise=0.5)
    assert len(data) == 500 and data.truncated.sum() == 100 and not data.terminated.any()
    assert float(data.action.mean()) == pytest.approx(
        0.75, abs=0.07
    )  # half of the random ones are 1, too
    for wrong, match in ((1.5, r"noise=1.5: must lie in \[0, 1\]"), (-0.1, "noise=-0.1")):
        with pytest.raises(Refused, match=match):
            collect.record(env, act, None, 1, jax.random.key(0), noise=wrong)
    with pytest.raises(Refused, match="episodes=0"):
        collect.random("CartPole-v1", 0)


# ---- runs ----------------------------------------------------------------------------------------


def test_policy(run):
    data = collect.policy(run, 3)
    dataset.validate(data)
    assert data.num_episodes == 6 and data.env == CART
    assert data.source == "dqn, member 0, noise 0, seed 0 + dqn, member 1, noise 0, seed 0"
    first = int(data.starts[3])
    for member, rows in ((0, slice(0, first)), (1, slice(first, None))):
        act, policy = rlzoo.load(run, member)
        np.testing.assert_array_equal(
            data.action[rows], act(policy, data.obs[rows], jax.random.key(0))
        )
    with pytest.raises(Refused, match="no member 2"):
        collect.policy(run, 3, member=2)


def test_policies_that_remember(remembering):
    data = collect.policy(remembering, 4)
    lengths = dataset.episodes(data).lengths
    np.testing.assert_array_equal(data.action, np.concatenate([np.arange(n) % 2 for n in lengths]))


# ---- replay --------------------------------------------------------------------------------------


def test_replay_is_in_the_order_of_time():
    """Rows named by call and environment, in a ring that was overwritten twice."""
    env = rlzoo.make("probe-time-limit")
    buffer, envs = Uniform(12, env.example(), num_envs=3), 3
    state = buffer.init()
    example = jax.tree.map(lambda x: jnp.zeros((envs, *x.shape), x.dtype), env.example())
    for t in range(10):
        obs = jnp.full((envs, 1), t, jnp.float32)
        state = buffer.add(
            state,
            example._replace(obs=obs, next_obs=obs + 1, action=t * envs + jnp.arange(envs)),
            t,
        )
    lone = EnvState(None, None, jnp.zeros(envs), None, None)
    rows = collect.replayed({"buffer": state, "env": lone})
    calls = np.arange(6, 10)
    assert rows["action"].tolist() == [t * envs + e for e in range(envs) for t in calls]
    assert rows["truncated"].tolist() == [t == 9 for _ in range(envs) for t in calls]
    data = dataset.from_arrays(rows)
    assert data.num_episodes == 3
    stored = {name: np.asarray(getattr(state.data, name)) for name in rows}
    with pytest.raises(Refused, match="next_obs: row"):  # the order in which they are stored
        dataset.from_arrays(stored)
    for state, match in (
        ({"env": lone}, "holds 0 replay buffers"),
        ({"buffer": buffer.init(), "env": lone}, "is empty"),
    ):
        with pytest.raises(Refused, match=match):
            collect.replayed(state)


def test_replay_of_a_run(run, remembering):
    data = collect.replay(run)
    dataset.validate(data)
    dataset.check(data, rlzoo.make(CART))
    assert len(data) == 80 and data.source == "dqn, replay of member 0 + dqn, replay of member 1"
    one = collect.replay(run, member=1)
    _, state = rlzoo.load(run, member=1, full=True)
    newest = (int(state.buffer.pos) - 2) % 40
    np.testing.assert_array_equal(
        one.next_obs[19], state.buffer.data.next_obs[newest]
    )  # of environment 0, then of 1
    np.testing.assert_array_equal(one.next_obs[39], state.buffer.data.next_obs[newest + 1])
    assert bool(done(one)[19]) and bool(done(one)[39])
    with pytest.raises(Refused, match="holds 0 replay buffers"):
        collect.replay(remembering)


# ---- the command ---------------------------------------------------------------------------------


def test_command(run, tmp_path, monkeypatch, capsys):
    def rlzoo_data(*argv):
        monkeypatch.setattr(sys, "argv", ["rlzoo", "data", "collect", *map(str, argv)])
        cli.main()
        return capsys.readouterr().out

    out = rlzoo_data(
        run,
        "--episodes",
        3,
        "--member",
        1,
        "--noise",
        0.2,
        "--reference",
        5,
        12,
        "--out",
        tmp_path / "a.npz",
    )
    data = dataset.load(tmp_path / "a.npz")
    assert data.source == "dqn, member 1, noise 0.2, seed 0" and data.reference == (5.0, 12.0)
    mean = dataset.episodes(data).returns.mean()
    assert f"{len(data)} transitions in 3 episodes, mean return {mean:.4g}" in out
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert json.loads(file["metadata"][0])["env"] == CART
    rlzoo_data(run, "--replay", "--member", 0, "--out", tmp_path / "b.hdf5")
    assert len(dataset.load(tmp_path / "b.hdf5")) == 40
    rlzoo_data("--random", "probe-obs", "--episodes", 2, "--out", tmp_path / "c.npz")
    assert dataset.load(tmp_path / "c.npz").num_episodes == 2
