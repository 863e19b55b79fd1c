"""The training loop: members, resume, stages, devices, processes, damage. With the toy algorithm of
toy.py."""

import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import rlzoo
from rlzoo import machine, report
from rlzoo.algorithm import Refused
from rlzoo.run import loop
from rlzoo.run.program import EVALUATION
from rlzoo.run.record import Record

TOY = Path(toy.__file__)


@pytest.fixture(autouse=True)
def _quick(shared_programs, monkeypatch):
    monkeypatch.setattr(report, "write_curve", lambda *_: None)  # test_cli.py looks at the picture


def go(out, make=toy.make, sweep=None, resume=False, force=False, run=None, **config):
    options = {"seeds": 2, "eval_episodes": 2, "quiet": True, "cache": False} | (run or {})
    kind = sys.modules[make.__module__].Config if make.__module__ != __name__ else toy.Config
    return rlzoo.train(
        make, kind(**config), sweep=sweep, out=str(out), resume=resume, force=force, **options
    )


def rows(run):
    """metrics.csv without wall times."""
    with (Path(run) / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in csv.DictReader(file)
        ]


def column(run, name, member=0):
    return [row[name] for row in rows(run) if int(row["member"]) == member and row[name] != ""]


def bits(run, program=0):
    """Every leaf of the final state, as bytes."""
    saved = Record.read(run).restore(program)
    leaves = {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in saved.state.items()}
    return saved.at, saved.stage, leaves


def same(a, b, programs=1):
    assert rows(a) == rows(b)
    for program in range(programs):
        assert bits(a, program) == bits(b, program)


class Killed(BaseException):
    pass


def killed(out, at, program=0, **kwargs):
    """A run that dies after call `at` of a program, before it saves there."""

    def progress(self, where, stage, position, clock):
        if where.index == program and position.at >= at:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "progress", progress)
        with pytest.raises(Killed):
            go(out, **kwargs)


def spawn(*argv, script=TOY, **env):
    return subprocess.Popen(
        [sys.executable, str(script), "--no-cache", "--eval-episodes", "2", *argv],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_rows(out, count, *processes):
    """Until metrics.csv has `count` lines."""
    until = time.monotonic() + 100
    while time.monotonic() < until:
        assert all(p.poll() is None for p in processes), processes[0].communicate()[0]
        file = Path(out) / "metrics.csv"
        if file.exists() and file.read_text().count("\n") > count:
            return
        time.sleep(0.005)
    raise AssertionError("no rows")


def end(process, expected=0):
    text = process.communicate(timeout=100)[0]
    assert process.returncode == expected, text
    return text


# ---- members -------------------------------------------------------------------------------------


def test_members_are_those_that_run_alone(tmp_path):
    go(tmp_path / "all", run={"seeds": 2}, mode="evaluate")
    for seed in range(2):
        go(tmp_path / f"{seed}", run={"seeds": 1, "seed": seed}, mode="evaluate")
        alone = rows(tmp_path / f"{seed}")
        among = [row for row in rows(tmp_path / "all") if row["seed"] == str(seed)]
        assert [row["step"] for row in alone] == [row["step"] for row in among]
        for name in ("count", "t", "diverged"):
            assert [row[name] for row in alone] == [row[name] for row in among]
        for name in ("loss/square", "rare"):
            numbers = lambda rs, name=name: [float(r[name]) for r in rs[:10] if r[name]]
            np.testing.assert_allclose(numbers(alone), numbers(among), rtol=1e-5)
    first = [column(tmp_path / "all", "loss/square", m)[0] for m in range(2)]
    assert len(set(first)) == 2  # seeds really differ


def test_same_command_twice_same_bits_whatever_the_chunk_length(tmp_path, monkeypatch):
    go(tmp_path / "a")
    go(tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")
    lengths = []
    original = loop.Program.chunk
    monkeypatch.setattr(
        loop.Program,
        "chunk",
        lambda self, stage, states, totals, frozen, start, stop: (
            lengths.append(stop - start),
            original(self, stage, states, totals, frozen, start, stop),
        )[1],
    )
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 1e-9)
    go(tmp_path / "c")
    assert set(lengths) == {1}
    same(tmp_path / "a", tmp_path / "c")
    other = go(tmp_path / "d", run={"seed": 7})
    assert bits(other.dir) != bits(tmp_path / "a")


def test_metrics_reduce_over_the_chunk(tmp_path):
    go(tmp_path / "a", run={"seeds": 1}, total_steps=201)
    found = rows(tmp_path / "a")
    assert found[-1]["step"] == "202"  # 201 steps round up to whole calls of 2
    t = {int(row["step"]): float(row["t"]) for row in found if row["t"]}
    assert t[4] == 0.5 and column(tmp_path / "a", "count")[0] == "0.5"
    calls = [int(row["step"]) // 2 for row in found if row["rare"]]
    assert len(calls) == 4 and all(
        0 < call - due <= 2 for call, due in zip(calls, (7, 37, 67, 97), strict=True)
    )


def test_evaluation_does_not_touch_training(tmp_path):
    go(tmp_path / "often", run={"eval_every": 4})
    go(tmp_path / "rarely", run={"eval_every": 100})
    go(tmp_path / "at the end", run={"eval_every": 0})
    trained = lambda run: [
        {k: v for k, v in row.items() if not k.startswith("eval/")}
        for row in rows(run)
        if row["step"] != "0"
    ]
    for other in ("rarely", "at the end"):
        assert trained(tmp_path / "often") == trained(tmp_path / other)
        assert bits(tmp_path / "often") == bits(tmp_path / other)
        last = [row["eval/return"] for row in rows(tmp_path / "often")[-2:]]
        assert last == [
            row["eval/return"] for row in rows(tmp_path / other)[-2:]
        ]  # keys depend on the step alone
    assert len(column(tmp_path / "often", "eval/return")) == 51
    assert len(column(tmp_path / "rarely", "eval/return")) == 3
    assert len(column(tmp_path / "at the end", "eval/return")) == 1


def test_nan_marks_one_member_and_leaves_the_others(tmp_path):
    sick = go(
        tmp_path / "sick", sweep={"learning_rate": [0.1, float("nan"), 0.2]}, run={"seeds": 1}
    )
    go(tmp_path / "well", sweep={"learning_rate": [0.1, 0.3, 0.2]}, run={"seeds": 1})
    assert [m["diverged"] for m in sick.summary["members"]] == [False, True, False]
    assert [s["diverged"] for s in sick.summary["eval/return"]] == [0, 1, 0]
    others = lambda run: [row for row in rows(run) if row["member"] != "1"]
    assert others(tmp_path / "sick") == others(tmp_path / "well")
    a, b = (Record.read(tmp_path / x).restore(0).state for x in ("sick", "well"))
    for name in a:
        assert a[name][[0, 2]].tobytes() == b[name][[0, 2]].tobytes()
    resumed = go(
        tmp_path / "sick",
        sweep={"learning_rate": [0.1, float("nan"), 0.2]},
        run={"seeds": 1},
        resume=True,
    )
    assert resumed.summary["members"][1]["diverged"]  # also: a recorded nan is not a changed one


def test_nan_in_a_loss_alone_is_a_divergence(tmp_path):
    def make(config, env, dataset=None):
        algorithm = toy.make(config, env)

        def step(state, t):
            state, metrics = algorithm.step(state, t)
            return state, metrics | {"loss/square": jnp.where(t == 5, jnp.nan, 0.0)}

        return algorithm._replace(step=step)

    run = go(tmp_path / "a", make=make, run={"seeds": 1, "eval_every": 0}, mode="evaluate")
    assert run.summary["members"][0]["diverged"]
    flags = {int(row["step"]): row["diverged"] for row in rows(run.dir)}
    assert flags[8] == "0" and flags[12] == "1" and flags[200] == "1"


# ---- sweeps --------------------------------------------------------------------------------------


def test_sweeps(tmp_path, monkeypatch):
    built = []
    original = loop.Program.__init__
    monkeypatch.setattr(
        loop.Program,
        "__init__",
        lambda self, make, members, *rest: (
            built.append([m.index for m in members]),
            original(self, make, members, *rest),
        )[1],
    )
    both = go(
        tmp_path / "both",
        sweep={"learning_rate": [0.1, 0.2], "hidden": [(3, 2), (5,)]},
        mode="evaluate",
    )
    assert built == [[0, 1, 4, 5], [2, 3, 6, 7]]  # floats share a program
    settings = [
        (m["member"], m["seed"], m["learning_rate"], tuple(m["hidden"]))
        for m in both.summary["members"]
    ]
    assert sorted(settings) == [
        (2 * i + seed, seed, rate, hidden)
        for i, (rate, hidden) in enumerate((r, h) for r in (0.1, 0.2) for h in ((3, 2), (5,)))
        for seed in (0, 1)
    ]
    scores = both.summary["eval/distance"]
    assert len(scores) == 4 and all(s["seeds"] == 2 for s in scores)
    assert {row["learning_rate"] for row in rows(both.dir)} == {"0.1", "0.2"}
    assert column(both.dir, "loss/square", 0) == column(
        both.dir, "loss/square", 2
    )  # `hidden` changes nothing
    assert column(both.dir, "loss/square", 0)[5] != column(both.dir, "loss/square", 4)[5]
    state = rlzoo.load(both.dir, member=6, full=True).policy  # swept tuples are read back as tuples
    third = Record.read(both.dir).restore(1).state
    assert state.params["w"].tobytes() == third["params/w"][2].tobytes()


def test_summary_keys(tmp_path):
    run = go(tmp_path / "a", sweep={"learning_rate": [0.1, 0.2]})
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary == json.loads(json.dumps(run.summary))
    assert (
        summary["status"] == "done"
        and summary["algorithm"] == "toy"
        and summary["env"] == "CartPole-v1"
    )
    assert summary["steps"] == 200 and summary["threshold"] == 475.0
    assert len(summary["steps_to_threshold"]) == 4
    assert {"iqm", "low", "high", "mean", "std", "learning_rate"} <= {*summary["eval/return"][0]}
    assert {"member", "seed", "learning_rate", "eval/return", "diverged"} <= {
        *summary["members"][0]
    }
    for name in (
        "steps_per_second",
        "updates_per_second",
        "compile_seconds",
        "train_seconds",
        "eval_seconds",
        "peak_memory_bytes",
    ):
        assert summary[name] > 0, name
    assert summary["steps_per_second"] == pytest.approx(4 * 200 / summary["train_seconds"])
    assert summary["updates_per_second"] == pytest.approx(summary["steps_per_second"] / 2)
    config = json.loads((run.dir / "config.json").read_text())
    assert {"config", "command", "versions", "commit", "hardware", "prng", "xla_flags"} <= {*config}
    assert (run.dir / "toy.py").read_text() == TOY.read_text()


# ---- compiled work -------------------------------------------------------------------------------


def test_step_is_traced_a_bounded_number_of_times(tmp_path):
    counts = []
    for steps in (40, 4000):
        toy.TRACED.clear()
        go(
            tmp_path / str(steps),
            total_steps=steps,
            mode="evaluate",
            run={"checkpoint_every": steps // 2},
        )
        counts.append(len(toy.TRACED))
    assert counts[0] == counts[1] <= 4


def heavy(when):
    """An algorithm whose expensive work is due when `when(state, t)`."""

    def make(config, env, dataset=None):
        algorithm = toy.make(config, env)

        def init(key):
            return jax.random.normal(key, (320, 320)), 0

        def step(state, t):
            matrix, count = state
            work = lambda: jnp.tanh(matrix @ matrix)
            return (jax.lax.cond(when(count, t), work, lambda: matrix), count + 1), {}

        return algorithm._replace(
            init=init,
            step=step,
            policy=lambda state: state[1],
            evaluate=lambda state, key: {"eval/return": state[0][0, 0]},
            rollouts=False,
        )

    return make


def test_work_that_is_not_due_is_not_paid(tmp_path, monkeypatch):
    spent = []
    original = loop.Program.chunk

    def chunk(self, *args):
        before = time.process_time()  # CPU time, since tests run on busy machines
        result = jax.block_until_ready(original(self, *args))
        spent.append(time.process_time() - before)
        return result

    monkeypatch.setattr(loop.Program, "chunk", chunk)

    def seconds(name, when):
        spent.clear()
        go(tmp_path / name, make=heavy(when), total_steps=200, run={"seeds": 8, "eval_every": 0})
        return sum(spent[1:])  # the first one compiles

    always = seconds("always", lambda count, t: t >= 0)
    assert seconds("by t", lambda count, t: t % 10 == 0) < always / 4
    assert (
        seconds("by count", lambda count, t: count % 10 == 0) > always / 2
    )  # the bug: a counter in the state


# ---- resume --------------------------------------------------------------------------------------


def kill_and_resume(tmp_path, moments):
    """`moments`: lines of metrics.csv, or seconds, after which SIGKILL falls."""
    out, flags = (
        tmp_path / "killed",
        ["--seeds", "2", "--total-steps", "300", "--checkpoint-every", "8", "--quiet"],
    )
    for i, moment in enumerate(moments):
        process = spawn(
            "--out", str(out), *(["--resume"] if (out / "config.json").exists() else flags)
        )
        if isinstance(moment, int):
            wait_for_rows(out, moment, process)
        else:
            while not (out / "config.json").exists():
                time.sleep(0.01)
            time.sleep(moment)
        process.kill()
        process.communicate()
        if isinstance(moment, int):
            assert process.returncode == -signal.SIGKILL, i
    options = {"seeds": 2, "checkpoint_every": 8}
    done = go(out, resume=True, total_steps=300, run=options)
    assert done.summary["status"] == "done" and done.summary["steps"] == 300
    go(tmp_path / "whole", total_steps=300)
    same(out, tmp_path / "whole")
    assert len(json.loads((out / "config.json").read_text())["resumed"]) >= 1


def test_killed_twice_and_resumed_is_uninterrupted(tmp_path):
    kill_and_resume(tmp_path, [20, 60])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_ten_random_moments(tmp_path):
    seed = random.randrange(1000)
    print("seed", seed)
    draw = random.Random(seed)
    kill_and_resume(tmp_path, [draw.uniform(0.0, 6.0) for _ in range(10)])


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_continue(tmp_path):
    out = tmp_path / "a folder"
    process = spawn(
        "--out",
        str(out),
        "--seeds",
        "2",
        "--total-steps",
        "300",
        "--checkpoint-every",
        "8",
        "--learning-rate",
        "0.2",
    )
    wait_for_rows(out, 10, process)
    process.send_signal(signal.SIGINT)
    text = end(process, 130)
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    command = shlex.split(re.search(r"continue with: python (.*)", text)[1])
    assert command[0].endswith("toy.py")
    end(spawn(*command[1:]))  # --resume --out alone: other values are the recorded ones
    go(tmp_path / "whole", total_steps=300, learning_rate=0.2)
    same(out, tmp_path / "whole")
    assert json.loads((out / "summary.json").read_text())["status"] == "done"


def test_cut_last_line_of_metrics(tmp_path):
    go(tmp_path / "whole")
    for cut in (3, 1):
        out = tmp_path / f"cut{cut}"
        killed(out, 60, run={"checkpoint_every": 40})
        text = (out / "metrics.csv").read_text()
        kept = [
            line
            for line in text.splitlines()
            if not line.split(",")[2].isdigit() or int(line.split(",")[2]) <= 80
        ]
        (out / "metrics.csv").write_text(
            "\n".join(kept) + "\n1,1,84,0.5"[:-cut] if cut > 1 else text[:-1]
        )
        go(out, resume=True, run={"checkpoint_every": 40})
        same(out, tmp_path / "whole")


def test_damaged_checkpoints(tmp_path, capfd):
    options = {"checkpoint_every": 40}
    go(tmp_path / "whole")
    out = tmp_path / "a"
    killed(out, 90, run=options)
    folder = out / "checkpoints" / "0"
    assert sorted(path.name for path in folder.iterdir()) == ["60", "80"]  # calls; the newest two
    for file in (folder / "80" / "arrays").rglob("*"):
        if file.is_file():
            file.unlink()
    shutil.copytree(folder / "60", folder / "100.orbax-checkpoint-tmp")  # half-written, of a kill
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "spare")
    every = shutil.copytree(out, tmp_path / "b")
    go(out, resume=True, run=options)
    note = capfd.readouterr().err
    assert "80 cannot be read" in note and "trying the one before" in note
    same(out, tmp_path / "whole")

    for file in (every / "checkpoints" / "0" / "60").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(Refused, match="none of the checkpoints in .* can be read"):
        go(every, resume=True, run=options)


def test_resume_of_a_run_that_was_killed_before_its_first_checkpoint(tmp_path):
    killed(tmp_path / "a", 30)
    assert not (tmp_path / "a" / "checkpoints").exists()
    go(tmp_path / "a", resume=True)
    go(tmp_path / "whole")
    same(tmp_path / "a", tmp_path / "whole")


def test_resume_of_a_sweep_keeps_the_rows_of_every_program(tmp_path):
    sweep, options = {"hidden": [(1,), (2,)]}, {"checkpoint_every": 40}
    go(tmp_path / "whole", sweep=sweep, mode="evaluate")
    out = tmp_path / "a"
    killed(out, 50, program=1, sweep=sweep, run=options, mode="evaluate")
    killed(out, 70, program=1, sweep=sweep, run=options, mode="evaluate", resume=True)
    go(out, sweep=sweep, run=options, mode="evaluate", resume=True)
    same(out, tmp_path / "whole", programs=2)


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    go(tmp_path / "a", mode="stages")
    before = rows(tmp_path / "a"), bits(tmp_path / "a")
    assert go(tmp_path / "a", mode="stages", resume=True).summary["status"] == "done"
    assert (rows(tmp_path / "a"), bits(tmp_path / "a")) == before


def test_resume_with_another_configuration(tmp_path):
    killed(tmp_path / "a", 60, run={"checkpoint_every": 40})
    with pytest.raises(Refused, match=r"learning_rate was 0\.1, now 0\.2"):
        go(tmp_path / "a", resume=True, run={"checkpoint_every": 40}, learning_rate=0.2)
    with pytest.raises(Refused, match="seeds was 2, now 3"):
        go(tmp_path / "a", resume=True, run={"checkpoint_every": 40, "seeds": 3})
    with pytest.raises(
        Refused, match="states of 2 members, not of 3"
    ):  # --force cannot invent states
        go(tmp_path / "a", resume=True, force=True, run={"checkpoint_every": 40, "seeds": 3})
    go(tmp_path / "b")
    killed(tmp_path / "c", 60, run={"checkpoint_every": 40})
    go(tmp_path / "c", resume=True, force=True, run={"checkpoint_every": 40}, learning_rate=0.2)
    described = json.loads((tmp_path / "c" / "config.json").read_text())
    assert described["config"]["learning_rate"] == 0.2
    assert described["resumed"][0]["changes"] == ["learning_rate was 0.1, now 0.2"]
    assert bits(tmp_path / "b") != bits(tmp_path / "c")


# ---- stages, memory, evaluate --------------------------------------------------------------------


STAGES = {"fit": 80, "grow": 170, "end": 200}  # stage -> steps made at its end: 2, 3, 1 a call


def test_stages_resume_inside_each_and_at_boundaries(tmp_path):
    whole = go(tmp_path / "whole", mode="stages", sweep={"goal": [1.0, 3.0]})
    assert whole.summary["status"] == "done" and whole.summary["steps"] == STAGES["end"]
    assert whole.summary["updates_per_second"] == 0  # the stages say nothing of updates
    found = {int(row["step"]): row for row in rows(whole.dir)}
    assert found[80]["loss/square"] and not found[80]["loss/second"]
    assert found[170]["loss/second"] and not found[170]["loss/square"]
    assert found[82 + 1]["t"] == "" and float(found[171]["t"]) == 0  # t counts from 0 in a stage
    # evaluation in the stage that asks for it, and at the end
    evaluated = [step for step, row in found.items() if row["eval/return"]]
    assert evaluated == [*range(80 + 6, 171, 6), 200] or evaluated[-1] == 200
    assert all(STAGES["fit"] < step <= STAGES["grow"] or step == 200 for step in evaluated)
    final = Record.read(whole.dir).restore(0)
    assert final.state["extra"].shape == (4, 0)
    assert (final.stage, final.call, final.at) == (3, 0, 100)
    # checkpoints inside the first stage, at the end of it, and inside the last
    for i, (every, dies) in enumerate([(30, 20), (80, 45), (12, 90)]):
        out = tmp_path / f"{i}"
        given = {
            "mode": "stages",
            "sweep": {"goal": [1.0, 3.0]},
            "run": {"checkpoint_every": every},
        }
        killed(out, dies, **given)
        assert Record.read(out).restore(0).at <= dies
        go(out, resume=True, **given)
        same(out, tmp_path / "whole")


def test_a_stage_is_entered_with_the_configuration_of_each_member(tmp_path):
    run = go(tmp_path / "a", mode="stages", sweep={"goal": [1.0, 3.0]}, learning_rate=1e-6)
    bias = Record.read(run.dir).restore(0).state["params/b"]
    np.testing.assert_allclose(bias.mean(1), [1.0, 1.0, 3.0, 3.0], atol=1e-3)


def test_a_stage_ends_early_and_members_wait_for_each_other(tmp_path, monkeypatch):
    """Rate 0.5 comes near sooner than 0.1; neither needs the 60 calls allowed."""
    given = {
        "mode": "until",
        "sweep": {"learning_rate": [0.1, 0.5]},
        "noisy": False,
        "run": {"seeds": 1},
    }
    whole = go(tmp_path / "whole", **given)
    final = Record.read(whole.dir).restore(0)
    fitted = final.at - 10
    assert 4 < fitted < 60 and fitted % 4 == 0, "read at multiples of check_every alone"
    assert final.stage == 2 and whole.summary["status"] == "done"
    assert whole.summary["steps"] == 2 * fitted + 10
    slow, quick = final.state["count"]
    assert slow == final.at and quick < slow, "the quicker member was frozen"
    assert (quick - 10) % 4 == 0
    # by hand: the error shrinks by 1 - rate in a call, until it is below `near` at a multiple of 4
    at_fit = [row for row in rows(whole.dir) if row["loss/square"]]
    assert {int(row["step"]) for row in at_fit} <= {*range(0, 2 * fitted + 1, 2)}
    # the length of chunks does not matter, nor does a kill: frozen members stay frozen
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)
    go(tmp_path / "short", **given)
    same(tmp_path / "short", tmp_path / "whole")
    for i, dies in enumerate((quick - 10 + 1, fitted)):
        out = tmp_path / f"{i}"
        short = given | {"run": {"seeds": 1, "checkpoint_every": 2}}
        killed(out, int(dies), **short)
        go(out, resume=True, **short)
        same(out, tmp_path / "whole")


def test_newest_and_largest_metrics(tmp_path):
    run = go(tmp_path / "a", mode="stages", run={"seeds": 1})
    found = {int(row["step"]): row for row in rows(run.dir)}
    of_stage = {step: row for step, row in found.items() if 80 < step <= 170}
    for step, row in of_stage.items():
        call = (step - 80) // 3 - 1
        before = max((s for s in found if s < step), default=0)
        calls = range((max(before, 80) - 80) // 3, call + 1)
        marked = [t for t in calls if t % 7 == 3]
        assert row["newest"] == (repr(float(marked[-1])) if marked else "")
        assert float(row["largest"]) == -calls[0]


def test_memory_policy(tmp_path):
    """Evaluated with the true rewards and memories: actions take turns, as if told to by the
    clock."""
    run = go(
        tmp_path / "a", mode="memory", total_steps=20, run={"eval_every": 20, "eval_episodes": 4}
    )
    env = rlzoo.make("CartPole-v1")
    for seed in (0, 1):

        def act(clock, obs, reward, keys):
            return jnp.full(4, clock % 2), clock + 1

        for step, found in zip((0, 20), column(run.dir, "eval/length", seed), strict=True):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), EVALUATION), step)
            lengths = rlzoo.env.episodes(env, act, jnp.int32(0), jax.random.split(key, 4))[1]
            assert float(found) == lengths.mean()
            assert float(found) > 15  # a forgetful one holds out 9 to 10 steps


def test_evaluate_adds_to_rollouts_or_stands_alone(tmp_path):
    run = go(tmp_path / "alone", mode="evaluate")
    assert {"eval/distance", "eval/noise"} <= {*rows(run.dir)[0]}
    assert not {"eval/return", "eval/length"} & {*rows(run.dir)[0]}
    state = rlzoo.load(run.dir, member=1, full=True).policy
    expected = ((np.asarray(state.params["w"]) - 1.0) ** 2).mean()
    assert run.summary["score"] == {"name": "eval/distance", "lower_is_better": True}
    assert run.summary["members"][1]["eval/distance"] == pytest.approx(expected, rel=1e-5)
    assert run.summary["eval/distance"][0]["seeds"] == 2
    assert run.summary["members"][1]["eval/return"] is None
    assert len(set(column(run.dir, "eval/noise", 0) + column(run.dir, "eval/noise", 1))) == 2 * 21
    both = go(tmp_path / "both", mode="both")
    assert {"eval/return", "eval/length", "eval/distance", "eval/noise"} <= {*rows(both.dir)[0]}
    assert both.summary["score"]["name"] == "eval/return"
    plain = go(tmp_path / "plain")
    assert column(plain.dir, "eval/return") == column(both.dir, "eval/return")


def test_a_report_ranks_by_the_score_and_its_direction(tmp_path):
    far = go(tmp_path / "far", mode="evaluate", sweep={"learning_rate": [0.01, 0.5]})
    best, worst = sorted(report.group([report.read_run(far.dir)]), key=lambda g: -g.rank)
    assert best.metric == "eval/distance" and best.lower_is_better
    assert "0.5" in best.setting and best.summary["iqm"] < worst.summary["iqm"]


# ---- devices and processes -----------------------------------------------------------------------


@pytest.mark.slow
def test_four_devices(tmp_path):
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import jax
import test_train as t
out = Path(sys.argv[2])
assert len(jax.devices()) == 4
for seeds in (4, 6):
    t.go(out / str(seeds), run={"seeds": seeds}, mode="evaluate")
t.go(out / "stages", mode="stages", run={"seeds": 6})
t.killed(out / "cut", 60, run={"seeds": 6, "checkpoint_every": 40}, mode="evaluate")
t.shutil.copytree(out / "cut", out / "moved")
t.go(out / "cut", run={"seeds": 6, "checkpoint_every": 40}, resume=True, mode="evaluate")
t.same(out / "cut", out / "6")
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(TOY.parent), str(tmp_path)],
        env=env,
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    go(tmp_path / "one", run={"seeds": 6}, mode="evaluate")
    one, six, four = (rows(tmp_path / name) for name in ("one", "6", "4"))
    assert [r["member"] for r in one] == [r["member"] for r in six]  # 8 run, 6 are recorded
    assert len(four) == len(six) / 6 * 4
    for a, b in zip(one, six, strict=True):
        assert a["count"] == b["count"]
        assert not a["loss/square"] or float(a["loss/square"]) == pytest.approx(
            float(b["loss/square"]), rel=1e-4
        )
    summary = json.loads((tmp_path / "6" / "summary.json").read_text())
    assert len(summary["members"]) == 6 and summary["eval/return"][0]["seeds"] == 6
    assert json.loads((tmp_path / "6" / "config.json").read_text())["layout"] == {
        "devices": 4,
        "members": [6],
    }
    policy = rlzoo.load(tmp_path / "6", member=5).policy
    np.testing.assert_allclose(
        policy["w"], rlzoo.load(tmp_path / "one", member=5).policy["w"], rtol=1e-4
    )

    options = {"seeds": 6, "checkpoint_every": 40}
    with pytest.raises(Refused, match="devices was 4, now 1"):
        go(tmp_path / "moved", run=options, resume=True, mode="evaluate")
    moved = go(tmp_path / "moved", run=options, resume=True, force=True, mode="evaluate")
    assert moved.summary["status"] == "done"
    for a, b in zip(rows(moved.dir), six, strict=True):
        assert not a["loss/square"] or float(a["loss/square"]) == pytest.approx(
            float(b["loss/square"]), rel=1e-4
        )


@pytest.mark.slow
def test_two_processes_and_their_resume(tmp_path):
    def both(*argv):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        return [
            spawn(
                *argv,
                JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
            )
            for i in (0, 1)
        ]

    out = tmp_path / "two"
    pair = both("--out", str(out), "--seeds", "3", "--checkpoint-every", "8", "--mode", "evaluate")
    wait_for_rows(out, 20, *pair)
    for process in pair:
        process.kill()
        process.communicate()
    pair = both("--out", str(out), "--resume")
    texts = [end(process) for process in pair]
    assert (
        "3 members" in texts[0] and "members" not in texts[1]
    )  # process 0 alone speaks, and writes
    go(tmp_path / "one", run={"seeds": 3}, mode="evaluate")
    one, two = rows(tmp_path / "one"), rows(out)
    assert [(r["member"], r["step"], r["count"]) for r in one] == [
        (r["member"], r["step"], r["count"]) for r in two
    ]
    for a, b in zip(one, two, strict=True):
        assert not a["loss/square"] or float(a["loss/square"]) == pytest.approx(
            float(b["loss/square"]), rel=1e-4
        )
    assert len(json.loads((out / "summary.json").read_text())["members"]) == 3


def test_more_devices_than_there_are(tmp_path):
    with pytest.raises(Refused, match="--devices is 64, but there are"):
        go(tmp_path / "a", run={"devices": 64})


# ---- loading -------------------------------------------------------------------------------------


def test_load_a_run_of_a_copied_and_edited_file(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(TOY.read_text().replace("jnp.argmax((obs", "1 - jnp.argmax((obs"))
    from rlzoo.suites.files import load

    module = load(mine)
    run = go(tmp_path / "run", make=module.make, total_steps=20)
    assert run.summary["algorithm"] == "mine"
    mine.unlink()  # the run keeps its own copy
    act, policy = rlzoo.load(run.dir, member=1)
    obs = jnp.array([0.1, -0.2, 0.3, -0.4])
    score = (obs @ policy["w"] + policy["b"])[:2]
    assert int(act(policy, obs, jax.random.key(0))) == 1 - int(jnp.argmax(score))
    state = rlzoo.load(run.dir, member=1, full=True).policy
    assert int(state.count) == 10 and state.half.dtype == jnp.bfloat16 and state.flags.dtype == bool
    jax.random.split(state.key)  # a key again
    with pytest.raises(Refused, match="no member 2; it has 2"):
        rlzoo.load(run.dir, member=2)
    with pytest.raises(Refused, match="is not a run"):
        rlzoo.load(tmp_path)
    shutil.rmtree(run.dir / "checkpoints")
    with pytest.raises(Refused, match="has no checkpoint for member 0"):
        rlzoo.load(run.dir)


# ---- what is refused -----------------------------------------------------------------------------


def test_states_that_cannot_fit_are_refused_before_they_are_made(tmp_path):
    before = machine.peak_bytes(jax.devices()[0])
    with pytest.raises(
        MemoryError, match=r"training states of 2 members .* need 163840\.0 GiB, but .* free"
    ):
        go(tmp_path / "a", width=2**42)
    assert not (tmp_path / "a").exists()  # the same --out serves the smaller run
    assert machine.peak_bytes(jax.devices()[0]) < before + 2**30


def test_bad_sweeps_and_options(tmp_path):
    cases = [
        (dict(sweep={"learning_rat": [0.1]}), "'learning_rat' is unknown; nearest: learning_rate"),
        (dict(sweep={"learning_rate": ["fast"]}), "'fast' is a str, but learning_rate takes float"),
        (dict(sweep={"width": [1.5]}), "1.5 is a float, but width takes int"),
        (dict(sweep={"width": []}), "--sweep width= has no values"),
        (dict(run={"seeds": 0}), "--seeds is 0; it must be a whole number of at least 1"),
        (dict(run={"eval_episodes": 0}), "--eval-episodes is 0"),
        (dict(run={"seed": 2**32}), "seeds are 32-bit"),
        (dict(total_steps=0), "--total-steps is 0; it must be at least 1"),
        (dict(env="CartPole-v3"), "unknown environment 'CartPole-v3'; nearest: CartPole-v1"),
        (dict(resume=True), "is not a run: it has no config.json"),
    ]
    for kwargs, message in cases:
        with pytest.raises(Refused, match=re.escape(message)):
            go(tmp_path / "a", **kwargs)
        assert not (tmp_path / "a").exists()
    with pytest.raises(Refused, match="--resume needs --out"):
        rlzoo.train(toy.make, toy.Config, resume=True)


def test_output_folders(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(Refused, match="already holds other files"):
        go(tmp_path / "full")
    with pytest.raises(Refused, match="Not a directory"):
        go(tmp_path / "full" / "thesis.tex" / "run")
    (tmp_path / "full" / "config.json").write_text("{}")
    with pytest.raises(Refused, match="not a run of rlzoo"):
        go(tmp_path / "full", resume=True)
    (tmp_path / "full" / "config.json").write_text('{"algo')
    with pytest.raises(Refused, match="is damaged"):
        go(tmp_path / "full", resume=True)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        Refused, match="cannot write to .*: Permission denied; choose another --out"
    ):
        go(tmp_path / "other")
