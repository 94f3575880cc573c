"""Small networks with parameters in plain pytrees: what the conditioners of flows and of conditionals are made of."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax.types import PyTree

# The last layer starts at zero, so that whatever a network is added to starts as it would without.


def init(key: Array, sizes: Sequence[int], dtype: type[Any] | np.dtype[Any]) -> PyTree:
    """Return layers of these widths, random but for the last, which is zero."""
    # Weights of variance 1 / inputs keep the size of what passes through.
    inner = zip(jax.random.split(key, len(sizes)), sizes[:-2], sizes[1:-1], strict=False)
    layers = [
        {
            "weight": jax.random.normal(k, (m, n), dtype) / max(m, 1) ** 0.5,
            "bias": jnp.zeros(n, dtype),
        }
        for k, m, n in inner
    ]
    return [*layers, {"weight": jnp.zeros(sizes[-2:], dtype), "bias": jnp.zeros(sizes[-1], dtype)}]


def apply(
    params: PyTree, x: Float[Array, " m"], masks: Sequence[np.ndarray] | None = None
) -> Float[Array, " n"]:
    """Run tanh layers and a linear one, each weight times its mask if there are masks."""
    for i, layer in enumerate(params):
        weight = (
            layer["weight"]
            if masks is None
            else layer["weight"] * masks[i].astype(layer["weight"].dtype)
        )
        x = x @ weight + layer["bias"]
        x = jnp.tanh(x) if i + 1 < len(params) else x
    return x


def autoregressive_masks(
    positions: np.ndarray, hidden: Sequence[int], outputs: int
) -> list[np.ndarray]:
    """Return masks under which each output hears only inputs of a lower position.

    Args:
        positions: of the d inputs, 1 to d in any order.
        hidden: widths of the layers between.
        outputs: how many outputs there are for each input; they come in rounds, [outputs * d].
    """
    d = positions.size
    # A unit of degree n hears positions 1 to n. Degrees are spread over 1 to d - 1, however narrow the layer; where
    # d is 1 they are 0, and hear nothing.
    degrees = [positions, *(np.minimum(1, d - 1) + np.arange(h) * (d - 1) // h for h in hidden)]
    masks = [
        into[None, :] >= out[:, None] for out, into in zip(degrees[:-1], degrees[1:], strict=True)
    ]
    # An output takes units of lower degree than its position, so not its own input.
    return [*masks, np.tile(positions, outputs)[None, :] > degrees[-1][:, None]]


def widths(hidden: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of hidden layers as a tuple; refuse what is none."""
    if isinstance(hidden, int) or any(not isinstance(h, int) or h < 1 for h in hidden):
        raise ValueError(
            f"hidden must be a tuple of widths, each at least 1, such as (32, 32), got {hidden!r}."
        )
    return tuple(hidden)
