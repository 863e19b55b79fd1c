"""Networks that learn an exact teacher's values of a board game: study E7 of results/value_loss.

Figure 9 of arXiv 2403.03950 at a reduced size: connect-three on a board of 4 by 4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from rlzoo.algorithms.hl_gauss import CategoricalQNetwork

from rlzoo.bins import Bins, kl

SIDE = 4
ROW = 3
BLUNDER = 0.5
HIDDEN = (64, 64)
NUM_BINS = 128
BATCH = 256
STEPS = 2000
LOSSES = ("mse", "one_hot", "two_hot", "hl_gauss")


def lines_of_three() -> list[int]:
    """The winning lines as bit masks; the cell in column x and row y is bit 4 x + y."""
    lines = []
    for x in range(SIDE):
        for y in range(SIDE):
            for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
                cells = [(x + k * dx, y + k * dy) for k in range(ROW)]
                if all(0 <= column < SIDE and 0 <= row < SIDE for column, row in cells):
                    lines.append(sum(1 << SIDE * column + row for column, row in cells))
    return lines


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Every position that can arise, with the values of an exact teacher.

    Returns boards [n, 32] (stones of the player to move, then of the other), and action values [n,
    4]: the chance to win, plus half that to draw, when from then on both drop a stone in a random
    column half of the time, and else in the best; NaN for full columns.
    """
    winning = lines_of_three()
    known: dict[tuple[int, int], np.ndarray] = {}
    column = [((1 << SIDE) - 1) << SIDE * x for x in range(SIDE)]
    full = (1 << SIDE * SIDE) - 1

    def values(own: int, other: int) -> np.ndarray:
        if (own, other) in known:
            return known[own, other]
        q = np.full(SIDE, np.nan)
        for x in range(SIDE):
            taken = own | other
            stone = (taken + (1 << SIDE * x)) & column[x] & ~taken
            if not stone:
                continue
            mine = own | stone
            if any(mine & line == line for line in winning):
                q[x] = 1.0
            elif (mine | other) == full:
                q[x] = 0.5
            else:
                replies = values(other, mine)
                q[x] = 1.0 - (1 - BLUNDER) * np.nanmax(replies) - BLUNDER * np.nanmean(replies)
        known[own, other] = q
        return q

    def bits(stones: int) -> list[int]:
        return [stones >> i & 1 for i in range(SIDE * SIDE)]

    values(0, 0)
    boards = np.array([bits(own) + bits(other) for own, other in known], np.float32)
    return boards, np.array(list(known.values()), np.float32)


def distill(loss: str, seeds: int) -> np.ndarray:
    """How good the greedy moves on held-out positions are, after learning the values of the others.

    Returns [seeds, 2]: the share where the greedy move is one of the best, and by how much it is
    worse than the best on average.
    """
    boards, q = positions()
    half = np.random.default_rng(0).permutation(len(boards)) < len(boards) // 2
    legal = ~np.isnan(q)
    q = np.nan_to_num(q)
    bins = Bins(NUM_BINS, v_min=0.0, v_max=1.0, loss=loss)
    net = CategoricalQNetwork(HIDDEN, bins.out_shape(SIDE), jax.nn.initializers.zeros)
    optimizer = optax.scale_by_adam()

    def target_probs(y):
        if loss == "one_hot":
            return jax.nn.one_hot(jnp.round(y * (NUM_BINS - 1)), NUM_BINS)
        return bins.encode(y)

    def objective(params, x, y, legal):
        found = net.apply(params, x)
        each = (found - y) ** 2 if bins.scalar else kl(target_probs(y), found)
        return (legal * each).sum() / legal.sum()

    def run(key):
        net_key, key = jax.random.split(key)
        start, unravel = ravel_pytree(net.init(net_key, boards[0]))
        learn = [jnp.asarray(x[half]) for x in (boards, q, legal)]

        def update(carry, key):
            params, opt_state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(learn[0]))
            batch = [x[rows] for x in learn]
            grads = jax.grad(lambda p: objective(unravel(p), *batch))(params)
            direction, opt_state = optimizer.update(grads, opt_state)
            return (params - 1e-3 * direction, opt_state), None

        keys = jax.random.split(key, STEPS)
        (params, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), keys)
        value = bins.decode(net.apply(unravel(params), boards[~half]))
        move = jnp.argmax(jnp.where(legal[~half], value, -jnp.inf), -1)
        best = jnp.where(legal[~half], q[~half], -jnp.inf).max(-1)
        chosen = jnp.take_along_axis(jnp.asarray(q[~half]), move[:, None], 1)[:, 0]
        worse = best - chosen
        return jnp.stack([(worse < 1e-6).mean(), worse.mean()])

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return np.asarray(jax.jit(lambda: jax.lax.map(run, keys))())
