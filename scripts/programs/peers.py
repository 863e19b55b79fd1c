"""Interpreters for the other projects that the benchmarks measure against, one virtual environment
each.

    from programs.peers import peer_python
    subprocess.run([peer_python("rejax"), "scripts/programs/rejax.py", "ppo", ...])

or, to make one and print its path: `python scripts/programs/peers.py rejax`.

A peer gets the jax and jaxlib of the interpreter that calls (with its CUDA plugin, where it has
one), so both sides of a comparison run on the same compiler; what else the peer computes with is
pinned in `PINS`. Environments live in `<repo>/.peers/<name>` and are made anew when the pins, jax
or Python change.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
DONE = "rlzoo-peer.txt"  # written last: an environment without it was interrupted

# rejax 0.1.3 asks for gymnax>=0.0.9 without an upper bound, and stops at its first step on gymnax
# 1.x, whose `step` returns six values. The rest are the versions that it was tried with.
PINS: dict[str, list[str]] = {
    "rejax": [
        "rejax==0.1.3",
        "gymnax==0.0.9",
        "flax==0.12.8",
        "optax==0.2.8",
        "distrax==0.1.9",
        "chex==0.1.92",
        "numpy==2.4.6",
    ]
}


def requirements(name: str) -> list[str]:
    """What `name` is installed from: its pins, and the calling interpreter's jax."""
    if name not in PINS:
        raise ValueError(f"no such peer: {name!r}; known: {', '.join(sorted(PINS))}")
    try:
        jax, jaxlib = metadata.version("jax"), metadata.version("jaxlib")
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"{sys.executable} has no jax: call from rlzoo's environment") from None
    installed = {(found.metadata["Name"] or "").lower() for found in metadata.distributions()}
    cuda = [extra for extra in ("cuda12", "cuda13") if f"jax-{extra}-plugin" in installed]
    extras = f"[{','.join(cuda)}]" if cuda else ""
    return [f"jax{extras}=={jax}", f"jaxlib=={jaxlib}", *PINS[name]]


def peer_python(name: str) -> Path:
    """The interpreter of the peer `name`; its environment is made on first use, which takes about a
    minute.

    Raises ValueError for an unknown name, RuntimeError when the caller has no jax or the
    installation fails. Not safe to call from two processes at once for the same new peer.
    """
    wanted = "\n".join([f"python=={platform.python_version()}", *requirements(name)]) + "\n"
    home = REPO / ".peers" / name
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if python.exists() and (home / DONE).exists() and (home / DONE).read_text() == wanted:
        return python

    say(
        f"[peers] installing {name} into {home} (once, about a minute): {', '.join(wanted.split())}"
    )
    start = time.perf_counter()
    if home.exists():
        shutil.rmtree(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(home)], [*pip, *requirements(name)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"could not install the peer {name}; this failed:\n  {' '.join(command)}\n"
                f"{(done.stdout + done.stderr).strip()}\nThe next call starts afresh."
            )
    (home / DONE).write_text(wanted)
    say(f"[peers] {name} is ready after {time.perf_counter() - start:.0f} s")
    return python


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(sorted(PINS))}}}")
    try:
        print(peer_python(sys.argv[1]))
    except (ValueError, RuntimeError) as problem:
        sys.exit(str(problem))
