"""Gaussians whose covariance is an L-BFGS estimate of an inverse Hessian: a diagonal and a few directions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vijax.types import PyTree


class QuasiNewton(NamedTuple):
    """A Gaussian over a pytree: a diagonal, bent along a few directions. It is a pytree, and so its own parameters.

        z = loc + s ⊙ (e + A B e),   e ~ N(0, I);     log q(z) = log N(e) - Σ log s - log |det(I + B A)|

    What `pathfinder` finds, in O(d J) numbers and operations. It is a q for every objective, on from where the path
    ended: jax.grad(lambda q: reparam(elbo)(key, log_joint, q, num_samples=K).value)(found.q).

    Fields:
        loc: the mean, like z.
        log_scale: log s, [d], in the order of the leaves.
        left: A, [d, J].
        right: B, [J, d].
    """

    loc: PyTree
    log_scale: Array
    left: Array
    right: Array

    @property
    def uniforms(self) -> tuple[int, ...]:
        """Return the shape of the noise, and of the uniforms that `transport` takes."""
        return self.log_scale.shape

    def affine(self, e: Float[Array, " d"]) -> PyTree:
        """Carry standard normal noise to a draw."""
        loc, unravel = ravel_pytree(self.loc)
        return unravel(loc + jnp.exp(self.log_scale) * (e + self.left @ (self.right @ e)))

    def transport(self, u: Float[Array, " d"]) -> PyTree:
        """Carry uniforms to a draw, smoothly in the parameters."""
        u = u.astype(jnp.promote_types(self.log_scale.dtype, jnp.float32))
        e = jax.scipy.special.ndtri(jnp.clip(u, jnp.finfo(u.dtype).tiny, 1 - jnp.finfo(u.dtype).epsneg))
        return self.affine(e.astype(self.log_scale.dtype))

    def density(self, e: Float[Array, " d"]) -> Array:
        """Return log q of the draw that standard normal noise becomes, () in nats."""
        log_det = jnp.sum(self.log_scale) + jnp.linalg.slogdet(self._small())[1]
        return -0.5 * jnp.sum(jnp.square(e)) - 0.5 * e.size * math.log(2 * math.pi) - log_det

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), () in nats."""
        if jax.tree.map(jnp.shape, z) != (like := jax.tree.map(jnp.shape, self.loc)):
            raise ValueError(f"z must be one draw, {like}, got {jax.tree.map(jnp.shape, z)}; for several use jax.vmap.")
        x = (ravel_pytree(z)[0] - ravel_pytree(self.loc)[0]) * jnp.exp(-self.log_scale)
        return self.density(x - self.left @ jnp.linalg.solve(self._small(), self.right @ x))

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[PyTree, Array]:
        """Draw z and return it with its log-density."""
        one: Callable[[Array], Any] = lambda e: (self.affine(e), self.density(e))  # noqa: E731
        for _ in sample_shape:
            one = jax.vmap(one)
        return one(jax.random.normal(seed, (*sample_shape, *self.uniforms), self.log_scale.dtype))

    def variance(self) -> PyTree:
        """Return the variance of each element, like z."""
        inner = self.right @ self.right.T
        bent = 1 + 2 * jnp.sum(self.left * self.right.T, 1) + jnp.sum((self.left @ inner) * self.left, 1)
        return ravel_pytree(self.loc)[1](jnp.exp(2 * self.log_scale) * bent)

    def _small(self) -> Array:
        return jnp.eye(self.right.shape[0], dtype=self.right.dtype) + self.right @ self.left


class History(NamedTuple):
    """The last J pairs of an L-BFGS climb that had curvature, and the diagonal that they started from.

    Fields:
        alpha: the diagonal's running estimate, [d].
        steps: s, [J, d], the oldest first; zeros where there was none yet.
        slopes: y, the fall of the gradient along them, [J, d].
    """

    alpha: Array
    steps: Array
    slopes: Array


def remember(history: History, s: Float[Array, " d"], y: Float[Array, " d"]) -> History:
    """Add a pair, unless the function does not curve down along it; and fit the diagonal to it."""
    alpha = history.alpha
    curvature = s @ y
    curved = curvature > jnp.finfo(s.dtype).eps * (y @ y)
    b = jnp.where(curved, curvature, 1.0)
    a, c = jnp.sum(alpha * y**2), jnp.sum(s**2 / alpha)
    found = 1 / (a / (b * alpha) + y**2 / b - a * s**2 / (b * jnp.where(c > 0, c, 1.0) * alpha**2))
    curved = curved & jnp.all(jnp.isfinite(found) & (found > 0))
    later = History(
        found, jnp.concatenate([history.steps[1:], s[None]]), jnp.concatenate([history.slopes[1:], y[None]])
    )
    return jax.tree.map(lambda new, old: jnp.where(curved, new, old), later, history)


def gaussian(position: Array, slope: Array, history: History, unravel: Callable[[Array], PyTree]) -> QuasiNewton:
    """Return N(θ + H ∇log p(θ), H), H the BFGS estimate from a history.

    In units of √α a BFGS update is H₊ = (I - s wᵀ) H (I - w sᵀ), w = y/(sᵀy) - B s / √(sᵀy · sᵀB s), B = H⁻¹: a factor
    of H takes one direction more for each pair, and is regular by construction, also where rounding would leave a sum
    of outer products without a Cholesky factor.
    """
    scale = jnp.sqrt(history.alpha)
    pairs, size = history.steps.shape
    small = lambda left, right: jnp.eye(pairs, dtype=left.dtype) + right @ left.T  # noqa: E731

    def add(factor: tuple[Array, Array], pair: Any) -> tuple[tuple[Array, Array], None]:
        left, right = factor  # both [J, d]: the factor is I + leftᵀ right
        i, s, y = pair
        s, y = s / scale, y * scale
        there = jnp.any(s != 0)
        inner = small(left, right)
        half = s - left.T @ jnp.linalg.solve(inner, right @ s)  # (I + leftᵀ right)⁻¹ s
        turned = half - right.T @ jnp.linalg.solve(inner.T, left @ half)  # B s
        curvature, before = jnp.where(there, s @ y, 1.0), jnp.where(there, half @ half, 1.0)
        w = y / curvature - turned / jnp.sqrt(curvature * before)
        row = w + (left @ w) @ right
        return (left.at[i].set(-s), right.at[i].set(jnp.where(there, row, 0.0))), None

    nothing = jnp.zeros((pairs, size), scale.dtype)
    (left, right), _ = jax.lax.scan(add, (nothing, nothing), (jnp.arange(pairs), history.steps, history.slopes))
    push = lambda e: scale * (e + left.T @ (right @ e))  # noqa: E731
    pull = lambda g: (scale * g) + right.T @ (left @ (scale * g))  # noqa: E731
    return QuasiNewton(unravel(position + push(pull(slope))), jnp.log(scale), left.T, right)
