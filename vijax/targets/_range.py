"""What constraints ask of shapes, and of the numbers that a dtype has next to a bound."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from vijax.numerics import with_score


def bound_like(bound: ArrayLike, y: Array, name: str) -> Array:
    """Return a bound in y's shape and dtype; of another rank than 0 and y's it would align with the wrong axes."""
    ends = jnp.asarray(bound, y.dtype)
    fits = len(ends.shape) in (0, y.ndim) and all(
        a in (1, b) for a, b in zip(ends.shape, y.shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} has shape {ends.shape} and the latent {y.shape}: {name} must be a number, or "
            "have the latent's rank and broadcast to it (a batch by bound[:, None]); several "
            "draws go through jax.vmap."
        )
    return jnp.broadcast_to(ends, y.shape)


def last_axis(y: Array, name: str) -> int:
    """Return the size of the last axis; refuse a number."""
    if y.ndim == 0:
        raise ValueError(
            f"{name} is a constraint on vectors: its y needs a last axis, got shape ()."
        )
    return int(y.shape[-1])


def side_of_triangle(y: Array, less: int, name: str) -> int:
    """Return the d of d (d - less) / 2 = n unconstrained numbers."""
    n = last_axis(y, name)
    # The root of d² - less d - 2n = 0, exactly, in whole numbers
    d = (math.isqrt(8 * n + 1) + less) // 2
    if d * (d - less) // 2 != n or d == 0:
        raise ValueError(
            f"{name} of d rows needs y of d (d {'-' if less > 0 else '+'} 1) / 2 numbers, got {n}."
        )
    return d


def on_diagonal(d: int) -> tuple[object, ...]:
    """Return the index of the diagonal of [..., d, d]."""
    return (..., *np.diag_indices(d))


def next_number(x: Array) -> Array:
    """Return the next number above x, past the subnormal ones, which are 0 on most devices."""
    return jnp.maximum(jnp.nextafter(x, jnp.full_like(x, jnp.inf)), x + jnp.finfo(x.dtype).tiny)


def strictly_inside(z: Array, low: Array | None, high: Array | None) -> Array:
    """Return z inside its bounds where it was rounded onto one, with the derivatives that it had."""
    # Moved in value alone: a clamp would stop the slope of what it moved.
    inside, low, high = jax.lax.stop_gradient((z, low, high))
    if low is not None:
        inside = jnp.maximum(inside, next_number(low))
    if high is not None:
        inside = jnp.minimum(inside, -next_number(-high))
    return with_score(inside, z)


def reach(y: Array) -> float:
    """Return the r for which the squares of e^r and e^-r are numbers of y's dtype, and not subnormal: 43 in float32."""
    return float(math.floor(-0.5 * math.log(float(jnp.finfo(y.dtype).tiny))))


def within_reach(y: Array, low: float, high: float) -> Array:
    """Return y between low and high times its reach, and past them with slope 0, even before an infinite one."""
    return jax.lax.clamp(
        jnp.asarray(low * reach(y), y.dtype), y, jnp.asarray(high * reach(y), y.dtype)
    )


def exp_within_reach(y: Array) -> tuple[Array, Array]:
    """Return eʸ, held within y's reach, and its log-Jacobian, which goes on to fall."""
    held = within_reach(y, -0.5, 1.0)
    # e^y would go on to 0 and inf; here z stays, and the density falls, so that nothing drifts away.
    return jnp.exp(held), held - jnp.abs(y - held)


Map = Callable[[Array], Array]
Forward = Callable[[Array], tuple[Array, Array]]


def in_any_precision(forward: Forward, inverse: Map, inside: Map) -> tuple[Forward, Map]:
    """Return a map and its inverse that do their arithmetic in float32 where they are given half precision.

    Args:
        forward: y -> (z, log-Jacobian).
        inverse: z -> y.
        inside: z -> z off the boundary, onto which half precision may have rounded it.
    """

    def wide(x: Array) -> Array:
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def run(y: ArrayLike) -> tuple[Array, Array]:
        y = _real(y)
        # Float32 and float64 stay as they are.
        if wide(y).dtype == y.dtype:
            return forward(y)
        z, log_jacobian = forward(wide(y))
        # Rounding to half precision may overflow, or land on the boundary.
        largest = float(jnp.finfo(y.dtype).max)
        z = jnp.clip(z, -largest, largest).astype(y.dtype)
        return with_score(inside(jax.lax.stop_gradient(z)), z), log_jacobian.astype(y.dtype)

    def back(z: ArrayLike) -> Array:
        z = _real(z)
        return inverse(wide(z)).astype(z.dtype)

    return run, back


def _real(x: ArrayLike) -> Array:
    """Return numbers as a floating-point array, of JAX's own precision where they are whole."""
    array = jnp.asarray(x)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def smallest(z: Array, share: float) -> float:
    """Return e to minus a share of z's reach; of float16, which has no room for squares, 1e-4."""
    return 1e-4 if z.dtype == jnp.float16 else math.exp(-share * reach(z))
