"""Data of which some entries are missing."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from vijax import checks
from vijax.calls import usage
from vijax.types import PyTree


@usage("targets.missing")
def missing(
    log_likelihood: Callable[[PyTree, Array], Array],
    x: ArrayLike,
    observed: ArrayLike,
    *,
    event_ndim: int = 1,
    fill: float = 0.0,
) -> Callable[[PyTree], Array]:
    """Return the log-likelihood of the observed entries: the missing ones are integrated out.

        log p(x_o | z) = Σ_{d observed} log p(x_d | z)

    Exact where the entries are independent given z, as under most decoders. Missing entries may hold
    anything, nan too: they reach neither a value nor a gradient. Add the prior for a log_joint; to
    fill them in, see `draws.expectation`.

    Args:
        log_likelihood: (z, x) -> one term for each entry, [*batch, *event] in nats, not summed.
        x: data, [*batch, *event].
        observed: True where x counts, [*batch, *event], such as `~jnp.isnan(x)`.
        event_ndim: how many trailing axes are entries of one datum, to be summed over.
        fill: what `log_likelihood` reads in place of a missing entry: any number inside the support,
            1.0 for what is positive.

    Returns:
        z -> log p(x_o | z), [*batch] in nats.

    Raises:
        TypeError: for observed that is not boolean.
        ValueError: where the shapes of x and observed differ, or event_ndim exceeds theirs; (when
            called) where the terms are not of that shape.

    Example:
        >>> x = jnp.array([1.0, jnp.nan])
        >>> target = missing(lambda z, x: -0.5 * (x - z) ** 2, x, ~jnp.isnan(x))
        >>> float(target(jnp.zeros(2)))
        -0.5

    Reference: Mattei, Frellsen, MIWAE: deep generative modelling and imputation of incomplete data
        sets, 2019, arXiv:1812.02633.
    """
    observed = jnp.asarray(observed)
    if observed.dtype != bool:
        raise TypeError(
            f"observed must be boolean, got {observed.dtype}: True where an entry counts, such as "
            "~jnp.isnan(x), or mask > 0."
        )
    if jnp.shape(x) != observed.shape:
        raise ValueError(
            f"observed must have the shape of x, {jnp.shape(x)}, got {observed.shape}: one bool "
            "for each entry."
        )
    checks.static_count(event_ndim, "event_ndim", least=0)
    if event_ndim > observed.ndim:
        raise ValueError(
            f"event_ndim must be at most the number of axes of x, {observed.ndim}, got {event_ndim}."
        )
    # Before the density, for a nan that only its value left out would come back in its gradient.
    x = jnp.asarray(x)
    filled = jnp.where(observed, x, jnp.asarray(fill, x.dtype))  # categories stay whole numbers
    event = tuple(range(observed.ndim - event_ndim, observed.ndim))

    def of_observed(z: PyTree) -> Array:
        terms = log_likelihood(z, filled)
        if jnp.shape(terms) != observed.shape:
            raise ValueError(
                "log_likelihood(z, x) must return one term for each entry of x, "
                f"{observed.shape}; got {jnp.shape(terms)}. Leave the sum over entries to "
                "targets.missing: use distrax.Normal, say, without Independent."
            )
        return jnp.sum(jnp.where(observed, terms, 0.0), event)

    return of_observed
