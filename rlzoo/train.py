"""The one training loop: members, devices, compiled chunks, stages, evaluation, checkpoints,
resume.

A *member* is a seed together with a setting of the float hyper-parameters. All members of one
compiled *program* train together: `jax.shard_map` spreads them over the devices, `vmap` over the
rest. A swept static field gives one program per value, run one after the other under the same
record. `step` runs inside a `fori_loop` with traced bounds, so one compiled program serves chunks
of any length, and the length does not change the numbers.
"""

import contextlib
import dataclasses
import functools
import itertools
import operator
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlzoo import env as environments
from rlzoo import machine
from rlzoo.algorithm import Algorithm, Refused, Stage, is_static
from rlzoo.record import Options, Record, Saved

MEMBERS, ALL = PartitionSpec("members"), PartitionSpec()

EVALUATION = (
    0x5EED  # folded into a member's key, so that evaluation never touches training randomness
)
DISPATCH_SECONDS = 0.5  # how long one compiled call should run: Ctrl-C and the display wait for it
CHECKPOINT_SECONDS = 60.0
LOG_POINTS = 50
EVAL_POINTS = 20


class Run(NamedTuple):
    """What `train` returns."""

    dir: Path
    summary: dict
    """as in summary.json"""


def train(
    make: Callable,
    config: Any,
    dataset: Any = None,
    *,
    sweep: dict[str, list] | None = None,
    **options: Any,
) -> Run:
    """Train every member and keep the record in a run directory.

    Args:
      make: `make(config, env, dataset) -> Algorithm`.
      config: a `Config` (or the class, for its defaults).
      dataset: a data set or a file that holds one, handed to `make` as a traced argument; None for
        algorithms that learn online.
      sweep: field -> values. Values of float fields become members of one program, values of static
        fields programs of their own; several fields give their product.
      options: the fields of `rlzoo.record.Options`: seeds, seed, out, resume, eval_every, ...

    Raises `Refused` (a ValueError) with a message for the user where an option, the configuration
    or the output folder makes no sense. Ctrl-C and SIGTERM save, and return a run whose status is
    `interrupted`.
    """
    config = config() if isinstance(config, type) else config
    chosen = Options(**options, dataset=str(dataset) if isinstance(dataset, str | Path) else None)
    chosen.check()
    dataset = _dataset(dataset)
    settings = _settings(config, sweep or {})
    if chosen.cache:
        _keep_compiled()
    env = {}
    for setting in settings:
        if setting.config.env not in env:
            env[setting.config.env] = environments.make(setting.config.env)
    if chosen.dataset:
        from rlzoo.dataset import check

        for made in env.values():
            check(dataset, made)
    programs = [
        Program(make, members, env[members[0].config.env], dataset, chosen, index)
        for index, members in enumerate(_programs(settings, chosen))
    ]
    for program in programs:
        machine.check_fits(
            program.state_bytes(),
            program.devices[0],
            f"the training states of {len(program.members)} members (replay included)",
        )
    record = Record.open(make, config, sweep or {}, chosen, programs)
    with record, _interruptible() as stop:
        for program in programs:
            _run(program, record, chosen, stop)
            if stop.agreed:
                break
    return Run(record.dir, record.summary)


# ---- members -------------------------------------------------------------------------------------


class Setting(NamedTuple):
    config: Any
    swept: dict


class Member(NamedTuple):
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nothing here needs
    seed: int
    config: Any
    swept: dict


def _settings(config: Any, sweep: dict[str, list]) -> list[Setting]:
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, values in sweep.items():
        if name not in fields:
            raise Refused.unknown("--sweep field", name, fields)
        if not values:
            raise Refused(f"--sweep {name}= has no values")
        kind = type(getattr(config, name))
        for value in values:
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise Refused(
                    f"--sweep {name}: {value!r} is a {type(value).__name__}, but {name} takes "
                    f"{kind.__name__} (its default is {getattr(config, name)!r})"
                )
    return [
        Setting(
            dataclasses.replace(config, **dict(zip(sweep, values, strict=True))),
            dict(zip(sweep, values, strict=True)),
        )
        for values in itertools.product(*sweep.values())
    ]


def _programs(settings: list[Setting], options: Options) -> list[list[Member]]:
    """Members that share all static fields form one program."""
    groups: dict[Any, list[Member]] = {}
    numbers = itertools.count()
    for setting in settings:
        shape = tuple(
            getattr(setting.config, f.name)
            for f in dataclasses.fields(setting.config)
            if is_static(f)
        )
        for seed in range(options.seed, options.seed + options.seeds):
            groups.setdefault(shape, []).append(
                Member(next(numbers), seed, setting.config, setting.swept)
            )
    return list(groups.values())


# ---- a program -----------------------------------------------------------------------------------


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


# ---- running -------------------------------------------------------------------------------------


class Clock(NamedTuple):
    """Seconds spent, over all runs of a program that was resumed."""

    train: float = 0.0
    eval: float = 0.0
    compile: float = 0.0


def _run(program: Program, record: Record, options: Options, stop: types.SimpleNamespace) -> None:
    """Train one program to its end, or until asked to stop."""
    in_calls = lambda steps: max(1, round(steps / program.algorithm.steps_per_call))
    log_every = in_calls(program.steps / LOG_POINTS)
    eval_every = in_calls(
        program.steps / EVAL_POINTS
        if options.eval_every is None
        else options.eval_every or program.steps
    )
    save_every = in_calls(options.checkpoint_every) if options.checkpoint_every else program.calls
    saved = record.restore(program.index)
    if saved:
        at, clock, diverged, totals = saved.at, Clock(*saved.clock), saved.diverged, saved.totals
        totals = jax.tree.map(program.spread, totals)
        states = program.restore(saved.leaves)
    else:
        at, clock, diverged, totals = 0, Clock(), np.zeros(len(program.members), bool), None
        states = program.init()
    earlier, kept, saved_when = clock.compile, saved.at if saved else None, time.monotonic()

    def log(totals: Any, finite: Any, evaluate: bool) -> None:
        """Write one row a member, and note which members have diverged."""
        nonlocal clock, diverged
        sums = program.to_host(totals)
        row = {
            name: np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
            for name, (total, count) in sums.items()
        }
        blank = {name: count == 0 for name, (_, count) in sums.items()}
        if evaluate:
            began, before = time.perf_counter(), program.compile_seconds
            row |= program.evaluate(states, at * program.algorithm.steps_per_call)
            seconds = time.perf_counter() - began - (program.compile_seconds - before)
            clock = clock._replace(
                eval=clock.eval + seconds, compile=earlier + program.compile_seconds
            )
        bad = [~np.isfinite(total) for name, (total, _) in sums.items() if name.startswith("loss/")]
        diverged = diverged | np.any([*bad, ~program.to_host(finite)], axis=0)
        record.rows(program, at, row, blank, diverged, clock)

    def save() -> None:
        nonlocal kept, saved_when
        leaves = program.to_host(jax.tree.leaves(states))
        record.save(program, Saved(at, leaves, program.to_host(totals), diverged, tuple(clock)))
        kept, saved_when = at, time.monotonic()

    record.start(program, at, clock)
    if at == 0 and options.eval_every != 0:
        log({}, program.put(np.ones(len(program.seeds), bool)), evaluate=True)
    first, burst = 0, 1
    for number, stage in enumerate(program.stages):
        last = first + stage.calls
        if at == first:
            states, totals = program.enter(stage, states), None
        if first <= at < last and totals is None:
            totals = program.totals(number)
        while at < last and not stop.agreed:
            until = min(
                at + burst,
                last,
                *(at - at % every + every for every in (log_every, eval_every, save_every)),
            )
            began = time.perf_counter()
            before = program.compile_seconds
            states, totals, finite = program.chunk(
                number, states, totals, at - first, until - first
            )
            jax.block_until_ready(finite)
            compiling = program.compile_seconds - before
            seconds = time.perf_counter() - began - compiling
            clock = clock._replace(
                train=clock.train + seconds, compile=earlier + program.compile_seconds
            )
            burst = int(
                np.clip(DISPATCH_SECONDS * (until - at) / max(seconds, 1e-6), 1, 16 * burst)
            )
            due = (
                time.monotonic() - saved_when > CHECKPOINT_SECONDS and not options.checkpoint_every
            )
            burst, due, stop.agreed = _agree(burst, due, stop.asked)
            at = until
            evaluate = at % eval_every == 0 or at == program.calls
            if evaluate or at % log_every == 0 or at == last:
                log(totals, finite, evaluate)
                totals = program.totals(number)
            record.progress(program, stage, at, clock)
            if (due or at % save_every == 0) and at < program.calls:
                save()
        if stop.agreed:
            break
        first = last
    if kept != at:
        save()


def _agree(*values: Any) -> tuple:
    """Process 0's view, so that all processes of a run do the same."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return tuple(
        np.asarray(multihost_utils.broadcast_one_to_all(np.array(values, np.int32))).tolist()
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[types.SimpleNamespace]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once."""
    stop = types.SimpleNamespace(
        asked=False, agreed=False
    )  # agreed: by all processes, at the same call

    def ask(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        previous = {
            number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread, where Python does not deliver signals anyway
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _keep_compiled() -> None:
    """Keep compiled programs on disk: the next run with the same shapes starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(machine.cache_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# ---- loading -------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A member of a finished or interrupted run."""

    act: Callable
    """jitted `act(policy, obs, key) -> action` (with `memory`: see `rlzoo.Algorithm.act`)"""
    policy: Any


class Trained(NamedTuple):
    """A member of a run, with all that belongs to it."""

    env: Any
    algorithm: Algorithm
    state: Any
    """its training state"""

    @property
    def policy(self) -> Any:
        return self.algorithm.policy(self.state)


def load(run: str | Path, member: int = 0, full: bool = False, dataset: Any = None) -> Any:
    """The trained policy of one member of a run: `act, policy = rlzoo.load(run_dir)`.

    Args:
      run: the run directory.
      member: which member, as numbered in metrics.csv and summary.json.
      full: return `(act, state)` with the whole training state instead of the policy.
      dataset: what the run learnt from, where it was not a file given by --dataset.

    Raises `Refused` where the directory holds no readable run, or no such member.
    """
    found = trained(run, member, dataset)
    return Loaded(jax.jit(found.algorithm.act), found.state if full else found.policy)


def trained(run: str | Path, member: int = 0, dataset: Any = None) -> Trained:
    """One member of a run; arguments and errors as of `load`."""
    record = Record.read(run)
    module = record.module()
    config = record.config(module.Config)
    settings = _settings(config, record.sweep)
    options = dataclasses.replace(record.options, devices=1)
    dataset = _dataset(options.dataset if dataset is None else dataset)
    for index, members in enumerate(_programs(settings, options)):
        for place, found in enumerate(members):
            if found.index == member:
                program = Program(
                    module.make,
                    members,
                    environments.make(found.config.env),
                    dataset,
                    options,
                    index,
                )
                saved = record.restore(index)
                if saved is None:
                    raise Refused(f"{record.dir} has no checkpoint for member {member}")
                state = jax.tree.map(operator.itemgetter(place), program.restore(saved.leaves))
                return Trained(program.env, module.make(found.config, program.env, dataset), state)
    raise Refused(
        f"{record.dir} has no member {member}; it has {len(settings) * options.seeds}, counted from 0"
    )


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their places in it: `params/Dense_0/kernel`."""
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _dataset(given: Any) -> Any:
    """A data set, read where it is a file's name."""
    if not isinstance(given, str | Path):
        return given
    from rlzoo import dataset

    return dataset.load(given)


class _Callable(types.ModuleType):
    """Lets `rlzoo.train(...)` be the function although `rlzoo.train` is also this module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Run:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
