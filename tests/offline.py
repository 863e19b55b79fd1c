"""Data with known values, and what iql.py, xql.py and f_dvl.py have in common."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from together import quick_jit

import rlzoo
from rlzoo import dataset
from rlzoo.env import Transition

ENV = "probe-action-continuous"
ACTIONS = np.linspace(-1.0, 1.0, 41, dtype=np.float32)


# ---- data ----------------------------------------------------------------------------------------


def bandit(scale: float = 1.0) -> dataset.Dataset:
    """One observation, every action of ACTIONS once, reward scale * 2a: episodes of one step."""
    return one_step(ACTIONS, 2.0 * scale * ACTIONS)


def one_step(action: np.ndarray, reward: np.ndarray, obs: float = 1.0) -> dataset.Dataset:
    """Episodes of one step with these actions [n] and rewards [n]."""
    ended = np.ones(len(action), bool)
    observed = np.full((len(action), 1), obs, np.float32)
    return dataset.from_arrays(
        {
            "obs": observed,
            "next_obs": observed,
            "action": action[:, None].astype(np.float32),
            "reward": reward.astype(np.float32),
            "terminated": ended,
            "truncated": ~ended,
        },
        env=ENV,
    )


def endless(naive: bool = False) -> dataset.Dataset:
    """Reward 1 for ever, cut after four steps; `naive` takes the cut for an end."""
    rows = 40
    cut = np.arange(rows) % 4 == 3
    obs = np.ones((rows, 1), np.float32)
    return dataset.from_arrays(
        {
            "obs": obs,
            "next_obs": obs,
            "action": np.resize(ACTIONS, (rows, 1)),
            "reward": np.ones(rows, np.float32),
            "terminated": cut & naive,
            "truncated": cut & (not naive),
        },
        env=ENV,
    )


def some_batch(n: int = 40, dims: int = 2) -> tuple[Transition, np.random.Generator]:
    """A random batch with observations [n, 3] and actions [n, dims], and where it came from."""
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, n, 3)).astype(np.float32)
    terminated = rng.random(n) < 0.3
    truncated = ~terminated & (rng.random(n) < 0.3)
    action = rng.uniform(-1, 1, (n, dims)).astype(np.float32)
    reward = rng.normal(size=n).astype(np.float32)
    return Transition(obs, action, reward, terminated, truncated, next_obs), rng


# ---- training ------------------------------------------------------------------------------------


class Learned(NamedTuple):
    alg: Any
    state: Any
    metrics: dict
    """of each call"""


def learn(make: Any, config: Any, data: Any, seed: int = 0) -> Learned:
    """Train for `config.total_steps` calls."""
    env = rlzoo.make(config.env)

    @quick_jit
    def run(config, data):
        alg = make(config, env, data)
        return jax.lax.scan(
            alg.step, alg.init(jax.random.key(seed)), jnp.arange(config.total_steps)
        )

    state, metrics = run(config, data)
    return Learned(make(config, env, data), state, metrics)


def newest(metrics: dict, name: str, calls: int = 50) -> float:
    """Mean of a metric over the last calls."""
    value = metrics[name]
    return float(np.mean(value[-calls:]))


def equal(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def close(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)


# ---- one update, by hand -------------------------------------------------------------------------


def check_update_order(module: Any, config: Any, draw_keys: int) -> None:
    """One update of iql, xql or f_dvl is: V by the target critics; the actor by the new V and the
    target critics; the critics by the new V; the target critics by the new critics. Every other
    order gives other parameters.

    `config` must not be annealed; `draw_keys` is how many keys a call splits its own into.
    """
    config = dataclasses.replace(config, learning_rate=0.01, tau=0.3, normalize_rewards=False)
    env, data = rlzoo.make(ENV), some_rows()
    alg = module.make(config, env, data)
    before = quick_jit(alg.init)(jax.random.key(0))
    run = quick_jit(alg.step)
    for t in range(3):  # so that targets differ from the critics, and momenta are not zero
        before, _ = run(before, t)
    after, _ = run(before, 3)

    batch = dataset.sample(data, jax.random.split(before.key, draw_keys)[0], config.batch_size)
    right, wrong = quick_jit(lambda *args: _by_hand(module, config, *args))(before, after, batch)
    for name, params in right.items():
        assert close(getattr(after, name, None) or getattr(after.params, name), params), name
    for (name, why), params in wrong.items():
        assert not close(getattr(after, name, None) or getattr(after.params, name), params), why


def _by_hand(module: Any, config: Any, before: Any, after: Any, batch: Any) -> tuple[dict, dict]:
    """The parameters after the update, and those of wrong variants, by name and what is wrong."""
    value_net = module.MLP(config.hidden, 1, config.value_layer_norm)
    critic_net = module.MLP(config.hidden, 1)
    actor = module.Actor(config.hidden, 1).apply
    huber = [config] * hasattr(config, "huber_delta")

    def value(params, obs):
        return value_net.apply(params, obs)[..., 0]

    def critics(params, obs, action):
        pair = jnp.concatenate([obs, action], -1)
        return jnp.stack([critic_net.apply(p, pair)[..., 0] for p in pair_of(params)])

    def moved(name, loss):
        """Parameters called `name` after a step on `loss`."""
        params = getattr(before.params, name)
        optimizer = optax.flatten(optax.adam(config.learning_rate))
        updates, _ = optimizer.update(jax.grad(loss)(params), getattr(before.opt_states, name))
        return optax.apply_updates(params, updates)

    def new_value(q):
        return moved("value", lambda p: module.value_loss(p, batch.obs, q, value, config)[0])

    def new_actor(q, params):
        advantage = q - value(params, batch.obs)
        return moved("actor", lambda p: module.actor_loss(p, batch, advantage, actor, config)[0])

    def new_critics(params, masked):
        target = batch.reward + config.discount * (1.0 - masked) * value(params, batch.next_obs)
        loss = lambda p: module.critic_loss(p, batch, target, critics, *huber)[0]
        return moved("critics", loss)

    def leaking(params):
        """The values' loss, and that of the critics whose targets they are."""
        own = module.value_loss(params, batch.obs, q, value, config)[0]
        target = batch.reward + config.discount * value(params, batch.next_obs)
        return own + module.critic_loss(before.params.critics, batch, target, critics, *huber)[0]

    q = critics(before.target_params, batch.obs, batch.action).min(0)
    online_q = critics(before.params.critics, batch.obs, batch.action).min(0)
    new, old = after.params, before.params
    mix = lambda params: optax.incremental_update(params, before.target_params, config.tau)
    right = {
        "value": new_value(q),
        "actor": new_actor(q, new.value),
        "critics": new_critics(new.value, batch.terminated),
        "target_params": mix(new.critics),
    }
    wrong = {
        ("value", "V by the critics themselves"): new_value(online_q),
        ("value", "V by the loss of the critics too"): moved("value", leaking),
        ("actor", "actor by the old V"): new_actor(q, old.value),
        ("actor", "actor by the critics themselves"): new_actor(online_q, new.value),
        ("critics", "critics by the old V"): new_critics(old.value, batch.terminated),
        ("critics", "no bootstrap where truncated"): new_critics(
            new.value, batch.terminated | batch.truncated
        ),
        ("target_params", "targets by the old critics"): mix(old.critics),
    }
    return right, wrong


def pair_of(params: Any) -> list:
    """The parameters of both critics."""
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(2)]


def some_rows(seed: int = 0) -> dataset.Dataset:
    """Random rows in episodes of three steps, which end by themselves or are cut."""
    rng, rows = np.random.default_rng(seed), 90
    obs = rng.normal(size=(rows + 1, 1)).astype(np.float32)
    next_obs = obs[1:].copy()
    ends = np.arange(rows) % 3 == 2
    cut = ends & (np.arange(rows) % 2 == 1)
    next_obs[cut] += 1.0
    return dataset.from_arrays(
        {
            "obs": obs[:-1],
            "next_obs": next_obs,
            "action": rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
            "reward": rng.normal(size=rows).astype(np.float32),
            "terminated": ends & ~cut,
            "truncated": cut,
        },
        env=ENV,
    )
