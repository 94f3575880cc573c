"""Inverse temperatures from 0, where the density is q's, to 1, where it is the posterior's."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vijax import checks
from vijax.calls import is_known

Partition = ArrayLike | Sequence[float]
"""Inverse temperatures, [T + 1]."""


def linear_partition(num_steps: int) -> Float[Array, " t"]:
    """Inverse temperatures at equal distances.

        βₜ = t / T,   t = 0 ... T

    The default of annealing from a q that has been fitted.

    Args:
        num_steps: T.

    Returns:
        [T + 1], from 0 to 1.

    Raises:
        TypeError: for a number of steps that is no Python int; ValueError: for one below 1.

    Example:
        >>> linear_partition(4).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]

    Reference: Neal, Annealed importance sampling, 2001, arXiv:physics/9803008.
    """
    checks.static_count(num_steps, "num_steps")
    return jnp.linspace(0.0, 1.0, num_steps + 1)


def sigmoid_partition(num_steps: int, *, sharpness: float = 4.0) -> Float[Array, " t"]:
    """Inverse temperatures that move slowly at both ends.

        βₜ = (σ(s (2t/T - 1)) - σ(-s)) / (σ(s) - σ(-s)),   s = sharpness

    For a q and a posterior that both have regions which the other lacks.

    Args:
        num_steps: T.
        sharpness: s, above 0; the larger, the slower at the ends.

    Returns:
        [T + 1], from 0 to 1.

    Raises:
        TypeError: for a number of steps that is no Python int.
        ValueError: for one below 1, or a sharpness that is not positive.

    Example:
        >>> [round(float(beta), 2) for beta in sigmoid_partition(4)]
        [0.0, 0.1, 0.5, 0.9, 1.0]

    Reference: Grosse, Ghahramani, Adams, Sandwiching the marginal likelihood using bidirectional
        Monte Carlo, 2015, arXiv:1511.02543.
    """
    checks.static_count(num_steps, "num_steps")
    if not sharpness > 0:
        raise ValueError(f"sharpness must be above 0, got {sharpness!r}.")
    # An odd function of the distance from the middle, from -½ to ½
    middle = jnp.tanh(sharpness * (jnp.linspace(0.0, 1.0, num_steps + 1) - 0.5))
    return 0.5 + 0.5 * middle / middle[-1]


def geometric_partition(num_steps: int, *, first: float = 1e-3) -> Float[Array, " t"]:
    """Inverse temperatures each a fixed factor above the one before, and 0 before them.

        β₀ = 0,   βₜ = first^((T - t) / (T - 1)),   t = 1 ... T

    For annealing from a prior, or any q far wider than the posterior, where most happens near 0.

    Args:
        num_steps: T.
        first: β₁, between 0 and 1; about one over how much log p(x | z) varies under q.

    Returns:
        [T + 1], from 0 to 1.

    Raises:
        TypeError: for a number of steps that is no Python int.
        ValueError: for one below 1, or a first temperature outside (0, 1).

    Example:
        >>> [round(float(beta), 3) for beta in geometric_partition(4)]
        [0.0, 0.001, 0.01, 0.1, 1.0]

    Reference: Neal, Annealed importance sampling, 2001, arXiv:physics/9803008.
    """
    checks.static_count(num_steps, "num_steps")
    if not 0 < first < 1:
        raise ValueError(f"first must be between 0 and 1, got {first!r}.")
    exponents = jnp.linspace(1.0, 0.0, num_steps) if num_steps > 1 else jnp.zeros(1)
    return jnp.concatenate([jnp.zeros(1), first**exponents])


def rising(partition: Partition) -> Array:
    """Return a partition as an array; refuse what is no vector, and of known numbers what does not rise from 0 to 1."""
    betas = jnp.asarray(partition, jnp.result_type(float))
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(
            f"partition must be a vector [T + 1] of inverse temperatures, got shape {betas.shape}: "
            "particles.linear_partition(100)."
        )
    if is_known(partition):
        known = np.asarray(partition, np.float64)
        # Several may be equal, as the padded ones of an adaptive run are; written to refuse nan.
        rises = known[0] == 0 and abs(known[-1] - 1) < 1e-6 and np.all(np.diff(known) >= 0)
        if not rises:
            raise ValueError(
                f"partition must rise from 0 to 1, got {known.tolist()[:8]}, {known.size} in all: "
                "particles.linear_partition(100)."
            )
    return betas
