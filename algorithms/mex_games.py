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
    steps = np.arange(parts + 1)
    points = np.stack(np.meshgrid(*[steps] * size, indexing="ij"), -1).reshape(-1, size)
    return (points[points.sum(-1) == parts] / parts).astype(np.float32)


def answer(linear, quadratic):
    """The distribution nu that minimizes sum of linear * nu + quadratic * nu^2, and the minimum.

    Shapes [..., B]. At the optimum all choices that are used have the same derivative, the level.
    """
    width = 0.5 / jnp.maximum(quadratic, FLATTEST)
    order = jnp.argsort(linear, axis=-1)
    linears = jnp.take_along_axis(linear, order, -1)
    widths = jnp.take_along_axis(width, order, -1)
    levels = (1.0 + jnp.cumsum(widths * linears, -1)) / jnp.cumsum(widths, -1)
    nu = width * jnp.maximum(levels.min(-1, keepdims=True) - linear, 0.0)
    nu = nu / nu.sum(-1, keepdims=True)
    return nu, (linear * nu + quadratic * nu**2).sum(-1)


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
        return mus[jnp.argmax(worth(mus)[1])]

    def zoom(mu, scale):
        near = jnp.maximum(mu + scale * (points - points.mean(0)), 0.0)
        near = near / near.sum(-1, keepdims=True)
        return best_of(jnp.concatenate([mu[None], near])), None

    scales = (4.0 / parts) ** jnp.arange(1, ZOOMS + 1)
    mu, _ = jax.lax.scan(zoom, best_of(jnp.asarray(points)), scales)
    nu, value = worth(mu)
    return value, mu, nu


def from_last_step(solve_state, layers):
    """Results of `solve_state` at every step and state, from the last step to the first.

    `solve_state(entry, value [S]) -> (value, results)` takes a state's entry of `layers` [H, S,
    ...] and the values of the next step. Returns values [S] at the first step, and results.
    """

    def one_step(value, layer):
        return jax.vmap(solve_state, in_axes=(0, None))(layer, value)

    end = jnp.zeros(jax.tree.leaves(layers)[0].shape[1])
    return jax.lax.scan(one_step, end, layers, reverse=True)


def best_answer_value(first, game):
    """What the max player's strategy [H, S, A] earns in a game against the best answer to it."""

    def one_state(entry, value):
        mu, payoff, transition = entry
        return (mu @ (payoff + transition @ value)).min(), None

    return from_last_step(one_state, (first, game.payoff, game.transition))[0][0]


def nash_value(game, parts):
    """The Nash value of a game."""

    def one_state(entry, value):
        payoff, transition = entry
        payoff = payoff + transition @ value
        return solve(payoff, jnp.zeros_like(payoff), parts)[0], None

    return from_last_step(one_state, (game.payoff, game.transition))[0][0]


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
    horizon, num_states = visits.shape[:2]
    cap = jnp.arange(horizon, 0, -1.0)[:, None] * jnp.ones(num_states)
    return Estimate(visits, data.reward / divisor, data.count / divisor[..., None], cap)


def nash_of_mean(est, parts):
    """Both players' Nash strategies in the game of the means; what is unknown is worth 0."""

    def one_state(est, value):
        payoff = est.reward + est.transition @ value
        flat = jnp.zeros_like(payoff)
        value, mu, _ = solve(payoff, flat, parts)
        return value, (mu, solve(-payoff.T, flat, parts)[1])

    return Policy(*from_last_step(one_state, est)[1])


def optimist(est, eta, parts):
    """The Nash strategies of the hypothesis that maximizes the Nash value less eta * loss."""

    def one_state(est, value):
        known = est.visits > 0
        payoff = jnp.where(known, est.reward + est.transition @ value, est.cap)
        curvature = jnp.where(known, 0.25 / (eta * jnp.maximum(est.visits, 1)), 0.0)
        value, mu, nu = solve(payoff, curvature, parts)
        return value, (mu, nu)

    return Policy(*from_last_step(one_state, est)[1])


def exploiter(est, eta, first):
    """The best answer [H, S, A] to the max player's strategy [H, S, A] under the hypothesis that
    maximizes what it earns, less eta * loss."""

    def one_state(entry, value):
        est, mu = entry
        mu, visits = mu[:, None], jnp.maximum(est.visits, 1)
        mean = est.reward + est.transition @ value
        lowered = jnp.maximum(mean - mu / (2 * eta * visits), -est.cap)
        loss = eta * visits * (lowered - mean) ** 2
        columns = jnp.where(est.visits > 0, mu * lowered + loss, -mu * est.cap).sum(0)
        return columns.min(), jax.nn.one_hot(jnp.argmin(columns), len(columns))

    return from_last_step(one_state, (est, first))[1]


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- the world ---
    world = game_of(env)
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
    horizon, choices, num_states = world.horizon, world.choices, world.num_states
    shape = (horizon, num_states, choices, choices)
    steps = jnp.arange(horizon)

    def plan(data):
        """The strategies of the next episode."""
        est = means(data)
        if config.method == "nash":
            return nash_of_mean(est, config.grid)
        policy = optimist(est, config.eta, config.grid)
        if config.method == "mex":
            policy = policy._replace(second=exploiter(est, config.eta, policy.first))
        return policy

    def choose(policy, key):
        """A joint action for the strategies [..., A] of one state."""
        keys = jax.random.split(key)
        first = jax.random.categorical(keys[0], jnp.log(policy.first))
        second = jax.random.categorical(keys[1], jnp.log(policy.second))
        return (first * choices + second).astype(jnp.int32)

    def play(policy, game, key):
        """One episode: states, actions, rewards and next states, [H] each."""
        start_key, key = jax.random.split(key)

        def one_step(now, x):
            obs, inner = now
            policy, key = x
            choose_key, step_key = jax.random.split(key)
            state = world.state_index(obs)
            action = choose(jax.tree.map(lambda x: x[state], policy), choose_key)
            obs, inner, reward, *_ = world.step_env(step_key, inner, action, game)
            return (obs, inner), (state, action, reward, world.state_index(obs))

        start = world.reset_env(start_key, game)
        return jax.lax.scan(one_step, start, (policy, jax.random.split(key, horizon)))[1]

    def regret_of(policy, state):
        return state.value - best_answer_value(policy.first, state.game)

    def init(key):
        game_key, first_key, second_key, key = jax.random.split(key, 4)
        game = world.draw(game_key, env.params)
        # Nothing is known yet, so the first strategies are random.
        uniform = jnp.ones(choices)
        return State(
            policy=Policy(
                first=jax.random.dirichlet(first_key, uniform, shape[:2]),
                second=jax.random.dirichlet(second_key, uniform, shape[:2]),
            ),
            data=Data(jnp.zeros((*shape, num_states)), jnp.zeros(shape)),
            game=jax.tree.map(jnp.asarray, game),
            value=nash_value(game, config.grid),
            regret=jnp.float32(0),
            key=key,
        )

    def step(state, t):
        play_key, key = jax.random.split(state.key)

        # --- an episode ---
        states, actions, rewards, next_states = play(state.policy, state.game, play_key)
        at = (steps, states, *jnp.divmod(actions, choices))
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
        return state, {"train/regret": regret, "train/return": rewards.sum()}

    def policy(state):
        return state.policy

    def memory(policy):
        """The step of the episode."""
        return jnp.int32(0)

    def act(policy, memory, obs, reward, key):
        now = jax.tree.map(lambda x: x[memory, world.state_index(obs)], policy)
        return choose(now, key), memory + 1

    def evaluate(state, key):
        exploitability = regret_of(state.policy, state)
        return {"eval/regret": state.regret, "eval/exploitability": exploitability}

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
