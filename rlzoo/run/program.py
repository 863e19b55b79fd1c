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
from jax.interpreters import partial_eval
from jax.sharding import NamedSharding, PartitionSpec

from rlzoo import env as environments
from rlzoo import machine
from rlzoo.algorithm import Algorithm, Refused, Stage
from rlzoo.dataset import normalized_score
from rlzoo.metrics import combine, counted
from rlzoo.run import learnt
from rlzoo.run.members import Member
from rlzoo.run.options import Options
from rlzoo.run.trees import is_key, named, to_host

MEMBERS = PartitionSpec("members")
ALL = PartitionSpec()

EVALUATION = 0x5EED
"""Folded into a member's key, so that evaluation never touches training randomness."""


class Program:
    """All members with the same static fields, as compiled functions over stacked states.

    `members` are the real ones. Copies of the first fill the devices evenly; they are never
    recorded.
    """

    def __init__(
        self,
        make: Callable,
        members: list[Member],
        env: Any,
        dataset: Any,
        options: Options,
        index: int,
        validation: Any = None,
    ):
        self.make = make
        self.members = members
        self.env = env
        self.index = index
        self.episodes = options.eval_episodes
        self.name = _name(members)
        # --- devices ---
        if options.devices and options.devices > len(jax.devices()):
            here = len(jax.devices())
            raise Refused(f"--devices is {options.devices}, but there are {here} here")
        devices = jax.devices()[: options.devices or None]
        if jax.process_count() == 1:
            devices = devices[: len(members)]
        self.devices = devices
        automatic = (jax.sharding.AxisType.Auto,)
        self.mesh = jax.make_mesh(
            (len(devices),), ("members",), devices=devices, axis_types=automatic
        )
        self.sharded = NamedSharding(self.mesh, MEMBERS)
        # --- members ---
        padding = -len(members) % len(devices)
        everyone = members + members[:1] * padding
        leaves = [jax.tree.leaves(m.config) for m in everyone]
        self.treedef = jax.tree.structure(members[0].config)
        self.leaves = [
            self.put(np.array(column, np.float32)) for column in zip(*leaves, strict=True)
        ]
        self.seeds = self.put(np.array([m.seed for m in everyone], np.uint32))
        data = learnt.Data(dataset, validation)
        self.data = jax.device_put(data, NamedSharding(self.mesh, ALL))
        # --- the algorithm ---
        settings = {id(member.config): member.config for member in members}
        made = [make(config, env, dataset) for config in settings.values()]  # checks real floats
        self.algorithm: Algorithm = made[0]
        self.stages = _stages(self.algorithm, members[0].config)
        self.calls = sum(stage.calls for stage in self.stages)
        if self.calls >= 2**31:
            raise Refused(
                f"{self.calls:,} calls of step are too many: they are counted in 32 bits, so at "
                "most 2,147,483,647; a smaller total_steps, or more num_envs, has fewer"
            )
        self.steps = sum(stage.calls * stage.steps_per_call for stage in self.stages)
        """Steps that a member makes, if no stage ends early."""
        self.state_spec = jax.eval_shape(self._init, self.seeds, self.leaves, data)
        self.compiled: dict[str, float] = {}
        """Seconds that compiling each function took."""
        self._executables: dict[tuple, Any] = {}
        self._metrics: dict[int, Any] = {}

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
        whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.state_spec))
        return whole // len(self.devices)

    # -- functions of stacked members --

    def _each(self, function: Callable, *batched: Any, leaves: list, data: Any) -> Any:
        """Map `function(algorithm, *one member's slices)` over the members on this device."""

        def one(leaves: list, *args: Any) -> Any:
            config = jax.tree.unflatten(self.treedef, leaves)
            return function(self.make(config, self.env, data.train), *args)

        if jax.tree.leaves((batched, leaves))[0].shape[0] == 1:  # no batch axis inside the program
            alone = one(*jax.tree.map(lambda x: x[0], (leaves, *batched)))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)
        return jax.vmap(one)(leaves, *batched)

    def _init(self, seeds: Any, leaves: Any, data: Any) -> Any:
        def init(alg: Algorithm, seed: Any) -> Any:
            return alg.init(jax.random.key(seed))

        return self._each(init, seeds, leaves=leaves, data=data)

    def _step(self, stage: int, states: Any, leaves: Any, data: Any, t: Any) -> tuple:
        """One call for every member: states, and metrics with their counts."""

        def run(alg: Algorithm, state: Any) -> tuple:
            step = alg.stages[stage].step if alg.stages else alg.step
            state, metrics = step(state, t)  # type: ignore[misc]
            return state, {name: counted(metric) for name, metric in metrics.items()}

        return self._each(run, states, leaves=leaves, data=data)

    def _chunk(
        self,
        stage: int,
        states: Any,
        totals: Any,
        frozen: Any,
        leaves: Any,
        data: Any,
        start: Any,
        stop: Any,
    ) -> Any:
        """Calls `start` to `stop`: states, totals, who has ended, and whose policy is finite."""
        each = functools.partial(self._each, leaves=leaves, data=data)
        until = self.stages[stage].until

        def keep(old: Any, new: Any) -> Any:
            """The old values of members that are frozen, the new ones of all others."""
            if until is None:
                return new
            return jax.tree.map(lambda a, b: environments.where_each(frozen, a, b), old, new)

        def body(t: Any, carry: Any) -> Any:
            states, totals = carry
            after, metrics = self._step(stage, states, leaves, data, t)
            added = {name: combine(totals[name], metric) for name, metric in metrics.items()}
            return keep(states, after), keep(totals, added)

        def ended(alg: Algorithm, state: Any) -> Any:
            return jnp.asarray(alg.stages[stage].until(state), bool)  # type: ignore[misc]

        def finite(alg: Algorithm, state: Any) -> Any:
            return _all_finite(alg.policy(state))

        states, totals = jax.lax.fori_loop(start, stop, body, (states, totals))
        if until is not None:  # asked at the same calls, whatever the length of chunks
            asked = stop % self.stages[stage].check_every == 0
            frozen = frozen | (asked & each(ended, states))
        return states, totals, frozen, each(finite, states)

    def _evaluate(self, states: Any, seeds: Any, leaves: Any, data: Any, step: Any) -> Any:
        """Metrics of the policies as they are: of rollouts, and what the algorithm adds."""
        each = functools.partial(self._each, leaves=leaves, data=data)

        def key_of(seed: Any) -> Any:
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), EVALUATION), step)

        def add(alg: Algorithm, state: Any, key: Any) -> Any:
            metrics = alg.evaluate(state, jax.random.fold_in(key, 1))  # type: ignore[misc]
            return {name: counted(metric) for name, metric in metrics.items()}

        def judge(alg: Algorithm, state: Any, key: Any) -> Any:
            return learnt.action_error(alg, state, data.validation, jax.random.fold_in(key, 2))

        keys = jax.vmap(key_of)(seeds)
        metrics: dict[str, Any] = {}
        if self.rolls:
            metrics |= self._rollouts(states, keys, each)
        if data.validation is not None:
            metrics[learnt.metric(data.validation)] = each(judge, states, keys)
        if self.algorithm.evaluate:
            added = each(add, states, keys)
            metrics |= {name: metric.value / metric.count for name, metric in added.items()}
        return metrics

    def _rollouts(self, states: Any, keys: Any, each: Callable) -> dict[str, Any]:
        """Mean return and length of `self.episodes` episodes of each member."""

        def flat(tree: Any) -> Any:
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

        def fold(tree: Any) -> Any:
            shape = (len(keys), self.episodes)
            return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree)

        def policy_of(alg: Algorithm, state: Any) -> Any:
            return alg.policy(state)

        def play(alg: Algorithm, policy: Any) -> tuple[Callable, Any]:
            return environments.acting(alg.act, alg.memory, policy, self.episodes)

        def memory_of(alg: Algorithm, policy: Any) -> Any:
            return play(alg, policy)[1]

        def act_of(alg: Algorithm, policy: Any, *seen: Any) -> Any:
            return play(alg, policy)[0](*seen)

        def act(*seen: Any) -> Any:
            return flat(each(act_of, policies, *fold(seen)))

        policies = each(policy_of, states)
        memory = flat(each(memory_of, policies))
        episode_keys = jax.vmap(lambda key: jax.random.split(key, self.episodes))(keys)
        returns, lengths = environments.episodes(self.env, act, memory, flat(episode_keys))
        metrics = {"eval/return": fold(returns).mean(1), "eval/length": fold(lengths).mean(1)}
        sets = self.data.by_name().values()
        scored = next((x for x in sets if x.reference), None)
        if scored is not None:
            metrics["eval/score"] = normalized_score(scored, metrics["eval/return"])
        return metrics

    @property
    def rolls(self) -> bool:
        """Whether evaluation plays the policy in the environment."""
        return self.algorithm.rollouts and self.env.simulated

    @property
    def score(self) -> learnt.Score:
        """What the members are judged by: held-out actions where the algorithm wants returns and
        there are none."""
        held_out = self.data.validation
        if held_out is None or self.rolls or self.algorithm.score not in learnt.OF_ROLLOUTS:
            return learnt.Score(self.algorithm.score, self.algorithm.lower_is_better)
        return learnt.Score(learnt.metric(held_out), True)

    # -- what is read --

    def reads_data(self) -> bool:
        """Whether training or evaluation reads any array of the data set, not its shapes alone."""
        if any(stage.enter or stage.until for stage in self.stages):
            return True  # the host may read it

        def evaluate(states: Any, leaves: Any, data: Any) -> Any:
            def added(alg: Algorithm, state: Any) -> Any:
                return alg.evaluate(state, jax.random.key(0)) if alg.evaluate else ()

            return self._each(added, states, leaves=leaves, data=data)

        def step(stage: int, states: Any, leaves: Any, data: Any) -> Any:
            return self._step(stage, states, leaves, data, jnp.int32(0))

        steps: list[Callable] = [
            functools.partial(step, stage) for stage in range(len(self.stages))
        ]
        return self._reads(self._init, self.seeds) or any(
            self._reads(function, self.state_spec) for function in [*steps, evaluate]
        )

    def _reads(self, function: Callable, state: Any) -> bool:
        """Whether `function(state, leaves, data)` reads an array of the data set."""
        program = jax.make_jaxpr(function)(state, self.leaves, self.data).jaxpr
        _, read = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
        return any(read[-len(jax.tree.leaves(self.data)) :])

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
            executable = self._jitted(function, specs, donate).lower(*args)
            executable = executable.compile(
                compiler_options=machine.compiler_options(self.devices[0].platform)
            )
            seconds = time.perf_counter() - began
            self.compiled[name] = self.compiled.get(name, 0.0) + seconds
            self._check_memory(executable)
            self._executables[key] = executable
            machine.wait_for_others(f"program {self.index}, {name}, {len(self._executables)}")
        return self._executables[key](*args)

    def _jitted(self, function: Callable, specs: tuple, donate: tuple = ()) -> Any:
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=MEMBERS, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate, out_shardings=self.sharded)

    def _check_memory(self, executable: Any) -> None:
        analysis = executable.memory_analysis()
        if analysis is None:
            return
        extra = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        extra -= analysis.alias_size_in_bytes
        shared = len(self.devices) if self.devices[0].platform == "cpu" else 1
        what = f"the compiled program for {len(self.members)} members"
        machine.check_fits(extra * shared, self.devices[0], what)

    def init(self) -> Any:
        """The states of all members at the start."""
        specs = (MEMBERS, MEMBERS, ALL)
        return self._compiled("init", self._init, (self.seeds, self.leaves, self.data), specs)

    def chunk(
        self, stage: int, states: Any, totals: Any, frozen: Any, start: int, stop: int
    ) -> tuple[Any, Any, Any, Any]:
        """Calls `start` to `stop` of a stage.

        Returns states, metric totals, who has ended the stage, and whether each policy is finite.
        """
        given = (self.leaves, self.data, np.int32(start), np.int32(stop))
        return self._compiled(
            f"chunk {stage}",
            functools.partial(self._chunk, stage),
            (states, totals, frozen, *given),
            (MEMBERS, MEMBERS, MEMBERS, MEMBERS, ALL, ALL, ALL),
            donate=(0, 1),
        )

    def export(self, stage: int, platforms: tuple[str, ...]) -> Any:
        """The training program of a stage, lowered for `platforms` that need not be here."""
        args = (
            self.state_spec,
            self.totals(stage),
            self.nobody(),
            self.leaves,
            self.data,
            np.int32(0),
            np.int32(1),
        )
        chunk = jax.jit(functools.partial(self._chunk, stage))
        return jax.export.export(chunk, platforms=platforms)(*args)

    def evaluate(self, states: Any, step: int) -> dict[str, np.ndarray]:
        """Metrics of an evaluation after `step` steps, [members] each."""
        args = (states, self.seeds, self.leaves, self.data, np.uint32(step % 2**32))
        specs = (MEMBERS, MEMBERS, MEMBERS, ALL, ALL)
        return self.to_host(self._compiled("evaluate", self._evaluate, args, specs))

    def totals(self, stage: int, saved: dict | None = None) -> dict[str, Any]:
        """The metrics of a stage with nothing counted yet, or as `saved` in a checkpoint."""
        if stage not in self._metrics:
            args = (self.state_spec, self.leaves, self.data, jnp.int32(0))
            self._metrics[stage] = jax.eval_shape(functools.partial(self._step, stage), *args)[1]
        spec = self._metrics[stage]
        if saved:
            return {name: type(spec[name])(*map(self.spread, saved[name])) for name in spec}
        return jax.tree.map(lambda x: self.put(np.zeros(x.shape, x.dtype)), spec)

    def nobody(self) -> jax.Array:
        """False for every member."""
        return self.put(np.zeros(len(self.seeds), bool))

    def enter(self, stage: Stage, states: Any) -> Any:
        """The hand-over before a stage: the states of all members go through the host."""
        if stage.enter is None:
            return states
        entered = stage.enter(self.to_host(states), [member.config for member in self.members])
        states = jax.tree.map(self._place, entered, self.state_spec)
        self._changed(states)
        return states

    def _changed(self, states: Any) -> None:
        """Take up the sizes of leaves that a stage has changed."""
        self.state_spec = jax.eval_shape(lambda s: s, states)
        self._metrics.clear()

    def _place(self, x: Any, spec: Any) -> jax.Array:
        if not is_key(spec):
            return self.spread(np.asarray(x, spec.dtype))
        impl = str(jax.random.key_impl(jax.random.key(0)))
        return jax.random.wrap_key_data(self.spread(x), impl=impl)

    def restore(self, leaves: dict[str, np.ndarray] | list[np.ndarray]) -> Any:
        """States from the leaves of a checkpoint, by name (in old ones by order).

        Raises `Refused` where they are those of something else.
        """
        specs = named(self.state_spec)
        if isinstance(leaves, list):
            if len(leaves) != len(specs):
                raise Refused(
                    f"the checkpoint holds {len(leaves)} arrays, but the training state has "
                    f"{len(specs)}: it is of another version of the algorithm; start again in "
                    "another --out"
                )
            leaves = dict(zip(specs, leaves, strict=True))
        self._check_leaves(leaves, specs)
        placed = [self._place(leaves[name], spec) for name, spec in specs.items()]
        states = jax.tree.unflatten(jax.tree.structure(self.state_spec), placed)
        self._changed(states)
        return states

    def _check_leaves(self, leaves: dict[str, np.ndarray], specs: dict[str, Any]) -> None:
        """Raise `Refused` where leaves differ from the training state in name, size or type."""
        counts = {len(x) if x.ndim else 0 for x in leaves.values()}
        if counts - {len(self.members)}:
            raise Refused(
                f"the checkpoint holds the states of {max(counts)} members, not of "
                f"{len(self.members)}; start again in another --out"
            )
        other = [f"no {name}" for name in specs if name not in leaves]
        other += [f"{name}, which is unknown" for name in leaves if name not in specs]
        for name in specs:
            if name not in leaves:
                continue
            x, spec = leaves[name], specs[name]
            mine = [len(self.members), *spec.shape[1:]]
            # Stages may change sizes, but neither ranks nor types.
            free = any(stage.enter for stage in self.stages) and x.ndim == len(mine)
            fits = (free or list(x.shape) == mine) and x.dtype == spec.dtype
            if not fits and not is_key(spec):
                other.append(f"{name} {x.dtype}{list(x.shape)} where {spec.dtype}{mine} is due")
        if other:
            raise Refused(
                f"the checkpoint holds {'; '.join(other[:4])}: it is of another version of the "
                "algorithm; start again in another --out"
            )


def check_precision() -> None:
    """Raise `Refused` where jax computes in 64 bits."""
    if jax.config.values["jax_enable_x64"]:
        raise Refused(
            "jax is set to 64 bits, but everything here is of 32: unset JAX_ENABLE_X64, or call "
            "jax.config.update('jax_enable_x64', False)"
        )


def _name(members: list[Member]) -> str:
    """The swept fields that all members share."""
    shared = [
        f"{key}={value}"
        for key, value in members[0].swept.items()
        if all(m.swept[key] == value for m in members)
    ]
    return " ".join(shared)


def _stages(algorithm: Algorithm, config: Any) -> list[Stage]:
    """The stages of a pipeline, or training as a single one."""
    if algorithm.stages:
        for stage in algorithm.stages:
            for field in ("calls", "check_every", "steps_per_call"):
                if getattr(stage, field) < 1:
                    value = getattr(stage, field)
                    raise Refused(
                        f"stage {stage.name!r}: {field} is {value}; it must be at least 1"
                    )
        return list(algorithm.stages)
    if algorithm.step is None:
        raise TypeError("an Algorithm needs either a step or stages")
    if not hasattr(config, "total_steps"):
        raise TypeError(
            f"{type(config).__name__} needs a static field 'total_steps', since its algorithm has "
            "no stages that say how many calls they make"
        )
    if config.total_steps < 1:
        raise Refused(f"--total-steps is {config.total_steps}; it must be at least 1")
    return [
        Stage(
            "train",
            algorithm.step,
            calls=-(-config.total_steps // algorithm.steps_per_call),
            steps_per_call=algorithm.steps_per_call,
            updates_per_call=algorithm.updates_per_call,
            evaluate=True,
        )
    ]


def _all_finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else jnp.bool_(True)
