"""Fits to targets that are drawn anew again and again: study A6 of results/value_loss.

Figure 17 of arXiv 2403.03950 at a reduced size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from rlzoo.algorithms.hl_gauss import CategoricalQNetwork

from rlzoo.bins import Bins, kl

SIZE = 8192
INPUTS = 64
HIDDEN = (128, 128)
BATCH = 256
LEARNING_RATE = 1e-3
STEPS = 1200
SHIFTS = (0.0, 8.0, 16.0, 24.0, 32.0)
LOSSES = ("mse", "hl_gauss", "two_hot", "mse_softmax")


def fit_phases(loss: str, seeds: int) -> np.ndarray:
    """Train-set squared errors [seeds, 2, phases] of fits of sin(1e5 f(x)) + b.

    f is one random network after the other. b shifts in the first of the two, and is 0 in the
    second. Parameters and Adam's state are kept from phase to phase.
    """
    # --- the network that learns, and those that make its targets ---
    bins = Bins(101, v_min=-40.0, v_max=40.0, loss=loss)
    zeros = jax.nn.initializers.zeros
    net = CategoricalQNetwork(HIDDEN, bins.out_shape(1), zeros)
    random_net = CategoricalQNetwork(HIDDEN, (1,), zeros)
    optimizer = optax.scale_by_adam()

    def output(params, x):
        # There is one action.
        out = net.apply(params, x)
        if bins.scalar:
            return out[..., 0]
        return out[..., 0, :]

    def squared_error(out, y):
        return ((bins.decode(out) - y) ** 2).mean()

    def run(key, shift):
        # --- inputs and parameters ---
        x_key, net_key, *phase_keys = jax.random.split(key, 2 + len(SHIFTS))
        x = jax.random.normal(x_key, (SIZE, INPUTS))
        params = net.init(net_key, x[0])
        vector, unravel = ravel_pytree(params)

        def objective(params, x, y):
            out = output(unravel(params), x)
            if bins.squared:
                return squared_error(out, y)
            return kl(bins.encode(y), out).mean()

        # --- one phase: new targets, and a fit to them ---
        def phase(carry, task):
            key, b = task
            f_key, batch_key = jax.random.split(key)
            f_params = random_net.init(f_key, x[0])
            f = random_net.apply(f_params, x)[:, 0]
            y = jnp.sin(1e5 * f) + b

            def update(carry, key):
                params, opt_state = carry
                rows = jax.random.randint(key, (BATCH,), 0, SIZE)
                grads = jax.grad(objective)(params, x[rows], y[rows])
                direction, opt_state = optimizer.update(grads, opt_state)
                params -= LEARNING_RATE * direction
                return (params, opt_state), None

            keys = jax.random.split(batch_key, STEPS)
            carry, _ = jax.lax.scan(update, carry, keys)
            params, _ = carry
            return carry, squared_error(output(unravel(params), x), y)

        start = (vector, optimizer.init(vector))
        tasks = (jnp.stack(phase_keys), shift)
        _, errors = jax.lax.scan(phase, start, tasks)
        return errors

    none = jnp.zeros(len(SHIFTS))
    shifts = jnp.stack([jnp.array(SHIFTS), none])

    def both(key):
        return jax.vmap(run, (None, 0))(key, shifts)

    # One seed after the other: one fits the cache.
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return np.asarray(jax.jit(lambda: jax.lax.map(both, keys))())
