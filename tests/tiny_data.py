"""Two tiny data sets, for tests that need any data at all: made without a simulator, of the probe
`probe-action` (see tests/probes.py) by random actions.

The probe terminates after one step. Every fourth episode here is truncated after three steps
instead, as if its task went on, so that both ends and episodes of several steps occur.
"""

import numpy as np
import probes  # noqa: F401  (registers the environments)

from rlzoo.dataset import Dataset, from_arrays, top

EPISODES = 32


def discrete() -> Dataset:
    """48 rows with int32 actions [N] in {0, 1}."""
    rng, rows = np.random.default_rng(0), _rows()
    action = rng.integers(0, 2, len(rows["obs"])).astype(np.int32)
    reward = np.where((action == 1) == (rows["obs"][:, 0] > 0), 1.0, -1.0)
    rows |= {"action": action, "reward": reward.astype(np.float32)}
    return from_arrays(rows, env="probe-action", source="tiny", reference=(0.0, 1.0))


def continuous() -> Dataset:
    """48 rows with float32 actions [N, 1]."""
    rng, rows = np.random.default_rng(0), _rows()
    action = rng.uniform(-1.0, 1.0, (len(rows["obs"]), 1)).astype(np.float32)
    reward = 1.0 - (action[:, 0] - rows["obs"][:, 0] / 2.0) ** 2
    rows |= {"action": action, "reward": reward.astype(np.float32)}
    env, random = "probe-action-continuous", 1.0 - (1.0 / 3.0 + 1.0 / 4.0)
    return from_arrays(rows, env=env, source="tiny", reference=(random, 1.0))


def good(dataset: Dataset) -> Dataset:
    """The better half of the episodes: an expert's."""
    return top(dataset, 0.5)


def _rows() -> dict[str, np.ndarray]:
    """All arrays but those of actions and rewards."""
    cut = np.arange(EPISODES) % 4 == 3
    lengths = np.where(cut, 3, 1)
    # after a cut the other sign follows, or a reader would suspect an auto-reset
    signs = np.tile([1.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0], EPISODES // 8)
    obs = np.repeat(signs, lengths).astype(np.float32)[:, None]
    last = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros((2, len(obs)), bool)
    terminated[last[~cut]], truncated[last[cut]] = True, True
    return {"obs": obs, "next_obs": obs, "terminated": terminated, "truncated": truncated}
