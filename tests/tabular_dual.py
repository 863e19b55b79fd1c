"""Exact solvers of Dual RL's programs on small tables, in NumPy and SciPy (arXiv 2302.08560).

A problem has S observations and A actions. Occupancies are normalized, [S, A]; policies are [S, A];
P[s, a, s'] are chances. Regularizers are weighted by alpha.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize as so
from scipy.special import logsumexp, softmax


class Problem(NamedTuple):
    P: np.ndarray
    reward: np.ndarray
    start: np.ndarray
    gamma: float

    @property
    def flow(self):
        """F with F @ d.ravel() = (1 - gamma) start for every occupancy d: [S, S A]."""
        S, A = self.reward.shape
        out = np.repeat(np.eye(S), A, axis=1)
        return out - self.gamma * self.P.reshape(S * A, S).T

    def follow(self, policy):
        """Chances from observation to observation."""
        return np.einsum("sa,sat->st", policy, self.P)

    def occupancy(self, policy):
        S = len(self.start)
        visits = np.linalg.solve(
            np.eye(S) - self.gamma * self.follow(policy).T, (1 - self.gamma) * self.start
        )
        return visits[:, None] * policy

    def values(self, policy):
        rewards = (policy * self.reward).sum(1)
        return np.linalg.solve(np.eye(len(rewards)) - self.gamma * self.follow(policy), rewards)

    def backup(self, V):
        """r + gamma E V: [S, A]."""
        return self.reward + self.gamma * self.P @ V

    def optimum(self):
        """The best (1 - gamma) return, by a linear program."""
        goal = (1 - self.gamma) * self.start
        found = so.linprog(-self.reward.ravel(), A_eq=self.flow, b_eq=goal, bounds=(0, None))
        return -found.fun


def random_problem(rng, S=6, A=3, gamma=0.9):
    P = rng.dirichlet(np.ones(S) * 0.4, size=(S, A))
    return Problem(P, rng.random((S, A)), rng.dirichlet(np.ones(S)), gamma)


# ---- dual-V, full gradient -----------------------------------------------------------------------


def chi_square(y):
    """Conjugate over w >= 0 of (w - 1)^2, and the maximizing w."""
    return np.where(y > -2, y + y * y / 4, -1.0), np.maximum(0.0, 1 + y / 2)


def kl(y):
    """Conjugate of w log w - w + 1, and the maximizing w."""
    w = np.exp(np.minimum(y, 60))
    return w - 1, w


class Dual(NamedTuple):
    value: float
    occupancy: np.ndarray
    weight: np.ndarray


def dual_v(problem, behavior, alpha, conjugate):
    """Minimum over V of (1 - gamma) E V + alpha E_data f*((r + gamma V' - V) / alpha)."""
    data = problem.occupancy(behavior)
    goal = (1 - problem.gamma) * problem.start

    def parts(V):
        return conjugate((problem.backup(V) - V[:, None]) / alpha)

    def objective(V):
        conj, w = parts(V)
        slope = goal - problem.flow @ (data * w).ravel()
        return goal @ V + alpha * (data * conj).sum(), slope

    options = {"gtol": 1e-10, "maxiter": 20_000}
    start = problem.values(behavior)
    found = so.minimize(objective, start, jac=True, method="BFGS", options=options)
    weight = parts(found.x)[1]
    return Dual(found.fun, data * weight, weight)


def primal_chi_square(problem, behavior, alpha):
    """Maximum over occupancies d of E_d r - alpha chi^2(d || data), by quadratic programming."""
    data = problem.occupancy(behavior).ravel()
    reward, goal = problem.reward.ravel(), (1 - problem.gamma) * problem.start
    flow = {
        "type": "eq",
        "fun": lambda d: problem.flow @ d - goal,
        "jac": lambda d: problem.flow,
    }
    found = so.minimize(
        lambda d: -(d @ reward) + alpha * ((d - data) ** 2 / data).sum(),
        data,
        jac=lambda d: -reward + 2 * alpha * (d - data) / data,
        constraints=[flow],
        bounds=[(0, None)] * data.size,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 2000},
    )
    return -found.fun


# ---- semi-gradient dual-V ------------------------------------------------------------------------


def fixed_point(problem, behavior, estimate, iterations=300):
    """V of V(s) = estimate(backup(V)[s], behavior[s]), an implicit maximum over actions."""
    V = np.zeros(len(problem.start))
    for _ in range(iterations):
        Q = problem.backup(V)
        new = np.array([estimate(q, p) for q, p in zip(Q, behavior, strict=True)])
        if np.abs(new - V).max() < 1e-10:
            break
        V = new
    return V


def support_values(problem):
    """V* where the data hold every action."""
    V = np.zeros(len(problem.start))
    for _ in range(2000):
        V = problem.backup(V).max(1)
    return V


def quantile(q, p, level):
    """The quantile of q with chances p."""
    order = np.argsort(q)
    return q[order][np.searchsorted(np.cumsum(p[order]), level - 1e-12)]


def soft_maximum(q, p, beta):
    return beta * logsumexp(q / beta, b=p)


def root(slope, low, high):
    """Where a falling function crosses zero, by halving."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return high


def chi_square_maximum(q, p, weight, piecewise):
    """The minimum over v of (1 - weight) v + weight f(q - v), where its derivative is 0."""

    def slope(v):
        gap = q - v
        grows = gap > 0 if piecewise else (gap > 0) | (gap < -4)
        return (p * (weight * np.where(grows, 1 + gap / 2, 0.0) - (1 - weight))).sum()

    return root(slope, q.min() - 50, q.max() + 5)


# ---- ReCOIL --------------------------------------------------------------------------------------


class Imitation(NamedTuple):
    problem: Problem
    expert: np.ndarray
    """occupancy"""
    data: np.ndarray
    """occupancy of the suboptimal data"""
    beta: float

    @property
    def mixture(self):
        return self.beta * self.expert + (1 - self.beta) * self.data

    def inner(self, policy):
        """Minimum over Q of ReCOIL-Q's chi-square objective for a policy, and that Q [S A]."""
        S, A = policy.shape
        gamma, mix = self.problem.gamma, self.mixture.ravel()
        step = np.einsum("sat,tb->satb", self.problem.P, policy).reshape(S * A, S * A)
        residual = gamma * step - np.eye(S * A)
        first = (self.problem.start[:, None] * policy).ravel()
        linear = self.beta * (1 - gamma) * first
        linear = linear + residual.T @ (mix - (1 - self.beta) * self.data.ravel())
        hessian = residual.T @ np.diag(mix) @ residual / 2
        Q = -np.linalg.solve(hessian, linear)
        return linear @ Q + 0.5 * Q @ hessian @ Q, Q

    def divergence(self, policy):
        """chi^2 of the policy's mixture with the data from the expert's."""
        own = self.beta * self.problem.occupancy(policy) + (1 - self.beta) * self.data
        return ((own - self.mixture) ** 2 / self.mixture).sum()

    def ascend(self, iterations):
        """The best softmax policy, and its value."""
        shape = self.expert.shape

        def policy(logits):
            return softmax(logits.reshape(shape), axis=1)

        found = so.minimize(
            lambda logits: -self.inner(policy(logits))[0],
            np.zeros(self.expert.size),
            method="BFGS",
            options={"maxiter": iterations},
        )
        return policy(found.x), -found.fun

    def distance(self, policy, expert_policy):
        """Total variation of the policies, weighted by the expert's visits."""
        return 0.5 * (self.expert.sum(1) * np.abs(policy - expert_policy).sum(1)).sum()

    def dual_v(self, V):
        """ReCOIL-V's full-gradient objective and its gradient."""
        gamma, goal = self.problem.gamma, (1 - self.problem.gamma) * self.problem.start
        y = gamma * self.problem.P @ V - V[:, None]
        conj, w = chi_square(y)
        value = self.beta * goal @ V + (self.mixture * conj).sum()
        value -= (1 - self.beta) * (self.data * y).sum()
        moved = self.mixture * w - (1 - self.beta) * self.data
        return value, self.beta * goal - self.problem.flow @ moved.ravel()
