"""Pathwise gradients of the prior's own parameters, for latents whose prior is itself parameterized."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, draws, engine, jaxprs
from vijax.gradients._slopes import path_slopes
from vijax.numerics import with_score
from vijax.types import Bound, Objective, PyTree, closed_forms


@runtime_checkable
class Prior(Protocol):
    """What gdreg asks of the prior: its density, of one draw."""

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log pλ(z), [*batch]."""
        ...


@engine.taking("gdreg", "bounds.iwae, prior=prior, push=push, pull=pull")
def gdreg(
    bound: Bound,
    *,
    prior: Prior,
    push: Callable[[PyTree], PyTree],
    pull: Callable[[PyTree], PyTree],
) -> Objective:
    """Doubly-reparameterized gradient of any bound for the prior's parameters as well: unbiased,
    without their score.

        ∇λ = Σₖ (B'ₖ ∂log pᵣ(zₖ)/∂zₖ - (B'ₖ - B''ₖₖ) ∂log wₖ/∂zₖ) ∂T(ε; λ)/∂λ  at  ε = T⁻¹(zₖ; λ)

    For hierarchies and conditional priors pλ, whose score is noisy: draws of q are written as the
    prior's own, z = T(ε; λ). It pays where the likelihood says little.

    Args:
        bound: of `vijax.bounds`, or any smooth log_w [k, *batch] -> [*batch], as for `dreg`.
        prior: with log_prob(z) -> [*batch], one draw; its support is fixed, and is that of q. What it
            does not explain of log_joint, log pᵣ(z) = log p(x, z) - log pλ(z), keeps its plain
            gradient: a prior that is not a factor costs variance, not bias. For one Gaussian at the
            exact posterior the variance is dreg's over (likelihood's noise / prior's scale)⁴.
        push: T, noise -> z with the law of the prior, smooth in its parameters; one draw of any pytree.
        pull: its inverse, z -> noise. A pair that is not this prior's is a biased gradient.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. Build it inside the
        step, as prior, push and pull close over λ; log_joint stays the whole of log p(x, z), must be
        continuous in z, and must not stop gradients in z. It is evaluated twice, forward and backward.
        Second derivatives are refused.

    Raises:
        TypeError: (when called) for a push that does not return z's tree.
        ValueError: (when called) for a q or a push that misses part of the derivative, a support that moves with the
            parameters, for members of the batch that log_joint or q couples under a bound that is not linear, and
            for shapes that do not agree.

    Example:
        >>> q = prior = distrax.Normal(0.0, 1.0)
        >>> objective = gdreg(vj.bounds.iwae, prior=prior, push=lambda e: e, pull=lambda z: z)
        >>> log_joint = lambda z: prior.log_prob(z) + 3.0
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(float(value(jax.random.key(0))), 3)
        3.0

    Reference: Bauer, Mnih, Generalized doubly reparameterized gradient estimators, 2021, arXiv:2101.11046.
    """
    needs = engine.Needs(
        path=True, fixed_support=True, smooth=True, plain_target=True, gated_members=True
    )
    return engine.make_objective(
        "gdreg",
        bound,
        draws.iid,
        engine.Estimator(needs, partial(_carried, prior=prior, push=push, pull=pull)),
    )


def _carried(
    request: engine.Request,
    prior: Prior,
    push: Callable[[PyTree], PyTree],
    pull: Callable[[PyTree], PyTree],
) -> engine.Strategy:
    """In value each draw is z; in derivative the one of q, less the one that the prior carries along."""
    bound = request.bound

    # T(ε; λ) at the noise that makes each draw: z in value, with the derivative of the prior.
    def carry(z: PyTree) -> PyTree:
        return push(jax.lax.stop_gradient(pull(z)))

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, log_q = request.sample_members(seeds)
        _refuse_jumps(push, pull, jax.tree.map(lambda leaf: leaf[0], z))
        stopped = jax.lax.stop_gradient(z)
        path_log_q = request.stopped_log_prob(stopped)
        _refuse_moving_support(request, prior, push, pull)

        def log_w(z: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            log_p, aux = request.evaluate(z, log_q, seeds)
            return jnp.sum(log_p - path_log_q(z)), (log_p, aux)

        # Stopped in all that it closes over, so that a derivative by that is not one of the slope.
        slope, (log_p, aux) = jaxprs.stopped(jax.grad(log_w, has_aux=True), stopped)[0](stopped)
        carried = jax.vmap(carry)(stopped)

        # Σ ∂log wₖ/∂z · (z - T(ε; λ)), [k, *batch]: 0 in value, and q's path less the prior's.
        def along(slope: Array, z: Array, carried: Array) -> Array:
            change = slope * (z - carried)
            return jnp.sum(change.reshape(*log_q.shape, -1), -1)

        moved = sum(jax.tree.leaves(jax.tree.map(along, slope, z, carried)))
        # log pᵣ at the carried draws: what the prior does not explain.
        rest = request.evaluate(carried, log_q, seeds)[0] - jax.vmap(prior.log_prob)(carried)
        return engine.Evaluated(log_p, jax.lax.stop_gradient(log_q), z, aux, (moved, rest))

    def value(log_p: Array, log_q: Array, extra: tuple[Array, Array]) -> Array:
        moved, rest = extra
        log_w = log_p - log_q
        slope, path_slope = _slopes(bound, log_w)
        bound_value = bound(log_w)
        return with_score(bound_value, bound_value + jnp.sum(path_slope * moved + slope * rest, 0))

    return engine.Strategy(evaluate, value)


def _refuse_moving_support(
    request: engine.Request,
    prior: Prior,
    push: Callable[[PyTree], PyTree],
    pull: Callable[[PyTree], PyTree],
) -> None:
    """Refuse a prior whose support moves, or one that would move the support of q."""
    carried = jaxprs.carried_away(request.q, request.key, push, pull)
    if carried:
        raise ValueError(
            "gdreg lets q's draws follow the prior's parameters, and push carries an end of q's "
            "support along: give q the support of the prior, or use gradients.dreg."
        )
    # Of a prior that states its density alone, its draws on all of q's support are evidence enough.
    if carried is None or hasattr(prior, "sample_and_log_prob"):
        every_leaf = dict.fromkeys(request.paths, jaxprs.Path(None, parametric=True))
        moving = jaxprs.moving_support(prior, request.key, every_leaf)
        if moving is not None:
            raise engine.support_moves("gdreg of this prior", moving)


def _slopes(bound: Bound, log_w: Array) -> tuple[Array, Array]:
    """Return B'ₖ and B'ₖ - B''ₖₖ, from the bound's closed-form gate if it has one."""
    gate = closed_forms(bound).gate
    if gate is None:
        return path_slopes(bound, log_w)
    slope = jax.grad(lambda log_w: jnp.sum(bound(log_w)))(log_w)
    return jax.lax.stop_gradient((slope, slope * gate(log_w)))


def _refuse_jumps(
    push: Callable[[PyTree], PyTree], pull: Callable[[PyTree], PyTree], z: PyTree
) -> None:
    """Refuse a prior whose draws do not follow its parameters, or are not like q's."""
    noise = jax.eval_shape(pull, z)
    closed, shape = jaxprs.trace(push, noise)
    if jax.tree.map(jnp.shape, shape) != jax.tree.map(jnp.shape, z):
        raise TypeError(
            f"push(pull(z)) must be like z, {jax.tree.map(jnp.shape, z)}; got "
            f"{jax.tree.map(jnp.shape, shape)}."
        )
    # Noise carries no parameter; what push closes over does.
    given = [jaxprs.DRAWN] * len(jax.tree.leaves(noise))
    flows = jaxprs.flows(closed, given, jaxprs.PARAMETER)
    for (name, _), flow in zip(checks.named_leaves(z), flows, strict=True):
        how = flow.broken_by("parameter")
        if how:
            raise ValueError(
                f"gdreg's draws must follow the prior's parameters, and push reaches leaf '{name}' "
                f"through '{how}': use gradients.dreg, which takes the prior's plain score."
            )
