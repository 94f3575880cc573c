"""Draws that have weights: as restarts, [runs, k], how much of q each stands for, and what is known of a run."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax.calls import described, shares
from vijax.diagnostics._moments import agree
from vijax.resampling import systematic
from vijax.types import Draws, Estimate


def weighted(draws: Draws | Estimate, *, axis: int = -1) -> Draws:
    """Return draws, without what comes beside log p; refuse those without importance weights, or with wrong shares."""
    draws = draws.draws if isinstance(draws, Estimate) else draws
    if not isinstance(draws, Draws):
        raise TypeError(
            "draws must be Draws or an Estimate, as draws.weigh(key, log_joint, q, "
            f"num_samples=4000) makes them, got {described(draws)}; of a fit: fitting.weigh(key, "
            "found, log_joint, family, num_samples=4000)."
        )
    if draws.only_mean is not None:
        raise ValueError(
            f"these draws have no importance weights: {draws.only_mean}. Weigh draws of q by all "
            "of the data, draws.weigh(key, log_joint, q, num_samples=...)."
        )
    for name, values in (("log_p", draws.log_p), ("log_q", draws.log_q)):
        if not isinstance(values, (jax.Array, np.ndarray)):
            raise TypeError(
                f"{name} of draws must be an array [k, *batch] in nats, got {described(values)}: jnp.asarray({name})."
            )
    if draws.log_p.shape != draws.log_q.shape:
        raise ValueError(
            f"log_p and log_q of draws must have one shape, got {draws.log_p.shape} and {draws.log_q.shape}."
        )
    shares(draws.weights, draws.log_q, axis=axis)
    # What a model returned beside log p need have no axis of draws.
    return draws._replace(aux=None)


def as_runs(draws: Draws | Estimate) -> Draws:
    """Return draws with a leading axis of restarts, of one where there was none."""
    draws = weighted(draws)
    if draws.z is None:
        raise ValueError(
            "these draws keep no z, as those made with chunk_size: draw again with draws.weigh."
        )
    shape = jnp.shape(draws.log_q)
    if len(shape) not in (1, 2):
        raise ValueError(
            f"log_w must be [k] of one posterior, or [runs, k] of restarts, got {shape}; a batch "
            "of posteriors, [k, *batch], is for diagnostics.summarize_members."
        )
    # Nobody restarts a fit more often than it is drawn from: [k, batch] is meant.
    if len(shape) == 2 and shape[0] > shape[1]:
        raise ValueError(
            f"log_w {shape} would be {shape[0]} restarts of {shape[1]} draws, for restarts come "
            "first: [runs, k]. If these are of a batch of posteriors, [k, batch], take "
            "diagnostics.summarize_members(draws), or one of them: jax.tree.map(lambda a: a[:, "
            "i], draws)."
        )
    agree(draws.z, draws.log_q)
    return jax.tree.map(lambda a: a[None], draws) if len(shape) == 1 else draws


def taken_alike(draws: Draws) -> Array | None:
    """Return indices [runs, k] of draws that count alike, of strata by their weights; None where all do as they are."""
    if draws.weights is None:
        return None

    def one(share: Array) -> Array:
        """Return k indices of the draws of one run, each as often as its share asks."""
        # In random order, for strata may come one after the other, and the halves of a run are compared.
        of_order, of_draws = jax.random.split(jax.random.key(0))
        return jax.random.permutation(of_order, systematic(of_draws, share, len(share)))

    return jax.vmap(one)(shares_of(draws))


def shares_of(draws: Draws, *, axis: int = -1) -> Array:
    """Return each draw's share in q, like log_q, which sum to one over the axis: 1/k, or the weights of strata."""
    # Half precision counts no draws: 1 / 2000 has three digits of it.
    dtype = jnp.promote_types(draws.log_q.dtype, jnp.float32)
    if draws.weights is None:
        return jnp.full_like(draws.log_q, 1 / draws.log_q.shape[axis], dtype=dtype)
    weights = jnp.asarray(draws.weights, dtype)
    # Weights are [k] or [k, *batch]; of restarts, [runs, k] as log_q is.
    if axis == 0:
        weights = weights.reshape(*weights.shape, *(1,) * (draws.log_q.ndim - weights.ndim))
    return jnp.broadcast_to(weights, draws.log_q.shape)
