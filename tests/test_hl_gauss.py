"""HL-Gauss: its targets against identities and known numbers, its losses against NumPy, dqn.py bit
for bit, probes."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf
from probes import PROBES
from rlzoo.algorithms import dqn, hl_gauss
from scipy.special import entr, log_softmax, softmax
from together import learn, quick_jit

import rlzoo
from rlzoo.algorithm import clean
from rlzoo.bins import Loss
from rlzoo.env import Transition
from rlzoo.fast import patches3x3
from rlzoo.replay import Sample
from rlzoo.suites.files import load

GAMMA = 0.9
LOSSES = get_args(Loss)
PROGRAMS = Path(__file__).parent.parent / "scripts" / "programs"
two_hot, gauss = quick_jit(hl_gauss.two_hot), quick_jit(hl_gauss.hl_gauss)
project, kl = quick_jit(hl_gauss.project), quick_jit(hl_gauss.kl)


def config(bins=51, low=-10.0, high=10.0, ratio=0.75, loss="hl_gauss", **fields):
    return hl_gauss.Config(
        loss=loss, num_bins=bins, v_min=low, v_max=high, sigma_ratio=ratio, **fields
    )


def support(config):
    """Centers and spacing in float64, by the definitions: the atoms, or bins from v_min to
    v_max."""
    if config.widen or config.loss in ("two_hot", "c51"):
        return np.linspace(config.v_min, config.v_max, config.num_bins), (
            config.v_max - config.v_min
        ) / (config.num_bins - 1)
    edges = np.linspace(config.v_min, config.v_max, config.num_bins + 1)
    return (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]


def scalars(config, rng, count=10_000, margin=0.0):
    return rng.uniform(config.v_min + margin, config.v_max - margin, count).astype(np.float32)


# ---- two-hot -------------------------------------------------------------------------------------


def check_two_hot(two_hot, bins):
    rng = np.random.default_rng(bins)
    c = config(bins, -rng.uniform(1, 50), rng.uniform(1, 50), loss="two_hot")
    z = support(c)[0]
    y = scalars(c, rng, margin=-0.2 * (c.v_max - c.v_min))  # some outside
    p = np.asarray(two_hot(y, c), float)
    assert p.min() >= 0 and (p > 0).sum(-1).max() <= 2
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(p @ z, np.clip(y, c.v_min, c.v_max), atol=5e-7 * (c.v_max - c.v_min))
    np.testing.assert_allclose(two_hot(z.astype(np.float32), c), np.eye(bins), atol=1e-4)
    ends = np.float32([c.v_min - 1e-3, -1e9, -np.inf, c.v_max + 1e-3, 1e9, np.inf])
    assert np.array_equal(two_hot(ends, c), np.eye(bins)[[0] * 3 + [-1] * 3])


@pytest.mark.parametrize("bins", [2, 3, 21, 51, 255])
def test_two_hot_keeps_the_mean(bins):
    check_two_hot(two_hot, bins)


def misprinted(y, c):
    """Equation 3.2 as printed: the weights of the two atoms the other way round."""
    z, width = support(c)
    lower = z[0] + width * np.floor((np.clip(y, c.v_min, c.v_max - 1e-3) - z[0]) / width)
    return two_hot(np.float32(2 * lower + width - y), c)


def in_bf16(target):
    return lambda y, c: np.asarray(target(jnp.asarray(y, jnp.bfloat16), c))


@pytest.mark.parametrize("wrong", [misprinted, in_bf16(two_hot)])
def test_wrong_two_hots_are_found(wrong):
    with pytest.raises(AssertionError):
        check_two_hot(wrong, 51)


# ---- HL-Gauss ------------------------------------------------------------------------------------


def plain_gauss(y, c, dtype=jnp.float32):
    """Section 3.1 as listed, without clipping."""
    z, width = support(c)
    edges = np.append(z - width / 2, z[-1] + width / 2).astype(dtype)
    cdf = erf(
        (edges - jnp.asarray(y, dtype)[..., None])
        / jnp.asarray(2**0.5 * c.sigma_ratio * width, dtype)
    )
    return np.asarray((cdf[..., 1:] - cdf[..., :-1]) / (cdf[..., -1:] - cdf[..., :1]), np.float32)


def check_gauss(gauss, c):
    """Sums and signs anywhere; mean and variance where the Gaussian fits into the range."""
    rng = np.random.default_rng(c.num_bins)
    z, width = support(c)
    p = np.asarray(gauss(scalars(c, rng), c), float)
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    margin = (5 * c.sigma_ratio + 1) * width
    if 2 * margin < c.v_max - c.v_min:
        y = scalars(c, rng, margin=margin)
        p = np.asarray(gauss(y, c), float)
        ripple = np.exp(
            -2 * np.pi**2 * c.sigma_ratio**2
        )  # of rounding a Gaussian, by where it lies between bins
        np.testing.assert_allclose(p @ z, y, atol=width * (1.05 * ripple / np.pi + 2e-5))
        variance = (p * (z - (p @ z)[:, None]) ** 2).sum(-1) / width**2
        slack = 1.05 * (1 / np.pi**2 + 4 * c.sigma_ratio**2) * ripple + 1e-3 * max(
            1, c.sigma_ratio**2
        )
        if c.sigma_ratio >= 0.5:
            np.testing.assert_allclose(variance, c.sigma_ratio**2 + 1 / 12, atol=slack)


@pytest.mark.parametrize("widen", [True, False])
@pytest.mark.parametrize("bins", [2, 3, 21, 51, 255])
def test_gauss_has_the_mean_and_variance_of_a_rounded_gaussian(bins, widen):
    rng = np.random.default_rng(bins)
    for ratio in (0.25, 0.5, 0.75, 1.0, 2.0):
        check_gauss(
            gauss, config(bins, -rng.uniform(1, 50), rng.uniform(1, 50), ratio, widen=widen)
        )


def test_wrong_gauss_is_found():
    with pytest.raises(AssertionError):
        check_gauss(lambda y, c: plain_gauss(y, c, jnp.bfloat16), config())
    with pytest.raises(AssertionError):
        check_gauss(in_bf16(gauss), config())
    with pytest.raises(AssertionError):
        check_gauss(
            lambda y, c: gauss(y, dataclasses.replace(c, widen=False)), config()
        )  # the other bins
    with pytest.raises(AssertionError):
        check_gauss(
            lambda y, c: gauss(y, dataclasses.replace(c, sigma_ratio=0.75 / 2**0.5)), config()
        )


@pytest.mark.parametrize(
    ("ratio", "bias", "entropy"),
    [
        (0.25, 0.0927, 0.455),
        (0.5, 2.29e-3, 0.870),
        (0.75, None, 1.200),
        (1.0, None, 1.459),
        (2.0, None, 2.122),
    ],
)
def test_bias_and_entropy_inside(ratio, bias, entropy):
    """Known numbers, in widths of a bin and nats."""
    c = config(51, ratio=ratio, widen=False)
    z, width = support(c)
    y = np.linspace(-width, width, 2001, dtype=np.float32)
    p = np.asarray(gauss(y, c), float)
    if bias:
        assert np.abs(p @ z - y).max() / width == pytest.approx(bias, rel=0.01)
    assert entr(p).sum(-1).mean() == pytest.approx(entropy, abs=5e-3)
    assert ratio != 0.75 or np.sort(p)[:, -6:].sum(-1).min() >= 0.9995


@pytest.mark.parametrize(
    ("ratio", "distance", "bias"),
    [
        (0.75, 0, 0.690),
        (0.75, 0.5, 0.369),
        (0.75, 1, 0.155),
        (0.75, 1.5, 0.047),
        (0.75, 2, 0.0096),
        (2.0, 0, 1.63),
        (2.0, 1, 1.04),
        (2.0, 2, 0.587),
        (2.0, 4, 0.113),
    ],
)
def test_bias_at_the_edges(ratio, distance, bias):
    """Known numbers: the pull inwards of a target so many bins inside the outer edge, in bins."""
    c = config(51, ratio=ratio, widen=False)
    z, width = support(c)
    ends = np.float32([c.v_max - distance * width, c.v_min + distance * width])
    pull = (ends - np.asarray(gauss(ends, c), float) @ z) / width
    np.testing.assert_allclose(pull, [bias, -bias], rtol=0.02)


@pytest.mark.parametrize("widen", [True, False])
def test_targets_outside_the_range_are_those_at_its_ends(widen):
    c = config(widen=widen)
    sigma = 0.75 * support(c)[1]
    far = np.float32([1, 5, 5.3, 6, 10, 1e3, 1e30, np.inf])
    ends = np.asarray(gauss(np.float32([c.v_min, c.v_max]), c))
    for end, y in zip(ends, (c.v_min - sigma * far, c.v_max + sigma * far), strict=True):
        p = np.asarray(gauss(y, c))
        assert np.isfinite(p).all() and np.array_equal(p, np.tile(end, (len(far), 1)))
        assert np.isnan(plain_gauss(y, c)).any()  # what clipping guards against
        wide = jnp.asarray(y, jnp.bfloat16)
        assert np.isfinite(gauss(wide, c)).all()


def test_small_sigma_is_the_nearest_bin_and_not_two_hot():
    c = config(ratio=1e-3)
    z, width = support(c)
    y = scalars(c, np.random.default_rng(0))
    y = y[np.abs((y - z[0]) / width % 1 - 0.5) > 0.02]  # not between two bins
    nearest = np.eye(c.num_bins)[np.abs(y[:, None] - z).argmin(-1)]
    np.testing.assert_allclose(gauss(y, c), nearest, atol=1e-6)
    assert np.abs(np.asarray(two_hot(y, c)) - nearest).max() > 0.4


@pytest.mark.parametrize("widen", [True, False])
def test_box_in_place_of_the_gaussian_is_two_hot_on_the_centers(monkeypatch, widen):
    c = config(widen=widen)
    box = lambda x: jnp.clip(
        x * 8**0.5 * c.sigma_ratio, -1.0, 1.0
    )  # of one bin's width, in the argument of erf
    monkeypatch.setattr(hl_gauss, "erf", box)
    y = scalars(c, np.random.default_rng(0), margin=support(c)[1])
    boxed = quick_jit(lambda y, c: hl_gauss.hl_gauss(y, c))(y, c)
    np.testing.assert_allclose(boxed, two_hot(y, c), atol=2e-5)


@pytest.mark.parametrize("noise", [0.3, 1.0, 1.5])
def test_noise_of_the_target_widens_sigma(noise):
    """E HL_sigma(y + N(0, s^2)) = HL_sqrt(sigma^2 + s^2)(y), with the expectation by Gauss-Hermite
    quadrature."""
    c = config(101)
    width = support(c)[1]
    y = scalars(c, np.random.default_rng(0), 200, margin=20 * width)
    nodes, weights = np.polynomial.hermite.hermgauss(60)
    noisy = np.asarray(gauss(np.float32(y[:, None] + 2**0.5 * noise * width * nodes), c), float)
    expected = (noisy * weights[:, None]).sum(1) / np.pi**0.5
    wider = np.asarray(gauss(y, dataclasses.replace(c, sigma_ratio=float(np.hypot(0.75, noise)))))
    np.testing.assert_allclose(wider, expected, atol=2e-5)
    assert np.abs(np.asarray(gauss(y, c)) - expected).max() > 0.01


# ---- C51 -----------------------------------------------------------------------------------------


def scattered(probs, reward, discount, c, whole=True):
    """Algorithm 1 of arXiv 1707.06887 in NumPy. `whole=False` loses the mass that falls right on an
    atom, as the listing does where lower and upper atom are the same."""
    z, width = support(c)
    out = np.zeros(probs.shape)
    for i, row in enumerate(np.asarray(probs, float)):
        b = (np.clip(reward[i] + discount[i] * z, c.v_min, c.v_max) - c.v_min) / width
        b = np.where(np.abs(b - b.round()) < 1e-5, b.round(), b)
        lower, upper = np.floor(b).astype(int), np.ceil(b).astype(int)
        np.add.at(out[i], lower, row * (upper - b + (lower == upper) * whole))
        np.add.at(out[i], upper, row * (b - lower))
    return out


def check_project(project, bins=51):
    rng = np.random.default_rng(bins)
    c = config(bins, loss="c51")
    z = support(c)[0]
    probs = softmax(3 * rng.normal(size=(200, bins)), -1).astype(np.float32)
    reward, discount = (
        rng.uniform(-8, 8, 200).astype(np.float32),
        rng.uniform(0, 1, 200).astype(np.float32),
    )
    reward[:50] = rng.choice(z, 50)  # right on an atom
    discount[:100] = 0.0  # terminated
    found = np.asarray(project(probs, reward, discount, c), float)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found, scattered(probs, reward, discount, c), atol=2e-5)
    np.testing.assert_allclose(found[:100], two_hot(reward[:100], c), atol=1e-6)
    reward, discount = reward / 4, 0.7 * discount  # nothing clipped
    mean = np.asarray(project(probs, reward, discount, c), float) @ z
    np.testing.assert_allclose(mean, reward + discount * (probs @ z), atol=2e-5 * 10)
    for j in (0, bins // 3, bins - 1):  # all mass on one atom
        certain = np.tile(np.eye(bins, dtype=np.float32)[j], (200, 1))
        moved = hl_gauss.two_hot(reward + discount * np.asarray(hl_gauss.centers(c)[0])[j], c)
        np.testing.assert_allclose(project(certain, reward, discount, c), moved, atol=1e-5)
        assert np.array_equal(
            hl_gauss.project(certain, reward, discount, c), moved
        )  # rounded alike: exact


@pytest.mark.parametrize("bins", [2, 51])
def test_projection_is_algorithm_1(bins):
    check_project(project, bins)


def test_projection_that_loses_mass_on_atoms_is_found():
    with pytest.raises(AssertionError):
        check_project(lambda *args: scattered(*args, whole=False))


def test_two_hot_of_a_noisy_target_is_the_projection_of_its_distribution():
    c = config(loss="c51")
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(size=(20, c.num_bins)), -1).astype(np.float32)
    reward, discount = rng.normal(size=20).astype(np.float32), np.full(20, GAMMA, np.float32)
    each = np.asarray(two_hot(reward[:, None] + discount[:, None] * np.float32(support(c)[0]), c))
    np.testing.assert_allclose(
        project(probs, reward, discount, c), (probs[..., None] * each).sum(1), atol=1e-6
    )


# ---- the loss ------------------------------------------------------------------------------------


def test_kl_and_its_gradient():
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(64, 51))).astype(np.float32)
    goal = np.array(gauss(scalars(config(), rng, 64), config()))
    goal[0] = np.eye(51)[3]  # zeros in the target
    value, grad = quick_jit(jax.vmap(jax.value_and_grad(hl_gauss.kl, 1)))(goal, logits)
    expected = -(goal * log_softmax(logits, -1)).sum(-1) - entr(goal).sum(-1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, softmax(logits, -1) - goal, atol=1e-6)
    assert np.abs(grad).sum(-1).max() <= 2 + 1e-5  # however large the error
    np.testing.assert_allclose(kl(goal[1:], np.log(np.maximum(goal[1:], 1e-30))), 0, atol=1e-5)


def test_two_bins_are_logistic_regression():
    c = config(2, -1.0, 3.0, loss="two_hot")
    rng = np.random.default_rng(0)
    y, logits = scalars(c, rng, 100), rng.normal(size=(100, 2)).astype(np.float32)
    share, x = (y + 1) / 4, logits[:, 1] - logits[:, 0]
    regression = -share * np.log(1 / (1 + np.exp(-x))) - (1 - share) * np.log(
        1 - 1 / (1 + np.exp(-x))
    )
    found = kl(two_hot(y, c), logits) + entr(np.asarray(two_hot(y, c))).sum(-1)
    np.testing.assert_allclose(found, regression, rtol=1e-4)


def test_descent_fits_the_target():
    c = config(51, -1.0, 1.0)
    goal = gauss(jnp.float32(0.37), c)
    descend = lambda i, logits: logits - 5.0 * jax.grad(hl_gauss.kl, 1)(goal, logits)
    logits = quick_jit(lambda: jax.lax.fori_loop(0, 4000, descend, jnp.zeros(51)))()
    assert float(hl_gauss.decode(logits, c)) == pytest.approx(0.37, abs=5e-4)
    assert 0 < float(kl(goal, logits)) < 1e-3


def target_of(y, c):
    """What a scalar target becomes, in NumPy."""
    if c.loss == "two_hot":
        z, width = support(c)
        return np.maximum(1 - np.abs(np.clip(y, c.v_min, c.v_max)[:, None] - z) / width, 0)
    return plain_gauss(np.clip(y, c.v_min, c.v_max), c)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_the_numpy_reference(loss):
    rng = np.random.default_rng(0)
    n, bins = 40, 11
    c = config(bins, -5.0, 5.0, loss=loss, double=loss in ("hl_gauss", "c51", "mse"))
    shape = (3,) if loss == "mse" else (3, bins)
    params, target_params = 2 * rng.normal(size=(2, 4, *shape)).astype(np.float32)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    action, reward = rng.integers(0, 3, n), 3 * rng.normal(size=n).astype(np.float32)
    terminated, truncated = rng.random((2, n)) < 0.3
    discount = (GAMMA ** rng.integers(1, 4, n)).astype(np.float32)
    weight = rng.random(n).astype(np.float32)
    sample = Sample(
        Transition(obs, action, reward, terminated, truncated, next_obs), discount, None, weight
    )
    run = lambda p, t, s, c: hl_gauss.td_loss(p, t, s, lambda p, o: jnp.tensordot(o, p, 1), c)
    (found, metrics), (grad, target_grad) = quick_jit(
        jax.value_and_grad(run, (0, 1), has_aux=True)
    )(params, target_params, sample, c)

    z, width = support(c)
    decode = lambda out: out if loss == "mse" else softmax(out, -1) @ z
    net = lambda p, o: np.tensordot(o, p.astype(float), 1)
    rows, live = np.arange(n), discount * ~terminated
    judge = net(target_params, next_obs)
    best = decode(net(params, next_obs) if c.double else judge).argmax(-1)
    target = reward + live * decode(judge)[rows, best]
    out = net(params, obs)[rows, action]
    value = decode(out)
    if loss.startswith("mse"):
        each = (value - target) ** 2
    else:
        goal = (
            scattered(softmax(judge[rows, best], -1), reward, live, c)
            if loss == "c51"
            else target_of(target, c)
        )
        each = -(goal * log_softmax(out, -1) + entr(goal)).sum(-1)
        slope = (weight / n)[:, None] * (softmax(out, -1) - goal)
        expected = np.stack([obs.T @ (slope * (action == a)[:, None]) for a in range(3)], 1)
        np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found, (weight * each).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/td"], found)
    np.testing.assert_allclose(metrics["error"], value - target, rtol=1e-3, atol=1e-4)
    assert np.any(grad) and not np.any(target_grad)

    outside = lambda margin: (np.abs(target) > 5 - margin).mean()
    assert 0 < outside(0) < outside(3 * 0.75 * width) < 1
    np.testing.assert_allclose(metrics["train/targets_outside"], outside(0), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["train/targets_near_edge"], outside(3 * 0.75 * width), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["train/target_max"].value, np.abs(target).max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/q"], value.mean(), rtol=1e-4)
    if loss != "mse":
        np.testing.assert_allclose(
            metrics["train/entropy"], entr(softmax(out, -1)).sum(-1).mean(), rtol=1e-4
        )
    masked = target + np.where(truncated & ~terminated, -discount * decode(judge)[rows, best], 0)
    assert (
        np.abs(masked - target).max() > 0.1
    )  # masking with truncated as well would be another loss


def chain():
    """Five states in a row: left and right, reward 1 and the end beyond the last, -0.1 a step; its
    Q in NumPy."""
    state, action = np.repeat(np.arange(5), 2), np.tile([0, 1], 5)
    after = np.clip(state + 2 * action - 1, 0, 4)
    terminated = (state == 4) & (action == 1)
    reward = np.where(terminated, 1.0, -0.1).astype(np.float32)
    q = np.zeros((5, 2))
    for _ in range(200):
        q = (reward + GAMMA * ~terminated * q.max(-1)[after]).reshape(5, 2)
    return Transition(state, action, reward, terminated, np.zeros(10, bool), after), q


@pytest.mark.parametrize("loss", LOSSES)
def test_tables_converge_to_the_values_of_a_chain(loss):
    batch, q = chain()
    sample = Sample(batch, np.full(10, GAMMA, np.float32), None, np.ones(10, np.float32))
    c = config(21, -2.0, 2.0, loss=loss)
    start = jnp.zeros((5, 2) if loss == "mse" else (5, 2, 21))
    rate = 20.0 if loss not in ("mse", "mse_softmax") else 2.0

    def sweep(table, _):
        move = lambda i, p: (
            p
            - rate
            * jax.grad(lambda p: hl_gauss.td_loss(p, table, sample, lambda p, s: p[s], c)[0])(p)
        )
        return jax.lax.fori_loop(0, 300, move, table), None

    table = quick_jit(lambda table: jax.lax.scan(sweep, table, None, 40)[0])(start)
    np.testing.assert_allclose(
        hl_gauss.decode(table, c), q, atol=0.01 * 0.2 if loss != "c51" else 0.02
    )


# ---- networks ------------------------------------------------------------------------------------


def test_dense_on_patches_is_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    conv, dense = nn.Conv(5, (3, 3), padding="VALID"), nn.Dense(5)

    @quick_jit
    def both(x):
        params = dense.init(jax.random.key(1), jnp.zeros((5, 4, 27)))["params"]
        as_conv = {"kernel": params["kernel"].reshape(3, 3, 3, 5), "bias": params["bias"] + 1.0}
        return dense.apply({"params": params}, patches3x3(x)) + 1.0, conv.apply(
            {"params": as_conv}, x
        )

    np.testing.assert_allclose(*both(x), rtol=1e-4, atol=1e-5)


def sizes(env, module=hl_gauss, **fields):
    alg = module.make(module.Config(env=env, **fields), rlzoo.make(env))
    state = jax.eval_shape(alg.init, jax.random.key(0))
    return {
        re.sub(r"\['params'\]|[\[\]']+", " ", jax.tree_util.keystr(path)).split()[0]
        + "/"
        + path[-1].key: x.shape
        for path, x in jax.tree_util.tree_flatten_with_path(state.params)[0]
    }


def test_torsos():
    plain = sizes("CartPole-v1", hidden=(8, 4), num_bins=7)
    assert [plain[f"Dense_{i}/kernel"] for i in range(3)] == [(4, 8), (8, 4), (4, 2 * 7)]
    assert sizes("CartPole-v1", hidden=(8, 4), loss="mse")["Dense_2/kernel"] == (4, 2)
    image = dict(env="Breakout-MinAtar", hidden=(12,), num_bins=7)
    wide = sizes(**image)
    assert wide["Conv3x3_0/kernel"] == (36, 16)
    assert [wide[f"Dense_{i}/kernel"] for i in range(2)] == [(8 * 8 * 16, 12), (12, 3 * 7)]
    assert sizes(**image, channels=0)["Dense_0/kernel"] == (400, 12)


# ---- scripts/programs/scaled_hl_gauss.py ---------------------------------------------------------


@pytest.fixture(scope="module")
def scaled():
    return load(PROGRAMS / "scaled_hl_gauss.py")


@pytest.mark.parametrize(("experts", "slots"), [(1, 5), (2, 3), (8, 1)])
def test_softmoe_is_the_numpy_reference(scaled, experts, slots):
    moe = scaled.SoftMoE(experts, 6, None)
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    found, params = quick_jit(lambda x: moe.init_with_output(jax.random.key(0), x))(x)
    phi, expert = params["params"]["Dense_0"]["kernel"], params["params"]["VmapExpert_0"]
    kernel, bias = (
        [np.asarray(expert[f"Dense_{i}"][name], float) for i in (0, 1)]
        for name in ("kernel", "bias")
    )
    assert phi.shape == (4, experts * slots) and kernel[0].shape == (experts, 4, 6)
    assert experts == 1 or not np.allclose(kernel[0][0], kernel[0][1])  # each starts on its own
    for tokens, out in zip(x, np.asarray(found), strict=True):
        routes = tokens @ np.asarray(phi)
        mixed = softmax(routes, 0).T @ tokens  # every slot mixes all tokens
        done = [
            np.maximum(slot @ kernel[0][e] + bias[0][e], 0) @ kernel[1][e] + bias[1][e]
            for e, slot in zip(np.repeat(np.arange(experts), slots), mixed, strict=True)
        ]
        np.testing.assert_allclose(out, softmax(routes, 1) @ np.stack(done), rtol=1e-4, atol=1e-5)


def test_softmoe_stands_in_place_of_the_hidden_layer(scaled):
    image = dict(env="Breakout-MinAtar", hidden=(12,), num_bins=7)
    mixture = sizes(**image, module=scaled, experts=2)
    assert mixture["Conv3x3_0/kernel"] == (36, 16)
    assert mixture["SoftMoE_0/bias"] == (2, 16)
    assert mixture["Dense_0/kernel"] == (8 * 8 * 16, 3 * 7)


@pytest.mark.parametrize(
    ("env", "hidden", "message"),
    [
        ("probe-obs", (8,), "experts=2 .* hidden=\\(8,\\) and obs \\(1,\\)"),
        ("Breakout-MinAtar", (8, 8), "experts=2 .* hidden=\\(8, 8\\)"),
    ],
)
def test_softmoe_without_its_place_is_refused(scaled, env, hidden, message):
    with pytest.raises(rlzoo.Refused, match=message):
        scaled.make(scaled.Config(experts=2, hidden=hidden), rlzoo.make(env))


# ---- starts, precision ---------------------------------------------------------------------------


@quick_jit
def starts(c):
    bias = hl_gauss.initial_bias(c, 3)
    return bias, hl_gauss.decode(bias, c), hl_gauss.decode(0.0 * bias, c)


@pytest.mark.parametrize(("low", "high"), [(-10.0, 10.0), (0.0, 20.0), (-1.0, 19.0), (-30.0, 2.0)])
def test_values_start_at_zero_whatever_the_range(low, high):
    for loss in ("hl_gauss", "c51"):
        c = config(51, low, high, loss=loss)
        bias, value, without = starts(c)
        assert bias.shape == (3, 51) and (low == -high) == (not np.any(bias))
        np.testing.assert_allclose(value, 0.0, atol=support(c)[1] * (0.4 if low == 0 else 0.01))
        np.testing.assert_allclose(without, (low + high) / 2, atol=1e-4)  # the middle of the range
    assert not np.any(hl_gauss.initial_bias(config(loss="mse", low=0.0), 3))


def low_precision(jaxpr):
    """Names of the primitives that take bfloat16 anywhere in `jaxpr`."""
    names = set()
    for eqn in jaxpr.eqns:
        names |= (
            {eqn.primitive.name} if any(v.aval.dtype == jnp.bfloat16 for v in eqn.invars) else set()
        )
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            names |= low_precision(inner)
    return names


@pytest.mark.parametrize("loss", ["hl_gauss", "c51"])
def test_bf16_torso_leaves_targets_and_losses_in_float32(loss, monkeypatch):
    def primitives():
        alg = hl_gauss.make(
            dataclasses.replace(SMALL, loss=loss, bf16=True), rlzoo.make("probe-obs")
        )
        state = jax.eval_shape(alg.init, jax.random.key(0))
        assert all(
            x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, state.target_params))
        )
        return low_precision(jax.make_jaxpr(alg.step)(state, jnp.int32(0)).jaxpr)

    numeric = {
        "erf",
        "exp",
        "log",
        "sub",
        "div",
        "reduce_max",
    }  # of softmax, of targets and of the loss
    found = primitives()
    assert "dot_general" in found and not found & numeric
    bins = hl_gauss.centers
    monkeypatch.setattr(
        hl_gauss, "centers", lambda c: [jnp.asarray(x, jnp.bfloat16) for x in bins(c)]
    )
    assert primitives() & numeric  # bins in bfloat16: the bug this guards against


# ---- dqn.py --------------------------------------------------------------------------------------

SMALL = hl_gauss.Config(
    total_steps=80,
    num_envs=4,
    hidden=(8,),
    buffer_size=80,
    batch_size=8,
    learning_starts=20,
    target_every=12,
    learning_rate=0.01,
    v_min=-2.0,
    v_max=2.0,
    num_bins=11,
)


@pytest.mark.parametrize(
    "variant",
    [{}, pytest.param({"double": True, "n_step": 3, "prioritized": True}, marks=pytest.mark.slow)],
)
def test_mse_is_dqn_bit_for_bit(variant):
    fields = dict(
        total_steps=6000,
        buffer_size=1000,
        batch_size=16,
        learning_starts=200,
        hidden=(16, 8),
        **variant,
    )
    env = rlzoo.make("CartPole-v1")

    def train(module, config):
        def run(config):
            alg = module.make(config, env)
            return jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(400))

        state, metrics = quick_jit(run)(config)
        return (state.params, state.target_params, state.opt_state, state.buffer), metrics

    ours, metrics = train(hl_gauss, hl_gauss.Config(loss="mse", **fields))
    theirs, known = train(dqn, dqn.Config(**fields))
    for a, b in zip(
        jax.tree.leaves((ours, {k: metrics[k] for k in known})),
        jax.tree.leaves((theirs, known)),
        strict=True,
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert known["loss/td"][1].sum() == 380 and known["train/return"][1].sum() > 10


# ---- training ------------------------------------------------------------------------------------

TINY = hl_gauss.Config(
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
    num_bins=21,
    v_min=-12.0,
    v_max=12.0,
)


SLOW = [
    pytest.param(loss, marks=pytest.mark.slow) for loss in ("two_hot", "c51", "mse_softmax")
]  # the chain has them


@pytest.mark.parametrize("loss", ["hl_gauss", *SLOW])  # mse: bit for bit that of test_dqn.py
def test_values_of_the_probes(loss):
    c = dataclasses.replace(TINY, loss=loss)
    learned = learn(hl_gauss.make, c, [*PROBES, "probe-time-limit naive"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned.metrics))
    net = hl_gauss.CategoricalQNetwork(c.hidden, (2, c.num_bins), nn.initializers.zeros)
    obs = jnp.array([[-1.0], [0.0], [1.0]])
    q = hl_gauss.decode(jax.vmap(net.apply, (0, None))(learned.state.params, obs), c)
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
        ("probe-obs", {"loss": "hl_gaus"}, "loss 'hl_gaus' is unknown; nearest: hl_gauss"),
        ("probe-obs", {"num_bins": 1}, "num_bins is 1; it must be at least 2"),
        ("probe-obs", {"channels": -1}, "channels is -1; it must be at least 0"),
        ("probe-obs", {"v_min": 2.0}, "v_min=2.0 must be less than v_max=2.0"),
        ("probe-obs", {"sigma_ratio": 0.0}, "sigma_ratio is 0; it must be more than 0"),
        ("probe-obs", {"batch_size": 100}, "batch_size=100 is more than buffer_size=80"),
        ("probe-obs-continuous", {}, "continuous actions"),
        (
            "probe-obs",
            {"learning_starts": 11, "n_step": 3},
            "learning_starts=11 .* n_step \\* num_envs = 12",
        ),
    ],
)
def test_bad_input_is_refused(env, fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        hl_gauss.make(clean(dataclasses.replace(SMALL, **fields)), rlzoo.make(env))
