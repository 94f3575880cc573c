"""Differences of log-gamma functions, for shapes that are large: what conjugate marginals are made of."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

# Stirling's series of log Γ(x) - (x - ½) log x + x - ½ log 2π, in odd powers of 1/x.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def log_rising(a: ArrayLike, n: ArrayLike) -> Array:
    """Return log Γ(a + n) - log Γ(a) for a > 0, n ≥ 0, which need not be whole, without cancellation.

    The recurrence carries a to where Stirling's series holds, and then every term is a difference
    by itself; so its derivatives, by autodiff, are as good as its value: 1e-6 relative in float32.
    """
    a, n, s, powers = _carried(a, n)
    return powers + (s - 0.5) * jnp.log1p(n / s) - n + n * jnp.log(s + n) + _stirling(s, n)


def log_rising_excess(a: ArrayLike, n: ArrayLike) -> Array:
    """Return log Γ(a + n) - log Γ(a) - n log a, which falls to 0 as n (n - 1)/2a where a is large.

    Whole terms of n log a are not formed, so that the slope in a, of order n²/2a², keeps its digits.
    """
    a, n, s, powers = _carried(a, n)
    # n log s - n log a, of which nothing is left where a is large, in the derivative neither.
    shift = n * jnp.log1p(jax.lax.stop_gradient(s - a) / a)
    return powers + shift + s * log1p_less(n / s) + (n - 0.5) * jnp.log1p(n / s) + _stirling(s, n)


def log_coupling(x: ArrayLike, p: ArrayLike, q: ArrayLike) -> Array:
    """Return log Γ(x) Γ(x + p + q) / (Γ(x + p) Γ(x + q)) ≥ 0 for x > 0, p, q ≥ 0, without cancellation.

    Of a large count beside small ones, or large shapes beside small counts, no large number is formed: every term
    is of the size of the whole, and so are the terms of its derivatives.
    """
    x, p, q = (jnp.asarray(a, jnp.result_type(x, p, q, 0.0)) for a in (x, p, q))
    # The recurrence carries x to where Stirling's series holds, by terms that are positive.
    count = 10 if x.dtype == jnp.float64 else 4
    carried = sum(jnp.log1p(p / (x + i) * (q / (x + p + q + i))) for i in range(count))
    small = x < count
    y = jnp.where(small, x + count, x)
    u, v, w = y + p, y + q, y + p + q
    # (y - ½) log y, its difference in p and in q
    value = p * jnp.log1p(q / u) + q * jnp.log1p(p / v) - (y - 0.5) * jnp.log1p(p / y * (q / w))
    return jnp.where(small, carried, 0.0) + value + _stirling_coupling(y, p, q)


def scaled_log1p(a: Array, y: Array) -> Array:
    """Return a log(1 + y/a), a > 0, y ≥ 0, whose slope in a, near y²/2a² where a is large, keeps its digits."""
    share = y / a
    near = share < 1
    # Each form by itself would cancel in the other's place: in the value there, or in the slope here.
    series = a * log1p_less(jnp.where(near, share, 0.0)) + y
    return jnp.where(near, series, a * jnp.log1p(share))


@jax.custom_jvp
def log1p_less(x: Array) -> Array:
    """Return log(1 + x) - x, which near 0 is -x²/2, with its derivative -x/(1 + x)."""
    # Near 0 by 2 artanh(x/(2 + x)) - x, of which the first term is taken by hand.
    t = x / (2 + x)
    w = jnp.square(t)
    odd = jnp.zeros_like(w)
    for k in range(16, 0, -1):
        odd = odd * w + 2 / (2 * k + 1)
    near = t * (w * odd - x)
    far = jnp.log1p(jnp.where(jnp.abs(x) < 0.5, 1.0, x)) - x
    return jnp.where(jnp.abs(x) < 0.5, near, far)


log1p_less.defjvps(lambda dx, _, x: -dx * x / (1 + x))


def _carried(a: ArrayLike, n: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Return a, n, where Stirling's series holds, s = a + i, and the terms that led there."""
    a, n = jnp.broadcast_arrays(*(jnp.asarray(x, jnp.result_type(a, n, 0.0)) for x in (a, n)))
    # Factors 1 + n/(a + i) by twos or more: their squares must stay numbers, for second derivatives.
    count, together = (10, 9) if a.dtype == jnp.float64 else (4, 2)
    small = a < count
    powers = -jnp.log1p(n / a)
    for first in range(1, count, together):
        product = jnp.zeros_like(a)  # less 1
        for i in range(first, min(first + together, count)):
            ratio = n / (a + i)
            product = product + ratio + product * ratio
        powers = powers - jnp.log1p(product)
    return a, n, jnp.where(small, a + count, a), jnp.where(small, powers, 0.0)


def _stirling(s: Array, n: Array) -> Array:
    """Return the difference of Stirling's series at s + n and s, by divided differences."""
    terms = len(_STIRLING) if s.dtype == jnp.float64 else 3
    u, v = 1 / (s + n), 1 / s
    # p(u) and (p(u) - p(v)) / (u - v) by Horner's rule, with u - v = -n u v
    value, difference = jnp.zeros_like(s), jnp.zeros_like(s)
    for coefficient in reversed(_STIRLING[:terms]):
        for c in (coefficient, 0.0):
            difference = difference * v + value
            value = value * u + c
    return -n * u * v * difference


def _stirling_coupling(y: Array, p: Array, q: Array) -> Array:
    """Return Stirling's series at y + p + q, less at y + p, less at y + q, and at y, by divided differences."""
    terms = len(_STIRLING) if y.dtype == jnp.float64 else 3
    u, v, w = y + p, y + q, y + p + q
    # What 1/y changes by with p, at y and at y + q; with q, at y and at y + p; with both.
    by_p, by_p_later, by_q, by_q_later = -p / y / u, -p / v / w, -q / y / v, -q / u / w
    by_both = p / u * (q / v) * ((y + w) / w) / y
    # Horner's rule for the series at y + p and its changes: with p at y, with q at y + p, and with both.
    at_u, from_y, to_w, both = (jnp.zeros_like(y),) * 4
    for coefficient in reversed(_STIRLING[:terms]):
        for c in (coefficient, 0.0):
            both = to_w * by_p_later + at_u * by_both + both / v + by_q * from_y
            from_y = at_u * by_p + from_y / y
            to_w = (at_u + to_w) * by_q_later + to_w / u
            at_u = at_u / u + c
    return both
