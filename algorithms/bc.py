"""BC: behavior cloning, of all episodes of a data set or of those with the highest returns.

Paper: Pomerleau 1989 (NeurIPS 1); of the best tenth (10% BC) as in Chen et al. 2021 (arXiv
    2106.01345, section 5.1).
Kind: offline, policy, discrete and continuous
Run: python algorithms/bc.py --dataset FILE --seeds 5
    python algorithms/bc.py --dataset FILE --sweep top_fraction=0.1,0.25,1
Result: about the score of the policy that the data hold (results/dual_rl)
Metrics:
    loss/actor         mean negative log-likelihood of the data's actions
    train/action_mse   continuous: mean squared error of the policy's mean
    train/agreement    discrete: share of the data's actions that the policy takes too
    On held-out data eval/action_mse tells when a policy learns the data by heart.
Deviations:
    The Gaussian's deviation is learnt, but it is the same for all observations.
"""

from typing import Any, NamedTuple

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import rlzoo
from rlzoo import dataset as data
from rlzoo.fast import Linear


@rlzoo.config
class Config:
    env: str = rlzoo.static("")
    """environment id, for evaluation; empty: the data set's own"""
    total_steps: int = rlzoo.static(20_000, least=1)
    """gradient updates of each member"""
    hidden: tuple[int, ...] = rlzoo.static((64, 64), least=1)
    """widths of the hidden layers"""
    batch_size: int = rlzoo.static(256, least=1)
    """transitions in each update"""
    learning_rate: float = rlzoo.traced(1e-3, above=0)
    """Adam's step size"""
    top_fraction: float = rlzoo.traced(1.0, above=0, most=1)
    """share of the episodes that are learnt from: those with the highest returns"""


# ---- networks ------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Dense layers with ReLUs, orthogonal at first: [..., inputs] to [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x):
        orthogonal = nn.initializers.orthogonal(2**0.5)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=orthogonal)(x))
        return Linear(self.outputs, kernel_init=orthogonal)(x)


class GaussianActor(nn.Module):
    """A Gaussian policy: mean in [-1, 1], the same deviation for all observations."""

    hidden: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        # The mean is squashed, samples are not: the density stays that of a Gaussian.
        mean = jnp.tanh(MLP(self.hidden, self.action_dim)(obs))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        std = jnp.exp(jnp.clip(log_std, -5.0, 2.0))
        return distrax.MultivariateNormalDiag(mean, std)


class CategoricalActor(nn.Module):
    """A policy over discrete actions."""

    hidden: tuple[int, ...]
    num_actions: int

    @nn.compact
    def __call__(self, obs):
        return distrax.Categorical(MLP(self.hidden, self.num_actions)(obs))


# ---- state ---------------------------------------------------------------------------------------


class Policy(NamedTuple):
    params: Any


@struct.dataclass
class State:
    params: Any
    opt_state: Any
    cumulative: jax.Array
    """uint32 [episodes]: by this the data set draws its rows"""
    key: jax.Array


# ---- losses --------------------------------------------------------------------------------------


def actor_loss(params, batch, actor):
    """The negative log-likelihood of the data's actions."""
    pi = actor(params, batch.obs)
    loss = -pi.log_prob(batch.action).mean()
    best = pi.mode()
    if batch.action.ndim == 1:
        agreement = (best == batch.action).mean()
        return loss, {"loss/actor": loss, "train/agreement": agreement}
    error = ((best - batch.action) ** 2).mean()
    return loss, {"loss/actor": loss, "train/action_mse": error}


# ---- algorithm -----------------------------------------------------------------------------------


def make(config: Config, env: rlzoo.Env, dataset=None) -> rlzoo.Algorithm:
    data.require(dataset, "bc")

    # --- network, optimizer ---
    if dataset.discrete:
        net = CategoricalActor(config.hidden, env.num_actions)
    else:
        net = GaussianActor(config.hidden, dataset.action.shape[-1])
    # One vector of all parameters: an update is then one fused loop.
    optimizer = optax.flatten(optax.adam(config.learning_rate))

    def actor(params, obs):
        """The distribution of actions."""
        return net.apply(params, env.flatten(obs))

    def init(key):
        net_key, key = jax.random.split(key)
        params = net.init(net_key, env.flatten(jnp.zeros(env.obs_shape)))
        return State(
            params=params,
            opt_state=optimizer.init(params),
            cumulative=data.prefer_top(dataset, config.top_fraction).cumulative,
            key=key,
        )

    def step(state, t):
        # --- sample ---
        sample_key, key = jax.random.split(state.key)
        preferred = dataset.replace(cumulative=state.cumulative)
        batch = data.sample(preferred, sample_key, config.batch_size)

        # --- gradient step ---
        grads, metrics = jax.grad(actor_loss, has_aux=True)(state.params, batch, actor)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state, key=key), metrics

    def policy(state):
        return Policy(state.params)

    def act(policy, obs, key):
        # The likeliest action: a Gaussian's mean.
        return actor(policy.params, obs).mode()

    return rlzoo.Algorithm(
        init,
        step,
        policy,
        act,
        steps_per_call=1,
        updates_per_call=1,
    )


if __name__ == "__main__":
    rlzoo.main(make, Config)
