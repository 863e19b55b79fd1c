"""Offline DQN: its losses against NumPy, which samples SARSA keeps, CQL in closed form, data with
known values.

What is in rlzoo/bins.py is tested in test_bins.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import dqn, offline_dqn
from scipy.special import entr, log_softmax, logsumexp, softmax
from test_collect import train
from test_hl_gauss import scattered, support, target_of
from together import quick_jit

import rlzoo
from rlzoo import dataset
from rlzoo.algorithm import clean
from rlzoo.bins import Bins
from rlzoo.env import Transition
from rlzoo.tools import collect

GAMMA = 0.9


# ---- the losses ----------------------------------------------------------------------------------


def some_sample(n=40):
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    terminated = rng.random(n) < 0.3
    truncated = ~terminated & (rng.random(n) < 0.3)
    reward = 3 * rng.normal(size=n).astype(np.float32)
    batch = Transition(obs, rng.integers(0, 3, n), reward, terminated, truncated, next_obs)
    return offline_dqn.Sample(
        batch, rng.integers(0, 3, n), (rng.random(n) < 0.7).astype(np.float32)
    ), rng


def bins_of(c):
    return Bins(c.num_bins, c.v_min, c.v_max, c.sigma_ratio, c.widen, c.loss)


def linear(params, obs):
    return jnp.tensordot(obs, params, 1)


@pytest.mark.parametrize(
    ("loss", "target", "double"),
    [
        ("hl_gauss", "q_learning", False),
        ("two_hot", "sarsa", True),
        ("c51", "q_learning", True),
        ("mse", "sarsa", True),
        ("mse_softmax", "q_learning", True),
    ],
)
def test_loss_is_the_numpy_reference(loss, target, double):
    sample, rng = some_sample()
    bins, alpha = 11, 0.7
    c = offline_dqn.Config(
        loss=loss,
        target=target,
        double=double,
        num_bins=bins,
        v_min=-5.0,
        v_max=5.0,
        discount=GAMMA,
        cql_alpha=alpha,
    )
    params, target_params = 2 * rng.normal(size=(2, 4, 3, *[bins] * (loss != "mse"))).astype(
        np.float32
    )
    run = lambda p, t, c: offline_dqn.td_loss(p, t, sample, linear, bins_of(c), c)
    (found, metrics), (grad, target_grad) = quick_jit(
        jax.value_and_grad(run, (0, 1), has_aux=True)
    )(params, target_params, c)

    batch, next_action, mask = sample
    rows, live, z = np.arange(len(mask)), GAMMA * ~batch.terminated, support(c)[0]
    decode = lambda out: out if loss == "mse" else softmax(out, -1) @ z
    net = lambda p, o: np.tensordot(o, p.astype(float), 1)
    mean = lambda x: (mask * x).sum() / mask.sum()
    judge, everything = net(target_params, batch.next_obs), net(params, batch.obs)
    best = decode(net(params, batch.next_obs) if double else judge).argmax(-1)
    choice = next_action if target == "sarsa" else best
    y = batch.reward + live * decode(judge)[rows, choice]
    q, out = decode(everything), everything[rows, batch.action]
    value = q[rows, batch.action]
    if loss.startswith("mse"):
        each = (value - y) ** 2
    else:
        goal = (
            scattered(softmax(judge[rows, choice], -1), batch.reward, live, c)
            if loss == "c51"
            else target_of(y, c)
        )
        each = -(goal * log_softmax(out, -1) + entr(goal)).sum(-1)
    cql = logsumexp(q, -1) - value
    np.testing.assert_allclose(metrics["loss/td"], mean(each), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/cql"], mean(cql), rtol=1e-4)
    np.testing.assert_allclose(found, mean(each) + alpha * mean(cql), rtol=1e-4)
    assert np.any(grad) and not np.any(target_grad)
    np.testing.assert_allclose(metrics["train/mask"], mask.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/q"], mean(value), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["train/agreement"], mean(q.argmax(-1) == batch.action), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["train/target_max"].value, np.abs(mask * y).max(), rtol=1e-5)
    for name, margin in (("outside", 0.0), ("near_edge", 3 * 0.75 * support(c)[1])):
        np.testing.assert_allclose(
            metrics[f"train/targets_{name}"], mean(np.abs(y) > 5 - margin), rtol=1e-5
        )
    if loss != "mse":
        np.testing.assert_allclose(
            metrics["train/entropy"], mean(entr(softmax(out, -1)).sum(-1)), rtol=1e-4
        )
    # what would be another loss: the other target, bootstrapping masked with truncated too, samples
    # not masked
    other = next_action if choice is best else best
    for wrong in (
        live * decode(judge)[rows, other],
        ~batch.truncated * live * decode(judge)[rows, choice],
    ):
        assert np.abs(mask * (batch.reward + wrong - y)).max() > 0.1
    assert abs(each.mean() - mean(each)) > 1e-3


def test_samples_that_are_not_kept_change_nothing():
    sample, rng = some_sample()
    params = rng.normal(size=(4, 3)).astype(np.float32)
    c = offline_dqn.Config(loss="mse", target="sarsa", cql_alpha=0.5)
    grad = quick_jit(
        lambda s: jax.grad(lambda p: offline_dqn.td_loss(p, params, s, linear, bins_of(c), c)[0])(
            params
        )
    )
    other = sample._replace(
        next_action=np.where(sample.mask == 0, (sample.next_action + 1) % 3, sample.next_action),
        batch=sample.batch._replace(reward=sample.batch.reward + 100 * (sample.mask == 0)),
    )
    np.testing.assert_array_equal(grad(sample), grad(other))
    assert not np.any(
        grad(sample._replace(mask=np.zeros_like(sample.mask)))
    )  # and no division by zero


# ---- CQL -----------------------------------------------------------------------------------------


def test_cql_gradient_pushes_down_what_is_not_in_the_data():
    rng = np.random.default_rng(0)
    q, action = 2 * rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 4, 20)
    value, grad = quick_jit(
        jax.vmap(jax.value_and_grad(lambda q, a: offline_dqn.cql_loss(q[None], a[None])[0]))
    )(q, action)
    np.testing.assert_allclose(
        value, logsumexp(q, -1) - q[np.arange(20), action], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(grad, softmax(q, -1) - np.eye(4)[action], atol=1e-5)
    assert (np.asarray(value) >= 0).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0])
def test_cql_solution_of_a_bandit(alpha):
    """One state, whose actions were taken 60, 30, 10 and 0 times of 100: the minimum solves
    2 mu (q - r) + alpha (softmax(q) - mu) = 0, for the action without data alpha softmax(q) = 0."""
    counts, rewards = np.array([60, 30, 10, 0]), np.array([1.0, 2.0, -1.0, 5.0])
    action = np.repeat(np.arange(4), counts)
    blank = np.zeros(100, np.float32)
    batch = Transition(
        blank, action, rewards[action].astype(np.float32), blank + 1 > 0, blank > 0, blank
    )
    sample = offline_dqn.Sample(batch, action, blank + 1)
    c = offline_dqn.Config(loss="mse", cql_alpha=alpha)
    net = lambda q, obs: jnp.broadcast_to(q, (len(obs), 4))

    @quick_jit
    def descend(c):
        move = lambda _, q: (
            q
            - 0.2 * jax.grad(lambda q: offline_dqn.td_loss(q, q, sample, net, bins_of(c), c)[0])(q)
        )
        return jax.lax.fori_loop(0, 3000, move, jnp.zeros(4))

    q, mu = np.asarray(descend(c), float), counts / 100
    residual = 2 * mu * (q - rewards) + alpha * (softmax(q) - mu)
    np.testing.assert_allclose(residual[:3], 0, atol=1e-3)
    if alpha:
        assert q[3] < q[:3].min() - 1 and softmax(q)[3] < 0.02  # pushed down, without end
        assert q[0] > 1.1  # and up what is frequent
        assert np.abs(softmax(q) - mu).max() < np.abs(softmax(rewards * [1, 1, 1, 0]) - mu).max()
    else:
        np.testing.assert_allclose(q, [1, 2, -1, 0], atol=1e-3)


# ---- data with known values ----------------------------------------------------------------------


def two_steps():
    """Episodes of two steps, obs 0 then 1; the second step's reward is its action, 1 in a quarter
    of them, whichever was the first. And some truncated after the first step: what follows each of
    these begins with action 1."""
    begin = lambda action, truncated: (0.0, action, 0.0, 1.0, False, truncated)
    whole = [
        [begin(first, False), (1.0, second, float(second), 0.0, True, False)]
        for first in (1, 0)
        for second in (0, 0, 0, 1) * 5
    ]
    cut = [[begin(i % 2, True)] for i in range(20)]
    episodes = [episode for pair in zip(cut, whole[:20], strict=True) for episode in pair] + whole[
        20:
    ]
    rows = [row for episode in episodes for row in episode]
    obs, action, reward, next_obs, terminated, truncated = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return dataset.from_arrays(
        dict(
            obs=obs[:, None],
            action=action,
            reward=reward,
            next_obs=next_obs[:, None],
            terminated=terminated,
            truncated=truncated,
        ),
        env="probe-two-step",
    )


def test_next_actions_are_those_of_the_same_episode(monkeypatch):
    data = two_steps()
    monkeypatch.setattr(offline_dqn, "draw", lambda data, key, n: jnp.arange(n))  # every row once
    batch, next_action, mask = jax.tree.map(
        np.asarray, offline_dqn.draw_sample(data, None, len(data), "sarsa")
    )
    assert (
        len(data) == 100
        and np.array_equal(mask == 0, batch.truncated)
        and batch.truncated.sum() == 20
    )
    asked = np.flatnonzero((mask == 1) & ~batch.terminated)
    assert (
        np.array_equal(next_action[asked], batch.action[asked + 1])
        and next_action[asked].mean() == 0.25
    )
    assert next_action[batch.truncated].all()  # of another episode: what the mask is for
    assert offline_dqn.draw_sample(
        data, None, len(data), "q_learning"
    ).mask.all()  # it asks for no action


TINY = offline_dqn.Config(
    env="probe-two-step",
    total_steps=600,
    hidden=(16,),
    num_bins=21,
    v_min=-2.0,
    v_max=2.0,
    batch_size=32,
    target_every=20,
    learning_rate=0.02,
    discount=GAMMA,
    cql_alpha=0.0,
)


def test_values_by_q_learning_and_by_sarsa(monkeypatch):
    data, env, obs, right = (
        two_steps(),
        rlzoo.make(TINY.env),
        jnp.array([[0.0], [1.0]]),
        offline_dqn.draw_sample,
    )

    def learned(loss, target, masks):
        """Values [masks, obs 0 and 1, action] and greedy actions after training, and metrics; with
        and without the mask."""
        config = dataclasses.replace(TINY, loss=loss, target=target)
        bins = bins_of(config)
        zeros = jax.nn.initializers.zeros
        net = offline_dqn.CategoricalQNetwork(config.hidden, bins.out_shape(2), zeros)

        def run(mask):
            drawn = lambda sample: sample._replace(mask=jnp.where(mask, sample.mask, 1.0))
            monkeypatch.setattr(offline_dqn, "draw_sample", lambda *args: drawn(right(*args)))
            alg = offline_dqn.make(config, env, data)
            state, metrics = jax.lax.scan(
                alg.step, alg.init(jax.random.key(0)), jnp.arange(config.total_steps)
            )
            q = bins.decode(net.apply(state.params, obs))
            return q, alg.act(alg.policy(state), obs, None), metrics

        return jax.tree.map(np.asarray, quick_jit(jax.vmap(run))(jnp.array(masks)))

    (best,), (actions,), metrics = learned("hl_gauss", "q_learning", [True])
    np.testing.assert_allclose(
        best, [[GAMMA, GAMMA], [0, 1]], atol=0.08
    )  # truncated rows bootstrap too
    assert actions[1] == 1 and metrics["train/mask"].min() == 1.0
    (follows, naive), _, metrics = learned("mse", "sarsa", [True, False])
    np.testing.assert_allclose(follows, [[GAMMA / 4] * 2, [0, 1]], atol=0.12)
    assert 0.7 < metrics["train/mask"][0].mean() < 0.9
    assert (
        naive[0].min() > GAMMA / 4 + 0.12
    )  # the bug this guards against: taking the action of the episode after


# ---- the zoo's own data --------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_dqn_to_its_data_to_an_offline_agent(tmp_path):
    online = dqn.Config(
        env="probe-time-limit",
        total_steps=60,
        num_envs=2,
        buffer_size=60,
        batch_size=4,
        learning_starts=20,
        hidden=(4,),
    )
    run = train(dqn.make, online, tmp_path / "dqn")
    dataset.save(collect.replay(run), tmp_path / "replay.npz")
    data, env = dataset.load(tmp_path / "replay.npz"), rlzoo.make(online.env)
    dataset.check(data, env)
    config = dataclasses.replace(TINY, target="sarsa", loss="mse", hidden=(4,))

    @quick_jit
    def learn(data):
        alg = offline_dqn.make(config, env, data)
        state, metrics = jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(50))
        return alg.act(alg.policy(state), data.obs, None), metrics

    actions, metrics = learn(data)
    assert (
        len(data) == 60
        and set(np.asarray(actions)) <= {0, 1}
        and np.isfinite(metrics["loss/td"]).all()
    )
    np.testing.assert_allclose(
        np.mean(metrics["train/mask"]), 0.8, atol=0.03
    )  # one step of five is cut


# ---- networks, bad input -------------------------------------------------------------------------


def test_torsos():
    def shapes(**fields):
        env = rlzoo.make(fields["env"])
        data = jax.eval_shape(
            lambda: dataset.Dataset(
                **{
                    name: jnp.zeros((5, *x.shape), x.dtype)
                    for name, x in env.example()._asdict().items()
                },
                starts=jnp.array([0, 5]),
            )
        )
        alg = offline_dqn.make(offline_dqn.Config(num_bins=7, **fields), env, data)
        params = jax.eval_shape(alg.init, jax.random.key(0)).params["params"]
        conv = [layer["Dense_0"] for name, layer in params.items() if name.startswith("Conv3x3")]
        dense = [layer for name, layer in params.items() if name.startswith("Dense")]
        return [layer["kernel"].shape for layer in conv + dense]

    assert shapes(env="CartPole-v1", hidden=(8, 4)) == [(4, 8), (8, 4), (4, 2 * 7)]
    assert shapes(env="CartPole-v1", hidden=(8, 4), loss="mse") == [(4, 8), (8, 4), (4, 2)]
    image = dict(env="Breakout-MinAtar", hidden=(12,))
    assert shapes(**image) == [(36, 16), (8 * 8 * 16, 12), (12, 3 * 7)]
    assert shapes(**image, channels=0) == [(400, 12), (12, 3 * 7)]


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        ("probe-two-step", {"loss": "hl_gaus"}, "loss 'hl_gaus' is unknown; nearest: hl_gauss"),
        ("probe-two-step", {"target": "salsa"}, "target 'salsa' is unknown; nearest: sarsa"),
        ("probe-two-step", {"num_bins": 1}, "num_bins is 1; it must be at least 2"),
        ("probe-two-step", {"target_every": 0}, "target_every is 0; it must be at least 1"),
        ("probe-two-step", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("probe-two-step", {"v_min": 2.0}, "v_min=2.0 must be less than v_max=2.0"),
        ("probe-two-step", {"sigma_ratio": 0.0}, "sigma_ratio is 0; it must be more than 0"),
        ("probe-two-step", {"cql_alpha": -1.0}, "cql_alpha is -1; it must be at least 0"),
        (
            "CartPole-v1",
            {},
            "the data set has obs \\[1\\] .* CartPole-v1 has obs \\[4\\] and 2 discrete actions",
        ),
        ("probe-two-step-continuous", {}, "continuous actions"),
    ],
)
def test_bad_input_is_refused(env, fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        config = clean(dataclasses.replace(TINY, **fields))
        offline_dqn.make(config, rlzoo.make(env), two_steps())


def test_no_data_set_is_refused():
    with pytest.raises(rlzoo.Refused, match="none was given: --dataset FILE"):
        offline_dqn.make(TINY, rlzoo.make(TINY.env))
