"""What broke when people used the training loop and its record, each with its whole kind."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (registers the environments)
import pytest
import tiny_data
import toy

import rlzoo
from rlzoo import dataset, report
from rlzoo.algorithm import Refused
from rlzoo.run import checkpoints, files
from rlzoo.run.options import run_folder
from rlzoo.run.record import Record
from rlzoo.tools import collect, play

pytestmark = pytest.mark.usefixtures("shared_programs")
TOY = Path(toy.__file__)
TESTS = TOY.parent
ODD = "a[1] ü*?"
"""a folder's name with what patterns and markup take for themselves"""
QUICK = {"eval_episodes": 2, "cache": False}


@pytest.fixture
def plain(monkeypatch):
    """Without the picture, which takes a second."""
    monkeypatch.setattr(report.curves, "write_curve", lambda *_: None)


def go(out, make=toy.make, Config=toy.Config, data=None, sweep=None, run=None, **config):
    options = QUICK | {"quiet": True} | (run or {})
    return rlzoo.train(make, Config(**config), data, sweep=sweep, out=out, **options)


def command(*argv, cwd=None, code=0, **env):
    """Run Python on `argv`: what it printed on both streams."""
    argv = [sys.executable, *map(str, argv)]
    done = subprocess.run(
        argv, cwd=cwd, env=os.environ | env, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def numbers(run):
    """metrics.csv without wall times."""
    lines = (Path(run) / "metrics.csv").read_text().splitlines()
    kept = [i for i, name in enumerate(lines[0].split(",")) if not name.startswith("time/")]
    return [[line.split(",")[i] for i in kept] for line in lines]


# ---- 1: names of any kind ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_with_brackets_is_a_folder(tmp_path):
    flags = ["--no-cache", "--eval-episodes", "2", "--seeds", "2", "--checkpoint-every", "8"]
    out = tmp_path / ODD / "[b]x[/b]"
    process = subprocess.Popen(
        [sys.executable, str(TOY), *flags, "--total-steps", "2000", "--out", str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 100
    while not checkpoints.listed(out / "checkpoints" / "0"):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    assert str(out) in process.communicate()[0]
    text = command(TOY, "--resume", "--out", out)
    assert f"record in {out}" in text and f"learning curve: {out / 'curve.png'}" in text
    go(tmp_path / "plain", total_steps=2000, run={"seeds": 2})
    assert numbers(out) == numbers(tmp_path / "plain")
    policy = rlzoo.load(out, member=1).policy
    np.testing.assert_array_equal(policy["w"], rlzoo.load(tmp_path / "plain", member=1).policy["w"])
    assert f"wrote {out / 'play.gif'}" in command("-m", "rlzoo", "play", out, "--steps", "2")
    page = tmp_path / ODD / "report"
    text = command("-m", "rlzoo", "report", out, "--out", page)
    assert str(page / "report.md") in text
    assert str(out) in (page / "report.html").read_text()


def test_what_was_saved_is_read_back(tmp_path, monkeypatch, plain):
    go(tmp_path / "good", total_steps=20)
    spoilt = checkpoints.save

    def save(folder, saved):
        spoilt(folder, saved)
        shutil.rmtree(folder / str(saved.at) / "arrays")

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(Refused, match="was written, but cannot be read back"):
        go(tmp_path / "bad", total_steps=20)


def test_swept_values_are_shown_as_they_are(tmp_path, capsys, plain):
    sweep = {"mode": ["[b]plain", "[/b]", "[red]"]}
    go(tmp_path / "a", total_steps=20, sweep=sweep, run={"quiet": False})
    text = capsys.readouterr().out
    assert all(value in text for value in sweep["mode"])
    assert [m["mode"] for m in Record.read(tmp_path / "a").rows.read()][::3]


# ---- 2: all members diverge ----------------------------------------------------------------------


def _strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_all_members_diverged(tmp_path):
    out = tmp_path / "a"
    flags = ["--no-cache", "--seeds", "2", "--total-steps", "40", "--eval-episodes", "2"]
    text = command(TOY, *flags, "--learning-rate", "nan", "--tensorboard", "--out", out)
    assert "IQM return" in text
    assert all(f"diverged: member {m} (seed {m})" in text for m in (0, 1))
    names = {"config.json", "metrics.csv", "summary.json", "checkpoints", "toy.py", "curve.png"}
    assert names <= {path.name for path in out.iterdir()}
    config = _strict((out / "config.json").read_text())
    summary = _strict((out / "summary.json").read_text())
    assert config["config"]["learning_rate"] is None
    assert summary["status"] == "done" and summary["eval/return"][0]["diverged"] == 2
    for path in out.rglob("*.json"):
        _strict(path.read_text())
    with pytest.raises(Refused, match="learning_rate was nan, now 0.1|None, now 0.1"):
        go(out, total_steps=40, run={"seeds": 2, "resume": True, "eval_episodes": 2})


def test_loggers_get_strict_summaries_and_are_closed(tmp_path, monkeypatch):
    closed = []

    class Logger:
        def rows(self, rows): ...

        def close(self, summary):
            closed.append(summary)

    monkeypatch.setattr("rlzoo.run.loggers.open_loggers", lambda *_: [Logger()])
    bad = {"learning_rate": float("nan"), "mode": "evaluate", "total_steps": 40}
    run = go(tmp_path / "a", **bad)
    json.dumps(closed, allow_nan=False)
    assert closed == [run.summary] and run.summary["members"][0]["eval/distance"] is None
    assert run.summary == json.loads((run.dir / "summary.json").read_text())
    assert (run.dir / "curve.png").exists()


# ---- 6: numbers of NumPy -------------------------------------------------------------------------


def test_numpy_numbers_are_numbers(tmp_path, plain):
    run = go(
        tmp_path / "numpy",
        run={"seeds": np.int64(2), "seed": np.uint8(3), "eval_every": jnp.int32(20)},
        sweep={"goal": np.logspace(-1, 0, 2), "noisy": np.array([True, False])},
        total_steps=np.int64(40),
        width=jnp.int32(4),
        hidden=np.array([64, 64]),
        learning_rate=np.float32(0.1),
    )
    same = go(
        tmp_path / "python",
        run={"seeds": 2, "seed": 3, "eval_every": 20},
        sweep={"goal": [0.1, 1.0], "noisy": [True, False]},
        total_steps=40,
        hidden=[64, 64],
        learning_rate=float(np.float32(0.1)),
    )
    assert numbers(run.dir) == numbers(same.dir)
    a, b = (_strict((r.dir / "config.json").read_text()) for r in (run, same))
    assert (a["config"], a["sweep"], a["options"]) == (b["config"], b["sweep"], b["options"])


@pytest.mark.parametrize("rate", [np.nan, np.inf, 1e30])
def test_bounds_let_pass_what_diverges(tmp_path, plain, rate):
    @rlzoo.config
    class Config(toy.Config):
        learning_rate: float = rlzoo.traced(0.1, above=0.0)

    run = go(tmp_path / "a", Config=Config, learning_rate=rate, total_steps=40)
    assert run.summary["members"][0]["diverged"]
    for wrong in (0.0, -1.0, -np.inf):
        with pytest.raises(Refused, match="learning_rate is .*; it must be more than 0"):
            go(tmp_path / "b", Config=Config, learning_rate=wrong)


def test_sweeps_and_options_that_make_no_sense(tmp_path):
    cases = [
        (dict(sweep={"env": "CartPole-v1"}), "--sweep env: 'CartPole-v1' is one value"),
        (dict(sweep={"goal": 1.0}), "--sweep goal: 1.0 is one value; give a list of values"),
        (dict(sweep={"goal": np.array([1.0, 1.0])}), "--sweep goal: 1.0 is there twice"),
        (dict(run={"sedes": 2}), "option 'sedes' is unknown; nearest: seeds"),
        (dict(run={"seeds": True}), "--seeds is True; it must be a whole number"),
    ]
    for given, message in cases:
        with pytest.raises(Refused, match=re.escape(message)):
            go(tmp_path / "a", **given)


# ---- 8, 17: folders ------------------------------------------------------------------------------


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    found, start = [], threading.Barrier(8)

    def ask():
        start.wait()
        found.extend(run_folder("toy", "brax/ant") for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 160 and all(path.is_dir() for path in found)
    assert found.count(Path("runs/toy/brax-ant/now")) == 1
    assert Path("runs/toy/brax-ant/now-160") in found
    run = rlzoo.train(toy.make, toy.Config(total_steps=4), quiet=True, **QUICK)
    again = rlzoo.train(toy.make, toy.Config(total_steps=4), quiet=True, **QUICK)
    assert (run.dir.name, again.dir.name) == ("now", "now-2")


def test_a_default_folder_is_named_after_the_file_of_an_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder("toy", "/some/where/corridor.py:Corridor?length=5")
    assert folder.parent == Path("runs/toy/corridor.py:Corridor?length=5")


@pytest.mark.slow
def test_two_writers_in_one_folder(tmp_path, plain):
    out = tmp_path / "a"
    flags = ["--no-cache", "--eval-episodes", "2", "--checkpoint-every", "8"]
    process = subprocess.Popen(
        [sys.executable, str(TOY), *flags, "--total-steps", "200000", "--out", str(out)],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 100
        while not checkpoints.listed(out / "checkpoints" / "0"):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        text = command(TOY, "--resume", "--out", out, code=2)
        assert f"{out} is being written by process {process.pid} on " in text
        assert len(text.strip().splitlines()) == 1
        Record.read(out)  # reading needs no lock
    finally:
        process.kill()
        process.communicate()
    process = subprocess.Popen([sys.executable, str(TOY), "--resume", "--out", str(out)])
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    options = {"resume": True, "checkpoint_every": 8}
    with pytest.raises(Refused, match="was started differently"):
        go(out, total_steps=20, run=options)
    folder = files.Lock(out)  # nothing that was refused or killed keeps it
    with pytest.raises(Refused, match="is being written by process"):
        go(out, total_steps=200000, run=options)
    folder.release()


# ---- 9: notebooks --------------------------------------------------------------------------------

CELLS = [
    """
    import jax
    import jax.numpy as jnp
    from typing import NamedTuple
    import numpy as np
    import rlzoo
    from flax import struct
    from jax.nn import relu as act_fn

    SCALE, LIMIT = 0.5, float("inf")
    SIZES = {"w": [4, 2]}
    """,
    """
    class State(NamedTuple):
        w: jax.Array

    @rlzoo.config
    class Config:
        env: str = rlzoo.static("CartPole-v1")
        total_steps: int = rlzoo.static(20)
        '''steps'''
        learning_rate: float = 0.1
    """,
    """
    class Config:
        never = "run"
    raise SystemExit
    """,
    """
    double = lambda x: 2 * x

    @jax.jit
    def shrink(w, rate=SCALE):
        return jnp.where(jnp.isfinite(LIMIT), w, double(w) * rate * 0.9)

    def outer():
        bias = 0.25
        def make(config, env, dataset=None):
            def step(state, t):
                w = shrink(state.w) - config.learning_rate * bias
                return State(w), {"loss/w": state.w.sum()}
            def act(policy, obs, key):
                return jnp.argmax(act_fn(obs @ policy.w))
            init = lambda key: State(jax.random.normal(key, SIZES["w"]))
            return rlzoo.Algorithm(init, step, lambda state: state, act)
        return make

    learner = outer()
    """,
]
DRIVER = """
import linecache, sys
def run(number, text):
    "What IPython does with a cell."
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        exec(compile(text, name, "exec"), vars(sys.modules["__main__"]))
    except SystemExit:
        print("a cell failed")
"""


def notebook(cells, last, out):
    cells = [textwrap.dedent(cell) for cell in cells]
    lines = [DRIVER, *(f"run({i}, {cell!r})" for i, cell in enumerate(cells))]
    return command("-c", "\n".join([*lines, textwrap.dedent(last)]), out, cwd=out.parent)


TRAIN = """
run = rlzoo.train(
    learner, Config(), seeds=2, out=sys.argv[1], eval_episodes=2, cache=False, quiet=True
)
"""


@pytest.mark.slow
def test_a_make_from_a_notebook_is_kept(tmp_path):
    cells = [*CELLS[:2], CELLS[3]]
    here = "print(np.asarray(rlzoo.load(run.dir, 1).policy.w).tolist())"
    text = notebook(cells, TRAIN + here, tmp_path / "run")
    assert "note" not in text
    assert Record.read(tmp_path / "run").description["algorithm"] == "notebook"
    code = (
        "import sys, rlzoo, numpy as np; found = rlzoo.load(sys.argv[1], 1);"
        "print(np.asarray(found.policy.w).tolist());"
        "print(found.act(found.policy, np.ones(4), None))"
    )
    again = command("-c", code, tmp_path / "run", cwd="/").splitlines()
    assert json.loads(again[0]) == json.loads(text.splitlines()[-1])
    assert again[1] in "01"
    assert "wrote" in command("-m", "rlzoo", "play", tmp_path / "run", "--steps", "2")


@pytest.mark.slow
def test_a_notebook_with_something_that_has_no_text_trains_and_says_so(tmp_path):
    odd = "import functools\nshrink = functools.partial(shrink, rate=0.4)"
    last = "print(rlzoo.load(run.dir, make=learner, Config=Config).policy.w.shape)"
    text = notebook([*CELLS[:2], CELLS[3], odd], TRAIN + last, tmp_path / "run")
    assert "no copy of the algorithm is kept (shrink is a partial, which has no text)" in text
    assert "rlzoo.load(run, make=make, Config=Config)" in text and "(4, 2)" in text
    with pytest.raises(Refused, match="has no copy of its algorithm; hand over the original"):
        rlzoo.load(tmp_path / "run")


def test_an_algorithm_inside_of_a_function_is_kept(tmp_path, plain):
    factor = 3.0

    def make(config, env, dataset=None):
        algorithm = toy.make(config, env)
        return algorithm._replace(policy=lambda state: state.params["b"] * factor)

    run = go(tmp_path / "a", make=make, total_steps=20, mode="evaluate")
    assert run.summary["algorithm"] == "test_faults"
    whole = rlzoo.load(run.dir, full=True).policy
    np.testing.assert_array_equal(rlzoo.load(run.dir).policy, whole.params["b"] * 3)


# ---- 10: 64 bits ---------------------------------------------------------------------------------


def test_64_bits_are_refused_at_once(tmp_path, plain):
    text = command(TOY, "--out", tmp_path / "a", code=2, JAX_ENABLE_X64="1")
    assert text.startswith("error: jax is set to 64 bits") and len(text.splitlines()) == 1
    assert not (tmp_path / "a").exists()
    go(tmp_path / "b", total_steps=20)
    jax.config.update("jax_enable_x64", True)
    try:
        for refused in (functools.partial(go, tmp_path / "c"), lambda: rlzoo.load(tmp_path / "b")):
            with pytest.raises(Refused, match="unset JAX_ENABLE_X64"):
                refused()
    finally:
        jax.config.update("jax_enable_x64", False)


# ---- 15: environments of one's own ---------------------------------------------------------------

CORRIDOR = """
import dataclasses
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 20

@struct.dataclass
class Place(environment.EnvState):
    x: int

class Corridor(environment.Environment):
    def __init__(self, length=5):
        super().__init__()
        self.length = length
    @property
    def default_params(self):
        return Params()
    def reset_env(self, key, params):
        return self._obs(0), Place(time=0, x=0)
    def step_env(self, key, state, action, params):
        state = Place(time=state.time + 1, x=jnp.clip(state.x + 2 * action - 1, 0, self.length))
        over = state.x == self.length
        return self._obs(state.x), state, over * 1.0, over, {}
    def _obs(self, x):
        return jnp.array([x, 0.0, 0.0, 1.0]) / self.length
    def action_space(self, params=None):
        return spaces.Discrete(2)
    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (4,))
"""


@pytest.fixture
def corridor(tmp_path):
    path = tmp_path / ODD / "corridor.py"
    path.parent.mkdir()
    path.write_text(CORRIDOR)
    return path


@pytest.mark.slow
def test_an_environment_object_is_found_again(tmp_path, corridor, plain):
    from rlzoo.suites.files import load

    Corridor = load(corridor).Corridor
    out = tmp_path / "run"
    killed = go(out, env=Corridor(length=3), total_steps=20, sweep={"goal": [1.0, 2.0]})
    config = json.loads((killed.dir / "config.json").read_text())
    assert config["config"]["env"] == f"{corridor}:Corridor?length=3"
    assert config["env"] == killed.summary["env"] == "corridor.py:Corridor?length=3"
    text = command(TOY, "--resume", "--out", out)
    assert "toy corridor.py:Corridor?length=3: " in text
    assert "wrote" in command("-m", "rlzoo", "play", out, cwd=tmp_path)
    with pytest.raises(Refused, match="is there twice"):
        go(tmp_path / "b", sweep={"env": [Corridor(3), Corridor(length=3)]}, total_steps=20)
    two = go(tmp_path / "c", sweep={"env": [Corridor(3), Corridor(4), Corridor]}, total_steps=20)
    ids = [f"{corridor}:Corridor{end}" for end in ("?length=3", "?length=4", "")]
    assert [member["env"] for member in two.summary["members"]] == ids
    page = report.report([two.dir], tmp_path / "report")[0]
    assert str(tmp_path / ODD) not in Path(page).read_text().replace(str(two.dir), "")


@pytest.mark.slow
def test_an_environment_of_a_notebook_is_asked_for(tmp_path, plain):
    names = {"__name__": "cell"}
    exec(CORRIDOR, names)
    Corridor = names["Corridor"]
    run = go(tmp_path / "a", env=Corridor(3), total_steps=20)
    assert Record.read(run.dir).description["config"]["env"].startswith("notebook:Corridor")
    for ask in (rlzoo.load, play.play, functools.partial(collect.policy, episodes=2)):
        with pytest.raises(Refused, match="Give the environment itself: env="):
            ask(run.dir)
    assert "Give the environment itself" in command(TOY, "--resume", "--out", run.dir, code=2)
    assert rlzoo.load(run.dir, env=Corridor(3)).policy["w"].shape == (4, 4)
    assert rlzoo.evaluate(run.dir, 3, env=Corridor(3)).shape == (3,)
    assert play.play(run.dir, env=Corridor(3), steps=2).exists()
    assert len(collect.policy(run.dir, 2, env=Corridor(3)).starts) == 3
    again = go(tmp_path / "a", env=Corridor(3), total_steps=20, run={"resume": True})
    assert again.summary["status"] == "done"


@pytest.mark.slow
def test_a_copy_finds_what_stands_beside_the_original(tmp_path, plain):
    home = tmp_path / "home"
    home.mkdir()
    (home / "beside_it.py").write_text("RATE = 0.125\n")
    text = TOY.read_text().replace("import rlzoo\n", "import rlzoo\nfrom beside_it import RATE\n")
    (home / "mine.py").write_text(text + "\nimport gymnax\n")
    flags = ["--no-cache", "--total-steps", "20", "--eval-episodes", "2", "--out"]
    command(home / "mine.py", *flags, tmp_path / "run")
    load = "import sys, rlzoo; print(rlzoo.load(sys.argv[1]).policy['w'].shape)"
    assert "(4, 4)" in command("-c", load, tmp_path / "run", cwd="/")


@pytest.mark.slow
def test_a_package_and_names_registered_twice(tmp_path, corridor, plain):
    home = tmp_path / "mypackage"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "nets.py").write_text("RATE = 0.125\n")
    shutil.copy(corridor, home / "corridor.py")
    text = TOY.read_text().replace(
        "import rlzoo\n",
        "import gymnax\nimport rlzoo\nfrom .nets import RATE\nfrom .corridor import Corridor\n"
        "gymnax.register('My-v0', Corridor)\n",
    )
    (home / "mine.py").write_text(text)
    flags = ["--no-cache", "--total-steps", "20", "--eval-episodes", "2", "--env", "My-v0"]
    command("-m", "rlzoo", "train", home / "mine.py", *flags, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["env"] != "My-v0"
    load = (
        "import sys, rlzoo; rlzoo.load(sys.argv[1]); rlzoo.load(sys.argv[1]);"
        "print(rlzoo.load(sys.argv[1]).policy['w'].shape)"
    )
    assert "(4, 4)" in command("-c", load, tmp_path / "run", cwd="/")


# ---- 18, 19, 20 ----------------------------------------------------------------------------------


def test_an_early_end_names_the_step_of_its_score(tmp_path, plain, capsys, monkeypatch):
    asked: list = []
    progress = Record.progress

    def stop(self, program, stage, position, clock):
        progress(self, program, stage, position, clock)
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    monkeypatch.setattr(Record, "progress", stop)
    monkeypatch.setattr("rlzoo.run.display.Display.PLAIN_SECONDS", 0.0)
    run = go(tmp_path / "a", run={"seeds": 2, "quiet": False, "eval_every": 100})
    assert run.summary["status"] == "interrupted"
    assert run.summary["eval/return"][0]["step"] == 0 and run.summary["steps"] > 0
    text = capsys.readouterr().out
    assert "at step" in text and "interrupted and saved" in text
    assert re.search(
        r"step \d+ of 200 of each member  .* steps/s of all  .*return .* \(members ", text
    )


def test_recorded_commands_hold_no_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    argv = [
        "/opt/zoo/toy.py",
        "--out",
        f"{tmp_path}/runs/a b",
        "--dataset",
        "expert=/home/me/data/e.npz",
        "mixed=/scratch/m.npz",
        f"--env={tmp_path}/corridor.py:Corridor?length=5",
        "--sweep",
        "env=/x/a.py:A,/home/me/b.py:B",
        "--checkpoint",
        "/home/me/c.npz",
        "--learning-rate",
        "0.1",
    ]
    assert files.command_line(argv) == (
        "python toy.py --out 'runs/a b' --dataset 'expert=~/data/e.npz' mixed=m.npz "
        "'--env=corridor.py:Corridor?length=5' --sweep 'env=a.py:A,~/b.py:B' "
        "--checkpoint ~/c.npz --learning-rate 0.1"
    )
    assert files.command_line(["/opt/venv/bin/rlzoo", "train", "ppo"]) == "rlzoo train ppo"
    assert files.command_line(["/x/rlzoo/__main__.py", "train"]) == "python -m rlzoo train"


def test_evaluate_gives_returns(tmp_path, plain):
    run = go(tmp_path / "a", total_steps=20, mode="memory", run={"seeds": 2})
    returns = rlzoo.evaluate(run.dir, episodes=5, member=1, seed=3)
    assert returns.shape == (5,) and (returns >= 8).all()
    np.testing.assert_array_equal(returns, rlzoo.evaluate(run.dir, 5, 1, 3))
    assert (returns != rlzoo.evaluate(run.dir, 5, 1, 4)).any()
    with pytest.raises(Refused, match="episodes is 0; it must be at least 1"):
        rlzoo.evaluate(run.dir, 0)


def test_evaluate_plays_as_evaluation_does(tmp_path, plain):
    """Every episode of one policy that does not act at random has the return of its start."""

    def make(config, env, dataset=None):
        algorithm = toy.make(config, env)
        return algorithm._replace(act=lambda policy, obs, key: jnp.int32(1))

    run = go(tmp_path / "a", make=make, total_steps=20, run={"eval_episodes": 64})
    mean = run.summary["members"][0]["eval/return"]
    assert abs(rlzoo.evaluate(run.dir, 256).mean() - mean) < 0.5  # 9.3 with a deviation of 0.7


# ---- data sets -----------------------------------------------------------------------------------

NEEDS_TWO = '''
"""Clones the expert's actions, and takes its rate from the shapes of the rest."""
import jax
import jax.numpy as jnp

import rlzoo


@rlzoo.config
class Config:
    env: str = rlzoo.static("probe-action")
    total_steps: int = rlzoo.static(40)
    learning_rate: float = 0.5
    use: str = rlzoo.static("both")


def make(config, env, dataset=None):
    rlzoo.check(set(dataset) == {"expert", "mixed"}, "needs --dataset expert=FILE mixed=FILE")
    expert, mixed = dataset["expert"], dataset["mixed"]

    def init(key):
        return jnp.zeros(())

    def step(w, t):
        if config.use == "shapes":
            return w + len(mixed.obs), {"loss/w": w}
        target = jnp.mean(expert.obs[:, 0] * (2 * expert.action - 1))
        both = target + 0.0 * mixed.reward.mean()
        return w + config.learning_rate * (both - w), {"loss/w": (both - w) ** 2}

    def act(w, obs, key):
        return (w * obs[0] > 0).astype(jnp.int32)

    return rlzoo.Algorithm(init, step, lambda w: w, act)


if __name__ == "__main__":
    rlzoo.main(make, Config)
'''


@pytest.fixture
def two(tmp_path):
    """An algorithm that needs two data sets, and their files."""
    mixed = tiny_data.discrete()
    lengths = np.diff(np.asarray(mixed.starts))
    expert = dataset.take(mixed, np.flatnonzero(lengths == 1))
    good = np.asarray((expert.action == 1) == (expert.obs[:, 0] > 0))
    expert = dataset.take(expert, np.flatnonzero(good))
    dataset.save(expert.replace(reference=(-1.0, 3.0)), tmp_path / "e.npz")
    dataset.save(mixed.replace(reference=None), tmp_path / "m.npz")
    (tmp_path / "two.py").write_text(
        NEEDS_TWO.replace(
            "import rlzoo\n",
            f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport probes\nimport rlzoo\n",
            1,
        )
    )
    return tmp_path / "two.py"


@pytest.mark.slow
def test_a_mapping_of_data_sets_from_end_to_end(tmp_path, two, plain):
    from rlzoo.suites.files import load

    data = ["--dataset", "expert=e.npz", f"mixed={tmp_path / 'm.npz'}"]
    flags = ["--no-cache", "--eval-episodes", "4", "--checkpoint-every", "8", "--seeds", "2"]
    out = tmp_path / "run"
    command(two, *data, *flags, "--out", out, cwd=tmp_path)
    record = Record.read(out)
    recorded = {"expert": str(tmp_path / "e.npz"), "mixed": str(tmp_path / "m.npz")}
    assert set(record.description["options"]["dataset"]) in (
        {f"{name}={file}" for name, file in recorded.items()},
        {"expert=e.npz", f"mixed={recorded['mixed']}"},
    )
    for member in record.rows.read():
        if member["eval/return"]:  # references are -1 and 3
            score = 25.0 * (float(member["eval/return"]) + 1)
            assert float(member["eval/score"]) == pytest.approx(score)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["members"][1]["eval/return"] == 1.0  # it has learned, from the expert alone
    # killed, resumed, loaded
    module = load(two)
    given = {"expert": dataset.load(recorded["expert"]), "mixed": recorded["mixed"]}
    whole = go(
        tmp_path / "whole", module.make, module.Config, given, run={"seeds": 2, "eval_episodes": 4}
    )
    assert numbers(whole.dir) == numbers(out)
    text = command(two, "--resume", "--out", out, cwd=tmp_path)
    assert "eval" not in text or "error" not in text
    assert float(rlzoo.load(out, dataset=recorded).policy) > 0.9
    with pytest.raises(Refused, match="needs --dataset expert=FILE mixed=FILE"):
        go(tmp_path / "b", module.make, module.Config, {"expert": given["expert"]})


@pytest.mark.slow
def test_a_data_set_that_nothing_reads_is_refused(tmp_path, two, plain):
    from rlzoo.suites.files import load

    text = command(TOY, "--env", "probe-action", "--dataset", tmp_path / "m.npz", code=2)
    module = load(two)
    given = {name: tmp_path / f"{name[0]}.npz" for name in ("expert", "mixed")}
    with pytest.raises(Refused, match="two makes no use of a data set; leave --dataset out"):
        go(tmp_path / "a", module.make, module.Config, given, use="shapes")
    with pytest.raises(Refused, match="toy makes no use of a data set"):
        go(tmp_path / "a", data=given["mixed"], env="probe-action")
    assert not (tmp_path / "a").exists()
    assert text


@pytest.mark.parametrize("module", ["rlzoo.suites.files", "rlzoo.run.source", "rlzoo.run.loop"])
def test_processes_join_before_anything_starts_jax(module):
    """gymnax starts jax when it is imported; afterwards no process could join the others."""
    code = (
        "import sys; from rlzoo import machine; from jax._src import xla_bridge; seen = []\n"
        "def start(): seen.append(xla_bridge.backends_are_initialized())\n"
        "machine.start_backend = start; __import__(sys.argv[1]); print(seen[0])"
    )
    assert command("-c", code, module).strip() == "False"
