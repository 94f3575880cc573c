"""Multivariate Student-t: any Gaussian family with heavy tails."""

import math
from typing import Any

import jax
import jax.numpy as jnp
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

    def __init__(self, gaussian: Any, degrees: float, dtype: Any):
        self._gaussian, self._degrees, self._dtype = gaussian, degrees, dtype

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[PyTree, Array]:
        of_normal, of_scale = jax.random.split(seed)

        def one(e: Array, log_gamma: Array) -> tuple[PyTree, Array]:
            # χ² = 2 Gamma(degrees / 2), through its logarithm: a small χ² is no float, and its logarithm is.
            scale = jnp.exp(0.5 * (math.log(self._degrees / 2) - log_gamma))
            loc, spread = jax.jvp(self._gaussian.affine, (jnp.zeros_like(e),), (e,))
            z = jax.tree.map(
                lambda loc, spread: loc + scale.astype(loc.dtype) * spread, loc, spread
            )
            return z, self.log_prob(z)

        for _ in sample_shape:
            one = jax.vmap(one)
        shape = tuple(sample_shape)
        e = jax.random.normal(of_normal, (*shape, *self._gaussian.uniforms), self._dtype)
        return one(e, jax.random.loggamma(of_scale, self._degrees / 2, shape, self._dtype))

    def log_prob(self, z: PyTree, /) -> Array:
        square = squared_distance(self._gaussian, z, self._dtype)
        loc = location(self._gaussian, self._dtype)
        d, n = ravel_pytree(loc)[0].size, self._degrees
        constant = math.lgamma((n + d) / 2) - math.lgamma(n / 2) - 0.5 * d * math.log(n / 2)
        return self._gaussian.log_prob(loc) + constant - 0.5 * (n + d) * jnp.log1p(square / n)


def student_t(*, degrees: float | int, base: Family = _FULL_RANK) -> Family:
    """Multivariate Student-t with the location and shape of a Gaussian family's member.

        z = loc + S e √(ν / χ²),   e ~ N(0, I),   χ² ~ chi-squared(ν),   ν = degrees
        q(z) ∝ (1 + (z - loc)ᵀ Σ⁻¹ (z - loc) / ν)^(-(ν + d) / 2),   Σ = S Sᵀ

    For posteriors with heavier tails than a Gaussian's, where `diagnostics.khat` of a Gaussian q is too large, and as a
    proposal for importance sampling. All latents share one χ². Σ is the shape: the covariance is Σ ν / (ν - 2), for
    ν > 2. `degrees` is fixed, so that no derivative goes through the gamma draw, and the gradient is as exact as the
    Gaussian's. Antithetic and quasi-Monte Carlo draws are not offered: χ² has no quantile here.

    Args:
        degrees: ν, a positive number.
        base: a Gaussian family: `full_rank()`, `mean_field()` or `low_rank(rank=r)`.

    Returns:
        Family: `init(key, like)` and params are those of base; `dist(params)` has batch shape ().

    Raises:
        TypeError: for degrees that are not a number fixed while tracing; (dist) for a base whose members offer no
            `affine`.
        ValueError: for degrees that are not positive and finite; (dist) for so few that draws leave the range of
            the params' dtype: .31 in float32, .04 in float64.

    Reference: Domke, Sheldon, Importance weighting and variational inference, 2018, arXiv:1808.09034 (elliptical q).
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
