"""Two hundred random wrong command lines: each ends in one line and exit code 2, or runs; none in a
traceback, none in a hang."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlzoo import machine
from rlzoo.cli import commands
from rlzoo.run import record

TOY = str(toy.__file__)
NUMBERS = [
    "0",
    "-1",
    "1",
    "2.5",
    "1e6",
    "1e12",
    "9e18",
    "1e30",
    "nan",
    "inf",
    "-1e-3",
    "many",
    "",
    "none",
]
FLAGS = {
    "--seeds": [*(number for number in NUMBERS if number != "1e6"), "1e9"],
    "--seed": [*NUMBERS, "4294967295"],
    "--total-steps": NUMBERS,
    "--eval-every": NUMBERS,
    "--eval-episodes": NUMBERS,
    "--checkpoint-every": NUMBERS,
    "--devices": NUMBERS,
    "--processes": NUMBERS,
    "--width": NUMBERS,
    "--learning-rate": NUMBERS,
    "--learning_rate": ["0.1"],
    "--hidden": ["", "0", "-1", "64x64", "64,64", "a", "8", "1e12"],
    "--mode": ["plain", "stages", "stage", ""],
    "--env": ["CartPole-v1", "CartPole-v3", "cartpole", "", "brax/hoper", "brax/ant:sprin", "?",
              "CartPole-v1?", "CartPole-v1?length", "CartPole-v1?lenght=1", "tile9", "/proc/x",
              "CartPole-v1?sticky=often", "CartPole-v1?limit=0", "Pendulum-v1", "navix/Nothing",
              "jumanji/Nothing-v9", "craftax/Nothing", "./corridor.py:Corridor"],
    "--sweep": ["", "learning_rate", "learning_rate=", "learning_rate=a", "learning_rate=1,1",
                "learning_rate=0.1,0.2", "learning-rate=0.1", "seed=1,2", "width=1,2.5", "=", ",",
                "width=3,4", "hidden=8x8,9", "mode=plain,other", "env=CartPole-v1,Nothing-v0"],
    "--out": ["{tmp}/run", "{tmp}/a[1] b", "{tmp}", "{tmp}/file", "{tmp}/file/run", "/proc/x", "",
              "{tmp}/" + 300 * "x"],
    "--dataset": ["{tmp}/no.npz", "{tmp}/file", "minari:Nothing", "minari:", "", "a=b c=d",
                  "pendulum-medum"],
    "--validation": ["0.5", "0", "1", "nan", "inf", "half", ""],
    "--resume": [None],
    "--force": [None],
    "--no-cache": [None],
    "--quiet": [None, "yes"],
    "--wandb-project": [""],
    "--solve": ["scramble:3", None],
    "--lr": ["0.1"],
    "--sede": ["1"],
    "-s": ["1"],
    "extra": [None],
    "--help": [None],
    "--": [None],
}  # fmt: skip
ALGORITHMS = [*12 * [TOY], "offline_dqn", "pppo", "", "--", "{tmp}/file", "{tmp}/broken.py"]
NAMES = ["ppo", "pppo", "{tmp}/file", "{tmp}", "", "{tmp}/none", "CartPole-v1", "/proc/x"]
TARGETS = ["{tmp}/file", "{tmp}/out.py", "{tmp}/out.npz", "/proc/x.npz", "{tmp}/file/x.py", ""]
OTHERS = {
    "info": [NAMES],
    "list": [["--env", "--envs=1", "all"]],
    "copy": [NAMES, TARGETS, ["--params", "--member=x", "--member", "--param"]],
    "plot": [NAMES, ["--out", "--out=/proc/x.png", "--ou"]],
    "report": [NAMES, ["--out", "--out=/proc/x", "--out="]],
    "play": [NAMES, ["--gif=/proc/x.gif", "--random=Nothing", "--member=-1", "--fps=a"]],
    "data": [["describe", "convert", "collect", "colect"], NAMES, TARGETS],
    "solve": [
        ["qstar", "toy", TOY, "ppo"],
        ["scramble:3", "scramble:", "scramble:1e9", "scramble:999999999", "{tmp}/file", "", "x"],
        ["--env=tile9", "--env=CartPole-v1", "--env=tile8", "--count=0", "--weight=2", "--batch=0",
         "--count=1e9", "--seed=-1", "--run={tmp}/none", "--block=x", "--memory=0"],
    ],
    "trian": [NAMES],
    "--version": [NAMES],
}  # fmt: skip


@st.composite
def trainings(draw):
    """`rlzoo train ALGORITHM` with up to three flags, some twice."""
    argv = ["train", draw(st.sampled_from(ALGORITHMS))]
    for flag in draw(st.lists(st.sampled_from([*FLAGS]), min_size=1, max_size=3)):
        value = draw(st.sampled_from(FLAGS[flag]))
        as_one = draw(st.booleans())
        argv += [flag] if value is None else [f"{flag}={value}"] if as_one else [flag, value]
    return argv


@st.composite
def others(draw):
    """Another command, with its arguments in any number."""
    name = draw(st.sampled_from([*OTHERS]))
    places = OTHERS[name][: draw(st.integers(0, len(OTHERS[name])))]
    return [name, *(draw(st.sampled_from(place)) for place in places)]


WRONG = st.one_of(trainings(), trainings(), others())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken.py").write_text('"""Broken."""\nclass Config(')
    return tmp_path


def filled(argv, folder):
    return [part.replace("{tmp}", str(folder)) for part in argv]


def check(code, err):
    """It ran, or one line says why not; a note may stand before it."""
    assert code in (0, 2), (code, err)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) <= 1 and all(line.startswith("error: ") for line in lines), err


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(argv=WRONG)
@pytest.mark.timeout(240)
def test_wrong_commands(argv, folder, monkeypatch, capsys):
    """In this process, and up to where training would start: with all checks made, and the run's
    folder too."""
    opened = record.Record.open

    def start(*args, **kwargs):
        opened(*args, **kwargs)
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(machine, "keep_compiled", lambda: None)
        patch.setattr(commands, "spread", lambda command, count: 0)
        patch.setattr(record.Record, "open", start)
        patch.setattr(sys, "argv", ["rlzoo", *filled(argv, folder)])
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = stop.code or 0
    check(code, capsys.readouterr().err)


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(argv=WRONG)
@pytest.mark.timeout(900)
def test_wrong_commands_for_real(argv, folder):
    """A sample of the same, each in a process of its own that really runs; one that trains on is
    stopped after a while, as by Ctrl-C."""
    command = [sys.executable, "-m", "rlzoo", *filled(argv, folder)]
    log = Path(folder / "err")
    with log.open("w+") as err:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=err, env=os.environ
        )
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait(timeout=60)
            assert code in (130, -signal.SIGTERM)  # the latter before training starts
            code = 0
        finally:
            process.kill()
    check(code, log.read_text())
