"""Refusals of a q whose draws do not carry its derivative, or whose support moves, as `jaxprs` finds them."""

from typing import Any

import jax

from vijax import jaxprs, types
from vijax.jaxprs import PARAMETER, Path

__all__ = ["CURE", "PARAMETER", "Path", "continuous_support", "of", "require", "scored_leaves", "support"]

CURE = (
    "use gradients.vimco or gradients.score, or gradients.auto to choose for each leaf (for mixtures, draws.stratified)"
)
of = jaxprs.paths


def require(q: Any, draw: types.Draw, key: Any, estimator: str) -> dict[str, Path]:
    """Refuse a q whose draws do not carry the whole derivative of its parameters; return the paths of its leaves."""
    found = of(q, draw, key)
    for leaf, path in found.items():
        if path.broken is not None:
            raise ValueError(
                f"{estimator} needs draws that carry the derivative of q, and leaf '{leaf}' {path.broken}; {CURE}."
            )
    return found


def support(log_prob: Any, leaves: dict[str, Path], estimator: str, given: Any = ()) -> None:
    """Refuse a q whose support moves with its parameters: dreg drops, and score uses, a score of mean zero."""
    _fixed(jaxprs.moving_support(log_prob, leaves, given), estimator)


def continuous_support(q: Any, key: Any, draw: types.Draw, estimator: str) -> None:
    """Apply `support` to a q that a score estimator draws from, where any of it is continuous."""
    found = of(q, draw, key)
    if any(path.parametric for path in found.values()):
        z = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=())[0], key)
        support(jaxprs.trace(q.log_prob, z)[0], found, estimator)


def scored_leaves(q: types.Joint, key: Any) -> set[Any]:
    """Return the leaves of a Joint that need a score; refuse those whose support moves."""
    scored = jaxprs.scored_leaves(q, key)
    _fixed(scored.moving, "auto")
    return scored.names


def _fixed(moving: str | None, estimator: str) -> None:
    if moving is not None:
        raise ValueError(
            f"{estimator} takes the mean of q's score for zero, which it is only while q's support is fixed; here "
            f"{moving}. Use gradients.reparam or gradients.auto, or a q of fixed support."
        )
