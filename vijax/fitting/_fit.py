"""A whole fit by a rule: what is asked for is checked, the loop run, its tail averaged."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax import checks, jaxprs
from vijax.calls import described, function, is_known, usage
from vijax.fitting import _checkpoint, _iterates, _loop, _reports, _stopping, _tail
from vijax.fitting._checkpoint import Checkpoints
from vijax.fitting._drive import Ended, Saved, Settings, drive
from vijax.fitting._loop import THIN, Loop
from vijax.fitting._reports import Report
from vijax.fitting._stopping import Verdict
from vijax.fitting._tail import Tail
from vijax.fitting._trouble import NotFinite
from vijax.types import PyTree, Rule


class Curve(NamedTuple):
    """The bound of a fit from its first step on, in a memory that does not grow.

    Fields:
        step: how many steps were made at the end of each stretch, [n], n at most 64.
        bound: the mean over that stretch, in nats, [n, ...].
    """

    step: np.ndarray
    bound: np.ndarray


class Fit(NamedTuple):
    """Where a fit ended.

    Fields:
        state: after the last step, all finite.
        average: the mean of what is watched (the params) over `tail`: the answer, better than any
            one iterate.
        tail: that average with its standard error, spread, and what still moves.
        bound: the mean bound over that tail, in nats.
        bound_error: its standard error.
        curve: the bound over the whole fit, as means of at most 64 stretches of steps.
        log_w: log-weights of the last draws, [rows, k, *batch], every eighth step's, in no order.
        steps: how many were made.
        stopped: why it stopped, a sentence.
        trouble: what was not finite, None where nothing was.
    """

    state: PyTree
    average: PyTree
    tail: Tail
    bound: Array
    bound_error: Array
    curve: Curve
    log_w: Array
    steps: int
    stopped: str
    trouble: NotFinite | None

    def __repr__(self) -> str:
        """Say in a line what is in so many arrays."""
        bound, error = (
            np.array2string(np.asarray(a), formatter={"float_kind": digits.format})
            for a, digits in ((self.bound, "{:.7g}"), (self.bound_error, "{:.2g}"))
        )
        return f"Fit(steps={self.steps}, bound={bound} ± {error} nats, stopped={self.stopped!r})"


@usage("fitting.fit", "fitting.fit(key, rule, rule.init(params), steps=5000)")
def fit(
    key: Key[Array, ""],
    rule: Rule,
    state: PyTree,
    *,
    steps: int,
    stop: Callable[[Tail], Verdict] | None = _stopping.stationary(),  # noqa: B008
    watch: Callable[[PyTree], PyTree] | None = None,
    log_every: int | None = None,
    reports: Sequence[Report] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Repeat a rule's step until it is enough, and average the iterates.

        stateᵢ₊₁, reportᵢ = rule.step(fold_in(key, i), stateᵢ)
        average = mean of rule.params(stateᵢ) over the tail

    No chunk of steps, cut or resume changes a bit of the result. A fit that is no longer finite, or is
    interrupted, stops with the state before.

    Args:
        key: of the fit; step i is given fold_in(key, i).
        rule: one of `vijax.updates`, of `fitting.ascent`, or your own `types.Rule(init, step, params)`,
            whose `step(key, state) -> (state, Step)` is repeated. One that mends what is not finite
            itself must return a finite bound.
        state: what `rule.init(params)` returned, a pytree of arrays.
        steps: the most steps, counted from the very first, those before a resume included.
        stop: Tail -> Verdict, asked four times in each doubling of the steps from the 512th on;
            None for never, nor is it then said what still moves.
        watch: state -> what is averaged and judged; `rule.params` by default. `lambda state: ()`
            for nothing, and no stop. 64 blocks of it are remembered, 128 times its memory, and as much of a
            gradient: for large networks watch a part.
        log_every: steps of a chunk; by default as many as take .2 seconds.
        reports: what is told after each chunk, context managers or functions of a dict; by default
            `fitting.bar()` where tqdm is installed, () for silence. One that raises is left out
            from there on, with a warning.
        checkpoints: where to save everything, and to resume from if anything is there; what was
            saved by another step, or with other data in it, is refused.

    Returns:
        Fit. `stopped` says, and a warning, what was still moving and where that would lead where the
        steps ran out, that steps were not taken, or which gradient is nan; where a number of the
        state or the bound is not finite, in which step and with which key, and what came first: a
        draw, log q, log p, the bound, a leaf of the gradient. Where `steps` is below 8 the average is
        the last state.

    Raises:
        TypeError: for a step function in place of the rule, or params in place of the state; for a
            step whose state comes back with another structure, shape or dtype; for a traced state.
        ValueError: for steps below 1; for checkpoints of another fit.
        RuntimeError: where there are checkpoints and none verifies.

    Example:
        >>> draws = vj.types.Draws(None, jnp.zeros(1), jnp.zeros(1))
        >>> estimate = lambda key, params: vj.types.Estimate(-((params["m"] - 3.0) ** 2), draws)
        >>> rule = vj.fitting.ascent(estimate, optax.sgd(0.5))
        >>> state = rule.init({"m": jnp.zeros(())})
        >>> result = fit(jax.random.key(0), rule, state, steps=16, reports=())
        >>> float(result.average["m"]), result.stopped
        (3.0, 'all 16 steps were made')

    Reference: Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box
        variational inference, 2022, arXiv:2203.15945; Polyak, Juditsky, Acceleration of stochastic
        approximation by averaging, 1992.
    """
    checks.key(key)
    check_rule(rule, "fit(key, rule, state, steps=...)")
    _check_options(steps, log_every, checkpoints)
    _check_state(state)
    if not is_known(key, state):
        raise TypeError(
            "fit runs on the host, between compiled chunks; under jit or vmap use lax.scan over "
            "the step."
        )
    # Compiled once for a step and what is watched, however often the two are fitted.
    watch = rule.params if watch is None else watch
    function(watch, "watch")
    uncalled: object = _stopping.stationary  # the factory itself, without its brackets
    if stop is not None and (stop is uncalled or not callable(stop)):
        raise TypeError(
            f"stop must be a function Tail -> Verdict, or None for never, got {described(stop)}: "
            "fitting.stationary() with its brackets."
        )
    program = _loop.program(rule.step, watch)
    loop = program.start(key, state)
    # Of the step's jaxpr and the data in it: a checkpoint of another one is refused.
    mark = None
    if checkpoints is not None:
        mark = jaxprs.fingerprint(rule.step, key, loop.state)
        loop = _resumed(checkpoints, Saved(loop, mark))
    # The host drives; what it needs to know is in `settings`, what changes in `loop`.
    # Where nothing is watched there is nothing to judge, and all steps are made.
    watches = bool(jax.tree.leaves(jax.eval_shape(watch, loop.state)))
    judge = _compiled(stop) if stop and watches else None
    settings = Settings(rule.step, program, judge, steps, log_every, checkpoints, mark)
    # Reports are closed also where the fit raises.
    with ExitStack() as stack:
        writers = [_reports.opened(stack, report) for report in _reports.chosen(reports)]
        ended = drive(settings, loop, writers)
    return _result(ended, watch)


def check_rule(rule: object, call: str) -> None:
    """Refuse anything but a rule, nearly always its step alone."""
    if isinstance(rule, Rule):
        return
    is_function = callable(rule)
    given = f"a function, {checks.describe(rule)}" if is_function else type(rule).__name__
    raise TypeError(
        f"{call} takes the rule itself, one of vijax.updates or fitting.ascent, got {given}. "
        "Pass the rule in place of rule.step; a step of your own becomes one by "
        "types.Rule(init, step, params), where params says what of the state is averaged."
    )


def _check_state(state: PyTree) -> None:
    """Refuse a state whose leaves are not arrays or numbers, such as a family or its params' init."""
    for name, leaf in checks.named_leaves(state):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
            raise TypeError(
                "state must be what the rule's init(params) returned, a pytree of arrays, and "
                f"leaf '{name}' is {described(leaf)}: begin with rule.init(params), params = "
                "family.init(key, like)."
            )


def _check_options(steps: object, log_every: object, checkpoints: object) -> None:
    """Refuse counts that are not Python ints from 1 on, and a path in place of Checkpoints."""
    if not isinstance(checkpoints, Checkpoints | None):
        raise TypeError(
            f"checkpoints must be fitting.Checkpoints(path, every=steps), got {checkpoints!r}."
        )
    checks.static_count(steps, "steps")
    if log_every is not None:
        checks.static_count(log_every, "log_every")
    if checkpoints is not None:
        checks.static_count(checkpoints.every, "every")


def _resumed(checkpoints: Checkpoints, here: Saved) -> Loop:
    """Return the newest checkpoint that verifies; the loop itself where there is none."""
    there: Saved = _checkpoint.restore(checkpoints.path, here).tree
    keys = [jax.random.key_data(saved.loop.key) for saved in (there, here)]
    # Another key would make other draws from here on, another fingerprint another target.
    if not np.array_equal(keys[0], keys[1]):
        raise ValueError(
            f"{checkpoints.path} holds the fit of another key. Name another folder for this one."
        )
    if not np.array_equal(there.fingerprint, here.fingerprint):
        raise ValueError(
            f"{checkpoints.path} holds the fit of another rule: its step computes something else, "
            "or closes over other data, or was traced by another release of JAX. Name another "
            "folder; to go on from there all the same, begin with the state of fitting.restore."
        )
    return there.loop


@lru_cache(maxsize=16)
def _compiled(stop: Callable[[Tail], Verdict]) -> Callable[[Tail], Verdict]:
    def judge(tail: Tail) -> Verdict:
        verdict = stop(tail)
        if not (hasattr(verdict, "done") and hasattr(verdict, "error")):
            raise TypeError(
                f"stop(tail) must return a fitting.Verdict, got {described(verdict)}: such as "
                "fitting.stationary()(tail)._replace(done=...)."
            )
        return verdict

    return jax.jit(judge)


def _result(ended: Ended, watch: Callable[[PyTree], PyTree]) -> Fit:
    """Return the fit of where the loop ended: its tail, and the bound over it."""
    loop = ended.loop
    whole = jax.tree.map(jnp.asarray, _tail.tail(loop.iterates))
    tail, bound = whole.part("params"), whole.average["bound"]
    # Too few steps for an iterate: take the last state.
    if int(loop.iterates.number) == 0:
        tail = tail._replace(average=watch(loop.state))
        bound = loop.pending["bound"] / jnp.maximum(loop.step, 1).astype(bound.dtype)
    # Means of the bound in whole blocks, and the iterate at the end of each: THIN steps apart.
    bounds, numbers = _iterates.history(loop.iterates)
    return Fit(
        state=loop.state,
        average=tail.average,
        tail=tail,
        bound=bound,
        bound_error=whole.error["bound"],
        curve=Curve(THIN * numbers, bounds),
        log_w=loop.log_w[: _loop.rows_written(loop.step)],
        steps=int(loop.step),
        stopped=ended.stopped,
        trouble=ended.trouble,
    )
