"""What a member of the dynamics ensemble costs, and how well it predicts next to a linear model.

    python scripts/bench_dynamics.py            # about two minutes on an idle core

Seconds are of the process on the CPU (jax has one thread there), the least of `REPEATS` runs,
compiling excluded; the cases take turns, so that a busy machine troubles all of them alike. Writes
results/dynamics.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import rlzoo
from rlzoo import machine
from rlzoo.dynamics import Ensemble
from rlzoo.env import Transition
from rlzoo.study import ROOT, fill, table, write_csv

OUT = ROOT / "results" / "dynamics"
REPEATS = 3
ROWS, NUM_ENVS, EPOCHS, STEPS = 4_000, 40, 3, 10_000
ENVS = ("Pendulum-v1", "brax/hopper:spring")
HIDDEN = ((200, 200, 200, 200), (64, 64))


def collect(env: rlzoo.Env) -> tuple[Transition, Transition]:
    """ROWS transitions under random actions to fit, and as many to judge, of other episodes."""
    length = ROWS // NUM_ENVS

    def run(key: jax.Array) -> Transition:
        reset_key, noise_key, key = jax.random.split(key, 3)
        noise = jax.random.uniform(
            noise_key, (length, 2 * NUM_ENVS, env.action_dim), minval=-1, maxval=1
        )
        start = env.reset(reset_key, 2 * NUM_ENVS)

        def act(carry: None, obs: jax.Array, action: jax.Array) -> tuple:
            return carry, action, None

        _, _, transitions, _, _ = env.rollout(start, act, None, noise, key, length, jnp.int32(0))
        return transitions

    # It runs for a second, and would compile for many.
    run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    steps = jax.tree.map(np.asarray, run(jax.random.key(0)))

    def half(part: slice) -> Transition:
        return jax.tree.map(lambda x: x[:, part].reshape(-1, *x.shape[2:]), steps)

    return half(slice(NUM_ENVS)), half(slice(NUM_ENVS, None))


def cpu_seconds(cases: dict[tuple, Callable]) -> dict[tuple, float]:
    """Of each case, a function without arguments that has been called before."""
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(REPEATS):
        for name, case in cases.items():
            start = time.process_time()
            jax.block_until_ready(case())
            best[name] = min(best[name], time.process_time() - start)
    return best


def cost(id: str, data: Transition) -> list[dict]:
    """Of an epoch and of a step with 1 and with 7 members."""
    key, cases = jax.random.key(0), {}
    obs, action = (jnp.resize(x, (STEPS, x.shape[1])) for x in (data.obs, data.action))
    for hidden in HIDDEN:
        for members, elites in ((1, 1), (7, 5)):
            model = Ensemble(
                data.obs.shape[1],
                data.action.shape[1],
                members=members,
                elites=elites,
                hidden=hidden,
                max_epochs=EPOCHS,
                patience=EPOCHS,
            )
            state = model.init(key)
            fit, step = jax.jit(model.fit), jax.jit(model.step)
            for name, run in (
                ("epoch", lambda f=fit, s=state: f(s, key, data)),
                ("step", lambda f=step, s=state: f(s, key, obs, action)),
            ):
                jax.block_until_ready(run())
                cases[name, hidden, members] = run
    found = cpu_seconds(cases)
    rows = []
    for name, hidden, work, unit in [
        ("epoch", h, f"an epoch of {ROWS:,} rows", EPOCHS) for h in HIDDEN
    ] + [("step", h, f"a step of {STEPS:,} rows", 1) for h in HIDDEN]:
        one, seven = (1e3 * found[name, hidden, members] / unit for members in (1, 7))
        rows.append(
            {
                "data": id,
                "work": work,
                "hidden": "x".join(map(str, hidden)),
                "1 member, CPU ms": round(one, 1),
                "7 members, CPU ms": round(seven, 1),
                "ratio": round(seven / one, 2),
            }
        )
    return rows


def error(id: str, train: Transition, test: Transition) -> list[dict]:
    """Of the default ensemble, one of its members, and least squares, on transitions that none has
    seen."""
    model = Ensemble(train.obs.shape[1], train.action.shape[1], max_epochs=100)
    fit = (
        jax.jit(model.fit).lower(model.init(jax.random.key(0)), jax.random.key(1), train).compile()
    )
    start = time.process_time()
    state, found = jax.block_until_ready(
        fit(model.init(jax.random.key(0)), jax.random.key(1), train)
    )
    seconds = time.process_time() - start

    def features(data: Transition) -> np.ndarray:
        return np.c_[data.obs, data.action, np.ones(len(data.obs))]

    def target(data: Transition) -> np.ndarray:
        return np.c_[data.next_obs - data.obs, data.reward]

    prediction = jax.jit(model.predict)(state, test.obs, test.action)
    means = np.asarray(prediction.mean)[np.asarray(state.elites)]
    means[..., :-1] -= test.obs
    weights, *_ = np.linalg.lstsq(features(train), target(train), rcond=None)
    linear = features(test) @ weights
    note = f"{int(found.epochs)} epochs, {seconds:.0f} CPU s"
    rows = []
    for name, mean, how in (
        ("mean of the elites", means.mean(0), note),
        ("the best member", means[0], ""),
        ("least squares", linear, ""),
    ):
        square = ((mean - target(test)) ** 2).mean(0)
        rows.append(
            {
                "data": id,
                "model": name,
                "RMSE": float(f"{square.mean() ** 0.5:.3g}"),
                "RMSE in deviations": float(f"{(square / target(test).var(0)).mean() ** 0.5:.3g}"),
                "fit": how,
            }
        )
    return rows


def write(name: str, rows: list[dict]) -> str:
    """Write the rows as a csv file; return them as a Markdown table."""
    write_csv(OUT / f"{name}.csv", rows)
    return table(list(rows[0]), (row.values() for row in rows))


def main() -> None:
    costs, errors = [], []
    for id in ENVS:
        train, test = collect(rlzoo.make(id))
        costs += cost(id, train)
        errors += error(id, train, test)
        print(*costs, *errors, sep="\n", flush=True)
    fill(
        OUT / "README.md",
        cpu=machine.describe()["cpu"],
        cost=write("cost", costs),
        error=write("error", errors),
    )


if __name__ == "__main__":
    main()
