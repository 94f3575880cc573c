"""Gaussian families over any pytree of latents, with parameters in a plain pytree."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vijax import checks
from vijax.families._moments import Moments, entropy, kl_divergence
from vijax.types import Family, PyTree

# distrax's diagonal Gaussians keep bound methods of the original object, so building one under vmap leaks tracers, and
# its low-rank one has the same fault; these few lines have neither, and offer `transport` for coupled draws.


class _Gaussian:
    """z = loc + S e with e standard normal; a subclass of map, given as functions, decides what S is.

    Args:
        unravel: [d] -> the latents' pytree.
        noise: length of e.
        push: e -> z as a vector.
        log_density: z as a vector -> log q(z).
        moments: what closed forms between Gaussians ask for, in the order of the vector.
    """

    def __init__(
        self,
        unravel: Callable[[Array], PyTree],
        noise: int,
        push: Callable[[Array], Array],
        log_density: Callable[[Array], Array],
        moments: Callable[[], Moments],
    ):
        self._unravel, self._push, self._log_density, self._moments = unravel, push, log_density, moments
        self.uniforms = (noise,)
        self._dtype = jax.eval_shape(push, jnp.zeros(noise, jnp.int8)).dtype  # that of the parameters, of any float

    def transport(self, u: Float[Array, " n"]) -> PyTree:
        """Carry uniforms to a draw, smoothly in the parameters."""
        u = u.astype(jnp.promote_types(self._dtype, jnp.float32))
        tiny = jnp.finfo(u.dtype).tiny
        e = jax.scipy.special.ndtri(jnp.clip(u, tiny, 1 - jnp.finfo(u.dtype).epsneg))
        return self._unravel(self._push(e.astype(self._dtype)))

    def affine(self, e: Float[Array, " n"]) -> PyTree:
        """Carry standard normal noise to a draw, loc + S e; `uniforms` is the noise's shape."""
        return self._unravel(self._push(e))

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[PyTree, Array]:
        def one(e: Array) -> tuple[PyTree, Array]:
            z = self._push(e)
            return self._unravel(z), self._log_density(z)

        for _ in sample_shape:
            one = jax.vmap(one)
        return one(jax.random.normal(seed, (*sample_shape, *self.uniforms), self._dtype))

    def entropy(self) -> Array:
        return entropy(self._moments())

    def kl_divergence(self, other: Any) -> Array:
        if not isinstance(other, _Gaussian):
            raise NotImplementedError(f"a Gaussian family knows no divergence from a {type(other).__name__}.")
        if self._drawn() != other._drawn():
            raise ValueError(f"q draws {self._drawn()} and the prior {other._drawn()}; they must be alike.")
        return kl_divergence(self._moments(), other._moments())

    def _drawn(self) -> PyTree:
        drawn = jax.eval_shape(lambda e: self._unravel(self._push(e)), jnp.zeros(self.uniforms, self._dtype))
        return jax.tree.map(jnp.shape, drawn)

    def log_prob(self, z: PyTree, /) -> Array:
        leaves = jax.tree_util.tree_leaves_with_path
        shapes = lambda tree: [(jax.tree_util.keystr(path), jnp.shape(leaf)) for path, leaf in leaves(tree)]  # noqa: E731
        drawn = jax.eval_shape(lambda e: self._unravel(self._push(e)), jnp.zeros(self.uniforms, self._dtype))
        if shapes(z) != shapes(drawn):
            raise ValueError(
                f"z must be one draw of this family, {jax.tree.map(jnp.shape, drawn)}, got "
                f"{jax.tree.map(jnp.shape, z)}; for several draws use jax.vmap(q.log_prob)."
            )
        return self._log_density(ravel_pytree(z)[0])


def _ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """Return the leaves as one vector, and its inverse."""
    vector, unravel = ravel_pytree(tree)
    # A weak dtype, as jnp.array(0.1) has it, would yield to that of whatever noise is tried: half precision.
    return jax.lax.convert_element_type(vector, vector.dtype), unravel


def _start(like: PyTree) -> tuple[Array, PyTree]:
    for leaf in jax.tree.leaves(like):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"a Gaussian family cannot hold a leaf of dtype {jnp.result_type(leaf)}: start from floats, 2.0 for 2; "
                "or give a discrete leaf a discrete q."
            )
    vector, _ = _ravel(like)
    if vector.size == 0:
        raise TypeError(
            f"a Gaussian family needs floating latents of at least one element, got {jax.tree.map(jnp.shape, like)}."
        )
    return vector, jax.tree.map(lambda l: jax.lax.convert_element_type(l, jnp.result_type(l)), like)


_LOG_2PI = math.log(2 * math.pi)


def _log(scale: float) -> float:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, the initial standard deviation, got {scale}.")
    return math.log(scale)


def mean_field(*, scale: float = 0.1) -> Family:
    """Independent Gaussians over every element of the latents.

        q(z) = Π_d N(z_d; m_d, s_d²),   params {"loc": like z, "log_scale": like z}

    The first thing to try, and cheap at any size; it understates the spread of correlated posteriors.

    Args:
        scale: initial standard deviation.

    Returns:
        Family: `init(key, like)` starts at the values of `like` (the key is not needed), `dist(params)` has batch
        shape ().

    Raises:
        TypeError: (init) for latents that are not floating.
        ValueError: for a scale that is not positive.

    Reference: Kucukelbir, Tran, Ranganath, Gelman, Blei, Automatic differentiation variational inference, 2017,
        arXiv:1603.00788.
    """
    log_start = _log(scale)

    def init(key: Any, like: PyTree) -> PyTree:
        _, like = _start(like)
        return {"loc": like, "log_scale": jax.tree.map(lambda l: jnp.full_like(l, log_start), like)}

    def dist(params: PyTree) -> _Gaussian:
        loc, unravel = _ravel(params["loc"])
        log_scale, _ = _ravel(params["log_scale"])
        density = lambda z: jnp.sum(-0.5 * jnp.square((z - loc) * jnp.exp(-log_scale)) - log_scale - 0.5 * _LOG_2PI)  # noqa: E731
        moments = lambda: Moments(  # noqa: E731
            loc,
            jnp.sum(log_scale),
            jnp.exp(2 * log_scale),
            jnp.zeros((loc.size, 0), loc.dtype),
            lambda r: jnp.sum(jnp.square(r * jnp.exp(-log_scale))),
            lambda: jnp.exp(-2 * log_scale),
        )
        return _Gaussian(unravel, loc.size, lambda e: loc + jnp.exp(log_scale) * e, density, moments)

    return Family(init, dist)


def full_rank(*, scale: float = 0.1) -> Family:
    """One Gaussian over all latents with a dense covariance.

        q(z) = N(z; m, L Lᵀ),   L = diag(s) (I + strictly lower triangle)

    For up to a few hundred correlated latents: d(d+1)/2 parameters. The triangle is kept relative to the scales, the
    parameterisation whose fits stay stable at step sizes where a free triangle diverges.

    Args:
        scale: initial standard deviation, without correlation.

    Returns:
        Family: `init(key, like)` starts at the values of `like` (the key is not needed), `dist(params)` has batch
        shape ().

    Raises:
        TypeError: (init) for latents that are not floating.
        ValueError: for a scale that is not positive.

    Reference: Titsias, Lázaro-Gredilla, Doubly stochastic variational Bayes for non-conjugate inference, 2014.
    """
    log_start = _log(scale)

    def init(key: Any, like: PyTree) -> PyTree:
        vector, like = _start(like)
        d = vector.size
        return {
            "loc": like,
            "log_scale": jax.tree.map(lambda l: jnp.full_like(l, log_start), like),
            "lower": jnp.zeros(d * (d - 1) // 2, vector.dtype),
        }

    def dist(params: PyTree) -> _Gaussian:
        loc, unravel = _ravel(params["loc"])
        log_scale, _ = _ravel(params["log_scale"])
        unit = jnp.eye(loc.size, dtype=loc.dtype).at[jnp.tril_indices(loc.size, -1)].set(params["lower"])
        push = lambda e: loc + jnp.exp(log_scale) * (unit @ e)  # noqa: E731

        def pull(r: Array) -> Array:
            scaled = r * jnp.exp(-log_scale)
            return jax.scipy.linalg.solve_triangular(unit, scaled, lower=True, unit_diagonal=True)

        density = lambda z: jnp.sum(-0.5 * jnp.square(pull(z - loc)) - log_scale - 0.5 * _LOG_2PI)  # noqa: E731
        moments = lambda: Moments(  # noqa: E731
            loc,
            jnp.sum(log_scale),
            jnp.zeros_like(loc),
            jnp.exp(log_scale)[:, None] * unit,
            lambda r: jnp.sum(jnp.square(pull(r))),
            lambda: jnp.sum(jnp.square(jax.vmap(pull)(jnp.eye(loc.size, dtype=loc.dtype))), 1),
        )
        return _Gaussian(unravel, loc.size, push, density, moments)

    return Family(init, dist)


def low_rank(*, rank: int, scale: float = 0.1) -> Family:
    """One Gaussian over all latents whose covariance is a diagonal plus a few directions.

        q(z) = N(z; m, diag(s)² + F Fᵀ),   F [d, rank]

    When the latents are too many for `full_rank` and too correlated for `mean_field`: (2 + rank) d parameters, and
    O(d rank²) to evaluate.

    Args:
        rank: number of directions.
        scale: initial standard deviation; the directions start random, a tenth of it in size.

    Returns:
        Family: `init(key, like)` starts at the values of `like`, `dist(params)` has batch shape ().

    Raises:
        TypeError: for a rank that is no whole number; (init) for latents that are not floating.
        ValueError: for rank < 1, and a scale that is not positive.

    Reference: Ong, Nott, Smith, Gaussian variational approximation with a factor covariance structure, 2018,
        arXiv:1701.03208.
    """
    checks.whole(rank, "rank", "; rank 0 is mean_field")
    log_start = _log(scale)

    def init(key: Any, like: PyTree) -> PyTree:
        vector, like = _start(like)
        factor = 0.1 * scale * jax.random.normal(key, (vector.size, rank), vector.dtype)
        return {
            "loc": like,
            "log_scale": jax.tree.map(lambda l: jnp.full_like(l, log_start), like),
            "factor": factor,
        }

    def dist(params: PyTree) -> _Gaussian:
        loc, unravel = _ravel(params["loc"])
        log_scale, _ = _ravel(params["log_scale"])
        factor = params["factor"]
        # In units of the diagonal: covariance I + G Gᵀ, inverted through the small matrix I + Gᵀ G (Woodbury).
        g = factor * jnp.exp(-log_scale)[:, None]
        # LAPACK has no half precision.
        gram = (jnp.eye(factor.shape[1], dtype=g.dtype) + g.T @ g).astype(jnp.promote_types(g.dtype, jnp.float32))
        small = jnp.linalg.cholesky(gram).astype(g.dtype)
        push = lambda e: loc + jnp.exp(log_scale) * e[: loc.size] + factor @ e[loc.size :]  # noqa: E731

        log_det = jnp.sum(log_scale) + jnp.sum(jnp.log(jnp.diag(small)))
        solve = lambda x: jax.scipy.linalg.solve_triangular(small, x, lower=True)  # noqa: E731

        def square(r: Array) -> Array:
            r = r * jnp.exp(-log_scale)
            return jnp.sum(jnp.square(r)) - jnp.sum(jnp.square(solve(g.T @ r)))

        density = lambda z: -0.5 * (square(z - loc) + loc.size * _LOG_2PI) - log_det  # noqa: E731
        moments = lambda: Moments(  # noqa: E731
            loc,
            log_det,
            jnp.exp(2 * log_scale),
            factor,
            square,
            lambda: jnp.exp(-2 * log_scale) * (1 - jnp.sum(jnp.square(solve(g.T)), 0)),
        )
        return _Gaussian(unravel, loc.size + factor.shape[1], push, density, moments)

    return Family(init, dist)
