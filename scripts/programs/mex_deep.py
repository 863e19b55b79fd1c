"""The deep studies in results/mex, called by scripts/mex.py: MEX-MF beside TD3, MEX-MB beside MBPO,
and what the term costs.

Returns are of the last iterate. Nothing is tuned: eta is that of the authors' released code, and
the other arms share every setting with it.
"""

import csv
import statistics
import time
from typing import Any

import numpy as np

from rlzoo import report
from rlzoo.study import claim, members, more, parts_of, score, table, write_csv

Parts = dict[str, str]
SEEDS = 20
TD3, MEX = "algorithms/td3.py", "algorithms/mex.py"
MBPO, MEX_MB = "algorithms/mbpo.py", "algorithms/mex_mb.py"


def returns(run: report.Run, **swept: float) -> np.ndarray:
    """The last return of every seed of a setting, [seeds]."""
    return np.array([member["eval/return"] for member in members(run, **swept)])


def row(task: str, arm: str, found: np.ndarray, solved: float, run: report.Run) -> list[str]:
    """Of an arm: its IQM, its seeds above a quarter of the best return, every seed, its command."""
    share = f"{(found > solved).sum()} of {len(found)}"
    scatter = " ".join(f"{value:.0f}" for value in np.sort(found))
    return [task, arm, score(found), share, scatter, f"`{run.config['command']}`"]


HEADS = ["task", "arm", "IQM (95% interval)", "solved", "return of each seed", "command"]

# ---- MEX-MF against TD3 --------------------------------------------------------------------------

TASKS = {"band-mass": 100.0, "MountainCarContinuous-v0": 25.0}
"""environment -> the return from which a seed has solved it: a quarter of the best"""
ETAS = (-5e-3, 5e-4, 1e-3, 5e-3)
ETA = 5e-3
"""of the released code's sparse tasks"""
OTHERS = {
    "over random actions alone": "--optimism random",
    "data's actions": "--optimism data",
    "released logsumexp": "--lse2-data-q1",
}


def model_free(lab: Any) -> Parts:
    """TD3, four etas (the negative one is pessimism) and the other forms of the term."""
    rows, runs, claims = [], [], []
    for env, solved in TASKS.items():
        flags = f"--env {env} --total-steps 20_000 --seeds {SEEDS}"
        plain = lab.arm(f"model_free/{env}-td3", TD3, flags)
        sweep = ",".join(f"{eta:g}" for eta in ETAS)
        swept = lab.arm(f"model_free/{env}-mex", MEX, f"{flags} --sweep eta={sweep}")
        td3 = returns(plain)
        by_eta = {eta: returns(swept, eta=eta) for eta in ETAS}
        rows.append(row(env, "td3", td3, solved, plain))
        rows += [row(env, f"mex, eta {eta:g}", by_eta[eta], solved, swept) for eta in ETAS]
        for number, (name, flag) in enumerate(OTHERS.items()):
            run = lab.arm(f"model_free/{env}-form{number}", MEX, f"{flags} {flag}")
            rows.append(row(env, f"{name}, eta {ETA:g}", returns(run), solved, run))
        claims += [
            claim(f"{env}: MEX has the higher return, over TD3", more, by_eta[ETA], td3),
            claim(f"{env}: MEX, over pessimism", more, by_eta[ETA], by_eta[-ETA]),
        ]
        runs += [plain, swept]
    lab.draw("model_free/curves.png", runs[:2], "band-mass")
    return parts_of(HEADS, rows, claims, runs[-1])


# ---- MEX-MB against MBPO -------------------------------------------------------------------------

SPARSE = ("band-mass", "MountainCarContinuous-v0")
MODELS = {"one network": "", "seven networks": "--ensemble-size 7 --num-elites 5"}
MODEL_SEEDS = 10


def model_based(lab: Any) -> Parts:
    """From one network, as released, and from seven, of which five make rollouts."""
    rows, runs, claims = [], [], []
    for env in SPARSE:
        for number, (model, flag) in enumerate(MODELS.items()):
            flags = f"--env {env} --total-steps 5_000 --seeds {MODEL_SEEDS} {flag}"
            plain = lab.arm(f"model_based/{env}-mbpo{number}", MBPO, flags)
            ours = lab.arm(f"model_based/{env}-mex_mb{number}", MEX_MB, flags)
            found = returns(plain), returns(ours)
            rows.append(row(env, f"mbpo, {model}", found[0], TASKS[env], plain))
            rows.append(row(env, f"mex_mb, {model}", found[1], TASKS[env], ours))
            text = f"{env}, {model}: MEX-MB has the higher return, over MBPO"
            claims.append(claim(text, more, found[1], found[0]))
            runs += [plain, ours]
    lab.draw("model_based/curves.png", runs[:2], "band-mass, one network")
    return parts_of(HEADS, rows, claims, runs[-1])


# ---- what the term costs -------------------------------------------------------------------------

SIZES = {
    "64-64, batch 128": {"hidden": (64, 64), "batch_size": 128},
    "256-256, batch 256": {"hidden": (256, 256), "batch_size": 256},
}
UPDATES = 50
ROUNDS = 9


def cost() -> list[dict[str, Any]]:
    """Milliseconds of an update, a row for each size: of TD3, of MEX and of its flipped sign.

    Chunks of updates take turns, so that what else the machine does strikes all alike; medians.
    """
    import jax
    import jax.numpy as jnp
    from rlzoo.algorithms import mex, td3

    import rlzoo

    env = rlzoo.make("band-mass")

    def chunk_of(module: Any, fields: dict) -> tuple:
        total = 10 * UPDATES
        config = module.Config(env=env.id, total_steps=total, learning_starts=1, **fields)
        algorithm = module.make(config, env)

        def chunk(state: Any) -> Any:
            def body(state: Any, t: Any) -> tuple:
                state, _ = algorithm.step(state, t)
                return state, None

            state, _ = jax.lax.scan(body, state, 1 + jnp.arange(UPDATES))
            return state

        state = jax.jit(algorithm.init)(jax.random.key(0))
        compiled = jax.jit(chunk, donate_argnums=0)
        return compiled, jax.block_until_ready(compiled(state))

    rows = []
    for size, fields in SIZES.items():
        arms = {
            "td3": chunk_of(td3, fields),
            "mex": chunk_of(mex, fields | {"eta": ETA}),
            "flipped": chunk_of(mex, fields | {"eta": -ETA}),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(ROUNDS):
            for name, (chunk, state) in arms.items():
                start = time.perf_counter()
                arms[name] = chunk, jax.block_until_ready(chunk(state))
                seconds[name].append(time.perf_counter() - start)
        medians = {
            name: 1e3 * statistics.median(found) / UPDATES for name, found in seconds.items()
        }
        rows.append({"size": size} | medians)
    return rows


def cost_parts(lab: Any) -> Parts:
    """The table of results/mex/cost, measured once."""
    path = lab.study.folder / "cost" / "cost.csv"
    if not path.exists():
        write_csv(path, cost())
    with path.open() as file:
        measured = list(csv.DictReader(file))
    rows, lines = [], []
    for each in measured:
        td3, mex, flipped = (float(each[name]) for name in ("td3", "mex", "flipped"))
        times = [f"{value:.2f}" for value in (td3, mex, flipped)]
        rows.append([each["size"], *times, f"{mex / td3:.2f}", f"{mex / flipped:.2f}"])
        lines.append(
            f"- {each['size']}: an update takes {mex / td3:.2f} times that of TD3 (goal: 2.5), and "
            f"{mex / flipped:.2f} times that with the sign flipped (goal: 1.15)"
        )
    heads = ["networks", "TD3, ms an update", "MEX", "sign flipped", "MEX / TD3", "MEX / flipped"]
    return {"table": table(heads, rows), "verdicts": "\n".join(lines)}


if __name__ == "__main__":
    for found in cost():
        print(found, flush=True)
