"""Bounds by tilted weights: upper bounds by self-normalization, and sums along the path from q to p."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vijax.bounds._importance import elbo, elbo_own
from vijax.calls import bound, is_known
from vijax.numerics import expand, normalized_weights
from vijax.types import with_closed_forms

Partition = ArrayLike | Sequence[float]


def _tilted_mean(log_w: Array, beta: Array | float, weights: Array | None) -> Array:
    """Return Σ w̃ₖ log wₖ with w̃ ∝ weights wᵝ: the self-normalized mean of log w at inverse temperature β > 0."""
    if log_w.shape[0] == 0:
        raise ValueError(f"log_w must have shape [k, *batch] with k >= 1, got {log_w.shape}.")
    counted = log_w
    if weights is not None:
        # Rows of no weight set no scale, and are the slope in their weight where they are finite.
        none = jnp.broadcast_to(expand(weights, log_w), log_w.shape) == 0
        log_w = jnp.where(none & ~jnp.isfinite(log_w), -jnp.inf, log_w)
        counted = jnp.where(none, -jnp.inf, log_w)
    # [*batch]: the scale; rows are 0 where it is infinite, which is reported at the end.
    top = jax.lax.stop_gradient(jnp.max(counted, 0))
    rows = jnp.where(jnp.isinf(top)[None], 0.0, log_w)
    possible = rows != -jnp.inf
    # Below the largest, so that rounding is of the spread and not of the size.
    below = jnp.where(possible, rows - jnp.where(jnp.isinf(top), 0.0, top)[None], 0.0)
    w = normalized_weights(jnp.where(possible, beta * below, -jnp.inf), weights=weights)
    return top + jnp.where(jnp.isinf(top), 0.0, jnp.sum(w * below, 0))


@with_closed_forms(smooth=True)
@bound
def eubo(
    log_w: Float[Array, "k *batch"], *, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Evidence upper bound, to be minimized: an upper bound of log p(x) in the limit; at finite k
    neither upper nor lower.

        U = Σₖ w̃ₖ log wₖ  ->  E_{p(z|x)}[log p(x, z) - log q(z)] = log p(x) + KL(p(z|x) ‖ q)

    Sandwiches the evidence with a lower bound and, minimized in q, covers all modes.

    Args:
        log_w: log-weights in nats, [k, *batch].
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats, biased low, down to the ELBO at k = 1; -inf where every draw is impossible,
        each of which alone counts for nothing.

    Raises:
        ValueError: where k = 0.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(eubo(log_w)), 3)  # ¾ log 3
        0.824

    Reference: Ji, Shen, Stochastic variational inference via upper bound, 2019, arXiv:1912.00650.
    """
    return _tilted_mean(log_w, 1.0, weights)


def _tvo_lower_own(
    log_w: Array, *, partition: Partition, weights: Array | None = None
) -> tuple[Array, Array]:
    """Return each draw's own part of the ELBO, the first term, and the whole of the other terms."""
    mean, share = elbo_own(log_w, weights=weights)
    # Every other term depends on all draws through the normalization.
    first = jnp.asarray(partition, log_w.dtype)[1]
    rest = _riemann(log_w, partition, weights, 0, begin=1)
    return first * mean + rest[None], first * share + (1 - first)


@with_closed_forms(smooth=True, own=_tvo_lower_own)
@bound
def tvo_lower(
    log_w: Float[Array, "k *batch"], *, partition: Partition, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Thermodynamic lower bound, to be maximized: a lower bound of log p(x) in the limit; at finite
    k neither.

        L = Σₜ (βₜ₊₁ - βₜ) E_{π(βₜ)}[log w]  <=  ∫₀¹ E_{π(β)}[log w] dβ = log p(x),     π(β) ∝ q^(1-β) p^β

    The left Riemann sum of a rising integrand, self-normalized over the same draws, and so biased.

    Args:
        log_w: log-weights in nats, [k, *batch].
        partition: 0 = β₀ < β₁ < ... < β_T = 1, [T + 1]; tighter with every point, the ELBO for [0, 1].
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats; -inf where any draw is impossible.

    Raises:
        ValueError: for a partition that is not a rising vector from 0 to 1.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(tvo_lower(log_w, partition=[0.0, 0.5, 1.0])), 3)  # ELBO .549, log 2 = .693
        0.623

    Reference: Masrani, Le, Wood, The thermodynamic variational objective, 2019, arXiv:1907.00031.
    """
    return _riemann(log_w, partition, weights, 0)


@with_closed_forms(smooth=True)
@bound
def tvo_upper(
    log_w: Float[Array, "k *batch"], *, partition: Partition, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Thermodynamic upper bound, to be minimized: an upper bound of log p(x) in the limit; at
    finite k neither.

        U = Σₜ (βₜ₊₁ - βₜ) E_{π(βₜ₊₁)}[log w]  >=  log p(x),   the right Riemann sum

    With `tvo_lower` on the same draws it brackets the evidence, up to the bias of self-normalization.

    Args:
        log_w: log-weights in nats, [k, *batch].
        partition: 0 = β₀ < β₁ < ... < β_T = 1, [T + 1]; the EUBO for [0, 1].
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: for a partition that is not a rising vector from 0 to 1.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(tvo_upper(log_w, partition=[0.0, 0.5, 1.0])), 3)  # log 2 = .693, EUBO .824
        0.76

    Reference: Brekelmans, Masrani, Wood, Ver Steeg, Galstyan, All in the exponential family: Bregman duality in
        thermodynamic variational inference, 2020, arXiv:2007.00642.
    """
    return _riemann(log_w, partition, weights, 1)


def _riemann(
    log_w: Array, partition: Partition, weights: Array | None, side: int, *, begin: int = 0
) -> Array:
    # side 0 takes each interval's left end, side 1 its right end.
    betas = jnp.asarray(partition, log_w.dtype)
    _check_partition(partition, betas.shape)
    total = jnp.zeros(log_w.shape[1:], log_w.dtype)
    for t in range(begin, betas.shape[0] - 1):
        # At β = 0 all draws count, the impossible ones too: the ELBO.
        mean = (
            elbo(log_w, weights=weights)
            if t + side == 0
            else _tilted_mean(log_w, betas[t + side], weights)
        )
        total = total + (betas[t + 1] - betas[t]) * mean
    return total


def _check_partition(partition: Partition, shape: tuple[int, ...]) -> None:
    what = (
        "partition must be a vector 0 = β₀ < β₁ < ... < β_T = 1 of two points or more, "
        "jnp.linspace(0, 1, T + 1)"
    )
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"{what}; got shape {shape}.")
    if not is_known(partition):
        return
    betas = np.asarray(partition, np.float64)
    if not (betas[0] == 0 and abs(betas[-1] - 1) <= 1e-6 and np.all(np.diff(betas) > 0)):
        raise ValueError(f"{what}; got {betas}.")
