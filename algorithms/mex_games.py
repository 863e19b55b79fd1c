"""MEX (games): maximize to explore in two-player zero-sum games, with an exploiter, and controls.

Paper: Liu et al. 2023 (arXiv 2305.18258): the max player acts for the hypothesis that maximizes its
    own Nash value less eta times its loss; the exploiter then for the one in which the best answer
    to that strategy earns the most, less eta times its loss.
Kind: games, value-based, discrete
Run: python algorithms/mex_games.py --env matrix-game3 --seeds 20
Result: a mean regret of 39 in 1,000 episodes of 20 random 3 x 3 games, where Nash of the means has
    94; of 71 in Markov games with --eta 0.1, where it has 186 (results/mex)
Metrics:
    eval/regret           the score: Nash value less the value of the max player's strategy against
                          the best answer, summed over the episodes so far
    eval/exploitability   the same of the present strategy alone
    train/regret          regret of an episode
    train/return          what the max player earned in an episode
Deviations:
    The objective is rebuilt from the abstract and from the single-agent version.
    A step is an episode; each seed plays a random game of its own.
    With one step the hypotheses are optimal up to a grid. With more, each state is solved as if it
    were certain to be reached, from the last step on: an upper bound of the objective.
    A pair of choices that was never met is worth the most (for the exploiter the least) that can be
    earned from there on; other values of the max player have no such cap.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import rlzoo
from rlzoo.worlds import game_of

ZOOMS = 3
"""finer grids around the best point so far"""
FLATTEST = 1e-4
"""curvatures below this count as this"""


@rlzoo.config
class Config:
    env: str = rlzoo.static("matrix-game3")
    """a game"""
    total_steps: int = rlzoo.static(1_000, least=1)
    """episodes of each member"""
    method: Literal["mex", "no_exploiter", "nash"] = rlzoo.static("mex")
    """no_exploiter: both players act for the max player's hypothesis; nash: for the mean game"""
    eta: float = rlzoo.traced(0.3, above=0)
    """weight of the loss; in theory some constant / sqrt(episodes)"""
    grid: int = rlzoo.static(20, least=4)
    """parts into which probabilities are divided in the search for a strategy"""


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    first: jax.Array
    """[H, S, A]: probabilities of the max player's choices"""
    second: jax.Array
    """[H, S, A]: those of the min player"""


class Data(NamedTuple):
    count: jax.Array
    """[H, S, A, A, S]: how often a pair of choices led from a state to the next"""
    reward: jax.Array
    """[H, S, A, A]: sums of rewards"""


@struct.dataclass
class State:
    policy: Policy
    data: Data
    game: Any
    """parameters of this member's game"""
    value: jax.Array
    """its Nash value"""
    regret: jax.Array
    key: jax.Array


# ---- planning ------------------------------------------------------------------------------------


def simplex(size, parts):
    """All distributions over `size` choices whose probabilities are multiples of 1 / `parts`."""
    counts = np.arange(parts + 1)
    axes = np.meshgrid(*[counts] * size, indexing="ij")
    points = np.stack(axes, -1).reshape(-1, size)
    points = points[points.sum(-1) == parts]
    return (points / parts).astype(np.float32)


def answer(linear, quadratic):
    """The distribution nu that minimizes sum of linear * nu + quadratic * nu^2, and the minimum.

    Shapes [..., B]. At the optimum all choices that are used have the same derivative, the level.
    """
    width = 0.5 / jnp.maximum(quadratic, FLATTEST)

    # --- the level if only the first 1, 2, ... choices are used, cheapest first ---
    order = jnp.argsort(linear, axis=-1)
    linears = jnp.take_along_axis(linear, order, -1)
    widths = jnp.take_along_axis(width, order, -1)
    weighted = jnp.cumsum(widths * linears, -1)
    levels = (1.0 + weighted) / jnp.cumsum(widths, -1)

    # --- the lowest of them is the level at the optimum ---
    level = levels.min(-1, keepdims=True)
    nu = width * jnp.maximum(level - linear, 0.0)
    nu = nu / nu.sum(-1, keepdims=True)
    minimum = (linear * nu + quadratic * nu**2).sum(-1)
    return nu, minimum


def solve(payoff, curvature, parts):
    """The strategy mu [A] that is worth most against the best answer nu [B].

    A pair is worth mu' payoff nu + sum of curvature * (mu nu)^2, payoff and curvature [A, B]: the
    most by which a hypothesis may raise payoffs, less its loss. Without curvature this is the Nash
    value of a matrix game.

    Returns: value, mu, nu.
    """
    points = simplex(len(payoff), parts)

    def worth(mu):
        return answer(mu @ payoff, mu**2 @ curvature)

    def best_of(mus):
        _, values = worth(mus)
        return mus[jnp.argmax(values)]

    # --- a grid over all strategies ---
    mu = best_of(jnp.asarray(points))

    # --- finer ones around the best, which stays among the candidates ---
    offsets = points - points.mean(0)

    def zoom(mu, scale):
        near = jnp.maximum(mu + scale * offsets, 0.0)
        near = near / near.sum(-1, keepdims=True)
        candidates = jnp.concatenate([mu[None], near])
        return best_of(candidates), None

    scales = (4.0 / parts) ** jnp.arange(1, ZOOMS + 1)
    mu, _ = jax.lax.scan(zoom, mu, scales)
    nu, value = worth(mu)
    return value, mu, nu


def from_last_step(solve_state, layers):
    """Results of `solve_state` at every step and state, from the last step to the first.

    `solve_state(entry, value [S]) -> (value, results)` takes a state's entry of `layers` [H, S,
    ...] and the values of the next step. Returns values [S] at the first step, and results.
    """

    def one_step(value, layer):
        return jax.vmap(solve_state, in_axes=(0, None))(layer, value)

    num_states = jax.tree.leaves(layers)[0].shape[1]
    end = jnp.zeros(num_states)
    return jax.lax.scan(one_step, end, layers, reverse=True)


def best_answer_value(first, game):
    """What the max player's strategy [H, S, A] earns in a game against the best answer to it."""

    def one_state(entry, value):
        mu, payoff, transition = entry
        payoff = payoff + transition @ value
        columns = mu @ payoff
        return columns.min(), None

    layers = (first, game.payoff, game.transition)
    value, _ = from_last_step(one_state, layers)
    # Games start in state 0.
    return value[0]


def nash_value(game, parts):
    """The Nash value of a game."""

    def one_state(entry, value):
        payoff, transition = entry
        payoff = payoff + transition @ value
        flat = jnp.zeros_like(payoff)
        value, _, _ = solve(payoff, flat, parts)
        return value, None

    layers = (game.payoff, game.transition)
    value, _ = from_last_step(one_state, layers)
    return value[0]


class Estimate(NamedTuple):
    visits: jax.Array
    """[H, S, A, A]"""
    reward: jax.Array
    """[H, S, A, A]: means, 0 where there are no data"""
    transition: jax.Array
    """[H, S, A, A, S]: frequencies, 0 where there are no data"""
    cap: jax.Array
    """[H, S]: the most that can be earned from there on"""


def means(data):
    """What data say."""
    visits = data.count.sum(-1)
    divisor = jnp.maximum(visits, 1)
    # A step earns 1 at most.
    horizon, num_states = visits.shape[:2]
    steps_left = jnp.arange(horizon, 0, -1.0)
    return Estimate(
        visits=visits,
        reward=data.reward / divisor,
        transition=data.count / divisor[..., None],
        cap=steps_left[:, None] * jnp.ones(num_states),
    )


def nash_of_mean(est, parts):
    """Both players' Nash strategies in the game of the means; what is unknown is worth 0."""

    def one_state(est, value):
        payoff = est.reward + est.transition @ value
        flat = jnp.zeros_like(payoff)
        value, mu, _ = solve(payoff, flat, parts)
        # To the min player it is the game of the negative payoffs.
        _, nu, _ = solve(-payoff.T, flat, parts)
        return value, Policy(mu, nu)

    _, policy = from_last_step(one_state, est)
    return policy


def optimist(est, eta, parts):
    """The Nash strategies of the hypothesis that maximizes the Nash value less eta * loss."""

    def one_state(est, value):
        known = est.visits > 0
        mean = est.reward + est.transition @ value
        payoff = jnp.where(known, mean, est.cap)
        # A pair that is played with probability w is raised by w / (2 eta n). Less the loss this
        # adds w^2 / (4 eta n).
        loss_weight = eta * jnp.maximum(est.visits, 1)
        curvature = jnp.where(known, 0.25 / loss_weight, 0.0)
        value, mu, nu = solve(payoff, curvature, parts)
        return value, Policy(mu, nu)

    _, policy = from_last_step(one_state, est)
    return policy


def exploiter(est, eta, first):
    """The best answer [H, S, A] to the max player's strategy [H, S, A] under the hypothesis that
    maximizes what it earns, less eta * loss."""

    def one_state(entry, value):
        est, mu = entry
        mu = mu[:, None]
        visits = jnp.maximum(est.visits, 1)

        # --- the hypothesis for each pair, no lower than what can be earned ---
        mean = est.reward + est.transition @ value
        lowered = jnp.maximum(mean - mu / (2 * eta * visits), -est.cap)
        loss = eta * visits * (lowered - mean) ** 2
        met = mu * lowered + loss
        pairs = jnp.where(est.visits > 0, met, -mu * est.cap)

        # --- the answer ---
        columns = pairs.sum(0)
        nu = jax.nn.one_hot(jnp.argmin(columns), len(columns))
        return columns.min(), nu

    _, second = from_last_step(one_state, (est, first))
    return second


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- the world ---
    world = game_of(env)

    # --- does it fit? ---
    points = (config.grid + 1) ** world.choices
    if points > 1_000_000:
        raise rlzoo.Refused(
            f"a grid of {config.grid} parts over {world.choices} choices has up to {points:,} "
            "points, which do not fit; games of 2 or 3 choices with a grid of 20 do"
        )
    rlzoo.check(
        (config.eta > 1e-20) & (config.eta < 1e20),
        f"eta is {config.eta}, with which 1 / (4 eta) or eta times a count leaves float32; 0.01 to "
        "10 make sense, and in theory some constant / sqrt(episodes)",
    )

    # --- sizes ---
    horizon = world.horizon
    choices = world.choices
    num_states = world.num_states
    shape = (horizon, num_states, choices, choices)
    steps = jnp.arange(horizon)

    def plan(data):
        """The strategies of the next episode."""
        est = means(data)
        if config.method == "nash":
            return nash_of_mean(est, config.grid)
        # --- the max player ---
        policy = optimist(est, config.eta, config.grid)
        # --- the exploiter ---
        if config.method == "mex":
            second = exploiter(est, config.eta, policy.first)
            policy = policy._replace(second=second)
        return policy

    def choose(policy, key):
        """A joint action for the strategies [..., A] of one state."""
        first_key, second_key = jax.random.split(key)
        first = jax.random.categorical(first_key, jnp.log(policy.first))
        second = jax.random.categorical(second_key, jnp.log(policy.second))
        return (first * choices + second).astype(jnp.int32)

    def play(policy, game, key):
        """One episode: states, actions, rewards and next states, [H] each."""
        start_key, key = jax.random.split(key)

        def one_step(now, x):
            obs, inner = now
            policy, key = x
            choose_key, step_key = jax.random.split(key)
            # --- act ---
            state = world.state_index(obs)
            here = jax.tree.map(lambda x: x[state], policy)
            action = choose(here, choose_key)
            # --- the game's step ---
            obs, inner, reward, *_ = world.step_env(step_key, inner, action, game)
            next_state = world.state_index(obs)
            return (obs, inner), (state, action, reward, next_state)

        start = world.reset_env(start_key, game)
        keys = jax.random.split(key, horizon)
        _, episode = jax.lax.scan(one_step, start, (policy, keys))
        return episode

    def regret_of(policy, state):
        return state.value - best_answer_value(policy.first, state.game)

    def init(key):
        game_key, first_key, second_key, key = jax.random.split(key, 4)
        game = world.draw(game_key, env.params)
        # Nothing is known yet, so the first strategies are random.
        uniform = jnp.ones(choices)
        policy = Policy(
            first=jax.random.dirichlet(first_key, uniform, shape[:2]),
            second=jax.random.dirichlet(second_key, uniform, shape[:2]),
        )
        data = Data(
            count=jnp.zeros((*shape, num_states)),
            reward=jnp.zeros(shape),
        )
        return State(
            policy=policy,
            data=data,
            game=jax.tree.map(jnp.asarray, game),
            value=nash_value(game, config.grid),
            regret=jnp.float32(0),
            key=key,
        )

    def step(state, t):
        play_key, key = jax.random.split(state.key)

        # --- an episode ---
        states, actions, rewards, next_states = play(state.policy, state.game, play_key)
        first, second = jnp.divmod(actions, choices)
        at = (steps, states, first, second)
        data = Data(
            count=state.data.count.at[(*at, next_states)].add(1.0),
            reward=state.data.reward.at[at].add(rewards),
        )

        # --- regret ---
        regret = regret_of(state.policy, state)

        # --- plan ---
        state = state.replace(
            policy=plan(data),
            data=data,
            regret=state.regret + regret,
            key=key,
        )
        metrics = {
            "train/regret": regret,
            "train/return": rewards.sum(),
        }
        return state, metrics

    def policy(state):
        return state.policy

    def memory(policy):
        """The step of the episode."""
        return jnp.int32(0)

    def act(policy, memory, obs, reward, key):
        state = world.state_index(obs)
        here = jax.tree.map(lambda x: x[memory, state], policy)
        return choose(here, key), memory + 1

    def evaluate(state, key):
        return {
            "eval/regret": state.regret,
            "eval/exploitability": regret_of(state.policy, state),
        }

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        memory=memory,
        evaluate=evaluate,
        rollouts=False,
        score="eval/regret",
        lower_is_better=True,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
