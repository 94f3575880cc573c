"""Rao-Blackwellised score signals: each leaf is judged by the factors that depend on it, as the jaxpr says."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import draws, engine, jaxprs
from vijax.gradients._auto import by_leaf, sample_parts
from vijax.gradients._pathwise import PATHWISE
from vijax.gradients._score import ALONE, left_out
from vijax.numerics import with_score
from vijax.types import Bound, Joint, LogJoint, Objective, PyTree, derive, properties

MEAN = "judges each latent by a part of log w"


@engine.taking("factored")
def factored(bound: Bound) -> Objective:
    """Unbiased gradient of the ELBO whose score signals are local: each leaf hears only the factors that depend on it.

        ∇φ = E[∇φ log w|path] + E[1/K Σₖ Σᵢ (fᵢₖ - mean of the others' fᵢ) ∇φ log qᵢ(zₖᵢ | earlier)],
        fᵢ = Σ factors of log p that depend on leaf i or on what is drawn from it, less those terms of log q

    For models of many latents, where `auto` and `vimco` would make each leaf listen to the noise of all: the variance
    of its signal is that of its own factors, so the gain grows with the number of independent leaves. log_joint returns
    a dict of factors, each [*batch], one for every term that may stand alone; what depends on what is read from the
    jaxprs of log_joint and q. Which leaf gets a path and which a score is decided as in `auto`. A log_joint of one
    array is one factor: then terms of log q alone are dropped. A leaf is the unit: many latents in one array share one
    signal, so give each its own leaf, or make their axis the batch.

    Args:
        bound: linear in log_w, so `bounds.elbo`: of any other, each draw's weight is that of all its factors at once.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. q is a
        dict, tuple or `types.Joint` of leaves; one distribution alone gets what `auto` gives it. Second derivatives
        are refused unless all leaves are pathwise.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a bound that is not linear, naming `vimco`; for num_samples < 2 if any leaf has no
            path; for members of the batch that log_joint or q couples; or shapes that do not agree.

    Reference: Ranganath, Gerrish, Blei, Black box variational inference, 2014, arXiv:1401.0118; Schulman, Heess, Weber,
        Abbeel, Gradient estimation using stochastic computation graphs, 2015, arXiv:1506.05254.
    """
    return engine.make_objective("factored", bound, draws.iid, _by_factor)


def _by_factor(request: engine.Request) -> engine.Estimator:
    """Choose as `auto` does; local signals are for the scored leaves of a Joint."""
    if not isinstance(request.q, Joint):
        chosen = by_leaf(request)
        return chosen._replace(needs=chosen.needs._replace(mean=MEAN))
    if not request.scored:
        return PATHWISE._replace(needs=PATHWISE.needs._replace(mean=MEAN))
    return engine.Estimator(
        engine.Needs(least=2, why=ALONE, mean=MEAN, members=True), _local_signals
    )


def _local_signals(request: engine.Request) -> engine.Strategy:
    bound, q, log_joint, scored = request.bound, request.q, request.log_joint, request.scored
    names = [name for name in q.names() if name in scored]
    # Where log q is in closed form, none of it is drawn.
    exact = properties(log_joint).holds_log_q
    with_terms = _with_terms(log_joint)

    def evaluated(seeds: engine.Plan) -> engine.Evaluated:
        z, parts = jax.vmap(lambda seed: sample_parts(q, seed, scored))(seeds.draw)
        stopped = jax.lax.stop_gradient(parts)
        # The score of a scored leaf has mean zero, and of a bound that is linear it is dropped.
        log_q: Any = sum(stopped[name] if name in scored else parts[name] for name in q.names())
        drawn = jnp.zeros_like(log_q) if exact else log_q
        log_p, (factors, aux) = request.evaluate(z, drawn, seeds, with_terms)
        of_p, of_q = _factors(log_joint, z, drawn, seeds.model, q), _densities(q, z)
        signals = []
        for name in names:
            reach = _downstream(name, of_q)
            signal: Any = sum(term for factor, term in factors.items() if of_p[factor] & reach)
            if not exact:
                signal = signal - sum(stopped[leaf] for leaf, on in of_q.items() if on & reach)
            signals.append(jnp.broadcast_to(signal, log_q.shape))
        extra = signals, [parts[name] for name in names]
        return engine.Evaluated(log_p + log_q if exact else log_p, log_q, z, aux, extra)

    def value(log_p: Array, log_q: Array, extra: Any) -> Array:
        bound_value: Any = bound(log_p - log_q)
        along = bound_value
        for signal, density in zip(*extra, strict=True):
            own = left_out(bound, request.forms, signal)
            # An infinite value is reported as it is; it says nothing of where to go.
            along = along + jnp.sum(jnp.where(jnp.isfinite(own), own, 0.0) * density, 0)
        return with_score(bound_value, along)

    return engine.Strategy(evaluated, value)


def _terms(out: Any) -> dict[Any, Any]:
    return out if isinstance(out, dict) else {"": out}


def _with_terms(log_joint: LogJoint) -> LogJoint:
    """Return the target with its factors beside its own auxiliary output."""
    has_aux = properties(log_joint).has_aux

    def target(z: PyTree, **given: Any) -> Any:
        out = log_joint(z, **given)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"a target with has_aux=True returns (log_p, aux), got {type(out).__name__}."
            )
        out, aux = out if has_aux else (out, None)
        return out, (_terms(out), aux)

    return derive(log_joint, target, has_aux=True)


def _factors(
    log_joint: LogJoint, z: PyTree, log_q: Array, keys: Any, q: Joint
) -> dict[Any, set[Any]]:
    """Return the leaves that each factor of log_joint depends on."""
    target = _with_terms(log_joint)
    given = {"log_q": log_q[0]} if properties(log_joint).holds_log_q else {}
    given |= {} if keys is None else {"key": keys[0]}
    return _sources(lambda z: target(z, **given)[1][0], z, q)


def _densities(q: Joint, z: PyTree) -> dict[Any, set[Any]]:
    """Return the leaves that each conditional's density depends on, its own among them."""
    found = _sources(q.parts, z, q)
    return {name: found[name] | {name} for name in q.names()}


def _sources(
    function: Callable[[PyTree], dict[Any, Array]], z: PyTree, q: Joint
) -> dict[Any, set[Any]]:
    """Return the leaves that each value of a dict depends on."""
    one = jax.tree.map(lambda leaf: leaf[0], z)
    names = q.collect(
        {name: jax.tree.map(lambda _, name=name: name, one[name]) for name in q.names()}
    )
    owners = jax.tree.leaves(names)
    return {key: {owners[at] for at in on} for key, on in jaxprs.reads(function, one).items()}


def _downstream(name: Any, of_q: dict[Any, set[Any]]) -> set[Any]:
    """Return a leaf with all that is drawn from it, directly or not; later leaves depend on earlier ones alone."""
    reach = {name}
    for other, on in of_q.items():
        if on & reach:
            reach.add(other)
    return reach
