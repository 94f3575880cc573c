"""Random levels: how far a telescoping sum is carried, so that truncating it costs no bias."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from vijax import checks
from vijax.calls import is_known
from vijax.types import Level


def level(
    key: Key[Array, ""], probabilities: Float[ArrayLike, " m"], *, shape: tuple[int, ...] = ()
) -> Level:
    """Draw the level of a randomly truncated sum, for `bounds.sumo` and `bounds.mlmc_iwae`.

        𝒦 ~ P,    E[Σ_{j<=𝒦} Δⱼ / P(𝒦 >= j)] = Σⱼ Δⱼ

    Args:
        key: a typed key, consumed; not the objective's, as the level is independent of the draws.
        probabilities: of levels 0 .. m-1, [m], static in length, in any scale: `harmonic(m)`,
            `geometric(m)`, yours. The bounds divide by them: sumo of k draws needs mass at level
            k - 1 or above, mlmc_iwae at each of 1 .. m-1.
        shape: of the levels, () for one that the batch shares, or [*batch].

    Returns:
        Level(value, probabilities), the latter summing to 1.

    Raises:
        TypeError: for a raw key.
        ValueError: for probabilities that are not a vector, negative, or not finite.

    Example:
        >>> level(jax.random.key(0), harmonic(8), shape=(3,)).value.shape
        (3,)

    Reference: Glynn, Rhee, Exact estimation for Markov chain equilibrium expectations, 2014, arXiv:1409.4302.
    """
    checks.key(key)
    p: Any = probabilities
    # p is traced, or NumPy's: a choice, so that either may be normalized below.
    if is_known(p):
        # Of NumPy it stays known under jit, so that the bound can check it.
        p = np.asarray(p)
        p = p.astype(jnp.result_type(p, float))
    if p.ndim != 1:
        raise ValueError(f"probabilities must be a vector [m], one for each level; got {p.shape}.")
    if isinstance(p, np.ndarray) and not (np.all(p >= 0) and 0 < p.sum() < np.inf):
        raise ValueError(f"probabilities must be finite, not negative, nor all 0; got {p}.")
    # A level of probability 0 has log 0 = -inf, and is never drawn.
    with np.errstate(divide="ignore"):
        log_p = np.log(p) if isinstance(p, np.ndarray) else jnp.log(p)
    return Level(jax.random.categorical(key, jnp.asarray(log_p), shape=shape), p / p.sum())


def harmonic(m: int) -> Float[Array, " m"]:
    """Probabilities of levels 0 .. m-1 with the heaviest tail that SUMO proposes; E[𝒦] grows as log
    m.

        P(𝒦 >= j) = 1/(j+1)

    Args:
        m: number of levels.

    Returns:
        [m], summing to 1.

    Example:
        >>> (12 * harmonic(4)).round().tolist()  # 1/2, 1/6, 1/12 and the rest, 1/4
        [6.0, 2.0, 1.0, 3.0]

    Reference: Luo, Beatson, Norouzi, Zhu, Duvenaud, Adams, Chen, SUMO: unbiased estimation of log marginal probability
        for latent variable models, 2020, arXiv:2004.00353.
    """
    _levels(m)
    # P(𝒦 = j) = P(𝒦 >= j) - P(𝒦 >= j + 1), and the last level has what is left.
    survival = 1 / jnp.arange(1.0, m + 1)
    return survival - jnp.append(survival[1:], 0.0)


def geometric(m: int, *, ratio: float = 2**-1.5) -> Float[Array, " m"]:
    """Probabilities of levels 0 .. m-1 that fall by `ratio`; 2^-3/2 gives MLMC finite variance at
    finite cost.

        P(𝒦 = j) ∝ ratioʲ

    Args:
        m: number of levels.
        ratio: P(𝒦 = j + 1) / P(𝒦 = j).

    Returns:
        [m], summing to 1.

    Example:
        >>> (7 * geometric(3, ratio=0.5)).round().tolist()  # 4/7, 2/7 and 1/7
        [4.0, 2.0, 1.0]

    Reference: Ishikawa, Goda, Efficient debiased evidence estimation by multilevel Monte Carlo sampling, 2021,
        arXiv:2001.04676.
    """
    _levels(m)
    if is_known(ratio) and not 0 < ratio < np.inf:
        raise ValueError(f"ratio must be positive, got {ratio!r}.")
    p: Any = jnp.asarray(ratio) ** jnp.arange(m)
    return p / jnp.sum(p)


def _levels(m: object) -> None:
    checks.static_count(m, "m, the number of levels,")
