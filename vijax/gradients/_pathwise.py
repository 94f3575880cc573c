"""Pathwise gradients: derivatives travel through the draws."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Key

from vijax import checks, draws, pathways
from vijax import jaxprs as dataflow
from vijax.draws import Plan
from vijax.gradients._curvature import path_slopes
from vijax.gradients._objective import admit, estimate, weighted
from vijax.numerics import expand, scale_gradient, with_score
from vijax.types import Bound, Draw, Draws, Estimate, LogJoint, Objective, PyTree, closed_forms


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

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound)
        checks.uncoupled(bound, draw, "reparam")
        pathways.require(q, draw, key, "reparam")
        judge, weights = weighted(bound, draw, q, num_samples)
        seeds = draws.plan(key, log_joint, draw, num_samples)

        def sample(seeds: Plan) -> tuple[PyTree, Array]:
            return jax.vmap(lambda seed: draw.sample(seed, q))(seeds.draw)

        def weigh(z: PyTree, log_q: Array, seeds: Plan) -> tuple[tuple[Array, Array], PyTree]:
            log_p, aux = draws.evaluate(log_joint, z, log_q, seeds.model)
            return (log_p, log_q), aux

        def look(seeds: Plan) -> Any:
            z, log_q = sample(seeds)
            found, aux = weigh(z, log_q, seeds)
            return (*found, None), (z, aux)

        passed = _one_pass(judge, sample, weigh, seeds, chunk_size, gated=False)
        return passed or estimate(look, lambda p, q, _: judge(p - q), seeds, chunk_size, weights=weights)

    return objective


def dreg(bound: Bound, *, draw: Draw = draws.iid) -> Objective:
    """Doubly-reparameterised gradient of any bound: unbiased, without the score of q; first choice for iwae.

        ∇φ = Σₖ (B'ₖ - B''ₖₖ) ∂log wₖ/∂zₖ ∂zₖ/∂φ      (B'ₖ, B''ₖₖ: derivatives of the bound in log wₖ)
        ∇θ = Σₖ B'ₖ ∂log p(x, zₖ; θ)/∂θ               (the model's parameters: exactly reparam's)

    The factor (B' - B'')/B' gates what flows through each draw: 1 for elbo, where this is sticking the landing; w̃ₖ for
    iwae, where it is DReG; α + (1-α) w̃ₖ for Rényi. At the exact posterior the gradient in φ is zero draw by draw.

    The plain form looks at the model twice and works in forward and reverse mode; XLA merges the two looks, unless
    log_joint holds a scan or while loop. With `chunk_size=num_samples` the model is evaluated once forward and once
    backward whatever it holds, in reverse mode; a smaller chunk_size evaluates in pieces, memory flat in num_samples.
    Second derivatives mean nothing here. log_joint must not couple members of the batch (use `reparam` under batch
    normalisation), must be continuous in z, and must not stop gradients in z.

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
            parameters, for a bound with a kink, for coupled draws under a bound that is not linear, and for shapes that
            do not agree.

    Reference: Tucker, Lawson, Gu, Maddison, Doubly reparameterized gradient estimators for Monte Carlo objectives,
        2019, arXiv:1810.04152; Roeder, Wu, Duvenaud, Sticking the landing, 2017, arXiv:1703.09194.
    """
    return _doubly(bound, bound, draw, "dreg")


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
    return _doubly(model, q, draw, "split")


def _doubly(bound: Bound, of_path: Bound, draw: Draw, estimator: str) -> Objective:
    """Return the objective that gives the model `bound`'s slopes, and q's path `of_path`'s, without a score."""
    one = bound is of_path

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound)
        log_joint = checks.linear(of_path, log_joint)
        checks.independent(of_path, draw, estimator)
        checks.smooth(of_path, estimator)
        paths = pathways.require(q, draw, key, estimator)
        judge, weights = weighted(bound, draw, q, num_samples)
        if weights is not None and not one:
            raise ValueError(
                f"{estimator} takes draws that count alike: the weights of these hold parameters of q, which would "
                "ascend the model's bound. Use draws.iid, or gradients.dreg or gradients.reparam of one bound."
            )
        linear = one and closed_forms(bound).linear
        gate = closed_forms(judge).gate if one and not linear else None
        once = chunk_size is not None  # one look, and the gate sent back to the draws with the cotangents
        seeds = draws.plan(key, log_joint, draw, num_samples)

        def sample(seeds: Plan) -> tuple[PyTree, Array]:
            z, log_q = jax.vmap(lambda seed: draw.sample(seed, q))(seeds.draw)
            checks.batch_leads(z, log_q)
            return z, log_q

        def weigh(z: PyTree, log_q: Array, seeds: Plan) -> tuple[tuple[Array, Array], PyTree]:
            path_log_q = frozen(q, z, paths, estimator)(z)
            if path_log_q.shape != log_q.shape:
                raise ValueError(
                    f"q.log_prob(z) of the draws has shape {path_log_q.shape}, and q.sample_and_log_prob gave log_q "
                    f"{log_q.shape} ([k, *batch]); the two methods of q must agree."
                )
            log_q = with_score(jax.lax.stop_gradient(log_q), path_log_q)
            log_p, aux = draws.evaluate(log_joint, z, log_q, seeds.model)
            return (log_p, log_q), aux

        def look(seeds: Plan) -> Any:
            z, log_q = sample(seeds)
            seen, extra = z, None
            if gate is not None and once:
                seen, extra = _receive(z, jnp.zeros_like(log_q))
            elif not linear:
                log_p, _ = draws.evaluate(log_joint, jax.lax.stop_gradient(z), log_q, seeds.model)
                if gate is not None:
                    seen = scale_gradient(z, jax.lax.stop_gradient(gate(log_p - log_q)))
                else:
                    # No gate to fold the two slopes into one: the model's parameters get theirs from their own look.
                    extra = log_p
            found, aux = weigh(seen, log_q, seeds)
            return (*found, extra), (z, aux)

        def value(log_p: Array, log_q: Array, extra: Any) -> Array:
            log_w = log_p - log_q
            if extra is None or gate is not None:
                return judge(log_w)
            stopped = jax.lax.stop_gradient(log_w)
            whole, path = path_slopes(judge if one else of_path, stopped)
            whole = whole if one else jax.lax.stop_gradient(jax.grad(lambda l: jnp.sum(judge(l)))(stopped))
            judged = judge(stopped)  # with the derivative of whatever else the bound depends on
            return with_score(judged, judged + jnp.sum(path * log_w + (whole - path) * extra, 0))

        passed = _one_pass(judge, sample, weigh, seeds, chunk_size, gated=True) if one else None
        return passed or estimate(look, value, seeds, chunk_size, gate if once else None, weights)

    return objective


def _one_pass(
    bound: Bound, sample: Any, weigh: Any, seeds: Plan, chunk_size: int | None, *, gated: bool
) -> Estimate | None:
    """Estimate in a single pass over chunks, if this is a power mean for a batch of shape (1,); or else None.

    A batch of shape () is left to two passes: it may be one member under the caller's vmap, and in one pass each member
    would keep a gradient of all parameters.
    """
    n = closed_forms(bound).power
    if not isinstance(n, (int, float)) or chunk_size is None or chunk_size >= seeds.rows:
        return None
    _, *batch = jax.eval_shape(sample, seeds)[1].shape
    if not batch or math.prod(batch) != 1:
        return None
    path = (1.0 - n, float(n)) if gated else (1.0, 0.0)
    score, (log_p, log_q), aux = draws.online(sample, weigh, seeds, chunk_size, power=float(n), path=path)
    seen = jax.lax.stop_gradient(Draws(None, log_p, log_q, None, aux))
    return Estimate(with_score(bound(seen.log_w), jnp.broadcast_to(score, batch)), seen)


def frozen(q: Any, z: PyTree, paths: dict[str, pathways.Path], estimator: str = "dreg") -> Callable[[PyTree], Array]:
    """Return log q as a function of draws [k, ...] alone: q's parameters are stopped where they enter its jaxpr.

    Stopping q itself leaks: a distribution may hold its parameters where jax.tree.map does not see them.
    """
    closed, _ = dataflow.trace(jax.vmap(q.log_prob), z)
    pathways.support(closed, paths, estimator)
    log_prob = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, [jax.lax.stop_gradient(c) for c in closed.consts]))
    return lambda z: log_prob(*jax.tree.leaves(z))[0]


# The gate of a draw is known only after the bound has seen every weight. So that one look is enough, it comes back with
# the cotangents, as the reply to a token that went out with the draw.


@jax.custom_vjp
def _receive(z: PyTree, token: Array) -> tuple[PyTree, Array]:
    return z, token


def _receive_backward(_: None, cotangents: Any) -> Any:
    dz, factor = cotangents
    return jax.tree.map(lambda d: (d * expand(factor, d)).astype(d.dtype), dz), jnp.zeros_like(factor)


_receive.defvjp(lambda z, token: ((z, token), None), _receive_backward)
