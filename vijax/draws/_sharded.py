"""Draws laid out over devices along the sample axis."""

from typing import Any

import jax

from vijax.types import Draw, PyTree


def sharded(draw: Draw, sharding: jax.sharding.Sharding) -> Draw:
    """The same draws, laid out over devices along the sample axis.

        zₖ ~ q  on the device that `sharding` gives row k

    When num_samples is what fills the machine, rather than the batch: the compiler then splits everything that follows
    from a draw, and the bound's reduction becomes a collective. For a sharded batch nothing is needed: shard the data.

    Args:
        draw: any way to draw, such as `iid`.
        sharding: of the seeds' leading axis, e.g. NamedSharding(mesh, PartitionSpec("k")), with a mesh whose axes are
            AxisType.Auto; num_samples must divide over it.

    Returns:
        A Draw with equal numbers.

    Reference: none; the layout is JAX's own (jax.lax.with_sharding_constraint).
    """

    def seeds(key: Any, num_samples: int) -> PyTree:
        return jax.tree.map(
            lambda s: jax.lax.with_sharding_constraint(s, sharding), draw.seeds(key, num_samples)
        )

    return draw._replace(seeds=seeds)
