"""ReCOIL: its losses against NumPy, the programs behind them on tables, small imitations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import tiny_data
from offline import ENV, close, equal, one_step, some_batch, some_rows
from rlzoo.algorithms import recoil
from scipy.special import logsumexp
from tabular_dual import Imitation, random_problem
from together import quick_jit

import rlzoo
from rlzoo import dataset

SMALL = recoil.Config(
    env=ENV,
    total_steps=800,
    hidden=(16,),
    batch_size=32,
    learning_rate=0.01,
    tau=0.2,
    discount=0.9,
    anneal_actor=False,
)


# ---- programs on tables (test 6 of the specification) --------------------------------------------


@pytest.fixture(scope="module")
def imitation():
    """An expert and suboptimal data whose support is full."""
    rng = np.random.default_rng(0)
    problem = random_problem(rng)
    expert = rng.dirichlet(np.ones(3) * 0.3, size=6)
    other = rng.dirichlet(np.ones(3), size=6)
    return Imitation(problem, problem.occupancy(expert), problem.occupancy(other), 0.5), expert


def uncovered():
    """An expert of actions 0 and 1 beside data of actions 1 and 2."""
    problem = random_problem(np.random.default_rng(0))
    expert, other = np.tile([0.9, 0.1, 0.0], (6, 1)), np.tile([0.0, 0.5, 0.5], (6, 1))
    return Imitation(problem, problem.occupancy(expert), problem.occupancy(other), 0.5), expert


def test_inner_minimum_is_the_divergence(imitation):
    found, expert = imitation
    rng = np.random.default_rng(1)
    for policy in (np.full((6, 3), 1 / 3), rng.dirichlet(np.ones(3), size=6)):
        value, _ = found.inner(policy)
        np.testing.assert_allclose(value, -found.divergence(policy), rtol=1e-8)
        assert value < -1e-3
    value, Q = found.inner(expert)
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    np.testing.assert_allclose(Q, 0.0, atol=1e-9)


def test_ascent_finds_the_expert(imitation):
    found, expert = imitation
    policy, value = found.ascend(500)
    assert value > -1e-3 and found.distance(policy, expert) < 0.02
    assert found.distance(np.full((6, 3), 1 / 3), expert) > 0.2


def test_ascent_finds_the_expert_where_the_data_lack_its_action():
    found, expert = uncovered()
    assert found.data.min() == 0.0 < found.mixture.min()
    policy, value = found.ascend(800)
    assert value > -0.01 and found.distance(policy, expert) < 0.05


def test_dual_v_of_imitation_knows_nothing(imitation):
    found, _ = imitation
    start = 3 * np.random.default_rng(2).normal(size=6)
    options = {"gtol": 1e-12}
    least = so.minimize(found.dual_v, start, jac=True, method="BFGS", options=options)
    assert abs(least.fun) < 1e-6 and np.abs(least.x).max() < 1e-2
    np.testing.assert_allclose(found.dual_v(np.zeros(6))[1], 0.0, atol=1e-12)


def slope_of_released(found, mixed, Q, V):
    """The gradient of the file's loss, each pair weighted by how often the data have it."""
    config = recoil.Config(discount=found.problem.gamma)
    after = jnp.asarray((found.problem.P @ V).ravel(), jnp.float32)
    pin = jnp.float32(2 / (1 - config.discount))
    alive = jnp.zeros(1, bool)

    def one(q, v):
        """The errors of one pair, as of the mixed data and as of the expert."""
        q, v, pinned = jnp.full((1, 1), q), jnp.full(1, v), jnp.full((1, 1), pin)
        target = config.discount * v - config.expert_reward
        of_mixed = recoil.released_loss(q, pinned, v, alive, config)
        of_expert = recoil.released_loss(target[None], q, v, alive, config)
        return of_mixed, of_expert

    def loss(q):
        of_mixed, of_expert = jax.vmap(one)(q, after)
        return mixed.ravel() @ of_mixed + found.expert.ravel() @ of_expert

    return quick_jit(jax.grad(loss))(jnp.asarray(Q.ravel(), jnp.float32))


def test_coded_loss_on_a_table_is_mode_seeking():
    """(test 7) With a fifth of the expert hidden in the mixed data, the fixed point of `released`
    is a pull towards the pin, and its weights choose the expert's likeliest action."""
    found, expert = uncovered()
    gamma = found.problem.gamma
    mixed = 0.8 * found.data + 0.2 * found.expert
    Q, V, beta = np.zeros((6, 3)), np.zeros(6), 5.0
    chances = mixed / mixed.sum(1, keepdims=True)
    for _ in range(2000):
        target = -2 + gamma * found.problem.P @ V
        Q = (found.expert * 2 / (1 - gamma) + mixed * target) / (found.expert + mixed)
        V = beta * logsumexp(Q / beta, axis=1, b=chances)
    assert Q.max() < 20 - 1, "not pinned where rows overlap"
    np.testing.assert_allclose(slope_of_released(found, mixed, Q, V), 0.0, atol=1e-4)
    assert np.abs(slope_of_released(found, mixed, Q + 1.0, V)).max() > 1e-3
    weight = mixed * np.minimum(np.exp(3 * (Q - V[:, None])), 100)
    policy = weight / weight.sum(1, keepdims=True)
    assert (policy.argmax(1) == 0).all() and found.distance(policy, expert) > 0.05


# ---- losses --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    batch, rng = some_batch(40)
    weight = np.repeat([0.5, 1.5], 20).astype(np.float32)
    return recoil.Rows(batch, weight), rng


def critics(params, obs, action):
    return params @ jnp.concatenate([obs, action], -1).T


def test_value_loss_is_the_numpy_reference(rows):
    rows, rng = rows
    params, q = rng.normal(size=3).astype(np.float32), 5 * rng.normal(size=40).astype(np.float32)
    config = recoil.Config(temperature=0.8, max_clip=3.0)
    loss, metrics = recoil.value_loss(params, rows, q, lambda p, o: o @ p, config)
    gap = (q - rows.batch.obs @ params) / 0.8
    z = np.minimum(gap, 3.0)
    each = (np.exp(z) - z - 1) / np.exp(max(z.max(), -1))
    np.testing.assert_allclose(loss, (each[:20].mean() + 3 * each[20:].mean()) / 4, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/clipped"], (gap > 3).mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["released", "mixture"])
def test_critic_loss_is_the_numpy_reference(rows, name):
    rows, rng = rows
    batch = rows.batch
    params, v = rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=40).astype(np.float32)
    config = recoil.Config(loss=name, discount=0.9, expert_reward=1.5, beta=0.3)
    loss, metrics = quick_jit(lambda p: recoil.critic_loss(p, rows, v, critics, config))(params)
    q = params @ np.concatenate([batch.obs, batch.action], -1).T
    total = 0.0
    for own in q:
        if name == "released":
            pinned = 0.5 * np.mean((own[20:] - 15.0) ** 2)
            after = np.where(batch.terminated, -15.0, v)[:20]
            total += pinned + 0.5 * np.mean((own[:20] - (-1.5 + 0.9 * after)) ** 2)
        else:
            residual = (0.9 * ~batch.terminated * v - own) ** 2 / 4
            total += 0.7 * residual[:20].mean() + 0.3 * residual[20:].mean()
            total -= 0.3 * own[20:].mean()
    np.testing.assert_allclose(loss, total, rtol=1e-4)
    np.testing.assert_allclose(metrics["train/q_expert"], q[:, 20:].mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["train/q_mixed"], q[:, :20].mean(), rtol=1e-3)
    ended = batch._replace(terminated=batch.terminated | batch.truncated)
    wrong, _ = recoil.critic_loss(params, rows._replace(batch=ended), v, critics, config)
    assert abs(wrong - loss) > 1e-2, "a time limit is no death"


def test_mixture_loss_is_the_derived_one():
    """At its minimum Q - gamma V' is 2 beta d_expert / mixture: the density ratio is the reward."""
    counts = np.array([[1, 9], [5, 5], [9, 1], [8, 0]])  # rows of the expert, of the mixed data
    beta = 0.5
    pair = np.repeat([0, 1, 2, 3] * 2, np.append(counts[:, 1], counts[:, 0]))
    n = 23
    mixed, expert = pair[:15], pair[15:]
    assert len(pair) == counts.sum() and len(expert) == n
    mixed = np.resize(mixed, n)  # as many of each
    index = np.append(mixed, expert)
    config = recoil.Config(loss="mixture", beta=beta)
    marks = jnp.arange(2 * n) >= n

    def loss(reward):
        q = jnp.stack([reward[index]] * 2)
        return recoil.mixture_loss(q, marks, -q, config)

    move = lambda _, r: r - 1.0 * jax.grad(loss)(r)
    found = quick_jit(lambda r: jax.lax.fori_loop(0, 500, move, r))(jnp.zeros(4))
    own = np.bincount(expert, minlength=4) / n
    other = np.bincount(mixed, minlength=4) / n
    exact = 2 * beta * own / (beta * own + (1 - beta) * other)
    np.testing.assert_allclose(found, exact, atol=1e-3)
    assert exact[3] == 2.0


def test_actor_loss_is_the_numpy_reference(rows):
    rows, rng = rows
    advantage = rng.normal(size=40).astype(np.float32)
    actor = recoil.Actor((4,), 2)
    params = actor.init(jax.random.key(0), rows.batch.obs)
    config = recoil.Config(inverse_temperature=2.0, max_weight=3.0)
    loss, _ = recoil.actor_loss(params, rows, advantage, actor.apply, config)
    log_prob = actor.apply(params, rows.batch.obs).log_prob(rows.batch.action)
    weight = np.minimum(np.exp(2 * advantage), 3.0) * np.repeat([0.5, 1.5], 20)
    np.testing.assert_allclose(loss, -np.mean(weight * log_prob), rtol=1e-4)


# ---- training ------------------------------------------------------------------------------------


def sets():
    return {"expert": some_rows(), "mixed": some_rows(1)}


def test_which_data_move_values_and_actor():
    """The labeled pairs move neither with `released`; they do with `mixture`."""
    env, given = rlzoo.make(ENV), sets()
    other = given | {"expert": given["expert"].replace(obs=given["expert"].obs + 1.0)}

    for loss in ("released", "mixture"):
        config = dataclasses.replace(SMALL, loss=loss, batch_size=8)

        @quick_jit
        def run(data, config=config):
            alg = recoil.make(config, env, data)
            return alg.step(alg.init(jax.random.key(0)), 0)[0].opt_states

        one, two = run(given), run(other)
        assert close(one.actor, two.actor) == (loss == "released")
        assert not equal(one.critics, two.critics)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["released", "mixture"])
def test_the_expert_hidden_in_the_mixed_data_is_imitated(loss):
    """Four fifths of the mixed data are random actions, one fifth the expert's 0.6."""
    rng = np.random.default_rng(0)
    action = np.where(np.arange(200) % 5 == 0, 0.6, rng.uniform(-1, 0.2, 200))
    mixed = one_step(action, np.zeros(200))
    expert = one_step(np.full(8, 0.6), np.zeros(8))
    env = rlzoo.make(ENV)
    config = dataclasses.replace(SMALL, loss=loss, temperature=1.0, inverse_temperature=3.0)

    @quick_jit
    def run(data):
        alg = recoil.make(config, env, data)
        state, metrics = jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(800))
        return alg.act(alg.policy(state), jnp.ones(1), None)[0], metrics

    found, metrics = run({"expert": expert, "mixed": mixed})
    assert found > 0.4, "the mean of the mixed data is -0.2"
    expert_q, mixed_q = (float(metrics[f"train/q_{k}"][-1]) for k in ("expert", "mixed"))
    assert expert_q > mixed_q + 0.5
    blind = run({"expert": mixed, "mixed": mixed})[0]
    assert blind < 0.2, "what it does where the expert's data are the mixed data"


def test_wrong_data_is_refused():
    data, env = tiny_data.continuous(), rlzoo.make(ENV)
    for given in (None, data, {"expert": data}, {"expert": data, "mixed": data, "more": data}):
        with pytest.raises(rlzoo.Refused, match=r"--dataset expert=FILE mixed=FILE"):
            recoil.make(SMALL, env, given)
    discrete = {"expert": tiny_data.discrete(), "mixed": tiny_data.discrete()}
    with pytest.raises(rlzoo.Refused, match="recoil needs continuous actions"):
        recoil.make(SMALL, env, discrete)
    assert isinstance(data, dataset.Dataset)
