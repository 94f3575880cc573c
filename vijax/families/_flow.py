"""A flow of normal noise, then the affine map of a Gaussian family: what the flows here share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vijax import checks
from vijax.families._gaussian import affine_member, fields
from vijax.gaussians.affine import standard_quantile
from vijax.gaussians.whitening import location, whiten
from vijax.types import Family, PyTree

# x -> (y, log |det ∂y/∂x|), both of [d]
Map = Callable[[Array], tuple[Array, Array]]


class _Flow:
    """z = loc + S T(e) with e standard normal; batch shape ().

    Args:
        gaussian: a member of a Gaussian family, for `affine` and `log_prob`: loc + S e.
        forward: e -> (T(e), log |det ∂T/∂e|).
        inverse: x -> (e, log |det ∂T/∂e|) with T(e) = x.
        dtype: of the noise.
    """

    fixed_support = True

    def __init__(self, gaussian: PyTree, forward: Map, inverse: Map, dtype: np.dtype[Any]):
        self._gaussian, self._forward, self._inverse, self._dtype = (
            gaussian,
            forward,
            inverse,
            dtype,
        )
        self.uniforms = gaussian.uniforms

    def transport(self, u: Float[Array, " d"]) -> PyTree:
        """Carry uniforms to a draw, smoothly in the parameters."""
        e = standard_quantile(u, self._dtype)
        return self._gaussian.affine(self._forward(e)[0])

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        def one(e: Array) -> tuple[PyTree, Array]:
            x, log_det = self._forward(e)
            return self._gaussian.affine(x), self._density(e, log_det)

        for _ in sample_shape:
            one = jax.vmap(one)
        return one(jax.random.normal(seed, (*sample_shape, *self.uniforms), self._dtype))

    def log_prob(self, z: PyTree, /) -> Array:
        # e from z: through S first, then the layers backwards
        return self._density(*self._inverse(whiten(self._gaussian, z, self._dtype)))

    def _density(self, e: Array, log_det: Array) -> Array:
        # The Gaussian's density at its own location is -log |det S| - d/2 log 2π.
        of_loc = self._gaussian.log_prob(location(self._gaussian, self._dtype))
        return of_loc - 0.5 * jnp.sum(jnp.square(e)) - log_det


def size(base: Family, params: PyTree, flow: str) -> int:
    """Return how many latents a Gaussian base has; refuse one that no flow can be inverted through."""
    gaussian = affine_member(base, params, flow)
    # More noise than latents, as of low_rank, has no inverse.
    drawn = jax.eval_shape(lambda: ravel_pytree(gaussian.affine(jnp.zeros(gaussian.uniforms)))[0])
    if gaussian.uniforms != drawn.shape:
        raise ValueError(
            f"base of {flow} must have as many numbers of noise as latents, got "
            f"{gaussian.uniforms[0]} for {drawn.size}: low_rank has more. Use full_rank, or "
            "mean_field for many latents."
        )
    return int(drawn.size)


def over(
    base: Family,
    flow: str,
    init: Callable[[Array, int, Any], PyTree],
    maps: Callable[..., tuple[Map, Map]],
) -> Family:
    """Return the family of a base's affine maps after a flow.

    Args:
        base: a Gaussian family.
        flow: name of the flow, for errors.
        init: (key, d, dtype) -> parameters of its layers.
        maps: (those parameters, d) -> (forward, inverse).
    """
    checks.family(base, "base")

    def start(key: Array, like: PyTree) -> PyTree:
        # The base starts alone; layers at zero are the identity.
        of_base, of_layers = jax.random.split(key)
        params = base.init(of_base, like)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return {"base": params, "layers": init(of_layers, size(base, params, flow), dtype)}

    def dist(params: PyTree) -> _Flow:
        fields(params, flow, "base", "layers")
        d = size(base, params["base"], flow)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return _Flow(base.dist(params["base"]), *maps(params["layers"], d), dtype)

    return Family(start, dist)


def positive(**counts: int) -> None:
    """Refuse counts that are not whole numbers of at least 1."""
    for name, count in counts.items():
        checks.static_count(count, name)
