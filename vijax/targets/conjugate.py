"""Exact conditionals p(b | x, z) of conjugate models, ready for `targets.collapse`.

Each takes the prior's parameters, which may depend on z, and the data or what is sufficient of them, and gives a
distribution of b: vijax's two methods, batch shape [*batch]. What may depend on z is an array [*batch] or a number.

    collapsed = collapse(log_joint, lambda z: conjugate.gamma_poisson(exp(z), 1.3, total=x, exposure=1))

Only the conditional is stated; log_joint(z, b) stays as it is, with all its constants, and `collapse` is exact for it.

Reference: Gelman, Carlin, Stern, Dunson, Vehtari, Rubin, Bayesian data analysis, 3rd edition, 2013, chapters 2, 3, 14.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from vijax.gaussians import Gaussian, dense
from vijax.targets._exponential import Beta, Dirichlet, Gamma, NormalGamma, NormalInverseGamma


def beta_bernoulli(
    a: ArrayLike, b: ArrayLike, *, successes: ArrayLike, failures: ArrayLike
) -> Beta:
    """Return p(probability | x, z) = Beta(a + successes, b + failures): coins, or binomial counts.

        probability ~ Beta(a, b),   xₙ | probability ~ Bernoulli(probability)

    All arguments [*batch]; draws [*batch].
    """
    return Beta(*_together(jnp.asarray(a) + successes, jnp.asarray(b) + failures))


def gamma_poisson(a: ArrayLike, b: ArrayLike, *, total: ArrayLike, exposure: ArrayLike) -> Gamma:
    """Return p(rate | x, z) = Gamma(a + total, b + exposure), b a rate: counts.

        rate ~ Gamma(a, b),   xₙ | rate ~ Poisson(rate · exposureₙ);   total Σ xₙ, exposure Σ exposureₙ (their number)

    All arguments [*batch]; draws [*batch].
    """
    return Gamma(*_together(jnp.asarray(a) + total, jnp.asarray(b) + exposure))


def dirichlet_multinomial(concentration: ArrayLike, *, counts: ArrayLike) -> Dirichlet:
    """Return p(probabilities | x, z) = Dirichlet(concentration + counts): categories, with or without their order.

        probabilities ~ Dirichlet(concentration),   xₙ | probabilities ~ Categorical(probabilities)

    Both arguments [*batch, s]; draws [*batch, s].
    """
    concentration, counts = jnp.asarray(concentration), jnp.asarray(counts)
    if counts.shape != concentration.shape or counts.ndim == 0:
        raise ValueError(
            f"counts and concentration must be [*batch, s], got {counts.shape} and {concentration.shape}."
        )
    return Dirichlet(_floating(concentration + counts))


def normal_gamma(
    loc: ArrayLike, strength: ArrayLike, a: ArrayLike, b: ArrayLike, *, x: ArrayLike
) -> NormalGamma:
    """Return p(mean, precision | x, z) of a normal with both unknown.

        precision ~ Gamma(a, b),   mean ~ N(loc, 1 / (strength · precision)),   xₙ ~ N(mean, 1 / precision)

    x is [n, *batch], the other arguments [*batch]; draws {"mean", "precision"}, each [*batch].
    """
    x = _floating(jnp.asarray(x))
    if x.ndim == 0:
        raise ValueError("x must have a leading axis of data, [n, *batch], got shape ().")
    loc, strength = jnp.asarray(loc), jnp.asarray(strength)
    n = x.shape[0]
    average = jnp.sum(x, 0) / max(n, 1)
    within = jnp.sum(jnp.square(x - average[None]), 0)
    between = n * strength / (strength + n) * jnp.square(average - loc)
    posterior = (
        (strength * loc + n * average) / (strength + n),
        strength + n,
        a + 0.5 * n,
        b + 0.5 * (within + between),
    )
    return NormalGamma(*_together(*posterior))


def linear_regression(
    design: ArrayLike, y: ArrayLike, *, noise: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> Gaussian:
    """Return p(weights | y, z) of a linear regression whose noise is known, or part of z.

        weights ~ N(loc, diag(scale²)),   y ~ N(design · weights, noise² I)

    noise is [*batch], loc and scale numbers or [*batch, d]; draws [*batch, d]. Where noise differs from row to row,
    divide y and the design by it and give noise = 1. `jax.vmap` gives each member of a batch a design of its own.
    """
    given = _regression(design, y, 1 / jnp.square(jnp.asarray(noise)), loc, scale)
    return Gaussian(given.mean, given.cholesky, dense)


def linear_regression_unknown_noise(
    design: ArrayLike, y: ArrayLike, *, a: ArrayLike, b: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> NormalInverseGamma:
    """Return p(weights, variance | y, z) of a linear regression whose noise is unknown, scale being relative to it.

        variance ~ InverseGamma(a, b),   weights ~ N(loc, variance · diag(scale²)),   y ~ N(design · weights, variance)

    a and b are [*batch], loc and scale numbers or [*batch, d]; draws {"weights" [*batch, d], "variance" [*batch]}.
    """
    given = _regression(
        design, y, jnp.ones(jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b))), loc, scale
    )
    a, b = _together(
        jnp.asarray(a) + 0.5 * jnp.shape(design)[0], jnp.asarray(b) + 0.5 * given.squares
    )
    return NormalInverseGamma(given.mean, given.cholesky, a, b)


def _floating(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _together(*arrays: Any) -> list[Array]:
    """Broadcast arrays, numbers among them, to one shape and one floating dtype."""
    dtype = jnp.result_type(*arrays)
    shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in arrays))
    return [_floating(jnp.broadcast_to(jnp.asarray(a, dtype), shape)) for a in arrays]


class _Posterior(NamedTuple):
    mean: Array
    cholesky: Array
    squares: Array


def _regression(design: Any, y: Any, over: Any, loc: Any, scale: Any) -> _Posterior:
    """Return the mean and the precision of the weights, and what is left of y and of the prior at that mean."""
    design, y, over, loc, scale = (_floating(jnp.asarray(x)) for x in (design, y, over, loc, scale))
    if design.ndim != 2 or y.ndim == 0 or y.shape[-1] != design.shape[0]:
        raise ValueError(
            f"design must be [n, d] and y [*batch, n], got {design.shape} and {y.shape}; jax.vmap maps over designs."
        )
    d = design.shape[1]
    if any(x.ndim and x.shape[-1] != d for x in (loc, scale)):
        raise ValueError(
            f"loc and scale must be numbers or [*batch, d] with d = {d}, got {loc.shape}, {scale.shape}."
        )
    batch = jnp.broadcast_shapes(y.shape[:-1], over.shape, loc.shape[:-1], scale.shape[:-1])
    y = jnp.broadcast_to(y, (*batch, y.shape[-1]))
    loc, prior = (
        jnp.broadcast_to(loc, (*batch, d)),
        jnp.broadcast_to(1 / jnp.square(scale), (*batch, d)),
    )
    over = jnp.broadcast_to(over, batch)[..., None]
    gram = jnp.matmul(design.T, design, precision="highest")  # of the data alone: one for all draws
    one, many = (*(1,) * len(batch), d, d), (*batch, d, d)
    precision = over[..., None] * gram.reshape(one) + prior[..., None] * jnp.eye(
        d, dtype=gram.dtype
    ).reshape(one)
    cholesky = jnp.linalg.cholesky(jnp.broadcast_to(precision, many))
    moment = prior * loc + over * jnp.einsum("nd,...n->...d", design, y, precision="highest")
    mean = dense.solve(cholesky, moment)
    # As a sum of squares, where yᵀy less that of the mean would cancel.
    left = y - jnp.einsum("nd,...d->...n", design, mean, precision="highest")
    squares = over[..., 0] * jnp.sum(jnp.square(left), -1) + jnp.sum(
        prior * jnp.square(mean - loc), -1
    )
    return _Posterior(mean, cholesky, squares)
