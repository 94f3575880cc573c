"""What every objective does: check its input, look at all draws (at once or in chunks), and report what it saw."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from vijax import checks, draws
from vijax.draws import Plan
from vijax.types import Bound, Draw, Draws, Estimate, LogJoint, PyTree, keywords, lift

# A look at some draws: (log_p, log_q, whatever the estimator wants for its gradient), and (z, aux).
Look = Callable[[Plan], tuple[tuple[Array, Array, PyTree], tuple[PyTree, PyTree]]]


def admit(
    key: Any,
    log_joint: LogJoint,
    q: Any,
    num_samples: int,
    chunk_size: int | None,
    bound: Any,
    *,
    least: int = 1,
    why: str = "",
) -> tuple[LogJoint, Any]:
    """Check the arguments that all objectives share; return log_joint as the bound may see it, and q as one."""
    checks.key(key)
    checks.num_samples(num_samples, chunk_size, least=least, why=why)
    _alone(bound)
    return checks.linear(bound, log_joint), lift(q)


def _alone(bound: Any) -> None:
    """Refuse a bound that cannot be called with log_w alone: a keyword is missing or misspelt, or it is no bound."""
    try:
        inspect.signature(bound).bind(None)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(bound, partial):
            return  # a builtin that tells no signature
        names = ", ".join(keywords(bound))
        given = f" with {names}" if names else ""
        raise TypeError(
            f"bound must be callable with log_w alone, and {checks.describe(bound)}{given} is not ({error}); bind its "
            "keywords, as in functools.partial(bounds.renyi, alpha=0.5)."
        ) from None


def weighted(bound: Bound, draw: Draw, q: Any, num_samples: int) -> tuple[Bound, Array | None]:
    """Return the bound of draws that count as `draw` says, and their weights; the bound itself where they count alike.

    The weights are bound by partial, so that closed forms found through `attribute` know them too. Refuses a bound that
    cannot be told that draws do not count alike.
    """
    weights = None if draw.weights is None else draw.weights(q, num_samples)
    if weights is None:
        return bound, None
    takes = inspect.signature(bound).parameters.values()
    if not any(p.name == "weights" or p.kind is p.VAR_KEYWORD for p in takes):
        raise TypeError(
            f"these draws do not count alike, and {checks.describe(bound)} takes no weights: give it the keyword "
            "weights=None, [k, *batch] summing to 1 over axis 0, or use one of vijax.bounds."
        )
    return partial(bound, weights=weights), weights


def estimate(
    look: Look,
    value: Callable[[Array, Array, PyTree], Array],
    seeds: Plan,
    chunk_size: int | None,
    reply: Callable[[Array], Array] | None = None,
    weights: Array | None = None,
) -> Estimate:
    """Look at every draw and judge the log-densities found; `reply` as in `draws.chunked`, `weights` for the record."""
    if chunk_size is None or (chunk_size >= seeds.rows and reply is None):
        (log_p, log_q, extra), (z, aux) = look(seeds)
    else:
        (log_p, log_q, extra), aux = draws.chunked(lambda s: _without_draws(look(s)), seeds, chunk_size, reply=reply)
        z = None
    judged = value(log_p, log_q, extra)
    if judged.shape != log_q.shape[1:]:
        raise ValueError(f"a bound maps [k, *batch] to [*batch]: from {log_q.shape} this one made {judged.shape}.")
    return Estimate(judged, jax.lax.stop_gradient(Draws(z, log_p, log_q, weights, aux)))


def _without_draws(seen: Any) -> Any:
    found, (_, aux) = seen
    return found, aux
