"""A fingerprint of what a function computes: its jaxpr, and every number that it closes over."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import trace
from vijax.types import PyTree


def fingerprint(function: Callable[..., PyTree], *args: PyTree) -> np.ndarray:
    """Return 32 bytes that another computation, or other data, will not share.

    The same function in another process has the same; that of another release of JAX may differ.

    Example:
        >>> a = fingerprint(lambda x: 2 * x, 1.0)
        >>> a.shape, bool((a == fingerprint(lambda x: 3 * x, 1.0)).all())
        ((32,), False)
    """
    closed, shape = trace(function, *args)
    digest = hashlib.sha256()
    # What is printed of functions is where they lie in memory.
    text = re.sub(r"0x[0-9a-f]+", "", f"{closed.jaxpr} {jax.tree.structure(shape)}")
    digest.update(text.encode())
    # Constants print as names alone: their dtypes, shapes and bytes follow.
    for const in _constants(closed):
        is_key = jnp.issubdtype(jnp.result_type(const), jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(const) if is_key else const)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _constants(closed: core.ClosedJaxpr) -> Iterator[Any]:
    """Yield what a jaxpr closes over, and what the jaxprs inside it do, in their order."""
    yield from (c for c in closed.consts if not isinstance(c, jax.core.Tracer))
    yield from _inside(closed.jaxpr)


def _inside(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        for leaf in (*eqn.invars, *jax.tree.leaves(list(eqn.params.values()))):
            if isinstance(leaf, core.Literal):
                yield leaf.val
            elif isinstance(leaf, core.ClosedJaxpr):
                yield from _constants(leaf)
            elif isinstance(leaf, core.Jaxpr):
                yield from _inside(leaf)
            elif isinstance(leaf, (np.ndarray, jax.Array)):
                # A parameter of an equation that is an array prints in short.
                yield leaf
