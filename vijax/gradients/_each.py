"""Per-latent choice by hand: every leaf of q under the estimator that is named for it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks, engine, jaxprs
from vijax.numerics import beside, with_score
from vijax.types import (
    Bound,
    Distribution,
    Draws,
    Estimate,
    Joint,
    LogJoint,
    Objective,
    PyTree,
    derive,
    is_conditional,
    lift,
    properties,
)

Estimator = Callable[[Bound], Objective]

# Of `_along`: the value, its slopes in the latents, and the latents.
Arguments = tuple[Array, list[Array], list[Array]]


@engine.taking("each", "bounds.elbo, {'z': gradients.dreg, 'bits': gradients.disarm}")
def each(
    bound: Bound, estimators: Mapping[str, Estimator] | tuple[Estimator, ...] | list[Estimator]
) -> Objective:
    """Gradient of one bound whose leaves of q have an estimator each, unbiased where theirs are.

        ∇φᵢ = estimatorᵢ(bound)'s, for the target zᵢ -> log p(x, zᵢ, z₋ᵢ) - log q₋ᵢ(z₋ᵢ),  z₋ᵢ ~ q₋ᵢ at every draw

    To pair special estimators of discrete leaves. The model is evaluated anew for every leaf: `auto` is
    cheaper.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch] that the estimators take.
        estimators: bound -> Objective, one for each leaf of q, in a container with q's names; the value, and the
            gradient of the model's parameters, are those of q's first leaf. An estimator with options
            is a partial, `partial(top_states, states=4)`.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. q is a
        dict, tuple or `types.Joint` of independent distributions. num_samples is handed to every one. Second
        derivatives are refused.

    Raises:
        TypeError: (when called) for a q of one distribution, or an estimator that carries a state.
        ValueError: (when called) for leaves without an estimator, and for leaves given earlier ones, naming `auto`;
            whatever the estimators refuse.

    Example:
        >>> q = {"z": distrax.Normal(0.0, 1.0), "bit": distrax.Bernoulli(logits=0.0)}
        >>> log_joint = vj.types.lift(q).log_prob  # q is the posterior, and the evidence 1
        >>> objective = each(vj.bounds.elbo, {"z": vj.gradients.dreg, "bit": vj.gradients.disarm})
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(abs(float(value(jax.random.key(0)))), 3)
        0.0

    Reference: Schulman, Heess, Weber, Abbeel, Gradient estimation using stochastic computation graphs, 2015,
        arXiv:1506.05254.
    """

    def objective(
        key: Key[Array, ""],
        log_joint: LogJoint,
        q: Distribution | PyTree,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> Estimate:
        checks.key(key)
        log_joint = checks.target(
            log_joint, "gradients.each", keyed=True, only_mean=True, has_aux=True
        )
        q = _independent(lift(q), estimators)
        names = q.names()
        estimates: list[Estimate] = []
        for name, own in zip(names, q.keys(key), strict=True):
            # The derivative of a target that does not learn is that of the sum over members.
            learns = name == names[0]
            apart = learns or properties(log_joint).independent_members
            members = None if apart else engine.Members("each", bound, q, declared=False)
            target = _given_others(
                log_joint, q, name, members, learns=learns, kept=chunk_size is None
            )
            estimate = estimators[name](bound)(
                own,
                target,
                q.conditionals[name],
                num_samples=num_samples,
                chunk_size=chunk_size,
            )
            if not isinstance(estimate, Estimate):
                raise TypeError(
                    f"the estimator of {name!r} returned {type(estimate).__name__}, not an "
                    "Estimate: one that carries a state cannot be one of several; bind its state, "
                    "or use gradients.disarm or vimco."
                )
            estimates.append(estimate)
        # The value of the first leaf, with the derivatives of all: each has those of its own leaf.
        first, along = estimates[0], jnp.asarray(sum(each.value for each in estimates))
        result = Estimate(with_score(first.value, along), _together(q, first.draws))
        return engine.once_differentiable(result, "each")

    return objective


def _independent(
    q: Distribution,
    estimators: Mapping[str, Estimator] | tuple[Estimator, ...] | list[Estimator],
) -> Joint:
    """Return q, a Joint of distributions none of which is given another, with an estimator for each."""
    if not isinstance(q, Joint) or len(q.conditionals) < 2:
        raise TypeError(
            "gradients.each takes a q of several leaves, a dict, tuple or Joint, got "
            f"{type(q).__name__} of one: use its estimator itself."
        )
    own = list(estimators) if isinstance(estimators, Mapping) else list(range(len(estimators)))
    if sorted(map(str, own)) != sorted(map(str, q.names())):
        raise ValueError(
            f"estimators are for the leaves {own}, and q has {q.names()}: name one for each leaf "
            "of q."
        )
    for name in q.names():
        if is_conditional(q.conditionals[name]):
            raise ValueError(
                f"leaf {name!r} of q is given earlier leaves, whose draws differ from draw to "
                "draw: gradients.each takes independent leaves; use gradients.auto or factored."
            )
    return q


def _given_others(
    log_joint: LogJoint,
    q: Joint,
    name: str | int,
    members: engine.Members | None,
    *,
    learns: bool,
    kept: bool,
) -> LogJoint:
    """Return the target of one leaf: the others are drawn at every draw, and count as the model's own noise."""
    others = [other for other in q.names() if other != name]
    rest = Joint([q.conditionals[other] for other in others])
    known = properties(log_joint)

    def target(z: PyTree, *, key: Key[Array, ""]) -> tuple[Array, PyTree]:
        # The others are redrawn for every draw of the leaf, by the key of the model's noise.
        of_model, of_others = jax.random.split(key)
        drawn, log_q = jax.lax.stop_gradient(rest.sample_and_log_prob(seed=of_others))
        leaves = dict(zip(others, drawn, strict=True))

        def log_p(z: PyTree) -> tuple[Array, PyTree]:
            full = q.collect({n: z if n == name else leaves[n] for n in q.names()})
            out = log_joint(full, **({"key": of_model} if known.keyed else {}))
            value, aux = out if known.has_aux else (out, None)
            for label, factor in value.items() if isinstance(value, dict) else [("", value)]:
                what = f"log_joint(z)[{label!r}]" if label else "log_joint(z)"
                checks.log_densities(factor, log_q, full, (what, "q.log_prob(z)"))
            return jnp.asarray(sum(value.values()) if isinstance(value, dict) else value), aux

        if members is not None:
            closed = jaxprs.trace(lambda z: log_p(z)[0], z)[0]
            members.refuse("log_joint(z)", closed, z, tuple(log_q.shape))
        value, aux = log_p(z) if learns else _by_draws_alone(log_p, z)
        return value - log_q, (leaves if kept else None, log_q, aux)

    return derive(log_joint, target, keyed=True, has_aux=True)


def _by_draws_alone(
    log_p: Callable[[PyTree], tuple[Array, PyTree]], z: PyTree
) -> tuple[Array, PyTree]:
    """Return log p with its derivative by z and none by the model's parameters, which learn from the first leaf."""
    leaves, tree = jax.tree.flatten(z)
    # Only floats have a derivative; integer leaves stay where they are.
    free = [
        i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]

    def total(moving: list[Array]) -> tuple[Array, tuple[Array, PyTree]]:
        at = dict(zip(free, moving, strict=True))
        value, aux = log_p(
            jax.tree.unflatten(tree, [at.get(i, leaf) for i, leaf in enumerate(leaves)])
        )
        return jnp.sum(value), (value, aux)

    moving = [leaves[i] for i in free]
    at = jax.lax.stop_gradient(moving)
    # With what it closes over stopped, so that a derivative by that is not one of these slopes.
    slopes, (value, aux) = jaxprs.stopped(jax.grad(total, has_aux=True), at)[0](at)
    # The value must have the axes of vmap that the slopes and the latents have; see `numerics.beside`.
    for slope, leaf in zip(slopes, at, strict=True):
        value = beside(value, jnp.sum(slope * leaf, tuple(range(value.ndim, slope.ndim))))
    return _along(value, slopes, moving), aux


@jax.custom_jvp
def _along(value: Array, slopes: list[Array], z: list[Array]) -> Array:
    return value


@_along.defjvp
def _along_jvp(primals: Arguments, tangents: Arguments) -> tuple[Array, Array]:
    value, slopes, _ = primals
    # Σ slope · dz over all but the axes of the batch.
    moved = [s * t for s, t in zip(slopes, tangents[2], strict=True)]
    change: Any = sum(jnp.sum(m, tuple(range(value.ndim, m.ndim))) for m in moved)
    return value, jnp.broadcast_to(change, value.shape).astype(value.dtype)


def _together(q: Joint, draws: Draws) -> Draws:
    """Return the first leaf's draws with the others beside it; chunks keep no draws."""
    others, log_q, aux = draws.aux
    z = (
        None
        if others is None
        else q.collect({name: others.get(name, draws.z) for name in q.names()})
    )
    return draws._replace(z=z, log_p=draws.log_p + log_q, log_q=draws.log_q + log_q, aux=aux)
