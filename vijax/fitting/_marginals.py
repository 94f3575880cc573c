"""Params of Gaussian families as they are judged: by each latent's own mean and standard deviation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax.types import PyTree


def marginals(params: PyTree) -> PyTree:
    """Return params in which every dense Gaussian is the mean-field one of the same marginals.

    A triangle's entries are many, and need not be known for q to be: what is asked of a fit is the
    mean and the standard deviation of each latent. Leaves may have leading axes, as of restarts.
    """
    return _walk(params, _marginal)


def scale_units(average: PyTree) -> PyTree:
    """The unit of each parameter's error: q's own scale for its location, 1 for the rest.

        unit(loc) = exp(log_scale),     unit(anything else) = 1

    A location is known well enough when its error is small beside the posterior's own spread. It reads
    the params of `vijax.families`; for others write your own.

    Args:
        average: params; wherever a dict has `loc` and `log_scale` of the same shapes, those are of a
            Gaussian. Logarithms of scales and relative triangles have no unit already.

    Returns:
        A pytree like params.

    Example:
        >>> params = {"loc": jnp.zeros(2), "log_scale": jnp.log(jnp.array([1.0, 2.0]))}
        >>> units = scale_units(params)
        >>> units["loc"].tolist(), units["log_scale"].tolist()
        ([1.0, 2.0], [1.0, 1.0])

    Reference: Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box
        variational inference, 2022, arXiv:2203.15945.
    """

    def units(gaussian: Mapping[str, PyTree]) -> PyTree:
        ones = jax.tree.map(jnp.ones_like, dict(gaussian))
        return ones | {"loc": jax.tree.map(jnp.exp, gaussian["log_scale"])}

    return _walk(average, units, jnp.ones_like)


def _walk(
    tree: PyTree,
    of_gaussian: Callable[[Mapping[str, PyTree]], PyTree],
    of_leaf: Callable[[Any], Any] = lambda leaf: leaf,
) -> PyTree:
    """Map the Gaussians of a pytree of params by one function, and all other leaves by another."""
    if isinstance(tree, Mapping):
        if _is_gaussian(tree):
            return of_gaussian(tree)
        return {name: _walk(part, of_gaussian, of_leaf) for name, part in tree.items()}
    # A named tuple takes its parts one by one.
    if isinstance(tree, (list, tuple)):
        parts = [_walk(part, of_gaussian, of_leaf) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return jax.tree.map(of_leaf, tree)


def _is_gaussian(tree: Mapping[str, PyTree]) -> bool:
    """Whether a dict is the params of a Gaussian, by its names and the shapes of two of its leaves."""
    if not {"loc", "log_scale"} <= set(tree):
        return False
    # A family of one's own may mean something else by the names.
    shapes = [jax.tree.map(jnp.shape, tree[name]) for name in ("loc", "log_scale")]
    return bool(shapes[0] == shapes[1])


def _marginal(gaussian: Mapping[str, PyTree]) -> PyTree:
    """Return loc and log_scale of the marginals of `families.full_rank` or `low_rank`."""
    plain = {"loc": gaussian["loc"], "log_scale": gaussian["log_scale"]}
    for extra, find, own in (("lower", _of_triangle, 1), ("factor", _of_factor, 2)):
        if set(gaussian) == {*plain, extra}:
            # One vmap for each leading axis, as of restarts or of a mixture's components.
            for _ in range(jnp.ndim(gaussian[extra]) - own):
                find = jax.vmap(find)
            return plain | {"log_scale": find(gaussian["log_scale"], gaussian[extra])}
    return dict(gaussian)


def _of_triangle(log_scale: PyTree, lower: Array) -> PyTree:
    """Return the log standard deviations of a full-rank q, whose L = diag(scale) (I + lower)."""
    flat, unravel = ravel_pytree(log_scale)
    rows, columns = jnp.tril_indices(flat.size, -1)
    # sdᵢ² = scaleᵢ² (1 + Σⱼ lowerᵢⱼ²), from the triangle's entries in their order.
    square = jnp.zeros((flat.size, flat.size), lower.dtype).at[rows, columns].set(lower)
    return unravel(flat + 0.5 * jnp.log1p(jnp.sum(jnp.square(square), 1)))


def _of_factor(log_scale: PyTree, factor: Array) -> PyTree:
    """Return the log standard deviations of a low-rank q, of covariance diag(scale²) + factor factorᵀ."""
    flat, unravel = ravel_pytree(log_scale)
    # sdᵢ² = scaleᵢ² (1 + Σⱼ (factorᵢⱼ / scaleᵢ)²).
    along = jnp.square(factor * jnp.exp(-flat)[:, None])
    return unravel(flat + 0.5 * jnp.log1p(jnp.sum(along, 1)))
