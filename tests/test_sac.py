"""SAC: its densities and losses against NumPy, its values on probe environments whose values are
known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES
from rlzoo.algorithms import sac
from together import learn, quick_jit

import rlzoo
from rlzoo.algorithm import clean
from rlzoo.env import Transition
from rlzoo.replay import Sample

GAMMA = 0.9


# ---- losses --------------------------------------------------------------------------------------


def test_density_of_squashed_actions():
    rng = np.random.default_rng(0)
    head = rng.uniform(-1.5, 1.5, (50, 6)).astype(np.float32)
    key = jax.random.key(1)
    draw = quick_jit(lambda head: sac.squashed_gaussian(head).sample_and_log_prob(seed=key))
    action, log_prob = draw(head)
    noise = np.asarray(jax.random.normal(key, (50, 3)), np.float64)
    u = head[:, :3] + np.exp(head[:, 3:]) * noise
    np.testing.assert_allclose(action, np.tanh(u), rtol=1e-4, atol=1e-5)
    normal = -0.5 * noise**2 - head[:, 3:] - 0.5 * np.log(2 * np.pi)
    exact = (normal - 2 * np.log(1 / np.cosh(u))).sum(-1)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-4, atol=1e-4)


def test_density_far_out_is_finite_where_the_plain_form_is_not():
    head, key = jnp.array([30.0, 5.0]), jax.random.key(0)
    draw = lambda head: sac.squashed_gaussian(head).sample_and_log_prob(seed=key)
    action, log_prob = draw(head)
    slope = jax.grad(lambda head: draw(head)[1])(head)
    assert np.isfinite(log_prob) and np.isfinite(slope).all() and action == 1.0
    assert np.isinf(jnp.log(1 - action**2)).all()  # what this guards against
    noise = float(jax.random.normal(key, (1,))[0])
    normal = -0.5 * noise**2 - 2.0 - 0.5 * np.log(2 * np.pi)  # its log_std is clipped to 2
    u = 30 + np.exp(2.0) * noise
    np.testing.assert_allclose(log_prob, normal + 2 * (u - np.log(2)), rtol=1e-5)


MEAN, LOG_STD, COUNT = 0.4, -0.7, 100_000


def constant_actor(params, obs):
    """The same distribution at all observations."""
    return sac.squashed_gaussian(jnp.broadcast_to(params, (len(obs), 2)))


def curved_critics(params, obs, action):
    """Two values that cross, so that the smaller one is either."""
    return params * jnp.stack([3 * action[:, 0], 1 - action[:, 0] ** 2])


def integrals():
    """E[min Q] and E[-log pi] of `constant_actor` and `curved_critics`, by quadrature."""
    u = np.linspace(-4, 5, 20_001)
    std = np.exp(LOG_STD)
    density = np.exp(-0.5 * ((u - MEAN) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    a = np.tanh(u)
    minus_log = -(np.log(density) - np.log(1 - a**2))
    expect = lambda x: float((density * x).sum() * (u[1] - u[0]))
    return expect(np.minimum(3 * a, 1 - a**2)), expect(minus_log)


def test_actor_loss_is_an_estimate_of_the_integral():
    value, entropy = integrals()
    flags = np.zeros(COUNT, bool)
    obs = np.zeros((COUNT, 1), np.float32)
    batch = Transition(obs, None, None, flags, flags, obs)
    loss, metrics = sac.actor_loss(
        jnp.array([MEAN, LOG_STD]),
        1.0,
        jnp.log(0.5),
        batch,
        jax.random.key(0),
        constant_actor,
        curved_critics,
    )
    np.testing.assert_allclose(metrics["train/entropy"], entropy, atol=0.02)
    np.testing.assert_allclose(metrics["train/alpha"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(loss, -(value + 0.5 * entropy), atol=0.03)
    assert metrics["loss/actor"] == loss


def test_target_is_the_soft_value_of_the_next_observation():
    """Of the target critics; a terminated episode has none, a truncated one has."""
    value, entropy = integrals()
    rng = np.random.default_rng(0)
    terminated = rng.random(COUNT) < 0.3
    truncated = ~terminated & (rng.random(COUNT) < 0.3)
    reward = rng.normal(size=COUNT).astype(np.float32)
    obs = np.zeros((COUNT, 1), np.float32)
    sample = Sample(
        Transition(obs, None, reward, terminated, truncated, obs),
        np.full(COUNT, GAMMA, np.float32),
        None,
        None,
    )
    params = sac.Params(jnp.array([MEAN, LOG_STD]), 7.0, jnp.log(0.5))
    target = np.asarray(
        sac.td_target(params, 1.0, sample, jax.random.key(0), constant_actor, curved_critics)
    )
    assert target.shape == (COUNT,)
    bootstrap = (target - reward) / GAMMA
    np.testing.assert_allclose(bootstrap[terminated], 0.0, atol=1e-5)
    soft = value + 0.5 * entropy
    np.testing.assert_allclose(bootstrap[~terminated].mean(), soft, atol=0.03)
    np.testing.assert_allclose(bootstrap[truncated].mean(), soft, atol=0.05)


def test_critic_and_temperature_losses():
    value, target = np.array([[1.0, 2.0], [0.0, 5.0]]), np.array([1.5, 3.0])
    batch = Transition(None, None, None, None, None, None)
    loss, metrics = sac.critic_loss(value, batch, target, lambda params, obs, action: params)
    np.testing.assert_allclose(loss, (0.25 + 1.0 + 2.25 + 4.0) / 2)
    np.testing.assert_allclose(metrics["train/q"], 2.0)
    with pytest.raises(AssertionError, match="shape"):  # it would broadcast
        sac.critic_loss(value[..., None], batch, target, lambda params, obs, action: params)
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
    alg = sac.make(
        dataclasses.replace(SMALL, tune_alpha=tune, alpha=0.2),
        rlzoo.make("probe-action-continuous"),
    )
    states, step = [quick_jit(alg.init)(jax.random.key(0))], quick_jit(alg.step)
    for t in range(6):
        state, metrics = step(states[-1], t)
        states.append(state)
        assert ("loss/alpha" in metrics) == tune
        learning = t >= 3
        assert all(
            metrics[name][1] == learning
            for name in ("loss/critic", "loss/actor", "train/alpha", "train/entropy", "train/q")
        )
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
    # With 0.01 one run in sixteen ends at a saturated action, where tanh has no gradient.
    alpha=0.05,
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
    learned = learn(sac.make, TINY, [*PROBES, "probe-time-limit naive"], continuous=True)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    net = sac.MLP(TINY.hidden, 1)
    pairs = jnp.concatenate([jnp.broadcast_to(OBS, (6, 3, 1)), learned.actions], -1)
    q = jax.vmap(jax.vmap(net.apply, (0, None)))(learned.state.params.critics, pairs)
    check(np.asarray(q)[..., 0].mean(1), learned.actions)
    np.testing.assert_allclose(learned.actions[3, [0, 2], 0], [-0.5, 0.5], atol=0.2)


def test_temperature_holds_the_entropy_at_its_target():
    """Where all actions are alike, the policy's entropy goes to the target, and not to its largest
    value."""
    config = dataclasses.replace(
        TINY,
        tune_alpha=True,
        alpha=0.05,
        target_entropy=-0.5,
        total_steps=1500 * 4,
    )
    learned = learn(sac.make, config, ["probe-action"], continuous=True)
    found = float(np.mean(learned.metrics["train/entropy"].value[-300:, 0]))
    assert abs(found + 0.5) < 0.15, found


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_refused():
    env = rlzoo.make("probe-action-continuous")
    with pytest.raises(rlzoo.Refused, match="batch_size=100 is more than the 60 transitions"):
        sac.make(dataclasses.replace(SMALL, batch_size=100), env)
    with pytest.raises(rlzoo.Refused, match="discrete actions"):
        sac.make(SMALL, rlzoo.make("probe-action"))


@pytest.mark.parametrize("name", ["learning_starts", "updates_per_step"])
def test_bounds_of_fields(name):
    with pytest.raises(rlzoo.Refused, match=f"{name} is 0; it must be at least 1"):
        clean(dataclasses.replace(SMALL, **{name: 0}))
