"""Several fits at once from different starts, and which of them tell the same story."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vijax import numerics
from vijax.calls import usage
from vijax.fitting import _loop
from vijax.fitting._fit import Fit, check_rule, fit
from vijax.fitting._marginals import scale_units
from vijax.fitting._stopping import Verdict, stationary
from vijax.fitting._tail import Tail
from vijax.trees import where
from vijax.types import Draws, PyTree, Rule, Step

STANDARD_ERRORS = 4.0  # of a difference, beyond which two restarts differ


class Many(NamedTuple):
    """Several states at once, leaves [restarts, ...]; one that is no longer finite stays as it was.

    Fields:
        states: one state for each restart.
        step: how many were made, ().
        died: the step that was not finite, [restarts]; -1 for those that live.
    """

    states: PyTree
    step: Int[Array, ""]
    died: Int[Array, " restarts"]


class Restarts(NamedTuple):
    """What `restarts` returns: several fits, beside the best of them, that of the largest mean bound.

    Fields:
        fit: of all; leaves of its average and tail are [restarts, ...], its state is a `Many`.
        best: the number of the best.
        average: of the best, like params.
        bound: mean bound of each over the tail, in nats, nan where it died.
        bound_error: its standard error.
        same_bound: whose bound is as good as the best, to four standard errors.
        same_params: whose averages are those of the best, to four standard errors and `tolerance`
            units.
        distance: the largest difference of any parameter from the best's, in units.
        rhat: the largest over parameters, 1 where they agree, of those whose bound is not worse by far
            (10 nats and 4 standard errors, as in `diagnostics.summarize`); nan where one stands alone.
            It compares averages in units of how far iterates stray, which may be a small part of q's
            sd: whether the posteriors agree is for the rhat of `diagnostics.summarize`, of draws.
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

    def __repr__(self) -> str:
        """Say in a line what is in so many arrays."""
        count, alike = len(self.died), int(np.sum(np.asarray(self.same_params)))
        return (
            f"Restarts({count} of them, {alike} like the best; best bound "
            f"{float(self.bound[self.best]):.6g} nats, R-hat {float(self.rhat):.3g}, "
            f"stopped={self.fit.stopped!r})"
        )


@usage("fitting.restarts", "fitting.restarts(key, rule, jax.vmap(rule.init)(params), steps=5000)")
def restarts(
    key: Key[Array, ""],
    rule: Rule,
    states: PyTree,
    *,
    steps: int,
    stop: Callable[[Tail], Verdict] | None = stationary(),  # noqa: B008
    watch: Callable[[PyTree], PyTree] | None = None,
    unit: Callable[[PyTree], PyTree] = scale_units,
    tolerance: float = 0.1,
    **options: Any,
) -> Restarts:
    """Fit from several starts at once by vmap, and report which of them agree.

        R̂ = (1 + variance between averages / mean variance of the iterates within)^½
        same bound: L_best - L_i ≤ 4 se,   same params: |θ̄_best - θ̄_i| ≤ 4 se + tolerance · unit

    One fit cannot tell a local optimum from the best one. Same bounds with other params are symmetric
    modes, worse bounds local optima.

    Args:
        key: of all; each restart gets its own.
        rule: of one, as in `fit`.
        states: of all, leaves [restarts, ...]: `jax.vmap(rule.init)(params)`, from params that differ
            more than you expect the posterior to.
        steps: the most steps; the fit ends when all that are still finite are done.
        stop: as in `fit`; asked of all at once.
        watch: of one, state -> what is averaged and judged; `rule.params` by default.
        unit: of one, params -> the unit of each, as in `stationary`.
        tolerance: how many units averages may be apart without being another answer.
        options: of `fit`: log_every, reports, checkpoints.

    Returns:
        Restarts. One that stops being finite stays where it was and is reported. Where all agree there
        is one answer, or one trap for all.

    Raises:
        TypeError: for a step function in place of the rule.
        ValueError: where leaves of states do not share a first axis.
        FloatingPointError: where none was finite to the end.

    Example:
        >>> draws = vj.types.Draws(None, jnp.zeros(1), jnp.zeros(1))
        >>> estimate = lambda key, params: vj.types.Estimate(-((params["m"] - 3.0) ** 2), draws)
        >>> rule = vj.fitting.ascent(estimate, optax.sgd(0.5))
        >>> states = jax.vmap(rule.init)({"m": jnp.array([0.0, 9.0])})
        >>> result = restarts(jax.random.key(0), rule, states, steps=16, reports=())
        >>> float(result.average["m"]), result.same_params.tolist()
        (3.0, [True, True])

    Reference: Gelman, Rubin, Inference from iterative simulation using multiple sequences, 1992;
        Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box variational
        inference, 2022, arXiv:2203.15945.
    """
    check_rule(rule, "restarts(key, rule, states, steps=...)")
    number = _number_of_restarts(states)
    # One rule whose state is all states, for `fit` to repeat and to average.
    together = Rule(
        init=jax.vmap(rule.init),
        step=partial(_step_together, rule.step, number),
        params=partial(_watch_together, rule.params if watch is None else watch),
    )
    start = Many(states, jnp.int32(0), jnp.full(number, -1, jnp.int32))
    result = fit(key, together, start, steps=steps, stop=stop, **options)
    return _compared(result, jax.vmap(unit)(result.average), tolerance)


def _number_of_restarts(states: PyTree) -> int:
    """Return the first axis that all leaves share; refuse states of one fit."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(states)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "every leaf of states must be [restarts, ...] with one number of restarts, got "
            f"{sorted(sizes)}; make them with jax.vmap(rule.init)(params)."
        )
    return int(sizes.pop()[0])


def _watch_together(watch: Callable[[PyTree], PyTree], state: Many) -> PyTree:
    """Return what is watched of every restart, leaves [restarts, ...]."""
    return jax.vmap(watch)(state.states)


def _step_together(
    step: Callable[..., Any], number: int, key: Key[Array, ""], state: Many
) -> tuple[Many, Step]:
    """Take a step of every restart; one that is no longer finite stays as it was before."""
    new, report = jax.vmap(step)(jax.random.split(key, number), state.states)
    value, taken, log_w, gradient = jax.vmap(_loop.told_of)(report)

    # [restarts]: which left the finite numbers in this step, and which did before.
    lost = ~jnp.isfinite(value) | jax.vmap(_loop.newly_not_finite)(new, state.states)
    alive = (state.died < 0) & ~lost
    died = jnp.where((state.died < 0) & lost, state.step, state.died)

    # Log-weights as one batch, [k, restarts, ...]; those of the dead count alike.
    log_w = jnp.moveaxis(where(alive, log_w, jnp.zeros_like(log_w)), 0, 1)
    kept = where(alive, new, state.states)
    draws = Draws(None, log_w, jnp.zeros_like(log_w))
    if gradient is not None:
        gradient = where(alive, gradient, jax.tree.map(jnp.zeros_like, gradient))
    # A dead restart must not look like one whose steps are left out: `died` says what it is.
    taken = jnp.where(alive, taken, 1.0)
    return Many(kept, state.step + 1, died), Step(
        jnp.where(alive, value, 0.0), draws, gradient, taken
    )


def _compared(result: Fit, units: PyTree, tolerance: float) -> Restarts:
    """Say which restarts agree with the best of those that live."""
    alive = np.asarray(result.state.died < 0)
    if not alive.any():
        raise FloatingPointError(
            f"no restart stayed finite; they ended in steps {np.asarray(result.state.died)}."
        )
    bound = jnp.where(alive, result.bound, jnp.nan)
    # The largest mean bound over the tail; a dead restart's is nan.
    best = int(jnp.nanargmax(bound))
    distance, excess = _distances(result, units, best, tolerance, alive)
    compared = np.asarray(numerics.comparable(bound, result.bound_error)[1])
    # Of those whose bound is not worse by far; one alone has nothing to agree with.
    rhats = jax.tree.map(partial(_rhat, compared), result.average, result.tail.spread)
    agreement = _largest([jnp.float32(1.0), *jax.tree.leaves(rhats)])
    # Errors of both bounds, added in quadrature.
    reach = STANDARD_ERRORS * jnp.hypot(result.bound_error, result.bound_error[best])
    return Restarts(
        fit=result,
        best=best,
        average=_row(result.average, best),
        bound=bound,
        bound_error=jnp.where(alive, result.bound_error, jnp.nan),
        same_bound=bound[best] - bound <= reach,
        same_params=excess <= 1,
        distance=distance,
        rhat=agreement if compared.sum() > 1 else jnp.full_like(agreement, jnp.nan),
        died=result.state.died,
    )


def _row(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _largest(numbers: list[Array]) -> Array:
    return jnp.max(jnp.stack([number.astype(jnp.float32) for number in numbers]))


def _distances(
    result: Fit, units: PyTree, best: int, tolerance: float, alive: np.ndarray
) -> tuple[Array, Array]:
    """Return how far every restart's average is from the best one's, at the furthest parameter.

    Args:
        result: the fit of all.
        units: of the averages, leaves [restarts, ...].
        best: which restart the others are compared with.
        tolerance: in units, as in `restarts`.
        alive: which restarts stayed finite, [restarts].

    Returns:
        The distance in units, and as a share of what is allowed, [restarts] each; nan where it
        died.
    """

    def furthest(average: Array, error: Array, unit: Array) -> tuple[Array, Array]:
        unit = jnp.broadcast_to(unit, average.shape[1:])
        off = jnp.abs(average - average[best][None])
        # What noise explains, and what is close enough in any case.
        allowed = STANDARD_ERRORS * jnp.hypot(error, error[best][None]) + tolerance * unit[None]
        in_units = off.reshape(len(off), -1) / unit.reshape(1, -1)
        excess = (off / allowed).reshape(len(off), -1)
        return jnp.max(in_units, 1, initial=0.0), jnp.max(excess, 1, initial=0.0)

    trees = result.average, result.tail.error, _row(units, best)
    leaves = [jax.tree.leaves(tree) for tree in trees]
    # The furthest number of every leaf, and then of all leaves; nan where it died.
    of_leaves = [furthest(*leaf) for leaf in zip(*leaves, strict=True)]
    dead = jnp.where(alive, 0.0, jnp.nan)
    distance = jnp.max(jnp.stack([dead, *(distance for distance, _ in of_leaves)]), 0)
    excess = jnp.max(jnp.stack([dead, *(excess for _, excess in of_leaves)]), 0)
    return distance, excess


def _rhat(compared: np.ndarray, average: Array, spread: Array) -> Array:
    """Return the largest R-hat between restarts that are compared, over the numbers of a leaf, ()."""
    count = compared.sum()

    def total(a: Array) -> Array:
        return jnp.sum(where(compared, a, jnp.zeros_like(a)), 0)

    mean = total(average) / count
    between = total(jnp.square(average - mean[None])) / max(count - 1, 1)
    within = total(jnp.square(spread)) / count
    # Iterates that stand still agree only where they are one number.
    of_still = jnp.where(between > 0, jnp.inf, 1.0)
    of_moving = jnp.sqrt(1 + between / jnp.where(within > 0, within, 1.0))
    return jnp.max(jnp.where(within > 0, of_moving, of_still), initial=1.0)
