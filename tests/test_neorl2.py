"""NeoRL-2's data, which come without a simulator: cloning is judged by held-out
actions, values by what the rewards allow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import bc, f_dvl, iql, td3_bc
from test_dataset import SHARED

import rlzoo
from rlzoo import dataset, report
from rlzoo.run import learnt

FOLDER = SHARED / "neorl2"
FILES = [
    "DMSD-high-100000-train",
    "DMSD-high-20000-val",
    "Pipeline-high-20000-val",
    "RandomFrictionHopper-high-20000-val",
]


def load(name):
    if not (FOLDER / f"{name}.npz").exists():
        pytest.skip(f"the file {name}.npz of NeoRL-2 is not here")
    return dataset.load(FOLDER / f"{name}.npz")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cloning_beats_the_mean_and_least_squares(tmp_path):
    """The best error on held-out data is below both, and with this rate it rises again."""
    train, held_out = load(FILES[0]), load(FILES[1])

    # --- what it must beat ---
    mean = ((held_out.action - train.action.mean(0)) ** 2).mean()
    ones = lambda data: np.append(data.obs, np.ones((len(data), 1)), axis=1)
    fit = np.linalg.lstsq(ones(train), np.asarray(train.action), rcond=None)[0]
    squares = ((held_out.action - np.clip(ones(held_out) @ fit, -1, 1)) ** 2).mean()
    np.testing.assert_allclose([mean, squares], [0.706, 0.529], atol=1e-3)

    # --- cloning ---
    config = bc.Config(total_steps=10_000, hidden=(256, 256), learning_rate=1e-3)
    data = {"train": train, "validation": held_out}
    run = rlzoo.train(bc.make, config, data, out=str(tmp_path / "bc"), eval_every=1000, quiet=True)
    errors = report.read_run(run.dir).metrics["eval/action_mse"]
    errors = errors[~np.isnan(errors)]
    assert len(errors) == 11 and errors.min() < squares < mean
    assert errors[-3:].mean() > errors.min() + 0.01, "it learns the data by heart"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("module", [iql, f_dvl, td3_bc])
def test_values_stay_within_what_rewards_allow(module, name):
    data = load(name)
    given = learnt.Data(data)
    env = learnt.own_env(module.__name__, given)
    # Observations of up to 140: at first the values of a network would be out of any range.
    config = module.Config(env=env.id, total_steps=1000, hidden=(64, 64), normalize_obs=True)
    algorithm = module.make(config, env, data)

    @jax.jit
    def run(data):
        alg = module.make(config, env, data)
        return jax.lax.scan(alg.step, alg.init(jax.random.key(0)), jnp.arange(config.total_steps))

    state, metrics = run(data)
    scale = state.reward_scale if hasattr(state, "reward_scale") else 1.0
    bound = scale * np.abs(data.reward).max() / (1 - config.discount)
    largest = metrics["train/v_max" if module is not td3_bc else "train/q_max"].value
    assert 0 < np.max(largest) < bound
    losses = [x for key, x in metrics.items() if key.startswith("loss/")]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(losses))
    action = algorithm.act(algorithm.policy(state), data.obs[:100], None)
    assert np.abs(action).max() <= 1.0 and np.isfinite(action).all()
