"""Checkpoints of a program, written and read through orbax.

The folder of a program holds one folder for each checkpoint, named after the calls made. Orbax
takes some characters of a path for a pattern, so it sees every folder through a plain link.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlzoo.algorithm import Refused

KEPT = 2
"""The newest checkpoints that stay."""


class Saved(NamedTuple):
    """A checkpoint of one program."""

    at: int
    """calls of `step` made, of all stages together"""
    stage: int | None
    """the stage that is under way; None in the files of versions that did not say"""
    call: int
    """calls made in it"""
    steps: int
    """steps made, of all stages together"""
    updates: int
    """gradient updates made"""
    state: dict[str, np.ndarray] | list[np.ndarray]
    """the leaves of the stacked state by name; a list in the files of versions without names"""
    totals: dict[str, tuple]
    """(value, count) of each metric since the last row"""
    frozen: np.ndarray
    """bool [members]: who has ended the stage and waits for the others"""
    diverged: np.ndarray
    """bool [members]"""
    clock: tuple
    """seconds of training, evaluation and compilation"""


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a program's folder, newest first; half-written ones have other names."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(found, key=lambda path: -int(path.name))


def save(folder: Path, saved: Saved) -> None:
    """Write a checkpoint into a program's folder. A write that is cut off leaves the earlier ones
    whole."""
    import orbax.checkpoint as ocp

    folder.mkdir(parents=True, exist_ok=True)
    assert isinstance(saved.state, dict)
    names = list(saved.state)
    meta: dict[str, Any] = {
        "at": saved.at,
        "stage": saved.stage,
        "call": saved.call,
        "steps": saved.steps,
        "updates": saved.updates,
        "frozen": saved.frozen.tolist(),
        "diverged": saved.diverged.tolist(),
        "clock": list(saved.clock),
        "metrics": sorted(saved.totals or {}),
        "names": names,
    }
    arrays = {f"leaf{i:04d}": saved.state[name] for i, name in enumerate(names)}
    for i, name in enumerate(meta["metrics"]):
        arrays[f"total{i:04d}"] = np.stack(saved.totals[name])
    # Orbax refuses arrays without elements.
    empty = {key: x for key, x in arrays.items() if x.size == 0}
    meta["empty"] = {key: [list(x.shape), str(x.dtype)] for key, x in empty.items()}
    full = {key: x for key, x in arrays.items() if x.size}
    small = min(full, key=lambda key: full[key].nbytes, default=None)
    if small is not None:
        meta["smallest"] = [small, list(full[small].shape), str(full[small].dtype)]
    items = ocp.args.Composite(arrays=ocp.args.PyTreeSave(full), meta=ocp.args.JsonSave(meta))
    with _plain(folder) as link, _checkpointer() as checkpointer:
        checkpointer.save(link / str(saved.at), force=True, args=items)
    # A later one than this could not be read, or the run would have gone on from there.
    past = [path for path in listed(folder) if int(path.name) <= saved.at]
    for old in {*listed(folder)} - {*past[:KEPT]}:
        shutil.rmtree(old)


def prove(folder: Path, at: int) -> None:
    """Read an array of the checkpoint `at` back from its file, the smallest one.

    Raises `Refused` where that cannot be done.
    """
    import orbax.checkpoint as ocp

    path = folder / str(at)
    meta = ocp.args.Composite(meta=ocp.args.JsonRestore())
    try:
        with _plain(folder) as link, _checkpointer() as checkpointer:
            smallest = checkpointer.restore(link / path.name, args=meta).meta.get("smallest")
            if smallest is None:
                return
            key, shape, kind = smallest
            part = ocp.args.PyTreeRestore({key: np.zeros(shape, kind)}, partial_restore=True)
            args = ocp.args.Composite(arrays=part)
            found = checkpointer.restore(link / path.name, args=args).arrays[key]
            if found.shape != tuple(shape):
                raise ValueError(f"{key} is {list(found.shape)}, not {shape}")
    except Exception as error:  # whatever orbax meets there
        raise Refused(
            f"the checkpoint {path} was written, but cannot be read back "
            f"({type(error).__name__}: {error}); choose another --out"
        ) from error


def restore(folder: Path) -> Saved | None:
    """The newest checkpoint in a program's folder that can be read, None where there is none.

    Raises `Refused` where there are checkpoints, but none that can be read.
    """
    found = listed(folder)
    for path in found:
        try:
            return _read(path)
        except Exception as error:  # whatever orbax meets in a damaged folder
            name = type(error).__name__
            print(
                f"note: checkpoint {path} cannot be read ({name}); trying the one before it",
                file=sys.stderr,
            )
    if found:
        raise Refused(
            f"none of the checkpoints in {folder} can be read; start the run again in another --out"
        )
    return None


def _read(path: Path) -> Saved:
    import orbax.checkpoint as ocp

    items = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore())
    with _plain(path.parent) as link, _checkpointer() as checkpointer:
        found = checkpointer.restore(link / path.name, args=items)
    meta, arrays = found.meta, {key: np.asarray(x) for key, x in found.arrays.items()}
    arrays |= {key: np.zeros(shape, kind) for key, (shape, kind) in meta["empty"].items()}
    leaves = [arrays[key] for key in sorted(arrays) if key.startswith("leaf")]
    named = dict(zip(meta["names"], leaves, strict=True)) if "names" in meta else leaves
    diverged = np.array(meta["diverged"])
    return Saved(
        at=meta["at"],
        stage=meta.get("stage"),
        call=meta.get("call", 0),
        steps=meta.get("steps", 0),
        updates=meta.get("updates", 0),
        state=named,
        totals={name: tuple(arrays[f"total{i:04d}"]) for i, name in enumerate(meta["metrics"])},
        frozen=np.array(meta.get("frozen", np.zeros_like(diverged))),
        diverged=diverged,
        clock=tuple(meta["clock"]),
    )


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The same folder under a path without special characters."""
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "checkpoints"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def _checkpointer() -> Any:
    """An orbax checkpointer of this process alone: process 0 writes, each process reads for
    itself."""
    import jax
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
