"""Command lines: the flags of every algorithm script, and the `rlzoo` command.

Flags come from an algorithm file's source, which is read and not imported, so `--help` answers
without starting jax.
"""

import ast
import contextlib
import dataclasses
import inspect
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import tyro

from rlzoo.algorithm import Refused

FOLDER = Path(__file__).parent
GRACE_SECONDS = 10.0  # for process 0 to say what it was refused, once another worker has failed
ALGORITHMS = next(
    path for path in (FOLDER / "algorithms", FOLDER.parent / "algorithms") if path.is_dir()
)


class Field(NamedTuple):
    name: str
    kind: Any
    default: Any
    doc: str
    static: bool


class Source(NamedTuple):
    """What an algorithm file says of itself."""

    path: Path
    doc: str
    fields: list[Field]


def read(path: Path) -> Source:
    """Docstring and Config of the algorithm file at `path`, without importing it."""
    tree = ast.parse(path.read_text(), str(path))
    classes = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"
    ]
    if not classes:
        raise Refused(f"{path} has no class Config, so it is not an algorithm file")
    body, fields = classes[0].body, []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        doc = (
            str(after.value.value)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            else ""
        )
        value, static = node.value, False
        if isinstance(value, ast.Call):  # rlzoo.static(default)
            value, static = value.args[0], True
        kind = eval(ast.unparse(node.annotation), {"Literal": Literal})
        fields.append(
            Field(
                node.target.id, kind, eval(ast.unparse(value), {}) if value else None, doc, static
            )
        )
    return Source(path, ast.get_docstring(tree) or "", fields)


def find(name: str) -> Path:
    """The algorithm file called `name`: one of rlzoo's, or a path to the user's own."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise Refused(f"there is no file {name}")
        return Path(name)
    if not (ALGORITHMS / f"{name}.py").is_file():
        raise Refused.unknown("algorithm", name, names())
    return ALGORITHMS / f"{name}.py"


def names() -> list[str]:
    return sorted(path.stem for path in ALGORITHMS.glob("*.py") if not path.stem.startswith("_"))


# ---- flags ---------------------------------------------------------------------------------------


class Request(NamedTuple):
    """What a command line asks for."""

    config: dict[str, Any]
    sweep: dict[str, list]
    options: dict[str, Any]


def parse(source: Source, argv: list[str], prog: str) -> Request:
    """Flags to values. With --resume, the recorded run's values are the defaults."""
    from rlzoo.record import Options, Record

    own = {field.name for field in source.fields}
    defaults: dict[str, Any] = {"sweep": ()}
    chosen = _parse(source, argv, prog, defaults)
    if chosen.resume and chosen.out:
        record = Record.read(chosen.out)
        defaults = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in (
                record.description["config"] | record.description["options"]
            ).items()
        }
        defaults["sweep"] = tuple(
            f"{name}={','.join(_write(v) for v in values)}" for name, values in record.sweep.items()
        )
        chosen = _parse(source, argv, prog, defaults)
    values = vars(chosen)
    return Request(
        {name: values[name] for name in values if name in own},
        _sweep(values["sweep"], source.fields),
        {field.name: values[field.name] for field in dataclasses.fields(Options)},
    )


def _parse(source: Source, argv: list[str], prog: str, defaults: dict[str, Any]) -> Any:
    options = read_options()
    sweep = Field(
        "sweep",
        tuple[str, ...],
        (),
        "sweep fields: field=v1,v2 ...; every combination trains",
        True,
    )
    first = [field for field in source.fields if field.name in ("env", "total_steps")]
    fields = [*first, *options, sweep, *(field for field in source.fields if field not in first)]
    Args = dataclasses.make_dataclass(
        "Args",
        [
            (f.name, Annotated[f.kind, tyro.conf.arg(help=f.doc)], defaults.get(f.name, f.default))
            for f in fields
        ],
    )
    return tyro.cli(Args, args=argv, prog=prog, description=source.doc)


def read_options() -> list[Field]:
    from rlzoo.record import Options

    return [
        Field(f.name, f.type, f.default, doc, True)
        for f, doc in zip(dataclasses.fields(Options), docs(Options), strict=True)
    ]


def docs(kind: type) -> list[str]:
    """The strings below the fields of a dataclass, in order."""
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    return [
        str(node.value.value)
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ][-len(dataclasses.fields(kind)) :]  # type: ignore[arg-type]


def _sweep(given: tuple[str, ...], fields: list[Field]) -> dict[str, list]:
    known, sweep = {field.name: field for field in fields}, {}
    for part in given:
        name, equals, text = part.partition("=")
        name = name.replace("-", "_")
        if not equals or not text:
            raise Refused(f"--sweep {part!r} should read field=value,value")
        if name not in known:
            raise Refused.unknown("--sweep field", name, known)
        sweep[name] = [_read(known[name], value) for value in text.split(",")]
    return sweep


def _read(field: Field, text: str) -> Any:
    """One swept value; tuples are written 64x64."""
    try:
        if field.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if field.kind in (int, float, str):
            return field.kind(text)
        if isinstance(field.default, tuple):
            return tuple(type(field.default[0])(part) for part in text.split("x"))
        return type(field.default)(text)
    except (ValueError, KeyError):
        kind = (
            getattr(field.kind, "__name__", str(field.kind))
            if not isinstance(field.default, tuple)
            else "64x64"
        )
        raise Refused(
            f"--sweep {field.name}: {text!r} is not a value for it; it takes {kind}, for example "
            f"{_write(field.default)}"
        ) from None


def _write(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


# ---- running -------------------------------------------------------------------------------------


def script(
    make: Callable, Config: type, solver: Callable | None = None, argv: list[str] | None = None
) -> None:
    """The last line of every algorithm file: `rlzoo.main(make, Config)`. Exits with 0 when done, 2
    when refused, 130 when interrupted. An algorithm that searches hands over its `solver` too,
    which gives it the flag `--solve`."""
    path = Path(inspect.getsourcefile(make) or "")
    argv = sys.argv[1:] if argv is None else argv
    with _plain_errors():
        if solver and "--solve" in (flag.partition("=")[0] for flag in argv):
            from rlzoo import solve

            return solve.main(make, Config, solver, argv)
        request = parse(read(path), argv, Path(sys.argv[0]).name)
        _run(make, Config, request)


def _run(make: Callable, Config: type, request: Request) -> NoReturn:
    if request.options["processes"] > 1 and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        sys.exit(_spread(request))
    from rlzoo.train import train

    run = train(make, Config(**request.config), sweep=request.sweep, **request.options)
    sys.exit({"done": 0, "interrupted": 130}[run.summary.get("status", "done")])


def _spread(request: Request) -> int:
    """Run this command in several processes, which share the members; the exit code of process 0,
    which records."""
    from rlzoo.record import run_folder

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    count, module = request.options["processes"], not sys.argv[0].endswith(".py")
    folder = run_folder(Path(sys.argv[2] if module else sys.argv[0]).stem, request.config["env"])
    command = [
        sys.executable,
        *(["-m", "rlzoo.cli"] if module else sys.argv[:1]),
        *sys.argv[1:],
        *([] if request.options["out"] else ["--out", str(folder)]),
    ]
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count - 1)]
        env = os.environ | place
        start = lambda i, **streams: subprocess.Popen(
            command, env=env | {"JAX_PROCESS_ID": str(i)}, **streams
        )
        workers = [start(0), *(start(i, stdout=log, stderr=log) for i, log in enumerate(logs, 1))]
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the terminal sends it to every process: they save and stop
        signal.signal(signal.SIGTERM, lambda number, frame: _send(workers, number))
        return _wait(workers, logs)


def _send(workers: list[subprocess.Popen], number: int) -> None:
    for worker in workers:
        worker.send_signal(number)


def _wait(workers: list[subprocess.Popen], logs: list) -> int:
    """Until process 0 has ended, or another one failed; `logs` are what the others printed."""
    fine = (None, 0, 130)
    while workers[0].poll() is None and all(worker.poll() in fine for worker in workers):
        time.sleep(0.1)
    failed = {
        worker.returncode: log
        for worker, log in zip(workers[1:], logs, strict=True)
        if worker.poll() not in fine
    }
    if (
        failed
    ):  # process 0 says why where all refuse alike; otherwise it would wait for the others for ever
        with contextlib.suppress(subprocess.TimeoutExpired):
            workers[0].wait(GRACE_SECONDS)
    if workers[0].poll() is None:
        workers[0].kill()
        for code, log in failed.items():
            log.seek(0)
            print(
                f"error: a worker process ended with {code}; its last lines:\n{log.read()[-2000:]}",
                file=sys.stderr,
            )
    code = workers[0].wait()
    for worker in workers[1:]:
        if code not in fine:
            worker.kill()
        worker.wait()
    return next((code for code in (code, *failed) if code >= 0), 1)


class _plain_errors:
    """Shows what was refused in one line, and exits with 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        refused = isinstance(error, (Refused, MemoryError))
        if refused:
            print(f"error: {error}", file=sys.stderr)
        if error and not isinstance(error, SystemExit) and "JAX_COORDINATOR_ADDRESS" in os.environ:
            if not refused:
                traceback.print_exception(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2 if refused else 1)  # an ordinary exit would wait for the other processes
        if refused:
            sys.exit(2)


def main() -> None:
    """The `rlzoo` command."""
    argv = sys.argv[1:]
    with _plain_errors():
        if argv[:1] == ["train"]:
            return _train(argv[1:])
        if argv[:1] == ["data"]:
            return _data(argv[1:])
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
    from rlzoo.record import load_module

    module = load_module(source.path)
    _run(module.make, module.Config, request)


def list_(envs: bool = False) -> None:
    """List the algorithms.

    Args:
      envs: list the environments instead.
    """
    if envs:
        from rlzoo.env import BACKENDS, ids

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
            f"  {field.name:{width}} {' ' if field.static else '*'} {_write(field.default):>12}  {field.doc}"
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
    from rlzoo import play as player
    from rlzoo.train import _keep_compiled

    if cache:
        _keep_compiled()
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

    from rlzoo.train import load, named

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


# ---- data sets -----------------------------------------------------------------------------------


def data() -> None:
    """Record, describe and convert data sets: `rlzoo data collect RUN --episodes 100 --out
    data.npz`.

    `rlzoo data --help` prints the commands.
    """


def _data(argv: list[str]) -> None:
    app = tyro.extras.SubcommandApp()
    app.command(name="collect")(data_collect)
    app.command(name="describe")(data_describe)
    app.command(name="convert")(data_convert)
    app.cli(
        args=argv,
        prog="rlzoo data",
        description="Data sets of transitions: .npz, .hdf5 (D4RL's names), minari:ID.",
    )


def data_collect(
    run: tyro.conf.Positional[str | None] = None,
    *,
    out: str,
    episodes: int = 100,
    member: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    replay: bool = False,
    random: str | None = None,
    reference: tuple[float, float] | None = None,
) -> None:
    """Record a data set: of a run's policy, of its replay, or of random actions.

    Args:
      run: the run directory.
      out: the file to write, .npz or .hdf5.
      episodes: whole episodes to play, with each member.
      member: which member (default: every one).
      noise: discrete actions: share of random ones; continuous: standard deviation of Gaussian
      noise.
      seed: of the episodes.
      replay: write what the run's replay holds, and play nothing.
      random: play random actions in this environment; give no run.
      reference: return of a random and of an expert policy, kept for normalised scores.
    """
    if (run is None) == (random is None):
        raise Refused("rlzoo data collect takes either a run directory or --random ENV")
    if sum(map(bool, (noise, replay, random))) > 1:
        raise Refused("--replay, --random and --noise exclude one another")
    _check_target(out)
    from rlzoo import collect, dataset
    from rlzoo.train import _keep_compiled

    _keep_compiled()
    if replay:
        found = collect.replay(run or "", member=member)
    elif random:
        found = collect.random(random, episodes, seed=seed)
    else:
        found = collect.policy(run or "", episodes, member=member, noise=noise, seed=seed)
    dataset.save(dataclasses.replace(found, reference=reference), out)
    print(
        f"wrote {out}: {len(found):,} transitions in {found.num_episodes:,} episodes, mean return "
        f"{dataset.episodes(found).returns.mean():.4g}"
    )


def data_describe(
    file: tyro.conf.Positional[str],
    env: str | None = None,
    finish: Literal["truncate"] | None = None,
    bounds: tuple[float, float] | None = None,
) -> None:
    """Show what a data set holds, and what is wrong with it.

    Args:
      file: .npz, .hdf5 or minari:ID.
      env: check that the data fit this environment.
      finish: "truncate" marks episodes that break off as truncated.
      bounds: the range of the actions in the file, if it is not [-1, 1].
    """
    from rlzoo import dataset, formats

    try:
        found = dataset.load(file, finish=finish, bounds=bounds)
    except Refused:
        print(formats.contents(formats.read(file)[0]))
        raise
    print(dataset.describe(found))
    if env is not None:
        from rlzoo.env import make

        dataset.check(found, make(env))
        print(f"\nfits {env}")


def data_convert(
    file: tyro.conf.Positional[str],
    out: tyro.conf.Positional[str],
    finish: Literal["truncate"] | None = None,
    bounds: tuple[float, float] | None = None,
) -> None:
    """Read a data set in any format and write it as .npz or .hdf5.

    Args:
      file: .npz, .hdf5 or minari:ID.
      out: the file to write.
      finish: "truncate" marks episodes that break off as truncated.
      bounds: the range of the actions in the file, if it is not [-1, 1].
    """
    _check_target(out)
    from rlzoo import dataset

    dataset.save(dataset.load(file, finish=finish, bounds=bounds), out)
    print(f"wrote {out}")


def _check_target(out: str) -> None:
    """Before the work is done, not after it."""
    from rlzoo.formats import check_writable

    if check_writable(out).exists():
        raise Refused(f"{out} exists already; choose another name")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
