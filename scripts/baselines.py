"""The studies in results/baselines: every algorithm on the environments it should solve, 10 seeds,
last iterate.

    python scripts/baselines.py            # all of them; what is done already is skipped
    python scripts/baselines.py --only ppo-cartpole

Each study is one command line, kept in its config.json; this script runs it, keeps its record in
results/baselines/<study>/ and writes the table and the curves. Seconds and steps/s are of the
machine that the table names, and only as good as it was idle.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rlzoo import report

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "baselines"
MINATAR = ["--num-envs", "64", "--minibatches", "8", "--learning-rate", "5e-3"]
SMALL = [
    "--learning-starts",
    "1_000",
    "--hidden",
    "64",
    "64",
    "--batch-size",
    "128",
    "--learning-rate",
    "1e-3",
]
PENDULUM = ["--env", "Pendulum-v1", "--total-steps", "20_000", *SMALL]
MOUNTAIN = ["--env", "MountainCarContinuous-v0", "--total-steps", "20_000", *SMALL]
BRAX = [
    "--total-steps",
    "50_000",
    "--num-envs",
    "4",
    "--updates",
    "2",
    "--hidden",
    "128",
    "128",
    "--batch-size",
    "128",
    "--learning-starts",
    "2_000",
    "--eval-every",
    "10_000",
]
HOPPER, CHEETAH = (["--env", f"brax/{name}:spring", *BRAX] for name in ("hopper", "halfcheetah"))
REDUCED = "reported: a twentieth of the usual steps, half the usual updates, smaller networks"

STUDIES = {  # name -> (algorithm, flags, goal)
    "ppo-cartpole": (
        "ppo",
        ["--env", "CartPole-v1", "--total-steps", "500_000", "--learning-rate", "1e-3"],
        "IQM >= 490",
    ),
    "ppo-cartpole-slow": (
        "ppo",
        ["--env", "CartPole-v1", "--total-steps", "500_000"],
        "the default learning rate, 2.5e-4, for comparison",
    ),
    "dqn-cartpole": ("dqn", ["--env", "CartPole-v1", "--total-steps", "500_000"], "IQM >= 490"),
    "ppo-pendulum": (
        "ppo",
        [
            "--env",
            "Pendulum-v1",
            "--total-steps",
            "300_000",
            "--num-steps",
            "1024",
            "--minibatches",
            "64",
            "--epochs",
            "10",
            "--discount",
            "0.9",
            "--learning-rate",
            "1e-3",
            "--entropy-coef",
            "0",
        ],
        "IQM >= -200",
    ),
    "ppo-breakout": (
        "ppo",
        ["--env", "Breakout-MinAtar", "--total-steps", "3_000_000", *MINATAR],
        "at 1e7 steps, gymnax's published checkpoint: 28",
    ),
    "ppo-spaceinvaders": (
        "ppo",
        ["--env", "SpaceInvaders-MinAtar", "--total-steps", "1_000_000", *MINATAR],
        "at 1e7 steps, gymnax's published checkpoint: 131",
    ),
    "pqn-cartpole": ("pqn", ["--env", "CartPole-v1", "--total-steps", "500_000"], "IQM >= 490"),
    "pqn-breakout": (
        "pqn",
        [
            "--env",
            "Breakout-MinAtar",
            "--total-steps",
            "10_000_000",
            "--num-envs",
            "128",
            "--num-steps",
            "32",
            "--minibatches",
            "32",
            "--epochs",
            "2",
            "--td-lambda",
            "0.65",
            "--epsilon-end",
            "0.05",
            "--epsilon-fraction",
            "0.1",
            "--hidden",
            "128",
            "--v-min",
            "-1",
            "--v-max",
            "19",
            "--eval-every",
            "2_000_000",
        ],
        "published: 70 for PQN at ten times the steps (SCORER's paper), 28 for gymnax's PPO at as many",
    ),
    "hl_gauss-cartpole": (
        "hl_gauss",
        [
            "--env",
            "CartPole-v1",
            "--total-steps",
            "500_000",
            "--learning-rate",
            "1e-3",
            "--eval-every",
            "100_000",
        ],
        "IQM >= 490",
    ),
    "td3-pendulum": ("td3", PENDULUM, "IQM >= -200"),
    "sac-pendulum": ("sac", PENDULUM, "IQM >= -200"),
    "td3-mountaincar": (
        "td3",
        MOUNTAIN,
        "reported: exploration is the task (a car that never leaves scores 0)",
    ),
    "sac-mountaincar": (
        "sac",
        MOUNTAIN,
        "reported: exploration is the task (a car that never leaves scores 0)",
    ),
    "td3-hopper": ("td3", HOPPER, REDUCED),
    "sac-hopper": ("sac", HOPPER, REDUCED),
    "td3-halfcheetah": ("td3", CHEETAH, REDUCED),
    "sac-halfcheetah": ("sac", CHEETAH, REDUCED),
}


def run(name: str, processes: int) -> None:
    algorithm, flags, _ = STUDIES[name]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / name
        episodes = "16" if "brax" in str(flags) else "128"  # these are 1000 steps long
        command = [
            sys.executable,
            str(ROOT / "algorithms" / f"{algorithm}.py"),
            *flags,
            "--seeds",
            "10",
            "--eval-episodes",
            episodes,
            "--processes",
            str(processes),
            "--out",
            str(work),
        ]
        subprocess.run(command, check=True)
        target = OUT / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in ("config.json", "metrics.csv", "summary.json", "curve.png"):
            shutil.copy(work / file, target / file)
        config = json.loads((target / "config.json").read_text())
        config["command"] = f"python algorithms/{algorithm}.py {' '.join(command[2:-2])}"
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_table() -> None:
    done = [name for name in STUDIES if (OUT / name / "summary.json").exists()]
    lines = [
        "# Baselines",
        "",
        "Claim: each algorithm solves the standard tasks at its defaults or the flags shown. Ten seeds, the last iterate "
        "(no choice of the best checkpoint), as many episodes of the greedy policy for each seed as the command says. IQM "
        "with its 95% stratified bootstrap interval.",
        "",
        "Made by `python scripts/baselines.py`. The steps are environment steps of each seed.",
        "",
        "| study | goal | IQM return | 95% interval | mean ± std | steps | steps/s, all seeds | seconds | command |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in done:
        summary = json.loads((OUT / name / "summary.json").read_text())
        config = json.loads((OUT / name / "config.json").read_text())
        score = summary["eval/return"][0]
        lines.append(
            f"| {name} | {STUDIES[name][2]} | {score['iqm']:.1f} | {score['low']:.1f} to {score['high']:.1f} | "
            f"{score['mean']:.1f} ± {score['std']:.1f} | {summary['steps']:,} | {summary['steps_per_second']:,.0f} | "
            f"{summary['train_seconds']:.0f} | `{config['command']}` |"
        )
    hardware = json.loads((OUT / done[-1] / "config.json").read_text())
    lines += [
        "",
        f"Hardware: {hardware['hardware']['cpu']}, {hardware['hardware']['cores']} cores, no accelerator; "
        f"jax {hardware['versions']['jax']}, Python {hardware['versions']['python']}. Speeds of TD3, SAC, PQN "
        "and HL-Gauss are of a machine with other work on it.",
        "",
    ]
    lines += [f"![{name}]({name}/curve.png)" for name in done]
    (OUT / "README.md").write_text("\n".join(lines) + "\n")
    fill_readme(done)
    report.plot_curves(
        [report.read_run(OUT / name) for name in ("ppo-cartpole", "dqn-cartpole") if name in done],
        OUT / "curves.png",
        title="CartPole-v1",
    )


def fill_readme(done: list[str]) -> None:
    """The table of algorithms in the project's README."""
    rows = [
        "| algorithm | environment | IQM return | steps of each seed | training, 10 seeds on 2 cores | command |",
        "|---|---|---|---|---|---|",
    ]
    for name in done:
        summary = json.loads((OUT / name / "summary.json").read_text())
        command = json.loads((OUT / name / "config.json").read_text())["command"]
        score, file = summary["eval/return"][0], summary["algorithm"]
        rows.append(
            f"| [{file}](algorithms/{file}.py) | {summary['env']} | {score['iqm']:.1f} "
            f"({score['low']:.1f} to {score['high']:.1f}) | {summary['steps']:,} | "
            f"{summary['train_seconds']:.0f} s | `{command}` |"
        )
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split("<!-- algorithms -->")
    after = rest.split("<!-- end -->", 1)[1]
    readme.write_text(before + "<!-- algorithms -->\n" + "\n".join(rows) + "\n<!-- end -->" + after)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    for study in arguments.only:
        if not (OUT / study / "summary.json").exists():
            run(study, arguments.processes)
    write_table()
