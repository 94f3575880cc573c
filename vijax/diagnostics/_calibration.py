"""Simulation-based calibration: does a fit know what it does not know, on data whose latents are known?"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, gammaincc
from jaxtyping import Array, Float, Key

from vijax import checks
from vijax.types import PyTree


class Calibration(NamedTuple):
    """What many fits to simulated data said of the latents that made them.

    Fields:
        probabilities: a pytree of [replications, *event]: q's probability of a latent below the true one,
            p = (rank + u) / (L + 1) with u ~ U(0, 1), exactly uniform for a right fit whatever the number L of draws.
        symmetry: a pytree of [*event], the p-value of their distribution being symmetric about a half: small for bias.
            An exact test of the largest distance between the distribution functions of p and 1 - p (the table for two
            independent samples, which is often used here, has p < .05 for one right fit in ten).
        uniformity: a pytree of [*event], the p-value of their being uniform: small for a wrong spread as well. By χ² in
            ten bins, or fewer for fewer than 50 replications.
        p_value: (), of all of them together: below α an alarm, false with probability at most α. Bonferroni's, over two
            tests of each of d latents: 2 d min p.
    """

    probabilities: PyTree
    symmetry: PyTree
    uniformity: PyTree
    p_value: Float[Array, ""]


def vsbc(
    key: Key[Array, ""],
    prior: Callable[[Key[Array, ""]], PyTree],
    simulate: Callable[[Key[Array, ""], PyTree], PyTree],
    fit: Callable[[Key[Array, ""], PyTree], PyTree],
    *,
    replications: int,
    batch_size: int | None = None,
) -> Calibration:
    """Simulation-based calibration: does a fit recover latents that were drawn from the prior?

        θ₀ ~ p(θ),   x ~ p(x | θ₀),   q = fit(x),   p = Q(θ < θ₀) ~ U(0, 1) if q is exact

    `khat` judges one posterior; this judges the procedure. Read `symmetry` where only the posterior's centers are to be
    used, and `uniformity` otherwise.

    Args:
        key: a typed key, consumed.
        prior: key -> θ₀, a pytree.
        simulate: (key, θ₀) -> x.
        fit: (key, x) -> draws of q, a pytree like θ₀ with a leading axis L; a whole fit, traced once under vmap.
        replications: how many; of one latent, 300 detect a bias of a third of a posterior sd, or a sd of .7 of the
            right one, in 99 of 100 cases at p < .01.
        batch_size: how many fits at a time; all by default. Keys do not depend on it.

    Returns:
        Calibration; nan where a fit's draws hold nan, which no mean over replications should hide.

    Raises:
        TypeError: for a raw key, or replications that is not a Python int.
        ValueError: for fewer than 10 replications, a batch_size below 1, or draws that are not like θ₀ with one leading
            axis.

    Example:
        >>> far_too_low = lambda key, x: jnp.full(50, -9.0)
        >>> result = vsbc(
        ...     jax.random.key(0), jax.random.normal, lambda key, z: z, far_too_low, replications=20
        ... )
        >>> bool(jnp.all(result.probabilities > 0.98)), bool(result.p_value < 0.001)
        (True, True)

    Reference: Yao, Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018,
        arXiv:1802.02538; Talts, Betancourt, Simpson, Vehtari, Gelman, Validating Bayesian inference algorithms with
        simulation-based calibration, 2018, arXiv:1804.06788; Butler, A test for symmetry using the sample
        distribution function, 1969.
    """
    checks.key(key)
    checks.static_count(replications, "replications")
    if replications < 10:
        raise ValueError(
            f"replications must be at least 10, got {replications}; 300 are a good start."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1, or None for all at a time; got {batch_size}."
        )

    def one(key: Key[Array, ""]) -> PyTree:
        """Return p of one simulated data set, like θ₀."""
        of_prior, of_data, of_fit, of_ties = jax.random.split(key, 4)
        truth = prior(of_prior)
        drawn = fit(of_fit, simulate(of_data, truth))
        _alike(drawn, truth)
        # Ties are broken at random, by a key for each leaf.
        leaves, tree = jax.tree.flatten(truth)
        keys = list(jax.random.split(of_ties, len(leaves)))
        return jax.tree.map(_probability, jax.tree.unflatten(tree, keys), drawn, truth)

    probabilities = jax.lax.map(
        one, jax.random.split(key, replications), batch_size=batch_size or replications
    )
    symmetry = jax.tree.map(_symmetry, probabilities)
    uniformity = jax.tree.map(_uniformity, probabilities)
    # Bonferroni over the two tests of every latent, [2 d].
    each = jnp.concatenate([jnp.ravel(p) for p in jax.tree.leaves((symmetry, uniformity))])
    return Calibration(
        probabilities, symmetry, uniformity, jnp.minimum(1.0, each.size * jnp.min(each))
    )


def _probability(key: Key[Array, ""], drawn: Array, truth: Array) -> Array:
    """Return (rank + u) / (L + 1), [*event], of the true value among draws [L, *event]."""
    below, level = jnp.sum(drawn < truth[None], 0), jnp.sum(drawn == truth[None], 0)
    # The true value's place among its equals, itself included.
    u = jax.random.uniform(key, jnp.shape(truth))
    p = (below + u * (level + 1)) / (drawn.shape[0] + 1)
    return jnp.where(jnp.any(jnp.isnan(drawn), 0), jnp.nan, p)


def _symmetry(p: Array) -> Array:
    """Return the p-value, [*event], of p [n, *event] being like 1 - p.

    In the order of their distance from a half, farthest first, the signs of p - ½ are a fair random walk S if p is
    symmetric, and n times the distance between the two distribution functions is max |S|.
    """
    n = p.shape[0]
    order = jnp.argsort(-jnp.abs(p - 0.5), 0)
    # Sₙ after the n farthest, [n, *event], and how far it ever went.
    walk = jnp.cumsum(jnp.sign(jnp.take_along_axis(p, order, 0) - 0.5), 0)
    reach = jnp.max(jnp.abs(walk), 0)
    # Exactly, by reflections: P(max |S| >= r) = 2 Σⱼ ± (P(Sₙ >= (2j - 1) r) + P(Sₙ > (2j - 1) r)).
    # Images beyond 4 √n standard deviations add nothing.
    image = jnp.arange(1, int(4 * n**0.5) + 2).reshape(-1, *(1,) * reach.ndim)
    ends = (2 * image - 1) * jnp.maximum(reach, 1.0)[None]
    tails = jnp.where(image % 2 == 1, 2.0, -2.0) * (_heads(n, ends) + _heads(n, ends + 1))
    return jnp.where(jnp.any(jnp.isnan(p), 0), jnp.nan, jnp.clip(jnp.sum(tails, 0), 0.0, 1.0))


def _heads(n: int, end: Array) -> Array:
    """Return P(Sₙ >= end) of a fair walk: that of (n + end) / 2 heads or more among n."""
    heads = jnp.ceil((n + end) / 2)
    possible = heads <= n
    heads = jnp.where(possible, heads, n)
    # The tail of a binomial is a regularized incomplete beta function.
    return jnp.where(possible, betainc(heads, n - heads + 1, jnp.asarray(0.5, heads.dtype)), 0.0)


def _uniformity(p: Array) -> Array:
    """Return the χ² p-value, [*event], of p [n, *event] being uniform."""
    n = p.shape[0]
    # At least five expected in each bin, as the χ² approximation asks.
    bins = max(2, min(10, n // 5))
    which = jnp.clip((p * bins).astype(jnp.int32), 0, bins - 1)
    # [bins, *event]
    counts = jnp.sum(which[None] == jnp.arange(bins).reshape(-1, *(1,) * p.ndim), 1)
    statistic = jnp.sum((counts - n / bins) ** 2, 0) * (bins / n)
    # P(χ² of bins - 1 degrees of freedom > statistic).
    value = gammaincc(jnp.asarray(0.5 * (bins - 1), statistic.dtype), 0.5 * statistic)
    return jnp.where(jnp.any(jnp.isnan(p), 0), jnp.nan, value)


def _alike(drawn: PyTree, truth: PyTree) -> None:
    """Refuse draws that are not [L, *event] in every leaf [*event] of the prior's."""
    one = [(name, jnp.shape(leaf)) for name, leaf in checks.named_leaves(truth)]
    several = [(name, jnp.shape(leaf)) for name, leaf in checks.named_leaves(drawn)]
    if one != [(name, shape[1:]) for name, shape in several] or any(
        shape == () for _, shape in several
    ):
        raise ValueError(
            f"fit(key, x) must return draws like the prior's, {one}, with one leading axis of "
            f"draws; got {several}."
        )
