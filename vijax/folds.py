"""Two ways along a chain: step by step, or in a tree whose depth is the logarithm of its length."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.trees import scan
from vijax.types import PyTree

Operator = Callable[[PyTree, PyTree], PyTree]
Fold = Callable[[Operator, PyTree, PyTree], PyTree]
"""(operator, first, elements [T-1, ...]) -> [T, ...], the results from the first on."""


def _length(elements: PyTree) -> int:
    return int(jnp.shape(jax.tree.leaves(elements)[0])[0])


def _led_by(first: PyTree, rest: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def sequential(operator: Operator, first: PyTree, elements: PyTree) -> PyTree:
    """All partial results of a chain, step by step.

        r₀ = first,     rₜ = operator(rₜ₋₁, elementsₜ)

    The least work, and the least memory; T steps that wait for each other. First choice on a CPU.

    Args:
        operator: (r, element) -> r.
        first: a pytree of arrays.
        elements: a pytree of arrays [T-1, ...].

    Returns:
        A pytree like first, [T, ...].

    Example:
        >>> sequential(jnp.multiply, jnp.array(1), jnp.array([2, 3, 4])).tolist()
        [1, 2, 6, 24]

    Reference: none; a scan.
    """

    def step(carry: PyTree, element: PyTree) -> tuple[PyTree, PyTree]:
        carry = operator(carry, element)
        return carry, carry

    return _led_by(first, scan(step, first, elements)[1])


def associative(operator: Operator, first: PyTree, elements: PyTree) -> PyTree:
    """All partial results of a chain in a tree of depth log₂ T, with some 2 T products of elements.

        rₜ = operator(first, e₁ ∘ ... ∘ eₜ),     ∘ the operator, associative

    For many small steps on an accelerator. Equal to `sequential` to rounding.

    Args:
        operator: (r, element) -> r, and (element, element) -> element, associative.
        first: a pytree of arrays.
        elements: a pytree of arrays [T-1, ...].

    Returns:
        A pytree like first, [T, ...].

    Example:
        >>> associative(jnp.multiply, jnp.array(1), jnp.array([2, 3, 4])).tolist()
        [1, 2, 6, 24]

    Reference: Blelloch, Prefix sums and their applications, 1990; Särkkä, García-Fernández,
        Temporal parallelization of Bayesian smoothers, 2021, arXiv:1905.13002.
    """
    if _length(elements) == 0:
        return jax.tree.map(lambda a: a[None], first)
    # e₁ ∘ ... ∘ eₜ for every t, then each applied to `first`
    products = jax.lax.associative_scan(jax.vmap(operator), elements)
    return _led_by(first, jax.vmap(operator, (None, 0))(first, products))


def backward(fold: Fold, operator: Operator, last: PyTree, elements: PyTree) -> PyTree:
    """Fold from the last on: r_T = last, rₜ = operator(rₜ₊₁, elementsₜ)."""

    def flip(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: jnp.flip(a, 0), tree)

    return flip(fold(operator, last, flip(elements)))
