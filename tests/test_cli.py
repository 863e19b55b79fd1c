"""The command line: what it prints, what it refuses and how, what it leaves behind."""

import errno
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_data
import toy

import rlzoo as rlzoo_package
from rlzoo import dataset, machine, report
from rlzoo.cli import commands, flags, processes
from rlzoo.run import record

TOY = str(toy.__file__)
ROOT = Path(__file__).parents[1]
SMALL = ["--total-steps", "20", "--eval-episodes", "2", "--quiet", "--no-cache"]


@pytest.fixture
def rlzoo(monkeypatch, capsys):
    """Run `rlzoo ARGV`; gives (exit code, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["rlzoo", *map(str, argv)])
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the toy with a sweep, made through the command line."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["toy.py"])
        commands.script(
            toy.make,
            toy.Config,
            argv=[
                *SMALL,
                "--out",
                str(out),
                "--seeds",
                "2",
                "--sweep",
                "learning_rate=0.1,0.2",
                "--no-noisy",
                "--mode",
                "evaluate",
            ],
        )
    assert stop.value.code == 0
    return out


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(report, "write_curve", lambda *_: None)


def refused(answer, *parts):
    code, out, err = answer
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err  # one line, no traceback
    for part in parts:
        assert part in err, err


# ---- quick answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["list"], "ppo"),
        (["info", "ppo"], "learning_rate"),
        (["train", "ppo", "--help"], "--learning-rate"),
        (["train", TOY, "--help"], "where the parameters go"),
        (["train", "--help"], "usage: rlzoo train ALGORITHM"),
        (["--version"], f"rlzoo {rlzoo_package.__version__}"),
        (["--help"], "solve"),
    ],
)
def test_answers_without_jax(argv, expected):
    code = (
        "import sys; sys.argv = ['rlzoo', *sys.argv[1:]]\nfrom rlzoo.cli import commands\n"
        "heavy = {'jax', 'gymnax', 'brax', 'matplotlib', 'orbax'}\n"
        "try: commands.main()\nfinally: print('heavy:', *(heavy & {*sys.modules}))"
    )
    spent = lambda: sum(
        resource.getrusage(resource.RUSAGE_CHILDREN)[:2]
    )  # not wall time: tests run on busy machines
    before = spent()
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
    assert spent() - before < 3


def test_help_describes_every_flag(rlzoo):
    code, out, _ = rlzoo("train", "dqn", "--help")
    assert code == 0
    for flag in (
        "--env",
        "--total-steps",
        "--seeds",
        "--seed",
        "--sweep",
        "--out",
        "--resume",
        "--eval-every",
        "--eval-episodes",
        "--checkpoint-every",
        "--devices",
        "--batch-size",
        "--double",
        "--hidden",
    ):
        assert flag in out, flag
    assert "transitions in each update" in out


def test_list_groups_by_kind(rlzoo, monkeypatch, tmp_path):
    config = "class Config:\n    env: str = rlzoo.static('CartPole-v1')\n"
    texts = {
        "a": "A: one thing\nover two lines.\n\nKind: online, value-based, discrete",
        "b": "B.\n\nKind: offline, actor-critic, continuous",
        "c": "C: no label.",
    }
    for name, doc in texts.items():
        (tmp_path / f"{name}.py").write_text(f'"""{doc}\n"""\n{config}')
    monkeypatch.setattr(flags, "ALGORITHMS", tmp_path)
    _, out, _ = rlzoo("list")
    assert out.splitlines() == [
        "offline",
        "  b  B. (actor-critic, continuous)",
        "online",
        "  a  A: one thing over two lines. (value-based, discrete)",
        "other",
        "  c  C: no label.",
    ]


def test_list_of_environments(rlzoo):
    code, out, _ = rlzoo("list", "--envs")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert "CartPole-v1 observations [4] 2 discrete actions" in lines
    assert "Pendulum-v1 observations [3] continuous actions [1]" in lines
    assert "Breakout-MinAtar observations [10, 10, 4] 3 discrete actions" in lines
    assert "hopper" in out and "halfcheetah" in out


def test_nobody_reads_the_output():
    """As in `rlzoo list | head -1`: no traceback, no word."""
    for argv in (["list"], ["train", "ppo", "--help"], ["info", "ppo"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "rlzoo", *argv]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
        os.close(write)
        assert done.stderr == b"", done.stderr.decode()


def test_solve_is_a_command_and_a_flag(rlzoo, monkeypatch, tmp_path):
    from rlzoo.cli import solve

    asked = []
    monkeypatch.setattr(solve, "main", lambda make, Config, solver, argv, prog: asked.append(argv))
    rlzoo("solve", "qstar", "scramble:3", "--env", "tile8")
    rlzoo("train", "qstar", "--solve", "scramble:3", "--env", "tile8")
    rlzoo("solve", "qstar", "--solve=scramble:3", "--env", "tile8")
    assert asked == [
        ["--solve", "scramble:3", "--env", "tile8"],
        ["--solve", "scramble:3", "--env", "tile8"],
        ["--solve=scramble:3", "--env", "tile8"],
    ]
    refused(rlzoo("solve", "ppo", "scramble:3"), "ppo does not search")
    refused(rlzoo("train", "ppo", "--solve", "scramble:3"), "ppo does not search")
    code, out, _ = rlzoo("solve")
    assert code == 2 and out.startswith("usage: rlzoo solve ALGORITHM")


def test_read_sees_what_the_class_says():
    found = {field.name: field for field in flags.read(Path(TOY)).fields}
    assert found["hidden"].default == (3, 2) and found["hidden"].static
    assert not found["learning_rate"].static and "nan" in found["learning_rate"].doc


# ---- training ------------------------------------------------------------------------------------


def test_a_run_of_the_command(finished):
    described = json.loads((finished / "config.json").read_text())
    assert (
        described["config"] | {"noisy": False, "mode": "evaluate", "total_steps": 20}
        == described["config"]
    )
    assert described["sweep"] == {"learning_rate": [0.1, 0.2]}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "done" and len(summary["members"]) == 4
    assert (finished / "curve.png").stat().st_size > 5000


def test_resume_takes_the_recorded_values(finished, rlzoo):
    before = (finished / "metrics.csv").read_text()
    assert rlzoo("train", TOY, "--resume", "--out", finished)[0] == 0
    assert (finished / "metrics.csv").read_text() == before
    refused(
        rlzoo("train", TOY, "--resume", "--out", finished, "--width", "5"),
        "width was 4, now 5",
        "--force",
    )
    refused(
        rlzoo("train", TOY, "--resume", "--out", finished, "--sweep", "learning_rate=0.3"),
        "sweep was",
    )
    refused(rlzoo("train", "dqn", "--resume", "--out", finished), "started differently")


@pytest.mark.slow
def test_display_and_default_folder(tmp_path, rlzoo, monkeypatch, without_pictures):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLZOO_CACHE", str(tmp_path / "kept"))
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: jax.config.values[name] for name in names}
    argv = ["train", TOY, "--total-steps", "21", "--eval-episodes", "2", "--mode", "evaluate"]
    try:
        for name in names[:1]:
            jax.config.update(name, None)
        code, out, _ = rlzoo(*argv, "--no-cache")
        assert (
            code == 0
            and "compiled programs are kept" not in out
            and not (tmp_path / "kept").exists()
        )
        code, out, _ = rlzoo(*argv, "--env", "Acrobot-v1", "--sweep", "learning_rate=nan,0.1")
        assert code == 0 and f"compiled programs are kept in {tmp_path / 'kept'}" in out.replace(
            "\n", ""
        )
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert "21 steps round up to 22" in out and "2 members on 1 cpu device" in out
    assert "diverged: member 0 (seed 0, learning_rate nan)" in out
    (run,) = (tmp_path / "runs" / "toy" / "Acrobot-v1").iterdir()
    assert (run / "summary.json").exists() and f"record in runs/toy/Acrobot-v1/{run.name}" in out


# ---- what is refused -----------------------------------------------------------------------------


def test_bad_names(rlzoo, tmp_path):
    refused(rlzoo("train", "pppo"), "'pppo' is unknown", "ppo")
    refused(rlzoo("info", "dqqn"), "dqn")
    refused(rlzoo("train", tmp_path / "none.py"), "there is no file")
    (tmp_path / "empty.py").write_text("x = 1\n")
    refused(rlzoo("train", tmp_path / "empty.py"), "has no class Config")
    refused(
        rlzoo("train", TOY, *SMALL, "--env", "CartPole-v3"),
        "unknown environment 'CartPole-v3'",
        "CartPole-v1",
    )
    refused(
        rlzoo("train", TOY, *SMALL, "--env", "brax/hoper"), "unknown brax environment", "hopper"
    )
    refused(rlzoo("train", TOY, *SMALL, "--env", "CartPole-v1?lenght=1"), "'lenght'", "length")
    code, out, err = rlzoo("train", "dqn", "--learning-rat", "0.1")
    assert code == 2 and "--learning-rate" in out + err and "Traceback" not in err
    code, out, err = rlzoo("train", "dqn", "--batch-size", "many")
    assert code == 2 and "many" in out + err and "Traceback" not in err


def test_bad_values(rlzoo, tmp_path):
    out = ["--out", tmp_path / "never"]
    refused(
        rlzoo("train", TOY, *SMALL, *out, "--sweep", "learning_rat=0.1"),
        "learning_rat",
        "learning_rate",
    )
    refused(
        rlzoo("train", TOY, *SMALL, *out, "--sweep", "learning_rate=fast"),
        "'fast' is not a number",
        "0.1",
    )
    refused(
        rlzoo("train", TOY, *SMALL, *out, "--sweep", "width=1.5"), "'1.5' is not a whole number"
    )
    refused(rlzoo("train", TOY, *SMALL, *out, "--sweep", "hidden=a"), "'a'", "3x2")
    refused(
        rlzoo("train", TOY, *SMALL, *out, "--sweep", "learning_rate"),
        "should read field=value,value",
    )
    refused(rlzoo("train", TOY, *SMALL, *out, "--seeds", "0"), "--seeds is 0", "at least 1")
    refused(
        rlzoo("train", TOY, *SMALL, *out, "--width", str(2**42)), "GiB is free", "Fewer --seeds"
    )
    refused(
        rlzoo("train", "dqn", *SMALL, *out, "--batch-size", "20000"),
        "batch_size=20000",
        "buffer_size=10000",
    )
    refused(
        rlzoo("train", "dqn", *SMALL, *out, "--env", "Pendulum-v1"),
        "continuous actions",
        "discrete",
    )
    assert not (tmp_path / "never").exists()


def test_bad_folders(rlzoo, tmp_path, finished):
    refused(rlzoo("train", TOY, *SMALL, "--out", finished), "already holds a run", "--resume")
    (tmp_path / "notes.txt").write_text("mine")
    refused(rlzoo("train", TOY, *SMALL, "--out", tmp_path), "already holds other files")
    refused(
        rlzoo("train", TOY, *SMALL, "--out", tmp_path / "notes.txt" / "run"),
        "cannot write to",
        "another --out",
    )
    refused(rlzoo("train", TOY, *SMALL, "--out", "/proc/rlzoo"), "cannot write to")
    refused(rlzoo("train", TOY, *SMALL, "--resume"), "--resume needs --out")
    refused(rlzoo("train", TOY, "--resume", "--out", tmp_path / "none"), "is not a run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_data_that_nothing_reads(rlzoo, tmp_path):
    data = tmp_path / "data.npz"
    dataset.save(tiny_data.discrete(), data)
    refused(
        rlzoo(
            "train",
            TOY,
            *SMALL,
            "--env",
            "probe-action",
            "--dataset",
            data,
            "--out",
            tmp_path / "no",
        ),
        "makes no use of a data set",
    )
    refused(rlzoo("train", "offline_dqn", *SMALL, "--dataset", tmp_path / "no.npz"), "no.npz")


def test_a_number_of_more_than_32_bits(rlzoo, tmp_path):
    refused(
        rlzoo("train", "dqn", "--total-steps", "1e12", "--quiet", "--out", tmp_path / "run"),
        "calls of step are too many",
    )


def test_targets_that_cannot_be_written(rlzoo, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(machine, "keep_compiled", lambda: None)
    (tmp_path / "file").write_text("mine")
    for target in ("/proc/rlzoo/x", tmp_path / "file" / "x"):
        refused(rlzoo("copy", "ppo", f"{target}.py"), f"cannot write {target}.py")
        refused(rlzoo("copy", "--params", finished, f"{target}.npz"), f"cannot write {target}.npz")
        refused(rlzoo("play", finished, "--gif", f"{target}.gif"), f"cannot write {target}.gif")
        refused(rlzoo("plot", finished, "--out", f"{target}.png"), f"cannot write {target}.png")
        refused(rlzoo("report", finished, "--out", target), "cannot write")
        random = ("--random", "CartPole-v1", "--out", f"{target}.npz")
        refused(rlzoo("data", "collect", *random), f"cannot write {target}.npz")
    refused(rlzoo("plot", finished, "--out", tmp_path), "cannot write", "Is a directory")


@pytest.mark.parametrize("error", ["itself", "wrapped"])
def test_a_full_disk_is_one_line(error, rlzoo, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    def fail(*args, **kwargs):
        raise full if error == "itself" else ValueError(f"RESOURCE_EXHAUSTED: {full.strerror}")

    monkeypatch.setattr(record.checkpoints, "save", fail)
    refused(rlzoo("train", TOY, *SMALL, "--out", tmp_path / "run"), "No space left on device")


def test_a_full_disk_is_said_once(caplog):
    """Also where orbax logs it from its threads."""
    processes.once_when_full()
    absl = logging.getLogger("absl")
    with caplog.at_level(logging.ERROR, "absl"):
        absl.error("RESOURCE_EXHAUSTED: Failed to write: No space left on device")
        absl.error("something else")
    assert "something else" in caplog.text and "No space" not in caplog.text


def test_no_home_directory(monkeypatch, capsys):
    """The run goes on without its cache, and a line says so."""

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    kept = jax.config.values["jax_compilation_cache_dir"]
    for name in ("RLZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    machine.keep_compiled()
    _, err = capsys.readouterr()
    assert err.startswith("note: compiled programs are not kept (there is no home directory)")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    machine.keep_compiled()
    _, err = capsys.readouterr()
    assert "/proc/none" in err and err.count("\n") == 1
    assert jax.config.values["jax_compilation_cache_dir"] == kept


def test_messages_name_the_distribution():
    """`pip install rlzoo` would be a stranger's project."""
    for folder in ("rlzoo", "envs", "algorithms"):
        for path in (ROOT / folder).rglob("*.py"):
            for place in re.findall(r"pip install '?(?:-e )?'?[^ '\"]+", path.read_text()):
                assert not re.search(r"rlzoo(?!-jax)", place), (path, place)


# ---- processes and threads -----------------------------------------------------------------------


def test_at_most_one_process_for_each_member_and_core(rlzoo, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(commands, "spread", lambda command, count: started.append(count) or 0)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    argv = ("train", TOY, *SMALL, "--processes", "99", "--out", tmp_path / "run", "--sweep")
    code, out, _ = rlzoo(*argv, "learning_rate=0.1,0.2,0.3", "width=2,3")
    assert code == 0 and out == "--processes 99: 3 for 3 members and 8 cores\n"
    code, out, _ = rlzoo(*argv, "learning_rate=0.1,0.2,0.3", "--seeds", "4")
    assert code == 0 and out == "--processes 99: 8 for 12 members and 8 cores\n"
    assert started == [3, 8]


@pytest.mark.parametrize(
    "flags, asked, threads",
    [
        ("", None, "1"),
        ("", "3", "3"),
        ("--xla_force_host_platform_device_count=2", None, "2"),
        ("--a --xla_force_host_platform_device_count=4", "1", "4"),
        ("--xla_force_host_platform_device_count=2", "4", "4"),
    ],
)
def test_never_fewer_threads_than_devices(flags, asked, threads, monkeypatch):
    from jax._src import xla_bridge

    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("PJRT_NPROC", asked or "")
    machine.start_backend()
    assert os.environ["PJRT_NPROC"] == threads


@pytest.mark.slow
@pytest.mark.parametrize("threads", [None, pytest.param("1", marks=pytest.mark.slow)])
def test_two_devices_on_a_cpu_do_not_hang(threads, tmp_path):
    """With one thread for two devices PPO hung for ever, and heard no signal but SIGKILL, which is
    what ends it here."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    env.pop("PJRT_NPROC", None)
    env |= {"PJRT_NPROC": threads} if threads else {}
    command = [sys.executable, str(ROOT / "algorithms" / "ppo.py"), "--total-steps", "1024"]
    command += ["--seeds", "2", "--eval-episodes", "2", "--quiet", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=env, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/config.json").read_text())["layout"]["devices"] == 2


# ---- after the run -------------------------------------------------------------------------------


@pytest.mark.slow
def test_copy(rlzoo, tmp_path, monkeypatch, finished, without_pictures):
    monkeypatch.chdir(tmp_path)
    code, out, _ = rlzoo("copy", "dqn", "my_dqn.py")
    assert code == 0 and "wrote my_dqn.py" in out
    assert Path("my_dqn.py").read_text() == flags.find("dqn").read_text()
    refused(rlzoo("copy", "dqn", "my_dqn.py"), "exists already")
    refused(rlzoo("copy", "dqn", "my_dqn.txt"), "ends in .py")
    small = [
        "--num-envs",
        "4",
        "--hidden",
        "8",
        "--buffer-size",
        "64",
        "--batch-size",
        "8",
        "--learning-starts",
        "8",
    ]
    code, out, err = rlzoo("train", "./my_dqn.py", *SMALL, *small, "--out", "run")
    assert code == 0, err
    assert json.loads(Path("run/config.json").read_text())["algorithm"] == "my_dqn"


def test_export(rlzoo, tmp_path, finished):
    from rlzoo.run.loading import load

    assert rlzoo("copy", "--params", finished, tmp_path / "out.npz", "--member", "3")[0] == 0
    policy = load(finished, member=3).policy
    with np.load(tmp_path / "out.npz") as arrays:
        assert {*arrays} == {"w", "b"}
        np.testing.assert_array_equal(arrays["w"], policy["w"])
    assert (
        rlzoo("copy", "--params", finished, tmp_path / "out.safetensors", "--member", "3")[0] == 0
    )
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["b"], policy["b"])
    refused(rlzoo("copy", "--params", finished, tmp_path / "out.pkl"), ".npz or .safetensors")
    refused(rlzoo("copy", "--params", tmp_path, tmp_path / "other.npz"), "is not a run")
    refused(
        rlzoo("copy", "--params", finished, tmp_path / "other.npz", "--member", "9"), "no member 9"
    )


def test_plot_and_report(rlzoo, tmp_path, finished):
    assert rlzoo("plot", finished, "--out", tmp_path / "both.png")[0] == 0
    assert (tmp_path / "both.png").stat().st_size > 5000
    code, out, _ = rlzoo("report", finished, "--out", tmp_path / "page")
    assert code == 0 and out.strip()
    page = (tmp_path / "page" / "report.html").read_text()
    # at 390 px a table scrolls in its box, and the page stays as wide as the screen
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<table>") == page.count('<div class="table"><table>') > 0
    assert ".table { overflow-x: auto" in page
    refused(rlzoo("plot", tmp_path), "is not a run")
    refused(rlzoo("report", finished, tmp_path), "is not a run")


def test_data_speaks_the_command_line(rlzoo, tmp_path):
    """Notes and errors name flags, and say how many episodes were cut."""
    arrays = {
        "obs": np.zeros((6, 2), np.float32),
        "next_obs": np.zeros((6, 2), np.float32),
        "action": np.array([[0.5], [2], [0], [0], [0], [0]], np.float32),
        "reward": np.zeros(6, np.float32),
        "dead": np.array([0, 0, 1, 0, 0, 0], bool),
    }
    file, out = tmp_path / "data.npz", tmp_path / "out.npz"
    np.savez(file, **arrays)
    rest = ("convert", file, out)
    unnamed = rlzoo("data", *rest)
    refused(unnamed, "--names terminated=")
    names = ("--names", "terminated=dead", "truncated=never")
    unclipped = rlzoo("data", *rest, *names, "--finish", "truncate")
    assert unclipped[0] == 2 and "--clip" in unclipped[2]
    unfinished = rlzoo("data", *rest, *names, "--clip")
    assert unfinished[0] == 2 and "--finish truncate" in unfinished[2]
    code, _, err = rlzoo("data", *rest, *names, "--clip", "--finish", "truncate")
    assert code == 0 and "--finish truncate ended 1 episode" in err and out.exists()
    assert "--clip clipped the actions of 1 of 6 rows" in err
    for _, _, said in (unnamed, unclipped, unfinished, (code, "", err)):
        assert not re.search(r"finish=|clip=|bounds=|names=", said), said
    refused(rlzoo("data", "describe", file, "--names", "terminated"), "'terminated'")


# ---- packaging -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_processes_share_the_members(tmp_path):
    """One command, two workers: process 0 records everybody, also the members that the other one
    trained."""
    command = [
        sys.executable,
        TOY,
        *SMALL,
        "--seeds",
        "3",
        "--processes",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "done"
    assert [m["member"] for m in summary["members"]] == [0, 1, 2]
    assert all(m["eval/return"] is not None for m in summary["members"])
    wrong = subprocess.run(
        [*command[:-1], str(tmp_path / "other"), "--env", "CartPol-v1"],
        timeout=200,
        capture_output=True,
        text=True,
    )
    assert (
        wrong.returncode == 2
        and "nearest: CartPole-v1" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )


@pytest.mark.slow
def test_a_process_that_is_late_is_waited_for(tmp_path):
    """As where one of them compiles for longer; without the barrier, jax's first sum gives up after
    30 seconds."""
    start, late = (
        "def make(config, env, dataset=None):\n",
        "    global sleep\n    sleep, _ = (lambda s: None), sleep(40)\n",
    )
    text = Path(TOY).read_text().replace(start, start + late)
    sleep = (
        "import os, time\n"
        "sleep = time.sleep if os.environ.get('JAX_PROCESS_ID') == '1' else lambda s: None\n"
    )
    (tmp_path / "late.py").write_text(text.replace("import rlzoo\n", f"import rlzoo\n{sleep}"))
    command = [
        sys.executable,
        str(tmp_path / "late.py"),
        *SMALL,
        "--seeds",
        "2",
        "--processes",
        "2",
    ]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], timeout=250, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began > 40
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_wheel_works_from_another_folder(tmp_path):
    # a copy, so that nothing is left in the tree
    for name in ("rlzoo", "envs", "algorithms", "results/qstar/weights"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--outdir",
            str(tmp_path),
            str(tmp_path / "tree"),
        ],
        check=True,
        capture_output=True,
        timeout=200,
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--target",
            str(tmp_path / "site"),
            str(wheel),
        ],
        check=True,
        capture_output=True,
        timeout=200,
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = 'rlzoo'\n"
        "import rlzoo\nfrom rlzoo import cli\n"
        "print(rlzoo.__file__)\ncli.main()"
    )
    run = lambda *argv: subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    wings = ("cli", "report", "run.loop", "suites.registry", "tools.play", "tools.collect")
    imports = "; ".join(f"import rlzoo.{wing}" for wing in wings)
    whole = code.partition("from rlzoo import cli")[0] + imports
    imported = subprocess.run(
        [sys.executable, "-c", whole, str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert imported.returncode == 0, imported.stderr
    solved = run("solve", "qstar", "scramble:1", "--env", "lights-out6", "--out", "solved")
    assert solved.returncode == 0, solved.stderr
    assert str(tmp_path / "site" / "rlzoo" / "weights") in solved.stdout
    assert "solved 1 of 1" in solved.stdout
    listed = run("list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith(str(tmp_path / "site")) and "ppo" in listed.stdout
    small = [
        "--num-envs",
        "4",
        "--hidden",
        "8",
        "--buffer-size",
        "64",
        "--batch-size",
        "8",
        "--learning-starts",
        "8",
    ]
    trained = run("train", "dqn", *SMALL, *small, "--out", str(tmp_path / "run"))
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
