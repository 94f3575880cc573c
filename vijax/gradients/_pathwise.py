"""Pathwise gradients: derivatives travel through the draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax import draws, engine
from vijax.numerics import expand, scale_gradient, with_score
from vijax.types import Bound, Draw, Objective, PyTree

Gate = Callable[[Array], Array]


@engine.taking("reparam")
def reparam(bound: Bound, *, draw: Draw = draws.iid) -> Objective:
    """Reparameterised gradient of any bound, for any q whose draws carry its derivative; first choice for elbo.

        ∇ E_ε[B(log w(z(ε, φ)))] = E_ε[∇ B(log w(z(ε, φ)))],   z = T(ε, φ)

    Nothing is dropped, so second derivatives, forward mode and coupled draws are right too, and log_joint may couple
    members of the batch (batch normalisation). For iwae and its kin `dreg` has a much better signal for q.

    Gamma, beta and Dirichlet draws rely on JAX's implicit derivatives, which in float32 are biased where every
    concentration is below .05, and for the logarithm of such a gamma draw (a twelfth of the truth at .001). No trace
    shows it. Bound concentrations from below, or draw log z = log z' + log(u)/a with z' ~ Gamma(a + 1), which is right.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].
        draw: how to draw, `draws.iid` or coupled.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. With a
        chunk_size < num_samples the model is evaluated in pieces, forward and backward, in reverse mode only.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a q whose draws miss part of the derivative, and for shapes that do not agree.

    Reference: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114.
    """
    return engine.make_objective("reparam", bound, draw, PATHWISE)


@engine.taking("dreg")
def dreg(bound: Bound, *, draw: Draw = draws.iid) -> Objective:
    """Doubly-reparameterised gradient of any bound: unbiased, without the score of q; first choice for iwae.

        ∇φ = Σₖ (B'ₖ - B''ₖₖ) ∂log wₖ/∂zₖ ∂zₖ/∂φ      (B'ₖ, B''ₖₖ: derivatives of the bound in log wₖ)
        ∇θ = Σₖ B'ₖ ∂log p(x, zₖ; θ)/∂θ               (the model's parameters: exactly reparam's)

    The factor (B' - B'')/B' gates what flows through each draw: 1 for elbo, where this is sticking the landing; w̃ₖ for
    iwae, where it is DReG; α + (1-α) w̃ₖ for Rényi. At the exact posterior the gradient in φ is zero draw by draw.

    The plain form looks at the model twice and works in forward and reverse mode; XLA merges the two looks, unless
    log_joint holds a scan or while loop. With `chunk_size=num_samples` the model is evaluated once forward and once
    backward whatever it holds, in reverse mode; a smaller chunk_size evaluates in pieces, memory flat in num_samples.
    Second derivatives are refused. log_joint must be continuous in z, and must not stop gradients in z.

    Args:
        bound: of `vijax.bounds`, or any smooth log_w [k, *batch] -> [*batch]; one without a closed-form gate
            costs O(k²) on the weights and a second backward pass. A kink of your own is declared by
            `types.with_closed_forms(smooth=False)`.
        draw: `draws.iid`, or coupled draws for a bound linear in log_w.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a q whose draws miss part of the derivative or whose support moves with its
            parameters, for a bound with a kink, for coupled draws, or members of the batch that log_joint or
            q couples (batch normalization), under a bound that is not linear, and for shapes that do not agree.

    Reference: Tucker, Lawson, Gu, Maddison, Doubly reparameterized gradient estimators for Monte Carlo objectives,
        2019, arXiv:1810.04152; Roeder, Wu, Duvenaud, Sticking the landing, 2017, arXiv:1703.09194.
    """
    return engine.make_objective("dreg", bound, draw, DOUBLY)


@engine.taking("split", "model=bounds.iwae, q=bounds.elbo")
def split(*, model: Bound, q: Bound, draw: Draw = draws.iid) -> Objective:
    """Two bounds from one set of draws: an unbiased gradient of one for the model, and of another, by `dreg`, for q.

        ∇θ = Σₖ M'ₖ ∂log p(x, zₖ; θ)/∂θ,     ∇φ = Σₖ (B'ₖ - B''ₖₖ) ∂log wₖ/∂zₖ ∂zₖ/∂φ      (M: model's bound, B: q's)

    A tight bound is what a model wants, and takes the signal from the encoder: `split(model=iwae, q=partial(multi_iwae,
    groups=8))` is PIWAE. The whole gradient is that of no one function, so that optimisers with a line search do not
    apply. What holds for `dreg` holds here; the model is looked at twice and pulled back twice.

    Args:
        model: the bound that the model's parameters ascend, and the value; of `vijax.bounds`, or any.
        q: the bound that q's parameters ascend, smooth.
        draw: `draws.iid`, or coupled draws for a bound of q linear in log_w.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) as `dreg` of q's bound does.

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
        gated = scale_gradient(z, jax.lax.stop_gradient(gate(log_p - log_q)))
        (log_p, log_q), aux = _weigh(request, gated, log_q, seeds)
        return engine.Evaluated(log_p, log_q, z, aux)

    return engine.Strategy(evaluate, _value_of(request))


def _gated_in_one_evaluation(request: engine.Request, gate: Gate) -> engine.Strategy:
    """Evaluate the model once; the gate comes back to the draws with the cotangents."""

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample_members(seeds)
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
    def value(log_p: Array, log_q: Array, _: Any) -> Array:
        return request.bound(log_p - log_q)

    return value


def _one_pass(request: engine.Request) -> engine.OnePass:
    def weigh(z: PyTree, log_q: Array, seeds: engine.Plan) -> tuple[tuple[Array, Array], PyTree]:
        return _weigh(request, z, log_q, seeds)

    return engine.OnePass(request.sample_members, weigh, gated=True)


# --- slopes of a bound that brings no closed form of its own


def path_slopes(bound: Bound, log_w: Float[Array, "k *batch"]) -> tuple[Array, Array]:
    """Return B'ₖ and B'ₖ - B''ₖₖ, each [k, *batch], for members of the batch that do not touch each other.

    One row at a time, so that memory stays O(k) where all second derivatives at once would take O(k²).
    """
    slope = jax.grad(lambda log_w: jnp.sum(bound(log_w)))

    def curvature(k: Array) -> Array:
        row = jnp.zeros_like(log_w).at[k].set(1.0)
        return jax.jvp(slope, (log_w,), (row,))[1][k]

    if log_w.size == 0:
        return log_w, log_w
    whole = slope(log_w)
    rows = jnp.arange(log_w.shape[0])
    second = jax.lax.map(curvature, rows, batch_size=min(64, log_w.shape[0]))
    return jax.lax.stop_gradient(whole), jax.lax.stop_gradient(whole - second)


# --- a reply to each draw

# The gate of a draw is known only after the bound has seen every weight. So that one evaluation is
# enough, it comes back with the cotangents, as the reply to a token that went out with the draw.


@jax.custom_vjp
def _receive(z: PyTree, token: Array) -> tuple[PyTree, Array]:
    return z, token


def _receive_backward(_: None, cotangents: Any) -> Any:
    dz, factor = cotangents

    def gated(d: Array) -> Array:
        return (d * expand(factor, d)).astype(d.dtype)

    return jax.tree.map(gated, dz), jnp.zeros_like(factor)


_receive.defvjp(lambda z, token: ((z, token), None), _receive_backward)
