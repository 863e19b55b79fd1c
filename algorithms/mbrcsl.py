"""MBRCSL: stitches by rollouts of the behavior in a learnt model, then imitates the best of them.

Paper: Zhou et al. 2023 (arXiv 2310.19308) and its released code. Behavior: DDPM, Ho et al. 2020
    (arXiv 2006.11239), equations 7 and 14. Model: see rlzoo/dynamics.py.
Kind: offline, model-based, continuous
Run: python algorithms/mbrcsl.py --env point-maze --seeds 3
    Without --dataset, point-maze makes the paper's data set. The paper's sizes: --members 7
    --elites 5 --model-hidden 200 200 200 200 --widths 256 512 1024 --embedding 256
    --diffusion-steps 10 --behavior-learning-rate 1e-4 --released-warmup --behavior-updates 38_900
    --hidden 1024 1024 --learning-rate 5e-5 --weight-decay 0.1 --no-normalize --no-anneal-lr
    --no-clip --needed 100 --max-batches 1_000
Result: 88 on point-maze (one seed, no study yet), where the best episode of the data has 71
Metrics:
    loss/model       held-out squared error of the models' means
    loss/behavior    squared error of the predicted noise; a longer fit makes fewer good rollouts
    train/accepted   share of rollouts whose predicted return is above that of all the data
    train/rollout    mean predicted return; train/best: the best; train/data_best: the data's best
    loss/actor       squared error of the actions of accepted rollouts
    train/target     the return that the policy is asked for: the best accepted one, as predicted
Deviations:
    The defaults are small: a preset for a CPU. The output policy is fitted for a set number of
    updates, to standardized inputs. Every `epochs_per_call` epochs the models return to their best.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import rlzoo
from rlzoo import dynamics
from rlzoo.dataset import Dataset, draw, recorded, returns_to_go, rows
from rlzoo.env import done


@rlzoo.config
class Config:
    env: str = rlzoo.static("point-maze")
    """environment id"""
    batch_size: int = rlzoo.static(256, least=1)
    """rows in each update of any network"""
    # --- model ---
    model: Literal["learnt", "true"] = rlzoo.static("learnt")
    """what rollouts are made in; true: the environment itself, to tell errors of the model apart"""
    members: int = rlzoo.static(5, least=1)
    """networks of the ensemble"""
    elites: int = rlzoo.static(3, least=1)
    """of these, how many make the rollouts"""
    model_hidden: tuple[int, ...] = rlzoo.static((128, 128), least=1)
    """widths of the models' hidden layers"""
    model_epochs: int = rlzoo.static(10, least=1)
    """passes over the data at most"""
    model_learning_rate: float = rlzoo.traced(1e-3, above=0)
    """its step size in Adam"""
    epochs_per_call: int = rlzoo.static(5, least=1)
    """the fit ends after this many epochs in which no member improved"""
    clip: bool = rlzoo.static(True)
    """keep predictions within the range of the data; the released code lets them leave it"""
    # --- behavior ---
    widths: tuple[int, ...] = rlzoo.static((32, 64, 128), least=1)
    """widths of the U-Net's levels"""
    embedding: int = rlzoo.static(32, least=4)
    """size of the embedding of the diffusion step, an even number"""
    diffusion_steps: int = rlzoo.static(5, least=1)
    """denoising steps of each action"""
    behavior_updates: int = rlzoo.static(2_000, least=1)
    """gradient updates of the behavior; a close fit stitches less"""
    behavior_learning_rate: float = rlzoo.traced(3e-4, above=0)
    """AdamW's step size"""
    released_warmup: bool = rlzoo.static(False)
    """let that rate rise over 500 epochs, of which few are made, as in the released code"""
    # --- rollouts ---
    rollout_batch: int = rlzoo.static(200, least=1)
    """rollouts of one call"""
    max_batches: int = rlzoo.static(100, least=1)
    """calls at most"""
    needed: int = rlzoo.static(200, least=1)
    """accepted rollouts that are enough"""
    accept: Literal["better", "all"] = rlzoo.static("better")
    """which rollouts the policy imitates: those better than all the data, or all of them"""
    # --- policy ---
    hidden: tuple[int, ...] = rlzoo.static((128, 128), least=1)
    """widths of the policy's hidden layers"""
    policy_updates: int = rlzoo.static(2_500, least=1)
    """gradient updates of the policy"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """its step size in Adam"""
    anneal_lr: bool = rlzoo.static(True)
    """let it fall to 0 along a cosine"""
    weight_decay: float = rlzoo.traced(0.03, least=0)
    """its L2 coefficient, added to the gradient before Adam; without it the policy gets stuck"""
    normalize: bool = rlzoo.static(True)
    """standardize its observations and returns to go"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Dense layers with ReLUs between them: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


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


class Scale(NamedTuple):
    """Mean and deviation of what the network sees [obs_dim + 1]."""

    mean: Any
    std: Any


class Policy(NamedTuple):
    params: Any
    scale: Scale
    target: Any
    """the return to ask for"""


class Behavior(NamedTuple):
    params: Any
    average: Any
    """moving average of `params`, which acts"""
    opt_state: Any


class Rollout(NamedTuple):
    """Leading axes [..., horizon]."""

    obs: Any
    action: Any
    to_go: Any
    """float32: return to go"""


@struct.dataclass
class State:
    own: Dataset | None
    """the data set that the environment made, where none was given"""
    data_best: jax.Array
    """the highest return of the data"""
    model: dynamics.EnsembleState
    model_key: jax.Array
    """the same for each call, so that the held-out rows stay the same"""
    fitted: jax.Array
    """bool: no member improved in the last call"""
    behavior: Behavior
    kept: Any
    """replay of accepted `Rollout`s"""
    tried: jax.Array
    """int32: rollouts made"""
    highest: jax.Array
    """their best predicted return"""
    policy: Policy
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


def actor_loss(params, x, action, net):
    """Mean squared error of actions [n, action_dim] at inputs x [n, obs_dim + 1]."""
    predicted = net.apply(params, x)
    loss = ((predicted - action) ** 2).mean()
    return loss, {"loss/actor": loss}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- checks ---
    if len(env.obs_shape) != 1:
        raise rlzoo.Refused(f"{env.id} has obs {list(env.obs_shape)}; mbrcsl needs flat ones")
    if len(config.widths) < 2 or config.embedding % 2:
        raise rlzoo.Refused(
            f"widths={config.widths} must be two or more, embedding={config.embedding} even"
        )

    # --- networks, optimizers ---
    (obs_dim,) = env.obs_shape
    action_dim = env.action_dim
    horizon = env.max_steps
    ensemble = dynamics.Ensemble(
        obs_dim,
        action_dim,
        members=config.members,
        elites=config.elites,
        hidden=config.model_hidden,
        learning_rate=config.model_learning_rate,
        batch_size=config.batch_size,
        max_epochs=config.epochs_per_call,
        patience=config.epochs_per_call,
    )
    unet = UNet(config.widths, config.embedding)
    schedule = noise_schedule(config.diffusion_steps)
    net = MLP(config.hidden, action_dim)
    # One vector of all parameters: an update is then a few fused loops.
    behavior_optimizer = optax.flatten(optax.adamw(1.0, weight_decay=1e-6))
    decay = optax.add_decayed_weights(config.weight_decay)
    optimizer = optax.flatten(optax.chain(decay, optax.adam(1.0)))

    # --- accepted rollouts ---
    example = Rollout(
        obs=jax.ShapeDtypeStruct((horizon, obs_dim), jnp.float32),
        action=jax.ShapeDtypeStruct((horizon, action_dim), jnp.float32),
        to_go=jax.ShapeDtypeStruct((horizon,), jnp.float32),
    )
    capacity = config.needed + config.rollout_batch
    buffer = rlzoo.replay.Masked(capacity, example, config.rollout_batch)

    def data_of(state):
        return state.own if dataset is None else dataset

    def inputs(scale, obs, to_go):
        """What the policy's network sees: [..., obs_dim + 1]."""
        x = jnp.concatenate([env.flatten(obs), to_go[..., None]], axis=-1)
        return (x - scale.mean) / scale.std

    def init(key):
        data_key, model_key, fit_key, unet_key, net_key, key = jax.random.split(key, 6)
        # --- data ---
        own = recorded(env, data_key) if dataset is None else None
        data = own if dataset is None else dataset
        # --- networks ---
        x = jnp.zeros((1, action_dim))
        k = jnp.zeros(1)
        obs = jnp.zeros((1, obs_dim))
        behavior_params = unet.init(unet_key, x, k, obs)
        behavior = Behavior(
            params=behavior_params,
            average=behavior_params,
            opt_state=behavior_optimizer.init(behavior_params),
        )
        params = net.init(net_key, jnp.zeros(obs_dim + 1))
        scale = Scale(jnp.zeros(obs_dim + 1), jnp.ones(obs_dim + 1))
        returns = returns_to_go(data)[data.starts[:-1]]
        return State(
            own=own,
            data_best=returns.max(),
            model=ensemble.init(model_key),
            model_key=fit_key,
            fitted=jnp.bool_(False),
            behavior=behavior,
            kept=buffer.init(),
            tried=jnp.int32(0),
            highest=jnp.float32(-jnp.inf),
            policy=Policy(params, scale, jnp.float32(0)),
            opt_state=optimizer.init(params),
            key=key,
        )

    # --- stage 1: the model ---

    def fit_model(state, t):
        model, fit = ensemble.fit(state.model, state.model_key, data_of(state))
        improved = (fit.holdout < fit.history[0]).any()
        metrics = {"loss/model": rlzoo.last(fit.holdout.mean())}
        return state.replace(model=model, fitted=~improved), metrics

    # --- stage 2: the behavior ---

    def fit_behavior(state, t):
        # --- sample ---
        row_key, step_key, noise_key, key = jax.random.split(state.key, 4)
        data = data_of(state)
        batch = rows(data, draw(data, row_key, config.batch_size))
        k = jax.random.randint(step_key, (config.batch_size,), 0, config.diffusion_steps)
        noise = jax.random.normal(noise_key, batch.action.shape)

        # --- gradient step ---
        behavior = state.behavior
        grads, metrics = jax.grad(behavior_loss, has_aux=True)(
            behavior.params, batch.obs, batch.action, k, noise, unet, schedule
        )
        rate = config.behavior_learning_rate
        if config.released_warmup:
            updates_per_epoch = max(1, len(data) // config.batch_size)
            epoch = t // updates_per_epoch
            rate = rate * epoch / 500.0
        updates, opt_state = behavior_optimizer.update(grads, behavior.opt_state, behavior.params)
        updates = jax.tree.map(lambda x: rate * x, updates)
        params = optax.apply_updates(behavior.params, updates)

        # --- moving average ---
        share = 1.0 - average_decay(t)
        average = optax.incremental_update(params, behavior.average, share)
        behavior = Behavior(params, average, opt_state)
        return state.replace(behavior=behavior, key=key), metrics

    # --- stage 3: rollouts of the behavior, filtered ---

    def roll(state, t):
        start_key, roll_key, key = jax.random.split(state.key, 3)
        count = config.rollout_batch

        def behave(obs, key):
            return denoise(state.behavior.average, obs, key, unet, schedule, action_dim)

        # --- roll ---
        if config.model == "true":
            begun = env.reset(start_key, count)
            keys = jax.random.split(roll_key, horizon)

            def act(_, obs, key):
                return None, behave(obs, key), None

            _, _, steps, _, _ = env.rollout(begun, act, None, keys, key, horizon, t)
            # Only the steps of the first episode count.
            ends = done(steps)
            over = jnp.cumsum(ends, axis=0) - ends
            valid = over == 0
            reward = jnp.where(valid, steps.reward, 0.0)
            fine = jnp.ones(count, bool)
        else:
            data = data_of(state)
            episode = jax.random.randint(start_key, (count,), 0, data.num_episodes)
            starts = data.obs[data.starts[episode]]

            def within(x, known):
                if not config.clip:
                    return x
                return jnp.clip(x, known.min(0), known.max(0))

            def imagine(key, obs, action):
                next_obs, reward = ensemble.step(state.model, key, obs, action)
                next_obs = within(next_obs, data.obs)
                reward = within(reward, data.reward)
                return next_obs, reward

            steps, valid = dynamics.rollout(imagine, behave, starts, roll_key, horizon)
            reward = steps.reward
            fine = valid.all(axis=0)

        # --- filter ---
        to_go = jnp.cumsum(reward[::-1], axis=0)[::-1]
        total = to_go[0]
        good = fine
        if config.accept == "better":
            good = fine & (total > state.data_best)
        rollouts = Rollout(steps.obs, steps.action, to_go)
        rollouts = jax.tree.map(lambda x: x.swapaxes(0, 1), rollouts)

        # --- keep ---
        kept = buffer.add(state.kept, rollouts, good)
        highest = jnp.where(fine, total, -jnp.inf).max()
        state = state.replace(
            kept=kept,
            tried=state.tried + count,
            highest=jnp.maximum(state.highest, highest),
            key=key,
        )
        metrics = {
            "train/accepted": good.mean(),
            "train/kept": rlzoo.last(kept.size),
            "train/rollout": total.mean(),
            "train/best": rlzoo.most(highest),
            "train/data_best": rlzoo.last(state.data_best),
        }
        return state, metrics

    # --- stage 4: the policy ---

    def start_policy(states, configs):
        """Scale and target of each member, from its accepted rollouts."""
        means = []
        stds = []
        targets = []
        for member, size in enumerate(states.kept.size):
            if size == 0:
                raise rlzoo.Refused(
                    f"none of {states.tried[member]:,} rollouts was accepted: their best predicted "
                    f"return is {states.highest[member]:.4g}, the best of the data is "
                    f"{states.data_best[member]:.4g}. Fit the behavior less (--behavior-updates), "
                    "roll more (--max-batches), or take all of them (--accept all)"
                )
            kept = jax.tree.map(lambda x, m=member, n=size: x[m, :n], states.kept.data)
            seen = np.concatenate([kept.obs, kept.to_go[..., None]], axis=-1)
            means.append(seen.mean((0, 1)))
            stds.append(seen.std((0, 1)) + 1e-3)
            targets.append(kept.to_go[:, 0].max())
        policy = states.policy._replace(target=np.stack(targets))
        if config.normalize:
            scale = Scale(np.stack(means), np.stack(stds))
            policy = policy._replace(scale=scale)
        return states.replace(policy=policy)

    def fit_policy(state, t):
        # --- sample ---
        row_key, time_key, key = jax.random.split(state.key, 3)
        row = jax.random.randint(row_key, (config.batch_size,), 0, state.kept.size)
        time = jax.random.randint(time_key, (config.batch_size,), 0, horizon)
        batch = jax.tree.map(lambda x: x[row, time], state.kept.data)
        policy = state.policy
        x = inputs(policy.scale, batch.obs, batch.to_go)

        # --- gradient step ---
        grads, metrics = jax.grad(actor_loss, has_aux=True)(policy.params, x, batch.action, net)
        updates, opt_state = optimizer.update(grads, state.opt_state, policy.params)
        rate = config.learning_rate
        if config.anneal_lr:
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * t / config.policy_updates))
        updates = jax.tree.map(lambda x: rate * x, updates)
        params = optax.apply_updates(policy.params, updates)
        policy = policy._replace(params=params)
        metrics["train/target"] = rlzoo.last(policy.target)
        return state.replace(policy=policy, opt_state=opt_state, key=key), metrics

    def policy(state):
        return state.policy

    def memory(policy):
        """The return to go."""
        return policy.target

    def act(policy, memory, obs, reward, key):
        to_go = memory - reward
        x = inputs(policy.scale, obs, to_go)
        out = net.apply(policy.params, x)
        return jnp.clip(out, -1.0, 1.0), to_go

    fits = max(1, config.model_epochs // config.epochs_per_call)
    stages = (
        rlzoo.Stage("model", fit_model, fits, until=lambda state: state.fitted),
        rlzoo.Stage("behavior", fit_behavior, config.behavior_updates, updates_per_call=1),
        rlzoo.Stage(
            "rollouts",
            roll,
            config.max_batches,
            until=lambda state: state.kept.size >= config.needed,
        ),
        rlzoo.Stage(
            "policy",
            fit_policy,
            config.policy_updates,
            enter=start_policy,
            updates_per_call=1,
            evaluate=True,
        ),
    )
    return rlzoo.Algorithm(init, None, policy, act, memory=memory, stages=stages)


if __name__ == "__main__":
    rlzoo.main(make, Config)
