"""Q* search: best-first search over the edges of a graph, guided by a deep Q-network.

Paper: Agostinelli et al. 2021 (arXiv 2102.04518), trained as DeepCubeA is (Agostinelli et al. 2019,
    Nature Machine Intelligence 1).
Kind: search, value-based, discrete
Run: python algorithms/qstar.py --env tile8 --seeds 5
    The cube: python algorithms/qstar.py --env cube3 --total-steps 10_000_000 --target-every 200_000
    --hidden 1000 500 --halving-steps 1e9; hours. With the weights that rlzoo ships:
    python algorithms/qstar.py --env cube3 --solve scramble:20    (--solve --help)
Result: by search, all 250 of DeepCubeA's 15-puzzles and 495 of its 500 cubes (results/qstar)
Metrics:
    loss/q          squared error of q; it falls between two copies, and jumps at each
    train/value     mean value of the states trained on; it grows with the copies
    train/copies    copies of the network to the target
    eval/solved     the score: share of scrambles that greedy actions solve in `eval_moves` moves
    eval/value      mean value of those scrambles
Deviations:
    The paper's body could not be read; the authors' DeepCubeA could.
    Adam keeps its moments over copies. The value of a goal is 0, it is not learnt.
    Warm-up, `follow` and `periodic` are ours. The network is smaller (theirs: --hidden 5000 1000
    --num-blocks 4 --batch-size 10_000 --target-every 50_000_000 --halving-steps 9.9e9).
    With many actions a node enters the open list in blocks of edges; the order stays the same.
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

WALK_MOVES = 10
"""moves that a walk without an end tries in each call"""


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
    periodic: bool = rlzoo.static(False)
    """one layer of cosines, as wide as the first, in place of all others: for puzzles whose moves
    answer to parities"""
    eval_moves: int = rlzoo.static(50, least=1)
    """moves in which evaluation must solve"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size at the start"""
    halving_steps: float = rlzoo.traced(1e9, above=0)
    """states in which the step size halves"""
    loss_threshold: float = rlzoo.traced(0.1, least=0)
    """the loss below which the network is copied to the target"""
    temperature: float = rlzoo.traced(1 / 3, above=0)
    """of the choice of actions"""
    walk_beta: float = rlzoo.traced(2.0, least=0)
    """inverse temperature of the walks in warm-up, where moves commute"""
    follow: float = rlzoo.traced(0.0, least=0)
    """actions on average that are followed from a scramble before the next; every state on the way
    is learnt from"""


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


class Cosines(nn.Module):
    """Outputs that are linear in cosines: of pi times a sum of bits, one is their parity."""

    width: int
    num_outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        angles = nn.Dense(
            self.width,
            kernel_init=nn.initializers.normal(1.0),
            bias_init=nn.initializers.uniform(2 * jnp.pi),
        )
        x = jnp.cos(angles(x))
        return nn.Dense(self.num_outputs)(x)


def network(config, puzzle):
    if config.periodic:
        return Cosines(config.hidden[0], puzzle.num_actions)
    return ResNet(config.hidden, config.num_blocks, puzzle.num_actions)


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
    walk: jax.Array
    """uint8 [batch_size, size]: where the last actions led"""
    odd_moves: jax.Array
    """bool [batch_size, num_actions], where moves commute: those made an odd number of times on the
    way to `walk`"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def taken(x, action):
    """Of x [n, num_actions, ...] what belongs to action [n]."""
    ones = [1] * (x.ndim - 1)
    index = action.reshape(-1, *ones)
    return jnp.take_along_axis(x, index, axis=1)[:, 0]


def sample_action(key, q, temperature):
    """One action [n] for each row of q [n, num_actions], drawn by exp(-q / temperature)."""
    return jax.random.categorical(key, -q / temperature)


def q_target(cost, next_q, next_goal):
    """Bellman's equation for the cost of a path.

    cost [n], next_q [n, num_actions], next_goal bool [n] -> [n].
    """
    next_value = jnp.maximum(next_q.min(axis=-1), 0.0)
    return cost + jnp.where(next_goal, 0.0, next_value)


def q_loss(params, variables, states, targets, network):
    """Mean squared error of q [n, num_actions].

    `targets(q)` gives the values that learn, their targets, and the states to go on from.
    Returns the loss, and (metrics, batch statistics, the states to go on from).
    """
    variables = {**variables, "params": params}
    q, batch_stats = network(variables, states, train=True, mutable=["batch_stats"])
    value, target, next_states = targets(q)
    chex.assert_equal_shape([value, target])
    loss = ((value - target) ** 2).mean()
    metrics = {
        "loss/q": loss,
        "train/value": q.min(axis=-1).mean(),
    }
    return loss, (metrics, batch_stats, next_states)


# ---- algorithm -----------------------------------------------------------------------------------

# Each call of `step` trains on one batch:
#
#   1. Draw states: scrambles backwards from the goal, or where the last actions led (`follow`). A q
#      that is too low draws the actions there, and is put right. DeepCubeA goes there by search.
#   2. Choose one action in each state, by exp(-q / temperature).
#   3. Compute its target: the cost and the smallest q of the next state, by the target network.
#   4. Make a gradient step on the squared error.
#   5. Every `target_every` states copy the network to the target, if the last loss was small.
#
# In warm-up steps 1 to 3 differ: targets are the moves of the scramble, an upper bound of the cost,
# and copies ask for no small loss. `scramble_moves` and `set_of_moves` say how.


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
    num_actions = puzzle.num_actions
    longest = config.scramble or puzzle.params.scramble_steps
    net = network(config, puzzle)
    optimizer = optax.scale_by_adam()

    def values(variables, states, **options):
        """q of states uint8 [..., size]: [..., num_actions]."""
        return net.apply(variables, puzzle.inputs(states), **options)

    def init(key):
        net_key, key = jax.random.split(key)
        variables = net.init(net_key, jnp.zeros((1, puzzle.num_inputs)))
        no_moves = jnp.zeros(batch_size, jnp.int32)
        moves_kept = num_actions if puzzle.commutes else 0
        return State(
            variables=variables,
            target_params=variables,
            opt_state=optimizer.init(variables["params"]),
            copies=jnp.int32(0),
            loss=jnp.float32(jnp.inf),
            walk=puzzle.scramble(net_key, no_moves, 0),
            odd_moves=jnp.zeros((batch_size, moves_kept), bool),
            key=key,
        )

    def bootstrapped(state, key):
        """Steps 1 to 3: the state, states uint8 [batch_size, size], and their `targets`."""
        depth_key, scramble_key, action_key, follow_key = jax.random.split(key, 4)

        # --- 1. draw states ---
        depth = jax.random.randint(depth_key, (batch_size,), 0, longest + 1)
        states = puzzle.scramble(scramble_key, depth, longest)
        share = config.follow / (config.follow + 1.0)
        follows = jax.random.bernoulli(follow_key, share, (batch_size,))
        follows &= ~puzzle.is_goal(state.walk)
        states = jnp.where(follows[:, None], state.walk, states)

        def targets(q):
            # --- 2. choose actions ---
            action = sample_action(action_key, q, config.temperature)

            # --- 3. compute targets ---
            next_states = puzzle.apply(states, action)
            next_q = values(state.target_params, next_states)
            next_q = next_q * (state.copies > 0)
            next_goal = puzzle.is_goal(next_states)
            target = q_target(costs[action], next_q, next_goal)
            return taken(q, action), target, next_states

        return state, states, targets

    def scramble_moves(state, key):
        """As `bootstrapped`, with the moves of the scramble as targets: of the action that undoes
        the last move, and of random ones."""
        depth_key, scramble_key, other_key, which_key, last_key = jax.random.split(key, 5)
        inverse = jnp.asarray(puzzle.inverse)

        # --- 1. draw states: after `depth` moves, and a last one that `undo` undoes ---
        depth = jax.random.randint(depth_key, (batch_size,), 0, longest)
        before = puzzle.scramble(scramble_key, depth, longest)
        undo = jax.random.randint(last_key, (batch_size,), 0, num_actions)
        states = puzzle.apply(before, inverse[undo])

        # --- 2. choose actions ---
        other = jax.random.randint(other_key, (batch_size,), 0, num_actions)
        goes_back = jax.random.bernoulli(which_key, 0.5, (batch_size,))
        goes_back |= other == undo
        action = jnp.where(goes_back, undo, other)

        # --- 3. compute targets ---
        # A last move that was not possible is not undone.
        undoes = goes_back & (states != before).any(axis=-1)
        # Other actions: back to the state, and then as the scramble came.
        way_back = costs[inverse[action]] + costs[undo] + depth
        remains = jnp.where(undoes, depth, way_back)
        next_states = puzzle.apply(states, action)
        remains = jnp.where(puzzle.is_goal(next_states), 0.0, remains)
        target = costs[action] + remains

        def targets(q):
            return taken(q, action), target, states

        return state, states, targets

    def set_of_moves(state, key):
        """As `scramble_moves`, where moves commute and undo themselves (Lights Out).

        Walks never end. The moves made an odd number of times are a way back, and give the targets
        of all actions. Walks accept moves as Metropolis does, by how many entries of the state
        differ from the goal's: most states then have few lights on though they are far from the
        goal. There `periodic` networks learn the parities that hold everywhere.
        """
        move_key, accept_key = jax.random.split(key)

        def num_different(states):
            return (states != puzzle.goal).sum(axis=-1)

        def move(walk, draws):
            states, odd_moves = walk
            action, threshold = draws
            next_states = puzzle.apply(states, action)
            increase = num_different(next_states) - num_different(states)
            accepted = (config.walk_beta * increase <= threshold)[:, None]
            states = jnp.where(accepted, next_states, states)
            moved = jax.nn.one_hot(action, num_actions, dtype=bool)
            odd_moves ^= moved & accepted
            return (states, odd_moves), None

        # --- 1. draw states: go on with the walks ---
        shape = (WALK_MOVES, batch_size)
        actions = jax.random.randint(move_key, shape, 0, num_actions)
        thresholds = jax.random.exponential(accept_key, shape)
        walk = (state.walk, state.odd_moves)
        (states, odd_moves), _ = jax.lax.scan(move, walk, (actions, thresholds))

        # --- 2 and 3. compute targets of all actions ---
        way_back = (odd_moves @ costs)[:, None]
        change = jnp.where(odd_moves, -costs, costs)
        target = costs + way_back + change

        def targets(q):
            return q, target, states

        return state.replace(odd_moves=odd_moves), states, targets

    def update(state, t, states, targets):
        """Step 4: one gradient step."""
        params = state.variables["params"]
        grads, (metrics, batch_stats, next_states) = jax.grad(q_loss, has_aux=True)(
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
            walk=next_states,
            loss=metrics["loss/q"],
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

        warm_up = set_of_moves if puzzle.commutes else scramble_moves
        state, metrics = jax.lax.cond(
            t < warmup_calls,
            functools.partial(learn, warm_up),
            functools.partial(learn, bootstrapped),
            state,
        )

        copy = functools.partial(copy_to_target, t=t)
        state, _ = rlzoo.when((t + 1) % target_every == 0, copy, state)
        metrics["train/copies"] = rlzoo.last(state.copies)
        return state.replace(key=key), metrics

    def greedy(variables, states):
        """The action with the smallest q [n]."""
        return values(variables, states).argmin(axis=-1)

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
        value = values(state.variables, states).min(axis=-1)
        return {
            "eval/solved": puzzle.is_goal(end).mean(),
            "eval/value": value.mean(),
        }

    def policy(state):
        return Policy(state.variables)

    def act(policy, obs, key):
        return net.apply(policy.variables, obs).argmin(axis=-1)

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

# The open list holds edges (a node, an action) by weight * g(s) + q(s, a). The edge that is taken
# makes a node, whose edges enter the open list in their turn. A* instead makes all children of the
# node that it takes.


class Codes(NamedTuple):
    """What the `action` of an entry of the open list stands for.

    below num_actions       the edge of this action
    below 2 * num_actions   the edges that come after one of them (`rest_after`)
    2 * num_actions         all edges: the start
    """

    num_actions: int

    @property
    def all_edges(self):
        return 2 * self.num_actions

    def is_edge(self, code):
        return code < self.num_actions

    def is_rest(self, code):
        return ~self.is_edge(code) & (code < self.all_edges)

    def rest_after(self, edge):
        return self.num_actions + edge

    def last_edge(self, rest):
        """The inverse of `rest_after`."""
        return rest - self.num_actions


def solver(config, puzzle, batch=1_000, edge_block=32, child_cost=False, **limits):
    """A compiled Q* search guided by a trained `Policy`; `limits` as of `rlzoo.search.Solver`.

    Args:
      batch: edges taken in one iteration.
      edge_block: edges of a node that enter the open list at once.
      child_cost: order edges by weight * g(s') + q(s, a) - cost, as A* orders nodes, instead of
        weight * g(s) + q(s, a).
    """
    net = network(config, puzzle)

    def values(policy, states):
        return net.apply(policy.variables, puzzle.inputs(states))

    return with_values(puzzle, values, batch, edge_block, child_cost, **limits)


def with_values(puzzle, values, batch=1_000, edge_block=32, child_cost=False, **limits):
    """A search as of `solver`, guided by `values(params, states)`.

    They give q [n, num_actions] of states uint8 [n, size].
    """
    num_actions = puzzle.num_actions
    entries = num_actions if edge_block >= num_actions else edge_block + 1

    def expansion(params, weight):
        return parts(puzzle, functools.partial(values, params), weight, edge_block, child_cost)

    return search.Solver(
        puzzle,
        expansion,
        root_action=Codes(num_actions).all_edges,
        room=(1, entries),
        batch=batch,
        **limits,
    )


def parts(puzzle, values, weight, edge_block, child_cost):
    """What a batch of entries goes through: (name, function) pairs as of `rlzoo.search.Solver`."""
    num_actions = puzzle.num_actions
    codes = Codes(num_actions)
    costs = jnp.asarray(puzzle.costs)
    edge_costs = (weight - 1.0) * costs if child_cost else jnp.zeros(num_actions)

    def apply(progress, entries):
        """Make the child at the end of each edge. Entries of several edges stay at their node."""
        parents, valid = search.look_up(progress, puzzle, entries)
        is_edge = valid & codes.is_edge(entries.action)
        action = jnp.where(is_edge, entries.action, 0)
        states = jnp.where(is_edge[:, None], puzzle.apply(parents, action), parents)
        edge_cost = jnp.where(is_edge, costs[action], 0.0)
        cost = progress.closed.cost[entries.node] + edge_cost
        generated = progress.generated.plus(is_edge.sum())
        progress = progress._replace(generated=generated)
        return progress, entries, states, cost, is_edge, valid

    def close(progress, entries, states, cost, is_edge, valid):
        """Put the children into the closed set. Those that were accepted are wanted further."""
        progress, node, accepted = search.add_nodes(
            progress, puzzle, states, cost, entries.node, entries.action, is_edge
        )
        node = jnp.where(is_edge, node, entries.node)
        wanted = valid & jnp.where(is_edge, accepted, True)
        return progress, entries, states, cost, node, wanted

    def evaluate(progress, entries, states, cost, node, wanted):
        """Ask the network."""
        value = search.evaluate(values, states, wanted, min(len(states), 256))
        calls = progress.calls.plus(wanted.sum())
        progress = progress._replace(calls=calls)
        return progress, entries, value, cost, node, wanted

    def push(progress, entries, value, cost, node, wanted):
        """Put the edges into the open list, unless they are not worth taking."""
        value = jnp.maximum(value, 0.0)
        priority = weight * cost[:, None] + value + edge_costs
        action = jnp.broadcast_to(jnp.arange(num_actions), priority.shape)
        if edge_block < num_actions:
            priority, action = best_edges(priority, entries.action)
        node = jnp.broadcast_to(node[:, None], priority.shape)
        worth_taking = priority < search.cutoff(progress, weight)
        valid = wanted[:, None] & worth_taking
        entries = search.Entries(priority, node, action, valid)
        entries = jax.tree.map(jnp.ravel, entries)
        return progress._replace(open=search.push(progress.open, entries))

    def best_edges(priority, code):
        """The `edge_block` best edges of each node, and an entry for the rest.

        Where the entry taken (its `code` [n]) was such a rest, only edges after it count. Then the
        network is asked about the node once more: what it says must not depend on the batch.
        Returns priorities and codes [n, edge_block + 1].
        """
        # --- leave out the edges that entered before ---
        is_rest = codes.is_rest(code)
        last = jnp.where(is_rest, codes.last_edge(code), 0)[:, None]
        bound = jnp.take_along_axis(priority, last, axis=1)
        ties = (priority == bound) & (jnp.arange(num_actions) <= last)
        before = (priority < bound) | ties
        entered = is_rest[:, None] & before
        priority = jnp.where(entered, jnp.inf, priority)

        # --- take the best ---
        # Without the barrier XLA takes the use of one column for leave to sort whole rows, 30 times
        # slower on a CPU.
        best = jax.lax.top_k(-priority, edge_block + 1)
        negated, action = jax.lax.optimization_barrier(best)
        rest = codes.rest_after(action[:, edge_block - 1])
        return -negated, action.at[:, edge_block].set(rest)

    return (
        ("apply", apply),
        ("closed set", close),
        ("network", evaluate),
        ("push", push),
    )


if __name__ == "__main__":
    rlzoo.main(make, Config, solver)
