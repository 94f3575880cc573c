"""Unbiased bounds on the scale of the evidence itself, and the variance of log-weights."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vijax import checks
from vijax.bounds._importance import elbo
from vijax.bounds._total import exp
from vijax.calls import bound, is_known
from vijax.types import with_closed_forms


def _excess(log_w: Array, reference: ArrayLike) -> Array:
    """Return log_w - reference, the latter broadcast against [*batch]."""
    r, batch = jnp.asarray(reference, log_w.dtype), log_w.shape[1:]
    if r.shape not in ((), batch):
        raise ValueError(f"reference has shape {r.shape}, expected () or the batch's {batch}.")
    return log_w - jnp.broadcast_to(r, batch)[None]


def _powers(
    log_w: Array,
    *,
    n: float | Array = 2.0,
    reference: ArrayLike = 0.0,
    weights: Array | None = None,
) -> Array:
    return exp(n * _excess(log_w, reference))


@with_closed_forms(smooth=True, terms=_powers)
@bound
def exp_cubo(
    log_w: Float[Array, "k *batch"],
    *,
    n: float | Array = 2.0,
    reference: ArrayLike = 0.0,
    weights: Array | None = None,
) -> Float[Array, "*batch"]:
    """Exponentiated chi bound, to be minimized: an upper bound of (p(x)/eʳ)ⁿ, n >= 1, in
    expectation at any k.

        U = Σₖ weightsₖ (wₖ/eʳ)ⁿ,     r: reference

    What CUBO's logarithm loses: it is unbiased, so stochastic gradients minimize a bound. Its variance
    is heavy-tailed.

    Args:
        log_w: log-weights in nats, [k, *batch].
        n: the order of the moment.
        reference: r in nats, () or [*batch]; near log p(x) (a running `iwae`, stopped) the value stays
            in range.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in units of e^(n r); infinite, with slope 0, where it leaves the range of the dtype.

    Raises:
        ValueError: where k = 0, for n < 1, or for a reference of another shape.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(exp_cubo(log_w, n=2.0)), 3)  # ½ (1² + 3²)
        5.0

    Reference: Dieng, Tran, Ranganath, Paisley, Blei, Variational inference via χ upper bound minimization, 2017,
        arXiv:1611.00328.
    """
    if is_known(n) and not np.all(np.asarray(n) >= 1):
        raise ValueError(f"n must be at least 1 for an upper bound, got {n}.")
    return elbo(_powers(log_w, n=n, reference=reference), weights=weights)


def _series(
    log_w: Array, *, reference: ArrayLike, order: int = 3, weights: Array | None = None
) -> Array:
    excess = _excess(log_w, reference)
    infinite = jnp.isinf(excess)
    x = jnp.where(infinite, 0.0, excess)
    # Horner's rule for Σⱼ xʲ/j!.
    series = jnp.ones_like(x)
    for j in range(order, 0, -1):
        series = 1 + x / j * series
    return jnp.where(infinite, excess, series)


@with_closed_forms(smooth=True, terms=_series)
@bound
def perturbative(
    log_w: Float[Array, "k *batch"],
    *,
    reference: ArrayLike,
    order: int = 3,
    weights: Array | None = None,
) -> Float[Array, "*batch"]:
    """Perturbative bound, to be maximized: a lower bound of p(x)/eʳ in expectation at any k.

        L = Σₖ weightsₖ Σ_{j<=order} (log wₖ - r)ʲ / j!  <=  Σₖ weightsₖ wₖ/eʳ,     r: reference

    Less bias than the ELBO, less variance than the evidence. The bound on log p(x) is r + log L where
    L > 0.

    Args:
        log_w: log-weights in nats, [k, *batch].
        reference: r = -V₀ in nats, () or [*batch]; best near log p(x), and may be learned.
        order: of the Taylor series; odd for a bound. Order 1 is the ELBO, up to 1 - r.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in units of eʳ.

    Raises:
        ValueError: for an order that is even or below 1, or a reference of another shape.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(perturbative(log_w, reference=0.0, order=3)), 3)  # below ½ (1 + 3) = 2
        1.962

    Reference: Bamler, Zhang, Opper, Mandt, Perturbative black box variational inference, 2017, arXiv:1709.07433.
    """
    checks.static_count(order, "order")
    if order % 2 == 0:
        raise ValueError(
            f"perturbative bounds p(x) for odd orders only, got {order}; take {order + 1}."
        )
    return elbo(_series(log_w, reference=reference, order=order), weights=weights)


def _pairs(log_w: Array, *, weights: Array | None = None) -> tuple[Array, float]:
    """Return the pairs of each draw, of the mean over pairs of half their squared difference."""
    # Half the variance is 1/(k (k-1)) Σ_{j<k} ½ (log wⱼ - log wₖ)²: the pairs that hold draw k are
    # ½ Σⱼ (log wⱼ - log wₖ)² = ½ (k dₖ² + Σⱼ dⱼ²), with d the deviations from the mean.
    k = log_w.shape[0]
    from_mean = log_w - jnp.mean(log_w, 0, keepdims=True)
    with_others = k * jnp.square(from_mean) + jnp.sum(jnp.square(from_mean), 0, keepdims=True)
    return 0.5 * with_others / (k * (k - 1)), 2 / k


@with_closed_forms(smooth=True, independent=True, own=_pairs)
@bound
def log_variance(
    log_w: Float[Array, "k *batch"], *, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Log-variance divergence, to be minimized: 0 where q is the posterior, and neither an upper
    nor a lower bound of log p(x), at any k.

        D = ½ Var[log w],     unbiased over k >= 2 draws

    Under `gradients.fixed` its gradient in q is minus the ELBO's with leave-one-out baselines
    (VarGrad).

    Args:
        log_w: log-weights in nats, [k, *batch], k >= 2.
        weights: must be None.

    Returns:
        [*batch], in nats²; +inf where any draw is impossible or infinite.

    Raises:
        ValueError: for k < 2, or weights.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(log_variance(log_w)), 3)  # ¼ (log 3)²
        0.302

    Reference: Richter, Boustati, Nüsken, Ruiz, Akyildiz, VarGrad: a low-variance gradient estimator for variational
        inference, 2020, arXiv:2010.10436.
    """
    if log_w.shape[0] < 2:
        raise ValueError(
            f"log_variance takes two draws or more, k >= 1 + 1; got k = {log_w.shape[0]}."
        )
    if weights is not None:
        raise ValueError("log_variance needs draws of equal weight; pass weights=None.")
    infinite = jnp.isinf(log_w)
    # An infinite row would make the variance nan; it is reported as +inf below.
    value = 0.5 * jnp.var(jnp.where(infinite, 0.0, log_w), axis=0, ddof=1)
    unbounded = jnp.any(infinite, 0) & ~jnp.isnan(value)
    return jnp.where(unbounded, jnp.inf, value)
