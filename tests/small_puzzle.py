"""What test_qstar.py and test_astar.py share: their training on Lights Out 2x2, two members at a
time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from together import quick_jit

import rlzoo

BATCH, WARMUP, BLOCK = 64, 8, 20
"""states in a call, calls of warm-up, calls between two chances to copy"""
FIELDS = dict(
    env="lights-out2",
    batch_size=BATCH,
    warmup_steps=WARMUP * BATCH,
    target_every=BLOCK * BATCH,
    scramble=6,
    hidden=(24, 24),
    num_blocks=1,
    eval_moves=4,
    learning_rate=0.01,
    loss_threshold=0.1,
)
ENV = rlzoo.make("lights-out2")
ALL = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(np.uint8)
"""every state"""


def trainer(module: Any) -> Callable:
    """(states, first call, last call, changed fields) -> states, metrics of the last call,
    evaluation; of both members."""
    make = lambda config: module.make(config, ENV)

    def run(config: Any, states: Any, start: Any, stop: Any) -> tuple:
        step = lambda t, states: jax.vmap(lambda s: make(config).step(s, t)[0])(states)
        states = jax.lax.fori_loop(start, stop - 1, step, states)
        states, metrics = jax.vmap(lambda s: make(config).step(s, stop - 1))(states)
        return (
            states,
            metrics,
            jax.vmap(make(config).evaluate)(states, jax.random.split(jax.random.key(7), 2)),
        )

    compiled, config = quick_jit(run), module.Config(**FIELDS)
    return lambda states, start, stop, **changed: compiled(
        dataclasses.replace(config, **{name: float(value) for name, value in changed.items()}),
        states,
        start,
        stop,
    )


def beginnings(module: Any) -> Any:
    """The states of both members before the first call."""
    alg = module.make(module.Config(**FIELDS), ENV)
    return quick_jit(jax.vmap(lambda seed: alg.init(jax.random.key(seed))))(jnp.arange(2))


def saying(variables: Any, says: Any) -> Any:
    """Networks whose output is the same in all states."""
    params = variables["params"]
    head = {
        "kernel": jnp.zeros_like(params["Dense_4"]["kernel"]),
        "bias": jnp.broadcast_to(jnp.asarray(says, jnp.float32), params["Dense_4"]["bias"].shape),
    }
    return variables | {"params": params | {"Dense_4": head}}


def check_copies(train: Callable, begin: Any) -> None:
    """The network is copied to the target after a block, if the loss is small."""
    same = lambda a, b: all(
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )
    for threshold, copies in ((0, 0), (1e9, 1)):
        before, _, _ = train(begin, WARMUP, BLOCK - 1, loss_threshold=threshold)
        assert (before.copies == 0).all() and same(before.target_params, begin.target_params)
        after, metrics, _ = train(before, BLOCK - 1, BLOCK, loss_threshold=threshold)
        assert (after.copies == copies).all() and (metrics["train/copies"].value == copies).all()
        assert same(after.target_params, after.variables if copies else begin.target_params)
        assert (
            train(after, BLOCK, 3 * BLOCK, loss_threshold=threshold)[0].copies == 3 * copies
        ).all()


def check_halving(train: Callable, begin: Any) -> None:
    bias = lambda state: np.asarray(state.variables["params"]["Dense_4"]["bias"])
    moved, half = (
        bias(train(begin, WARMUP, WARMUP + 1, halving_steps=steps)[0]) - bias(begin)
        for steps in (1e12, BATCH * WARMUP)
    )
    np.testing.assert_allclose(half, moved / 2, rtol=1e-3, atol=1e-6)
