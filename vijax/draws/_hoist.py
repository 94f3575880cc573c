"""Make what a function closes over into arguments, so that a custom_vjp can be given it and give its gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from vijax import dataflow
from vijax.types import PyTree


def hoist(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], list[Any], list[Any], Any]:
    """Make arguments of what a function closes over: what may be differentiated, and the rest.

    Returns (parameters, others, *args) -> result, the parameters, the others, and the result's shapes.
    jax.closure_convert leaves some values closed over, and then grad(vmap(...)) leaks tracers.
    """
    closed, shape = dataflow.trace(function, *args)
    jaxpr, tree = closed.jaxpr, jax.tree.structure(shape)
    is_parameter = [jnp.issubdtype(jnp.result_type(c), jnp.inexact) for c in closed.consts]
    pairs = list(zip(closed.consts, is_parameter, strict=True))
    others, wrap = bare([c for c, p in pairs if not p])

    def hoisted(parameters: list[Any], others: list[Any], *args: Any) -> Any:
        p, o = iter(parameters), iter(wrap(others))
        consts = [next(p if parameter else o) for parameter in is_parameter]
        out = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(tree, out)

    return hoisted, [jnp.asarray(c) for c, p in pairs if p], others, shape


def bare(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Strip keys to their numbers, and return how to wrap them again.

    The backward pass draws the same draws anew, which JAX's check against the reuse of keys would call an accident.
    """
    is_key = lambda s: jnp.issubdtype(jnp.result_type(s), jax.dtypes.prng_key)  # noqa: E731
    kinds = jax.tree.map(lambda s: str(jax.random.key_impl(s)) if is_key(s) else "", tree)
    strip = lambda s: jax.random.key_data(s) if is_key(s) else s  # noqa: E731
    wrap = lambda s, kind: jax.random.wrap_key_data(s, impl=kind) if kind else s  # noqa: E731
    return jax.tree.map(strip, tree), lambda numbers: jax.tree.map(wrap, numbers, kinds)


def totals(parameters: list[Any]) -> list[Any]:
    """Return zeros to sum gradients of parameters in: in float32 at least, since many small terms stall in less."""
    return [jnp.zeros(jnp.shape(p), jnp.promote_types(p.dtype, jnp.float32)) for p in parameters]
