"""The networks and the studies in results/qstar: what Q* search saves where there are many actions,
and what it reaches.

    # every network of TRAINING, 3 hours of one core; done ones are kept
    python scripts/qstar.py --train
    python scripts/qstar.py --train cube3        # one of them
    # the studies, with the weights in results/qstar/weights
    python scripts/qstar.py
    # one of them: actions, published, depths, sweep, lights, follow
    python scripts/qstar.py --only actions

Training leaves its record in results/qstar/training and its weights, in half precision, in
results/qstar/weights, where `--solve` finds them. Every study keeps a table of all its searches
(searches.csv); what that holds is not searched again.
"""

import csv
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from programs.searches import MODULES, Row, Searches
from rlzoo.algorithms import qstar
from rlzoo.envs import LightsOut

import rlzoo
from rlzoo import report
from rlzoo.report import curves
from rlzoo.run.loading import trained
from rlzoo.run.record import Record
from rlzoo.study import ROOT, Study, bootstrap, fill, interval, parser, script, table, write_csv
from rlzoo.tools import solve

DATA = Path(os.environ.get("RLZOO_DATA", ROOT.parent / "shared" / "data")) / "qstar"
Parts = dict[str, str]

# ---- networks ------------------------------------------------------------------------------------

NETWORK = "--hidden 512 256 --num-blocks 2"
LONG = (
    f"{NETWORK} --batch-size 1_000 --scramble 26 --loss-threshold 3 --eval-every 2_000_000 "
    "--total-steps 60_000_000 --warmup-steps 50_000_000 --target-every 2_000_000 "
    "--halving-steps 12_500_000"
)
LIGHTS = (
    f"{NETWORK} --batch-size 500 --scramble 30 --target-every 50_000 --loss-threshold 1 "
    "--eval-every 1_000_000"
)
PARITIES = (
    "--hidden 512 --periodic --batch-size 1_000 --scramble 50 --target-every 100_000 "
    "--loss-threshold 1 --eval-every 2_000_000 --total-steps 36_000_000 "
    "--warmup-steps 24_000_000 --learning-rate 6e-3 --halving-steps 6_000_000"
)
TILES = f"{NETWORK} --target-every 50_000 --loss-threshold 4"
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


def make_network(study: Study, name: str) -> None:
    """Train, from where training was stopped if it was; what is done already is not done again."""
    algorithm, env, flags = TRAINING[name]

    def save_weights(run: Path) -> None:
        config = Record.read(run).config(MODULES[algorithm].Config)
        solve.save(solve.weights_file(algorithm, env), config, trained(run).policy)

    command = f"algorithms/{algorithm}.py --env {env} {flags}"
    study.once(f"training/{name}", command, then=save_weights)


# ---- figures -------------------------------------------------------------------------------------


def scrambles(env: str, depth: int, count: int, seed: int = 0) -> np.ndarray:
    puzzle = rlzoo.make(env).inner
    return np.asarray(puzzle.scramble(jax.random.key(seed), jnp.full(count, depth), depth))


def mean(rows: list[Row], field: str) -> float:
    return float(np.mean([row[field] for row in rows])) if rows else float("nan")


def text(value: float, spec: str) -> str:
    """Empty where there is no value."""
    return "" if np.isnan(value) else format(value, spec)


def solved(rows: list[Row]) -> list[Row]:
    return [row for row in rows if np.isfinite(row["cost"])]


def of_sums(above: np.ndarray, below: np.ndarray) -> str:
    """Ratio of the sums of two figures of the same problems, with its 95% interval over
    problems."""

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a.sum(-1) / b.sum(-1)

    value, replicates = bootstrap(ratio, above, below, paired=True)
    low, high = interval(replicates)
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def of_each(above: np.ndarray, below: np.ndarray) -> str:
    """Mean of the problems' own ratios, with its 95% interval over problems."""
    values = above / below
    low, high = report.bootstrap_ci(values, np.mean)
    return f"{np.mean(values):.3g} ({low:.3g} to {high:.3g})"


# ---- studies -------------------------------------------------------------------------------------

SPACES = ("cube3", "cube3?actions=156", "cube3?actions=1884")
SEARCHES = ("Q*", "A*", "deferred A*")
EASY, HARD = 8, 12  # quarter turns; A* over 1884 actions cannot go further than the first


def actions(study: Study) -> Parts:
    """The paper's claim: Q* hardly pays for more actions, A* does."""
    count = 100
    found = Searches(study, "actions")
    settings = [dict(depth=EASY, weight=0.6, batch=100)]
    settings += [
        dict(depth=HARD, weight=weight, batch=batch)
        for weight, batch in ((0.6, 100), (0.6, 1_000), (0.8, 1_000))
    ]
    fields = ("cost", "generated", "network_calls", "nodes", "mebibytes", "cpu_seconds")
    body = []
    for setting in settings:
        easy = setting["depth"] == EASY
        for env, name in itertools.product(SPACES, SEARCHES if easy else SEARCHES[:1]):
            if not found.pick(search=name, env=env, **setting):
                nodes = 1_500_000 if name != "Q*" else 15_000 if easy else 150_000
                searcher = found.searcher(name, env, setting["batch"], nodes)
                states = scrambles("cube3", setting["depth"], count)
                weight, depth = setting["weight"], setting["depth"]
                found.add([searcher(i, state, weight, depth) for i, state in enumerate(states)])
            mine = found.pick(search=name, env=env, **setting)
            done = solved(mine)
            body.append(
                [
                    *named(setting),
                    mine[0]["actions"],
                    name,
                    f"{len(done)} of {len(mine)}",
                    *(text(mean(done, field), ",.4g") for field in fields),
                ]
            )
    ratios = [
        [f"A* / Q*, {size} actions", *named(settings[0])]
        + compare(
            found.pick(**settings[0], search="A*", actions=size),
            found.pick(**settings[0], search="Q*", actions=size),
        )
        for size in (12, 156, 1884)
    ]
    ratios += [
        [f"Q*, {size} / 12 actions", *named(setting)]
        + compare(
            found.pick(**setting, search="Q*", actions=size),
            found.pick(**setting, search="Q*", actions=12),
        )
        for setting in settings
        for size in (156, 1884)
    ]
    heads = ["turns", "weight, batch", "actions", "search", "solved", "cost", "generated"]
    heads += ["network calls", "nodes", "MiB", "CPU s"]
    of_ratios = ["ratio", "turns", "weight, batch", "nodes generated", "CPU time", "cost"]
    of_ratios += ["nodes, by problem", "time, by problem"]
    return found.parts | {"table": table(heads, body), "ratios": table(of_ratios, ratios)}


def named(setting: dict) -> list[str]:
    return [str(setting["depth"]), f"{setting['weight']}, {setting['batch']:,}"]


def compare(above: list[Row], below: list[Row]) -> list[str]:
    """Ratios over the problems that both solved: of the sums, and by problem."""
    pairs = [
        (x, y)
        for x, y in zip(above, below, strict=True)
        if np.isfinite(x["cost"]) and np.isfinite(y["cost"]) and y["generated"]
    ]

    def columns(field: str) -> np.ndarray:
        return np.array([[x[field], y[field]] for x, y in pairs], float).T

    sums = [of_sums(*columns(field)) for field in ("generated", "cpu_seconds", "cost")]
    return sums + [of_each(*columns(field)) for field in ("generated", "cpu_seconds")]


PUBLISHED = {  # environment: file, weight, batch, nodes
    "tile15": ("puzzle15_test.npz", 0.8, 400, 1_000_000),
    "lights-out7": ("lightsout7_test.npz", 0.2, 1_000, 1_000_000),
    "tile24": ("puzzle24_test.npz", 0.8, 1_000, 1_000_000),
    "cube3": ("cube3_test.npz", 0.6, 1_000, 500_000),
}


def published(study: Study) -> Parts:
    """DeepCubeA's test states, as far as these networks reach."""
    found = Searches(study, "published")
    body = []
    for env, (file, weight, batch, nodes) in PUBLISHED.items():
        if not found.pick(env=env):
            searcher = found.searcher("Q*", env, batch, nodes)
            with np.load(DATA / file) as arrays:
                states = searcher.puzzle.read(dict(arrays))
                best = arrays["opt_len"]
            problems = range(len(states))
            found.add([searcher(i, states[i], weight, best=int(best[i])) for i in problems])
        mine = found.pick(env=env)
        done = solved(mine)
        costs = f"{mean(done, 'cost'):.2f} ({mean(done, 'best'):.2f})"
        body.append(
            [
                env,
                f"{weight:g}",
                f"{batch:,}",
                f"{nodes:,}",
                f"{len(done)} of {len(mine)}",
                sum(r["cost"] == r["best"] for r in done),
                costs if done else "",
                text(mean(done, "generated"), ",.4g"),
                text(mean(done, "cpu_seconds"), ".2f"),
            ]
        )
    heads = ["puzzle", "weight", "batch", "nodes allowed", "solved", "at the best cost"]
    heads += ["cost (best possible)", "generated", "CPU s"]
    return found.parts | {"table": table(heads, body)}


def depths(study: Study) -> Parts:
    """How far from the goal the cube's network reaches."""
    count, weight, batch, limit = 10, 0.6, 300, 300_000
    found = Searches(study, "depths")
    searcher = None
    body = []
    for depth in range(1, 31):
        if not found.pick(depth=depth):
            searcher = searcher or found.searcher("Q*", "cube3", batch, 2 * limit)
            states = scrambles("cube3", depth, count, seed=depth)
            found.add(
                [
                    searcher(i, state, weight, depth, max_generated=limit)
                    for i, state in enumerate(states)
                ]
            )
        mine = found.pick(depth=depth)
        done = solved(mine)
        body.append(
            [
                depth,
                f"{len(done) / count:.0%}",
                text(mean(done, "cost"), ".2f"),
                text(mean(done, "generated"), ",.4g"),
                text(mean(mine, "cpu_seconds"), ".2f"),
            ]
        )
    heads = ["quarter turns", "solved", "cost", "generated", "CPU s"]
    return found.parts | {"table": table(heads, body)}


def sweep(study: Study) -> Parts:
    """Cost against nodes: what weight and batch trade."""
    depth, count, limit = 12, 10, 1_000_000
    batches = (100, 1_000)
    weights = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    found = Searches(study, "sweep")
    for name, batch in itertools.product(SEARCHES, batches):
        if found.pick(search=name, batch=batch):
            continue
        searcher = found.searcher(name, "cube3", batch, limit)
        states = scrambles("cube3", depth, count, seed=1)
        found.add(
            [
                searcher(i, state, weight, depth, max_generated=limit)
                for weight in weights
                for i, state in enumerate(states)
            ]
        )

    body = []
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = dict(zip(SEARCHES, curves.COLORS, strict=False))
    styles = dict(zip(batches, (".-", "s--"), strict=True))
    for name, batch in itertools.product(SEARCHES, batches):
        points = [solved(found.pick(search=name, batch=batch, weight=w)) for w in weights]
        whole = [p for p in points if len(p) == count]
        for panel, field in zip(panels, ("generated", "cpu_seconds"), strict=True):
            panel.plot(
                [mean(p, field) for p in whole],
                [mean(p, "cost") for p in whole],
                styles[batch],
                markersize=5,
                color=colors[name],
                label=f"{name}, batch {batch:,}",
            )
        for weight, p in zip(weights, points, strict=True):
            body.append(
                [
                    name,
                    f"{batch:,}",
                    f"{weight:g}",
                    f"{len(p)} of {count}",
                    text(mean(p, "cost"), ".2f"),
                    text(mean(p, "generated"), ",.4g"),
                    text(mean(p, "cpu_seconds"), ".2f"),
                ]
            )
    panels[0].set(xlabel="nodes generated", ylabel="cost of the path", xscale="log")
    panels[1].set(xlabel="CPU seconds", xscale="log")
    for panel in panels:
        panel.xaxis.set_minor_formatter(NullFormatter())
    panels[1].legend(fontsize=7)
    figure.savefig(found.folder / "curves.png", dpi=160)
    heads = ["search", "batch", "weight", "solved", "cost", "generated", "CPU s"]
    return found.parts | {"table": table(heads, body)}


PRESSES = range(4, 29, 4)


def lights(study: Study) -> Parts:
    """Lights Out by size and by the presses that a state needs, and what makes the largest
    learnable."""
    count, weight, batch, limit = 10, 0.2, 1_000, 300_000
    found = Searches(study, "lights")
    body = []
    for side in (5, 6, 7):
        env = f"lights-out{side}"
        searcher = None
        for presses in PRESSES:
            states = pressed(side, presses, count)
            if not len(states):
                continue
            if not found.pick(env=env, depth=presses):
                searcher = searcher or found.searcher("Q*", env, batch, 2 * limit)
                best = searcher.puzzle.distance(states)
                found.add(
                    [
                        searcher(i, state, weight, presses, int(best[i]), limit)
                        for i, state in enumerate(states)
                    ]
                )
            mine = found.pick(env=env, depth=presses)
            done = solved(mine)
            body.append(
                [
                    f"{side} by {side}",
                    presses,
                    f"{len(done)} of {len(mine)}",
                    sum(r["cost"] == r["best"] for r in done),
                    text(mean(done, "generated"), ",.4g"),
                    text(mean(mine, "cpu_seconds"), ".2f"),
                ]
            )
    file = found.folder / "learnt.csv"
    if not file.exists():
        study.commit()
        write_csv(file, learn())
    with file.open() as lines:
        known = list(csv.DictReader(lines))
    arms = list(dict.fromkeys(f"{row['learnt_from']}, {row['network']}" for row in known))
    shares = [
        [presses, f"{presses / 49:.0%}"]
        + [f"{float(row['right']):.0%}" for row in known if int(row["presses"]) == presses]
        for presses in PRESSES
    ]
    heads = ["board", "presses", "solved", "at the best cost", "generated", "CPU s"]
    return found.parts | {
        "table": table(heads, body),
        "learnt": table(["presses", "chance", *arms], shares),
    }


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
    "residual": "--hidden 1024 256 --num-blocks 2",
    "cosines": "--hidden 512 --periodic --learning-rate 6e-3",
}
LEARNT = {
    "Q-learning": "--scramble 20",
    "any lights": "--warmup-steps 10_000_000 --walk-beta 0",
    "few lights": "--warmup-steps 10_000_000",
}
LEARNING = (
    "--total-steps 10_000_000 --halving-steps 2_500_000 --target-every 100_000 --loss-threshold 1 "
    "--eval-every 0"
)


def learn() -> list[dict[str, str]]:
    """How often the smallest q is right on Lights Out 7x7: by what was learned from, the network,
    and the presses needed."""
    puzzle = rlzoo.make("lights-out7").inner
    rows = []
    for (name, source), (kind, shape) in itertools.product(LEARNT.items(), NETWORKS.items()):
        run = ROOT / "runs" / "qstar" / "lights" / f"{kind} {name}"
        shutil.rmtree(run, ignore_errors=True)
        flags = f"--env lights-out7 {shape} {source} {LEARNING}"
        command = [sys.executable, "algorithms/qstar.py", *flags.split(), "--out", str(run)]
        subprocess.run(command, check=True, cwd=ROOT)
        act, policy = rlzoo.load(run)
        for presses in PRESSES:
            answer, states = press(jax.random.key(presses), jnp.full(2_000, presses), puzzle)
            best = act(policy, puzzle.inputs(states), None)
            right = float(qstar.taken(answer, best).mean())
            rows.append(
                {
                    "learnt_from": name,
                    "network": kind,
                    "presses": str(presses),
                    "right": f"{right:.4g}",
                }
            )
    return rows


def follow(study: Study) -> Parts:
    """What learning on the way of its own actions gains, on Lights Out 5x5."""
    flags = f"{LIGHTS} --total-steps 4_000_000 --halving-steps 1_000_000 --sweep follow=0,1,4,15"
    run = study.once("follow", f"algorithms/qstar.py --env lights-out5 {flags}")
    last = run.metrics["step"] == run.metrics["step"].max()
    body = []
    for value in (0, 1, 4, 15):
        row = last & (run.metrics["follow"] == value)
        found = [run.metrics[name][row].item() for name in ("eval/solved", "eval/value", "loss/q")]
        body.append([f"{value:g}", *(f"{x:.3g}" for x in found)])
    title = "Lights Out 5x5 by `follow`"
    report.plot_curves([run], study.folder / "follow" / "curves.png", "eval/solved", title)
    return {"table": table(["follow", "solved", "value", "loss"], body)}


STUDIES: dict[str, Callable[[Study], Parts]] = {
    "actions": actions,
    "published": published,
    "depths": depths,
    "sweep": sweep,
    "lights": lights,
    "follow": follow,
}


def main() -> None:
    known = parser(__doc__, STUDIES)
    known.add_argument("--train", nargs="*", choices=list(TRAINING), metavar="NAME")
    flags = known.parse_args()
    study = Study("qstar", flags.dirty)
    if flags.train is not None:
        for name in flags.train or TRAINING:
            make_network(study, name)
        return
    for name in flags.only:
        fill(study.folder / name / "README.md", **STUDIES[name](study))


if __name__ == "__main__":
    script(main)
