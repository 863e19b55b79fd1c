"""The `rlzoo` command, and the last line of every algorithm file."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import rlzoo
from rlzoo.algorithm import Refused
from rlzoo.cli import data, parsing
from rlzoo.cli.flags import Request, Source, find, load_file, names, read, read_request
from rlzoo.cli.parsing import fields_of, write_value
from rlzoo.cli.processes import check_target, once_when_full, plain_errors, spread, workers

DOWNLOADS = "MNISTBandit-bsuite"
ABOUT = "A zoo of reinforcement-learning algorithms in JAX."


def script(
    make: Callable, Config: type, solver: Callable | None = None, argv: list[str] | None = None
) -> None:
    """The last line of every algorithm file: `rlzoo.main(make, Config)`. Exits with 0 when done, 2
    when refused, 130 when interrupted. An algorithm that searches hands over its `solver` too,
    which gives it the flag `--solve`."""
    path = Path(inspect.getsourcefile(make) or "")
    argv = sys.argv[1:] if argv is None else argv
    with plain_errors():
        if _asks_to_solve(argv):
            return _solve(make, Config, solver, argv, f"python {path.name}")
        module = sys.modules[make.__module__]
        doc = inspect.cleandoc(module.__doc__ or "")
        dataset = getattr(module, "DATASET", "")
        source = Source(path, doc, fields_of(Config), dataset=dataset)
        request = read_request(source, argv, f"python {path.name}")
        _run(make, Config, source, request, [str(path), *argv])


def _run(
    make: Callable, Config: type, source: Source, request: Request, command: list[str]
) -> NoReturn:
    """Train, here or in the processes that --processes asks for, which run `command`."""
    if request.options["processes"] > 1 and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        count = workers(request.options["processes"], request.members(source.fields))
        if count > 1:
            command += _before_spreading(source, request)
            sys.exit(spread(command, count))
    from rlzoo.run.loop import train

    once_when_full()
    try:
        run = train(make, Config(**request.config), sweep=request.sweep, **request.options)
    except OverflowError:
        large = _largest(request)
        if not large:
            raise
        raise Refused(f"{large} is too large: counts that follow from it have 32 bits") from None
    sys.exit({"done": 0, "interrupted": 130}[run.summary.get("status", "done")])


def _before_spreading(source: Source, request: Request) -> list[str]:
    """Flags that the processes need. A data set that is made on first use is made here."""
    from rlzoo.run import learnt
    from rlzoo.run.options import run_folder

    data = learnt.read(request.options["dataset"], request.options["validation"])
    if request.options["out"]:
        return []
    name = source.path.stem
    env = request.config["env"] or learnt.own_env(name, data).id
    return ["--out", str(run_folder(name, env))]


def _largest(request: Request) -> str:
    """The flag with the largest whole number, where it has more than 32 bits; else empty."""
    given = {**request.config, **request.options}
    found = {
        name: max(request.sweep.get(name, [value]))
        for name, value in given.items()
        if type(value) is int
    }
    name = max(found, key=lambda name: found[name])
    return f"--{name.replace('_', '-')} {found[name]:,}" if found[name] >= 2**31 else ""


def _asks_to_solve(argv: list[str]) -> bool:
    return "--solve" in (flag.partition("=")[0] for flag in argv)


def _solve(
    make: Callable, Config: type, solver: Callable | None, argv: list[str], prog: str
) -> None:
    if solver is None:
        raise Refused(f"{prog} does not search, so it has no --solve")
    from rlzoo.cli import solve

    solve.main(make, Config, solver, argv, prog)


# ---- the rlzoo command ---------------------------------------------------------------------------


def main() -> None:
    """The `rlzoo` command."""
    argv = sys.argv[1:]
    with plain_errors():
        if argv[:1] == ["--version"]:
            print(f"rlzoo {rlzoo.__version__}")
            return
        parsing.dispatch(argv, "rlzoo", ABOUT, COMMANDS)


def train(argv: list[str]) -> None:
    """Train an algorithm: `rlzoo train ppo --seeds 8`, or a file of your own: `rlzoo train
    ./my_ppo.py`."""
    if not argv or argv[0].startswith("-"):
        _say_usage("train ALGORITHM [flags]", "train ppo", argv)
    if _asks_to_solve(argv):
        return solve(argv)
    source = read(find(argv[0]))
    request = read_request(source, argv[1:], f"rlzoo train {argv[0]}")
    module = source.module or load_file(source.path)
    _run(module.make, module.Config, source, request, ["-m", "rlzoo", "train", *argv])


def solve(argv: list[str]) -> None:
    """Solve puzzles by search with a trained network: `rlzoo solve qstar scramble:10`."""
    if not argv or argv[0].startswith("-"):
        _say_usage("solve ALGORITHM FILE.npz|scramble:MOVES [flags]", "solve qstar", argv)
    name, *rest = argv
    if rest and not rest[0].startswith("-"):
        rest = ["--solve", *rest]
    module = load_file(find(name))
    _solve(module.make, module.Config, getattr(module, "solver", None), rest, f"rlzoo solve {name}")


def _say_usage(usage: str, example: str, argv: list[str]) -> NoReturn:
    print(
        f"usage: rlzoo {usage}   (`rlzoo {example} --help` prints the flags)\n"
        f"algorithms: {', '.join(names())}, or a path to a file of your own"
    )
    sys.exit(0 if argv[:1] in (["-h"], ["--help"]) else 2)


def list_(*, envs: bool = False) -> None:
    """List the algorithms.

    Args:
      envs: list the environments instead.
    """
    if envs:
        return _list_envs()
    groups: dict[str, list[tuple[str, Source, list[str]]]] = {}
    for name in names():
        source = read(find(name))
        group, *traits = source.kind or ["other"]
        groups.setdefault(group, []).append((name, source, traits))
    width = max(map(len, names()))
    for group, members in sorted(groups.items(), key=lambda item: (item[0] == "other", item[0])):
        print(group)
        for name, source, traits in members:
            print(f"  {name:{width}}  {source.about}" + f" ({', '.join(traits)})" * bool(traits))


def _list_envs() -> None:
    from rlzoo.suites import brax, velocity
    from rlzoo.suites.registry import ids, make

    found = [id for id in ids() if not id.startswith("brax/") and id not in velocity.NAMES]
    width = max(map(len, found))
    for id in found:
        if id == DOWNLOADS:
            print(f"{id:{width}}  (downloads its data when it is made)")
            continue
        env = make(id)
        actions = (
            f"{env.num_actions} discrete actions"
            if env.discrete
            else f"continuous actions {list(env.action_space.shape)}"
        )
        print(f"{id:{width}}  observations {list(env.obs_shape)!s:15}  {actions}")
    print(f"\nbrax/NAME or brax/NAME:BACKEND with {', '.join(brax.BACKENDS)}; continuous actions:")
    print("  " + ", ".join(brax.NAMES))
    print("the same walkers, rewarded for one speed alone: " + ", ".join(velocity.NAMES))
    print(
        "navix/NAME, jumanji/NAME and craftax/NAME with the extra of that name\n"
        "options after a question mark: CartPole-v1?sticky=0.25"
    )


def info(algorithm: str) -> None:
    """Print an algorithm's documentation and its configuration.

    Args:
      algorithm: its name, or a path to a file of your own.
    """
    source = read(find(algorithm))
    print(f"{source.doc}\n\nfile: {source.path}\n")
    print("configuration (* floats: members of one program may differ in them)")
    width = max((len(field.name) for field in source.fields), default=0)
    for field in source.fields:
        mark, default = " " if field.static else "*", write_value(field.default)
        print(f"  {field.name:{width}} {mark} {default:>12}  {field.about}")


def play(
    run: str | None = None,
    *,
    random: str | None = None,
    gif: Path | None = None,
    member: int = 0,
    episodes: int = 1,
    seed: int = 0,
    fps: float = 30.0,
    steps: int | None = None,
    cache: bool = True,
) -> None:
    """Roll episodes of a trained policy as evaluation does, and draw them: `rlzoo play RUN`.

    Args:
      run: a run directory.
      random: instead of a run, an environment to look at under random actions.
      gif: the file to write (default: play.gif in the run directory): .gif, .mp4 (needs ffmpeg),
        for brax also .html.
      member: whose policy, as numbered in metrics.csv.
      episodes: how many episodes.
      seed: of the episodes.
      fps: steps shown in a second.
      steps: cut episodes after so many steps.
      cache: keep compiled programs on disk, so that the next time starts at once.
    """
    if gif:
        check_target(gif)
    from rlzoo import machine
    from rlzoo.tools import play as player

    if cache:
        machine.keep_compiled()
    player.play(
        run,
        random=random,
        out=str(gif) if gif else None,
        member=member,
        episodes=episodes,
        seed=seed,
        fps=fps,
        steps=steps,
    )


def plot(runs: tuple[Path, ...], *, out: Path | None = None) -> None:
    """Draw learning curves: IQM over seeds with its 95% bootstrap interval.

    Args:
      runs: run directories. One run is drawn into its own folder, several into one picture.
      out: the picture to write.
    """
    from rlzoo import report as reports

    if len(runs) == 1 and out is None:
        print(reports.write_curve(runs[0]))
        return
    target = check_target(out or Path("curves.png"))
    print(reports.plot_curves([reports.read_run(run) for run in runs], target))


def report(runs: tuple[Path, ...], *, out: Path = Path("report")) -> None:
    """Compare runs: tables, curves for each environment, probability of improvement, one HTML page.

    Args:
      runs: run directories.
      out: folder to write.
    """
    from rlzoo import report as reports

    check_target(out / "report.md")
    for path in reports.report(runs, out):
        print(path)


def copy(source: str, target: Path, *, params: bool = False, member: int = 0) -> None:
    """Copy an algorithm's file into your own folder, or export a run's trained parameters.

    Args:
      source: an algorithm (`rlzoo copy ppo my_ppo.py`); with --params, a run directory.
      target: the file to write; with --params, .npz or .safetensors.
      params: export parameters: `rlzoo copy --params RUN out.safetensors`.
      member: which member's parameters.
    """
    if target.exists():
        raise Refused(f"{target} exists already; choose another name")
    if params:
        export(source, target, member)
    else:
        if target.suffix != ".py":
            raise Refused(f"{target}: an algorithm's file ends in .py")
        text = find(source).read_text()
        check_target(target).write_text(text)
    print(f"wrote {target}" + ("" if params else f"; run it with: python {target} --help"))


def export(run: str, path: Path, member: int) -> None:
    """Write a member's policy as named arrays."""
    if path.suffix not in (".npz", ".safetensors"):
        raise Refused(f"{path}: parameters are written as .npz or .safetensors")
    import numpy as np

    from rlzoo.run.loading import load
    from rlzoo.run.trees import named

    arrays = {name: np.asarray(x) for name, x in named(load(run, member).policy).items()}
    check_target(path)
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
        return
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise Refused(
            "writing .safetensors needs the package safetensors (pip install safetensors); "
            ".npz does not"
        ) from None
    save_file(arrays, path)


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "list": list_,
    "info": info,
    "play": play,
    "plot": plot,
    "report": report,
    "copy": copy,
    "data": data.main,
    "solve": solve,
}
