"""Data as the fitted posterior would make them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vijax import checks
from vijax.diagnostics._moments import agree
from vijax.numerics import normalized_weights
from vijax.resampling import systematic
from vijax.types import Draws, Estimate, PyTree


def predictive(
    key: Key[Array, ""],
    simulate: Callable[[Any, PyTree], PyTree],
    z: PyTree,
    log_w: Float[Array, " k"] | None = None,
) -> PyTree:
    """Posterior predictive draws: data simulated from every draw of the latents, each with its own key.

        xₖ ~ p(x | zₖ),     or p(x | z_{a(k)}) with a(k) = j in proportion to wⱼ

    Compare statistics of these with those of the data. With log_w the draws are resampled first (systematically: draw
    j is taken within one of k w̃ⱼ times), so that data come from the corrected posterior rather than from q; where
    `khat` is above .7 that is a handful of draws many times over.

    Args:
        key: a typed key, consumed.
        simulate: (key, one draw) -> data, any pytree.
        z: draws, a pytree of [k, ...].
        log_w: log-weights in nats, [k].

    Returns:
        A pytree like simulate's with leading axis k.

    Raises:
        TypeError: for a raw key, or `Draws` where their z is wanted.
        ValueError: for leaves of unequal leading axes.

    Reference: Gelman, Meng, Stern, Posterior predictive assessment of model fitness via realized discrepancies, 1996;
        Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, 1996 (resampling).
    """
    checks.key(key)
    if isinstance(z, Draws | Estimate):
        raise TypeError(
            f"z must be the latents themselves, draws.z, with draws.log_w apart; got {type(z).__name__}."
        )
    leaves = jax.tree.leaves(z)
    k = jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 0
    agree(z, jnp.zeros(k) if log_w is None else log_w)
    of_order, of_data = jax.random.split(key)
    if log_w is not None:
        chosen = systematic(of_order, normalized_weights(log_w), k)
        z = jax.tree.map(lambda leaf: leaf[chosen], z)
    return jax.vmap(simulate)(jax.random.split(of_data, k), z)
