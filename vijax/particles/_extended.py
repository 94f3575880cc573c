"""A log joint and a q over more than the latents, of one evidence."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from vijax.types import LogJoint, PyTree


class Extended(NamedTuple):
    """A pair for every bound and estimator, on a larger space than that of z.

    Fields:
        log_joint: of the larger space; ∫ exp log_joint = p(x), unless it says otherwise.
        q: a distribution over it, with the batch shape of the q it is made of.
        latents: one draw of the larger space -> z; `jax.vmap` it for several.
    """

    log_joint: LogJoint
    q: Any
    latents: Callable[[PyTree], PyTree]


def several(
    one: Callable[[Key[Array, ""]], tuple[PyTree, Array]],
    seed: Key[Array, ""],
    sample_shape: Sequence[int],
) -> tuple[PyTree, Array]:
    """Return draws with leading axes `sample_shape`, each by a key of its own."""
    if not tuple(sample_shape):
        return one(seed)
    for _ in sample_shape:
        one = jax.vmap(one)
    return one(jax.random.split(seed, tuple(sample_shape)))
