"""Hamiltonian motion in steps: what Langevin, HMC and differentiable annealing share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vijax.numerics import expand
from vijax.trees import scan
from vijax.types import PyTree

StepSize = Any
"""A number, [*batch] or a pytree like z, or a function of the inverse temperature that returns one."""


def steps_like(step_size: StepSize, beta: ArrayLike, z: PyTree, batch: tuple[int, ...]) -> PyTree:
    """Return the step of every leaf of z at an inverse temperature, each of the leaf's rank or ()."""
    step = step_size(beta) if callable(step_size) else step_size
    # One for all leaves, or a tree of them
    of_z: Any = jax.tree.structure(z)
    if of_z != jax.tree.structure(step):
        step = jax.tree.map(lambda _: step, z)

    def of_leaf(step: ArrayLike, leaf: Array) -> Array:
        shape = jnp.shape(step)
        if shape not in ((), batch, leaf.shape):
            raise ValueError(
                f"step_size must be a number, one for each member {batch}, or a pytree like z, got "
                f"shape {shape} for a leaf of shape {leaf.shape}."
            )
        return expand(jnp.asarray(step, leaf.dtype), leaf)

    return jax.tree.map(of_leaf, step, z)


def normal_like(key: Key[Array, ""], z: PyTree) -> PyTree:
    """Return standard normal noise, like z."""
    leaves, tree = jax.tree.flatten(z)
    keys = jax.random.split(key, len(leaves))
    noise = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noise)


def half_square(momentum: PyTree, batch: int) -> Array:
    """Return ½‖ρ‖² over all but the first `batch` axes, the kinetic energy."""
    squares = [
        0.5 * jnp.sum(jnp.square(a), tuple(range(batch, a.ndim))) for a in jax.tree.leaves(momentum)
    ]
    return sum(squares[1:], squares[0])


def value_and_slope(log_density: Callable[[PyTree], Array], z: PyTree) -> tuple[Array, PyTree]:
    """Return log-densities [*batch] and the gradient of each in its own member of z."""
    value, pull = jax.vjp(log_density, z)
    return value, pull(jnp.ones_like(value))[0]


def leapfrog(
    log_density: Callable[[PyTree], Array],
    z: PyTree,
    momentum: PyTree,
    steps: PyTree,
    num_steps: int,
) -> tuple[PyTree, PyTree, Array, Array]:
    """Move z and its momentum along a Hamiltonian, a map of volume 1 that is undone by -momentum.

        ρ += ½ε ∇log π(z),   z += ε ρ,   ρ += ½ε ∇log π(z),   `num_steps` times

    Args:
        log_density: log π, z -> [*batch].
        z, momentum: like each other.
        steps: ε of every leaf.
        num_steps: how many.

    Returns:
        z, the momentum, and log π before and after, [*batch].
    """

    def kick(momentum: PyTree, slope: PyTree) -> PyTree:
        return jax.tree.map(lambda p, e, g: p + 0.5 * e * g, momentum, steps, slope)

    def leap(carry: PyTree, _: None) -> tuple[PyTree, None]:
        z, momentum, _, slope = carry
        momentum = kick(momentum, slope)
        z = jax.tree.map(lambda a, e, p: a + e * p, z, steps, momentum)
        value, slope = value_and_slope(log_density, z)
        return (z, kick(momentum, slope), value, slope), None

    before, slope = value_and_slope(log_density, z)
    carry = (z, momentum, before, slope)
    # One step is most common, and a loop of one would be compiled as a loop.
    carry = leap(carry, None)[0] if num_steps == 1 else scan(leap, carry, None, length=num_steps)[0]
    return carry[0], carry[1], before, carry[2]
