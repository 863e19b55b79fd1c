"""Speed against rejax 0.1.3 at equal hyper-parameters and update ratio, as ratios in one run.

    python scripts/bench_rejax.py                # about ten minutes on 2 idle cores

Both sides run in turn, `REPEATS` times, each in a process of its own with a cold compilation cache;
the table gives medians and the ratio of the medians, beside the networks alone: forward and back on
one minibatch, plainly, without anything around them. rlzoo spreads many seeds over one process per
core (`--processes`), rejax uses XLA's own threads, as a user of each would. What could not be made
equal is listed below the table.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from programs.peers import peer_python

from rlzoo import machine
from rlzoo.study import ROOT, fill, table, write_csv

OUT = ROOT / "results" / "rejax"
REPEATS = 3
CASES = [("ppo", 1, 500_000), ("ppo", 32, 100_000), ("dqn", 1, 100_000), ("dqn", 32, 20_000)]


def ours(algorithm: str, seeds: int, steps: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        processes = min(seeds, machine.cores())
        flags = f"--seeds {seeds} --total-steps {steps} --eval-every 0 --eval-episodes 1"
        command = [sys.executable, f"algorithms/{algorithm}.py", *flags.split()]
        command += ["--no-cache", "--quiet", "--processes", str(processes)]
        command += ["--out", f"{folder}/run"]
        subprocess.run(command, check=True, timeout=600, cwd=ROOT)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {
        "steps": summary["steps_per_second"],
        "updates": summary["updates_per_second"],
        "compile": summary["compile_seconds"],
    }


def rejax(algorithm: str, seeds: int, steps: int, tries: int = 3) -> dict:
    flags = f"--seeds {seeds} --steps {steps} --repeat 2 --eval-episodes 0"
    program = str(ROOT / "scripts" / "programs" / "rejax.py")
    command = [str(peer_python("rejax")), program, algorithm, *flags.split()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except subprocess.TimeoutExpired:  # XLA's hang: see check_hang.py
        print(algorithm, seeds, "rejax hung", flush=True)
        if tries == 1:
            raise
        return rejax(algorithm, seeds, steps, tries - 1)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "steps": found["env_steps_per_second"],
        "updates": found["updates_per_second"],
        "compile": found["trace_seconds"] + found["compile_seconds"],
        "differences": found["differences"],
    }


NETWORKS = {"ppo": [(4, 64, 64, 2), (4, 64, 64, 1)], "dqn": [(4, 120, 84, 2)]}
ROWS, UPDATES = 128, 4_000


def networks_alone(algorithm: str, seeds: int) -> float:
    """Updates/s of the networks' passes over one minibatch: forward and back, of dqn forward once
    more for its target.

    Of all seeds: with more than one, those of one core in one process, times the cores, as `ours`
    spreads them.
    """
    cores = min(seeds, machine.cores())
    command = [sys.executable, __file__, "--networks", algorithm, "--members", str(seeds // cores)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env=os.environ | ({"PJRT_NPROC": "1"} if cores > 1 else {}),
    )
    return cores * float(done.stdout)


def time_networks(algorithm: str, members: int) -> float:
    import jax
    import jax.numpy as jnp

    activation = jnp.tanh if algorithm == "ppo" else jax.nn.relu
    layers = [list(itertools.pairwise(widths)) for widths in NETWORKS[algorithm]]

    def init(key: jax.Array) -> list:
        return [
            [jax.random.normal(key, shape) / shape[0] ** 0.5 for shape in net] for net in layers
        ]

    def forward(params: list, x: jax.Array) -> jax.Array:
        def one(net: list) -> jax.Array:
            h = x
            for weights in net[:-1]:
                h = activation(h @ weights)
            return (h @ net[-1]).sum()

        return sum(one(net) for net in params)

    def update(params: list, t: jax.Array) -> tuple:
        x = jnp.cos(t + jnp.arange(4.0 * ROWS)).reshape(ROWS, 4)
        target = forward(params, x + 1.0) if algorithm == "dqn" else 0.0
        grads = jax.grad(lambda p: forward(p, x) * (1.0 + jax.lax.stop_gradient(target)))(params)
        return jax.tree.map(lambda p, g: p - 1e-9 * g, params, grads), None

    params = jax.vmap(init)(jax.random.split(jax.random.key(0), members))

    def one(params: list) -> list:
        times = jnp.arange(UPDATES, dtype=jnp.float32) / UPDATES
        params, _ = jax.lax.scan(update, params, times)
        return params

    def single(params: list) -> list:
        params = one(jax.tree.map(lambda x: x[0], params))
        return jax.tree.map(lambda x: x[None], params)

    program = jax.jit(jax.vmap(one) if members > 1 else single)
    run = program.lower(params).compile(machine.compiler_options("cpu"))
    params = jax.block_until_ready(run(params))
    began = time.perf_counter()
    jax.block_until_ready(run(params))
    return members * UPDATES / (time.perf_counter() - began)


def main() -> None:
    rows, notes = [], {}
    for algorithm, seeds, steps in CASES:
        runs: dict[str, list[dict]] = {"rlzoo": [], "rejax": []}
        for _ in range(REPEATS):
            for name, measure in (("rlzoo", ours), ("rejax", rejax)):
                runs[name].append(measure(algorithm, seeds, steps))
                print(
                    algorithm,
                    seeds,
                    name,
                    {k: round(v, 1) for k, v in runs[name][-1].items() if k != "differences"},
                    flush=True,
                )
        notes[algorithm] = runs["rejax"][0]["differences"]
        median = {
            name: {
                key: statistics.median(run[key] for run in found)
                for key in ("steps", "updates", "compile")
            }
            for name, found in runs.items()
        }
        rows.append(
            {"algorithm": algorithm, "seeds": seeds, "steps of each seed": steps}
            | {
                f"{name} {key}": round(median[name][key], 1)
                for key in ("steps", "updates", "compile")
                for name in median
            }
            | {
                "ratio of steps/s": round(median["rlzoo"]["steps"] / median["rejax"]["steps"], 2),
                "updates of the networks alone": round(
                    statistics.median(networks_alone(algorithm, seeds) for _ in range(REPEATS)), 1
                ),
            }
        )
    write_csv(OUT / "table.csv", rows)
    hardware = machine.describe()
    fill(
        OUT / "README.md",
        hardware=f"{hardware['cpu']}, {hardware['cores']} cores",
        table=table(list(rows[0]), ([figure(x) for x in row.values()] for row in rows)),
        **{name: "\n".join(f"- {text}" for text in found) for name, found in notes.items()},
    )


def figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", help=argparse.SUPPRESS)
    parser.add_argument("--members", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.networks:
        print(time_networks(arguments.networks, arguments.members))
    else:
        main()
