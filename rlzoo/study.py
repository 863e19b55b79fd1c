"""What every study does: run command lines once, keep their records, judge claims, fill its pages.

A study is a script, scripts/X.py, and a folder, results/X. The prose of results/X/README.md is
written there by hand; the script fills what stands between markers, `<!-- NAME -->` and
`<!-- end -->`, from the records. So a script with nothing left to run only rewrites its tables.

    study = Study("baselines")
    run = study.once("ppo-cartpole", "algorithms/ppo.py --env CartPole-v1 --seeds 10")
    fill(study.folder / "README.md", table=table(["IQM"], [[score(run_scores)]]))

A record names the commit that ran: commit first, then run. Results and pages may differ from the
commit, since studies write them; anything else that does is refused.
"""

import argparse
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlzoo import machine, report
from rlzoo.algorithm import Refused

ROOT = Path(__file__).resolve().parent.parent
LEVEL = 0.95
REPLICATES = 2000

# ------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Study:
    """The records of the folder results/`name`."""

    name: str
    dirty: bool = False
    """run with uncommitted changes too"""
    root: Path = ROOT
    """the repository"""

    @property
    def folder(self) -> Path:
        return self.root / "results" / self.name

    def done(self, name: str) -> bool:
        """Is the record results/<study>/`name` whole?"""
        return (self.folder / name / "summary.json").exists()

    def once(
        self, name: str, command: str | Sequence[str], then: Callable[[Path], None] | None = None
    ) -> report.Run:
        """The record results/<study>/`name` of a command line; it is made now if it is not there.

        command: an algorithm file, relative to the repository, and its flags, without `--out`.
        then: called with the folder of the whole run before that folder is removed.

        The run itself lives in runs/<study>/`name`. It is continued there if it was interrupted.
        Raises Refused where the repository has uncommitted changes, and CalledProcessError where
        the command fails.
        """
        target = self.folder / name
        if self.done(name):
            return report.read_run(target)
        commit = self.commit()
        parts = shlex.split(command) if isinstance(command, str) else list(command)
        work = self.root / "runs" / self.name / name
        started = (work / "config.json").exists()
        if not started:
            shutil.rmtree(work, ignore_errors=True)
        out = ["--out", str(work), *(["--resume"] if started else [])]
        subprocess.run([sys.executable, *parts, *out], check=True, cwd=self.root)
        if then:
            then(work)
        self._keep(work, target, {"command": shlex.join(["python", *parts])} | commit)
        shutil.rmtree(work)
        return report.read_run(target)

    def commit(self) -> dict[str, str]:
        """{"commit": the one that is checked out}, or {} where changes are allowed.

        Raises Refused where files other than results and pages differ from it.
        """
        if self.dirty:
            return {}
        pathspec = ["--", ".", ":(exclude)results", ":(exclude)*.md"]
        changed = self._git("status", "--porcelain", "-uno", *pathspec)
        if changed:
            names = ", ".join(line[3:] for line in changed.splitlines())
            raise Refused(
                f"uncommitted changes: {names}. Commit first, then run, so that the record names "
                "the code that ran; --dirty runs all the same"
            )
        return {"commit": self._git("rev-parse", "HEAD").strip()}

    def _git(self, *words: str) -> str:
        command = ["git", "-C", str(self.root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(
                f"{self.root.name} has no commit that a record could name "
                f"({done.stderr.strip()}); --dirty runs all the same"
            )
        return done.stdout

    def _keep(self, work: Path, target: Path, known: Mapping[str, str]) -> None:
        """Copy the record; the summary comes last, since it says that the record is whole."""
        target.mkdir(parents=True, exist_ok=True)
        config = json.loads((work / "config.json").read_text("utf-8")) | known
        config.pop("home", None)  # a folder of this machine
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
        for file in ("metrics.csv", "curve.png", "summary.json"):
            shutil.copy(work / file, target / file)


@dataclass(frozen=True)
class Lab:
    """Where the arms of all studies of one script are run and kept."""

    study: Study
    processes: int

    def arm(self, name: str, program: str, flags: str) -> report.Run:
        """The record of one command line, made now if it is not there."""
        return self.study.once(name, f"{program} {flags} --processes {self.processes}")

    def draw(self, picture: str, runs: Iterable[report.Run], title: str) -> None:
        """Learning curves as results/<study>/`picture`."""
        path = self.study.folder / picture
        path.parent.mkdir(parents=True, exist_ok=True)
        report.plot_curves(list(runs), path, title=title)


def carry_out(
    about: str | None, lab: Callable[[Study, int], Lab], name: str, studies: Mapping[str, Callable]
) -> None:
    """What a script of several studies does: run those asked for, fill their pages, and the index.

    about: the script's docstring. lab: `lab(study, processes)` is handed to each of `studies`.
    studies: a name, which is that of a page's folder too, to a function of the lab that gives the
        parts of the page.
    """
    flags = parser(about, studies).parse_args()
    made = lab(Study(name, flags.dirty), flags.processes)
    folder = made.study.folder
    for each in flags.only:
        fill(folder / each / "README.md", **studies[each](made))
    fill(folder / "README.md", studies=index(folder, studies))


def index(folder: Path, names: Iterable[str]) -> str:
    """Title, claim and verdicts of every study, from its page."""
    lines = []
    for name in names:
        page = folder / name / "README.md"
        title, *text = page.read_text("utf-8").split("\n")
        about = next(line for line in text if line.startswith("Claim"))
        lines += [f"## [{title.removeprefix('# ')}]({name}/README.md)", "", about, ""]
        lines += [filled(page, "verdicts") or "Not run yet.", ""]
    return "\n".join(lines[:-1])


def parser(about: str | None, names: Iterable[str]) -> argparse.ArgumentParser:
    """Flags of every study: `--only NAME ...`, `--processes N` and `--dirty`."""
    layout = argparse.RawDescriptionHelpFormatter
    flags = argparse.ArgumentParser(description=about, formatter_class=layout)
    known = list(names)
    flags.add_argument("--only", nargs="*", default=known, choices=known, metavar="NAME")
    flags.add_argument("--processes", type=int, default=machine.cores(), metavar="N")
    flags.add_argument("--dirty", action="store_true", help="run with uncommitted changes too")
    return flags


def script(main: Callable[[], None]) -> None:
    """Call the main function of a script; where it is refused, exit with 2 and say why."""
    try:
        main()
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """That a figure is positive or, with a margin, that it is as good as zero."""

    text: str
    value: float
    replicates: np.ndarray
    """of the bootstrap, [REPLICATES]"""
    margin: float | None = None
    """a figure between -margin and margin is no effect"""

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high of the percentile interval."""
        return interval(self.replicates)

    @property
    def sides(self) -> tuple[float, float]:
        """Two-sided p-values [0, 1]: small where the claim holds; small where the opposite does."""
        edge = self.margin or 0.0
        below = self._share(self.replicates <= -edge)
        above = self._share(self.replicates >= edge)
        not_below = self._share(self.replicates >= -edge)
        not_above = self._share(self.replicates <= edge)
        if self.margin is None:
            return min(1.0, 2 * not_above), min(1.0, 2 * not_below)
        return min(1.0, 2 * max(below, above)), min(1.0, 2 * min(not_below, not_above))

    @staticmethod
    def _share(which: np.ndarray) -> float:
        """Never 0: a replicate that was not drawn may lie there."""
        return float((1 + which.sum()) / (1 + which.size))


def bootstrap(
    statistic: Callable[..., Any], *groups: np.ndarray, paired: bool = False, seed: int = 0
) -> tuple[float, np.ndarray]:
    """`statistic(*groups)` and its bootstrap replicates [REPLICATES].

    statistic: takes arrays [..., runs] and reduces the last axis.
    groups: scores [runs] each. Runs are resampled within each group; if `paired`, the same ones in
        all of them.
    """
    if paired and len({len(group) for group in groups}) > 1:
        raise Refused(f"paired groups differ in length: {[len(group) for group in groups]}")
    rng = np.random.default_rng(seed)
    draws = []
    for group in groups[:1] if paired else groups:
        draws.append(rng.integers(len(group), size=(REPLICATES, len(group))))
    draws *= len(groups) if paired else 1
    picks = [group[draw] for group, draw in zip(groups, draws, strict=True)]
    return float(statistic(*groups)), np.asarray(statistic(*picks))


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """Low and high of the 95% percentile interval of bootstrap replicates."""
    low, high = np.percentile(replicates, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return float(low), float(high)


def claim(
    text: str,
    statistic: Callable[..., Any],
    *groups: np.ndarray,
    margin: float | None = None,
    paired: bool = False,
) -> Claim:
    """The claim that `statistic(*groups)` is positive, or within `margin` of zero."""
    value, replicates = bootstrap(statistic, *groups, paired=paired)
    return Claim(text, value, replicates, margin)


def more(a: np.ndarray, b: np.ndarray) -> Any:
    """By how much the IQM of `a` is above that of `b`."""
    return report.iqm(a, axis=-1) - report.iqm(b, axis=-1)


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: reject those below the level."""
    found = np.asarray(list(p_values), float)
    order = np.argsort(found, kind="stable")
    factors = np.arange(len(found), 0, -1)
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * found[order]), 1.0)
    return adjusted


def verdicts(claims: Sequence[Claim]) -> list[str]:
    """`supported`, `opposite here` or `undecided` for each of all the claims of a study.

    Each is tested at the level of the interval, corrected for their number by Holm's method.
    """
    adjusted = holm(min(each.sides) for each in claims)
    words = []
    for each, p_value in zip(claims, adjusted, strict=True):
        holds, opposite = each.sides
        word = "supported" if holds < opposite else "opposite here"
        words.append(word if p_value < 1 - LEVEL else "undecided")
    return words


def verdict_list(claims: Sequence[Claim]) -> str:
    """A Markdown list: each claim with its figure, its own 95% interval and its verdict."""
    lines = []
    for each, word in zip(claims, verdicts(claims), strict=True):
        low, high = each.interval
        within = "" if each.margin is None else f", no effect within {each.margin:.3g}"
        lines.append(
            f"- {each.text}: {each.value:+.3g} ({low:+.3g} to {high:+.3g}{within}): **{word}**"
        )
    return "\n".join(lines)


def members(run: report.Run, **swept: float) -> list[dict[str, Any]]:
    """What the summary says of every seed of a setting."""
    found = []
    for member in run.summary["members"]:
        if all(np.isclose(member[field], value) for field, value in swept.items()):
            found.append(member)
    return found


def parts_of(
    head: Sequence[str], body: Iterable[Iterable[Any]], claims: Sequence[Claim], last: report.Run
) -> dict[str, str]:
    """The parts of a page: its table, the verdicts, and the machine of the last arm."""
    machine_of = last.config["hardware"]
    cores = f"cores used: 1 of {machine_of['cores']}"
    return {
        "table": table(head, body),
        "verdicts": verdict_list(claims),
        "hardware": f"{machine_of['cpu']}, {cores}, {machine_of['backend']}",
    }


def score(scores: np.ndarray) -> str:
    """IQM of scores [runs] with its 95% interval, as text."""
    low, high = report.bootstrap_ci(scores)
    return f"{report.iqm(scores):.3g} ({low:.3g} to {high:.3g})"


# -------------------------------------------------------------------------------------------- pages


def table(head: Sequence[str], body: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; every row must have as many cells as the head."""
    rows = [list(head), *([str(cell) for cell in row] for row in body)]
    for row in rows:
        if len(row) != len(head):
            raise Refused(f"a row of {len(row)} cells under a head of {len(head)}: {row}")
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that share their keys; the keys of the first are the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def fill(page: Path, **parts: str) -> None:
    """Put each text between `<!-- NAME -->` and `<!-- end -->` of a page; prose stays as it is.

    A text goes on lines of its own where the marker ends its line, and else within the line.
    Raises Refused where a name has no marker in the page, or more than one.
    """
    written = page.read_text("utf-8")
    for name, text in parts.items():
        start, end = _between(page, written, name)
        block = written[start] == "\n"
        written = written[:start] + (f"\n{text}\n" if block else text) + written[end:]
    page.write_text(written, "utf-8")


def filled(page: Path, name: str) -> str:
    """The text between the marker `name` of a page and its end."""
    written = page.read_text("utf-8")
    start, end = _between(page, written, name)
    return written[start:end].strip("\n")


def _between(page: Path, written: str, name: str) -> tuple[int, int]:
    """Where the text between a marker and its end starts and ends."""
    found = list(re.finditer(re.escape(f"<!-- {name} -->"), written))
    if len(found) != 1:
        raise Refused(
            f"{page} needs the marker <!-- {name} --> once; it is there {len(found)} times"
        )
    start = found[0].end()
    end = written.find("<!-- end -->", start)
    between = written[start:end]
    if end < 0 or "<!-- " in between:
        raise Refused(f"{page}: the marker <!-- {name} --> has no <!-- end --> of its own")
    return start, end
