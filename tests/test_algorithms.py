"""What every file in algorithms/ must do, on a tiny environment."""

import ast
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (registers the probe environments)
import pytest
from together import quick_jit

import rlzoo
from rlzoo.cli import flags
from rlzoo.run.files import load_module
from rlzoo.tools import collect

# Sizes that make a file's program tiny; a file that is not named here runs on its defaults.
TINY = {
    "ppo": dict(
        env="probe-action",
        total_steps=48,
        num_envs=2,
        num_steps=8,
        num_epochs=1,
        num_minibatches=2,
        hidden=(4,),
    ),
    "dqn": dict(
        env="probe-action",
        total_steps=12,
        num_envs=2,
        buffer_size=40,
        batch_size=4,
        learning_starts=6,
        target_every=4,
        hidden=(4,),
    ),
    "hl_gauss": dict(
        env="probe-action",
        total_steps=12,
        num_envs=2,
        buffer_size=40,
        batch_size=4,
        learning_starts=6,
        target_every=4,
        hidden=(4,),
        bins=5,
        v_min=-2.0,
        v_max=2.0,
    ),
    "pqn": dict(
        env="probe-action",
        total_steps=48,
        num_envs=2,
        num_steps=8,
        epochs=1,
        minibatches=2,
        hidden=(4,),
        loss="hl_gauss",
        bins=5,
        v_min=-2.0,
        v_max=2.0,
    ),
    "offline_dqn": dict(
        env="probe-action",
        total_steps=6,
        batch_size=4,
        target_every=2,
        hidden=(4,),
        bins=5,
        v_min=-2.0,
        v_max=2.0,
    ),
    "sac": dict(
        env="probe-action-continuous",
        total_steps=12,
        num_envs=2,
        batch_size=4,
        learning_starts=6,
        hidden=(4,),
    ),
    "sac_discrete": dict(
        env="probe-action",
        total_steps=12,
        num_envs=2,
        batch_size=4,
        learning_starts=6,
        hidden=(4,),
    ),
    "td3": dict(
        env="probe-action-continuous",
        total_steps=12,
        num_envs=2,
        batch_size=4,
        learning_starts=6,
        hidden=(4,),
    ),
    **{
        name: dict(
            env="lights-out2",
            total_steps=12,
            batch_size=4,
            block_steps=8,
            warmup_steps=4,
            scramble=3,
            first=4,
            width=4,
            blocks=1,
            eval_moves=2,
        )
        for name in ("qstar", "astar")
    },
}
CALLS = {
    "dqn": 6,
    "hl_gauss": 6,
    "sac": 6,
    "sac_discrete": 6,
    "td3": 6,
}  # enough to learn; 3 for the others
OFFLINE = ("offline_dqn",)  # these learn from a data set, here of random actions
SEARCH = ("qstar", "astar")  # these take a puzzle, and search


# ---- the file, read ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", flags.names())
def test_file(name):
    path = flags.find(name)
    text, tree = path.read_text(), ast.parse(path.read_text())
    assert len(text.splitlines()) <= 400
    doc = ast.get_docstring(tree)
    assert re.match(r"[A-Z][\w+* /().-]*: \S", doc.splitlines()[0]), (
        "the docstring starts with 'NAME: what it is'"
    )
    assert f"python algorithms/{name}.py" in doc and "Metrics:" in doc

    source = flags.read(path)
    assert all(field.doc for field in source.fields), "every field has a docstring"

    dividers = re.findall(r"^# -{2,} (.+?) -+$", text, re.M)
    assert dividers == [
        "networks",
        "state",
        "losses",
        "algorithm",
        *["search"] * (name in SEARCH),
    ], dividers
    at = [
        text.index("class Config"),
        *(text.index(f"# ---- {d} ") for d in dividers[:4]),
        text.index("\ndef make("),
        *(text.index(f"# ---- {d} ") for d in dividers[4:]),
        text.index('\nif __name__ == "__main__":'),
    ]
    assert at == sorted(at)
    assert (
        ast.unparse(tree.body[-1].body[0])
        == f"rlzoo.main(make, Config{', solver' * (name in SEARCH)})"
    )

    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    others = set(flags.names()) - {name}
    for module in modules:
        assert not module.startswith(("rlzoo.algorithms", "algorithms")) and module not in others, (
            module
        )
    assert all(node.level == 0 for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))


# ---- the algorithm, run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen():
    """What is compiled once for each file."""
    return {}


def tiny(name):
    module = load_module(flags.find(name))
    config = dataclasses.replace(module.Config(), **TINY.get(name, {}))
    return (
        module,
        config,
        rlzoo.make(config.env),
        collect.random(config.env, 50) if name in OFFLINE else None,
    )


def two_members(name, seen):
    """Two members, told apart by seed and learning rate, after a few calls; and both once more, as
    run again."""
    if name in seen:
        return seen[name]
    module, config, env, data = tiny(name)
    rates = [field.name for field in dataclasses.fields(config) if "learning_rate" in field.name][
        :1
    ]

    def of(rate):
        return module.make(dataclasses.replace(config, **{key: rate for key in rates}), env, data)

    def run(seeds, rates):
        states = jax.vmap(lambda s, r: of(r).init(jax.random.key(s)))(seeds, rates)
        first = jax.vmap(lambda s, r: of(r).policy(s))(states, rates)
        body = lambda states, t: jax.vmap(lambda s, r: of(r).step(s, t))(states, rates)
        last, metrics = jax.lax.scan(
            body, states, jnp.arange(CALLS.get(name, 3))
        )  # scan refuses changed specs
        obs = (
            jnp.linspace(-1, 1, 64 * int(np.prod(env.obs_shape)))
            .reshape(64, *env.obs_shape)
            .astype(env.obs_dtype)
        )
        actions = jax.vmap(lambda s, r: of(r).act(of(r).policy(s), obs, jax.random.key(0)))(
            last, rates
        )
        return states, first, last, metrics, actions

    compiled = quick_jit(run)
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    raw = lambda out: jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), out
    )
    seeds, rates_given = (
        jnp.array([0, 1, 0]),
        jnp.array([1e-2, 1e-2, 1e-4]),
    )  # the third: seed 0 at another rate
    seen[name] = [raw(compiled(seeds, rates_given)) for _ in range(2)], (module, config, env, data)
    return seen[name]


def floats(tree, member):
    return [x[member] for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def differ(tree, i, j):
    return any(
        not np.array_equal(a, b) for a, b in zip(floats(tree, i), floats(tree, j), strict=True)
    )


@pytest.mark.parametrize("name", flags.names())
def test_make_is_cheap_and_pure(name):
    module, config, env, data = tiny(name)
    jaxprs = []
    for _ in range(2):
        alg = module.make(config, env, data)
        if alg.step is None:
            pytest.skip(f"{name} has stages")
        state = jax.eval_shape(alg.init, jax.random.key(0))
        jaxprs.append(
            re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(alg.step)(state, jnp.int32(0))))
        )
        after, metrics = jax.eval_shape(alg.step, state, jnp.int32(0))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.leaves(after) == jax.tree.leaves(state)  # shapes, dtypes, weak types
    assert jaxprs[0] == jaxprs[1]
    for key, value in metrics.items():
        parts = value if isinstance(value, tuple) else (value,)
        assert len(parts) in (1, 2) and all(jnp.shape(x) == () for x in parts), key
    assert alg.steps_per_call > 0
    rollout = (
        [config.num_envs * getattr(config, "num_steps", 1)] if hasattr(config, "num_envs") else []
    )
    assert alg.steps_per_call in rollout or not rollout


@pytest.mark.parametrize("name", flags.names())
def test_steps_of_members(name, seen):
    (once, again), (_, _, env, data) = two_members(name, seen)
    _, policy, last, metrics, actions = once
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        assert a.tobytes() == b.tobytes()  # the same bits twice
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves((last, metrics)) if x.dtype.kind == "f"
    )
    assert differ(policy, 0, 1), "another seed, other parameters"
    assert not differ(policy, 0, 2), "the same seed, the same parameters"
    learnt = last.variables if name in SEARCH else last.params
    assert differ(learnt, 0, 2), "another learning rate, other parameters: nothing is baked in"
    # one action for each observation, as the environment takes them
    shape = () if env.discrete else env.action_space.shape
    assert actions.shape == (3, 64, *shape)
    assert np.issubdtype(actions.dtype, np.integer if env.discrete else np.floating)
    if env.discrete:
        assert actions.min() >= 0 and actions.max() < env.num_actions
    if data is None:
        drawn = last.key if name in SEARCH else last.env
        assert any(not np.array_equal(x[0], x[1]) for x in jax.tree.leaves(drawn)), (
            "other seeds act otherwise"
        )


@pytest.mark.parametrize("name", flags.names())
def test_act_takes_one_observation_and_is_the_same_for_many(name, seen):
    (once, _), (module, config, env, data) = two_members(name, seen)
    alg = module.make(config, env, data)
    if alg.memory:
        pytest.skip(f"{name} remembers")
    policy = jax.eval_shape(lambda key: alg.policy(alg.init(key)), jax.random.key(0))
    one, many = (
        jax.eval_shape(
            alg.act,
            policy,
            jax.ShapeDtypeStruct((*lead, *env.obs_shape), env.obs_dtype),
            jax.random.key(0),
        )
        for lead in ((), (5,))
    )
    shape = () if env.discrete else env.action_space.shape
    assert one.shape == shape and many.shape == (5, *shape) and one.dtype == many.dtype
    trained = jax.tree.map(lambda x: x[0], alg.policy(once[2]))
    obs = jnp.zeros((5, *env.obs_shape), env.obs_dtype)
    key = jax.random.key(0)
    np.testing.assert_allclose(
        alg.act(trained, obs, key)[0], alg.act(trained, obs[0], key), rtol=1e-5
    )


@pytest.mark.parametrize("name", flags.names())
def test_every_float_of_config_may_be_traced(name):
    module, config, env, data = tiny(name)
    init = lambda config, key: module.make(config, env, data).init(key)
    step = lambda config, state, t: module.make(config, env, data).step(state, t)
    leaves = jax.tree.map(lambda _: jax.ShapeDtypeStruct((3,), jnp.float32), config)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    state = jax.eval_shape(jax.vmap(init), leaves, keys)
    jaxpr = jax.make_jaxpr(jax.vmap(step, (0, 0, None)))(leaves, state, jnp.int32(0)).jaxpr
    used = {id(var) for eqn in jaxpr.eqns for var in eqn.invars}
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(leaves)[0]
    ]
    read = {path[1:] for path, var in zip(paths, jaxpr.invars, strict=False) if id(var) in used}
    always = {"learning_rate", "loss_threshold" if name in SEARCH else "discount"}
    assert always <= read  # others may belong to an option that is off
    source = flags.find(name).read_text()
    assert all(f"config.{path[1:]}" in source for path in paths), "a field that nothing reads"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", flags.names())
def test_train(name, tmp_path):
    module, config, _, data = tiny(name)
    run = rlzoo.train(
        module.make,
        config,
        data,
        seeds=2,
        out=str(tmp_path / "run"),
        quiet=True,
        eval_every=0,
        eval_episodes=2,
    )
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["status"] == run.summary["status"] == "done"
    assert [member["seed"] for member in summary["members"]] == [0, 1]
    assert summary["score"]["name"] == ("eval/solved" if name in SEARCH else "eval/return")
    assert all(
        np.isfinite(member[summary["score"]["name"]]) and not member["diverged"]
        for member in summary["members"]
    )
    (setting,) = summary[summary["score"]["name"]]
    assert setting["seeds"] == 2 and setting["diverged"] == 0 and setting["iqm"] is not None
    assert summary["steps"] >= config.total_steps
