"""The studies in results/value_loss: does classification train values better than regression does?

    python scripts/value_loss.py                      # all of them; what is done already is skipped
    python scripts/value_loss.py --only plasticity    # A6: 10 minutes on one core
    python scripts/value_loss.py --only breakout      # E1: 30 minutes; the other games: 40
    python scripts/value_loss.py --only sticky        # A4: 10 minutes, with breakout's arms
    python scripts/value_loss.py --only frozen        # A5: 20 minutes
    # A3: 30 minutes, on a data set that it records; sarsa (A7) likewise
    python scripts/value_loss.py --only noise

Each study tests a claim of Farebrother et al. 2024 (arXiv 2403.03950) at a reduced size, with ten
seeds. Its README holds the claim, the commands, a table, and for every part of the claim a verdict:
reproduced or not reproduced where the 95% bootstrap interval over seeds lies on one side of zero,
else undecided at this budget.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from rlzoo import machine, report

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "value_loss"
SEEDS = 10

# ---- statistics ----------------------------------------------------------------------------------


def interval(statistic: Callable, *groups: np.ndarray) -> tuple[float, float, float]:
    """`statistic(*groups)` and its 95% percentile-bootstrap interval; seeds are resampled within
    each group [seeds]."""
    rng = np.random.default_rng(0)
    picks = [group[rng.integers(len(group), size=(2000, len(group)))] for group in groups]
    low, high = np.percentile(statistic(*picks), [2.5, 97.5])
    return float(statistic(*groups)), float(low), float(high)


def more(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return report.iqm(a, axis=-1) - report.iqm(b, axis=-1)


def gap(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """By how much a / b is more than c / d."""
    ratio = lambda x, y: report.iqm(x, axis=-1) / np.maximum(report.iqm(y, axis=-1), 1e-9)
    return ratio(a, b) - ratio(c, d)


def verdict(claim: str, statistic: Callable, *groups: np.ndarray) -> str:
    """One line of a README: the claim is that the statistic is positive."""
    value, low, high = interval(statistic, *groups)
    word = "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided at this budget"
    return f"- {claim}: {value:+.3g} ({low:+.3g} to {high:+.3g}): **{word}**"


def write_readme(
    folder: Path, title: str, claim: str, made: str, table: list[list[str]], verdicts: list[str]
) -> None:
    hardware = machine.describe()
    rows = ["| " + " | ".join(row) + " |" for row in table]
    text = [
        f"# {title}",
        "",
        claim,
        "",
        made,
        "",
        rows[0],
        "|---" * len(table[0]) + "|",
        *rows[1:],
        "",
        "Verdicts (difference of IQMs with its 95% bootstrap interval):",
        "",
        *verdicts,
        "",
        f"Hardware: {hardware['cpu']}, cores used: {hardware['cores']}, {hardware['backend']}.",
        "",
        "![curves](curves.png)",
    ]
    (folder / "README.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def number(scores: np.ndarray) -> str:
    """IQM with its interval."""
    low, high = report.bootstrap_ci(scores)
    return f"{report.iqm(scores):.3g} ({low:.3g} to {high:.3g})"


# ---- A6: plasticity ------------------------------------------------------------------------------

SIZE, INPUTS, HIDDEN, BATCH, STEPS = 8192, 64, (128, 128), 256, 1200
SHIFTS = (0.0, 8.0, 16.0, 24.0, 32.0)
PLASTICITY_LOSSES = ("mse", "hl_gauss", "two_hot", "mse_softmax")


def fit_phases(loss: str, seeds: int) -> np.ndarray:
    """Train-set squared errors [seeds, 2, phases] after fitting sin(1e5 f(x)) + b for one random
    network f after the other, with b shifting and without. Parameters and Adam's state are kept
    from phase to phase."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.flatten_util import ravel_pytree
    from rlzoo.algorithms import hl_gauss

    config = hl_gauss.Config(loss=loss, bins=101, v_min=-40.0, v_max=40.0)
    net = hl_gauss.Network(
        HIDDEN, 1 if loss == "mse" else config.bins, 0, 0, None, jax.nn.initializers.zeros
    )
    random_net = hl_gauss.Network(HIDDEN, 1, 0, 0, None, jax.nn.initializers.zeros)
    optimizer = optax.scale_by_adam()

    def output(params, x):
        out = net.apply(params, x)
        return out[..., 0] if loss == "mse" else out

    def run(key, shift):
        x_key, net_key, *phase_keys = jax.random.split(key, 2 + len(SHIFTS))
        x = jax.random.normal(x_key, (SIZE, INPUTS))
        start, unravel = ravel_pytree(net.init(net_key, x[0]))

        def objective(params, x, y):
            out = output(unravel(params), x)
            if loss in ("mse", "mse_softmax"):
                return ((hl_gauss.decode(out, config) - y) ** 2).mean()
            return hl_gauss.kl(hl_gauss.encode(y, config), out).mean()

        def phase(carry, task):
            f_key, batch_key = jax.random.split(task[0])
            y = jnp.sin(1e5 * random_net.apply(random_net.init(f_key, x[0]), x)[:, 0]) + task[1]

            def update(carry, key):
                rows = jax.random.randint(key, (BATCH,), 0, SIZE)
                direction, opt_state = optimizer.update(
                    jax.grad(objective)(carry[0], x[rows], y[rows]), carry[1]
                )
                return (carry[0] - 1e-3 * direction, opt_state), None

            carry, _ = jax.lax.scan(update, carry, jax.random.split(batch_key, STEPS))
            return carry, ((hl_gauss.decode(output(unravel(carry[0]), x), config) - y) ** 2).mean()

        return jax.lax.scan(phase, (start, optimizer.init(start)), (jnp.stack(phase_keys), shift))[
            1
        ]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    shifts = jnp.stack([jnp.array(SHIFTS), jnp.zeros(len(SHIFTS))])
    both = jax.vmap(run, (None, 0))
    return np.asarray(
        jax.jit(lambda: jax.lax.map(lambda key: both(key, shifts), keys))()
    )  # one seed fits the cache


def plasticity(folder: Path, processes: int) -> None:
    from matplotlib.figure import Figure

    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        found = list(pool.map(fit_phases, PLASTICITY_LOSSES, [SEEDS] * len(PLASTICITY_LOSSES)))
    errors = dict(zip(PLASTICITY_LOSSES, found, strict=True))
    with (folder / "errors.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["loss", "shifted", "seed", "phase", "error"])
        writer.writerows(
            (loss, not kind, seed, phase, f"{error:.6g}")
            for loss, values in errors.items()
            for (seed, kind, phase), error in np.ndenumerate(values)
        )

    table = [["loss", "b", *(f"phase {i + 1}" for i in range(len(SHIFTS)))]]
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = ("b = 0, 8, 16, 24, 32", "b = 0 (control)")
    for kind, (name, axes) in enumerate(zip(kinds, panels, strict=True)):
        for (loss, values), colour in zip(errors.items(), report.COLOURS, strict=False):
            table.append([loss, name, *(number(column) for column in values[:, kind].T)])
            middle, low, high = report.iqm_curve(values[:, kind])
            axes.plot(range(1, 6), middle, color=colour, label=loss)
            axes.fill_between(range(1, 6), low, high, color=colour, alpha=0.18, lw=0)
        axes.set(title=name, xlabel="phase", yscale="log", xticks=range(1, 6))
    panels[0].set_ylabel("squared error on the training set")
    panels[0].legend()
    figure.savefig(folder / "curves.png", dpi=160)

    last = {loss: values[:, 0, -1] for loss, values in errors.items()}
    verdicts = [
        verdict(
            "the squared error loses plasticity: its last error, shifted less control",
            more,
            last["mse"],
            errors["mse"][:, 1, -1],
        ),
        verdict(
            "HL-Gauss ends with less error: mse less hl_gauss, shifted",
            more,
            last["mse"],
            last["hl_gauss"],
        ),
        verdict(
            "HL-Gauss is no worse than two-hot: two_hot less hl_gauss, shifted",
            more,
            last["two_hot"],
            last["hl_gauss"],
        ),
        verdict(
            "it is the loss, not the softmax: mse_softmax less hl_gauss, shifted",
            more,
            last["mse_softmax"],
            last["hl_gauss"],
        ),
    ]
    write_readme(
        folder,
        "A6: plasticity",
        "Claim (figure 17): when the targets of a regression are drawn anew and grow in magnitude, a network trained "
        "by the squared error fits them worse and worse, one trained by cross-entropy does not.",
        f"Targets sin(1e5 f(x)) + b of {SIZE} Gaussian inputs, f a new random network in each of five phases; MLP "
        f"{HIDDEN}, Adam 1e-3, {STEPS} steps of {BATCH} a phase, {SEEDS} seeds; 101 bins on [-40, 40], where the paper "
        "has CIFAR-10 images and 5000 steps. Squared error on the training set at the end of each phase, IQM with its "
        "95% interval; the targets' variance is 0.5. Made by `python scripts/value_loss.py --only plasticity`.",
        table,
        verdicts,
    )


# ---- arms: one command line each -----------------------------------------------------------------

PQN_FILE, DQN_FILE, OFFLINE_FILE = (
    "algorithms/pqn.py",
    "algorithms/hl_gauss.py",
    "algorithms/offline_dqn.py",
)
LOSSES = ("mse", "mse_softmax", "two_hot", "hl_gauss", "c51")
RATES = ("2.5e-4", "5e-4", "1e-3", "2e-3", "4e-3")
BREAKOUT_RATES = (
    "1.25e-4",
    "2.5e-4",
    "5e-4",
    "1e-3",
    "2e-3",
)  # the first study; its best ones taught to shift the others
ONLINE = [
    "--total-steps",
    "100_000",
    "--num-envs",
    "32",
    "--num-steps",
    "8",
    "--minibatches",
    "4",
    "--epochs",
    "2",
    "--td-lambda",
    "0.65",
    "--epsilon-end",
    "0.05",
    "--epsilon-fraction",
    "0.2",
    "--v-min",
    "-1",
    "--v-max",
    "19",
    "--eval-every",
    "20_000",
    "--eval-episodes",
    "64",
]
STANDARD, SMALL = ["--hidden", "128"], ["--hidden", "32", "--channels", "4"]


def arm(target: Path, program: str, flags: list[str], processes: int) -> report.Run:
    """The record of one command line, kept in the folder `target`; made now if it is not there."""
    if not (target / "summary.json").exists():
        command = [program, *flags, "--processes", str(processes)]
        with tempfile.TemporaryDirectory() as work:
            subprocess.run([sys.executable, *command, "--out", f"{work}/run"], check=True, cwd=ROOT)
            target.mkdir(parents=True, exist_ok=True)
            for file in ("metrics.csv", "summary.json"):
                shutil.copy(Path(work, "run", file), target / file)
            config = json.loads(Path(work, "run", "config.json").read_text())
        config["command"] = " ".join(["python", *command])
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return report.read_run(target)


def scores(run: report.Run) -> np.ndarray:
    """The last evaluation of every seed; a diverged one counts as 0, the worst return of these
    games."""
    return np.array([0.0 if m["diverged"] else m["eval/return"] for m in run.summary["members"]])


def tuned(
    target: Path, program: str, flags: list[str], processes: int, rates: tuple[str, ...] = RATES
) -> str:
    """The learning rate with the highest mean over seeds that are used for nothing else; as many
    members as an arm has, so that both are one compiled program."""
    run = arm(
        target,
        program,
        [
            *flags,
            "--seed",
            "1000",
            "--seeds",
            str(SEEDS // len(rates)),
            "--sweep",
            f"learning_rate={','.join(rates)}",
        ],
        processes,
    )
    best = max(run.summary["eval/return"], key=lambda entry: entry["mean"] or 0.0)["learning_rate"]
    return next(rate for rate in rates if np.isclose(float(rate), best))


def online(game: str, loss: str, network: list[str] = STANDARD) -> list[str]:
    return ["--env", game, "--loss", loss, *ONLINE, *network]


def final(rate: str, seeds: int = SEEDS) -> list[str]:
    return ["--learning-rate", rate, "--seeds", str(seeds)]


def tabulate(runs: dict[tuple[str, ...], report.Run], heads: list[str]) -> list[list[str]]:
    """One row an arm: what tells it apart, its learning rate and returns, and its command."""
    rows = [
        [
            *heads,
            "learning rate",
            "IQM return",
            "mean ± std",
            "targets outside the range",
            "command",
        ]
    ]
    for names, run in runs.items():
        found, rate = scores(run), run.config["config"]["learning_rate"]
        rows.append(
            [
                *names,
                f"{rate:.3g}",
                number(found),
                f"{found.mean():.3g} ± {found.std(ddof=1):.2g}",
                f"{np.nanmean(run.metrics['clipped']):.1%}",
                f"`{run.config['command']}`",
            ]
        )
    return rows


def how_tuned(rates: tuple[str, ...] = RATES) -> str:
    return f"The learning rate is the best of {', '.join(rates)} over {SEEDS // len(rates)} other seeds"


def at_top(runs: dict[tuple[str, ...], report.Run], rates: tuple[str, ...] = RATES) -> str:
    """The losses whose best rate is the highest that was tried."""
    found = [
        loss
        for (loss, *_), run in runs.items()
        if np.isclose(run.config["config"]["learning_rate"], float(rates[-1]))
    ]
    return ", ".join(dict.fromkeys(found)) or "none"


# ---- E1 and A4: PQN on MinAtar -------------------------------------------------------------------

PQN = (
    f"PQN with one convolution of 16 channels and 128 hidden units, {SEEDS} seeds, last iterate, 64 greedy episodes of "
    "each; IQM with its 95% interval. "
)
REDUCED = "Reduced: 100,000 of the 10 million steps that PQN's paper has here; Farebrother et al. have DQN on Atari. "


def one_game(game: str) -> Callable:
    rates = BREAKOUT_RATES if game == "Breakout-MinAtar" else RATES

    def study(folder: Path, processes: int) -> None:
        runs = {}
        for loss in LOSSES:
            flags = online(game, loss)
            rate = tuned(folder / f"tune-{loss}", PQN_FILE, flags, processes, rates)
            runs[loss,] = arm(folder / loss, PQN_FILE, [*flags, *final(rate)], processes)
        found = {loss: scores(run) for (loss,), run in runs.items()}
        verdicts = [
            verdict(f"HL-Gauss beats {other}", more, found["hl_gauss"], found[other])
            for other in ("mse", "two_hot", "c51")
        ]
        verdicts += [
            verdict(f"{a} beats {b}", more, found[a], found[b])
            for a, b in (("c51", "mse"), ("mse", "two_hot"))
        ]
        verdicts += [
            verdict(
                "A1, it is the loss and not the softmax: HL-Gauss beats mse_softmax",
                more,
                found["hl_gauss"],
                found["mse_softmax"],
            ),
            verdict(
                "A1, the softmax alone gains nothing: mse beats mse_softmax",
                more,
                found["mse"],
                found["mse_softmax"],
            ),
        ]
        report.plot_curves(list(runs.values()), folder / "curves.png", title=game)
        write_readme(
            folder,
            f"E1: {game}",
            "Claim (figure 4, left; figures 11 and 12): HL-Gauss > C51 > mse > two-hot, and the "
            "softmax without cross-entropy gains nothing.",
            f"{PQN}{how_tuned(rates)}; the highest was the best for {at_top(runs, rates)}. {REDUCED}"
            f"Made by `python scripts/value_loss.py --only {folder.name}`.",
            tabulate(runs, ["loss"]),
            verdicts,
        )

    return study


def sticky(folder: Path, processes: int) -> None:
    game, runs = "Breakout-MinAtar", {}
    for loss in ("mse", "hl_gauss", "c51"):
        rate = tuned(
            OUT / "breakout" / f"tune-{loss}",
            PQN_FILE,
            online(game, loss),
            processes,
            BREAKOUT_RATES,
        )
        runs[loss, "deterministic"] = arm(
            OUT / "breakout" / loss, PQN_FILE, [*online(game, loss), *final(rate)], processes
        )
        runs[loss, "sticky"] = arm(
            folder / loss, PQN_FILE, [*online(f"{game}?sticky=0.25", loss), *final(rate)], processes
        )
    found = {key: scores(run) for key, run in runs.items()}
    pair = lambda other, name: (found["hl_gauss", name], found[other, name])
    verdicts = [
        verdict("with sticky actions HL-Gauss beats mse", more, *pair("mse", "sticky")),
        verdict(
            "and gains more over mse, as a share of it, than without",
            gap,
            *pair("mse", "sticky"),
            *pair("mse", "deterministic"),
        ),
        verdict("with sticky actions HL-Gauss beats c51", more, *pair("c51", "sticky")),
        verdict("without them HL-Gauss beats c51", more, *pair("c51", "deterministic")),
    ]
    report.plot_curves(
        list(runs.values()),
        folder / "curves.png",
        title="Breakout-MinAtar with and without sticky actions",
    )
    write_readme(
        folder,
        "A4: sticky actions",
        "Claim (figure 15): HL-Gauss gains over the squared error where actions stick "
        "(probability 0.25), and nothing where the game is deterministic; it is ahead of C51 in both.",
        f"{PQN}{how_tuned(BREAKOUT_RATES)}, on the deterministic game, whose arms are those of "
        f"[breakout](../breakout/README.md). {REDUCED}"
        "Made by `python scripts/value_loss.py --only sticky`.",
        tabulate(runs, ["loss", "actions"]),
        verdicts,
    )


# ---- A3, A7 and E2: offline ----------------------------------------------------------------------

WORK = ROOT / "runs" / "value_loss"  # data sets, too large to be kept in results/
RECORDING = [
    "--env",
    "Breakout-MinAtar",
    "--loss",
    "mse",
    "--total-steps",
    "100_000",
    "--num-envs",
    "4",
    "--hidden",
    "128",
    "--buffer-size",
    "100_000",
    "--batch-size",
    "32",
    "--learning-starts",
    "4_000",
    "--target-every",
    "1_000",
    "--learning-rate",
    "5e-4",
    "--eval-every",
    "50_000",
]
OFFLINE = [
    "--env",
    "Breakout-MinAtar",
    "--batch-size",
    "32",
    "--channels",
    "8",
    "--hidden",
    "64",
    "--target-every",
    "500",
    "--cql-alpha",
    "0.1",
    "--v-min",
    "-1",
    "--eval-every",
    "5_000",
    "--eval-episodes",
    "64",
]
UPDATES, LONG, BIN = 20_000, 80_000, 0.4
NOISES = ("0", "0.3", "1", "centred-1")
OFFLINE_RATES = ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3")


def recorded() -> Path:
    """All that one DQN saw, from its first random step on, as `rlzoo data collect --replay` writes
    it."""
    from rlzoo import collect, dataset

    out = WORK / "breakout.npz"
    if not out.exists():
        command = [sys.executable, DQN_FILE, *RECORDING, "--out", str(WORK / "dqn")]
        subprocess.run(command, check=True, cwd=ROOT)
        data = collect.replay(WORK / "dqn")
        print(dataset.describe(data))
        dataset.save(data, out)
    return out


def noisy(eta: str) -> Path:
    """The recorded data with U(0, eta) added to every reward, or U(-eta, eta) where that is
    `centred`."""
    from rlzoo import dataset

    out = WORK / f"breakout-noise-{eta}.npz"
    if eta == "0":
        return recorded()
    if not out.exists():
        data, high = dataset.load(recorded()), float(eta.removeprefix("centred-"))
        low = -high if eta.startswith("centred") else 0.0
        noise = np.random.default_rng(0).uniform(low, high, len(data)).astype(np.float32)
        dataset.save(
            data.replace(
                reward=np.asarray(data.reward) + noise, source=f"{data.source} + U({low}, {high})"
            ),
            out,
        )
    return out


def offline(
    loss: str, target: str = "q_learning", eta: str = "0", updates: int = UPDATES
) -> list[str]:
    """Noise shifts values by eta / 2 / (1 - gamma) = 50 eta: the range holds that too, in bins of
    the same width."""
    high = 19 + (0.0 if eta.startswith("centred") else BIN * round(51 * float(eta) / BIN))
    return [
        *OFFLINE,
        "--loss",
        loss,
        "--target",
        target,
        "--total-steps",
        f"{updates}",
        "--v-max",
        f"{high:g}",
        "--bins",
        str(1 + round((high + 1) / BIN)),
    ]


def offline_arm(name: str, loss: str, flags: list[str], data: Path, processes: int) -> report.Run:
    """With the learning rate that was the best for this loss by Q-learning and without noise."""
    given = lambda file: ["--dataset", str(file.relative_to(ROOT))]
    rate = tuned(
        OUT / "offline" / f"tune-{loss}",
        OFFLINE_FILE,
        [*offline(loss), *given(recorded())],
        processes,
        OFFLINE_RATES,
    )
    return arm(
        OUT / "offline" / name, OFFLINE_FILE, [*flags, *given(data), *final(rate)], processes
    )


def about_offline(folder: Path, updates: int = UPDATES) -> str:
    return (
        "Double DQN with CQL (alpha 0.1) on the 100,000 transitions that one DQN (`hl_gauss.py --loss mse`, 100,000 "
        f"steps on Breakout-MinAtar) saw; {updates:,} updates of 32, a convolution of 8 channels and 64 hidden units, "
        f"{SEEDS} seeds, last iterate, 64 greedy episodes of each; IQM with its 95% interval. "
        f"{how_tuned(OFFLINE_RATES)}, for each loss by Q-learning without noise, after {UPDATES:,} updates. "
        "Reduced: the paper has 17 Atari games and 6.25 million updates. Made by "
        f"`python scripts/value_loss.py --only {folder.name}`, which records the data set first; the records of the "
        "arms are in [offline](../offline)."
    )


def noise(folder: Path, processes: int) -> None:
    runs = {
        (loss, eta): offline_arm(
            f"{loss}-noise-{eta}", loss, offline(loss, eta=eta), noisy(eta), processes
        )
        for loss in ("mse", "hl_gauss")
        for eta in NOISES
    }
    found = {key: scores(run) for key, run in runs.items()}
    verdicts = [
        verdict(
            f"with noise of {eta} HL-Gauss beats mse",
            more,
            found["hl_gauss", eta],
            found["mse", eta],
        )
        for eta in NOISES[1:]
    ]
    verdicts += [
        verdict(
            f"it degrades less: its return with noise of {eta}, as a share of that without, less mse's",
            gap,
            *(found[loss, e] for loss in ("hl_gauss", "mse") for e in (eta, "0")),
        )
        for eta in NOISES[1:]
    ]
    report.plot_curves(
        list(runs.values()),
        folder / "curves.png",
        title="Breakout-MinAtar, offline, with noisy rewards",
    )
    write_readme(
        folder,
        "A3: reward noise",
        "Claim (figure 14): where noise U(0, eta) is added to the rewards of the data, HL-Gauss "
        "degrades more slowly than the squared error.",
        about_offline(folder)
        + " The noise shifts values by eta / 2 / (1 - gamma) = 50 eta, and the range of the bins "
        "is as much longer; `centred-1` is U(-1, 1), which shifts nothing, with the range that there is without noise.",
        tabulate(runs, ["loss", "eta"]),
        verdicts,
    )


def sarsa(folder: Path, processes: int) -> None:
    data, targets = recorded(), ("q_learning", "sarsa")
    names = {
        "q_learning": "noise-0",
        "sarsa": "sarsa",
    }  # Q-learning's are the arms of `noise` without any
    runs = {
        (loss, target): offline_arm(
            f"{loss}-{names[target]}", loss, offline(loss, target), data, processes
        )
        for loss in ("mse", "two_hot", "hl_gauss")
        for target in targets
    }
    found = {key: scores(run) for key, run in runs.items()}
    pair = lambda target, other="mse": (found["hl_gauss", target], found[other, target])
    verdicts = [
        verdict("by Q-learning HL-Gauss beats mse", more, *pair("q_learning")),
        verdict("by Q-learning HL-Gauss beats two-hot", more, *pair("q_learning", "two_hot")),
        verdict(
            "and gains more over mse, as a share of it, than by SARSA",
            gap,
            *pair("q_learning"),
            *pair("sarsa"),
        ),
    ]
    report.plot_curves(
        list(runs.values()), folder / "curves.png", title="Breakout-MinAtar, offline"
    )
    write_readme(
        folder,
        "A7: Q-learning against SARSA",
        "Claim (figure 18): HL-Gauss's gain over the squared error and two-hot "
        "comes with Q-learning's targets, and vanishes where the next action is that of the data.",
        about_offline(folder),
        tabulate(runs, ["loss", "target"]),
        verdicts,
    )


def long(folder: Path, processes: int) -> None:
    runs = {
        (loss,): offline_arm(
            f"{loss}-long", loss, offline(loss, updates=LONG), recorded(), processes
        )
        for loss in ("mse", "hl_gauss")
    }
    late = {loss: scores(run) for (loss,), run in runs.items()}
    early = {
        loss: run.metrics["eval/return"][run.metrics["step"] == UPDATES]
        for (loss,), run in runs.items()
    }
    verdicts = [
        verdict(
            f"mse declines: after {UPDATES:,} updates less after {LONG:,}",
            more,
            early["mse"],
            late["mse"],
        ),
        verdict(
            f"HL-Gauss does not: after {LONG:,} updates less after {UPDATES:,}",
            more,
            late["hl_gauss"],
            early["hl_gauss"],
        ),
        verdict("HL-Gauss ends higher than mse", more, late["hl_gauss"], late["mse"]),
    ]
    report.plot_curves(
        list(runs.values()), folder / "curves.png", title="Breakout-MinAtar, offline, long"
    )
    write_readme(
        folder,
        "E2: long offline training",
        "Claim (figure 4, right): trained offline for long, the squared error's return "
        "declines and HL-Gauss's does not.",
        about_offline(folder, LONG),
        tabulate(runs, ["loss"]),
        verdicts,
    )


# ---- A2 and E3: smaller networks -----------------------------------------------------------------

SIGMAS, BINS = ("0.25", "0.75", "2"), ("21", "51", "101")
WIDTHS = ("1", "2")


def smoothing(folder: Path, processes: int) -> None:
    flags = online("Breakout-MinAtar", "hl_gauss", SMALL)
    rate = tuned(folder / "tune", PQN_FILE, flags, processes)
    runs = {
        bins: arm(
            folder / f"bins-{bins}",
            PQN_FILE,
            [*flags, *final(rate, 5), "--bins", bins, "--sweep", f"sigma_ratio={','.join(SIGMAS)}"],
            processes,
        )
        for bins in BINS
    }
    hot = arm(
        folder / "two_hot",
        PQN_FILE,
        [*online("Breakout-MinAtar", "two_hot", SMALL), *final(rate, 5)],
        processes,
    )
    found = {
        (bins, f"{m['sigma_ratio']:g}"): np.array(
            [
                0.0 if x["diverged"] else x["eval/return"]
                for x in run.summary["members"]
                if x["sigma_ratio"] == m["sigma_ratio"]
            ]
        )
        for bins, run in runs.items()
        for m in run.summary["members"]
    }
    table = [["bins", *(f"sigma = {sigma} bins" for sigma in SIGMAS), "command"]]
    table += [
        [bins, *(number(found[bins, sigma]) for sigma in SIGMAS), f"`{run.config['command']}`"]
        for bins, run in runs.items()
    ]
    table += [
        [
            "51, two-hot",
            number(scores(hot)),
            *[""] * (len(SIGMAS) - 1),
            f"`{hot.config['command']}`",
        ]
    ]
    verdicts = [
        verdict(
            f"51 bins: sigma = {sigma} bins beats two-hot", more, found["51", sigma], scores(hot)
        )
        for sigma in SIGMAS
    ]
    verdicts += [
        verdict(
            f"{bins} bins: sigma = 0.75 bins beats 0.25",
            more,
            found[bins, "0.75"],
            found[bins, "0.25"],
        )
        for bins in BINS
    ]
    report.plot_curves(
        list(runs.values()),
        folder / "curves.png",
        title="HL-Gauss on Breakout-MinAtar: bins and sigma",
    )
    write_readme(
        folder,
        "A2: sigma and bins",
        "Claim (figure 13): a wide range of sigma beats two-hot, and the best absolute sigma "
        "does not depend on the number of bins.",
        "PQN with one convolution of 4 channels and 32 hidden units, 5 seeds, last iterate, 64 greedy episodes of each; IQM "
        f"with its 95% interval. {how_tuned()}, for 51 bins and sigma 0.75. "
        f"{REDUCED}Below 0.5, HL-Gauss is biased. Made by `python scripts/value_loss.py --only smoothing`.",
        table,
        verdicts,
    )


def width(folder: Path, processes: int) -> None:
    runs = {}
    for loss in ("mse", "hl_gauss"):
        for times in WIDTHS:
            flags = [*online("Breakout-MinAtar", loss, SMALL), "--width", times]
            rate = tuned(folder / f"tune-{loss}-{times}", PQN_FILE, flags, processes)
            runs[loss, times] = arm(
                folder / f"{loss}-{times}", PQN_FILE, [*flags, *final(rate)], processes
            )
        flags = online(
            "Breakout-MinAtar", loss
        )  # breakout's network is four times as wide as SMALL
        rate = tuned(OUT / "breakout" / f"tune-{loss}", PQN_FILE, flags, processes, BREAKOUT_RATES)
        runs[loss, "4"] = arm(OUT / "breakout" / loss, PQN_FILE, [*flags, *final(rate)], processes)
    found = {key: scores(run) for key, run in runs.items()}
    verdicts = [
        verdict(
            f"at width {times} HL-Gauss beats mse",
            more,
            found["hl_gauss", times],
            found["mse", times],
        )
        for times in (*WIDTHS, "4")
    ]
    verdicts += [
        verdict(
            "the gain over mse, as a share of it, is larger at width 4 than at 1",
            gap,
            found["hl_gauss", "4"],
            found["mse", "4"],
            found["hl_gauss", "1"],
            found["mse", "1"],
        )
    ]
    report.plot_curves(
        list(runs.values()), folder / "curves.png", title="Breakout-MinAtar, by width"
    )
    write_readme(
        folder,
        "E3: width",
        "Claim (section 4.2): HL-Gauss gains more over the squared error, the larger the network.",
        f"PQN with 4 channels and 32 hidden units times the width, {SEEDS} seeds, last iterate, 64 greedy episodes of each; "
        f"IQM with its 95% interval; width 4 is the network of [breakout](../breakout/README.md). {how_tuned()}, for each "
        f"loss and width (at width 4 as in breakout). {REDUCED}The paper scales by experts: see "
        "[experts](../experts/README.md). Made by `python scripts/value_loss.py --only width`.",
        tabulate(runs, ["loss", "width"]),
        verdicts,
    )


EXPERTS = ("1", "2", "4", "8")
MIXTURE = [
    "--env",
    "Breakout-MinAtar",
    "--total-steps",
    "50_000",
    "--num-envs",
    "4",
    "--hidden",
    "128",
    "--buffer-size",
    "50_000",
    "--batch-size",
    "32",
    "--learning-starts",
    "4_000",
    "--target-every",
    "1_000",
    "--v-min",
    "-1",
    "--v-max",
    "19",
    "--eval-every",
    "25_000",
    "--eval-episodes",
    "64",
]


def experts(folder: Path, processes: int) -> None:
    runs = {}
    for loss in ("mse", "hl_gauss"):
        flags = [*MIXTURE, "--loss", loss, "--experts"]
        rate = tuned(folder / f"tune-{loss}", DQN_FILE, [*flags, "1"], processes)
        for count in EXPERTS:
            runs[loss, count] = arm(
                folder / f"{loss}-{count}", DQN_FILE, [*flags, count, *final(rate)], processes
            )
    found = {key: scores(run) for key, run in runs.items()}
    verdicts = [
        verdict(
            f"experts: {count}, HL-Gauss beats mse",
            more,
            found["hl_gauss", count],
            found["mse", count],
        )
        for count in EXPERTS
    ]
    verdicts += [
        verdict(
            f"HL-Gauss with 1 expert beats mse with {count}",
            more,
            found["hl_gauss", "1"],
            found["mse", count],
        )
        for count in EXPERTS[1:]
    ]
    verdicts += [
        verdict(
            f"HL-Gauss gains by {count} experts over 1",
            more,
            found["hl_gauss", count],
            found["hl_gauss", "1"],
        )
        for count in EXPERTS[1:]
    ]
    verdicts += [
        verdict(
            f"mse does not: 1 expert less {count}", more, found["mse", "1"], found["mse", count]
        )
        for count in EXPERTS[1:]
    ]
    report.plot_curves(
        list(runs.values()),
        folder / "curves.png",
        title="Breakout-MinAtar, by experts of a SoftMoE",
    )
    write_readme(
        folder,
        "E3: SoftMoE",
        "Claim (figure 5): HL-Gauss is ahead of the squared error at any number of experts, with one "
        "even of the squared error with more, and the squared error does not gain by experts.",
        "DQN (`hl_gauss.py`) with a convolution of 16 channels and a SoftMoE in place of the hidden layer, each expert with "
        f"128 hidden units, {SEEDS} seeds, last iterate, 64 greedy episodes of each; IQM with its 95% interval. "
        f"{how_tuned()}, for each loss with one expert; the highest was the best for {at_top(runs)}. Reduced: 50,000 steps "
        "on one game; the paper has IMPALA's network and 20 Atari games. Made by "
        "`python scripts/value_loss.py --only experts`.",
        tabulate(runs, ["loss", "experts"]),
        verdicts,
    )


# ---- A5: frozen features -------------------------------------------------------------------------

PROBED = ("untrained", "mse", "two_hot", "hl_gauss", "c51")


def frozen(folder: Path, processes: int) -> None:
    runs = {}
    for name in PROBED:
        loss = "mse" if name == "untrained" else name
        rate = tuned(
            OUT / "breakout" / f"tune-{loss}",
            PQN_FILE,
            online("Breakout-MinAtar", loss),
            processes,
            BREAKOUT_RATES,
        )
        flags = ["--loss", name, *final(rate), "--eval-every", "20_000", "--eval-episodes", "64"]
        runs[name,] = arm(folder / name, "scripts/frozen.py", flags, processes)
    found = {name: scores(run) for (name,), run in runs.items()}
    verdicts = [
        verdict(
            f"HL-Gauss's features are worth more than {other}'s",
            more,
            found["hl_gauss"],
            found[other],
        )
        for other in ("mse", "two_hot", "c51", "untrained")
    ]
    verdicts += [
        verdict(
            "mse's features are worth more than untrained ones",
            more,
            found["mse"],
            found["untrained"],
        )
    ]
    report.plot_curves(
        list(runs.values()),
        folder / "curves.png",
        title="Breakout-MinAtar: a new head after half the steps",
    )
    write_readme(
        folder,
        "A5: frozen features",
        "Claim (figure 16): a new linear head on the frozen features of a network trained by "
        "HL-Gauss comes to higher returns than on those of other losses.",
        f"{PQN}Trained by the loss for 100,000 steps, at the rate that was the best in [breakout](../breakout/README.md), "
        "then a new head alone for 100,000 more, by the squared error for all (`scripts/frozen.py`). Reduced: the paper's "
        "features are of 200 million frames of Atari. Made by `python scripts/value_loss.py --only frozen`.",
        tabulate(runs, ["features of"]),
        verdicts,
    )


# ---- E7: a small board game ----------------------------------------------------------------------

SIDE, ROW, BLUNDER = 4, 3, 0.5
BOARD = dict(hidden=(64, 64), bins=128, batch=256, steps=2000)
BOARD_LOSSES = ("mse", "one_hot", "two_hot", "hl_gauss")


def lines_of_three() -> list[int]:
    """The winning lines as bit masks; the cell in column x and row y is bit 4 x + y."""
    ways = [
        (x, y, dx, dy)
        for x in range(SIDE)
        for y in range(SIDE)
        for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1))
    ]
    ends = lambda x, y, dx, dy: (x + (ROW - 1) * dx < SIDE) and 0 <= y + (ROW - 1) * dy < SIDE
    return [
        sum(1 << SIDE * (x + k * dx) + y + k * dy for k in range(ROW))
        for x, y, dx, dy in ways
        if ends(x, y, dx, dy)
    ]


def board_game() -> tuple[np.ndarray, np.ndarray]:
    """Every position of connect-three on a board of 4 by 4 that can arise, by an exact teacher.

    Returns: boards [n, 32] (stones of the player to move, then of the other), and action values [n,
    4]: the chance to win, plus half that to draw, when from then on both drop a stone in a random
    column half of the time, and else in the best; NaN for full columns.
    """
    winning, known = lines_of_three(), {}
    column = [((1 << SIDE) - 1) << SIDE * x for x in range(SIDE)]

    def values(own: int, other: int) -> np.ndarray:
        if (own, other) not in known:
            q = np.full(SIDE, np.nan)
            for x in range(SIDE):
                stone = ((own | other) + (1 << SIDE * x)) & column[x] & ~(own | other)
                if not stone:
                    continue
                mine = own | stone
                if any(mine & line == line for line in winning):
                    q[x] = 1.0
                elif (mine | other) == (1 << SIDE * SIDE) - 1:
                    q[x] = 0.5
                else:
                    replies = values(other, mine)
                    q[x] = 1.0 - (1 - BLUNDER) * np.nanmax(replies) - BLUNDER * np.nanmean(replies)
            known[own, other] = q
        return known[own, other]

    values(0, 0)
    bits = lambda stones: [stones >> i & 1 for i in range(SIDE * SIDE)]
    boards = np.array([bits(own) + bits(other) for own, other in known], np.float32)
    return boards, np.array(list(known.values()), np.float32)


def distil(loss: str, seeds: int) -> np.ndarray:
    """Of held-out positions, after learning the values of the others: the share where the greedy
    move is one of the best, and what it is worse than the best on average; [seeds, 2]."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.flatten_util import ravel_pytree
    from rlzoo.algorithms import hl_gauss

    boards, q = board_game()
    half = np.random.default_rng(0).permutation(len(boards)) < len(boards) // 2
    legal, q = ~np.isnan(q), np.nan_to_num(q)
    config = hl_gauss.Config(loss=loss, bins=BOARD["bins"], v_min=0.0, v_max=1.0)
    out = SIDE if loss == "mse" else SIDE * config.bins
    net = hl_gauss.Network(BOARD["hidden"], out, 0, 0, None, jax.nn.initializers.zeros)
    optimizer = optax.scale_by_adam()

    def output(params, x):
        out = net.apply(params, x)
        return out if loss == "mse" else out.reshape(*x.shape[:-1], SIDE, config.bins)

    def goal(y):
        if loss == "one_hot":
            return jax.nn.one_hot(jnp.round(y * (config.bins - 1)), config.bins)
        return hl_gauss.encode(y, config)

    def objective(params, x, y, legal):
        found = output(params, x)
        each = (found - y) ** 2 if loss == "mse" else hl_gauss.kl(goal(y), found)
        return (legal * each).sum() / legal.sum()

    def run(key):
        net_key, key = jax.random.split(key)
        start, unravel = ravel_pytree(net.init(net_key, boards[0]))
        learn = [jnp.asarray(x[half]) for x in (boards, q, legal)]

        def update(carry, key):
            rows = jax.random.randint(key, (BOARD["batch"],), 0, len(learn[0]))
            grad = jax.grad(lambda p: objective(unravel(p), *(x[rows] for x in learn)))(carry[0])
            direction, opt_state = optimizer.update(grad, carry[1])
            return (carry[0] - 1e-3 * direction, opt_state), None

        keys = jax.random.split(key, BOARD["steps"])
        (params, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), keys)
        value = hl_gauss.decode(output(unravel(params), boards[~half]), config)
        move = jnp.argmax(jnp.where(legal[~half], value, -jnp.inf), -1)
        best = jnp.where(legal[~half], q[~half], -jnp.inf).max(-1)
        worse = best - jnp.take_along_axis(jnp.asarray(q[~half]), move[:, None], 1)[:, 0]
        return jnp.stack([(worse < 1e-6).mean(), worse.mean()])

    return np.asarray(
        jax.jit(lambda: jax.lax.map(run, jax.vmap(jax.random.key)(jnp.arange(seeds))))()
    )


def board(folder: Path, processes: int) -> None:
    from matplotlib.figure import Figure

    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        found = dict(
            zip(
                BOARD_LOSSES,
                pool.map(distil, BOARD_LOSSES, [SEEDS] * len(BOARD_LOSSES)),
                strict=True,
            )
        )
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["loss", "seed", "best moves", "loss of value"])
        writer.writerows(
            (loss, seed, *(f"{x:.6g}" for x in row))
            for loss, rows in found.items()
            for seed, row in enumerate(rows)
        )
    table = [["loss", "best moves", "loss of value by the move"]]
    table += [[loss, number(rows[:, 0]), number(rows[:, 1])] for loss, rows in found.items()]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.boxplot([rows[:, 0] for rows in found.values()], tick_labels=list(found))
    axes.set_ylabel("share of held-out positions\nwhere the best move is chosen")
    figure.savefig(folder / "curves.png", dpi=160)
    best = {loss: rows[:, 0] for loss, rows in found.items()}
    verdicts = [
        verdict(
            f"HL-Gauss chooses the best move more often than {other}",
            more,
            best["hl_gauss"],
            best[other],
        )
        for other in ("one_hot", "mse", "two_hot")
    ]
    positions = len(board_game()[0])
    write_readme(
        folder,
        "E7: distilling a board game",
        "Claim (figure 9): where a network learns a teacher's values in [0, 1] in "
        "128 bins, targets by HL-Gauss give better moves than one-hot ones.",
        f"All {positions:,} positions of connect-three on a 4 by 4 board, and their exact values when both players blunder "
        f"half of the time; half of the positions are learnt, the others judged. MLP {BOARD['hidden']}, Adam 1e-3, "
        f"{BOARD['steps']} steps of {BOARD['batch']}, {SEEDS} seeds; IQM with its 95% interval. Reduced: the paper distils "
        "Stockfish into transformers of up to 270 million parameters, and its baseline is one-hot alone. "
        "Made by `python scripts/value_loss.py --only board`.",
        table,
        verdicts,
    )


# ---- the index -----------------------------------------------------------------------------------

CODES = {
    "breakout": "E1",
    "spaceinvaders": "E1",
    "asterix": "E1",
    "freeway": "E1",
    "seaquest": "E1",
    "frozen": "A5",
    "sticky": "A4",
    "noise": "A3",
    "sarsa": "A7",
    "long": "E2",
    "smoothing": "A2",
    "width": "E3",
    "experts": "E3",
    "board": "E7",
    "plasticity": "A6",
}
NOT_RUN = {
    "E4, E5": "multi-task training of one network",
    "E6": "Wordle",
    "E8": "robotic manipulation",
}


def write_index() -> None:
    """results/value_loss/README.md: every study that was made, with its verdicts, and those that
    were not."""
    lines = [
        "# Values by classification",
        "",
        'Studies of Farebrother et al. 2024, "Stop Regressing" (arXiv 2403.03950), at sizes that fit a CPU. A verdict is '
        "*reproduced* or *not reproduced* where the 95% bootstrap interval over seeds lies on one side of zero, else "
        "*undecided at this budget*. Settings, commands and tables are in the folders. What the losses cost: "
        "[speed.md](speed.md).",
        "",
    ]
    for name in STUDIES:
        if (OUT / name / "README.md").exists():
            text = (OUT / name / "README.md").read_text().split("\n")
            claim = next(line for line in text if line.startswith("Claim"))
            lines += [
                f"## [{text[0].removeprefix('# ')}]({name}/README.md)",
                "",
                claim,
                "",
                *(line for line in text if line.startswith("- ")),
                "",
            ]
    missing = [
        f"- {CODES[name]}: written, `python scripts/value_loss.py --only {name}`"
        for name in STUDIES
        if not (OUT / name / "README.md").exists()
    ]
    lines += ["## Not run", "", *missing, *(f"- {name}: {what}" for name, what in NOT_RUN.items())]
    (OUT / "README.md").write_text("\n".join(lines) + "\n")


STUDIES: dict[str, Callable] = {
    "plasticity": plasticity,
    "breakout": one_game("Breakout-MinAtar"),
    "spaceinvaders": one_game("SpaceInvaders-MinAtar"),
    "asterix": one_game("Asterix-MinAtar"),
    "freeway": one_game("Freeway-MinAtar"),
    "seaquest": one_game("Seaquest-MinAtar"),
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--processes", type=int, default=machine.cores())
    arguments = parser.parse_args()
    for study in arguments.only:
        if not (OUT / study / "README.md").exists():
            (OUT / study).mkdir(parents=True, exist_ok=True)
            STUDIES[study](OUT / study, arguments.processes)
            write_index()
