"""32 seeds of PPO for 100,000 steps, ten times in a row: exits with 1 if a run does not end in
time.

    python scripts/check_hang.py

XLA's CPU thread pool can lose a wake-up in vmapped programs with many small kernels (seen with jax
0.10.2 in PPO of this and of another project): the process then sleeps for ever. rlzoo gives jax one
thread on a CPU, which keeps it from happening; `PJRT_NPROC=2 python scripts/check_hang.py` shows
what happens with two.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120

failures = 0
for attempt in range(10):
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--seeds 32 --total-steps 100_000 --quiet --out {folder}/run"
        command = [sys.executable, "algorithms/ppo.py", *flags.split()]
        began = time.perf_counter()
        try:
            subprocess.run(command, check=True, timeout=SECONDS, cwd=ROOT)
            print(f"run {attempt + 1}: ended after {time.perf_counter() - began:.1f} s", flush=True)
        except subprocess.TimeoutExpired:
            failures += 1
            print(f"run {attempt + 1}: HUNG, killed after {SECONDS} s", flush=True)
print(f"{10 - failures} of 10 runs ended")
sys.exit(failures > 0)
