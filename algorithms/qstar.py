"""Q* search: a deep Q-network guides best-first search, which then need not expand nodes.

Paper: Agostinelli et al. 2021 (arXiv 2102.04518), with the training of DeepCubeA (Agostinelli et
al. 2019). The network gives q(s, a), the cost of the action and of what then remains, of all
actions in one pass. The open list holds edges (a node, an action) by weight * g(s) + q(s, a): only
the edge that is taken makes a node, where A* makes them all.

Run:    python algorithms/qstar.py --env tile8 --total-steps 1_000_000
Solve:  python algorithms/qstar.py --env cube3 --solve FILE.npz --out DIR    (or --solve scramble:20; --solve --help)
Expect: results/qstar

Metrics: `loss/q` is the squared error of one action in each state (of all where moves commute, in
warm-up), `copies` counts the copies of the network to the target, `value` is the mean of the
smallest q. `eval/solved` is the share of scrambled states, of depths spread evenly, that following
the smallest q solves within `eval_moves` moves; `eval/value` what q says of them.

Training: scramble backwards from the goal, take one action drawn by exp(-q / temperature), and
regress q(s, a) on cost + min q_target(s', .), which is 0 at a goal and before the first copy. The
network is copied to the target every `block_steps` states, if the last loss is below
`loss_threshold`. With `follow` training also goes where those actions lead, as DeepCubeA goes by
search on its harder puzzles: a q that is too low draws the actions, and is put right. With
`warmup_steps` the first targets are instead the moves of the scramble, an upper bound: of the
action that undoes the last one, and of random ones; copies then ask for no small loss. Where moves
commute and undo themselves (Lights Out) walks never end instead, and the set of moves made an odd
number of times, a way back, gives the targets of all actions. These walks accept moves as
Metropolis does, by how many entries of the state differ from the goal's (`cold`): most states then
have few lights on though they are far from the goal, and there `periodic` networks learn the
parities that the moves answer to, which hold everywhere.

Where it departs from the paper (its body could not be read; the authors' DeepCubeA could): Adam
keeps its moments over copies; a goal's value is 0 rather than learnt; warm-up and `periodic` are
ours; the default network is smaller (paper: --first 5000 --width 1000 --blocks 4 --batch-size
10_000 --block-steps 50_000_000). With many actions the open list takes the `block` best edges of a
node and one entry that stands for the rest, from which the next ones come when it is its turn:
equal priorities aside the order of edges is the same, the memory is not. This asks for a network
whose value of a state does not depend on the rest of the batch.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import search

MOVES = 10
"""moves that a walk without an end tries in each call"""


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
    periodic: bool = rlzoo.static(False)
    """one layer of `first` cosines instead of all others: for puzzles whose moves answer to
    parities"""
    eval_moves: int = rlzoo.static(50)
    """moves in which evaluation must solve"""
    learning_rate: float = 1e-3
    """Adam's step size at the start"""
    halving_steps: float = 1e9
    """states in which the step size halves (the authors' 0.9999993 an update of 10,000: 9.9e9)"""
    loss_threshold: float = 0.1
    """the loss below which the network is copied to the target"""
    temperature: float = 1 / 3
    """of the choice of actions"""
    cold: float = 2.0
    """inverse temperature of the walks of warm-up where moves commute"""
    follow: float = 0.0
    """actions on average that are followed from a scramble before the next; every state on the way
    is learnt from"""


# ---- networks ------------------------------------------------------------------------------------


class ResNet(nn.Module):
    """Two layers, then residual blocks, with batch normalisation before each ReLU; a value for each
    action."""

    first: int
    width: int
    blocks: int
    out: int

    @nn.compact
    def __call__(self, x, train=False):
        norm = lambda x: nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.relu(norm(nn.Dense(self.first)(x)))
        x = nn.relu(norm(nn.Dense(self.width)(x)))
        for _ in range(self.blocks):
            y = nn.relu(norm(nn.Dense(self.width)(x)))
            x = nn.relu(x + norm(nn.Dense(self.width)(y)))
        return nn.Dense(self.out)(x)


class Cosines(nn.Module):
    """A value for each action that is linear in cosines: of pi times a sum of bits, one is their
    parity."""

    first: int
    out: int

    @nn.compact
    def __call__(self, x, train=False):
        angles = nn.Dense(
            self.first,
            kernel_init=nn.initializers.normal(1.0),
            bias_init=nn.initializers.uniform(2 * jnp.pi),
        )
        return nn.Dense(self.out)(jnp.cos(angles(x)))


def network(config, puzzle):
    if config.periodic:
        return Cosines(config.first, puzzle.num_actions)
    return ResNet(config.first, config.width, config.blocks, puzzle.num_actions)


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
    walk: jax.Array
    """uint8 [batch_size, size]: where the last actions led"""
    made: jax.Array
    """bool [batch_size, actions], where moves commute: those made an odd number of times on the way
    to `walk`"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def q_target(cost, next_q, next_goal):
    """Bellman's equation for a path's cost: cost [n], next_q [n, actions], next_goal bool [n]."""
    return cost + jnp.where(next_goal, 0.0, jnp.maximum(next_q.min(-1), 0.0))


def of(q, action):
    """q [n, actions] of one action in each state: int [n] -> [n]."""
    return jnp.take_along_axis(q, action[:, None], 1)[:, 0]


def choose(key, q, temperature):
    """One action for each row of q [n, actions], drawn by exp(-q / temperature)."""
    return jax.random.categorical(key, -q / temperature)


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
    net, count = network(config, puzzle), config.batch_size
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
            puzzle.scramble(net_key, jnp.zeros(count, jnp.int32), 0),
            jnp.zeros((count, puzzle.num_actions if puzzle.commutes else 0), bool),
            key,
        )

    def bootstrapped(state, key):
        """States, and what to do with their q: (state, states, q -> (errors, states to go on
        from))."""
        depth_key, key, act_key, stay_key = jax.random.split(key, 4)
        states = puzzle.scramble(
            key, jax.random.randint(depth_key, (count,), 0, longest + 1), longest
        )
        goes_on = jax.random.bernoulli(stay_key, config.follow / (config.follow + 1.0), (count,))
        states = jnp.where((goes_on & ~puzzle.is_goal(state.walk))[:, None], state.walk, states)

        def regress(q):
            action = choose(act_key, q, config.temperature)
            after = puzzle.apply(states, action)
            next_q = net.apply(state.target, puzzle.inputs(after)) * (state.copies > 0)
            return of(q, action) - q_target(costs[action], next_q, puzzle.is_goal(after)), after

        return state, states, regress

    def by_scramble(state, key):
        depth_key, key, act_key, which_key, last_key = jax.random.split(key, 5)
        depth = jax.random.randint(depth_key, (count,), 0, longest)
        before = puzzle.scramble(key, depth, longest)
        undo = jax.random.randint(last_key, (count,), 0, puzzle.num_actions)
        states = puzzle.apply(before, jnp.asarray(puzzle.inverse)[undo])
        other = jax.random.randint(act_key, (count,), 0, puzzle.num_actions)
        goes_back = jax.random.bernoulli(which_key, 0.5, (count,)) | (other == undo)
        action = jnp.where(goes_back, undo, other)
        goal = puzzle.is_goal(puzzle.apply(states, action))
        undoes = goes_back & (states != before).any(
            -1
        )  # a move that was not possible is not undone
        back = (
            costs[jnp.asarray(puzzle.inverse)[action]] + costs[undo] + depth
        )  # back here, then as the scramble came
        target = costs[action] + jnp.where(goal, 0.0, jnp.where(undoes, depth, back))
        return state, states, lambda q: (of(q, action) - target, states)

    def by_set(state, key):
        """As `by_scramble` where moves commute: walks go on, and the moves made are known as a
        set."""
        move_key, luck_key = jax.random.split(key)
        actions = jax.random.randint(move_key, (MOVES, count), 0, puzzle.num_actions)
        luck = jax.random.exponential(luck_key, (MOVES, count))
        unlike = lambda states: (states != puzzle.goal).sum(-1)

        def move(walk, x):
            (states, made), (action, luck) = walk, x
            after = puzzle.apply(states, action)
            goes = config.cold * (unlike(after) - unlike(states)) <= luck
            made = made ^ (jax.nn.one_hot(action, puzzle.num_actions, dtype=bool) & goes[:, None])
            return (jnp.where(goes[:, None], after, states), made), None

        (states, made), _ = jax.lax.scan(move, (state.walk, state.made), (actions, luck))
        target = costs + (made @ costs)[:, None] + jnp.where(made, -costs, costs)
        return state.replace(made=made), states, lambda q: (q - target, states)

    def update(state, t, key, sample):
        state, states, regress = sample(state, key)

        def loss(params):
            q, stats = net.apply(
                {**state.variables, "params": params},
                puzzle.inputs(states),
                train=True,
                mutable=["batch_stats"],
            )
            error, after = regress(q)
            return (error**2).mean(), (stats, q.min(-1).mean(), after)

        (value, (stats, q, after)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.variables["params"]
        )
        direction, opt_state = optimizer.update(grads, state.opt_state)
        rate = config.learning_rate * 2.0 ** (-t * count / config.halving_steps)
        params = jax.tree.map(lambda p, d: p - rate * d, state.variables["params"], direction)
        variables = {"params": params, **stats}
        return state.replace(variables=variables, opt_state=opt_state, loss=value, walk=after), q

    def copy(state, t):
        good = (state.loss < config.loss_threshold) | (t < warmup_calls)
        target = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), state.variables, state.target
        )
        return state.replace(target=target, copies=state.copies + good)

    def step(state, t):
        key, step_key = jax.random.split(state.key)
        learn = lambda sample: lambda: update(state.replace(key=key), t, step_key, sample)
        warm_up = by_set if puzzle.commutes else by_scramble
        state, q = jax.lax.cond(t < warmup_calls, learn(warm_up), learn(bootstrapped))
        state = jax.lax.cond((t + 1) % copy_every == 0, copy, lambda state, t: state, state, t)
        return state, {"loss/q": state.loss, "value": q, "copies": rlzoo.last(state.copies)}

    def evaluate(state, key):
        """30 depths spread evenly, 10 states of each."""
        depth = jnp.repeat(jnp.linspace(1, longest, 30).round().astype(jnp.int32), 10)
        states = puzzle.scramble(key, depth, longest)
        q = lambda states: net.apply(state.variables, puzzle.inputs(states))

        def move(i, states):
            return jnp.where(
                puzzle.is_goal(states)[:, None], states, puzzle.apply(states, q(states).argmin(-1))
            )

        end = jax.lax.fori_loop(0, config.eval_moves, move, states)
        return {"eval/solved": puzzle.is_goal(end).mean(), "eval/value": q(states).min(-1).mean()}

    return rlzoo.Algorithm(
        init,
        step,
        policy=lambda state: Policy(state.variables),
        act=lambda policy, obs, key: net.apply(policy.variables, obs).argmin(-1),
        steps_per_call=count,
        updates_per_call=1,
        evaluate=evaluate,
        rollouts=False,
        score="eval/solved",
    )


# ---- search --------------------------------------------------------------------------------------


def solver(config, puzzle, batch=1_000, block=32, child_cost=False, **limits):
    """A compiled Q* search guided by a trained `Policy`; `limits` as of `rlzoo.search.Solver`.

    Args:
      batch: edges taken in one iteration.
      block: edges of a node that enter the open list at once.
      child_cost: order edges by weight * g(s') + q(s, a) - cost, as A* orders nodes, instead of
      weight * g(s) + q(s, a).
    """
    net = network(config, puzzle)
    return with_values(
        puzzle,
        lambda policy, states: net.apply(policy.variables, puzzle.inputs(states)),
        batch,
        block,
        child_cost,
        **limits,
    )


def with_values(puzzle, q, batch=1_000, block=32, child_cost=False, **limits):
    """Q* search guided by `q(params, states uint8 [n, size]) -> [n, actions]`; otherwise as
    `solver`."""
    count = puzzle.num_actions
    entries = count if block >= count else block + 1
    return search.Solver(
        puzzle,
        lambda params, weight: parts(
            puzzle, lambda states: q(params, states), weight, block, child_cost
        ),
        root_action=2 * count,
        room=(1, entries),
        batch=batch,
        **limits,
    )


def parts(puzzle, q, weight, block, child_cost):
    """What one batch of entries goes through. The action of an entry is an edge, below `actions`;
    or it is `actions` +
    e: the edges of the node that come after edge e; or 2 * `actions`: all edges of the node."""
    count, costs = puzzle.num_actions, jnp.asarray(puzzle.costs)
    discount = (weight - 1.0) * costs if child_cost else jnp.zeros(count)

    def apply(now, entries):
        parent, valid = search.at(now, puzzle, entries)
        edge = valid & (entries.action < count)
        action = jnp.where(edge, entries.action, 0)
        state = jnp.where(edge[:, None], puzzle.apply(parent, action), parent)
        cost = now.closed.cost[entries.node] + jnp.where(edge, costs[action], 0.0)
        return (
            now._replace(generated=now.generated.plus(edge.sum())),
            entries,
            state,
            cost,
            edge,
            valid,
        )

    def close(now, entries, state, cost, edge, valid):
        now, node, fresh = search.reach(
            now, puzzle, state, cost, entries.node, entries.action, edge
        )
        grows = valid & jnp.where(edge, fresh, True)
        return now, entries, state, cost, jnp.where(edge, node, entries.node), grows

    def evaluate(now, entries, state, cost, node, grows):
        value = search.evaluate(q, state, grows, min(len(state), 256))
        return now._replace(calls=now.calls.plus(grows.sum())), entries, value, cost, node, grows

    def push(now, entries, value, cost, node, grows):
        priority = weight * cost[:, None] + jnp.maximum(value, 0.0) + discount
        action = jnp.broadcast_to(jnp.arange(count), priority.shape)
        if block < count:
            priority, action = best(priority, entries.action)
        valid = grows[:, None] & (priority < search.enough(now, weight))
        rows = search.Entries(
            priority, jnp.broadcast_to(node[:, None], priority.shape), action, valid
        )
        return now._replace(open=search.push(now.open, jax.tree.map(jnp.ravel, rows)))

    def best(priority, before):
        """The `block` best edges and an entry for the rest; of a node that had its turn, those
        after the last one."""
        again = (before >= count) & (before < 2 * count)
        last = jnp.where(again, before - count, 0)[:, None]
        bar = jnp.take_along_axis(priority, last, 1)
        came = (priority < bar) | ((priority == bar) & (jnp.arange(count) <= last))
        priority = jnp.where(again[:, None] & came, jnp.inf, priority)
        # without the barrier XLA takes the use of one column for leave to sort whole rows, 30 times
        # slower on a CPU
        negated, action = jax.lax.optimization_barrier(jax.lax.top_k(-priority, block + 1))
        rest = count + action[:, block - 1]
        return -negated, action.at[:, block].set(rest)

    return (("apply", apply), ("closed set", close), ("network", evaluate), ("push", push))


if __name__ == "__main__":
    rlzoo.main(make, Config, solver)
