"""Diffusion BC: what it imitates. Its network and its diffusion are tested in test_mbrcsl.py."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import diffusion_bc, mbrcsl

import rlzoo
from rlzoo.algorithm import Refused
from rlzoo.dataset import from_arrays

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ("Block", "UNet", "Schedule"))
def test_networks_are_those_that_are_tested(name):
    texts = [inspect.getsource(getattr(file, name)) for file in (diffusion_bc, mbrcsl)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_it_imitates_both_modes():
    """Actions of 0.7 or -0.7 at one observation, and of 0.2 at the other."""
    rng = np.random.default_rng(0)
    obs = rng.choice([-1.0, 1.0], (512, 1)).astype(np.float32)
    action = (0.7 * rng.choice([-1.0, 1.0], (512, 1))).astype(np.float32)
    action[obs[:, 0] > 0] = 0.2
    rows = {
        "obs": obs,
        "action": action,
        "reward": np.zeros(512, np.float32),
        "next_obs": obs,
        "terminated": np.ones(512, bool),
        "truncated": np.zeros(512, bool),
    }
    data = from_arrays(rows, env="probe-action-continuous")
    config = diffusion_bc.Config(
        env=data.env, widths=(8, 16), embedding=8, batch_size=64, learning_rate=3e-3
    )
    alg = diffusion_bc.make(config, rlzoo.make(data.env), data)

    @jax.jit
    def run(key):
        state, _ = jax.lax.scan(alg.step, alg.init(key), jnp.arange(500))
        seen = jnp.repeat(jnp.array([[-1.0], [1.0]]), 200, axis=0)
        return alg.act(alg.policy(state), seen, key)[:, 0]

    two, one = np.asarray(run(KEY)).reshape(2, 200)
    assert 0.25 < (two > 0).mean() < 0.75 and (np.abs(two) < 0.3).mean() < 0.15
    assert abs(np.median(one) - 0.2) < 0.15


@pytest.mark.slow
def test_what_is_refused():
    with pytest.raises(Refused, match="embedding=5 even"):
        diffusion_bc.make(diffusion_bc.Config(embedding=5), rlzoo.make("point-maze"), None)
    with pytest.raises(Refused, match="makes no data set of its own"):
        config = diffusion_bc.Config(env="Pendulum-v1")
        diffusion_bc.make(config, rlzoo.make("Pendulum-v1"), None).init(KEY)
