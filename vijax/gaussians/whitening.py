"""What flows ask of any affine map of noise (`types.Affine`), through its derivatives alone."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vijax.trees import own_point
from vijax.types import Affine, PyTree


@runtime_checkable
class AffineDensity(Affine, Protocol):
    """An affine map of noise with its density."""

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), ()."""
        ...


def whiten(gaussian: AffineDensity, z: PyTree, dtype: DTypeLike) -> Float[Array, " n"]:
    """Return Sᵀ Σ⁻¹ (z - loc), which is the noise e that `affine` carries to z where S is square.

    Both factors are derivatives, Σ⁻¹ (z - loc) = -∇ log N(z) and Sᵀ that of `affine`: it costs
    what q's own density does, and nothing is inverted that q does not invert.
    """
    jax.eval_shape(gaussian.log_prob, z)  # which refuses a z that is no draw of the family
    zero = own_point(gaussian.affine, jnp.zeros(gaussian.uniforms, dtype))
    # affine is linear up to loc, so its vjp at any noise is Sᵀ.
    drawn, pull = jax.vjp(gaussian.affine, zero)
    z = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), z, drawn)
    (e,) = pull(jax.grad(lambda z: -gaussian.log_prob(z))(own_point(gaussian.log_prob, z)))
    return e


def location(gaussian: AffineDensity, dtype: DTypeLike) -> PyTree:
    """Return loc, like z."""
    return gaussian.affine(jnp.zeros(gaussian.uniforms, dtype))


def squared_distance(gaussian: AffineDensity, z: PyTree, dtype: DTypeLike) -> Array:
    """Return (z - loc)ᵀ Σ⁻¹ (z - loc), (), from the density's slope: differences would cancel."""
    jax.eval_shape(gaussian.log_prob, z)  # which refuses a z that is no draw of the family
    loc = location(gaussian, dtype)
    z = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), z, loc)
    # -Σ⁻¹ (z - loc), whose product with loc - z is the distance.
    slope = jax.grad(gaussian.log_prob)(own_point(gaussian.log_prob, z))
    inner = jax.tree.map(lambda z, loc, slope: jnp.sum((loc - z) * slope), z, loc, slope)
    return jnp.sum(jnp.stack([s.astype(dtype) for s in jax.tree.leaves(inner)]))
