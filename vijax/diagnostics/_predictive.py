"""Data as the fitted posterior would make them."""

from collections.abc import Callable

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
    simulate: Callable[[Key[Array, ""], PyTree], PyTree],
    z: PyTree,
    log_w: Float[Array, " k"] | None = None,
) -> PyTree:
    """Posterior predictive draws: data simulated from every draw of the latents, each with its own key.

        xₖ ~ p(x | zₖ),     or p(x | z_{a(k)}) with a(k) = j in proportion to wⱼ

    Compare statistics of these with those of the data.

    Args:
        key: a typed key, consumed.
        simulate: (key, one draw) -> data, any pytree.
        z: draws, a pytree of [k, ...].
        log_w: log-weights in nats, [k], to simulate from the corrected posterior rather than from q: draw j is taken
            within one of k w̃ⱼ times (systematic resampling), which where `khat` is above .7 is a handful of draws many
            times over.

    Returns:
        A pytree like simulate's with leading axis k.

    Raises:
        TypeError: for a raw key, or `Draws` where their z is wanted.
        ValueError: for leaves of unequal leading axes.

    Example:
        >>> z = {"rate": jnp.array([1.0, 2.0, 3.0])}
        >>> simulate = lambda key, z: z["rate"] + 0.1 * jax.random.normal(key, (5,))
        >>> predictive(jax.random.key(0), simulate, z).shape
        (3, 5)

    Reference: Gelman, Meng, Stern, Posterior predictive assessment of model fitness via realized discrepancies, 1996;
        Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, 1996 (resampling).
    """
    checks.key(key)
    if isinstance(z, Draws | Estimate):
        raise TypeError(
            "z must be the latents themselves, draws.z, with draws.log_w apart; got "
            f"{type(z).__name__}."
        )
    # Without log_w the draws' own leading axis says how many there are; `agree` compares the leaves.
    leaves = jax.tree.leaves(z)
    k = jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 0
    agree(z, jnp.zeros(k) if log_w is None else log_w)
    of_order, of_data = jax.random.split(key)
    if log_w is not None:
        # [k]: indices of the draws that stand for the corrected posterior.
        chosen = systematic(of_order, normalized_weights(log_w), k)
        z = jax.tree.map(lambda leaf: leaf[chosen], z)
    return jax.vmap(simulate)(jax.random.split(of_data, k), z)
