"""Diffusion BC: imitation of a data set by a diffusion model of its actions.

Paper: Ho et al. 2020 (arXiv 2006.11239), equations 7 and 14, on actions given observations; the
    baseline of Zhou et al. 2023 (arXiv 2310.19308), whose network it has.
Kind: offline, policy, continuous
Run: python algorithms/diffusion_bc.py --env point-maze --seeds 3
    Without --dataset, point-maze makes the data. The paper's sizes: --widths 256 512 1024
    --embedding 256 --learning-rate 1e-4
Result: about the mean return of the data: it imitates all of them alike
Metrics:
    loss/behavior   squared error of the predicted noise, 1 where nothing is known
Deviations:
    The rate is constant; the released code's rises over 500 epochs, of which 200 are made.
    The defaults are small.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import rlzoo
from rlzoo.dataset import Dataset, recorded, sample


@rlzoo.config
class Config:
    env: str = rlzoo.static("point-maze")
    """environment id, for evaluation"""
    total_steps: int = rlzoo.static(5_000, least=1)
    """gradient updates of each member"""
    batch_size: int = rlzoo.static(256, least=1)
    """rows in each update"""
    widths: tuple[int, ...] = rlzoo.static((32, 64, 128), least=1)
    """widths of the U-Net's levels"""
    embedding: int = rlzoo.static(32, least=4)
    """size of the embedding of the diffusion step, an even number"""
    diffusion_steps: int = rlzoo.static(5, least=1)
    """denoising steps of each action"""
    learning_rate: float = rlzoo.traced(3e-4, above=0)
    """AdamW's step size"""
    weight_decay: float = rlzoo.traced(1e-6, least=0)
    """of AdamW"""


# ---- networks ------------------------------------------------------------------------------------


def mish(x):
    """x tanh(log(1 + exp(x))), with one exponential: faster on a CPU."""
    power = jnp.exp(jnp.minimum(x, 20.0))
    ratio = power * (power + 2.0)
    return x * ratio / (ratio + 2.0)


def layer(x, width):
    """A dense layer, normalized: [..., inputs] to [..., width]."""
    x = nn.Dense(width)(x)
    x = nn.LayerNorm(epsilon=1e-5)(x)
    return mish(x)


class Block(nn.Module):
    """A residual block that a condition scales and shifts (FiLM): [..., inputs] to [..., width]."""

    width: int

    @nn.compact
    def __call__(self, x, condition):
        film = nn.Dense(2 * self.width)(condition)
        scale, shift = jnp.split(film, 2, axis=-1)
        hidden = scale * layer(x, self.width) + shift
        hidden = layer(hidden, self.width)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width)(x)
        return hidden + x


class UNet(nn.Module):
    """The noise in actions x [..., action_dim], given step k [...] and obs [..., obs_dim].

    Dense in place of convolutions. The condition's last number is 0: the released network has room
    for a return there.
    """

    widths: tuple[int, ...]
    embedding: int

    @nn.compact
    def __call__(self, x, k, obs):
        outputs = x.shape[-1]
        # --- condition ---
        half = self.embedding // 2
        frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / (half - 1))
        angle = k[..., None] * frequency
        embedded = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        embedded = mish(nn.Dense(4 * self.embedding)(embedded))
        embedded = nn.Dense(self.embedding)(embedded)
        room = jnp.zeros_like(obs[..., :1])
        condition = jnp.concatenate([embedded, obs, room], axis=-1)

        def two_blocks(x, width):
            # Flax numbers modules in the order in which they are made.
            second = Block(width)
            first = Block(width)
            x = first(x, condition)
            return second(x, condition)

        # --- down ---
        skips = []
        for width in self.widths:
            x = two_blocks(x, width)
            skips.append(x)
        # --- middle ---
        x = two_blocks(x, self.widths[-1])
        # --- up; the first skip is not used ---
        for width in self.widths[-2::-1]:
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = two_blocks(x, width)
        # --- the noise ---
        head = nn.Dense(outputs)
        x = layer(x, self.widths[0])
        return head(x)


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    average: Any
    """moving average of the parameters"""


@struct.dataclass
class State:
    own: Dataset | None
    """the data set that the environment made, where none was given"""
    params: Any
    average: Any
    opt_state: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """Of the diffusion; float32 [steps] each."""

    beta: np.ndarray
    """variance added in each step"""
    kept: np.ndarray
    """product of (1 - beta) up to the step"""
    before: np.ndarray
    """that product up to the step before, 1 for the first"""


def noise_schedule(steps):
    """The squared-cosine schedule of Nichol & Dhariwal 2021 (arXiv 2102.09672, equation 17)."""
    time = np.arange(steps + 1) / steps
    level = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = 1.0 - level[1:] / level[:-1]
    beta = np.minimum(beta, 0.999)
    kept = np.cumprod(1.0 - beta)
    before = np.append(1.0, kept[:-1])
    return Schedule(
        beta=beta.astype(np.float32),
        kept=kept.astype(np.float32),
        before=before.astype(np.float32),
    )


def behavior_loss(params, obs, action, k, noise, net, schedule):
    """Mean squared error of the noise found in noised actions (Ho et al. 2020, equation 14)."""
    kept = jnp.asarray(schedule.kept)[k][:, None]
    noised = jnp.sqrt(kept) * action + jnp.sqrt(1.0 - kept) * noise
    predicted = net.apply(params, noised, k, obs)
    loss = ((predicted - noise) ** 2).mean()
    return loss, {"loss/behavior": loss}


def denoise(params, obs, key, net, schedule, action_dim):
    """Actions [n, action_dim] at obs [n, obs_dim], drawn by going back from noise (equation 7).

    The clean action that each step supposes is clipped to [-1, 1], and so is the result.
    """
    start_key, key = jax.random.split(key)
    count = obs.shape[:-1]
    shape = (*count, action_dim)

    def back(x, coefficients):
        k, beta, kept, before = coefficients
        # --- the clean action ---
        noise = net.apply(params, x, jnp.full(count, k), obs)
        clean = (x - jnp.sqrt(1.0 - kept) * noise) / jnp.sqrt(kept)
        clean = jnp.clip(clean, -1.0, 1.0)
        # --- a step towards it; without noise in the last ---
        mean = jnp.sqrt(before) * beta * clean + jnp.sqrt(1.0 - beta) * (1.0 - before) * x
        mean = mean / (1.0 - kept)
        variance = (1.0 - before) / (1.0 - kept) * beta
        deviation = jnp.sqrt(variance)
        fresh = jax.random.normal(jax.random.fold_in(key, k), shape)
        return mean + deviation * fresh, None

    steps = jnp.arange(len(schedule.beta))
    coefficients = (steps, *map(jnp.asarray, schedule))
    backwards = jax.tree.map(lambda x: x[::-1], coefficients)
    start = jax.random.normal(start_key, shape)
    action, _ = jax.lax.scan(back, start, backwards)
    return action


def average_decay(t):
    """How much of the moving average stays at update t, counted from 0; nothing at the first."""
    decay = jnp.minimum((1.0 + t) / (10.0 + t), 0.9999)
    return jnp.where(t == 0, 0.0, decay)


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    if len(config.widths) < 2 or config.embedding % 2:
        raise rlzoo.Refused(
            f"widths={config.widths} must be two or more, embedding={config.embedding} even"
        )

    # --- network, optimizer ---
    action_dim = env.action_dim
    net = UNet(config.widths, config.embedding)
    schedule = noise_schedule(config.diffusion_steps)
    # One vector of all parameters: an update is then a few fused loops.
    adamw = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    optimizer = optax.flatten(adamw)

    def init(key):
        net_key, data_key, key = jax.random.split(key, 3)
        x = jnp.zeros((1, action_dim))
        k = jnp.zeros(1)
        obs = env.flatten(jnp.zeros((1, *env.obs_shape)))
        params = net.init(net_key, x, k, obs)
        return State(
            own=recorded(env, data_key) if dataset is None else None,
            params=params,
            average=params,
            opt_state=optimizer.init(params),
            key=key,
        )

    def step(state, t):
        # --- sample ---
        row_key, step_key, noise_key, key = jax.random.split(state.key, 4)
        data = state.own if dataset is None else dataset
        batch = sample(data, row_key, config.batch_size)
        obs = env.flatten(batch.obs)
        k = jax.random.randint(step_key, (config.batch_size,), 0, config.diffusion_steps)
        noise = jax.random.normal(noise_key, batch.action.shape)

        # --- gradient step ---
        grads, metrics = jax.grad(behavior_loss, has_aux=True)(
            state.params,
            obs,
            batch.action,
            k,
            noise,
            net,
            schedule,
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # --- moving average ---
        share = 1.0 - average_decay(t)
        average = optax.incremental_update(params, state.average, share)
        state = state.replace(
            params=params,
            average=average,
            opt_state=opt_state,
            key=key,
        )
        return state, metrics

    def policy(state):
        return Policy(state.average)

    def act(policy, obs, key):
        obs = env.flatten(obs)
        return denoise(policy.average, obs, key, net, schedule, action_dim)

    return rlzoo.Algorithm(init, step, policy, act, updates_per_call=1)


if __name__ == "__main__":
    rlzoo.main(make, Config)
