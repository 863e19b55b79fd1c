"""What a seed costs: PPO on CartPole with 1, 8, 32 and 128 seeds in one process, and over all
cores.

python scripts/bench_members.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rlzoo import machine
from rlzoo.study import ROOT, fill, table, write_csv

OUT = ROOT / "results" / "members"
STEPS = 50_000


def measure(seeds: int, processes: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--seeds {seeds} --total-steps {STEPS} --eval-every 0 --quiet --no-cache"
        command = [sys.executable, "algorithms/ppo.py", *flags.split()]
        command += ["--processes", str(processes), "--out", f"{folder}/run"]
        subprocess.run(command, check=True, timeout=900, cwd=ROOT)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {
        "seeds": seeds,
        "processes": processes,
        "training seconds": round(summary["train_seconds"], 2),
        "seconds per seed": round(summary["train_seconds"] / seeds, 3),
        "compile seconds": round(summary["compile_seconds"], 1),
        "steps/s, all seeds": round(summary["steps_per_second"]),
        "peak memory of process 0, MiB": round(summary["peak_memory_bytes"] / 2**20),
    }


def main() -> None:
    cases = [
        (seeds, processes)
        for processes in (1, machine.cores())
        for seeds in (1, 8, 32, 128)
        if seeds >= processes
    ]
    rows = []
    for seeds, processes in cases:
        rows.append(measure(seeds, processes))
        print(rows[-1], flush=True)
    write_csv(OUT / "table.csv", rows)
    hardware = machine.describe()
    fill(
        OUT / "README.md",
        hardware=f"{hardware['cpu']}, {hardware['cores']} cores",
        table=table(list(rows[0]), ([f"{x:,}" for x in row.values()] for row in rows)),
    )


if __name__ == "__main__":
    main()
