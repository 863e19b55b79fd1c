"""TD3's updates per second at the usual size (256-256, batch 256, 11 observations, 3 actions,
replay in the program), and their share of what this machine multiplies matrices at.

    python scripts/bench_td3.py

The environment is a linear toy that costs next to nothing, so that the updates are what is timed.
Every case is a process of its own, run three times in turn with the matrix product between them;
medians. Table: results/td3.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlzoo.study import ROOT, fill, table

OUT = ROOT / "results" / "td3"
CASES = [(1, 1, 1), (1, 1, 2), (8, 1, 1), (8, 2, 1)]  # members, processes, threads of each
OBS, ACTION, WIDTH, BATCH = 11, 3, 256, 256


def flops_per_update() -> float:
    """Multiplications and additions of all matrix products of one update, on average over the
    policy delay of 2."""
    first, middle = WIDTH, WIDTH * WIDTH
    actor = OBS * first + middle + WIDTH * ACTION
    critic = (OBS + ACTION) * first + middle + WIDTH

    def no_input(layers: int, inputs: int) -> int:
        """Without the gradient with respect to the input, which is not needed."""
        return layers - inputs * first

    target = actor + 2 * critic
    # Forward, the kernels' gradients, the activations' gradients.
    critics = 2 * (critic + critic + no_input(critic, OBS + ACTION))
    policy = actor + critic + critic + actor + no_input(actor, OBS)
    return 2 * BATCH * (target + critics + policy / 2)


def register() -> None:
    import gymnax
    import jax
    import jax.numpy as jnp
    from flax import struct
    from gymnax.environments import environment, spaces

    @struct.dataclass
    class State:
        x: jax.Array
        time: jax.Array

    class Linear(environment.Environment):
        @property
        def default_params(self):
            return environment.EnvParams(max_steps_in_episode=1000)

        def reset_env(self, key, params):
            x = jax.random.normal(key, (OBS,))
            return x, State(x, jnp.int32(0))

        def step_env(self, key, state, action, params):
            x = 0.9 * state.x + 0.1 * action.sum()
            return x, State(x, state.time + 1), -(x**2).sum(), jnp.bool_(False), {}

        def action_space(self, params=None):
            return spaces.Box(-1.0, 1.0, (ACTION,))

        def observation_space(self, params):
            return spaces.Box(-jnp.inf, jnp.inf, (OBS,))

    gymnax.registration.register("linear", Linear)


def train() -> None:
    """This process as an algorithm script, with the toy environment known to it."""
    from rlzoo.algorithms import td3  # before gymnax: rlzoo starts jax

    from rlzoo.cli import script

    register()
    del sys.argv[1]
    argv = sys.argv[1:]
    sys.argv.insert(1, "--train")  # for the workers that `--processes` starts
    script(td3.make, td3.Config, argv=argv)


def measure(members: int, processes: int, threads: int) -> float:
    """Updates per second of all members."""
    steps = 2_500 * processes * threads // members
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--env linear --total-steps {steps} --buffer-size 1_000_000 --learning-starts 1"
        flags += f" --hidden {WIDTH} {WIDTH} --batch-size {BATCH} --learning-rate 3e-4"
        flags += f" --seeds {members} --processes {processes} --eval-every 0 --eval-episodes 1"
        command = [sys.executable, __file__, "--train", *flags.split(), "--quiet"]
        threaded = os.environ | {"PJRT_NPROC": str(threads)}
        out = ["--out", f"{folder}/run"]
        subprocess.run([*command, *out], check=True, timeout=600, env=threaded)
        return json.loads(Path(folder, "run", "summary.json").read_text())["updates_per_second"]


def matmul(threads: int) -> float:
    """GFLOP/s of 256 x 256 x 256 products in a compiled loop, in a process of its own."""
    found = subprocess.run(
        [sys.executable, __file__, "--matmul"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PJRT_NPROC": str(threads)},
    )
    return float(found.stdout)


def time_matmul() -> None:
    import jax
    import jax.numpy as jnp

    x, count = jnp.eye(WIDTH), 2000
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: y @ x, x))
    jax.block_until_ready(loop(x))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(loop(x))
        seconds.append(time.perf_counter() - start)
    print(count * 2 * WIDTH**3 / statistics.median(seconds) / 1e9)


def main() -> None:
    from rlzoo import machine

    speeds, rates = {case: [] for case in CASES}, {1: [], 2: []}
    for _ in range(3):
        for case in CASES:
            speeds[case].append(measure(*case))
            print(case, speeds[case][-1], flush=True)
        for threads in rates:
            rates[threads].append(matmul(threads))
            print("matmul", threads, rates[threads][-1], flush=True)
    one, both = (statistics.median(rates[threads]) for threads in (1, 2))
    work = flops_per_update()
    rows = []
    for case in CASES:
        members, processes, threads = case
        updates = statistics.median(speeds[case])
        most = processes * one if threads == 1 else both
        rows.append(
            [
                members,
                processes,
                threads,
                f"{updates:,.0f}",
                f"{updates * work / 1e9:.0f}",
                f"{updates * work / 1e9 / most:.0%}",
            ]
        )
    facts = machine.describe()
    heads = ["members", "processes", "threads of each", "updates/s, all members", "GFLOP/s"]
    heads += ["share of the matrix product's"]
    fill(
        OUT / "README.md",
        work=f"{work / 1e6:.0f}",
        one=f"{one:.0f}",
        two=f"{both:.0f}",
        hardware=f"{facts['cpu']}, {facts['cores']} cores",
        table=table(heads, rows),
    )


if __name__ == "__main__":
    {"--train": train, "--matmul": time_matmul}.get(
        sys.argv[1] if len(sys.argv) > 1 else "", main
    )()
