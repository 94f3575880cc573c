"""The recursions of a chain, one step after another and all at once: two tables of the same functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.sequences._algebra import (
    Element,
    after,
    before,
    combine,
    correct,
    element,
    pull,
    symmetric,
    tell,
    transpose,
)
from vijax.sequences._model import Steps
from vijax.trees import scan


class Scans(NamedTuple):
    """The ways to run the four recursions that everything here is made of.

    Fields:
        affine: (a [T, d, d], b [T, d, c], reverse) -> v [T, d, c], vₜ = aₜ vₜ₋₁ + bₜ from v = 0.
        spread: (a [T, d, d], c [T, d, d]) -> P [T, d, d], Pₜ = aₜ Pₜ₋₁ aₜᵀ + cₜ from P = 0.
        predicted: Steps -> predicted covariances [T, d, d].
        future: elements -> the precision that x after t gives of zₜ, [T, d, d].
    """

    affine: Callable[[Array, Array, bool], Array]
    spread: Callable[[Array, Array], Array]
    predicted: Callable[[Steps], Array]
    future: Callable[[Element], Array]


def step(cov: Array, s: Steps) -> Array:
    """Return the covariance of a state from that of the one before."""
    return symmetric(s.transition @ cov @ transpose(s.transition) + s.cov)


# --- one step after another


def _affine(a: Array, b: Array, reverse: bool) -> Array:  # noqa: FBT001
    def step(v: Array, link: tuple[Array, Array]) -> tuple[Array, Array]:
        v = link[0] @ v + link[1]
        return v, v

    return scan(step, jnp.zeros_like(b[0]), (a, b), reverse=reverse)[1]


def _spread(a: Array, c: Array) -> Array:
    def step(cov: Array, link: tuple[Array, Array]) -> tuple[Array, Array]:
        cov = symmetric(link[0] @ cov @ transpose(link[0]) + link[1])
        return cov, cov

    return scan(step, jnp.zeros_like(c[0]), (a, c))[1]


def _predicted(s: Steps) -> Array:
    def one(cov: Array, s: Steps) -> tuple[Array, Array]:
        cov = step(cov, s)
        return correct(cov, s)[1], cov

    return scan(one, jnp.zeros_like(s.cov[0]), s)[1]


def _future(elements: Element) -> Array:
    def step(precision: Array, e: Element) -> tuple[Array, Array]:
        return pull(e, tell(e, precision)[0], precision), precision

    return scan(step, jnp.zeros_like(elements.precision[0]), elements, reverse=True)[1]


sequential = Scans(_affine, _spread, _predicted, _future)

# --- all at once


def _all_affine(a: Array, b: Array, reverse: bool) -> Array:  # noqa: FBT001
    # Two affine maps, one after the other, are one.
    def then(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return two[0] @ one[0], two[0] @ one[1] + two[1]

    v: Array = jax.lax.associative_scan(jax.vmap(then), (a, b), reverse=reverse)[1]
    return v


def _all_spread(a: Array, c: Array) -> Array:
    def then(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return two[0] @ one[0], symmetric(two[0] @ one[1] @ transpose(two[0]) + two[1])

    cov: Array = jax.lax.associative_scan(jax.vmap(then), (a, c))[1]
    return cov


def _all_predicted(s: Steps) -> Array:
    # Filtered covariances of all steps, each carried one step on
    prefix: Element = jax.lax.associative_scan(jax.vmap(combine), jax.vmap(element)(s)[0])
    return jax.vmap(step)(before(prefix.cov), s)


def _all_future(elements: Element) -> Array:
    # In reverse a scan hands over what it has gathered from later steps first.
    def backwards(later: Element, e: Element) -> Element:
        return jax.vmap(combine)(e, later)

    suffix: Element = jax.lax.associative_scan(backwards, elements, reverse=True)
    return after(suffix.precision)


parallel = Scans(_all_affine, _all_spread, _all_predicted, _all_future)
