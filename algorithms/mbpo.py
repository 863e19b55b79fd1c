"""MBPO: SAC on short rollouts in a learnt model (model-based policy optimization).

Paper: Janner et al. 2019 (arXiv 1906.08253), algorithm 2; sizes and details as in the released code
    of MEX (Liu et al. 2023, arXiv 2305.18258). SAC: Haarnoja et al. 2018 (arXiv 1812.05905).
Kind: model-based, actor-critic, continuous
Run: python algorithms/mbpo.py --env Pendulum-v1 --seeds 5
    The authors' hopper: python algorithms/mbpo.py --env brax/hopper --total-steps 130_000
    --learning-starts 5_000 --no-random-start --no-sample-actions --updates-per-step 40
    --hidden 512 512 --batch-size 256 --learning-rate 3e-4 --target-every 4 --no-tune-alpha
    --alpha 0.2 --model-hidden 200 200 200 200 --model-learning-rate 1e-3 --model-batch-size 256
    --patience 5 --model-every 250 --rollouts-per-step 400 --rollout-every 250
    --rollout-schedule 20 150 1 15 --epoch-length 1_000
Result: -175 or better on Pendulum after 2,500 steps in seeds 0 to 4 (no study yet)
Metrics: those of sac.py, with averages over the model's rows, and of each fit of the model
    loss/model          mean training loss of the last epoch: twice the negative log-likelihood
    train/model_error   mean squared error on held-out rows; it should fall from fit to fit
    train/model_epochs  epochs until it no longer fell
Deviations:
    One network is the default, as in that code; the paper has 7 and 5 elites. No real data in the
    batches, as there. At most model_epochs epochs, 1,000 rows held out, no decay of biases.
    Rows of the model are forgotten by their number, so later where rollouts have terminated.
    Several environments may be stepped together; the defaults suit Pendulum on a CPU.
    Rollouts follow every step, as in algorithm 2; the released code makes all after a fit.
"""

import functools
from typing import Any, NamedTuple

import chex
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo.dynamics import Ensemble, EnsembleState, rollout
from rlzoo.env import EnvState
from rlzoo.fast import Linear


@rlzoo.config
class Config:
    env: str = rlzoo.static("Pendulum-v1")
    """environment id"""
    total_steps: int = rlzoo.static(2_500, least=1)
    """environment steps of each member"""
    num_envs: int = rlzoo.static(1, least=1)
    """environments stepped together"""
    updates_per_step: int = rlzoo.static(15, least=1)
    """updates of SAC after each such step"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers, of actor and critics alike"""
    buffer_size: int = rlzoo.static(1_000_000, least=1)
    """real transitions kept, at most total_steps; a multiple of num_envs"""
    batch_size: int = rlzoo.static(128, least=1)
    """transitions of the model in each update"""
    learning_starts: int = rlzoo.static(500, least=1)
    """environment steps before the first update"""
    random_start: bool = rlzoo.static(True)
    """uniformly random actions until then; False: samples of the untrained policy"""
    sample_actions: bool = rlzoo.static(True)
    """after that act by samples of the policy; False: by its mean, as in the released code"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size, of SAC"""
    discount: float = rlzoo.traced(0.99, least=0, most=1)
    """gamma"""
    tau: float = rlzoo.traced(0.005, least=0, most=1)
    """how far the target critics move towards the critics in each update of them"""
    target_every: int = rlzoo.static(1, least=1)
    """updates of the critics for each of their targets"""
    tune_alpha: bool = rlzoo.static(True)
    """learn the temperature"""
    alpha: float = rlzoo.traced(1.0, above=0)
    """the temperature, at the start where it is learnt"""
    target_entropy: float = -1.0
    """entropy per action dimension (nats) that a learnt temperature aims at"""
    ensemble_size: int = rlzoo.static(1, least=1)
    """networks of the model; several are fitted to bootstrap samples"""
    num_elites: int = rlzoo.static(1, least=1)
    """networks that make rollouts: those with the lowest held-out error"""
    model_hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of their hidden layers"""
    model_learning_rate: float = rlzoo.traced(2e-3, above=0)
    """Adam's step size, of the model"""
    model_weight_decay: float = rlzoo.traced(1e-5, least=0)
    """of its kernels, within Adam's gradient"""
    model_batch_size: int = rlzoo.static(32, least=1)
    """transitions in each of its updates"""
    model_every: int = rlzoo.static(125, least=1)
    """environment steps between fits of the model"""
    model_epochs: int = rlzoo.static(300, least=1)
    """epochs of a fit, at most"""
    patience: int = rlzoo.static(60, least=1)
    """epochs without improvement that end a fit"""
    rollouts_per_step: int = rlzoo.static(50, least=1)
    """rollouts begun for each environment step"""
    rollout_every: int = rlzoo.static(1, least=1)
    """environment steps between them: 1, the paper; model_every, the released code"""
    rollout_schedule: tuple[int, ...] = rlzoo.static((1, 1, 3, 3), least=1)
    """from which epoch to which the steps of a rollout change, from how many to how many"""
    epoch_length: int = rlzoo.static(250, least=1)
    """environment steps of an epoch, counted from learning_starts"""
    retain_epochs: int = rlzoo.static(1, least=1)
    """epochs of which the rollouts are kept"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Dense layers with ReLUs between them: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return Linear(self.outputs)(x)


# ---- state ---------------------------------------------------------------------------------------


class Params(NamedTuple):
    actor: Any
    critics: Any
    """both, stacked"""
    log_alpha: jax.Array


class Policy(NamedTuple):
    actor: Any


@struct.dataclass
class State:
    params: Params
    target_params: Any
    """of the critics"""
    opt_state: Any
    model: EnsembleState
    env: EnvState
    buffer: Any
    model_buffer: Any
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def squashed_gaussian(head):
    """The distribution of tanh(u), u being Gaussian (equation 26).

    `head` [..., 2 * action_dim] holds the means, then the logarithms of the deviations.
    """
    mean, log_std = jnp.split(head, 2, axis=-1)
    # Unbounded, the deviation could overflow.
    std = jnp.exp(jnp.clip(log_std, -20.0, 2.0))
    normal = distrax.MultivariateNormalDiag(mean, std)
    return distrax.Transformed(normal, distrax.Block(distrax.Tanh(), 1))


def td_target(params, target_params, sample, key, actor, critics):
    """Targets of both critics [batch] (equations 5 and 6), from one action of the policy."""
    batch = sample.batch

    # --- action of the policy ---
    pi = actor(params.actor, batch.next_obs)
    action, log_prob = pi.sample_and_log_prob(seed=key)

    # --- the smaller of both values, and the entropy ---
    next_value = critics(target_params, batch.next_obs, action).min(0)
    next_value = next_value - jnp.exp(params.log_alpha) * log_prob
    return batch.reward + sample.discount * (1.0 - batch.terminated) * next_value


def critic_loss(params, batch, target, critics):
    """Mean squared errors of the critics against `target` [batch], summed over both."""
    value = critics(params, batch.obs, batch.action)
    chex.assert_shape(value, (2, *target.shape))
    error = value - target
    loss = (error**2).mean(-1).sum()
    return loss, {
        "loss/critic": loss,
        "train/q": value.mean(),
    }


def actor_loss(params, critic_params, log_alpha, batch, key, actor, critics):
    """The smaller value of the policy's actions with its entropy, negated (equation 9)."""
    alpha = jnp.exp(log_alpha)
    pi = actor(params, batch.obs)
    action, log_prob = pi.sample_and_log_prob(seed=key)
    value = critics(critic_params, batch.obs, action).min(0)
    chex.assert_equal_shape([value, log_prob])
    loss = (alpha * log_prob - value).mean()
    return loss, {
        "loss/actor": loss,
        "train/entropy": -log_prob.mean(),
        "train/alpha": alpha,
    }


def alpha_loss(log_alpha, entropy, target_entropy):
    """The temperature rises while the policy's entropy is below its target.

    Haarnoja et al. 2018 (arXiv 1812.05905), equation 18.
    """
    loss = jnp.exp(log_alpha) * (entropy - target_entropy)
    return loss, {"loss/alpha": loss}


def truncated_linear(epoch, start, end, first, last):
    """`first` until the epoch `start`, `last` from `end` on, linear between, rounded down.

    In whole numbers: floats would round some exact values down to the number below.
    """
    passed = jnp.clip(epoch - start, 0, end - start)
    return first + passed * (last - first) // max(end - start, 1)


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    # --- schedule, in calls of `step` ---
    num_calls = -(-config.total_steps // config.num_envs)
    first_update = -(-config.learning_starts // config.num_envs)
    model_every = -(-config.model_every // config.num_envs)
    rollout_every = -(-config.rollout_every // config.num_envs)

    # --- rollouts ---
    if len(config.rollout_schedule) != 4:
        raise rlzoo.Refused(
            f"rollout_schedule={config.rollout_schedule} needs four numbers, such as 20 150 1 15"
        )
    horizon = max(config.rollout_schedule[2:])
    num_rollouts = config.rollouts_per_step * rollout_every * config.num_envs
    num_rows = horizon * num_rollouts
    retained = config.retain_epochs * config.epoch_length
    rollouts_kept = num_rollouts * -(-retained // (rollout_every * config.num_envs))

    # --- replay ---
    capacity = min(config.buffer_size, num_calls * config.num_envs)
    buffer = rlzoo.replay.Uniform(capacity, env.example(), config.num_envs)
    model_buffer = rlzoo.replay.Masked(horizon * rollouts_kept, env.example(), num_rows)
    if config.batch_size > model_buffer.capacity:
        raise rlzoo.Refused(
            f"batch_size={config.batch_size} is more than the {model_buffer.capacity} transitions "
            "of the model that are kept: rollouts_per_step in retain_epochs of epoch_length"
        )

    # --- model ---
    if len(env.obs_shape) != 1:
        raise rlzoo.Refused(
            f"{env.id} has observations of shape {env.obs_shape}; mbpo.py needs vectors"
        )
    if config.num_elites > config.ensemble_size:
        raise rlzoo.Refused(
            f"num_elites={config.num_elites} is more than ensemble_size={config.ensemble_size}"
        )
    ensemble = Ensemble(
        *env.obs_shape,
        env.action_dim,
        members=config.ensemble_size,
        elites=config.num_elites,
        hidden=config.model_hidden,
        bootstrap=config.ensemble_size > 1,
        learn_bounds=False,
        learning_rate=config.model_learning_rate,
        weight_decay=config.model_weight_decay,
        batch_size=config.model_batch_size,
        max_epochs=config.model_epochs,
        patience=config.patience,
    )

    # --- networks, optimizer ---
    actor_net = MLP(config.hidden, 2 * env.action_dim)
    critic_net = MLP(config.hidden, 1)
    # As one vector, which is a few fused loops in place of a few for each array.
    optimizer = optax.flatten(optax.adam(config.learning_rate))
    target_entropy = config.target_entropy * env.action_dim

    def actor(params, obs):
        """The distribution of actions."""
        return squashed_gaussian(actor_net.apply(params, env.flatten(obs)))

    def critics(params, obs, action):
        """Values of both critics [2, ...]."""
        pair = jnp.concatenate([env.flatten(obs), action], axis=-1)
        values = jax.vmap(critic_net.apply, (0, None))(params, pair)
        return values[..., 0]

    def mean_action(pi):
        return jnp.tanh(pi.distribution.mean())

    def init(key):
        actor_key, critic_key, model_key, env_key, key = jax.random.split(key, 5)
        obs = env.flatten(jnp.zeros(env.obs_shape))
        pair = jnp.zeros(obs.size + env.action_dim)
        critic_keys = jax.random.split(critic_key)
        init_critics = jax.vmap(critic_net.init, (0, None))
        params = Params(
            actor=actor_net.init(actor_key, obs),
            critics=init_critics(critic_keys, pair),
            log_alpha=jnp.log(jnp.float32(config.alpha)),
        )
        return State(
            params=params,
            target_params=params.critics,
            opt_state=optimizer.init(params),
            model=ensemble.init(model_key),
            env=env.reset(env_key, config.num_envs),
            buffer=buffer.init(),
            model_buffer=model_buffer.init(),
            key=key,
        )

    def collect(state, act_key, env_key, t):
        """One step in every environment."""
        # --- act ---
        pi = actor(state.params.actor, state.env.obs)

        def warm_up():
            if not config.random_start:
                return pi.sample(seed=act_key)
            shape = (config.num_envs, env.action_dim)
            return jax.random.uniform(act_key, shape, minval=-1.0)

        def follow():
            return pi.sample(seed=act_key) if config.sample_actions else mean_action(pi)

        action = jax.lax.cond(t < first_update, warm_up, follow)

        # --- step and store ---
        env_state, transition, metrics = env.step(state.env, action, env_key, t)
        replay = buffer.add(state.buffer, transition, t)
        return state.replace(env=env_state, buffer=replay), metrics

    def rollout_length(since):
        """Steps of the rollouts made `since` calls after the first update."""
        epoch = since * config.num_envs // config.epoch_length + 1
        return truncated_linear(epoch, *config.rollout_schedule)

    def fit(state, key, size):
        """Fit the model to the `size` real transitions."""
        model, fit = ensemble.fit(state.model, key, state.buffer.data, size)
        return state.replace(model=model), {
            "loss/model": fit.loss.mean(),
            "train/model_error": fit.holdout.mean(),
            "train/model_epochs": fit.epochs,
        }

    def imagine(state, key, size, length):
        """Roll the model out for `length` steps from some of the `size` real transitions."""
        start_key, rollout_key = jax.random.split(key)
        model_step = functools.partial(ensemble.step, state.model)

        def act(obs, key):
            return actor(state.params.actor, obs).sample(seed=key)

        starts = jax.random.randint(start_key, (num_rollouts,), 0, size)
        rows, valid = rollout(
            model_step,
            act,
            state.buffer.data.obs[starts],
            rollout_key,
            horizon,
            terminate=env.terminates,
            length=length,
        )
        return state.replace(model_buffer=model_buffer.add(state.model_buffer, rows, valid)), {}

    def update(state, newest, count, key):
        """One update of SAC on the `newest` rows of the model."""
        sample_key, next_key, actor_key = jax.random.split(key, 3)
        params = state.params

        # --- sample ---
        sample = model_buffer.sample(
            state.model_buffer,
            sample_key,
            config.batch_size,
            config.discount,
            newest=newest,
        )
        batch = sample.batch

        # --- critics ---
        target = td_target(params, state.target_params, sample, next_key, actor, critics)
        critic_grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(
            params.critics,
            batch,
            target,
            critics,
        )

        # --- actor ---
        actor_grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(
            params.actor,
            params.critics,
            params.log_alpha,
            batch,
            actor_key,
            actor,
            critics,
        )

        # --- temperature ---
        alpha_grad = jnp.float32(0)
        alpha_metrics = {}
        if config.tune_alpha:
            alpha_grad, alpha_metrics = jax.grad(alpha_loss, has_aux=True)(
                params.log_alpha, actor_metrics["train/entropy"], target_entropy
            )

        # --- one step of the optimizer for all, then the targets ---
        grads = Params(actor_grads, critic_grads, alpha_grad)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(params, updates)
        tau = jnp.where(count % config.target_every == 0, config.tau, 0.0)
        state = state.replace(
            params=params,
            target_params=optax.incremental_update(params.critics, state.target_params, tau),
            opt_state=opt_state,
        )
        return state, critic_metrics | actor_metrics | alpha_metrics

    def step(state, t):
        act_key, env_key, fit_key, rollout_key, update_key, key = jax.random.split(state.key, 6)
        state, metrics = collect(state, act_key, env_key, t)
        since = t - first_update
        size = jnp.minimum((t + 1) * config.num_envs, capacity)
        length = rollout_length(since)

        # --- model ---
        due = (since >= 0) & (since % model_every == 0)
        state, fits = rlzoo.when(due, lambda state: fit(state, fit_key, size), state)

        # --- rollouts ---
        due = (since >= 0) & (since % rollout_every == 0)
        state, _ = rlzoo.when(due, lambda state: imagine(state, rollout_key, size, length), state)

        # --- SAC ---
        def learn(state):
            counts = t * config.updates_per_step + jnp.arange(config.updates_per_step)
            keys = jax.random.split(update_key, config.updates_per_step)

            def body(state, x):
                count, key = x
                return update(state, rollouts_kept * length, count, key)

            state, losses = jax.lax.scan(body, state, (counts, keys))
            return state, rlzoo.total(losses)

        state, losses = rlzoo.when(since >= 0, learn, state)
        return state.replace(key=key), metrics | fits | losses

    def policy(state):
        return Policy(state.params.actor)

    def act(policy, obs, key):
        return mean_action(actor(policy.actor, obs))

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=config.num_envs,
        updates_per_call=config.updates_per_step,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
