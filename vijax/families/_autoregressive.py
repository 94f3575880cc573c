"""Inverse autoregressive flows over any pytree of latents."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax.families import _networks as networks
from vijax.families._flow import Map, over, positive
from vijax.families._gaussian import full_rank
from vijax.trees import scan
from vijax.types import Family, PyTree

_FULL_RANK = full_rank()
_MOST = 3.0  # |log-scale| of one layer: no step of an optimizer can make it overflow


def inverse_autoregressive(
    *, layers: int = 2, hidden: Sequence[int] = (32, 32), base: Family = _FULL_RANK
) -> Family:
    """Normalizing flow that shifts and scales each number of the noise given those before it.

        z = loc + S T(e),   T = T_layers ∘ … ∘ T₁,   (T_l x)ᵢ = m(x₍<i₎) + exp(s(x₍<i₎)) xᵢ,   e ~ N(0, I)
        log q(z) = log N(e; 0, I) - Σ_l Σᵢ sᵢ - log |det S|

    For posteriors that no Gaussian fits, under `reparam`, `score` and whatever else draws and weighs its own draws: one
    pass through a masked network (MADE) for each layer. log q(z) of a z from elsewhere solves for x one number after
    another, d passes for each layer, forward and backward: that is the price of `dreg` and `draws.stratified`, where
    `spline_coupling` is the cheaper flow. Every other layer runs through the latents backwards.

    Of its own draws q knows log q along their path. Of a z from elsewhere the rounding of z itself counts, which large
    weights magnify, to tenths of a nat and far more in float32, by whatever algorithm: after a fit, and before `dreg`
    or `stratified`, look at how far the two are apart, in nats,

        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(1000,));  max |vmap(q.log_prob)(z) - log_q|

    Args:
        layers: of the flow.
        hidden: widths of each network's tanh layers; the last one, m and s for each latent, starts at zero. For every
            latent to hear all those before it, no width should be below the number of latents less one.
        base: a Gaussian family with as much noise as latents: `full_rank()`, or `mean_field()` for many latents.

    Returns:
        Family: `init(key, like)` starts as base does, params {"base": ..., "layers": [networks]}; `dist(params)` has
        batch shape (). s stays within ±3.

    Raises:
        TypeError: (init) for latents that are not floating; for a base whose members offer no `affine`.
        ValueError: for layers or widths below 1; (init) for a base such as `low_rank`.

    Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, Improving variational inference with inverse
        autoregressive flow, 2016, arXiv:1606.04934; Germain, Gregor, Murray, Larochelle, MADE, 2015, arXiv:1502.03509.
    """
    positive(layers=layers)
    hidden = networks.widths(hidden)

    def init(key: Any, d: int, dtype: Any) -> PyTree:
        return [networks.init(k, (d, *hidden, 2 * d), dtype) for k in jax.random.split(key, layers)]

    def maps(params: PyTree, d: int) -> tuple[Map, Map]:
        positions = [np.arange(1, d + 1)[:: 1 - 2 * (l % 2)] for l in range(layers)]
        masks = [networks.autoregressive_masks(p, hidden, 2) for p in positions]

        def shift_and_scale(l: int, x: Array) -> tuple[Array, Array]:
            out = networks.apply(params[l], x, masks[l])
            return out[:d], _MOST * jnp.tanh(out[d:] / _MOST)

        def forward(x: Array) -> tuple[Array, Array]:
            total = jnp.zeros((), x.dtype)
            for l in range(layers):
                shift, log_scale = shift_and_scale(l, x)
                x, total = shift + jnp.exp(log_scale) * x, total + jnp.sum(log_scale)
            return x, total

        def inverse(y: Array) -> tuple[Array, Array]:
            total = jnp.zeros((), y.dtype)
            for l in range(layers)[::-1]:

                def solve(
                    found: tuple[Array, Array], i: Array, l: int = l, y: Array = y
                ) -> tuple[tuple[Array, Array], None]:
                    x, seen = found
                    shift, log_scale = shift_and_scale(l, x)
                    here = positions[l] == i + 1
                    x = jnp.where(here, (y - shift) * jnp.exp(-log_scale), x)
                    return (x, jnp.where(here, log_scale, seen)), None

                start = (jnp.zeros_like(y), jnp.zeros_like(y))
                (y, log_scales), _ = scan(solve, start, jnp.arange(d))
                total = total + jnp.sum(log_scales)
            return y, total

        return forward, inverse

    return over(base, "inverse_autoregressive", init, maps)
