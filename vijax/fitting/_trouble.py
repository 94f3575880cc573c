"""Where a fit stopped being finite: the first step, found again by halving, and what in it came first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import checks
from vijax.fitting._loop import Loop, Program
from vijax.types import PyTree


class NotFinite(NamedTuple):
    """The step that went wrong; step(key, state) with the fit's last state does it again.

    Fields:
        step: its number, counted from 0.
        key: the key that it was given.
        where: what was not finite first, in the order of a step: draws, log q, log p, bound, gradient, state.
        found: the names of all that was not finite.
    """

    step: int
    key: Array
    where: str
    found: tuple[str, ...]


def find(step: Callable[..., Any], program: Program, loop: Loop, until: int) -> tuple[Loop, NotFinite]:
    """Return the loop as it was before the first step that was not finite, and what went wrong there.

    What is not finite stays so, or the bound's sum does; so the step is found by halving with the program that made it,
    and no step pays for a check.
    """
    good, bad = int(loop.step), until
    before = loop
    while bad - good > 1:
        middle = (good + bad) // 2
        after, chunk = program.run(before, np.int32(middle))
        if bool(chunk.bad):
            bad = middle
        else:
            good, before = middle, after
    key = jax.random.fold_in(loop.key, good)
    found = _names(*jax.device_get(jax.jit(_look(step))(key, before.state)))
    where = found[0] if found else "nothing, when the step was done again by itself: it is at the edge of its precision"
    return before, NotFinite(good, key, where, tuple(found))


def _look(step: Callable[..., Any]) -> Callable[..., Any]:
    """Count what is not finite in a step, leaf by leaf, in the order in which it is computed."""

    def counts(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda l: jnp.sum(~jnp.isfinite(l)) if _floating(l) else jnp.int32(0), tree)

    def look(key: Any, state: PyTree) -> Any:
        new, seen = step(key, state)
        draws = getattr(seen, "draws", None)
        stages = {
            "the draw": getattr(draws, "z", None),
            "log q": getattr(draws, "log_q", None),
            "log p": getattr(draws, "log_p", None),
            "the bound": getattr(seen, "value", seen),
            "the gradient of": getattr(seen, "gradient", None),
            "the new state": new,
        }
        sizes = jax.tree.map(lambda l: jnp.int32(jnp.size(l)), stages)
        # Leaves that were not finite before the step, such as a best value of inf, did not go wrong in it.
        stages_before = {name: None for name in stages} | {"the new state": counts(state)}
        return counts(stages), sizes, stages_before

    return look


def _names(counted: Any, sizes: Any, before: Any) -> list[str]:
    stages = ("the draw", "log q", "log p", "the bound", "the gradient of", "the new state")
    found = []
    for stage in stages:
        already = [] if before[stage] is None else [n for _, n in checks.named_leaves(before[stage])]
        pairs = zip(checks.named_leaves(counted[stage]), checks.named_leaves(sizes[stage]), strict=True)
        for i, ((name, count), (_, size)) in enumerate(pairs):
            if count > 0 and not (already and already[i] > 0):
                leaf = "" if name == "z" and stage != "the draw" else f" '{name}'"
                found.append(f"{stage}{leaf}, {int(count)} of {int(size)} numbers")
    return found


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
