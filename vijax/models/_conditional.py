"""A network and a family as a distribution given something: encoders, decoders, priors."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax import checks
from vijax.calls import described
from vijax.families.batched import Members
from vijax.types import Family, PyTree


def num_params(family: Family, like: PyTree, moves: Sequence[str] | None = None) -> int:
    """Count the parameters of a family's member: how many outputs its network has.

        n = Σ_leaf size(leaf),   leaves of family.init(key, like), or those named in moves

    Args:
        family: any Family.
        like: one draw, as for `family.init`.
        moves: names of the params that a network moves; all of them where None.

    Returns:
        n, an int; nothing is computed.

    Raises:
        TypeError: for what is no Family.
        ValueError: for names that are none of its params.

    Example:
        >>> num_params(vj.families.mean_field(), jnp.zeros(40))
        80

    Reference: none.
    """
    checks.family(family, "family")
    params = jax.eval_shape(lambda: family.init(jax.random.key(0), like))
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(_split(params, moves)[0]))


def _split(params: PyTree, moves: Sequence[str] | None) -> tuple[PyTree, PyTree]:
    """Return the params that a network moves, and the others."""
    if moves is None:
        return params, {}
    missing = [name for name in moves if name not in params]
    if missing or not moves:
        raise ValueError(
            f"moves must name params of the family, of which there are {sorted(params)}, got "
            f"{tuple(moves)}."
        )
    return {n: params[n] for n in moves}, {n: p for n, p in params.items() if n not in moves}


class Conditional(nnx.Module):
    """A distribution given something: a network moves the parameters of a family.

        q(z | x) = family(φ + network(x)),   φ = family.init(key, like)

    One constructor for encoders q(z | x), decoders p(x | z), and layers of a ladder. Call it with a
    batch [*batch, ...], and it returns a distribution of that batch shape.

    Args:
        network: an nnx.Module, or a function, from the input to `num_params(family, like)` numbers
            for each datum: [*batch, n] in the order of `ravel_pytree`, or maps [*batch, *space,
            channels] whose channels are dealt to the params in turn. It may compute in bfloat16: its
            outputs become float32, or what `like` is, before any density.
        family: any Family, such as `families.mean_field(scale=1.0)` or `families.bernoulli()`.
        like: where the params start, in the shape of one draw: zeros of the latents, or the data's
            mean for a decoder.
        moves: names of the params that the network moves, such as ("base",) of a flow or ("loc",) of
            a Gaussian; the others are learned and shared by all data. None: all of them.
        given: for a `Ladder`, the names of what it is given, joined along their last axis.
        key: for families whose start is random.

    Raises:
        TypeError: for what is no Family.
        ValueError: for names that are no params; (when called) for a network of another size.

    Example:
        >>> encode = Conditional(lambda x: jnp.tile(x, 2), vj.families.mean_field(), jnp.zeros(2))
        >>> encode(jnp.ones((5, 2))).log_prob(jnp.ones((5, 2))).shape
        (5,)

    Reference: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114.
    """

    def __init__(
        self,
        network: Callable[..., Array],
        family: Family,
        like: PyTree,
        *,
        moves: Sequence[str] | None = None,
        given: str | Sequence[str] = (),
        key: Array | None = None,
    ):
        checks.family(family, "family")
        params = family.init(jax.random.key(0) if key is None else key, like)
        moved, shared = _split(params, moves)
        self.network = network
        self.init, self.dist = family
        self.given = (given,) if isinstance(given, str) else tuple(given)
        self.event_ndim = jnp.ndim(jax.tree.leaves(like)[0])
        # Where the network's outputs start from is no parameter: its last bias would be learned twice.
        self.start = nnx.Variable(moved)
        self.shared = nnx.Param(shared)

    @property
    def family(self) -> Family:
        """Return the family of the members."""
        return Family(self.init, self.dist)

    def params(self, x: Any, **given: Any) -> PyTree:
        """Return the family's params of every datum, leaves [*batch, ...], the shared ones repeated."""
        moved, batch_shape = _placed(self.network(x, **given), self.start.get_value())
        shared = self.shared.get_value()
        if not shared:
            return moved

        def repeated(p: Any) -> Array:
            return jnp.broadcast_to(p, (*batch_shape, *jnp.shape(p)))

        return {**moved, **jax.tree.map(repeated, shared)}

    def __call__(self, x: Any, **given: Any) -> Members:
        """Return the distribution given x, of batch shape [*batch]; `rngs=` goes on to the network."""
        moved, batch_shape = _placed(self.network(x, **given), self.start.get_value())
        return Members(self.dist, moved, batch_shape, self.shared.get_value())


def _placed(outputs: Array, start: PyTree) -> tuple[PyTree, tuple[int, ...]]:
    """Return start + the outputs of a network, as the params of every datum, and the batch shape."""
    vector, unravel = ravel_pytree(start)
    if not hasattr(outputs, "shape") or outputs.ndim == 0:
        raise ValueError(
            f"network must return [*batch, {vector.size}] numbers, got {described(outputs)}."
        )
    # In the params' own precision from here on, whatever the network computes in.
    outputs = outputs.astype(vector.dtype)
    axes = next(
        (t for t in range(1, outputs.ndim + 1) if prod(outputs.shape[-t:]) == vector.size), None
    )
    if axes is None:
        raise ValueError(
            f"network returned {list(outputs.shape)}, and the family has {vector.size} params for "
            "each datum: give the network models.num_params(family, like) outputs."
        )
    batch_shape = outputs.shape[: outputs.ndim - axes]

    def place(v: Array) -> PyTree:
        if axes == 1:
            return unravel(v + vector)
        return jax.tree.map(jnp.add, start, _dealt(v, start))

    for _ in batch_shape:
        place = jax.vmap(place)
    return place(outputs), batch_shape


def _dealt(maps: Array, start: PyTree) -> PyTree:
    """Return maps [*space, channels] as params like start, the channels dealt to the leaves in turn."""
    leaves, tree = jax.tree.flatten(start)
    places = prod(maps.shape[:-1])
    ends = [0]
    for leaf in leaves:
        if leaf.size % places:
            raise ValueError(
                f"a map {list(maps.shape)} cannot be dealt to params {list(leaf.shape)}: their "
                "leading axes must be those of space."
            )
        ends.append(ends[-1] + leaf.size // places)
    parts = [
        maps[..., a:b].reshape(leaf.shape)
        for leaf, a, b in zip(leaves, ends, ends[1:], strict=False)
    ]
    return jax.tree.unflatten(tree, parts)
