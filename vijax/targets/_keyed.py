"""Targets with noise or state of their own: dropout, batch statistics, subsampling inside the model."""

from collections.abc import Callable
from typing import Any

from vijax.types import LogJoint, PyTree, derive


def keyed(function: Callable[[Any, PyTree], Any], *, has_aux: bool = False) -> LogJoint:
    """Make a target of f(key, z), whose key differs from draw to draw.

        log_joint(zₖ) = f(keyₖ, zₖ),   keyₖ a function of (key, k) alone

    For dropout in the decoder (pass `rngs=nnx.Rngs(dropout=key)` at call time), or for state that comes back, such as
    batch statistics: with `has_aux` f returns (log p, aux), and `Estimate.draws.aux` holds aux of every draw, gradients
    stopped, for you to average. Ignore the key if only the state matters.

    Args:
        function: (key, z) -> log p(x, z), [*batch] in nats; with `has_aux`, (log p, aux).
        has_aux: whether f returns a pair.

    Returns:
        A target for any objective; called by hand it takes `log_joint(z, key=key)`.

    Reference: Gal, Ghahramani, Dropout as a Bayesian approximation, 2016, arXiv:1506.02142, for the use.
    """

    def log_joint(z: PyTree, *, key: Any) -> Any:
        return function(key, z)

    return derive(function, log_joint, keyed=True, has_aux=has_aux)
