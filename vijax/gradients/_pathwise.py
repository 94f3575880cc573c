"""Pathwise gradients: derivatives travel through the draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import draws, engine
from vijax.gradients._slopes import path_slopes
from vijax.numerics import expand, scale_gradient, with_score
from vijax.types import Bound, Draw, Objective, PyTree

Gate = Callable[[Array], Array]


@engine.taking("reparam")
def reparam(bound: Bound, *, draw: Draw = draws.iid) -> Objective:
    """Reparameterized gradient of any bound, for any q whose draws carry its derivative; first
    choice for elbo.

        ∇ E_ε[B(log w(z(ε, φ)))] = E_ε[∇ B(log w(z(ε, φ)))],   z = T(ε, φ)

    Nothing is dropped, so second derivatives, forward mode and coupled draws are right too. For iwae
    `dreg` has a better signal for q.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].
        draw: how to draw, `draws.iid` or coupled.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. log_joint may couple
        members of the batch (batch normalization). With a chunk_size < num_samples the model is evaluated in pieces,
        forward and backward, in reverse mode only. Gamma, beta and Dirichlet draws of float32 carry a
        biased derivative where every concentration is below .05, which no trace shows: see the guide to
        refusals for a cure.

    Raises:
        ValueError: (when called) for a q whose draws miss part of the derivative, and for shapes that do not agree.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)  # the posterior, of evidence e³
        >>> estimate = reparam(vj.bounds.elbo)(jax.random.key(0), lambda z: q.log_prob(z) + 3.0, q, num_samples=4)
        >>> round(float(estimate.value), 3)
        3.0

    Reference: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114.
    """
    return engine.make_objective("reparam", bound, draw, PATHWISE)


@engine.taking("dreg")
def dreg(bound: Bound, *, draw: Draw = draws.iid) -> Objective:
    """Doubly-reparameterized gradient of any bound: unbiased, without the score of q; first choice
    for iwae.

        ∇φ = Σₖ (B'ₖ - B''ₖₖ) ∂log wₖ/∂zₖ ∂zₖ/∂φ      (B'ₖ, B''ₖₖ: derivatives of the bound in log wₖ)
        ∇θ = Σₖ B'ₖ ∂log p(x, zₖ; θ)/∂θ               (the model's parameters: exactly reparam's)

    For elbo this is sticking the landing.

    Args:
        bound: of `vijax.bounds`, or any smooth log_w [k, *batch] -> [*batch]; one without a closed-form gate
            (B' - B'')/B' costs O(k²) on the weights and a second backward pass. A kink of your own is declared by
            `types.with_closed_forms(smooth=False)`.
        draw: `draws.iid`, or coupled draws for a bound linear in log_w.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. It evaluates the model
        twice, in forward and reverse mode; XLA merges the two, unless log_joint holds a loop. With
        chunk_size=num_samples the model is evaluated once forward and once backward whatever it holds,
        in reverse mode; a smaller chunk_size evaluates in pieces. log_joint must be continuous in z, and
        must not stop gradients in z. Second derivatives are refused.

    Raises:
        ValueError: (when called) for a q whose draws miss part of the derivative or whose support moves with its
            parameters, for a bound with a kink, for coupled draws, or members of the batch that log_joint or
            q couples (batch normalization), under a bound that is not linear, and for shapes that do not agree.

    Example:
        >>> log_joint = distrax.Normal(0.0, 1.0).log_prob
        >>> def value(loc):
        ...     q = distrax.Normal(loc, 1.0)
        ...     return dreg(vj.bounds.iwae)(jax.random.key(0), log_joint, q, num_samples=4).value
        >>> round(abs(float(jax.jit(jax.grad(value))(0.0))), 3)  # 0 draw by draw at the posterior
        0.0

    Reference: Tucker, Lawson, Gu, Maddison, Doubly reparameterized gradient estimators for Monte Carlo objectives,
        2019, arXiv:1810.04152; Roeder, Wu, Duvenaud, Sticking the landing, 2017, arXiv:1703.09194.
    """
    return engine.make_objective("dreg", bound, draw, DOUBLY)


@engine.taking("split", "model=bounds.iwae, q=bounds.elbo")
def split(*, model: Bound, q: Bound, draw: Draw = draws.iid) -> Objective:
    """Two bounds from one set of draws: an unbiased gradient of one for the model, and by `dreg` of
    another for q.

        ∇θ = Σₖ M'ₖ ∂log p(x, zₖ; θ)/∂θ,     ∇φ = Σₖ (B'ₖ - B''ₖₖ) ∂log wₖ/∂zₖ ∂zₖ/∂φ

    A tight bound M takes the signal from the encoder.
    `split(model=iwae, q=partial(multi_iwae, groups=8))` is PIWAE.

    Args:
        model: M, the bound that the model's parameters ascend, and the value; of `vijax.bounds`, or any.
        q: B, the bound that q's parameters ascend, smooth.
        draw: `draws.iid`, or coupled draws for a bound of q linear in log_w.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. What holds for `dreg`
        holds here; the model is evaluated twice, forward and backward. The whole gradient is that of no
        one function, so that optimizers with a line search do not apply.

    Raises:
        ValueError: (when called) as `dreg` of q's bound does.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)  # the posterior, of evidence e³
        >>> objective = split(model=vj.bounds.iwae, q=vj.bounds.elbo)
        >>> estimate = objective(jax.random.key(0), lambda z: q.log_prob(z) + 3.0, q, num_samples=4)
        >>> round(float(estimate.value), 3)
        3.0

    Reference: Rainforth et al., Tighter variational bounds are not necessarily better, 2018, arXiv:1802.04537; Tucker,
        Lawson, Gu, Maddison, Doubly reparameterized gradient estimators for Monte Carlo objectives, 2019,
        arXiv:1810.04152.
    """
    return engine.make_objective("split", model, draw, DOUBLY, path_bound=q)


# --- the strategies


def pathwise(request: engine.Request) -> engine.Strategy:
    """Nothing is dropped: the derivative passes through z and through both densities."""

    def weigh(z: PyTree, log_q: Array, seeds: engine.Plan) -> tuple[tuple[Array, Array], PyTree]:
        log_p, aux = request.evaluate(z, log_q, seeds)
        return (log_p, log_q), aux

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample(seeds)
        log_p, aux = request.evaluate(z, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux)

    def value(log_p: Array, log_q: Array, _: None) -> Array:
        return request.bound(log_p - log_q)

    return engine.Strategy(
        evaluate, value, one_pass=engine.OnePass(request.sample, weigh, gated=False)
    )


PATHWISE = engine.Estimator(engine.Needs(path=True), pathwise, own_derivative=True)


def doubly_reparameterized(request: engine.Request) -> engine.Strategy:
    """Drop the score of q, and give q's path B'ₖ - B''ₖₖ: the form that evaluates the model least."""
    forms, one_bound = request.forms, request.path_bound is request.bound
    # From the cheapest form to the most general one.
    if one_bound and forms.linear:
        return _linear(request)
    if not one_bound or forms.gate is None:
        return _ungated(request)
    if request.chunk_size is None:
        return _gated_in_two_evaluations(request, forms.gate)
    return _gated_in_one_evaluation(request, forms.gate)


DOUBLY = engine.Estimator(
    engine.Needs(path=True, fixed_support=True, independent=True, smooth=True, gated_members=True),
    doubly_reparameterized,
)


def _linear(request: engine.Request) -> engine.Strategy:
    """Without curvature the path gets B'ₖ itself: one evaluation, q's score dropped."""

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample_members(seeds)
        (log_p, log_q), aux = _weigh(request, z, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux)

    return engine.Strategy(evaluate, _value_of(request), one_pass=_one_pass(request))


def _gated_in_two_evaluations(request: engine.Request, gate: Gate) -> engine.Strategy:
    """Evaluate the model at stopped draws for the weights, and again with the draws gated by them.

    Under jit XLA merges the two, unless log_joint holds a loop. It has both modes of derivatives.
    """

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample_members(seeds)
        log_p, _ = request.evaluate(jax.lax.stop_gradient(z), log_q, seeds)
        # Equal to z in value; its derivative is (B'ₖ - B''ₖₖ) / B'ₖ of z's.
        gated = scale_gradient(z, jax.lax.stop_gradient(gate(log_p - log_q)))
        (log_p, log_q), aux = _weigh(request, gated, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux)

    return engine.Strategy(evaluate, _value_of(request))


def _gated_in_one_evaluation(request: engine.Request, gate: Gate) -> engine.Strategy:
    """Evaluate the model once; the gate comes back to the draws with the cotangents."""

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample_members(seeds)
        # The token's cotangent, made by `reply`, is the gate of each draw, [k, *batch].
        gated, token = _receive(z, jnp.zeros_like(log_q))
        (log_p, log_q), aux = _weigh(request, gated, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux, token)

    return engine.Strategy(evaluate, _value_of(request), reply=gate, one_pass=_one_pass(request))


def _ungated(request: engine.Request) -> engine.Strategy:
    """No gate folds the two slopes into one: the model's parameters get theirs from an evaluation of their own."""
    bound, path_bound = request.bound, request.path_bound

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample_members(seeds)
        log_p_of_model, _ = request.evaluate(jax.lax.stop_gradient(z), log_q, seeds)
        (log_p, log_q), aux = _weigh(request, z, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux, log_p_of_model)

    def value(log_p: Array, log_q: Array, log_p_of_model: Array) -> Array:
        log_w = log_p - log_q
        stopped = jax.lax.stop_gradient(log_w)
        slope, path_slope = path_slopes(path_bound, stopped)
        if bound is not path_bound:
            slope = jax.lax.stop_gradient(jax.grad(lambda log_w: jnp.sum(bound(log_w)))(stopped))
        bound_value = bound(stopped)  # with the derivative of whatever else the bound depends on
        # q's path has the weight B'ₖ - B''ₖₖ, and so has log p's: what is missing of B'ₖ for the
        # model comes from the evaluation at stopped draws.
        terms = path_slope * log_w + (slope - path_slope) * log_p_of_model
        return with_score(bound_value, bound_value + jnp.sum(terms, 0))

    return engine.Strategy(
        evaluate, value, one_pass=_one_pass(request) if bound is path_bound else None
    )


# --- what the doubly reparameterized strategies share


def _weigh(
    request: engine.Request, z: PyTree, log_q: Array, seeds: engine.Plan
) -> tuple[tuple[Array, Array], PyTree]:
    """Return log p and log q, the latter with the derivative that passes through z alone, and aux."""
    path_log_q = request.stopped_log_prob(z)(z)
    if path_log_q.shape != log_q.shape:
        raise engine.densities_disagree(path_log_q, log_q)
    log_q = with_score(jax.lax.stop_gradient(log_q), path_log_q)
    log_p, aux = request.evaluate(z, log_q, seeds)
    return (log_p, log_q), aux


def _value_of(request: engine.Request) -> Callable[[Array, Array, Any], Array]:
    def value(log_p: Array, log_q: Array, _: object) -> Array:
        return request.bound(log_p - log_q)

    return value


def _one_pass(request: engine.Request) -> engine.OnePass:
    def weigh(z: PyTree, log_q: Array, seeds: engine.Plan) -> tuple[tuple[Array, Array], PyTree]:
        return _weigh(request, z, log_q, seeds)

    return engine.OnePass(request.sample_members, weigh, gated=True)


# --- a reply to each draw

# The gate of a draw is known only after the bound has every weight. So that one evaluation is
# enough, it comes back with the cotangents, as the reply to a token that went out with the draw.


@jax.custom_vjp
def _receive(z: PyTree, token: Array) -> tuple[PyTree, Array]:
    return z, token


def _receive_backward(_: None, cotangents: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
    dz, factor = cotangents

    def gated(d: Array) -> Array:
        return (d * expand(factor, d)).astype(d.dtype)

    return jax.tree.map(gated, dz), jnp.zeros_like(factor)


_receive.defvjp(lambda z, token: ((z, token), None), _receive_backward)
