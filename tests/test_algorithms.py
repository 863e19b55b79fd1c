"""What every file in algorithms/ must do, on a tiny environment or data set.

Nothing here knows a file by its name: its docstring's `Kind:` and its Config say what it needs.
"""

import ast
import dataclasses
import functools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (registers the probe environments)
import pytest
import tiny_data
from together import quick_jit

import rlzoo
from rlzoo import machine
from rlzoo.cli import flags
from rlzoo.run.members import Member
from rlzoo.run.options import Options
from rlzoo.run.program import Program
from rlzoo.run.trees import is_key, named
from rlzoo.suites.files import load

style = load(Path(__file__).parent.parent / "scripts" / "check_style.py")

TINY = {
    "num_envs": 2,
    "num_steps": 8,
    "num_epochs": 1,
    "num_minibatches": 2,
    "updates_per_step": 1,
    "buffer_size": 40,
    "batch_size": 4,
    "learning_starts": 6,
    "target_every": 4,
    "num_bins": 5,
    "v_min": -2.0,
    "v_max": 2.0,
    # imitation
    "discriminator_steps": 3,
    # learnt models
    "model_hidden": (4, 4),
    "model_every": 4,
    "model_epochs": 2,
    "rollouts_per_step": 2,
    "rollout_every": 2,
    "epoch_length": 8,
    # searches
    "warmup_steps": 4,
    "scramble": 3,
    "num_blocks": 1,
    "eval_moves": 2,
    # pipelines of models, diffusion and rollouts
    "members": 2,
    "elites": 1,
    "epochs_per_call": 2,
    "widths": (4, 8),
    "embedding": 4,
    "diffusion_steps": 2,
    "behavior_updates": 4,
    "rollout_batch": 3,
    "max_batches": 2,
    "needed": 2,
    "accept": "all",
    "policy_updates": 4,
    # sequence models
    "context": 2,
    "layers": 1,
    "width": 4,
}
"""Values that make a program tiny, by the names of fields."""
LABELS = ["Paper", "Kind", "Run", "Result", "Metrics", "Deviations"]
KINDS = ["online", "offline", "imitation", "model-based", "search", "tabular", "games"]
ACTIONS = ["discrete", "continuous", "discrete and continuous"]
SECTIONS = ["networks", "state", "losses", "algorithm"]
TABLES = ["state", "planning", "algorithm"]
"""The sections of a file that keeps tables, where there is no network to train."""
ENVS = {"search": "lights-out2", "tabular": "river-swim", "games": "matrix-game2"}
"""For kinds that take no probe"""
VARIANTS = {
    "make",
    # what an algorithm is about
    "td_loss",
    "td_target",
    "critic_loss",
    "actor_loss",
    "value_loss",
    # Q* holds edges in its open list, A* nodes
    "network",
    "solver",
    "with_values",
    "parts",
}
"""Top-level functions that have one name in several files, and another text on purpose."""

ALL = flags.names()


# ---- the file, read ------------------------------------------------------------------------------


class Kind(NamedTuple):
    how: str
    learns: str
    actions: str


def kind_of(name):
    line = re.search(r"^Kind: (.+)$", flags.read(flags.find(name)).doc, re.M)
    assert line, f"{name}.py does not say its Kind"
    return Kind(*[part.strip() for part in line[1].split(",")])


def learns_a_model(name):
    return "model-based" in kind_of(name)[:2]


def slow_if(slow, name):
    return pytest.param(name, marks=[pytest.mark.slow] * slow)


TRACED = [slow_if(learns_a_model(name), name) for name in ALL]
"""A program with a learned model takes long even to trace."""
FIRST = {kind_of(name).how: name for name in reversed(ALL) if not learns_a_model(name)}
"""kind -> the file that stands for it in the quick suite"""
COMPILED = [slow_if(name not in FIRST.values(), name) for name in ALL]
"""Compiling takes most of the time: the slow suite covers every file."""


@pytest.mark.parametrize("name", ALL)
def test_docstring(name):
    doc = ast.get_docstring(ast.parse(flags.find(name).read_text()))
    lines = doc.splitlines()
    assert re.match(r"[A-Za-z][\w+* /().-]*: \S", lines[0]), "it starts with 'NAME: what it is'"
    labels = re.findall(r"^([A-Z][a-z]+):", "\n".join(lines[1:]), re.M)
    assert labels == LABELS
    assert len(lines) <= 25
    assert f"python algorithms/{name}.py" in doc
    kind = kind_of(name)
    assert kind.how in KINDS and kind.actions in ACTIONS


@pytest.mark.parametrize("name", ALL)
def test_order_and_size(name):
    path = flags.find(name)
    text, tree = path.read_text(), ast.parse(path.read_text())
    size = style.measure(text)
    assert size.lines <= 400
    assert size.longest <= 100
    assert all(field.doc for field in flags.read(path).fields), "every field has a docstring"
    how = kind_of(name).how
    search = how == "search"
    sections = TABLES if how in ("tabular", "games") else SECTIONS
    dividers = re.findall(r"^# -{2,} (.+?) -+$", text, re.M)
    assert dividers == [*sections, *["search"] * search]
    places = [text.index("class Config")]
    places += [text.index(f"# ---- {section} ") for section in sections]
    places += [text.index("\ndef make(")]
    places += [text.index(f"# ---- {section} ") for section in dividers[len(sections) :]]
    places += [text.index('\nif __name__ == "__main__":')]
    assert places == sorted(places)
    ending = f"rlzoo.main(make, Config{', solver' * search})"
    assert ast.unparse(tree.body[-1].body[0]) == ending


@pytest.mark.parametrize("name", ALL)
def test_imports_no_other_algorithm_and_no_wing(name):
    tree = ast.parse(flags.find(name).read_text())
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    wings = [f"rlzoo.{wing}" for wing in ("algorithms", "suites", "run", "report", "tools", "cli")]
    for module in modules:
        assert not module.startswith(("algorithms", *wings)) and module not in ALL, module


def test_same_name_same_text():
    """A function that several files have is the same in all of them."""
    texts = defaultdict(dict)
    for name in ALL:
        for node in ast.parse(flags.find(name).read_text()).body:
            if isinstance(node, ast.FunctionDef):
                texts[node.name][name] = ast.unparse(node)
    unlike = {
        function: sorted(files)
        for function, files in texts.items()
        if len(set(files.values())) > 1 and function not in VARIANTS
    }
    assert not unlike
    assert {*VARIANTS} <= {*texts}, "a variant that there is not"


# ---- the algorithm, run --------------------------------------------------------------------------


class Tiny(NamedTuple):
    module: Any
    config: Any
    env: Any
    dataset: Any
    kind: Kind

    def make(self, config=None):
        return self.module.make(config or self.config, self.env, self.dataset)

    @property
    def steps(self):
        """(step, enter, calls) of each stage; without stages, of training."""
        algorithm = self.make()
        if not algorithm.stages:
            return [(lambda alg: alg.step, None, 6)]
        return [
            (lambda alg, i=i: alg.stages[i].step, stage.enter, min(stage.calls, 3))
            for i, stage in enumerate(algorithm.stages)
        ]


def tiny(name):
    module, kind = load(flags.find(name)), kind_of(name)
    continuous = kind.actions == "continuous"
    env = "probe-action-continuous" if continuous else "probe-action"
    env = ENVS.get(kind.how, env)
    fields = {field.name for field in dataclasses.fields(module.Config)}
    values = {field: value for field, value in TINY.items() if field in fields}
    if "hidden" in fields:
        values["hidden"] = (4,) * len(module.Config.hidden)
    config = module.Config(**values | {"env": env})
    dataset = None
    if kind.how in ("offline", "imitation"):
        dataset = tiny_data.continuous() if continuous else tiny_data.discrete()
        if kind.how == "imitation":
            dataset = {"expert": tiny_data.good(dataset), "mixed": dataset}
    found = Tiny(module, config, rlzoo.make(env), dataset, kind)
    if hasattr(config, "total_steps"):
        steps = 6 * found.make().steps_per_call
        found = found._replace(config=dataclasses.replace(config, total_steps=steps))
    return found


def rates(config):
    """The field that tells members apart."""
    return [f.name for f in dataclasses.fields(config) if "learning_rate" in f.name][:1]


@pytest.fixture(scope="module")
def ran():
    """What is compiled once for each file."""
    return {}


def members_of(name, ran):
    """Three members after a few calls of every stage; and once more, as run again.

    The second has another seed than the first, the third another learning rate.
    """
    if name in ran:
        return ran[name]
    found = tiny(name)
    seeds, given = jnp.array([0, 1, 0]), jnp.array([1e-2, 1e-2, 1e-4])

    def of(rate):
        values = {field: rate for field in rates(found.config)}
        return found.make(dataclasses.replace(found.config, **values))

    def each(function, states):
        return jax.vmap(lambda state, rate: function(of(rate), state))(states, given)

    def start():
        return jax.vmap(lambda seed, rate: of(rate).init(jax.random.key(seed)))(seeds, given)

    def run_stage(step_of, calls, states):
        def body(states, t):
            return each(lambda alg, state: step_of(alg)(state, t), states)

        return jax.lax.scan(body, states, jnp.arange(calls))  # refuses changed shapes

    def act(states):
        shape = (64, *found.env.obs_shape)
        obs = jnp.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(found.env.obs_dtype)
        key = jax.random.key(0)
        return each(lambda alg, state: alg.act(alg.policy(state), obs, key), states)

    @quick_jit
    def policies(states):
        return each(lambda alg, state: alg.policy(state), states)

    start, act = quick_jit(start), quick_jit(act)
    stages = []
    for step_of, enter, calls in found.steps:
        stages.append((quick_jit(functools.partial(run_stage, step_of, calls)), enter))
    remembers = found.make().memory is not None

    def run():
        states = start()
        first, metrics = policies(states), {}
        for stage, enter in stages:
            if enter:
                states = enter(jax.device_get(states), [found.config] * 3)
            states, more = stage(states)
            metrics |= more
        return raw((first, states, metrics, None if remembers else act(states)))

    ran[name] = run(), run(), found
    return ran[name]


def raw(tree):
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def differ(tree, i, j):
    leaves = [x for x in jax.tree.leaves(tree) if x.dtype.kind == "f" and x.ndim]
    return any(not np.array_equal(x[i], x[j]) for x in leaves)


@pytest.mark.parametrize("name", TRACED)
def test_make_is_cheap_and_pure(name):
    found = tiny(name)
    alg = found.make()
    state = jax.eval_shape(alg.init, jax.random.key(0))
    for step_of, enter, _ in found.steps:
        if enter is not None:
            continue  # its state comes from the host
        texts = []
        for _ in range(2):
            jaxpr = jax.make_jaxpr(step_of(found.make()))(state, jnp.int32(0))
            texts.append(re.sub(r"0x[0-9a-f]+", "", str(jaxpr)))
        assert texts[0] == texts[1]
        after, metrics = jax.eval_shape(step_of(alg), state, jnp.int32(0))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.leaves(after) == jax.tree.leaves(state)  # shapes, dtypes, weak types
        for metric, value in metrics.items():
            parts = value if isinstance(value, tuple) else (value,)
            assert len(parts) in (1, 2) and all(jnp.shape(x) == () for x in parts), metric
            assert re.match(r"(loss|train|eval)/\w+$", metric), f"{metric} is no metric's name"
    assert alg.steps_per_call > 0
    if hasattr(found.config, "num_envs") and not alg.stages:
        length = getattr(found.config, "num_steps", 1)
        assert alg.steps_per_call == found.config.num_envs * length


@pytest.mark.parametrize("name", COMPILED)
def test_members(name, ran):
    once, again, found = members_of(name, ran)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        assert a.tobytes() == b.tobytes()  # the same bits twice
    first, last, metrics, actions = once
    floats = [x for x in jax.tree.leaves((last, metrics)) if x.dtype.kind == "f"]
    assert all(np.isfinite(x).all() for x in floats)
    assert differ(first, 0, 1), "another seed, other parameters"
    assert not differ(first, 0, 2), "the same seed, the same parameters"
    if rates(found.config):
        assert differ(last, 0, 2), "another learning rate, other parameters"
    if hasattr(last, "env"):
        drawn = jax.tree.leaves(last.env)
        assert any(not np.array_equal(x[0], x[1]) for x in drawn), "other seeds act otherwise"
    if actions is None:
        return
    # one action for each observation, as the environment takes them
    env = found.env
    assert actions.shape == (3, 64, *(() if env.discrete else env.action_space.shape))
    assert actions.dtype.kind == ("i" if env.discrete else "f")
    if env.discrete:
        assert actions.min() >= 0 and actions.max() < env.num_actions


@pytest.mark.parametrize("name", COMPILED)
def test_act_takes_one_observation_and_is_the_same_for_many(name, ran):
    once, _, found = members_of(name, ran)
    alg, env, key = found.make(), found.env, jax.random.key(0)
    trained = jax.tree.map(lambda x: x[0], alg.policy(once[1]))
    obs = jnp.zeros((5, *env.obs_shape), env.obs_dtype)
    shape = () if env.discrete else env.action_space.shape
    if alg.memory:
        action, memory = alg.act(trained, alg.memory(trained), obs[0], jnp.float32(0), key)
        assert action.shape == shape
        assert jax.tree.structure(memory) == jax.tree.structure(alg.memory(trained))
        return
    one, many = alg.act(trained, obs[0], key), alg.act(trained, obs, key)
    assert one.shape == shape and many.shape == (5, *shape) and one.dtype == many.dtype
    np.testing.assert_allclose(many[0], one, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_float_of_config_may_be_traced(name):
    found = tiny(name)

    def whole(config, key):
        """The first stage's first call, from the start."""
        alg = found.make(config)
        state = alg.init(key)
        for step_of, _, _ in found.steps[:1]:
            state, metrics = step_of(alg)(state, jnp.int32(0))
        return state, metrics

    leaves = jax.tree.map(lambda _: jax.ShapeDtypeStruct((3,), jnp.float32), found.config)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    jaxpr = jax.make_jaxpr(jax.vmap(whole))(leaves, keys).jaxpr
    used = {id(var) for equation in jaxpr.eqns for var in equation.invars}
    read = {name for name, var in zip(named(leaves), jaxpr.invars, strict=False) if id(var) in used}
    if rates(found.config):
        assert {*rates(found.config)} <= read  # others may belong to an option that is off
    source = flags.find(name).read_text()
    unread = [field for field in named(leaves) if f"config.{field}" not in source]
    assert not unread, "fields that nothing reads"


@pytest.mark.parametrize("name", ALL)
def test_its_bounds_refuse_a_wrong_sign(name):
    found = tiny(name)
    fields = dataclasses.fields(found.config)
    bounded = [f for f in fields if not (f.metadata.keys() <= {"static"})]
    assert len(bounded) >= 3, "fields declare their bounds"
    for field in bounded:
        value = -1.0 if isinstance(field.default, float) else -1
        value = (-1,) if isinstance(field.default, tuple) else value
        if field.metadata.get("least", field.metadata.get("above", 0)) < 0:
            continue
        config = dataclasses.replace(found.config, **{field.name: value})
        with pytest.raises(rlzoo.Refused, match=field.name):
            rlzoo.algorithm.clean(config)


@pytest.mark.parametrize("name", COMPILED)
def test_lowers_for_gpu_and_tpu(name):
    """The training program is one that other devices take; none is needed to find out."""
    found = tiny(name)
    members = [Member(i, i, found.config, {}) for i in range(2)]
    program = Program(
        found.module.make, members, found.env, found.dataset, Options(seeds=2, devices=1), 0
    )
    for number, stage in enumerate(program.stages):
        if stage.enter is None:
            exported = program.export(number, ("cuda", "tpu"))
            assert exported.platforms == ("cuda", "tpu")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", COMPILED)
def test_train(name, tmp_path, monkeypatch):
    # It runs for milliseconds and compiles for seconds; without optimization for half as many.
    plain = {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(machine, "compiler_options", lambda platform: plain)
    found = tiny(name)
    options = {"seeds": 2, "quiet": True, "eval_every": 0, "eval_episodes": 2}
    out = tmp_path / "run"
    run = rlzoo.train(found.module.make, found.config, found.dataset, out=str(out), **options)
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["status"] == run.summary["status"] == "done"
    assert [member["seed"] for member in summary["members"]] == [0, 1]
    score = summary["score"]["name"]
    assert score == found.make().score
    for member in summary["members"]:
        assert np.isfinite(member[score]) and not member["diverged"]
    (setting,) = summary[score]
    assert setting["seeds"] == 2 and setting["diverged"] == 0 and setting["iqm"] is not None
    assert summary["steps"] >= getattr(found.config, "total_steps", 1)
    if found.dataset is not None and found.make().rollouts:
        text = (run.dir / "metrics.csv").read_text()
        assert "eval/score" in text.splitlines()[0], "the data set has reference scores"
