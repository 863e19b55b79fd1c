"""`--solve`: solving given states with a trained network.

    rlzoo solve qstar FILE.npz --env cube3 --out DIR       (states of a file)
    rlzoo solve qstar scramble:20 --env cube3 --count 5    (20 moves from the goal)
    python algorithms/qstar.py --env cube3 --solve scramble:20

The network comes from a run (`--run`) or from the weights that rlzoo ships. Each state gives a line
on the terminal and a row in DIR/solutions.csv, written at once; its moves are the actions' names,
in order.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlzoo import machine
from rlzoo.algorithm import Refused
from rlzoo.cli.parsing import Field, arguments, fields_of, parse
from rlzoo.run.options import run_folder
from rlzoo.suites import registry
from rlzoo.tools import solve
from rlzoo.tools.solve import Options
from rlzoo.worlds import puzzle_of

MOST = 1_000_000  # states to solve by one command


def main(make: Callable, Config: type, solver: Callable, argv: list[str], prog: str) -> None:
    """The command line."""
    path = Path(inspect.getsourcefile(make) or "")
    options, own = _parse(solver, argv, prog, path.stem)
    if not 0 <= options.weight <= 1:
        raise Refused(f"--weight is {options.weight}; it must be between 0 and 1")
    for name in ("batch", "node_limit", "max_generated", "count"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise Refused(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if (options.count or 1) > MOST:
        raise Refused(f"--count is {options.count:,}; it must be at most {MOST:,}")
    if not 0 <= options.seed < 2**32:
        raise Refused(f"--seed is {options.seed}; seeds are 32-bit numbers")
    env = registry.make(options.env)
    puzzle = puzzle_of(env)
    states, known = solve.states(options, puzzle)
    if options.out and (options.out / "solutions.csv").exists():
        raise Refused(f"{options.out} holds solutions.csv already; choose another --out")
    machine.keep_compiled()
    found = (
        solve.from_run(options.run, make, Config, env)
        if options.run
        else solve.shipped(path.stem, options.env, make, Config, env)
    )
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(found.policy)):
        raise Refused(
            f"the network of {found.source} is not finite: its training has diverged; train it "
            "again"
        )
    search = solve.build(solver, found.config, puzzle, options, own).compile(found.policy)
    out = options.out or run_folder(path.stem, options.env)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "solutions.csv").open("w", newline="") as file:
            solve.solve_all(search, found, puzzle, states, known, options, out, file)
    except OSError as error:
        raise Refused(f"cannot write to {out}: {error.strerror}; choose another --out") from error


def _parse(
    solver: Callable, argv: list[str], prog: str, title: str
) -> tuple[Options, dict[str, Any]]:
    """Flags of every search, and those that are this solver's own keyword arguments."""
    docs = arguments(solver)
    own = [
        Field(name, type(p.default), p.default, docs.get(name, ""))
        for name, p in inspect.signature(solver).parameters.items()
        if p.default is not p.empty and name != "batch"
    ]
    groups = {title: own, "every search": fields_of(Options)}
    if {"-h", "--help"} & {*argv}:  # also in the place of --solve's value
        argv = ["--help"]
    given = parse(argv, prog, __doc__ or "", groups)
    mine = {field.name: given.pop(field.name, field.default) for field in own}
    if not given.get("solve"):
        raise Refused("--solve takes a file of states, or scramble:MOVES")
    return Options(**given), mine
