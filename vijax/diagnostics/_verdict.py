"""What the numbers add up to: may q be believed, only its corrected moments, or neither."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CLOSE = 0.96  # of the draws: q's means are within a fifth of a standard deviation
NEAR = 0.9  # within a third
RESTARTS_AGREE = 1.05


def khat_threshold(num_samples: int) -> float:
    """Return the k-hat up to which this many draws give a usable corrected moment: min(1 - 1 / log10 S, .7)."""
    return min(1 - 1 / math.log10(max(num_samples, 2)), 0.7)


def verdict(
    khat: Float[Array, "*batch"],
    ess: Float[Array, "*batch"],
    *,
    num_samples: int,
    rhat: Float[Array, "*batch"] | None = None,
) -> Int[Array, "*batch"]:
    """Verdict on a fit: 0, q itself may be believed; 1, only what its weights correct; 2, neither.

        0 if ESS ≥ .96 S;    otherwise 1 if k̂ ≤ min(1 - 1 / log₁₀ S, .7) or ESS ≥ .9 S;    otherwise 2
        and 2 if R̂ > 1.05

    No mean under q is off by more than (S / ESS - 1)^½ standard deviations of q: .2 at .96 S (Cauchy-Schwarz on w - 1),
    however heavy a tail that weighs nothing; .33 at .9 S, where there is little for weights to mend or to spoil. S
    draws give a corrected moment whose error falls about as it should up to that k̂ (.67 at S = 1,000, .7 from 2,155 on;
    nothing passes with 10). Two restarts half a standard deviation apart in any latent (R̂ of 1.05) answer for neither.
    A nan is a 2. All of these look where q draws, and are silent about a mode that no draw and no restart has seen.

    Args:
        khat: the larger of Pareto k-hat of the log-weights and of every latent's `marginal_khat`.
        ess: effective sample size of the log-weights, in draws.
        num_samples: S, how many draws these are of.
        rhat: the largest R-hat of the latents over restarts, if there were any.

    Returns:
        [*batch], 0, 1 or 2.

    Raises:
        ValueError: for num_samples < 1.

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646; Yao,
        Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018, arXiv:1802.02538.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    share = jnp.where(jnp.isnan(khat) | (num_samples < 25), 0.0, ess / num_samples)
    level = jnp.where((khat <= khat_threshold(num_samples)) | (share >= NEAR), 1, 2)
    level = jnp.where(share >= CLOSE, 0, level)
    return level if rhat is None else jnp.where(rhat <= RESTARTS_AGREE, level, 2)
