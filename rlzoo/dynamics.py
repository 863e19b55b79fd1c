"""An ensemble of Gaussian networks that predicts (next obs, reward) from (obs, action), and
rollouts inside it.

Papers: PETS, Chua et al. 2018 (arXiv 1805.12114), the networks and their loss; MBPO, Janner et al.
2019 (arXiv 1906.08253), early stopping, elites and branched rollouts; MOPO, Yu et al. 2020 (arXiv
2005.13239), the penalty. An `Ensemble` is a description; what is learned is a pytree that its pure
functions take and return:

    model = rlzoo.dynamics.Ensemble(*env.obs_shape, env.action_dim)
    state = model.init(key)
    # until the held-out error stops falling
    state, fit = model.fit(state, key, replay.data, replay.size)
    # a random elite for each row
    next_obs, reward = model.step(state, key, obs, action)
    # or add a penalty: see `max_std`
    step = functools.partial(model.step, state)
    rows, valid = rlzoo.dynamics.rollout(step, act, obs, key, horizon=5,
    terminate=env.terminates)
    # the first `size` rows are real
    rows, size = rlzoo.dynamics.pack(rows, valid)

`fit` continues from `state`; to start afresh, hand it `model.init(key)`. Shapes are static and how
many rows are real may be traced, so it serves a growing replay and runs under `lax.cond` on `t`.
Under `vmap` over seeds everyone's epochs run until the last seed has stopped (the others keep what
they had): with S seeds, S times the longest fit.

What costs time on a CPU is multiplying matrices, and a batch of 256 rows already keeps a core busy,
so fitting B members costs about B times one; a step costs the same for any number of members
(results/dynamics).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jax.flatten_util import ravel_pytree

from rlzoo.algorithm import Refused
from rlzoo.env import Transition, where_each

Array = jax.Array

MBPO_WEIGHT_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
"""MBPO's, for the four hidden layers and the output."""


# ---- state ---------------------------------------------------------------------------------------


class Params(NamedTuple):
    """Of one member; in `EnsembleState` every leaf has a leading axis, the members'."""

    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]
    min_log_var: Array
    """[obs_dim + 1]"""
    max_log_var: Array


class Inputs(NamedTuple):
    """Mean and deviation of the inputs, [obs_dim + action_dim], of the rows trained on."""

    mean: Array
    std: Array


@struct.dataclass
class EnsembleState:
    params: Params
    opt_state: Any
    """Adam's, carried from fit to fit"""
    inputs: Inputs
    elites: Array
    """int32 [elites]: the members with the lowest held-out error, best first"""
    holdout: Array
    """float32 [members]: that error, see `Fit.holdout`; inf before the first fit"""


class Batch(NamedTuple):
    """One member's minibatch; leading axis: rows."""

    obs: Array
    action: Array
    reward: Array
    next_obs: Array
    weight: Array
    """float32: 0 for the rows that fill up an epoch's last batch, else 1"""


class Prediction(NamedTuple):
    """Of the next observation and, last, the reward: [members, n, obs_dim + 1]."""

    mean: Array
    std: Array


class Fit(NamedTuple):
    """What a fit did."""

    epochs: Array
    """int32 []: how many ran"""
    loss: Array
    """float32 [members]: mean training loss over the last epoch, without regularizers"""
    holdout: Array
    """float32 [members]: mean squared error of the means on the held-out rows, of the snapshot
    kept"""
    history: Array
    """float32 [max_epochs + 1, members]: that error before the first epoch and after each; nan
    where none ran"""


# ---- the ensemble --------------------------------------------------------------------------------


def gaussian_nll(mean: Array, log_var: Array, target: Array) -> Array:
    """(target - mean)^2 exp(-log_var) + log_var, elementwise: twice the negative log-likelihood of
    a Gaussian, less log(2 pi) (Chua et al. 2018, section 4)."""
    return (target - mean) ** 2 * jnp.exp(-log_var) + log_var


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """`members` networks alike, each with its own initialization and order of the data.

    The loss of a member is the mean of `gaussian_nll` over rows and dimensions, plus `bound_coef`
    times the sum of (max_log_var - min_log_var), plus weight_decay / 2 times the squared kernels of
    each layer (the gradient of the last passes through Adam, as in MBPO and in torch's Adam; biases
    do not decay). Members share nothing but the normalization of inputs, so they train together
    exactly as each would alone. Targets are not normalized.

    Raises `Refused`, here and at trace time, for sizes and shapes that do not fit.
    """

    obs_dim: int
    action_dim: int
    """size of a continuous action, or the number of discrete ones (integers, encoded one-hot)"""
    members: int = 7
    elites: int = 5
    """members that `step` draws from: those with the lowest held-out error"""
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    activation: Callable[[Array], Array] = jax.nn.silu
    deterministic: bool = False
    """predict means alone, with the squared error as the loss; deviations are then 0"""
    delta: bool = True
    """learn next_obs - obs; False: next_obs itself. Predictions are of next_obs either way"""
    bootstrap: bool = True
    """each member draws its rows with replacement, once in a fit; False: all have the same rows.
    Either way a member goes through its rows once an epoch, in an order of its own"""
    log_var_bounds: tuple[float, float] = (-10.0, 0.5)
    """between which log-variances are clamped, softly"""
    learn_bounds: bool = True
    """let the bounds be parameters, starting there; they are each member's own"""
    bound_coef: Array | float = 0.01
    """may be traced"""
    learning_rate: Array | float = 1e-3
    """Adam's step size; may be traced"""
    weight_decay: Array | float | tuple[float, ...] = 5e-5
    """one for all layers, which may be traced, or one for each, as `MBPO_WEIGHT_DECAY`"""
    batch_size: int = 256
    holdout: float = 0.2
    """share of the rows that is held out, at least one row"""
    max_holdout: int = 1000
    """rows held out at most"""
    max_epochs: int = 200
    patience: int = 5
    """stop after this many epochs in which no member improved"""
    improvement: float = 0.01
    """by which share the held-out error must fall for a new snapshot of the member"""

    def __post_init__(self) -> None:
        for name in (
            "obs_dim",
            "action_dim",
            "members",
            "elites",
            "batch_size",
            "max_holdout",
            "max_epochs",
            "patience",
        ):
            if getattr(self, name) < 1:
                raise Refused(f"{name}={getattr(self, name)}: must be at least 1")
        if self.elites > self.members:
            raise Refused(f"elites={self.elites} is more than members={self.members}")
        if any(width < 1 for width in self.hidden):
            raise Refused(
                f"hidden={self.hidden}: must be widths of at least 1, for example (200, 200)"
            )
        if not 0 < self.holdout < 1:
            raise Refused(
                f"holdout={self.holdout}: must be a share between 0 and 1, for example 0.2"
            )
        if not 0 <= self.improvement < 1:
            raise Refused(
                f"improvement={self.improvement}: must be a share in [0, 1), for example 0.01"
            )
        if not self.log_var_bounds[0] < self.log_var_bounds[1]:
            raise Refused(f"log_var_bounds={self.log_var_bounds}: the first must be the lower one")
        layers = len(self.hidden) + 1
        if isinstance(self.weight_decay, tuple) and len(self.weight_decay) != layers:
            raise Refused(
                f"weight_decay={self.weight_decay} has {len(self.weight_decay)} values, must have "
                f"{layers}: one for each layer of hidden={self.hidden} and one for the output"
            )

    def init(self, key: Array) -> EnsembleState:
        """Members before any fit: kernels from a normal distribution cut at two of its deviations
        1 / (2 sqrt(inputs)), biases 0, inputs not normalized."""
        params = jax.vmap(self._init)(_member_keys(key, self.members))
        opt_state = jax.vmap(lambda p: _adam.init(ravel_pytree(p)[0]))(params)
        size = self.obs_dim + self.action_dim
        inputs = Inputs(jnp.zeros(size), jnp.ones(size))
        best = jnp.full(self.members, jnp.inf, jnp.float32)
        return EnsembleState(params, opt_state, inputs, jnp.arange(self.elites), best)

    def predict(self, state: EnsembleState, obs: Array, action: Array) -> Prediction:
        """What every member predicts for obs [n, obs_dim] and action [n, action_dim] (or int
        [n])."""
        obs, action = self._checked(obs=obs, action=action)
        return jax.vmap(self._predict, (0, None, None, None))(
            state.params, state.inputs, obs, action
        )

    def step(
        self, state: EnsembleState, key: Array, obs: Array, action: Array, noise: bool = True
    ) -> tuple[Array, Array]:
        """A next_obs [n, obs_dim] and a reward [n] for obs [n, obs_dim] and action [n, action_dim]
        (or int [n]).

        Every row is drawn from the Gaussian of an elite (`noise=False`: is its mean) that is as
        likely as any other. Rows are dealt out evenly among the elites, so that each elite sees n /
        elites of them and not all.
        """
        obs, action = self._checked(obs=obs, action=action)
        n = len(obs)
        share = -(-n // self.elites)
        deal_key, noise_key = jax.random.split(key)

        # --- deal rows out to the elites; where n is no multiple, the last row fills up ---
        dealt = _shuffle(deal_key, share * self.elites)

        def deal(x: Array) -> Array:
            hands = x[jnp.minimum(dealt, n - 1)]
            return hands.reshape(self.elites, share, *x.shape[1:])

        # --- predict, and put the rows back in their order ---
        elites = jax.tree.map(lambda x: x[state.elites], state.params)
        predict = jax.vmap(self._predict, (0, None, 0, 0))
        hands = predict(elites, state.inputs, deal(obs), deal(action))
        back = jnp.argsort(dealt)[:n]
        mean, std = (x.reshape(-1, self.obs_dim + 1)[back] for x in hands)
        outcome = mean
        if noise:
            outcome = mean + std * jax.random.normal(noise_key, mean.shape)
        return outcome[:, :-1], outcome[:, -1]

    def fit(
        self,
        state: EnsembleState,
        key: Array,
        data: Any,
        size: Array | int | None = None,
        extra: Callable | None = None,
    ) -> tuple[EnsembleState, Fit]:
        """Train until no member's held-out error has fallen for `patience` epochs, or for
        `max_epochs`.

        Of the real rows a random share is held out; inputs are normalized by the others' mean and
        deviation. The held-out error is measured before the first epoch and after each. Whenever a
        member's falls below its best by more than `improvement`, a snapshot is kept, and that is
        what is returned. The error is that of the means, as in MBPO: where means are easier to
        learn than deviations, it stops before the deviations are right.

        Args:
          data: has obs [capacity, obs_dim], action [capacity, action_dim] (or int [capacity]),
            reward [capacity] and next_obs [capacity, obs_dim], as transitions, `ReplayState.data`
            and data sets have.
          size: how many rows are real, the first ones; at least 2, which is checked where it is
            known. None: all. An epoch takes time in proportion to `size` (and sorts `members` times
            capacity numbers).
          extra: `extra(predict, batch, key) -> scalar` is added to the loss of each member at every
            minibatch. `predict(obs [n, ...], action [n, ...]) -> Prediction` (without its axis of
            members) is the member as it stands and carries its gradient; `batch` is its `Batch`.
        """
        split_key, bag_key, key = jax.random.split(key, 3)
        data = self._split(split_key, *self._rows(data, size))
        bags = jax.vmap(lambda key: self._bag(key, data))(_member_keys(bag_key, self.members))
        first = self._error(state.params, data)

        def one_member(params: Params, opt_state: Any, bag: Array, key: Array) -> tuple:
            return self._epoch(params, opt_state, bag, key, data, extra)

        def epoch(now: _Progress) -> _Progress:
            keys = _member_keys(jax.random.fold_in(key, now.epochs), self.members)
            params, opt_state, loss = jax.vmap(one_member)(now.params, now.opt_state, bags, keys)
            error = self._error(params, data)
            better = error < now.best * (1 - self.improvement)

            def keep(new: Array, old: Array) -> Array:
                return where_each(better, new, old)

            return _Progress(
                epochs=now.epochs + 1,
                stale=jnp.where(better.any(), 0, now.stale + 1),
                params=params,
                opt_state=opt_state,
                loss=loss,
                kept=jax.tree.map(keep, params, now.kept),
                best=keep(error, now.best),
                history=now.history.at[now.epochs + 1].set(error),
            )

        def going(now: _Progress) -> Array:
            return (now.epochs < self.max_epochs) & (now.stale < self.patience)

        history = jnp.full((self.max_epochs + 1, self.members), jnp.nan, jnp.float32)
        start = _Progress(
            epochs=jnp.int32(0),
            stale=jnp.int32(0),
            params=state.params,
            opt_state=state.opt_state,
            loss=jnp.zeros(self.members),
            kept=state.params,
            best=first,
            history=history.at[0].set(first),
        )
        end = lax.while_loop(going, epoch, start)
        elites = jnp.argsort(end.best)[: self.elites]
        state = EnsembleState(end.kept, end.opt_state, data.inputs, elites, end.best)
        return state, Fit(end.epochs, end.loss, end.best, end.history)

    def loss(self, params: Params, inputs: Inputs, batch: Batch) -> tuple[Array, Array]:
        """The loss of one member (see the class), and the part of it that measures the fit."""
        mean, log_var = self._apply(params, self._normalize(inputs, batch.obs, batch.action))
        target = self._target(batch)
        error = (target - mean) ** 2 if self.deterministic else gaussian_nll(mean, log_var, target)
        fit = (batch.weight * error.mean(-1)).sum() / batch.weight.sum()
        layers = len(params.kernels)
        decay: Any = self.weight_decay
        if not isinstance(decay, tuple):
            decay = (decay,) * layers
        loss = fit + sum(
            0.5 * rate * (kernel**2).sum()
            for rate, kernel in zip(decay, params.kernels, strict=True)
        )
        if self.learn_bounds and not self.deterministic:
            loss += self.bound_coef * (params.max_log_var - params.min_log_var).sum()
        return loss, fit

    # ---- inside: fitting -------------------------------------------------------------------------

    def _split(self, key: Array, rows: "_Rows", size: Array) -> "_Data":
        held = jnp.clip((self.holdout * size).astype(jnp.int32), 1, self.max_holdout)
        order = _shuffle(key, len(rows[0]), size)
        inputs = self._statistics(rows, order, held, size)
        return _Data(rows, order, held, size - held, inputs)

    def _statistics(self, rows: "_Rows", order: Array, held: Array, size: Array) -> Inputs:
        """Mean and deviation of the inputs of the rows order[held:size]; a constant input is only
        centered."""
        position = jnp.arange(len(order))
        trained = (position >= held) & (position < size)
        mask = jnp.zeros(len(order), bool).at[order].set(trained)[:, None]
        x = self._join(*rows[:2])

        def mean_of(x: Array) -> Array:
            return jnp.where(mask, x, 0).sum(0) / (size - held)

        # Some row is subtracted first: a constant then has deviation 0, not one of rounding.
        some = x[order[held]]
        mean = some + mean_of(x - some)
        std = jnp.sqrt(mean_of((x - mean) ** 2))
        varies = std > 1e-6 * jnp.abs(mean) + 1e-12
        return Inputs(mean, jnp.where(varies, std, 1.0))

    def _bag(self, key: Array, data: "_Data") -> Array:
        """[capacity]: which of the rows to train on make up one member's epoch, in its first
        `trained` entries."""
        capacity = len(data.order)
        if self.bootstrap:
            return jax.random.randint(key, (capacity,), 0, data.trained)
        return jnp.arange(capacity)

    def _chunk(self, i: Array, total: Array) -> tuple[Array, Array]:
        """Positions of minibatch i among `total`, and which of them exist; position 0 stands for
        the others."""
        at = i * self.batch_size + jnp.arange(self.batch_size)
        return jnp.where(at < total, at, 0), at < total

    def _error(self, params: Params, data: "_Data") -> Array:
        """Mean squared error of each member's means on the held-out rows, [members]."""

        def add(i: Array, total: Array) -> Array:
            at, real = self._chunk(i, data.held)
            batch = data.take(at, real)
            x = self._normalize(data.inputs, batch.obs, batch.action)
            mean = jax.vmap(lambda p: self._apply(p, x)[0])(params)
            squares = batch.weight[:, None] * (mean - self._target(batch)) ** 2
            return total + squares.sum((1, 2))

        batches = -(-data.held // self.batch_size)
        total = lax.fori_loop(0, batches, add, jnp.zeros(self.members))
        return total / (data.held * (self.obs_dim + 1))

    def _epoch(
        self,
        params: Params,
        opt_state: Any,
        bag: Array,
        key: Array,
        data: "_Data",
        extra: Callable | None,
    ) -> tuple[Params, Any, Array]:
        """One member, once through its bag; also the mean of what measures the fit in its loss."""
        shuffle_key, key = jax.random.split(key)
        bag = bag[_shuffle(shuffle_key, len(bag), data.trained)]
        # One vector: an optimizer step is then a few fused loops.
        vector, unravel = ravel_pytree(params)

        def objective(vector: Array, batch: Batch, key: Array) -> tuple[Array, Array]:
            params = unravel(vector)
            total, fit = self.loss(params, data.inputs, batch)
            if extra:
                predict = functools.partial(self._predict, params, data.inputs)
                total += extra(predict, batch, key)
            return total, fit

        def update(i: Array, carry: tuple) -> tuple:
            vector, opt_state, total = carry
            at, real = self._chunk(i, data.trained)
            batch = data.take(data.held + bag[at], real)
            extra_key = jax.random.fold_in(key, i)
            grads, fit = jax.grad(objective, has_aux=True)(vector, batch, extra_key)
            direction, opt_state = _adam.update(grads, opt_state)
            vector -= self.learning_rate * direction
            return vector, opt_state, total + fit * real.sum()

        steps = -(-data.trained // self.batch_size)
        start = (vector, opt_state, jnp.float32(0))
        vector, opt_state, total = lax.fori_loop(0, steps, update, start)
        return unravel(vector), opt_state, total / data.trained

    # ---- inside: the network ---------------------------------------------------------------------

    def _init(self, key: Array) -> Params:
        outputs = (self.obs_dim + 1) * (1 if self.deterministic else 2)
        sizes = (self.obs_dim + self.action_dim, *self.hidden, outputs)
        shapes = list(itertools.pairwise(sizes))
        ends = np.cumsum([i * o for i, o in shapes])
        draws = jax.random.truncated_normal(key, -2, 2, (ends[-1],))
        kernels = []
        for draw, (i, o) in zip(jnp.split(draws, ends[:-1]), shapes, strict=True):
            kernels.append(draw.reshape(i, o) / (2 * i**0.5))
        biases = [jnp.zeros(o) for _, o in shapes]
        low, high = (
            jnp.full(self.obs_dim + 1, bound, jnp.float32) for bound in self.log_var_bounds
        )
        return Params(tuple(kernels), tuple(biases), low, high)

    def _apply(self, params: Params, x: Array) -> tuple[Array, Array]:
        """Mean and log-variance [n, obs_dim + 1] of the targets, of one member at normalized inputs
        x [n, ...]."""
        *hidden, (kernel, bias) = zip(params.kernels, params.biases, strict=True)
        for weights, offset in hidden:
            x = self.activation(x @ weights + offset)
        out = x @ kernel + bias
        if self.deterministic:
            return out, jnp.full_like(out, -jnp.inf)
        mean, raw = jnp.split(out, 2, -1)
        low, high = params.min_log_var, params.max_log_var
        if not self.learn_bounds:
            low, high = lax.stop_gradient((low, high))
        return mean, low + _softplus(high - _softplus(high - raw) - low)

    def _predict(self, params: Params, inputs: Inputs, obs: Array, action: Array) -> Prediction:
        mean, log_var = self._apply(params, self._normalize(inputs, obs, action))
        if self.delta:
            mean = mean.at[:, :-1].add(obs)
        return Prediction(mean, jnp.exp(0.5 * log_var))

    def _normalize(self, inputs: Inputs, obs: Array, action: Array) -> Array:
        return (self._join(obs, action) - inputs.mean) / inputs.std

    def _join(self, obs: Array, action: Array) -> Array:
        if jnp.issubdtype(action.dtype, jnp.integer):
            action = jax.nn.one_hot(action, self.action_dim)
        return jnp.concatenate([obs, action], -1)

    def _target(self, batch: Batch) -> Array:
        next_obs = batch.next_obs.astype(jnp.float32) - (batch.obs if self.delta else 0)
        return jnp.concatenate([next_obs, batch.reward[:, None]], -1)

    def _rows(self, data: Any, size: Array | int | None) -> tuple["_Rows", Array]:
        """The fields that `fit` uses, and how many rows are real."""
        names = ("obs", "action", "reward", "next_obs")
        missing = [name for name in names if not hasattr(data, name)]
        if missing:
            raise Refused(
                f"fit: data (a {type(data).__name__}) has no {', '.join(missing)}; it must have "
                f"{', '.join(names)}"
            )
        rows = self._checked(**{name: getattr(data, name) for name in names})
        capacity = len(rows[0])
        size = capacity if size is None else size
        if not isinstance(size, jax.core.Tracer) and not 2 <= size <= capacity:
            raise Refused(
                f"fit: size={size} with {capacity} rows: must be from 2 (one to train on, one held "
                f"out) to {capacity}"
            )
        return rows, jnp.asarray(size, jnp.int32)

    def _checked(self, **given: Any) -> "_Rows":
        """What is given, as arrays whose shapes are right."""
        rows = {name: jnp.asarray(x) for name, x in given.items()}
        n = len(rows["obs"]) if rows["obs"].ndim else 0
        discrete = jnp.issubdtype(rows["action"].dtype, jnp.integer)
        action = (n,) if discrete else (n, self.action_dim)
        want = {
            "obs": (n, self.obs_dim),
            "action": action,
            "reward": (n,),
            "next_obs": (n, self.obs_dim),
        }
        for name, x in rows.items():
            if x.shape != want[name]:
                raise Refused(
                    f"{name} is {x.dtype}{list(x.shape)}, must have shape {list(want[name])} with "
                    f"obs_dim={self.obs_dim} and action_dim={self.action_dim}"
                )
        return tuple(rows.values())


_adam = optax.scale_by_adam()
_Rows = tuple[Array, ...]  # obs, action, reward, next_obs [capacity, ...]


class _Data(NamedTuple):
    """What one fit works on."""

    rows: _Rows
    order: Array
    """int32 [capacity]: rows held out, then those to train on, then those that are not real"""
    held: Array
    """int32 []: rows held out"""
    trained: Array
    """int32 []: rows to train on"""
    inputs: Inputs

    def take(self, at: Array, real: Array) -> Batch:
        """The rows at these places of `order`."""
        index = self.order[at]
        obs, action, reward, next_obs = (x[index] for x in self.rows)
        return Batch(obs, action, reward, next_obs, real.astype(jnp.float32))


class _Progress(NamedTuple):
    """Of a fit after some epochs."""

    epochs: Array
    stale: Array
    """epochs in which no member improved, the latest ones"""
    params: Params
    opt_state: Any
    loss: Array
    kept: Params
    """each member's snapshot, and in `best` its held-out error"""
    best: Array
    history: Array


def _member_keys(key: Array, members: int) -> Array:
    """A key for each member that does not depend on how many there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(members))


def _shuffle(key: Array, n: int, size: Array | int | None = None) -> Array:
    """A random order of range(n) that begins with a random order of range(size).

    Sorts random numbers whose low bits are the index: on a CPU, single words sort several times
    faster than pairs. Twice, because few random bits are left where n is large.
    """
    index = jnp.arange(n, dtype=jnp.uint32)
    low = jnp.uint32(2 ** (n - 1).bit_length() - 1)
    last = index >= (n if size is None else size)
    bits = jax.random.bits(key, (2, n)) >> 1 & ~low
    words = last.astype(jnp.uint32) << 31 | bits | index
    first, second = lax.sort(words, dimension=1) & low
    return first[second].astype(jnp.int32)


def _softplus(x: Array) -> Array:
    """log(1 + exp(x)); `jax.nn.softplus` makes a fit a tenth slower on a CPU, to be exact where
    this is 1e-7 off."""
    return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


# ---- how much the members know -------------------------------------------------------------------


def max_std(prediction: Prediction) -> Array:
    """max over members of |std|_2, [n]: what MOPO subtracts from the reward (Yu et al. 2020,
    section 5).

    def step(key, obs, action):
        next_obs, reward = model.step(state, key, obs, action)
        return next_obs, reward - penalty * max_std(model.predict(state, obs, action))
    """
    return jnp.linalg.norm(prediction.std, axis=-1).max(0)


def std_of_means(prediction: Prediction) -> Array:
    """Root of the variance over members of the means, averaged over dimensions, [n]: where members
    disagree."""
    return jnp.sqrt(prediction.mean.var(0).mean(-1))


# ---- rollouts ------------------------------------------------------------------------------------


def rollout(
    step: Callable,
    act: Callable,
    obs: Array,
    key: Array,
    horizon: int,
    terminate: Callable | None = None,
    length: Array | int | None = None,
) -> tuple[Transition, Array]:
    """Follow a policy inside a model from each of obs [n, obs_dim].

    Args:
      step: `step(key, obs, action) -> (next_obs, reward)`: any model,
      `functools.partial(model.step, state)` for one.
      act: `act(obs [n, ...], key) -> action [n, ...]`.
      terminate: `terminate(obs, action, next_obs) -> bool [n]`, for example `env.terminates`;
      None: nothing ends.
      length: steps taken, at most `horizon`; may be traced, as where rollouts grow in the course of
        training. Steps beyond it cost nothing, provided that `length` is not batched (derive it
        from `t`). None: `horizon`.

    Returns: transitions [horizon, n, ...] and `valid` [horizon, n]: False after a row has
      terminated, beyond `length`, and from where a prediction is not finite. Rows that are not
      valid are finite, with reward 0. `truncated` is True at the last step of rows that have not
      terminated by then.
    """

    def advance(obs: Array, alive: Array, i: Array) -> tuple:
        act_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        action = act(obs, act_key)
        next_obs, reward = step(step_key, obs, action)
        valid = alive & jnp.isfinite(next_obs).all(-1) & jnp.isfinite(reward)
        next_obs = jnp.where(valid[:, None], next_obs, obs)
        terminated = valid & (terminate(obs, action, next_obs) if terminate else False)
        alive = valid & ~terminated
        last = i == jnp.minimum(horizon if length is None else length, horizon) - 1
        reward = jnp.where(valid, reward, 0.0)
        row = Transition(obs, action, reward, terminated, alive & last, next_obs)
        return (next_obs, alive), (row, valid)

    def body(carry: tuple[Array, Array], i: Array) -> tuple:
        if length is None:
            return advance(*carry, i)
        _, shapes = jax.eval_shape(advance, *carry, i)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.cond(i < length, lambda: advance(*carry, i), lambda: (carry, zeros))

    start = (obs, jnp.ones(len(obs), bool))
    steps: tuple[Transition, Array]
    _, steps = lax.scan(body, start, jnp.arange(horizon))
    return steps


def pack(rows: Any, valid: Array) -> tuple[Any, Array]:
    """Rows [horizon, n, ...] as [horizon * n, ...] with the valid ones first, in their order, and
    their number.

    Draw from them with `jax.random.randint(key, (batch,), 0, size)`.
    """
    order = jnp.argsort(~valid.reshape(-1), stable=True)

    def packed(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])[order]

    return jax.tree.map(packed, rows), valid.sum()


# ---- termination ---------------------------------------------------------------------------------
