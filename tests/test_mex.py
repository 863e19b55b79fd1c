"""MEX: its term against values by hand, and td3.py without it, bit for bit."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlzoo.algorithms import mex, td3

import rlzoo
from rlzoo.env import Transition

KEY = jax.random.key(0)
RELATIVE = mex.Config(eta=0.1)


# ---- the losses ----------------------------------------------------------------------------------


def linear_critics(params, obs, action):
    """Two critics [2, batch] with weights of obs and action and an offset: params [2, 3]."""
    ones = jnp.ones((*obs.shape[:-1], 1))
    return jnp.einsum("ki,bi->kb", params, jnp.concatenate([obs, action, ones], -1))


def squared_critics(params, obs, action):
    """As above, of the square of the action: not linear in it."""
    return linear_critics(params, obs, action**2)


def rows(obs, action, reward=(0.0, 0.0)):
    obs, action = jnp.array(obs)[:, None], jnp.array(action)[:, None]
    no = jnp.zeros(len(obs), bool)
    return Transition(obs, action, jnp.array(reward), no, no, 2 * obs)


WEIGHTS = jnp.array([[1.0, 2.0, 0.5], [-1.0, 1.0, 0.0]])
BATCH = rows([0.5, -1.0], [0.2, -0.4])
CANDIDATES = jnp.array([[0.5, -0.5], [1.0, 0.0], [-0.3, 0.9]])[..., None]
TARGET = jnp.array([1.0, -1.0])
# Values of the actions by hand; rows: the batch's, the policy's, the next policy's, the random one
FIRST = np.array([[1.4, -1.3], [2.0, -1.5], [3.0, -0.5], [0.4, 1.3]])
SECOND = np.array([[-0.3, 0.6], [0.0, 0.5], [0.5, 1.0], [-0.8, 1.9]])
SQUARES = (0.4**2 + 0.3**2) / 2 + (1.3**2 + 1.6**2) / 2


def log_sum_exp(*values):
    return np.log(sum(np.exp(value) for value in values))


def by_hand(kind, slip=False):
    if kind == "data":
        return FIRST[0].mean() + SECOND[0].mean()
    if kind == "random":
        return (FIRST[1] - FIRST[3]).mean() + (SECOND[1] - SECOND[3]).mean()
    first = FIRST[1] - log_sum_exp(FIRST[0], FIRST[2], FIRST[3])
    data = FIRST[0] if slip else SECOND[0]
    second = SECOND[1] - log_sum_exp(data, SECOND[2], SECOND[3])
    return first.mean() + second.mean()


def loss_of(config, weights=WEIGHTS, critics=linear_critics, candidates=CANDIDATES):
    if config.optimism in ("data", "none"):
        candidates = candidates[:0]
    return mex.critic_loss(weights, BATCH, TARGET, candidates, critics, config)


@pytest.mark.parametrize(
    "fields", [{}, {"optimism": "random"}, {"optimism": "data"}, {"lse2_data_q1": True}]
)
@pytest.mark.parametrize("eta", [0.1, -0.1])
def test_the_loss_by_hand(fields, eta):
    """Two rows and linear critics; a negative eta is pessimism."""
    config = mex.Config(eta=eta, **fields)
    loss, metrics = loss_of(config)
    term = by_hand(config.optimism, config.lse2_data_q1)
    np.testing.assert_allclose(metrics["train/optimism"], term, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/critic"], SQUARES, rtol=1e-5)
    np.testing.assert_allclose(loss, SQUARES - eta * term, rtol=1e-5)
    values = (FIRST[0].mean() + SECOND[0].mean()) / 2
    np.testing.assert_allclose(metrics["train/q"], values, rtol=1e-4)


def test_the_released_slip_is_another_loss():
    assert abs(by_hand("relative") - by_hand("relative", slip=True)) > 0.1


def test_without_the_term_it_is_td3s_loss():
    loss, metrics = loss_of(mex.Config(optimism="none", eta=5.0))
    plain, known = td3.critic_loss(WEIGHTS, BATCH, TARGET, linear_critics)
    assert loss == plain and metrics.keys() == known.keys()


def term_of(config, weights):
    _, metrics = loss_of(config, weights)
    return metrics["train/optimism"]


@pytest.mark.parametrize("optimism", ["relative", "random", "data"])
def test_a_constant_added_to_a_critic(optimism):
    """It leaves the relative forms as they are; the data's form rises by it for each critic."""
    config = mex.Config(optimism=optimism)
    moved = term_of(config, WEIGHTS + jnp.array([0.0, 0.0, 5.0])) - term_of(config, WEIGHTS)
    np.testing.assert_allclose(moved, 10.0 if optimism == "data" else 0.0, atol=1e-5)
    slope = jax.grad(term_of, 1)(config, WEIGHTS)[:, 2]
    np.testing.assert_allclose(slope, 1.0 if optimism == "data" else 0.0, atol=1e-6)


@pytest.mark.parametrize("critics", [linear_critics, squared_critics])
@pytest.mark.parametrize("fields", [{}, {"optimism": "random"}, {"lse2_data_q1": True}])
def test_the_gradient_by_finite_differences(critics, fields):
    config = dataclasses.replace(RELATIVE, **fields)
    slope = jax.grad(lambda weights: loss_of(config, weights, critics)[0])(WEIGHTS)
    small, found = 1e-2, np.zeros(WEIGHTS.shape)
    for place in np.ndindex(*WEIGHTS.shape):
        ends = [WEIGHTS.at[place].add(by) for by in (small, -small)]
        high, low = (loss_of(config, weights, critics)[0] for weights in ends)
        found[place] = (high - low) / (2 * small)
    np.testing.assert_allclose(slope, found, rtol=1e-2, atol=2e-3)


def test_the_slip_pushes_the_first_critic_down_twice():
    """At the batch's actions, where each critic's values are parameters of their own."""

    def slope(slip):
        config = mex.Config(lse2_data_q1=slip)
        values = jnp.zeros((2, 4, 1))
        return jax.grad(mex.optimism)(values, config)[:, 0, 0]

    np.testing.assert_allclose(slope(False), [-1 / 3, -1 / 3], rtol=1e-5)
    np.testing.assert_allclose(slope(True), [-2 / 3, 0.0], rtol=1e-5)


def test_the_actor_has_no_part_in_the_critics_loss():
    actor = lambda params, obs: jnp.tanh(params * obs)

    def loss(params):
        candidates = mex.candidate_actions(params, BATCH, KEY, actor, RELATIVE)
        return loss_of(RELATIVE, candidates=candidates)[0]

    assert jax.grad(loss)(jnp.float32(0.7)) == 0
    assert loss(0.7) != loss(0.8)


def test_candidates():
    """The next policy's actions are of next_obs; random ones are uniform."""
    actor = lambda params, obs: params * obs
    policy, following, _ = mex.candidate_actions(0.1, BATCH, KEY, actor, RELATIVE)
    np.testing.assert_allclose(policy, 0.1 * BATCH.obs, rtol=1e-6)
    np.testing.assert_allclose(following, 0.2 * BATCH.obs, rtol=1e-6)
    many = rows(np.zeros(10_000), np.zeros(10_000), np.zeros(10_000))
    random = np.asarray(mex.candidate_actions(0.1, many, KEY, actor, RELATIVE)[2])
    assert random.min() >= -1 and random.max() <= 1
    assert abs(random.mean()) < 0.02 and abs(random.var() - 1 / 3) < 0.01


@pytest.mark.parametrize(("optimism", "rise"), [("data", 0.05), ("relative", 0.0), ("none", 0.0)])
def test_where_a_bandit_settles(optimism, rise):
    """One state, discount 0: a constant is fitted to a reward of 1. On the batch's actions the
    optimism adds eta / 2; the relative form does not raise the level of values."""
    config = mex.Config(optimism=optimism, eta=0.1)
    constant = lambda params, obs, action: jnp.broadcast_to(params[:, None], (2, len(obs)))
    candidates = CANDIDATES[: 0 if optimism in ("data", "none") else 3]
    target = jnp.ones(2)
    loss = lambda params: mex.critic_loss(params, BATCH, target, candidates, constant, config)[0]
    params = jnp.array([0.0, 3.0])
    for _ in range(60):
        params -= 0.2 * jax.grad(loss)(params)
    np.testing.assert_allclose(params, 1.0 + rise, atol=1e-4)


# ---- against td3.py ------------------------------------------------------------------------------

SMALL = {
    "env": "band-mass",
    "total_steps": 240,
    "hidden": (16, 16),
    "batch_size": 16,
    "learning_starts": 40,
}


def run(module, config):
    """The state after all calls, of which 200 update."""
    algorithm = module.make(config, rlzoo.make(config.env))
    body = lambda state, t: (algorithm.step(state, t)[0], None)
    return jax.lax.scan(body, algorithm.init(KEY), jnp.arange(config.total_steps))[0]


@pytest.fixture(scope="module")
def plain():
    return jax.jit(lambda: run(td3, td3.Config(**SMALL)))()


def test_switched_off_it_is_td3_bit_for_bit(plain):
    found = jax.jit(lambda: run(mex, mex.Config(optimism="none", **SMALL)))()
    assert found.opt_states.critics[0].count == 200
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        chex.assert_trees_all_equal(a, b)


@pytest.mark.slow
def test_with_eta_zero_it_is_td3_but_for_rounding(plain):
    """Both are members of one program, as is one with an eta that is not zero."""
    etas = jnp.array([0.0, 0.02])
    states = jax.jit(jax.vmap(lambda eta: run(mex, mex.Config(eta=eta, **SMALL))))(etas)
    known = jax.tree.leaves(plain.params)
    zero, other = ([x[i] for x in jax.tree.leaves(states.params)] for i in range(2))
    chex.assert_trees_all_close(zero, known, rtol=1e-3, atol=1e-4)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(known, other, strict=True)) > 1e-2


def test_the_key_of_random_actions_is_no_other_key():
    """fold_in(key, 1) would be the second of the two keys that the update splits."""
    data = jax.random.key_data
    taken = {data(key).tobytes() for key in jax.random.split(KEY)}
    assert data(jax.random.fold_in(KEY, 1)).tobytes() in taken
    assert data(jax.random.fold_in(KEY, 2)).tobytes() not in taken


# ---- bad input -----------------------------------------------------------------------------------


def test_an_eta_that_overflows_is_refused():
    env = rlzoo.make("band-mass")
    for eta in (1e39, -1e39):
        with pytest.raises(
            rlzoo.Refused, match=r"eta=-?1e\+39 overflows a float32; the authors take 0.0001"
        ):
            mex.make(mex.Config(env="band-mass", eta=eta), env)
    mex.make(mex.Config(env="band-mass", eta=-5e-3), env)


def test_an_unknown_form_is_refused():
    with pytest.raises(rlzoo.Refused, match="optimism 'relativ' is unknown; nearest: relative"):
        rlzoo.algorithm.clean(mex.Config(optimism="relativ"))
