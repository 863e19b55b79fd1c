"""Searches with the networks of results/qstar, and the tables that studies keep of them."""

import csv
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from rlzoo.algorithms import astar, qstar

import rlzoo
from rlzoo import machine, search
from rlzoo.study import ROOT, Study, write_csv
from rlzoo.tools import solve

MODULES = {"qstar": qstar, "astar": astar}
WHOLE = {
    "actions",
    "batch",
    "problem",
    "depth",
    "best",
    "generated",
    "network_calls",
    "nodes",
    "pushed",
}
REAL = {"weight", "cost", "mebibytes", "cpu_seconds"}
Row = dict[str, Any]


def network(algorithm: str, env: str) -> solve.Trained:
    module = MODULES[algorithm]
    path = solve.weights_file(algorithm, env)
    if not path.exists():
        sys.exit(f"{path.relative_to(ROOT)} is missing: run python scripts/qstar.py --train first")
    return solve.load(path, module.make, module.Config, rlzoo.make(env))


class Searcher:
    """One compiled search and the network that guides it."""

    def __init__(self, name: str, env: str, batch: int, max_nodes: int):
        self.name = name
        self.env = env
        self.batch = batch
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
    ) -> Row:
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


class Searches:
    """The table searches.csv of a study."""

    def __init__(self, study: Study, name: str):
        self.study = study
        self.folder = study.folder / name
        self.file = self.folder / "searches.csv"
        self.rows: list[Row] = []
        self.parts: dict[str, str] = {}
        if self.file.exists():
            with self.file.open() as lines:
                self.rows = [parsed(row) for row in csv.DictReader(lines)]

    def pick(self, **fields: Any) -> list[Row]:
        return [row for row in self.rows if all(row[k] == v for k, v in fields.items())]

    def searcher(self, name: str, env: str, batch: int, max_nodes: int) -> Searcher:
        """For searches that the table lacks."""
        self.study.commit()
        self.parts = {"cpu": machine.describe()["cpu"]}
        return Searcher(name, env, batch, max_nodes)

    def add(self, rows: Iterable[Row]) -> None:
        self.rows += rows
        write_csv(self.file, self.rows)


def parsed(row: dict[str, str]) -> Row:
    found: Row = dict(row)
    for key, value in row.items():
        if key in WHOLE and value:
            found[key] = int(value)
        elif key in REAL:
            found[key] = float(value)
    return found
