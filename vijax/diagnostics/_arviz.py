"""Draws of q as ArviZ's DataTree, so that its tables and plots work on them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from vijax.checks import named_leaves
from vijax.diagnostics._runs import as_runs, taken_alike
from vijax.types import Draws, Estimate, PyTree


def to_arviz(
    draws: Draws | Estimate,
    *,
    constrain: Callable[[PyTree], PyTree] | None = None,
    observed: PyTree = None,
    predictive: PyTree = None,
    log_likelihood: PyTree = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
) -> Any:
    """Draws of q as ArviZ's DataTree; restarts become its chains.

        posterior z ~ q,   sample_stats: log p(x, z), log q(z), log w

    For ArviZ's tables and plots, and `arviz_stats.loo_approximate_posterior(tree, log_p, log_q)`. They take every draw
    alike: the posterior group is q's, not corrected by the weights.

    Args:
        draws: or the Estimate of an objective, with log_w [k], or [runs, k] of restarts as jax.vmap makes them; strata
            are resampled by their weights.
        constrain: one draw of z -> latents, such as `Transformed.constrain`; the posterior group then holds the
            latents, and unconstrained_posterior z in unconstrained space.
        observed: the data, a pytree of arrays.
        predictive: as `predictive` makes it, a pytree of [k, ...], or [runs, k, ...].
        log_likelihood: of each datum under each draw, a pytree of [k, ...], or [runs, k, ...], in nats.
        coords: labels of dimensions, {dimension: labels}, as ArviZ takes them.
        dims: dimensions of latents, {latent: [dimension, ...]}, as ArviZ takes them.

    Returns:
        xarray.DataTree, in double precision where the draws are.

    Raises:
        ImportError: without arviz-base: pip install "vijax-toolkit[diagnostics]".
        ValueError: for draws without z, or of a batch of posteriors (more runs than draws), or of a minibatch, leaves
            that are not of as many draws, and latents that are named as a dimension is: `chain`, `draw`, one of
            dims, or theta_dim_0 beside theta.

    Example:
        >>> draws = vj.types.Draws({"theta": jnp.zeros((4, 2))}, jnp.zeros(4), jnp.zeros(4))
        >>> to_arviz(draws)["posterior"]["theta"].shape  # one chain of four draws
        (1, 4, 2)

    Reference: Kumar, Carroll, Hartikainen, Martin, ArviZ a unified library for exploratory analysis of Bayesian models
        in Python, 2019.
    """
    try:
        import arviz_base
    except ImportError as error:
        raise ImportError(
            'to_arviz needs arviz-base: pip install "vijax-toolkit[diagnostics]".'
        ) from error

    # [runs, k]: ArviZ knows no weights of draws, so strata are resampled by theirs.
    runs = as_runs(draws)
    alike = taken_alike(runs)

    def take(leaf: Array) -> Array:
        return leaf if alike is None else jax.vmap(lambda a, chosen: a[chosen])(leaf, alike)

    runs = jax.tree.map(take, runs._replace(weights=None))
    groups: dict[str, PyTree] = {"posterior": runs.z}
    if constrain is not None:
        groups = {
            "posterior": jax.vmap(jax.vmap(constrain))(runs.z),
            "unconstrained_posterior": runs.z,
        }
    # One number for each draw, as loo_approximate_posterior reads them.
    groups["sample_stats"] = {
        "log_p": runs.log_p,
        "log_q": runs.log_q,
        "log_w": runs.log_w,
    }
    for name, tree in (("posterior_predictive", predictive), ("log_likelihood", log_likelihood)):
        if tree is not None:
            groups[name] = jax.tree.map(take, _like(tree, runs.log_w, name))
    if observed is not None:
        groups["observed_data"] = observed
    # A bare array is named z where it is a latent and x where it is data.
    of_data = ("posterior_predictive", "log_likelihood", "observed_data")
    data = {
        group: _arrays(tree, "x" if group in of_data else "z") for group, tree in groups.items()
    }
    made = arviz_base.from_dict(
        data, coords=coords, dims=dims, attrs={"/": {"inference_library": "vijax"}}
    )
    # ArviZ turns a variable that is named as a dimension into a coordinate without a word.
    for group, arrays in data.items():
        lost = sorted(set(arrays) - set(made[group].data_vars))
        if lost:
            raise ValueError(
                f"leaf '{lost[0]}' of {group} has the name of a dimension, and ArviZ would drop "
                "it: give the leaf another name, as constrain may, or the dimension, by dims=."
            )
    return made


def _like(tree: PyTree, log_w: Array, what: str) -> PyTree:
    """Return a tree whose leaves begin with [runs, k], as log_w does."""

    def one(name: str, leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        # [k, ...] of one run lacks the axis of runs.
        if leaf.shape[:2] != log_w.shape and log_w.shape[0] == 1:
            leaf = leaf[None]
        if leaf.shape[:2] != log_w.shape:
            raise ValueError(
                f"{what} must begin with [runs, k] = {log_w.shape}, leaf '{name}' is {leaf.shape}."
            )
        return leaf

    leaves = [one(name, leaf) for name, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _arrays(tree: PyTree, alone: str) -> dict[str, np.ndarray]:
    """Return the leaves by name; `alone` is that of a bare array."""
    if jax.tree_util.all_leaves([tree]):
        return {alone: _array(tree)}
    arrays = {name: _array(leaf) for name, leaf in named_leaves(tree)}
    taken = {"chain", "draw"} & set(arrays)
    if taken:
        raise ValueError(
            f"ArviZ keeps the name '{min(taken)}' for itself: give that leaf another, as "
            "constrain may."
        )
    return arrays


def _array(leaf: ArrayLike) -> np.ndarray:
    """Return what NumPy knows how to handle: half precision of the kind that it does not is widened."""
    return np.asarray(leaf, np.float32 if jnp.result_type(leaf) == jnp.bfloat16 else None)
