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
STEPS = 1200
SHIFTS = (0.0, 8.0, 16.0, 24.0, 32.0)
LOSSES = ("mse", "hl_gauss", "two_hot", "mse_softmax")


def fit_phases(loss: str, seeds: int) -> np.ndarray:
    """Train-set squared errors [seeds, 2, phases] of fits of sin(1e5 f(x)) + b.

    f is one random network after the other. b shifts in the first of the two, and is 0 in the
    second. Parameters and Adam's state are kept from phase to phase.
    """
    bins = Bins(101, v_min=-40.0, v_max=40.0, loss=loss)
    zeros = jax.nn.initializers.zeros
    net = CategoricalQNetwork(HIDDEN, bins.out_shape(1), zeros)
    random_net = CategoricalQNetwork(HIDDEN, (1,), zeros)
    optimizer = optax.scale_by_adam()

    def output(params, x):
        out = net.apply(params, x)
        return out[..., 0] if bins.scalar else out[..., 0, :]

    def decoded(params, x):
        return bins.decode(output(params, x))

    def run(key, shift):
        x_key, net_key, *phase_keys = jax.random.split(key, 2 + len(SHIFTS))
        x = jax.random.normal(x_key, (SIZE, INPUTS))
        start, unravel = ravel_pytree(net.init(net_key, x[0]))

        def objective(params, x, y):
            out = output(unravel(params), x)
            if bins.squared:
                return ((bins.decode(out) - y) ** 2).mean()
            return kl(bins.encode(y), out).mean()

        def phase(carry, task):
            f_key, batch_key = jax.random.split(task[0])
            f = random_net.apply(random_net.init(f_key, x[0]), x)[:, 0]
            y = jnp.sin(1e5 * f) + task[1]

            def update(carry, key):
                params, opt_state = carry
                rows = jax.random.randint(key, (BATCH,), 0, SIZE)
                grads = jax.grad(objective)(params, x[rows], y[rows])
                direction, opt_state = optimizer.update(grads, opt_state)
                return (params - 1e-3 * direction, opt_state), None

            carry, _ = jax.lax.scan(update, carry, jax.random.split(batch_key, STEPS))
            return carry, ((decoded(unravel(carry[0]), x) - y) ** 2).mean()

        tasks = (jnp.stack(phase_keys), shift)
        return jax.lax.scan(phase, (start, optimizer.init(start)), tasks)[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    shifts = jnp.stack([jnp.array(SHIFTS), jnp.zeros(len(SHIFTS))])

    def both(key):
        return jax.vmap(run, (None, 0))(key, shifts)

    # One seed after the other: one fits the cache.
    return np.asarray(jax.jit(lambda: jax.lax.map(both, keys))())
