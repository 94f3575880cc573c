"""Small matrices, and the associative algebra of Gaussian steps that the parallel forms scan over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.sequences._model import Steps


def before(a: Array) -> Array:
    """Return what stands one step earlier, [T, ...], with 0 before the first."""
    return jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]])


def after(a: Array) -> Array:
    """Return what stands one step later, [T, ...], with 0 after the last."""
    return jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])


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
    return (
        b / lower
        if lower.shape[-1] == 1
        else jax.scipy.linalg.solve_triangular(lower, b, lower=True)
    )


def backward(lower: Array, b: Array) -> Array:
    """Return L⁻ᵀ b."""
    return (
        b / lower
        if lower.shape[-1] == 1
        else jax.scipy.linalg.solve_triangular(lower, b, lower=True, trans=1)
    )


def log_det(lower: Array) -> Array:
    """Return log |L Lᵀ| = 2 log |L|."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), -1)


def quadratic_form(lower: Array, a: Array) -> Array:
    """Return a (L Lᵀ)⁻¹ aᵀ, as a sum of squares."""
    half = forward(lower, transpose(a))
    return transpose(half) @ half


def correct(cov: Array, s: Steps) -> tuple[Array, Array, Array]:
    """Return `corrected` of a step."""
    return corrected(cov, s.emission, s.emission_cov)


def corrected(cov: Array, emission: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Return the gain of an observation, the covariance it leaves, and the factor of its own.

    In Joseph's form, a sum of two squares: from a start that knows little, the short form P - K S Kᵀ loses ten
    times as much in float32, and may turn negative (tests/sequences/test_precision.py). Square roots by QR lose less
    still, but have no derivative where a covariance is singular, as that of a diffuse start or a companion form is.
    """
    # S = H P Hᵀ + R, and K = P Hᵀ S⁻¹
    lower = cholesky(symmetric(emission @ cov @ transpose(emission) + noise))
    gain = transpose(backward(lower, forward(lower, emission @ cov)))
    # P₊ = (I - K H) P (I - K H)ᵀ + K R Kᵀ
    kept = jnp.eye(cov.shape[-1], dtype=cov.dtype) - gain @ emission
    left = kept @ cov @ transpose(kept) + gain @ noise @ transpose(gain)
    return gain, symmetric(left), lower


class Element(NamedTuple):
    """What some steps i..j say, given the state before them, of covariances: those need no data.

        p(zⱼ | zᵢ₋₁, xᵢ..ⱼ) = N(gain zᵢ₋₁ + ..., cov),    p(xᵢ..ⱼ | zᵢ₋₁) ∝ exp(... - ½ zᵢ₋₁ᵀ precision zᵢ₋₁)

    Means are left out, unlike in the reference (Särkkä, García-Fernández, 2021): given all gains they are an affine
    recursion, itself associative, and in float32 that is where the parallel form lost its digits.
    """

    gain: Array  # [d, d]
    cov: Array  # [d, d]
    precision: Array  # [d, d]


def element(s: Steps) -> tuple[Element, Array, Array]:
    """Return what one step says: the element, the mean where zₜ₋₁ = 0, and the slope of log p(xₜ | zₜ₋₁) there."""
    gain, cov, lower = correct(s.cov, s)
    # xₜ given zₜ₋₁ = N(H A zₜ₋₁ + ..., S): its information about zₜ₋₁ is (H A)ᵀ S⁻¹ H A.
    ahead = s.emission @ s.transition
    white = forward(lower, ahead)
    surprise = s.x - s.emission @ s.offset
    eta = transpose(white) @ forward(lower, surprise)
    return (
        Element(s.transition - gain @ ahead, cov, transpose(white) @ white),
        s.offset + gain @ surprise,
        eta,
    )


def tell(e: Element, precision: Array) -> tuple[Array, Array]:
    """Return gain and cov of steps whose last state is also told exp(... - ½ zᵀ precision z).

    Both covariances here and in `pull` are sums of squares again, and take no inverse of C, which may be singular: with
    X = (I + C J)⁻¹ A,  Aᵀ (I + J C)⁻¹ J A = Xᵀ J X + (J X)ᵀ C (J X).
    """
    unit = jnp.eye(e.cov.shape[-1], dtype=e.cov.dtype)
    # One solve for (I + C J)⁻¹ [A, C, I]
    right = jnp.concatenate([e.gain, e.cov, unit], -1)
    m, d = e.gain.shape[-1], e.cov.shape[-1]
    gain, cov, kept = jnp.split(solve(unit + e.cov @ precision, right), [m, m + d], -1)
    return gain, symmetric(kept @ e.cov @ transpose(kept) + cov @ precision @ transpose(cov))


def pull(e: Element, gain: Array, precision: Array) -> Array:
    """Carry what is told of the last state back to the state before; `gain` is that of `tell`."""
    weighed = precision @ gain
    # Xᵀ J X + (J X)ᵀ C (J X), and what the steps say themselves
    carried = transpose(gain) @ weighed + transpose(weighed) @ e.cov @ weighed
    return symmetric(carried + e.precision)


def combine(first: Element, then: Element) -> Element:
    """Return what two adjacent runs of steps say together; associative."""
    # The first run as the second one's data see it, carried through the second
    gain, cov = tell(first, then.precision)
    ahead = then.gain @ cov @ transpose(then.gain) + then.cov
    return Element(then.gain @ gain, symmetric(ahead), pull(first, gain, then.precision))
