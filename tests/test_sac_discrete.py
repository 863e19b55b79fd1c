"""SAC for discrete actions: its losses against NumPy, its values on probe environments whose values
are known."""

import dataclasses
import itertools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES
from rlzoo.algorithms import sac_discrete as sac
from together import learn, quick_jit

import rlzoo
from rlzoo.algorithm import clean
from rlzoo.env import Transition
from rlzoo.replay import Sample

GAMMA = 0.9


# ---- losses --------------------------------------------------------------------------------------


def linear_actor(params, obs):
    return distrax.Categorical(obs @ params)


def linear_critics(params, obs):
    return jnp.einsum("kia,bi->kba", params, obs)


@pytest.fixture(scope="module")
def case():
    """Parameters, target critics, and a batch of 40."""
    rng = np.random.default_rng(0)
    n = 40
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = sac.Params(f(4, 3), f(2, 4, 3), np.log(np.float32(0.3)))
    terminated = rng.random(n) < 0.3
    truncated = ~terminated & (rng.random(n) < 0.3)
    batch = Transition(f(n, 4), rng.integers(0, 3, n), f(n), terminated, truncated, f(n, 4))
    sample = Sample(batch, np.full(n, GAMMA, np.float32), None, None)
    return jax.tree.map(jnp.asarray, (params, f(2, 4, 3), sample))


def probabilities(params, obs):
    head = np.asarray(obs, np.float64) @ np.asarray(params)
    return np.exp(head) / np.exp(head).sum(-1, keepdims=True)


def test_target_is_the_numpy_reference(case):
    params, target_critics, sample = case
    batch = sample.batch
    target = quick_jit(lambda p, t, s: sac.td_target(p, t, s, linear_actor, linear_critics))
    found = np.asarray(target(*case))
    probs = probabilities(params.actor, batch.next_obs)
    value = np.einsum("kia,bi->kba", target_critics, batch.next_obs).min(0)
    soft = (probs * (value - 0.3 * np.log(probs))).sum(-1)
    expected = batch.reward + np.where(batch.terminated, 0.0, GAMMA * soft)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # A time limit does not mask the bootstrap.
    assert np.abs(found - batch.reward)[batch.truncated].min() > 1e-3


def test_critic_loss_is_the_numpy_reference(case):
    params, _, sample = case
    batch = sample.batch
    target = batch.reward
    loss, metrics = quick_jit(lambda p, b, t: sac.critic_loss(p, b, t, linear_critics))(
        params.critics, batch, target
    )
    value = np.einsum("kia,bi->kba", params.critics, batch.obs)
    value = value[:, np.arange(40), batch.action]
    np.testing.assert_allclose(loss, sum(np.mean((v - target) ** 2) for v in value), rtol=1e-4)
    np.testing.assert_allclose(metrics["train/q"], value.mean(), rtol=1e-4, atol=1e-5)
    assert set(metrics) == {"loss/critic", "train/q"} and metrics["loss/critic"] == loss


def test_actor_loss_is_exact(case):
    params, _, sample = case
    batch = sample.batch

    @quick_jit
    def slopes(actor):
        loss = jax.value_and_grad(sac.actor_loss, has_aux=True)
        return loss(actor, params.critics, params.log_alpha, batch, linear_actor, linear_critics)

    (loss, metrics), slope = slopes(params.actor)
    probs = probabilities(params.actor, batch.obs)
    entropy = -(probs * np.log(probs)).sum(-1).mean()
    value = np.einsum("kia,bi->kba", params.critics, batch.obs).min(0)
    expected = -((probs * value).sum(-1).mean() + 0.3 * entropy)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["train/entropy"], entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/alpha"], 0.3, rtol=1e-5)
    assert np.abs(slope).max() > 1e-2


def test_the_best_policy_is_the_softmax_of_the_values():
    """There the gradient vanishes: logits of Q / alpha."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, 5, 3)).astype(np.float32)
    objective = lambda head: sac.soft_value(distrax.Categorical(head), value, 0.3).sum()
    slope = jax.grad(objective)
    best = jnp.asarray(value.min(0) / 0.3)
    other = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    assert np.abs(slope(best)).max() < 1e-5 < 1e-2 < np.abs(slope(other)).max()


def test_temperature_loss():
    slope = jax.grad(sac.alpha_loss, has_aux=True)
    # Low entropy: it rises.
    assert slope(0.0, 0.2, 0.5)[0] < 0 < slope(0.0, 0.8, 0.5)[0]
    np.testing.assert_allclose(slope(jnp.log(2.0), 0.8, 0.5)[0], 2 * 0.3, rtol=1e-5)


# ---- schedules -----------------------------------------------------------------------------------

SMALL = sac.Config(
    total_steps=60,
    num_envs=2,
    hidden=(8,),
    batch_size=8,
    learning_starts=6,
    learning_rate=0.01,
    tau=0.1,
)


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("tune", [True, False])
def test_schedule(tune):
    config = dataclasses.replace(SMALL, tune_alpha=tune, alpha=0.2)
    alg = sac.make(config, rlzoo.make("probe-action"))
    states, step = [quick_jit(alg.init)(jax.random.key(0))], quick_jit(alg.step)
    for t in range(6):
        state, metrics = step(states[-1], t)
        states.append(state)
        assert ("loss/alpha" in metrics) == tune
        for name in ("loss/critic", "loss/actor", "train/alpha", "train/entropy", "train/q"):
            assert metrics[name][1] == (t >= 3)
    np.testing.assert_allclose(np.exp(states[0].params.log_alpha), 0.2, rtol=1e-5)
    for t, (before, after) in enumerate(itertools.pairwise(states)):
        assert equal(before.params[:2], after.params[:2]) != (t >= 3)
        assert equal(before.params.log_alpha, after.params.log_alpha) == (t < 3 or not tune)
        if t >= 3:
            mixed = jax.tree.map(
                lambda old, new: 0.9 * old + 0.1 * new, before.target_params, after.params.critics
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                after.target_params,
                mixed,
            )
    assert set(np.unique(states[-1].buffer.data.action[:12])) == {0, 1}


# ---- probe environments --------------------------------------------------------------------------

TINY = sac.Config(
    total_steps=2400 * 4,
    num_envs=4,
    hidden=(16,),
    batch_size=32,
    learning_starts=64,
    learning_rate=0.01,
    discount=GAMMA,
    tau=0.2,
    tune_alpha=False,
    alpha=0.01,
)
OBS = jnp.array([[-1.0], [0.0], [1.0]])


def test_values_of_the_probes():
    learned = learn(sac.make, TINY, [*PROBES, "probe-time-limit naive"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    net = sac.MLP(TINY.hidden, 2)
    q = jax.vmap(jax.vmap(net.apply, (0, None)), (0, None))(learned.state.params.critics, OBS)
    taken = jnp.take_along_axis(q.mean(1), learned.actions[..., None], -1)[..., 0]
    # Each at observations -1, 0, 1.
    one_step, two_step, of_obs, action, limit, naive = np.asarray(taken)
    np.testing.assert_allclose(one_step[1], 1.0, atol=0.05)
    np.testing.assert_allclose(two_step[1:], [GAMMA, 1.0], atol=0.05)
    np.testing.assert_allclose(of_obs[[0, 2]], [-1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(action[[0, 2]], [1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(limit[1], 1 / (1 - GAMMA), rtol=0.1)
    assert naive[1] < 0.5 / (1 - GAMMA)  # the bug this guards against
    assert learned.actions[3, [0, 2]].tolist() == [0, 1]


def test_temperature_holds_the_entropy_at_its_target():
    """Where all actions are alike, the policy's entropy goes to the target, and not to its largest
    value."""
    config = dataclasses.replace(
        TINY, tune_alpha=True, alpha=0.05, target_entropy_scale=0.8, total_steps=1500 * 4
    )
    learned = learn(sac.make, config, ["probe-action"])
    found = float(np.mean(learned.metrics["train/entropy"].value[-300:, 0]))
    assert abs(found - 0.8 * np.log(2)) < 0.15, found


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match="batch_size=100 is more than the 60 transitions"):
        sac.make(dataclasses.replace(SMALL, batch_size=100), rlzoo.make("probe-action"))
    with pytest.raises(rlzoo.Refused, match="continuous actions"):
        sac.make(SMALL, rlzoo.make("probe-action-continuous"))


@pytest.mark.parametrize("name", ["learning_starts", "updates_per_step"])
def test_bounds_of_fields(name):
    with pytest.raises(rlzoo.Refused, match=f"{name} is 0; it must be at least 1"):
        clean(dataclasses.replace(SMALL, **{name: 0}))
