"""SAC: its densities and losses against NumPy and distrax, its values on probe environments whose
values are known."""

import dataclasses
import itertools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES
from rlzoo.algorithms import sac
from together import learn, quick_jit

import rlzoo

GAMMA = 0.9


# ---- losses --------------------------------------------------------------------------------------


def test_density_of_squashed_actions():
    rng = np.random.default_rng(0)
    head, noise = (rng.uniform(-1.5, 1.5, (50, k)).astype(np.float32) for k in (6, 3))
    action, log_prob = quick_jit(sac.squashed)(head, noise)
    normal = distrax.MultivariateNormalDiag(head[:, :3], np.exp(head[:, 3:]))
    oracle = distrax.Transformed(normal, distrax.Block(distrax.Tanh(), 1))
    u = head[:, :3] + np.exp(head[:, 3:]) * noise
    np.testing.assert_allclose(action, np.tanh(u), rtol=1e-5, atol=1e-6)
    keep = np.abs(u).max(-1) < 3  # further out the oracle's inverse of tanh loses digits
    assert keep.sum() > 20
    np.testing.assert_allclose(log_prob[keep], oracle.log_prob(action)[keep], rtol=1e-2, atol=1e-2)
    exact = (
        -0.5 * noise.astype(float) ** 2
        - head[:, 3:]
        - 0.5 * np.log(2 * np.pi)
        - 2 * np.log(1 / np.cosh(u))
    ).sum(-1)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-4, atol=1e-4)


def test_density_far_out_is_finite_where_the_plain_form_is_not():
    head, noise = jnp.array([30.0, 5.0]), jnp.array([1.0])
    action, log_prob = sac.squashed(head, noise)
    slope = jax.grad(lambda h: sac.squashed(h, noise)[1])(head)
    assert np.isfinite(log_prob) and np.isfinite(slope).all() and action == 1.0
    assert np.isinf(jnp.log(1 - action**2)).all()  # what this guards against
    normal = -0.5 - 2.0 - 0.5 * np.log(2 * np.pi)  # its log_std is clipped to 2
    np.testing.assert_allclose(log_prob, normal + 2 * (30 + np.exp(2.0) - np.log(2)), rtol=1e-5)


def test_soft_value_of_discrete_actions_is_exact():
    rng = np.random.default_rng(0)
    head, q = (
        rng.normal(size=(5, 3)).astype(np.float32),
        rng.normal(size=(2, 5, 3)).astype(np.float32),
    )
    value, entropy = quick_jit(lambda h, q: sac.soft_value(h, None, 0.3, lambda action: q))(head, q)
    probs = np.exp(head) / np.exp(head).sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy, -(probs * np.log(probs)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(
        value, (probs * q.min(0)).sum(-1) + 0.3 * entropy, rtol=1e-4, atol=1e-5
    )
    best = (
        q.min(0) / 0.3
    )  # the policy that maximises it is the softmax of Q / alpha; there the gradient vanishes
    slope = jax.grad(lambda h: sac.soft_value(h, None, 0.3, lambda action: q)[0].sum())
    assert (
        np.abs(slope(jnp.asarray(best))).max()
        < 1e-5
        < 1e-2
        < np.abs(slope(jnp.asarray(head))).max()
    )


def test_soft_value_of_continuous_actions_is_an_estimate_of_the_integral():
    head = jnp.array([0.4, -0.7])
    noise = jax.random.normal(jax.random.key(0), (100_000, 1))
    value, entropy = sac.soft_value(
        jnp.broadcast_to(head, (100_000, 2)),
        noise,
        0.5,
        lambda a: jnp.stack([3 * a[:, 0], 1 - a[:, 0] ** 2]),
    )
    u = np.linspace(-4, 5, 20_001)
    density = np.exp(-0.5 * ((u - 0.4) / np.exp(-0.7)) ** 2) / (np.exp(-0.7) * np.sqrt(2 * np.pi))
    a = np.tanh(u)
    minus_log = -(np.log(density) - np.log(1 - a**2))
    expect = lambda x: float((density * x).sum() * (u[1] - u[0]))
    np.testing.assert_allclose(entropy.mean(), expect(minus_log), atol=0.02)
    np.testing.assert_allclose(
        value.mean(), expect(np.minimum(3 * a, 1 - a**2) + 0.5 * minus_log), atol=0.03
    )


def test_critic_and_temperature_losses():
    value, target = np.array([[1.0, 2.0], [0.0, 5.0]]), np.array([1.5, 3.0])
    np.testing.assert_allclose(sac.critic_loss(value, target), (0.25 + 1.0 + 2.25 + 4.0) / 2)
    slope = jax.grad(sac.alpha_loss)
    assert (
        slope(0.0, jnp.array([0.1, 0.3]), 0.5) < 0 < slope(0.0, jnp.array([0.9, 0.7]), 0.5)
    )  # low entropy: it rises
    np.testing.assert_allclose(slope(jnp.log(2.0), jnp.array([0.9, 0.7]), 0.5), 2 * 0.3, rtol=1e-5)


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
    alg = sac.make(
        dataclasses.replace(SMALL, tune_alpha=tune, alpha=0.2),
        rlzoo.make("probe-action-continuous"),
    )
    states, step = [quick_jit(alg.init)(jax.random.key(0))], quick_jit(alg.step)
    for t in range(6):
        state, metrics = step(states[-1], t)
        states.append(state)
        learning = t >= 3
        assert all(
            metrics[name][1] == learning
            for name in ("loss/critic", "loss/actor", "alpha", "entropy", "q")
        )
    np.testing.assert_allclose(np.exp(states[0].params.log_alpha), 0.2, rtol=1e-5)
    for t, (before, after) in enumerate(itertools.pairwise(states)):
        assert equal(before.params[:2], after.params[:2]) != (t >= 3)
        assert equal(before.params.log_alpha, after.params.log_alpha) == (t < 3 or not tune)
        if t >= 3:
            mixed = jax.tree.map(
                lambda old, new: 0.9 * old + 0.1 * new, before.target_critics, after.params.critics
            )
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                after.target_critics,
                mixed,
            )
    assert np.abs(states[-1].buffer.data.action[:12]).max() <= 1.0


# ---- probe environments --------------------------------------------------------------------------

TINY = sac.Config(
    total_steps=800 * 4,
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


def check(q, actions):
    """`q`: values of the actions taken at observations -1, 0, 1, the smaller twin, [members, 3]."""
    one_step, two_step, of_obs, action, limit, naive = q
    np.testing.assert_allclose(one_step[1], 1.0, atol=0.05)
    np.testing.assert_allclose(two_step[1:], [GAMMA, 1.0], atol=0.05)
    np.testing.assert_allclose(of_obs[[0, 2]], [-1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(action[[0, 2]], [1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(limit[1], 1 / (1 - GAMMA), rtol=0.1)
    assert naive[1] < 0.5 / (1 - GAMMA)  # the bug this guards against


def test_values_of_the_probes():
    learnt = learn(sac.make, TINY, [*PROBES, "probe-time-limit naive"], continuous=True)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learnt.metrics))
    net = sac.MLP(TINY.hidden, 1)
    pairs = jnp.concatenate([jnp.broadcast_to(OBS, (6, 3, 1)), learnt.actions], -1)
    q = jax.vmap(jax.vmap(net.apply, (0, None)))(learnt.state.params.critics, pairs)
    check(np.asarray(q)[..., 0].mean(1), learnt.actions)
    np.testing.assert_allclose(learnt.actions[3, [0, 2], 0], [-0.5, 0.5], atol=0.2)


def test_values_of_the_probes_with_discrete_actions():
    learnt = learn(
        sac.make,
        dataclasses.replace(TINY, total_steps=2400 * 4),
        [*PROBES, "probe-time-limit naive"],
    )
    net = sac.MLP(TINY.hidden, 2)
    q = jax.vmap(jax.vmap(net.apply, (0, None)), (0, None))(learnt.state.params.critics, OBS)
    taken = jnp.take_along_axis(q.mean(1), learnt.actions[..., None], -1)[..., 0]
    check(np.asarray(taken), learnt.actions)
    assert learnt.actions[3, [0, 2]].tolist() == [0, 1]


@pytest.mark.parametrize("continuous", [True, False])
def test_temperature_holds_the_entropy_at_its_target(continuous):
    """Where all actions are alike, the policy's entropy goes to the target, and not to its largest
    value."""
    config = dataclasses.replace(
        TINY,
        tune_alpha=True,
        alpha=0.05,
        target_entropy=-0.5,
        target_share=0.8,
        total_steps=1500 * 4,
    )
    learnt = learn(sac.make, config, ["probe-action"], continuous)
    found = float(np.mean(learnt.metrics["entropy"][0][-300:, 0]))
    target = -0.5 if continuous else 0.8 * np.log(2)
    assert abs(found - target) < 0.15, found


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 100}, "batch_size=100 is more than the 60 transitions"),
        ({"learning_starts": 0}, "learning_starts=0 must be at least 1"),
        ({"updates": 0}, "updates=0 must be at least 1"),
    ],
)
def test_bad_input_is_refused(fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        sac.make(dataclasses.replace(SMALL, **fields), rlzoo.make("probe-action-continuous"))
