"""A traced function tried on stand-in numbers: is a log-density what its parameters say?"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from vijax.jaxprs._equations import hidden, trace
from vijax.types import PyTree

# Probabilities -> the numbers that stand for a parameter: themselves, their logs, real numbers.
Spelling = Callable[[np.ndarray], np.ndarray]


def misfit(
    both: Callable[[PyTree], tuple[Array, Array]],
    points: Sequence[PyTree],
    spellings: Sequence[tuple[Spelling, Spelling]],
) -> float:
    """Return how far a log-density is from the sum of its terms, in units of rounding, or inf.

    Tried while tracing: numbers stand in for every parameter that `both` closes over, which may be
    tracers and have no numbers yet. A density that keeps values in a mutable reference or on the
    host fits nothing.

    Args:
        both: point -> (log-density [*batch], its terms [*batch, ...]).
        points: where they are compared.
        spellings: what kind of numbers the parameters may be, near and far: one that fits near must
            fit far too, and one or more must fit.

    Returns:
        The largest error, at most 1 where the density is the sum of the terms.

    Example:
        >>> same = (lambda p: p, lambda p: p)
        >>> x = jnp.ones(3)
        >>> misfit(lambda x: (jnp.sum(x**2), x**2), [x], [same]) <= 1
        True
        >>> misfit(lambda x: (jnp.sum(x**2) + 1, x**2), [x], [same]) > 1
        True
    """
    closed, (left, terms) = trace(both, points[0])
    if terms.shape[: left.ndim] != left.shape or hidden(closed) is not None:
        return float("inf")
    # The rounding of a sum of n terms grows as √n; 5% at most, for low precision.
    rng = np.random.default_rng(1)
    count = max(np.prod(terms.shape[left.ndim :]), 1.0)
    allowed = min(0.05, (8 + 4 * count**0.5) * float(jnp.finfo(left.dtype).eps))
    largest = float(jnp.finfo(left.dtype).max) / 2  # beyond it nothing can be told
    with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
        consts = [stand_in(rng, c) for c in closed.consts]

        def error(spell: Spelling, untold: float) -> float:
            """Return the largest error over the points, `untold` for numbers too large to tell."""
            numbers = [c if p is None else jnp.asarray(spell(p), c.dtype) for c, p in consts]
            evaluate = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, numbers))
            worst = 0.0
            for point in points:
                # |a - Σ b| / (allowed (1 + Σ |b|)) for each member of the batch.
                a, b = (np.asarray(out, np.float64) for out in evaluate(point))
                axes = tuple(range(a.ndim, b.ndim))
                size = np.abs(b).sum(axes)
                off = np.abs(a - b.sum(axes)) / (allowed * (1 + size))
                off = np.where(size < largest, off, untold)
                worst = max(worst, float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0)))
            return worst

        # Far numbers, where terms may be too large to tell, are tried for what fits near alone.
        near = [(error(spell, np.inf), far) for spell, far in spellings]
        fitting = [(off, far) for off, far in near if off <= 1]
        errors = [off for off, _ in fitting] + [error(far, 0.0) for _, far in fitting]
        return max(errors, default=float("inf"))


def stand_in(rng: np.random.Generator, const: Any) -> tuple[Any, np.ndarray | None]:
    """Return a constant that may stay, and None; or its shape and dtype, and probabilities."""
    dtype, shape = jnp.result_type(const), jnp.shape(const)
    if jnp.issubdtype(dtype, jnp.floating):
        p = np.asarray(rng.uniform(0.2, 0.8, shape))
        # The last axis may be that of the states.
        p = p / p.sum(-1, keepdims=True) if p.ndim > 0 and p.shape[-1] > 1 else p
        return jax.ShapeDtypeStruct(shape, dtype), p
    return (jnp.zeros(shape, dtype) if isinstance(const, jax.core.Tracer) else const), None
