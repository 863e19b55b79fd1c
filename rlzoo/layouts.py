"""How named arrays of transitions become those of a `rlzoo.dataset.Dataset`.

Nothing here knows of that class or of files: `standard` turns arrays with other names, types and
layouts into rlzoo's own, and says what is wrong and where. What it does not use, or has to decide,
it says in a note on stderr.

Layouts: rows [N, ...], one episode after the other; or episodes [E, steps, ...], padded at the end
where a `length` [E] comes with them. Observations with one step more hold the successors. Where
nothing does, as in D4RL, a successor is the observation of the row after. The last row of a
truncated episode has none there: it is dropped, and the row before it becomes the truncated one.
The last row of a terminated episode stays and takes its own observation for the successor, which
nothing bootstraps from (a dynamics model should leave terminated rows out). Where a row has both
flags, the task ended.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlzoo.algorithm import Refused

Arrays = dict[str, np.ndarray]

NAMES = {
    "obs": ("obs", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_obs": ("next_obs", "next_observations"),
    "terminated": ("terminated", "terminals", "terminations", "terminal", "done", "dones"),
    "truncated": ("truncated", "timeouts", "truncations", "infos/timeouts"),
}
"""rlzoo's arrays, and what D4RL, Minari, NeoRL-2 and others call them"""
EITHER = ("done", "dones")
"""names that some use for the end of an episode of either kind"""
FLAGS = ("terminated", "truncated")
NEVER = "never"
"""said of a flag that no row has"""
ROUNDING = 1e-5
"""a number may lie outside of its bounds by this, relative to a bound above 1"""
LISTED = 12
"""a message lists up to this many arrays"""


def _option(python: str, flag: str) -> str:
    """An argument as it is written in Python, and on the command line."""
    return f"{python} (rlzoo data convert {flag})"


def _naming(ours: str, theirs: str) -> str:
    return _option(f"names={{{ours!r}: {theirs!r}}}", f"--names {ours}={theirs}")


FINISH = _option("finish='truncate'", "--finish truncate")
BOUNDS = _option("bounds=(low, high)", "--bounds LOW HIGH")
CLIP = _option("clip=True", "--clip")
NOTHING_SHOWN = (
    ", so nothing shows where an episode was cut: say "
    f"{_naming('truncated', 'NAME')}, or {NEVER} if episodes end only where the task did"
)


class Unread(NamedTuple):
    """An array that a file holds and that was not read."""

    dtype: Any
    shape: tuple


def names_from(words: Iterable[str]) -> dict[str, str]:
    """The `names` of `standard` from words of a command line such as `terminated=dones`.

    Raises `Refused` for a word of another form, and for an array that is named twice.
    """
    names: dict[str, str] = {}
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not (ours and equals and theirs):
            raise Refused(f"names: {word!r} should read ARRAY=NAME, for example terminated=dones")
        if ours in names:
            raise Refused(f"names: {ours} is given twice")
        names[ours] = theirs
    return names


# ---- to rlzoo's arrays ---------------------------------------------------------------------------


def standard(
    arrays: Mapping[str, Any],
    finish: str | None = None,
    bounds: tuple[Any, Any] | None = None,
    clip: bool = False,
    names: Mapping[str, str] | None = None,
) -> Arrays:
    """rlzoo's arrays from any of the names and layouts above, checked; arguments as in
    `rlzoo.dataset.from_arrays`."""
    if finish not in (None, "truncate"):
        raise Refused(f"finish={finish!r}: must be 'truncate' or None")
    names = names or {}
    found = _renamed(arrays, names)
    length = found.pop("length", None)
    found = {name: _typed(name, x) for name, x in found.items()}
    cuts_shown = "truncated" in found or _is_stacked(found)
    if _is_stacked(found):
        found = _from_episodes(found, length)
    else:
        if length is not None:
            note("left out: length (the arrays are not stacked by episode)")
        found = {name: _flat(name, x) for name, x in found.items()}
        found = _with_cuts(found)
    if bounds is not None:
        found["action"] = _rescaled(found["action"], bounds)
    refuse(wrong_shapes({"next_obs": found["obs"]} | found))
    _refuse_either(arrays, names, found)
    if not cuts_shown:
        _refuse_shifted(found)
    if clip:
        found["action"] = _clipped(found["action"])
    found["truncated"] = _one_end(found)
    if "next_obs" not in found:
        found = _with_successors(found)
    if finish:
        cut = _breaks(found) & ~(found["terminated"] | found["truncated"])
        found["truncated"] = found["truncated"] | cut
        note(f"finish='truncate' ended {cut.sum()} episodes that broke off as truncated")
    refuse(wrong_values(found))
    _note_resets(found)
    return found


def _renamed(arrays: Mapping[str, Any], names: Mapping[str, str]) -> Arrays:
    """The arrays that are known or named, under rlzoo's names."""
    for ours in names:
        if ours not in NAMES:
            raise Refused.unknown("names: array", ours, NAMES)
    found: Arrays = {}
    used = {name for name in arrays if name == "length" or name.startswith("extra/")}
    for name in sorted(used):
        found[name] = np.asarray(arrays[name])
    for ours, known in NAMES.items():
        given = [name for name in known if name in arrays]
        if ours in FLAGS and names.get(ours) == NEVER:
            found[ours] = np.zeros(found["reward"].shape, bool)
        elif ours in names:
            found[ours], sources = _named(arrays, ours, names[ours])
            used |= sources
        elif len(given) > 1:
            raise Refused(
                f"{' and '.join(given)} are two names for {ours}: keep one, or say "
                f"{_naming(ours, given[0])}"
            )
        elif given:
            found[ours] = np.asarray(arrays[given[0]])
            used.add(given[0])
        elif ours in ("obs", "action", "reward", "terminated"):
            raise Refused(_missing(ours, arrays))
    if "truncated" not in found and (either := _either(arrays, names)):
        raise Refused(
            f"{either} alone does not say whether the task ended or a time limit cut it: give "
            f"truncated too, or say {_naming('terminated', either)} if it means that the task ended"
        )
    if ignored := [name for name in arrays if name not in used]:
        note(f"left out: {_listed(ignored)}")
    return found


def _named(arrays: Mapping[str, Any], ours: str, theirs: str) -> tuple[np.ndarray, set[str]]:
    """The array that the user calls `theirs`, and what it was read from: a name, or for a flag the
    difference `1-NAME` or `NAME-NAME`."""
    if theirs in arrays:
        return np.asarray(arrays[theirs]), {theirs}
    first, _, second = theirs.partition("-")
    if ours not in FLAGS or second not in arrays or (first != "1" and first not in arrays):
        raise Refused(f"names: no array is called {theirs}; there are: {_listed(arrays)}")
    taken = np.float32(1) if first == "1" else np.asarray(arrays[first], np.float32)
    return taken - np.asarray(arrays[second], np.float32), {first, second}


def _missing(ours: str, arrays: Mapping[str, Any]) -> str:
    """What to say where no array has a known name."""
    text = (
        f"no array is called {' or '.join(NAMES[ours])}; there are: {_listed(arrays) or 'none'}; "
        f"say which it is with {_naming(ours, 'NAME')}"
    )
    if ours not in FLAGS:
        return text
    return f"{text}, 1-NAME for one that is 0 at the end, or {NEVER} if the task never ends"


def _either(arrays: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The name from which `terminated` was read, where some use it for an end of either kind."""
    if "terminated" in names:
        return ""
    return next((name for name in EITHER if name in arrays), "")


def _refuse_either(arrays: Mapping[str, Any], names: Mapping[str, str], found: Arrays) -> None:
    """Where a `done` stands at every truncated row too, it may well mean an end of either kind."""
    either, truncated = _either(arrays, names), found["truncated"]
    if either and truncated.any() and found["terminated"][truncated].all():
        cut = names.get("truncated") or next(n for n in NAMES["truncated"] if n in arrays)
        raise Refused(
            f"{either} is set at all {truncated.sum()} truncated rows: say "
            f"{_naming('terminated', either)} if the task ended there, and "
            f"terminated={either}-{cut} if {either} is set at every end of an episode"
        )


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
        note(f"{name}: {x.dtype} becomes {target}")
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


def _is_stacked(arrays: Arrays) -> bool:
    """Whether arrays are [E, steps, ...]. Rewards [N, 1] may be a column of rows instead: then
    actions tell, which are integers [N] or floats [N, action_dim] in rows."""
    obs, action, reward = arrays["obs"], arrays["action"], arrays["reward"]
    if reward.ndim != 2 or obs.ndim < 3:
        return False
    whole = action.ndim == 2 if action.dtype.kind == "i" else action.ndim > 2
    return reward.shape[1] != 1 or (whole and obs.shape[1] in (1, 2))


def _flat(name: str, x: np.ndarray) -> np.ndarray:
    """Rows, where what has one number a row may have been stored as a column [N, 1]."""
    single = name in ("reward", *FLAGS) or (name == "action" and x.dtype.kind == "i")
    return x[:, 0] if single and x.shape[1:] == (1,) else x


def _with_cuts(arrays: Arrays) -> Arrays:
    """Rows with `truncated`. Where it is not stored, a successor that is not the next row's
    observation shows where an episode was cut."""
    if "truncated" in arrays:
        return arrays
    if "next_obs" not in arrays:
        raise Refused(f"neither next_obs nor truncated is stored{NOTHING_SHOWN}")
    return arrays | {"truncated": np.zeros(arrays["reward"].shape, bool)}


def _refuse_shifted(arrays: Arrays) -> None:
    """Successors that are the row after even where the task ended were not stored, but made."""
    ended = arrays["terminated"][:-1]
    made = ended.any() and not (ended & _breaks(arrays)[:-1]).any()
    if made and (arrays["obs"] != arrays["obs"][0]).any():
        raise Refused(
            f"next_obs is the obs of the row after at all {ended.sum()} terminated rows, and "
            f"truncated is not stored{NOTHING_SHOWN}"
        )


def _from_episodes(arrays: Arrays, length: np.ndarray | None) -> Arrays:
    """Rows from [E, steps, ...]; episodes that do not say how they end are truncated."""
    count, steps = arrays["reward"].shape
    if "next_obs" not in arrays and arrays["obs"].shape[1] == steps + 1:
        arrays = arrays | {"next_obs": arrays["obs"][:, 1:], "obs": arrays["obs"][:, :-1]}
    arrays = {"truncated": np.zeros((count, steps), bool)} | arrays
    for name, x in arrays.items():
        if x.shape[:2] != (count, steps):
            raise Refused(
                f"{name} is {_show(x)}, but reward holds {count} episodes of {steps} steps"
            )
    if length is None:
        _refuse_padding(arrays)
        length = np.full(count, steps)
    if length.shape != (count,) or length.dtype.kind not in "iu":
        raise Refused(
            f"length is {_show(length)}, must be whole numbers [{count}], one for each episode"
        )
    if (bad := (length < 1) | (length > steps)).any():
        raise Refused(
            f"length: episode {bad.argmax()} has {length[bad][0]}, must be from 1 to {steps}, "
            "the steps of reward"
        )
    at, length = np.arange(steps), length[:, None]
    unmarked = (at == length - 1) & ~arrays["terminated"] & ~arrays["truncated"]
    if unmarked.any():
        note(f"{unmarked.sum()} of {count} episodes end without a flag: truncated there")
    arrays = arrays | {"truncated": arrays["truncated"] | unmarked}
    return {name: x[at < length] for name, x in arrays.items()}


def _refuse_padding(arrays: Arrays) -> None:
    """Rows of zeros to the end, after an episode's last, are padding."""
    done = arrays["terminated"] | arrays["truncated"]
    after = done.cumsum(axis=1) - done > 0
    shown = [
        arrays[name].any(axis=tuple(range(2, arrays[name].ndim))) for name in ("obs", "action")
    ]
    zero = ~(shown[0] | shown[1] | (arrays["reward"] != 0))
    padded = after.any(axis=1) & (zero | ~after).all(axis=1)
    if padded.any():
        raise Refused(
            f"episode {padded.argmax()} holds only zeros after its end: give length [E], the steps "
            "of each episode"
        )


def _one_end(arrays: Arrays) -> np.ndarray:
    """`truncated` where `terminated` is not set: of a row with both, the task did end."""
    both = arrays["terminated"] & arrays["truncated"]
    if both.any():
        note(f"{both.sum()} rows are both terminated and truncated: taken as terminated")
    return arrays["truncated"] & ~both


def _with_successors(arrays: Arrays) -> Arrays:
    """`next_obs` from the row after, as the module's docstring says."""
    obs, terminated, truncated = (arrays[name] for name in ("obs", *FLAGS))
    cut = ~terminated & (truncated | (np.arange(len(obs)) == len(obs) - 1))
    if cut.all():
        raise Refused("next_obs is missing, and no row has its successor in the row after")
    before = np.append((truncated & cut)[1:], False)
    next_obs = np.concatenate([obs[1:], obs[-1:]])
    next_obs[terminated] = obs[terminated]
    note(
        f"next_obs is missing: {cut.sum()} rows without a row after them were dropped, "
        f"{terminated.sum()} terminated "
        "rows take their own obs"
    )
    arrays = arrays | {"next_obs": next_obs, "truncated": truncated | (before & ~terminated)}
    return {name: x[~cut] for name, x in arrays.items()}


def _rescaled(action: np.ndarray, bounds: tuple[Any, Any]) -> np.ndarray:
    # Rounded as the actions were.
    low, high = (np.float64(np.asarray(bound, np.float32)) for bound in bounds)
    if action.dtype.kind != "f" or not np.all(np.isfinite(high - low) & (high > low)):
        raise Refused(
            f"bounds=({low}, {high}) of {action.dtype} actions: bounds must be finite, low < "
            "high, and only "
            "continuous actions have them"
        )
    return (2.0 * (action - low) / (high - low) - 1.0).astype(np.float32)


def _clipped(action: np.ndarray) -> np.ndarray:
    """Continuous actions as the environment takes them."""
    if action.dtype.kind != "f":
        raise Refused("clip: only continuous actions can be clipped")
    outside = (np.abs(action) > 1).any(axis=tuple(range(1, action.ndim)))
    note(f"clip=True clipped the actions of {outside.sum()} of {len(action)} rows to [-1, 1]")
    return np.clip(action, -1.0, 1.0)


def _note_resets(arrays: Arrays) -> None:
    """Where the successor of a truncated row is the next episode's first observation, an auto-reset
    was recorded."""
    truncated = arrays["truncated"][:-1]
    same = (truncated & ~_breaks(arrays)[:-1]).sum()
    if same and (arrays["obs"] != arrays["obs"][0]).any():
        note(
            f"next_obs of {same} of {truncated.sum()} truncated rows is the first obs of the "
            "next episode: if that is "
            "not chance, an auto-reset has replaced the true successor, and bootstrapping there "
            "is wrong"
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
                f"{name} has {rows} rows, obs {count}: row {min(rows, count)} is the first "
                "without a partner"
            )
    if next_obs.dtype != obs.dtype or next_obs.shape[1:] != obs.shape[1:]:
        wrong.append(f"next_obs is {_show(next_obs)}, obs {_show(obs)}: must be alike")
    for name, kind in (("reward", "float32"), ("terminated", "bool"), ("truncated", "bool")):
        x = arrays[name]
        if x.ndim != 1 or x.dtype != kind:
            wrong.append(f"{name} is {_show(x)}, must be {kind}[N]")
    if (action.dtype, action.ndim) != (np.int32, 1) and (
        action.dtype != np.float32 or action.ndim < 2
    ):
        wrong.append(
            f"action is {_show(action)}, must be integers [N] (discrete: action.astype(int)) or "
            "floats "
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
            f"no episode ends there; {FINISH} ends it as truncated"
        ),
    )
    report(
        "truncated",
        unfinished & ~inside,
        lambda row: f"is the last, but its episode is unfinished; {FINISH} ends it",
    )
    if action.dtype == np.int32:
        report("action", action < 0, lambda row: f"is {action[row]}, must be at least 0")
    else:
        report(
            "action",
            np.abs(action) > 1,
            lambda row: (
                f"holds {action[row].flat[np.abs(action[row]).argmax()]}, must lie "
                f"in [-1, 1]; {BOUNDS} maps another range to it, {CLIP} clips as the environment "
                "does"
            ),
        )
    return wrong


def check_range(name: str, x: np.ndarray, low: Any, high: Any, id: str) -> None:
    """Raise `Refused` where rows `x` [N, ...] lie outside of [low, high] by more than rounding."""
    low, high = (np.broadcast_to(np.asarray(b, np.float64), x.shape[1:]) for b in (low, high))
    least = low - ROUNDING * np.maximum(1.0, np.abs(low))
    most = high + ROUNDING * np.maximum(1.0, np.abs(high))
    bad = np.argwhere((x.min(axis=0) < least) | (x.max(axis=0) > most))
    if not len(bad):
        return
    at = tuple(bad[0])
    column = x[(slice(None), *at)]
    rows = np.flatnonzero((column < least[at]) | (column > most[at]))
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    others = f"; so are {len(bad) - 1} more of its numbers" if len(bad) > 1 else ""
    raise Refused(
        f"{name}{[int(i) for i in at]}: row {rows[0]}{more} is {column[rows[0]]:.6g}, but {id} has "
        f"{low[at]:.6g} to {high[at]:.6g} there{others}"
    )


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


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _listed(names: Collection[str]) -> str:
    """Names in one line, those of a folder counted."""
    folders = Counter(name.rpartition("/")[0] for name in names)
    texts: list[str] = []
    for name in names:
        folder = name.rpartition("/")[0]
        many = folder and folders[folder] > 1
        texts.append(f"{folder}/ ({folders[folder]} arrays)" if many else name)
    texts = list(dict.fromkeys(texts))
    more = len(texts) - LISTED
    return ", ".join(texts[:LISTED]) + (f" and {more} more" if more > 0 else "")
