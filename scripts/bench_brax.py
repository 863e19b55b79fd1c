"""Every brax environment on every backend, through `rlzoo.make`: does it run, how long to compile,
how fast.

    # all; rows that results/brax/table.csv has are kept
    python scripts/bench_brax.py
    python scripts/bench_brax.py --only hopper:spring   # environments whose name contains this

Each pair runs in a process of its own, which is stopped after --limit seconds of processor time.
The program compiled is a rollout of 64 environments over 16 steps with random actions and
auto-reset. Rows stand in results/brax/table.csv, the table in results/brax/README.md; both are
written after every row. On a CPU all times are processor time, so that other work on the machine
does not show in them.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

from rlzoo.study import ROOT, fill, table, write_csv

OUT = ROOT / "results" / "brax"
FIELDS = [
    "env",
    "backend",
    "status",
    "compile_seconds",
    "steps_per_second",
    "jax",
    "brax",
    "hardware",
]
NUM_ENVS, LENGTH = 64, 16


def measure(id: str, limit: float) -> dict:
    """One row, measured in this process, which the system kills after `limit` seconds of processor
    time."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
    import importlib.metadata

    import jax
    import jax.numpy as jnp

    import rlzoo
    from rlzoo import machine

    env = rlzoo.make(id)

    def draw(carry, obs, key):
        return carry, jax.random.uniform(key, (NUM_ENVS, env.action_dim), minval=-1.0), None

    @jax.jit
    def rollout(state, key, t):
        act_key, key = jax.random.split(key)
        state, _, steps, _, _ = env.rollout(
            state, draw, None, jax.random.split(act_key, LENGTH), key, LENGTH, t
        )
        good = jax.tree.map(lambda x: jnp.isfinite(x).all(), (steps.next_obs, steps.reward))
        return state, jnp.stack(jax.tree.leaves(good)).all()

    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    state = jax.jit(env.reset, static_argnums=1)(jax.random.key(0), NUM_ENVS)
    compiled = rollout.lower(state, jax.random.key(1), jnp.int32(0)).compile()
    compile_seconds = clock() - start
    state, finite = jax.block_until_ready(compiled(state, jax.random.key(1), jnp.int32(0)))
    calls, start = 0, clock()
    while clock() - start < 2:
        calls += 1
        state, still = jax.block_until_ready(
            compiled(state, jax.random.key(1 + calls), jnp.int32(calls))
        )
        finite &= still
    speed = calls * NUM_ENVS * LENGTH / (clock() - start)
    facts = machine.describe()
    cpu = f"{facts['cpu']}, {facts['cores']} cores, {os.environ.get('PJRT_NPROC', 'all')} used"
    return {
        "status": "ok" if finite else "not finite",
        "compile_seconds": round(compile_seconds, 1),
        "steps_per_second": round(speed),
        "jax": jax.__version__,
        "brax": importlib.metadata.version("brax"),
        "hardware": cpu if facts["backend"] == "cpu" else ", ".join(facts["devices"]),
    }


def row(env: str, backend: str, limit: float) -> dict:
    """One row, measured in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        f"brax/{env}:{backend}",
        "--limit",
        str(limit),
    ]
    done = None
    with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs, or the machine is very busy
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10 * limit, check=False
        )
    if done is None or done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        found = {"status": f"over {limit:g} s"}
    else:
        lines = done.stdout.strip().splitlines()
        said = [
            line for line in done.stderr.splitlines() if re.match(r"[\w.]+(Error|Refused): ", line)
        ]
        error = (said or [f"exit status {done.returncode}"])[-1]
        found = (
            json.loads(lines[-1]) if done.returncode == 0 else {"status": f"failed: {error[:120]}"}
        )
    return dict.fromkeys(FIELDS, "") | {"env": env, "backend": backend} | found


def write(rows: list[dict], limit: float) -> None:
    rows = sorted(rows, key=lambda r: (r["env"], r["backend"]))
    write_csv(OUT / "table.csv", rows)
    ok = [r for r in rows if r["status"] == "ok"]
    backends = sorted({r["backend"] for r in rows})
    cells = {(r["env"], r["backend"]): cell(r) for r in rows}
    body = [
        [env, *(cells.get((env, backend), "") for backend in backends)]
        for env in sorted({r["env"] for r in rows})
    ]
    hardware = sorted({f"jax {r['jax']}, brax {r['brax']}, {r['hardware']}" for r in ok})
    fill(
        OUT / "README.md",
        ok=str(len(ok)),
        pairs=str(len(rows)),
        limit=f"{limit:g}",
        hardware="; ".join(hardware),
        table=table(["env", *backends], body),
    )


def cell(row: dict) -> str:
    if row["status"] != "ok":
        return row["status"]
    return f"{row['compile_seconds']} s, {int(row['steps_per_second']):,}/s"


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--only", default="", help="run only pairs whose env:backend contains this")
    parser.add_argument("--limit", type=float, default=600, help="processor seconds for each pair")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.limit)))
        return
    from rlzoo.suites.brax import BACKENDS
    from rlzoo.suites.brax import NAMES as BRAX

    file = OUT / "table.csv"
    rows = []
    if file.exists():
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
    have = {(r["env"], r["backend"]) for r in rows}
    for env in BRAX:
        for backend in BACKENDS:
            if args.only in f"{env}:{backend}" and (env, backend) not in have:
                rows.append(row(env, backend, args.limit))
                print(rows[-1], flush=True)
                write(rows, args.limit)


if __name__ == "__main__":
    main()
