"""Uniforms to draws: what antithetic and quasi-Monte Carlo draws are made of, leaf by leaf for a Joint."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.types import Joint, PyTree, Transport, offers


def dimensions(q: Any, draws: str) -> int:
    """Return how many uniforms make one draw of q; refuse a q that is not made of uniforms."""
    sizes: list[int] = []

    def count(part: Any) -> PyTree:
        if not offers(part, Transport):
            raise TypeError(
                f"{draws} draws need q.uniforms (a shape) and q.transport(u), uniforms -> z, of every leaf; "
                f"{type(part).__name__} lacks them. The Gaussian distributions of vijax.families have both."
            )
        sizes.append(math.prod(part.uniforms))
        return part.transport(jnp.full(part.uniforms, 0.5))

    jax.eval_shape(lambda: _in_order(q, count))
    return sum(sizes)


def transport(q: Any, u: Float[Array, " n"]) -> PyTree:
    """Carry uniforms to one draw of q; each leaf of a Joint has its own, and may be given the earlier leaves."""
    done = 0

    def carry(part: Any) -> PyTree:
        nonlocal done
        size = math.prod(part.uniforms)
        mine, done = u[done : done + size], done + size
        return part.transport(mine.reshape(part.uniforms))

    return _in_order(q, carry)


def _in_order(q: Any, draw: Callable[[Any], PyTree]) -> PyTree:
    if not isinstance(q, Joint):
        return draw(q)
    leaves: dict[Any, PyTree] = {}
    for name in q.names():
        leaves[name] = _in_order(q.conditional(name, leaves), draw)
    return q.collect(leaves)
