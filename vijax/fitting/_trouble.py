"""Where a fit stopped being finite: the first such step, found by halving, and what in it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax import checks
from vijax.fitting._loop import Loop, Program
from vijax.trees import is_floating
from vijax.types import PyTree


class NotFinite(NamedTuple):
    """The step that went wrong; step(key, state) with the fit's last state does it again.

    Fields:
        step: its number, counted from 0.
        key: the key that it was given.
        where: what was not finite first, in the order of a step: draws, log q, log p, bound,
            gradient, state.
        found: the names of all that was not finite.
    """

    step: int
    key: Array
    where: str
    found: tuple[str, ...]


def find(
    step: Callable[..., Any], program: Program, loop: Loop, until: int
) -> tuple[Loop, NotFinite]:
    """Return the loop before the first step that was not finite, and what went wrong there.

    What is not finite stays so, or the bound's sum does; so the step is found by halving with the
    program that made it, and no step pays for a check.
    """
    good, bad = int(loop.step), until
    before = loop
    # Invariant: `before` is finite after `good` steps, and the loop is not after `bad`.
    while bad - good > 1:
        middle = (good + bad) // 2
        after, chunk = program.run(before, np.int32(middle))
        if bool(chunk.bad):
            bad = middle
        else:
            good, before = middle, after
    # The bad step alone, with what it is made of counted.
    key = jax.random.fold_in(loop.key, good)
    named = names(*jax.device_get(jax.jit(partial(counts, step))(key, before.state)))
    unclear = "nothing, when the step was done again by itself: it is at the edge of its precision"
    return before, NotFinite(good, key, named[0] if named else unclear, tuple(named))


class _Counts(NamedTuple):
    """Of one step, for each of STAGES, a pytree of counts, one for each leaf.

    Fields:
        bad: how many numbers are not finite.
        size: how many numbers there are.
        bad_before: how many were not finite before the step; None where there was nothing before.
    """

    bad: dict[str, PyTree]
    size: dict[str, PyTree]
    bad_before: dict[str, PyTree]


# What a step computes, in its order; the gradient's name is followed by that of the leaf.
STATE, GRADIENT = "the new state", "the gradient of"
STAGES = ("the draw", "log q", "log p", "the bound", GRADIENT, STATE)


def counts(step: Callable[..., Any], key: Key[Array, ""], state: PyTree) -> _Counts:
    """Count what is not finite in a step, leaf by leaf, in the order in which it is computed."""

    def not_finite(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.sum(~jnp.isfinite(leaf)) if is_floating(leaf) else jnp.int32(0), tree
        )

    new, report = step(key, state)
    draws = getattr(report, "draws", None)
    # In the order of STAGES.
    computed = (
        getattr(draws, "z", None),
        getattr(draws, "log_q", None),
        getattr(draws, "log_p", None),
        getattr(report, "value", report),
        getattr(report, "gradient", None),
        new,
    )
    stages = dict(zip(STAGES, computed, strict=True))
    # Alike for all stages: counts of bad numbers and of all, leaf by leaf.
    sizes = jax.tree.map(lambda leaf: jnp.int32(jnp.size(leaf)), stages)
    # What was not finite before the step, such as a best value of inf, did not go wrong in it.
    before = dict.fromkeys(STAGES) | {STATE: not_finite(state)}
    return _Counts(not_finite(stages), sizes, before)


def names(
    bad: dict[str, PyTree], size: dict[str, PyTree], bad_before: dict[str, PyTree]
) -> list[str]:
    """Say of every leaf that became not finite which it is, and in how many numbers."""
    named = []
    for stage in STAGES:
        # Counts of what was not finite before, [] for all stages but the state.
        before = [count for _, count in checks.named_leaves(bad_before[stage])]
        leaves = zip(checks.named_leaves(bad[stage]), checks.named_leaves(size[stage]), strict=True)
        for i, ((name, count), (_, of)) in enumerate(leaves):
            # A bare array's only leaf is called z, which says nothing but of the draw.
            if count > 0 and not (before and before[i] > 0):
                leaf = "" if name == "z" and stage != "the draw" else f" '{name}'"
                named.append(f"{stage}{leaf}, {int(count)} of {int(of)} numbers")
    return named
