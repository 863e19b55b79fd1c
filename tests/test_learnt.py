"""What a run learns from: held-out episodes, and the environment that data are of."""

import dataclasses
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (registers the probe environments)
import pytest
import tiny_data
import toy

import rlzoo
from rlzoo import Refused, dataset
from rlzoo.run import learnt
from rlzoo.run.record import Record
from rlzoo.suites import recorded, registry

TINY = {"eval_episodes": 4, "quiet": True, "cache": False}


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id; empty: the data set's own"""
    total_steps: int = rlzoo.static(20)
    """gradient steps"""
    learning_rate: float = 0.3
    """step size"""


def make(config, env, dataset=None):
    """Regresses the first action on the mean of the observation, without a constant."""
    shape = () if env.discrete else (env.action_dim,)

    def init(key):
        return jnp.zeros(())

    def step(w, t):
        x = dataset.obs.reshape(len(dataset), -1).mean(1)
        y = dataset.action.reshape(len(dataset), -1)[:, 0]
        error = w * x - y
        return w - config.learning_rate * (error * x).mean(), {"loss/w": (error**2).mean()}

    def act(w, obs, key):
        action = jnp.full(shape, 3.0 * w * obs.mean())  # beyond [-1, 1] now and then
        return (action > 0).astype(jnp.int32) if env.discrete else action

    return rlzoo.Algorithm(init, step, lambda w: w, act)


def unknown(env="", count=40, discrete=False, seed=0):
    """Data of an environment that nobody has: episodes of 3 and 5 rows in turn."""
    rng = np.random.default_rng(seed)
    lengths = np.tile([3, 5], count // 2)
    ends = np.cumsum(lengths) - 1
    obs = rng.normal(size=(lengths.sum(), 2, 3)).astype(np.float32)
    truncated = np.zeros(len(obs), bool)
    truncated[ends] = True
    action = np.clip(0.2 * obs.mean((1, 2)) + rng.normal(size=len(obs)), -1, 1)
    action = (action > 0).astype(np.int32) if discrete else action.astype(np.float32)[:, None]
    arrays = {
        "obs": obs,
        "next_obs": np.roll(obs, -1, axis=0),
        "action": action if discrete else np.concatenate([action, -action], 1),
        "reward": rng.normal(size=len(obs)).astype(np.float32),
        "terminated": ~truncated & False,
        "truncated": truncated,
    }
    return dataset.from_arrays(arrays, env=env, source="robot arm (v1).npz")


def go(out, data, **given):
    config = Config(**{k: given.pop(k) for k in list(given) if k in ("env", "total_steps")})
    return rlzoo.train(make, config, data, out=str(out), **TINY | given)


# ---- the environment -----------------------------------------------------------------------------


def test_the_environment_is_that_of_the_data(tmp_path):
    run = go(tmp_path / "a", tiny_data.continuous())
    known = registry.id_of("probe-action-continuous")  # the file and the class
    assert Record.read(run.dir).description["config"]["env"] == known
    assert run.summary["env"] == "probes.py:ActionReward?continuous=True"
    assert run.summary["members"][0]["eval/return"] is not None
    assert run.summary["score"]["name"] == "eval/return"
    found = go(tmp_path / "b", tiny_data.continuous(), env="probe-action-continuous?limit=3")
    assert found.summary["env"].endswith("&limit=3")
    assert rlzoo.evaluate(run.dir, 3, dataset=tiny_data.continuous()).shape == (3,)


@pytest.mark.parametrize("env", ["", "Robot-v7", "notebook:Mine"])
def test_without_an_environment_training_goes_on(tmp_path, env, capsys):
    run = go(tmp_path / "a", unknown(env))
    said = capsys.readouterr().err
    assert "nothing is rolled" in said and "--validation 0.1" in said
    assert env in said
    assert run.summary["status"] == "done" and run.summary["members"][0]["eval/return"] is None
    assert run.summary["env"] == f"data:{env.replace(':', '-') or 'robot-arm-v1'}"
    with pytest.raises(Refused, match="is known from its data alone, so nothing can be played"):
        rlzoo.evaluate(run.dir, dataset=unknown(env))
    assert {"loss/w"} == {k for k in Record.read(run.dir).rows.read()[-1] if "/w" in k}


def test_data_of_two_environments_are_refused(tmp_path):
    both = {"expert": unknown("A-v1"), "mixed": unknown("B-v2")}
    with pytest.raises(Refused, match="the data are of A-v1 and B-v2; say which one it is with"):
        go(tmp_path / "a", both)


def test_no_data_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        Refused, match=r"test_learnt learns from a data set and none was given.*list"
    ):
        go(tmp_path / "a", None)


def test_an_empty_name_is_none_where_nothing_is_learnt_from_data(tmp_path):
    with pytest.raises(Refused, match="unknown environment ''"):
        rlzoo.train(toy.make, toy.Config(env=""), out=str(tmp_path / "a"), **TINY)


@pytest.mark.parametrize("discrete", [True, False])
def test_an_environment_of_data_alone(discrete):
    data = unknown(discrete=discrete)
    more = unknown(discrete=discrete, seed=1)
    if discrete:
        more = dataclasses.replace(more, action=more.action + 3)
    env = recorded.make("data:x", [data, more])
    assert env.obs_shape == (2, 3) and env.obs_dtype == jnp.float32 and env.discrete == discrete
    assert env.max_steps == 5 and not env.simulated and rlzoo.make("probe-action").simulated
    assert env.num_actions == 5 if discrete else env.action_dim == 2
    assert env.example().action.shape == (() if discrete else (2,))
    dataset.check({"a": data, "b": more}, env)
    for play in (lambda: env.reset(jax.random.key(0), 2), lambda: env.starts(jnp.zeros(2))):
        with pytest.raises(Refused, match="data:x is known from its data alone"):
            play()
    with pytest.raises(Refused, match="data:x is known from its data set alone: give that too"):
        rlzoo.make("data:x")


def test_the_types_of_observations_are_kept():
    data = unknown()
    pixels = jnp.asarray(np.arange(data.obs.size).reshape(data.obs.shape) % 256, jnp.uint8)
    env = recorded.make("data:x", [dataclasses.replace(data, obs=pixels)])
    assert env.obs_dtype == jnp.uint8


def test_the_same_shapes_are_asked_of_all_data(tmp_path):
    wide = unknown()
    wide = dataclasses.replace(wide, obs=wide.obs[:, :, :2], next_obs=wide.next_obs[:, :, :2])
    with pytest.raises(Refused, match=r"dataset validation: obs of the data set are \[2, 2\]"):
        go(tmp_path / "a", {"train": unknown(), "validation": wide})


# ---- what is held out ----------------------------------------------------------------------------


def expected_error(run, data, **given):
    """The mean squared error of a run's policy, by NumPy and one row at a time."""
    act, w = rlzoo.load(run.dir, **given)
    actions = [np.clip(act(w, obs, jax.random.key(0)), -1, 1) for obs in np.asarray(data.obs)]
    if data.discrete:
        return np.mean(np.array(actions) != np.asarray(data.action))
    return np.mean((np.array(actions) - np.asarray(data.action)) ** 2)


@pytest.mark.parametrize("discrete", [True, False])
def test_judged_by_actions_of_a_file(tmp_path, discrete, capsys):
    train, held = unknown(discrete=discrete), unknown(discrete=discrete, seed=1)
    dataset.save(train, tmp_path / "a.npz")
    dataset.save(held, tmp_path / "b.npz")
    given = {"train": tmp_path / "a.npz", "validation": str(tmp_path / "b.npz")}
    run = go(tmp_path / "run", given, seeds=2)
    assert "judged by the actions held out" in capsys.readouterr().err
    name = "eval/action_error" if discrete else "eval/action_mse"
    assert run.summary["score"] == {"name": name, "lower_is_better": True}
    assert json.loads((run.dir / "config.json").read_text())["score"]["name"] == name
    value = run.summary["members"][1][name]
    assert value == pytest.approx(expected_error(run, held), rel=1e-5)  # nothing is handed over
    assert value != pytest.approx(expected_error(run, train), rel=1e-3)
    assert (run.dir / "curve.png").exists()
    again = go(tmp_path / "run", given, seeds=2, resume=True)
    assert again.summary[name] == run.summary[name]


def test_a_share_of_the_episodes_is_held_out(tmp_path):
    data = unknown()
    run = go(tmp_path / "a", data, validation=0.25, seeds=2)
    train, held = dataset.split(data, 0.25)
    assert held.num_episodes == 10
    given = {"train": train, "validation": held}
    other = go(tmp_path / "b", given)
    assert run.summary["members"][0] == other.summary["members"][0]
    want = expected_error(run, held, dataset=data)
    assert run.summary["members"][0]["eval/action_mse"] == pytest.approx(want, rel=1e-5)
    # the loaded policy is that of the training part: it is what make was handed
    assert float(rlzoo.load(run.dir, dataset=data).policy) == float(
        rlzoo.load(other.dir, dataset=given).policy
    )


def test_beside_returns_where_there_is_an_environment(tmp_path):
    run = go(tmp_path / "a", tiny_data.continuous(), validation=0.25)
    assert run.summary["score"] == {"name": "eval/return", "lower_is_better": False}
    row = Record.read(run.dir).rows.read()[-1]
    assert float(row["eval/action_mse"]) >= 0 and row["eval/return"] and row["eval/score"]


def test_more_rows_than_a_block():
    data = unknown(count=400)
    assert len(data) > learnt.BLOCK and len(data) % learnt.BLOCK
    env = recorded.make("data:x", [data])
    algorithm = make(Config(), env, data)
    got = learnt.action_error(algorithm, jnp.float32(0.7), data, jax.random.key(0))
    action = np.clip(3 * 0.7 * np.asarray(data.obs).mean((1, 2)), -1, 1)
    want = np.mean((action[:, None] - np.asarray(data.action)) ** 2)
    assert np.abs(action).max() == 1
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_a_policy_that_remembers_goes_through_each_episode():
    data = unknown()

    def act(policy, memory, obs, reward, key):
        memory = 0.5 * memory + obs.mean() + policy * reward
        return jnp.stack([memory, -memory]), memory

    def step(state, t):
        return state, {}

    algorithm = rlzoo.Algorithm(lambda key: 0, step, lambda s: s, act, memory=lambda p: p)
    got = learnt.action_error(algorithm, jnp.float32(0.3), data, jax.random.key(0))
    errors = []
    starts = np.asarray(data.starts)
    for first, last in itertools.pairwise(starts):
        memory = 0.3
        reward = 0.0
        for row in range(first, last):
            memory = 0.5 * memory + float(data.obs[row].mean()) + 0.3 * reward
            action = np.clip([memory, -memory], -1, 1)
            errors.append(np.mean((action - np.asarray(data.action[row])) ** 2))
            reward = float(data.reward[row])
    assert float(got) == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, "half", True])
def test_shares_that_make_no_sense(tmp_path, share):
    with pytest.raises(Refused, match=f"--validation is {share!r}; it must be a share of more"):
        go(tmp_path / "a", unknown(), validation=share)


def test_what_cannot_be_held_out(tmp_path):
    for data, text in (
        ({"a": unknown(), "b": unknown()}, "single data set, but several data sets were given"),
        ({"train": unknown(), "validation": unknown()}, r"but validation=\.\.\. was given too"),
        (None, "but no data set was given"),
    ):
        with pytest.raises(Refused, match=text):
            go(tmp_path / "a", data, validation=0.5)
    with pytest.raises(Refused, match="each part needs at least one"):
        go(tmp_path / "a", unknown(), validation=0.001)
    with pytest.raises(Refused, match="holds out data, and none is left to learn"):
        go(tmp_path / "a", {"validation": unknown()})


def test_names_of_the_loop_are_not_handed_to_make():
    several = learnt.read({"expert": unknown(), "mixed": unknown(), "validation": unknown(seed=1)})
    assert [*several.train] == ["expert", "mixed"] and several.validation is not None
    assert isinstance(learnt.read({"train": unknown()}).train, dataset.Dataset)
    assert learnt.read(None) == learnt.read(()) == (None, None)


# ---- the default ---------------------------------------------------------------------------------


def test_a_file_names_the_data_that_it_learns_from_by_default(tmp_path, monkeypatch):
    dataset.save(tiny_data.continuous(), tmp_path / "tiny.npz")
    module = sys.modules[make.__module__]
    monkeypatch.setattr(module, learnt.DEFAULT, str(tmp_path / "tiny.npz"), raising=False)
    run = go(tmp_path / "a", None)
    recorded_options = Record.read(run.dir).description["options"]
    assert recorded_options["dataset"] == [str(tmp_path / "tiny.npz")]
    monkeypatch.delattr(module, learnt.DEFAULT)
    assert np.isfinite(rlzoo.load(run.dir).policy)  # the run says itself what it learnt from
    monkeypatch.setattr(module, learnt.DEFAULT, "no.npz", raising=False)
    given = go(tmp_path / "b", tiny_data.continuous())
    assert Record.read(given.dir).description["options"]["dataset"] == []
