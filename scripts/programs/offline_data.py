"""The data sets of the offline studies in results/value_loss."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from rlzoo import dataset
from rlzoo.study import ROOT
from rlzoo.tools import collect

WORK = ROOT / "runs" / "value_loss"  # data sets, too large to be kept in results/
RECORDING = (
    "--env Breakout-MinAtar --loss mse --total-steps 100_000 --num-envs 4 --hidden 128 "
    "--buffer-size 100_000 --batch-size 32 --learning-starts 4_000 --target-every 1_000 "
    "--learning-rate 5e-4 --eval-every 50_000"
)


def data_file(eta: str) -> Path:
    return WORK / ("breakout.npz" if eta == "0" else f"breakout-noise-{eta}.npz")


def record_data(eta: str) -> None:
    """Write the data set of this noise, if it is not there.

    It is all that one DQN saw, from its first random step on, with U(0, eta) added to every reward,
    or U(-eta, eta) where that is `centred`.
    """
    out = data_file(eta)
    if out.exists():
        return
    if eta == "0":
        command = [
            sys.executable,
            "algorithms/hl_gauss.py",
            *RECORDING.split(),
            "--out",
            str(WORK / "dqn"),
        ]
        subprocess.run(command, check=True, cwd=ROOT)
        data = collect.replay(WORK / "dqn")
        print(dataset.describe(data))
        dataset.save(data, out)
        return
    record_data("0")
    data = dataset.load(data_file("0"))
    high = float(eta.removeprefix("centred-"))
    low = -high if eta.startswith("centred") else 0.0
    noise = np.random.default_rng(0).uniform(low, high, len(data)).astype(np.float32)
    source = f"{data.source} + U({low}, {high})"
    dataset.save(data.replace(reward=np.asarray(data.reward) + noise, source=source), out)
