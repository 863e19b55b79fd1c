"""TD3: its losses against NumPy, its schedules, its values on probe environments whose values are
known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES
from rlzoo.algorithms import td3
from together import learn, quick_jit

import rlzoo
from rlzoo.algorithm import clean
from rlzoo.env import Transition
from rlzoo.replay import Sample

GAMMA = 0.9


# ---- losses --------------------------------------------------------------------------------------


def linear_actor(params, obs):
    return jnp.tanh(obs @ params)


def linear_critics(params, obs, action):
    return jnp.einsum("ki,bi->kb", params, jnp.concatenate([obs, action], -1))


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    n = 40
    params = td3.Params(rng.normal(size=(4, 2)), rng.normal(size=(2, 6)))
    obs, next_obs = rng.normal(size=(2, n, 4))
    terminated, truncated = rng.random((2, n)) < 0.3
    batch = Transition(
        obs, rng.uniform(-1, 1, (n, 2)), rng.normal(size=n), terminated, truncated, next_obs
    )
    case = params, Sample(batch, np.full(n, GAMMA), None, None), 2 * rng.normal(size=(n, 2))
    return jax.tree.map(
        lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype == float else x, case
    )


def test_target_is_the_numpy_reference(case):
    params, sample, noise = case
    batch = sample.batch
    config = td3.Config(target_noise=0.4, target_noise_clip=0.3)
    found = quick_jit(lambda p, s, n: td3.td_target(p, s, n, linear_actor, linear_critics, config))(
        *case
    )
    expected, unclipped = np.zeros((2, len(noise)))
    for i in range(len(noise)):
        for out, limit in ((expected, 0.3), (unclipped, np.inf)):
            action = np.tanh(batch.next_obs[i] @ params.actor) + np.clip(
                0.4 * noise[i], -limit, limit
            )
            pair = np.concatenate([batch.next_obs[i], np.clip(action, -1, 1)])
            value = min(params.critics[0] @ pair, params.critics[1] @ pair)
            out[i] = batch.reward[i] + (0.0 if batch.terminated[i] else GAMMA * value)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - unclipped).max() > 0.1
    cut = batch.truncated & ~batch.terminated
    assert (
        np.abs(expected - batch.reward)[cut].min() > 1e-3
    )  # a time limit does not mask the bootstrap


def test_losses_are_the_numpy_reference(case):
    params, sample, _ = case
    batch, target = sample.batch, sample.batch.reward
    pair = np.concatenate([batch.obs, batch.action], -1)
    value = params.critics @ pair.T
    loss, metrics = quick_jit(lambda p, b, t: td3.critic_loss(p, b, t, linear_critics))(
        params.critics, batch, target
    )
    assert set(metrics) == {"loss/critic", "train/q"} and metrics["loss/critic"] == loss
    np.testing.assert_allclose(loss, sum(np.mean((v - target) ** 2) for v in value), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/q"], value.mean(), rtol=1e-4)

    objective = lambda actor, critics: td3.actor_loss(
        actor, critics, batch, linear_actor, linear_critics
    )
    slopes = quick_jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (loss, metrics), (grad, critic_grad) = slopes(*params)
    assert metrics == {"loss/actor": loss}
    action = np.tanh(batch.obs @ params.actor)
    np.testing.assert_allclose(
        loss, -np.mean(np.concatenate([batch.obs, action], -1) @ params.critics[0]), rtol=1e-4
    )
    slope = (1 - action**2) * params.critics[0, 4:]
    np.testing.assert_allclose(grad, -batch.obs.T @ slope / len(slope), rtol=1e-3, atol=1e-5)
    assert not critic_grad[1].any(), "the second critic has no part in it"


# ---- schedules -----------------------------------------------------------------------------------

SMALL = td3.Config(
    total_steps=60,
    num_envs=2,
    hidden=(8,),
    batch_size=8,
    learning_starts=6,
    learning_rate=0.01,
    tau=0.1,
)


@pytest.fixture(scope="module")
def step():
    env = rlzoo.make("probe-action-continuous")

    def run(config, calls):
        init = quick_jit(td3.make(config, env).init)
        step = quick_jit(lambda config, state, t: td3.make(config, env).step(state, t))
        states, metrics = [init(jax.random.key(0))], []
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


def test_critics_learn_at_every_update_and_the_rest_with_delay(step):
    states, metrics = step(dataclasses.replace(SMALL, policy_delay=3), 12)
    for t, (before, after) in enumerate(itertools.pairwise(states)):
        learning, moving = t >= 3, t >= 3 and t % 3 == 0
        assert equal(before.params.critics, after.params.critics) != learning
        assert equal(before.opt_states.critics, after.opt_states.critics) != learning
        assert equal(before.opt_states.actor, after.opt_states.actor) != moving
        assert equal(before.target_params, after.target_params) != moving
        assert equal(before.params.actor, after.params.actor) != moving
        assert (
            metrics[t]["loss/critic"][1] == metrics[t]["train/q"][1] == learning
            and metrics[t]["loss/actor"][1] == moving
        )
        if moving:
            mixed = jax.tree.map(
                lambda old, new: 0.9 * old + 0.1 * new, before.target_params, after.params
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                after.target_params,
                mixed,
            )


def test_several_updates_a_step(step):
    _, metrics = step(dataclasses.replace(SMALL, updates_per_step=5), 6)
    assert [int(m["loss/critic"][1]) for m in metrics] == [0, 0, 0, 5, 5, 5]
    assert [int(m["loss/actor"][1]) for m in metrics] == [
        0,
        0,
        0,
        2,
        3,
        2,
    ]  # updates 16, 18; 20, 22, 24; 26, 28


def test_exploration(step):
    quiet = dataclasses.replace(SMALL, exploration_noise=0.0, learning_rate=0.0)
    states, _ = step(quiet, 20)
    rows = jax.tree.map(lambda x: np.asarray(x[:40]), states[-1].buffer.data)
    greedy = np.tanh(td3.MLP(SMALL.hidden, 1).apply(states[0].params.actor, rows.obs))
    assert np.abs(rows.action[:6] - greedy[:6]).max() > 0.2, "random actions at first"
    np.testing.assert_allclose(rows.action[6:], greedy[6:], atol=1e-5)
    loud, _ = step(dataclasses.replace(quiet, exploration_noise=0.1), 20)
    noise = np.asarray(loud[-1].buffer.data.action[6:40]) - np.clip(greedy[6:], -1, 1)
    assert 0.05 < noise.std() < 0.15
    assert np.abs(loud[-1].buffer.data.action).max() <= 1.0


def test_members_do_not_compute_what_is_not_due(monkeypatch):
    """Neither updates before learning starts, nor policy updates between the delayed ones."""
    count = {"critic": 0, "actor": 0}

    def counted(name, real):
        def loss(*args):
            jax.debug.callback(
                lambda _: count.update({name: count[name] + 1}), jax.tree.leaves(args[0])[0].sum()
            )
            return real(*args)

        return loss

    monkeypatch.setattr(td3, "critic_loss", counted("critic", td3.critic_loss))
    monkeypatch.setattr(td3, "actor_loss", counted("actor", td3.actor_loss))
    alg = td3.make(SMALL, rlzoo.make("probe-action-continuous"))
    states = quick_jit(jax.vmap(alg.init))(jax.random.split(jax.random.key(0), 3))
    step = quick_jit(jax.vmap(alg.step, in_axes=(0, None)))
    for t in range(9):
        states, _ = step(states, t)
    jax.effects_barrier()
    assert count == {"critic": 3 * 6, "actor": 3 * 3}  # calls 3 to 8, and of them 4, 6 and 8


# ---- probe environments --------------------------------------------------------------------------

TINY = td3.Config(
    total_steps=800 * 4,
    num_envs=4,
    hidden=(16,),
    batch_size=32,
    learning_starts=64,
    learning_rate=0.01,
    discount=GAMMA,
    tau=0.2,
    exploration_noise=0.3,
)


def test_values_of_the_probes():
    learned = learn(td3.make, TINY, [*PROBES, "probe-time-limit naive"], continuous=True)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    net, obs = td3.MLP(TINY.hidden, 1), jnp.array([[-1.0], [0.0], [1.0]])
    pairs = jnp.concatenate([jnp.broadcast_to(obs, (6, 3, 1)), learned.actions], -1)
    q = np.asarray(jax.vmap(jax.vmap(net.apply, (0, None)))(learned.state.params.critics, pairs))[
        ..., 0
    ].mean(1)
    one_step, two_step, of_obs, action, limit, naive = q  # each at observations -1, 0, 1
    np.testing.assert_allclose(one_step[1], 1.0, atol=0.05)
    np.testing.assert_allclose(two_step[1:], [GAMMA, 1.0], atol=0.05)
    np.testing.assert_allclose(of_obs[[0, 2]], [-1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(action[[0, 2]], [1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(learned.actions[3, [0, 2], 0], [-0.5, 0.5], atol=0.2)
    np.testing.assert_allclose(limit[1], 1 / (1 - GAMMA), rtol=0.1)
    assert naive[1] < 0.5 / (1 - GAMMA)  # the bug this guards against


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        (
            "probe-action-continuous",
            {"batch_size": 100},
            "batch_size=100 is more than the 60 transitions",
        ),
        (
            "probe-action-continuous",
            {"buffer_size": 6},
            "batch_size=8 is more than the 6 transitions",
        ),
        ("probe-action", {}, "discrete actions"),
    ],
)
def test_bad_input_is_refused(env, fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        td3.make(dataclasses.replace(SMALL, **fields), rlzoo.make(env))


@pytest.mark.parametrize("name", ["learning_starts", "updates_per_step", "policy_delay"])
def test_bounds_of_fields(name):
    with pytest.raises(rlzoo.Refused, match=f"{name} is 0; it must be at least 1"):
        clean(dataclasses.replace(SMALL, **{name: 0}))
