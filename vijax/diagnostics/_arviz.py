"""Draws of q as ArviZ's DataTree, so that its tables and plots work on them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax.checks import named_leaves
from vijax.diagnostics._moments import agree
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
    """Draws of q, with log p and log q of every one, as ArviZ's DataTree; several restarts become its chains.

        posterior z ~ q,   sample_stats: log_p = log p(x, z), log_q = log q(z), log_w = log p - log q

    Then `arviz_stats.summary(tree)`, `arviz_plots.plot_forest(tree)` and the rest work as they do after MCMC, and
    `arviz_stats.loo_approximate_posterior(tree, log_p, log_q)` given log_likelihood. They take every draw alike: the
    posterior group is q's, not corrected by the weights.

    Args:
        draws: or the Estimate of an objective, with log_w [k], or [runs, k] of restarts as jax.vmap makes them.
        constrain: one draw of z -> latents, such as `Transformed.constrain`; the posterior group then holds the
            latents, and unconstrained_posterior the free numbers.
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
            that are not of as many draws, and latents that are named `chain` or `draw`.

    Reference: Kumar, Carroll, Hartikainen, Martin, ArviZ a unified library for exploratory analysis of Bayesian models
        in Python, 2019.
    """
    try:
        import arviz_base
    except ImportError as error:
        raise ImportError(
            'to_arviz needs arviz-base: pip install "vijax-toolkit[diagnostics]".'
        ) from error

    draws = as_runs(draws)
    groups: dict[str, PyTree] = {"posterior": draws.z}
    if constrain is not None:
        groups = {
            "posterior": jax.vmap(jax.vmap(constrain))(draws.z),
            "unconstrained_posterior": draws.z,
        }
    groups["sample_stats"] = {
        "log_p": draws.log_p,
        "log_q": draws.log_q,
        "log_w": log_weights(draws),
    }
    for name, tree in (("posterior_predictive", predictive), ("log_likelihood", log_likelihood)):
        if tree is not None:
            groups[name] = _like(tree, draws.log_w, name)
    if observed is not None:
        groups["observed_data"] = observed
    of_data = ("posterior_predictive", "log_likelihood", "observed_data")
    data = {
        group: _arrays(tree, "x" if group in of_data else "z") for group, tree in groups.items()
    }
    return arviz_base.from_dict(
        data, coords=coords, dims=dims, attrs={"/": {"inference_library": "vijax"}}
    )


def as_runs(draws: Draws | Estimate) -> Draws:
    """Return draws with a leading axis of restarts, of one where there was none."""
    draws = draws.draws if isinstance(draws, Estimate) else draws
    if draws.only_mean is not None:
        raise ValueError(
            f"these draws have no importance weights: {draws.only_mean}. Weigh draws of q by all of the data, "
            "draws.weigh(key, log_joint, q, num_samples=...)."
        )
    if draws.z is None:
        raise ValueError(
            "these draws keep no z, as those made with chunk_size: draw again with draws.weigh."
        )
    if jnp.ndim(draws.log_q) not in (1, 2):
        raise ValueError(
            f"log_w must be [k] of one posterior, or [runs, k] of restarts, got {jnp.shape(draws.log_q)}; for a "
            "batch of posteriors take them one at a time: jax.tree.map(lambda a: a[:, i], draws)."
        )
    shape = jnp.shape(draws.log_q)
    if len(shape) == 2 and shape[0] > shape[1]:
        raise ValueError(
            f"log_w {shape} would be {shape[0]} restarts of {shape[1]} draws, for restarts come first: [runs, k]. If "
            "these are of a batch of posteriors, [k, batch], take one of it: jax.tree.map(lambda a: a[:, i], draws)."
        )
    agree(draws.z, draws.log_q)
    draws = draws._replace(aux=None)
    return jax.tree.map(lambda a: a[None], draws) if jnp.ndim(draws.log_q) == 1 else draws


def log_weights(draws: Draws) -> Array:
    """Return log-weights that count alike: those of strata with their weights within."""
    if draws.weights is None:
        return draws.log_w
    k = draws.log_w.shape[-1]
    return draws.log_w + jnp.log(k * jnp.broadcast_to(draws.weights, draws.log_w.shape))


def _like(tree: PyTree, log_w: Array, what: str) -> PyTree:
    def one(name: str, leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
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
    found = {name: _array(leaf) for name, leaf in named_leaves(tree)}
    if taken := {"chain", "draw"} & set(found):
        raise ValueError(
            f"ArviZ keeps the name '{min(taken)}' for itself: give that leaf another, as constrain may."
        )
    return found


def _array(leaf: Any) -> np.ndarray:
    """Return what NumPy knows how to handle: half precision of the kind that it does not is widened."""
    return np.asarray(leaf, np.float32 if jnp.result_type(leaf) == jnp.bfloat16 else None)
