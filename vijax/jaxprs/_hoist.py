"""Closed-over values of a function as arguments: to be handed to a custom_vjp, or to be stopped."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from vijax.jaxprs._equations import is_reference, trace
from vijax.types import PyTree


def hoist(
    function: Callable[..., PyTree], *args: PyTree
) -> tuple[Callable[..., PyTree], list[Array], list[Any], PyTree]:
    """Make arguments of what a function closes over: what may be differentiated, and the rest.

    jax.closure_convert leaves some values closed over, and then grad(vmap(...)) leaks tracers.

    Args:
        function: args -> a pytree of arrays.
        args: pytrees of arrays, or of their shapes and dtypes, like those it will be called with.

    Returns:
        (parameters, others, *args) -> result; the parameters; the others; and the result's shapes.

    Raises:
        ValueError: for a function that closes over a mutable reference.

    Example:
        >>> scale = jnp.asarray(3.0)
        >>> hoisted, parameters, others, _ = hoist(lambda x: scale * x, jnp.ones(()))
        >>> float(hoisted(parameters, others, 2.0)), float(hoisted([jnp.asarray(5.0)], [], 2.0))
        (6.0, 10.0)
    """
    closed, shape = _without_references(function, *args)
    jaxpr, tree = closed.jaxpr, jax.tree.structure(shape)
    # Floats may be differentiated; whole numbers, masks and keys are handed on as they are.
    consts = [_of_jax(c) for c in closed.consts]
    is_parameter = [jnp.issubdtype(jnp.result_type(c), jnp.inexact) for c in consts]
    pairs = list(zip(consts, is_parameter, strict=True))
    others, wrap = bare([c for c, p in pairs if not p])

    def hoisted(parameters: list[Array], others: list[Any], *args: PyTree) -> PyTree:
        # Both kinds back in the order in which the jaxpr takes them.
        p, o = iter(parameters), iter(wrap(others))
        consts = [next(p if parameter else o) for parameter in is_parameter]
        out = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(tree, out)

    return hoisted, [jnp.asarray(c) for c, p in pairs if p], others, shape


def _of_jax(const: Any) -> Any:
    """Return a constant that a custom_vjp under jit takes: jax.vmap hands on NumPy's data."""
    return jnp.copy(const) if isinstance(getattr(const, "val", None), np.ndarray) else const


def bare(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Strip keys to their numbers, and return how to wrap them again.

    The backward pass draws the same draws anew, which JAX's check against the reuse of keys would
    call an accident.

    Example:
        >>> numbers, wrap = bare({"key": jax.random.key(0), "x": jnp.ones(3)})
        >>> numbers["key"].dtype.name, wrap(numbers)["key"].shape
        ('uint32', ())
    """

    def is_key(leaf: Any) -> bool:
        return bool(jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key))

    def strip(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if is_key(leaf) else leaf

    def wrap(leaf: Any, kind: str) -> Any:
        return jax.random.wrap_key_data(leaf, impl=kind) if kind else leaf

    # The name of each key's implementation, such as "fry"; "" for what is no key.
    kinds = jax.tree.map(lambda leaf: str(jax.random.key_impl(leaf)) if is_key(leaf) else "", tree)
    return jax.tree.map(strip, tree), lambda numbers: jax.tree.map(wrap, numbers, kinds)


def totals(parameters: Sequence[Any]) -> list[Array]:
    """Return zeros to sum gradients in: float32 at least, since many small terms stall in less.

    Example:
        >>> [total.dtype.name for total in totals([jnp.ones(3, jnp.bfloat16)])]
        ['float32']
    """
    return [jnp.zeros(jnp.shape(p), jnp.promote_types(p.dtype, jnp.float32)) for p in parameters]


def stopped(
    function: Callable[..., PyTree],
    *args: PyTree,
) -> tuple[Callable[..., PyTree], core.ClosedJaxpr]:
    """Return a function with all that it closes over stopped, and its jaxpr as it was.

    Stopping a distribution itself leaks: it may hold its parameters where jax.tree.map does not see
    them. Arguments keep their derivative.

    Args:
        function: args -> a pytree of arrays.
        args: pytrees of arrays, or of their shapes and dtypes, like those it will be called with.

    Returns:
        The stopped function, and the closed jaxpr for further questions of the same trace.

    Raises:
        ValueError: for a function that closes over a mutable reference.

    Example:
        >>> def slope(scale):
        ...     run, _ = stopped(lambda x: scale * x, 2.0)
        ...     return run(2.0)
        >>> float(slope(3.0)), float(jax.grad(slope)(3.0))
        (6.0, 0.0)
    """
    closed, shape = _without_references(function, *args)
    consts = [jax.lax.stop_gradient(c) for c in closed.consts]
    call, tree = (
        core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts)),
        jax.tree.structure(shape),
    )

    def run(*args: PyTree) -> PyTree:
        return jax.tree.unflatten(tree, call(*jax.tree.leaves(args)))

    return run, closed


def _without_references(
    function: Callable[..., PyTree],
    *args: PyTree,
) -> tuple[core.ClosedJaxpr, PyTree]:
    closed, shape = trace(function, *args)
    # A reference cannot be stopped, nor be an argument of a custom_vjp.
    if any(is_reference(variable) for variable in closed.jaxpr.constvars):
        raise ValueError(
            "a function evaluated in chunks, or with its parameters held fixed, closes over a "
            "mutable reference, and what that holds cannot be known: read it before, and close "
            "over the value ref[...]."
        )
    return closed, shape
