"""The `rlzoo` command, and the last line of every algorithm file."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import tyro

from rlzoo import machine
from rlzoo.algorithm import Refused
from rlzoo.cli.data import data
from rlzoo.cli.data import main as data_main
from rlzoo.cli.flags import Request, find, names, parse, read, write_value
from rlzoo.cli.processes import plain_errors, spread


def script(
    make: Callable, Config: type, solver: Callable | None = None, argv: list[str] | None = None
) -> None:
    """The last line of every algorithm file: `rlzoo.main(make, Config)`. Exits with 0 when done, 2
    when refused, 130 when interrupted. An algorithm that searches hands over its `solver` too,
    which gives it the flag `--solve`."""
    path = Path(inspect.getsourcefile(make) or "")
    argv = sys.argv[1:] if argv is None else argv
    with plain_errors():
        if solver and "--solve" in (flag.partition("=")[0] for flag in argv):
            from rlzoo.cli import solve

            return solve.main(make, Config, solver, argv)
        request = parse(read(path), argv, Path(sys.argv[0]).name)
        _run(make, Config, request)


def _run(make: Callable, Config: type, request: Request) -> NoReturn:
    if request.options["processes"] > 1 and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        sys.exit(spread(request))
    from rlzoo.run.loop import train

    run = train(make, Config(**request.config), sweep=request.sweep, **request.options)
    sys.exit({"done": 0, "interrupted": 130}[run.summary.get("status", "done")])


def main() -> None:
    """The `rlzoo` command."""
    argv = sys.argv[1:]
    with plain_errors():
        if argv[:1] == ["train"]:
            return _train(argv[1:])
        if argv[:1] == ["data"]:
            return data_main(argv[1:])
        app = tyro.extras.SubcommandApp()
        app.command(name="list")(list_)
        app.command(info)
        app.command(train)
        app.command(play)
        app.command(plot)
        app.command(report)
        app.command(copy)
        app.command(data)
        app.cli(
            args=argv,
            prog="rlzoo",
            description="A zoo of reinforcement-learning algorithms in JAX.",
        )


def train(algorithm: tyro.conf.Positional[str]) -> None:
    """Train an algorithm: `rlzoo train ppo --seeds 8`, or a file of your own: `rlzoo train
    ./my_ppo.py`.

    `rlzoo train ppo --help` prints all flags.
    """
    _train([algorithm])


def _train(argv: list[str]) -> None:
    if not argv or argv[0].startswith("-"):
        print(
            "usage: rlzoo train ALGORITHM [flags]   (`rlzoo train ppo --help` prints the flags of ppo)\n"
            f"algorithms: {', '.join(names())}, or a path to a file of your own"
        )
        sys.exit(0 if argv[:1] in (["-h"], ["--help"]) else 2)
    source = read(find(argv[0]))
    request = parse(source, argv[1:], f"rlzoo train {argv[0]}")
    from rlzoo.run.files import load_module

    module = load_module(source.path)
    _run(module.make, module.Config, request)


def list_(envs: bool = False) -> None:
    """List the algorithms.

    Args:
      envs: list the environments instead.
    """
    if envs:
        from rlzoo.suites.brax import BACKENDS
        from rlzoo.suites.registry import ids

        print("\n".join(ids()))
        print(
            f"(brax/NAME:BACKEND with {', '.join(BACKENDS)}; options after a question mark: CartPole-v1?sticky=0.25;\n"
            "navix/NAME, jumanji/NAME and craftax/NAME with the extra of that name)"
        )
        return
    width = max(map(len, names()))
    for name in names():
        print(f"{name:{width}}  {read(find(name)).doc.splitlines()[0]}")


def info(algorithm: tyro.conf.Positional[str]) -> None:
    """Print an algorithm's documentation and its configuration.

    Args:
      algorithm: its name, or a path to a file of your own.
    """
    source = read(find(algorithm))
    print(
        f"{source.doc}\n\nfile: {source.path}\n\nconfiguration (* floats: members of one program may differ in them)"
    )
    width = max(len(field.name) for field in source.fields)
    for field in source.fields:
        print(
            f"  {field.name:{width}} {' ' if field.static else '*'} {write_value(field.default):>12}  {field.doc}"
        )


def play(
    run: tyro.conf.Positional[str | None] = None,
    random: str | None = None,
    gif: str | None = None,
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
    from rlzoo.tools import play as player

    if cache:
        machine.keep_compiled()
    player.play(
        run,
        random=random,
        out=gif,
        member=member,
        episodes=episodes,
        seed=seed,
        fps=fps,
        steps=steps,
    )


def plot(runs: tyro.conf.Positional[tuple[str, ...]], out: str | None = None) -> None:
    """Draw learning curves: IQM over seeds with its 95% bootstrap interval.

    Args:
      runs: run directories. One run is drawn into its own folder, several into one picture.
      out: the picture to write.
    """
    from rlzoo import report as reports

    if len(runs) == 1 and out is None:
        print(reports.write_curve(Path(runs[0])))
    else:
        print(
            reports.plot_curves(
                [reports.read_run(Path(run)) for run in runs], Path(out or "curves.png")
            )
        )


def report(runs: tyro.conf.Positional[tuple[str, ...]], out: str = "report") -> None:
    """Compare runs: tables, curves for each environment, probability of improvement, one HTML page.

    Args:
      runs: run directories.
      out: folder to write.
    """
    from rlzoo import report as reports

    for path in reports.report([Path(run) for run in runs], Path(out)):
        print(path)


def copy(
    source: tyro.conf.Positional[str],
    target: tyro.conf.Positional[str],
    params: bool = False,
    member: int = 0,
) -> None:
    """Copy an algorithm's file into your own folder, or export a run's trained parameters.

    Args:
      source: an algorithm (`rlzoo copy ppo my_ppo.py`); with --params, a run directory.
      target: the file to write; with --params, .npz or .safetensors.
      params: export parameters: `rlzoo copy --params RUN out.safetensors`.
      member: which member's parameters.
    """
    path = Path(target)
    if path.exists():
        raise Refused(f"{path} exists already; choose another name")
    if params:
        export(source, path, member)
    else:
        if path.suffix != ".py":
            raise Refused(f"{path}: an algorithm's file ends in .py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(find(source).read_text())
    print(f"wrote {path}" + ("" if params else f"; run it with: python {path} --help"))


def export(run: str, path: Path, member: int) -> None:
    """Write a member's policy as named arrays."""
    if path.suffix not in (".npz", ".safetensors"):
        raise Refused(f"{path}: parameters are written as .npz or .safetensors")
    import numpy as np

    from rlzoo.run.loading import load
    from rlzoo.run.trees import named

    arrays = {name: np.asarray(x) for name, x in named(load(run, member).policy).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
        return
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise Refused(
            "writing .safetensors needs the package safetensors (pip install safetensors); .npz does "
            "not"
        ) from None
    save_file(arrays, path)
