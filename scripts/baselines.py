"""The studies in results/baselines: every algorithm on the environments it should solve, 10 seeds,
last iterate.

    python scripts/baselines.py            # all of them; what is done already is skipped
    python scripts/baselines.py --only ppo-cartpole

Each is one command line, kept in its config.json. This script runs it, keeps its record in
results/baselines/<name>/ and writes the tables (there, and in the project's README) and the curves.
Seconds and steps/s are of the machine that the page names, and only as good as it was idle.
"""

from typing import NamedTuple

from rlzoo import report
from rlzoo.cli import flags
from rlzoo.study import ROOT, Study, fill, parser, script, table

CARTPOLE = "--env CartPole-v1 --total-steps 500_000"
MINATAR = "--num-envs 64 --num-minibatches 8 --learning-rate 5e-3"
SMALL = "--learning-starts 1_000 --hidden 64 64 --batch-size 128 --learning-rate 1e-3"
PENDULUM = f"--env Pendulum-v1 --total-steps 20_000 {SMALL}"
MOUNTAIN = f"--env MountainCarContinuous-v0 --total-steps 20_000 {SMALL}"
BRAX = (
    "--total-steps 50_000 --num-envs 4 --updates-per-step 2 --hidden 128 128 --batch-size 128 "
    "--learning-starts 2_000 --learning-rate 3e-4 --eval-every 10_000"
)
HOPPER = f"--env brax/hopper:spring {BRAX}"
CHEETAH = f"--env brax/halfcheetah:spring {BRAX}"
REDUCED = "reported: a twentieth of the usual steps, half the usual updates, smaller networks"
EXPLORE = "reported: exploration is the task (a car that never leaves scores 0)"


class Baseline(NamedTuple):
    algorithm: str
    flags: str
    goal: str


BASELINES = {
    "ppo-cartpole": Baseline("ppo", f"{CARTPOLE} --learning-rate 1e-3", "IQM >= 490"),
    "ppo-cartpole-slow": Baseline(
        "ppo", f"{CARTPOLE} --learning-rate 2.5e-4", "a lower learning rate, for comparison"
    ),
    "dqn-cartpole": Baseline("dqn", CARTPOLE, "IQM >= 490"),
    "ppo-pendulum": Baseline(
        "ppo",
        "--env Pendulum-v1 --total-steps 300_000 --num-steps 1024 --num-minibatches 64 "
        "--num-epochs 10 --discount 0.9 --learning-rate 1e-3 --entropy-coef 0",
        "IQM >= -200",
    ),
    "ppo-breakout": Baseline(
        "ppo",
        f"--env Breakout-MinAtar --total-steps 3_000_000 {MINATAR}",
        "at 1e7 steps, gymnax's published checkpoint: 28",
    ),
    "ppo-spaceinvaders": Baseline(
        "ppo",
        f"--env SpaceInvaders-MinAtar --total-steps 1_000_000 {MINATAR}",
        "at 1e7 steps, gymnax's published checkpoint: 131",
    ),
    "pqn-cartpole": Baseline("pqn", CARTPOLE, "IQM >= 490"),
    "pqn-breakout": Baseline(
        "pqn",
        "--env Breakout-MinAtar --total-steps 10_000_000 --num-envs 128 --num-steps 32 "
        "--num-minibatches 32 --num-epochs 2 --td-lambda 0.65 --epsilon-end 0.05 "
        "--epsilon-fraction 0.1 --hidden 128 --v-min -1 --v-max 19 --eval-every 2_000_000",
        "published: 70 for PQN at ten times the steps (SCORER's paper), 28 for gymnax's PPO at as "
        "many",
    ),
    "hl_gauss-cartpole": Baseline(
        "hl_gauss", f"{CARTPOLE} --learning-rate 1e-3 --eval-every 100_000", "IQM >= 490"
    ),
    "td3-pendulum": Baseline("td3", PENDULUM, "IQM >= -200"),
    "sac-pendulum": Baseline("sac", PENDULUM, "IQM >= -200"),
    "sac_discrete-cartpole": Baseline("sac_discrete", "--env CartPole-v1", "IQM >= 475"),
    "td3-mountaincar": Baseline("td3", MOUNTAIN, EXPLORE),
    "sac-mountaincar": Baseline("sac", MOUNTAIN, EXPLORE),
    "td3-hopper": Baseline("td3", HOPPER, REDUCED),
    "sac-hopper": Baseline("sac", HOPPER, REDUCED),
    "td3-halfcheetah": Baseline("td3", CHEETAH, REDUCED),
    "sac-halfcheetah": Baseline("sac", CHEETAH, REDUCED),
}
HEADS = [
    "study",
    "goal",
    "IQM return",
    "95% interval",
    "mean ± std",
    "steps",
    "steps/s, all seeds",
    "seconds",
    "command",
]
SHORT_HEADS = [
    "kind",
    "algorithm",
    "environment",
    "IQM return",
    "steps of each seed",
    "training, 10 seeds on 2 cores",
    "command",
]


def make(study: Study, name: str, processes: int) -> None:
    algorithm, flags, _ = BASELINES[name]
    episodes = 16 if "brax" in flags else 128  # these are 1000 steps long
    more = f"--seeds 10 --eval-episodes {episodes} --processes {processes}"
    study.once(name, f"algorithms/{algorithm}.py {flags} {more}")


def row(name: str, run: report.Run) -> list[str]:
    """Of the table in results/baselines."""
    found = run.summary["eval/return"][0]
    return [
        name,
        BASELINES[name].goal,
        f"{found['iqm']:.1f}",
        f"{found['low']:.1f} to {found['high']:.1f}",
        f"{found['mean']:.1f} ± {found['std']:.1f}",
        f"{run.summary['steps']:,}",
        f"{run.summary['steps_per_second']:,.0f}",
        f"{run.summary['train_seconds']:.0f}",
        f"`{run.config['command']}`",
    ]


def kind_of(algorithm: str) -> str:
    """What the docstring of its file says under `Kind:`."""
    return ", ".join(flags.read(flags.find(algorithm)).kind)


def short_row(name: str, run: report.Run) -> list[str]:
    """Of the table in the project's README; its command is one of today's flags."""
    algorithm, given, _ = BASELINES[name]
    found = run.summary["eval/return"][0]
    return [
        kind_of(algorithm),
        f"[{algorithm}](algorithms/{algorithm}.py)",
        run.summary["env"],
        f"{found['iqm']:.1f} ({found['low']:.1f} to {found['high']:.1f})",
        f"{run.summary['steps']:,}",
        f"{run.summary['train_seconds']:.0f} s",
        f"`python algorithms/{algorithm}.py {given} --seeds 10`",
    ]


def main() -> None:
    asked = parser(__doc__, BASELINES).parse_args()
    study = Study("baselines", asked.dirty)
    for name in asked.only:
        make(study, name, asked.processes)
    runs = {name: report.read_run(study.folder / name) for name in BASELINES if study.done(name)}
    last = list(runs.values())[-1].config
    fill(
        study.folder / "README.md",
        table=table(HEADS, [row(name, run) for name, run in runs.items()]),
        hardware=f"{last['hardware']['cpu']}, {last['hardware']['cores']} cores",
        versions=f"jax {last['versions']['jax']}, Python {last['versions']['python']}",
        curves="\n".join(f"![{name}]({name}/curve.png)" for name in runs),
    )
    rows = sorted((short_row(name, run) for name, run in runs.items()), key=lambda row: row[:2])
    fill(ROOT / "README.md", algorithms=table(SHORT_HEADS, rows))
    cartpole = [runs[name] for name in ("ppo-cartpole", "dqn-cartpole") if name in runs]
    report.plot_curves(cartpole, study.folder / "curves.png", title="CartPole-v1")


if __name__ == "__main__":
    script(main)
