"""MEX-MB: its term against analytic gradients, and mbpo.py without it, bit for bit."""

import dataclasses
from typing import NamedTuple

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import mbpo, mex_mb

import rlzoo
from rlzoo.dynamics import Batch, Ensemble, Prediction, gaussian_nll

KEY = jax.random.key(0)
CONFIG = mex_mb.Config(discount=0.9)


# ---- the term ------------------------------------------------------------------------------------


class Params(NamedTuple):
    actor: float
    critics: float


def actor(params, obs):
    """A Gaussian around params * obs, so narrow that it is a point."""
    return distrax.MultivariateNormalDiag(params * obs, jnp.full_like(obs, 1e-6))


def critics(params, obs, action):
    """Two linear values of the observation, of which the smaller counts."""
    value = params * obs[:, 0]
    return jnp.stack([value, value + 1.0])


MODEL = jnp.array([0.7, 0.2, -0.3, 0.4])
"""next_obs = 0.7 obs + 0.2 action, reward = -0.3 obs + 0.4 action, in the mean"""
STD = jnp.array([0.5, 0.2])
POLICY, SLOPE = 0.3, 2.0


def predict_with(model):
    def predict(obs, action):
        mean = jnp.concatenate(
            [model[0] * obs + model[1] * action, model[2] * obs + model[3] * action], -1
        )
        return Prediction(mean, jnp.broadcast_to(STD, mean.shape))

    return predict


def batch_of(obs, weight=None):
    obs = jnp.asarray(obs, jnp.float32)[:, None]
    n = len(obs)
    weight = jnp.ones(n) if weight is None else jnp.asarray(weight, jnp.float32)
    return Batch(obs, jnp.zeros((n, 1)), jnp.zeros(n), obs, weight)


def term(model, batch, key=KEY, params=Params(POLICY, SLOPE), critics=critics):  # noqa: B008
    return mex_mb.model_optimism(params, predict_with(model), batch, key, actor, critics, CONFIG)


def test_its_gradient_is_the_analytic_one():
    """A linear-Gaussian model with linear values at one state, s = 1.5 and a = 0.3 s.

    A = r + g k s' - k s has the deviation sqrt(0.2^2 + (g k 0.5)^2), and E[grad log p A] is g k
    times the gradient of the mean of s', plus that of the mean of r; over 2 dimensions.
    """
    n, s = 1_000_000, 1.5
    a = POLICY * s
    gain = CONFIG.discount * SLOPE
    deviation = np.sqrt(0.2**2 + (gain * 0.5) ** 2)
    expected = np.array([gain * s, gain * a, s, a]) / deviation / 2
    found = jax.jit(jax.grad(term))(MODEL, batch_of(np.full(n, s)))
    # Each row gives e_d / std_d A / deviation / 2, e normal; its deviation is below that of
    # |e| (|e| + 1) / std_d, about 2 / std_d.
    error = 3 * np.array([s / 0.5, a / 0.5, s / 0.2, a / 0.2]) / np.sqrt(n)
    assert (np.abs(found - expected) < error).all()
    assert (error < np.abs(expected) / 20).all(), "which is a sharp test"


def test_its_value_by_hand():
    """Against NumPy on the draws of the keys, of which the last row is not real."""
    batch = batch_of([1.0, -0.5, 2.0, 0.3, 7.0], [1, 1, 1, 1, 0])
    noise_key = jax.random.split(KEY, 3)[1]
    noise = np.asarray(jax.random.normal(noise_key, (5, 2)))
    obs = np.asarray(batch.obs[:, 0])
    action = POLICY * obs
    mean = np.stack([0.7 * obs + 0.2 * action, -0.3 * obs + 0.4 * action], -1)
    outcome = mean + np.asarray(STD) * noise
    advantage = outcome[:, 1] + 0.9 * SLOPE * outcome[:, 0] - SLOPE * obs
    real = advantage[:4]
    normal = (real - real.mean()) / real.std(ddof=1)
    log_prob = -0.5 * noise**2 - np.log(np.asarray(STD)) - 0.5 * np.log(2 * np.pi)
    expected = (log_prob[:4].mean(-1) * normal).mean()
    np.testing.assert_allclose(term(MODEL, batch), expected, rtol=1e-3, atol=1e-4)


def test_policy_and_critics_get_no_gradient():
    params = Params(jnp.float32(POLICY), jnp.float32(SLOPE))
    batch = batch_of([1.0, -0.5, 2.0])
    slopes = jax.grad(lambda params: term(MODEL, batch, params=params))(params)
    assert slopes == Params(0.0, 0.0)
    assert jnp.abs(jax.grad(term)(MODEL, batch)).min() > 0, "while the model does"


@pytest.mark.slow
@pytest.mark.parametrize("rows", [5, 256])
def test_a_constant_advantage_gives_exactly_nothing(rows):
    """Values of 0.3 everywhere and a reward of 0.1, which no float holds exactly: without care the
    normalization would blow up what rounding leaves."""
    flat = lambda params, obs, action: jnp.full((2, len(obs)), 0.3)

    def value(scale):
        def predict(obs, action):
            mean = jnp.stack([obs[:, 0], jnp.full(rows, 0.1)], -1)
            return Prediction(scale * mean, jnp.broadcast_to(jnp.array([1.0, 1e-30]), mean.shape))

        batch = batch_of(jax.random.normal(KEY, (rows,)))
        return mex_mb.model_optimism(
            Params(POLICY, SLOPE), predict, batch, KEY, actor, flat, CONFIG
        )

    assert value(1.0) == 0 and jax.grad(value)(1.0) == 0


def test_one_real_row_gives_nothing():
    assert term(MODEL, batch_of([1.0, 2.0, 3.0], [1, 0, 0])) == 0


# ---- the model's own loss ------------------------------------------------------------------------


def test_likelihood_and_bounds_against_numpy():
    """Log-variances are bent softly between -10 and 0.5; the loss is a mean over rows and
    dimensions, without 1/2 and 2 pi."""
    model = Ensemble(1, 1, 1, 1, hidden=(3,), learn_bounds=False, weight_decay=0.0)
    state = model.init(KEY)
    params = jax.tree.map(lambda x: 8 * x[0], state.params)
    params = params._replace(min_log_var=jnp.full(2, -10.0), max_log_var=jnp.full(2, 0.5))
    rng = np.random.default_rng(0)
    obs, action, next_obs = rng.normal(size=(3, 30, 1)).astype(np.float32)
    reward = rng.normal(size=30).astype(np.float32)
    batch = Batch(obs, action, reward, next_obs, np.ones(30, np.float32))
    hidden = np.concatenate([obs, action], -1) @ params.kernels[0] + params.biases[0]
    out = hidden / (1 + np.exp(-hidden)) @ params.kernels[1] + params.biases[1]
    mean, raw = np.split(np.asarray(out), 2, -1)
    softplus = lambda x: np.logaddexp(0, x)
    log_var = 0.5 - softplus(0.5 - raw)
    log_var = -10 + softplus(log_var + 10)
    target = np.stack([(next_obs - obs)[:, 0], reward], -1)
    loss = ((target - mean) ** 2 * np.exp(-log_var) + log_var).mean()
    found, _ = model.loss(params, state.inputs, batch)
    np.testing.assert_allclose(found, loss, rtol=1e-4)
    assert log_var.max() < 0.5001 and np.ptp(raw) > 1
    np.testing.assert_allclose(gaussian_nll(mean, log_var, target).mean(), loss, rtol=1e-5)


# ---- against mbpo.py -----------------------------------------------------------------------------

SMALL = {
    "env": "band-mass",
    "total_steps": 60,
    "updates_per_step": 2,
    "hidden": (8,),
    "batch_size": 8,
    "learning_starts": 20,
    "model_hidden": (8,),
    "model_every": 10,
    "model_epochs": 3,
    "rollouts_per_step": 4,
}


def run(module, **fields):
    """The state after 40 steps that learn, in which the model is fitted 4 times."""
    config = module.Config(**SMALL | fields)
    algorithm = module.make(config, rlzoo.make(config.env))

    def whole():
        body = lambda state, t: (algorithm.step(state, t)[0], None)
        return jax.lax.scan(body, algorithm.init(KEY), jnp.arange(config.total_steps))[0]

    return jax.jit(whole)()


@pytest.fixture(scope="module")
def plain():
    return run(mbpo)


def leaves(state):
    return jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))


@pytest.mark.slow
def test_switched_off_it_is_mbpo_bit_for_bit(plain):
    chex.assert_trees_all_equal(leaves(run(mex_mb, optimism=False)), leaves(plain))


@pytest.mark.slow
def test_with_eta_zero_it_is_mbpo_and_otherwise_not(plain):
    zero = run(mex_mb, eta=0.0)
    chex.assert_trees_all_close(leaves(zero), leaves(plain), rtol=1e-3, atol=1e-4)
    other = run(mex_mb, eta=0.1)
    kernels = [state.model.params.kernels[0] for state in (plain, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_the_files_differ_in_the_term_alone():
    """What is in both under one name and has another text is `make` and `Config`."""
    import ast
    import inspect

    texts = []
    for module in (mbpo, mex_mb):
        body = ast.parse(inspect.getsource(module)).body
        named = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        texts.append({node.name: ast.unparse(node) for node in named})
    assert texts[1].keys() - texts[0].keys() == {"model_optimism"}
    assert not texts[0].keys() - texts[1].keys()
    unlike = {name for name in texts[0] if texts[0][name] != texts[1][name]}
    assert unlike == {"Config", "make"}


def test_an_eta_that_overflows_is_refused():
    config = mex_mb.Config(**SMALL)
    with pytest.raises(rlzoo.Refused, match=r"eta=1e\+39 overflows"):
        mex_mb.make(dataclasses.replace(config, eta=1e39), rlzoo.make("band-mass"))
