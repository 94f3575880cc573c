"""The verdict: is q reliable, only its corrected moments, neither, or can it not be told."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vijax.diagnostics._weights import LEAST, RESOLVED

CLOSE = 0.96  # of the draws: q's means are within a fifth of a standard deviation
NEAR = 0.9  # within a third
UNSEEN = 0.05  # of the posterior, which moves no mean by more than a quarter
RESTARTS_AGREE = 1.05  # R-hat of two runs half a standard deviation apart


def khat_threshold(num_samples: int) -> float:
    """Return the k-hat up to which this many draws give a usable corrected moment: min(1 - 1 / log10 S, .7)."""
    return min(1 - 1 / math.log10(max(num_samples, 2)), 0.7)


def verdict(
    khat: Float[Array, "*batch"],
    ess: Float[Array, "*batch"],
    *,
    num_samples: int,
    rhat: Float[Array, "*batch"] | None = None,
    resolution: Float[Array, "*batch"] | None = None,
) -> Int[Array, "*batch"]:
    """Verdict on a fit: 0, q is reliable; 1, its importance-weighted estimates are; 2, neither; 3, cannot tell.

        0 if ESS ≥ .96 S;    else 1 if k̂ ≤ min(1 - 1 / log₁₀ S, .7), ESS ≥ .9 S, or u ≤ .05;    else 2
        u = (1 / ESS - 1 / S)^½ / (1 - k̂)₊

    A mode that no draw has reached goes undetected: compare scattered restarts.

    Args:
        khat: the larger of Pareto k-hat of the log-weights and of every latent's `marginal_khat`; up to the limit above
            the error of a corrected moment falls with S about as it should.
        ess: effective sample size of the log-weights, in draws. No mean under q is off by more than (S / ESS - 1)^½ sds
            of q (Cauchy-Schwarz on w - 1), .2 at .96 S and .33 at .9 S, however heavy a tail that weighs nothing.
        num_samples: S, how many draws these are of.
        rhat: the largest R-hat of the latents over restarts, if there were any; above 1.05, where restarts are half an
            sd apart in some latent, the verdict is 2.
        resolution: of the log-weights, in nats, as `resolution` gives it; above .1 the verdict is 3.

    Returns:
        [*batch], 0 to 3; a nan is a 2, and fewer than 25 draws, of which there is no k-hat, are a 3. u bounds the mass
            above the largest weight, which at 1 moves a mean by at most (u / (1 - u))^½ sds, .23. Of one draw above all
            others by more than rounding the verdict is 2, whatever the resolution.

    Raises:
        ValueError: for num_samples < 1.

    Example:
        >>> khat, ess = jnp.array([0.2, 0.6, 0.9]), jnp.array([990.0, 500.0, 20.0])
        >>> verdict(khat, ess, num_samples=1000).tolist()
        [0, 1, 2]

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646; Yao,
        Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018, arXiv:1802.02538.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    # ESS / S, and nothing where k-hat gives no answer.
    share = jnp.where(jnp.isnan(khat), 0.0, ess / num_samples)
    # The largest normalized weight is at most 1 / S + (1 / ESS - 1 / S)^½, and what lies above it in a Pareto tail
    # weighs k̂ / (1 - k̂) times as much.
    largest = jnp.sqrt(jnp.maximum(1 / share - 1, 0.0) / num_samples)
    few_unseen = (khat < 1) & (largest <= UNSEEN * (1 - khat))
    usable = (khat <= khat_threshold(num_samples)) | (share >= NEAR) | few_unseen
    # From the weakest statement to the strongest; unresolved weights and restarts overrule them.
    level = jnp.where(usable, 1, 2)
    level = jnp.where(share >= CLOSE, 0, level)
    if num_samples < LEAST:
        level = jnp.full_like(level, 3)
    if resolution is not None:
        level = jnp.where((resolution > RESOLVED) & ~(ess < 2), 3, level)
    return level if rhat is None else jnp.where(rhat <= RESTARTS_AGREE, level, 2)
