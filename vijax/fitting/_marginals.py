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
    """Return the unit of each parameter's error: q's own scale for its location, 1 for the rest.

        unit(loc) = exp(log_scale),     unit(anything else) = 1

    A location is known well enough when its error is small beside the posterior's own spread;
    logarithms of scales and relative triangles are numbers without a unit already. This reads
    params as `vijax.families` write them: wherever a dict has `loc` and `log_scale` of the same
    shapes. For others write your own, as a pytree like params.

    Args:
        average: params.

    Returns:
        A pytree like params.

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
    if isinstance(tree, (list, tuple)):
        parts = [_walk(part, of_gaussian, of_leaf) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return jax.tree.map(of_leaf, tree)


def _is_gaussian(tree: Mapping[str, PyTree]) -> bool:
    if not {"loc", "log_scale"} <= set(tree):
        return False
    shapes = [jax.tree.map(jnp.shape, tree[name]) for name in ("loc", "log_scale")]
    return bool(shapes[0] == shapes[1])


def _marginal(gaussian: Mapping[str, PyTree]) -> PyTree:
    """Return loc and log_scale of the marginals of `families.full_rank` or `low_rank`."""
    plain = {"loc": gaussian["loc"], "log_scale": gaussian["log_scale"]}
    for extra, find, own in (("lower", _of_triangle, 1), ("factor", _of_factor, 2)):
        if set(gaussian) == {*plain, extra}:
            for _ in range(jnp.ndim(gaussian[extra]) - own):
                find = jax.vmap(find)
            return plain | {"log_scale": find(gaussian["log_scale"], gaussian[extra])}
    return dict(gaussian)


def _of_triangle(log_scale: PyTree, lower: Array) -> PyTree:
    flat, unravel = ravel_pytree(log_scale)
    rows, columns = jnp.tril_indices(flat.size, -1)
    square = jnp.zeros((flat.size, flat.size), lower.dtype).at[rows, columns].set(lower)
    return unravel(flat + 0.5 * jnp.log1p(jnp.sum(jnp.square(square), 1)))


def _of_factor(log_scale: PyTree, factor: Array) -> PyTree:
    flat, unravel = ravel_pytree(log_scale)
    along = jnp.square(factor * jnp.exp(-flat)[:, None])
    return unravel(flat + 0.5 * jnp.log1p(jnp.sum(along, 1)))
