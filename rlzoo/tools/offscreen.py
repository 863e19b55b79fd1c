"""Draws MuJoCo models without a display, in a process of its own.

OpenGL is chosen (MUJOCO_GL) when mujoco is first imported, which brax does, a choice that does not
work fails there, and a bad driver ends the process. This file is therefore both sides: what asks,
and the script that draws.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class NoOpenGL(Exception):
    """This machine has no OpenGL that MuJoCo can draw with; the message says what it met."""


class Renderer:
    """`renderer(qpos, qvel)` is a picture of `model`, uint8 [height, width, 3]. Raises `NoOpenGL`.

    backend: a value of MUJOCO_GL: egl, osmesa, glfw, cgl; empty: the platform's own, which needs a
    display.
    """

    def __init__(self, model: Any, width: int, height: int, backend: str):
        import mujoco

        self.shape = (height, width, 3)
        self.folder = tempfile.TemporaryDirectory()
        self.errors = Path(self.folder.name, "errors")
        mujoco.mj_saveModel(model, f"{self.folder.name}/model.mjb", None)
        # -P: the other files here are not top-level modules.
        command = [sys.executable, "-P", __file__, "model.mjb", str(width), str(height)]
        with self.errors.open("w") as errors:
            self.worker = subprocess.Popen(
                command,
                cwd=self.folder.name,
                env=os.environ | {"MUJOCO_GL": backend},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self(model.qpos0, np.zeros(model.nv))

    def __call__(self, qpos: Any, qvel: Any) -> np.ndarray:
        assert self.worker.stdin and self.worker.stdout
        self.worker.stdin.write(np.concatenate([qpos, qvel], dtype=np.float64).tobytes())
        self.worker.stdin.flush()
        picture = self.worker.stdout.read(int(np.prod(self.shape)))
        if len(picture) < np.prod(self.shape):  # it has ended
            why = self.errors.read_text().strip().splitlines()[-1:]
            self.close()
            raise NoOpenGL("".join(why) or f"exit code {self.worker.returncode}")
        return np.frombuffer(picture, np.uint8).reshape(self.shape)

    def close(self) -> None:
        self.worker.communicate()
        self.folder.cleanup()


def start(model: Any, width: int, height: int) -> Renderer:
    """A renderer with $MUJOCO_GL, or where it is not set, with EGL or the display. Raises
    `NoOpenGL`."""
    asked = os.environ.get("MUJOCO_GL")
    if asked is None:
        try:
            return Renderer(model, width, height, "egl")
        except NoOpenGL:
            asked = ""
    return Renderer(model, width, height, asked)


def main(path: str, width: int, height: int) -> None:
    """Read states, qpos and qvel in float64, from standard input; write a picture of each to
    standard output."""
    import mujoco

    model = mujoco.MjModel.from_binary_path(path)
    data = mujoco.MjData(model)
    names = [model.camera(i).name for i in range(model.ncam)]
    camera = names.index("track") if "track" in names else -1  # -1: the free camera
    with mujoco.Renderer(model, height, width) as renderer:
        while state := sys.stdin.buffer.read(8 * (model.nq + model.nv)):
            data.qpos, data.qvel = np.split(np.frombuffer(state), [model.nq])
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            sys.stdout.buffer.write(renderer.render().tobytes())
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
