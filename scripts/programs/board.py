"""Networks that learn an exact teacher's values of a board game: study E7 of results/value_loss.

Figure 9 of arXiv 2403.03950 at a reduced size: connect-three on a board of 4 by 4.
"""

import itertools

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
"""how often a player drops a stone in a random column"""
HIDDEN = (64, 64)
NUM_BINS = 128
BATCH = 256
LEARNING_RATE = 1e-3
STEPS = 2000
LOSSES = ("mse", "one_hot", "two_hot", "hl_gauss")


def lines_of_three() -> list[int]:
    """The winning lines as bit masks; the cell in column x and row y is bit 4 x + y."""
    directions = ((1, 0), (0, 1), (1, 1), (1, -1))
    lines = []
    for x, y, (dx, dy) in itertools.product(range(SIDE), range(SIDE), directions):
        line = 0
        for k in range(ROW):
            column = x + k * dx
            row = y + k * dy
            if not (0 <= column < SIDE and 0 <= row < SIDE):
                break
            line |= 1 << SIDE * column + row
        else:
            lines.append(line)
    return lines


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Every position that can arise, with the values of an exact teacher.

    Returns boards [n, 32] (stones of the player to move, then of the other), and action values [n,
    4]: the chance to win, plus half that to draw, when from then on both drop a stone in a random
    column half of the time, and else in the best; NaN for full columns.
    """
    winning = lines_of_three()
    known: dict[tuple[int, int], np.ndarray] = {}
    one_column = (1 << SIDE) - 1
    column = [one_column << SIDE * x for x in range(SIDE)]
    full = (1 << SIDE * SIDE) - 1

    def values(own: int, other: int) -> np.ndarray:
        if (own, other) in known:
            return known[own, other]
        q = np.full(SIDE, np.nan)
        for x in range(SIDE):
            # Adding a column's lowest bit carries to its first free cell.
            taken = own | other
            lowest = 1 << SIDE * x
            stone = (taken + lowest) & column[x] & ~taken
            if not stone:
                continue
            mine = own | stone
            if any(mine & line == line for line in winning):
                q[x] = 1.0
            elif (mine | other) == full:
                q[x] = 0.5
            else:
                replies = values(other, mine)
                best = np.nanmax(replies)
                random = np.nanmean(replies)
                q[x] = 1.0 - (1 - BLUNDER) * best - BLUNDER * random
        known[own, other] = q
        return q

    def bits(stones: int) -> list[int]:
        return [stones >> i & 1 for i in range(SIDE * SIDE)]

    values(0, 0)
    boards = [bits(own) + bits(other) for own, other in known]
    return np.array(boards, np.float32), np.array(list(known.values()), np.float32)


def distill(loss: str, seeds: int) -> np.ndarray:
    """How good the greedy moves on held-out positions are, after learning the values of the others.

    Returns [seeds, 2]: the share where the greedy move is one of the best, and by how much it is
    worse than the best on average.
    """
    # --- positions to learn from, and those held out ---
    boards, q = positions()
    order = np.random.default_rng(0).permutation(len(boards))
    half = order < len(boards) // 2
    legal = ~np.isnan(q)
    q = np.nan_to_num(q)
    learn = [jnp.asarray(x[half]) for x in (boards, q, legal)]
    held_boards, held_q, held_legal = (x[~half] for x in (boards, q, legal))

    # --- network and loss ---
    bins = Bins(NUM_BINS, v_min=0.0, v_max=1.0, loss=loss)
    zeros = jax.nn.initializers.zeros
    net = CategoricalQNetwork(HIDDEN, bins.out_shape(SIDE), zeros)
    optimizer = optax.scale_by_adam()

    def target_probs(y):
        if loss == "one_hot":
            nearest = jnp.round(y * (NUM_BINS - 1))
            return jax.nn.one_hot(nearest, NUM_BINS)
        return bins.encode(y)

    def objective(params, x, y, legal):
        out = net.apply(params, x)
        each = (out - y) ** 2 if bins.scalar else kl(target_probs(y), out)
        return (legal * each).sum() / legal.sum()

    def run(key):
        net_key, key = jax.random.split(key)
        params = net.init(net_key, boards[0])
        vector, unravel = ravel_pytree(params)

        # --- learn ---
        def update(carry, key):
            params, opt_state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(learn[0]))
            batch = [x[rows] for x in learn]
            grads = jax.grad(lambda p: objective(unravel(p), *batch))(params)
            direction, opt_state = optimizer.update(grads, opt_state)
            params -= LEARNING_RATE * direction
            return (params, opt_state), None

        start = (vector, optimizer.init(vector))
        keys = jax.random.split(key, STEPS)
        (vector, _), _ = jax.lax.scan(update, start, keys)

        # --- how much worse the greedy moves are than the best ---
        value = bins.decode(net.apply(unravel(vector), held_boards))
        move = jnp.where(held_legal, value, -jnp.inf).argmax(-1)
        best = jnp.where(held_legal, held_q, -jnp.inf).max(-1)
        chosen = jnp.take_along_axis(jnp.asarray(held_q), move[:, None], 1)
        worse = best - chosen[:, 0]
        return jnp.stack([(worse < 1e-6).mean(), worse.mean()])

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return np.asarray(jax.jit(lambda: jax.lax.map(run, keys))())
