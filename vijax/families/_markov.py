"""Gaussian chains over latents with an axis of time."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.families._gaussian import admit, fields, scales, start
from vijax.folds import Fold, sequential
from vijax.gaussians.affine import AffineGaussian
from vijax.gaussians.chain import ChainRoot
from vijax.gaussians.triangle import unit_triangle
from vijax.types import Family, PyTree


def markov(*, scale: float = 0.1, fold: Fold = sequential) -> Family:
    """One Gaussian over a chain of T steps, each given the next: its precision is block-tridiagonal.

        q(z) = N(z; m, Λ⁻¹),   Λ = L Lᵀ,   L = diag(s)⁻¹ U,   U unit lower, blocks t and t + 1 alone

    For latents of a time series: it holds the posterior of every linear-Gaussian state space model, at
    a cost of T d³. Start it from `sequences.kalman_smoother(...).parameters()` where a linear model is
    near.

    Args:
        scale: initial standard deviation, without correlation.
        fold: `sequences.sequential`, or `sequences.associative` for draws in a tree of depth log₂ T.
            Densities and entropies need neither.

    Returns:
        Family: `init(key, like)` starts at `like`, leaves [T, ...] of d numbers a step (the key is
        not needed), with params {"loc", "log_scale": like z, "lower": [T, d (d - 1) / 2] within a
        step, "below": [T - 1, d, d], to step t + 1 from t}; `dist(params)` has batch shape (), and
        all that `full_rank` offers.

    Raises:
        TypeError: (init) for latents that are not floating.
        ValueError: for a scale that is not positive; (init, dist) for leaves without one leading
            axis of time; (dist) for blocks of other shapes.

    Example:
        >>> params = markov().init(None, jnp.zeros((50, 3)))
        >>> {name: leaf.shape for name, leaf in params.items()}
        {'loc': (50, 3), 'log_scale': (50, 3), 'lower': (50, 3), 'below': (49, 3, 3)}

    Reference: Archer, Park, Buesing, Cunningham, Paninski, Black box variational inference for state
        space models, 2015, arXiv:1511.07367.
    """
    admit(scale)

    def init(key: Array | None, like: PyTree) -> PyTree:
        params, vector = start(like, scale)
        steps, sizes = _layout(params["loc"])
        d = sum(sizes)
        zeros = partial(jnp.zeros, dtype=vector.dtype)
        return {
            **params,
            "lower": zeros((steps, d * (d - 1) // 2)),
            "below": zeros((steps - 1, d, d)),
        }

    def dist(params: PyTree) -> AffineGaussian:
        fields(params, "markov", "loc", "log_scale", "lower", "below")
        loc, log_scale = scales(params)
        steps, sizes = _layout(loc)
        d = sum(sizes)
        shapes = {"lower": (steps, d * (d - 1) // 2), "below": (steps - 1, d, d)}
        for name, shape in shapes.items():
            if jnp.shape(params[name]) != shape:
                raise ValueError(
                    f"'{name}' of params has shape {jnp.shape(params[name])}, expected {shape} for "
                    f"{steps} steps of {d} numbers; batches of chains come by families.members."
                )
        dtype = jnp.result_type(*jax.tree.leaves(loc))
        within = jax.vmap(partial(unit_triangle, size=d))(params["lower"].astype(dtype))
        return AffineGaussian(
            loc, ChainRoot(log_scale, within, params["below"].astype(dtype), sizes, fold)
        )

    return Family(init, dist)


def _layout(like: PyTree) -> tuple[int, tuple[int, ...]]:
    """Return T, and how many numbers of a step are of each leaf."""
    shapes = {name: jnp.shape(leaf) for name, leaf in checks.named_leaves(like)}
    steps = {shape[:1] for shape in shapes.values()}
    if len(steps) != 1 or () in steps:
        raise ValueError(
            "every leaf of a chain must begin with one axis of time, got "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}: latents without one "
            "are a part of their own of families.structured."
        )
    return steps.pop()[0], tuple(math.prod(shape[1:]) for shape in shapes.values())
