"""TensorBoard and W&B get what metrics.csv gets: every row once, also of a run that was killed and
resumed."""

import csv
import json
import math
import struct
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

import rlzoo
from rlzoo import report
from rlzoo.algorithm import Refused
from rlzoo.run import loggers
from rlzoo.run.options import Options
from rlzoo.run.record import Record

SWEEP = {"learning_rate": [0.1, math.nan], "width": [4, 5]}  # two settings in each of two programs
TEXT = ("member", "seed", "step", *SWEEP)


@pytest.fixture(autouse=True, scope="module")
def _quick(tmp_path_factory):
    """Programs compiled once serve all tests."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0, -1), strict=True):
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_curve", lambda *_: None)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of W&B that notes what it is asked; `.runs` are the runs it began."""

    class Run:
        def __init__(self, kwargs):
            self.kwargs, self.logged, self.summary, self.metrics, self.code = (
                kwargs,
                [],
                {},
                [],
                None,
            )

        def log(self, values):
            self.logged.append(values)

        def define_metric(self, name, **how):
            self.metrics.append((name, how))

        def finish(self, exit_code):
            self.code = exit_code

    fake = types.ModuleType("wandb")
    fake.runs, fake.errors = [], types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    fake.Settings = lambda **kwargs: kwargs
    fake.init = lambda **kwargs: fake.runs.append(Run(kwargs)) or fake.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def go(out, resume=False, sweep=SWEEP, **options):
    config = toy.Config(total_steps=40, mode="evaluate")
    return rlzoo.train(
        toy.make,
        config,
        sweep=sweep,
        out=str(out),
        resume=resume,
        seeds=2,
        eval_episodes=2,
        checkpoint_every=10,
        quiet=True,
        cache=False,
        **options,
    )


def killed(out, **options):
    """A run that dies in its second program at step 30, where the last checkpoint is that of step
    20."""

    def progress(self, program, stage, position, clock):
        if program.index == 1 and position.at == 15:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "progress", progress)
        with pytest.raises(KeyboardInterrupt):
            go(out, **options)


def rows(out):
    with (Path(out) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def expected(out):
    """{(series, metric, step): value} by metrics.csv, in float32; a mean is over the two seeds of a
    setting."""
    found, settings = {}, {}
    for row in rows(out):
        for metric in row.keys() - set(TEXT):
            if row[metric]:
                value = np.float32(row[metric])
                found[f"member{row['member']}", metric, int(row["step"])] = value
                name = f"mean learning_rate={row['learning_rate']} width={row['width']}"
                settings.setdefault((name, metric, int(row["step"])), []).append(value)
    means = {
        key: np.float32(np.mean(values))
        for key, values in settings.items()
        if np.isfinite(values).all()
    }
    assert len(means) < len(settings)  # the members without learning rate have diverged
    return found | means


def same(got, wanted):
    assert got.keys() == wanted.keys()
    timed = lambda key: key[1].startswith(
        "time/"
    )  # a step that was made twice did not take the same time twice
    np.testing.assert_allclose(
        *([x[key] for key in got if not timed(key)] for x in (got, wanted)), rtol=1e-5
    )


# ---- TensorBoard ---------------------------------------------------------------------------------


def events(folder):
    """The events of a run of TensorBoard: records of length, checksum, content, checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(out):
    """{(series, metric, step): value} of all runs of TensorBoard; fails where a value stands
    twice."""
    found = {}
    for folder in (out / "tensorboard").iterdir():
        for event in events(folder):
            for value in event.summary.value:
                key = folder.name, value.tag, event.step
                if value.HasField("simple_value"):
                    assert key not in found
                    found[key] = np.float32(value.simple_value)
    return found


def test_tensorboard_holds_every_row(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not needed
    run = go(tmp_path / "run", tensorboard=True)
    same(scalars(tmp_path / "run"), expected(tmp_path / "run"))
    assert (
        len({step for _, metric, step in scalars(tmp_path / "run") if metric == "eval/distance"})
        > 10
    )

    sessions = {}
    for folder in (tmp_path / "run" / "tensorboard").glob("member*"):
        plugins = [
            v.metadata.plugin_data.content
            for e in events(folder)
            for v in e.summary.value
            if v.metadata.plugin_data.plugin_name == "hparams"
        ]
        parts = [HParamsPluginData.FromString(content) for content in plugins]
        assert [part.WhichOneof("data") for part in parts] == [
            "experiment",
            "session_start_info",
            "session_end_info",
        ]
        assert parts[0].experiment.metric_infos[0].name.tag == "eval/distance"
        sessions[folder.name] = parts[1].session_start_info.hparams
    assert (
        sessions["member0"]["hidden"].string_value == "[3, 2]"
        and sessions["member0"]["noisy"].bool_value
    )
    assert sessions["member0"]["goal"].number_value == 1.0
    swept = [
        tuple(s[name].number_value for name in ("learning_rate", "width", "seed"))
        for s in sessions.values()
    ]
    assert sorted(values for values in swept if values[0] == 0.1) == [
        (0.1, 4, 0),
        (0.1, 4, 1),
        (0.1, 5, 0),
        (0.1, 5, 1),
    ]
    assert len(swept) == 8

    texts = [
        v.tensor.string_val[0].decode()
        for e in events(next((tmp_path / "run" / "tensorboard").glob("mean*=0.1*=4")))
        for v in e.summary.value
        if v.tag.startswith("summary")
    ]
    assert json.loads(texts[0].strip("`\n")) == json.loads(json.dumps(run.summary))


def test_tensorboard_after_a_kill(tmp_path):
    """Rows after the checkpoint are cut; what is written anew on resume has each row once."""
    killed(tmp_path / "run", tensorboard=True)
    steps = lambda: {step for name, _, step in scalars(tmp_path / "run") if name == "member2"}
    assert max(steps()) == 30 > 20 == Record.read(tmp_path / "run").restore(1).at * 2
    go(tmp_path / "run", resume=True, tensorboard=True)
    same(scalars(tmp_path / "run"), expected(tmp_path / "run"))
    assert max(steps()) == 40


# ---- W&B -----------------------------------------------------------------------------------------


def logged(runs):
    """{(series, metric, step): value} over runs; fails where a value was logged twice."""
    found = {}
    for values in (values for run in runs for values in run.logged):
        for name, value in values.items():
            key = (*name.split("/", 1), values["step"])
            assert name == "step" or key not in found, f"{key} twice"
            if name != "step":
                found[key] = np.float32(value)
    return found


def test_wandb_after_a_kill(tmp_path, wandb):
    killed(tmp_path / "run", wandb=True, wandb_project="mine")
    run = go(tmp_path / "run", resume=True, wandb=True)
    first, second = wandb.runs
    same(logged(wandb.runs), expected(tmp_path / "run"))
    assert first.kwargs["project"] == "mine" and first.kwargs["dir"] == str(tmp_path / "run")
    assert first.kwargs["id"] == second.kwargs["id"] and second.kwargs["resume"] == "allow"
    assert first.kwargs["config"]["hidden"] == [3, 2] and first.kwargs["config"]["sweep"][
        "width"
    ] == [4, 5]
    assert first.kwargs["config"]["versions"]["jax"] == jax.__version__
    assert ("*", {"step_metric": "step"}) in first.metrics
    assert first.code == 1 and second.code == 0 and second.summary == run.summary
    assert second.logged[0]["step"] == 32  # the first row that the killed run did not reach

    # without wandb.json, as if nothing were remembered, rows are logged twice
    (tmp_path / "run" / "wandb.json").unlink()
    go(tmp_path / "run", resume=True, wandb=True)
    with pytest.raises(AssertionError, match="twice"):
        logged(wandb.runs)
    assert wandb.runs[2].kwargs["id"] != first.kwargs["id"]


def test_wandb_that_refuses(tmp_path, wandb):
    def init(**kwargs):
        raise wandb.errors.Error("no API key")

    wandb.init = init
    with pytest.raises(Refused, match=r"--wandb: no API key.*WANDB_MODE=offline.*--resume --out"):
        go(tmp_path / "run", wandb=True)


def test_wandb_offline(tmp_path, monkeypatch):
    module = pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    go(tmp_path / "run", sweep={}, wandb=True)
    id = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{id}.wandb")
    content = file.read_bytes()
    assert (
        b"member1/eval/return" in content
        and b"mean/eval/return" in content
        and b"learning_rate" in content
    )
    assert module.run is None


# ---- asking for them -----------------------------------------------------------------------------


@pytest.mark.parametrize("flag, package", loggers.PACKAGES.items())
def test_a_missing_package_is_refused_before_anything_happens(flag, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        Refused, match=rf"--{flag} needs the package {package}.*pip install 'rlzoo-jax\[{flag}\]'"
    ):
        go(tmp_path / "run", **{flag: True})
    assert not (tmp_path / "run").exists()


def test_off_by_default(monkeypatch):
    for package in loggers.PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    Options().check()
    assert loggers.open_loggers(Path("none"), {}, Options()) == []


def test_flags_may_change_on_resume_and_process_0_alone_logs(tmp_path, wandb, monkeypatch):
    go(tmp_path / "run", sweep={})
    go(tmp_path / "run", sweep={}, resume=True, wandb=True, wandb_project="other")
    assert (
        logged(wandb.runs) and Record.read(tmp_path / "run").options.wandb
    )  # the next resume logs too
    steps = [values["step"] for values in wandb.runs[0].logged]
    assert steps == sorted(
        {int(row["step"]) for row in rows(tmp_path / "run")}
    )  # all that there was
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    go(tmp_path / "other", sweep={}, wandb=True, tensorboard=True)
    assert len(wandb.runs) == 1 and not (tmp_path / "other").exists()
