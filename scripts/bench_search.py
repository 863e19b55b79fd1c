"""Nodes a second of A*, deferred A* and Q* with hand-written heuristics, beside what JAxtar was
measured at.

    python scripts/bench_search.py          # writes results/search; about 5 minutes

JAxtar (b0f2ba5) does not install beside today's jax, so its figures are those measured earlier on
another machine of 2 cores, with its batch of 1000, 1 million nodes, weight 1, compilation excluded.
Both sides count the states stored in the closed set, by second of processor time, and both use
JAxtar's heuristics: Manhattan distance with linear conflicts; two fifths of the lights; twice the
shares of wrong stickers of the faces (the last two can overestimate). A matrix product timed in the
same process scales the figures from that machine to this one. Problems of the 15-puzzle are states
of the published test file (`$RLZOO_DATA/qstar`, by default ../shared/data/qstar); the others are
scrambles, where the exact distance is known those that are as far from the goal as JAxtar's were.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rlzoo.algorithms import astar, qstar

import rlzoo
from rlzoo import machine
from rlzoo.study import ROOT, fill, table, write_csv

OUT = ROOT / "results" / "search"
DATA = Path(os.environ.get("RLZOO_DATA", ROOT.parent / "shared" / "data")) / "qstar"
BATCH, NODES, REPEATS = 1_000, 1_000_000, 3
THEIR_GFLOPS = 209.0 / 2
"""of one core of the machine on which JAxtar was measured: 2048 x 2048 float32 matrices"""


class Case(NamedTuple):
    env: str
    problem: str
    states: np.ndarray
    heuristic: Callable
    """uint8 [n, size] -> [n]"""
    theirs: dict[str, tuple[float, float]]
    """thousands of nodes a CPU second of JAxtar, lowest and highest"""


def cases() -> list[Case]:
    def moved(
        env: str, moves: int, distances: tuple[int, ...], heuristic: Callable, theirs: dict
    ) -> Case:
        """States that `moves` random moves made: the first of each of these distances, or else the
        first three."""
        puzzle = rlzoo.make(env).inner
        states = puzzle.scramble(jax.random.key(0), jnp.full(300, moves), moves)
        problem = f"{moves} random moves"
        rows = [0, 1, 2]
        if distances:
            problem += f", distance {', '.join(map(str, distances))}"
            exact = np.asarray(puzzle.distance(states))
            rows = [np.flatnonzero(exact == distance)[0] for distance in distances]
        return Case(env, problem, np.asarray(states)[rows], lambda s: heuristic(puzzle, s), theirs)

    def wrong_stickers(cube, states):
        faces = (states != jnp.asarray(cube.goal)).reshape(*states.shape[:-1], 6, -1)
        # A middle sticker is never wrong.
        stickers = faces.shape[-1] - faces.shape[-1] % 2
        return 2.0 * faces.sum((-1, -2)) / stickers

    tiles = rlzoo.make("tile15").inner
    with np.load(DATA / "puzzle15_test.npz") as file:
        published = file["states"][[0, 100]]

    def lights(puzzle, states):
        return 0.4 * states.sum(-1)

    return [
        Case(
            "tile15",
            "published states 0 and 100",
            published,
            tiles.linear_conflict,
            {"A*": (66, 83), "deferred A*": (30, 32), "Q*": (34, 40)},
        ),
        moved("lights-out5", 8, (8,), lights, {"A*": (113, 122), "Q*": (9, 11)}),
        moved("cube2", 9, (7, 5), wrong_stickers, {"A*": (86, 120), "Q*": (15, 18)}),
        moved("cube3", 7, (), wrong_stickers, {"A*": (76, 116), "Q*": (10, 10)}),
    ]


def solvers(case: Case) -> dict:
    puzzle = rlzoo.make(case.env).inner

    def value(params, states):
        return case.heuristic(states).astype(jnp.float32)

    def q(params, states):
        return puzzle.costs + value(params, puzzle.apply_all(states))

    limits = {"batch": BATCH, "max_nodes": NODES}
    return {
        "A*": astar.with_values(puzzle, value, max_entries=NODES, **limits),
        "deferred A*": astar.with_values(puzzle, value, deferred=True, max_entries=NODES, **limits),
        "Q*": qstar.with_values(puzzle, q, max_entries=4 * NODES, **limits),
    }


def calibrate() -> float:
    """GFLOP a CPU second in products of 2048 x 2048 float32 matrices."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    began = time.process_time()
    for _ in range(5):
        jax.block_until_ready(product(x, x))
    return 5 * 2 * 2048**3 / (time.process_time() - began) / 1e9


def main() -> None:
    rows, gflops = [], calibrate()
    for case in cases():
        for name, solver in solvers(case).items():
            began = time.process_time()
            solver.compile(None)
            compiling = time.process_time() - began
            for i, state in enumerate(case.states):
                seconds = []
                for _ in range(REPEATS):
                    began = time.process_time()
                    solution = solver(None, state)
                    seconds.append(time.process_time() - began)
                rows.append(
                    {
                        "env": case.env,
                        "search": name,
                        "problem": i,
                        "status": solution.status,
                        "cost": solution.cost,
                        "nodes": solution.nodes,
                        "generated": solution.generated,
                        "cpu_seconds": min(seconds),
                        "compile_cpu_seconds": compiling,
                    }
                )
                print(rows[-1], flush=True)
    write_csv(OUT / "table.csv", rows)
    write(rows, gflops)


def write(rows: list[dict], gflops: float) -> None:
    scale = gflops / THEIR_GFLOPS
    body = []
    for case in cases():
        for name in ("A*", "deferred A*", "Q*"):
            mine = [row for row in rows if (row["env"], row["search"]) == (case.env, name)]
            nodes = [row["nodes"] for row in mine]
            speed = sum(nodes) / sum(row["cpu_seconds"] for row in mine) / 1e3
            theirs = ratio = ""
            if name in case.theirs:
                low, high = (x * scale for x in case.theirs[name])
                theirs, ratio = (
                    f"{low:.0f} to {high:.0f}",
                    f"{speed / high:.1f} to {speed / low:.1f}",
                )
            body.append(
                [
                    case.env,
                    case.problem,
                    name,
                    f"{min(nodes):,} to {max(nodes):,}",
                    f"{speed:.0f}",
                    theirs,
                    ratio,
                    f"{mine[0]['compile_cpu_seconds']:.1f}",
                ]
            )
    heads = ["puzzle", "problems", "search", "nodes stored", "thousand a CPU second"]
    heads += ["JAxtar, scaled", "ratio", "compiling, s"]
    fill(
        OUT / "README.md",
        cpu=machine.describe()["cpu"],
        gflops=f"{gflops:.0f}",
        scale=f"{scale:.2f}",
        table=table(heads, body),
    )


if __name__ == "__main__":
    main()
