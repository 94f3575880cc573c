"""What every bound asks of its log-weights, and of the weights of strata."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from vijax.calls import log_weights, shares, usage

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
            shares(given.get("weights"), args[0])
        return fits(*args, **given)

    return checked  # type: ignore[return-value]
