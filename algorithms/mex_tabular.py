"""MEX (tabular): maximize to explore with tables over steps, states and actions, and its controls.

Paper: Liu et al. 2023 (arXiv 2305.18258): in each episode act greedily for the hypothesis that
    maximizes its own value at the start less eta times its loss on the data so far.
Kind: tabular, value-based, discrete
Run: python algorithms/mex_tabular.py --env deep-sea8 --seeds 3
Result: a cumulative regret of 36, 78, 225 and 537 on deep-sea8, 12, 20 and 30 in 4,000 episodes,
    where epsilon_greedy and estimation never find the goal (results/mex)
Metrics:
    eval/regret         the score: optimal less expected return, summed over the episodes so far
    eval/first_solved   the first episode that earned half the optimal value; empty: none so far
    eval/return         exact expected return of the greedy policy
    train/regret        regret of an episode
    train/return        return of an episode
Deviations:
    A step is an episode; eta is the theory's, which weighs the loss.
    Equal values are told apart by an order of actions that is drawn once for each seed, step and
    state. On deep-sea this is the same as one random action map for each seed.
    Rewards are unknown. A pair of state and action that was never met is worth what the environment
    says can be earned at most from there on (cap).
    Where data are stochastic the objective is not concave: `mex` and `mex_mb` ascend from two
    starts, so that they may find a local maximum. `mex_linear` has one pass: an upper bound.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import rlzoo
from rlzoo import machine
from rlzoo.worlds import finite_of

NEWTON_STEPS = 8
NEGLIGIBLE = 1e-6
"""occupancies below this count as this"""


@rlzoo.config
class Config:
    env: str = rlzoo.static("deep-sea8")
    """an environment with finitely many states"""
    total_steps: int = rlzoo.static(4_000, least=1)
    """episodes of each member"""
    method: Literal[
        "mex", "mex_mb", "mex_linear", "epsilon_greedy", "estimation", "ucb", "psrl", "rlsvi"
    ] = rlzoo.static("mex")
    """mex is model-free, mex_mb model-based, mex_linear has values linear in features; the others
    are controls"""
    eta: float = rlzoo.traced(1.0, above=0)
    """weight of the loss in mex, mex_mb and mex_linear; in theory some constant / sqrt(episodes)"""
    num_sweeps: int = rlzoo.static(2, least=0)
    """sweeps of the ascent in mex and mex_mb; 0 takes every state for certain to be reached, which
    is exact where the world is deterministic"""
    num_features: int = rlzoo.static(0, least=0)
    """mex_linear: random features of a pair of state and action; 0: one for each pair"""
    bonus: float = rlzoo.traced(1.0, least=0)
    """ucb: bonus after one visit, as a share of the cap"""
    prior_count: float = rlzoo.traced(1.0, above=0)
    """psrl: of each successor in the Dirichlet prior; rlsvi: visits that the prior is worth;
    mex_linear: the ridge"""
    noise_scale: float = rlzoo.traced(1.0, least=0)
    """psrl: standard deviation of rewards; rlsvi: of targets"""
    epsilon: float = rlzoo.traced(0.1, least=0, most=1)
    """epsilon_greedy: probability of a random action"""
    step_size: float = rlzoo.traced(0.5, above=0, most=1)
    """epsilon_greedy: of Q-learning"""


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    q: jax.Array
    """[H, S, A]: the action of the highest value is taken"""
    order: jax.Array
    """[H, S, A]: of equal values the one with the largest number here"""


class Data(NamedTuple):
    count: jax.Array
    """[H, S, A, S]: how often an action led from a state to the next"""
    reward: jax.Array
    """[H, S, A]: sums of rewards"""


class Estimate(NamedTuple):
    """What data say; 0 where there are none. The leading axis H may be taken off."""

    visits: jax.Array
    """[H, S, A]"""
    reward: jax.Array
    """[H, S, A]: means"""
    transition: jax.Array
    """[H, S, A, S]: frequencies"""
    cap: jax.Array
    """[H]: the most that can be earned from each step on"""


@struct.dataclass
class State:
    policy: Policy
    data: Data
    regret: jax.Array
    first_solved: jax.Array
    """int32, counted from 1; 0: none so far"""
    key: jax.Array


# ---- planning ------------------------------------------------------------------------------------


def estimate(data, cap):
    """What `data` say."""
    visits = data.count.sum(-1)
    divisor = jnp.maximum(visits, 1)
    return Estimate(visits, data.reward / divisor, data.count / divisor[..., None], cap)


def best_action(policy):
    """Actions [...] of the highest value, for tables [..., A]."""
    best = policy.q >= policy.q.max(-1, keepdims=True)
    return jnp.argmax(jnp.where(best, policy.order, -1.0), axis=-1)


def at_action(table, action):
    """`table` [..., A, ...] at `action` [...]."""
    index = action.reshape(action.shape + (1,) * (table.ndim - action.ndim))
    return jnp.take_along_axis(table, index, action.ndim).squeeze(action.ndim)


def backward(q_of, layers):
    """Action values [H, S, A] from the last step to the first.

    `q_of(layer, value) -> [S, A]` gives those of one step, a slice of `layers`, from the values [S]
    of the next.
    """

    def one_step(value, layer):
        q = q_of(layer, value)
        return q.max(-1), q

    end = jnp.zeros(jax.tree.leaves(layers)[0].shape[1])
    return jax.lax.scan(one_step, end, layers, reverse=True)[1]


def optimistic_transition(transition, value, tilt):
    """The model that maximizes `tilt` * p @ value + sum of transition * log p over p.

    Shapes: transition [..., S], value [S], tilt [...]. The optimum is p = transition / (1 + tilt *
    (mu - value)), with mu such that p sums to 1. Where this would lift mu by less than the best
    successor that was never seen is above it, less 1 / tilt, that one takes the probability that is
    left over.

    Returns p [..., S] and the loss of log-likelihood, sum of transition * log(transition / p),
    divided by `tilt` [...].
    """
    seen = transition > 0
    tilt = tilt[..., None]

    def ratio(mu):
        return jnp.where(seen, 1.0 / jnp.where(seen, 1.0 + tilt * (mu - value), 1.0), 0.0)

    # --- mu by Newton's method, from below, where it never overshoots ---
    floor = jnp.where(seen, value - (1.0 - transition) / tilt, -jnp.inf)
    mean = (transition * value).sum(-1, keepdims=True)
    mu = jnp.maximum(mean, floor.max(-1, keepdims=True))

    def newton(_, mu):
        p = transition * ratio(mu)
        excess = (p * (value - mu)).sum(-1, keepdims=True)
        slope = (p * ratio(mu)).sum(-1, keepdims=True)
        return mu + p.sum(-1, keepdims=True) * excess / jnp.maximum(slope, NEGLIGIBLE)

    mu = jax.lax.fori_loop(0, NEWTON_STEPS, newton, mu)

    # --- what is left for the best unseen successor ---
    unseen = jnp.where(seen, -jnp.inf, value)
    mu = jnp.maximum(mu, unseen.max(-1, keepdims=True) - 1.0 / tilt)
    p = transition * ratio(mu)
    left = jnp.maximum(1.0 - p.sum(-1, keepdims=True), 0.0)
    p = p + left * jax.nn.one_hot(jnp.argmax(unseen, axis=-1), value.size)
    loss = (transition * jnp.log1p(jnp.where(seen, tilt * (mu - value), 0.0))).sum(-1)
    return p, loss / tilt[..., 0]


def sweep(occupancy, est, order, config, upper_bound=False):
    """Maximize the objective over one step's hypothesis after the other, from the last on.

    A hypothesis may add delta to the reward of a pair that was visited n times, for a loss of
    n * delta^2; the model-based one may change the transition too, for its loss of log-likelihood.
    With `occupancy` [H, S] of states under the steps before, the best delta is occupancy / (2 eta
    n).

    Args:
      upper_bound: carry, in place of the values under the hypothesis, these less its loss.

    Returns: policy, transitions under it [H, S, S], its value at the first step [S], and its loss,
      times eta.
    """

    def one_step(carry, layer):
        value, loss = carry
        occupancy, est, order = layer
        weight = jnp.maximum(occupancy, NEGLIGIBLE)[:, None]
        tilt = weight / (config.eta * jnp.maximum(est.visits, 1))

        # --- the best hypothesis for each action ---
        transition, lost = est.transition, 0.0
        if config.method == "mex_mb":
            transition, lost = optimistic_transition(transition, value, tilt)
        lost = jnp.where(est.visits > 0, lost + tilt / 4, 0.0)
        q = jnp.where(est.visits > 0, est.reward + tilt / 2 + transition @ value, est.cap)

        # --- the best action, by what it adds to the objective ---
        policy = Policy(q - lost, order)
        action = best_action(policy)
        known = at_action(est.visits, action) > 0
        transition = jnp.where(known[:, None], at_action(transition, action), 0.0)
        value = at_action(policy.q if upper_bound else q, action)
        loss = loss + (weight[:, 0] * at_action(lost, action)).sum()
        return (value, loss), (policy, transition)

    start = (jnp.zeros_like(occupancy[0]), jnp.zeros_like(occupancy[0, 0]))
    layers = (occupancy, est, order)
    (value, loss), (policy, transition) = jax.lax.scan(one_step, start, layers, reverse=True)
    return policy, transition, value, loss


def occupancies(start, transition):
    """How likely each state is at each step, [H, S], for transitions [H, S, S] of a policy."""

    def one_step(occupancy, transition):
        return occupancy @ transition, occupancy

    return jax.lax.scan(one_step, start, transition)[1]


def maximize(est, start, order, config):
    """The greedy policy of the hypothesis that maximizes value - eta * loss, and this maximum.

    The first start takes all states for certain to be reached: in a deterministic world this is
    value iteration with a bonus of 1 / (4 eta n), and exact. The second takes the data as they are.
    From both, `num_sweeps` sweeps go up; the better one is taken. The objective leaves the policy
    free in states that the hypothesis does not expect to reach: there it is that of the first.
    """
    shape = est.visits.shape[:2]
    optimist, above, most, _ = sweep(jnp.ones(shape), est, order, config, upper_bound=True)
    if config.num_sweeps == 0:
        return optimist, start @ most
    _, neutral, _, _ = sweep(jnp.zeros(shape), est, order, config)

    def ascend(transition):
        def improve(transition, _):
            occupancy = occupancies(start, transition)
            policy, transition, value, loss = sweep(occupancy, est, order, config)
            return transition, (policy.q, start @ value - loss)

        transition, found = jax.lax.scan(improve, transition, length=config.num_sweeps)
        q, objective = jax.tree.map(lambda x: x[-1], found)
        return q, objective, occupancies(start, transition)

    found = jax.vmap(ascend)(jnp.stack([above, neutral]))
    best = jnp.where(found[1][1] > found[1][0] + NEGLIGIBLE, 1, 0)
    q, objective, occupancy = jax.tree.map(lambda x: x[best], found)
    expected = occupancy[..., None] > NEGLIGIBLE
    return Policy(jnp.where(expected, q, optimist.q), order), objective


def pair_features(num_states, num_actions, count):
    """Features of pairs of state and action, [S, A, count]: normal, or one-hot for a count of 0."""
    shape = (num_states, num_actions)
    if count == 0:
        return np.eye(num_states * num_actions, dtype=np.float32).reshape(*shape, -1)
    drawn = np.random.default_rng(0).normal(size=(*shape, count))
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def ridge_fit(features, visits, target, ridge):
    """Regression of `target` [S, A], weighted by `visits` [S, A], on `features` [S, A, d].

    Returns the fit [S, A] and phi' inverse(covariance) phi [S, A], which is 1 / (n + ridge) for a
    one-hot feature that was met n times: a hypothesis that deviates by delta from the fitted
    parameters has the loss delta' covariance delta.
    """
    flat = features.reshape(-1, features.shape[-1])
    weighted = flat * visits.reshape(-1, 1)
    covariance = weighted.T @ flat + ridge * jnp.eye(flat.shape[-1])
    solved = jnp.linalg.solve(covariance, flat.T)
    fit = (target.reshape(-1) @ weighted) @ solved
    spread = (flat.T * solved).sum(0)
    return fit.reshape(visits.shape), spread.reshape(visits.shape)


def policy_value(choice, model):
    """Expected return of the policy that takes actions with probabilities `choice` [H, S, A]."""

    def one_step(value, layer):
        choice, transition, reward = layer
        return (choice * (reward + transition @ value)).sum(-1), None

    layers = (choice, model.transition, model.reward)
    value, _ = jax.lax.scan(one_step, jnp.zeros(model.start.size), layers, reverse=True)
    return model.start @ value


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- the world ---
    world = finite_of(env)
    horizon, num_states = world.horizon(env.params), world.num_states
    shape = (horizon, num_states, env.num_actions)
    needed = 4 * int(np.prod(shape)) * num_states
    free = machine.available_bytes(jax.devices()[0])
    if free is not None and 4 * needed > free:
        raise rlzoo.Refused(
            f"a table of {horizon} steps x {num_states} states x {env.num_actions} actions x "
            f"{num_states} successors takes {machine.readable(needed)}, four of them are needed, "
            f"and {machine.readable(free)} is free; a smaller world would fit, such as deep-sea30"
        )
    rlzoo.check(
        (config.eta > 1e-20) & (config.eta < 1e20),
        f"eta is {config.eta}, with which 1 / (4 eta) or eta times a count leaves float32; 1e-3 "
        "to 1e6 make sense, and in theory some constant / sqrt(episodes)",
    )
    model = world.model(env.params)
    optimum = model.optimal_value()
    epsilon = config.epsilon if config.method == "epsilon_greedy" else 0.0
    steps = jnp.arange(horizon)

    def plan(policy, data, key):
        """The policy of the next episode."""
        est = estimate(data, jnp.asarray(model.cap))
        known = est.visits > 0

        def with_values(q_of, *more):
            return policy._replace(q=backward(q_of, (est, *more)))

        if config.method in ("mex", "mex_mb"):
            return maximize(est, model.start, policy.order, config)[0]

        if config.method == "mex_linear":
            features = pair_features(num_states, env.num_actions, config.num_features)

            def linear(est, value):
                target = est.reward + est.transition @ value
                fit, spread = ridge_fit(features, est.visits, target, config.prior_count)
                return jnp.minimum(fit + spread / (4 * config.eta), est.cap)

            return policy._replace(q=backward(linear, est))

        if config.method == "estimation":

            def mean(layer, value):
                est, known = layer
                return jnp.where(known, est.reward + est.transition @ value, 0.0)

            return with_values(mean, known)

        if config.method == "ucb":

            def bounded(layer, value):
                est, known = layer
                bonus = config.bonus * est.cap / jnp.sqrt(jnp.maximum(est.visits, 1))
                q = est.reward + bonus + est.transition @ value
                return jnp.where(known, jnp.minimum(q, est.cap), est.cap)

            return with_values(bounded, known)

        noise_key, transition_key = jax.random.split(key)
        visits = est.visits + config.prior_count
        noise = config.noise_scale * jax.random.normal(noise_key, shape)

        if config.method == "psrl":
            prior = data.count + config.prior_count
            reward = data.reward / (est.visits + 1) + noise / jnp.sqrt(est.visits + 1)
            transition = jax.random.dirichlet(transition_key, prior)

            def sampled(layer, value):
                _, reward, transition = layer
                return reward + transition @ value

            return with_values(sampled, reward, transition)

        if config.method == "rlsvi":

            def perturbed(layer, value):
                est, noise, visits = layer
                total = est.visits * (est.reward + est.transition @ value)
                return total / visits + noise / jnp.sqrt(visits)

            return with_values(perturbed, noise, visits)
        return policy

    def play(policy, key):
        """One episode: states, actions, rewards and next states, [H] each."""
        start_key, key = jax.random.split(key)
        explore_key, random_key, key = jax.random.split(key, 3)
        explore = jax.random.uniform(explore_key, (horizon,)) < epsilon
        random = jax.random.randint(random_key, (horizon,), 0, env.num_actions)

        def one_step(now, x):
            obs, inner = now
            policy, explore, random, key = x
            state = world.state_index(obs)
            action = best_action(jax.tree.map(lambda x: x[state], policy))
            action = jnp.where(explore, random, action)
            obs, inner, reward, *_ = env.step_inner(key[None], inner, action)
            return (obs, inner), (state[0], action[0], reward[0], world.state_index(obs)[0])

        xs = (policy, explore, random, jax.random.split(key, horizon))
        return jax.lax.scan(one_step, env.starts(start_key[None]), xs)[1]

    def choice(policy, epsilon):
        """Probabilities of actions [H, S, A]."""
        best = jax.nn.one_hot(best_action(policy), env.num_actions)
        return (1.0 - epsilon) * best + epsilon / env.num_actions

    def init(key):
        order_key, plan_key, key = jax.random.split(key, 3)
        policy = Policy(jnp.zeros(shape), jax.random.uniform(order_key, shape))
        data = Data(jnp.zeros((*shape, num_states)), jnp.zeros(shape))
        return State(
            policy=plan(policy, data, plan_key),
            data=data,
            regret=jnp.float32(0),
            first_solved=jnp.int32(0),
            key=key,
        )

    def step(state, t):
        play_key, plan_key, key = jax.random.split(state.key, 3)

        # --- an episode ---
        states, actions, rewards, next_states = play(state.policy, play_key)
        at = (steps, states, actions)
        data = Data(
            count=state.data.count.at[(*at, next_states)].add(1.0),
            reward=state.data.reward.at[at].add(rewards),
        )

        # --- regret; earned without the noise of rewards ---
        regret = optimum - policy_value(choice(state.policy, epsilon), model)
        solved = jnp.asarray(model.reward)[at].sum() >= optimum / 2
        first = (state.first_solved == 0) & solved

        # --- plan ---
        policy = state.policy
        if config.method == "epsilon_greedy":
            ahead = jnp.append(policy.q.max(-1)[steps[1:], next_states[:-1]], 0.0)
            error = rewards + ahead - policy.q[at]
            policy = policy._replace(q=policy.q.at[at].add(config.step_size * error))
        state = State(
            policy=plan(policy, data, plan_key),
            data=data,
            regret=state.regret + regret,
            first_solved=jnp.where(first, t + 1, state.first_solved),
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
        return best_action(now).astype(jnp.int32), memory + 1

    def evaluate(state, key):
        return {
            "eval/regret": state.regret,
            "eval/first_solved": (state.first_solved, state.first_solved > 0),
            "eval/return": policy_value(choice(state.policy, 0.0), model),
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
