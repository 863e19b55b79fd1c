"""Solving given states with a trained network, and the files in which networks are shipped."""

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlzoo import machine, search
from rlzoo.algorithm import Refused
from rlzoo.run.loading import trained
from rlzoo.run.record import Record
from rlzoo.run.trees import named

PACKAGE = Path(__file__).resolve().parent.parent
WEIGHTS = next(  # inside the package where it is installed, in results/ in a clone
    path
    for path in (PACKAGE / "weights", PACKAGE.parent / "results" / "qstar" / "weights")
    if path.is_dir() or path.parent.name == "qstar"
)
LONGEST = 100_000  # moves of a scramble
FIELDS = (
    "index",
    "status",
    "cost",
    "lower_bound",
    "generated",
    "network_calls",
    "seconds",
    "moves",
)


@dataclasses.dataclass(frozen=True)
class Options:
    solve: str = ""
    """a .npz file that holds `states` (Sokoban: agent, walls, boxes, goals), or scramble:MOVES"""
    env: str = "cube3"
    """the puzzle"""
    run: str | None = None
    """run directory with the trained network; by default the weights that rlzoo ships"""
    out: Path | None = None
    """where solutions.csv goes; by default runs/<algorithm>/<env>/<time>"""
    weight: float = 0.6
    """of the cost so far against the estimate, in [0, 1]: 1 seeks the shortest way, 0 any way"""
    batch: int = 1_000
    """entries of the open list taken at a time"""
    node_limit: int = 1_000_000
    """states that the closed set holds"""
    max_generated: int = 2**62
    """nodes made, repeated ones included, after which a search gives up"""
    memory: float = 4.0
    """GiB that the open list and the closed set may take"""
    first: int = 0
    """the first state of the file to solve"""
    count: int | None = None
    """how many; by default all of a file, one scramble"""
    seed: int = 0
    """of the scrambles"""
    gif: bool = False
    """draw each solution into DIR/<index>.gif"""
    profile: bool = False
    """show where the time goes, and take longer"""


class Trained(NamedTuple):
    config: Any
    policy: Any
    source: str


def build(solver: Callable, config: Any, puzzle: Any, options: Options, own: dict) -> search.Solver:
    """The search that `options` ask for. Raises `Refused` where it does not fit into the memory
    allowed."""
    allowed = int(options.memory * 2**30)
    spare = allowed - search.memory(puzzle, options.node_limit, 0)
    if spare < 0:
        raise Refused(
            f"--node-limit {options.node_limit:_} takes {(allowed - spare) / 2**30:.2f} GiB, and "
            f"--memory allows {options.memory}: allow more memory or fewer nodes"
        )
    entries = min(spare // search.ENTRY_BYTES, options.node_limit * min(puzzle.num_actions, 32))
    return solver(
        config,
        puzzle,
        batch=options.batch,
        max_nodes=options.node_limit,
        max_entries=int(entries),
        **own,
    )


# ---- states --------------------------------------------------------------------------------------


def states(options: Options, puzzle: Any) -> tuple[dict[int, np.ndarray], np.ndarray | None]:
    """The states to solve by their index, and the cost of their best solutions where the file gives
    it."""
    kind, colon, moves = options.solve.partition(":")
    if colon and kind == "scramble":
        if not moves.isdigit():
            raise Refused(
                f"--solve {options.solve!r} should read scramble:MOVES, for example scramble:20"
            )
        if int(moves) > LONGEST:
            raise Refused(f"--solve {options.solve}: a scramble has at most {LONGEST:,} moves")
        count = 1 if options.count is None else options.count
        made = puzzle.scramble(
            jax.random.key(options.seed), jnp.full(count, int(moves)), int(moves)
        )
        return dict(enumerate(np.asarray(made))), None
    path = Path(options.solve)
    if not path.is_file():
        raise Refused(f"--solve {options.solve!r} is neither a file nor scramble:MOVES")
    try:
        with np.load(path) as file:
            arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
        states = puzzle.read(arrays)
    except (ValueError, OSError, EOFError) as error:
        raise Refused(f"{path} holds no states of {options.env}: {error}") from error
    stop = len(states) if options.count is None else options.first + options.count
    if not 0 <= options.first < stop <= len(states):
        raise Refused(
            f"{path} holds {len(states)} states; --first {options.first} --count {options.count} "
            "asks for others"
        )
    best = arrays.get("opt_len")
    return {
        i: states[i] for i in range(options.first, stop)
    }, None if best is None else best.astype(float)


# ---- weights -------------------------------------------------------------------------------------


def save(path: Path, config: Any, policy: Any) -> None:
    """Write a policy and its configuration as .npz, in half precision, for `load`."""
    arrays: dict[str, Any] = {name: np.asarray(x, np.float16) for name, x in named(policy).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, config=np.array(json.dumps(dataclasses.asdict(config))), **arrays)


def load(path: Path, make: Callable, Config: type, env: Any) -> Trained:
    """What `save` wrote."""
    with np.load(path) as file:
        recorded = json.loads(str(file["config"]))
        config = Config(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in recorded.items()}
        )
        spec = _spec(make, config, env)
        leaves = [jnp.asarray(file[name], leaf.dtype) for name, leaf in named(spec).items()]
    return Trained(config, jax.tree.unflatten(jax.tree.structure(spec), leaves), str(path))


def weights_file(algorithm: str, env: str) -> Path:
    return WEIGHTS / f"{algorithm}-{env.replace('?', '-').replace('&', '-')}.npz"


def shipped(algorithm: str, env_id: str, make: Callable, Config: type, env: Any) -> Trained:
    path = weights_file(algorithm, env_id)
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.npz"))) or "none"
        raise Refused(
            f"rlzoo ships no weights for {algorithm} on {env_id} (it has {have}); train a network "
            f"(rlzoo train {algorithm} --env {env_id}) and give its --run"
        )
    return load(path, make, Config, env)


def from_run(run: str, make: Callable, Config: type, env: Any) -> Trained:
    record = Record.read(run)
    config, policy = record.config(Config), trained(run).policy

    def shapes(tree: Any) -> list[tuple]:
        return [x.shape for x in jax.tree.leaves(tree)]

    if shapes(policy) != shapes(_spec(make, config, env)):
        raise Refused(
            f"{run} holds a network of {record.description['algorithm']} for {config.env}, which "
            f"is none for {env.id}; choose that algorithm and --env, or another --run"
        )
    return Trained(config, policy, run)


def _spec(make: Callable, config: Any, env: Any) -> Any:
    """The shapes of a policy."""
    return jax.eval_shape(lambda: (alg := make(config, env)).policy(alg.init(jax.random.key(0))))


# ---- solving -------------------------------------------------------------------------------------


def solve_all(
    solve: search.Solver,
    found: Trained,
    puzzle: Any,
    states: dict[int, np.ndarray],
    known: np.ndarray | None,
    options: Options,
    out: Path,
    file: Any,
) -> None:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(FIELDS)
    print(
        f"{options.env} with {found.source}; weight {options.weight}, batch {options.batch:_}, "
        f"{solve.bytes() / 2**20:.0f} MiB for {solve.max_nodes:_} nodes and {solve.max_entries:_} "
        f"entries; compiled in {solve.compile_seconds:.1f} s on {machine.describe()['cpu']}\n"
    )
    print(
        f"{'state':>6}  {'status':<12} {'cost':>5} {'bound':>6} {'generated':>11} {'network':>9} "
        f"{'seconds':>8}  moves"
    )
    solutions = {}
    for index, state in states.items():
        run = solve.profile if options.profile else solve
        solution = solutions[index] = run(
            found.policy, state, options.weight, options.max_generated
        )
        moves = " ".join(puzzle.action_names[action] for action in solution.actions)
        cost = f"{solution.cost:g}" if math.isfinite(solution.cost) else ""
        table.writerow(
            [
                index,
                solution.status,
                cost,
                f"{solution.lower_bound:.6g}",
                solution.generated,
                solution.network_calls,
                f"{solution.seconds:.4f}",
                moves,
            ]
        )
        file.flush()
        print(
            f"{index:>6}  {solution.status:<12} {cost:>5} {solution.lower_bound:>6.4g} "
            f"{solution.generated:>11,} {solution.network_calls:>9,} {solution.seconds:>8.2f}  "
            f"{moves if len(moves) <= 60 else moves[:57] + '...'}"
        )
        if options.gif and solution.actions:
            _draw(puzzle, state, solution.actions, out / f"{index}.gif")
    _summary(solutions, known, out)


def _summary(solutions: dict[int, search.Solution], known: np.ndarray | None, out: Path) -> None:
    solved = {i: s for i, s in solutions.items() if math.isfinite(s.cost)}
    print(f"\nsolved {len(solved)} of {len(solutions)}", end="")
    if solved:
        print(f", mean cost {np.mean([s.cost for s in solved.values()]):.2f}", end="")
        if known is not None:
            best = sum(s.cost == known[i] for i, s in solved.items())
            print(
                f" (best possible {np.mean([known[i] for i in solved]):.2f}, reached by {best})",
                end="",
            )
    seconds = sum(s.seconds for s in solutions.values())
    generated = sum(s.generated for s in solutions.values())
    print(f"; {generated / max(seconds, 1e-9):,.0f} nodes generated a second")
    split: dict[str, float] = {}
    for solution in solutions.values():
        for name, value in solution.split.items():
            split[name] = split.get(name, 0.0) + value
    if split:
        whole = sum(split.values())
        print("time: " + ", ".join(f"{name} {value / whole:.0%}" for name, value in split.items()))
    print(f"wrote {out / 'solutions.csv'}")


def _draw(puzzle: Any, state: np.ndarray, actions: list[int], path: Path) -> None:
    """A second for each move."""
    from PIL import Image

    from rlzoo.envs.puzzle import State

    pictures = [
        Image.fromarray(puzzle.render(State(jnp.int32(0), position)))
        for position in search.replay(puzzle, state, actions)
    ]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=[1000] * len(actions) + [3000],
        loop=0,
    )
