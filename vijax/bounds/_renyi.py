"""Power means of the weights: the Rényi family below and above the evidence, and the chi upper bound."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax.bounds._importance import elbo, elbo_own
from vijax.calls import bound, is_known
from vijax.numerics import (
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    normalized_weights,
)
from vijax.types import with_closed_forms

# All three share one form, (1/n) log Σ weightsₖ wₖⁿ, with the mean of log w as its limit at n = 0.


def _power_mean(log_w: Array, n: float | Array, weights: Array | None) -> Array:
    if isinstance(n, (int, float)) and n == 0:
        return elbo(log_w, weights=weights)
    safe = jnp.where(n == 0, 1.0, n).astype(log_w.dtype)
    mean = elbo(log_w, weights=weights)
    # Near n = 0 the logarithm of the mean cancels to noise / n; from the mean of log w upwards it does not.
    center = jax.lax.stop_gradient(jnp.where(jnp.isfinite(mean), mean, 0.0))
    away = safe * (log_w - center[None])
    near = jnp.all(jnp.abs(away) < 0.5, 0)
    small = (
        jnp.log1p(elbo(jnp.expm1(jnp.where(near[None], away, 0.0)), weights=weights)) / safe
        + center
    )
    value = jnp.where(near, small, log_mean_exp(safe * log_w, weights=weights) / safe)
    # At n = 0 itself too the slope in n is half the variance.
    spread = jnp.where(jnp.isfinite(log_w), log_w - center[None], 0.0)
    return jnp.where(n == 0, mean + 0.5 * n * elbo(jnp.square(spread), weights=weights), value)


def _power_gate(log_w: Array, n: float | Array, weights: Array | None) -> Array:
    if isinstance(n, (int, float)) and n == 0:
        return jnp.ones_like(log_w)
    # B''ₖₖ / B'ₖ = n (1 - w̃ₖ), with weights w̃ ∝ wⁿ.
    tilted = jnp.where(jnp.asarray(n) == 0, 0.0, n * log_w)  # not 0 · -inf
    return 1 - n * (1 - normalized_weights(tilted, weights=weights))


def _power_leave_one_out(log_w: Array, n: float | Array) -> Array:
    if isinstance(n, (int, float)) and n == 0:
        return leave_one_out_mean(log_w)
    # n = 0 is the mean of log w, by which the power mean must not be divided.
    safe = jnp.where(n == 0, 1.0, n).astype(log_w.dtype)
    return jnp.where(
        n == 0, leave_one_out_mean(log_w), leave_one_out_log_mean_exp(safe * log_w) / safe
    )


def _renyi_gate(log_w: Array, *, alpha: float | Array, weights: Array | None = None) -> Array:
    return _power_gate(log_w, 1 - alpha, weights)


def _renyi_leave_one_out(log_w: Array, *, alpha: float | Array) -> Array:
    return _power_leave_one_out(log_w, 1 - alpha)


def _renyi_own(
    log_w: Array, *, alpha: float | Array, weights: Array | None = None
) -> tuple[Array, Array]:
    """Return each draw's own part at α = 1, where the bound is the ELBO, and the whole elsewhere."""
    own, share = elbo_own(log_w, weights=weights)
    whole = renyi(log_w, alpha=alpha, weights=weights)[None]
    # α may be traced, so both are computed.
    is_mean = jnp.asarray(alpha) == 1
    return jnp.where(is_mean, own, whole), jnp.where(is_mean, share, 1.0)


def _renyi_power(
    *, alpha: float | Array | None = None, weights: Array | None = None
) -> float | Array | None:
    return None if alpha is None or weights is not None else 1 - alpha


@with_closed_forms(
    smooth=True,
    power=_renyi_power,
    gate=_renyi_gate,
    leave_one_out=_renyi_leave_one_out,
    own=_renyi_own,
)
@bound
def renyi(
    log_w: Float[Array, "k *batch"], *, alpha: float | Array, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Rényi bound, to be maximized: a lower bound of log p(x) for α >= 0, at any k; for α <= 0 an
    upper one, in the limit.

        L = 1/(1-α) log Σₖ weightsₖ wₖ^(1-α),   IWAE at α = 0, the ELBO as α -> 1, non-increasing in α

    Between mass-covering (α < 1) and zero-forcing (α > 1) fits.

    Args:
        log_w: log-weights in nats, [k, *batch].
        alpha: order; 1 is the ELBO. Below 0 the value at finite k is neither bound: the estimate is
            biased towards the ELBO.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(renyi(log_w, alpha=0.5)), 3)  # 2 log ½ (1 + √3)
        0.624

    Reference: Li, Turner, Rényi divergence variational inference, 2016, arXiv:1602.02311.
    """
    return _power_mean(log_w, 1 - alpha, weights)


def _cubo_gate(log_w: Array, *, n: float | Array = 2.0, weights: Array | None = None) -> Array:
    return _power_gate(log_w, n, weights)


def _cubo_leave_one_out(log_w: Array, *, n: float | Array = 2.0) -> Array:
    return _power_leave_one_out(log_w, n)


def _cubo_power(*, n: float | Array = 2.0, weights: Array | None = None) -> float | Array | None:
    return None if weights is not None else n


@with_closed_forms(
    smooth=True, power=_cubo_power, gate=_cubo_gate, leave_one_out=_cubo_leave_one_out
)
@bound
def cubo(
    log_w: Float[Array, "k *batch"], *, n: float | Array = 2.0, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Chi upper bound, to be minimized: an upper bound of log p(x) in the limit, n >= 1; at finite
    k neither.

        U = 1/n log Σₖ weightsₖ wₖⁿ  ->  1/n log E_q[wⁿ]  >=  log p(x)

    Sandwiches the evidence together with a lower bound, where k is large.

    Args:
        log_w: log-weights in nats, [k, *batch].
        n: order, at least 1.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats. The logarithm biases it low: on log-normal weights with a limit of 1.125, its
        mean at k = 1, 4, 16 is -1.125, -.131, .419.

    Raises:
        ValueError: for n < 1.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(cubo(log_w, n=2.0)), 3)  # ½ log ½ (1² + 3²)
        0.805

    Reference: Dieng, Tran, Ranganath, Paisley, Blei, Variational inference via chi upper bound minimization, 2017,
        arXiv:1611.00328.
    """
    if is_known(n) and not np.all(np.asarray(n) >= 1):
        raise ValueError(
            f"n must be at least 1 for an upper bound, got {n}; for a lower one use renyi, "
            "alpha = 1 - n."
        )
    return _power_mean(log_w, n, weights)
