"""Score-function gradients: derivatives of log q, weighted by how good each draw was."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from vijax import checks, draws, engine
from vijax.numerics import expand, leave_one_out_mean, with_score
from vijax.types import Bound, ClosedForms, Objective, keywords


@engine.taking("score")
def score(bound: Bound, *, baseline: ArrayLike | None = None) -> Objective:
    """Score-function gradient (REINFORCE) of any bound: unbiased for any q of fixed support, with
    the highest variance.

        ∇φ = E[Σₖ (B - b) ∇ log q(zₖ)] + E[Σₖ B'ₖ ∇φ log wₖ|z]

    When one draw is all you can afford; with two or more, `vimco` needs no baseline and has less
    variance.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch]. Of a mean of terms draw k gets its
            own, (termₖ - b)/K: log wₖ for elbo, f(wₖ) for f_divergence, and of others what
            `types.ClosedForms` (terms, own) knows; else the noise grows with k.
        baseline: b in nats, broadcast against [*batch] and stopped; it must not depend on these draws. A running mean
            of past values is the usual choice (`moving_average`); build the objective inside the step,
            `score(elbo, baseline=mean)`.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. Second
        derivatives are refused.

    Raises:
        ValueError: (when called) for members of the batch that log_joint or q couples, and shapes that do not agree.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)  # the posterior, of evidence e³
        >>> objective = score(vj.bounds.elbo, baseline=2.5)
        >>> estimate = objective(jax.random.key(0), lambda z: q.log_prob(z) + 3.0, q, num_samples=1)
        >>> round(float(estimate.value), 3)
        3.0

    Reference: Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning,
        1992; Ranganath, Gerrish, Blei, Black box variational inference, 2014, arXiv:1401.0118.
    """
    needs = engine.Needs(fixed_support=True, members=True)
    strategy = partial(_scored, baseline=baseline)
    return engine.make_objective("score", bound, draws.iid, engine.Estimator(needs, strategy))


@engine.taking("vimco")
def vimco(bound: Bound) -> Objective:
    """Leave-one-out score gradient of any bound: for any q of fixed support; first choice without a
    path.

        ∇φ = E[Σₖ (B - B₋ₖ + cₖ) ∇ log q(zₖ)] + E[Σₖ B'ₖ ∇φ log wₖ|z],   B₋ₖ: the bound of the other draws

    For iwae this is VIMCO, for elbo leave-one-out REINFORCE. At the posterior no noise is left.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch] that also takes k - 1 draws; O(k)
            where it knows its `leave_one_out` or its `terms`, O(k²) otherwise.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. Draw k is dropped rather
        than replaced by the others' geometric mean, so a weight of -inf is harmless. A state of
        probability 0 is never drawn, and its slope never evaluated: give q logits, in which it is 0.
        cₖ = γ/K Σⱼ ∂B₋ₖ/∂log wⱼ, with γ = 1 of a mean of terms and 1 - 1.2/2ᴷ of other bounds, takes away
        noise that B'ₖ brings with log q; where q is poor it costs a tenth in sd of two to five draws, and
        a twentieth of ten. Second derivatives are refused.

    Raises:
        ValueError: (when called) for num_samples < 2, a bound that cannot lose a draw, members of the batch that
            log_joint or q couples, or shapes that do not agree.

    Example:
        >>> log_joint = distrax.Bernoulli(logits=0.0).log_prob
        >>> def value(logit):
        ...     q = distrax.Bernoulli(logits=logit)
        ...     return vimco(vj.bounds.elbo)(jax.random.key(0), log_joint, q, num_samples=4).value
        >>> round(abs(float(jax.jit(jax.grad(value))(0.0))), 3)  # 0 draw by draw at the posterior
        0.0

    Reference: Mnih, Rezende, Variational inference for Monte Carlo objectives, 2016, arXiv:1602.06725; Kool, van Hoof,
        Welling, Buy 4 REINFORCE samples, get a baseline for free, 2019.
    """
    return engine.make_objective("vimco", bound, draws.iid, LEAVE_ONE_OUT)


# --- the strategies

# Why one draw is too few, for messages.
ALONE = "A draw is judged against the others; with one draw use gradients.score with a baseline."


def at_fixed_draws(request: engine.Request) -> Callable[[engine.Plan], engine.Evaluated]:
    """Return the evaluation of draws held fixed: log q has the derivative of its parameters alone.

    That of sample_and_log_prob has the path's too, so log q is evaluated again.
    """

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z = jax.lax.stop_gradient(request.sample(seeds)[0])
        log_q = jax.vmap(request.q.log_prob)(z)
        log_p, aux = request.evaluate(z, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux)

    return evaluate


def _scored(request: engine.Request, baseline: ArrayLike | None) -> engine.Strategy:
    bound = request.bound

    def value(log_p: Array, log_q: Array, _: None) -> Array:
        log_w = log_p - log_q
        stopped = jax.lax.stop_gradient(log_w)
        bound_value = bound(stopped)
        b = jnp.broadcast_to(_broadcastable(baseline, bound_value.shape), bound_value.shape)
        # Draw k's signal is what of B depends on it, less its share of the baseline.
        part, share = own_parts(bound, request.forms, stopped)
        signal = jnp.broadcast_to(part - share * b[None], log_w.shape)
        return surrogate(bound, log_w, signal, log_q)

    return engine.Strategy(at_fixed_draws(request), value)


def _broadcastable(baseline: ArrayLike | None, batch: tuple[int, ...]) -> Array:
    """Return the baseline; refuse one that does not broadcast to the batch."""
    b = jnp.asarray(0.0 if baseline is None else baseline)
    try:
        fits = jnp.broadcast_shapes(b.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"baseline has shape {b.shape}, which does not broadcast to the batch {batch}."
        )
    return b


def own_parts(bound: Bound, forms: ClosedForms, log_w: Array) -> tuple[Array, Any]:
    """Return what of the bound depends on each draw, [k, *batch], and its share of a baseline.

    What the other draws add has mean zero beside a draw's score, and is noise alone.
    """
    if forms.own is not None:
        return forms.own(log_w)
    weights = own_weights(bound, forms, log_w)
    if weights is None:
        return bound(log_w)[None], 1.0
    terms = log_w if forms.terms is None else forms.terms(log_w)
    total = jnp.sum(weights, 0, keepdims=True)
    # A draw of no weight counts for nothing, though it be -inf.
    part = weights * jnp.where(weights == 0, 0.0, terms)
    return part, weights / jnp.where(total == 0, 1.0, total)


def own_weights(bound: Bound, forms: ClosedForms, log_w: Array) -> Array | None:
    """Return what each draw's term counts, for a bound that is a sum of terms; None for any other."""
    if forms.terms is not None:
        weights = keywords(bound).get("weights")
        k = log_w.shape[0]
        return jnp.full_like(log_w, 1 / k) if weights is None else expand(weights, log_w)
    if not forms.linear:
        return None
    # A linear bound is Σₖ weightₖ log wₖ, whose slope is the same everywhere.
    return jax.grad(lambda log_w: jnp.sum(bound(log_w)))(jnp.zeros_like(log_w))


def _leave_one_out(request: engine.Request) -> engine.Strategy:
    bound = request.bound

    def value(log_p: Array, log_q: Array, _: None) -> Array:
        log_w = log_p - log_q
        return surrogate(bound, log_w, centered(bound, request.forms, log_w), log_q)

    return engine.Strategy(at_fixed_draws(request), value)


LEAVE_ONE_OUT = engine.Estimator(
    engine.Needs(least=2, why=ALONE, fixed_support=True, members=True), _leave_one_out
)


def centered(bound: Bound, forms: ClosedForms, log_w: Array) -> Array:
    """Return the signal of each draw where its own slope B'ₖ takes part too, [k, *batch], stopped.

    The coefficient of draw k's score is B - B₋ₖ - B'ₖ. What the slopes come to on average is noise; it is
    found from the other draws alone, as the change of B₋ₖ when all of them are shifted. Where a bound is
    no mean of terms, two or three draws cannot tell a good q, for which all of it should go, from a poor
    one, for which none should.
    """
    log_w = jax.lax.stop_gradient(log_w)
    k = log_w.shape[0]
    is_sum = own_weights(bound, forms, log_w) is not None
    # γ of the docstring of `vimco`, measured.
    share = 1.0 if is_sum else 1 - 1.2 * 0.5**k
    return left_out(bound, forms, log_w) + share / k * _slope_without_each(bound, forms, log_w)


def _slope_without_each(bound: Bound, forms: ClosedForms, log_w: Array) -> Array:
    """Return the sum of the slopes of the bound without each draw in turn, [k, *batch]."""
    ones = jnp.ones_like(log_w)
    if _in_closed_form(forms):
        # B₋ₖ and its derivative along (1, ..., 1), both [k, *batch].
        of_shift = partial(without_each, bound, forms)
        others, slope = jax.jvp(of_shift, (log_w,), (ones,))
    else:
        # In reverse: a bound of the user's may have a custom_vjp.
        def shifted(log_w: Array, /, *, weights: Array | None = None) -> Array:
            others, pull = jax.vjp(bound, log_w)
            return jnp.sum(pull(jnp.ones_like(others))[0], 0)

        others, slope = ones, without_each(shifted, ClosedForms(), log_w)
    return jnp.where(jnp.isfinite(others) & jnp.isfinite(slope), slope, 0.0)


def _in_closed_form(forms: ClosedForms) -> bool:
    return forms.leave_one_out is not None or forms.terms is not None


def left_out(bound: Bound, forms: ClosedForms, log_w: Array) -> Array:
    """Return B - B₋ₖ for each draw, [k, *batch], stopped; refuse a bound that holds weights of k draws."""
    weights = keywords(bound).get("weights")
    if weights is not None:
        raise ValueError(
            f"{checks.describe(bound)} is bound to weights of {jnp.shape(weights)[0]} draws, and "
            "here is judged without each draw in turn, which they do not fit: leave `weights` out, "
            "or use gradients.score or gradients.reparam."
        )
    log_w = jax.lax.stop_gradient(log_w)
    others = without_each(bound, forms, log_w)
    if jnp.shape(others) != log_w.shape:
        raise engine.not_one_value_per_draw(bound, others, log_w)
    # Others that are all impossible offer no comparison; 0 in their place depends on no draw, so no
    # bias comes of it.
    return bound(log_w)[None] - jnp.where(jnp.isfinite(others), others, 0.0)


def without_each(bound: Bound, forms: ClosedForms, log_w: Array) -> Array:
    """Return the bound without each draw in turn: in O(k) by its closed form, if it has one, else O(k²)."""
    if forms.leave_one_out is not None:
        return forms.leave_one_out(log_w)
    if forms.terms is not None:
        return leave_one_out_mean(forms.terms(log_w))
    k = log_w.shape[0]
    if log_w.size == 0:
        return log_w

    # The other k - 1 rows, cyclically from row i + 1 on.
    def others(i: Array) -> Array:
        return bound(log_w[(i + 1 + jnp.arange(k - 1)) % k])

    return jax.lax.map(others, jnp.arange(k), batch_size=min(64, k))


def surrogate(bound: Bound, log_w: Array, signal: Array, log_q: Array) -> Array:
    """Return the bound, with Σₖ signalₖ ∇ log qₖ added to its derivative."""
    value = bound(log_w)
    # An infinite signal is reported with the value; it says nothing of where to go.
    finite = jnp.where(jnp.isfinite(signal), signal, 0.0)
    return with_score(value, value + jnp.sum(jax.lax.stop_gradient(finite) * log_q, 0))
