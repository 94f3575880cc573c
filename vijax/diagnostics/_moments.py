"""Moments of the posterior from draws of q: corrected by their weights, each with its Monte Carlo error."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.checks import named_leaves
from vijax.numerics import expand, normalized_weights
from vijax.types import PyTree


class Corrected(NamedTuple):
    """Means and standard deviations, each field a pytree like one draw, [*batch, *event] in the latents' units.

    Fields:
        mean: of the posterior.
        sd: of the posterior.
        mean_error: Monte Carlo standard error of `mean`.
        sd_error: Monte Carlo standard error of `sd`.
    """

    mean: PyTree
    sd: PyTree
    mean_error: PyTree
    sd_error: PyTree


def moments(z: PyTree, log_w: Float[Array, "k *batch"]) -> Corrected:
    """Posterior mean and standard deviation of every latent from weighted draws, with errors.

        m = Σₖ w̃ₖ zₖ,   v = c Σₖ w̃ₖ (zₖ - m)²,   se(m)² = c Σₖ w̃ₖ² (zₖ - m)²
        w̃ = softmax(log w),   c = 1 / (1 - Σₖ w̃ₖ²)

    The errors are reliable where `khat` is below .7. `moments(z, zeros)` are those of q.

    Args:
        z: draws, a pytree of [k, *batch, *event]; integers and booleans count as numbers.
        log_w: log-weights in nats, [k, *batch], better smoothed: `psis(log_w)`, as `summarize` does; for strata
            (`Draws.weights`) log_w + log(k weights).

    Returns:
        Corrected, four pytrees like one draw; errors by the delta method, for independent draws. A draw of weight 0
        counts for nothing, whatever is in it; where one draw has all the weight, sd and errors are +inf; where all are
        impossible the mean is nan as well.

    Raises:
        ValueError: for leaves that do not begin with log_w's shape, and for k = 0.

    Example:
        >>> result = moments(jnp.array([1.0, 2.0, 3.0]), jnp.log(jnp.array([0.5, 0.25, 0.25])))
        >>> round(float(result.mean), 3), round(float(result.sd), 3)
        (1.75, 1.049)

    Reference: Owen, Monte Carlo theory, methods and examples, 2013, section 9.2.
    """
    agree(z, log_w)
    # A pytree of lists of four becomes four pytrees.
    of_leaves = jax.tree.map(partial(weighted_moments, normalized_weights(log_w)), z)
    return Corrected(*jax.tree.transpose(jax.tree.structure(z), None, of_leaves))


@jax.jit
def weighted_moments(w: Array, leaf: Array) -> list[Array]:
    """Return mean, sd, and their errors, of a leaf [k, *batch, *event] under normalized weights [k, *batch].

    With v as in `moments`, se(v)² = c Σₖ w̃ₖ² ((zₖ - m)² - v)² and se(√v) = se(v) / 2√v.
    """
    squares = jnp.sum(jnp.square(w), 0)
    # Within rounding of 1 there is one draw, and no spread is known.
    unknown = (1 - squares <= 8 * jnp.finfo(w.dtype).eps) | (squares == 0)
    spare = jnp.where(unknown, 1.0, 1 - squares)
    leaf = jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), w.dtype))
    w = expand(w, leaf)
    c, unknown, none = (expand(a, leaf[0]) for a in (1 / spare, unknown, squares == 0))

    # In two passes: the mean of what is left about a rough mean loses no digits where |m| is far above sd.
    rough = jnp.sum(w * jnp.where(w > 0, leaf, 0.0), 0)
    off = jnp.where(w > 0, leaf - rough[None], 0.0)
    more = jnp.sum(w * off, 0)
    mean, off = rough + more, jnp.where(w > 0, off - more[None], 0.0)
    # In units of the largest deviation: the fourth powers of small latents underflow, of large ones overflow.
    unit = jnp.max(jnp.abs(off), 0, initial=0.0)
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1.0)
    off = off / unit[None]
    v = jnp.sum(w * off**2, 0)
    sd = jnp.sqrt(c * v)
    mean_error = jnp.sqrt(c * jnp.sum((w * off) ** 2, 0))
    # The delta method: (z - m)² is what the variance is a mean of.
    v_error = jnp.sqrt(c * jnp.sum(jnp.square(w * (c[None] * off**2 - (c * v)[None])), 0))
    sd_error = jnp.where(v > 0, v_error / (2 * jnp.where(v > 0, sd, 1.0)), 0.0)
    # Back in the latent's own units.
    known = [jnp.where(unknown, jnp.inf, unit * a) for a in (sd, mean_error, sd_error)]
    return [jnp.where(none, jnp.nan, mean), *known]


def agree(z: PyTree, log_w: Array) -> None:
    """Refuse draws whose leaves do not begin with the axes of their log-weights."""
    for name, leaf in named_leaves(z):
        dtype = getattr(leaf, "dtype", jnp.bool_)
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise TypeError(
                f"each leaf of z must hold real numbers, leaf '{name}' is {dtype}; leave it out, or "
                "report its parts, z.real and z.imag."
            )
        if log_w.ndim == 0 or jnp.shape(leaf)[: log_w.ndim] != log_w.shape:
            raise ValueError(
                f"each leaf of z must begin with log_w's shape {log_w.shape} ([k, *batch], k "
                f"first); leaf '{name}' is {jnp.shape(leaf)}. Draws made with chunk_size keep no "
                "z: draw again with draws.weigh."
            )
    if not jax.tree.leaves(z):
        raise ValueError(
            "z holds no draws; those made with chunk_size keep none: draw again with draws.weigh."
        )
