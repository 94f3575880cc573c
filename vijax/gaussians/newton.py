"""Newton's climb with exact Hessians, and whether a point is a mode: for Laplace's approximation and `maximize`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vijax.gaussians.triangle import factor_of_inverse
from vijax.trees import own_point, while_loop

# Halvings of a step: Newton's step from a flat place, such as a logistic tail, is too long by far.
_TRIES = 100

# x [d] -> log p(x), ().
Density = Callable[[Array], Array]


class Standing(NamedTuple):
    """Whether a point is a mode of a log-density, and how near one.

    Fields:
        arrived: whether it is a mode to rounding: curved downwards on all sides, and nothing left to climb, ().
        slope: √(gᵀ Λ⁻¹ g), the slope in nats per standard deviation of the curvature there, Λ = -∇² log p, ().
        decrement: ½ gᵀ Λ⁻¹ g, what a quadratic would still gain, in nats, ().
        curvature: the smallest eigenvalue of Λ with its diagonal scaled to ±1, (): 0 to rounding is flat, below is
            a saddle or the wrong side of an inflection, where slope and decrement count its absolute value. 0 too
            where Λ is no scale of log p, which two of its standard deviations away has not fallen beyond rounding
            on some side, or by so much on both that Λ is within its rounding; where log p is higher there than
            the decrement says, or has a slope where Λ is 0, that and the slope are nan.
    """

    arrived: Bool[Array, ""]
    slope: Float[Array, ""]
    decrement: Float[Array, ""]
    curvature: Float[Array, ""]


class _Local(NamedTuple):
    """The density at a point, by its expansion of second order.

    Fields:
        value: log p, ().
        slope: its gradient g, [d].
        root: R with R Rᵀ = Λ⁻¹, [d, d], Λ = -∇² log p made positive.
        lowest: the smallest eigenvalue of Λ in units of its diagonal, ().
        endless: whether there is a slope along an axis where Λ is 0, or underflows, ().
    """

    value: Array
    slope: Array
    root: Array
    lowest: Array
    endless: Array


# A point, what is known there, how many steps were taken, and whether the last one went uphill.
Carry = tuple[Array, _Local, Array, Array]


def climb(
    density: Density, start: Array, steps: int | Array
) -> tuple[Array, Array, Standing, Array]:
    """Climb by Newton's method, halving steps, until no step is uphill beyond rounding.

    Args:
        density: x [d] -> ().
        start: [d].
        steps: the most steps.

    Returns:
        The best point, where value, slope and Hessian are finite; a root of the covariance there, R Rᵀ = Λ⁻¹, nan
        where they are not finite at the start; where it stands; how many steps were taken.
    """

    def going(carry: Carry) -> Array:
        *_, count, uphill = carry
        return uphill & (count < steps)

    def step(carry: Carry) -> Carry:
        x, here, count, _ = carry
        reached, uphill = _search(density, x, here)
        there = _local(density, reached)
        # Where the density can be climbed to and has no expansion, as past the last scale that floats hold,
        # it ends before.
        fine = uphill & _finite(there)
        x = jnp.where(fine, reached, x)
        here = jax.tree.map(lambda new, old: jnp.where(fine, new, old), there, here)
        return x, here, count + 1, fine

    start = own_point(density, start)
    first = _local(density, start)
    sure = _finite(first)
    mode, here, count, _ = while_loop(going, step, (start, first, jnp.int32(0), sure))
    return mode, jnp.where(sure, here.root, jnp.nan), _standing(density, mode, here), count


def standing(density: Density, x: Float[Array, " d"]) -> Standing:
    """Return where x stands."""
    x = own_point(density, x)
    return _standing(density, x, _local(density, x))


def _standing(density: Density, x: Array, here: _Local) -> Standing:
    eps = jnp.finfo(here.value.dtype).eps
    # gᵀ Λ⁻¹ g = ‖Rᵀ g‖².
    twice = jnp.where(_finite(here), jnp.sum(jnp.square(here.root.T @ here.slope)), jnp.nan)
    # How far log p falls two standard deviations away, on both sides, 2 nats where it is quadratic, [2, d]:
    # a curvature that is made of underflow, of the tail of a function without a maximum, or of what is
    # left of a fourth power near its top, is that of no Gaussian.
    away = 2 * jnp.stack([here.root.T, -here.root.T])
    fall = here.value - jax.vmap(jax.vmap(density))(x[None, None] + away)
    noise = 8 * eps * jnp.maximum(1.0, jnp.abs(here.value))
    flat = (jnp.min(fall, initial=jnp.inf) <= noise) & (noise < 0.5)
    steep = jnp.any(eps * jnp.min(fall, 0) > 1)
    lowest = jnp.where(flat | steep, jnp.minimum(here.lowest, 0.0), here.lowest)
    higher = jnp.min(fall, initial=jnp.inf) < -0.5 * twice - noise
    twice = jnp.where(higher | here.endless, jnp.nan, twice)
    # What floats of the value's size can tell of a slope, squared.
    close = jnp.maximum(eps**0.5, eps * jnp.abs(here.value))
    arrived = (lowest > here.slope.size * eps) & (twice <= close)
    return Standing(arrived, jnp.sqrt(twice), 0.5 * twice, lowest)


def _local(density: Density, x: Array) -> _Local:
    value, slope = jax.value_and_grad(density)(x)
    precision = -jax.hessian(density)(x)
    root, lowest = factor_of_inverse(precision)
    endless = jnp.any((jnp.diag(precision) == 0) & (slope != 0))
    return _Local(value, slope, root, lowest, endless)


def _finite(here: _Local) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in here]))


def _search(density: Density, x: Array, here: _Local) -> tuple[Array, Array]:
    """Return a point that is uphill along Newton's direction, and whether one was found."""
    value, g, root, *_ = here
    # In coordinates where Λ is the identity, g is Rᵀ g and Newton's step is the gradient.
    white = root.T @ g
    gain = jnp.sum(jnp.square(white))  # twice what a quadratic function gains by the whole step
    direction = root @ white
    # Below rounding of the value only the slope can tell uphill.
    noise = 8 * jnp.finfo(x.dtype).eps * jnp.maximum(1.0, jnp.abs(value))
    slope = jax.grad(density)

    # Armijo's rule while the value can tell; else a slope less than half as steep as here.
    def better(t: Array) -> Array:
        there = density(x + t * direction)
        left = jnp.sum(jnp.square(root.T @ slope(x + t * direction)))
        enough = (there >= value + 1e-4 * t * gain) & (1e-4 * t * gain > 0) & (there > value)
        return enough | ((there >= value - noise) & (left < 0.25 * gain))

    tries = jnp.where(gain > noise, _TRIES, 1)
    halvings = while_loop(
        lambda n: (n < tries) & ~better(0.5**n), lambda n: n + 1, jnp.zeros((), x.dtype)
    )
    uphill = halvings < tries

    def along(n: Array) -> Array:
        return density(x + 0.5**n * direction)

    # A step far too long may be uphill and yet overshoot: halve it on while that is better.
    halvings = while_loop(
        lambda n: uphill & (n < _TRIES) & (along(n + 1) > along(n) + noise),
        lambda n: n + 1,
        halvings,
    )
    return jnp.where(uphill, x + 0.5**halvings * direction, x), uphill
