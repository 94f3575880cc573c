"""The two methods vijax asks of q, lent to distributions that spell them otherwise."""

import inspect
from typing import Any

from jaxtyping import Array

from vijax.types import PyTree


class _Adapted:
    """A distribution with `sample` and `log_prob`, as TFP and NumPyro have them."""

    def __init__(self, distribution: Any):
        self._distribution = distribution
        by_name = "seed" in inspect.signature(distribution.sample).parameters
        self._sample = (
            (lambda seed, shape: distribution.sample(seed=seed, sample_shape=shape))
            if by_name
            else (lambda seed, shape: distribution.sample(seed, shape))
        )

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[PyTree, Array]:
        z = self._sample(seed, tuple(sample_shape))
        return z, self._distribution.log_prob(z)

    def log_prob(self, z: PyTree, /) -> Array:
        return self._distribution.log_prob(z)


def adapt(distribution: Any) -> Any:
    """Lend a TFP (JAX substrate) or NumPyro distribution the two methods that vijax calls.

        (sample, log_prob)  ->  (sample_and_log_prob, log_prob)

    Nothing is believed of its own reparameterisation flags: its sampler's jaxpr is looked at like any other. distrax
    needs no adaptor.

    Args:
        distribution: with `log_prob(z)` and either `sample(sample_shape, seed)` or `sample(key, sample_shape)`.

    Returns:
        A Distribution of the same draws, batch shape and densities.

    Raises:
        TypeError: where either method is missing.

    Reference: Dillon et al., TensorFlow distributions, 2017, arXiv:1711.10604.
    """
    if not (hasattr(distribution, "sample") and hasattr(distribution, "log_prob")):
        raise TypeError(f"adapt needs sample and log_prob; {type(distribution).__name__} lacks them.")
    return _Adapted(distribution)
