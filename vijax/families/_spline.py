"""Spline coupling flows over any pytree of latents."""

from collections.abc import Callable, Sequence
from functools import partial
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

# Which bin a number falls into is a comparison, at which a jaxpr's paths would seem to end, and be refused. The spline
# and its slope are continuous there, so its derivative by autodiff is all of it: that is what custom_jvp declares. Said
# of the function rather than of q, it holds wherever the flow is used: in mixtures, in conditionals.


def _plain(interval: float, raw: Array, x: Array) -> tuple[Array, Array]:
    return _bijector(interval, raw).forward_and_log_det(x)


_forward = jax.custom_jvp(_plain, nondiff_argnums=(0,))
_forward.defjvp(lambda interval, at, along: jax.jvp(lambda *a: _plain(interval, *a), at, along))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inverse(interval: float, raw: Array, y: Array) -> tuple[Array, Array]:
    x = _bijector(interval, raw).inverse(y)
    return x, _plain(interval, raw, x)[1]


# Through the forward spline: that of the quadratic's root loses its digits where the spline is flat.
@_inverse.defjvp
def _inverse_jvp(
    interval: float, at: tuple[Array, Array], along: tuple[Array, Array]
) -> tuple[Any, Any]:
    (raw, _), (d_raw, d_y) = at, along
    x, log_det = _inverse(interval, *at)

    def function(raw: Array, x: Array) -> tuple[Array, Array]:
        return _forward(interval, raw, x)

    _, (by_raw, _) = jax.jvp(lambda raw: function(raw, x), (raw,), (d_raw,))
    d_x = (d_y - by_raw) * jnp.exp(-log_det)
    _, (_, d_log_det) = jax.jvp(function, (raw, x), (d_raw, d_x))
    return (x, log_det), (d_x, d_log_det)


def _bijector(interval: float, raw: Array) -> Any:
    from distrax import RationalQuadraticSpline

    return RationalQuadraticSpline(raw, -interval, interval)


_FULL_RANK = full_rank()


def spline_coupling(
    *,
    layers: int = 4,
    bins: int = 8,
    hidden: Sequence[int] = (32, 32),
    base: Family = _FULL_RANK,
    interval: float = 4.0,
) -> Family:
    """Normalizing flow of rational-quadratic splines, each half of the latents given the other.

        z = loc + S T(e),   T = T_layers ∘ … ∘ T₁,   T_l: x_moved ↦ spline(x_moved; network(x_kept))

    For posteriors that no Gaussian fits: curved, skewed or heavy in one tail. Sampling and log q(z)
    cost one pass through each layer.

    Args:
        layers: how many halves to move. Every other layer moves the other half, and every two the
            halves are dealt anew: after 2 log₂ d layers, or a few more, every latent has met every
            other.
        bins: of each spline.
        hidden: widths of each network's tanh layers; its last layer, (3 bins + 1) numbers for each
            latent moved, starts at zero, where the spline is the identity.
        base: a Gaussian family with as much noise as latents: `full_rank()`, or `mean_field()` for
            many latents.
        interval: where the splines end, in standard deviations of the noise; linear outside, so
            that the tails stay Gaussian.

    Returns:
        Family: `init(key, like)` starts as base does, params {"base": ..., "layers": [networks]};
        `dist(params)` has batch shape () and draws that carry the whole derivative. Fit it by
        `reparam(elbo)`. `dreg` is unbiased too, but noisy: the slope of log q(z) jumps at every
        knot (1 nat and more below log Z after 1,000 steps of Adam on a banana, where
        `reparam(elbo)` was .1). Needs distrax.

    Raises:
        TypeError: (init) for latents that are not floating; for a base whose members offer no
            `affine`.
        ValueError: for layers, bins, widths or an interval that are not positive; (init) for a base
            such as `low_rank`.

    Example:
        >>> family = spline_coupling(layers=2, bins=4, hidden=(8,))
        >>> params = family.init(jax.random.key(0), jnp.zeros(3))
        >>> [layer["weight"].shape for layer in params["layers"]]
        [(2, 1, 8), (2, 8, 26)]

    Reference: Durkan, Bekasov, Murray, Papamakarios, Neural spline flows, 2019, arXiv:1906.04032.
    """
    positive(layers=layers, bins=bins)
    hidden = networks.widths(hidden)
    if not interval > 0:
        raise ValueError(f"interval must be positive, got {interval}.")

    def init(key: Array, d: int, dtype: np.dtype[Any]) -> PyTree:
        kept, moved = _halves(d)
        sizes = (kept, *(hidden if kept else ()), moved * (3 * bins + 1))
        return jax.vmap(lambda k: networks.init(k, sizes, dtype))(jax.random.split(key, layers))

    def maps(params: PyTree, d: int) -> tuple[Map, Map]:
        kept, moved = _halves(d)
        orders = jnp.asarray(_orders(d, layers))

        def through(spline: Callable[..., tuple[Array, Array]], *, reverse: bool) -> Map:
            # A scan, since the layers are alike: it compiles one of them.
            def layer(carry: tuple[Array, Array], at: PyTree) -> tuple[tuple[Array, Array], None]:
                (x, total), (network, order) = carry, at
                # [moved, 3 bins + 1]: widths, heights and slopes, from the half that is kept
                raw = networks.apply(network, x[order[:kept]]).reshape(moved, 3 * bins + 1)
                y, log_det = spline(interval, raw, x[order[kept:]])
                return (
                    x.at[order[kept:]].set(y, unique_indices=True),
                    total + jnp.sum(log_det),
                ), None

            def start(x: Array) -> tuple[Array, Array]:
                return (x, jnp.zeros((), x.dtype))

            return lambda x: scan(layer, start(x), (params, orders), reverse=reverse)[0]

        return through(_forward, reverse=False), through(_inverse, reverse=True)

    return over(base, "spline_coupling", init, maps)


def _halves(d: int) -> tuple[int, int]:
    return d // 2, d - d // 2


def _orders(d: int, layers: int) -> np.ndarray:
    """Return the latents of each layer, those that it keeps first: two halves in turn, then they are dealt anew."""
    orders = [np.arange(d)]
    for l in range(1, layers):
        # Reversed, the halves change places; every two layers even and odd places are parted.
        last = orders[-1][::-1]
        orders.append(last if l % 2 else np.concatenate([last[0::2], last[1::2]]))
    return np.stack(orders)
