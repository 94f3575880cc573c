"""The states given all the data, as a distribution over whole paths."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.sequences._algebra import (
    Element,
    cholesky,
    combine,
    condition,
    element,
    forward,
    log_det,
    pull,
    symmetric,
    transpose,
)
from vijax.sequences._filter import flat
from vijax.sequences._model import LinearGaussian, Observations, Observed, Steps, steps

LOG_2PI = math.log(2 * math.pi)
Affine = tuple[Array, Array, Array]


def _then(first: Affine, then: Affine) -> Affine:
    (a, b, c), (gain, offset, cov) = first, then
    return gain @ a, gain @ b + offset, symmetric(gain @ c @ transpose(gain) + cov)


def _sequential_path(chain: Affine) -> tuple[Array, Array]:
    """Return mean and covariance of each step of zₜ = gain zₜ₋₁ + N(offset, cov)."""

    def step(carry: tuple[Array, Array], link: Affine) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        found = _then((link[0], *carry), link)[1:]
        return found, found

    return jax.lax.scan(step, (jnp.zeros_like(chain[1][0]), jnp.zeros_like(chain[2][0])), chain)[1]


def _parallel_path(chain: Affine) -> tuple[Array, Array]:
    _, mean, cov = jax.lax.associative_scan(jax.vmap(_then), chain)
    return mean, cov


def _sequential_future(elements: Element) -> tuple[Array, Array]:
    """Return η and precision of p(x_after t | zₜ) for every t."""

    def step(carry: tuple[Array, Array], e: Element) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        gain, _, _ = condition(e, *carry)
        return pull(e, gain, *carry), carry

    nothing = jnp.zeros_like(elements.eta[0]), jnp.zeros_like(elements.precision[0])
    return jax.lax.scan(step, nothing, elements, reverse=True)[1]


def _parallel_future(elements: Element) -> tuple[Array, Array]:
    suffix: Element = jax.lax.associative_scan(lambda a, b: jax.vmap(combine)(b, a), elements, reverse=True)
    after = lambda a: jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])  # noqa: E731
    return after(suffix.eta), after(suffix.precision)


@partial(jax.tree_util.register_dataclass, data_fields=["gain", "offset", "cov"], meta_fields=["path"])
@dataclass(frozen=True)
class _Paths:
    """A Markov chain of Gaussians, zₜ | zₜ₋₁ ~ N(gainₜ zₜ₋₁ + offsetₜ, covₜ), the first gain 0; draws are [*batch, T, d]."""

    gain: Any
    offset: Any
    cov: Any
    path: Callable[[Affine], tuple[Array, Array]]

    # Its solves pivot, which looks like a comparison, and changes no draw.
    reparameterized = True

    @property
    def _batch(self) -> tuple[int, ...]:
        return self.offset.shape[:-2]

    def _each(self, function: Callable[..., Any], *args: Array) -> Any:
        for _ in self._batch:
            function = jax.vmap(function)
        with jax.default_matmul_precision("highest"):
            return function(self.gain, self.offset, self.cov, *args)

    def marginals(self) -> tuple[Array, Array]:
        """Return means [*batch, T, d] and covariances [*batch, T, d, d] of each state given all the data."""

        def one(gain: Array, offset: Array, cov: Array) -> tuple[Array, Array]:
            mean, cov = self.path((gain, offset[..., None], cov))
            return mean[..., 0], cov

        return self._each(one)

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[Array, Array]:
        """Draw whole paths, and return them with their log-densities, [*sample_shape, *batch]."""

        def one(gain: Array, offset: Array, cov: Array, e: Array) -> tuple[Array, Array]:
            lower = jax.vmap(cholesky)(cov)
            noisy = offset[..., None] + lower @ e[..., None]
            z, _ = self.path((gain, noisy, jnp.zeros_like(cov)))
            return z[..., 0], _log_density(lower, e)

        draw = partial(self._each, one)
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(jax.random.normal(seed, (*sample_shape, *self.offset.shape), self.offset.dtype))

    def log_prob(self, z: Float[Array, "*batch time d"], /) -> Array:
        """Return the log-density of paths, [*batch] in nats."""
        if jnp.shape(z) != self.offset.shape:
            raise ValueError(
                f"z must be one path for each member of the batch, {self.offset.shape}, got {jnp.shape(z)}; for several "
                "draws use jax.vmap(q.log_prob)."
            )

        def one(gain: Array, offset: Array, cov: Array, z: Array) -> Array:
            lower = jax.vmap(cholesky)(cov)
            before = jnp.concatenate([jnp.zeros_like(z[:1]), z[:-1]])
            r = (z - offset)[..., None] - gain @ before[..., None]
            return _log_density(lower, jax.vmap(forward)(lower, r)[..., 0])

        return self._each(one, jnp.asarray(z))


def _log_density(lower: Array, e: Array) -> Array:
    return -0.5 * (jnp.sum(jnp.square(e)) + jnp.sum(log_det(lower)) + e.size * LOG_2PI)


def kalman_smoother(model: LinearGaussian, x: Observations, *, mask: Observed = None) -> Any:
    """Return the exact distribution of all states given all the data, one step after another.

        p(z | x) = Π N(zₜ; Aₜ zₜ₋₁ + bₜ, Cₜ),   from p(xₜ₊₁..T | zₜ), backwards

    Draws of it are draws of whole paths, with their log-density: it is a q for any objective, at which every bound is
    log p(x), and a conditional for `targets.collapse`. It takes no inverse of a covariance of states, so marginals stand
    a singular transition_cov (companion forms, deterministic trends) and a diffuse start.

    Args:
        model: a LinearGaussian; its matrices may change in time.
        x: [T, p]; what stands in masked places is not read, nan included.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        A distribution over paths [T, d]: `sample_and_log_prob`, `log_prob`, and `marginals()` -> means [T, d] and
        covariances [T, d, d]. It is a pytree, so vmap may return it, with batch axes in front. Log-densities are nan
        where transition_cov is singular, and everything is nan where the data leave a diffuse direction undetermined.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree; for fewer numbers in x than diffuse directions.

    Reference: Rauch, Tung, Striebel, Maximum likelihood estimates of linear dynamic systems, 1965; Frühwirth-Schnatter,
        Data augmentation and dynamic linear models, 1994, for draws.
    """
    with jax.default_matmul_precision("highest"):
        return _smoothed(_sequential_future, _sequential_path, model, steps(model, x, mask))


def parallel_kalman_smoother(model: LinearGaussian, x: Observations, *, mask: Observed = None) -> Any:
    """Return the exact distribution of all states given all the data, all steps at once.

        p(z | x) = Π N(zₜ; Aₜ zₜ₋₁ + bₜ, Cₜ),   by associative scans of depth O(log T)

    The same as `kalman_smoother` to rounding, for long chains on an accelerator; its draws and marginals are made by
    associative scans too.

    Args:
        model: a LinearGaussian; its matrices may change in time.
        x: [T, p]; what stands in masked places is not read, nan included.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        A distribution over paths [T, d], as of `kalman_smoother`.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree; for fewer numbers in x than diffuse directions.

    Reference: Särkkä, García-Fernández, Temporal parallelization of Bayesian smoothers, 2021, arXiv:1905.13002.
    """
    with jax.default_matmul_precision("highest"):
        return _smoothed(_parallel_future, _parallel_path, model, steps(model, x, mask))


def _smoothed(
    future: Callable[[Element], tuple[Array, Array]],
    path: Callable[[Affine], tuple[Array, Array]],
    model: LinearGaussian,
    s: Steps,
) -> _Paths:
    s = s._replace(offset=s.offset[..., :1], x=s.x[..., :1])
    eta, precision = future(jax.vmap(element)(s))
    gain, offset, cov = jax.vmap(condition)(jax.vmap(element)(s), eta, precision)
    if model.diffuse is not None:
        # The first state is a step from δ, whose own posterior is then added to it.
        first = jax.tree.map(lambda a: a[0], s)._replace(transition=jnp.asarray(model.diffuse, s.cov.dtype))
        start = element(first)
        g, b, c = condition(start, eta[0], precision[0])
        to_delta = pull(start, g, eta[0], precision[0])
        delta, factor, known = flat(to_delta[0][:, 0], to_delta[1])
        half = forward(factor, transpose(g))
        offset = offset.at[0].set(jnp.where(known, b + g @ delta[:, None], jnp.nan))
        cov = cov.at[0].set(jnp.where(known, symmetric(c + transpose(half) @ half), jnp.inf))
    return _Paths(gain, offset[..., 0], cov, path)
