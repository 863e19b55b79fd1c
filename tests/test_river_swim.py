"""river-swim and deep-sea: what they do against the dynamics that they report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlzoo

IDS = [
    "river-swim",
    "river-swim?ahead=0.5&back=0.2&size=4",
    "deep-sea8",
    "deep-sea8?deterministic=False&map=3&unscaled_move_cost=0.4",
]


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_steps_follow_the_model(id):
    """Random episodes: frequencies of next states, and mean rewards, within five deviations."""
    env = rlzoo.make(id)
    world, model = env.inner, env.inner.model(env.params)
    horizon, num_states, _ = model.reward.shape
    assert horizon == env.max_steps and num_states == world.num_states
    assert np.allclose(model.transition.sum(-1), 1.0) and model.transition.min() >= 0

    def episode(key):
        def step(now, key):
            obs, inner = now
            act_key, step_key = jax.random.split(key)
            action = jax.random.randint(act_key, (1,), 0, 2)
            obs2, inner, reward, _, terminated, truncated = env.step_inner(
                step_key[None], inner, action
            )
            states = world.state_index(obs)[0], world.state_index(obs2)[0]
            ended = (terminated | truncated)[0]
            return (obs2, inner), (*states, action[0], reward[0], ended)

        return jax.lax.scan(step, env.starts(key[None]), jax.random.split(key, horizon))[1]

    keys = jax.random.split(jax.random.key(0), 20_000)
    before, after, actions, rewards, ended = map(np.asarray, jax.jit(jax.vmap(episode))(keys))
    assert (ended == (np.arange(horizon) == horizon - 1)).all(), "all are of one length"
    assert (before[:, 0] == model.start.argmax()).all()
    for h, s, a in np.ndindex(model.reward.shape):
        here = (before[:, h] == s) & (actions[:, h] == a)
        n = here.sum()
        if n < 100:
            continue
        slack = 5 * rewards[here, h].std() / np.sqrt(n) + 1e-6
        assert abs(rewards[here, h].mean() - model.reward[h, s, a]) < slack
        if h < horizon - 1:
            found = np.bincount(after[here, h], minlength=num_states) / n
            expected = model.transition[h, s, a]
            assert (abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-6).all()


def test_river_swim_of_the_papers():
    """Osband, Russo and Van Roy 2013, figure 1."""
    env = rlzoo.make("river-swim")
    model = env.inner.model(env.params)
    assert model.reward.shape == (20, 6, 2)
    swim = model.transition[0, :, 1]
    assert np.allclose(swim[0], [0.4, 0.6, 0, 0, 0, 0])
    assert np.allclose(swim[2], [0, 0.05, 0.6, 0.35, 0, 0])
    assert np.allclose(swim[5], [0, 0, 0, 0, 0.4, 0.6])
    assert np.allclose(model.reward[0], [[0.005, 0], *[[0, 0]] * 4, [0, 1]])
    assert model.cap.tolist() == list(range(20, 0, -1))
    always_swims = 0.0
    occupancy = model.start
    for transition, reward in zip(model.transition[:, :, 1], model.reward[:, :, 1], strict=True):
        always_swims += occupancy @ reward
        occupancy = occupancy @ transition
    assert model.optimal_value() >= always_swims > 1.0
    assert model.optimal_value() > 20 * 0.005


def test_deep_sea_is_one_map_in_all_episodes():
    """gymnax's DeepSea may draw a new map in each."""
    env = rlzoo.make("deep-sea8")
    state = env.reset(jax.random.key(0), 50)
    maps = state.inner.action_mapping
    assert (maps == maps[0]).all() and 10 < maps[0].sum() < 54
    another = rlzoo.make("deep-sea8?map=1").reset(jax.random.key(0), 1).inner.action_mapping
    assert (another[0] != maps[0]).any()
    with pytest.raises(rlzoo.Refused, match="no option 'sample_action_map'"):
        rlzoo.make("deep-sea8?sample_action_map=True")


def test_deep_sea_values():
    assert rlzoo.make("deep-sea8").inner.model(
        rlzoo.make("deep-sea8").params
    ).optimal_value() == pytest.approx(0.99)
    env = rlzoo.make("deep-sea8?deterministic=False")
    model = env.inner.model(env.params)
    # seven moves must succeed; the cost of each is paid while the goal is within reach
    best = (7 / 8) ** 7
    assert best - 0.01 < model.optimal_value() < best
    obs = jnp.zeros((8, 8)).at[3, 2].set(1.0)
    assert int(env.inner.state_index(obs)) == 2


def test_bad_sizes_are_refused():
    with pytest.raises(rlzoo.Refused, match="size=1 must be a whole number of at least 2"):
        rlzoo.make("river-swim?size=1")
    with pytest.raises(rlzoo.Refused, match="whole number of at least 1"):
        rlzoo.make("river-swim?max_steps_in_episode=0")
