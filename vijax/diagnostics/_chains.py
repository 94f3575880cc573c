"""Whether several runs tell one story: rank-normalised R-hat, of restarts or of chains."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array

from vijax.checks import named_leaves
from vijax.types import PyTree


def rhat(draws: PyTree) -> PyTree:
    """Rank-normalised split R-hat of several runs: 1 where they agree, above 1.01 where they do not.

        R̂ = (1 + (B / W - 1) / n)^½,   B / n, W: variance between and within halves of runs of n draws, of normal scores
        of the ranks of x, and of |x - median|; the larger of the two

    For restarts of a fit: the same number of draws from each run's q. It hears runs that differ in place or in spread
    (two runs a quarter of a standard deviation apart give 1.01, half of one 1.05), and no fault that they all share:
    read it beside `khat`. For iterates of a
    stochastic optimiser, and chains, whose halves must agree as well. Jittable; ranks are found by sorting, n log n.

    Args:
        draws: a pytree of [runs, n, *event], n at least 4; one run is compared with itself, half with half.

    Returns:
        A pytree of [*event]. Runs without any spread give 1 where they are one number and +inf where not; nan for
        draws that hold nan.

    Raises:
        ValueError: for leaves with fewer than two axes, no run, or fewer than 4 draws.

    Reference: Vehtari, Gelman, Simpson, Carpenter, Bürkner, Rank-normalization, folding, and localization: an improved
        R-hat for assessing convergence of MCMC, 2021, arXiv:1903.08008.
    """
    for name, leaf in named_leaves(draws):
        shape = jnp.shape(leaf)
        if len(shape) < 2 or shape[0] < 1 or shape[1] < 4:
            raise ValueError(
                f"draws must be [runs, n, *event] with n >= 4, leaf '{name}' is {shape}; the draws of one run are "
                "leaf[None]."
            )
    return jax.tree.map(_rhat, draws)


@jax.jit
def _rhat(x: Array) -> Array:
    x = jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
    half = x.shape[1] // 2
    halves = jnp.concatenate([x[:, :half], x[:, -half:]])
    columns = jnp.moveaxis(halves.reshape(2 * x.shape[0], half, -1), -1, 0)
    return jax.vmap(_of_column)(columns).reshape(x.shape[2:])


def _of_column(x: Array) -> Array:
    """Return R-hat of [chains, n], already split."""
    folded = jnp.abs(x - jnp.median(x))
    found = jnp.maximum(_ratio(normal_scores(x)), _ratio(normal_scores(folded)))
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, found)


def normal_scores(x: Array) -> Array:
    """Return normal scores of the ranks of all numbers together, of any shape; ties share their mean rank."""
    flat = x.ravel()
    ordered = jnp.sort(flat)
    ranks = 0.5 * (
        jnp.searchsorted(ordered, flat) + jnp.searchsorted(ordered, flat, side="right") + 1
    )
    return ndtri((ranks.astype(x.dtype) - 0.375) / (flat.size + 0.25)).reshape(x.shape)


def _ratio(x: Array) -> Array:
    n = x.shape[1]
    between = jnp.var(jnp.mean(x, 1), ddof=1)  # B / n
    within = jnp.mean(jnp.var(x, 1, ddof=1))
    # Equal numbers leave the rounding of their mean behind.
    flat = within <= 1e-10
    constant = jnp.where(between <= 1e-10, 1.0, jnp.inf)
    return jnp.where(flat, constant, jnp.sqrt(between / jnp.where(flat, 1.0, within) + (n - 1) / n))
