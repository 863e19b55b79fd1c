"""The networks and the studies in results/qstar: what Q* search saves where there are many actions,
and what it reaches.

    # every network of TRAINING, 3 hours of one core; done ones are kept
    python scripts/qstar.py --train
    python scripts/qstar.py --train cube3        # one of them
    # the studies, with the weights in results/qstar/weights
    python scripts/qstar.py
    # one of them: actions, published, depths, sweep, lights, follow
    python scripts/qstar.py --only actions

Training leaves its run under runs/qstar, its curve in results/qstar/training and its weights, in
half precision, in results/qstar/weights, where `--solve` finds them. Every study writes a table of
all its searches (.csv) and a README.
"""

import argparse
import csv
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rlzoo.algorithms import astar, qstar
from rlzoo.envs import LightsOut
from rlzoo.record import Record

import rlzoo
from rlzoo import machine, report, search, solve, train

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "qstar"
RUNS = ROOT / "runs" / "qstar"
DATA = Path(os.environ.get("RLZOO_DATA", ROOT.parent / "shared" / "data")) / "qstar"
MODULES = {"qstar": qstar, "astar": astar}

NETWORK = "--first 512 --width 256 --blocks 2"
CUBE = f"{NETWORK} --batch-size 1_000 --scramble 26 --loss-threshold 3 --eval-every 2_000_000"
LONG = f"{CUBE} --total-steps 60_000_000 --warmup-steps 50_000_000 --block-steps 2_000_000 --halving-steps 12_500_000"
LIGHTS = f"{NETWORK} --batch-size 500 --scramble 30 --block-steps 50_000 --loss-threshold 1 --eval-every 1_000_000"
PARITIES = (
    "--first 512 --periodic --batch-size 1_000 --scramble 50 --block-steps 100_000 --loss-threshold 1 "
    "--eval-every 2_000_000 --total-steps 36_000_000 --warmup-steps 24_000_000 --learning-rate 6e-3 "
    "--halving-steps 6_000_000"
)
TILES = f"{NETWORK} --block-steps 50_000 --loss-threshold 4"
TRAINING = {  # name: algorithm, environment, flags
    "lights-out5": (
        "qstar",
        "lights-out5",
        f"{LIGHTS} --total-steps 12_000_000 --halving-steps 3_000_000 --follow 15",
    ),
    "lights-out6": ("qstar", "lights-out6", PARITIES),
    "lights-out7": ("qstar", "lights-out7", PARITIES),
    "tile15": (
        "qstar",
        "tile15",
        f"{TILES} --batch-size 500 --total-steps 5_000_000 --halving-steps 1_500_000 "
        "--eval-every 500_000",
    ),
    "tile24": (
        "qstar",
        "tile24",
        f"{TILES} --batch-size 1_000 --total-steps 24_000_000 --halving-steps 6_000_000 "
        "--eval-every 2_000_000 --eval-moves 200",
    ),
    "cube3": ("qstar", "cube3", LONG),
    "cube3-156": ("qstar", "cube3?actions=156", LONG),
    "cube3-1884": ("qstar", "cube3?actions=1884", LONG),
    "cube3-value": ("astar", "cube3", LONG),
}

# ---- networks ------------------------------------------------------------------------------------


def make_network(name: str) -> None:
    """Train, from where training was stopped if it was; what is done already is not done again."""
    algorithm, env, flags = TRAINING[name]
    run = RUNS / name
    resume = ["--resume"] if (run / "config.json").exists() else []
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "algorithms" / f"{algorithm}.py"),
            "--env",
            env,
            *flags.split(),
            "--out",
            str(run),
            *resume,
        ],
        check=True,
    )
    config = Record.read(run).config(MODULES[algorithm].Config)
    solve.save(solve.weights_file(algorithm, env), config, train.trained(run).policy)
    keep(run, OUT / "training" / name)


def keep(run: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "metrics.csv", "summary.json"):
        (folder / file).write_text((run / file).read_text().replace(f"{ROOT}/", ""))


def network(algorithm: str, env: str) -> solve.Trained:
    module = MODULES[algorithm]
    path = solve.weights_file(algorithm, env)
    if not path.exists():
        sys.exit(f"{path.relative_to(ROOT)} is missing: run python scripts/qstar.py --train first")
    return solve.load(path, module.make, module.Config, rlzoo.make(env))


# ---- searching -----------------------------------------------------------------------------------

FIELDS = (
    "search",
    "env",
    "actions",
    "weight",
    "batch",
    "problem",
    "depth",
    "status",
    "cost",
    "best",
    "generated",
    "network_calls",
    "nodes",
    "pushed",
    "mebibytes",
    "cpu_seconds",
)


class Searcher:
    """One compiled search and the network that guides it."""

    def __init__(self, name: str, env: str, batch: int, max_nodes: int):
        self.name, self.env, self.batch = name, env, batch
        self.puzzle = rlzoo.make(env).inner
        if name == "Q*":
            self.trained = network("qstar", env)
            self.solver = qstar.solver(
                self.trained.config,
                self.puzzle,
                batch,
                max_nodes=max_nodes,
                max_entries=max_nodes * min(self.puzzle.num_actions, 33),
            )
        else:  # costs are quarter turns whatever the actions: one value network serves all
            self.trained = network("astar", env.partition("?")[0])
            self.solver = astar.solver(
                self.trained.config,
                self.puzzle,
                batch,
                deferred=name == "deferred A*",
                max_nodes=max_nodes,
                max_entries=max_nodes,
            )
        self.solver.compile(self.trained.policy)

    def __call__(
        self,
        problem: int,
        state: np.ndarray,
        weight: float,
        depth: int | str = "",
        best: float | str = "",
        max_generated: int = 2**62,
    ) -> dict:
        began = time.process_time()
        found = self.solver(self.trained.policy, state, weight, max_generated)
        seconds = time.process_time() - began
        if np.isfinite(found.cost):
            end = search.replay(self.puzzle, state, found.actions)[-1]
            assert self.puzzle.is_goal(end), "the moves do not lead to the goal"
            assert sum(self.puzzle.costs[action] for action in found.actions) == found.cost
        words = search.pack(jnp.asarray(state), self.puzzle.values).size
        used = found.nodes * (4 * words + 11) + found.pushed * search.ENTRY_BYTES
        row = {
            "search": self.name,
            "env": self.env,
            "actions": self.puzzle.num_actions,
            "weight": weight,
            "batch": self.batch,
            "problem": problem,
            "depth": depth,
            "status": found.status,
            "cost": found.cost,
            "best": best,
            "generated": found.generated,
            "network_calls": found.network_calls,
            "nodes": found.nodes,
            "pushed": found.pushed,
            "mebibytes": round(used / 2**20, 3),
            "cpu_seconds": round(seconds, 4),
        }
        print(row, flush=True)
        return row


def scrambles(env: str, depth: int, count: int, seed: int = 0) -> np.ndarray:
    puzzle = rlzoo.make(env).inner
    return np.asarray(puzzle.scramble(jax.random.key(seed), jnp.full(count, depth), depth))


def load(folder: Path) -> list[dict]:
    """What was searched already, by a study that was stopped."""
    if not (folder / "searches.csv").exists():
        return []
    whole = (
        "actions",
        "batch",
        "problem",
        "depth",
        "best",
        "generated",
        "network_calls",
        "nodes",
        "pushed",
    )
    real = ("weight", "cost", "mebibytes", "cpu_seconds")
    with (folder / "searches.csv").open() as file:
        return [
            {
                key: int(value)
                if key in whole and value
                else float(value)
                if key in real
                else value
                for key, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def save(folder: Path, rows: Iterable[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "searches.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write(
    folder: Path, title: str, text: list[str], header: list[str], body: list[list[str]], *after: str
) -> None:
    hardware = f"CPU seconds are of one core of {machine.describe()['cpu']}, without compilation. "
    hardware += "Every path was replayed to the goal."
    lines = [
        f"# {title}",
        "",
        *text,
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
        *("| " + " | ".join(cell.replace("nan", "") for cell in row) + " |" for row in body),
        "",
        *after,
        *([hardware] if "CPU s" in header else []),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def pick(rows: list[dict], **fields) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in fields.items())]


def mean(rows: list[dict], field: str) -> float:
    return float(np.mean([row[field] for row in rows])) if rows else float("nan")


def of_sums(above: np.ndarray, below: np.ndarray) -> str:
    """Ratio of the sums of two figures of the same problems and its 95% percentile-bootstrap
    interval over problems."""
    share = lambda which, axis=None: (
        above[which.astype(int)].sum(axis) / below[which.astype(int)].sum(axis)
    )
    problems = np.arange(len(above))
    low, high = report.bootstrap_ci(problems, share)
    return f"{share(problems):.3g} ({low:.3g} to {high:.3g})"


def interval(values: np.ndarray) -> str:
    """Mean and its 95% percentile-bootstrap interval over problems."""
    low, high = report.bootstrap_ci(values, np.mean)
    return f"{np.mean(values):.3g} ({low:.3g} to {high:.3g})"


def solved(rows: list[dict]) -> list[dict]:
    return [row for row in rows if np.isfinite(row["cost"])]


# ---- studies -------------------------------------------------------------------------------------

SPACES = ("cube3", "cube3?actions=156", "cube3?actions=1884")
EASY, HARD = 8, 12  # quarter turns; A* over 1884 actions cannot go further than the first


def actions(folder: Path) -> None:
    """The paper's claim: Q* hardly pays for more actions, A* does."""
    count, rows, body, ratios = 100, load(folder), [], []
    settings = [dict(depth=EASY, weight=0.6, batch=100)]
    settings += [
        dict(depth=HARD, weight=weight, batch=batch)
        for weight, batch in ((0.6, 100), (0.6, 1_000), (0.8, 1_000))
    ]
    for setting in settings:
        depth, weight, batch = setting.values()
        for env, name in itertools.product(
            SPACES, ("Q*", "A*", "deferred A*") if depth == EASY else ("Q*",)
        ):
            if not pick(rows, search=name, env=env, **setting):
                searcher = Searcher(
                    name,
                    env,
                    batch,
                    1_500_000 if name != "Q*" else 15_000 if depth == EASY else 150_000,
                )
                rows += [
                    searcher(i, state, weight, depth)
                    for i, state in enumerate(scrambles("cube3", depth, count))
                ]
                save(folder, rows)
            mine = pick(rows, search=name, env=env, **setting)
            done = solved(mine)
            body.append(
                [
                    str(depth),
                    f"{weight}, {batch:,}",
                    str(mine[0]["actions"]),
                    name,
                    f"{len(done)} of {len(mine)}",
                    *(
                        f"{mean(done, field):,.4g}"
                        for field in (
                            "cost",
                            "generated",
                            "network_calls",
                            "nodes",
                            "mebibytes",
                            "cpu_seconds",
                        )
                    ),
                ]
            )

    def compare(title: str, setting: dict, above: dict, below: dict) -> None:
        pairs = [
            (x, y)
            for x, y in zip(
                pick(rows, **setting, **above), pick(rows, **setting, **below), strict=True
            )
            if np.isfinite(x["cost"]) and np.isfinite(y["cost"]) and y["generated"]
        ]
        columns = lambda field: np.array([[x[field], y[field]] for x, y in pairs], float).T
        ratios.append(
            [
                title,
                "{depth} | {weight}, {batch:,}".format(**setting),
                *(of_sums(*columns(field)) for field in ("generated", "cpu_seconds", "cost")),
                *(interval(np.divide(*columns(field))) for field in ("generated", "cpu_seconds")),
            ]
        )

    for size in (12, 156, 1884):
        compare(
            f"A* / Q*, {size} actions",
            settings[0],
            dict(search="A*", actions=size),
            dict(search="Q*", actions=size),
        )
    for setting in settings:
        for size in (156, 1884):
            compare(
                f"Q*, {size} / 12 actions",
                setting,
                dict(search="Q*", actions=size),
                dict(search="Q*", actions=12),
            )
    table = [
        "| ratio | turns | weight, batch | nodes generated | CPU time | cost | nodes, by problem | time, by problem |",
        "|---" * 8 + "|",
        *("| " + " | ".join(row) + " |" for row in ratios),
        "",
        "Ratios of the sums over the problems that both solved, and by problem the means of each one's own ratio, with "
        "95% bootstrap intervals over problems. The paper's four: Q* with 1884 actions takes less than 4 times the "
        "time and 3 times the nodes of 12; against A* it is up to 129 times faster and generates up to 1288 times "
        "fewer nodes.",
        "",
    ]
    write(
        folder,
        "Q* and A* with 12, 156 and 1884 actions",
        [
            f"The cube, {count} scrambles of each number of quarter turns. An action of k turns costs k, so the best cost is "
            f"the same for every set of actions. Networks are of one size ({NETWORK}), trained on 60 million states; the A* "
            "searches share one value network. Made by `python scripts/qstar.py --only actions`; all searches in searches.csv. "
            "Mebibytes: what nodes and entries take that were stored."
        ],
        [
            "turns",
            "weight, batch",
            "actions",
            "search",
            "solved",
            "cost",
            "generated",
            "network calls",
            "nodes",
            "MiB",
            "CPU s",
        ],
        body,
        *table,
    )


PUBLISHED = {  # environment: file, weight, batch, nodes
    "tile15": ("puzzle15_test.npz", 0.8, 400, 1_000_000),
    "lights-out7": ("lightsout7_test.npz", 0.2, 1_000, 1_000_000),
    "tile24": ("puzzle24_test.npz", 0.8, 1_000, 1_000_000),
    "cube3": ("cube3_test.npz", 0.6, 1_000, 500_000),
}


def published(folder: Path) -> None:
    """DeepCubeA's test states, as far as these networks reach."""
    rows, body = load(folder), []
    for env, (file, weight, batch, nodes) in PUBLISHED.items():
        if not pick(rows, env=env):
            searcher = Searcher("Q*", env, batch, nodes)
            with np.load(DATA / file) as arrays:
                states, best = searcher.puzzle.read(dict(arrays)), arrays["opt_len"]
            rows += [searcher(i, states[i], weight, best=int(best[i])) for i in range(len(states))]
            save(folder, rows)
        mine = pick(rows, env=env)
        done = solved(mine)
        body.append(
            [
                env,
                f"{weight:g}",
                f"{batch:,}",
                f"{nodes:,}",
                f"{len(done)} of {len(mine)}",
                f"{sum(r['cost'] == r['best'] for r in done)}",
                f"{mean(done, 'cost'):.2f} ({mean(done, 'best'):.2f})" if done else "",
                f"{mean(done, 'generated'):,.4g}",
                f"{mean(done, 'cpu_seconds'):.2f}",
            ]
        )
    write(
        folder,
        "DeepCubeA's test states",
        [
            "The published states (half of the set) searched by Q* with the networks in results/qstar/weights, which were "
            "trained on one CPU core for 8 to 29 minutes. DeepCubeA's, trained for a million updates of up to 10,000 states on "
            "GPUs, solve all: 65.0% of the cube's and 99.8% of the 24-puzzle's at the best cost, 15-puzzle and Lights Out all. "
            "Made by `python scripts/qstar.py --only published`."
        ],
        [
            "puzzle",
            "weight",
            "batch",
            "nodes allowed",
            "solved",
            "at the best cost",
            "cost (best possible)",
            "generated",
            "CPU s",
        ],
        body,
    )


def depths(folder: Path) -> None:
    """How far from the goal the cube's network reaches."""
    count, weight, batch, limit = 10, 0.6, 300, 300_000
    searcher, rows, body = Searcher("Q*", "cube3", batch, 2 * limit), load(folder), []
    for depth in range(1, 31):
        if not pick(rows, depth=depth):
            rows += [
                searcher(i, state, weight, depth, max_generated=limit)
                for i, state in enumerate(scrambles("cube3", depth, count, seed=depth))
            ]
            save(folder, rows)
        mine = pick(rows, depth=depth)
        done = solved(mine)
        body.append(
            [
                str(depth),
                f"{len(done) / count:.0%}",
                f"{mean(done, 'cost'):.2f}",
                f"{mean(done, 'generated'):,.4g}",
                f"{mean(mine, 'cpu_seconds'):.2f}",
            ]
        )
    write(
        folder,
        "The cube by scramble depth",
        [
            f"{count} scrambles of each depth, Q* with weight {weight}, batch {batch:,} and at most {limit:,} nodes generated. "
            "Made by `python scripts/qstar.py --only depths`."
        ],
        ["quarter turns", "solved", "cost", "generated", "CPU s"],
        body,
    )


def sweep(folder: Path) -> None:
    """Cost against nodes: what weight and batch trade."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    depth, count, batches, weights, rows, body = (
        12,
        10,
        (100, 1_000),
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        load(folder),
        [],
    )
    states, limit = scrambles("cube3", depth, count, seed=1), 1_000_000
    for name in ("Q*", "A*", "deferred A*"):
        for batch in batches:
            if pick(rows, search=name, batch=batch):
                continue
            searcher = Searcher(name, "cube3", batch, limit)
            for weight in weights:
                rows += [
                    searcher(i, state, weight, depth, max_generated=limit)
                    for i, state in enumerate(states)
                ]
            save(folder, rows)
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for (name, colour), (batch, style) in [
        (a, b)
        for a in zip(("Q*", "A*", "deferred A*"), report.COLOURS, strict=False)
        for b in zip(batches, (".-", "s--"), strict=True)
    ]:
        points = [solved(pick(rows, search=name, batch=batch, weight=weight)) for weight in weights]
        whole = [p for p in points if len(p) == count]
        for panel, field in zip(panels, ("generated", "cpu_seconds"), strict=True):
            panel.plot(
                [mean(p, field) for p in whole],
                [mean(p, "cost") for p in whole],
                style,
                markersize=5,
                color=colour,
                label=f"{name}, batch {batch:,}",
            )
        for weight, p in zip(weights, points, strict=True):
            body.append(
                [
                    name,
                    f"{batch:,}",
                    f"{weight:g}",
                    f"{len(p)} of {count}",
                    f"{mean(p, 'cost'):.2f}",
                    f"{mean(p, 'generated'):,.4g}",
                    f"{mean(p, 'cpu_seconds'):.2f}",
                ]
            )
    panels[0].set(xlabel="nodes generated", ylabel="cost of the path", xscale="log")
    panels[1].set(xlabel="CPU seconds", xscale="log")
    for panel in panels:
        panel.xaxis.set_minor_formatter(NullFormatter())
    panels[1].legend(fontsize=7)
    figure.savefig(folder / "curves.png", dpi=160)
    write(
        folder,
        "Cost of the path against nodes and time",
        [
            f"The cube, {count} scrambles of {depth} quarter turns, weights 0 to 1 (along each line), at most {limit:,} nodes "
            "generated; means over the problems solved, drawn where all were. Made by `python scripts/qstar.py --only sweep`.",
            "",
            "![cost against nodes](curves.png)",
        ],
        ["search", "batch", "weight", "solved", "cost", "generated", "CPU s"],
        body,
    )


def lights(folder: Path) -> None:
    """Lights Out by size and by the presses that a state needs, and what makes the largest
    learnable."""
    count, weight, batch, limit, rows, body = 10, 0.2, 1_000, 300_000, load(folder), []
    for side in (5, 6, 7):
        env = f"lights-out{side}"
        searcher = None
        for presses in range(4, 29, 4):
            states = pressed(side, presses, count)
            if not len(states):
                continue
            if not pick(rows, env=env, depth=presses):
                searcher = searcher or Searcher("Q*", env, batch, 2 * limit)
                best = searcher.puzzle.distance(states)
                rows += [
                    searcher(i, state, weight, presses, int(best[i]), limit)
                    for i, state in enumerate(states)
                ]
                save(folder, rows)
            mine = pick(rows, env=env, depth=presses)
            done = solved(mine)
            body.append(
                [
                    f"{side} by {side}",
                    str(presses),
                    f"{len(done)} of {len(mine)}",
                    str(sum(r["cost"] == r["best"] for r in done)),
                    f"{mean(done, 'generated'):,.4g}",
                    f"{mean(mine, 'cpu_seconds'):.2f}",
                ]
            )
    after = [
        "What makes 7 by 7 learnable: there each press of the solution is the parity of 14 to 23 of the 49 lights. The "
        "table has the share of states in which the smallest q is a press of the solution, after ten million states of "
        "each kind: Q-learning from scrambles of at most 20 presses; or warm-up, told the presses made, which were "
        "drawn so that any lights are on (`--cold 0`), or few (the default). Networks: residual (layers of 1024 and "
        "256, two blocks) or one layer of 512 cosines (`--periodic`). One seed.",
        "",
    ]
    if not (folder / "learnt.csv").exists():
        learn(folder / "learnt.csv")
    with (folder / "learnt.csv").open() as file:
        known = list(csv.DictReader(file))
    arms = list(dict.fromkeys(f"{row['learnt_from']}, {row['network']}" for row in known))
    after += ["| presses | chance | " + " | ".join(arms) + " |", "|---" * (2 + len(arms)) + "|"]
    for presses in range(4, 29, 4):
        shares = [float(row["right"]) for row in known if int(row["presses"]) == presses]
        after.append(
            f"| {presses} | {presses / 49:.0%} | "
            + " | ".join(f"{share:.0%}" for share in shares)
            + " |"
        )
    after.append("")
    write(
        folder,
        "Lights Out by size and presses",
        [
            f"{count} states of each kind, made of that many different presses and needing no fewer, Q* with weight {weight}, "
            f"batch {batch:,} and at most {limit:,} nodes generated. Made by `python scripts/qstar.py --only lights`."
        ],
        ["board", "presses", "solved", "at the best cost", "generated", "CPU s"],
        body,
        *after,
    )


def press(key: jax.Array, presses: jax.Array, puzzle: LightsOut) -> tuple[jax.Array, jax.Array]:
    """For each entry of `presses` a set of that many different presses and the state it makes: two
    uint8 [n, size]."""
    cells = jax.random.uniform(key, (len(presses), puzzle.size)).argsort(-1) < presses[:, None]
    return cells.astype(jnp.uint8), (cells @ puzzle.switches % 2).astype(jnp.uint8)


def pressed(side: int, presses: int, count: int) -> np.ndarray:
    """Up to `count` states [n, side * side] of Lights Out that need exactly `presses` presses; none
    where none does."""
    puzzle = rlzoo.make(f"lights-out{side}").inner
    _, states = press(jax.random.key(presses), jnp.full(200 * count, presses), puzzle)
    return np.asarray(states[puzzle.distance(states) == presses][:count])


NETWORKS = {
    "residual": "--first 1024 --width 256 --blocks 2",
    "cosines": "--first 512 --periodic --learning-rate 6e-3",
}
LEARNT = {
    "Q-learning": "--scramble 20",
    "any lights": "--warmup-steps 10_000_000 --cold 0",
    "few lights": "--warmup-steps 10_000_000",
}


def learn(file: Path) -> None:
    """How often the smallest q is right on Lights Out 7x7: by what was learnt from, the network,
    and the presses needed."""
    puzzle = rlzoo.make("lights-out7").inner
    flags = "--total-steps 10_000_000 --halving-steps 2_500_000 --block-steps 100_000 --loss-threshold 1 --eval-every 0"
    rows = [("learnt_from", "network", "presses", "right")]
    for (name, source), (network, shape) in itertools.product(LEARNT.items(), NETWORKS.items()):
        run = RUNS / "lights" / f"{network} {name}"
        shutil.rmtree(run, ignore_errors=True)
        subprocess.run(
            [
                sys.executable,
                "algorithms/qstar.py",
                "--env",
                "lights-out7",
                *shape.split(),
                *source.split(),
                *flags.split(),
                "--out",
                str(run),
            ],
            check=True,
            cwd=ROOT,
        )
        act, policy = rlzoo.load(run)
        for presses in range(4, 29, 4):
            answer, states = press(jax.random.key(presses), jnp.full(2_000, presses), puzzle)
            best = act(policy, puzzle.inputs(states), None)
            rows.append(
                (name, network, str(presses), f"{float(qstar.of(answer, best).mean()):.4g}")
            )
    with file.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)


def follow(folder: Path) -> None:
    """What learning on the way of its own actions gains, on Lights Out 5x5."""
    flags = f"{LIGHTS} --total-steps 4_000_000 --halving-steps 1_000_000 --sweep follow=0,1,4,15"
    command = ["algorithms/qstar.py", "--env", "lights-out5", *flags.split()]
    if not (folder / "summary.json").exists():
        shutil.rmtree(RUNS / "follow", ignore_errors=True)
        subprocess.run(
            [sys.executable, *command, "--out", str(RUNS / "follow")], check=True, cwd=ROOT
        )
        keep(RUNS / "follow", folder)
    run = report.read_run(folder)
    last = {
        name: run.metrics[name][run.metrics["step"] == run.metrics["step"].max()]
        for name in ("follow", "eval/solved", "eval/value", "loss/q")
    }
    body = [
        [
            f"{value:g}",
            *(
                f"{last[name][last['follow'] == value].item():.3g}"
                for name in ("eval/solved", "eval/value", "loss/q")
            ),
        ]
        for value in (0, 1, 4, 15)
    ]
    report.plot_curves([run], folder / "curves.png", "eval/solved", "Lights Out 5x5 by `follow`")
    write(
        folder,
        "Learning on the way of its own actions",
        [
            "Q-learning on Lights Out 5x5 from scrambles alone (`follow` 0), or also from the states that its own actions lead "
            "to, on average so many from each scramble. One seed; the share of 300 scrambles of 1 to 30 presses that following "
            "the smallest q solves within 50 moves, the mean of the smallest q on them, the last loss. Made by `python "
            f"scripts/qstar.py --only follow`, that is `python {' '.join(command)}`.",
            "",
            "![solved against steps](curves.png)",
        ],
        ["follow", "solved", "value", "loss"],
        body,
    )


STUDIES = {
    "actions": actions,
    "published": published,
    "depths": depths,
    "sweep": sweep,
    "lights": lights,
    "follow": follow,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs="*", choices=list(TRAINING))
    parser.add_argument("--only", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    arguments = parser.parse_args()
    if arguments.train is not None:
        for name in arguments.train or TRAINING:
            make_network(name)
    else:
        for study in arguments.only:
            if not (OUT / study / "README.md").exists():
                STUDIES[study](OUT / study)
