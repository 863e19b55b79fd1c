"""IQL's updates per second at the usual size (256-256, batch 256, 11 observations, 3 actions), and
their share of what this machine multiplies matrices at.

    python scripts/bench_dual_rl.py                 # 10 minutes
    python scripts/bench_dual_rl.py --gpu           # 1,000,000 updates of 8 seeds, as a whole

The data are random and of no environment, so that the updates are what is timed. Every case is a
process of its own, run three times in turn with the matrix product between them; medians. Table:
results/dual_rl/speed.md.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_td3 import matmul

from rlzoo.study import ROOT, fill, table

CASES = [(1, 1, 1), (1, 1, 2), (8, 1, 1), (8, 2, 1)]  # members, processes, threads of each
OBS, ACTION, WIDTH, BATCH, ROWS = 11, 3, 256, 256, 100_000


def flops_per_update() -> float:
    """Multiplications and additions of all matrix products of one update."""
    middle = WIDTH * WIDTH

    def net(inputs: int, outputs: int) -> int:
        return inputs * WIDTH + middle + WIDTH * outputs

    def learnt(inputs: int, outputs: int) -> int:
        """Forward, the kernels' gradients, the activations' but for those of the inputs."""
        return 3 * net(inputs, outputs) - inputs * WIDTH

    value, critic = net(OBS, 1), net(OBS + ACTION, 1)
    judged = 2 * critic + 2 * value  # by the target critics, and by the new values at both ends
    trained = learnt(OBS, 1) + 2 * learnt(OBS + ACTION, 1) + learnt(OBS, ACTION)
    return 2 * BATCH * (judged + trained)


def write_data(path: Path) -> None:
    """Episodes of 1000 steps."""
    from rlzoo import dataset

    rng = np.random.default_rng(0)
    obs = rng.normal(size=(ROWS + 1, OBS)).astype(np.float32)
    ended = np.arange(ROWS) % 1000 == 999
    arrays = {
        "obs": obs[:-1],
        "next_obs": np.where(ended[:, None], obs[:-1], obs[1:]),
        "action": rng.uniform(-1, 1, (ROWS, ACTION)).astype(np.float32),
        "reward": rng.random(ROWS).astype(np.float32),
        "terminated": np.zeros(ROWS, bool),
        "truncated": ended,
    }
    dataset.save(dataset.from_arrays(arrays), path)


def measure(members: int, processes: int, threads: int, updates: int) -> dict:
    """The summary of a run of so many updates of each member."""
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder, "data.npz"))
        flags = f"--dataset {folder}/data.npz --total-steps {updates} --hidden {WIDTH} {WIDTH}"
        flags += f" --batch-size {BATCH} --seeds {members} --processes {processes} --eval-every 0"
        program = [sys.executable, str(ROOT / "algorithms" / "iql.py")]
        command = [*program, *flags.split(), "--quiet", "--out", f"{folder}/run"]
        threaded = os.environ | {"PJRT_NPROC": str(threads)}
        subprocess.run(command, check=True, timeout=3600, env=threaded)
        return json.loads(Path(folder, "run", "summary.json").read_text("utf-8"))


def main() -> None:
    from rlzoo import machine

    speeds = {case: [] for case in CASES}
    rates = {1: [], 2: []}
    for _ in range(3):
        for members, processes, threads in CASES:
            updates = 2_000 * processes * threads // members
            found = measure(members, processes, threads, updates)["updates_per_second"]
            speeds[members, processes, threads].append(found)
            print(members, processes, threads, found, flush=True)
        for threads in rates:
            rates[threads].append(matmul(threads))
            print("matmul", threads, rates[threads][-1], flush=True)
    one, both = (statistics.median(rates[threads]) for threads in (1, 2))
    work = flops_per_update()
    rows = []
    for members, processes, threads in CASES:
        updates = statistics.median(speeds[members, processes, threads])
        most = processes * one if threads == 1 else both
        done = updates * work / 1e9
        share = f"{done / most:.0%}"
        rows.append([members, processes, threads, f"{updates:,.0f}", f"{done:.0f}", share])
    facts = machine.describe()
    heads = ["members", "processes", "threads of each", "updates/s, all members", "GFLOP/s"]
    fill(
        ROOT / "results" / "dual_rl" / "speed.md",
        work=f"{work / 1e6:.0f}",
        one=f"{one:.0f}",
        two=f"{both:.0f}",
        hardware=f"{facts['cpu']}, {facts['cores']} cores",
        table=table([*heads, "share of the matrix product's"], rows),
    )


def on_gpu() -> None:
    """Print what 1,000,000 updates of 8 seeds take."""
    found = measure(8, 1, 1, 1_000_000)
    print(f"{found['train_seconds']:.0f} s, {found['updates_per_second']:,.0f} updates/s")


if __name__ == "__main__":
    on_gpu() if sys.argv[1:] == ["--gpu"] else main()
