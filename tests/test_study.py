"""Studies: records of command lines, verdicts, and pages whose prose stays as it is."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rlzoo import report
from rlzoo.algorithm import Refused
from rlzoo.study import (
    Claim,
    Study,
    bootstrap,
    claim,
    fill,
    filled,
    holm,
    index,
    interval,
    members,
    more,
    parser,
    score,
    script,
    table,
    verdict_list,
    verdicts,
    write_csv,
)

ROOT = Path(__file__).resolve().parent.parent

# A program that keeps a record as an algorithm does, and counts how often it was called. It stops
# halfway while the file `broken` is there.
PROGRAM = """
import json, pathlib, sys
flags = sys.argv[1:]
out = pathlib.Path(flags[flags.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
with open("calls.log", "a") as log:
    log.write(" ".join(flags) + "\\n")
(out / "config.json").write_text(json.dumps(
    {"algorithm": "program", "command": f"{out}", "commit": "as the run says", "home": f"{out}"}
))
if pathlib.Path("broken").exists():
    sys.exit(1)
(out / "metrics.csv").write_text("member,seed,step\\n0,0,1\\n")
(out / "summary.json").write_text(json.dumps({"status": "done"}))
(out / "curve.png").write_bytes(b"")
(out / "checkpoint").write_bytes(b"large")
"""


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(root), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / "algorithms").mkdir(parents=True)
    (root / "algorithms" / "program.py").write_text(PROGRAM)
    (root / ".gitignore").write_text("runs/\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def calls(root: Path) -> list[str]:
    log = root / "calls.log"
    return log.read_text().splitlines() if log.exists() else []


# ------------------------------------------------------------------------------------------ running


def test_a_command_line_is_run_once_and_its_record_kept(repository):
    study = Study("demo", root=repository)
    assert not study.done("a/b")
    run = study.once("a/b", "algorithms/program.py --env 'x?y=1' --rate 1e-3")
    assert run.path == repository / "results" / "demo" / "a" / "b" and study.done("a/b")
    kept = {"config.json", "metrics.csv", "summary.json", "curve.png"}
    assert {file.name for file in run.path.iterdir()} == kept
    assert run.config["command"] == "python algorithms/program.py --env 'x?y=1' --rate 1e-3"
    assert run.config["commit"] == git(repository, "rev-parse", "HEAD")
    assert str(repository) not in (run.path / "config.json").read_text()
    assert not (repository / "runs" / "demo" / "a" / "b").exists()

    again = study.once("a/b", "algorithms/program.py --env 'x?y=1' --rate 1e-3")
    assert again.config == run.config and len(calls(repository)) == 1


def test_what_needs_the_whole_run_gets_it_before_it_goes(repository):
    seen = []
    study = Study("demo", root=repository)
    study.once(
        "a", "algorithms/program.py", lambda run: seen.append((run / "checkpoint").read_text())
    )
    assert seen == ["large"]


def test_an_interrupted_run_is_continued_and_not_taken_for_done(repository):
    study = Study("demo", root=repository)
    (repository / "broken").touch()
    with pytest.raises(subprocess.CalledProcessError):
        study.once("a", "algorithms/program.py")
    assert not study.done("a") and not (repository / "results").exists()
    (repository / "broken").unlink()
    study.once("a", "algorithms/program.py")
    first, second = calls(repository)
    assert "--resume" not in first and second == f"{first} --resume"
    assert "resume" not in (study.folder / "a" / "config.json").read_text()


def test_uncommitted_changes_are_refused_before_anything_runs(repository):
    file = repository / "algorithms" / "program.py"
    file.write_text(PROGRAM + "# changed\n")
    with pytest.raises(Refused, match=r"algorithms/program\.py.*Commit first.*--dirty"):
        Study("demo", root=repository).once("a", "algorithms/program.py")
    assert not calls(repository)
    run = Study("demo", dirty=True, root=repository).once("a", "algorithms/program.py")
    assert run.config["commit"] == "as the run says"
    # What is done already needs no commit.
    assert Study("demo", root=repository).once("a", "algorithms/program.py").config == run.config


def test_results_and_pages_may_differ_from_the_commit(repository):
    results = repository / "results" / "demo"
    results.mkdir(parents=True)
    (results / "table.csv").write_text("1\n")
    (repository / "README.md").write_text("page\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "second")
    (results / "table.csv").write_text("2\n")
    (repository / "README.md").write_text("filled\n")
    run = Study("demo", root=repository).once("a", "algorithms/program.py")
    assert run.config["commit"] == git(repository, "rev-parse", "HEAD")


def test_outside_of_git_only_dirty_runs(repository):
    shutil.rmtree(repository / ".git")
    with pytest.raises(Refused, match="no commit"):
        Study("demo", root=repository).once("a", "algorithms/program.py")
    Study("demo", dirty=True, root=repository).once("a", "algorithms/program.py")


@pytest.mark.slow
def test_an_algorithm_file_is_recorded(repository):
    shutil.copy(ROOT / "tests" / "toy.py", repository / "algorithms" / "toy.py")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "toy")
    study = Study("demo", root=repository)
    flags = "--total-steps 60 --seeds 2 --eval-episodes 2 --quiet"
    run = study.once("toy", f"algorithms/toy.py {flags}")
    assert run.status == "done" and len(run.summary["members"]) == 2
    assert run.config["command"] == f"python algorithms/toy.py {flags}"
    assert str(repository) not in (run.path / "config.json").read_text()
    assert (run.path / "curve.png").stat().st_size > 1000
    assert not git(repository, "status", "--porcelain", "-uno")


def test_a_script_that_is_refused_says_why(repository, capsys):
    (repository / "algorithms" / "program.py").write_text("")
    with pytest.raises(SystemExit) as stop:
        script(lambda: Study("demo", root=repository).once("a", "algorithms/program.py") and None)
    assert stop.value.code == 2 and "Commit first" in capsys.readouterr().err


def test_flags_of_every_study():
    flags = parser("about", ["a", "b"])
    assert flags.parse_args([]).only == ["a", "b"] and not flags.parse_args([]).dirty
    found = flags.parse_args(["--only", "b", "--processes", "3", "--dirty"])
    assert (found.only, found.processes, found.dirty) == (["b"], 3, True)
    with pytest.raises(SystemExit):
        flags.parse_args(["--only", "c"])


# ------------------------------------------------------------------------------------------- claims


def test_holm_against_known_numbers():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.02]), [0.02])
    assert holm([]).size == 0


def scores(middle: float, seeds: int = 10, key: int = 0) -> np.ndarray:
    return middle + np.random.default_rng(key).normal(size=seeds)


def test_verdicts_on_scores_that_differ_and_that_do_not():
    low, high, alike = scores(0.0, key=1), scores(4.0, key=2), scores(0.0, key=3)
    claims = [
        claim("more", more, high, low),
        claim("less", more, low, high),
        claim("alike", more, alike, low),
        claim("no effect, widely", more, alike, low, margin=3.0),
        claim("no effect, narrowly", more, alike, low, margin=0.1),
        claim("no effect, where there is one", more, high, low, margin=1.0),
    ]
    words = ["supported", "opposite here", "undecided", "supported", "undecided", "opposite here"]
    assert verdicts(claims) == words
    lines = verdict_list(claims).split("\n")
    assert re.fullmatch(r"- more: \+[\d.]+ \(\+[\d.]+ to \+[\d.]+\): \*\*supported\*\*", lines[0])
    assert ", no effect within 3): **supported**" in lines[3]


def test_one_claim_alone_is_decided_by_its_interval():
    ramp = np.linspace(-1.0, 3.0, 2000)
    for shift, word in ((0.0, "undecided"), (0.89, "undecided"), (0.91, "supported")):
        one = Claim("x", 1.0, ramp + shift)  # its 2.5th percentile is -0.9 + shift
        assert (one.interval[0] > 0) == (word == "supported")
        assert verdicts([one]) == [word]
    assert verdicts([Claim("x", -1.0, -ramp - 0.91)]) == ["opposite here"]
    inside = Claim("x", 0.0, np.linspace(-1.0, 1.0, 2000), margin=0.97)
    assert verdicts([inside]) == ["supported"]
    assert verdicts([Claim("x", 0.0, inside.replicates, margin=0.93)]) == ["undecided"]


def test_more_claims_need_more_evidence():
    weak = Claim("weak", 1.0, np.linspace(-0.05, 3.0, 2000))
    nothing = Claim("nothing", 0.0, np.linspace(-1.0, 1.0, 2000))
    assert verdicts([weak]) == ["supported"]
    assert verdicts([weak, nothing, nothing]) == ["undecided"] * 3


def test_bootstrap_is_that_of_the_report():
    found = scores(2.0)
    value, replicates = bootstrap(lambda x: report.iqm(x, axis=-1), found)
    assert value == report.iqm(found)
    assert interval(replicates) == report.bootstrap_ci(found)
    low, high = report.bootstrap_ci(found)
    assert score(found) == f"{value:.3g} ({low:.3g} to {high:.3g})"


def test_pairs_are_resampled_together():
    seed_effect = 10 * scores(0.0, seeds=20)
    better = seed_effect + 1 + 0.1 * scores(0.0, seeds=20, key=1)
    assert verdicts([claim("better", more, better, seed_effect)]) == ["undecided"]
    assert verdicts([claim("better", more, better, seed_effect, paired=True)]) == ["supported"]
    with pytest.raises(Refused, match=r"differ in length: \[20, 19\]"):
        bootstrap(more, better, seed_effect[1:], paired=True)


# -------------------------------------------------------------------------------------------- pages

PAGE = """# Title

Prose with <!-- count -->12<!-- end --> seeds.

<!-- table -->
old
<!-- end -->

More prose.
"""


def test_filling_leaves_prose_alone(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    fill(page, count="10", table="| a |\n|---|\n| 1 |")
    assert page.read_text() == PAGE.replace("12", "10").replace("old", "| a |\n|---|\n| 1 |")
    assert filled(page, "table") == "| a |\n|---|\n| 1 |" and filled(page, "count") == "10"
    once = page.read_text()
    fill(page, count="10", table="| a |\n|---|\n| 1 |")
    assert page.read_text() == once


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nothing", "there 0 times"),
        ("<!-- x -->1<!-- end --> <!-- x -->1<!-- end -->", "there 2 times"),
        ("<!-- x -->1", "no <!-- end --> of its own"),
        ("<!-- x -->1 <!-- y -->2<!-- end -->", "no <!-- end --> of its own"),
    ],
)
def test_a_page_without_the_marker_is_refused_and_not_touched(tmp_path, text, error):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(Refused, match=error):
        fill(page, x="3")
    assert page.read_text() == text


def test_table():
    assert table(["a", "b"], [[1, "x"], [2.5, ""]]) == (
        "| a | b |\n|---|---|\n| 1 | x |\n| 2.5 |  |"
    )
    with pytest.raises(Refused, match="1 cells under a head of 2"):
        table(["a", "b"], [[1]])


def test_write_csv(tmp_path):
    write_csv(tmp_path / "new" / "table.csv", [{"a": 1, "b": "x"}, {"a": 2, "b": "y,z"}])
    assert (tmp_path / "new" / "table.csv").read_bytes() == b'a,b\n1,x\n2,"y,z"\n'


# ------------------------------------------------------------------------- the repository's studies


def test_scripts_and_results_have_the_same_names():
    """scripts/X.py and scripts/bench_X.py make results/X; outcomes of check_*.py: results/tests."""
    made = set()
    for file in (ROOT / "scripts").glob("*.py"):
        name = file.stem.removeprefix("bench_")
        made.add("tests" if name.startswith("check_") else name)
    assert made == {folder.name for folder in (ROOT / "results").iterdir()}


def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "results").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page}: {link}"


def test_records_name_no_folder_of_the_machine():
    for page in (ROOT / "results").rglob("*.md"):
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", page.read_text()), page


def test_every_marker_of_the_pages_has_its_end():
    pages = [ROOT / "README.md", *(ROOT / "results").rglob("*.md")]
    markers = 0
    for page in pages:
        for name in re.findall(r"<!-- (?!end)(\w+) -->", page.read_text()):
            filled(page, name)
            markers += 1
    assert markers > 80, json.dumps([str(page) for page in pages])


def test_the_index_says_what_has_not_run(tmp_path):
    for name, verdict in (("one", "- it holds: **supported**\n"), ("two", "")):
        page = tmp_path / name / "README.md"
        page.parent.mkdir()
        page.write_text(
            f"# Title of {name}\n\nClaim: c.\n\n<!-- verdicts -->\n{verdict}<!-- end -->"
        )
    assert index(tmp_path, ["one", "two"]).split("\n\n") == [
        "## [Title of one](one/README.md)",
        "Claim: c.",
        "- it holds: **supported**",
        "## [Title of two](two/README.md)",
        "Claim: c.",
        "Not run yet.",
    ]


def test_members_of_a_setting():
    found = [{"member": 0, "eta": 0.1}, {"member": 1, "eta": 0.2}, {"member": 2, "eta": 0.1}]
    run = report.Run(None, {}, {"members": found}, {})
    assert [member["member"] for member in members(run, eta=0.1)] == [0, 2]
    assert members(run) == found
