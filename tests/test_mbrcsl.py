"""MBRCSL: its diffusion by hand, what it accepts and refuses, a stitched way through the maze."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from rlzoo.algorithms import mbrcsl
from together import quick_jit

import rlzoo
from rlzoo.algorithm import Refused
from rlzoo.dataset import episodes

KEY = jax.random.key(0)
TINY = {
    "env": "probe-action-continuous",
    "members": 2,
    "elites": 1,
    "model_hidden": (8,),
    "model_epochs": 4,
    "epochs_per_call": 2,
    "widths": (8, 16),
    "embedding": 4,
    "diffusion_steps": 3,
    "behavior_updates": 6,
    "rollout_batch": 20,
    "max_batches": 3,
    "needed": 5,
    "hidden": (8,),
    "policy_updates": 6,
}


class Fixed:
    """A network that gives what its parameters say: a function, or an array."""

    @staticmethod
    def apply(params, *inputs):
        return params(*inputs) if callable(params) else params


def tiny(**fields):
    config = mbrcsl.Config(**TINY | fields)
    return mbrcsl.make(config, rlzoo.make(config.env), tiny_data.continuous())


# ---- diffusion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes, count", [((4, 2), 17_633_282), ((17, 8), 17_824_264)])
def test_the_papers_network(sizes, count):
    """Parameters with the maze's sizes, and with those of the paper's pick-and-place task."""
    obs_dim, action_dim = sizes
    net = mbrcsl.UNet((256, 512, 1024), 256)
    inputs = (jnp.zeros((1, action_dim)), jnp.zeros(1), jnp.zeros((1, obs_dim)))
    params = jax.eval_shape(net.init, KEY, *inputs)
    assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_schedule():
    five, ten = mbrcsl.noise_schedule(5), mbrcsl.noise_schedule(10)
    np.testing.assert_allclose(
        five.beta, [0.101294, 0.279544, 0.473635, 0.724052, 0.999], atol=1e-6
    )
    np.testing.assert_allclose(
        five.kept, [0.898706, 0.647478, 0.340810, 0.094046, 9.4e-5], atol=1e-6
    )
    want = [
        0.027907,
        0.075494,
        0.124396,
        0.177190,
        0.237282,
        0.309883,
        0.404003,
        0.536998,
        0.743829,
    ]
    np.testing.assert_allclose(ten.beta, [*want, 0.999], atol=1e-6)
    np.testing.assert_allclose(ten.kept[[0, 4, 9]], [0.972093, 0.493844, 2.4e-5], atol=1e-6)
    np.testing.assert_allclose(ten.before[1:], ten.kept[:-1])
    assert ten.before[0] == 1


def test_moving_average():
    """Nothing of the start stays; then 2/11, 3/12, ... and at last 0.9999."""
    found = [float(mbrcsl.average_decay(t)) for t in (0, 1, 2, 3, 10**6)]
    np.testing.assert_allclose(found, [0, 2 / 11, 3 / 12, 4 / 13, 0.9999], rtol=1e-6)


def test_block_scales_and_shifts():
    """scale * h + shift, and not (1 + scale) * h + shift."""
    rng = np.random.default_rng(0)
    x, condition = rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    block = mbrcsl.Block(6)
    params = block.init(KEY, jnp.float32(x), jnp.float32(condition))
    dense = params["params"]

    def affine(name, x):
        return x @ np.asarray(dense[name]["kernel"]) + np.asarray(dense[name]["bias"])

    def layer(name, x):
        x = affine(name, x)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * np.tanh(np.log1p(np.exp(x)))

    def by_hand(one):
        film = affine("Dense_0", condition)
        scale, shift = film[:, :6], film[:, 6:]
        hidden = (one + scale) * layer("Dense_1", x) + shift
        return layer("Dense_2", hidden) + affine("Dense_3", x)

    found = np.asarray(block.apply(params, jnp.float32(x), jnp.float32(condition)))
    np.testing.assert_allclose(found, by_hand(0.0), atol=1e-5)
    assert np.abs(found - by_hand(1.0)).max() > 0.1


def test_behavior_loss():
    rng = np.random.default_rng(0)
    schedule = mbrcsl.noise_schedule(4)
    action, noise, out = (
        rng.uniform(-1, 1, (5, 2)),
        rng.normal(size=(5, 2)),
        rng.normal(size=(5, 2)),
    )
    k = np.array([0, 3, 1, 2, 2])
    seen = []

    def predict(noised, k, obs):
        seen.append(noised)
        return jnp.float32(out)

    loss, _ = mbrcsl.behavior_loss(
        predict, None, jnp.float32(action), jnp.asarray(k), jnp.float32(noise), Fixed, schedule
    )
    kept = schedule.kept[k][:, None]
    noised = np.sqrt(kept) * action + np.sqrt(1 - kept) * noise
    np.testing.assert_allclose(seen[0], noised, atol=1e-6)
    assert float(loss) == pytest.approx(((out - noise) ** 2).mean(), rel=1e-5)


def test_denoising_steps():
    """Every step against the posterior by hand, in float64; the clean action is clipped."""
    schedule = mbrcsl.noise_schedule(5)
    obs = jnp.zeros((4, 1))
    trace = []

    def predict(x, k, obs):
        jax.debug.callback(lambda x, k: trace.append((int(k[0]), np.float64(x))), x, k)
        return 0.3 * x + 0.1

    found = mbrcsl.denoise(predict, obs, KEY, Fixed, schedule, 2)
    found.block_until_ready()
    jax.effects_barrier()
    trace.sort(key=lambda entry: -entry[0])
    assert [k for k, _ in trace] == [4, 3, 2, 1, 0]
    _, noise_key = jax.random.split(KEY)
    ends = [*[x for _, x in trace[1:]], np.float64(found)]
    for (k, x), after in zip(trace, ends, strict=True):
        beta, kept, before = (np.float64(part[k]) for part in schedule)
        clean = np.clip((x - np.sqrt(1 - kept) * (0.3 * x + 0.1)) / np.sqrt(kept), -1, 1)
        mean = (np.sqrt(before) * beta * clean + np.sqrt(1 - beta) * (1 - before) * x) / (1 - kept)
        deviation = np.sqrt((1 - before) / (1 - kept) * beta)
        fresh = np.asarray(jax.random.normal(jax.random.fold_in(noise_key, k), (4, 2)))
        np.testing.assert_allclose(after, mean + deviation * fresh, atol=2e-5)
    assert np.abs(np.asarray(found)).max() <= 1


def test_exact_noise_gives_the_action_back():
    schedule = mbrcsl.noise_schedule(10)

    def predict(clean, x, k, obs):
        kept = jnp.asarray(schedule.kept)[k][:, None]
        return (x - jnp.sqrt(kept) * clean) / jnp.sqrt(1 - kept)

    for clean, want in ((0.25, 0.25), (2.0, 1.0)):
        exact = functools.partial(predict, clean)
        found = mbrcsl.denoise(exact, jnp.zeros((50, 1)), KEY, Fixed, schedule, 2)
        np.testing.assert_allclose(found, want, atol=2e-3)


# ---- rollouts ------------------------------------------------------------------------------------


@functools.cache
def rolling(**fields):
    """The algorithm, and the compiled step of its third stage."""
    alg = tiny(**fields)
    return alg, quick_jit(alg.stages[2].step)


@functools.cache
def rolled(seed=0, calls=1, **fields):
    """The state after some calls of that stage, and the last call's metrics."""
    alg, step = rolling(**fields)
    state = alg.init(jax.random.key(seed)).replace(data_best=jnp.float32(0.0))
    for t in range(calls):
        state, metrics = step(state, t)
    return state, metrics


@pytest.mark.slow
def test_the_filter_keeps_what_beats_the_data():
    fresh = tiny().init(KEY)
    assert float(fresh.data_best) == pytest.approx(episodes(tiny_data.continuous()).returns.max())
    after, metrics = rolled()  # better than 0
    size = int(after.kept.size)
    kept = jax.tree.map(lambda x: np.asarray(x[:size]), after.kept.data)
    assert 0 < size < 20 and float(metrics["train/accepted"]) == pytest.approx(size / 20)
    assert (kept.to_go[:, 0] > 0).all() and int(after.tried) == 20
    assert float(after.highest) == pytest.approx(kept.to_go[:, 0].max())
    everything, _ = rolled(accept="all")
    assert int(everything.kept.size) == 20
    returns = np.asarray(everything.kept.data.to_go[:20, 0])
    np.testing.assert_allclose(np.sort(returns[returns > 0]), np.sort(kept.to_go[:, 0]), rtol=1e-4)


def test_rollouts_start_where_episodes_start():
    state, _ = rolled(accept="all")
    data = tiny_data.continuous()
    first = np.asarray(data.obs)[np.asarray(data.starts[:-1])]
    obs = np.asarray(state.kept.data.obs)[:20]
    assert np.isin(obs[:, 0], first).all()
    assert obs.shape[1] == rlzoo.make(TINY["env"]).max_steps
    low, high = np.asarray(data.obs).min(), np.asarray(data.obs).max()
    assert obs.min() >= low and obs.max() <= high


def test_predictions_may_leave_the_range_as_released():
    state, _ = rolled(accept="all", clip=False)
    data = tiny_data.continuous()
    assert np.abs(np.asarray(state.kept.data.obs)).max() > np.abs(np.asarray(data.obs)).max()


def test_rollouts_in_the_environment_itself():
    """Its rewards, up to the end of the episode: here one step."""
    state, _ = rolled(accept="all", model="true")
    to_go = np.asarray(state.kept.data.to_go[:20])
    assert (to_go[:, 0] != 0).all() and (to_go[:, 1:] == 0).all()


def test_stages_end_early():
    alg, _ = rolling(accept="all")
    model, behavior, rollouts, policy = alg.stages
    assert [stage.calls for stage in alg.stages] == [2, 6, 3, 6]
    assert behavior.until is None and policy.until is None
    state = alg.init(KEY)
    assert not bool(rollouts.until(state)) and not bool(model.until(state))
    assert bool(rollouts.until(rolled(accept="all")[0]))


def test_the_policy_is_told_about_the_accepted_rollouts():
    alg, _ = rolling(accept="all")
    states = [rolled(seed, seed + 1, accept="all")[0] for seed in range(2)]
    ready = alg.stages[3].enter(on_host(states), [mbrcsl.Config(), mbrcsl.Config()])
    for member, state in enumerate(states):
        size = int(state.kept.size)
        obs = np.asarray(state.kept.data.obs[:size]).reshape(-1, 1)
        to_go = np.asarray(state.kept.data.to_go[:size])
        seen = np.concatenate([obs, to_go.reshape(-1, 1)], 1)
        scale = jax.tree.map(lambda x, m=member: x[m], ready.policy.scale)
        np.testing.assert_allclose(scale.mean, seen.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scale.std, seen.std(0) + 1e-3, rtol=1e-4)
        assert ready.policy.target[member] == to_go[:, 0].max()


def on_host(states):
    """States of several members, as a stage is handed them."""
    plain = [state.replace(key=0, model_key=0) for state in states]
    return jax.tree.map(lambda *x: np.stack([np.asarray(part) for part in x]), *plain)


def test_nothing_accepted_is_refused():
    """Of two members the second has nothing."""
    alg, _ = rolling(accept="all")
    full = rolled(accept="all")[0]
    empty = alg.init(KEY).replace(
        tried=jnp.int32(60), highest=jnp.float32(1.5), data_best=jnp.float32(2.25)
    )
    with pytest.raises(
        Refused, match=r"none of 60 rollouts .* return is 1.5, .* is 2.25. .*--behavior-updates"
    ):
        alg.stages[3].enter(on_host([full, empty]), [mbrcsl.Config()] * 2)


@pytest.mark.parametrize(
    "fields, match", [({"widths": (8,)}, "widths"), ({"embedding": 5}, "embedding")]
)
def test_sizes_are_checked(fields, match):
    with pytest.raises(Refused, match=match):
        tiny(**fields)


def test_images_are_refused():
    with pytest.raises(Refused, match="flat"):
        mbrcsl.make(mbrcsl.Config(), rlzoo.make("Breakout-MinAtar"), None)


def test_output_policy_counts_down():
    alg = tiny()
    policy = alg.policy(alg.init(KEY))._replace(target=jnp.float32(3.0))
    memory = alg.memory(policy)
    for reward, left in ((0.0, 3.0), (1.25, 1.75)):
        action, memory = alg.act(policy, memory, jnp.array([0.5]), jnp.float32(reward), KEY)
        assert float(memory) == left
        told = mbrcsl.MLP((8,), 1).apply(policy.params, jnp.array([0.5, left]))
        np.testing.assert_allclose(action, jnp.clip(told, -1, 1), rtol=1e-6)


@pytest.mark.slow
def test_released_warmup():
    """Its rate is 0 in the first epoch: nothing is learnt."""
    alg = tiny(released_warmup=True, batch_size=8)
    state = alg.init(KEY)
    step = quick_jit(alg.stages[1].step)
    same, _ = step(state, 5)
    moved, _ = step(state, 6)  # 48 rows are six batches
    leaves = lambda state: np.concatenate(
        [x.ravel() for x in jax.tree.leaves(state.behavior.params)]
    )
    assert (leaves(same) == leaves(state)).all() and (leaves(moved) != leaves(state)).any()


# ---- the maze ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_stitches(tmp_path):
    """The plain command: every seed does better than all of its data."""
    run = rlzoo.train(mbrcsl.make, mbrcsl.Config(), seeds=3, quiet=True, out=str(tmp_path / "run"))
    assert min(member["eval/return"] for member in run.summary["members"]) > 75
