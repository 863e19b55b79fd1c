"""What a classification loss costs: CPU seconds of hl_gauss.py and pqn.py by loss, with one seed.

    python scripts/bench_value_loss.py           # about six minutes on one core

The losses of a case are compiled first and then take turns, half a second each, in an order that
rotates. A turn is timed by the CPU time of this process, which runs a single thread, so that other
work on the machine does not count (it still disturbs caches: hence the turns). The table gives the
medians over turns of steps per CPU second and of the ratio to `mse` in the same turn, with the
quartiles of that ratio. Metrics are computed as in training.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rlzoo.algorithms import hl_gauss, pqn

import rlzoo
from rlzoo import machine
from rlzoo.study import ROOT, fill, table

PAGE = ROOT / "results" / "value_loss" / "speed.md"
MINATAR = dict(env="Breakout-MinAtar", hidden=(128,), v_min=-1.0, v_max=19.0)
TURN = 0.5  # seconds

CASES = {  # name -> (module, fields, losses)
    "hl_gauss.py, Breakout-MinAtar": (
        hl_gauss,
        MINATAR | dict(num_envs=4, batch_size=32, learning_starts=64),
        ("mse", "hl_gauss", "two_hot", "c51"),
    ),
    "pqn.py, Breakout-MinAtar": (
        pqn,
        MINATAR
        | dict(num_envs=128, num_steps=32, num_minibatches=32, num_epochs=2, td_lambda=0.65),
        ("mse", "hl_gauss", "c51"),
    ),
    "hl_gauss.py, CartPole-v1": (
        hl_gauss,
        dict(env="CartPole-v1", learning_starts=200),
        ("mse", "hl_gauss", "c51"),
    ),
}


def trainer(module, fields: dict, loss: str) -> Callable[[], float]:
    """A function that trains on for about TURN seconds, and gives the steps it made in each CPU
    second."""
    config = module.Config(loss=loss, **fields)
    env, leaves = rlzoo.make(config.env), jax.tree.map(jnp.float32, config)
    alg = module.make(config, env)

    def chunk(config, state, totals, start, stop):
        def step(t, carry):
            state, metrics = module.make(config, env).step(carry[0], t)
            return state, jax.tree.map(
                lambda total, x: total + jnp.asarray(x, jnp.float32), carry[1], metrics
            )

        return jax.lax.fori_loop(start, stop, step, (state, totals))

    def train(calls: int) -> float:
        began = time.process_time()
        start, carry["t"] = carry["t"], carry["t"] + calls
        carry["now"] = jax.block_until_ready(
            compiled(leaves, *carry["now"], np.int32(start), np.int32(carry["t"]))
        )
        return time.process_time() - began

    state = jax.jit(alg.init)(jax.random.key(0))
    totals = jax.tree.map(
        lambda x: jnp.float32(0), jax.eval_shape(alg.step, state, jnp.int32(0))[1]
    )
    carry = {"now": (state, totals), "t": 0}
    compiled = jax.jit(
        chunk, donate_argnums=(1, 2), compiler_options=machine.compiler_options("cpu")
    )
    few = 1 + 200 // alg.steps_per_call  # past what comes before the first update
    train(few)
    calls = max(few, round(TURN / train(few) * few))
    train(calls)
    return lambda: calls * alg.steps_per_call / train(calls)


def main(turns: int) -> None:
    body, verdicts = [], []
    for name, (module, fields, losses) in CASES.items():
        arms = {loss: trainer(module, fields, loss) for loss in losses}
        rates = {loss: np.zeros(turns) for loss in losses}
        for turn in range(turns):
            for loss in np.roll(losses, turn):
                rates[loss][turn] = arms[loss]()
        for loss in losses:
            low, middle, high = np.percentile(rates[loss] / rates["mse"], [25, 50, 75])
            body.append(
                [
                    name,
                    loss,
                    f"{np.median(rates[loss]):,.0f}",
                    f"{middle:.2f}",
                    f"{low:.2f} to {high:.2f}",
                ]
            )
            print(*body[-1], flush=True)
            if loss == "hl_gauss" and "MinAtar" in name:
                word = "holds" if middle >= 0.9 else "does not hold"
                verdicts.append(f"- {name}: HL-Gauss costs {1 - middle:.0%}: **{word}**")
    heads = ["case", "loss", "steps per CPU second (median)", "ratio to mse (median)", "quartiles"]
    fill(
        PAGE, cpu=machine.describe()["cpu"], table=table(heads, body), verdicts="\n".join(verdicts)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=20)
    main(parser.parse_args().turns)
