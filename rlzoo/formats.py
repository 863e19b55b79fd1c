"""The files that a data set can be read from and written to: named NumPy arrays, unchecked.

    .npz, .hdf5        rlzoo's own, D4RL's, NeoRL-2's and others'; see rlzoo/layouts.py for names
    minari:ID          a local Minari data set; its folder or main_data.hdf5 does as well

Pickles are never read.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from rlzoo import machine
from rlzoo.algorithm import Refused
from rlzoo.layouts import NAMES, Arrays, Unread, note

D4RL = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "next_observations",
    "terminated": "terminals",
    "truncated": "timeouts",
}

D4RL_REFERENCES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331),
    "door": (-56.512833, 2880.5693),
    "hammer": (-274.856578, 12794.1348),
    "relocate": (-6.425911, 4233.8778),
}
"""returns of a random and of an expert policy that D4RL publishes (arXiv 2004.07219, its infos.py);
of its MuJoCo tasks, not of other environments with their names"""
_D4RL_FILES = {"ant_maze": "antmaze", "mini_kitchen": "kitchen"}
"""how the names of its files begin, where they do not begin with the task"""

HDF5 = (".hdf5", ".h5")
MINARI = "main_data.hdf5"


def read(path: str | Path, wanted: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file holds, unchecked: its arrays by name, and what else `rlzoo.dataset.from_arrays`
    is to be told.

    What lies in folders of an .hdf5 file, or beside the transitions of a Minari data set, is
    `Unread`, unless its name is known or `wanted`.
    """
    text = str(path)
    if text.startswith("minari:"):
        where, _, query = text.partition("?")
        return _read_minari(where, query)
    for where, query in ((text, ""), text.partition("?")[::2]):
        if folder := _minari_folder(Path(where).expanduser()):
            return _read_minari(where, query, folder)
    path = Path(path).expanduser()
    if not path.exists():
        raise Refused(f"there is no file {path}")
    if path.suffix not in (".npz", *HDF5) or path.is_dir():
        raise Refused(
            f"{path}: data sets are .npz or .hdf5 files, folders with Minari's main_data.hdf5, or "
            "minari:ID"
        )
    arrays, metadata = _read_npz(path) if path.suffix == ".npz" else _read_hdf5(path, wanted)
    about = _metadata(metadata)
    if about and path.suffix == ".npz":
        del arrays["metadata"]
    if about and "weights" in arrays:
        about["weights"] = arrays.pop("weights")
    return arrays, about or _unsaid(arrays, path)


def _unsaid(arrays: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a file of other software is told to be: its name, and the scores of D4RL for D4RL's."""
    about: dict[str, Any] = {"source": path.name}
    reference = d4rl_reference(path.name)
    if path.suffix in HDF5 and reference and {"observations", "timeouts"} <= {*arrays}:
        about["reference"] = reference
        low, high = reference
        note(f"{path.name}: scores of 0 and 100 are D4RL's returns of {low:g} and {high:g}")
    return about


def d4rl_reference(name: str) -> tuple[float, float] | None:
    """What scores of 0 and 100 are by D4RL, from the name of one of its data sets or files:
    `hopper-medium-v2`, `hopper_medium-v2.hdf5`. None where it begins with no task of D4RL's."""
    name = name.lower()
    for words, task in _D4RL_FILES.items():
        name = name.replace(words, task)
    return D4RL_REFERENCES.get(re.split(r"[-_.]", name)[0])


def contents(arrays: Mapping[str, Any]) -> str:
    """Name, type and shape of arrays that `read` gave, one in a line."""
    width = max((len(name) for name in arrays), default=0)
    return "\n".join(f"{name:{width}}  {x.dtype}{list(x.shape)}" for name, x in arrays.items())


def check_writable(path: str | Path) -> Path:
    """Raise `Refused` where `write` could not write `path`."""
    path = Path(path).expanduser()
    if path.suffix not in (".npz", *HDF5):
        raise Refused(f"{path}: data sets are written as .npz or .hdf5")
    if path.suffix != ".npz":
        _package("h5py")
    return path


def write(path: str | Path, arrays: Arrays, about: dict[str, Any]) -> None:
    """Write arrays under rlzoo's names, in .hdf5 under D4RL's."""
    path, metadata = check_writable(path), json.dumps(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        named: dict[str, Any] = {"metadata": np.array([metadata]), **arrays}
        np.savez_compressed(path, allow_pickle=False, **named)
        return
    with _package("h5py").File(path, "w") as file:
        file.attrs["metadata"] = metadata
        for name, x in arrays.items():
            file.create_dataset(D4RL.get(name, name), data=x, compression="gzip")


def _metadata(text: str) -> dict[str, Any]:
    """What `write` wrote; nothing where other software wrote something else."""
    try:
        found = json.loads(text)
        reference = found["reference"] and (
            float(found["reference"][0]),
            float(found["reference"][1]),
        )
        return {"env": str(found["env"]), "source": str(found["source"]), "reference": reference}
    except (ValueError, TypeError, KeyError, IndexError):
        return {}


def _read_npz(path: Path) -> tuple[Arrays, str]:
    arrays, name = {}, "it"
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
    except Exception as error:
        # zipfile and numpy raise many kinds for a damaged file, and for pickles.
        raise Refused(f"{path}: {name} cannot be read: {error}") from None
    metadata = arrays.get("metadata")
    return arrays, str(metadata.flat[0]) if metadata is not None and metadata.size else ""


def _read_hdf5(path: Path, wanted: Collection[str]) -> tuple[dict[str, Any], str]:
    h5py = _package("h5py")
    known = {name for names in NAMES.values() for name in names} | {*wanted}
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            folder = name.rpartition("/")[0]
            taken = folder in ("", "extra") or name in known
            found[name] = np.asarray(item[()]) if taken else Unread(item.dtype, item.shape)
        elif name in known:
            raise Refused(f"{path}: {name} is a group, must be an array")

    try:
        with h5py.File(path, "r") as file:
            if isinstance(file.get("episode_0"), h5py.Group):
                raise Refused(
                    f"{path} is the main_data.hdf5 of a Minari data set: give it that name, and "
                    "put "
                    "its metadata.json beside it"
                )
            file.visititems(visit)
            return found, str(file.attrs.get("metadata", ""))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error}") from None


def _minari_folder(path: Path) -> Path | None:
    """The folder with the main_data.hdf5 that `path` means, None where it means none."""
    if path.name == MINARI and path.is_file():
        return path.parent
    return next((x for x in (path, path / "data") if (x / MINARI).is_file()), None)


def _read_minari(
    where: str, query: str, folder: Path | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Minari data set in `folder`, or else the local one that `where` names, `minari:ID`."""
    minari = _package("minari")
    id = where.removeprefix("minari:")
    keys = [key for part in parse_qs(query).get("obs", []) for key in part.split(",")]
    try:
        stored = minari.MinariDataset(folder) if folder else minari.load_dataset(id)
        episodes = list(stored.iterate_episodes())
    except (OSError, ValueError, TypeError) as error:
        fetch = "" if folder else f" (fetch it with: minari download {id})"
        raise Refused(f"{where} cannot be read: {error}{fetch}") from None
    bounds, parts = _bounds(where, stored.action_space), []
    for episode in episodes:
        obs = _joined(where, episode.observations, keys)
        parts.append(
            {
                "obs": obs[:-1],
                "next_obs": obs[1:],
                "action": np.asarray(episode.actions),
                "reward": episode.rewards,
                "terminated": episode.terminations,
                "truncated": episode.truncations,
            }
        )
    if not parts:
        raise Refused(f"{where} has no episodes")
    arrays: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    arrays |= dict(_beside(episodes[0], keys))
    metadata, spec = stored.storage.metadata, stored.env_spec
    random, expert = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    reference = None if random is None or expert is None else (float(random), float(expert))
    about = {
        "env": spec.id if spec else "",
        "source": f"minari:{metadata.get('dataset_id', id)}",
        "reference": reference,
        "bounds": bounds,
    }
    return arrays, about


def _beside(episode: Any, keys: list[str]) -> Iterator[tuple[str, Unread]]:
    """Name, and type and shape in this episode, of what a Minari data set holds beside its
    transitions."""

    def leaves(name: str, tree: Any) -> Iterator[tuple[str, Unread]]:
        if isinstance(tree, dict):
            for key, part in tree.items():
                yield from leaves(f"{name}/{key}", part)
        else:
            x = np.asarray(tree)
            yield name, Unread(x.dtype, x.shape)

    parts = episode.observations if isinstance(episode.observations, dict) else {}
    yield from leaves("observations", {key: parts[key] for key in parts if key not in keys})
    yield from leaves("infos", episode.infos or {})


def _joined(where: str, obs: Any, keys: list[str]) -> np.ndarray:
    """Observations as one array; of dictionaries, the parts `keys` joined along the last axis."""
    if isinstance(obs, np.ndarray) and not keys:
        return obs
    if not isinstance(obs, dict):
        raise Refused(
            f"{where}: observations are {type(obs).__name__}s, without parts that ?obs= could name"
            if keys
            else f"{where}: observations are {type(obs).__name__}s, must be arrays or dictionaries"
        )
    if not keys or not {*keys} <= {*obs}:
        raise Refused(
            f"{where}: observations have the parts {', '.join(obs)}; say which to join, for "
            "example "
            f"{where}?obs={','.join(list(obs)[:2])}"
        )
    return np.concatenate([obs[key] for key in keys], axis=-1)


def _bounds(where: str, space: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Those of continuous actions, where they are not [-1, 1] already."""
    if hasattr(space, "low"):
        return (
            None if np.all(space.low == -1) and np.all(space.high == 1) else (space.low, space.high)
        )
    if not hasattr(space, "n") or getattr(space, "start", 0) != 0:
        raise Refused(f"{where}: actions are {space}, must be a Box, or Discrete from 0")
    return None


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Refused(f"this needs the package {name}: {machine.how_to_install('data')}") from None
