"""PPO: its losses against NumPy, its values on probe environments whose values are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import PROBES
from rlzoo.algorithms import ppo
from together import learn, quick_jit

import rlzoo
from rlzoo.env import Transition, done
from rlzoo.normalize import RunningStats

GAMMA = 0.9


# ---- advantages ----------------------------------------------------------------------------------


def gae_reference(reward, value, next_value, terminated, over, discount, lam, bootstrap_over=True):
    advantage, out = np.zeros(reward.shape[1]), np.zeros(reward.shape)
    for i in reversed(range(len(reward))):
        alive = 1.0 - (terminated if bootstrap_over else over)[i]
        delta = reward[i] + discount * alive * next_value[i] - value[i]
        advantage = delta + discount * lam * (1.0 - over[i]) * advantage
        out[i] = advantage
    return out


@pytest.mark.parametrize("kind", ["terminated", "truncated", "both", "never"])
def test_gae_is_the_plain_loop(kind):
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 37, 5))
    ends, which = rng.random((37, 5)) < 0.2, rng.random((37, 5)) < 0.5
    terminated = (
        ends & {"terminated": True, "truncated": False, "both": which, "never": False}[kind]
    )
    over = ends & (kind != "never")
    args = (reward, value, next_value, terminated, over, 0.97, 0.9)
    found = quick_jit(ppo.gae)(*(x.astype(np.float32) for x in args[:3]), *args[3:])
    np.testing.assert_allclose(found, gae_reference(*args), rtol=1e-4, atol=1e-5)
    if kind in (
        "truncated",
        "both",
    ):  # masking the bootstrap with `done` is the bug this guards against
        naive = gae_reference(*args, bootstrap_over=False)
        assert np.abs(found - naive).max() > 0.1


# ---- distributions and the loss ------------------------------------------------------------------


def test_distributions_are_the_closed_forms():
    rng = np.random.default_rng(0)
    head = rng.normal(size=(7, 5)).astype(np.float32)
    action = rng.integers(0, 5, 7)
    pi = ppo.distribution(head, None)
    probs = np.exp(head) / np.exp(head).sum(-1, keepdims=True)
    np.testing.assert_allclose(pi.log_prob(action), np.log(probs)[np.arange(7), action], rtol=1e-4)
    np.testing.assert_allclose(pi.entropy(), -(probs * np.log(probs)).sum(-1), rtol=1e-4)

    log_std = rng.normal(size=5).astype(np.float32)
    action = 2 * rng.normal(size=(7, 5)).astype(np.float32)
    pi = ppo.distribution(head, log_std)
    z = (action - head) / np.exp(log_std)
    log_prob = (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(pi.log_prob(action), log_prob, rtol=1e-4)
    entropy = (0.5 * np.log(2 * np.pi * np.e) + log_std).sum()
    np.testing.assert_allclose(pi.entropy(), np.full(7, entropy), rtol=1e-4)


def critic(params, obs):
    return (obs @ params)[..., 0]


def linear(params, obs):
    return obs @ params


def loss_case(discrete, n=64):
    rng = np.random.default_rng(1)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = ppo.Params(f(4, 3), f(4, 1), None if discrete else 0.3 * f(3))
    obs = f(n, 4)
    action = rng.integers(0, 3, n) if discrete else obs @ params.actor + f(n, 3)
    log_prob = ppo.distribution(obs @ params.actor, params.log_std).log_prob(action)
    batch = ppo.Batch(obs, action, np.asarray(log_prob) + 0.3 * f(n), 2 * f(n) + 1, f(n))
    config = ppo.Config(clip_eps=0.15, value_coef=0.7, entropy_coef=0.03)
    return jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, batch), config


@pytest.mark.parametrize("discrete", [True, False])
def test_loss_and_metrics_are_the_numpy_reference(discrete):
    params, batch, config = loss_case(discrete)
    total, metrics = quick_jit(lambda p, b: ppo.loss(p, b, linear, critic, config))(params, batch)
    p, b = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, batch))
    head = b.obs @ p.actor
    if discrete:
        probs = np.exp(head) / np.exp(head).sum(-1, keepdims=True)
        log_prob = np.log(probs[np.arange(len(head)), b.action.astype(int)])
        entropy = -(probs * np.log(probs)).sum(-1)
    else:
        std = np.exp(p.log_std)
        log_prob = (
            -0.5 * ((b.action - head) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
        ).sum(-1)
        entropy = np.full(len(head), (0.5 * np.log(2 * np.pi * np.e) + np.log(std)).sum())
    ratio = np.exp(log_prob - b.log_prob)
    advantage = (b.advantage - b.advantage.mean()) / b.advantage.std()
    surrogate = [
        min(r * a, min(max(r, 0.85), 1.15) * a) for r, a in zip(ratio, advantage, strict=True)
    ]
    policy = -np.mean(surrogate)
    value = 0.5 * np.mean(((b.obs @ p.critic)[:, 0] - b.target) ** 2)
    kl = np.mean(ratio - 1 - np.log(ratio))
    clipped = np.mean((ratio < 0.85) | (ratio > 1.15))
    assert 0.1 < clipped < 0.9
    np.testing.assert_allclose(total, policy + 0.7 * value - 0.03 * entropy.mean(), rtol=1e-4)
    expected = {
        "loss/policy": policy,
        "loss/value": value,
        "train/entropy": entropy.mean(),
        "train/kl": kl,
        "train/clip_fraction": clipped,
    }
    assert set(metrics) == set(expected)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-5)


def test_clipped_samples_have_no_gradient():
    params, batch, _ = loss_case(True)
    config = ppo.Config(clip_eps=0.2, entropy_coef=0.0, value_coef=0.0)
    log_prob = ppo.distribution(batch.obs @ params.actor, None).log_prob(batch.action)
    sign = np.where(np.arange(len(log_prob)) % 2 == 0, 1.0, -1.0).astype(np.float32)
    slope = quick_jit(jax.grad(lambda p, b: ppo.loss(p, b, linear, critic, config)[0]))

    def gradient(log_ratio):
        moved = batch._replace(advantage=sign, log_prob=log_prob - log_ratio)
        return np.abs(slope(params, moved).actor).max()

    assert gradient(0.5 * sign) == 0.0  # beyond the range, where the advantage would drive it on
    assert gradient(-0.5 * sign) > 1e-3  # beyond the range on the wrong side: pulled back
    assert gradient(0.05 * sign) > 1e-3


# ---- probe environments --------------------------------------------------------------------------

TINY = ppo.Config(
    total_steps=100 * 128,
    num_envs=8,
    num_steps=16,
    num_epochs=4,
    num_minibatches=2,
    hidden=(16,),
    learning_rate=0.02,
    discount=GAMMA,
    entropy_coef=0.0,
)


OBS = jnp.array([[-1.0], [0.0], [1.0]])


def values(learned, member):
    """The critic's at observations -1, 0 and 1."""
    params = jax.tree.map(lambda x: x[member], learned.state.params.critic)
    return np.asarray(ppo.TanhMLP(TINY.hidden, 1, 1.0).apply(params, OBS))[:, 0]


@pytest.fixture(scope="module")
def discrete():
    return learn(ppo.make, TINY, [*PROBES, "probe-time-limit naive"])


@pytest.fixture(scope="module")
def continuous():
    return learn(ppo.make, TINY, [*PROBES], continuous=True)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_values_of_the_probes(kind, request):
    learned = request.getfixturevalue(kind)
    one_step, two_step, obs, action, limit = (values(learned, i) for i in range(5))
    np.testing.assert_allclose(one_step[1], 1.0, atol=0.05)
    np.testing.assert_allclose(two_step[1:], [GAMMA, 1.0], atol=0.05)
    np.testing.assert_allclose(obs[[0, 2]], [-1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(limit[1], 1 / (1 - GAMMA), rtol=0.05)
    if kind == "discrete":
        np.testing.assert_allclose(action[[0, 2]], [1.0, 1.0], atol=0.1)


def test_actions_follow_the_reward(discrete, continuous):
    assert discrete.actions[3, [0, 2]].tolist() == [0, 1]
    np.testing.assert_allclose(continuous.actions[3, [0, 2], 0], [-0.5, 0.5], atol=0.2)


def test_time_limit_taken_as_the_end_is_missed(discrete):
    assert values(discrete, 5)[1] < 0.5 / (1 - GAMMA)


# ---- the rest of make ----------------------------------------------------------------------------


def test_learning_rate_falls_linearly_to_zero():
    env, calls = rlzoo.make("probe-one-step"), 1000
    config = dataclasses.replace(
        TINY, total_steps=calls * 16, num_envs=2, num_steps=8, num_epochs=1, num_minibatches=1
    )

    def set_count(opt_state, count):
        """With `count` updates made, as far as the learning rate is concerned."""
        counts = optax.ScaleByScheduleState
        return jax.tree.map(
            lambda x: counts(jnp.int32(count)) if isinstance(x, counts) else x,
            opt_state,
            is_leaf=lambda x: isinstance(x, counts),
        )

    @quick_jit
    def falling(t):
        """How far one call at t moves a parameter: from the same state Adam's direction is the
        same."""
        alg = ppo.make(config, env)
        state = alg.init(jax.random.key(0))
        state = state.replace(opt_state=set_count(state.opt_state, t))
        bias = lambda state: state.params.critic["params"]["Linear_0"]["bias"]
        return bias(alg.step(state, t)[0]) - bias(state)

    np.testing.assert_allclose(np.abs(falling(0)), config.learning_rate, rtol=1e-3)
    np.testing.assert_allclose(falling(500), falling(0) / 2, rtol=1e-3)
    np.testing.assert_allclose(falling(992), falling(0) * 0.008, rtol=1e-3)
    np.testing.assert_allclose(falling(1000), 0.0, atol=1e-8)


def test_normalization():
    config = dataclasses.replace(
        TINY, total_steps=40 * 128, normalize_obs=True, normalize_reward=True
    )
    learned = learn(ppo.make, config, ["probe-action"])
    assert (
        learned.state.stats.count[0] == 40 * 128
        and learned.state.reward_scale.stats.count[0] == 40 * 128
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    assert learned.actions[0, [0, 2]].tolist() == [0, 1]
    alg = ppo.make(config, rlzoo.make("probe-action"))
    policy = alg.policy(jax.tree.map(lambda x: x[0], learned.state))
    shifted = policy._replace(
        stats=RunningStats(jnp.array([5.0]), jnp.array([4.0]), jnp.float32(9))
    )
    actions = [alg.act(shifted, jnp.array([obs]), None).item() for obs in (3.0, 7.0)]
    assert actions == [0, 1]  # the statistics move where the policy switches
    assert alg.act(policy, jnp.array([3.0]), None) == 1


def test_images_are_learned_from():
    env = rlzoo.make("Breakout-MinAtar")
    alg = ppo.make(dataclasses.replace(TINY, total_steps=256), env)
    assert len(env.obs_shape) == 3
    state, _ = jax.eval_shape(lambda key: alg.step(alg.init(key), 0), jax.random.key(0))
    action = jax.eval_shape(
        lambda s: alg.act(alg.policy(s), jnp.zeros(env.obs_shape, env.obs_dtype), None), state
    )
    assert action.shape == ()


def test_minibatches_must_divide_the_rollout():
    with pytest.raises(
        rlzoo.Refused, match="num_minibatches=3 does not divide num_envs \\* num_steps = 128"
    ):
        ppo.make(dataclasses.replace(TINY, num_minibatches=3), rlzoo.make("probe-one-step"))


def test_done_is_either():
    flags = jnp.array([True, False, False]), jnp.array([False, True, False])
    assert done(Transition(None, None, None, *flags, None)).tolist() == [True, True, False]
