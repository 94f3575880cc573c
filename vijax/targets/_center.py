"""A point of a distribution's support, without noise where it knows one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import jaxprs
from vijax.types import Affine, Centered, Draw, Joint, PyTree, offers

# One draw at its own key, for the question whether it is continuous in it.
_ONE = Draw(
    lambda key, count: jax.random.split(key, count),
    lambda key, p: p.sample_and_log_prob(seed=key, sample_shape=()),
    independent=True,
)


def center(p: PyTree, key: Array | None = None) -> PyTree:
    """Return a point of p's support, as one draw has it; a draw where `key` is given, or p names no other point.

    A mean is such a point where draws fill an interval: of one number each, and continuous. A draw
    costs far more than a density where it is made by rejection, as a Gamma's is.
    """
    if key is not None:
        return p.sample_and_log_prob(seed=key, sample_shape=())[0]
    if offers(p, Centered):
        return p.center()
    if offers(p, Affine):
        # The draw of zero noise is the location.
        return p.affine(jnp.zeros(p.uniforms))
    if isinstance(p, Joint):
        leaves: dict[Any, PyTree] = {}
        for name in p.names():
            leaves[name] = center(p.conditional(name, leaves))
        return p.collect(leaves)
    mean = _mean(p)
    return center(p, jax.random.key(0)) if mean is None else mean


def _mean(p: PyTree) -> Array | None:
    """Return the mean of a library's distribution of one number, where every draw is continuous."""
    known: PyTree = getattr(p, "adapted", p)
    if not _of_one_number(known):
        return None
    try:
        mean = known.mean()
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    key = jax.random.key(0)
    draw = jax.eval_shape(lambda: p.sample_and_log_prob(seed=key, sample_shape=())[0])
    # A mean of other shape, or of draws that jump, need not be in the support.
    alike = getattr(draw, "shape", None) == jnp.shape(mean)
    if not alike or any(path.broken for path in jaxprs.paths(p, _ONE, key).values()):
        return None
    return jnp.asarray(mean, draw.dtype)


def _of_one_number(p: PyTree) -> bool:
    """Whether p is over single numbers, or independent ones of a library's `Independent`."""
    if getattr(p, "reinterpreted_batch_ndims", None) is not None:
        return _of_one_number(p.distribution)
    return getattr(p, "event_shape", None) == ()
