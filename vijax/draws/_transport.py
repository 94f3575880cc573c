"""Uniforms to draws: what antithetic and quasi-Monte Carlo draws are made of, leaf by leaf for a Joint."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.types import Distribution, Joint, PyTree, Transport, offers


def dimensions(q: Distribution, draws: str) -> int:
    """Return how many uniforms make one draw of q; refuse a q that is not made of uniforms."""
    sizes: list[int] = []

    def count(part: Distribution) -> PyTree:
        if not offers(part, Transport):
            raise TypeError(
                f"{draws} draws need q.uniforms (a shape) and q.transport(u), uniforms -> z, of "
                f"every leaf; {type(part).__name__} lacks them. The Gaussian distributions of "
                "vijax.families have both."
            )
        made = cast(Transport, part)
        sizes.append(math.prod(made.uniforms))
        return made.transport(jnp.full(made.uniforms, 0.5))

    # Nothing is computed: later leaves need earlier ones in shape alone.
    jax.eval_shape(lambda: _in_order(q, count))
    return sum(sizes)


def transport(q: Distribution, u: Float[Array, " n"]) -> PyTree:
    """Carry uniforms to one draw of q; each leaf of a Joint has its own, and may be given the earlier leaves."""
    # How many of the uniforms the leaves drawn so far have used.
    done = 0

    def carry(part: Distribution) -> PyTree:
        nonlocal done
        made = cast(Transport, part)
        size = math.prod(made.uniforms)
        mine, done = u[done : done + size], done + size
        return made.transport(mine.reshape(made.uniforms))

    return _in_order(q, carry)


def _in_order(q: Distribution, draw: Callable[[Distribution], PyTree]) -> PyTree:
    if not isinstance(q, Joint):
        return draw(q)
    # A conditional leaf is made from the leaves before it.
    leaves: dict[Any, PyTree] = {}
    for name in q.names():
        leaves[name] = _in_order(q.conditional(name, leaves), draw)
    return q.collect(leaves)
