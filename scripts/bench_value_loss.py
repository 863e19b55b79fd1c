"""What a classification loss costs: steps/s of hl_gauss.py and pqn.py by loss, with one seed.

    python scripts/bench_value_loss.py           # about three minutes on 2 idle cores

Every case runs through `rlzoo.train`; the losses of a case take turns, `--repeats` times. The table gives the medians
of summary.json's `steps_per_second` (compilation and evaluation excluded) and of the ratios to `mse` in the same turn,
with their range, which tells how quiet the machine was.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from rlzoo.algorithms import hl_gauss, pqn

import rlzoo
from rlzoo import machine

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "value_loss" / "speed.md"
MINATAR = dict(env="Breakout-MinAtar", hidden=(128,), v_min=-1.0, v_max=19.0)

CASES = {  # name -> (module, fields, losses)
    "hl_gauss.py, Breakout-MinAtar": (
        hl_gauss, MINATAR | dict(total_steps=8_000, num_envs=4, batch_size=32, learning_starts=64), hl_gauss.LOSSES),
    "hl_gauss.py, CartPole-v1": (
        hl_gauss, dict(env="CartPole-v1", total_steps=50_000, learning_starts=200), ("mse", "hl_gauss", "c51")),
    "pqn.py, Breakout-MinAtar": (
        pqn, MINATAR | dict(total_steps=10 * 4096, num_envs=128, num_steps=32, minibatches=32, epochs=2, td_lambda=0.65),
        ("mse", "hl_gauss", "c51")),
}


def measure(module, fields: dict, loss: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = rlzoo.train(module.make, module.Config(loss=loss, **fields), out=f"{folder}/run", quiet=True,
                          eval_every=0, eval_episodes=1)
        return run.summary["steps_per_second"]


def main(repeats: int) -> None:
    lines = []
    for name, (module, fields, losses) in CASES.items():
        rates: dict[str, list[float]] = {loss: [] for loss in sorted(losses, key=lambda loss: loss != "mse")}
        for turn in range(repeats):
            for loss, found in rates.items():
                found.append(measure(module, fields, loss))
                print(name, turn, loss, round(found[-1]), flush=True)
        for loss, found in rates.items():
            ratios = [rate / mse for rate, mse in zip(found, rates["mse"], strict=True)]
            lines.append(f"| {name} | {loss} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f} | "
                         f"{min(ratios):.2f} to {max(ratios):.2f} |")
    hardware = machine.describe()
    text = [
        "# What a classification loss costs", "",
        "Claim: HL-Gauss costs at most 10% of the squared error's steps/s on MinAtar. One seed, 51 bins; on MinAtar "
        "hl_gauss.py makes one update of 32 transitions every 4 steps, and pqn.py has its paper's settings.", "",
        f"Made by `python scripts/bench_value_loss.py --repeats {repeats}` on {hardware['cpu']}, {hardware['cores']} "
        f"cores ({hardware['backend']}).", "",
        "| case | loss | steps/s (median) | ratio to mse (median) | ratios |", "|---|---|---|---|---|", *lines, "",
    ]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    main(parser.parse_args().repeats)
