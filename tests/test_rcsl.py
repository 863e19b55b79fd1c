"""RCSL: its loss, what it is told in an episode, the optimum of LinearQ; it cannot stitch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from rlzoo.algorithms import rcsl

import rlzoo
from rlzoo.dataset import episodes, recorded, returns_to_go

KEY = jax.random.key(0)


class Fixed:
    """A network whose outputs are its parameters."""

    @staticmethod
    def apply(params, x):
        return params


def test_returns_to_go_of_an_episode():
    """g_0 is the return, and g_t - g_{t+1} = r_t."""
    data = recorded(rlzoo.make("linear-q4"), KEY)
    to_go = np.asarray(returns_to_go(data))
    np.testing.assert_allclose(to_go[data.starts[:-1]], episodes(data).returns)
    inside = np.ones(len(data), bool)
    inside[np.asarray(data.starts[1:]) - 1] = False
    reward = np.asarray(data.reward)
    np.testing.assert_allclose((to_go - np.roll(to_go, -1))[inside], reward[inside], atol=1e-5)
    np.testing.assert_allclose(to_go[~inside], reward[~inside])


def test_loss():
    rng = np.random.default_rng(0)
    out, action = rng.normal(size=(6, 3)), rng.uniform(-1, 1, (6, 3))
    loss, _ = rcsl.actor_loss(jnp.float32(out), None, jnp.float32(action), Fixed, False)
    assert float(loss) == pytest.approx(((out - action) ** 2).mean(), rel=1e-5)
    taken = np.array([0, 2, 1, 0, 0, 2])
    probs = np.exp(out) / np.exp(out).sum(1, keepdims=True)
    loss, metrics = rcsl.actor_loss(jnp.float32(out), None, jnp.asarray(taken), Fixed, True)
    assert float(loss) == pytest.approx(-np.log(probs[np.arange(6), taken]).mean(), rel=1e-5)
    assert float(metrics["train/agreement"]) == pytest.approx((out.argmax(1) == taken).mean())
    number = jnp.float32([[0.2], [0.8]])
    loss, metrics = rcsl.actor_loss(number, None, jnp.array([0, 0]), Fixed, True)
    assert float(loss) == pytest.approx((0.04 + 0.64) / 2) and metrics["train/agreement"] == 0.5


def test_an_episode_counts_down():
    """The return to go falls by the reward that was got, and the network is told it."""
    env = rlzoo.make("probe-action-continuous")
    config = rcsl.Config(env=env.id, normalize=False, target_return=3.0)
    alg = rcsl.make(config, env, tiny_data.continuous())
    policy = alg.policy(alg.init(KEY))
    memory = alg.memory(policy)
    assert float(memory) == 3
    obs = jnp.array([0.5])
    for reward, left in ((0.0, 3.0), (1.25, 1.75), (-0.5, 2.25)):
        action, memory = alg.act(policy, memory, obs, jnp.float32(reward), KEY)
        assert float(memory) == left
        told = rcsl.MLP(config.hidden, 1).apply(policy.params, jnp.array([0.5, left]))
        np.testing.assert_allclose(action, jnp.clip(told, -1, 1), rtol=1e-6)


def test_inputs_are_standardized():
    env, data = rlzoo.make("probe-action-continuous"), tiny_data.continuous()
    scale = rcsl.make(rcsl.Config(env=env.id), env, data).init(KEY).policy.scale
    seen = np.stack([np.asarray(data.obs)[:, 0], np.asarray(returns_to_go(data))], 1)
    np.testing.assert_allclose(scale.mean, seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(scale.std, seen.std(0) + 1e-3, rtol=1e-4)
    raw = rcsl.make(rcsl.Config(env=env.id, normalize=False), env, data).init(KEY).policy
    assert (raw.scale.mean == 0).all() and (raw.scale.std == 1).all()
    assert float(raw.target) == pytest.approx(episodes(data).returns.max())


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("loss", ("cross_entropy", "mse"))
def test_linear_q(loss, tmp_path):
    """The optimum of 66 with 16 hidden units; far fewer updates leave a gap."""
    config = rcsl.Config(loss=loss)
    options = {"seeds": 3, "quiet": True, "eval_every": 0, "eval_episodes": 1}
    run = rlzoo.train(rcsl.make, config, out=str(tmp_path / "run"), **options)
    assert [member["eval/return"] for member in run.summary["members"]] == [66, 66, 66]
    few = dataclasses.replace(config, total_steps=100)
    run = rlzoo.train(rcsl.make, few, out=str(tmp_path / "few"), **options)
    assert min(member["eval/return"] for member in run.summary["members"]) < 66


@pytest.mark.slow
def test_it_cannot_stitch(tmp_path):
    """Asked for 1, the return of both episodes, it gets 0, 1 or 2 by how it breaks the tie; after
    its first action it imitates the episode that had this action, so it gets 1."""
    config = rcsl.Config(env="stitching", total_steps=500)
    options = {"seeds": 4, "quiet": True, "eval_every": 0, "eval_episodes": 1}
    run = rlzoo.train(rcsl.make, config, out=str(tmp_path / "run"), **options)
    assert [member["eval/return"] for member in run.summary["members"]] == [1, 1, 1, 1]
