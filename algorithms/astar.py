"""A* search with a learnt heuristic: what Q* is compared with.

Paper: DeepCubeA, Agostinelli et al. 2019 (Nature Machine Intelligence 1), deep approximate value
iteration and batched weighted A*. The network gives J(s), the cost that remains; the open list
holds nodes by weight * g(s) + J(s). Taking a node makes all its children.

Run:    python algorithms/astar.py --env tile8 --total-steps 1_000_000
Solve:  python algorithms/astar.py --env cube3 --solve FILE.npz --out DIR    (or --solve scramble:20; --solve --help)
        --deferred: deferred A*; --weight 0: greedy best-first
Expect: results/qstar

Metrics: `loss/value` is the squared error, `copies` counts the copies of the network to the
target, `value` is the mean of J. `eval/solved` is the share of scrambled states, of depths spread
evenly, that following the smallest J solves within `eval_moves` moves; `eval/value` what J says of
them.

Training: scramble backwards from the goal and regress J(s) on min over actions of cost +
J_target(s'), where J_target is 0 at a goal and before the first copy. The network is copied to the
target every `block_steps` states, if the last loss is below `loss_threshold`. With `warmup_steps`
the first targets are instead the moves of the scramble, an upper bound; copies then ask for no
small loss.

Deferred A* computes J of a node when it is taken, not when it is made: until then a child stands in
the open list with its parent's J less the cost of the way between them, which overestimates no more
than the parent's J does. It calls the network once for each node taken, where A* does once for each
node made.

Where it departs from the paper: Adam keeps its moments over copies; a goal's value is 0 rather than
learnt; the default network is smaller (paper: --first 5000 --width 1000 --blocks 4 --batch-size
10_000 --block-steps 50_000_000); training adds no states from searches (the paper does, from the
35-puzzle on).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import search

CHILDREN = 16_384
"""The most children made at a time."""


@rlzoo.config
class Config:
    env: str = rlzoo.static("cube3")
    """a puzzle"""
    total_steps: int = rlzoo.static(10_000_000)
    """states trained on by each member"""
    batch_size: int = rlzoo.static(1_000)
    """states in each update"""
    block_steps: int = rlzoo.static(200_000)
    """states between two chances to copy the network to the target"""
    warmup_steps: int = rlzoo.static(0)
    """states at first whose targets are the moves of the scramble"""
    scramble: int = rlzoo.static(0)
    """most moves of a scramble; 0: the puzzle's own"""
    first: int = rlzoo.static(1_000)
    """width of the first layer"""
    width: int = rlzoo.static(500)
    """width of the others"""
    blocks: int = rlzoo.static(2)
    """residual blocks of two layers each"""
    eval_moves: int = rlzoo.static(50)
    """moves in which evaluation must solve"""
    learning_rate: float = 1e-3
    """Adam's step size at the start"""
    halving_steps: float = 1e9
    """states in which the step size halves (the authors' 0.9999993 an update of 10,000: 9.9e9)"""
    loss_threshold: float = 0.1
    """the loss below which the network is copied to the target"""


# ---- networks ------------------------------------------------------------------------------------


class ResNet(nn.Module):
    """Two layers, then residual blocks, with batch normalisation before each ReLU; one value."""

    first: int
    width: int
    blocks: int

    @nn.compact
    def __call__(self, x, train=False):
        norm = lambda x: nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.relu(norm(nn.Dense(self.first)(x)))
        x = nn.relu(norm(nn.Dense(self.width)(x)))
        for _ in range(self.blocks):
            y = nn.relu(norm(nn.Dense(self.width)(x)))
            x = nn.relu(x + norm(nn.Dense(self.width)(y)))
        return nn.Dense(1)(x)[..., 0]


def network(config):
    return ResNet(config.first, config.width, config.blocks)


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    variables: Any
    """parameters and running statistics"""


@struct.dataclass
class State:
    variables: Any
    target: Any
    opt_state: Any
    copies: jax.Array
    """times that the network was copied to the target, whose value is 0 before"""
    loss: jax.Array
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def value_target(costs, next_value, next_goal, goal):
    """Bellman's equation for a path's cost: costs [actions], next_value and next_goal [n, actions],
    goal bool [n]."""
    ahead = jnp.where(next_goal, 0.0, jnp.maximum(next_value, 0.0))
    return jnp.where(goal, 0.0, (costs + ahead).min(-1))


# ---- algorithm -----------------------------------------------------------------------------------


def make(config, env, dataset=None) -> rlzoo.Algorithm:
    puzzle = search.puzzle_of(env)
    if config.warmup_steps and puzzle.inverse is None:
        raise rlzoo.Refused(
            f"warmup_steps is {config.warmup_steps}, but moves of {config.env} cannot be undone; use 0"
        )
    if config.batch_size < 2:
        raise rlzoo.Refused(
            f"batch_size is {config.batch_size}; batch normalisation needs at least 2"
        )
    net, count = network(config), config.batch_size
    longest = config.scramble or puzzle.params.scramble_steps
    costs = jnp.asarray(puzzle.costs)
    optimizer = optax.scale_by_adam()
    copy_every, warmup_calls = max(1, config.block_steps // count), -(-config.warmup_steps // count)

    def init(key):
        net_key, key = jax.random.split(key)
        variables = net.init(net_key, jnp.zeros((1, puzzle.num_inputs)))
        return State(
            variables,
            variables,
            optimizer.init(variables["params"]),
            jnp.int32(0),
            jnp.float32(jnp.inf),
            key,
        )

    def bootstrapped(state, states, depth):
        children = puzzle.apply_all(states)
        value = net.apply(state.target, puzzle.inputs(children).reshape(-1, puzzle.num_inputs))
        value = value.reshape(children.shape[:2]) * (state.copies > 0)
        return value_target(costs, value, puzzle.is_goal(children), puzzle.is_goal(states))

    def by_scramble(state, states, depth):
        return jnp.where(puzzle.is_goal(states), 0.0, depth)

    def step(state, t):
        key, depth_key, walk_key = jax.random.split(state.key, 3)
        depth = jax.random.randint(depth_key, (count,), 0, longest + 1)
        states = puzzle.scramble(walk_key, depth, longest)
        target = jax.lax.cond(t < warmup_calls, by_scramble, bootstrapped, state, states, depth)

        def loss(params):
            value, stats = net.apply(
                {**state.variables, "params": params},
                puzzle.inputs(states),
                train=True,
                mutable=["batch_stats"],
            )
            return ((value - target) ** 2).mean(), (stats, value.mean())

        (error, (stats, value)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.variables["params"]
        )
        direction, opt_state = optimizer.update(grads, state.opt_state)
        rate = config.learning_rate * 2.0 ** (-t * count / config.halving_steps)
        params = jax.tree.map(lambda p, d: p - rate * d, state.variables["params"], direction)
        state = state.replace(
            variables={"params": params, **stats}, opt_state=opt_state, loss=error, key=key
        )
        state = jax.lax.cond((t + 1) % copy_every == 0, copy, lambda state, t: state, state, t)
        return state, {"loss/value": error, "value": value, "copies": rlzoo.last(state.copies)}

    def copy(state, t):
        good = (state.loss < config.loss_threshold) | (t < warmup_calls)
        target = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), state.variables, state.target
        )
        return state.replace(target=target, copies=state.copies + good)

    def greedy(variables, states):
        """The action with the smallest cost and value of the state after it."""
        children = puzzle.apply_all(states)
        value = net.apply(
            variables, puzzle.inputs(children).reshape(-1, puzzle.num_inputs)
        ).reshape(children.shape[:2])
        return (costs + jnp.where(puzzle.is_goal(children), 0.0, value)).argmin(-1)

    def evaluate(state, key):
        """30 depths spread evenly, 10 states of each."""
        depth = jnp.repeat(jnp.linspace(1, longest, 30).round().astype(jnp.int32), 10)
        states = puzzle.scramble(key, depth, longest)

        def move(i, now):
            return jnp.where(
                puzzle.is_goal(now)[:, None], now, puzzle.apply(now, greedy(state.variables, now))
            )

        end = jax.lax.fori_loop(0, config.eval_moves, move, states)
        value = net.apply(state.variables, puzzle.inputs(states))
        return {"eval/solved": puzzle.is_goal(end).mean(), "eval/value": value.mean()}

    def act(policy, obs, key):
        states = puzzle.states_of(obs).reshape(-1, puzzle.size)
        return greedy(policy.variables, states).reshape(obs.shape[:-1])

    return rlzoo.Algorithm(
        init,
        step,
        policy=lambda state: Policy(state.variables),
        act=act,
        steps_per_call=count,
        updates_per_call=1,
        evaluate=evaluate,
        rollouts=False,
        score="eval/solved",
    )


# ---- search --------------------------------------------------------------------------------------


def solver(config, puzzle, batch=1_000, deferred=False, **limits):
    """A compiled A* search guided by a trained `Policy`; `limits` as of `rlzoo.search.Solver`.

    Args:
      batch: nodes taken in one iteration.
      deferred: compute the value of a node when it is taken, not when it is made.
    """
    net = network(config)
    return with_values(
        puzzle,
        lambda policy, states: net.apply(policy.variables, puzzle.inputs(states)),
        batch,
        deferred,
        **limits,
    )


def with_values(puzzle, value, batch=1_000, deferred=False, **limits):
    """A* search guided by `value(params, states uint8 [n, size]) -> [n]`; otherwise as `solver`."""
    rows = max(
        n
        for n in range(1, batch + 1)
        if batch % n == 0 and (n * puzzle.num_actions <= CHILDREN or n == 1)
    )
    steps = deferred_parts if deferred else parts
    return search.Solver(
        puzzle,
        lambda params, weight: steps(puzzle, lambda states: value(params, states), weight),
        root_action=0,
        room=(puzzle.num_actions, puzzle.num_actions),
        batch=batch,
        rows=rows,
        **limits,
    )


def parts(puzzle, value, weight):
    """What a batch of nodes goes through: expand them, keep the new children, ask the network, push
    them."""
    expand, close = growth(puzzle)

    def evaluate(now, entries, state, cost, node, fresh):
        ahead = search.evaluate(value, state, fresh, min(len(state), 1024))
        return now._replace(calls=now.calls.plus(fresh.sum())), ahead, cost, node, fresh

    def push(now, ahead, cost, node, fresh):
        return enter(now, weight * cost + jnp.maximum(ahead, 0.0), node, fresh, weight)

    return (("apply", expand), ("closed set", close), ("network", evaluate), ("push", push))


def deferred_parts(puzzle, value, weight):
    """As `parts`, but asking the network about the nodes taken."""
    expand, close = growth(puzzle)

    def evaluate(now, entries):
        state, wanted = search.at(now, puzzle, entries)
        ahead = search.evaluate(value, state, wanted, min(len(state), 256))
        return now._replace(calls=now.calls.plus(wanted.sum())), entries._replace(
            priority=jnp.maximum(ahead, 0.0)
        )

    def push(now, entries, state, cost, node, fresh):
        ahead = jnp.maximum(entries.priority[:, None] - jnp.asarray(puzzle.costs), 0.0).ravel()
        return enter(now, weight * cost + ahead, node, fresh, weight)

    return (("network", evaluate), ("apply", expand), ("closed set", close), ("push", push))


def growth(puzzle):
    """The two parts that make children of nodes and keep the new ones."""
    count, costs = puzzle.num_actions, jnp.asarray(puzzle.costs)

    def expand(now, entries):
        parent, valid = search.at(now, puzzle, entries)
        state = puzzle.apply_all(parent).reshape(-1, puzzle.size)
        cost = (now.closed.cost[entries.node][:, None] + costs).ravel()
        now = now._replace(generated=now.generated.plus(valid.sum() * count))
        return now, entries, state, cost, jnp.repeat(valid, count)

    def close(now, entries, state, cost, valid):
        action = jnp.tile(jnp.arange(count), len(entries.node))
        now, node, fresh = search.reach(
            now, puzzle, state, cost, jnp.repeat(entries.node, count), action, valid
        )
        return now, entries, state, cost, node, fresh

    return expand, close


def enter(now, priority, node, fresh, weight):
    """Push nodes that may still be worth taking."""
    entries = search.Entries(
        priority, node, jnp.zeros_like(node), fresh & (priority < search.enough(now, weight))
    )
    return now._replace(open=search.push(now.open, entries))


if __name__ == "__main__":
    rlzoo.main(make, Config, solver)
