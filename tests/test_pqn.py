"""PQN: its lambda-returns against plain loops, its loss against NumPy, its schedules, probes under
every loss.

What is in rlzoo/bins.py is tested in test_bins.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES
from rlzoo.algorithms import pqn
from scipy.special import entr, log_softmax, softmax
from together import learn, quick_jit

import rlzoo
from rlzoo.algorithm import clean
from rlzoo.bins import Bins

GAMMA = 0.9
SCALAR = Bins(2, -1.0, 1.0, loss="mse")


# ---- lambda-returns ------------------------------------------------------------------------------


def returns_reference(reward, next_value, terminated, done, discount, lam, move=None):
    """The recursion as a loop; `move(distribution, reward, discount)` where next_value are
    distributions."""
    move = move or (lambda mixed, reward, discount: reward + discount * mixed)
    out = np.zeros(next_value.shape)
    for e in range(reward.shape[1]):
        after = next_value[-1, e]
        for t in reversed(range(len(reward))):
            share = 0.0 if done[t, e] else lam
            mixed = (1 - share) * next_value[t, e] + share * after
            after = out[t, e] = move(mixed, reward[t, e], 0.0 if terminated[t, e] else discount)
    return out


def rollout(kind, length=23, num_envs=5):
    rng = np.random.default_rng(0)
    reward, next_value = rng.normal(size=(2, length, num_envs)).astype(np.float32)
    ends, which = rng.random((length, num_envs)) < 0.2, rng.random((length, num_envs)) < 0.5
    terminated = (
        ends & {"terminated": True, "truncated": False, "both": which, "never": False}[kind]
    )
    return reward, next_value, terminated, ends & (kind != "never")


@pytest.mark.parametrize("kind", ["terminated", "truncated", "both", "never"])
def test_lambda_returns_are_the_plain_loop(kind):
    reward, next_value, terminated, done = rollout(kind)
    returns = quick_jit(
        lambda c: pqn.lambda_returns(reward, next_value, terminated, done, SCALAR, c)
    )
    for lam in (0.0, 0.65, 1.0):
        found = returns(pqn.Config(discount=GAMMA, td_lambda=lam))
        right = returns_reference(reward, next_value, terminated, done, GAMMA, lam)
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
        if kind in ("truncated", "both"):
            # The bug this guards against masks the bootstrap with `done`. Nor may traces go on.
            masked = returns_reference(reward, next_value, done, done, GAMMA, lam)
            assert np.abs(found - masked).max() > 0.1
            going_on = returns_reference(reward, next_value, terminated, terminated, GAMMA, lam)
            assert lam == 0 or np.abs(found - going_on).max() > 0.1


def test_lambda_returns_at_both_ends_of_lambda():
    reward, next_value, terminated, done = rollout("never")
    returns = quick_jit(
        lambda c: pqn.lambda_returns(reward, next_value, terminated, done, SCALAR, c)
    )
    one_step = reward + GAMMA * next_value
    np.testing.assert_allclose(
        returns(pqn.Config(discount=GAMMA, td_lambda=0.0)), one_step, rtol=1e-4, atol=1e-5
    )
    powers = GAMMA ** np.arange(len(reward) + 1)
    whole = powers[:-1] @ reward + powers[-1] * next_value[-1]
    np.testing.assert_allclose(
        returns(pqn.Config(discount=GAMMA, td_lambda=1.0))[0], whole, rtol=1e-4, atol=1e-5
    )


def test_lambda_returns_of_distributions():
    """The plain loop again, in which numbers are distributions; their means are the scalar
    lambda-returns."""
    reward, _, terminated, done = rollout("both")
    c = pqn.Config(discount=GAMMA, td_lambda=0.65)
    bins = Bins(41, -20.0, 20.0, loss="c51")
    z = np.linspace(-20, 20, 41)
    place = np.random.default_rng(1).uniform(-3, 3, (*reward.shape, 1))
    probs = softmax(-((z - place) ** 2), -1).astype(np.float32)
    returns = quick_jit(
        lambda values: pqn.lambda_returns(reward, values, terminated, done, bins, c)
    )
    found = np.asarray(returns(probs), float)
    hats = lambda moved: np.maximum(1 - np.abs(np.clip(moved, -20, 20)[:, None] - z), 0)
    move = lambda mixed, reward, discount: mixed @ hats(reward + discount * z)
    np.testing.assert_allclose(
        found, returns_reference(reward, probs, terminated, done, GAMMA, 0.65, move), atol=1e-5
    )
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found @ z, returns(np.float32(probs @ z)), atol=1e-3)
    variance = lambda p: (p * (z - (p @ z)[..., None]) ** 2).sum(-1)
    one_step = np.asarray(
        quick_jit(bins.project)(probs[0], reward[0], np.full(5, GAMMA, np.float32))
    )
    assert variance(found)[0].max() > variance(one_step).max()  # mixing and projecting blur


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", ["mse", "mse_softmax", "c51"]
)  # to the others, targets are distributions as well
def test_loss_is_the_numpy_reference(loss):
    rng = np.random.default_rng(0)
    n, bins = 40, 11
    c = Bins(bins, -5.0, 5.0, loss=loss)
    params = rng.normal(size=(4, 3) if loss == "mse" else (4, 3, bins)).astype(np.float32)
    obs, action = rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, n)
    target = (
        rng.normal(size=n) if loss.startswith("mse") else softmax(rng.normal(size=(n, bins)), -1)
    )
    run = lambda p, b: pqn.td_loss(p, b, lambda p, o: jnp.tensordot(o, p, 1), c)
    (found, metrics), grad = quick_jit(jax.value_and_grad(run, has_aux=True))(
        params, pqn.Batch(obs, action, np.float32(target))
    )
    out = np.tensordot(obs, params.astype(float), 1)[np.arange(n), action]
    value = out if loss == "mse" else softmax(out, -1) @ np.linspace(-5, 5, bins)
    if loss == "c51":
        each, slope = (
            -(target * log_softmax(out, -1) + entr(target)).sum(-1),
            softmax(out, -1) - target,
        )
        np.testing.assert_allclose(
            grad[:, 1], obs.T @ (slope * (action == 1)[:, None]) / n, rtol=1e-3, atol=1e-5
        )
    else:
        each = 0.5 * (value - target) ** 2
    np.testing.assert_allclose(found, each.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/td"], found)
    np.testing.assert_allclose(metrics["train/q"], value.mean(), rtol=1e-4)
    if loss != "mse":
        np.testing.assert_allclose(
            metrics["train/entropy"], entr(softmax(out, -1)).sum(-1).mean(), rtol=1e-4
        )


# ---- networks and schedules ----------------------------------------------------------------------


def test_networks_have_a_layer_norm_before_every_relu():
    def shapes(**fields):
        alg = pqn.make(pqn.Config(loss="hl_gauss", num_bins=7, **fields), rlzoo.make(fields["env"]))
        params = jax.eval_shape(alg.init, jax.random.key(0)).params["params"]
        norms = [name for name in params if name.startswith("LayerNorm")]
        conv = [layer["Dense_0"] for name, layer in params.items() if name.startswith("Conv3x3")]
        dense = [layer for name, layer in params.items() if name.startswith("Dense")]
        return [layer["kernel"].shape for layer in conv + dense], len(norms)

    assert shapes(env="CartPole-v1", hidden=(8, 6)) == ([(4, 8), (8, 6), (6, 2 * 7)], 2)
    image = dict(env="Breakout-MinAtar", hidden=(12,))
    assert shapes(**image) == ([(36, 16), (8 * 8 * 16, 12), (12, 3 * 7)], 2)
    assert shapes(**image, channels=0) == ([(400, 12), (12, 3 * 7)], 1)
    net = pqn.NormalizedQNetwork((8, 6), (3,), nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (5, 4))
    run = quick_jit(
        lambda scale: net.apply(
            jax.tree.map(
                lambda p: p * (scale if p.shape == (4, 8) else 1.0), net.init(jax.random.key(1), x)
            ),
            x,
        )
    )
    np.testing.assert_allclose(
        run(1.0), run(50.0), rtol=1e-3, atol=1e-4
    )  # a layer's scale has no effect


SMALL = pqn.Config(
    total_steps=160,
    num_envs=4,
    num_steps=4,
    num_epochs=3,
    num_minibatches=2,
    hidden=(8,),
    loss="hl_gauss",
    num_bins=11,
    v_min=-2.0,
    v_max=2.0,
    epsilon_fraction=0.5,
)


def test_epsilon_falls_linearly_and_the_learning_rate_to_zero():
    @quick_jit
    def run(config):
        alg = pqn.make(config, rlzoo.make("probe-obs"))
        start = alg.init(jax.random.key(0))
        step = lambda state, t: (lambda after, metrics: (after, (after.params, metrics)))(
            *alg.step(state, t)
        )
        end, (params, metrics) = jax.lax.scan(step, start, jnp.arange(10))
        return end.opt_state, params, metrics

    opt_state, params, metrics = run(dataclasses.replace(SMALL, epsilon_start=0.9, epsilon_end=0.1))
    share = np.minimum(np.arange(10) / 5, 1.0)
    np.testing.assert_allclose(metrics["train/epsilon"], 0.9 - 0.8 * share, rtol=1e-5)
    counts = [int(x) for x in jax.tree.leaves(opt_state) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert counts == [10 * 3 * 2]  # calls, epochs, minibatches
    moved = sum(
        np.abs(np.diff(x, axis=0)).reshape(9, -1).sum(1) for x in jax.tree.leaves(params)
    )  # of calls 1 to 9
    assert 0 < moved[8] < 0.3 * moved[3]


def test_epsilon_is_the_share_of_random_actions(monkeypatch):
    seen, batch = [], pqn.Batch
    monkeypatch.setattr(pqn, "Batch", lambda *fields: seen.append(fields) or batch(*fields))

    @quick_jit
    def run(config, key):
        alg = pqn.make(config, rlzoo.make("probe-obs"))
        state = alg.init(key)
        alg.step(state, jnp.int32(0))
        obs, action, _ = seen[-1]
        return action, alg.act(alg.policy(state), obs, key)

    for epsilon in (0.0, 1.0):
        action, greedy = map(
            np.asarray, run(dataclasses.replace(SMALL, epsilon_start=epsilon), jax.random.key(0))
        )
        assert action.shape == (4, 4) and np.array_equal(action, greedy) == (epsilon == 0.0)
        assert set(action.ravel()) == {0, 1} or epsilon == 0.0


# ---- probe environments --------------------------------------------------------------------------

TINY = pqn.Config(
    total_steps=300 * 64,
    num_envs=8,
    num_steps=8,
    num_epochs=2,
    num_minibatches=2,
    hidden=(16,),
    num_bins=21,
    v_min=-12.0,
    v_max=12.0,
    learning_rate=0.1,
    discount=GAMMA,
    epsilon_end=0.5,
)
SLOW = [
    pytest.param(loss, marks=pytest.mark.slow) for loss in ("hl_gauss", "two_hot", "mse_softmax")
]


@pytest.mark.parametrize("loss", ["mse", "c51", *SLOW])
def test_values_of_the_probes(loss):
    c = dataclasses.replace(TINY, loss=loss)
    learned = learn(pqn.make, c, [*PROBES, "probe-time-limit naive"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    bins = Bins(c.num_bins, c.v_min, c.v_max, loss=loss)
    net = pqn.NormalizedQNetwork(c.hidden, bins.out_shape(2), nn.initializers.zeros)
    obs = jnp.array([[-1.0], [0.0], [1.0]])
    q = bins.decode(jax.vmap(net.apply, (0, None))(learned.state.params, obs))
    one_step, two_step, obs, action, limit, naive = np.asarray(q)  # [obs -1, 0, 1; action]
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


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        ("probe-obs", {"loss": "huber"}, "loss 'huber' is unknown"),
        (
            "probe-obs",
            {"num_minibatches": 5},
            "num_minibatches=5 does not divide num_envs \\* num_steps = 16",
        ),
        ("probe-obs", {"num_bins": 1}, "num_bins is 1; it must be at least 2"),
        ("probe-obs", {"v_max": -3.0}, "v_min=-2.0 must be less than v_max=-3.0"),
        ("probe-obs", {"sigma_ratio": -1.0}, "sigma_ratio is -1; it must be more than 0"),
        ("probe-obs-continuous", {}, "continuous actions"),
    ],
)
def test_bad_input_is_refused(env, fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        pqn.make(clean(dataclasses.replace(SMALL, **fields)), rlzoo.make(env))
