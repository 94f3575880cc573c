"""Rao-Blackwellized score signals: each leaf is weighed by the factors that depend on it, as the jaxpr says."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import draws, engine, jaxprs
from vijax.gradients._auto import by_leaf, sample_parts
from vijax.gradients._pathwise import PATHWISE
from vijax.gradients._score import ALONE, left_out
from vijax.numerics import with_score
from vijax.types import Bound, Joint, LogJoint, Objective, PyTree, derive, properties

# Why the bound must be linear, for the message that refuses another.
MEAN = "judges each latent by a part of log w"


@engine.taking("factored")
def factored(bound: Bound) -> Objective:
    """Unbiased gradient of the ELBO whose score signals are local: each leaf gets only the factors
    that depend on it.

        ∇φ = E[∇φ log w|path] + E[1/K Σₖ Σᵢ (fᵢₖ - mean of the others' fᵢ) ∇φ log qᵢ(zₖᵢ | earlier)]

    For models of many latents: the variance of a leaf's signal is that of its own factors.

    Args:
        bound: linear in log_w, so `bounds.elbo`: of any other, each draw's weight is that of all its factors at once.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. log_joint returns a
        dict of factors, each [*batch], one for every term that may stand alone (of one array, terms of
        log q alone are dropped); fᵢ sums the factors of log p that depend on leaf i or on what is drawn
        from it, less those terms of log q, as read from the jaxprs of log_joint and q. q is a dict,
        tuple or `types.Joint` of leaves, of which each gets a path or a score as in `auto`. Latents in
        one leaf share one signal: give each its own leaf, or make their axis the batch. Second
        derivatives are refused unless all leaves are pathwise.

    Raises:
        ValueError: (when called) for a bound that is not linear, naming `vimco`; for num_samples < 2 if any leaf has no
            path; for members of the batch that log_joint or q couples; or shapes that do not agree.

    Example:
        >>> q = {"a": distrax.Bernoulli(logits=0.0), "b": distrax.Bernoulli(logits=0.0)}
        >>> log_joint = lambda z: {name: q[name].log_prob(z[name]) for name in q}
        >>> objective = factored(vj.bounds.elbo)
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(abs(float(value(jax.random.key(0)))), 3)
        0.0

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
        # Which leaves each factor of log p, and each conditional of q, reads.
        of_p, of_q = _factors(log_joint, z, drawn, seeds.model, q), _densities(q, z)
        signals = []
        for name in names:
            # fᵢ: the factors that this leaf, or what is drawn from it, has a part in.
            reach = _downstream(name, of_q)
            signal: Any = sum(term for factor, term in factors.items() if of_p[factor] & reach)
            if not exact:
                signal = signal - sum(stopped[leaf] for leaf, on in of_q.items() if on & reach)
            signals.append(jnp.broadcast_to(signal, log_q.shape))
        extra = signals, [parts[name] for name in names]
        return engine.Evaluated(log_p + log_q if exact else log_p, log_q, z, aux, extra)

    def value(log_p: Array, log_q: Array, extra: tuple[list[Array], list[Array]]) -> Array:
        bound_value: Any = bound(log_p - log_q)
        along = bound_value
        for signal, density in zip(*extra, strict=True):
            own = left_out(bound, request.forms, signal)
            # An infinite value is reported as it is; it says nothing of where to go.
            along = along + jnp.sum(jnp.where(jnp.isfinite(own), own, 0.0) * density, 0)
        return with_score(bound_value, along)

    return engine.Strategy(evaluated, value)


def _terms(out: Array | dict[Hashable, Array]) -> dict[Hashable, Array]:
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
    log_joint: LogJoint, z: PyTree, log_q: Array, keys: Key[Array, " k"] | None, q: Joint
) -> dict[Any, set[Any]]:
    """Return the leaves that each factor of log_joint depends on."""
    target = _with_terms(log_joint)
    given = {"log_q": log_q[0]} if properties(log_joint).holds_log_q else {}
    given |= {} if keys is None else {"key": keys[0]}
    return _sources(lambda z: target(z, **given)[1][0], z, q)


def _densities(q: Joint, z: PyTree) -> dict[Any, set[Any]]:
    """Return the leaves that each conditional's density depends on, its own among them."""
    sources = _sources(q.parts, z, q)
    return {name: sources[name] | {name} for name in q.names()}


def _sources(
    function: Callable[[PyTree], dict[Any, Array]], z: PyTree, q: Joint
) -> dict[Any, set[Any]]:
    """Return the leaves that each value of a dict depends on."""
    # One draw tells; each of its arrays is owned by the leaf of q that it lies in.
    one = jax.tree.map(lambda leaf: leaf[0], z)
    names = q.collect(
        {name: jax.tree.map(lambda _, name=name: name, one[name]) for name in q.names()}
    )
    owners = jax.tree.leaves(names)
    return {key: {owners[at] for at in on} for key, on in jaxprs.reads(function, one).items()}


def _downstream(name: Hashable, of_q: dict[Any, set[Any]]) -> set[Any]:
    """Return a leaf with all that is drawn from it, directly or not; later leaves depend on earlier ones alone."""
    reach = {name}
    for other, on in of_q.items():
        if on & reach:
            reach.add(other)
    return reach
