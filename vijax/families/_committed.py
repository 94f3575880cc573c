"""Gaussians that cannot fall below a given rate: the floor of δ-VAE."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.calls import is_known
from vijax.families._gaussian import fields, mean_field
from vijax.gaussians.affine import AffineGaussian
from vijax.types import Family, PyTree


def committed_rate(*, rate: float, scale: float = 0.5) -> Family:
    """Independent Gaussians, each at least δ nats from N(0, 1): a q that cannot collapse.

        q(z) = Π_d N(z_d; m_d, s_d²),   log s_d ≤ s*,   s*: ½ e^{2 s*} - s* - ½ = δ,   so KL_d ≥ δ

    Against a decoder that ignores its latents. A restriction of q and not of the objective: bounds
    stay bounds of log p(x), and gradients unbiased.

    Args:
        rate: δ, in nats for each latent, under a standard normal prior; of another prior nothing is
            promised.
        scale: initial standard deviation, before the cap.

    Returns:
        Family: params of `mean_field`, {"loc", "log_scale"} like z, of which log_scale is capped
        smoothly, s* - softplus(s* - log_scale); `dist(params)` has batch shape ().

    Raises:
        TypeError: for a rate that is not a number fixed while tracing; (init) for latents that are
            not floating.
        ValueError: for a rate or scale that is not positive.

    Example:
        >>> q = committed_rate(rate=0.1).dist({"loc": jnp.zeros(1), "log_scale": jnp.full(1, 9.0)})
        >>> normal = vj.families.mean_field(scale=1.0)
        >>> p = normal.dist(normal.init(None, jnp.zeros(1)))
        >>> round(float(q.kl_divergence(p)), 3)
        0.1

    Reference: Razavi, van den Oord, Poole, Vinyals, Preventing posterior collapse with delta-VAEs,
        2019, arXiv:1901.03416.
    """
    if not is_known(rate):
        raise TypeError("rate must be a number, fixed when the function is traced.")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be positive and finite, nats for each latent, got {rate}.")
    base, cap = mean_field(scale=scale), _cap(float(rate))

    def dist(params: PyTree) -> AffineGaussian:
        fields(params, "committed_rate", "loc", "log_scale")

        def capped(log_scale: Array) -> Array:
            return cap - jax.nn.softplus(cap - jnp.asarray(log_scale))

        return base.dist({**params, "log_scale": jax.tree.map(capped, params["log_scale"])})

    return Family(base.init, dist)


def _cap(rate: float) -> float:
    """Return s* < 0 with ½ e^{2s} - s - ½ = rate."""
    # Convex and falling below 0: Newton's steps from the left never pass the root.
    s = -(rate + 0.5)
    for _ in range(60):
        s -= (0.5 * math.exp(2 * s) - s - 0.5 - rate) / (math.exp(2 * s) - 1)
    return s
