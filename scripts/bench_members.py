"""What a seed costs: PPO on CartPole with 1, 8, 32 and 128 seeds in one process, and over all
cores.

python scripts/bench_members.py
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rlzoo import machine

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "members"
STEPS = 50_000


def measure(seeds: int, processes: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                str(ROOT / "algorithms" / "ppo.py"),
                "--seeds",
                str(seeds),
                "--total-steps",
                str(STEPS),
                "--eval-every",
                "0",
                "--quiet",
                "--no-cache",
                "--processes",
                str(processes),
                "--out",
                f"{folder}/run",
            ],
            check=True,
            timeout=900,
        )
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
    OUT.mkdir(parents=True, exist_ok=True)
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
    with (OUT / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(f"{value:,}" for value in row.values()) + " |" for row in rows),
    ]
    hardware = machine.describe()
    readme = OUT / "README.md"
    head, tail = "<!-- table -->", "<!-- end -->"
    text = readme.read_text() if readme.exists() else f"# What a seed costs\n\n{head}\n{tail}\n"
    before, after = text[: text.index(head) + len(head)], text[text.index(tail) :]
    made = (
        f"PPO, CartPole-v1, {STEPS:,} steps of each seed. Made by `python scripts/bench_members.py` on "
        f"{hardware['cpu']}, {hardware['cores']} cores."
    )
    readme.write_text("\n".join([before, "", made, "", *table, "", after]))


if __name__ == "__main__":
    main()
