"""A program: all members that share their static fields, as compiled functions over stacked states.

`jax.shard_map` spreads the members over the devices, `vmap` over the rest. `step` runs inside a
`fori_loop` with traced bounds, so one compiled program serves chunks of any length, and the length
does not change the numbers.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlzoo import env as environments
from rlzoo import machine
from rlzoo.algorithm import Algorithm, Refused, Stage
from rlzoo.run.members import Member
from rlzoo.run.options import Options

MEMBERS, ALL = PartitionSpec("members"), PartitionSpec()


EVALUATION = (
    0x5EED  # folded into a member's key, so that evaluation never touches training randomness
)


class Program:
    """All members with the same static fields, as compiled functions over stacked states.

    `members` are the real ones; `padded` more fill the devices evenly and are never recorded.
    """

    def __init__(
        self,
        make: Callable,
        members: list[Member],
        env: Any,
        dataset: Any,
        options: Options,
        index: int,
    ):
        self.members, self.env, self.index, self.episodes = (
            members,
            env,
            index,
            options.eval_episodes,
        )
        self.name = " ".join(
            f"{key}={value}"
            for key, value in members[0].swept.items()
            if all(m.swept[key] == value for m in members)
        )
        self.make = make
        if options.devices and options.devices > len(jax.devices()):
            raise Refused(
                f"--devices is {options.devices}, but there are {len(jax.devices())} here"
            )
        devices = jax.devices()[: options.devices or None]
        if jax.process_count() == 1:
            devices = devices[: len(members)]
        self.devices = devices
        self.mesh = jax.make_mesh(
            (len(devices),), ("members",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,)
        )
        self.sharded = NamedSharding(self.mesh, MEMBERS)
        padding = -len(members) % len(devices)
        everyone = members + members[:1] * padding
        leaves = [jax.tree.leaves(m.config) for m in everyone]
        self.treedef = jax.tree.structure(members[0].config)
        self.leaves = [
            self.put(np.array(column, np.float32)) for column in zip(*leaves, strict=True)
        ]
        self.seeds = self.put(np.array([m.seed for m in everyone], np.uint32))
        self.dataset = jax.device_put(dataset, NamedSharding(self.mesh, ALL))
        self.algorithm: Algorithm = make(members[0].config, env, dataset)
        total, per_call = members[0].config.total_steps, self.algorithm.steps_per_call
        if total < 1:
            raise Refused(f"--total-steps is {total}; it must be at least 1")
        self.stages: list[Stage] = list(self.algorithm.stages) or [
            Stage("train", self.algorithm.step, -(-total // per_call))
        ]  # type: ignore[arg-type]
        self.calls = sum(stage.calls for stage in self.stages)
        self.steps = self.calls * per_call
        self.state_spec = jax.eval_shape(self._init, self.seeds, self.leaves, dataset)
        self.compiled: dict[str, float] = {}
        """seconds that compiling each function took"""
        self._executables: dict[tuple, Any] = {}
        self._metrics: dict[int, list[str]] = {}

    # -- host and devices --

    def put(self, x: np.ndarray) -> jax.Array:
        """Spread a host array with a leading member axis over the devices (of all processes)."""
        return jax.make_array_from_callback(x.shape, self.sharded, lambda index: x[index])

    def spread(self, x: Any) -> jax.Array:
        """`put` an array of the real members, padded with copies of the first."""
        return self.put(np.concatenate([x, *[x[:1]] * (len(self.seeds) - len(self.members))]))

    def to_host(self, tree: Any) -> Any:
        """NumPy copies of the real members' arrays, without the padding."""
        return jax.tree.map(lambda x: x[: len(self.members)], to_host(tree))

    def state_bytes(self) -> int:
        """Bytes of all members' states on one device."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.state_spec)) // len(
            self.devices
        )

    # -- functions of stacked members --

    def _each(self, function: Callable, *batched: Any, leaves: list, dataset: Any) -> Any:
        """Map `function(algorithm, *one member's slices)` over the members on this device."""

        def one(leaves: list, *args: Any) -> Any:
            config = jax.tree.unflatten(self.treedef, leaves)
            return function(self.make(config, self.env, dataset), *args)

        if jax.tree.leaves((batched, leaves))[0].shape[0] == 1:  # no batch axis inside the program
            alone = one(*jax.tree.map(lambda x: x[0], (leaves, *batched)))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)
        return jax.vmap(one)(leaves, *batched)

    def _init(self, seeds: Any, leaves: Any, dataset: Any) -> Any:
        return self._each(
            lambda alg, seed: alg.init(jax.random.key(seed)), seeds, leaves=leaves, dataset=dataset
        )

    def _chunk(
        self, stage: int, states: Any, totals: Any, leaves: Any, dataset: Any, start: Any, stop: Any
    ) -> Any:
        def step(t: Any, carry: Any) -> Any:
            states, totals = carry
            run = lambda alg, state: _step_of(alg, stage)(state, t)
            states, metrics = self._each(run, states, leaves=leaves, dataset=dataset)
            pairs = {
                name: value if isinstance(value, tuple) else (value, jnp.ones_like(value))
                for name, value in metrics.items()
            }
            return states, jax.tree.map(lambda a, b: a + b.astype(jnp.float32), totals, pairs)

        states, totals = jax.lax.fori_loop(start, stop, step, (states, totals))
        return (
            states,
            totals,
            self._each(
                lambda alg, state: _all_finite(alg.policy(state)),
                states,
                leaves=leaves,
                dataset=dataset,
            ),
        )

    def _evaluate(self, states: Any, seeds: Any, leaves: Any, dataset: Any, step: Any) -> Any:
        keys = jax.vmap(
            lambda s: jax.random.fold_in(jax.random.fold_in(jax.random.key(s), EVALUATION), step)
        )(seeds)
        if self.algorithm.evaluate:
            return self._each(
                lambda alg, state, key: alg.evaluate(state, key),
                states,
                keys,  # type: ignore[misc]
                leaves=leaves,
                dataset=dataset,
            )
        each = lambda function, *args: self._each(function, *args, leaves=leaves, dataset=dataset)
        policies = each(lambda alg, state: alg.policy(state), states)
        flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
        fold = lambda tree: jax.tree.map(
            lambda x: x.reshape(len(seeds), self.episodes, *x.shape[1:]), tree
        )

        def act(memory: Any, obs: Any, reward: Any, keys: Any) -> Any:
            if self.algorithm.memory:
                remember = lambda alg, policy, *args: jax.vmap(
                    lambda m, o, r, k: alg.act(policy, m, o, r, k)
                )(*args)
                return flat(each(remember, policies, *fold((memory, obs, reward, keys))))
            plain = lambda alg, policy, *args: jax.vmap(lambda o, k: alg.act(policy, o, k))(*args)
            return flat(each(plain, policies, *fold((obs, keys)))), memory

        memory = None
        if self.algorithm.memory:
            copies = lambda x: jnp.broadcast_to(x, (self.episodes, *jnp.shape(x)))
            memory = flat(
                each(lambda alg, policy: jax.tree.map(copies, alg.memory(policy)), policies)
            )
        returns, lengths = environments.episodes(
            self.env,
            act,
            memory,
            flat(jax.vmap(lambda k: jax.random.split(k, self.episodes))(keys)),
        )
        return {"eval/return": fold(returns).mean(1), "eval/length": fold(lengths).mean(1)}

    # -- compiled --

    @property
    def compile_seconds(self) -> float:
        return sum(self.compiled.values())

    def _compiled(
        self, name: str, function: Callable, args: tuple, specs: tuple, donate: tuple = ()
    ) -> Any:
        """`function(*args)`, compiled over the mesh at the first call with these names and
        shapes."""
        key = (name, *((x.shape, x.dtype) for x in jax.tree.leaves(args)))
        if key not in self._executables:
            began = time.perf_counter()
            mapped = jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=MEMBERS, check_vma=False
            )
            executable = (
                jax.jit(mapped, donate_argnums=donate, out_shardings=self.sharded)
                .lower(*args)
                .compile(compiler_options=machine.compiler_options(self.devices[0].platform))
            )
            self.compiled[name] = self.compiled.get(name, 0.0) + time.perf_counter() - began
            _check_memory(executable, self)
            self._executables[key] = executable
            machine.wait_for_others(f"program {self.index}, {name}, {len(self._executables)}")
        return self._executables[key](*args)

    def init(self) -> Any:
        return self._compiled(
            "init", self._init, (self.seeds, self.leaves, self.dataset), (MEMBERS, MEMBERS, ALL)
        )

    def chunk(
        self, stage: int, states: Any, totals: Any, start: int, stop: int
    ) -> tuple[Any, Any, Any]:
        """Calls `start` to `stop` of a stage; gives states, metric totals, and whether each policy
        is finite."""
        return self._compiled(
            f"chunk {stage}",
            functools.partial(self._chunk, stage),
            (states, totals, self.leaves, self.dataset, np.int32(start), np.int32(stop)),
            (MEMBERS, MEMBERS, MEMBERS, ALL, ALL, ALL),
            donate=(0, 1),
        )

    def evaluate(self, states: Any, step: int) -> dict[str, np.ndarray]:
        args = (states, self.seeds, self.leaves, self.dataset, np.uint32(step % 2**32))
        return self.to_host(
            self._compiled("evaluate", self._evaluate, args, (MEMBERS, MEMBERS, MEMBERS, ALL, ALL))
        )

    def totals(self, stage: int) -> dict[str, tuple]:
        """Zeros for the (sum, count) of every metric of a stage."""
        if stage not in self._metrics:
            run = lambda alg, state: _step_of(alg, stage)(state, jnp.int32(0))[1]
            self._metrics[stage] = list(
                jax.eval_shape(
                    lambda *args: self._each(run, args[0], leaves=args[1], dataset=args[2]),
                    self.state_spec,
                    self.leaves,
                    self.dataset,
                )
            )
        zeros = np.zeros((2, len(self._metrics[stage]), *self.seeds.shape), np.float32)
        return {
            name: (self.put(zeros[0, i]), self.put(zeros[1, i]))
            for i, name in enumerate(self._metrics[stage])
        }

    def enter(self, stage: Stage, states: Any) -> Any:
        """The hand-over before a stage: the states of all members go through the host."""
        if stage.enter is None:
            return states
        states = jax.tree.map(self._place, stage.enter(self.to_host(states)), self.state_spec)
        self.state_spec = jax.eval_shape(lambda s: s, states)
        return states

    def _place(self, x: Any, spec: Any) -> jax.Array:
        if not jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key):
            return self.spread(x)
        return jax.random.wrap_key_data(
            self.spread(x), impl=str(jax.random.key_impl(jax.random.key(0)))
        )

    def restore(self, leaves: list[np.ndarray]) -> Any:
        """States from the leaves of a checkpoint. Raises `Refused` where they are those of
        something else."""
        specs, treedef = jax.tree.flatten(self.state_spec)
        if len(leaves) != len(specs) or any(
            x.ndim == 0 or len(x) != len(self.members) for x in leaves
        ):
            raise Refused(
                "the checkpoint holds the states of other members, or of another version of the algorithm; "
                "start again in another --out"
            )
        states = jax.tree.unflatten(
            treedef, [self._place(x, spec) for x, spec in zip(leaves, specs, strict=True)]
        )
        self.state_spec = jax.eval_shape(lambda s: s, states)
        return states


def _step_of(algorithm: Algorithm, stage: int) -> Callable:
    return algorithm.stages[stage].step if algorithm.stages else algorithm.step  # type: ignore[return-value]


def _all_finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else jnp.bool_(True)


def to_host(tree: Any) -> Any:
    """NumPy copies of all members' arrays, also of those that other processes hold; keys become
    their raw data."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
    if jax.process_count() > 1 and jax.tree.leaves(raw):
        mesh = jax.tree.leaves(raw)[0].sharding.mesh
        raw = jax.jit(_same, out_shardings=NamedSharding(mesh, ALL))(raw)
    return jax.device_get(raw)


def _same(tree: Any) -> Any:
    return tree


def _check_memory(executable: Any, program: Program) -> None:
    analysis = executable.memory_analysis()
    if analysis is None:
        return
    extra = (
        analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    )
    machine.check_fits(
        extra * (len(program.devices) if program.devices[0].platform == "cpu" else 1),
        program.devices[0],
        f"the compiled program for {len(program.members)} members",
    )
