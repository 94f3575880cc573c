"""From an estimator to an objective: admit the call, evaluate its draws, whole or in chunks, and report."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks, jaxprs, numerics
from vijax.calls import answered, usage
from vijax.engine import _refusals as refusals
from vijax.engine._bound import require_smooth
from vijax.engine._chunks import Rows, chunked
from vijax.engine._density import no_density
from vijax.engine._evaluate import Plan
from vijax.engine._one_pass import Sample, Weigh, one_pass
from vijax.engine._request import Needs, Request, admit, require
from vijax.types import (
    Bound,
    Caveat,
    Distribution,
    Draw,
    Draws,
    Estimate,
    LogJoint,
    Objective,
    PyTree,
)

F = TypeVar("F", bound=Callable[..., Any])


class Evaluated(NamedTuple):
    """Some draws, evaluated; each with leading axis k.

    Fields:
        log_p: log p(x, z) in nats, [k, *batch].
        log_q: log q(z) in nats, [k, *batch].
        z: the draws.
        aux: the target's auxiliary output.
        extra: whatever else the estimator's value is made of, [k, ...]: a signal, a second log p, or
            a token that is told the draw's gate.
    """

    log_p: Array
    log_q: Array
    z: PyTree
    aux: PyTree = None
    extra: PyTree = None


class OnePass(NamedTuple):
    """What a single pass over chunks needs, for a power mean of one member of the batch.

    Fields:
        sample: seeds -> (z, log_q).
        weigh: (z, log_q, seeds) -> ((log_p, log_q), aux).
        gated: whether q's path gets B'ₖ - B''ₖₖ, or B'ₖ itself.
    """

    sample: Sample
    weigh: Weigh
    gated: bool


class Strategy(NamedTuple):
    """What is an estimator's own: how it evaluates draws, and what it makes of them.

    Fields:
        evaluate: rows of seeds -> Evaluated.
        value: (log_p, log_q, extra) of all draws -> the bound [*batch], with the estimator's
            derivative.
        reply: log_w [k, *batch] -> the cotangent that `extra` gets in chunks, see `chunked`.
        seeds: of the draws, where they are not those of the request.
        weights: log_q of all draws -> their weights for the record, where the request has none.
        one_pass: the same estimator in one pass over chunks, if it has that form; tried first, and
            made of the request's own seeds.
    """

    evaluate: Callable[[Plan], Evaluated]
    value: Callable[[Array, Array, PyTree], Array]
    reply: Callable[[Array], Array] | None = None
    seeds: Plan | None = None
    weights: Callable[[Array], Array] | None = None
    one_pass: OnePass | None = None


class Estimator(NamedTuple):
    """A gradient estimator.

    Fields:
        needs: what its derivation needs.
        strategy: how it evaluates one admitted call.
        own_derivative: whether the derivative of its value is that value's own, so that it may pass
            through what is not linear and be differentiated again; of most it is right in its mean
            alone.
    """

    needs: Needs
    strategy: Callable[[Request], Strategy]
    own_derivative: bool = False


def make_objective(
    name: str,
    bound: Bound,
    draw: Draw,
    estimator: Estimator | Callable[[Request], Estimator],
    *,
    path_bound: Bound | None = None,
) -> Objective:
    """Make an objective of a bound and an estimator; every objective of vijax is made here.

    Args:
        name: of the estimator, for messages.
        bound: of log-weights.
        draw: how to draw.
        estimator: an Estimator; or a function of the admitted call, where q decides which one.
        path_bound: the bound whose derivatives q's path gets, where that is another one.

    Returns:
        `types.Objective`.

    Example:
        >>> def strategy(request):  # the reparameterization gradient
        ...     def rows(seeds):
        ...         z, log_q = request.sample(seeds)
        ...         log_p, aux = request.evaluate(z, log_q, seeds)
        ...         return Evaluated(log_p, log_q, z, aux)
        ...     return Strategy(rows, lambda log_p, log_q, extra: request.bound(log_p - log_q))
        >>> objective = make_objective("mine", vj.bounds.elbo, vj.draws.iid, Estimator(Needs(), strategy))
        >>> log_p = lambda z: 2.0 - 0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi)
        >>> q = vj.families.mean_field().dist({"loc": jnp.zeros(()), "log_scale": jnp.zeros(())})
        >>> round(float(objective(jax.random.key(0), log_p, q, num_samples=4).value), 3)
        2.0
    """
    _refuse_more_arguments(bound)
    for_path = bound if path_bound is None else path_bound
    needs = estimator.needs if isinstance(estimator, Estimator) else Needs()

    made = f"gradients.{name}({checks.describe(bound)})"

    def objective(
        key: Key[Array, ""],
        log_joint: LogJoint,
        q: Distribution | PyTree,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> Estimate:
        try:
            request = admit(
                name, bound, for_path, draw, needs, key, log_joint, q, num_samples, chunk_size
            )
            # `auto` chooses by q; what it chose has needs of its own.
            chosen = estimator if isinstance(estimator, Estimator) else estimator(request)
            require(request, chosen.needs)
            result = estimate(request, chosen.strategy(request))
        except NotImplementedError as error:
            said = no_density(name, q, key)
            if said is None:
                raise
            raise said from error
        if chosen.own_derivative:
            return result
        # Inside another log_joint whose value passes through what is not linear, only the value may stand.
        through = checks.needs_own_derivative()
        if through is not None:
            refusal = refusals.right_in_its_mean(name, through)
            return result._replace(value=checks.value_alone(result.value, refusal))
        return once_differentiable(result, name)

    return answered(objective, made, f"{made}(key, log_joint, q, num_samples=16)")


def taking(name: str, arguments: str = "bounds.elbo") -> Callable[[F], F]:
    """Decorate an estimator, whose arguments are named where a key and a model were given instead.

    Example:
        >>> halved = taking("halved")(lambda bound: lambda log_w: 0.5 * bound(log_w))
        >>> float(halved(vj.bounds.elbo)(jnp.array([1.0, 3.0])))
        1.0
    """
    made = f"gradients.{name}({arguments})"
    return usage(
        f"gradients.{name}", f"{made}, and the outcome as (key, log_joint, q, num_samples=16)"
    )


def _refuse_more_arguments(bound: object) -> None:
    """Refuse what is no bound, and one that cannot be called with log_w alone."""
    if not callable(bound) or isinstance(bound, Distribution):
        raise refusals.not_a_function(bound)
    try:
        expected = inspect.signature(bound)
    except ValueError as error:
        if isinstance(bound, partial):
            raise refusals.not_a_bound(bound, error) from None
        # A builtin that shows no signature.
        return
    # An estimator takes a bound, an objective a number of samples.
    names = list(expected.parameters)
    if names[:1] == ["bound"] or "num_samples" in names:
        raise refusals.an_estimator(bound)
    # With log_w alone: every other argument must have a default.
    try:
        expected.bind(None)
    except TypeError as error:
        raise refusals.not_a_bound(bound, error) from None


def once_differentiable(result: Estimate, estimator: str) -> Estimate:
    """Return an estimate whose second derivatives are refused: an estimator's gradient is right in its mean alone.

    Example:
        >>> estimate = lambda x: vj.types.Estimate(x**2, None)
        >>> value = lambda x: once_differentiable(estimate(x), "score").value
        >>> float(jax.grad(value)(3.0))
        6.0
    """
    refusal = partial(refusals.differentiated_twice, estimator)
    value = numerics.once_differentiable(result.value, refusal)
    return result._replace(value=jaxprs.mean_slope_alone(value))


def estimate(request: Request, strategy: Strategy) -> Estimate:
    """Evaluate every draw, take the value of what was found, and report it with the draws."""
    seeds = request.seeds if strategy.seeds is None else strategy.seeds
    # Cheaper where it applies: no draw is evaluated a second time.
    if strategy.one_pass is not None:
        result = _in_one_pass(request, strategy.one_pass)
        if result is not None:
            return result
    # A reply exists in chunks alone, so even one chunk goes that way.
    chunk_size = request.chunk_size
    if chunk_size is None or (chunk_size >= seeds.rows and strategy.reply is None):
        log_p, log_q, z, aux, extra = strategy.evaluate(seeds)
    else:

        def rows(seeds: Plan) -> Rows:
            evaluated = strategy.evaluate(seeds)
            return (evaluated.log_p, evaluated.log_q, evaluated.extra), evaluated.aux

        # Draws that were stored would cost the memory that chunks save.
        z = None
        (log_p, log_q, extra), aux = chunked(rows, seeds, chunk_size, reply=strategy.reply)
    if request.members is not None:
        # One check where both bounds are the same.
        for bound in {id(b): b for b in (request.bound, request.path_bound)}.values():
            request.members.bound_apart(bound, log_q)
    if request.needs_smooth:
        require_smooth(request.estimator, request.path_bound, log_q)
    value = strategy.value(log_p, log_q, extra)
    if value.shape != log_q.shape[1:]:
        raise refusals.wrong_shape_of_bound(log_q, value)
    # The record holds no derivative: only `value` is differentiable.
    weights = request.weights if strategy.weights is None else strategy.weights(log_q)
    draws = Draws(z, log_p, log_q, weights, aux, _caveat(request))
    return Estimate(value, jax.lax.stop_gradient(draws))


def _caveat(request: Request) -> Caveat | None:
    """Return why log p of the draws is right in its mean alone, if it is."""
    return Caveat(request.target.only_mean) if request.target.only_mean else None


def _in_one_pass(request: Request, form: OnePass) -> Estimate | None:
    """Estimate in a single pass over chunks where the bound is a power mean for a batch of shape (1,).

    A batch of shape () is left to two passes: it may be one member under the caller's vmap, and in
    one pass each member would keep a gradient of all parameters.
    """
    n = None if request.forms.power is None else request.forms.power()
    chunk_size = request.chunk_size
    if not isinstance(n, (int, float)) or chunk_size is None or chunk_size >= request.seeds.rows:
        return None
    # Shapes alone: nothing is drawn here.
    _, *batch = jax.eval_shape(form.sample, request.seeds)[1].shape
    if not batch or math.prod(batch) != 1:
        return None
    # A gate leaves B'ₖ - B''ₖₖ = (1 - n) vₖ + n vₖ² to the path of draw k.
    gathered = one_pass(
        form.sample,
        form.weigh,
        request.seeds,
        chunk_size,
        power=float(n),
        path=(1.0 - n, float(n)) if form.gated else (1.0, 0.0),
    )
    if gathered is None:
        return None
    score, (log_p, log_q), aux = gathered
    draws = jax.lax.stop_gradient(Draws(None, log_p, log_q, None, aux, _caveat(request)))
    # The bound's own value, with the derivative that was gathered.
    value = numerics.with_score(request.bound(draws.log_w), jnp.broadcast_to(score, batch))
    return Estimate(value, draws)
