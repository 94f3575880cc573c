"""Distributions that conjugate conditionals are made of: plain arrays with vijax's two methods.

Tuples of arrays, so that jax.vmap over whatever builds one gives one with a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln, gammaln
from jaxtyping import Array

from vijax.gaussians import Gaussian, dense
from vijax.gaussians.affine import LOG_2PI
from vijax.types import Distribution, PyTree


def _tiny(dtype: np.dtype[Any]) -> float:
    return float(jnp.finfo(dtype).tiny)


def _drawn(
    p: Distribution, draw: Callable[[Array], PyTree], seed: Array, sample_shape: Sequence[int]
) -> tuple[PyTree, Array]:
    """Return draws with log p of each; the sample axes are added outside, so that ranks agree within."""

    def one(key: Array) -> tuple[PyTree, Array]:
        z = draw(key)
        return z, p.log_prob(z)

    # One vmap for each sample axis, over keys [*sample_shape]
    for _ in sample_shape:
        one = jax.vmap(one)
    return one(jax.random.split(seed, tuple(sample_shape)) if sample_shape else seed)


def _log_beta(a: Array, b: Array) -> Array:
    """Return log B(a, b): JAX's is off by 1e-6 in float64 for small numbers, and the plain form cancels for large."""
    return jnp.where(a + b < 50, gammaln(a) + gammaln(b) - gammaln(a + b), betaln(a, b))


class Beta(NamedTuple):
    """Probabilities in (0, 1), both [*batch]."""

    a: Array
    b: Array

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[Array, Array]:
        # A draw rounded to the ends of the interval would have an infinite density.
        low, high = _tiny(self.a.dtype), 1 - float(jnp.finfo(self.a.dtype).epsneg)

        def draw(key: Array) -> Array:
            return jnp.clip(jax.random.beta(key, self.a, self.b, dtype=self.a.dtype), low, high)

        return _drawn(self, draw, seed, sample_shape)

    def center(self) -> Array:
        low, high = _tiny(self.a.dtype), 1 - float(jnp.finfo(self.a.dtype).epsneg)
        return jnp.clip(self.a / (self.a + self.b), low, high)

    def log_prob(self, z: Array, /) -> Array:
        return (self.a - 1) * jnp.log(z) + (self.b - 1) * jnp.log1p(-z) - _log_beta(self.a, self.b)


class Gamma(NamedTuple):
    """Positive numbers of shape parameter a and rate b, both [*batch]."""

    a: Array
    b: Array

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[Array, Array]:
        return _drawn(self, self.draw, seed, sample_shape)

    def draw(self, key: Array) -> Array:
        # A draw that underflows to 0 would have an infinite density.
        return jnp.maximum(
            jax.random.gamma(key, self.a, dtype=self.a.dtype) / self.b, _tiny(self.a.dtype)
        )

    def center(self) -> Array:
        return jnp.maximum(self.a / self.b, _tiny(self.a.dtype))

    def log_prob(self, z: Array, /) -> Array:
        # b a rate: bᵃ z^(a-1) e^(-b z) / Γ(a)
        return self.a * jnp.log(self.b) + (self.a - 1) * jnp.log(z) - self.b * z - gammaln(self.a)


class Dirichlet(NamedTuple):
    """Points of the simplex, concentration [*batch, s]."""

    concentration: Array

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[Array, Array]:
        c = self.concentration

        # Gamma variables normalized, in logs: small concentrations underflow otherwise.
        def soft(key: Array) -> Array:
            return jax.nn.softmax(jax.random.loggamma(key, c, dtype=c.dtype))

        return _drawn(self, lambda key: jnp.maximum(soft(key), _tiny(c.dtype)), seed, sample_shape)

    def center(self) -> Array:
        c = self.concentration
        return jnp.maximum(c / jnp.sum(c, -1, keepdims=True), _tiny(c.dtype))

    def log_prob(self, z: Array, /) -> Array:
        c = self.concentration
        return jnp.sum((c - 1) * jnp.log(z) - gammaln(c), -1) + gammaln(jnp.sum(c, -1))


class NormalGamma(NamedTuple):
    """A precision of Gamma(a, b) and a mean of N(loc, 1 / (strength precision)), all [*batch]."""

    loc: Array
    strength: Array
    a: Array
    b: Array

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[dict[str, Array], Array]:
        return _drawn(self, self.draw, seed, sample_shape)

    def draw(self, key: Array) -> dict[str, Array]:
        # The precision first, then the mean given it
        of_precision, of_mean = jax.random.split(key)
        precision = Gamma(self.a, self.b).draw(of_precision)
        e = jax.random.normal(of_mean, precision.shape, precision.dtype)
        return {
            "mean": self.loc + e * jax.lax.rsqrt(self.strength * precision),
            "precision": precision,
        }

    def center(self) -> dict[str, Array]:
        return {"mean": self.loc, "precision": Gamma(self.a, self.b).center()}

    def log_prob(self, z: dict[str, Array], /) -> Array:
        precision = z["precision"]
        # The mean's own precision given that of the data
        scaled = self.strength * precision
        of_mean = 0.5 * (jnp.log(scaled) - LOG_2PI - scaled * jnp.square(z["mean"] - self.loc))
        return of_mean + Gamma(self.a, self.b).log_prob(precision)


class NormalInverseGamma(NamedTuple):
    """A variance of InverseGamma(a, b) [*batch], and weights N(mean, variance (C Cᵀ)⁻¹) of mean [*batch, d]."""

    mean: Array
    cholesky: Array
    a: Array
    b: Array

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[dict[str, Array], Array]:
        return _drawn(self, self.draw, seed, sample_shape)

    def draw(self, key: Array) -> dict[str, Array]:
        of_variance, of_weights = jax.random.split(key)
        precision = Gamma(self.a, self.b).draw(of_variance)
        # C⁻ᵀ e has covariance (C Cᵀ)⁻¹, to be scaled by the standard deviation.
        w = dense.push(
            self.cholesky, jax.random.normal(of_weights, self.mean.shape, self.mean.dtype)
        )
        return {
            "weights": self.mean + w * jax.lax.rsqrt(precision)[..., None],
            "variance": 1 / precision,
        }

    def center(self) -> dict[str, Array]:
        return {"weights": self.mean, "variance": 1 / Gamma(self.a, self.b).center()}

    def log_prob(self, z: dict[str, Array], /) -> Array:
        variance = z["variance"]
        # N(w; mean, variance Λ⁻¹) is N(scaled; 0, Λ⁻¹) with a Jacobian of variance^(-d/2).
        scaled = (z["weights"] - self.mean) * jax.lax.rsqrt(variance)[..., None]
        of_weights = Gaussian(jnp.zeros_like(self.mean), self.cholesky, dense).log_prob(scaled)
        of_weights = of_weights - 0.5 * self.mean.shape[-1] * jnp.log(variance)
        # Of the variance, whose reciprocal is the gamma variable: the Jacobian is variance⁻².
        return of_weights + Gamma(self.a, self.b).log_prob(1 / variance) - 2 * jnp.log(variance)
