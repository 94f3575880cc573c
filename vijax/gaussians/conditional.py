"""The Gaussian by the root of its precision: conditionals of linear-Gaussian parts of a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax.gaussians._precision import Precision
from vijax.gaussians.affine import LOG_2PI
from vijax.types import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, Λ⁻¹) over a pytree, by the root of its precision: collapse_gaussian's conditional.

        b = mean + L⁻ᵀ ε,     log N(b) = ½ log |Λ| - ½ ‖Lᵀ (b - mean)‖² - d/2 log 2π,     Λ = L Lᵀ

    A pytree of arrays: jax.vmap over whatever makes one gives one with a batch.

    Args:
        mean: a pytree of floats, leaves [*batch, ...].
        root: L, as `precision` keeps it.
        precision: `dense`, `diagonal` or `tridiagonal`.

    Example:
        >>> prior = Gaussian(jnp.zeros(2), jnp.ones(2), vj.gaussians.diagonal)
        >>> round(float(prior.log_prob(jnp.zeros(2))), 3)  # -log 2π
        -1.838
    """

    fixed_support = True

    mean: PyTree
    root: Any
    precision: Precision = field(metadata={"static": True})

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log N(z; mean, Λ⁻¹), [*batch] in nats."""
        half_log_det = self.precision.half_log_det(self.root)
        join, _ = ravel_after(self.mean, half_log_det.ndim, self.precision.kept)
        # Lᵀ (z - mean) is standard normal; everything after the batch belongs to one draw.
        white = self.precision.pull(self.root, join(z) - join(self.mean))
        axes = tuple(range(half_log_det.ndim, white.ndim))
        size = math.prod(white.shape[half_log_det.ndim :])
        return half_log_det - 0.5 * (jnp.sum(jnp.square(white), axes) + size * LOG_2PI)

    def center(self) -> PyTree:
        """Return the mean."""
        return self.mean

    def sample_and_log_prob(
        self, *, seed: Key[Array, ""], sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw z and return it with its log-density."""
        draw = self._draw
        for _ in tuple(sample_shape):
            draw = jax.vmap(draw)
        return draw(jax.random.split(seed, tuple(sample_shape)) if sample_shape else seed)

    def _draw(self, key: Key[Array, ""]) -> tuple[PyTree, Array]:
        # The root alone says how many axes are a batch.
        batch = jax.eval_shape(self.precision.half_log_det, self.root).ndim
        join, split = ravel_after(self.mean, batch, self.precision.kept)
        mean = join(self.mean)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        z = split(mean + self.precision.push(self.root, noise))
        return z, self.log_prob(z)


# z -> vector, and back.
Join = Callable[[PyTree], Array]
Split = Callable[[Array], PyTree]


def ravel_after(like: PyTree, batch: int, kept: int) -> tuple[Join, Split]:
    """Return (join, split): a pytree to one vector for each member of a batch, and its inverse.

    Args:
        like: leaves [*batch, *kept, ...], of which the last axes are flattened.
        batch: rank of [*batch].
        kept: how many axes stay between the batch and the vector.
    """
    leaves, tree = jax.tree.flatten(like)
    lead = batch + kept
    shapes = [tuple(jnp.shape(leaf)) for leaf in leaves]
    sizes = [math.prod(shape[lead:]) for shape in shapes]
    # Where each leaf begins in the vector.
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def flat(leaf: Array) -> Array:
        return jnp.reshape(leaf, (*leaf.shape[:lead], math.prod(leaf.shape[lead:])))

    def join(z: PyTree) -> Array:
        return jnp.concatenate([flat(leaf) for leaf in jax.tree.leaves(z)], -1)

    def split(v: Array) -> PyTree:
        parts = [
            jnp.reshape(v[..., start : start + size], (*v.shape[:-1], *shape[lead:]))
            for start, size, shape in zip(starts, sizes, shapes, strict=True)
        ]
        return jax.tree.unflatten(tree, parts)

    return join, split
