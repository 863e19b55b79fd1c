"""How to run, as opposed to what to learn: the flags that every algorithm has."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlzoo.algorithm import Refused, plain
from rlzoo.run import loggers


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to learn. The same for every algorithm."""

    seeds: int = 1
    """how many seeds train together"""
    seed: int = 0
    """the first seed; the others follow it"""
    out: str | None = None
    """run directory (default runs/<algorithm>/<env>/<time>)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint"""
    force: bool = False
    """with --resume: continue under another configuration or layout, and record that"""
    dataset: tuple[str, ...] = ()
    """data set to learn from, for algorithms that learn offline: .npz, .hdf5, minari:ID or a name
    of `rlzoo data list`; or several: expert=a.npz mixed=b.npz. One called validation is held out"""
    validation: float | None = None
    """share of the data set's episodes that is held out, for eval/action_mse"""
    eval_every: int | None = None
    """steps between evaluations (default: a twentieth of the run; 0: only at the end)"""
    eval_episodes: int = 32
    """episodes of each evaluation, for each member"""
    checkpoint_every: int | None = None
    """steps between checkpoints (default: once a minute, and at the end)"""
    devices: int | None = None
    """devices to spread members over (default: all)"""
    processes: int = 1
    """processes on this machine to spread members over; on a CPU one for each core is fastest"""
    cache: bool = True
    """keep compiled programs on disk, so that the next run starts at once"""
    quiet: bool = False
    """show nothing while training"""
    tensorboard: bool = False
    """write TensorBoard files too, into the run directory (extra: tensorboard)"""
    wandb: bool = False
    """log to Weights & Biases too (extra: wandb; WANDB_MODE=offline works)"""
    wandb_project: str = "rlzoo"
    """project of --wandb"""

    @classmethod
    def of(cls, dataset: Any = None, **given: Any) -> "Options":
        """Options as given from Python, checked. `dataset` is recorded where files hold it."""
        if isinstance(dataset, str | Path):
            given["dataset"] = (str(dataset),)
        elif isinstance(dataset, Mapping):
            files = {n: x for n, x in dataset.items() if isinstance(x, str | Path)}
            given["dataset"] = tuple(f"{name}={file}" for name, file in files.items())
        elif isinstance(dataset, tuple | list):
            given["dataset"] = tuple(map(str, dataset))
        known = {field.name for field in dataclasses.fields(cls)}
        for name in given:
            if name not in known:
                raise Refused.unknown("option", name, known)
        if given.get("out") is not None:
            given["out"] = str(Path(given["out"]).expanduser())
        options = cls(**{name: plain(value) for name, value in given.items()})
        options.check()
        return options

    @classmethod
    def recorded(cls, options: dict[str, Any]) -> "Options":
        """Options as a run recorded them, also one of an older version."""
        known = {field.name for field in dataclasses.fields(cls)}
        found = {name: value for name, value in options.items() if name in known}
        dataset = found.pop("dataset", None) or ()
        return cls(**found, dataset=(dataset,) if isinstance(dataset, str) else tuple(dataset))

    def check(self) -> None:
        for name, low in (
            ("seeds", 1),
            ("seed", 0),
            ("eval_every", 0),
            ("eval_episodes", 1),
            ("checkpoint_every", 1),
            ("devices", 1),
            ("processes", 1),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= low):
                flag = name.replace("_", "-")
                raise Refused(f"--{flag} is {value!r}; it must be a whole number of at least {low}")
        held = self.validation
        if held is not None and not (type(held) in (int, float) and 0 < held < 1):
            raise Refused(f"--validation is {held!r}; it must be a share of more than 0, below 1")
        if self.seed + self.seeds > 2**32:
            raise Refused(f"--seed {self.seed} is too large: seeds are 32-bit numbers")
        if self.resume and self.out is None:
            raise Refused("--resume needs --out: the directory of the run to continue")
        loggers.check(self)


def run_folder(algorithm: str, env: str) -> Path:
    """A new, empty folder for a run that was not told where to go; no other call gets it too.

    Raises `Refused` where it cannot be made.
    """
    from rlzoo.suites.registry import short  # here, since it starts jax

    place = short(env).replace("/", "-")[:100]
    first = Path("runs", algorithm, place, time.strftime("%Y-%m-%d-%H%M%S"))
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(1):
            folder = first if count == 1 else first.with_name(f"{first.name}-{count}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise Refused(f"cannot write to {first}: {error.strerror}; choose another --out") from error
    raise AssertionError("there is always a free number")


def parse_dataset(entries: tuple[str, ...]) -> str | dict[str, str]:
    """What --dataset says: one file, or name -> file.

    Raises `Refused` where some entries have names and others do not, or a name is there twice.
    """
    named: dict[str, str] = {}
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not equals or not name.isidentifier():
            if len(entries) == 1:
                return entry
            raise Refused(
                f"--dataset {' '.join(entries)}: {entry!r} has no name; one data set is given as "
                "FILE, several as NAME=FILE NAME=FILE"
            )
        if name in named:
            raise Refused(f"--dataset {' '.join(entries)}: {name!r} is there twice")
        named[name] = file
    return named
