"""The states given all the data, as a distribution over whole paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax.gaussians.affine import LOG_2PI
from vijax.gaussians.chain import chain_parameters
from vijax.sequences._algebra import (
    after,
    backward,
    before,
    cholesky,
    element,
    forward,
    log_det,
    pull,
    quadratic_form,
    symmetric,
    tell,
    transpose,
)
from vijax.sequences._filter import flat
from vijax.sequences._model import LinearGaussian, Observations, Observed, Steps, steps
from vijax.sequences._scans import Scans, parallel, sequential


@partial(
    jax.tree_util.register_dataclass, data_fields=["gain", "offset", "cov"], meta_fields=["scans"]
)
@dataclass(frozen=True)
class _Paths:
    """A Markov chain, zₜ | zₜ₋₁ ~ N(gainₜ zₜ₋₁ + offsetₜ, covₜ), the first gain 0; draws are [*batch, T, d]."""

    gain: Any  # [*batch, T, d, d]
    offset: Any  # [*batch, T, d]
    cov: Any  # [*batch, T, d, d]
    scans: Any  # sequential or parallel

    # Its solves pivot, which looks like a comparison, and changes no draw.
    reparameterized = True
    fixed_support = True

    def _each(self, function: Callable[..., Any], *args: Array) -> Any:
        function = partial(function, self.scans)
        for _ in self.offset.shape[:-2]:
            function = jax.vmap(function)
        with jax.default_matmul_precision("highest"):
            return function(self.gain, self.offset, self.cov, *args)

    def marginals(self) -> tuple[Array, Array]:
        """Return means [*batch, T, d] and covariances [*batch, T, d, d] of each state given all the data."""
        return self._each(_marginals)

    def parameters(self) -> dict[str, Array]:
        """Return the params of `families.markov` at which it is this distribution, leaves [*batch, T, ...]."""
        return self._each(_parameters)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[Array, Array]:
        """Draw whole paths, and return them with their log-densities, [*sample_shape, *batch]."""
        draw = partial(self._each, _draw)
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(jax.random.normal(seed, (*sample_shape, *self.offset.shape), self.offset.dtype))

    def log_prob(self, z: Float[Array | np.ndarray, "*batch time d"], /) -> Array:
        """Return the log-density of paths, [*batch] in nats."""
        if jnp.shape(z) != self.offset.shape:
            raise ValueError(
                f"z must be one path for each member of the batch, {self.offset.shape}, got "
                f"{jnp.shape(z)}; for several draws use jax.vmap(q.log_prob)."
            )
        return self._each(_log_prob, jnp.asarray(z))


@partial(jax.jit, static_argnums=0)
def _marginals(scans: Scans, gain: Array, offset: Array, cov: Array) -> tuple[Array, Array]:
    means = scans.affine(gain, offset[..., None], False)  # noqa: FBT003
    return means[..., 0], scans.spread(gain, cov)


@partial(jax.jit, static_argnums=0)
def _parameters(scans: Scans, gain: Array, offset: Array, cov: Array) -> dict[str, Array]:
    means, covs = _marginals(scans, gain, offset, cov)
    solve, transposed = jax.vmap(forward), jax.vmap(backward)
    unit = jnp.broadcast_to(jnp.eye(means.shape[1], dtype=means.dtype)[None], covs.shape)
    own, ahead = solve(jax.vmap(cholesky)(covs), unit), jax.vmap(cholesky)(cov[1:])
    # The precision of zₜ given zₜ₊₁: that of zₜ by itself, and Aᵀ C⁻¹ A of the step ahead. Nothing cancels.
    white = solve(ahead, gain[1:])
    precision = transpose(own) @ own
    precision = precision.at[:-1].add(transpose(white) @ white)
    lower = jax.vmap(cholesky)(symmetric(precision))
    # -C⁻¹ A = Lₜ₊₁,ₜ Lₜₜᵀ
    below = -transpose(solve(lower[:-1], transpose(transposed(ahead, white))))
    return chain_parameters(means, lower, below)


@partial(jax.jit, static_argnums=0)
def _draw(scans: Scans, gain: Array, offset: Array, cov: Array, e: Array) -> tuple[Array, Array]:
    # zₜ = gainₜ zₜ₋₁ + offsetₜ + Lₜ eₜ: the noise joins the affine recursion.
    lower = jax.vmap(cholesky)(cov)
    z = scans.affine(gain, offset[..., None] + lower @ e[..., None], False)  # noqa: FBT003
    return z[..., 0], _log_density(lower, e)


@partial(jax.jit, static_argnums=0)
def _log_prob(scans: Scans, gain: Array, offset: Array, cov: Array, z: Array) -> Array:
    # Each state less its mean given the one before, whitened
    lower = jax.vmap(cholesky)(cov)
    residual = (z - offset)[..., None] - gain @ before(z)[..., None]
    return _log_density(lower, jax.vmap(forward)(lower, residual)[..., 0])


def _log_density(lower: Array, e: Array) -> Array:
    return -0.5 * (jnp.sum(jnp.square(e)) + jnp.sum(log_det(lower)) + e.size * LOG_2PI)


def kalman_smoother(model: LinearGaussian, x: Observations, *, mask: Observed = None) -> Any:
    """Return the exact distribution of all states given all the data, one step after another.

        p(z | x) = Π N(zₜ; Aₜ zₜ₋₁ + bₜ, Cₜ),   from p(xₜ₊₁..T | zₜ), backwards

    Its draws are whole paths with their log-density: a q for any objective, at which every bound is
    log p(x), and a conditional for `targets.collapse`.

    Args:
        model: a LinearGaussian; its matrices may change in time. Marginals stand a singular
            transition_cov (companion forms, deterministic trends) and a diffuse start; over many
            thousand steps without noise they drift in float32 (.04 posterior sds after 1,000, 100
            after 10,000): use float64 there.
        x: [T, p]; what stands in masked places is not read, nan included.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        A distribution over paths [T, d]: `sample_and_log_prob`, `log_prob`, and `marginals()` ->
        means [T, d] and covariances [T, d, d]. It is a pytree, so vmap may return it, with batch
        axes in front. Log-densities are nan where transition_cov is singular, and everything is nan
        where the data leave a diffuse direction undetermined.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree; for fewer numbers in x than diffuse
            directions.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> walk = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
        >>> means, covs = kalman_smoother(walk, jnp.array([[2.0], [2.0]])).marginals()
        >>> [round(float(mean), 3) for mean in means[:, 0]]  # 6/5, 8/5
        [1.2, 1.6]

    Reference: Rauch, Tung, Striebel, Maximum likelihood estimates of linear dynamic systems, 1965;
        Frühwirth-Schnatter, Data augmentation and dynamic linear models, 1994, for draws.
    """
    with jax.default_matmul_precision("highest"):
        return _smoother(sequential, model, x, mask)


def parallel_kalman_smoother(
    model: LinearGaussian, x: Observations, *, mask: Observed = None
) -> Any:
    """Return the exact distribution of all states given all the data, all steps at once.

        p(z | x) = Π N(zₜ; Aₜ zₜ₋₁ + bₜ, Cₜ),   by associative scans of depth O(log T)

    Equal to `kalman_smoother` to rounding, for long chains on an accelerator; its draws and
    marginals are made by associative scans too.

    Args:
        model: a LinearGaussian; its matrices may change in time.
        x: [T, p]; what stands in masked places is not read, nan included.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        A distribution over paths [T, d], as of `kalman_smoother`.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree; for fewer numbers in x than diffuse
            directions.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> walk = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
        >>> means, covs = parallel_kalman_smoother(walk, jnp.ones((5, 1))).marginals()
        >>> means.shape, covs.shape
        ((5, 1), (5, 1, 1))

    Reference: Särkkä, García-Fernández, Temporal parallelization of Bayesian smoothers, 2021,
        arXiv:1905.13002.
    """
    with jax.default_matmul_precision("highest"):
        return _smoother(parallel, model, x, mask)


@partial(jax.jit, static_argnums=0)
def _smoother(scans: Scans, model: LinearGaussian, x: Array, mask: Array | None) -> _Paths:
    s = steps(model, x, mask)
    # At δ = 0; a diffuse start comes on top.
    s = s._replace(offset=s.offset[..., :1], x=s.x[..., :1])
    # Each step says something of its state given the one before; later data tell it more.
    elements, mean, eta = jax.vmap(element)(s)
    precision = scans.future(elements)
    # zₜ | zₜ₋₁, all x: its gain and covariance need no data.
    gain, cov = jax.vmap(tell)(elements, precision)
    # What is told of zₜ₋₁ is what is told of zₜ, carried back, and what xₜ says.
    back = transpose(gain)
    # The information vector of later data, an affine recursion backwards
    said = eta - back @ (precision @ mean)
    slope = scans.affine(after(back), after(said), True)  # noqa: FBT003
    offset = (mean + cov @ (slope - precision @ mean))[..., 0]
    if model.diffuse is not None:
        # The start as a step from δ, whose transition is `diffuse`
        first = jax.tree.map(lambda a: a[0], s)
        first = first._replace(transition=jnp.asarray(model.diffuse, s.cov.dtype))
        more_offset, more_cov = _diffuse_start(first, slope[0], precision[0])
        offset, cov = offset.at[0].add(more_offset), cov.at[0].add(more_cov)
    return _Paths(gain, offset, cov, scans)


def _diffuse_start(first: Steps, slope: Array, precision: Array) -> tuple[Array, Array]:
    """Return what δ's own posterior adds to mean and covariance of the first state, a step from δ."""
    e, mean, eta = element(first)
    gain, _ = tell(e, precision)
    told = eta + transpose(gain) @ (slope - precision @ mean)
    delta, factor, known = flat(told[:, 0], pull(e, gain, precision))
    offset = jnp.where(known, gain @ delta[:, None], jnp.nan)[:, 0]
    cov = jnp.where(known, symmetric(quadratic_form(factor, gain)), jnp.inf)
    return offset, cov
