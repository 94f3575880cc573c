"""Gaussians as affine maps of standard normal noise, z = loc + S e: noise, root, distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vijax.types import PyTree

# Every fit of a mean-field q makes a draw and its log-density at each step: both stay in this file.

LOG_2PI = math.log(2 * math.pi)


# --- standard normal noise


def standard_log_density(
    e: Float[Array, "*batch n"],
    log_scale: Array | float = 0.0,
) -> Float[Array, "*batch"]:
    """Return log N(e; 0, I) in nats; with log_scale like e, log-density of exp(log_scale) ⊙ e.

    All terms are in one sum: in half precision each further sum would be rounded by itself.
    """
    return jnp.sum(-0.5 * jnp.square(e) - log_scale - 0.5 * LOG_2PI, -1)


def standard_quantile(u: Float[Array, " n"], dtype: DTypeLike) -> Float[Array, " n"]:
    """Carry uniforms to standard normal noise of a dtype, finite at 0 and 1 too."""
    u = u.astype(jnp.promote_types(dtype, jnp.float32))  # half precision has few numbers near 1
    # At 0 or 1 itself the quantile is infinite.
    limits = jnp.finfo(u.dtype)
    e = jax.scipy.special.ndtri(jnp.clip(u, limits.tiny, 1 - limits.epsneg))
    return e.astype(dtype)


# --- roots of a covariance


@runtime_checkable
class Root(Protocol):
    """A root S [d, n] of a covariance Σ = S Sᵀ; each class takes advantage of its own structure."""

    @property
    def log_scale(self) -> Float[Array, " d"]:
        """Return log s, the units of each element in which the rest of the root is written."""
        ...

    def noise_size(self) -> int:
        """Return n, the length of e."""
        ...

    def push(self, loc: Float[Array, " d"], e: Float[Array, " n"]) -> Float[Array, " d"]:
        """Return loc + S e."""
        ...

    def log_density(self, r: Float[Array, " d"], e: Float[Array, " n"] | None = None) -> Array:
        """Return log N(r; 0, Σ), (), using an e with S e = r where that is more accurate."""
        ...

    def half_log_det(self) -> Array:
        """Return ½ log |Σ|, ()."""
        ...

    def square(self, r: Float[Array, " d"]) -> Array:
        """Return rᵀ Σ⁻¹ r, ()."""
        ...

    def precisions(self) -> Float[Array, " d"]:
        """Return the diagonal of Σ⁻¹."""
        ...

    def variances(self) -> Float[Array, " d"]:
        """Return the diagonal of Σ."""
        ...

    def expected_square(self, prior: "Root") -> Array:
        """Return E[rᵀ Σₚ⁻¹ r] for r ~ N(0, Σ), () = tr Σₚ⁻¹ Σ."""
        ...


class DiagonalRoot(NamedTuple):
    """S = diag(s): independent elements."""

    log_scale: Array

    def noise_size(self) -> int:
        """Return d."""
        return int(self.log_scale.shape[0])

    def push(self, loc: Array, e: Array) -> Array:
        """Return loc + S e."""
        return loc + jnp.exp(self.log_scale) * e

    def log_density(self, r: Array, e: Array | None = None) -> Array:
        """Return log N(r; 0, Σ)."""
        return standard_log_density(r * jnp.exp(-self.log_scale), self.log_scale)

    def half_log_det(self) -> Array:
        """Return ½ log |Σ|."""
        return jnp.sum(self.log_scale)

    def square(self, r: Array) -> Array:
        """Return rᵀ Σ⁻¹ r."""
        return jnp.sum(jnp.square(r * jnp.exp(-self.log_scale)))

    def precisions(self) -> Array:
        """Return the diagonal of Σ⁻¹."""
        return jnp.exp(-2 * self.log_scale)

    def variances(self) -> Array:
        """Return the diagonal of Σ."""
        return jnp.exp(2 * self.log_scale)

    def expected_square(self, prior: Root) -> Array:
        """Return tr Σₚ⁻¹ Σ, from both diagonals."""
        return jnp.sum(self.variances() * prior.precisions())


# --- the distribution


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AffineGaussian:
    """Gaussian over a pytree as an affine map of noise: made by Gaussian families and `pathfinder`.

        z = loc + S e,   e ~ N(0, I),     q(z) = N(z; loc, S Sᵀ)

    It is a pytree of arrays: it passes through jit, vmap and grad. Batch shape ().

    Fields:
        loc: the mean, like z.
        root: S, over the elements of z in the order of its leaves.

    Example:
        >>> q = AffineGaussian(jnp.array([1.0, 2.0]), DiagonalRoot(jnp.zeros(2)))
        >>> round(float(q.log_prob(q.loc)), 3)  # -log 2π
        -1.838
    """

    fixed_support = True

    loc: PyTree
    root: Root

    @property
    def uniforms(self) -> tuple[int, ...]:
        """Return the shape of the noise of `affine`, and of the uniforms of `transport`."""
        return (self.root.noise_size(),)

    @property
    def dtype(self) -> Any:
        """Return the dtype of the noise: that of the parameters."""
        return jnp.result_type(*jax.tree.leaves((self.loc, self.root)))

    def affine(self, e: Float[Array, " n"]) -> PyTree:
        """Carry standard normal noise to a draw, loc + S e."""
        loc, unravel = ravel_pytree(self.loc)
        return unravel(self.root.push(loc, e))

    def transport(self, u: Float[Array, " n"]) -> PyTree:
        """Carry uniforms to a draw, smoothly in the parameters."""
        return self.affine(standard_quantile(u, self.dtype))

    def draw(self, e: Float[Array, " n"]) -> tuple[PyTree, Array]:
        """Carry standard normal noise to a draw, with log q of it, () in nats."""
        loc, unravel = ravel_pytree(self.loc)
        # e is kept: log q of it needs no solve.
        z = self.root.push(loc, e)
        return unravel(z), self.root.log_density(z - loc, e)

    def sample_and_log_prob(
        self, *, seed: Key[Array, ""], sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw z and return it with its log-density."""
        draw = self.draw
        for _ in sample_shape:
            draw = jax.vmap(draw)
        # All noise in one call, [*sample_shape, n], then draw by draw.
        return draw(jax.random.normal(seed, (*sample_shape, *self.uniforms), self.dtype))

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), () in nats."""
        if _shapes(z) != _shapes(self.loc):
            raise ValueError(
                f"z must be one draw of this family, {jax.tree.map(jnp.shape, self.loc)}, got "
                f"{jax.tree.map(jnp.shape, z)}; for several draws use jax.vmap(q.log_prob)."
            )
        return self.root.log_density(ravel_pytree(z)[0] - ravel_pytree(self.loc)[0])

    def variance(self) -> PyTree:
        """Return the variance of each element, like z."""
        return ravel_pytree(self.loc)[1](self.root.variances())

    def entropy(self) -> Array:
        """Return H[q], () in nats: ½ log |Σ| + d/2 (1 + log 2π)."""
        return self.root.half_log_det() + 0.5 * self.root.log_scale.size * (1 + LOG_2PI)

    def kl_divergence(self, other: object) -> Array:
        """Return KL(q ‖ p), () in nats: ½ (tr Σₚ⁻¹ Σ + ‖m - mₚ‖² - d + log |Σₚ| - log |Σ|)."""
        if not isinstance(other, AffineGaussian):
            kind = type(other).__name__
            raise NotImplementedError(f"a Gaussian family knows no divergence from a {kind}.")
        drawn, others = (jax.tree.map(jnp.shape, q.loc) for q in (self, other))
        if drawn != others:
            raise ValueError(f"q draws {drawn} and the prior {others}; they must be alike.")
        root, prior = self.root, other.root
        difference = ravel_pytree(self.loc)[0] - ravel_pytree(other.loc)[0]
        total = prior.square(difference) - difference.size
        total = total + root.expected_square(prior)
        return 0.5 * total + prior.half_log_det() - root.half_log_det()


def _shapes(tree: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), jnp.shape(leaf)) for path, leaf in leaves]
