"""The states of a discrete q: logits by their usual name, and only where q's own density confirms them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax import jaxprs
from vijax.engine import _refusals as refusals
from vijax.types import Distribution, Joint, PyTree, is_conditional


class States(NamedTuple):
    """A q of independent Bernoulli and categorical variables, one entry for each leaf of its draws.

    Fields:
        log_probs: normalized, [*batch, *event, s], with the derivative of q's parameters; a Bernoulli has s = 2.
        draw: one-hot arrays like log_probs -> z, in the dtype that q draws.
        soft: points of the simplex -> z in floats, smooth; a Bernoulli gives the mass of state 1.
        real: perturbed log-probabilities -> real numbers of z's shape, a Bernoulli giving its log-odds.
        batch: rank of [*batch].
        shares: of each leaf, what makes the squared norm in log_probs that in the logits: 1/2 for a Bernoulli.
    """

    log_probs: list[Array]
    draw: Callable[[list[Array]], PyTree]
    soft: Callable[[list[Array]], PyTree]
    real: Callable[[list[Array]], PyTree]
    batch: int
    shares: list[float]

    def log_prob(self, points: list[Array]) -> Array:
        """Return log q, [*batch]: of one-hot states exactly, linear in points of the simplex."""
        return self.dot(points, [floored(l) for l in self.log_probs])

    def dot(self, a: list[Array], b: list[Array]) -> Array:
        """Return Σ over leaves, events and states of a * b, [*batch]."""
        return sum(
            (jnp.sum(x * y, range(self.batch, x.ndim)) for x, y in zip(a, b, strict=True)),
            jnp.asarray(0.0),
        )

    def stopped(self) -> "States":
        """Return the same states without the derivative of q's parameters."""
        return self._replace(log_probs=jax.lax.stop_gradient(self.log_probs))


def floored(log_probs: Array) -> Array:
    """Keep impossible states finite, and their squares, so that 0 times their log is 0.

    Example:
        >>> log_probs = floored(jnp.array([0.0, -jnp.inf]))
        >>> float(jnp.sum(jnp.exp(log_probs) * log_probs)), bool(jnp.isfinite(log_probs[1] ** 2))
        (0.0, True)
    """
    return jnp.maximum(log_probs, -(float(jnp.finfo(log_probs.dtype).max) ** 0.5))


class Kind(NamedTuple):
    """How one variable is spelt: its log-probabilities from its logits, and its draw from one-hot states."""

    log_probs: Callable[[Array], Array]
    draw: Callable[[Array], Array]
    soft: Callable[[Array], Array]
    real: Callable[[Array], Array]
    fits: Callable[[tuple[int, ...], tuple[int, ...]], bool]


def _whole(_: Array) -> Array:
    """Refuse to relax a categorical of integer draws, whose z has no place between two states."""
    raise TypeError(
        "a categorical q of integer draws cannot be relaxed; use one with one-hot draws "
        "(distrax.OneHotCategorical), and a log_joint of them."
    )


# States are along the last axis of log-probabilities; of a Bernoulli they are stacked, 0 and 1.
BERNOULLI = Kind(
    log_probs=lambda a: jnp.stack([jax.nn.log_sigmoid(-a), jax.nn.log_sigmoid(a)], -1),
    draw=lambda x: x[..., 1],
    soft=lambda x: x[..., 1],
    real=lambda x: x[..., 1] - x[..., 0],
    fits=lambda z, logits: z == logits,
)
# z is of the logits' shape, [..., s].
ONE_HOT = Kind(
    jax.nn.log_softmax,
    lambda x: x,
    lambda x: x,
    lambda x: x,
    lambda z, logits: z == logits and len(z) > 0,
)
# z is the index of the state, of the logits' shape without the last axis.
CATEGORICAL = Kind(
    jax.nn.log_softmax,
    lambda x: jnp.argmax(x, -1),
    _whole,
    lambda x: x,
    lambda z, logits: z == logits[:-1] != logits,
)


def states(q: Distribution, key: Key[Array, ""], estimator: str) -> States:
    """Return the states of a q of Bernoulli or categorical variables; refuse any other, naming the cure.

    Logits are `q.logits`, an array or a method, or TFP's `q.logits_parameter()`, also within wrappers such as
    Independent. Other distributions have logits too, so q.log_prob must agree with them on stand-in numbers.
    """
    shapes, log_q = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=()), key)
    # One distribution for each leaf of z, and what kind of variable it draws.
    leaves, tree = jax.tree.flatten(shapes)
    leaf_qs = parts(q, estimator)
    if len(leaf_qs) != len(leaves):
        found = f"this one draws {len(leaves)} arrays from {len(leaf_qs)} distributions"
        raise refusals.not_states(estimator, found)
    pairs = list(zip(leaf_qs, leaves, strict=True))
    kinds = [_kind(leaf_q, leaf, log_q.shape, estimator) for leaf_q, leaf in pairs]

    def every(spell: Callable[[Kind, Array, Any], Array]) -> Callable[[list[Array]], PyTree]:
        """Return points of all leaves -> z, each spelt as its kind is."""

        def z_of(points: list[Array]) -> PyTree:
            triples = zip(kinds, points, leaves, strict=True)
            return jax.tree.unflatten(tree, [spell(kind, x, leaf) for kind, x, leaf in triples])

        return z_of

    # Log-probabilities keep the derivative of q's parameters, and all else is arithmetic on points.
    return States(
        log_probs=[k.log_probs(_logits(leaf_q)) for k, leaf_q in zip(kinds, leaf_qs, strict=True)],
        draw=every(lambda kind, x, leaf: kind.draw(x).astype(leaf.dtype)),
        soft=every(lambda kind, x, _: kind.soft(x)),
        real=every(lambda kind, x, _: kind.real(x)),
        batch=log_q.ndim,
        shares=[0.5 if kind is BERNOULLI else 1.0 for kind in kinds],
    )


def _kind(
    leaf_q: Distribution, leaf: jax.ShapeDtypeStruct, batch: tuple[int, ...], estimator: str
) -> Kind:
    """Return the kind of a leaf: of those that its shapes allow, the one that its density confirms."""
    logits = jax.eval_shape(lambda: _logits(leaf_q))
    if logits is None:
        raise refusals.not_states(estimator, f"{type(leaf_q).__name__} shows none")
    # Shapes leave several: [3] of logits [3] may be three Bernoullis or one one-hot state of three.
    possible = [k for k in (BERNOULLI, ONE_HOT, CATEGORICAL) if k.fits(leaf.shape, logits.shape)]
    # The least is the one whose density agrees; above 1 none does.
    misfits = [_misfit(leaf_q, kind, leaf) for kind in possible]
    least = min(misfits, default=np.inf)
    if least > 1 or leaf.shape[: len(batch)] != batch:
        found = f"the density of {type(leaf_q).__name__} is not that of its logits"
        raise refusals.not_states(estimator, found)
    return possible[misfits.index(least)]


def parts(q: Distribution, estimator: str) -> list[Any]:
    """Return the distributions of the leaves of z, in the order in which JAX flattens it.

    Example:
        >>> q = {"b": distrax.Bernoulli(logits=0.0), "a": distrax.Categorical(logits=jnp.zeros(3))}
        >>> [type(leaf).__name__ for leaf in parts(vj.types.lift(q), "vimco")]
        ['Categorical', 'Bernoulli']
    """
    if not isinstance(q, Joint):
        return [q]
    # A leaf that is given earlier ones has no table of states of its own.
    for name in q.names():
        if is_conditional(q.conditionals[name]):
            raise refusals.not_independent_latents(estimator, name)
    # JAX flattens a dict by its sorted keys.
    names = sorted(q.names()) if isinstance(q.conditionals, Mapping) else q.names()
    return [leaf for name in names for leaf in parts(q.conditional(name, {}), estimator)]


def _logits(q: object) -> Any:
    """Return the logits of a distribution, or of what it wraps; None where it shows none."""
    for name in ("logits_parameter", "logits"):
        logits = getattr(q, name, None)
        logits = logits() if callable(logits) else logits
        if logits is not None:
            return jnp.asarray(logits)
    # TFP's and NumPyro's wrappers, and those of families.adapt.
    for name in ("distribution", "base_dist", "adapted"):
        inner = getattr(q, name, None)
        if inner is not None:
            return _logits(inner)
    return None


def _misfit(q: Distribution, kind: Kind, leaf: jax.ShapeDtypeStruct) -> float:
    """Return how far q.log_prob is from the density of its logits read as this kind; above 1 it is another."""

    # log q and the terms that must sum to it, of one-hot points.
    def both(points: Array) -> tuple[Array, Array]:
        return q.log_prob(kind.draw(points).astype(leaf.dtype)), points * kind.log_probs(_logits(q))

    shape = jax.eval_shape(lambda: kind.log_probs(_logits(q)))
    # Three random states of every variable, one-hot, [3, *event, s].
    chosen = np.random.default_rng(0).integers(shape.shape[-1], size=(3, *shape.shape[:-1]))
    return jaxprs.misfit(both, list(np.eye(shape.shape[-1])[chosen].astype(shape.dtype)), SPELLINGS)


def _sums(p: Any) -> bool:
    """Whether the last axis may be that of the states, whose probabilities sum to 1."""
    return p.ndim > 0 and p.shape[-1] > 1


def _extreme(p: Any, power: int) -> Any:
    """Return probabilities near 0 and 1, normalized as p is."""
    return p**power / (
        np.sum(p**power, -1, keepdims=True) if _sums(p) else p**power + (1 - p) ** power
    )


# What a distribution may keep of its probabilities p, each near and far: there a clip or a truncation shows.
SPELLINGS = (
    (lambda p: p, lambda p: _extreme(p, 3)),
    (np.log, lambda p: np.log(_extreme(p, 12))),
    (lambda p: 4 * (p - 0.5), lambda p: 30 * (p - 0.5)),
)
