"""Several fits at once from different starts, and which of them tell the same story."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vijax.fitting import _fit, _loop
from vijax.fitting._fit import Fit
from vijax.fitting._iterates import Tail
from vijax.fitting._stopping import scale_units, stationary
from vijax.types import Draws, Estimate, PyTree

STANDARD_ERRORS = 4.0


class Many(NamedTuple):
    """Several states at once, leaves [restarts, ...]; one that stopped being finite stays as it last was.

    Fields:
        states: one state for each restart.
        step: how many were made, ().
        died: the step that was not finite, [restarts]; -1 for those that live.
    """

    states: PyTree
    step: Int[Array, ""]
    died: Int[Array, " restarts"]


class Restarts(NamedTuple):
    """What several fits found, beside the best of them, that of the largest mean bound.

    Fields:
        fit: of all; leaves of its average and tail are [restarts, ...], its state is a `Many`.
        best: the number of the best.
        average: of the best, like params.
        bound: mean bound of each over the tail, in nats, nan where it died.
        bound_error: its standard error.
        same_bound: whose bound is as good as the best, to four standard errors.
        same_params: whose averages are those of the best, to four standard errors and `tolerance` units.
        distance: the largest difference of any parameter from the best's, in units.
        rhat: of all that live, the largest over parameters; 1 where they agree.
        died: the step at which each stopped being finite, -1 where it never did.
    """

    fit: Fit
    best: int
    average: PyTree
    bound: Float[Array, " restarts"]
    bound_error: Float[Array, " restarts"]
    same_bound: Bool[Array, " restarts"]
    same_params: Bool[Array, " restarts"]
    distance: Float[Array, " restarts"]
    rhat: Float[Array, ""]
    died: Int[Array, " restarts"]


def restarts(
    key: Key[Array, ""],
    step: Callable[[Any, PyTree], tuple[PyTree, Any]],
    states: PyTree,
    *,
    steps: int,
    stop: Callable[[Tail], Any] | None = stationary(),  # noqa: B008
    watch: Callable[[PyTree], PyTree] = _fit.params,
    unit: Callable[[PyTree], PyTree] = scale_units,
    tolerance: float = 0.1,
    **options: Any,
) -> Restarts:
    """Fit from several starts at once by vmap, and report which of them agree.

        R̂ = (1 + variance between averages / mean variance of the iterates within)^½
        same bound: L_best - L_i ≤ 4 se,     same params: |θ̄_best - θ̄_i| ≤ 4 se + tolerance · unit, every parameter

    One fit cannot tell a local optimum from the best one. Restarts with the same bound and other params are symmetric
    modes, labels that may be switched for one; with a worse bound, local optima; where all agree there is one answer,
    or one trap for all. Make the states with `jax.vmap(rule.init)(params)` from params that differ more than you expect
    the posterior to. One that stops being finite stays where it was and is reported, and the others go on; the fit ends
    when all that live are done.

    Args:
        key: of all; each restart gets its own.
        step: of one, (key, state) -> (state, seen), as in `fit`.
        states: of all, leaves [restarts, ...].
        steps: the most steps.
        stop: as in `fit`; asked of all at once.
        watch: of one, state -> params.
        unit: of one, params -> the unit of each, as in `stationary`.
        tolerance: how many units averages may be apart without being another answer.
        options: of `fit`: log_every, reports, checkpoints.

    Returns:
        Restarts.

    Raises:
        ValueError: where leaves of states do not share a first axis.
        FloatingPointError: where none was finite to the end.

    Reference: Gelman, Rubin, Inference from iterative simulation using multiple sequences, 1992; Welandawe, Andersen,
        Vehtari, Huggins, Robust, automated, and accurate black-box variational inference, 2022, arXiv:2203.15945.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(states)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"every leaf of states must be [restarts, ...] with one number of restarts, got {sorted(sizes)}; make them "
            "with jax.vmap(rule.init)(params)."
        )
    number = int(sizes.pop()[0])
    start = Many(states, jnp.int32(0), jnp.full(number, -1, jnp.int32))
    of_all = _together(step, number)
    found = _fit.fit(key, of_all, start, steps=steps, stop=stop, watch=lambda s: jax.vmap(watch)(s.states), **options)
    return _compare(found, jax.vmap(unit)(found.average), tolerance)


def _together(step: Callable[..., Any], number: int) -> Callable[[Any, Many], tuple[Many, Estimate]]:
    def many(key: Any, state: Many) -> tuple[Many, Estimate]:
        new, seen = jax.vmap(step)(jax.random.split(key, number), state.states)
        value, log_w = jax.vmap(_loop.bound_and_weights)(seen)
        bad = ~jnp.isfinite(value) | jax.vmap(_loop.spoilt)(new, state.states)
        alive = (state.died < 0) & ~bad
        died = jnp.where((state.died < 0) & bad, state.step, state.died)

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(alive.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        log_w = jnp.moveaxis(choose(log_w, jnp.zeros_like(log_w)), 0, 1)
        kept = jax.tree.map(choose, new, state.states)
        seen = Estimate(jnp.where(alive, value, 0.0), Draws(None, log_w, jnp.zeros_like(log_w)))
        return Many(kept, state.step + 1, died), seen

    return many


def _compare(found: Fit, units: PyTree, tolerance: float) -> Restarts:
    alive = np.asarray(found.state.died < 0)
    if not alive.any():
        raise FloatingPointError(f"no restart stayed finite; they ended in steps {np.asarray(found.state.died)}.")
    bound = jnp.where(alive, found.bound, jnp.nan)
    best = int(jnp.nanargmax(bound))
    reach = STANDARD_ERRORS * jnp.hypot(found.bound_error, found.bound_error[best])
    pick = lambda tree: jax.tree.map(lambda l: l[best], tree)  # noqa: E731
    average, tail, width = found.average, found.tail, pick(units)

    def apart(a: Array, error: Array, unit: Array) -> tuple[Array, Array]:
        off = jnp.abs(a - a[best])
        allowed = STANDARD_ERRORS * jnp.hypot(error, error[best]) + tolerance * unit
        rows = off.reshape(len(a), -1) / unit.reshape(1, -1), (off / allowed).reshape(len(a), -1)
        return jnp.max(rows[0], 1, initial=0.0), jnp.max(rows[1], 1, initial=0.0)

    def rhat(a: Array, error: Array, ess: Array) -> Array:
        weight = alive.reshape(-1, *(1,) * (a.ndim - 1))
        mean = jnp.sum(jnp.where(weight, a, 0.0), 0) / alive.sum()
        between = jnp.sum(jnp.where(weight, jnp.square(a - mean), 0.0), 0) / max(alive.sum() - 1, 1)
        within = jnp.sum(jnp.where(weight, jnp.square(error) * ess, 0.0), 0) / alive.sum()
        still = jnp.where(between > 0, jnp.inf, 1.0)
        return jnp.max(
            jnp.where(within > 0, jnp.sqrt(1 + between / jnp.where(within > 0, within, 1.0)), still), initial=1.0
        )

    pairs = [
        apart(a, e, jnp.broadcast_to(u, a.shape[1:]))
        for a, e, u in zip(*(jax.tree.leaves(t) for t in (average, tail.error, width)), strict=True)
    ]
    spread = [
        rhat(a, e, n) for a, e, n in zip(*(jax.tree.leaves(t) for t in (average, tail.error, tail.ess)), strict=True)
    ]
    dead = jnp.where(alive, 0.0, jnp.nan)
    distance, beyond = (jnp.max(jnp.stack([dead, *(p[i] for p in pairs)]), 0) for i in (0, 1))
    return Restarts(
        found,
        best,
        pick(average),
        bound,
        jnp.where(alive, found.bound_error, jnp.nan),
        bound[best] - bound <= reach,
        beyond <= 1,
        distance,
        jnp.max(jnp.stack([jnp.float32(1.0), *(s.astype(jnp.float32) for s in spread)])),
        found.state.died,
    )
