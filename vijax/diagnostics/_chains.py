"""Whether several runs agree: rank-normalized R-hat, of restarts or of chains."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.checks import named_leaves
from vijax.types import PyTree


def rhat(draws: PyTree) -> PyTree:
    """Rank-normalized split R-hat of several runs: 1 where they agree, above 1.01 where they do not.

        R̂ = (1 + (B / W - 1) / n)^½,   B, W: variance between and within halves of runs

    On normal scores of the ranks, and of those of |x - median|, the larger of the two. For restarts of a fit, as many
    draws of each q, or chains. A fault that all runs share goes undetected: read it beside `khat`.

    Args:
        draws: a pytree of [runs, n, *event], n at least 4; one run is compared with itself, half with half.

    Returns:
        A pytree of [*event]: two runs a quarter of a standard deviation apart give 1.01, half of one 1.05. Runs without
        any spread give 1 where they are one number and +inf where not; nan for draws that hold nan. Jittable.

    Raises:
        ValueError: for leaves with fewer than two axes, no run, or fewer than 4 draws.

    Example:
        >>> x = jnp.arange(100.0) % 10
        >>> round(float(rhat(jnp.stack([x, x]))), 2), round(float(rhat(jnp.stack([x, x + 5]))), 2)
        (0.99, 1.38)

    Reference: Vehtari, Gelman, Simpson, Carpenter, Bürkner, Rank-normalization, folding, and localization: an improved
        R-hat for assessing convergence of MCMC, 2021, arXiv:1903.08008.
    """
    for name, leaf in named_leaves(draws):
        shape = jnp.shape(leaf)
        if len(shape) < 2 or shape[0] < 1 or shape[1] < 4:
            raise ValueError(
                f"draws must be [runs, n, *event] with n >= 4, leaf '{name}' is {shape}; the "
                "draws of one run are leaf[None]."
            )
    return jax.tree.map(lambda leaf: rhat_among(leaf, jnp.ones(jnp.shape(leaf)[0], bool)), draws)


@jax.jit
def rhat_among(x: Array, compared: Array) -> Array:
    """Return R-hat, [*event], of those runs of x [runs, n, *event] that are `compared`, bool [runs]."""
    x = jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
    # Halves of runs are chains of their own, [2 runs, half, *event]; an odd draw in the middle is left out.
    half = x.shape[1] // 2
    halves = jnp.concatenate([x[:, :half], x[:, -half:]])
    # [event, 2 runs, half]: one column of numbers at a time.
    columns = jnp.moveaxis(halves.reshape(2 * x.shape[0], half, -1), -1, 0)
    of_column = partial(_of_column, compared=jnp.tile(compared, 2)[:, None])
    return jax.vmap(of_column)(columns).reshape(x.shape[2:])


def _of_column(x: Array, compared: Array) -> Array:
    """Return R-hat of [chains, n], already split, among those `compared`, [chains, 1]."""
    # Runs left out are put beyond every other number: ranks and the median do not change by them.
    x = jnp.where(compared, x, jnp.inf)
    count = jnp.sum(compared) * x.shape[1]
    ordered = jnp.sort(x.ravel())
    median = 0.5 * (ordered[(count - 1) // 2] + ordered[count // 2])
    # Ranks of |x - median| detect chains that differ in spread alone.
    folded = jnp.where(compared, jnp.abs(x - median), jnp.inf)
    both = jax.vmap(lambda x: _ratio(normal_scores(x, count), compared))(jnp.stack([x, folded]))
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, jnp.max(both))


def normal_scores(x: Array, count: Array | int) -> Array:
    """Return normal scores of the ranks of the `count` smallest numbers, of any shape; ties share their mean rank."""
    flat = x.ravel()
    ordered = jnp.sort(flat)
    # Twice the mean rank: (numbers below) + (numbers not above) + 1.
    twice = jnp.searchsorted(ordered, flat) + jnp.searchsorted(ordered, flat, side="right") + 1
    # Φ⁻¹((r - ⅜) / (n + ¼)), by an inverse that compiles in a fifth of the time.
    centered = (twice - count - 1).astype(x.dtype) / (count + 0.25)
    return 2**0.5 * jax.lax.erf_inv(centered).reshape(x.shape)


def _ratio(x: Array, compared: Array) -> Array:
    """Return R-hat of [chains, n] among those `compared`, by variances between and within."""
    n = x.shape[1]
    means, variances = jnp.mean(x, 1), jnp.var(x, 1, ddof=1)
    compared = compared[:, 0]
    chains = jnp.sum(compared)
    # W, and B / n from the chains' means about their center.
    within = jnp.sum(jnp.where(compared, variances, 0.0)) / chains
    center = jnp.sum(jnp.where(compared, means, 0.0)) / chains
    off = jnp.where(compared, means - center, 0.0)
    between = jnp.sum(jnp.square(off)) / (chains - 1)
    # Equal numbers leave the rounding of their mean behind.
    flat = within <= 1e-10
    constant = jnp.where(between <= 1e-10, 1.0, jnp.inf)
    return jnp.where(flat, constant, jnp.sqrt(between / jnp.where(flat, 1.0, within) + (n - 1) / n))
