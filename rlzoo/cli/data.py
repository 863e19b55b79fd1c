"""`rlzoo data`: list, make, record, describe and convert data sets."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rlzoo.algorithm import Refused
from rlzoo.cli import parsing
from rlzoo.cli.processes import check_target, words_of_flags


def main(argv: list[str]) -> None:
    """List, make, record, describe and convert data sets: `rlzoo data collect RUN --episodes 100
    --out data.npz`."""
    about = "Data sets of transitions: .npz, .hdf5 (D4RL's names), minari:ID, and our own by name."
    with words_of_flags():
        parsing.dispatch(argv, "rlzoo data", about, COMMANDS)


def list_() -> None:
    """List the data sets that rlzoo makes itself, and which of them are here."""
    from rlzoo.tools import recipes

    width = max(map(len, recipes.names()))
    for task, recipe in recipes.TASKS.items():
        print(f"{task}: {recipe.env} by {recipe.algorithm}, made in about {recipe.takes}")
        for name in recipes.names(task):
            path = recipes.path_of(name)
            facts = _facts(path) if path.exists() else "not made yet"
            print(f"  {name:{width}}  {facts}")
    print("\n`rlzoo data make NAME` makes one; --dataset NAME does, too, where it is not here")


def _facts(path: Path) -> str:
    """Size and score, from a few of the arrays alone."""
    import numpy as np

    with np.load(path) as file:
        reward = file["reward"]
        episodes = (file["terminated"] | file["truncated"]).sum()
        random, expert = json.loads(file["metadata"][0])["reference"]
    mean = reward.sum(dtype=np.float64) / episodes
    score = 100 * (mean - random) / (expert - random)
    return (
        f"{len(reward):>9,} transitions in {episodes:>5,} episodes, mean return {mean:8.2f}, "
        f"score {score:6.1f}"
    )


def make(name: str, *, again: bool = False) -> None:
    """Make one of rlzoo's own data sets, if it is not here, and print the name of its file.

    Args:
      name: a name that `rlzoo data list` shows.
      again: make it even if it is here.
    """
    from rlzoo import machine
    from rlzoo.tools import recipes

    recipes.task_of(name)
    machine.keep_compiled()
    print(recipes.find(name, again=again))


def collect(
    run: str | None = None,
    *,
    out: Path,
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
      reference: return of a random and of an expert policy, kept for normalized scores.
    """
    if (run is None) == (random is None):
        raise Refused("rlzoo data collect takes either a run directory or --random ENV")
    if sum(map(bool, (noise, replay, random))) > 1:
        raise Refused("--replay, --random and --noise exclude one another")
    _check_target(out)
    from rlzoo import dataset, machine
    from rlzoo.tools import collect as recorder

    machine.keep_compiled()
    if replay:
        found = recorder.replay(run or "", member=member)
    elif random:
        found = recorder.random(random, episodes, seed=seed)
    else:
        found = recorder.policy(run or "", episodes, member=member, noise=noise, seed=seed)
    dataset.save(dataclasses.replace(found, reference=reference), out)
    print(
        f"wrote {out}: {len(found):,} transitions in {found.num_episodes:,} episodes, mean return "
        f"{dataset.episodes(found).returns.mean():.4g}"
    )


def describe(
    file: str,
    *,
    env: str | None = None,
    finish: Literal["truncate"] | None = None,
    bounds: tuple[float, float] | None = None,
    clip: bool = False,
    names: tuple[str, ...] = (),
) -> None:
    """Show what a data set holds, and what is wrong with it.

    Args:
      file: .npz, .hdf5, minari:ID, a folder of Minari, or a name that `rlzoo data list` shows.
      env: check that the data fit this environment.
      finish: "truncate" marks episodes that break off as truncated.
      bounds: the range of the actions in the file, if it is not [-1, 1].
      clip: clip actions to [-1, 1].
      names: what arrays are called in the file: terminated=dones truncated=never.
    """
    from rlzoo import dataset, formats

    try:
        found = _load(file, finish, bounds, clip, names)
    except Refused:
        with contextlib.suppress(Refused):
            print(formats.contents(formats.read(file)[0]))
        raise
    print(dataset.describe(found))
    if env is not None:
        from rlzoo.suites.registry import make

        dataset.check(found, make(env))
        print(f"\nfits {env}")


def convert(
    file: str,
    out: Path,
    *,
    finish: Literal["truncate"] | None = None,
    bounds: tuple[float, float] | None = None,
    clip: bool = False,
    names: tuple[str, ...] = (),
) -> None:
    """Read a data set in any format and write it as .npz or .hdf5.

    Args:
      file: .npz, .hdf5, minari:ID, a folder of Minari, or a name that `rlzoo data list` shows.
      out: the file to write.
      finish: "truncate" marks episodes that break off as truncated.
      bounds: the range of the actions in the file, if it is not [-1, 1].
      clip: clip actions to [-1, 1].
      names: what arrays are called in the file: terminated=dones truncated=never.
    """
    _check_target(out)
    from rlzoo import dataset

    dataset.save(_load(file, finish, bounds, clip, names), out)
    print(f"wrote {out}")


def _load(
    file: str, finish: Any, bounds: tuple[float, float] | None, clip: bool, names: tuple[str, ...]
) -> Any:
    from rlzoo import dataset
    from rlzoo.layouts import names_from
    from rlzoo.tools.recipes import resolve

    file = resolve(file)
    return dataset.load(file, finish=finish, bounds=bounds, clip=clip, names=names_from(names))


def _check_target(out: Path) -> None:
    """Before the work is done, not after it."""
    from rlzoo.formats import check_writable

    if check_writable(out).exists():
        raise Refused(f"{out} exists already; choose another name")
    check_target(out)


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_,
    "make": make,
    "collect": collect,
    "describe": describe,
    "convert": convert,
}
