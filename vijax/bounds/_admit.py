"""What every bound asks of its log-weights, and of the weights of strata."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from vijax.calls import is_known, log_weights, usage

# The cure in messages of a bound that was given something else than log-weights.
BOUND = (
    "an estimator takes the bound, and what it makes the key, the model and q: "
    "gradients.dreg(bounds.{0})(key, log_joint, q, num_samples=16)"
)
F = TypeVar("F", bound=Callable[..., Any])


def bound(function: F) -> F:
    """Decorate a bound: refuse what are no log-weights, and weights that are known to be no shares."""
    name = function.__name__
    fits = usage(f"bounds.{name}", f"bounds.{name}(log_w, ...), with its keywords by name")(
        function
    )

    @functools.wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        if args:
            log_weights(args[0], f"bounds.{name}", BOUND.format(name))
            _shares(given.get("weights"), args[0])
        return fits(*args, **given)

    return checked  # type: ignore[return-value]


def _shares(weights: ArrayLike | None, log_w: Array) -> None:
    """Refuse weights that do not fit; of their values, those that are known while tracing."""
    if weights is None:
        return
    shape = jnp.shape(weights)
    if shape not in (log_w.shape[:1], log_w.shape):
        raise ValueError(
            f"weights have shape {shape}, expected {log_w.shape[:1]} or {log_w.shape}, as log_w's."
        )
    if not is_known(weights):
        return
    known = np.asarray(weights).astype(np.float64)
    total = known.sum(0)
    # Half precision sums to 1 within a few of its own units.
    room = max(1e-4, 8 * float(jnp.finfo(jnp.result_type(weights, jnp.float16)).eps))
    if np.any(known < 0) or np.any(np.abs(total - 1) > room):
        raise ValueError(
            "weights must be positive or 0 and sum to 1 over axis 0; the least is "
            f"{known.min():.4g} and the sums are {total.min():.4g} to {total.max():.4g}: give it "
            "weights / weights.sum(0)."
        )
