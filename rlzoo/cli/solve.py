"""`--solve`: solving given states with a trained network.

    python algorithms/qstar.py --env cube3 --solve FILE.npz --out DIR      (states of a file)
    python algorithms/qstar.py --env cube3 --solve scramble:20 --count 5   (20 moves from the goal)

The network comes from a run (`--run`) or from the weights that rlzoo ships. Each state gives a line
on the terminal and a row in DIR/solutions.csv, written at once; its moves are the actions' names,
in order.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from rlzoo import machine
from rlzoo import search as searches
from rlzoo.algorithm import Refused
from rlzoo.cli.flags import docs
from rlzoo.run.options import run_folder
from rlzoo.suites import registry
from rlzoo.tools import solve
from rlzoo.tools.solve import Options


def main(make: Callable, Config: type, solver: Callable, argv: list[str]) -> None:
    """The command line."""
    path = Path(inspect.getsourcefile(make) or "")
    options, own = _parse(solver, argv, path.name)
    if not 0 <= options.weight <= 1:
        raise Refused(f"--weight is {options.weight}; it must be between 0 and 1")
    for name in ("batch", "node_limit", "max_generated", "count"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise Refused(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    env = registry.make(options.env)
    puzzle = searches.puzzle_of(env)
    states, known = solve.states(options, puzzle)
    out = Path(options.out) if options.out else run_folder(path.stem, options.env)
    if (out / "solutions.csv").exists():
        raise Refused(f"{out} holds solutions.csv already; choose another --out")
    machine.keep_compiled()
    found = (
        solve.from_run(options.run, make, Config, env)
        if options.run
        else solve.shipped(path.stem, options.env, make, Config, env)
    )
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(found.policy)):
        raise Refused(
            f"the network of {found.source} is not finite: its training has diverged; train it again"
        )
    search = solve.build(solver, found.config, puzzle, options, own).compile(found.policy)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "solutions.csv").open("w", newline="") as file:
            solve.solve_all(search, found, puzzle, states, known, options, out, file)
    except OSError as error:
        raise Refused(f"cannot write to {out}: {error.strerror}; choose another --out") from error


def _parse(solver: Callable, argv: list[str], prog: str) -> tuple[Options, dict]:
    """Flags of every search, and those that are this solver's own keyword arguments."""
    given = {name for name in inspect.signature(solver).parameters}
    own = {
        name: p.default
        for name, p in inspect.signature(solver).parameters.items()
        if p.default is not p.empty and name != "batch"
    }
    about = {
        line.split(":")[0].strip(): line.split(":", 1)[1].strip()
        for line in (solver.__doc__ or "").splitlines()
        if line.split(":")[0].strip() in given
    }
    fields = [
        (f.name, Annotated[f.type, tyro.conf.arg(help=doc)], f.default)
        for f, doc in zip(dataclasses.fields(Options), docs(Options), strict=True)
    ]
    fields += [
        (name, Annotated[type(value), tyro.conf.arg(help=about.get(name, ""))], value)
        for name, value in own.items()
    ]
    Args = dataclasses.make_dataclass("Args", fields)
    chosen = dict(vars(tyro.cli(Args, args=_with_value(argv), prog=prog, description=__doc__)))
    return Options(**{f.name: chosen.pop(f.name) for f in dataclasses.fields(Options)}), chosen


def _with_value(argv: list[str]) -> list[str]:
    """`--solve --help` is a question, too."""
    place = argv.index("--solve") + 1 if "--solve" in argv else 0
    return (
        argv[:place] + ["?"] + argv[place:]
        if place and argv[place : place + 1] in (["--help"], ["-h"])
        else argv
    )
