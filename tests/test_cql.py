"""CQL: its regularizer against quadrature and NumPy, what it does to values outside of the data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from offline import ENV, equal, one_step, some_batch, some_rows
from rlzoo.algorithms import cql
from scipy.special import logsumexp
from together import quick_jit

import rlzoo

SMALL = cql.Config(
    env=ENV,
    total_steps=800,
    hidden=(16,),
    batch_size=32,
    learning_rate=0.01,
    actor_learning_rate=0.01,
    tau=0.1,
    discount=0.9,
    tune_alpha=False,
    alpha=0.05,
)


def critics_of(params, obs, action):
    """Two values, the second twice the first."""
    value = jnp.concatenate([obs, action], -1) @ params
    return jnp.stack([value, 2 * value])


def test_critic_loss_is_the_numpy_reference():
    batch, rng = some_batch()
    params = rng.normal(size=5).astype(np.float32)
    action = rng.uniform(-1, 1, (6, 40, 2)).astype(np.float32)
    log_prob, target = rng.normal(size=(6, 40)).astype(np.float32), batch.reward
    proposals = cql.Proposals(action, log_prob)
    config = cql.Config(cql_alpha=0.7)
    loss, metrics = quick_jit(
        lambda p: cql.critic_loss(p, batch, target, proposals, critics_of, config)
    )(params)
    own = np.concatenate([batch.obs, batch.action], -1) @ params
    other = batch.obs @ params[:3] + action @ params[3:]
    td, gap = 0.0, 0.0
    for scale in (1, 2):
        td += 0.5 * np.mean((scale * own - target) ** 2)
        gap += np.mean(logsumexp(scale * other - log_prob, axis=0) - np.log(6) - scale * own)
    np.testing.assert_allclose(metrics["loss/critic"], td, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/cql"], gap, rtol=1e-4)
    np.testing.assert_allclose(loss, td + 0.7 * gap, rtol=1e-4)
    assert abs(np.mean(logsumexp(other, axis=0) - np.log(6) - own) - gap) > 0.1, "no densities"


def test_the_integral_over_actions_by_its_proposals():
    """log of the integral of exp(3a) over [-1, 1], at an action without a value of its own."""
    count = 4000
    batch, _ = some_batch(1, 1)
    actor = lambda params, obs: cql.squashed_gaussian(jnp.full((len(obs), 2), 0.3))
    proposals = quick_jit(lambda key: cql.propose(None, batch, key, actor, count))(
        jax.random.key(0)
    )
    assert proposals.action.shape == (3 * count, 1, 1)
    np.testing.assert_allclose(proposals.log_prob[:count], np.log(0.5), rtol=1e-5)
    value = lambda params, obs, action: jnp.stack([params * action[..., 0]] * 2)
    _, metrics = cql.critic_loss(3.0, batch, batch.reward, proposals, value, cql.Config())
    exact = np.log((np.exp(3) - np.exp(-3)) / 3) - 3 * batch.action[0, 0]
    np.testing.assert_allclose(metrics["loss/cql"], 2 * exact, rtol=0.05)


def test_target_is_of_the_target_critics_without_entropy():
    batch, rng = some_batch()
    params = rng.normal(size=5).astype(np.float32)
    fixed = jnp.broadcast_to(jnp.array([0.4, -0.2, -20.0, -20.0]), (40, 4))
    actor = lambda _, obs: cql.squashed_gaussian(fixed)
    config = cql.Config(discount=0.9)
    found = cql.td_target(None, params, batch, jax.random.key(0), actor, critics_of, config)
    action = np.tile(np.tanh([0.4, -0.2]), (40, 1))
    value = np.concatenate([batch.next_obs, action], 1) @ params
    expected = batch.reward + 0.9 * ~batch.terminated * np.minimum(value, 2 * value)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tune", [True, False])
def test_what_an_update_moves(tune):
    config = dataclasses.replace(SMALL, tune_alpha=tune, batch_size=8, num_actions=2)
    alg = cql.make(config, rlzoo.make(ENV), some_rows())
    before = quick_jit(alg.init)(jax.random.key(0))
    after, metrics = quick_jit(alg.step)(before, 0)
    assert not equal(before.params.actor, after.params.actor)
    assert equal(before.params.log_alpha, after.params.log_alpha) != tune
    assert ("loss/alpha" in metrics) == tune
    mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before.target_params, after.params.critics)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        after.target_params,
        mixed,
    )


@pytest.mark.slow
def test_values_outside_of_the_data_are_low():
    """Reward 2a for actions in [-0.5, 0.5]: by itself the policy goes where there are no data."""
    action = np.linspace(-0.5, 0.5, 21)
    data, env = one_step(action, 2 * action), rlzoo.make(ENV)
    net = cql.MLP(SMALL.hidden, 1)

    @quick_jit
    @jax.vmap
    def run(factor):
        alg = cql.make(dataclasses.replace(SMALL, cql_alpha=factor), env, data)
        state, _ = jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(800))
        pairs = jnp.array([[1.0, 0.4], [1.0, 1.0]])
        q = jax.vmap(net.apply, (0, None))(state.params.critics, pairs)[..., 0].mean(0)
        return alg.act(alg.policy(state), jnp.ones(1), None)[0], q

    (free, held), (free_q, held_q) = run(jnp.array([0.0, 1.0]))
    assert free > 0.8 and held < 0.6
    assert free_q[1] > free_q[0] + 0.5 and held_q[1] < held_q[0] - 0.5


def test_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match="cql needs continuous actions.*offline_dqn"):
        cql.make(SMALL, rlzoo.make(ENV), tiny_data.discrete())
    with pytest.raises(rlzoo.Refused, match="cql learns from a data set, but none was given"):
        cql.make(SMALL, rlzoo.make(ENV))
