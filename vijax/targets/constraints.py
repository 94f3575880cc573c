"""Maps of ℝⁿ onto constrained values, with exact log-Jacobians: for `targets.transform`.

Each is a `Constraint`, a value; leading axes are free, and a constraint's own axes come last.

    positive  softplus  interval(low, high)  affine(loc, scale)  ordered  positive_ordered  simplex  ...

They are total: z never touches its boundary, in float32 either, so that log_joint is not asked there. It stops at the
next number inside or, where that would be absurdly small or large, in float32 at 5e-10 (a scale, whose inverse cube the
slope of a normal's log-density holds), 2e-19 (a probability) and 5e18, in float64 at 1e-77, 1e-154 and 1e154; the
density of y goes on to fall. Where a density is infinite at the boundary, as sparse Gamma, Beta and Dirichlet priors
are, the mass beyond is lost: `with_log(positive)` hands over log z, which does not stop. The inverses give ±inf at the
boundary, and nan outside; those of `simplex` and of `cholesky_correlation` first scale a vector or a row to one, so
that .33, .33, .33 will do. Arithmetic is in y's dtype, of half precision in float32; float16, whose numbers end at 6e-5
and 65504, stops at 1e-4 and 65504.

Reference: Stan reference manual, 2024, Constraint transforms; Kucukelbir, Tran, Ranganath, Gelman, Blei, Automatic
    differentiation variational inference, 2017, arXiv:1603.00788.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, ArrayLike

from vijax.calls import is_known, usage
from vijax.targets._constraint import Constraint, Logged, with_log
from vijax.targets._range import (
    bound_like,
    exp_within_reach,
    in_any_precision,
    smallest,
    strictly_inside,
    within_reach,
)
from vijax.targets._triangles import (
    correlation_root,
    covariance_root,
    from_correlation_root,
    from_covariance_root,
    positive_diagonal,
)
from vijax.targets._vectors import (
    from_log_positive_ordered,
    from_log_simplex,
    from_ordered,
    from_positive_ordered,
    from_simplex,
    inside_simplex,
    log_positive_ordered,
    log_simplex,
    rising,
    to_ordered,
    to_positive_ordered,
    to_simplex,
)

__all__ = [
    "Constraint",
    "Logged",
    "affine",
    "cholesky_correlation",
    "cholesky_covariance",
    "interval",
    "ordered",
    "positive",
    "positive_ordered",
    "real",
    "simplex",
    "softplus",
    "with_log",
]

# --- one number at a time: z and the log-Jacobian have y's shape


def _softplus(y: Array) -> tuple[Array, Array]:
    # log J goes on to fall past the reach of z.
    return jax.nn.softplus(within_reach(y, -0.5, math.inf)), log_sigmoid(y)


real = Constraint(lambda y: (y, jnp.zeros_like(y)), lambda z: z)
"""Any number, z = y; what None stands for."""


def _above_zero(z: Array) -> Array:
    return jnp.maximum(z, smallest(z, 0.5))


def _softplus_logs(y: Array) -> tuple[Array, None]:
    # Below -37, log (1 + eʸ) is eʸ to rounding, in float64 too.
    return jnp.where(y < -37, y, jnp.log(jax.nn.softplus(jnp.maximum(y, -37)))), None


def _from_softplus_logs(log: Array, _: None) -> Array:
    # y = log (e^z - 1) = z + log (1 - e^-z)
    z = jnp.exp(jnp.maximum(log, -37))
    return jnp.where(log < -37, log, z + jnp.log(-jnp.expm1(-z)))


positive = Constraint(
    *in_any_precision(exp_within_reach, jnp.log, _above_zero),
    lambda y: (y, None),
    lambda log, _: log,
)
"""z > 0 by z = eʸ, log J = y: a Gaussian q over y is log-normal over z. The first to try."""

softplus = Constraint(
    *in_any_precision(_softplus, lambda z: z + jnp.log(-jnp.expm1(-z)), _above_zero),
    _softplus_logs,
    _from_softplus_logs,
)
"""z > 0 by z = log(1 + eʸ), log J = log σ(y): q is Gaussian in z itself where z is large."""


@usage("constraints.interval")
def interval(low: ArrayLike | None = None, high: ArrayLike | None = None) -> Constraint:
    """Return the constraint low < z < high, either of them None for no bound on that side.

        z = low + (high - low) σ(y),  log J = log (high - low) + log σ(y) + log σ(-y)

    With one bound z = low + eʸ or high - eʸ. Bounds may depend on other latents.

    Args:
        low: numbers, or an array of z's rank that broadcasts to its shape.
        high: the same. Where low ≥ high, known only while running, the log-Jacobian is nan.

    Raises:
        TypeError: for a bound that is not made of numbers.
        ValueError: for no bound at all, one that is infinite or nan, or low ≥ high, where they are
            known.

    Example:
        >>> z, log_jacobian = interval(0.0, 10.0).forward(0.0)
        >>> float(z), round(float(log_jacobian), 3)  # log 10/4
        (5.0, 0.916)
    """
    bounds = {name: bound for name, bound in (("low", low), ("high", high)) if bound is not None}
    if not bounds:
        raise ValueError(
            "interval needs low, high or both; a latent without bounds has the constraint None."
        )
    known = {name: np.asarray(bound) for name, bound in bounds.items() if is_known(bound)}
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

    # Each bound in the latent's shape and dtype, or None
    def ends(like: Array) -> tuple[Array | None, Array | None]:
        bottom = None if low is None else bound_like(low, like, "low")
        return bottom, None if high is None else bound_like(high, like, "high")

    def forward(y: Array) -> tuple[Array, Array]:
        bottom, top = ends(y)
        if bottom is not None and top is not None:
            held, width = within_reach(y, -0.5, 0.5), top - bottom
            # From the nearer end, so that what is close to 0 keeps its digits.
            z = jnp.where(y < 0, bottom + width * sigmoid(held), top - width * sigmoid(-held))
            log_jacobian = jnp.log(width) + log_sigmoid(y) + log_sigmoid(-y)
            return strictly_inside(z, bottom, top), log_jacobian
        # One bound: the distance from it is eʸ.
        gap, log_jacobian = exp_within_reach(y)
        z = jnp.asarray(top) - gap if bottom is None else bottom + gap
        return strictly_inside(z, bottom, top), log_jacobian

    def inverse(z: Array) -> Array:
        bottom, top = ends(z)
        if bottom is None:
            return jnp.log(jnp.asarray(top) - z)
        below = jnp.log(z - bottom)
        return below if top is None else below - jnp.log(top - z)

    def logs(y: Array) -> tuple[Array | None, Array | None]:
        bottom, top = ends(y)
        if bottom is None or top is None:
            return (None, y) if bottom is None else (y, None)
        log_width = jnp.log(top - bottom)
        return log_width + log_sigmoid(y), log_width + log_sigmoid(-y)

    # With both bounds y = log (z - low) - log (high - z), the log-odds.
    def from_logs(log: Array | None, log_rest: Array | None) -> Array:
        if log is not None and log_rest is not None:
            return log - log_rest
        return jnp.asarray(log_rest if log is None else log)

    maps = in_any_precision(forward, inverse, lambda z: strictly_inside(z, *ends(z)))
    return Constraint(*maps, logs, from_logs)


@usage("constraints.affine")
def affine(loc: ArrayLike, scale: ArrayLike) -> Constraint:
    """Return no constraint but other units: z in standard deviations `scale` from `loc`.

        z = loc + scale · y,   log J = log scale

    The non-centered form of a hierarchy, with loc and scale among the earlier leaves: where data
    say little of each latent, the posterior of y is nearly independent of the scale's, and that of
    z is a funnel.

    Args:
        loc: numbers, or an array of z's rank that broadcasts to its shape.
        scale: the same, positive: a ValueError where it is known not to be.

    Example:
        >>> float(affine(5.0, 2.0).forward(1.5)[0])
        8.0

    Reference: Papaspiliopoulos, Roberts, Sköld, A general framework for the parametrization of
        hierarchical models, 2007.
    """
    if is_known(scale) and not np.all(np.asarray(scale) > 0):
        raise ValueError(f"scale must be positive, got {scale}.")

    def forward(y: Array) -> tuple[Array, Array]:
        spread = bound_like(scale, y, "scale")
        return bound_like(loc, y, "loc") + spread * y, jnp.log(spread)

    def inverse(z: Array) -> Array:
        return (z - bound_like(loc, z, "loc")) / bound_like(scale, z, "scale")

    return Constraint(*in_any_precision(forward, inverse, lambda z: z))


# --- vectors


ordered = Constraint(*in_any_precision(to_ordered, from_ordered, rising))
"""z₁ < z₂ < …, [..., n] from [..., n]: z₁ = y₁, zₖ = zₖ₋₁ + e^yₖ, log J = Σ_{k>1} yₖ.

For cut points, and for components that could change places.
"""


positive_ordered = Constraint(
    *in_any_precision(to_positive_ordered, from_positive_ordered, lambda z: rising(_above_zero(z))),
    lambda y: (log_positive_ordered(y), None),
    lambda log, _: from_log_positive_ordered(log),
)
"""0 < z₁ < z₂ < …, [..., n] from [..., n]: zₖ = zₖ₋₁ + e^yₖ with z₀ = 0, log J = Σ yₖ.

For scales, rates or times that could change places.
"""


simplex = Constraint(
    *in_any_precision(to_simplex, from_simplex, inside_simplex),
    lambda y: (log_simplex(y)[0], None),
    lambda log, _: from_log_simplex(log),
)
"""zₖ > 0, Σ zₖ = 1, [..., K] from [..., K - 1]: a share σ(yₖ - log (K - k)) of the stick left.

The density is that of the first K - 1 numbers, as Dirichlet's is; y = 0 is the uniform one.
"""


# --- matrices


cholesky_correlation = Constraint(
    *in_any_precision(correlation_root, from_correlation_root, positive_diagonal)
)
"""Lower triangular L with L Lᵀ a correlation matrix, [..., d, d] from [..., d (d - 1) / 2].

Row by row; y = 0 is I. Partial correlations are tanh y:
L_ij = tanh(y_ij) Π_{k<j} (1 - tanh² y_ik)^½.
The density is that of the numbers below L's diagonal, in which LKJ(η) is
Π_k L_kk^(d - k + 2η - 2), and not of those of L Lᵀ. Scales are another leaf.
"""


cholesky_covariance = Constraint(
    *in_any_precision(covariance_root, from_covariance_root, positive_diagonal)
)
"""Lower triangular L with a positive diagonal, [..., d, d] from [..., d (d + 1) / 2].

Row by row; y = 0 is I. L_ii = e^y_ii, log J = Σ y_ii. The density is that of the numbers of L, and
not of those of L Lᵀ.
"""
