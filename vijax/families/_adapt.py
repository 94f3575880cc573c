"""The two methods that vijax asks of q, for distributions of TFP and NumPyro."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array

from vijax.calls import described
from vijax.types import Distribution, PyTree, Sampled, offers


class _Adapted:
    """A distribution with `sample` and `log_prob`, as TFP and NumPyro have them, or with vijax's own two methods."""

    def __init__(
        self, distribution: PyTree, *, reparameterized: bool | None, fixed_support: bool | None
    ):
        # What was declared before, by an adaptor or by q itself, holds until something else is said.
        adapted = isinstance(distribution, _Adapted)
        self.adapted = distribution.adapted if adapted else distribution
        self.reparameterized = _or_before(distribution, reparameterized=reparameterized)
        self.fixed_support = _or_before(distribution, fixed_support=fixed_support)
        self.independent_members = getattr(distribution, "independent_members", None)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        q, shape = self.adapted, tuple(sample_shape)
        if offers(q, Distribution):
            return q.sample_and_log_prob(seed=seed, sample_shape=shape)
        # TFP takes sample(sample_shape, seed), NumPyro sample(key, sample_shape).
        by_name = "seed" in inspect.signature(q.sample).parameters
        z = q.sample(seed=seed, sample_shape=shape) if by_name else q.sample(seed, shape)
        return z, q.log_prob(z)

    def log_prob(self, z: PyTree, /) -> Array:
        return self.adapted.log_prob(z)


def adapt(
    distribution: PyTree, *, reparameterized: bool | None = None, fixed_support: bool | None = None
) -> Any:
    """Give a TFP (JAX) or NumPyro distribution vijax's two methods, or declare any q's draws.

        (sample, log_prob)  →  (sample_and_log_prob, log_prob)

    distrax needs no adaptor. A distribution's own flags are not trusted: the jaxpr of its sampler
    is read like any other.

    Args:
        distribution: with `log_prob(z)` and either `sample(sample_shape, seed)`,
            `sample(key, sample_shape)` or `sample_and_log_prob`.
        reparameterized: True if its draws carry the whole derivative of its parameters, False if
            not; None keeps what was declared before, or lets the jaxpr decide. True is for what
            the jaxpr cannot show: draws that are continuous in the parameters in spite of a
            comparison, as of a spline. A wrong True is a biased gradient.
        fixed_support: True if no end of its support, and no value of a discrete one, depends on its
            parameters, so that its score has mean zero; False if one does; None keeps what was
            declared before, or lets the library's own declaration, or the jaxpr, decide. A wrong
            True is a biased gradient.

    Returns:
        A Distribution of the same draws, batch shape and densities.

    Raises:
        TypeError: where a method is missing; of a dict or tuple, adapt each distribution.

    Example:
        >>> q = adapt(distrax.Normal(jnp.zeros(3), 1.0), fixed_support=True)
        >>> z, log_q = q.sample_and_log_prob(seed=jax.random.key(0), sample_shape=(4,))
        >>> z.shape, q.fixed_support
        ((4, 3), True)

    Reference: Dillon et al., TensorFlow distributions, 2017, arXiv:1711.10604.
    """
    fits = offers(distribution, Distribution) or offers(distribution, Sampled)
    if isinstance(distribution, type) or not fits:
        raise TypeError(
            f"adapt needs an object with sample and log_prob, got {described(distribution)}"
            f"{_cure(distribution)}."
        )
    return _Adapted(distribution, reparameterized=reparameterized, fixed_support=fixed_support)


def _or_before(distribution: PyTree, **declaration: bool | None) -> bool | None:
    ((name, declared),) = declaration.items()
    return getattr(distribution, name, None) if declared is None else declared


def _cure(given: object) -> str:
    if isinstance(given, (Mapping, tuple, list)):
        return ": adapt each distribution in it by itself, {'y': families.adapt(q['y'], ...), ...}"
    if inspect.isroutine(given):
        return ": adapt what it returns, lambda earlier: families.adapt(f(earlier), ...)"
    return ""
