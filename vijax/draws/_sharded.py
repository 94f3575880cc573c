"""Draws laid out over devices along the sample axis."""

import jax
from jaxtyping import Array, Key

from vijax.types import Draw, PyTree


def sharded(draw: Draw, sharding: jax.sharding.Sharding) -> Draw:
    """The same draws, laid out over devices along the sample axis.

        zₖ ~ q  on the device that `sharding` gives row k

    When num_samples, rather than the batch, fills the machine: the compiler splits all that follows
    from a draw, and the bound's reduction becomes a collective. For a sharded batch shard the data.

    Args:
        draw: any way to draw, such as `iid`.
        sharding: of the seeds' leading axis, e.g. NamedSharding(mesh, PartitionSpec("k")), with a mesh whose axes are
            AxisType.Auto; num_samples must divide over it.

    Returns:
        A Draw with equal numbers.

    Example:
        >>> mesh = jax.make_mesh((1,), ("k",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("k"))
        >>> draw = sharded(vj.draws.iid, rows)
        >>> draw.seeds(jax.random.key(0), 8).shape
        (8,)

    Reference: none; the layout is JAX's own (jax.lax.with_sharding_constraint).
    """

    def seeds(key: Key[Array, ""], num_samples: int) -> PyTree:
        return jax.tree.map(
            lambda s: jax.lax.with_sharding_constraint(s, sharding), draw.seeds(key, num_samples)
        )

    return draw._replace(seeds=seeds)
