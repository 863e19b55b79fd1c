"""What README says can be done, done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CORRIDOR = '''
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class State:
    position: int
    time: int


class Corridor(environment.Environment):
    """Walk to the right end."""

    def __init__(self, length=5):
        self.length = length

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=30)

    def reset_env(self, key, params):
        state = State(jnp.int32(0), jnp.int32(0))
        return self.see(state), state

    def step_env(self, key, state, action, params):
        position = jnp.clip(state.position + 2 * action - 1, 0, self.length)
        state = State(position, state.time + 1)
        ended = position == self.length
        return self.see(state), state, ended.astype(jnp.float32), ended, {}

    def see(self, state):
        return jnp.array([state.position / self.length], jnp.float32)

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (1,))
'''


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


def blocks(text):
    return re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)


def test_the_page_on_environments_is_short():
    assert len(section("Your own environment").strip().splitlines()) <= 15


@pytest.mark.timeout(280)
def test_your_own_environment(tmp_path):
    """Each command in a process of its own, as in a shell."""
    (tmp_path / "corridor.py").write_text(CORRIDOR)
    (tmp_path / "algorithms").symlink_to(ROOT / "algorithms")
    (commands,) = blocks(section("Your own environment"))
    for command in commands.strip().splitlines():
        words = shlex.split(command)
        start = {"python": [sys.executable], "rlzoo": [sys.executable, "-m", "rlzoo"]}[words[0]]
        done = subprocess.run([*start, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (tmp_path / "corridor.npz").exists()
    assert (tmp_path / "runs" / "corridor" / "play.gif").exists()


def test_python_code_is_python():
    for block in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S):
        compile(block, "README.md", "exec")


def test_files_that_are_linked_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
