"""Statistics against closed forms and explicit sorts, reading of damaged files, and pictures of
fake runs."""

import json
import subprocess
import sys

import numpy as np
import pytest

from rlzoo import report
from rlzoo.algorithm import Refused
from rlzoo.report.reading import Group, Member

EVALS = np.arange(1, 11) * 10_000


def fake_run(
    path,
    algorithm="dqn",
    env="CartPole-v1",
    seeds=5,
    level=100.0,
    sweep=None,
    diverged=(),
    **options,
):
    """A run directory: one member per (swept value, seed), 10 evaluations, one train-only row after
    each."""
    name, values = next(iter((sweep or {"": [None]}).items()))
    rng, lines, members = np.random.default_rng(options.get("first_seed", 0)), [], []
    steps = EVALS[: options.get("evals", 10)]
    for index, (value, seed) in enumerate((v, s) for v in values for s in range(seeds)):
        own = [] if value is None else [str(value)]
        end = level * (1 + (value or 0) / 10) + rng.normal(0, level / 10)
        lost, seed = index in diverged, seed + options.get("first_seed", 0)
        for step in steps:
            score = end * (1 - np.exp(-step / 3e4)) + rng.normal(0, level / 40)
            cell = "" if lost and step > 50_000 else f"{score:.6g}"
            start = ",".join([str(index), str(seed), *own])
            lines += [
                f"{start},{step},{cell},{score - 5:.4g},0.5",
                f"{start},{step + 5000},,1.0,0.25",
            ]
        last = None if lost else float(lines[-2].split(",")[len(own) + 3])
        swept = {} if value is None else {name: value}
        members.append(
            {"member": index, "seed": seed, **swept, "eval/return": last, "diverged": lost}
        )
    path.mkdir(parents=True)
    header = [
        "member",
        "seed",
        *([name] if sweep else []),
        "step",
        "eval/return",
        "train/return",
        "loss/td",
    ]
    (path / "metrics.csv").write_text("\n".join([",".join(header), *lines, ""]))
    config = {"env": env, "total_steps": 100_000, "learning_rate": 1e-3} | options.get("config", {})
    command = f"rlzoo train {algorithm} --env {env}"
    (path / "config.json").write_text(
        json.dumps({"algorithm": algorithm, "env": env, "config": config, "command": command})
    )
    summary = {"status": options.get("status", "done"), "members": members, "steps": int(steps[-1])}
    summary |= {"steps_per_second": 123456.0, "compile_seconds": 3.21}
    if summary["status"] != "unfinished":
        (path / "summary.json").write_text(json.dumps(summary))
    return path


# --------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([7], 7),
        ([1, 2], 1.5),
        ([1, 2, 9], 4),
        ([0, 1, 3, 99], 2),
        ([5, 1, 2, 3, 9], 10 / 3),
        (range(9), 4),
    ],
)
def test_iqm_of_few_scores(scores, expected):
    assert report.iqm(np.array(list(scores))) == pytest.approx(expected)


@pytest.mark.parametrize("n", [5, 7, 8, 11, 30, 101])
def test_iqm_is_an_explicit_sorted_trim(n):
    scores = np.random.default_rng(n).normal(size=n)
    cut = int(np.floor(0.25 * n))
    assert report.iqm(scores) == pytest.approx(np.mean(sorted(scores)[cut : n - cut]))


def test_iqm_pools_the_named_axes():
    scores = np.random.default_rng(0).normal(size=(6, 5, 4))
    np.testing.assert_allclose(
        report.iqm(scores, axis=1), [[report.iqm(x) for x in y.T] for y in scores]
    )
    np.testing.assert_allclose(
        report.iqm(scores, axis=(1, 2)), [report.iqm(x.ravel()) for x in scores]
    )
    np.testing.assert_allclose(report.iqm(scores, axis=-1), report.iqm(scores, axis=2))
    assert report.iqm(scores) == pytest.approx(report.iqm(scores.ravel()))


def test_nan_is_handed_through_and_never_trimmed():
    assert np.isnan(report.iqm([1.0, 2.0, 3.0, np.nan]))  # sorted last, it would be cut
    assert np.isnan(report.bootstrap_ci([1.0, 2.0, np.nan, 4.0])).all()
    with pytest.raises(ValueError, match="no scores"):
        report.iqm([])
    with pytest.raises(ValueError, match="runs, tasks"):
        report.bootstrap_ci(np.zeros((2, 2, 2)))


def test_bootstrap_covers_the_mean_of_a_normal():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(3000):
        low, high = report.bootstrap_ci(
            rng.normal(3.0, 2.0, 30), statistic=np.mean, reps=500, seed=trial
        )
        hits += low < 3.0 < high
    assert (
        0.92 < hits / 3000 < 0.96
    )  # of 30 runs the percentile bootstrap covers a little less than 95%


def test_stratified_bootstrap_ignores_the_offset_between_tasks():
    scores = np.random.default_rng(1).normal(size=(10, 4))
    offset = np.array([0.0, 100.0, 200.0, 300.0])
    low, high = report.bootstrap_ci(scores, statistic=np.mean)
    shifted_low, shifted_high = report.bootstrap_ci(scores + offset, statistic=np.mean)
    assert shifted_high - shifted_low == pytest.approx(high - low)
    naive_low, naive_high = report.bootstrap_ci(
        (scores + offset).ravel(), statistic=np.mean
    )  # naive
    assert naive_high - naive_low > 20 * (high - low)


def test_degenerate_intervals():
    assert report.bootstrap_ci(np.full(8, 0.3)) == (0.3, 0.3)
    assert np.isnan(report.bootstrap_ci([5.0])).all()  # one run says nothing about spread
    middle, low, high = report.iqm_curve(np.ones((4, 3)))
    assert (middle == 1).all() and (low == 1).all() and (high == 1).all()
    assert np.isnan(report.iqm_curve(np.ones((1, 3)))[1]).all()


def test_iqm_curve_is_the_interval_of_each_point():
    curves = np.random.default_rng(2).normal(size=(9, 5)) + np.arange(5)
    middle, low, high = report.iqm_curve(curves, seed=3)
    assert middle.shape == (5,) and (low <= middle).all() and (middle <= high).all()
    for point in range(5):
        np.testing.assert_allclose(
            (low[point], high[point]), report.bootstrap_ci(curves[:, point], seed=3)
        )


def test_probability_of_improvement_in_closed_cases():
    better = report.probability_of_improvement([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert better == pytest.approx((1, 1, 1))
    assert report.probability_of_improvement(np.ones(4), np.ones(6)) == pytest.approx(
        (0.5, 0.5, 0.5)
    )
    assert report.probability_of_improvement([1.0, 3.0], [2.0, 2.0])[0] == 0.5
    two_tasks = np.array([[1.0, 0.0], [2.0, 0.5]])
    assert report.probability_of_improvement(two_tasks, [[0.0, 1.0], [0.5, 2.0]])[
        0
    ] == pytest.approx(0.5)
    ragged = report.probability_of_improvement(
        {"a": [1, 2, 3], "b": [0, 0]}, {"a": [0, 0], "c": [9]}
    )
    assert ragged == pytest.approx((1, 1, 1))
    assert (
        report.probability_of_improvement([1.0, np.nan], [0.0, 0.0])[0] == 0.5
    )  # the diverged run loses
    assert np.isnan(report.probability_of_improvement([1.0], [0.0, 0.5])[1:]).all()
    with pytest.raises(ValueError, match="no task in common"):
        report.probability_of_improvement({"a": [1]}, {"b": [1]})


def test_summarize_counts_the_diverged_and_is_plain_json():
    members = [
        {"member": i, "seed": i % 4, "lr": [0.1, 0.2][i // 4], "eval/return": i} for i in range(8)
    ]
    members[5] |= {"diverged": True}
    members[6] |= {"eval/return": None}
    first, second = report.summarize(members)
    assert (
        first["lr"] == 0.1
        and first["iqm"] == 1.5
        and first["seeds"] == 4
        and first["diverged"] == 0
    )
    assert first["low"] < 1.5 < first["high"] and first["std"] == pytest.approx(
        np.std(range(4), ddof=1)
    )
    assert (
        second["mean"] == 5.5 and second["seeds"] == 4 and second["diverged"] == 1
    )  # the other was not evaluated
    (lone,) = report.summarize([{"member": 0, "seed": 0, "eval/return": 3.0, "diverged": False}])
    assert lone["iqm"] == 3 and lone["low"] is None and lone["std"] is None
    (none,) = report.summarize([{"member": 0, "seed": 0, "eval/return": None, "diverged": True}])
    assert none["iqm"] is None and none["diverged"] == 1
    json.dumps([first, second, lone, none], allow_nan=False)


# ------------------------------------------------------------------------------------------ reading

CSV = "member,seed,lr,activation,step,eval/return\n0,7,0.1,tanh,100,\n1,8,0.2,relu,100,2.5\n"


def test_read_metrics_types_and_empty_cells(tmp_path):
    (tmp_path / "m.csv").write_text(CSV)
    columns = report.read_metrics(tmp_path / "m.csv")
    assert list(columns) == ["member", "seed", "lr", "activation", "step", "eval/return"]
    assert columns["seed"].dtype.kind == "i" and columns["activation"].tolist() == ["tanh", "relu"]
    np.testing.assert_array_equal(columns["eval/return"], [np.nan, 2.5])


@pytest.mark.parametrize(
    "tail", ["0,7,0.1,tanh,200,12", "0,7", "0,7\n", "\0\0\0\n", "0,7,0.1,tanh,200,1e\n"]
)
def test_read_metrics_drops_a_cut_last_line(tmp_path, tail):
    (tmp_path / "m.csv").write_text(CSV + tail)
    assert len(report.read_metrics(tmp_path / "m.csv")["step"]) == 2


@pytest.mark.parametrize("line", ["0,7", "0,7,0.1,tanh,200,many", "0,7,0.1,tanh,2x,1.0", ""])
def test_read_metrics_names_a_malformed_line(tmp_path, line):
    (tmp_path / "m.csv").write_text(f"{CSV}{line}\n1,8,0.2,relu,200,3\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 4"):
        report.read_metrics(tmp_path / "m.csv")


def test_read_metrics_header(tmp_path):
    (tmp_path / "m.csv").write_text("member,se")
    assert report.read_metrics(tmp_path / "m.csv") == {}
    (tmp_path / "m.csv").write_text("member,seed,step,step\n")
    with pytest.raises(ValueError, match="line 1"):
        report.read_metrics(tmp_path / "m.csv")


def test_read_run_says_what_is_wrong(tmp_path):
    with pytest.raises(Refused, match=r"is not a run: it has no config\.json.*holds config\.json"):
        report.read_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        report.read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"algorithm": "dqn", "env": "x"}')
    run = report.read_run(tmp_path)  # just started
    assert run.status == "unfinished" and report.group([run]) == [] == [*run.summary, *run.metrics]


# ----------------------------------------------------------------------------------------- pictures


def test_group_joins_seeds_of_the_same_setting_only(tmp_path):
    same = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", first_seed=5)]
    same.append(fake_run(tmp_path / "c", seeds=2))
    other = fake_run(tmp_path / "d", config={"learning_rate": 0.01})
    swept = fake_run(tmp_path / "e", first_seed=20, sweep={"learning_rate": [0.001, 0.1]})
    groups = {g.setting: g for g in report.group(report.read_run(p) for p in (*same, other, swept))}
    assert sorted(groups) == ["learning_rate=0.001", "learning_rate=0.01", "learning_rate=0.1"]
    assert [m.seed for m in groups["learning_rate=0.001"].members] == [*range(10), *range(20, 25)]
    assert groups["learning_rate=0.001"].repeats == 2  # seeds 0 and 1 of run c are those of run a


def test_runs_on_different_data_sets_are_not_seeds_of_one_setting(tmp_path):
    for name, dataset in (("a", "expert.npz"), ("b", "random.npz"), ("c", None), ("d", None)):
        path = fake_run(tmp_path / name, seeds=2) / "config.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"options": {"dataset": dataset}})
        )
    groups = report.group(report.read_run(tmp_path / name) for name in "ab")
    assert [(g.setting, len(g.members), g.repeats) for g in groups] == [
        ("dataset=expert.npz", 2, 0),
        ("dataset=random.npz", 2, 0),
    ]
    (together,) = report.group(report.read_run(tmp_path / name) for name in "cd")
    assert (together.setting, together.repeats) == ("", 2)


def test_a_diverged_member_is_left_out_and_counted_with_and_without_summary(tmp_path):
    for status in ("done", "unfinished"):
        run = report.read_run(fake_run(tmp_path / status, diverged=(1,), status=status))
        (g,) = report.group([run])
        steps, curves = g.curves()
        assert np.isnan(g.scores).tolist() == [False, True, False, False, False]
        assert steps.tolist() == EVALS.tolist() and curves.shape == (4, 10)
        axes = report.draw_curves([run]).axes[0]
        assert "4 seeds (diverged=1)" in axes.get_legend().get_texts()[0].get_text()
        assert "diverged=1" in axes.get_title(loc="left")


def test_curves_are_interpolated_where_steps_differ(tmp_path):
    config = {"algorithm": "dqn", "env": "x"}
    runs = []
    for seed, steps in enumerate(([0, 10, 20], [5, 15, 25])):
        column = {"member": np.zeros(3, int), "seed": np.full(3, seed), "step": np.array(steps)}
        values = {"eval/return": np.array(steps, float)}
        runs.append(report.Run(tmp_path / str(seed), config, {"status": "done"}, column | values))
    steps, curves = report.group(runs)[0].curves()
    assert steps.tolist() == [5, 10, 15, 20] and (curves == steps).all()


def test_write_curve(tmp_path):
    path = report.write_curve(fake_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "curve.png" and path.read_bytes().startswith(
        b"\x89PNG\r\n\x1a\n"
    )
    axes = report.draw_curves([report.read_run(tmp_path / "run")]).axes[0]
    assert axes.get_xlabel() == "environment steps" and axes.get_ylabel() == "eval/return"
    assert axes.get_title(loc="left") == "dqn on CartPole-v1"
    assert axes.get_legend().get_texts()[0].get_text() == "IQM, 95% CI, 5 seeds"
    assert axes.xaxis.get_major_formatter()(20_000, 0) == "20k" and len(axes.lines) == 1 + 5
    with pytest.raises(ValueError, match=r"no seed has a curve of nonsense.*train/return"):
        report.write_curve(tmp_path / "run", "nonsense")


def test_a_run_that_is_not_whole_says_so_in_the_title(tmp_path):
    stopped = report.read_run(fake_run(tmp_path / "a", status="interrupted", evals=4))
    short = report.read_run(fake_run(tmp_path / "b", evals=4, first_seed=9))
    both = report.draw_curves([stopped, short]).axes[0]
    assert "2 of 2 runs not whole" in both.get_title(loc="left")
    assert "[interrupted]" in both.get_legend().get_texts()[0].get_text()
    title = report.draw_curves([stopped]).axes[0].get_title(loc="left")
    assert title == "dqn on CartPole-v1 (interrupted at 40k of 100k steps)"
    mine = report.draw_curves([short], title="Mine").axes[0].get_title(loc="left")
    assert mine == "Mine (reduced to 40k of 100k steps)"


def test_many_settings_and_one_seed(tmp_path):
    run = report.read_run(
        fake_run(tmp_path / "a", seeds=1, sweep={"learning_rate": list(range(12))})
    )
    figure = report.draw_curves([run])
    assert (
        len(figure.legends) == 1
        and len(figure.axes[0].lines) == 12
        and not figure.axes[0].collections
    )
    assert figure.legends[0].get_texts()[3].get_text() == "learning_rate=3, 1 seed"


def test_an_unfinished_run_is_no_divergence(tmp_path):
    path = fake_run(tmp_path / "a", status="unfinished", evals=3)
    lines = (path / "metrics.csv").read_text().splitlines(keepends=True)
    cut = "".join(lines[:-4])  # the last members' last rows were not written yet
    (path / "metrics.csv").write_text(
        cut.replace(",1.0,", ",,", 3)
    )  # and episodes end at different steps
    for metric in ("eval/return", "train/return"):
        (g,) = report.group([report.read_run(path)], metric)
        assert len(g.members) == 5 and np.isfinite(g.scores).all()
    assert report.group([report.read_run(path)], "eval/nothing") == []


def test_write_curve_falls_back_to_the_metrics_there_are(tmp_path):
    path = fake_run(tmp_path / "a")
    text = (path / "metrics.csv").read_text().replace("eval/return", "eval/solved")
    (path / "metrics.csv").write_text(text)
    assert report.write_curve(path).is_file()


# --------------------------------------------------------------------------------------- the report


def test_report_over_two_algorithms_and_two_environments(tmp_path):
    runs = [
        fake_run(
            tmp_path / f"{algorithm}-{i}", algorithm, env, level=level, diverged=(0,) * (i == 1)
        )
        for i, env in enumerate(("CartPole-v1", "brax/hopper:spring"))
        for algorithm, level in (("dqn", 100.0), ("ppo<b>", 400.0))
    ]
    runs.append(fake_run(tmp_path / "killed", "dqn", status="interrupted", evals=3, first_seed=50))
    text, page, *pictures = report.report(runs, tmp_path / "out")
    assert [p.name for p in pictures] == ["curves_CartPole-v1.png", "curves_brax-hopper-spring.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    text, page = text.read_text(), page.read_text()
    assert "| ppo<b> | - | " in text and text.index("| ppo<b>") < text.index(
        "| dqn"
    )  # the best first
    assert "5 (diverged=1)" in text and "123.5k" in text and "| 3.21 |" in text
    assert "interrupted at 30k of 100k steps" in text and "| interrupted |" in text
    assert (
        "| dqn | ppo<b> | 0.09 [" in text
    )  # no win of 25; on hopper 4 wins over the diverged, and a tie
    assert (
        page.count("data:image/png;base64,") == 2
        and "ppo&lt;b&gt;" in page
        and "ppo<b>" not in page
    )
    assert (
        "http" not in page
        and page.count("<details>") == 5
        and "rlzoo train dqn --env CartPole-v1" in page
    )
    with pytest.raises(ValueError, match="no runs"):
        report.report([], tmp_path)


def test_a_score_of_zero_ranks_as_zero(tmp_path):
    run = report.Run(tmp_path, {"algorithm": "a"}, {}, {})
    members = [Member(run, 0, 0, score) for score in (0.0, -1.0, np.nan)]
    zero, low, none = (Group("a", "e", "eval/return", "done", "", [m], 0) for m in members)
    assert zero.rank > low.rank > none.rank


def test_importing_loads_neither_jax_nor_matplotlib_and_drawing_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys, rlzoo.report as report\n"
        "assert not {'jax', 'matplotlib'} & set(sys.modules)\n"
        "report.write_curve(sys.argv[1])\n"
        "assert not {'jax', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(fake_run(tmp_path / "a"))], check=True, timeout=60
    )
