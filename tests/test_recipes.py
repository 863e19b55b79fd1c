"""Data sets of our own: what is in each tier, and where they are kept."""

import importlib

import jax
import numpy as np
import probes  # noqa: F401  (registers the probe environments)
import pytest
from test_dataset import command, same  # noqa: F401  (a fixture)
from test_learnt import Config, make

import rlzoo
from rlzoo import Refused, dataset, machine
from rlzoo.cli import flags
from rlzoo.run.record import Record
from rlzoo.tools import recipes

TINY = recipes.Task(
    env="probe-action-continuous",
    algorithm="td3",
    episodes=40,
    noise=0.1,
    takes="no time",
    fields={
        "total_steps": 160,
        "num_envs": 2,
        "hidden": (4,),
        "batch_size": 4,
        "learning_starts": 8,
    },
)
ZOO = dict(recipes.TASKS)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One tiny task in place of all; programs that compile quickly."""
    with pytest.MonkeyPatch.context() as patch:
        options = {"xla_backend_optimization_level": 0}
        patch.setattr(machine, "compiler_options", lambda backend: options)
        patch.setattr(recipes, "TASKS", {"tiny": TINY})
        yield


def silent(text):
    pass


@pytest.fixture(scope="module")
def trained():
    """(looks, state, algorithm)."""
    return recipes.train(TINY, rlzoo.make(TINY.env), silent)


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def made(trained, said):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "train", lambda *args: trained)
        return dict(recipes.make("tiny", said.append))


@pytest.fixture
def cache(tmp_path, monkeypatch, made):
    """An empty cache folder, and `made` in place of training."""
    monkeypatch.setenv("RLZOO_CACHE", str(tmp_path / "cache"))
    calls = []

    def again(name, say):
        calls.append(name)
        return iter(made.items())

    monkeypatch.setattr(recipes, "make", again)
    return calls


def rows_of(data):
    return as_bytes(data.obs, data.action, data.reward)


def as_bytes(*arrays):
    rows = zip(*map(np.asarray, arrays), strict=True)
    return [b"".join(x.tobytes() for x in row) for row in rows]


# ---- what is in them -----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_name_has_a_data_set(made):
    assert [f"tiny-{tier}" for tier in made] == recipes.names() == recipes.names("tiny")
    for tier, data in made.items():
        dataset.validate(data)
        dataset.check(data, rlzoo.make(TINY.env))
        assert data.env == TINY.env and data.source == f"rlzoo data make tiny-{tier}"
        assert data.reference == made["random"].reference


@pytest.mark.slow
def test_scores_are_those_of_random_actions_and_of_the_expert(made):
    def mean(tier):
        return dataset.episodes(made[tier]).returns.mean()

    worst, best = made["expert"].reference
    assert worst == pytest.approx(mean("random")) and worst < best
    # the recorded expert acts with noise, which costs 0.1**2 of reward here
    assert mean("expert") == pytest.approx(best - 0.01, abs=0.02)
    assert mean("medium") > worst + (best - worst) / 4


def test_the_replay_ends_where_medium_was(made, said, trained):
    looks, state, _ = trained
    steps = int(said[-1].split("medium after ")[1].split()[0].replace(",", ""))
    replay, buffer = made["medium-replay"], state.buffer.data
    assert len(replay) == steps < 160
    rows, count = rows_of(replay), steps // 2
    for which in range(2):  # one environment after the other
        mine = (x[which::2][:count] for x in (buffer.obs, buffer.action, buffer.reward))
        assert rows[which * count : (which + 1) * count] == as_bytes(*mine)
    learning = [look for look in looks if look.steps > TINY.fields["learning_starts"]]
    best = max(look.ret for look in learning[len(learning) // 2 :])
    worst = replay.reference[0]
    assert steps == recipes._middle(learning, worst, best).steps
    assert len(learning) == len(looks) - 2


def test_medium_is_the_first_within_its_bounds():
    """A lucky policy early on is no medium one, and a run may leap over the bounds."""

    def middle(*returns):
        looks = [recipes.Look(steps, None, ret) for steps, ret in enumerate(returns)]
        return recipes._middle(looks, 0.0, 100.0).steps

    assert middle(10, 98, 30, 40, 45, 100) == 3
    assert middle(10, 20, 30, 60, 80, 100) == 3
    assert middle(100, 100) == 0
    assert middle(-5, 34, 50) == 1


def test_a_run_is_what_rlzoo_train_trains(tmp_path, trained):
    """The same numbers, to the bit."""
    td3 = importlib.import_module("rlzoo.algorithms.td3")
    config = td3.Config(env=TINY.env, buffer_size=160, **TINY.fields)
    out, options = str(tmp_path / "a"), {"quiet": True, "cache": False, "devices": 1}
    run = rlzoo.train(td3.make, config, out=out, **options)
    last = trained[0][-1]
    assert last.steps == run.summary["steps"] == 160
    for a, b in zip(*map(jax.tree.leaves, (last.policy, rlzoo.load(out).policy)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixes(made):
    expert = dataset.episodes(made["expert"])
    assert made["medium-expert"].num_episodes == 80
    for mix, (tier, count) in {
        "random+expert": ("random", 8),
        "random+few-expert": ("random", 1),
        "medium+expert": ("medium", 8),
        "medium+few-expert": ("medium", 1),
    }.items():
        data = made[mix]
        marks = np.asarray(data.extra["expert"])
        hidden = int(expert.lengths[:count].sum())
        assert data.num_episodes == 40 + count and marks.sum() == hidden
        assert not marks[: len(made[tier])].any()
        assert rows_of(data) == rows_of(made[tier]) + rows_of(dataset.first(made["expert"], count))


def test_one_labelled_episode_is_hidden_in_every_mix(made):
    one = made["one-expert"]
    assert one.num_episodes == 1 and np.asarray(one.extra["expert"]).all()
    for mix in recipes.MIXES:
        assert {*rows_of(one)} <= {*rows_of(made[mix])}


def test_it_is_the_middle_one_of_the_few(made, monkeypatch):
    """The first may be one that starts at the goal."""
    monkeypatch.setattr(recipes, "FEW", 8)  # five of 40
    few = dataset.episodes(dataset.first(made["expert"], 5)).returns
    one = recipes.for_imitation(made)["one-expert"]
    assert dataset.episodes(one).returns[0] == np.sort(few)[2] != few[0]


def test_a_run_that_learns_nothing_is_refused(monkeypatch, trained):
    looks, state, algorithm = trained
    bad = [look._replace(ret=-5.0) for look in looks]
    monkeypatch.setattr(recipes, "train", lambda *args: (bad, state, algorithm))
    with pytest.raises(Refused, match="tiny: the run ended no better than random actions"):
        dict(recipes.make("tiny", silent))


@pytest.mark.parametrize("name", [*recipes.TASKS])
def test_recipes_fit_their_algorithms(name):
    task = ZOO[name]
    fields = {field.name: field for field in flags.read(flags.find(task.algorithm)).fields}
    assert {"buffer_size", *task.fields} <= {*fields}
    assert 0 < task.fields["learning_starts"] < task.fields["total_steps"]
    for field, value in task.fields.items():
        assert isinstance(value, type(fields[field].default)), field
    assert task.episodes >= recipes.FEW


# ---- where they are kept -------------------------------------------------------------------------


def test_made_on_first_use(cache, tmp_path, capsys, made):
    path = recipes.find("tiny-medium-replay")
    assert path == tmp_path / f"cache/datasets/v{recipes.VERSION}/tiny-medium-replay.npz"
    assert "tiny-medium-replay is made now, with all data sets of tiny: no time on one core" in (
        capsys.readouterr().err
    )
    assert sorted(x.stem for x in path.parent.iterdir()) == sorted(recipes.names())
    same(recipes.load("tiny-expert"), made["expert"])
    assert cache == ["tiny"] and not capsys.readouterr().err
    recipes.find("tiny-expert", again=True)
    assert cache == ["tiny", "tiny"]


def test_nothing_is_left_of_a_making_that_was_cut(cache, monkeypatch, made):
    def cut(name, say):
        yield "random", made["random"]
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "make", cut)
    with pytest.raises(KeyboardInterrupt):
        recipes.find("tiny-expert")
    assert not recipes.path_of("tiny-expert").exists()


def test_names(cache, tmp_path, monkeypatch):
    for call in (recipes.find, recipes.resolve, recipes.load):
        with pytest.raises(Refused, match="'tiny-medum' is unknown; nearest: tiny-medium,"):
            call("tiny-medum")
    (tmp_path / "tiny").touch()
    monkeypatch.chdir(tmp_path)
    for given in ("a.npz", "minari:walk", "folder/walk", "", "tiny", "~"):
        assert recipes.resolve(given) is given
    assert not cache
    monkeypatch.setattr(machine, "cache_dir", lambda: None)
    with pytest.raises(Refused, match="name one with RLZOO_CACHE"):
        recipes.find("tiny-expert")


def test_a_task_whose_name_begins_like_another():
    """hopper-generalized-medium is none of hopper's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "TASKS", ZOO)
        assert recipes.task_of("hopper-generalized-medium-expert") == "hopper-generalized"
        assert recipes.task_of("hopper-medium-expert") == "hopper"
        assert len({*recipes.names()}) == len(recipes.names()) == 10 * len(ZOO)


def test_trained_on_by_name(cache, tmp_path):
    options = {"quiet": True, "cache": False, "eval_episodes": 2}
    config = Config(total_steps=4)
    run = rlzoo.train(make, config, "tiny-medium", out=str(tmp_path / "a"), **options)
    assert cache == ["tiny"] and run.summary["env"].startswith("probes.py:ActionReward")
    assert Record.read(run.dir).description["options"]["dataset"] == ["tiny-medium"]
    assert "eval/score" in (run.dir / "metrics.csv").read_text().splitlines()[0]
    assert np.isfinite(rlzoo.load(run.dir).policy)
    both = {"train": "tiny-random", "validation": "tiny-expert"}
    run = rlzoo.train(make, config, both, out=str(tmp_path / "b"), **options)
    assert "eval/action_mse" in (run.dir / "metrics.csv").read_text()
    with pytest.raises(Refused, match=r"there is no file tiny-exprt; data set .* nearest: tiny-ex"):
        rlzoo.train(make, config, "tiny-exprt", out=str(tmp_path / "c"), **options)


# ---- the command line ----------------------------------------------------------------------------


def test_commands(cache, tmp_path, command, made):  # noqa: F811
    code, out, err = command("list")
    assert code == 0 and out.count("not made yet") == len(made) and not cache, err
    assert "tiny: probe-action-continuous by td3, made in about no time" in out
    code, out, err = command("make", "tiny-expert")
    assert (code, out) == (0, f"{recipes.path_of('tiny-expert')}\n") and "is made now" in err
    code, out, err = command("make", "tiny-medium", "--again")
    assert code == 0 and cache == ["tiny", "tiny"]
    code, out, err = command("list")
    assert code == 0 and "not made yet" not in out
    returns = dataset.episodes(made["random+expert"]).returns
    score = dataset.normalized_score(made["random+expert"], returns.mean())
    line = next(line.split() for line in out.splitlines() if "random+expert" in line)
    assert line[1:6] == [f"{len(made['random+expert'])}", "transitions", "in", "48", "episodes,"]
    assert line[-3:] == [f"{returns.mean():.2f},", "score", f"{score:.1f}"]
    code, out, err = command("describe", "tiny-one-expert")
    assert code == 0 and "in 1 episodes" in out, err
    code, out, err = command("convert", "tiny-expert", tmp_path / "a.npz")
    assert code == 0, err
    same(dataset.load(tmp_path / "a.npz"), made["expert"])
    for wrong in (["make", "tiny-exprt"], ["describe", "tiny-exprt"], ["convert", "x", "y.npz"]):
        code, out, err = command(*wrong)
        assert code == 2 and "nearest: tiny-" in err and not out


# ---- the real ones -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pendulum(tmp_path, monkeypatch):
    """Half a minute on an idle core."""
    monkeypatch.setenv("RLZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(recipes, "TASKS", ZOO)
    recipes.find("pendulum-medium-replay")
    means = {}
    for tier in recipes.TIERS:
        data = recipes.load(f"pendulum-{tier}")
        means[tier] = dataset.normalized_score(data, dataset.episodes(data).returns).mean()
    assert abs(means["random"]) < 1e-3 and 30 < means["medium"] < 75 and means["expert"] > 90
    assert means["medium-expert"] == pytest.approx((means["medium"] + means["expert"]) / 2)
    assert -1300 < data.reference[0] < -1100 and -180 < data.reference[1] < -120
    assert means["medium-replay"] < means["medium"]
    one = dataset.episodes(recipes.load("pendulum-one-expert")).returns[0]
    assert one < -50  # it swings up
