"""MBPO: its schedule, what its model and its rollouts are given, what is due when."""

import dataclasses
import itertools
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import mbpo, sac
from together import quick_jit

import rlzoo

KEY = jax.random.key(0)
SMALL = mbpo.Config(
    env="band-mass",
    total_steps=26,
    num_envs=2,
    hidden=(4,),
    batch_size=4,
    updates_per_step=1,
    learning_starts=8,
    tau=1.0,
    target_every=4,
    ensemble_size=3,
    num_elites=2,
    model_hidden=(4,),
    model_every=8,
    model_epochs=2,
    rollouts_per_step=2,
    rollout_every=4,
    epoch_length=8,
    rollout_schedule=(1, 2, 1, 2),
)


# ---- the schedule --------------------------------------------------------------------------------


def exact(epoch, start, end, first, last):
    passed = min(max(Fraction(epoch - start, end - start), 0), 1)
    return int(first + passed * (last - first))


@pytest.mark.parametrize("schedule", [(20, 150, 1, 15), (20, 100, 1, 25), (20, 150, 1, 1)])
def test_rollout_lengths(schedule):
    """As int() of the exact linear function; hopper's, ant's and halfcheetah's."""
    epochs = jnp.arange(1, 301)
    found = jax.vmap(lambda epoch: mbpo.truncated_linear(epoch, *schedule))(epochs)
    assert found.tolist() == [exact(int(epoch), *schedule) for epoch in epochs]
    assert found[0] == found[19] == schedule[2] and found[-1] == schedule[3]


def test_hoppers_rollout_lengths_by_hand():
    lengths = [
        int(mbpo.truncated_linear(epoch, 20, 150, 1, 15)) for epoch in (20, 29, 30, 85, 149, 150)
    ]
    assert lengths == [1, 1, 2, 8, 14, 15]


def test_a_schedule_that_jumps():
    assert [int(mbpo.truncated_linear(epoch, 3, 3, 1, 5)) for epoch in (3, 4)] == [1, 1]


# ---- the losses of SAC ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["td_target", "critic_loss", "actor_loss", "alpha_loss"])
def test_the_losses_are_those_of_sac(name):
    code = [getattr(module, name).__code__ for module in (mbpo, sac)]
    assert code[0].co_code == code[1].co_code and code[0].co_consts == code[1].co_consts


# ---- calls ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps():
    env = rlzoo.make("band-mass")
    state = quick_jit(mbpo.make(SMALL, env).init)(KEY)
    step = quick_jit(mbpo.make(SMALL, env).step)
    states, metrics = [state], []
    for t in range(13):
        state, found = step(states[-1], t)
        states.append(state)
        metrics.append(found)
    return states, metrics


@pytest.mark.slow
def test_what_is_due_when(steps):
    """8 steps of 2 environments are 4 calls; then an update each, and a fit every 4 calls."""
    _, metrics = steps
    fits = [int(found["loss/model"].count) for found in metrics]
    assert fits == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    updates = [int(found["loss/critic"].count) for found in metrics]
    assert updates == [0] * 4 + [1] * 9


def test_rollouts_begin_at_real_transitions_and_follow_the_model(steps):
    """Twice for each fit: 2 rollouts for each of 4 environment steps, of one step in the first
    epoch, of two in the second."""
    states, _ = steps
    sizes = [int(state.model_buffer.size) for state in states]
    assert sizes == [0] * 5 + [8] * 2 + [16] * 2 + [32] * 5, "it keeps 16 rollouts of 2 steps"
    rows = jax.tree.map(lambda x: np.asarray(x[:16]), states[7].model_buffer.data)
    real = np.asarray(states[7].buffer.data.obs[:14])
    assert all((real == obs).all(-1).any() for obs in rows.obs)
    assert not np.array_equal(rows.obs[:8], rows.obs[8:]), "drawn anew"
    assert not rows.terminated.any() and rows.truncated.all()
    assert not all((real == obs).all(-1).any() for obs in rows.next_obs)
    second = jax.tree.map(np.asarray, states[9].model_buffer.data)
    assert states[8].model_buffer.pos == 16
    np.testing.assert_array_equal(second.next_obs[16:24], second.obs[24:32])


def test_the_model_is_of_the_release(steps):
    """Bounds of the log-variance that do not move; the training rows' normalisation."""
    states, _ = steps
    before, after = states[4].model, states[5].model
    chex.assert_trees_all_equal(before.params.max_log_var, after.params.max_log_var)
    np.testing.assert_array_equal(after.params.max_log_var, 0.5)
    np.testing.assert_array_equal(after.params.min_log_var, -10.0)
    assert not np.array_equal(before.params.kernels[0], after.params.kernels[0])
    assert np.isfinite(after.holdout).all() and not np.array_equal(after.inputs.std, [1, 1])


def test_targets_follow_every_few_updates(steps):
    for t, (before, after) in enumerate(itertools.pairwise(steps[0])):
        moved = t >= 4 and t % 4 == 0
        same = jax.tree.map(np.array_equal, before.target_params, after.target_params)
        assert all(jax.tree.leaves(same)) != moved
        if moved:
            chex.assert_trees_all_equal(after.target_params, after.params.critics)


def test_elites_have_the_lowest_errors(steps):
    model = steps[0][-1].model
    assert model.holdout.shape == (3,)
    np.testing.assert_array_equal(model.elites, np.argsort(np.asarray(model.holdout))[:2])


def after_13_calls(id, **fields):
    """The rows in the buffer and the model's buffer, and the mean actions in the rows; the policy
    stays as it is."""
    config = dataclasses.replace(SMALL, learning_rate=1e-30, **fields)
    algorithm = mbpo.make(config, rlzoo.make(id))

    def run():
        state = jax.lax.scan(algorithm.step, algorithm.init(KEY), jnp.arange(13))[0]
        mean = algorithm.act(algorithm.policy(state), state.buffer.data.obs, KEY)
        return state.buffer.data, state.model_buffer, mean

    return jax.device_get(quick_jit(run)())


@pytest.mark.slow
def test_random_actions_then_those_of_the_mean():
    rows, _, mean = after_13_calls("band-mass", sample_actions=False)
    by_mean = np.isclose(rows.action, mean, atol=1e-5).all(-1)
    assert not by_mean[:8].any() and by_mean[8:].all()


@pytest.mark.slow
def test_samples_of_the_policy_where_they_are_asked_for():
    """Here every step ends the task: a rollout of up to 2 steps has one row, without bootstrap."""
    fields = {"random_start": False, "sample_actions": True, "rollout_schedule": (1, 2, 2, 2)}
    rows, model_buffer, mean = after_13_calls("probe-action-continuous", **fields)
    assert not np.isclose(rows.action, mean, atol=1e-5).any()
    noise = np.arctanh(rows.action) - np.arctanh(mean)  # the policy's deviation is near 1 at first
    assert 0.3 < noise.std() < 3
    assert model_buffer.size == 32, "from 5 times 8 rollouts, the newest"
    assert model_buffer.data.terminated.all() and not model_buffer.data.truncated.any()


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        ("band-mass", {"rollout_schedule": (1, 5)}, r"rollout_schedule=\(1, 5\) needs four"),
        ("band-mass", {"num_elites": 4}, "num_elites=4 is more than ensemble_size=3"),
        ("band-mass", {"batch_size": 100}, "batch_size=100 is more than the 32 transitions"),
        ("probe-action", {}, "discrete actions"),
    ],
)
def test_bad_input_is_refused(env, fields, message):
    with pytest.raises(rlzoo.Refused, match=message):
        mbpo.make(dataclasses.replace(SMALL, **fields), rlzoo.make(env))


def test_an_environment_whose_end_is_not_known_is_refused():
    env = rlzoo.make("probe-two-step-continuous")
    algorithm = mbpo.make(SMALL, env)
    with pytest.raises(rlzoo.Refused, match="how 'probe-two-step-continuous' terminates"):
        jax.eval_shape(algorithm.step, jax.eval_shape(algorithm.init, KEY), 0)
