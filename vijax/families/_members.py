"""A member of a family for each of a batch: q of many data, each with parameters of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import described
from vijax.types import Family, PyTree, lift


class _Members:
    """Batch shape [n]; every leaf of the params begins with that axis, as every leaf of a draw does."""

    independent_members = True

    def __init__(self, params: PyTree, dist: Callable[[PyTree], Any]):
        self._params, self._dist = params, dist

    def _one(self, params: PyTree) -> Any:
        return lift(self._dist(params))

    @property
    def fixed_support(self) -> bool | None:
        first = jax.tree.map(lambda leaf: leaf[0], self._params)
        return getattr(self._one(first), "fixed_support", None)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        def one(key: Array, params: PyTree) -> tuple[PyTree, Array]:
            z, log_q = self._one(params).sample_and_log_prob(seed=key, sample_shape=())
            return z, log_q

        each = jax.vmap(one)
        for _ in sample_shape:
            each = jax.vmap(each, (0, None))
        number = len(jax.tree.leaves(self._params)[0])
        return each(jax.random.split(seed, (*sample_shape, number)), self._params)

    def log_prob(self, z: PyTree, /) -> Array:
        return jax.vmap(lambda params, z: self._one(params).log_prob(z))(self._params, z)


def members(family: Family) -> Family:
    """A member of one family for each of n data: a family whose q has batch shape [n].

        q(z₁ ... zₙ) = Πₙ q(zₙ; φₙ),     φ: every leaf of the params with a leading axis of data

    Of `full_rank()` or a flow it makes the q of a batch, to refine an encoder's answers or to fit local latents
    without an encoder.

    Args:
        family: of one datum, whose q has batch shape ().

    Returns:
        Family: `init(key, like)` takes leaves [n, *event], each datum's start; params are those of `family`, leaves
        [n, ...]; `dist(params)` has batch shape [n], and its members are known to be independent,
        which `dreg(iwae)` and score estimators ask for.

    Raises:
        TypeError: for what is no Family.
        ValueError: (init, dist) for leaves without one leading axis of data.

    Example:
        >>> family = members(vj.families.full_rank())
        >>> params = family.init(jax.random.key(0), jnp.zeros((5, 3)))  # five data, three latents
        >>> params["lower"].shape, family.dist(params).log_prob(jnp.zeros((5, 3))).shape
        ((5, 3), (5,))

    Reference: Hoffman, Blei, Wang, Paisley, Stochastic variational inference, 2013 (local variational parameters).
    """
    checks.family(family, "family")

    def init(key: Array | None, like: PyTree) -> PyTree:
        n = _number(like, "like")
        like = jax.tree.map(jnp.asarray, like)
        # A family that needs no key may be given none.
        if key is None:
            return jax.vmap(lambda like: family.init(None, like))(like)
        return jax.vmap(family.init)(jax.random.split(key, n), like)

    def dist(params: PyTree) -> _Members:
        _number(params, "params")
        return _Members(jax.tree.map(jnp.asarray, params), family.dist)

    return Family(init, dist)


def _number(tree: PyTree, name: str) -> int:
    """Return how many data there are: the leading axis that all leaves share."""
    sizes = {leaf: jnp.shape(value)[:1] for leaf, value in checks.named_leaves(tree)}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        found = ", ".join(f"{leaf} {size}" for leaf, size in sizes.items()) or described(tree)
        raise ValueError(
            f"every leaf of {name} must begin with one axis of data, got {found}: params of one "
            "datum become those of n by jax.tree.map(lambda leaf: jnp.stack([leaf] * n), params)."
        )
    return int(next(iter(sizes.values()))[0])
