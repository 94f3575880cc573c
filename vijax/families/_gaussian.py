"""Gaussian families over any pytree of latents, with parameters in a plain pytree."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax import checks
from vijax.calls import described, latents
from vijax.gaussians.affine import AffineGaussian, DiagonalRoot
from vijax.gaussians.roots import TriangularRoot, low_rank_root
from vijax.gaussians.triangle import unit_triangle
from vijax.types import Affine, Family, PyTree, offers

_FIELDS = {"loc", "log_scale", "lower", "factor", "below"}  # of all Gaussian families

# Not distrax's Gaussians: they keep bound methods of an object, and leak tracers under vmap.


def mean_field(*, scale: float = 0.1) -> Family:
    """Independent Gaussians over every element of the latents.

        q(z) = Π_d N(z_d; m_d, s_d²)

    The first thing to try, and cheap at any size; it understates the spread of correlated
    posteriors.

    Args:
        scale: initial standard deviation.

    Returns:
        Family: `init(key, like)` starts at the values of `like` (the key is not needed), with
        params {"loc": like z, "log_scale": like z}; `dist(params)` has batch shape ().

    Raises:
        TypeError: (init) for latents that are not floating.
        ValueError: for a scale that is not positive.

    Example:
        >>> family = mean_field(scale=1.0)
        >>> q = family.dist(family.init(jax.random.key(0), {"mu": 0.0, "theta": jnp.zeros(3)}))
        >>> round(float(q.log_prob({"mu": 0.0, "theta": jnp.zeros(3)})), 3)  # -4/2 log 2π
        -3.676

    Reference: Kucukelbir, Tran, Ranganath, Gelman, Blei, Automatic differentiation variational
        inference, 2017, arXiv:1603.00788.
    """
    admit(scale)

    def init(key: Array | None, like: PyTree) -> PyTree:
        params, _ = start(like, scale)
        return params

    def dist(params: PyTree) -> AffineGaussian:
        fields(params, "mean_field", "loc", "log_scale")
        loc, log_scale = scales(params)
        return AffineGaussian(loc, DiagonalRoot(log_scale))

    return Family(init, dist)


def full_rank(*, scale: float = 0.1) -> Family:
    """One Gaussian over all latents with a dense covariance.

        q(z) = N(z; m, L Lᵀ),   L = diag(s) (I + strictly lower triangle)

    For up to a few hundred correlated latents. The triangle is relative to the scales: fits stay
    stable at step sizes where a free triangle diverges.

    Args:
        scale: initial standard deviation, without correlation.

    Returns:
        Family, of batch shape (); `init(key, like)` starts as `mean_field` does; "lower" has
        d(d-1)/2 numbers.

    Raises:
        TypeError, ValueError: as `mean_field`.

    Example:
        >>> params = full_rank().init(jax.random.key(0), jnp.zeros(4))
        >>> {name: leaf.shape for name, leaf in params.items()}
        {'loc': (4,), 'log_scale': (4,), 'lower': (6,)}

    Reference: Titsias, Lázaro-Gredilla, Doubly stochastic variational Bayes for non-conjugate
        inference, 2014.
    """
    admit(scale)

    def init(key: Array | None, like: PyTree) -> PyTree:
        params, vector = start(like, scale)
        # Below the diagonal, row by row; zero is no correlation.
        entries = vector.size * (vector.size - 1) // 2
        return {**params, "lower": jnp.zeros(entries, vector.dtype)}

    def dist(params: PyTree) -> AffineGaussian:
        fields(params, "full_rank", "loc", "log_scale", "lower")
        loc, log_scale = scales(params)
        lower = params["lower"].astype(jnp.result_type(*jax.tree.leaves(loc)))
        # L = diag(s) (I + strictly lower)
        return AffineGaussian(loc, TriangularRoot(log_scale, unit_triangle(lower, log_scale.size)))

    return Family(init, dist)


def low_rank(*, rank: int, scale: float = 0.1) -> Family:
    """One Gaussian over all latents whose covariance is a diagonal plus a few directions.

        q(z) = N(z; m, diag(s)² + F Fᵀ),   F [d, rank]

    For latents too many for `full_rank` and too correlated for `mean_field`: O(d rank²) to
    evaluate.

    Args:
        rank: number of directions.
        scale: initial standard deviation; the directions start random, a tenth of it in size.

    Returns:
        Family: `init(key, like)` starts at the values of `like`, `dist(params)` has batch shape ().

    Raises:
        TypeError: for a rank that is no whole number; (init) for latents that are not floating.
        ValueError: for rank < 1, and a scale that is not positive.

    Example:
        >>> low_rank(rank=2).init(jax.random.key(0), jnp.zeros(5))["factor"].shape
        (5, 2)

    Reference: Ong, Nott, Smith, Gaussian variational approximation with a factor covariance
        structure, 2018, arXiv:1701.03208.
    """
    checks.static_count(rank, "rank", why="; rank 0 is mean_field")
    admit(scale)

    def init(key: Array, like: PyTree) -> PyTree:
        params, vector = start(like, scale)
        shape = (vector.size, rank)
        # Not zero, where the slope in the factor would vanish.
        return {**params, "factor": 0.1 * scale * jax.random.normal(key, shape, vector.dtype)}

    def dist(params: PyTree) -> AffineGaussian:
        fields(params, "low_rank", "loc", "log_scale", "factor")
        loc, log_scale = scales(params)
        return AffineGaussian(loc, low_rank_root(log_scale, params["factor"]))

    return Family(init, dist)


def affine_member(base: Family, params: PyTree, of: str) -> PyTree:
    """Return the member of a base family; refuse one that is no affine map of noise."""
    gaussian = base.dist(params)
    if not offers(gaussian, Affine):
        raise TypeError(
            f"base of {of} must be a Gaussian family whose members offer affine(e), such as "
            f"families.full_rank(); this one makes a {type(gaussian).__name__}."
        )
    return gaussian


def _strong(tree: PyTree) -> PyTree:
    """Make weak dtypes strong: that of jnp.array(0.1) would yield to half-precision noise."""
    strong = jax.lax.convert_element_type
    return jax.tree.map(lambda leaf: strong(leaf, jnp.result_type(leaf)), tree)


def start(like: PyTree, scale: float) -> tuple[PyTree, Array]:
    """Return {"loc", "log_scale"} at `like`, and `like` as one vector."""
    latents(like)
    for leaf in jax.tree.leaves(like):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"a Gaussian family cannot hold a leaf of dtype {jnp.result_type(leaf)}: start "
                "from floats, 2.0 for 2; or give a discrete leaf a discrete q."
            )
    # Families over several leaves work on one vector, in the order of JAX.
    vector, _ = ravel_pytree(like)
    if vector.size == 0:
        shapes = jax.tree.map(jnp.shape, like)
        raise TypeError(
            f"a Gaussian family needs floating latents of at least one element, got {shapes}."
        )
    log_scale = jax.tree.map(lambda leaf: jnp.full_like(leaf, math.log(scale)), like)
    return {"loc": _strong(like), "log_scale": _strong(log_scale)}, vector


def scales(params: PyTree) -> tuple[PyTree, Array]:
    """Return the mean, like z, and the log-scales as one vector."""
    loc = _strong(params["loc"])
    vector, _ = ravel_pytree(loc)
    log_scale, _ = ravel_pytree(_strong(params["log_scale"]))
    return loc, jnp.broadcast_to(log_scale, vector.shape)


def fields(params: PyTree, family: str, *own: str) -> None:
    """Refuse params of another family, whose fields would go unread or are missing."""
    # A field of another Gaussian family would be ignored in silence.
    is_mapping = isinstance(params, Mapping)
    present = set(params) if is_mapping else {described(params)}
    if not is_mapping or (_FIELDS & present) - set(own) or set(own) - present:
        names = ", ".join(sorted(map(str, present)))
        raise TypeError(
            f"params must be those of families.{family}, {', '.join(own)}, got {names}: begin with "
            "the family's own init(key, like)."
        )


def admit(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(
            f"scale must be positive and finite, the initial standard deviation, got {scale}."
        )
