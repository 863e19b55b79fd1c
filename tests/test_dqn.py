"""DQN: its loss against NumPy, its schedules, its values on probe environments whose values are
known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES
from rlzoo.algorithms import dqn
from together import learn, quick_jit

import rlzoo
from rlzoo.env import Transition
from rlzoo.replay import Sample

GAMMA = 0.9


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_numpy_reference(double, n_step, weighted):
    rng = np.random.default_rng(0)
    n = 40
    params, target_params = rng.normal(size=(2, 4, 3)).astype(np.float32)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    action, reward = rng.integers(0, 3, n), rng.normal(size=n).astype(np.float32)
    terminated, truncated = rng.random((2, n)) < 0.3
    discount = (GAMMA ** rng.integers(1, n_step + 1, n)).astype(np.float32)
    weight = (rng.random(n) if weighted else np.ones(n)).astype(np.float32)
    sample = Sample(
        Transition(obs, action, reward, terminated, truncated, next_obs), discount, None, weight
    )
    loss = lambda p, t, s: dqn.td_loss(p, t, s, lambda p, o: o @ p, dqn.Config(double=double))
    differentiated = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (found, metrics), (grad, target_grad) = differentiated(params, target_params, sample)
    error, value = metrics["error"], metrics["train/q"]

    expected, gradient = np.zeros(n), np.zeros((4, 3))
    for i in range(n):
        judge = next_obs[i] @ target_params
        best = np.argmax(next_obs[i] @ params) if double else np.argmax(judge)
        target = reward[i] + (0 if terminated[i] else discount[i] * judge[best])
        expected[i] = (obs[i] @ params)[action[i]] - target
        gradient[:, action[i]] += 2 * weight[i] * expected[i] * obs[i] / n
    np.testing.assert_allclose(error, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, (weight * expected**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(value, (obs @ params)[np.arange(n), action].mean(), rtol=1e-4)
    np.testing.assert_allclose(
        grad, gradient, rtol=1e-3, atol=1e-5
    )  # none flows through the target
    assert not np.any(target_grad)
    masked = error + np.where(
        truncated & ~terminated, discount * (next_obs @ target_params).max(-1), 0
    )
    assert (
        np.abs(masked - expected).max() > 0.1
    )  # masking with truncated as well would be another loss


# ---- schedules -----------------------------------------------------------------------------------

SMALL = dqn.Config(
    total_steps=80,
    num_envs=4,
    hidden=(8,),
    buffer_size=80,
    batch_size=8,
    learning_starts=20,
    target_every=12,
    learning_rate=0.01,
)


@pytest.fixture(scope="module")
def step():
    env = rlzoo.make("probe-obs")
    init = quick_jit(lambda config, key: dqn.make(config, env).init(key))
    step = quick_jit(lambda config, state, t: dqn.make(config, env).step(state, t))

    def run(config, calls):
        states, metrics = [init(config, jax.random.key(0))], []
        for t in range(calls):
            state, metric = step(config, states[-1], t)
            states.append(state)
            metrics.append(jax.tree.map(np.asarray, metric))
        return states, metrics

    return run


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_updates_start_with_learning_and_targets_are_copied_on_time(step):
    states, metrics = step(SMALL, 14)
    for t, (before, after) in enumerate(itertools.pairwise(states)):
        learning = t >= 5  # 20 steps of 4 environments
        assert equal(before.params, after.params) != learning
        assert equal(before.opt_state, after.opt_state) != learning
        assert metrics[t]["loss/td"].count == learning
        assert metrics[t]["train/q"].count == learning
        assert equal(after.target_params, after.params if t % 3 == 0 else before.target_params)
        assert after.buffer.size == 4 * (t + 1)
    assert not equal(states[-1].params, states[-1].target_params)


@pytest.mark.parametrize("fraction", [0.5, 1.0, 0.0])
def test_epsilon_falls_linearly(step, fraction):
    config = dataclasses.replace(
        SMALL, epsilon_start=0.9, epsilon_end=0.1, epsilon_fraction=fraction
    )
    _, metrics = step(config, 14)
    share = np.minimum(np.arange(14) / max(20 * fraction, 1e-6), 1.0)
    np.testing.assert_allclose([m["train/epsilon"] for m in metrics], 0.9 - 0.8 * share, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_epsilon_is_the_share_of_random_actions(step, epsilon):
    states, _ = step(dataclasses.replace(SMALL, epsilon_start=epsilon, epsilon_end=epsilon), 5)
    rows = jax.tree.map(lambda x: np.asarray(x[:20]), states[-1].buffer.data)
    greedy = dqn.QNetwork(SMALL.hidden, 2).apply(states[0].params, rows.obs).argmax(-1)
    assert np.array_equal(rows.action, greedy) == (epsilon == 0.0)
    assert set(rows.action) == {0, 1} or epsilon == 0.0


def test_members_do_not_compute_updates_before_learning_starts(monkeypatch):
    count, real = [], dqn.td_loss

    def counted(*args):
        jax.debug.callback(lambda _: count.append(1), args[0]["params"]["Dense_0"]["bias"])
        return real(*args)

    monkeypatch.setattr(dqn, "td_loss", counted)
    alg = dqn.make(SMALL, rlzoo.make("probe-obs"))
    states = quick_jit(jax.vmap(alg.init))(jax.random.split(jax.random.key(0), 3))
    steps = jax.vmap(alg.step, in_axes=(0, None))
    step = quick_jit(steps)
    for t in range(8):
        states, _ = step(states, t)
    jax.effects_barrier()
    assert len(count) == 3 * 3  # calls 5, 6 and 7 of 3 members

    branches = lambda steps, t: str(jax.make_jaxpr(steps)(states, t)).count(" cond[")
    assert branches(steps, jnp.int32(0)) >= 2
    assert (
        branches(jax.vmap(alg.step), jnp.zeros(3, jnp.int32)) == 0
    )  # a t of its own for each member: selects


# ---- probe environments --------------------------------------------------------------------------

TINY = dqn.Config(
    total_steps=1000 * 8,
    num_envs=8,
    hidden=(16,),
    buffer_size=800,
    batch_size=32,
    learning_starts=64,
    target_every=64,
    learning_rate=0.03,
    discount=GAMMA,
    epsilon_end=0.5,
)
VARIANTS = {
    "plain": {},
    "double": {"double": True},
    "3-step": {"n_step": 3},
    "prioritized": {"prioritized": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_of_the_probes(variant):
    config = dataclasses.replace(TINY, **VARIANTS[variant])
    learned = learn(dqn.make, config, [*PROBES, "probe-time-limit naive"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    net = dqn.QNetwork(TINY.hidden, 2)
    q = np.asarray(
        jax.vmap(net.apply, (0, None))(learned.state.params, jnp.array([[-1.0], [0.0], [1.0]]))
    )
    one_step, two_step, obs, action, limit, naive = q  # [obs -1, 0, 1; action]
    np.testing.assert_allclose(one_step[1], 1.0, atol=0.05)
    np.testing.assert_allclose(two_step[1], GAMMA, atol=0.05)
    np.testing.assert_allclose(two_step[2], 1.0, atol=0.05)
    np.testing.assert_allclose(obs[[0, 2]], [[-1, -1], [1, 1]], atol=0.1)
    np.testing.assert_allclose(action[[0, 2]], [[1, -1], [-1, 1]], atol=0.1)
    assert learned.actions[3, [0, 2]].tolist() == [0, 1]
    np.testing.assert_allclose(limit[1], 1 / (1 - GAMMA), rtol=0.1)
    assert naive[1].min() > 2.0 and naive[1].max() < 0.5 / (
        1 - GAMMA
    )  # the bug this guards against
    if variant == "prioritized":
        tree = np.asarray(learned.state.buffer.tree[0])[3, :800]
        assert (tree > 0).all() and len(np.unique(tree)) > 100  # the priorities follow the errors
        assert np.median(tree) < 0.5 * learned.state.buffer.max_priority[3]


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        ("probe-obs", {"batch_size": 100}, "batch_size=100 is more than buffer_size=80"),
        ("probe-obs-continuous", {}, "continuous actions"),
        ("probe-obs", {"learning_starts": 3}, "learning_starts=3 .* n_step \\* num_envs = 4"),
        ("probe-obs", {"learning_starts": 11, "n_step": 3}, "n_step \\* num_envs = 12"),
        ("probe-obs", {"buffer_size": 81}, "capacity=81 is not a multiple of num_envs=4"),
    ],
)
def test_bad_input_is_refused(env, fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        dqn.make(dataclasses.replace(SMALL, **fields), rlzoo.make(env))
