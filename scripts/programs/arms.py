"""Arms of the studies in results/value_loss, one command line each, and what is made of them."""

import numpy as np

from rlzoo import report, study
from rlzoo.study import Claim, score, table, verdict_list

SEEDS = 10
Runs = dict[tuple[str, ...], report.Run]
Parts = dict[str, str]

PQN = "algorithms/pqn.py"
SOFT_MOE = "scripts/programs/scaled_hl_gauss.py"
OFFLINE_DQN = "algorithms/offline_dqn.py"
LOSSES = ("mse", "mse_softmax", "two_hot", "hl_gauss", "c51")
RATES = ("2.5e-4", "5e-4", "1e-3", "2e-3", "4e-3")
# Of the first study, whose best ones taught to shift the others.
BREAKOUT_RATES = ("1.25e-4", "2.5e-4", "5e-4", "1e-3", "2e-3")
ONLINE = (
    "--total-steps 100_000 --num-envs 32 --num-steps 8 --num-minibatches 4 --num-epochs 2 "
    "--td-lambda 0.65 --epsilon-end 0.05 --epsilon-fraction 0.2 --v-min -1 --v-max 19 "
    "--eval-every 20_000 --eval-episodes 64"
)
STANDARD = "--hidden 128"
SMALL = "--hidden 32 --channels 4"
BREAKOUT = "Breakout-MinAtar"


class Lab(study.Lab):
    """Where the arms of all studies are run, tuned and kept."""

    def tuned(self, name: str, program: str, flags: str, rates: tuple[str, ...] = RATES) -> str:
        """The learning rate with the highest mean over seeds that are used for nothing else.

        There are as many members as an arm has, so that both are one compiled program.
        """
        seeds = f"--seed 1000 --seeds {SEEDS // len(rates)}"
        run = self.arm(name, program, f"{flags} {seeds} --sweep learning_rate={','.join(rates)}")
        entries = run.summary["eval/return"]
        best = max(entries, key=lambda entry: entry["mean"] or 0.0)["learning_rate"]
        return next(rate for rate in rates if np.isclose(float(rate), best))

    def tuned_on_breakout(self, loss: str) -> str:
        flags = online(BREAKOUT, loss)
        return self.tuned(f"breakout/tune-{loss}", PQN, flags, BREAKOUT_RATES)

    def breakout(self, loss: str) -> report.Run:
        """The arm of the study `breakout`, which others share."""
        flags = f"{online(BREAKOUT, loss)} {final(self.tuned_on_breakout(loss))}"
        return self.arm(f"breakout/{loss}", PQN, flags)


def online(game: str, loss: str, network: str = STANDARD) -> str:
    return f"--env {game} --loss {loss} {ONLINE} {network}"


def final(rate: str, seeds: int = SEEDS) -> str:
    return f"--learning-rate {rate} --seeds {seeds}"


def members(run: report.Run, **swept: float) -> np.ndarray:
    """The last evaluation of every seed of a setting, [seeds].

    A diverged one counts as 0, the worst return of these games.
    """
    found = study.members(run, **swept)
    return np.array([0.0 if m["diverged"] else m["eval/return"] for m in found])


def gap(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """By how much a / b is more than c / d."""
    return share(a, b) - share(c, d)


def share(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return report.iqm(a, axis=-1) / np.maximum(report.iqm(b, axis=-1), 1e-9)


def results(runs: Runs, heads: list[str], claims: list[Claim]) -> Parts:
    """The parts of a README: one row an arm, the verdicts, and the machine of the last arm."""
    about = ["learning rate", "IQM return", "mean ± std", "targets outside the range", "command"]
    rows = []
    for names, run in runs.items():
        found = members(run)
        rows.append(
            [
                *names,
                f"{run.config['config']['learning_rate']:.3g}",
                score(found),
                f"{found.mean():.3g} ± {found.std(ddof=1):.2g}",
                f"{np.nanmean(targets_outside(run)):.1%}",
                f"`{run.config['command']}`",
            ]
        )
    return {
        "table": table([*heads, *about], rows),
        "verdicts": verdict_list(claims),
        "hardware": hardware(run.config["hardware"]),
    }


def targets_outside(run: report.Run) -> np.ndarray:
    """The shares of targets outside the range of the bins, under their name in this record."""
    old = "clipped"
    return run.metrics[old if old in run.metrics else "train/targets_outside"]


def hardware(found: dict) -> str:
    return f"{found['cpu']}, cores used: {found['cores']}, {found['backend']}"


def highest(runs: Runs, rates: tuple[str, ...] = RATES) -> str:
    """The losses whose best rate is the highest that was tried."""
    top = float(rates[-1])
    found = [
        loss
        for (loss, *_), run in runs.items()
        if np.isclose(run.config["config"]["learning_rate"], top)
    ]
    return ", ".join(dict.fromkeys(found)) or "none"
