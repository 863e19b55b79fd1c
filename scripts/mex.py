"""The studies in results/mex: does maximizing value less loss explore?

    python scripts/mex.py                     # all of them; what is done already is skipped
    python scripts/mex.py --only deep_sea     # 3 minutes on one core
    python scripts/mex.py --only stochastic   # 5 minutes
    python scripts/mex.py --only slope        # 4 minutes, with arms of stochastic
    python scripts/mex.py --only games        # 4 minutes
    python scripts/mex.py --only model_free   # TD3 and MEX with several etas and forms
    python scripts/mex.py --only model_based  # MBPO and MEX-MB
    python scripts/mex.py --only cost         # what the term costs
    python scripts/mex.py --only linear       # 2 minutes, with arms of stochastic

Each study tests a claim of Liu et al. 2023 (arXiv 2305.18258) at a size that fits a CPU. Its README
holds the claim, the commands, a table, and a verdict for every part of the claim.
"""

from collections.abc import Callable, Sequence

import numpy as np
from programs import mex_deep

from rlzoo import report, study
from rlzoo.study import (
    carry_out,
    claim,
    members,
    parts_of,
    score,
    script,
)

TABULAR = "algorithms/mex_tabular.py"
GAMES = "algorithms/mex_games.py"
SEEDS = 20
"""or games; tuning has as many members, so that it is the same compiled program"""
Parts = dict[str, str]


class Lab(study.Lab):
    """Where the arms of all studies are run, tuned and kept."""

    def tuned(self, name: str, program: str, flags: str, field: str, grid: Sequence[float]) -> str:
        """The value of `field` with the lowest mean regret over seeds that are used for nothing
        else. Where it is at the end of its grid, the grid moves on from there, twice at most."""
        seeds = f"--seed 1000 --seeds {SEEDS // len(grid)}"
        for attempt in ("", "-wider", "-widest"):
            values = ",".join(f"{value:.6g}" for value in grid)
            sweep = f"--sweep {field}={values}"
            run = self.arm(f"{name}-tune{attempt}", program, f"{flags} {seeds} {sweep}")
            entries = {entry[field]: entry["mean"] for entry in run.summary["eval/regret"]}
            best = min(entries, key=lambda value: entries[value])
            place = int(np.argmin(np.abs(np.log(np.array(grid) / best))))
            if 0 < place < len(grid) - 1:
                break
            shift = grid[-2] / grid[0] if place else grid[1] / grid[-1]
            grid = [value * shift for value in grid]
        return f"{best:.6g}"


def regrets(run: report.Run, **swept: float) -> np.ndarray:
    """The last regret of every seed of a setting, [seeds]."""
    return np.array([member["eval/regret"] for member in members(run, **swept)])


def column(run: report.Run, metric: str, step: int, **swept: float) -> np.ndarray:
    """A metric of every seed of a setting after `step` episodes, [seeds]."""
    chosen = run.metrics["step"] == step
    for name, value in swept.items():
        chosen &= np.isclose(run.metrics[name], value)
    return run.metrics[metric][chosen]


def less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By what share the IQM regret of `a` is below that of `b`."""
    return 1.0 - report.iqm(a, axis=-1) / report.iqm(b, axis=-1)


def solved(first: np.ndarray) -> str:
    """When the goal was first reached, and by how many seeds."""
    found = first[np.isfinite(first)]
    return f"{found.min():.0f} to {found.max():.0f} ({len(found)})" if len(found) else "never"


# ---- deep-sea, deterministic ---------------------------------------------------------------------

SIZES = (8, 12, 20, 30)
CONTROLS = ("epsilon_greedy", "estimation")


def deep_sea(lab: Lab) -> Parts:
    rows, runs, claims, mex = [], [], [], {}
    for size in SIZES:
        found = {}
        for method in ("mex", *CONTROLS):
            flags = f"--env deep-sea{size} --method {method} --seeds {SEEDS}"
            run = lab.arm(f"deep_sea/{size}-{method}", TABULAR, flags)
            runs.append(run)
            found[method] = regrets(run)
            first = solved(column(run, "eval/first_solved", 4_000))
            command = f"`{run.config['command']}`"
            rows.append([str(size), method, score(found[method]), first, command])
        mex[size] = found["mex"]
        claims += [
            claim(f"deep-sea{size}: MEX regrets less than {other}, share", less, mex[size], b)
            for other, b in found.items()
            if other != "mex"
        ]
    claims.append(
        claim(
            "regret grows no faster than 0.7 size^2, MEX: 0.7 - regret / 30^2",
            lambda a: 0.7 - report.iqm(a, axis=-1) / 900,
            mex[30],
        )
    )
    lab.draw("deep_sea/curves.png", runs[:3], "deep-sea8")
    heads = ["size", "method", "regret", "goal first reached in episode (seeds)", "command"]
    return parts_of(heads, rows, claims, runs[-1])


# ---- in stochastic worlds ------------------------------------------------------------------------

WORLDS = {"deep-sea8": "deep-sea8?deterministic=False", "river-swim": "river-swim"}
EPISODES = 1_000
PSRL_NOISE = {"deep-sea8": 1.0, "river-swim": 0.1}
ARMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "mex": ("eta", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "mex_mb": ("eta", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "ucb": ("bonus", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "psrl": ("prior_count", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "rlsvi": ("noise_scale", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "epsilon_greedy": ("epsilon", (0.03, 0.06, 0.12, 0.25, 0.5)),
    "estimation": ("", ()),
}


def world_flags(world: str, method: str, episodes: int = EPISODES) -> str:
    flags = f"--env {WORLDS[world]} --method {method} --total-steps {episodes}"
    if method == "psrl":
        flags += f" --noise-scale {PSRL_NOISE[world]:g}"
    return flags


def tuned_flags(lab: Lab, world: str, method: str) -> tuple[str, str]:
    """What was tuned, as shown and as a flag."""
    field, grid = ARMS[method]
    if not field:
        return "", ""
    name = f"stochastic/{world}-{method}"
    value = lab.tuned(name, TABULAR, world_flags(world, method), field, grid)
    return f"{field} {value}", f"--{field.replace('_', '-')} {value}"


def stochastic(lab: Lab) -> Parts:
    rows, claims, runs = [], [], []
    for world in WORLDS:
        found, drawn = {}, []
        for method in ARMS:
            shown, flag = tuned_flags(lab, world, method)
            flags = f"{world_flags(world, method)} {flag} --seeds {SEEDS}"
            run = lab.arm(f"stochastic/{world}-{method}", TABULAR, flags)
            drawn.append(run)
            found[method] = regrets(run)
            seconds = f"{run.summary['train_seconds']:.1f}"
            command = f"`{run.config['command']}`"
            rows.append([world, method, shown, score(found[method]), seconds, command])
        for ours in ("mex", "mex_mb"):
            for other in ("epsilon_greedy", "estimation", "ucb", "psrl", "rlsvi"):
                text = f"{world}: {ours} regrets less than {other}, share"
                claims.append(claim(text, less, found[ours], found[other]))
        lab.draw(f"stochastic/{world}.png", drawn, f"{world}, stochastic")
        runs += drawn
    heads = ["world", "method", "tuned", "regret", "seconds", "command"]
    return parts_of(heads, rows, claims, runs[-1])


# ---- growth of regret ----------------------------------------------------------------------------

LENGTHS = (500, 1_000, 2_000, 4_000)


def slope(lab: Lab) -> Parts:
    """Regret after K episodes against K, on logarithmic scales; MEX has a member for each K."""
    world, last = "river-swim", LENGTHS[-1]
    after, seconds, commands, run = {}, {}, {}, None
    for method in ("mex", "psrl", "rlsvi"):
        shown, flag = tuned_flags(lab, world, method)
        etas = [float(shown.split()[1]) * np.sqrt(EPISODES / length) for length in LENGTHS]
        if method == "mex":
            flag = f"--sweep eta={','.join(f'{eta:.6g}' for eta in etas)}"
        flags = f"{world_flags(world, method, last)} {flag} --seeds {SEEDS}"
        run = lab.arm(f"slope/{method}", TABULAR, f"{flags} --eval-every {LENGTHS[0]}")
        swept = [{"eta": eta} if method == "mex" else {} for eta in etas]
        pairs = zip(LENGTHS, swept, strict=True)
        after[method] = np.stack([column(run, "eval/regret", k, **s) for k, s in pairs])
        members = len(run.summary["members"])
        seconds[method] = 1e3 * run.summary["train_seconds"] / (members * last)
        commands[method] = run.config["command"]

    def slope_of(*by_length: np.ndarray) -> np.ndarray:
        logs = np.log(np.stack([report.iqm(regret, axis=-1) for regret in by_length]))
        x = np.log(LENGTHS) - np.log(LENGTHS).mean()
        return np.tensordot(x, logs, 1) / (x @ x)

    claims = []
    for method, regret in after.items():
        text = f"{method}: regret grows slower than episodes, 1 - slope"
        claims.append(claim(text, lambda *g: 1.0 - slope_of(*g), *regret))
    text = "mex: no faster than their square root but for 0.1, 0.6 - slope"
    claims.append(claim(text, lambda *g: 0.6 - slope_of(*g), *after["mex"]))
    for other in ("psrl", "rlsvi"):
        text = f"after {last:,} episodes mex regrets less than {other}, share"
        claims.append(claim(text, less, after["mex"][-1], after[other][-1]))
    rows = [
        [
            method,
            *[score(found) for found in regret],
            f"{slope_of(*regret):.2f}",
            f"{seconds[method]:.2f}",
            f"`{commands[method]}`",
        ]
        for method, regret in after.items()
    ]
    heads = ["method", *[f"after {k:,}" for k in LENGTHS], "slope", "ms an episode", "command"]
    return parts_of(heads, rows, claims, run)


# ---- games ---------------------------------------------------------------------------------------

PLAYED = {"matrix-game3": 1_000, "markov-game": 1_000}
ETAS = (0.03, 0.1, 0.3, 1.0, 3.0)


def is_linear(run: report.Run, episodes: int) -> np.ndarray:
    """Whether regret still grows like the episodes in the second half, [games]: by a slope of more
    than 0.8 on logarithmic scales, and by more than 0.01 an episode."""
    half, whole = (column(run, "eval/regret", at) for at in (episodes // 2, episodes))
    grows = np.log2(whole / np.maximum(half, 1e-9)) > 0.8
    return grows & (whole - half > 0.01 * episodes / 2)


def fewer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By how much the mean of `a` is below that of `b`."""
    return b.mean(-1) - a.mean(-1)


def games(lab: Lab) -> Parts:
    rows, claims, run = [], [], None
    for game, episodes in PLAYED.items():
        regret, linear = {}, {}
        for method in ("mex", "no_exploiter", "nash"):
            name = f"games/{game}-{method}"
            flags = f"--env {game} --method {method} --total-steps {episodes}"
            eta = "" if method == "nash" else lab.tuned(name, GAMES, flags, "eta", ETAS)
            more = f"{f'--eta {eta} ' * bool(eta)}--seeds {SEEDS}"
            run = lab.arm(name, GAMES, f"{flags} {more} --eval-every {episodes // 2}")
            regret[method], linear[method] = regrets(run), is_linear(run, episodes)
            last = column(run, "eval/exploitability", episodes)
            share = f"{linear[method].mean():.0%}"
            command = f"`{run.config['command']}`"
            row = [game, method, eta, score(regret[method]), f"{regret[method].mean():.3g}"]
            rows.append([*row, share, score(last), command])
        for other in ("no_exploiter", "nash"):
            text = f"{game}: mean regret of MEX is below that of {other}"
            claims.append(claim(text, fewer, regret["mex"], regret[other], paired=True))
        a, b = linear["mex"].astype(float), linear["nash"].astype(float)
        text = f"{game}: fewer games have linear regret under MEX than under nash, share"
        claims.append(claim(text, fewer, a, b, paired=True))
    heads = ["game", "method", "eta", "IQM regret", "mean", "linear", "exploitability", "command"]
    return parts_of(heads, rows, claims, run)


# ---- linear values -------------------------------------------------------------------------------

FEATURES = (0, 8)
RIDGE = 0.01


def linear(lab: Lab) -> Parts:
    """River-swim has 12 pairs of state and action."""
    world = "river-swim"
    field, grid = ARMS["mex"]
    shown, flag = tuned_flags(lab, world, "mex")
    flags = f"{world_flags(world, 'mex')} {flag} --num-sweeps 0 --seeds {SEEDS}"
    run = lab.arm("linear/tables", TABULAR, flags)
    exact = regrets(run)
    rows = [["tables, without sweeps", shown, score(exact), f"`{run.config['command']}`"]]
    claims = []
    for count in FEATURES:
        name = f"linear/{count}"
        flags = f"{world_flags(world, 'mex_linear')} --num-features {count} --prior-count {RIDGE}"
        eta = lab.tuned(name, TABULAR, flags, field, grid)
        run = lab.arm(name, TABULAR, f"{flags} --eta {eta} --seeds {SEEDS}")
        found = regrets(run)
        about = f"{count} random features" if count else "12 one-hot features"
        rows.append([about, f"eta {eta}", score(found), f"`{run.config['command']}`"])
        if count == 0:
            text = f"{about}: as good as tables, share"
            claims.append(claim(text, less, found, exact, margin=0.2))
        else:
            text = f"{about}: more regret than with tables, share of theirs"
            claims.append(claim(text, less, exact, found))
    heads = ["values", "tuned", "regret", "command"]
    return parts_of(heads, rows, claims, run)


# ---- all of them ---------------------------------------------------------------------------------

STUDIES: dict[str, Callable[[Lab], Parts]] = {
    "deep_sea": deep_sea,
    "stochastic": stochastic,
    "slope": slope,
    "games": games,
    "linear": linear,
    "model_free": mex_deep.model_free,
    "model_based": mex_deep.model_based,
    "cost": mex_deep.cost_parts,
}


if __name__ == "__main__":
    script(lambda: carry_out(__doc__, Lab, "mex", STUDIES))
