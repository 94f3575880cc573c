"""Antithetic draws: pairs that mirror each other, so that odd errors cancel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax.draws._qmc import unit
from vijax.draws._transport import dimensions, transport
from vijax.engine import split
from vijax.types import Distribution, Draw, PyTree


def _seeds(key: Key[Array, ""], num_samples: int) -> PyTree:
    if num_samples % 2:
        raise ValueError(
            f"antithetic draws come in pairs: num_samples must be even, got {num_samples}."
        )
    keys = split(key, num_samples // 2)
    # Rows 2i and 2i + 1 share a key; the odd ones are mirrored.
    return jnp.repeat(keys, 2), jnp.arange(num_samples) % 2 == 1


def _sample(seed: PyTree, q: Distribution) -> tuple[PyTree, Array]:
    key, mirrored = seed
    u = unit(jax.random.bits(key, (dimensions(q, "antithetic"),), jnp.uint32))
    z = transport(q, jnp.where(mirrored, 1 - u, u))
    return z, q.log_prob(z)


antithetic = Draw(seeds=_seeds, sample=_sample, independent=False)
"""Draws in mirrored pairs, z = T(u) and T(1 - u), marginally from q.

    ½ (f(T(u)) + f(T(1 - u))),  u ~ U(0, 1)ᵈ

Unbiased for what is linear in the draws, and exact for odd integrands of a symmetric q. A bound
that is not linear changes, and stays a lower bound (for iwae). Pair it with `gradients.reparam`, or
with `dreg(elbo)`: it is coupled, so dreg of a non-linear bound, score and vimco refuse it. What it
saves is in the guide to choosing; `sobol` saves more from K = 8 on.

Reference: Hammersley, Morton, A new Monte Carlo technique: antithetic variates, 1956.
"""
