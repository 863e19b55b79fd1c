"""MBPO: its schedule, what its model and its rollouts are given, what is due when."""

import dataclasses
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
    updates_per_step=3,
    hidden=(4,),
    batch_size=4,
    learning_starts=8,
    model_hidden=(4,),
    model_every=8,
    model_epochs=2,
    rollouts_per_step=2,
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


def test_what_is_due_when(steps):
    """8 steps of 2 environments are 4 calls; then a fit every 4 calls, and 3 updates each."""
    _, metrics = steps
    fits = [int(found["loss/model"].count) for found in metrics]
    assert fits == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    updates = [int(found["loss/critic"].count) for found in metrics]
    assert updates == [0] * 4 + [3] * 9


def test_rollouts_begin_at_real_transitions_and_follow_the_model(steps):
    """A fit is followed by 2 rollouts for each of 8 environment steps, of one step in the first
    epoch, of two in the second."""
    states, _ = steps
    sizes = [int(state.model_buffer.size) for state in states]
    assert sizes == [0] * 5 + [16] * 4 + [32] * 5, "the buffer holds 16 rollouts of 2 steps"
    state = states[5]
    rows = jax.tree.map(lambda x: np.asarray(x[:16]), state.model_buffer.data)
    real = np.asarray(states[5].buffer.data.obs[:10])
    assert all((real == obs).all(-1).any() for obs in rows.obs)
    assert not rows.terminated.any() and rows.truncated.all()
    assert not all((real == obs).all(-1).any() for obs in rows.next_obs)
    second = jax.tree.map(lambda x: np.asarray(x), states[9].model_buffer.data)
    starts = int(states[8].model_buffer.pos)
    assert starts == 16
    np.testing.assert_array_equal(second.next_obs[16:32], second.obs[(np.arange(32, 48)) % 32])


def test_the_model_is_of_the_release(steps):
    """Bounds of the log-variance that do not move; the training rows' normalisation."""
    states, _ = steps
    before, after = states[4].model, states[5].model
    chex.assert_trees_all_equal(before.params.max_log_var, after.params.max_log_var)
    np.testing.assert_array_equal(after.params.max_log_var, 0.5)
    np.testing.assert_array_equal(after.params.min_log_var, -10.0)
    assert not np.array_equal(before.params.kernels[0], after.params.kernels[0])
    assert np.isfinite(after.holdout).all() and not np.array_equal(after.inputs.std, [1, 1])


def test_targets_follow_every_few_updates():
    env = rlzoo.make("band-mass")
    config = dataclasses.replace(SMALL, target_every=4, updates_per_step=1, tau=1.0)
    algorithm = mbpo.make(config, env)
    state, step = quick_jit(algorithm.init)(KEY), quick_jit(algorithm.step)
    for t in range(10):
        before = state
        state, _ = step(state, t)
        moved = t >= 4 and t % 4 == 0
        same = jax.tree.map(np.array_equal, before.target_params, state.target_params)
        assert all(jax.tree.leaves(same)) != moved
        if moved:
            chex.assert_trees_all_equal(state.target_params, state.params.critics)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("sample_actions", [True, False])
def test_actions_in_the_environment(random_start, sample_actions):
    env = rlzoo.make("band-mass")
    config = dataclasses.replace(
        SMALL, random_start=random_start, sample_actions=sample_actions, learning_rate=1e-30
    )
    algorithm = mbpo.make(config, env)
    start = quick_jit(algorithm.init)(KEY)
    state, _ = quick_jit(lambda state: jax.lax.scan(algorithm.step, state, jnp.arange(13)))(start)
    rows = jax.tree.map(np.asarray, state.buffer.data)
    mean = np.asarray(algorithm.act(algorithm.policy(start), rows.obs, KEY))
    by_mean = np.isclose(rows.action, mean, atol=1e-5).all(-1)
    assert not by_mean[:8].any() and by_mean[8:26].all() == (not sample_actions)
    head = mbpo.MLP(config.hidden, 2).apply(start.params.actor, rows.obs)
    noise = (np.arctanh(np.clip(rows.action, -0.9999, 0.9999)) - head[:, :1]) / np.exp(head[:, 1:])
    assert np.abs(noise).max() < 5


def test_terminated_rollouts_stop():
    """Where every step ends the task a rollout of 2 steps has one row, which does not bootstrap."""
    env = rlzoo.make("probe-action-continuous")
    config = dataclasses.replace(SMALL, rollout_schedule=(1, 2, 2, 2))
    algorithm = mbpo.make(config, env)
    state = quick_jit(lambda state: jax.lax.scan(algorithm.step, state, jnp.arange(5))[0])(
        quick_jit(algorithm.init)(KEY)
    )
    assert state.model_buffer.size == 16
    rows = jax.tree.map(lambda x: np.asarray(x[:16]), state.model_buffer.data)
    assert rows.terminated.all() and not rows.truncated.any()


def test_several_networks():
    env = rlzoo.make("band-mass")
    config = dataclasses.replace(SMALL, ensemble_size=3, num_elites=2)
    algorithm = mbpo.make(config, env)
    state = quick_jit(lambda state: jax.lax.scan(algorithm.step, state, jnp.arange(5))[0])(
        quick_jit(algorithm.init)(KEY)
    )
    assert state.model.holdout.shape == (3,) and state.model.elites.shape == (2,)
    best = np.argsort(np.asarray(state.model.holdout))[:2]
    np.testing.assert_array_equal(state.model.elites, best)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "fields", "message"),
    [
        ("band-mass", {"rollout_schedule": (1, 5)}, r"rollout_schedule=\(1, 5\) needs four"),
        ("band-mass", {"num_elites": 2}, "num_elites=2 is more than ensemble_size=1"),
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
