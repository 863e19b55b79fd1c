"""Decision Transformer: who sees whom, its window in an episode, its loss and rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from rlzoo.algorithms import decision_transformer as dt
from together import quick_jit

import rlzoo
from rlzoo.algorithm import Refused
from rlzoo.dataset import episodes

KEY = jax.random.key(0)
CONTEXT = 4


class Fixed:
    """A network whose outputs are its parameters."""

    @staticmethod
    def apply(params, window):
        return params


def window(rng, count=3, filled=CONTEXT):
    """Random windows of which the last `filled` steps are real."""
    shape = (count, CONTEXT)
    return dt.Window(
        obs=jnp.asarray(rng.normal(size=(*shape, 2)), jnp.float32),
        action=jnp.asarray(rng.normal(size=(*shape, 1)), jnp.float32),
        to_go=jnp.asarray(rng.normal(size=shape), jnp.float32),
        step=jnp.broadcast_to(jnp.arange(CONTEXT), shape),
        mask=jnp.broadcast_to(jnp.arange(CONTEXT) >= CONTEXT - filled, shape),
    )


@pytest.fixture(scope="module")
def net():
    """The network as a jitted function of windows."""
    made = dt.Transformer(layers=2, heads=2, width=8, outputs=1, max_steps=10)
    params = made.init(KEY, window(np.random.default_rng(0)))
    return quick_jit(lambda seen: made.apply(params, seen))


@pytest.mark.parametrize("name", ("obs", "action", "to_go"))
def test_nothing_sees_what_comes_after(net, name):
    """A change at step 2 leaves earlier outputs as they are; of an action also that of its step."""
    seen = window(np.random.default_rng(1))
    changed = seen._replace(**{name: getattr(seen, name).at[:, 2].add(1.0)})
    before, after = net(seen), net(changed)
    first = 3 if name == "action" else 2
    np.testing.assert_allclose(after[:, :first], before[:, :first], atol=1e-5)
    assert np.abs(np.asarray(after - before)[:, first:]).max() > 1e-3


def test_padding_is_not_seen(net):
    rng = np.random.default_rng(2)
    seen = window(rng, filled=2)
    other = window(rng, filled=2)
    join = lambda x, y: jnp.concatenate([y[:, :2], x[:, 2:]], axis=1)
    changed = jax.tree.map(join, seen, other)
    np.testing.assert_allclose(net(changed)[:, 2:], net(seen)[:, 2:], atol=1e-5)
    everyone = changed._replace(mask=jnp.ones_like(changed.mask))
    assert np.abs(np.asarray(net(everyone) - net(seen))[:, 2:]).max() > 1e-3


def test_loss():
    rng = np.random.default_rng(0)
    seen = window(rng, filled=3)
    out, action = rng.normal(size=(3, CONTEXT, 2)), rng.uniform(-1, 1, (3, CONTEXT, 2))
    loss, _ = dt.actor_loss(jnp.float32(out), seen, jnp.float32(action), Fixed, False)
    want = ((np.tanh(out) - action) ** 2)[:, 1:].mean()
    assert float(loss) == pytest.approx(want, rel=1e-5)
    taken = rng.integers(0, 2, (3, CONTEXT))
    probs = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
    loss, metrics = dt.actor_loss(jnp.float32(out), seen, jnp.asarray(taken), Fixed, True)
    likely = np.take_along_axis(probs, taken[..., None], -1)[:, 1:]
    assert float(loss) == pytest.approx(-np.log(likely).mean(), rel=1e-5)
    right = (out.argmax(-1) == taken)[:, 1:].mean()
    assert float(metrics["train/agreement"]) == pytest.approx(right)


def test_rates():
    """It rises and stays; as released, it never rises: 6e-3 over 10,000 steps is 6e-7."""
    config = dt.Config(learning_rate=6e-3, warmup_steps=10_000)
    rates = [float(dt.rate_at(t, config)) for t in (0, 4_999, 9_999, 50_000)]
    np.testing.assert_allclose(rates, [6e-7, 3e-3, 6e-3, 6e-3], rtol=1e-5)
    coded = dt.Config(learning_rate=6e-3, warmup_steps=10_000, released_rate=True)
    assert [dt.rate_at(t, coded) for t in (0, 50_000)] == pytest.approx([6e-7, 6e-7])


@pytest.mark.slow
def test_the_window_of_an_episode():
    """It moves on by one step, holds the actions taken, and counts the return down."""
    env = rlzoo.make("probe-action-continuous")
    config = dt.Config(env=env.id, context=3, layers=1, width=4, target_return=3.0)
    alg = dt.make(config, env, tiny_data.continuous())
    policy = alg.policy(alg.init(KEY))
    act = quick_jit(alg.act)
    memory, actions = alg.memory(policy), []
    for reward in (0.0, 1.0, 0.5, 0.25):
        action, memory = act(policy, memory, jnp.array([1.0]), jnp.float32(reward), KEY)
        actions.append(float(action[0]))
    seen, to_go, time = memory
    assert float(to_go) == 1.25 and int(time) == 4
    np.testing.assert_allclose(seen.action[0, :, 0], actions[1:], rtol=1e-6)
    np.testing.assert_allclose(seen.to_go[0] * policy.scale, [2.0, 1.5, 1.25], rtol=1e-6)
    assert seen.step[0].tolist() == [1, 2, 3] and seen.mask.all()
    fresh = alg.memory(policy)[0]
    assert not fresh.mask.any()


def test_it_asks_for_the_best_return():
    env, data = rlzoo.make("probe-action-continuous"), tiny_data.continuous()
    config = dt.Config(env=env.id, context=2, layers=1, width=4)
    policy = dt.make(config, env, data).init(KEY).policy
    assert float(policy.target) == pytest.approx(episodes(data).returns.max(), rel=1e-5)
    with pytest.raises(Refused, match=r"target_return=1000.* cannot be"):
        dt.make(dt.Config(env=env.id, target_return=1000.0), env, data)
    with pytest.raises(Refused, match="width=6 must be a multiple of heads=4"):
        dt.make(dt.Config(env=env.id, width=6, heads=4), env, data)


@pytest.mark.slow
def test_it_cannot_stitch(tmp_path):
    """It sees its history, so after its first action it goes on as the episode that had it."""
    config = dt.Config(env="stitching", total_steps=300, context=2, layers=1, width=8)
    options = {"seeds": 2, "quiet": True, "eval_every": 0, "eval_episodes": 1}
    run = rlzoo.train(dt.make, config, out=str(tmp_path / "run"), **options)
    assert [member["eval/return"] for member in run.summary["members"]] == [1, 1]
