"""Generators f of f-divergences, as functions of log u: convex, 0 at u = 1, written so that nothing cancels.

Each is one line of arithmetic, `log_u -> f(u)`, of any shape, for `bounds.f_divergence`; u = p/q, so that E_q[f(u)] is the
divergence its name says. An impossible draw, log u = -inf, gives f(0), which may be infinite.

Reference: Liese, Vajda, On divergences and informations in statistics and information theory, 2006.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.types import carries

Generator = Callable[[Array], Array]


def _times_u(log_u: Array, factor: Array) -> Array:
    """Return u factor, 0 where u is."""
    possible = log_u > -jnp.inf
    return jnp.where(possible, jnp.exp(log_u) * jnp.where(possible, factor, 0.0), 0.0)


def kl_reverse(log_u: Array) -> Array:
    """Return f(u) = -log u, of KL(q ‖ p): minus the ELBO."""
    return -log_u


def kl_forward(log_u: Array) -> Array:
    """Return f(u) = u log u, of KL(p ‖ q)."""
    return _times_u(log_u, log_u)


def jeffreys(log_u: Array) -> Array:
    """Return f(u) = ½ (u - 1) log u, the mean of the two KL."""
    return 0.5 * (kl_forward(log_u) + kl_reverse(log_u))


def amari_alpha(log_u: Array, *, alpha: float) -> Array:
    """Return f(u) = (uᵅ - 1) / (α (α - 1)), which is kl_reverse as α -> 0 and kl_forward as α -> 1."""
    if alpha == 0:
        return kl_reverse(log_u)
    if alpha == 1:
        return kl_forward(log_u)
    return jnp.expm1(alpha * log_u) / (alpha * (alpha - 1))


def jensen_shannon(log_u: Array) -> Array:
    """Return f(u) = u log u - (1 + u) log((1 + u)/2), twice the Jensen-Shannon divergence."""
    mixed = jax.nn.softplus(log_u) - jnp.log(2.0)
    return _times_u(log_u, log_u - mixed) - mixed


def arithmetic_geometric(log_u: Array) -> Array:
    """Return f(u) = (1 + u) log((1 + u) / (2 √u)), of the arithmetic mean to the geometric one."""
    gap = jax.nn.softplus(log_u) - 0.5 * log_u - jnp.log(2.0)
    return gap + _times_u(log_u, gap)


@carries(smooth=False)
def total_variation(log_u: Array) -> Array:
    """Return f(u) = ½ |u - 1|; not smooth, so `gradients.dreg` refuses it."""
    return 0.5 * jnp.abs(jnp.expm1(log_u))


def pearson(log_u: Array) -> Array:
    """Return f(u) = (u - 1)², of the χ² divergence of p from q."""
    return jnp.square(jnp.expm1(log_u))


def chi_square(log_u: Array) -> Array:
    """Return f(u) = u² - 1: pearson's, but for a term of mean zero."""
    return jnp.expm1(2 * log_u)


def squared_hellinger(log_u: Array) -> Array:
    """Return f(u) = (√u - 1)², twice the squared Hellinger distance."""
    return jnp.square(jnp.expm1(0.5 * log_u))


def triangular(log_u: Array) -> Array:
    """Return f(u) = (u - 1)² / (1 + u), of the triangular discrimination."""
    return jnp.expm1(log_u) * jnp.tanh(0.5 * log_u)


def t_power(log_u: Array, *, t: float) -> Array:
    """Return f(u) = s (uᵗ - 1 - t (u - 1)), s = -1 for 0 < t < 1 and 1 elsewhere."""
    sign = -1.0 if 0 < t < 1 else 1.0
    return sign * (jnp.expm1(t * log_u) - t * jnp.expm1(log_u))


@carries(smooth=False)
def log1p_abs(log_u: Array) -> Array:
    """Return f(u) = u^sign(u - 1) - 1; not smooth, so `gradients.dreg` refuses it."""
    return jnp.expm1(jnp.abs(log_u))


def modified_gan(log_u: Array) -> Array:
    """Return f(u) = log((1 + u) / (2 u)), of the generator's non-saturating loss."""
    return jax.nn.softplus(-log_u) - jnp.log(2.0)


def dual(f: Generator) -> Generator:
    """Return f*(u) = u f(1/u), whose divergence has p and q exchanged."""
    return carries(smooth=getattr(f, "smooth", True))(lambda log_u: _times_u(log_u, f(-log_u)))


def symmetrized(f: Generator) -> Generator:
    """Return ½ (f + f*), whose divergence does not change when p and q are exchanged."""
    other = dual(f)
    return carries(smooth=getattr(f, "smooth", True))(lambda log_u: 0.5 * (f(log_u) + other(log_u)))
