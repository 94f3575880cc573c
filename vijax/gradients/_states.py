"""The states of a discrete q: logits found by their usual name, and believed once q's own density confirms them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from vijax import checks, dataflow, pathways
from vijax.types import Joint, PyTree, attribute


class States(NamedTuple):
    """A q of independent Bernoulli and categorical variables, one entry for each leaf of its draws.

    Fields:
        log_probs: normalised, [*batch, *event, s], with the derivative of q's parameters; a Bernoulli has s = 2.
        draw: one-hot arrays like log_probs -> z, in the dtype that q draws.
        soft: points of the simplex -> z in floats, smooth; a Bernoulli gives the mass of state 1.
        real: perturbed log-probabilities -> real numbers of z's shape, a Bernoulli giving its log-odds.
        batch: rank of [*batch].
    """

    log_probs: list[Array]
    draw: Callable[[list[Array]], PyTree]
    soft: Callable[[list[Array]], PyTree]
    real: Callable[[list[Array]], PyTree]
    batch: int

    def log_prob(self, points: list[Array]) -> Array:
        """Return log q, [*batch]: of one-hot states exactly, linear in points of the simplex."""
        return self.dot(points, [floored(l) for l in self.log_probs])

    def dot(self, a: list[Array], b: list[Array]) -> Array:
        """Return Σ over leaves, events and states of a * b, [*batch]."""
        return sum((jnp.sum(x * y, range(self.batch, x.ndim)) for x, y in zip(a, b, strict=True)), jnp.asarray(0.0))

    def stopped(self) -> "States":
        """Return the same states without the derivative of q's parameters."""
        return self._replace(log_probs=jax.lax.stop_gradient(self.log_probs))


def floored(log_probs: Array) -> Array:
    """Keep impossible states finite, and their squares, so that 0 times their log is 0."""
    return jnp.maximum(log_probs, -(float(jnp.finfo(log_probs.dtype).max) ** 0.5))


class Kind(NamedTuple):
    """How one variable is spelt: its log-probabilities from its logits, and its draw from one-hot states."""

    log_probs: Callable[[Array], Array]
    draw: Callable[[Array], Array]
    soft: Callable[[Array], Array]
    real: Callable[[Array], Array]
    fits: Callable[[tuple[int, ...], tuple[int, ...]], bool]


def _whole(_: Array) -> Array:
    raise TypeError(
        "a categorical q of integer draws cannot be relaxed; use one with one-hot draws "
        "(distrax.OneHotCategorical), and a log_joint of them."
    )


BERNOULLI = Kind(
    log_probs=lambda a: jnp.stack([jax.nn.log_sigmoid(-a), jax.nn.log_sigmoid(a)], -1),
    draw=lambda x: x[..., 1],
    soft=lambda x: x[..., 1],
    real=lambda x: x[..., 1] - x[..., 0],
    fits=lambda z, logits: z == logits,
)
ONE_HOT = Kind(jax.nn.log_softmax, lambda x: x, lambda x: x, lambda x: x, lambda z, logits: z == logits)
CATEGORICAL = Kind(
    jax.nn.log_softmax, lambda x: jnp.argmax(x, -1), _whole, lambda x: x, lambda z, logits: z == logits[:-1]
)


def states(q: Any, key: Any, estimator: str) -> States:
    """Return the states of a q of Bernoulli or categorical variables; refuse any other, naming the cure.

    Logits are `q.logits`, an array or a method, or TFP's `q.logits_parameter()`, looked for also within wrappers
    such as Independent. Other distributions have logits too, so q.log_prob must agree with them on stand-in numbers.
    """
    shapes, log_q = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=()), key)
    leaves, tree = jax.tree.flatten(shapes)
    leaf_qs = parts(q, estimator)
    refusal = (
        f"{estimator} needs a q of independent Bernoulli or categorical variables that shows its logits as q.logits "
        f"(or a dict or tuple of such q), and {{}}; {pathways.CURE}."
    )
    if len(leaf_qs) != len(leaves):
        raise ValueError(refusal.format(f"this one draws {len(leaves)} arrays from {len(leaf_qs)} distributions"))
    kinds = []
    for part, leaf in zip(leaf_qs, leaves, strict=True):
        logits = jax.eval_shape(lambda part=part: _logits(part))
        if logits is None:
            raise ValueError(refusal.format(f"{type(part).__name__} shows none"))
        fitting = [k for k in (BERNOULLI, ONE_HOT, CATEGORICAL) if k.fits(leaf.shape, logits.shape)]
        confirmed = [k for k in fitting if _confirmed(part, k, leaf)]
        if not confirmed or leaf.shape[: log_q.ndim] != log_q.shape:
            raise ValueError(refusal.format(f"the density of {type(part).__name__} is not that of its logits"))
        kinds.append(confirmed[0])

    def spell(how: Callable[[Kind, Array, Any], Array]) -> Callable[[list[Array]], PyTree]:
        return lambda xs: jax.tree.unflatten(
            tree, [how(kind, x, leaf) for kind, x, leaf in zip(kinds, xs, leaves, strict=True)]
        )

    return States(
        [kind.log_probs(_logits(part)) for kind, part in zip(kinds, leaf_qs, strict=True)],
        spell(lambda kind, x, leaf: kind.draw(x).astype(leaf.dtype)),
        spell(lambda kind, x, _: kind.soft(x)),
        spell(lambda kind, x, _: kind.real(x)),
        log_q.ndim,
    )


def parts(q: Any, estimator: str) -> list[Any]:
    """Return the distributions of the leaves of z, in the order in which JAX flattens it."""
    if not isinstance(q, Joint):
        return [q]
    for name in q.names():
        part = q.conditionals[name]
        if callable(part) and not hasattr(part, "log_prob"):
            raise ValueError(
                f"{estimator} needs independent latents, and leaf '{name}' is given the earlier ones; {pathways.CURE}."
            )
    names = sorted(q.names()) if hasattr(q.conditionals, "keys") else q.names()
    return [leaf for name in names for leaf in parts(q.conditional(name, {}), estimator)]


def _logits(q: Any) -> Any:
    for name in ("logits_parameter", "logits"):
        found = getattr(q, name, None)
        found = found() if callable(found) else found
        if found is not None:
            return jnp.asarray(found)
    for name in ("distribution", "base_dist", "_distribution"):
        if (inner := getattr(q, name, None)) is not None:
            return _logits(inner)
    return None


def _confirmed(q: Any, kind: Kind, leaf: Any) -> bool:
    """Whether q.log_prob is the density of its logits read as this kind."""

    def both(points: Array) -> tuple[Array, Array]:
        log_q = q.log_prob(kind.draw(points).astype(leaf.dtype))
        terms = points * kind.log_probs(_logits(q))
        return log_q, jnp.sum(terms, range(jnp.ndim(log_q), terms.ndim))

    shape = jax.eval_shape(lambda: kind.log_probs(_logits(q)))
    hot = np.eye(shape.shape[-1])[np.random.default_rng(0).integers(shape.shape[-1], size=shape.shape[:-1])]
    return agrees(both, hot.astype(shape.dtype))


def agrees(both: Callable[[Any], tuple[Array, Array]], point: Any) -> bool:
    """Whether two functions are one, tried while tracing: numbers stand in for every parameter they close over.

    The parameters may be tracers, so they have no numbers yet. Stand-ins are probabilities, and then their logarithms:
    either may be what a distribution keeps.
    """
    closed, (left, right) = dataflow.trace(both, point)
    if left.shape != right.shape:
        return False
    rng = np.random.default_rng(1)
    with jax.ensure_compile_time_eval():
        base = [_stand_in(rng, c) for c in closed.consts]
        for spell in (lambda p: p, np.log):
            consts = [c if p is None else jnp.asarray(spell(p), c.dtype) for c, p in base]
            a, b = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts))(point)
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            rounding = float(jnp.finfo(left.dtype).eps) * (16 + 2 * point.size / max(a.size, 1))
            if np.all(np.abs(a - b) <= 10 * rounding * (1 + np.abs(b))):
                return True
    return False


def _stand_in(rng: Any, const: Any) -> tuple[Any, Any]:
    """Return a constant that may stay with None, or its dtype's owner with probabilities that sum to 1."""
    dtype, shape = jnp.result_type(const), jnp.shape(const)
    if jnp.issubdtype(dtype, jnp.floating):
        p = rng.uniform(0.2, 0.8, shape)
        p = p / p.sum(-1, keepdims=True) if shape and shape[-1] > 1 else p
        return jax.ShapeDtypeStruct(shape, dtype), p
    return (jnp.zeros(shape, dtype) if isinstance(const, jax.core.Tracer) else const), None


def linear(bound: Any, estimator: str, why: str) -> None:
    """Refuse a bound that is not a mean of log-weights."""
    if not attribute(bound, "linear", default=False):
        raise ValueError(
            f"{estimator} {why}, so its bound must be linear in log_w: use bounds.elbo, or gradients.vimco for "
            f"{checks.describe(bound)}."
        )
