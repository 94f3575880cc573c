"""Multivariate Student-t: any Gaussian family with heavy tails."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax import checks
from vijax.calls import is_known
from vijax.families._gaussian import affine_member, full_rank
from vijax.gaussians.whitening import location, squared_distance
from vijax.types import Family, PyTree

_FULL_RANK = full_rank()


class _StudentT:
    """z = loc + S e √(degrees / χ²); batch shape ()."""

    fixed_support = True

    def __init__(self, gaussian: PyTree, degrees: float, dtype: np.dtype[Any]):
        self._gaussian, self._degrees, self._dtype = gaussian, degrees, dtype

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        of_normal, of_scale = jax.random.split(seed)

        def one(e: Array, log_gamma: Array) -> tuple[PyTree, Array]:
            # χ² = 2 Gamma(degrees / 2), through its logarithm: a small χ² is no float, and its logarithm is.
            scale = jnp.exp(0.5 * (math.log(self._degrees / 2) - log_gamma))
            # loc and S e, of which e √(ν / χ²) scales the second alone
            loc, spread = jax.jvp(self._gaussian.affine, (jnp.zeros_like(e),), (e,))
            z = jax.tree.map(
                lambda loc, spread: loc + scale.astype(loc.dtype) * spread, loc, spread
            )
            return z, self.log_prob(z)

        # All noise is drawn at once, [*sample_shape, ...]; one draw sees no sample axis.
        for _ in sample_shape:
            one = jax.vmap(one)
        shape = tuple(sample_shape)
        e = jax.random.normal(of_normal, (*shape, *self._gaussian.uniforms), self._dtype)
        return one(e, jax.random.loggamma(of_scale, self._degrees / 2, shape, self._dtype))

    def log_prob(self, z: PyTree, /) -> Array:
        # ‖S⁻¹ (z - loc)‖²
        square = squared_distance(self._gaussian, z, self._dtype)
        loc = location(self._gaussian, self._dtype)
        d, n = ravel_pytree(loc)[0].size, self._degrees
        # The Gaussian's value at loc has -log |S| - d/2 log 2π; the rest is the t's own constant.
        constant = math.lgamma((n + d) / 2) - math.lgamma(n / 2) - 0.5 * d * math.log(n / 2)
        return self._gaussian.log_prob(loc) + constant - 0.5 * (n + d) * jnp.log1p(square / n)


def student_t(*, degrees: float | int, base: Family = _FULL_RANK) -> Family:
    """Multivariate Student-t with the location and shape of a Gaussian family's member.

        z = loc + S e √(ν / χ²),   e ~ N(0, I),   χ² ~ chi-squared(ν),   ν = degrees

    For posteriors with heavier tails than a Gaussian's, where `diagnostics.khat` of a Gaussian q is
    too large, and as a proposal for importance sampling.

    Args:
        degrees: ν, a positive number. It is fixed, so that no derivative goes through the gamma
            draw, and the gradient is as exact as the Gaussian's.
        base: a Gaussian family: `full_rank()`, `mean_field()` or `low_rank(rank=r)`.

    Returns:
        Family: `init(key, like)` and params are those of base; `dist(params)` has batch shape ().
        All latents share one χ². Σ = S Sᵀ is the shape: the covariance is Σ ν / (ν - 2), for ν > 2.
        Antithetic and quasi-Monte Carlo draws are not offered: χ² has no quantile here.

    Raises:
        TypeError: for degrees that are not a number fixed while tracing; (dist) for a base whose
            members offer no `affine`.
        ValueError: for degrees that are not positive and finite; (dist) for so few that draws leave
            the range of the params' dtype: .31 in float32, .04 in float64.

    Example:
        >>> family = student_t(degrees=1.0, base=vj.families.mean_field(scale=1.0))
        >>> q = family.dist(family.init(jax.random.key(0), jnp.zeros(())))
        >>> round(float(q.log_prob(jnp.array(2.0))), 3)  # a Cauchy's, -log 5π
        -2.754

    Reference: Domke, Sheldon, Importance weighting and variational inference, 2018,
        arXiv:1808.09034 (elliptical q).
    """
    checks.family(base, "base")
    if not is_known(degrees):
        raise TypeError(
            "degrees must be a number, fixed when the function is traced; got a traced array."
        )
    degrees = float(degrees)
    if not 0 < degrees < math.inf:
        raise ValueError(f"degrees must be positive and finite, got {degrees}.")

    def dist(params: PyTree) -> _StudentT:
        gaussian = affine_member(base, params, "student_t")
        dtype = jnp.result_type(*jax.tree.leaves(params))
        # P(√(ν / χ²) > s) is about s^-ν, and the density squares what is drawn.
        least = 2 * math.log(1e6) / math.log(float(jnp.finfo(dtype).max))
        if degrees < least:
            raise ValueError(
                f"degrees must be at least {least:.2f} in {dtype}, got {degrees}: with fewer, one "
                "draw in a million or more leaves its range, and log q is -inf. Take more "
                "degrees, or params of a wider dtype."
            )
        return _StudentT(gaussian, degrees, dtype)

    return Family(base.init, dist)
