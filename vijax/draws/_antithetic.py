"""Antithetic draws: pairs that mirror each other, so that odd errors cancel."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.draws._qmc import unit
from vijax.draws._transport import dimensions, transport
from vijax.engine import split
from vijax.types import Draw, PyTree


def _seeds(key: Any, num_samples: int) -> PyTree:
    if num_samples % 2:
        raise ValueError(
            f"antithetic draws come in pairs: num_samples must be even, got {num_samples}."
        )
    keys = split(key, num_samples // 2)
    return jnp.repeat(keys, 2), jnp.arange(num_samples) % 2 == 1


def _sample(seed: PyTree, q: Any) -> tuple[PyTree, Array]:
    key, mirrored = seed
    u = unit(jax.random.bits(key, (dimensions(q, "antithetic"),), jnp.uint32))
    z = transport(q, jnp.where(mirrored, 1 - u, u))
    return z, q.log_prob(z)


antithetic = Draw(seeds=_seeds, sample=_sample, independent=False)
"""Draws in mirrored pairs, z = T(u) and T(1 - u), marginally from q.

    ½ (f(T(u)) + f(T(1 - u))),  u ~ U(0, 1)ᵈ

Unbiased for anything linear in the draws and exact for odd integrands of a symmetric q; for bounds that are not
linear it lowers the variance but changes the bound, which stays a lower bound (for iwae). Pair it with
`gradients.reparam`, or with `dreg(elbo)`. Evaluations of the model that it saves, as the ratio of gradient variances to
that of independent draws, at any K: 1.1 under reparam(elbo) and 1.8 under dreg(elbo) over two correlated latents, 1.6
and 1.9 at the optimum of a logistic regression over five, 2.5 and 5 far from it; `sobol` saves more from K = 8 on. It
is coupled, so dreg of a non-linear bound, score and vimco refuse it.

Reference: Hammersley, Morton, A new Monte Carlo technique: antithetic variates, 1956.
"""
