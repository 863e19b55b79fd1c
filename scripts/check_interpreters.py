"""A smoke suite on every interpreter from 3.11 to 3.13 that this machine has: install, list, train,
load.

python scripts/check_interpreters.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMOKE = """
import sys, jax, rlzoo
from rlzoo.cli.flags import find
from rlzoo.suites.files import load
for name in ("ppo", "dqn"):
    module = load(find(name))
    config = module.Config(total_steps=6_000)
    out = f"{sys.argv[1]}/{name}"
    run = rlzoo.train(module.make, config, seeds=2, out=out, quiet=True)
    act, policy = rlzoo.load(run.dir)
    action = int(act(policy, jax.numpy.zeros(4), jax.random.key(0)))
    print(name, run.summary["status"], "jax", jax.__version__, action)
"""


def interpreters() -> list[str]:
    found = []
    for minor in (11, 12, 13):
        name = f"python3.{minor}"
        places = [
            shutil.which(name),
            *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}")),
        ]
        for place in filter(None, places):
            works = subprocess.run(
                [place, "-c", "import sys; print(sys.version_info[1])"],
                capture_output=True,
                text=True,
            )
            if works.returncode == 0 and works.stdout.strip() == str(minor):
                found.append(place)
                break
    return found


def main() -> None:
    for interpreter in interpreters():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([interpreter, "-m", "venv", f"{folder}/venv"], check=True)
            python = f"{folder}/venv/bin/python"
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, str(ROOT)], check=True)
            done = subprocess.run(
                [python, "-c", SMOKE, folder],
                cwd=folder,
                timeout=600,
                capture_output=True,
                text=True,
            )
            word = "FAILED" if done.returncode else "passed"
            print(f"{interpreter}: {word}\n{done.stdout}{done.stderr[-2000:]}")
            if done.returncode:
                sys.exit(1)


if __name__ == "__main__":
    main()
