"""Generators f of f-divergences, as functions of log u: convex, 0 at u = 1.

Each is `log_u -> f(u)`, of any shape, for `bounds.f_divergence`; u = p/q, so that E_q[f(u)] is the divergence that its
name says. An impossible draw, log u = -inf, gives f(0), which may be infinite; what leaves the range of the dtype is
infinite too, and has slope 0.

Reference: Liese, Vajda, On divergences and informations in statistics and information theory, 2006.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.bounds._total import expm1, limit, within
from vijax.types import closed_forms, with_closed_forms

Generator = Callable[[Array], Array]


def _log_cosh(x: Array) -> Array:
    # log cosh x = log1p(2 sinh² ½x), which near 0 does not cancel.
    small = jnp.abs(x) < 1
    near = jnp.log1p(2 * jnp.square(jnp.sinh(0.5 * jnp.where(small, x, 0.0))))
    return jnp.where(small, near, jnp.logaddexp(x, -x) - jnp.log(2.0).astype(x.dtype))


@with_closed_forms(smooth=True)
def kl_reverse(log_u: Array) -> Array:
    """Return f(u) = -log u, of KL(q ‖ p): minus the ELBO."""
    return -log_u


@with_closed_forms(smooth=True)
def kl_forward(log_u: Array) -> Array:
    """Return f(u) = u log u, of KL(p ‖ q)."""
    return within(log_u, lambda l: jnp.exp(l) * l, high=limit(log_u) - 5, below=0.0)


@with_closed_forms(smooth=True)
def jeffreys(log_u: Array) -> Array:
    """Return f(u) = ½ (u - 1) log u, the mean of the two KL."""
    return within(log_u, lambda l: 0.5 * jnp.expm1(l) * l, high=limit(log_u) - 5)


@with_closed_forms(smooth=True)
def amari_alpha(log_u: Array, *, alpha: float | Array) -> Array:
    """Return f(u) = (uᵅ - 1) / (α (α - 1)); at α = 0, 1 kl_reverse, kl_forward, its limits but for a mean of 0."""
    if isinstance(alpha, (int, float)) and alpha in (0, 1):
        return kl_forward(log_u) if alpha else kl_reverse(log_u)
    # A traced α may be 0 or 1, where the quotient is 0 / 0.
    safe = jnp.where((alpha == 0) | (alpha == 1), 0.5, alpha).astype(log_u.dtype)
    power = expm1(safe * log_u) / (safe * (safe - 1))
    return jnp.where(alpha == 0, kl_reverse(log_u), jnp.where(alpha == 1, kl_forward(log_u), power))


@with_closed_forms(smooth=True)
def jensen_shannon(log_u: Array) -> Array:
    """Return f(u) = u log u - (1 + u) log((1 + u)/2), twice the Jensen-Shannon divergence."""
    log_2 = jnp.log(2.0).astype(log_u.dtype)

    def formula(l: Array) -> Array:
        # log of (1 + u)/2; near u = 1 the terms of order l cancel, so they are taken out by hand.
        mixed = jax.nn.softplus(l) - log_2
        far = jnp.exp(l) * (l - mixed) - mixed
        near = jnp.where(jnp.abs(l) < 1, l, 0.0)
        return jnp.where(
            jnp.abs(l) < 1,
            0.5 * near * jnp.expm1(near) - (1 + jnp.exp(near)) * _log_cosh(near / 2),
            far,
        )

    return within(log_u, formula, high=limit(log_u) - 1, below=log_2)


@with_closed_forms(smooth=True)
def arithmetic_geometric(log_u: Array) -> Array:
    """Return f(u) = (1 + u) log((1 + u) / (2 √u)), twice KL of the arithmetic mean from the geometric."""
    return within(log_u, lambda l: (1 + jnp.exp(l)) * _log_cosh(l / 2), high=limit(log_u) - 5)


@with_closed_forms(smooth=False)
def total_variation(log_u: Array) -> Array:
    """Return f(u) = ½ abs(u - 1); not smooth, so `gradients.dreg` refuses it."""
    return 0.5 * jnp.abs(expm1(log_u))


@with_closed_forms(smooth=True)
def pearson(log_u: Array) -> Array:
    """Return f(u) = (u - 1)², of the χ² divergence of p from q."""
    return within(log_u, lambda l: jnp.square(jnp.expm1(l)), high=0.5 * limit(log_u), below=1.0)


@with_closed_forms(smooth=True)
def chi_square(log_u: Array) -> Array:
    """Return f(u) = u² - 1: pearson's, but for a term of mean zero."""
    return expm1(2 * log_u)


@with_closed_forms(smooth=True)
def squared_hellinger(log_u: Array) -> Array:
    """Return f(u) = (√u - 1)², twice the squared Hellinger distance."""
    return within(log_u, lambda l: jnp.square(jnp.expm1(0.5 * l)), high=limit(log_u), below=1.0)


@with_closed_forms(smooth=True)
def triangular(log_u: Array) -> Array:
    """Return f(u) = (u - 1)² / (1 + u), of the triangular discrimination."""
    return within(log_u, lambda l: jnp.expm1(l) * jnp.tanh(0.5 * l), high=limit(log_u), below=1.0)


@with_closed_forms(smooth=True)
def t_power(log_u: Array, *, t: float | Array) -> Array:
    """Return f(u) = s (uᵗ - 1 - t (u - 1)), s = -1 for 0 < t < 1 and 1 elsewhere."""
    sign = jnp.where((0 < t) & (t < 1), -1.0, 1.0).astype(log_u.dtype)
    # uᵗ and u both stay in range: beyond it on either side f is infinite or tends to f(0).
    room = limit(log_u) - 3
    low, high = jnp.where(t < 0, room / jnp.minimum(t, -1e-6), -jnp.inf), room / jnp.maximum(t, 1.0)
    at_zero = jnp.where(t < 0, jnp.inf, sign * (t - 1))

    def formula(log_u: Array) -> Array:
        return sign * (jnp.expm1(t * log_u) - t * jnp.expm1(log_u))

    return within(log_u, formula, low=low, high=high, below=at_zero)


@with_closed_forms(smooth=False)
def log1p_abs(log_u: Array) -> Array:
    """Return f(u) = u^sign(u - 1) - 1; not smooth, so `gradients.dreg` refuses it."""
    return expm1(jnp.abs(log_u))


@with_closed_forms(smooth=True)
def modified_gan(log_u: Array) -> Array:
    """Return f(u) = log((1 + u) / (2 u)), of the generator's non-saturating loss."""
    return jax.nn.softplus(-log_u) - jnp.log(2.0).astype(log_u.dtype)


def dual(f: Generator) -> Generator:
    """Return f*(u) = u f(1/u), whose divergence has p and q exchanged; a tangent beyond abs(log u) = 80."""

    def product(log_u: Array) -> Array:
        other = f(-log_u)
        return jnp.where(
            jnp.isinf(other), other, jnp.exp(log_u) * jnp.where(jnp.isinf(other), 0.0, other)
        )

    def exchanged(log_u: Array) -> Array:
        # f(1/u) overflows long before u f(1/u) does: of the generators here the product is by
        # then a line in log u, or infinite.
        inside = jnp.clip(log_u, -limit(log_u) + 6, limit(log_u) - 6)
        value, slope = jax.jvp(product, (inside,), (jnp.ones_like(inside),))
        slope = jax.lax.stop_gradient(slope)
        # A smaller slope is rounding of a constant.
        rises = (jnp.abs(slope) > 1e-3 * (1 + jnp.abs(value))) & jnp.isfinite(slope)
        outside = (inside != log_u) & rises
        return jnp.where(outside, value + slope * jnp.where(outside, log_u - inside, 0.0), value)

    return with_closed_forms(smooth=closed_forms(f).smooth)(exchanged)


def symmetrized(f: Generator) -> Generator:
    """Return ½ (f + f*), whose divergence does not change when p and q are exchanged."""
    other = dual(f)

    def mean(log_u: Array) -> Array:
        # inf - inf would be nan in the gradient of a mean that is infinite anyway.
        one, two = f(log_u), other(log_u)
        unbounded = (one == jnp.inf) | (two == jnp.inf)
        return jnp.where(
            unbounded,
            jnp.inf,
            0.5 * (jnp.where(unbounded, 0.0, one) + jnp.where(unbounded, 0.0, two)),
        )

    return with_closed_forms(smooth=closed_forms(f).smooth)(mean)
