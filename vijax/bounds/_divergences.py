"""f-divergences, estimated from log-weights."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from vijax.bounds._importance import elbo
from vijax.calls import bound
from vijax.types import closed_forms, with_closed_forms


def _smooth(*, f: Callable[[Array], Array] | None = None, weights: Array | None = None) -> Any:
    return True if f is None else closed_forms(f).smooth


def _terms(log_w: Array, *, f: Callable[[Array], Array], weights: Array | None = None) -> Array:
    return f(log_w)


@with_closed_forms(smooth=_smooth, terms=_terms)
@bound
def f_divergence(
    log_w: Float[Array, "k *batch"], *, f: Callable[[Array], Array], weights: Array | None = None
) -> Float[Array, "*batch"]:
    """f-divergence of the target from q, to be minimized: unbiased at any k where log_joint is
    normalized, and neither an upper nor a lower bound of log p(x).

        D = Σₖ weightsₖ f(wₖ)  ->  E_q[f(p(z)/q(z))]

    For fitting by another distance: `partial(f_divergence, f=bounds.generators.jensen_shannon)`.

    Args:
        log_w: log-weights in nats, [k, *batch].
        f: log u -> f(u), convex and 0 at u = 1; of `bounds.generators`, or yours. With an unnormalized
            log_joint p is scaled by its evidence. The best fit stays the same for powers of u, log u
            and u log u, up to a line (both kl, chi_square, pearson, squared_hellinger, amari_alpha);
            for others (jensen_shannon, jeffreys, total_variation) subtract an estimate of log Z.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in units of f; infinite, with slope 0, where f leaves the range of the dtype.

    Raises:
        ValueError: where k = 0.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(f_divergence(log_w, f=vj.bounds.generators.pearson)), 3)  # ½ (0² + 2²)
        2.0

    Reference: Wan, Li, Hovakimyan, f-divergence variational inference, 2020, arXiv:2009.13093.
    """
    return elbo(_terms(log_w, f=f), weights=weights)
