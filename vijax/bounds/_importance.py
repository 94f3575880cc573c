"""The evidence lower bound and its importance-weighted kin."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax import checks
from vijax.calls import bound, is_known
from vijax.numerics import (
    expand,
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    normalized_weights,
)
from vijax.types import with_closed_forms


def _ones(log_w: Array, *, weights: Array | None = None) -> Array:
    return jnp.ones_like(log_w)


def elbo_own(log_w: Array, *, weights: Array | None = None) -> tuple[Array, Array]:
    """Return each draw's own part of the mean of log w, and its share."""
    share = jnp.asarray(1 / log_w.shape[0]) if weights is None else expand(weights, log_w)
    # A draw of no weight may be -inf, and 0 · -inf is nan.
    return share * jnp.where(share == 0, 0.0, log_w), share


# Where draws count alike, elbo and iwae are the power means 1/n log mean wⁿ of n = 0 and 1.


def _elbo_power(*, weights: Array | None = None) -> float | None:
    return 0.0 if weights is None else None


def _iwae_power(*, weights: Array | None = None) -> float | None:
    return 1.0 if weights is None else None


@with_closed_forms(
    smooth=True, linear=True, power=_elbo_power, gate=_ones, leave_one_out=leave_one_out_mean
)
@bound
def elbo(
    log_w: Float[Array, "k *batch"], *, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Evidence lower bound, to be maximized: a lower bound of log p(x) in expectation at any k.

        L = Σₖ weightsₖ log wₖ  ->  E_q[log p(x, z) - log q(z)] = log p(x) - KL(q ‖ p(z|x))

    The default. It is linear in log_w: minibatches of global latents, analytic terms and coupled
    draws go with it.

    Args:
        log_w: log-weights in nats, [k, *batch].
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: where k = 0.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(elbo(log_w)), 3)  # ½ log 3
        0.549

    Reference: Jordan, Ghahramani, Jaakkola, Saul, An introduction to variational methods for graphical models, 1999.
    """
    if log_w.shape[0] == 0:
        raise ValueError(f"log_w must have shape [k, *batch] with k >= 1, got {log_w.shape}.")
    # A mean's slope is constant; folded into the likelihood's backward pass it made XLA's CPU code twice as slow.
    log_w = jax.lax.optimization_barrier(log_w)
    if weights is None:
        return jnp.mean(log_w, 0)
    w = expand(weights, log_w)
    # A draw of no weight counts for nothing, though it be -inf; a finite one is the slope in its weight.
    return jnp.sum(w * jnp.where((w == 0) & ~jnp.isfinite(log_w), 0.0, log_w), 0)


@with_closed_forms(
    smooth=True,
    power=_iwae_power,
    gate=normalized_weights,
    leave_one_out=leave_one_out_log_mean_exp,
)
@bound
def iwae(
    log_w: Float[Array, "k *batch"], *, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Importance-weighted bound, to be maximized: a lower bound of log p(x) in expectation at any
    k.

        L = log Σₖ weightsₖ wₖ  ->  log p(x),   the ELBO at k = 1, rising in k

    Plain gradients of it lose the signal of q as k grows; pair it with `gradients.dreg`.

    Args:
        log_w: log-weights in nats, [k, *batch].
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(iwae(log_w)), 3)  # log 2
        0.693

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016, arXiv:1509.00519.
    """
    return log_mean_exp(log_w, weights=weights)


def _grouped(log_w: Array, groups: int, weights: Array | None) -> tuple[Array, Array, Array]:
    """Return log_w as [k/groups, groups, *batch], the weights within each group, and each group's own weight."""
    k = log_w.shape[0]
    checks.static_count(groups, "groups")
    if k == 0 or k % groups:
        raise ValueError(
            f"groups must divide the number of draws: {groups} groups, log_w of shape "
            f"{log_w.shape}."
        )
    w = jnp.full((k,), 1 / k, log_w.dtype) if weights is None else weights
    w = jnp.broadcast_to(expand(w, log_w), log_w.shape)

    def split(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(groups, k // groups, *a.shape[1:]), 0, 1)

    # [groups, *batch]: how much of q each group stands for.
    total = jnp.sum(split(w), 0)
    # A group of no weight has equal ones, so that its bound is the slope in the weight of the group.
    within = jnp.where(total == 0, groups / k, split(w) / jnp.where(total == 0, 1.0, total)[None])
    return split(log_w), within, total


def _ungroup(per_draw: Array, like: Array) -> Array:
    # [k/groups, groups, *batch] back to [k, *batch]: groups are runs of rows.
    return jnp.moveaxis(per_draw, 1, 0).reshape(like.shape)


def _multi_iwae_gate(log_w: Array, *, groups: int, weights: Array | None = None) -> Array:
    l, w, _ = _grouped(log_w, groups, weights)
    return _ungroup(normalized_weights(l, weights=w), log_w)


def _multi_iwae_leave_one_out(log_w: Array, *, groups: int) -> Array:
    l, _, _ = _grouped(log_w, groups, None)
    if l.shape[0] < 2:
        raise ValueError(
            f"multi_iwae of {groups} groups of one draw cannot lose a draw: use bounds.elbo."
        )
    # [groups, *batch]: each group's bound, then the share of the groups that keep all their draws.
    own = log_mean_exp(l)
    others = (jnp.sum(own, 0)[None] - own) / groups
    return _ungroup(leave_one_out_log_mean_exp(l) / groups + others[None], log_w)


def _multi_iwae_own(
    log_w: Array, *, groups: int, weights: Array | None = None
) -> tuple[Array, Array]:
    """Return for each draw the bound of its group."""
    l, w, total = _grouped(log_w, groups, weights)

    def each(x: Array) -> Array:
        return _ungroup(jnp.broadcast_to(x[None], l.shape), log_w)

    return each(total * log_mean_exp(l, weights=w)), each(total)


@with_closed_forms(
    smooth=True, gate=_multi_iwae_gate, leave_one_out=_multi_iwae_leave_one_out, own=_multi_iwae_own
)
@bound
def multi_iwae(
    log_w: Float[Array, "k *batch"], *, groups: int, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Mean of importance-weighted bounds over groups of draws (MIWAE), to be maximized: a lower
    bound at any k.

        L = 1/M Σₘ log M/K Σ_{k in group m} wₖ,   the ELBO at M = K, IWAE at M = 1

    Trades tightness for the signal of q's gradient.

    Args:
        log_w: log-weights in nats, [k, *batch]; group m is rows m k/M to (m+1) k/M - 1.
        groups: M, a divisor of k.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: where `groups` does not divide k.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0, 2.0, 2.0]))
        >>> round(float(multi_iwae(log_w, groups=2)), 3)  # log 2, of both groups
        0.693

    Reference: Rainforth et al., Tighter variational bounds are not necessarily better, 2018, arXiv:1802.04537.
    """
    l, w, total = _grouped(log_w, groups, weights)
    return elbo(log_mean_exp(l, weights=w), weights=total)


def _ciwae_gate(log_w: Array, *, beta: float | Array, weights: Array | None = None) -> Array:
    share = 1 / log_w.shape[0] if weights is None else expand(weights, log_w)
    w = normalized_weights(log_w, weights=weights)
    # B'ₖ = β/K + (1-β) w̃ₖ and B'ₖ - B''ₖₖ = β/K + (1-β) w̃ₖ²; at B'ₖ = 0 the limit is IWAE's gate.
    slope = beta * share + (1 - beta) * w
    return jnp.where(
        slope > 0, (beta * share + (1 - beta) * w**2) / jnp.where(slope > 0, slope, 1.0), w
    )


def _ciwae_leave_one_out(log_w: Array, *, beta: float | Array) -> Array:
    return beta * leave_one_out_mean(log_w) + (1 - beta) * leave_one_out_log_mean_exp(log_w)


def _ciwae_own(
    log_w: Array, *, beta: float | Array, weights: Array | None = None
) -> tuple[Array, Array]:
    # Of the IWAE all depends on draw k, so its baseline counts in full.
    mean, share = elbo_own(log_w, weights=weights)
    whole = log_mean_exp(log_w, weights=weights)[None]
    return beta * mean + (1 - beta) * whole, beta * share + (1 - beta)


@with_closed_forms(
    smooth=True, gate=_ciwae_gate, leave_one_out=_ciwae_leave_one_out, own=_ciwae_own
)
@bound
def ciwae(
    log_w: Float[Array, "k *batch"], *, beta: float | Array, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Convex combination of ELBO and IWAE, to be maximized: a lower bound of log p(x) in
    expectation at any k.

        L = β ELBO + (1 - β) IWAE,   0 <= β <= 1

    Keeps some of the ELBO's strong signal for q while the model is given a tighter bound.

    Args:
        log_w: log-weights in nats, [k, *batch].
        beta: weight of the ELBO.
        weights: of the draws, [k] or [k, *batch], summing to 1 over axis 0; 1/k where None. Of traced
            ones the shape alone is checked.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: for beta outside [0, 1].

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(ciwae(log_w, beta=0.5)), 3)  # ½ (½ log 3 + log 2)
        0.621

    Reference: Rainforth et al., Tighter variational bounds are not necessarily better, 2018, arXiv:1802.04537.
    """
    if is_known(beta) and not np.all((np.asarray(beta) >= 0) & (np.asarray(beta) <= 1)):
        raise ValueError(f"beta must lie between 0 and 1 for a bound, got {beta}.")
    return beta * elbo(log_w, weights=weights) + (1 - beta) * log_mean_exp(log_w, weights=weights)
