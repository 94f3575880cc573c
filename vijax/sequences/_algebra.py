"""Small matrices, and the associative algebra of Gaussian steps that the parallel forms scan over."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.sequences._model import Steps


def transpose(a: Array) -> Array:
    """Swap the last two axes."""
    return jnp.swapaxes(a, -1, -2)


def symmetric(a: Array) -> Array:
    """Take out what rounding made asymmetric, which a recursion would otherwise feed."""
    return 0.5 * (a + transpose(a))


# A linear-algebra call for each number would be most of the time of a chain of scalars.


def solve(a: Array, b: Array) -> Array:
    """Return a⁻¹ b."""
    return b / a if a.shape[-1] == 1 else jnp.linalg.solve(a, b)


def cholesky(a: Array) -> Array:
    """Return the lower factor of a symmetric matrix; nan where it is not positive definite."""
    return jnp.sqrt(a) if a.shape[-1] == 1 else jnp.linalg.cholesky(a)


def forward(lower: Array, b: Array) -> Array:
    """Return L⁻¹ b."""
    return b / lower if lower.shape[-1] == 1 else jax.scipy.linalg.solve_triangular(lower, b, lower=True)


def backward(lower: Array, b: Array) -> Array:
    """Return L⁻ᵀ b."""
    return b / lower if lower.shape[-1] == 1 else jax.scipy.linalg.solve_triangular(lower, b, lower=True, trans=1)


def log_det(lower: Array) -> Array:
    """Return log |L Lᵀ| = 2 log |L|."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), -1)


class Element(NamedTuple):
    """What some steps i..j say, given the state before them (Särkkä, García-Fernández, 2021).

        p(zⱼ | zᵢ₋₁, xᵢ..ⱼ) = N(gain zᵢ₋₁ + offset, cov),    p(xᵢ..ⱼ | zᵢ₋₁) ∝ exp(ηᵀ zᵢ₋₁ - ½ zᵢ₋₁ᵀ precision zᵢ₋₁)
    """

    gain: Array  # [d, d]
    offset: Array  # [d, c]
    cov: Array  # [d, d]
    eta: Array  # [d, c]
    precision: Array  # [d, d]


def update(mean: Array, cov: Array, s: Any) -> tuple[Array, Array, Array, Array]:
    """Condition N(mean, cov) on a step's observation; also the innovation, whitened, and its covariance's factor.

    In Joseph's form, a sum of two squares: measured in float32 against float64, it keeps covariances positive where
    the short form P - K S Kᵀ turns negative (see tests/sequences/test_precision.py).
    """
    lower = cholesky(symmetric(s.emission @ cov @ transpose(s.emission) + s.emission_cov))
    half = forward(lower, s.emission @ cov)
    gain = transpose(backward(lower, half))
    white = forward(lower, s.x - s.emission @ mean)
    kept = jnp.eye(cov.shape[-1], dtype=cov.dtype) - gain @ s.emission
    joseph = kept @ cov @ transpose(kept) + gain @ s.emission_cov @ transpose(gain)
    return mean + transpose(half) @ white, symmetric(joseph), white, lower


def element(s: Steps) -> Element:
    """Return what one step says."""
    offset, cov, white, lower = update(s.offset, s.cov, s)
    seen = forward(lower, s.emission @ s.transition)
    gain = transpose(backward(lower, forward(lower, s.emission @ s.cov)))
    return Element(
        s.transition - gain @ (s.emission @ s.transition),
        offset,
        cov,
        transpose(seen) @ white,
        symmetric(transpose(seen) @ seen),
    )


def condition(e: Element, eta: Array, precision: Array) -> tuple[Array, Array, Array]:
    """Return the gain, offset and cov of steps whose last state is also told exp(ηᵀz - ½ zᵀ precision z).

    Both covariances here and in `pull` are sums of squares again: with X = (I + C J)⁻¹ A,  Aᵀ (I + J C)⁻¹ J A =
    Xᵀ J X + (J X)ᵀ C (J X).
    """
    d = e.cov.shape[-1]
    told = jnp.eye(d, dtype=e.cov.dtype) + e.cov @ precision
    right = jnp.concatenate([e.gain, e.offset + e.cov @ eta, e.cov, jnp.eye(d, dtype=e.cov.dtype)], -1)
    m = e.gain.shape[-1]
    gain, offset, cov, kept = jnp.split(solve(told, right), [m, m + e.offset.shape[-1], right.shape[-1] - d], -1)
    return gain, offset, symmetric(kept @ e.cov @ transpose(kept) + cov @ precision @ transpose(cov))


def pull(e: Element, gain: Array, eta: Array, precision: Array) -> tuple[Array, Array]:
    """Carry what is told of the last state back to the state before; `gain` is that of `condition`."""
    seen = precision @ gain
    back = transpose(gain) @ seen + transpose(seen) @ e.cov @ seen
    return transpose(gain) @ (eta - precision @ e.offset) + e.eta, symmetric(back + e.precision)


def combine(first: Element, then: Element) -> Element:
    """Return what two adjacent runs of steps say together; associative."""
    gain, offset, cov = condition(first, then.eta, then.precision)
    eta, precision = pull(first, gain, then.eta, then.precision)
    ahead = then.gain @ cov @ transpose(then.gain) + then.cov
    return Element(then.gain @ gain, then.gain @ offset + then.offset, symmetric(ahead), eta, precision)
