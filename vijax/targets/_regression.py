"""A linear regression's weights, of designs whose columns are large, or nearly equal, or more than the data."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike

from vijax.calls import is_known
from vijax.gaussians import dense


class Weights(NamedTuple):
    """The posterior of a regression's weights in units of the noise.

    Fields:
        mean: [*batch, d].
        cholesky: C of their precision Λ = C Cᵀ, [*batch, d, d].
        squares: of the residuals and of what the weights moved from loc, [*batch].
        shrunk: ½ log |prior precision| - ½ log |Λ|, [*batch].
    """

    mean: Array
    cholesky: Array
    squares: Array
    shrunk: Array


def regression(
    design: ArrayLike, y: ArrayLike, over: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> Weights:
    """Return the posterior of weights ~ N(loc, diag(scale²)), y ~ N(design · weights, I / over)."""
    # Of a design that is known while it is traced the coordinates are found then, once.
    with jax.ensure_compile_time_eval() if is_known(design) else nullcontext():
        design = floating(jnp.asarray(design))
        coordinates = _coordinates(jax.lax.stop_gradient(design)) if design.ndim == 2 else None
    y, over, loc, scale = (floating(jnp.asarray(x)) for x in (y, over, loc, scale))
    if coordinates is None or y.ndim == 0 or y.shape[-1] != design.shape[0]:
        raise ValueError(
            f"design must be [n, d] and y [*batch, n], got {design.shape} and {y.shape}; jax.vmap "
            "maps over designs."
        )
    d = design.shape[1]
    if any(x.ndim and x.shape[-1] != d for x in (loc, scale)):
        raise ValueError(
            f"loc and scale must be numbers or [*batch, d] with d = {d}, got {loc.shape}, "
            f"{scale.shape}."
        )
    batch = jnp.broadcast_shapes(y.shape[:-1], over.shape, loc.shape[:-1], scale.shape[:-1])
    prior = jnp.broadcast_to(1 / jnp.square(scale), (*batch, d))
    over = jnp.broadcast_to(over, batch)[..., None]
    cholesky = _factor(design, coordinates, over, prior)

    def left(weights: Array) -> Array:
        fitted = jnp.einsum("nd,...d->...n", design, weights, precision="highest")
        return jnp.subtract(*_alike(y, fitted))

    # One of Newton's steps, which leads to the mean but for rounding.
    def step(weights: Array) -> Array:
        pulled = jnp.einsum("nd,...n->...d", design, left(weights), precision="highest")
        slope = over * pulled - prior * (weights - loc)
        return weights + dense.solve(cholesky, slope)

    # Three of them: the first pulls data once that the batch shares, the last has all derivatives.
    first = jnp.broadcast_to(loc, (*loc.shape[:-1], d))
    pulled = jnp.einsum("nd,...n->...d", design, left(first), precision="highest")
    loc = jnp.broadcast_to(loc, (*batch, d))
    near = loc + dense.solve(cholesky, over * jnp.broadcast_to(pulled, (*batch, d)))
    mean = step(jax.lax.stop_gradient(step(near)))
    squares = over[..., 0] * jnp.sum(jnp.square(left(mean)), -1)
    squares += jnp.sum(prior * jnp.square(mean - loc), -1)
    shrunk = 0.5 * jnp.sum(jnp.log(prior), -1) - dense.half_log_det(cholesky)
    return Weights(mean, cholesky, squares, shrunk)


def floating(x: Array) -> Array:
    """Return numbers as floats, those of the default precision where they are none."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _alike(*arrays: Array) -> list[Array]:
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]


class _Coordinates(NamedTuple):
    """P of a design, Pᵀ P = Xᵀ X + E², upper triangular [d, d]; F = E P⁻¹; and the diagonal of E, [d]."""

    p: Array
    f: Array
    small: Array


def _coordinates(design: Array) -> _Coordinates:
    # A quarter of the digits for E, as much for what the data say beyond it.
    norms = jnp.sqrt(jnp.sum(jnp.square(design), 0))
    small = jnp.finfo(design.dtype).eps ** 0.25 * jnp.where(norms > 0, norms, 1)
    p = jnp.linalg.qr(jnp.concatenate([design, jnp.diag(small)]), mode="r")
    # With a positive diagonal, as a Cholesky factor has it
    p = p * jnp.where(jnp.diagonal(p) < 0, -1, 1)[:, None]
    f = small[:, None] * solve_triangular(p, jnp.eye(len(p), dtype=p.dtype))
    return _Coordinates(p, f, small)


def _factor(design: Array, at: _Coordinates, over: Array, prior: Array) -> Array:
    """Return the Cholesky factor of Λ = over Xᵀ X + diag(prior), [*batch, d, d].

        P⁻ᵀ Λ P⁻¹ = over I + Fᵀ (prior / E² - over) F

    Xᵀ X itself would lose half of the digits of nearly equal columns. In the coordinates P no number is far from the
    others. They are constant: a derivative in the design is that of P⁻ᵀ Xᵀ X P⁻¹.
    """
    unit = jnp.eye(len(at.p), dtype=at.p.dtype) + _moved(design, at.p)
    whitened = over[..., None] * jnp.broadcast_to(unit, (*prior.shape, len(at.p)))
    inner = prior / jnp.broadcast_to(jnp.square(at.small), prior.shape) - over
    whitened += jnp.einsum("ki,...k,kj->...ij", at.f, inner, at.f, precision="highest")
    root = jnp.linalg.cholesky(whitened)
    return jnp.einsum("ki,...kj->...ij", at.p, root, precision="highest")


@jax.custom_jvp
def _moved(design: Array, p: Array) -> Array:
    """Return how P⁻ᵀ Xᵀ X P⁻¹ differs from that of the design that P was made of: 0, with its derivatives."""
    return jnp.zeros_like(p)


@_moved.defjvp
def _moved_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    design, p = primals

    def of(design: Array) -> Array:
        white = solve_triangular(p, design.T, trans=1)
        return jnp.matmul(white, white.T, precision="highest")

    return _moved(*primals), jax.jvp(of, (design,), (tangents[0],))[1]
