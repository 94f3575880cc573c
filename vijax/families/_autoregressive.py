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

        z = loc + S T(e),   T = T_layers ∘ … ∘ T₁,   (T_l x)ᵢ = m(x₍<i₎) + exp(s(x₍<i₎)) xᵢ

    For posteriors that no Gaussian fits, under `reparam` and other estimators that weigh their own
    draws, which cost one pass a layer.

    Args:
        layers: of the flow; every other one runs through the latents backwards.
        hidden: widths of each network's (MADE's) tanh layers; the last one, m and s for each
            latent, starts at zero. For every latent to depend on all those before it, no width
            should be below the number of latents less one.
        base: a Gaussian family with as much noise as latents: `full_rank()`, or `mean_field()` for
            many latents.

    Returns:
        Family: `init(key, like)` starts as base does, params {"base": ..., "layers": [networks]};
        `dist(params)` has batch shape (). s stays within ±3. log q(z) of a z from elsewhere, as
        `dreg` and `draws.stratified` ask for, solves for one number after another, d passes a layer
        (`spline_coupling` needs one), and rounding of z counts: large weights magnify it to tenths
        of a nat and far more in float32. Check, after a fit, how far `q.log_prob` is from the log q
        of its own draws.

    Raises:
        TypeError: (init) for latents that are not floating; for a base whose members offer no
            `affine`.
        ValueError: for layers or widths below 1; (init) for a base such as `low_rank`.

    Example:
        >>> family = inverse_autoregressive(layers=1, hidden=(4,), base=vj.families.mean_field())
        >>> params = family.init(jax.random.key(0), jnp.zeros(2))
        >>> log_q = family.dist(params).log_prob(jnp.zeros(2))  # the base's, log N(0; 0, 0.1² I)
        >>> round(float(log_q), 3)
        2.767

    Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, Improving variational
        inference with inverse autoregressive flow, 2016, arXiv:1606.04934; Germain, Gregor, Murray,
        Larochelle, MADE, 2015, arXiv:1502.03509.
    """
    positive(layers=layers)
    hidden = networks.widths(hidden)

    def init(key: Array, d: int, dtype: np.dtype[Any]) -> PyTree:
        return [networks.init(k, (d, *hidden, 2 * d), dtype) for k in jax.random.split(key, layers)]

    def maps(params: PyTree, d: int) -> tuple[Map, Map]:
        # Latents are numbered 1 to d in even layers, and d to 1 in odd ones.
        positions = [np.arange(1, d + 1)[:: 1 - 2 * (l % 2)] for l in range(layers)]
        # A network's outputs come in two rounds, all m and then all s.
        masks = [networks.autoregressive_masks(p, hidden, 2) for p in positions]

        def shift_and_scale(l: int, x: Array) -> tuple[Array, Array]:
            # [2d]: m and s of each number, from those before it alone
            out = networks.apply(params[l], x, masks[l])
            return out[:d], _MOST * jnp.tanh(out[d:] / _MOST)

        def forward(x: Array) -> tuple[Array, Array]:
            total = jnp.zeros((), x.dtype)
            for l in range(layers):
                shift, log_scale = shift_and_scale(l, x)
                x, total = shift + jnp.exp(log_scale) * x, total + jnp.sum(log_scale)
            return x, total

        # Number i of x is right once those before it are: d passes of the same network.
        def inverse(y: Array) -> tuple[Array, Array]:
            total = jnp.zeros((), y.dtype)
            for l in range(layers)[::-1]:

                def solve(
                    carry: tuple[Array, Array], i: Array, l: int = l, y: Array = y
                ) -> tuple[tuple[Array, Array], None]:
                    x, log_scales = carry
                    shift, log_scale = shift_and_scale(l, x)
                    # Only the number whose turn it is changes.
                    here = positions[l] == i + 1
                    x = jnp.where(here, (y - shift) * jnp.exp(-log_scale), x)
                    return (x, jnp.where(here, log_scale, log_scales)), None

                start = (jnp.zeros_like(y), jnp.zeros_like(y))
                (y, log_scales), _ = scan(solve, start, jnp.arange(d))
                total = total + jnp.sum(log_scales)
            return y, total

        return forward, inverse

    return over(base, "inverse_autoregressive", init, maps)
