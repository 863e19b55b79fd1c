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
    return Estimate(
        visits=visits,
        reward=data.reward / divisor,
        transition=data.count / divisor[..., None],
        cap=cap,
    )


def best_action(policy):
    """Actions [...] of the highest value, for tables [..., A]."""
    best = policy.q >= policy.q.max(-1, keepdims=True)
    candidates = jnp.where(best, policy.order, -1.0)
    return jnp.argmax(candidates, axis=-1)


def at_action(table, action):
    """`table` [..., A, ...] at `action` [...]."""
    axis = action.ndim
    index = action.reshape(action.shape + (1,) * (table.ndim - axis))
    return jnp.take_along_axis(table, index, axis).squeeze(axis)


def backward(q_of, layers):
    """Action values [H, S, A] from the last step to the first.

    `q_of(layer, value) -> [S, A]` gives those of one step, a slice of `layers`, from the values [S]
    of the next.
    """

    def one_step(value, layer):
        q = q_of(layer, value)
        return q.max(-1), q

    num_states = jax.tree.leaves(layers)[0].shape[1]
    end = jnp.zeros(num_states)
    _, q = jax.lax.scan(one_step, end, layers, reverse=True)
    return q


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
        """p / transition where a successor was seen."""
        divisor = jnp.where(seen, 1.0 + tilt * (mu - value), 1.0)
        return jnp.where(seen, 1.0 / divisor, 0.0)

    # --- mu by Newton's method, from below, where it never overshoots ---
    floor = jnp.where(seen, value - (1.0 - transition) / tilt, -jnp.inf)
    mean = (transition * value).sum(-1, keepdims=True)
    mu = jnp.maximum(mean, floor.max(-1, keepdims=True))

    def newton(_, mu):
        p = transition * ratio(mu)
        total = p.sum(-1, keepdims=True)
        excess = (p * (value - mu)).sum(-1, keepdims=True)
        slope = (p * ratio(mu)).sum(-1, keepdims=True)
        return mu + total * excess / jnp.maximum(slope, NEGLIGIBLE)

    mu = jax.lax.fori_loop(0, NEWTON_STEPS, newton, mu)

    # --- what is left for the best unseen successor ---
    unseen = jnp.where(seen, -jnp.inf, value)
    highest = unseen.max(-1, keepdims=True)
    mu = jnp.maximum(mu, highest - 1.0 / tilt)
    p = transition * ratio(mu)
    total = p.sum(-1, keepdims=True)
    left = jnp.maximum(1.0 - total, 0.0)
    best_unseen = jax.nn.one_hot(jnp.argmax(unseen, axis=-1), value.size)
    p = p + left * best_unseen

    # --- the loss: transition / p is 1 / ratio ---
    log_ratio = jnp.log1p(jnp.where(seen, tilt * (mu - value), 0.0))
    loss = (transition * log_ratio).sum(-1)
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
        met = est.visits > 0
        weight = jnp.maximum(occupancy, NEGLIGIBLE)[:, None]
        tilt = weight / (config.eta * jnp.maximum(est.visits, 1))

        # --- the best hypothesis for each action; losses are divided by the weight ---
        transition = est.transition
        lost = 0.0
        if config.method == "mex_mb":
            transition, lost = optimistic_transition(transition, value, tilt)
        lost = jnp.where(met, lost + tilt / 4, 0.0)
        raised = est.reward + tilt / 2
        q = jnp.where(met, raised + transition @ value, est.cap)

        # --- the best action, by what it adds to the objective ---
        policy = Policy(q - lost, order)
        action = best_action(policy)

        # --- the step before sees this action's transition, value and loss ---
        known = at_action(est.visits, action) > 0
        chosen = at_action(transition, action)
        transition = jnp.where(known[:, None], chosen, 0.0)
        value = at_action(policy.q if upper_bound else q, action)
        added = weight[:, 0] * at_action(lost, action)
        loss = loss + added.sum()
        return (value, loss), (policy, transition)

    no_value = jnp.zeros_like(occupancy[0])
    no_loss = jnp.zeros_like(occupancy[0, 0])
    layers = (occupancy, est, order)
    carry, found = jax.lax.scan(one_step, (no_value, no_loss), layers, reverse=True)
    value, loss = carry
    policy, transition = found
    return policy, transition, value, loss


def occupancies(start, transition):
    """How likely each state is at each step, [H, S], for transitions [H, S, S] of a policy."""

    def one_step(occupancy, transition):
        return occupancy @ transition, occupancy

    _, occupancy = jax.lax.scan(one_step, start, transition)
    return occupancy


def maximize(est, start, order, config):
    """The greedy policy of the hypothesis that maximizes value - eta * loss, and this maximum.

    The first start takes all states for certain to be reached: in a deterministic world this is
    value iteration with a bonus of 1 / (4 eta n), and exact. The second takes the data as they are.
    From both, `num_sweeps` sweeps go up; the better one is taken. The objective leaves the policy
    free in states that the hypothesis does not expect to reach: there it is that of the first.
    """
    # --- two starts ---
    shape = est.visits.shape[:2]
    certain = jnp.ones(shape)
    optimist, above, most, _ = sweep(certain, est, order, config, upper_bound=True)
    if config.num_sweeps == 0:
        return optimist, start @ most
    _, neutral, _, _ = sweep(jnp.zeros(shape), est, order, config)

    # --- the ascent ---
    def improve(transition, _):
        occupancy = occupancies(start, transition)
        policy, transition, value, loss = sweep(occupancy, est, order, config)
        return transition, (policy.q, start @ value - loss)

    def ascend(transition):
        transition, found = jax.lax.scan(improve, transition, length=config.num_sweeps)
        q, objective = jax.tree.map(lambda x: x[-1], found)
        return q, objective, occupancies(start, transition)

    found = jax.vmap(ascend)(jnp.stack([above, neutral]))

    # --- the better of the two, by more than rounding ---
    _, objectives, _ = found
    best = jnp.where(objectives[1] > objectives[0] + NEGLIGIBLE, 1, 0)
    q, objective, occupancy = jax.tree.map(lambda x: x[best], found)

    # --- states that it does not expect to reach ---
    expected = occupancy[..., None] > NEGLIGIBLE
    q = jnp.where(expected, q, optimist.q)
    return Policy(q, order), objective


def pair_features(num_states, num_actions, count):
    """Features of pairs of state and action, [S, A, count]: normal, or one-hot for a count of 0."""
    if count == 0:
        one_hot = np.eye(num_states * num_actions, dtype=np.float32)
        return one_hot.reshape(num_states, num_actions, -1)
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(num_states, num_actions, count))
    length = np.linalg.norm(drawn, axis=-1, keepdims=True)
    return (drawn / length).astype(np.float32)


def ridge_fit(features, visits, target, ridge):
    """Regression of `target` [S, A], weighted by `visits` [S, A], on `features` [S, A, d].

    Returns the fit [S, A] and phi' inverse(covariance) phi [S, A], which is 1 / (n + ridge) for a
    one-hot feature that was met n times: a hypothesis that deviates by delta from the fitted
    parameters has the loss delta' covariance delta.
    """
    size = features.shape[-1]
    flat = features.reshape(-1, size)
    weighted = flat * visits.reshape(-1, 1)
    covariance = weighted.T @ flat + ridge * jnp.eye(size)
    solved = jnp.linalg.solve(covariance, flat.T)
    moment = target.reshape(-1) @ weighted
    fit = moment @ solved
    spread = (flat.T * solved).sum(0)
    return fit.reshape(visits.shape), spread.reshape(visits.shape)


def policy_value(choice, model):
    """Expected return of the policy that takes actions with probabilities `choice` [H, S, A]."""

    def one_step(value, layer):
        choice, transition, reward = layer
        q = reward + transition @ value
        return (choice * q).sum(-1), None

    end = jnp.zeros(model.start.size)
    layers = (choice, model.transition, model.reward)
    value, _ = jax.lax.scan(one_step, end, layers, reverse=True)
    return model.start @ value


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- the world ---
    world = finite_of(env)
    horizon = world.horizon(env.params)
    num_states = world.num_states
    shape = (horizon, num_states, env.num_actions)
    model = world.model(env.params)
    optimum = model.optimal_value()
    steps = jnp.arange(horizon)

    # --- does it fit? ---
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
    epsilon = config.epsilon if config.method == "epsilon_greedy" else 0.0

    # --- methods: action values [S, A] of a step from the values [S] of the next ---
    def linear(est, value):
        features = pair_features(num_states, env.num_actions, config.num_features)
        target = est.reward + est.transition @ value
        fit, spread = ridge_fit(features, est.visits, target, config.prior_count)
        # What the best parameters for this pair add, less eta times their loss.
        bonus = spread / (4 * config.eta)
        return jnp.minimum(fit + bonus, est.cap)

    def mean(est, value):
        q = est.reward + est.transition @ value
        return jnp.where(est.visits > 0, q, 0.0)

    def bounded(est, value):
        visits = jnp.maximum(est.visits, 1)
        bonus = config.bonus * est.cap / jnp.sqrt(visits)
        q = est.reward + bonus + est.transition @ value
        q = jnp.minimum(q, est.cap)
        return jnp.where(est.visits > 0, q, est.cap)

    def sampled(layer, value):
        reward, transition = layer
        return reward + transition @ value

    def perturbed(layer, value):
        est, noise, visits = layer
        # The prior's visits have targets of 0.
        target = est.reward + est.transition @ value
        total = est.visits * target
        return total / visits + noise / jnp.sqrt(visits)

    def draw_noise(key):
        return config.noise_scale * jax.random.normal(key, shape)

    def plan(policy, data, key):
        """The policy of the next episode."""
        noise_key, transition_key = jax.random.split(key)
        est = estimate(data, jnp.asarray(model.cap))
        match config.method:
            # --- maximize to explore ---
            case "mex" | "mex_mb":
                best, _ = maximize(est, model.start, policy.order, config)
                q = best.q
            case "mex_linear":
                q = backward(linear, est)
            # --- no exploration of its own: the mean model; Q-learning, which is in `step` ---
            case "estimation":
                q = backward(mean, est)
            case "epsilon_greedy":
                q = policy.q
            # --- optimism by a bonus ---
            case "ucb":
                q = backward(bounded, est)
            # --- a model, or values, drawn at random ---
            case "psrl":
                visits = est.visits + 1
                noise = draw_noise(noise_key)
                reward = data.reward / visits + noise / jnp.sqrt(visits)
                counts = data.count + config.prior_count
                transition = jax.random.dirichlet(transition_key, counts)
                q = backward(sampled, (reward, transition))
            case "rlsvi":
                visits = est.visits + config.prior_count
                noise = draw_noise(noise_key)
                q = backward(perturbed, (est, noise, visits))
        return policy._replace(q=q)

    def play(policy, key):
        """One episode: states, actions, rewards and next states, [H] each."""
        start_key, key = jax.random.split(key)
        explore_key, random_key, key = jax.random.split(key, 3)
        explore = jax.random.uniform(explore_key, (horizon,)) < epsilon
        random = jax.random.randint(random_key, (horizon,), 0, env.num_actions)

        def one_step(now, x):
            obs, inner = now
            policy, explore, random, key = x
            # --- act ---
            state = world.state_index(obs)
            here = jax.tree.map(lambda x: x[state], policy)
            action = jnp.where(explore, random, best_action(here))
            # --- the environment's step, of a batch of one ---
            obs, inner, reward, *_ = env.step_inner(key[None], inner, action)
            next_state = world.state_index(obs)
            return (obs, inner), (state[0], action[0], reward[0], next_state[0])

        start = env.starts(start_key[None])
        keys = jax.random.split(key, horizon)
        _, episode = jax.lax.scan(one_step, start, (policy, explore, random, keys))
        return episode

    def choice(policy, epsilon):
        """Probabilities of actions [H, S, A]."""
        best = jax.nn.one_hot(best_action(policy), env.num_actions)
        return (1.0 - epsilon) * best + epsilon / env.num_actions

    def init(key):
        order_key, plan_key, key = jax.random.split(key, 3)
        policy = Policy(
            q=jnp.zeros(shape),
            order=jax.random.uniform(order_key, shape),
        )
        data = Data(
            count=jnp.zeros((*shape, num_states)),
            reward=jnp.zeros(shape),
        )
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
        expected = policy_value(choice(state.policy, epsilon), model)
        regret = optimum - expected
        earned = jnp.asarray(model.reward)[at].sum()
        solved = earned >= optimum / 2
        first = (state.first_solved == 0) & solved

        # --- Q-learning ---
        policy = state.policy
        if config.method == "epsilon_greedy":
            value = policy.q.max(-1)
            ahead = jnp.append(value[steps[1:], next_states[:-1]], 0.0)
            error = rewards + ahead - policy.q[at]
            q = policy.q.at[at].add(config.step_size * error)
            policy = policy._replace(q=q)

        # --- plan ---
        state = State(
            policy=plan(policy, data, plan_key),
            data=data,
            regret=state.regret + regret,
            first_solved=jnp.where(first, t + 1, state.first_solved),
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
        return best_action(here).astype(jnp.int32), memory + 1

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
