"""A* search: best-first search over the nodes of a graph, guided by a deep value network.

Paper: DeepCubeA, Agostinelli et al. 2019 (Nature Machine Intelligence 1): deep approximate value
    iteration, and batched weighted A*.
Kind: search, value-based, discrete
Run: python algorithms/astar.py --env tile8 --seeds 5
    The cube: python algorithms/astar.py --env cube3 --total-steps 10_000_000 --target-every 200_000
    --hidden 1000 500 --halving-steps 1e9; hours. With the weights that rlzoo ships:
    python algorithms/astar.py --env cube3 --solve scramble:20    (--solve --help)
Result: compared with Q* in results/qstar
Metrics:
    loss/value      squared error of J; it falls between two copies, and jumps at each
    train/value     mean value of the states trained on; it grows with the copies
    train/copies    copies of the network to the target
    eval/solved     the score: share of scrambles that greedy actions solve in `eval_moves` moves
    eval/value      mean value of those scrambles
Deviations:
    Adam keeps its moments over copies. The value of a goal is 0, it is not learnt.
    Warm-up is ours. The network is smaller (theirs: --hidden 5000 1000 --num-blocks 4
    --batch-size 10_000 --target-every 50_000_000 --halving-steps 9.9e9).
    Training adds no states from searches (the paper does, from the 35-puzzle on).
"""

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import search
from rlzoo.worlds import puzzle_of

MAX_CHILDREN = 16_384
"""the most children made at a time"""


@rlzoo.config
class Config:
    env: str = rlzoo.static("tile8")
    """a puzzle"""
    total_steps: int = rlzoo.static(1_000_000, least=1)
    """states trained on by each member"""
    batch_size: int = rlzoo.static(1_000, least=2)
    """states in each update"""
    target_every: int = rlzoo.static(200_000, least=1)
    """states between two chances to copy the network to the target"""
    warmup_steps: int = rlzoo.static(0, least=0)
    """states at first whose targets are the moves of the scramble"""
    scramble: int = rlzoo.static(0, least=0)
    """most moves of a scramble; 0: the puzzle's own"""
    hidden: tuple[int, ...] = rlzoo.static((1_000, 500), least=1)
    """widths of the first layers; the residual blocks have the last one"""
    num_blocks: int = rlzoo.static(2, least=0)
    """residual blocks of two layers each"""
    eval_moves: int = rlzoo.static(50, least=1)
    """moves in which evaluation must solve"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size at the start"""
    halving_steps: float = rlzoo.traced(1e9, above=0)
    """states in which the step size halves"""
    loss_threshold: float = rlzoo.traced(0.1, least=0)
    """the loss below which the network is copied to the target"""


# ---- networks ------------------------------------------------------------------------------------


class ResNet(nn.Module):
    """Dense layers, then residual blocks, with batch normalization before each ReLU."""

    hidden: tuple[int, ...]
    num_blocks: int
    num_outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        def layer(x, width):
            x = nn.Dense(width)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        *_, width = self.hidden
        for size in self.hidden:
            x = nn.relu(layer(x, size))
        for _ in range(self.num_blocks):
            y = nn.relu(layer(x, width))
            x = nn.relu(x + layer(y, width))
        return nn.Dense(self.num_outputs)(x)


def network(config):
    return ResNet(config.hidden, config.num_blocks, num_outputs=1)


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    variables: Any
    """parameters of the network, and its batch statistics"""


@struct.dataclass
class State:
    variables: Any
    """parameters of the network, and its batch statistics"""
    target_params: Any
    """a copy of `variables`, batch statistics included"""
    opt_state: Any
    copies: jax.Array
    """times that the network was copied to the target, whose value is 0 before"""
    loss: jax.Array
    """of the last update"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def value_target(costs, next_value, next_goal, goal):
    """Bellman's equation for the cost of a path.

    costs [num_actions], next_value [n, num_actions], next_goal bool [n, num_actions], goal bool [n]
    -> [n].
    """
    next_value = jnp.maximum(next_value, 0.0)
    next_value = jnp.where(next_goal, 0.0, next_value)
    value = (costs + next_value).min(axis=-1)
    return jnp.where(goal, 0.0, value)


def value_loss(params, variables, states, targets, network):
    """Mean squared error of J [n, 1].

    `targets(J)` gives the values that learn, and their targets.
    Returns the loss, and (metrics, batch statistics).
    """
    variables = {**variables, "params": params}
    output, batch_stats = network(variables, states, train=True, mutable=["batch_stats"])
    value, target = targets(output)
    chex.assert_equal_shape([value, target])
    loss = ((value - target) ** 2).mean()
    metrics = {
        "loss/value": loss,
        "train/value": value.mean(),
    }
    return loss, (metrics, batch_stats)


# ---- algorithm -----------------------------------------------------------------------------------

# Each call of `step` trains on one batch:
#
#   1. Draw states: scrambles backwards from the goal.
#   2. Make the next states of all actions.
#   3. Compute the target: the smallest cost and J of a next state, by the target network.
#   4. Make a gradient step on the squared error.
#   5. Every `target_every` states copy the network to the target, if the last loss was small.
#
# In warm-up targets are the moves of the scramble, an upper bound of the cost, and copies ask for
# no small loss.


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    puzzle = puzzle_of(env)
    if config.warmup_steps and puzzle.inverse is None:
        raise rlzoo.Refused(
            f"warmup_steps is {config.warmup_steps}, but moves of {config.env} cannot be undone; "
            "use 0"
        )

    # --- schedule, in calls of `step` ---
    batch_size = config.batch_size
    warmup_calls = -(-config.warmup_steps // batch_size)
    target_every = max(1, config.target_every // batch_size)

    # --- puzzle, network, optimizer ---
    costs = jnp.asarray(puzzle.costs)
    longest = config.scramble or puzzle.params.scramble_steps
    net = network(config)
    optimizer = optax.scale_by_adam()

    def values(variables, states, **options):
        """J of states uint8 [..., size]: [..., 1]."""
        return net.apply(variables, puzzle.inputs(states), **options)

    def init(key):
        net_key, key = jax.random.split(key)
        variables = net.init(net_key, jnp.zeros((1, puzzle.num_inputs)))
        return State(
            variables=variables,
            target_params=variables,
            opt_state=optimizer.init(variables["params"]),
            copies=jnp.int32(0),
            loss=jnp.float32(jnp.inf),
            key=key,
        )

    def scrambles(key):
        """States uint8 [batch_size, size], and their moves from the goal [batch_size]."""
        depth_key, scramble_key = jax.random.split(key)
        depth = jax.random.randint(depth_key, (batch_size,), 0, longest + 1)
        return puzzle.scramble(scramble_key, depth, longest), depth

    def bootstrapped(state, key):
        """Steps 1 to 3: the state, states uint8 [batch_size, size], and their `targets`."""
        # --- 1. draw states ---
        states, _ = scrambles(key)

        def targets(output):
            # --- 2. make next states ---
            next_states = puzzle.apply_all(states)

            # --- 3. compute targets ---
            next_value = values(state.target_params, next_states)[..., 0]
            next_value = next_value * (state.copies > 0)
            next_goal = puzzle.is_goal(next_states)
            goal = puzzle.is_goal(states)
            target = value_target(costs, next_value, next_goal, goal)
            return output[:, 0], target

        return state, states, targets

    def scramble_moves(state, key):
        """As `bootstrapped`, with the moves of the scramble as targets."""
        states, depth = scrambles(key)
        target = jnp.where(puzzle.is_goal(states), 0.0, depth)

        def targets(output):
            return output[:, 0], target

        return state, states, targets

    def update(state, t, states, targets):
        """Step 4: one gradient step."""
        params = state.variables["params"]
        grads, (metrics, batch_stats) = jax.grad(value_loss, has_aux=True)(
            params, state.variables, states, targets, values
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        halvings = t * batch_size / config.halving_steps
        rate = config.learning_rate * 2.0**-halvings
        updates = optax.tree.scale(-rate, updates)
        params = optax.apply_updates(params, updates)
        variables = {"params": params, **batch_stats}
        state = state.replace(
            variables=variables,
            opt_state=opt_state,
            loss=metrics["loss/value"],
        )
        return state, metrics

    def copy_to_target(state, t):
        """Step 5, if the last loss was small."""
        good = (state.loss < config.loss_threshold) | (t < warmup_calls)
        target_params = jax.tree.map(
            functools.partial(jnp.where, good), state.variables, state.target_params
        )
        copies = state.copies + good
        return state.replace(target_params=target_params, copies=copies), {}

    def step(state, t):
        key, sample_key = jax.random.split(state.key)

        def learn(sample, state):
            state, states, targets = sample(state, sample_key)
            return update(state, t, states, targets)

        state, metrics = jax.lax.cond(
            t < warmup_calls,
            functools.partial(learn, scramble_moves),
            functools.partial(learn, bootstrapped),
            state,
        )

        copy = functools.partial(copy_to_target, t=t)
        state, _ = rlzoo.when((t + 1) % target_every == 0, copy, state)
        metrics["train/copies"] = rlzoo.last(state.copies)
        return state.replace(key=key), metrics

    def greedy(variables, states):
        """The action with the smallest cost and J of the next state [n]."""
        next_states = puzzle.apply_all(states)
        next_value = values(variables, next_states)[..., 0]
        next_value = jnp.where(puzzle.is_goal(next_states), 0.0, next_value)
        return (costs + next_value).argmin(axis=-1)

    def evaluate(state, key):
        """Follow the greedy actions from 30 depths spread evenly, 10 states of each."""
        depth = jnp.linspace(1, longest, 30)
        depth = jnp.repeat(depth.round().astype(jnp.int32), 10)
        states = puzzle.scramble(key, depth, longest)

        def move(i, states):
            action = greedy(state.variables, states)
            next_states = puzzle.apply(states, action)
            at_goal = puzzle.is_goal(states)[:, None]
            return jnp.where(at_goal, states, next_states)

        end = jax.lax.fori_loop(0, config.eval_moves, move, states)
        value = values(state.variables, states)[:, 0]
        return {
            "eval/solved": puzzle.is_goal(end).mean(),
            "eval/value": value.mean(),
        }

    def policy(state):
        return Policy(state.variables)

    def act(policy, obs, key):
        states = puzzle.states_of(obs).reshape(-1, puzzle.size)
        action = greedy(policy.variables, states)
        return action.reshape(obs.shape[:-1])

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=batch_size,
        updates_per_call=1,
        evaluate=evaluate,
        rollouts=False,
        score="eval/solved",
    )


# ---- search --------------------------------------------------------------------------------------

# The open list holds nodes by weight * g(s) + J(s). Taking a node makes all its children.
#
# Deferred A* computes J of a node when it is taken, not when it is made: until then a child stands
# in the open list with its parent's J less the cost of the way between them, which overestimates no
# more than the parent's J does. It asks the network once for each node taken, where A* does once
# for each node made.


def solver(config, puzzle, batch=1_000, deferred=False, **limits):
    """A compiled A* search guided by a trained `Policy`; `limits` as of `rlzoo.search.Solver`.

    Args:
      batch: nodes taken in one iteration.
      deferred: compute the value of a node when it is taken, not when it is made.
    """
    net = network(config)

    def values(policy, states):
        return net.apply(policy.variables, puzzle.inputs(states))[:, 0]

    return with_values(puzzle, values, batch, deferred, **limits)


def with_values(puzzle, values, batch=1_000, deferred=False, **limits):
    """A search as of `solver`, guided by `values(params, states)`.

    They give J [n] of states uint8 [n, size].
    """
    num_actions = puzzle.num_actions

    def expansion(params, weight):
        return parts(puzzle, functools.partial(values, params), weight, deferred)

    return search.Solver(
        puzzle,
        expansion,
        root_action=0,
        room=(num_actions, num_actions),
        batch=batch,
        rows=rows_of(batch, num_actions),
        **limits,
    )


def rows_of(batch, num_actions):
    """Nodes expanded at a time: the largest divisor of `batch` with at most MAX_CHILDREN
    children."""
    most = max(1, MAX_CHILDREN // num_actions)
    return max(rows for rows in range(1, min(batch, most) + 1) if batch % rows == 0)


def parts(puzzle, values, weight, deferred):
    """What a batch of entries goes through: (name, function) pairs as of `rlzoo.search.Solver`."""
    num_actions = puzzle.num_actions
    costs = jnp.asarray(puzzle.costs)

    def apply(progress, entries):
        """Make all children of each node."""
        parents, valid = search.look_up(progress, puzzle, entries)
        states = puzzle.apply_all(parents).reshape(-1, puzzle.size)
        parent_cost = progress.closed.cost[entries.node][:, None]
        cost = (parent_cost + costs).ravel()
        generated = progress.generated.plus(valid.sum() * num_actions)
        progress = progress._replace(generated=generated)
        return progress, entries, states, cost, jnp.repeat(valid, num_actions)

    def close(progress, entries, states, cost, valid):
        """Put the children into the closed set. Those that were accepted are wanted further."""
        parent = jnp.repeat(entries.node, num_actions)
        action = jnp.tile(jnp.arange(num_actions), len(entries.node))
        progress, node, wanted = search.add_nodes(
            progress, puzzle, states, cost, parent, action, valid
        )
        return progress, entries, states, cost, node, wanted

    def evaluate(progress, entries, states, cost, node, wanted):
        """Ask the network."""
        value = search.evaluate(values, states, wanted, min(len(states), 1024))
        calls = progress.calls.plus(wanted.sum())
        progress = progress._replace(calls=calls)
        return progress, entries, value, cost, node, wanted

    def push(progress, entries, value, cost, node, wanted):
        """Put the children into the open list, unless they are not worth taking."""
        priority = weight * cost + jnp.maximum(value, 0.0)
        action = jnp.zeros_like(node)
        valid = wanted & (priority < search.cutoff(progress, weight))
        entries = search.Entries(priority, node, action, valid)
        return progress._replace(open=search.push(progress.open, entries))

    def evaluate_parents(progress, entries):
        """Ask the network about the nodes taken; their values stand in place of the priorities."""
        states, wanted = search.look_up(progress, puzzle, entries)
        value = search.evaluate(values, states, wanted, min(len(states), 256))
        calls = progress.calls.plus(wanted.sum())
        progress = progress._replace(calls=calls)
        return progress, entries._replace(priority=jnp.maximum(value, 0.0))

    def push_by_parent(progress, entries, states, cost, node, wanted):
        value = (entries.priority[:, None] - costs).ravel()
        return push(progress, entries, value, cost, node, wanted)

    if deferred:
        network_first = (("network", evaluate_parents), ("apply", apply))
        return (*network_first, ("closed set", close), ("push", push_by_parent))
    return (
        ("apply", apply),
        ("closed set", close),
        ("network", evaluate),
        ("push", push),
    )


if __name__ == "__main__":
    rlzoo.main(make, Config, solver)
