"""Per-latent choice: each leaf of q gets the estimator that its draws allow."""

from typing import Any

import jax
from jaxtyping import Array, Key

from vijax import draws, engine
from vijax.gradients._pathwise import PATHWISE
from vijax.gradients._score import ALONE, LEAVE_ONE_OUT, centered, surrogate
from vijax.types import Bound, Joint, Objective, PyTree


@engine.taking("auto")
def auto(bound: Bound) -> Objective:
    """Unbiased gradient of any bound for any q: pathwise where draws carry the derivative,
    leave-one-out elsewhere.

        ∇φ = E[∇φ B(log w)|path] + E[Σₖ (B - B₋ₖ) Σ_{leaf without a path} ∇φ log q(leaf | earlier)]

    For discrete next to continuous latents, each possibly given the earlier ones. Decided while
    tracing, from the samplers' jaxprs.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch] that also takes k - 1 draws.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. q is a dict, tuple or
        `types.Joint` of distributions; one distribution gets `reparam` or `vimco` as a whole. Second
        derivatives are refused unless all leaves are pathwise.

    Raises:
        ValueError: (when called) for num_samples < 2 if any leaf has no path, for members of the batch that
            log_joint or q couples while any leaf has no path, or shapes that do not agree.

    Example:
        >>> q = {"z": distrax.Normal(0.0, 1.0), "switch": distrax.Bernoulli(logits=0.0)}
        >>> log_joint = vj.types.lift(q).log_prob  # q is the posterior, and the evidence 1
        >>> objective = auto(vj.bounds.iwae)
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(abs(float(value(jax.random.key(0)))), 3)
        0.0

    Reference: Schulman, Heess, Weber, Abbeel, Gradient estimation using stochastic computation graphs, 2015,
        arXiv:1506.05254; Mnih, Rezende, Variational inference for Monte Carlo objectives, 2016, arXiv:1602.06725.
    """
    return engine.make_objective("auto", bound, draws.iid, by_leaf)


def by_leaf(request: engine.Request) -> engine.Estimator:
    """Choose: a path where every leaf has one, leave-one-out where none has, and both in a Joint."""
    # A q that is one distribution has a path as a whole, or none.
    if not isinstance(request.q, Joint):
        broken = any(path.broken is not None for path in request.paths.values())
        return LEAVE_ONE_OUT if broken else PATHWISE
    # `request.scored` has refused a support that moves, so fixed_support is not asked for again.
    return (
        engine.Estimator(engine.Needs(least=2, why=ALONE, members=True), _mixed)
        if request.scored
        else PATHWISE
    )


def _mixed(request: engine.Request) -> engine.Strategy:
    bound, q, scored = request.bound, request.q, request.scored

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        z, parts = jax.vmap(lambda seed: sample_parts(q, seed, scored))(seeds.draw)
        # [k, *batch]; of the scored leaves apart, whose densities the signals multiply.
        log_q: Any = sum(parts.values())
        log_p, aux = request.evaluate(z, log_q, seeds)
        log_q_scored: Any = sum(log_prob for name, log_prob in parts.items() if name in scored)
        return engine.Evaluated(log_p, log_q, z, aux, log_q_scored)

    def value(log_p: Array, log_q: Array, log_q_scored: Array) -> Array:
        log_w = log_p - log_q
        return surrogate(bound, log_w, centered(bound, request.forms, log_w), log_q_scored)

    return engine.Strategy(evaluate, value)


def sample_parts(
    q: Joint, key: Key[Array, ""], scored: set[Any]
) -> tuple[PyTree, dict[Any, Array]]:
    """Draw the leaves in order, those in `scored` stopped; return them, and log q of each given the
    earlier ones.

    The density of a scored leaf keeps its derivative in earlier leaves: that is how their path reaches it.
    """
    leaves: dict[Any, Any] = {}
    parts: dict[Any, Array] = {}
    for name, part_key in zip(q.names(), q.keys(key), strict=True):
        part = q.conditional(name, leaves)
        z, parts[name] = part.sample_and_log_prob(seed=part_key, sample_shape=())
        # Sampled densities may carry the path's derivative, which a stopped draw must not.
        if name in scored:
            z = jax.lax.stop_gradient(z)
            parts[name] = part.log_prob(z)
        leaves[name] = z
    return q.collect(leaves), parts
