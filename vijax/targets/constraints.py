"""Maps of free numbers onto constrained ones, with their exact log-Jacobians: for `targets.transform`.

Each is a `Constraint`, a value; leading axes are free, and a constraint's own axes come last.

    positive  softplus  interval(low, high)  affine(loc, scale)  ordered  simplex  cholesky_correlation  ...

They are total: z never touches its boundary, in float32 either, so that log_joint is not asked there. It stops at the
next number inside or, where that would be absurdly small or large, in float32 at 5e-10 (a scale, whose inverse cube the
slope of a normal's log-density holds), 2e-19 (a probability) and 5e18, in float64 at 1e-77, 1e-154 and 1e154; the
density of y goes on to fall. The inverses give ±inf at the boundary, and nan outside; those of `simplex` and of
`cholesky_correlation` first scale a vector or a row to one, so that .33, .33, .33 will do. Arithmetic is in y's dtype,
of half precision in float32; float16, whose numbers end at 6e-5 and 65504, stops at 1e-4 and 65504.

Reference: Stan reference manual, 2024, Constraint transforms; Kucukelbir, Tran, Ranganath, Gelman, Blei, Automatic
    differentiation variational inference, 2017, arXiv:1603.00788.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, ArrayLike

from vijax.numerics import with_score
from vijax.targets._range import (
    bound_like,
    in_any_precision,
    last_axis,
    next_number,
    on_diagonal,
    side_of_triangle,
    smallest,
    strictly_inside,
    within_reach,
)


class Constraint(NamedTuple):
    """A smooth map of all of ℝⁿ onto the values that a latent may take, one to one.

    Fields:
        forward: y [..., *free] -> (z [..., *event], log |det ∂z/∂y| [...] in nats), of z's free coordinates.
        inverse: z -> y.
    """

    forward: Callable[[Array], tuple[Array, Array]]
    inverse: Callable[[Array], Array]


# --- one number at a time: z and the log-Jacobian have y's shape


def _exp(y: Array) -> tuple[Array, Array]:
    held = within_reach(y, -0.5, 1.0)
    # e^y would go on to 0 and inf; here z stays, and the density falls, so that nothing drifts away.
    return jnp.exp(held), held - jnp.abs(y - held)


def _softplus(y: Array) -> tuple[Array, Array]:
    return jax.nn.softplus(within_reach(y, -0.5, math.inf)), log_sigmoid(y)


real = Constraint(lambda y: (y, jnp.zeros_like(y)), lambda z: z)
"""Any number, z = y; what None stands for."""


def _above_zero(z: Array) -> Array:
    return jnp.maximum(z, smallest(z, 0.5))


positive = Constraint(*in_any_precision(_exp, jnp.log, _above_zero))
"""z > 0 by z = eʸ, log J = y: a Gaussian q over y is log-normal over z. For scales and rates, the first to try."""

softplus = Constraint(
    *in_any_precision(_softplus, lambda z: z + jnp.log(-jnp.expm1(-z)), _above_zero)
)
"""z > 0 by z = log(1 + eʸ), log J = log σ(y): Gaussian itself where z is large, as a scale far from 0 is."""


def interval(low: ArrayLike | None = None, high: ArrayLike | None = None) -> Constraint:
    """Return the constraint low < z < high, either of them None for no bound on that side.

        z = low + (high - low) σ(y),  log J = log (high - low) + log σ(y) + log σ(-y);     or low + eʸ, high - eʸ

    Bounds may depend on other latents; where low ≥ high, only seen while running, the log-Jacobian is nan.

    Args:
        low: numbers, or an array of z's rank that broadcasts to its shape.
        high: the same.

    Raises:
        TypeError: for a bound that is not made of numbers.
        ValueError: for no bound at all, one that is infinite or nan, or low ≥ high, where they are known.
    """
    bounds = {name: bound for name, bound in (("low", low), ("high", high)) if bound is not None}
    if not bounds:
        raise ValueError(
            "interval needs low, high or both; a latent without bounds has the constraint None."
        )
    known = {
        name: np.asarray(bound)
        for name, bound in bounds.items()
        if not isinstance(bound, jax.core.Tracer)
    }
    for name, bound in known.items():
        if not jnp.issubdtype(bound.dtype, jnp.number):
            raise TypeError(
                f"{name} must be numbers, got {bound!r:.40}; a constraint is interval(low, high)."
            )
        if not np.all(np.isfinite(bound)):
            raise ValueError(
                f"{name} must be finite, got {bound}; leave it None for no bound on that side."
            )
    if len(known) == 2 and not np.all(known["low"] < known["high"]):
        raise ValueError(f"low must be below high, got {low} and {high}.")

    def ends(like: Array) -> tuple[Array | None, Array | None]:
        bottom = None if low is None else bound_like(low, like, "low")
        return bottom, None if high is None else bound_like(high, like, "high")

    def forward(y: Array) -> tuple[Array, Array]:
        bottom, top = ends(y)
        if bottom is not None and top is not None:
            held, width = within_reach(y, -0.5, 0.5), top - bottom
            # From the nearer end, so that what is close to 0 keeps its digits.
            z = jnp.where(y < 0, bottom + width * sigmoid(held), top - width * sigmoid(-held))
            return strictly_inside(z, bottom, top), jnp.log(width) + log_sigmoid(y) + log_sigmoid(
                -y
            )
        gap, log_jacobian = _exp(y)
        z = jnp.asarray(top) - gap if bottom is None else bottom + gap
        return strictly_inside(z, bottom, top), log_jacobian

    def inverse(z: Array) -> Array:
        bottom, top = ends(z)
        if bottom is None:
            return jnp.log(jnp.asarray(top) - z)
        below = jnp.log(z - bottom)
        return below if top is None else below - jnp.log(top - z)

    return Constraint(*in_any_precision(forward, inverse, lambda z: strictly_inside(z, *ends(z))))


def affine(loc: ArrayLike, scale: ArrayLike) -> Constraint:
    """Return no constraint but other units: z in standard deviations `scale` from `loc`, the non-centred form.

        z = loc + scale · y,   log J = log scale

    For latents of a hierarchy, with loc and scale among the earlier leaves; where data say little of each latent, the
    posterior of y is nearly independent of the scale's, and that of z is a funnel.

    Args:
        loc: numbers, or an array of z's rank that broadcasts to its shape.
        scale: the same, positive: a ValueError where it is known not to be.

    Reference: Papaspiliopoulos, Roberts, Sköld, A general framework for the parametrization of hierarchical models,
        2007.
    """
    if not isinstance(scale, jax.core.Tracer) and np.any(np.asarray(scale) <= 0):
        raise ValueError(f"scale must be positive, got {scale}.")

    def forward(y: Array) -> tuple[Array, Array]:
        spread = bound_like(scale, y, "scale")
        return bound_like(loc, y, "loc") + spread * y, jnp.log(spread)

    def inverse(z: Array) -> Array:
        return (z - bound_like(loc, z, "loc")) / bound_like(scale, z, "scale")

    return Constraint(*in_any_precision(forward, inverse, lambda z: z))


# --- vectors


def _ordered(y: Array) -> tuple[Array, Array]:
    last_axis(y, "ordered")
    gaps, log_jacobian = _exp(y[..., 1:])
    z = jnp.cumsum(jnp.concatenate([y[..., :1], gaps], -1), -1)
    return with_score(_rising(z), z), jnp.sum(log_jacobian, -1)


def _rising(z: Array) -> Array:
    """Keep numbers a step apart: a gap may be below their spacing."""

    def above(last: Array, number: Array) -> tuple[Array, Array]:
        number = jnp.maximum(number, next_number(last))
        return number, number

    steps = jnp.moveaxis(jax.lax.stop_gradient(z), -1, 0)
    strict = jnp.concatenate([steps[:1], jax.lax.scan(above, steps[0], steps[1:])[1]])
    return jnp.moveaxis(strict, 0, -1)


def _from_ordered(z: Array) -> Array:
    return jnp.concatenate([z[..., :1], jnp.log(jnp.diff(z, axis=-1))], -1)


ordered = Constraint(*in_any_precision(_ordered, _from_ordered, _rising))
"""z₁ < z₂ < …, [..., n] from [..., n]: z₁ = y₁, zₖ = zₖ₋₁ + e^yₖ, log J = Σ_{k>1} yₖ.

For cut points, and for components that could change places.
"""


def _simplex(y: Array) -> tuple[Array, Array]:
    n = last_axis(y, "simplex")
    centred = y - _odds(n, y)
    log_broken, log_left = log_sigmoid(centred), log_sigmoid(-centred)
    none = jnp.zeros_like(y[..., :0], shape=(*y.shape[:-1], 1))
    before = jnp.concatenate(
        [none, jnp.cumsum(log_left, -1)], -1
    )  # log of what is left of the stick
    log_z = before + jnp.concatenate([log_broken, none], -1)
    z = jnp.exp(log_z)
    inside = jax.lax.stop_gradient(_inside_simplex(z))
    return with_score(inside, z), jnp.sum(log_z[..., :-1] + log_left, -1)


def _inside_simplex(z: Array) -> Array:
    return jnp.clip(z, smallest(z, 1.0), 1 - jnp.finfo(z.dtype).epsneg)


def _from_simplex(z: Array) -> Array:
    after = jnp.flip(jnp.cumsum(jnp.flip(z[..., 1:], -1), -1), -1)
    return jnp.log(z[..., :-1]) - jnp.log(after) + _odds(z.shape[-1] - 1, after)


def _odds(n: int, like: Array) -> Array:
    return jnp.broadcast_to(jnp.log(jnp.arange(n, 0, -1, dtype=like.dtype)), like.shape)


simplex = Constraint(*in_any_precision(_simplex, _from_simplex, _inside_simplex))
"""zₖ > 0, Σ zₖ = 1, [..., K] from [..., K - 1]: a share σ(yₖ - log (K - k)) of what is left of a stick.

The density is that of the first K - 1 numbers, as Dirichlet's is; y = 0 is the uniform one.
"""


# --- matrices


def _cholesky_correlation(y: Array) -> tuple[Array, Array]:
    d = side_of_triangle(y, 1, "cholesky_correlation")
    below = (..., *np.tril_indices(d, -1))
    # log (1 - tanh² y), for any y
    log_left = 2 * math.log(2) + log_sigmoid(2 * y) + log_sigmoid(-2 * y)
    square = jnp.zeros((*y.shape[:-1], d, d), y.dtype)
    halves = jnp.cumsum(square.at[below].set(0.5 * log_left), -1)
    before = jnp.concatenate(
        [square[..., :1], halves[..., :-1]], -1
    )  # ½ log of what is left of a row's unit length
    root = jnp.tril(square.at[below].set(jnp.tanh(y)).at[on_diagonal(d)].set(1.0) * jnp.exp(before))
    inside = jax.lax.stop_gradient(_positive_diagonal(root))
    return with_score(inside, root), jnp.sum(before[below] + log_left, -1)


def _positive_diagonal(root: Array) -> Array:
    return root.at[on_diagonal(root.shape[-1])].max(smallest(root, 0.5))


def _from_cholesky_correlation(z: Array) -> Array:
    squares = jnp.flip(jnp.cumsum(jnp.flip(z**2, -1), -1), -1)
    after = jnp.concatenate([squares[..., 1:], jnp.zeros_like(z[..., :1])], -1)
    below = (..., *np.tril_indices(z.shape[-1], -1))
    return jnp.arcsinh(z[below] / jnp.sqrt(after[below]))


cholesky_correlation = Constraint(
    *in_any_precision(_cholesky_correlation, _from_cholesky_correlation, _positive_diagonal)
)
"""Lower triangular L with L Lᵀ a correlation matrix, [..., d, d] from [..., d (d - 1) / 2], row by row; y = 0 is I.

Partial correlations are tanh y: L_ij = tanh(y_ij) Π_{k<j} (1 - tanh² y_ik)^½. The density is that of the numbers below
L's diagonal, in which LKJ(η) is Π_k L_kk^(d - k + 2η - 2), and not of those of L Lᵀ. Scales are another leaf.
"""


def _cholesky_covariance(y: Array) -> tuple[Array, Array]:
    d = side_of_triangle(y, -1, "cholesky_covariance")
    root = jnp.zeros((*y.shape[:-1], d, d), y.dtype).at[(..., *np.tril_indices(d))].set(y)
    scales, log_jacobian = _exp(root[on_diagonal(d)])
    return root.at[on_diagonal(d)].set(scales), jnp.sum(log_jacobian, -1)


def _from_cholesky_covariance(z: Array) -> Array:
    on = on_diagonal(z.shape[-1])
    return z.at[on].set(jnp.log(z[on]))[(..., *np.tril_indices(z.shape[-1]))]


cholesky_covariance = Constraint(
    *in_any_precision(_cholesky_covariance, _from_cholesky_covariance, _positive_diagonal)
)
"""Lower triangular L with a positive diagonal, [..., d, d] from [..., d (d + 1) / 2], row by row; y = 0 is I.

L_ii = e^y_ii, log J = Σ y_ii. The density is that of the numbers of L, and not of those of L Lᵀ.
"""
