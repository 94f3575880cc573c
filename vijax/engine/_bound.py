"""What a call asks of its bound: weights where draws do not count alike, a mean, no kinks."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import jaxprs
from vijax.engine import _refusals as refusals
from vijax.types import Bound, ClosedForms


def is_mean(bound: Bound, forms: ClosedForms) -> bool:
    """Whether a bound is the mean of log-weights: one that is linear may be a sum, or have a minus sign.

    Example:
        >>> elbo, iwae = vj.bounds.elbo, vj.bounds.iwae
        >>> [is_mean(bound, vj.types.closed_forms(bound)) for bound in (elbo, iwae)]
        [True, False]
    """
    if not forms.linear:
        return False
    try:
        with jax.ensure_compile_time_eval():
            # Of a linear bound one example tells a mean, 2, from a sum, 6.
            three = jnp.array([[0.0], [1.0], [5.0]], jnp.float32)
            return bool(np.allclose(bound(three), 2.0, rtol=1e-5))
    except (TypeError, ValueError):
        # It holds weights, of another number of draws or traced ones.
        return False


def with_weights(bound: Bound, weights: Array) -> Bound:
    """Return the bound with its draws' weights, bound by partial so that its closed forms know them too."""
    parameters = inspect.signature(bound).parameters.values()
    if not any(p.name == "weights" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise refusals.takes_no_weights(bound)
    return partial(bound, weights=weights)


def require_smooth(estimator: str, bound: Bound, log_w: Array) -> None:
    """Refuse a bound whose jaxpr shows a kink, which no second derivative shows."""
    kink = jaxprs.not_smooth(bound, log_w)
    if kink is not None:
        raise refusals.has_a_kink(estimator, bound, kink.primitive)
