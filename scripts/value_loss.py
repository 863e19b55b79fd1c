"""The studies in results/value_loss: does classification train values better than regression does?

    python scripts/value_loss.py                      # all of them; what is done already is skipped
    python scripts/value_loss.py --only plasticity    # A6: 10 minutes on one core
    python scripts/value_loss.py --only breakout      # E1: 30 minutes; the other games: 40
    python scripts/value_loss.py --only sticky        # A4: 10 minutes, with breakout's arms
    python scripts/value_loss.py --only frozen        # A5: 20 minutes
    # A3: 30 minutes, on a data set that it records; sarsa (A7) likewise
    python scripts/value_loss.py --only noise

Each study tests a claim of Farebrother et al. 2024 (arXiv 2403.03950) at a reduced size. Its README
holds the claim, the commands, a table, and a verdict for every part of the claim.
"""

import csv
import functools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from programs import board as board_game
from programs import plasticity as phases
from programs.arms import (
    BREAKOUT,
    BREAKOUT_RATES,
    LOSSES,
    OFFLINE_DQN,
    PQN,
    RATES,
    SEEDS,
    SMALL,
    SOFT_MOE,
    Lab,
    Parts,
    Runs,
    final,
    gap,
    hardware,
    highest,
    members,
    online,
    results,
)
from programs.offline_data import data_file, record_data

from rlzoo import machine, report
from rlzoo.report import curves
from rlzoo.study import (
    ROOT,
    carry_out,
    claim,
    more,
    score,
    script,
    table,
    verdict_list,
    write_csv,
)

# ---- A6: plasticity ------------------------------------------------------------------------------


def plasticity(lab: Lab) -> Parts:
    folder = lab.study.folder / "plasticity"
    parts = measured(lab, folder / "errors.csv", phases.LOSSES, phases.fit_phases, phase_rows)
    shape = (SEEDS, 2, len(phases.SHIFTS))
    errors = {
        loss: np.array([float(row["error"]) for row in rows]).reshape(shape)
        for loss, rows in by_loss(folder / "errors.csv").items()
    }

    body = []
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = ("b = 0, 8, 16, 24, 32", "b = 0 (control)")
    for kind, (name, axes) in enumerate(zip(kinds, panels, strict=True)):
        for (loss, values), color in zip(errors.items(), curves.COLORS, strict=False):
            body.append([loss, name, *(score(column) for column in values[:, kind].T)])
            middle, low, high = report.iqm_curve(values[:, kind])
            axes.plot(range(1, 6), middle, color=color, label=loss)
            axes.fill_between(range(1, 6), low, high, color=color, alpha=0.18, lw=0)
        axes.set(title=name, xlabel="phase", yscale="log", xticks=range(1, 6))
    panels[0].set_ylabel("squared error on the training set")
    panels[0].legend()
    figure.savefig(folder / "curves.png", dpi=160)

    last = {loss: values[:, 0, -1] for loss, values in errors.items()}
    control = errors["mse"][:, 1, -1]
    claims = [
        claim(text, more, above, below)
        for text, above, below in (
            (
                "the squared error loses plasticity: its last error, shifted less control",
                last["mse"],
                control,
            ),
            (
                "HL-Gauss ends with less error: mse less hl_gauss, shifted",
                last["mse"],
                last["hl_gauss"],
            ),
            (
                "HL-Gauss is no worse than two-hot: two_hot less hl_gauss, shifted",
                last["two_hot"],
                last["hl_gauss"],
            ),
            (
                "it is the loss, not the softmax: mse_softmax less hl_gauss, shifted",
                last["mse_softmax"],
                last["hl_gauss"],
            ),
        )
    ]
    heads = ["loss", "b", *(f"phase {i + 1}" for i in range(len(phases.SHIFTS)))]
    return parts | {"table": table(heads, body), "verdicts": verdict_list(claims)}


def measured(
    lab: Lab, file: Path, losses: tuple[str, ...], measure: Callable, rows: Callable
) -> Parts:
    """Write `rows(loss, measure(loss, seeds))` of every loss to `file`, if it is not there.

    Returns the part of the README that names the machine; none if nothing was measured now.
    """
    if file.exists():
        return {}
    lab.study.commit()
    with ProcessPoolExecutor(lab.processes, get_context("spawn")) as pool:
        found = list(pool.map(measure, losses, [SEEDS] * len(losses)))
    write_csv(file, [row for loss, x in zip(losses, found, strict=True) for row in rows(loss, x)])
    return {"hardware": hardware(machine.describe())}


def phase_rows(loss: str, errors: np.ndarray) -> list[dict]:
    return [
        {"loss": loss, "shifted": not kind, "seed": seed, "phase": phase, "error": f"{error:.6g}"}
        for (seed, kind, phase), error in np.ndenumerate(errors)
    ]


def by_loss(file: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with file.open() as lines:
        for row in csv.DictReader(lines):
            found.setdefault(row["loss"], []).append(row)
    return found


# ---- E1 and A4: PQN on MinAtar -------------------------------------------------------------------


def one_game(lab: Lab, game: str, rates: tuple[str, ...] = RATES) -> Parts:
    name = game.removesuffix("-MinAtar").lower()
    runs: Runs = {}
    for loss in LOSSES:
        flags = online(game, loss)
        rate = lab.tuned(f"{name}/tune-{loss}", PQN, flags, rates)
        runs[loss,] = lab.arm(f"{name}/{loss}", PQN, f"{flags} {final(rate)}")
    found = {loss: members(run) for (loss,), run in runs.items()}
    pairs = [("hl_gauss", "mse"), ("hl_gauss", "two_hot"), ("hl_gauss", "c51")]
    pairs += [("c51", "mse"), ("mse", "two_hot")]
    texts = [f"{a.replace('hl_gauss', 'HL-Gauss')} beats {b}" for a, b in pairs]
    pairs += [("hl_gauss", "mse_softmax"), ("mse", "mse_softmax")]
    texts += ["A1, it is the loss and not the softmax: HL-Gauss beats mse_softmax"]
    texts += ["A1, the softmax alone gains nothing: mse beats mse_softmax"]
    claims = [
        claim(text, more, found[a], found[b]) for text, (a, b) in zip(texts, pairs, strict=True)
    ]
    lab.draw(f"{name}/curves.png", runs.values(), game)
    return results(runs, ["loss"], claims) | {"highest": highest(runs, rates)}


def sticky(lab: Lab) -> Parts:
    runs: Runs = {}
    for loss in ("mse", "hl_gauss", "c51"):
        runs[loss, "deterministic"] = lab.breakout(loss)
        flags = f"{online(f'{BREAKOUT}?sticky=0.25', loss)} {final(lab.tuned_on_breakout(loss))}"
        runs[loss, "sticky"] = lab.arm(f"sticky/{loss}", PQN, flags)
    found = {key: members(run) for key, run in runs.items()}

    def pair(other: str, actions: str) -> tuple[np.ndarray, np.ndarray]:
        return found["hl_gauss", actions], found[other, actions]

    claims = [
        claim("with sticky actions HL-Gauss beats mse", more, *pair("mse", "sticky")),
        claim(
            "and gains more over mse, as a share of it, than without",
            gap,
            *pair("mse", "sticky"),
            *pair("mse", "deterministic"),
        ),
        claim("with sticky actions HL-Gauss beats c51", more, *pair("c51", "sticky")),
        claim("without them HL-Gauss beats c51", more, *pair("c51", "deterministic")),
    ]
    lab.draw("sticky/curves.png", runs.values(), f"{BREAKOUT} with and without sticky actions")
    return results(runs, ["loss", "actions"], claims)


# ---- A3, A7 and E2: offline ----------------------------------------------------------------------

OFFLINE = (
    "--env Breakout-MinAtar --batch-size 32 --channels 8 --hidden 64 --target-every 500 "
    "--cql-alpha 0.1 --v-min -1 --eval-every 5_000 --eval-episodes 64"
)
UPDATES = 20_000
LONG = 80_000
BIN = 0.4
NOISES = ("0", "0.3", "1", "centred-1")
OFFLINE_RATES = ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3")


def offline(loss: str, target: str = "q_learning", eta: str = "0", updates: int = UPDATES) -> str:
    """Flags without the data set and the learning rate.

    Noise shifts values by eta / 2 / (1 - gamma) = 50 eta. The range of the bins holds that too, in
    bins of the same width.
    """
    high = 19 + (0.0 if eta.startswith("centred") else BIN * round(51 * float(eta) / BIN))
    bins = 1 + round((high + 1) / BIN)
    learning = f"--loss {loss} --target {target} --total-steps {updates}"
    return f"{OFFLINE} {learning} --v-max {high:g} --num-bins {bins}"


def offline_arm(lab: Lab, name: str, loss: str, flags: str, eta: str = "0") -> report.Run:
    """With the learning rate that was the best for this loss by Q-learning and without noise."""

    def given(eta: str) -> str:
        return f"--dataset {data_file(eta).relative_to(ROOT)}"

    tune = f"offline/tune-{loss}"
    for arm, kind in ((tune, "0"), (f"offline/{name}", eta)):
        if not lab.study.done(arm):
            lab.study.commit()
            record_data(kind)
    rate = lab.tuned(tune, OFFLINE_DQN, f"{offline(loss)} {given('0')}", OFFLINE_RATES)
    return lab.arm(f"offline/{name}", OFFLINE_DQN, f"{flags} {given(eta)} {final(rate)}")


def noise(lab: Lab) -> Parts:
    runs: Runs = {
        (loss, eta): offline_arm(lab, f"{loss}-noise-{eta}", loss, offline(loss, eta=eta), eta)
        for loss in ("mse", "hl_gauss")
        for eta in NOISES
    }
    found = {key: members(run) for key, run in runs.items()}
    claims = [
        claim(
            f"with noise of {eta} HL-Gauss beats mse",
            more,
            found["hl_gauss", eta],
            found["mse", eta],
        )
        for eta in NOISES[1:]
    ]
    claims += [
        claim(
            f"it degrades less: its return with noise of {eta}, as a share of that without, "
            "less mse's",
            gap,
            found["hl_gauss", eta],
            found["hl_gauss", "0"],
            found["mse", eta],
            found["mse", "0"],
        )
        for eta in NOISES[1:]
    ]
    lab.draw("noise/curves.png", runs.values(), f"{BREAKOUT}, offline, with noisy rewards")
    return results(runs, ["loss", "eta"], claims)


def sarsa(lab: Lab) -> Parts:
    # Q-learning's arms are those of `noise` without any.
    names = {"q_learning": "noise-0", "sarsa": "sarsa"}
    runs: Runs = {
        (loss, target): offline_arm(lab, f"{loss}-{name}", loss, offline(loss, target))
        for loss in ("mse", "two_hot", "hl_gauss")
        for target, name in names.items()
    }
    found = {key: members(run) for key, run in runs.items()}

    def pair(target: str, other: str = "mse") -> tuple[np.ndarray, np.ndarray]:
        return found["hl_gauss", target], found[other, target]

    claims = [
        claim("by Q-learning HL-Gauss beats mse", more, *pair("q_learning")),
        claim("by Q-learning HL-Gauss beats two-hot", more, *pair("q_learning", "two_hot")),
        claim(
            "and gains more over mse, as a share of it, than by SARSA",
            gap,
            *pair("q_learning"),
            *pair("sarsa"),
        ),
    ]
    lab.draw("sarsa/curves.png", runs.values(), f"{BREAKOUT}, offline")
    return results(runs, ["loss", "target"], claims)


def long(lab: Lab) -> Parts:
    runs: Runs = {
        (loss,): offline_arm(lab, f"{loss}-long", loss, offline(loss, updates=LONG))
        for loss in ("mse", "hl_gauss")
    }
    late = {loss: members(run) for (loss,), run in runs.items()}
    early = {
        loss: run.metrics["eval/return"][run.metrics["step"] == UPDATES]
        for (loss,), run in runs.items()
    }
    claims = [
        claim(
            f"mse declines: after {UPDATES:,} updates less after {LONG:,}",
            more,
            early["mse"],
            late["mse"],
        ),
        claim(
            f"HL-Gauss does not: after {LONG:,} updates less after {UPDATES:,}",
            more,
            late["hl_gauss"],
            early["hl_gauss"],
        ),
        claim("HL-Gauss ends higher than mse", more, late["hl_gauss"], late["mse"]),
    ]
    lab.draw("long/curves.png", runs.values(), f"{BREAKOUT}, offline, long")
    return results(runs, ["loss"], claims)


# ---- A2 and E3: smaller networks -----------------------------------------------------------------

SIGMAS = ("0.25", "0.75", "2")
BINS = ("21", "51", "101")
WIDTHS = {"1": SMALL, "2": "--hidden 64 --channels 8"}


def smoothing(lab: Lab) -> Parts:
    flags = online(BREAKOUT, "hl_gauss", SMALL)
    rate = lab.tuned("smoothing/tune", PQN, flags)
    sweep = f"--sweep sigma_ratio={','.join(SIGMAS)}"
    runs: Runs = {
        (bins,): lab.arm(
            f"smoothing/bins-{bins}", PQN, f"{flags} {final(rate, 5)} --num-bins {bins} {sweep}"
        )
        for bins in BINS
    }
    two_hot = f"{online(BREAKOUT, 'two_hot', SMALL)} {final(rate, 5)}"
    hot = lab.arm("smoothing/two_hot", PQN, two_hot)
    found = {
        (bins, sigma): members(run, sigma_ratio=float(sigma))
        for (bins,), run in runs.items()
        for sigma in SIGMAS
    }
    body = [
        [bins, *(score(found[bins, sigma]) for sigma in SIGMAS), f"`{run.config['command']}`"]
        for (bins,), run in runs.items()
    ]
    body += [["51, two-hot", score(members(hot)), "", "", f"`{hot.config['command']}`"]]
    claims = [
        claim(
            f"51 bins: sigma = {sigma} bins beats two-hot", more, found["51", sigma], members(hot)
        )
        for sigma in SIGMAS
    ]
    claims += [
        claim(
            f"{bins} bins: sigma = 0.75 bins beats 0.25",
            more,
            found[bins, "0.75"],
            found[bins, "0.25"],
        )
        for bins in BINS
    ]
    lab.draw("smoothing/curves.png", runs.values(), f"HL-Gauss on {BREAKOUT}: bins and sigma")
    return {
        "table": table(["bins", *(f"sigma = {s} bins" for s in SIGMAS), "command"], body),
        "verdicts": verdict_list(claims),
        "hardware": hardware(hot.config["hardware"]),
    }


def width(lab: Lab) -> Parts:
    runs: Runs = {}
    for loss in ("mse", "hl_gauss"):
        for times, network in WIDTHS.items():
            flags = online(BREAKOUT, loss, network)
            rate = lab.tuned(f"width/tune-{loss}-{times}", PQN, flags)
            runs[loss, times] = lab.arm(f"width/{loss}-{times}", PQN, f"{flags} {final(rate)}")
        runs[loss, "4"] = lab.breakout(loss)  # its network is four times as wide as SMALL
    found = {key: members(run) for key, run in runs.items()}
    claims = [
        claim(
            f"at width {times} HL-Gauss beats mse",
            more,
            found["hl_gauss", times],
            found["mse", times],
        )
        for times in (*WIDTHS, "4")
    ]
    claims += [
        claim(
            "the gain over mse, as a share of it, is larger at width 4 than at 1",
            gap,
            found["hl_gauss", "4"],
            found["mse", "4"],
            found["hl_gauss", "1"],
            found["mse", "1"],
        )
    ]
    lab.draw("width/curves.png", runs.values(), f"{BREAKOUT}, by width")
    return results(runs, ["loss", "width"], claims)


EXPERTS = ("1", "2", "4", "8")
MIXTURE = (
    "--env Breakout-MinAtar --total-steps 50_000 --num-envs 4 --hidden 128 --buffer-size 50_000 "
    "--batch-size 32 --learning-starts 4_000 --target-every 1_000 --v-min -1 --v-max 19 "
    "--eval-every 25_000 --eval-episodes 64"
)


def experts(lab: Lab) -> Parts:
    runs: Runs = {}
    for loss in ("mse", "hl_gauss"):
        flags = f"{MIXTURE} --loss {loss} --experts"
        rate = lab.tuned(f"experts/tune-{loss}", SOFT_MOE, f"{flags} 1")
        for count in EXPERTS:
            runs[loss, count] = lab.arm(
                f"experts/{loss}-{count}", SOFT_MOE, f"{flags} {count} {final(rate)}"
            )
    ours = {count: members(runs["hl_gauss", count]) for count in EXPERTS}
    mse = {count: members(runs["mse", count]) for count in EXPERTS}
    several = EXPERTS[1:]
    claims = [claim(f"experts: {n}, HL-Gauss beats mse", more, ours[n], mse[n]) for n in EXPERTS]
    claims += [
        claim(f"HL-Gauss with 1 expert beats mse with {n}", more, ours["1"], mse[n])
        for n in several
    ]
    claims += [
        claim(f"HL-Gauss gains by {n} experts over 1", more, ours[n], ours["1"]) for n in several
    ]
    claims += [claim(f"mse does not: 1 expert less {n}", more, mse["1"], mse[n]) for n in several]
    lab.draw("experts/curves.png", runs.values(), f"{BREAKOUT}, by experts of a SoftMoE")
    return results(runs, ["loss", "experts"], claims) | {"highest": highest(runs)}


# ---- A5: frozen features -------------------------------------------------------------------------

PROBED = ("untrained", "mse", "two_hot", "hl_gauss", "c51")


def frozen(lab: Lab) -> Parts:
    runs: Runs = {}
    for name in PROBED:
        rate = lab.tuned_on_breakout("mse" if name == "untrained" else name)
        flags = f"--loss {name} {final(rate)} --eval-every 20_000 --eval-episodes 64"
        runs[name,] = lab.arm(f"frozen/{name}", "scripts/programs/frozen.py", flags)
    found = {name: members(run) for (name,), run in runs.items()}
    claims = [
        claim(
            f"HL-Gauss's features are worth more than {other}'s",
            more,
            found["hl_gauss"],
            found[other],
        )
        for other in ("mse", "two_hot", "c51", "untrained")
    ]
    claims += [
        claim(
            "mse's features are worth more than untrained ones",
            more,
            found["mse"],
            found["untrained"],
        )
    ]
    lab.draw("frozen/curves.png", runs.values(), f"{BREAKOUT}: a new head after half the steps")
    return results(runs, ["features of"], claims)


# ---- E7: a small board game ----------------------------------------------------------------------


def board(lab: Lab) -> Parts:
    folder = lab.study.folder / "board"
    file = folder / "scores.csv"
    parts = measured(lab, file, board_game.LOSSES, board_game.distill, move_rows)
    found = by_loss(file)
    best = {loss: np.array([float(r["best moves"]) for r in rows]) for loss, rows in found.items()}
    lost = {
        loss: np.array([float(r["loss of value"]) for r in rows]) for loss, rows in found.items()
    }
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(list(best.values()), tick_labels=list(best))
    axes.set_ylabel("share of held-out positions\nwhere the best move is chosen")
    figure.savefig(folder / "curves.png", dpi=160)
    claims = [
        claim(
            f"HL-Gauss chooses the best move more often than {other}",
            more,
            best["hl_gauss"],
            best[other],
        )
        for other in ("one_hot", "mse", "two_hot")
    ]
    body = [[loss, score(best[loss]), score(lost[loss])] for loss in found]
    return parts | {
        "table": table(["loss", "best moves", "loss of value by the move"], body),
        "verdicts": verdict_list(claims),
    }


def move_rows(loss: str, scores: np.ndarray) -> list[dict]:
    return [
        {"loss": loss, "seed": seed, "best moves": f"{best:.6g}", "loss of value": f"{lost:.6g}"}
        for seed, (best, lost) in enumerate(scores)
    ]


# ---- all of them ---------------------------------------------------------------------------------

STUDIES: dict[str, Callable[[Lab], Parts]] = {
    "plasticity": plasticity,
    "breakout": functools.partial(one_game, game=BREAKOUT, rates=BREAKOUT_RATES),
    "spaceinvaders": functools.partial(one_game, game="SpaceInvaders-MinAtar"),
    "asterix": functools.partial(one_game, game="Asterix-MinAtar"),
    "freeway": functools.partial(one_game, game="Freeway-MinAtar"),
    "seaquest": functools.partial(one_game, game="Seaquest-MinAtar"),
    "sticky": sticky,
    "noise": noise,
    "sarsa": sarsa,
    "long": long,
    "smoothing": smoothing,
    "width": width,
    "experts": experts,
    "frozen": frozen,
    "board": board,
}


if __name__ == "__main__":
    script(lambda: carry_out(__doc__, Lab, "value_loss", STUDIES))
