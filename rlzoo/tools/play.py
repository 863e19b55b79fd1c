"""Watching a policy: rolls episodes as evaluation does, and draws a GIF, an MP4 or a page."""

import contextlib
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from rlzoo import env as environments
from rlzoo.algorithm import Refused
from rlzoo.run.loading import trained
from rlzoo.suites import registry
from rlzoo.suites.brax import Brax
from rlzoo.tools import offscreen
from rlzoo.tools.drawings import Canvas, Frame, brax_player
from rlzoo.wrappers import inner_state, innermost

PALETTE_FRAMES = 16


# ---- playing -------------------------------------------------------------------------------------


def play(
    run: str | Path | None = None,
    *,
    random: str | None = None,
    out: str | Path | None = None,
    member: int = 0,
    episodes: int = 1,
    seed: int = 0,
    fps: float = 30.0,
    steps: int | None = None,
    env: Any = None,
) -> Path:
    """Roll episodes of a trained policy, say how they went, and draw them.

    Args:
      run: a run directory.
      random: in place of a run, an environment's id: actions are drawn at random.
      out: .gif, .mp4 (needs ffmpeg) or, for brax, .html; by default play.gif in the run directory.
      member: whose policy, as numbered in metrics.csv.
      seed: of the episodes.
      fps: pictures, that is steps, a second.
      steps: cut episodes after so many steps.
      env: the run's environment, where it was one of a notebook.

    Returns the file written. Raises `Refused` where an argument makes no sense, or the file cannot
    be written.
    """
    if (run is None) == (random is None):
        raise Refused("say what to play: a run directory, or --random and an environment's id")
    for name, value, low in (("episodes", episodes, 1), ("seed", seed, 0), ("steps", steps, 1)):
        if value is not None and value < low:
            raise Refused(f"--{name} is {value}; it must be at least {low}")
    default = (
        Path(run) / "play.gif"
        if run is not None
        else Path(re.sub("[^A-Za-z0-9_.-]", "-", f"{random}.gif"))
    )
    out = Path(out or default)
    env, act, memory = _player(run, random, member, env)
    _check_file(out, fps, env)
    rolled = []
    for frames in roll(env, act, memory, jax.random.split(jax.random.key(seed), episodes), steps):
        rolled.append(frames)
        print(
            f"episode {len(rolled)}: return {frames[-1].episode_return:.2f}, length "
            f"{frames[-1].step}"
        )
    out = write(env, rolled, out, fps)
    print(f"wrote {out}")
    return out


def _player(run: str | Path | None, random: str | None, member: int, env: Any) -> tuple:
    """Environment, and of the policy `act` and memory as of `rlzoo.env.begin` and `advance`."""
    if run is None:
        env = registry.make(str(random))

        def act(policy: Any, obs: Any, key: jax.Array) -> jax.Array:
            return env.random_action(key)

        return env, *environments.acting(act, None, None, 1)
    found = trained(run, member, env=env)
    algorithm = found.algorithm
    return found.env, *environments.acting(algorithm.act, algorithm.memory, found.policy, 1)


def roll(
    env: environments.Env, act: Callable, memory: Any, keys: jax.Array, steps: int | None = None
) -> Iterator[list[Frame]]:
    """The episodes that `rlzoo.env.episodes` rolls for `keys`, one after the other, at most `steps`
    steps of each."""

    def show(now: environments.Episodes) -> tuple:
        seen = (now.obs, inner_state(env.inner, now.inner), now.episode_length, now.episode_return)
        return now, now.over.all(), Frame(*jax.tree.map(lambda x: x[0], seen))

    def step(key: jax.Array, now: environments.Episodes) -> tuple:
        return show(environments.advance(env, act, key[None], now)[0])

    begin = jax.jit(lambda key: show(environments.begin(env, memory, key[None])))
    advance = jax.jit(step)
    for key in keys:
        now, over, frame = begin(key)
        frames = [jax.device_get(frame)]
        while not over and len(frames) <= min(steps or env.max_steps, env.max_steps):
            now, over, frame = advance(key, now)
            frames.append(jax.device_get(frame))
        yield frames


# ---- files ---------------------------------------------------------------------------------------


def _check_file(out: Path, fps: float, env: environments.Env) -> None:
    brax = isinstance(innermost(env.inner), Brax)
    known = (".gif", ".mp4", *([".html"] if brax else []))
    if out.suffix not in known:
        raise Refused(f"{out}: {env.id} is drawn into {' or '.join(known)}")
    if out.suffix == ".mp4" and not shutil.which("ffmpeg"):
        raise Refused(f"{out}: an .mp4 needs ffmpeg, which is not on this machine; a .gif does not")
    if not 0 < fps <= 50:
        raise Refused(
            f"--fps is {fps}; it must be more than 0 and at most 50, which is what a GIF can show"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write {out}: {error.strerror}; choose another --gif") from error


def write(env: environments.Env, episodes: list[list[Frame]], out: Path, fps: float) -> Path:
    """Draw `episodes` into `out`, a .gif, .mp4 or .html; returns the file written: of brax a page,
    where MuJoCo cannot draw."""
    frames = list(itertools.chain(*episodes))
    inner = innermost(env.inner)
    if out.suffix != ".html":
        try:
            canvas = Canvas(env, frames)
        except offscreen.NoOpenGL as error:
            out = out.with_suffix(".html")
            print(
                f"MuJoCo has no OpenGL to draw with here ({error}), so this is brax's player, a "
                "page:"
            )
    if out.suffix == ".html":
        out.write_text(brax_player(inner, frames))
        return out

    def pictures() -> Iterator[np.ndarray]:
        for episode in episodes:
            for frame in episode:
                yield (picture := canvas(frame))
            yield from [picture] * round(fps)  # a second to see how it ended

    with contextlib.closing(canvas):
        (_gif if out.suffix == ".gif" else _mp4)(canvas, frames, pictures(), out, fps)
    return out


def _gif(
    canvas: Canvas, frames: list[Frame], pictures: Iterator[np.ndarray], out: Path, fps: float
) -> None:
    """One palette for all pictures, so that what stays the same costs nothing."""
    some = np.linspace(0, len(frames) - 1, min(len(frames), PALETTE_FRAMES)).astype(int)
    sample = Image.fromarray(np.concatenate([canvas(frames[i]) for i in some]))
    palette = sample.quantize(255, Image.Quantize.FASTOCTREE)  # the 256th is for transparency
    images = (
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures
    )
    next(images).save(
        out, save_all=True, append_images=images, duration=round(1000 / fps), loop=0, optimize=True
    )


def _mp4(
    canvas: Canvas, frames: list[Frame], pictures: Iterator[np.ndarray], out: Path, fps: float
) -> None:
    height, width, _ = canvas(frames[0]).shape
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"  # which yuv420p, that browsers play, needs
    command = [
        "ffmpeg",
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        str(fps),
        "-i",
        "-",
        "-vf",
        even,
        "-pix_fmt",
        "yuv420p",
        str(out),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin
        for picture in pictures:
            encoder.stdin.write(picture.tobytes())
    if encoder.returncode:
        raise Refused(f"ffmpeg could not write {out}; it says why above")
