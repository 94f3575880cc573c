"""What a minorizer is, and two ways to make one: the tangent of a convex function, and a parabola."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.types import PyTree


def _same(t: PyTree) -> PyTree:
    return t


class Minorizer(NamedTuple):
    """A lower bound of log f with local parameters.

    Fields:
        lower: (x, at) -> a lower bound on log f(x) in nats, quadratic in x, one value for each term.
        statistics: x -> T(x), a pytree at most quadratic in x; where `at` is best put depends on its mean alone.
        touch: E[T(x)] -> the at that maximizes E[lower(x, at)]; most often the mean itself.
    """

    lower: Callable[[PyTree, PyTree], PyTree]
    statistics: Callable[[PyTree], PyTree] = _same
    touch: Callable[[PyTree], PyTree] = _same


def tangent(
    convex: Callable[[PyTree], Array],
    statistics: Callable[[Array], PyTree] = _same,
    rest: Callable[[Array], Array | float] = lambda x: 0.0,
) -> Minorizer:
    """Return the tangent of a log f that is convex in some statistics of x, at their mean.

        log f(x) = h(T(x)) + g(x) ≥ h(at) + ⟨∇h(at), T(x) - at⟩ + g(x),     at = E[T(x)],   h convex

    With T = x² for scale mixtures of Gaussians (Student-t, logistic, horseshoe). It touches log f
    at any x.

    Args:
        convex: h, T -> values in nats, term by term.
        statistics: T, at most quadratic in x.
        rest: g, at most quadratic in x; by default 0.

    Example:
        >>> laplace = tangent(lambda s: -jnp.sqrt(s), jnp.square)  # log f = -|x|
        >>> float(laplace.lower(jnp.array(2.0), jnp.array(4.0)))
        -2.0
    """

    def lower(x: Array, at: PyTree) -> Array:
        # h(at) and ⟨∇h(at), T(x) - at⟩ in one forward pass
        value, change = jax.jvp(convex, (at,), (jax.tree.map(jnp.subtract, statistics(x), at),))
        return value + change + rest(x)

    return Minorizer(lower, statistics)


def parabola(log_f: Callable[[Array], Array], curvature: Callable[[Array], Array]) -> Minorizer:
    """Return the parabola of a log f whose curvature is bounded, at the mean of x.

        log f(x) ≥ log f(at) + ⟨∇ log f(at), d⟩ - ½ dᵀ B d,     d = x - at,   -∇² log f ≼ B

    The curvature is the same at every `at`: the mean of the Gaussian that `minorize` ends at is the
    mode of log p(x, z, ·). It touches log f at any x.

    Args:
        log_f: x -> values in nats, term by term.
        curvature: d -> dᵀ B d.

    Example:
        >>> quarter = parabola(jax.nn.log_sigmoid, lambda d: 0.25 * d**2)
        >>> round(float(quarter.lower(jnp.array(0.0), jnp.array(0.0))), 3)  # log ½
        -0.693

    Reference: Böhning, Lindsay, Monotonicity of quadratic-approximation algorithms, 1988.
    """

    def lower(x: Array, at: Array) -> Array:
        value, change = jax.jvp(log_f, (at,), (x - at,))
        return value + change - 0.5 * curvature(x - at)

    return Minorizer(lower)
