"""Exponentials that leave a dtype's range as +inf with slope 0, so that no nan comes of infinity times nothing."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array


def limit(x: Array) -> float:
    """Return the log of the largest number of x's dtype, less 2: room for a slope and a small sum."""
    return math.log(float(jnp.finfo(x.dtype).max)) - 2


def within(
    x: Array,
    formula: Callable[[Array], Array],
    *,
    low: float | Array = -math.inf,
    high: float | Array,
    below: float | Array = math.inf,
    above: float = math.inf,
) -> Array:
    """Return formula(x) where low < x <= high, and what it tends to, with slope 0, elsewhere; nan stays nan."""
    # The formula is evaluated at 0 beyond the range, so that no infinity meets a slope of 0.
    is_low, is_high = x <= low, x > high
    value = formula(jnp.where(is_low | is_high, 0.0, x))
    return jnp.where(is_high, above, jnp.where(is_low, below, value)).astype(x.dtype)


def exp(x: Array) -> Array:
    """Return eˣ; +inf with slope 0 beyond the range."""
    return within(x, jnp.exp, high=limit(x), below=0.0)


def expm1(x: Array) -> Array:
    """Return eˣ - 1; +inf with slope 0 beyond the range."""
    return within(x, jnp.expm1, high=limit(x), below=-1.0)
