"""What files of transitions look like, and how they become the arrays of a `rlzoo.dataset.Dataset`.

Nothing here knows of that class: `read` gives named NumPy arrays, `standard` turns arrays with
other names, types and layouts into rlzoo's own, and both say what is wrong and where. Pickles are
never read.

Layouts: rows [N, ...], one episode after the other; or episodes [E, steps, ...], padded at the end
where a `length` [E] comes with them. Observations with one step more hold the successors. Where
nothing does, as in D4RL, a successor is the observation of the row after. The last row of a
truncated episode has none there: it is dropped, and the row before it becomes the truncated one.
The last row of a terminated episode stays and takes its own observation for the successor, which
nothing bootstraps from (a dynamics model should leave terminated rows out).
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from rlzoo.algorithm import Refused

Arrays = dict[str, np.ndarray]

NAMES = {
    "obs": ("obs", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_obs": ("next_obs", "next_observations"),
    "terminated": ("terminated", "terminals", "terminations", "done"),
    "truncated": ("truncated", "timeouts", "truncations"),
}
"""rlzoo's arrays, and what D4RL, Minari and NeoRL-2 call them"""
D4RL = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "next_observations",
    "terminated": "terminals",
    "truncated": "timeouts",
}
FLAGS = ("terminated", "truncated")


# ---- files ---------------------------------------------------------------------------------------


def read(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """What a file holds, unchecked: its arrays by name, and what else `rlzoo.dataset.from_arrays`
    is to be told."""
    if str(path).startswith("minari:"):
        return _read_minari(str(path).removeprefix("minari:"))
    path = Path(path)
    readers = {".npz": _read_npz, ".hdf5": _read_hdf5, ".h5": _read_hdf5}
    if path.suffix not in readers:
        raise Refused(f"{path}: data sets are .npz or .hdf5 files, or minari:ID")
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    arrays, metadata = readers[path.suffix](path)
    about = _metadata(metadata)
    if about and "weights" in arrays:
        about["weights"] = arrays.pop("weights")
    return arrays, about or {"source": path.name}


def check_writable(path: str | Path) -> Path:
    """Raise `Refused` where `write` could not write `path`."""
    path = Path(path)
    if path.suffix not in (".npz", ".hdf5", ".h5"):
        raise Refused(f"{path}: data sets are written as .npz or .hdf5")
    if path.suffix != ".npz":
        _package("h5py")
    return path


def write(path: str | Path, arrays: Arrays, about: dict[str, Any]) -> None:
    """Write arrays under rlzoo's names, in .hdf5 under D4RL's."""
    path, metadata = check_writable(path), json.dumps(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, allow_pickle=False, metadata=np.array([metadata]), **arrays)  # type: ignore[arg-type]
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
    except (
        Exception
    ) as error:  # zipfile and numpy raise many kinds for a damaged file, and for pickles
        raise Refused(f"{path}: {name} cannot be read: {error}") from None
    return arrays, str(np.ravel(arrays.pop("metadata", np.array("")))[0])


def _read_hdf5(path: Path) -> tuple[Arrays, str]:
    h5py = _package("h5py")
    known = {name for names in NAMES.values() for name in names} | {"weights", "length"}
    try:
        with h5py.File(path, "r") as file:
            extra = file["extra"] if isinstance(file.get("extra"), h5py.Group) else ()
            names = [name for name in file if name in known] + [f"extra/{name}" for name in extra]
            if groups := [name for name in names if not isinstance(file[name], h5py.Dataset)]:
                raise Refused(f"{path}: {groups[0]} is a group, must be an array")
            return {name: file[name][()] for name in names}, str(file.attrs.get("metadata", ""))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error}") from None


def _read_minari(id: str) -> tuple[Arrays, dict[str, Any]]:
    minari = _package("minari")
    id, _, query = id.partition("?")
    keys = [key for part in parse_qs(query).get("obs", []) for key in part.split(",")]
    try:
        stored = minari.load_dataset(id)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise Refused(
            f"minari:{id} cannot be read: {error} (fetch it with: minari download {id})"
        ) from None
    bounds, parts = _bounds(id, stored.action_space), []
    for episode in stored.iterate_episodes():
        obs = _joined(id, episode.observations, keys)
        parts.append(
            {
                "obs": obs[:-1],
                "next_obs": obs[1:],
                "action": np.asarray(episode.actions),
                "reward": episode.rewards,
                "terminated": episode.terminations,
                "truncated": episode.truncations
                & ~episode.terminations,  # gymnasium allows both: the task did end
            }
        )
    if not parts:
        raise Refused(f"minari:{id} has no episodes")
    metadata, spec = stored.storage.metadata, stored.env_spec
    random, expert = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    reference = None if random is None or expert is None else (float(random), float(expert))
    about = {
        "env": spec.id if spec else "",
        "source": f"minari:{id}",
        "reference": reference,
        "bounds": bounds,
    }
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, about


def _joined(id: str, obs: Any, keys: list[str]) -> np.ndarray:
    """Observations as one array; of dictionaries, the parts `keys` joined along the last axis."""
    if isinstance(obs, np.ndarray) and not keys:
        return obs
    if not isinstance(obs, dict):
        raise Refused(
            f"minari:{id}: observations are {type(obs).__name__}s, without parts that ?obs= could name"
            if keys
            else f"minari:{id}: observations are {type(obs).__name__}s, must be arrays or dictionaries"
        )
    if not keys or not {*keys} <= {*obs}:
        raise Refused(
            f"minari:{id}: observations have the parts {', '.join(obs)}; say which to join, for example "
            f"minari:{id}?obs={','.join(list(obs)[:2])}"
        )
    return np.concatenate([obs[key] for key in keys], axis=-1)


def _bounds(id: str, space: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Those of continuous actions, where they are not [-1, 1] already."""
    if hasattr(space, "low"):
        return (
            None if np.all(space.low == -1) and np.all(space.high == 1) else (space.low, space.high)
        )
    if not hasattr(space, "n") or getattr(space, "start", 0) != 0:
        raise Refused(f"minari:{id}: actions are {space}, must be a Box, or Discrete from 0")
    return None


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Refused(
            f"this needs the package {name}: pip install 'rlzoo-jax[data]' "
            "(in a clone: pip install -e '.[data]')"
        ) from None


def contents(arrays: Arrays) -> str:
    """Name, type and shape of arrays, one in a line."""
    width = max((len(name) for name in arrays), default=0)
    return "\n".join(f"{name:{width}}  {_show(x)}" for name, x in arrays.items())


# ---- to rlzoo's arrays ---------------------------------------------------------------------------


def standard(
    arrays: Mapping[str, Any], finish: str | None = None, bounds: tuple[Any, Any] | None = None
) -> Arrays:
    """rlzoo's arrays from any of the names and layouts above, checked; arguments as in
    `rlzoo.dataset.from_arrays`."""
    if finish not in (None, "truncate"):
        raise Refused(f"finish={finish!r}: must be 'truncate' or None")
    found = _renamed(arrays)
    length = found.pop("length", None)
    for name in FLAGS:
        found.setdefault(name, np.zeros(found["reward"].shape, bool))
    found = {name: _typed(name, x) for name, x in found.items()}
    if found["reward"].ndim == 2 and found["obs"].ndim > 2:
        found = _from_episodes(found, length)
    if bounds is not None:
        found["action"] = _rescaled(found["action"], bounds)
    refuse(wrong_shapes({"next_obs": found["obs"]} | found))
    if "next_obs" not in found:
        found = _with_successors(found)
    if finish:
        done = found["terminated"] | found["truncated"]
        found["truncated"] = found["truncated"] | (_breaks(found) & ~done)
    refuse(wrong_values(found))
    _note_resets(found)
    return found


def _renamed(arrays: Mapping[str, Any]) -> Arrays:
    """The arrays that are known, under rlzoo's names."""
    found: Arrays = {}
    used = {name for name in arrays if name == "length" or name.startswith("extra/")}
    for ours, names in NAMES.items():
        given = [name for name in names if name in arrays]
        if len(given) > 1:
            raise Refused(f"{' and '.join(given)} are two names for {ours}: keep one")
        if given:
            found[ours] = np.asarray(arrays[given[0]])
            used.add(given[0])
    if missing := [
        names
        for ours, names in NAMES.items()
        if ours in ("obs", "action", "reward") and ours not in found
    ]:
        raise Refused(
            f"no array is called {' or '.join(missing[0])}; there are: {', '.join(arrays) or 'none'}"
        )
    if "done" in used and "truncated" not in found:
        raise Refused(
            "done alone does not say whether the task ended or a time limit cut it: call it terminated, or "
            "give truncated too"
        )
    if ignored := [name for name in arrays if name not in used]:
        _note(f"left out: {', '.join(ignored)}")
    others = used.difference(*NAMES.values())
    return found | {name: np.asarray(arrays[name]) for name in arrays if name in others}


def _typed(name: str, x: np.ndarray) -> np.ndarray:
    """`x` in the type that a data set holds; what float32 cannot hold becomes inf, which is
    reported as such."""
    if x.dtype.kind not in "biuf":
        raise Refused(f"{name} is an array of {x.dtype}, must hold numbers")
    target = _held_as(name, x.dtype)
    if x.dtype == target:
        return x
    bad, why = np.zeros(x.shape, bool), ""
    if name in FLAGS:
        bad, why = (x != 0) & (x != 1), "must be 0 or 1"
    elif target.kind == "i":
        bad, why = (
            (x > np.iinfo(target).max) | (x < np.iinfo(target).min),
            f"does not fit into {target}",
        )
    if bad.any():
        raise Refused(f"{name}: row {np.argwhere(bad)[0, 0]} holds {x[bad][0]}: {why}")
    if x.dtype.itemsize == 8 and name not in FLAGS:
        _note(f"{name}: {x.dtype} becomes {target}")
    with np.errstate(over="ignore"):
        return x.astype(target)


def _held_as(name: str, dtype: np.dtype) -> np.dtype:
    """The type in which a data set holds an array."""
    if name in FLAGS:
        return np.dtype(bool)
    if dtype.kind == "f" or name == "reward":
        return np.dtype(np.float32)
    if dtype.kind in "iu" and (name == "action" or dtype.itemsize == 8):
        return np.dtype(np.int32)
    return dtype


def _from_episodes(arrays: Arrays, length: np.ndarray | None) -> Arrays:
    """Rows from [E, steps, ...]; episodes that do not say how they end are truncated."""
    count, steps = arrays["reward"].shape
    length = np.full(count, steps) if length is None else length
    if length.shape != (count,) or length.dtype.kind not in "iu":
        raise Refused(
            f"length is {_show(length)}, must be whole numbers [{count}], one for each episode"
        )
    if (bad := (length < 1) | (length > steps)).any():
        raise Refused(
            f"length: episode {bad.argmax()} has {length[bad][0]}, must be from 1 to {steps}, the steps of reward"
        )
    if "next_obs" not in arrays and arrays["obs"].shape[1] == steps + 1:
        arrays = arrays | {"next_obs": arrays["obs"][:, 1:], "obs": arrays["obs"][:, :-1]}
    for name, x in arrays.items():
        if x.shape[:2] != (count, steps):
            raise Refused(
                f"{name} is {_show(x)}, but reward holds {count} episodes of {steps} steps"
            )
    at, length = np.arange(steps), length[:, None]
    truncated = arrays["truncated"] | ((at == length - 1) & ~arrays["terminated"])
    return {name: x[at < length] for name, x in (arrays | {"truncated": truncated}).items()}


def _with_successors(arrays: Arrays) -> Arrays:
    """`next_obs` from the row after, as the module's docstring says."""
    obs, terminated, truncated = (arrays[name] for name in ("obs", *FLAGS))
    cut = ~terminated & (truncated | (np.arange(len(obs)) == len(obs) - 1))
    if cut.all():
        raise Refused("next_obs is missing, and no row has its successor in the row after")
    before = np.append((truncated & cut)[1:], False)
    next_obs = np.concatenate([obs[1:], obs[-1:]])
    next_obs[terminated] = obs[terminated]
    _note(
        f"next_obs is missing: {cut.sum()} rows without a row after them were dropped, {terminated.sum()} terminated "
        "rows take their own obs"
    )
    arrays = arrays | {"next_obs": next_obs, "truncated": truncated | (before & ~terminated)}
    return {name: x[~cut] for name, x in arrays.items()}


def _rescaled(action: np.ndarray, bounds: tuple[Any, Any]) -> np.ndarray:
    low, high = (
        np.float64(np.asarray(bound, np.float32)) for bound in bounds
    )  # rounded as the actions were
    if action.dtype.kind != "f" or not np.all(np.isfinite(high - low) & (high > low)):
        raise Refused(
            f"bounds=({low}, {high}) of {action.dtype} actions: bounds must be finite, low < high, and only "
            "continuous actions have them"
        )
    return (2.0 * (action - low) / (high - low) - 1.0).astype(np.float32)


def _note_resets(arrays: Arrays) -> None:
    """Where the successor of a truncated row is the next episode's first observation, an auto-reset
    was recorded."""
    truncated = arrays["truncated"][:-1]
    same = (truncated & ~_breaks(arrays)[:-1]).sum()
    if same and (arrays["obs"] != arrays["obs"][0]).any():
        _note(
            f"next_obs of {same} of {truncated.sum()} truncated rows is the first obs of the next episode: if that is "
            "not chance, an auto-reset has replaced the true successor, and bootstrapping there is wrong"
        )


# ---- checks --------------------------------------------------------------------------------------


def wrong_shapes(arrays: Arrays) -> list[str]:
    """What is wrong with numbers of rows, ranks and types."""
    obs, next_obs, action = arrays["obs"], arrays["next_obs"], arrays["action"]
    count, wrong = len(obs) if obs.ndim else 0, []
    if not count:
        return [f"obs is {_show(obs)}, must have at least one row"]
    for name, x in arrays.items():
        if (rows := len(x) if x.ndim else 0) != count:
            wrong.append(
                f"{name} has {rows} rows, obs {count}: row {min(rows, count)} is the first without a partner"
            )
    if next_obs.dtype != obs.dtype or next_obs.shape[1:] != obs.shape[1:]:
        wrong.append(f"next_obs is {_show(next_obs)}, obs {_show(obs)}: must be alike")
    for name, kind in (("reward", "float32"), ("terminated", "bool"), ("truncated", "bool")):
        x = arrays[name]
        if x.ndim != 1 or x.dtype != kind:
            hint = f": take {name}[:, 0]" if x.shape[1:] == (1,) else ""
            wrong.append(f"{name} is {_show(x)}, must be {kind}[N]{hint}")
    if (action.dtype, action.ndim) != (np.int32, 1) and (
        action.dtype != np.float32 or action.ndim < 2
    ):
        wrong.append(
            f"action is {_show(action)}, must be integers [N] (discrete: action.astype(int)) or floats "
            "[N, action_dim] (continuous: action[:, None])"
        )
    return wrong


def wrong_values(arrays: Arrays) -> list[str]:
    """What is wrong in arrays whose shapes are right."""
    terminated, truncated, action = arrays["terminated"], arrays["truncated"], arrays["action"]
    wrong = []

    def report(name: str, bad: np.ndarray, what: Callable[[int], str]) -> None:
        found = bad.reshape(len(bad), -1).any(axis=1)
        if found.any():
            row, more = int(found.argmax()), found.sum() - 1
            wrong.append(f"{name}: row {row}{f' (and {more} more)' if more else ''} {what(row)}")

    for name, x in arrays.items():
        if x.dtype.kind == "f":
            report(name, ~np.isfinite(x), lambda row: "is not finite")
    report(
        "terminated",
        terminated & truncated,
        lambda row: "is set where truncated is too: an episode ends in one way",
    )
    unfinished = _breaks(arrays) & ~(terminated | truncated)
    inside, last = unfinished.copy(), len(unfinished) - 1
    inside[last] = False
    report(
        "next_obs",
        inside,
        lambda row: (
            f"differs by up to {_gap(arrays, row):.3g} from the obs of the row after, though "
            "no episode ends there; finish='truncate' ends it"
        ),
    )
    report(
        "truncated",
        unfinished & ~inside,
        lambda row: "is the last, but its episode is unfinished; finish='truncate' marks it",
    )
    if action.dtype == np.int32:
        report("action", action < 0, lambda row: f"is {action[row]}, must be at least 0")
    else:
        report(
            "action",
            np.abs(action) > 1,
            lambda row: (
                f"holds {action[row].flat[np.abs(action[row]).argmax()]}, must lie "
                "in [-1, 1]; bounds=(low, high) maps another range to it"
            ),
        )
    return wrong


def refuse(wrong: list[str]) -> None:
    if wrong:
        raise Refused("; ".join(wrong))


def _breaks(arrays: Arrays) -> np.ndarray:
    """Rows whose successor is not the observation of the row after, bool [N]; the last is one."""
    obs, next_obs = (arrays[name].reshape(len(arrays[name]), -1) for name in ("obs", "next_obs"))
    return np.append((next_obs[:-1] != obs[1:]).any(axis=1), True)


def _gap(arrays: Arrays, row: int) -> float:
    return np.abs(
        np.subtract(arrays["next_obs"][row], arrays["obs"][row + 1], dtype=np.float64)
    ).max()


def _show(x: np.ndarray) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
