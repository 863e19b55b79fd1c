"""The dynamics ensemble against NumPy, and its fit against the ways in which early stopping goes
wrong."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from together import quick_jit

import rlzoo
from rlzoo import dynamics
from rlzoo.dynamics import Batch, Ensemble, Inputs, Prediction, rollout
from rlzoo.env import Env, Transition
from rlzoo.suites import termination

OBS, ACTION, CAPACITY = 3, 1, 1000
MODEL = Ensemble(
    OBS,
    ACTION,
    members=3,
    elites=2,
    hidden=(32, 32),
    batch_size=64,
    max_epochs=100,
    improvement=0.0,
)
KEY = jax.random.key(0)
START = quick_jit(MODEL.init)(KEY)


def rows(obs, action, reward, next_obs):
    """As `Transition`s, padded to CAPACITY rows with NaN."""
    pad = lambda x: np.concatenate([x, np.full((CAPACITY - len(x), *x.shape[1:]), np.nan)]).astype(
        np.float32
    )
    flag = np.zeros(CAPACITY, bool)
    return Transition(pad(obs), pad(action), pad(reward), flag, flag, pad(next_obs))


# ---- one network ---------------------------------------------------------------------------------


def softplus(x):
    return np.logaddexp(0, x)


def numpy_outputs(model, params, inputs, obs, action):
    """Mean and log-variance of the targets of one member, in float64."""
    x = (np.concatenate([obs, action], -1) - inputs.mean) / inputs.std
    for kernel, bias in zip(params.kernels[:-1], params.biases[:-1], strict=True):
        x = x @ kernel + bias
        x = x / (1 + np.exp(-x))
    x = x @ params.kernels[-1] + params.biases[-1]
    if model.deterministic:
        return x, None
    mean, raw = x[:, : OBS + 1], x[:, OBS + 1 :]
    log_var = params.max_log_var - softplus(params.max_log_var - raw)
    return mean, params.min_log_var + softplus(log_var - params.min_log_var)


def numpy_loss(model, params, inputs, batch, decay):
    mean, log_var = numpy_outputs(model, params, inputs, batch.obs, batch.action)
    moved = batch.next_obs - batch.obs if model.delta else batch.next_obs
    error = (mean - np.c_[moved, batch.reward]) ** 2
    if not model.deterministic:
        error = error / np.exp(log_var) + log_var
    fit = error[batch.weight > 0].mean()
    total = fit + sum(d / 2 * (k**2).sum() for d, k in zip(decay, params.kernels, strict=True))
    if model.learn_bounds and not model.deterministic:
        total += model.bound_coef * (params.max_log_var - params.min_log_var).sum()
    return total, fit


@pytest.mark.parametrize(
    ("fields", "decay"),
    [
        (dict(weight_decay=(0.1, 0.2, 0.3)), (0.1, 0.2, 0.3)),
        (dict(delta=False, learn_bounds=False, weight_decay=0.1), (0.1,) * 3),
        (dict(deterministic=True, weight_decay=0.0), (0.0,) * 3),
    ],
)
def test_loss_gradient_and_prediction_are_the_numpy_reference(fields, decay):
    model = Ensemble(OBS, ACTION, members=2, elites=1, hidden=(8, 5), **fields)
    rng = np.random.default_rng(0)
    noisy = lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape)
    state = quick_jit(model.init)(KEY)
    params = jax.tree.map(noisy, state.params)
    inputs = Inputs(rng.normal(size=OBS + ACTION), rng.uniform(0.5, 2, OBS + ACTION))
    batch = Batch(
        rng.normal(size=(9, OBS)),
        rng.normal(size=(9, ACTION)),
        rng.normal(size=9),
        rng.normal(size=(9, OBS)),
        np.array([1.0] * 6 + [0.0] * 3),
    )
    single = lambda tree: jax.tree.map(np.float32, tree)
    state = state.replace(params=single(params), inputs=single(inputs))
    losses = jax.vmap(
        jax.value_and_grad(lambda p, b: model.loss(p, state.inputs, b), has_aux=True), (0, None)
    )
    run = quick_jit(lambda p, b: (losses(p, b), model.predict(state, b.obs, b.action)))
    ((total, fit), grads), found = run(single(params), single(batch))

    for i in range(2):
        member = jax.tree.map(lambda x, i=i: x[i], params)
        np.testing.assert_allclose(
            (total[i], fit[i]), numpy_loss(model, member, inputs, batch, decay), rtol=1e-4
        )
        for _ in range(5):  # slopes along random directions
            way = jax.tree.map(lambda x: rng.normal(size=x.shape), member)
            slope = sum(
                (g[i] * w).sum()
                for g, w in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True)
            )
            if not model.learn_bounds:
                way = way._replace(min_log_var=0 * way.min_log_var, max_log_var=0 * way.max_log_var)
            ahead, behind = (
                jax.tree.map(lambda x, w, h=h: x + h * w, member, way) for h in (1e-5, -1e-5)
            )
            rise = np.subtract(
                *(numpy_loss(model, p, inputs, batch, decay)[0] for p in (ahead, behind))
            )
            np.testing.assert_allclose(slope, rise / 2e-5, rtol=1e-3, atol=1e-4)
        mean, log_var = numpy_outputs(model, member, inputs, batch.obs, batch.action)
        mean[:, :OBS] += batch.obs * model.delta
        np.testing.assert_allclose(found.mean[i], mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            found.std[i], 0 if log_var is None else np.exp(log_var / 2), rtol=1e-3, atol=1e-6
        )
    if not model.learn_bounds:
        assert not np.any(grads.min_log_var) and not np.any(grads.max_log_var)


def test_log_variances_stay_within_their_bounds():
    model = Ensemble(OBS, ACTION, members=5, elites=1, hidden=(), log_var_bounds=(-6.0, 1.0))
    raw = jnp.array([-1e6, -30.0, -2.5, 30.0, 1e6])[:, None]
    bias = jnp.concatenate([jnp.zeros((5, OBS + 1)), jnp.tile(raw, OBS + 1)], -1)

    def deviations(key):
        state = model.init(key)
        params = state.params._replace(
            kernels=(jnp.zeros_like(state.params.kernels[0]),), biases=(bias,)
        )
        return model.predict(
            state.replace(params=params), jnp.zeros((1, OBS)), jnp.zeros((1, ACTION))
        ).std[:, 0, 0]

    found = 2 * np.log(quick_jit(deviations)(KEY))
    np.testing.assert_allclose(found[[0, 1, 3, 4]], [-6, -6, 1, 1], atol=2e-3)
    np.testing.assert_allclose(found[2], -2.5, atol=0.01)  # in the middle nothing is clamped
    assert (np.diff(found) >= 0).all()


def test_discrete_actions_are_one_hot():
    model = Ensemble(OBS, 4, members=2, elites=1, hidden=(5,))
    action = jnp.array([3, 0, 1, 1])

    def both(key):
        state, obs = model.init(key), jnp.ones((4, OBS))
        return model.predict(state, obs, action).mean, model.predict(
            state, obs, jnp.eye(4)[action]
        ).mean

    found, expected = quick_jit(both)(KEY)
    np.testing.assert_array_equal(found, expected)
    assert not np.allclose(found[:, 0], found[:, 1])


def test_sizes_of_mbrcsl_and_initialization():
    state = quick_jit(
        Ensemble(4, 2, members=2, elites=1, weight_decay=dynamics.MBPO_WEIGHT_DECAY).init
    )(KEY)
    kernels, biases = state.params.kernels, state.params.biases
    assert sum(x[0].size for x in (*kernels, *biases)) == 124_010  # counted in its code
    for kernel in kernels:
        unit = kernel * 2 * kernel.shape[1] ** 0.5
        assert (
            np.abs(unit).max() <= 2 and abs(unit.std() - 0.88) < 0.02
        )  # a normal cut at two deviations
    assert not any(np.any(bias) for bias in biases)
    assert len(np.unique(kernels[0][:, 0, 0])) == 2


# ---- fitting -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fit():
    """`fit(state, key, data, size, learning_rate, last)`, compiled once; last=1 is the variant
    whose snapshots are always the latest parameters. Also returned: the held-out and the training
    rows, as indices."""

    @quick_jit
    def run(state, key, data, size, learning_rate, last):
        model = dataclasses.replace(MODEL, learning_rate=learning_rate)
        object.__setattr__(model, "improvement", jnp.where(last, -jnp.inf, 0.0))
        split = model._split(jax.random.split(key, 3)[0], *model._rows(data, size))
        return model.fit(state, key, data, size), split

    def fit(state, key, data, size, learning_rate=0.01, last=False):
        (state, found), split = run(
            state, key, data, jnp.int32(size), jnp.float32(learning_rate), last
        )
        held = int(split.held)
        return state, found, np.asarray(split.order[:held]), np.asarray(split.order[held:size])

    return fit


@pytest.fixture(scope="module")
def predict():
    return quick_jit(MODEL.predict)


@pytest.fixture(scope="module")
def pendulum():
    """Transitions under random actions: CAPACITY to fit, as many to judge."""
    env = rlzoo.make("Pendulum-v1")

    def collect(key):
        reset_key, noise_key, key = jax.random.split(key, 3)
        noise = jax.random.uniform(noise_key, (CAPACITY // 20, 40, ACTION), minval=-1, maxval=1)
        start = env.reset(reset_key, 40)
        steps = env.rollout(
            start,
            lambda _, obs, action: (_, action, None),
            None,
            noise,
            key,
            len(noise),
            jnp.int32(0),
        )[2]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)

    steps = jax.tree.map(np.asarray, quick_jit(collect)(KEY))
    order = np.random.default_rng(0).permutation(2 * CAPACITY)
    return [
        jax.tree.map(lambda x, part=part: x[part], steps)
        for part in (order[:CAPACITY], order[CAPACITY:])
    ]


@pytest.fixture(scope="module")
def fitted(fit, pendulum):
    return fit(START, jax.random.key(1), pendulum[0], CAPACITY)


def errors(state, predict, data, index):
    """Mean squared error of each member over rows, from the data itself."""
    target = np.c_[data.next_obs, data.reward]
    return ((np.asarray(predict(state, data.obs, data.action).mean) - target) ** 2)[:, index].mean(
        (1, 2)
    )


def test_fit_beats_a_linear_model(fitted, predict, pendulum):
    state, found, _, _ = fitted
    train, test = pendulum
    features = lambda data: np.c_[data.obs, data.action, np.ones(CAPACITY)]
    target = lambda data: np.c_[data.next_obs - data.obs, data.reward]
    weights = np.linalg.lstsq(features(train), target(train), rcond=None)[0]
    linear = ((features(test) @ weights - target(test)) ** 2).mean()
    assert errors(state, predict, test, slice(None)).max() < 0.25 * linear
    assert found.loss.max() < -2  # nats, twice: confident, as the environment is deterministic
    assert errors(START, predict, test, slice(None)).min() > 10 * linear


def test_split_statistics_and_elites(fitted, predict, pendulum):
    state, found, held, trained = fitted
    assert len(held) == 0.2 * CAPACITY and sorted([*held, *trained]) == list(range(CAPACITY))
    x = np.c_[pendulum[0].obs, pendulum[0].action][trained]
    np.testing.assert_allclose(state.inputs.mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(state.inputs.std, x.std(0), rtol=1e-4)
    np.testing.assert_allclose(errors(state, predict, pendulum[0], held), found.holdout, rtol=1e-3)
    np.testing.assert_array_equal(state.elites, np.argsort(found.holdout)[:2])
    np.testing.assert_array_equal(state.holdout, found.holdout)
    assert len(np.unique(found.holdout)) == 3


def test_the_best_snapshot_is_returned(fit, predict):
    rng = np.random.default_rng(
        0
    )  # targets are noise: learning them by heart makes the held-out error rise
    data = rows(*(rng.normal(size=shape) for shape in ((60, OBS), (60, ACTION), 60, (60, OBS))))
    results = {}
    for last in (False, True):
        state, found, held, _ = fit(START, KEY, data, 60, 0.05, last)
        results[last] = errors(state, predict, data, held), np.asarray(found.history)
    (kept, history), (latest, full) = results[False], results[True]
    epochs = np.isfinite(history[:, 0]).sum() - 1
    lowest = np.nanmin(history, 0)
    np.testing.assert_allclose(kept, lowest, rtol=1e-3)
    assert (history[epochs] > 1.05 * lowest).all()
    np.testing.assert_array_equal(full[: epochs + 1], history[: epochs + 1])  # the same training
    assert (
        latest > 1.05 * np.nanmin(full, 0)
    ).all()  # returning the last parameters is not the same

    falls = (history[1 : epochs + 1] < np.minimum.accumulate(history[:epochs])).any(1)
    assert (
        not falls[-5:].any() and falls[-6]
    )  # it stopped after `patience` epochs in which no member improved
    assert 5 < epochs < MODEL.max_epochs


def test_rows_beyond_size_never_touch_the_result(fit, pendulum):
    data, size = pendulum[0], 130
    cut = jax.tree.map(lambda x: x[:size], data)
    filled = [rows(cut.obs, cut.action, cut.reward, cut.next_obs), data]
    assert np.isnan(filled[0].obs[size:]).all()
    results = [fit(START, KEY, full, size)[:2] for full in filled]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)
    state, found = results[0]
    assert np.isfinite(found.holdout).all() and all(
        np.isfinite(x).all() for x in jax.tree.leaves(state.params)
    )
    assert not np.isfinite(fit(START, KEY, filled[0], CAPACITY)[1].holdout).any()  # they would have


def test_a_constant_input_is_only_centred(fit):
    rng = np.random.default_rng(0)
    obs = np.c_[rng.normal(size=CAPACITY), np.full(CAPACITY, 0.1), np.full(CAPACITY, 1e4)]
    data = rows(obs, rng.normal(size=(CAPACITY, ACTION)), obs[:, 0], obs)
    inputs = fit(START, KEY, data, CAPACITY, 0.0)[0].inputs
    np.testing.assert_array_equal(inputs.std[1:3], 1)
    np.testing.assert_allclose(inputs.mean[1:3], [0.1, 1e4], rtol=1e-6)


def test_deviations_are_learned(fit, predict):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, CAPACITY)
    obs, deviation = np.tile(x, (OBS, 1)).T, 0.3 + 0.2 * x
    noise = rng.normal(size=(CAPACITY, OBS + 1)) * deviation[:, None]
    data = rows(obs, np.zeros((CAPACITY, ACTION)), x + noise[:, OBS], obs + noise[:, :OBS])
    state, found, _, _ = fit(
        START, KEY, data, CAPACITY, 3e-3, last=True
    )  # all epochs: it stops when the means are right
    assert found.epochs == MODEL.max_epochs
    at = np.linspace(-0.9, 0.9, CAPACITY)
    std = np.asarray(
        predict(state, np.tile(at, (OBS, 1)).T, np.zeros((CAPACITY, ACTION))).std
    ).mean((0, 2))
    np.testing.assert_allclose(std, 0.3 + 0.2 * at, rtol=0.2)
    assert std.max() > 3 * std.min()


def test_warm_start_goes_on_and_a_fresh_start_does_not(fitted, fit, pendulum):
    state, found, _, _ = fitted
    warm = fit(state, jax.random.key(2), pendulum[1], CAPACITY)[1]
    fresh = fit(START, jax.random.key(2), pendulum[1], CAPACITY)[1]
    assert (warm.history[0] < 0.1 * fresh.history[0]).all()
    assert (warm.holdout <= warm.history[0]).all() and warm.holdout.mean() < found.holdout.mean()
    np.testing.assert_allclose(fresh.history[0], found.history[0], rtol=0.5)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(
        jax.typeof, START
    )  # so that a scan can carry it


def test_shuffles_are_uniform_and_begin_with_the_real_rows():
    orders = np.asarray(
        quick_jit(jax.vmap(lambda key: dynamics._shuffle(key, 7, 4)))(jax.random.split(KEY, 5000))
    )
    np.testing.assert_array_equal(np.sort(orders[:, :4]), np.tile(np.arange(4), (5000, 1)))
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(7), (5000, 1)))
    shares = np.unique(orders[:, :4], axis=0, return_counts=True)[1] / 5000
    assert len(shares) == 24 and np.abs(shares - 1 / 24).max() < 5 * (1 / 24 / 5000) ** 0.5
    large = np.asarray(quick_jit(lambda key: dynamics._shuffle(key, 2**18))(KEY))
    halves = (large.reshape(-1, 256) < 2**17).mean(
        1
    )  # of each minibatch, from the older half of the rows
    assert abs(halves.std() - 1 / 32) < 0.003
    bits = np.random.default_rng(0).integers(0, 2**31, 2**18) & ~(
        2**18 - 1
    )  # one sort alone: 13 random bits
    once = np.sort(bits | np.arange(2**18)) & (2**18 - 1)
    assert (np.diff(once) > 0).mean() > 0.9 and abs((np.diff(large) > 0).mean() - 0.5) < 0.01


# ---- which rows a member sees, and what may be added to its loss ---------------------------------


class Seen(NamedTuple):
    """One minibatch of one member."""

    mean: Any
    """of the first predicted number"""
    row: Any
    """the batch's rewards, which name the rows"""
    weight: Any
    key: Any


@functools.cache
def recorder(bootstrap):
    """`record(learning_rate, coef) -> (minibatches seen, fit, held, trained)`, compiled once: two
    epochs of 40 rows of which 8 are held out, with coef * (mean - 7)^2 added to the loss."""
    model = Ensemble(
        OBS,
        ACTION,
        members=3,
        elites=1,
        hidden=(4,),
        batch_size=10,
        max_epochs=2,
        bootstrap=bootstrap,
    )
    rng = np.random.default_rng(0)
    data = rows(
        rng.normal(size=(40, OBS)),
        rng.normal(size=(40, ACTION)),
        np.arange(40),
        rng.normal(size=(40, OBS)),
    )
    seen = []

    @quick_jit
    def run(learning_rate, coef):
        def extra(predict, batch, key):
            mean = predict(batch.obs, batch.action).mean
            jax.debug.callback(
                lambda *x: seen.append(Seen(*x)), mean[:, 0].mean(), batch.reward, batch.weight, key
            )
            return coef * ((mean - 7) ** 2).mean()

        now = dataclasses.replace(model, learning_rate=learning_rate)
        order = now._split(jax.random.split(KEY, 3)[0], *now._rows(data, 40)).order
        return now.fit(now.init(KEY), KEY, data, 40, extra)[1], order

    def record(learning_rate, coef):
        seen.clear()
        found, order = run(jnp.float32(learning_rate), jnp.float32(coef))
        jax.effects_barrier()
        return list(seen), found, *np.split(np.asarray(order[:40]), [8])

    return record


def visits(seen):
    """How often each row was seen, over members and epochs."""
    return np.bincount(
        np.concatenate([x.row[x.weight > 0] for x in seen]).astype(int), minlength=40
    )


def test_shared_rows_are_visited_once_an_epoch_in_an_order_of_each_members_own():
    seen, _, held, trained = recorder(False)(0.0, 0.0)
    assert [x.weight.sum() for x in seen].count(10) == 3 * 2 * 3  # 32 rows in batches of 10
    assert [x.weight.sum() for x in seen].count(2) == 3 * 2
    assert (visits(seen)[trained] == 3 * 2).all() and not visits(seen)[held].any()
    alike = lambda of: len(seen) - len({of(x).tobytes() for x in seen})
    assert alike(lambda x: np.sort(x.row[x.weight > 0])) == 0  # over members and epochs
    assert alike(lambda x: jax.random.key_data(x.key)) == 0


def test_bootstraps_differ_between_members_and_stay_through_a_fit():
    seen, _, held, trained = recorder(True)(0.0, 0.0)
    counts = visits(seen)
    assert counts.sum() == 3 * 2 * len(trained) and not counts[held].any()
    assert (counts % 2 == 0).all()  # a member's second epoch goes through what its first did
    # Drawn with replacement, a row is missed with probability 1/e; were members alike, all of them
    # would miss it.
    assert (
        len(trained) / 3 > (counts[trained] == 0).sum()
        and (counts[trained] % 6 != 0).sum() > len(trained) / 3
    )


def test_extra_is_added_to_the_loss():
    means = lambda coef: np.mean(
        [x.mean for x in recorder(False)(0.2, coef)[0][12:]]
    )  # in the second epoch
    assert means(100.0) > means(0.0) + 1


# ---- members and seeds ---------------------------------------------------------------------------


@pytest.mark.slow
def test_members_and_seeds_together_are_as_alone_under_cond(pendulum):
    data = jax.tree.map(lambda x: x[:200], pendulum[0])
    model = Ensemble(OBS, ACTION, members=3, elites=2, hidden=(8,), batch_size=32, max_epochs=4)
    alone = dataclasses.replace(model, members=1, elites=1)
    keys = jax.random.split(KEY, 2)

    def step(model, state, key, t):
        """As an algorithm calls it: fits now and then, to the rows that are there by then."""
        due = lambda: model.fit(state, key, data, 100 * (t + 1))
        skip = lambda: (
            state,
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(due)[1]),
        )
        return jax.lax.cond(t % 2 == 1, due, skip)

    def together(keys):
        steps = lambda states, t: jax.vmap(functools.partial(step, model), (0, 0, None))(
            states, keys, t
        )
        return jax.lax.scan(steps, jax.vmap(model.init)(keys), jnp.arange(2))

    traced = quick_jit(together).trace(keys)
    assert " cond[" in str(traced.jaxpr)
    last, found = traced.lower().compile()(keys)
    np.testing.assert_array_equal(found.epochs, [[0, 0], [4, 4]])
    one = quick_jit(lambda key, t: step(alone, alone.init(key), key, t))
    for seed in range(2):
        state, fit = one(keys[seed], jnp.int32(1))  # the first member draws what it drew there
        np.testing.assert_allclose(found.history[1, seed, :, :1], fit.history, rtol=1e-3)
        first = jax.tree.map(lambda x, seed=seed: x[seed, :1], last.params)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)
    assert not np.allclose(found.history[1, 0], found.history[1, 1], rtol=1e-2)


# ---- stepping ------------------------------------------------------------------------------------


def test_steps_draw_every_elite_as_often_as_any_other():
    model = Ensemble(1, 1, members=4, elites=3, hidden=(), delta=False)

    def draws(keys):
        """Member i predicts i for everything, but member 1, which is no elite, nan."""
        state, obs = model.init(KEY), jnp.arange(7.0)[:, None]
        mean = jnp.array([0, jnp.nan, 2, 3])[:, None] * jnp.ones(4)
        params = state.params._replace(
            kernels=(jnp.zeros_like(state.params.kernels[0]),), biases=(mean,)
        )
        state = state.replace(params=params, elites=jnp.array([3, 0, 2]))
        return jax.vmap(lambda key: model.step(state, key, obs, obs, noise=False))(keys)

    next_obs, reward = map(np.asarray, quick_jit(draws)(jax.random.split(KEY, 3000)))
    np.testing.assert_array_equal(next_obs[..., 0], reward)
    shares = np.stack([(reward == member).mean(0) for member in (3, 0, 2)])
    np.testing.assert_allclose(shares, 1 / 3, atol=5 * (2 / 9 / 3000) ** 0.5)
    assert all(
        (reward == member).sum(1).max() <= 3 for member in (3, 0, 2)
    )  # 7 rows: at most 3 for each
    alike = (reward[:, 0] == reward[:, 1]).mean()
    np.testing.assert_allclose(
        alike, 2 / 8, atol=5 * (3 / 16 / 3000) ** 0.5
    )  # 3 places for each: 2 of the other 8


def test_steps_follow_the_members_gaussians(fitted, predict, pendulum):
    state = fitted[0]
    obs, action = pendulum[1].obs[:1], pendulum[1].action[:1]
    mean, std = (np.asarray(x[:, 0]) for x in predict(state, pendulum[1].obs, pendulum[1].action))
    draw = quick_jit(jax.vmap(lambda key: MODEL.step(state, key, obs, action)))
    next_obs, reward = draw(jax.random.split(KEY, 4000))
    elites = np.asarray(state.elites)
    mixture = mean[elites].mean(0)
    deviation = np.sqrt((std[elites] ** 2 + mean[elites] ** 2).mean(0) - mixture**2)
    drawn = np.c_[np.asarray(next_obs)[:, 0], np.asarray(reward)[:, 0]]
    np.testing.assert_allclose(drawn.mean(0), mixture, atol=5 * deviation.max() / 4000**0.5)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.1)


def test_uncertainty_is_the_numpy_reference():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 5, 6, 3))
    found = Prediction(jnp.asarray(mean), jnp.asarray(np.abs(std)))
    expected = [max(np.sqrt((std[i, n] ** 2).sum()) for i in range(5)) for n in range(6)]
    np.testing.assert_allclose(dynamics.max_std(found), expected, rtol=1e-5)
    np.testing.assert_allclose(
        dynamics.std_of_means(found), np.sqrt(mean.var(0).mean(-1)), rtol=1e-5
    )


# ---- rollouts ------------------------------------------------------------------------------------


def counting(key, obs, action):
    """Adds the action; a prediction beyond 100 is not finite."""
    next_obs = obs + action
    return jnp.where(next_obs > 100, jnp.inf, next_obs), obs[:, 0]


STARTS = [
    0.0,
    10.0,
    1.0,
    60.0,
    -1.0,
    -2.0,
]  # the last two terminate at the last step of length 3 and of length 4


def walk(length, horizon=4):
    act = lambda obs, key: jnp.where(obs > 50, 60.0, 1.0)
    ends = lambda obs, action, next_obs: (obs[:, 0] == 1) & (next_obs[:, 0] == 2)
    return rollout(counting, act, jnp.array(STARTS)[:, None], KEY, horizon, ends, length)


@pytest.mark.parametrize("length", [None, 4, 3])
def test_rollout_is_the_python_loop(length):
    found, valid = quick_jit(walk)(length)
    steps = length or 4
    assert found.obs.shape == (4, 6, 1) and valid.shape == (4, 6)
    alive, obs = [True] * 6, list(STARTS)
    for i in range(steps):
        for n in range(6):
            assert valid[i, n] == (alive[n] and obs[n] != 60)
            if not valid[i, n]:
                assert (
                    found.reward[i, n] == 0
                    and not found.terminated[i, n]
                    and not found.truncated[i, n]
                )
                alive[n] = False
                continue
            ended = obs[n] == 1
            want = Transition(obs[n], 1.0, obs[n], ended, not ended and i == steps - 1, obs[n] + 1)
            assert [float(x[i, n].squeeze()) for x in found] == [float(x) for x in want]
            alive[n], obs[n] = not ended, obs[n] + 1
    assert not valid[steps:].any() and all(np.isfinite(x).all() for x in found)
    assert valid[1].tolist() == [True, True, False, False, True, True]

    packed, size = dynamics.pack(found, valid)
    assert size == valid.sum() and packed.obs.shape == (24, 1)
    np.testing.assert_array_equal(packed.obs[:size], np.asarray(found.obs)[np.asarray(valid)])


def test_steps_beyond_a_traced_length_are_not_computed(monkeypatch):
    count = []

    def counted(key, obs, action):
        jax.debug.callback(lambda _: count.append(1), obs[0, 0])
        return obs, obs[:, 0]

    roll = lambda obs, length: rollout(counted, lambda obs, key: obs, obs, KEY, 6, length=length)[
        1
    ].sum()
    run = quick_jit(jax.vmap(roll, (0, None)))
    assert run(jnp.ones((2, 3, 1)), 2).tolist() == [6, 6]
    jax.effects_barrier()
    assert len(count) == 2 * 2


def test_a_rollout_in_the_learned_model(fitted, pendulum):
    state, env = fitted[0], rlzoo.make("Pendulum-v1")
    act = lambda obs, key: jax.random.uniform(key, (len(obs), ACTION), minval=-1, maxval=1)
    start = jnp.asarray(pendulum[1].obs[:50])
    roll = lambda state: rollout(
        functools.partial(MODEL.step, state), act, start, KEY, 5, env.terminates
    )
    found, valid = quick_jit(roll)(state)
    assert (
        valid.all()
        and not found.terminated.any()
        and found.truncated.sum(1).tolist() == [0, 0, 0, 0, 50]
    )
    np.testing.assert_array_equal(found.obs[1:], found.next_obs[:-1])
    off = np.abs(
        (np.asarray(found.next_obs[..., :2]) ** 2).sum(-1) - 1
    )  # cosine and sine of one angle
    assert off.max() < 0.5


# ---- termination ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "low", "high"),
    [
        ("CartPole-v1", [-4, -1, -0.4, -1], [4, 1, 0.4, 1]),
        ("CartPole-v1?x_threshold=1.0", [-4, -1, -0.1, -1], [4, 1, 0.1, 1]),
        ("MountainCarContinuous-v0", [0.4, -0.07], [0.5, 0.07]),
        ("MountainCar-v0?goal_position=0.45", [0.4, -0.07], [0.5, 0.07]),
        ("Pendulum-v1", [-3, -8, 0], [3, 8, 0]),
    ],
)
def test_termination_is_gymnaxs_own(id, low, high):
    env = rlzoo.make(id)
    key = jax.random.key(0)
    _, state = env.inner.reset_env(key, env.params)
    names = [field.name for field in dataclasses.fields(state) if field.name != "time"]
    values = jax.random.uniform(
        key, (300, len(low)), minval=jnp.array(low), maxval=jnp.array(high)
    ).T
    states = state.replace(**dict(zip(names, values, strict=True)))

    def judge(**moving):
        now = state.replace(**moving)
        action = jnp.int32(1) if env.discrete else jnp.zeros(1)
        obs, _, _, terminated, _ = env.inner.step_env(key, now, action, env.params)
        return obs, terminated

    obs, terminated = quick_jit(jax.vmap(lambda moving: judge(**moving)))(
        {n: getattr(states, n) for n in names}
    )
    np.testing.assert_array_equal(env.terminates(None, None, obs), terminated)
    assert 0.1 < terminated.mean() < 0.9 or (id == "Pendulum-v1" and not terminated.any())


slow = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("humanoid", "inverted_double_pendulum", "inverted_pendulum", "swimmer")
]


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning"
)  # brax says that it is frozen
@pytest.mark.parametrize("name", ["ant", "halfcheetah", "hopper", "walker2d", *slow])
def test_termination_is_braxs_own(name):
    from brax import base, kinematics
    from brax.envs import get_environment
    from brax.envs.base import State

    inner = get_environment(name)
    rng = np.random.default_rng(0)
    scale = rng.choice([0.02, 0.2, 1.0, 200.0], size=(400, 1), p=[0.3, 0.3, 0.3, 0.1])
    q = inner.sys.init_q + rng.normal(size=(400, inner.sys.q_size())) * scale
    qd = rng.normal(size=(400, inner.sys.qd_size())) * 20

    def judge(q, qd):
        """The environment's own step, with the physics replaced by a state of our choice."""
        x, xd = kinematics.forward(inner.sys, q, qd)
        planted = base.State(q=q, qd=qd, x=x, xd=xd, contact=None)
        inner.pipeline_step = lambda *_: planted
        state = inner.step(
            State(planted, None, jnp.float32(0), jnp.float32(0), {}), jnp.zeros(inner.action_size)
        )
        return state.obs[:17], state.done > 0  # the rest of humanoid's 244 takes seconds to compile

    obs, done = quick_jit(jax.vmap(judge))(q, qd)
    env = Env(name, inner, None, termination=termination.rule(f"brax/{name}:generalized", inner))
    np.testing.assert_array_equal(env.terminates(None, None, obs), done)
    assert 0.1 < done.mean() < 0.9 or (name in ("halfcheetah", "swimmer") and not done.any())


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"members": 0}, "members=0: must be at least 1"),
        ({"elites": 8}, "elites=8 is more than members=7"),
        ({"hidden": (200, 0)}, r"hidden=\(200, 0\)"),
        ({"holdout": 1.0}, "holdout=1.0: .* between 0 and 1"),
        ({"improvement": -0.1}, "improvement=-0.1"),
        ({"log_var_bounds": (1.0, 0.5)}, "log_var_bounds"),
        ({"weight_decay": (1e-4,)}, "weight_decay=.* has 1 values, must have 5"),
    ],
)
def test_bad_sizes_are_refused(fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        Ensemble(3, 1, **fields)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"obs": jnp.zeros((9, 4))}, None, r"obs is float32\[9, 4\], must have shape \[9, 3\]"),
        (
            {"action": jnp.zeros((9, 2))},
            None,
            r"action is float32\[9, 2\], must have shape \[9, 1\]",
        ),
        ({"reward": jnp.zeros((9, 1))}, None, r"reward .* must have shape \[9\]"),
        ({"next_obs": jnp.zeros((8, 3))}, None, r"next_obs .* must have shape \[9, 3\]"),
        ({}, 10, "size=10 with 9 rows"),
        ({}, 1, "size=1 with 9 rows: must be from 2"),
    ],
)
def test_bad_data_is_refused(fields, size, message):
    data = dict(
        obs=jnp.zeros((9, 3)),
        action=jnp.zeros((9, 1)),
        reward=jnp.zeros(9),
        next_obs=jnp.zeros((9, 3)),
    )
    with pytest.raises(rlzoo.Refused, match=message):
        MODEL.fit(START, KEY, SimpleNamespace(**data | fields), size)


def test_other_bad_input_is_refused():
    with pytest.raises(rlzoo.Refused, match="has no reward, next_obs"):
        MODEL.fit(START, KEY, SimpleNamespace(obs=jnp.zeros((9, 3)), action=jnp.zeros((9, 1))))
    with pytest.raises(rlzoo.Refused, match=r"obs is float32\[3\]"):
        MODEL.step(START, KEY, jnp.zeros(3), jnp.zeros(1))
    with pytest.raises(rlzoo.Refused, match="how 'Acrobot-v1' terminates is not known"):
        rlzoo.make("Acrobot-v1").terminates(None, None, jnp.zeros(6))
    with pytest.raises(rlzoo.Refused, match="stack"):
        rlzoo.make("CartPole-v1?stack=2").terminates(None, None, jnp.zeros(8))
