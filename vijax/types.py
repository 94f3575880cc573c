"""The kinds of function that vijax is made of, as types, and the few values they exchange."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

PyTree = Any
LogJoint = Callable[..., Any]
"""z -> log p(x, z) with shape [*batch], or a dict of factors each [*batch]: ONE draw, any pytree, unnormalised."""


@runtime_checkable
class Distribution(Protocol):
    """What vijax asks of q: two methods, of which distrax has both; `families.adapt` lends them to TFP and NumPyro."""

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any) -> tuple[PyTree, Array]:
        """Draw z and return it with log q(z), shape [*sample_shape, *batch]."""
        ...

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), shape [*batch]."""
        ...


class Draw(NamedTuple):
    """A way to draw: all that is random is planned first, so that no result depends on chunk size or device count.

    Fields:
        seeds: (key, num_samples) -> a pytree with leading axis k, one row for each draw.
        sample: (one row of seeds, q) -> (z, log q(z)), one draw.
        independent: whether the k draws are independent and each from q, which dreg, score, vimco and auto rely on.
        weights: (q, num_samples) -> [k] or [k, *batch], differentiable, the weight of each draw where they do not count
            alike; Σₖ weightsₖ f(zₖ) must be unbiased for E_q[f].
    """

    seeds: Callable[[Any, int], PyTree]
    sample: Callable[[PyTree, Any], tuple[PyTree, Array]]
    independent: bool
    weights: Callable[[Any, int], Array] | None = None


@runtime_checkable
class Bound(Protocol):
    """Arithmetic on log-weights: [k, *batch] -> [*batch]; it holds no gradient code."""

    def __call__(self, log_w: Float[Array, "k *batch"], /, *, weights: Array | None = None) -> Float[Array, "*batch"]:
        """Judge the log-weights of k draws; `weights` sum to 1 over axis 0 and default to 1/k."""
        ...


class Draws(NamedTuple):
    """What an objective saw: k draws and their log-densities, gradients stopped.

    Fields:
        z: the latents [k, *batch, ...]; None where `chunk_size` kept them from being stored.
        log_p: log p(x, z) in nats, [k, *batch].
        log_q: log q(z) in nats, [k, *batch].
        weights: the weight of each draw, summing to 1 over axis 0; None means 1/k.
        aux: what a `targets.keyed(..., has_aux=True)` model returned beside log p, stacked over k.
    """

    z: PyTree
    log_p: Array
    log_q: Array
    weights: Array | None = None
    aux: PyTree = None

    @property
    def log_w(self) -> Array:
        """Log-weights log p(x, z) - log q(z) in nats, [k, *batch]."""
        return self.log_p - self.log_q


class Level(NamedTuple):
    """How far a randomly truncated sum goes: `value`, () or [*batch], out of levels of these `probabilities` [m]."""

    value: Array
    probabilities: Array


class Estimate(NamedTuple):
    """An objective's answer: `value` [*batch] in nats, the only differentiable part, and its stopped `draws`."""

    value: Array
    draws: Draws


@runtime_checkable
class Objective(Protocol):
    """(key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate: a bound together with its gradient."""

    def __call__(
        self,
        key: Key[Array, ""],
        log_joint: LogJoint,
        q: Any,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> Estimate:
        """Estimate the bound from `num_samples` draws, `chunk_size` of them in memory at a time."""
        ...


class Family(NamedTuple):
    """A variational family: `init(key, like) -> params` and `dist(params) -> Distribution`."""

    init: Callable[..., PyTree]
    dist: Callable[[PyTree], Any]


# What a target may carry, and what a bound may; a target's marks belong to whoever wraps it.
MARKS = ("keyed", "has_aux", "given_log_q", "linear_only", "scales_data", "independent_sites")
CLOSED_FORMS = frozenset({"gate", "independent", "leave_one_out", "linear", "power", "smooth"})

F = TypeVar("F", bound=Callable[..., Any])


def carries(**attributes: Any) -> Callable[[F], F]:
    """Hang closed forms on a function as attributes, for estimators to find; see `attribute`."""

    def decorate(function: F) -> F:
        function._carrier = function  # type: ignore[attr-defined]
        for name, value in attributes.items():
            setattr(function, name, value)
        return function

    return decorate


def attribute(function: Callable[..., Any], name: str, default: Any = None) -> Any:
    """Find what `carries` hung on a function, through any number of `functools.partial`.

    A callable attribute is given the partial's keywords, so that `partial(renyi, alpha=.5)` has a gate at alpha = .5.
    """
    bound = keywords(function)
    while isinstance(function, partial):
        function = function.func
    # functools.wraps copies attributes to a function that may compute another thing; jax.jit to one that does not.
    if name in CLOSED_FORMS and getattr(function, "_carrier", function) is not function:
        if not hasattr(function, "lower"):
            return default
    found = getattr(function, name, default)
    return partial(found, **bound) if callable(found) and bound else found


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what any number of `functools.partial` bound to a function."""
    found: dict[str, Any] = {}
    while isinstance(function, partial):
        found = {**function.keywords, **found}
        function = function.func
    return found


class Joint:
    """A distribution over a dict or tuple of latents, drawn in order, each possibly given the earlier ones.

        log q(z) = Σ_leaf log q(leaf | earlier leaves)

    Values are distributions, callables from the earlier leaves to a distribution, or further dicts, lists and tuples.
    A pytree of distributions passed as q is lifted to a Joint, so writing the class name is needed only for clarity.

    Args:
        conditionals: an ordered mapping leaf -> Distribution or (earlier -> Distribution); or a tuple or list of them.
            A callable receives the earlier leaves in the same kind of container.
    """

    def __init__(self, conditionals: Mapping[str, Any] | tuple[Any, ...] | list[Any]):
        if not isinstance(conditionals, (Mapping, tuple, list)) or not conditionals:
            raise TypeError(f"Joint takes a non-empty dict, tuple or list of distributions, got {conditionals!r}.")
        self.conditionals = conditionals

    def names(self) -> list[Any]:
        """Return the names of the leaves, in the order they are drawn."""
        c = self.conditionals
        return list(c) if isinstance(c, Mapping) else list(range(len(c)))

    def keys(self, key: Any) -> Any:
        """Return one key for each leaf."""
        return jax.random.split(key, len(self.conditionals))

    def collect(self, leaves: Mapping[Any, Any]) -> PyTree:
        """Put leaves, in the order they were drawn, in a container of the kind the conditionals came in."""
        c = self.conditionals
        if isinstance(c, Mapping):
            return dict(leaves)
        if hasattr(c, "_fields") and len(leaves) == len(c):
            return type(c)(*leaves.values())
        return list(leaves.values()) if isinstance(c, list) else tuple(leaves.values())

    def conditional(self, name: Any, earlier: Mapping[Any, Any]) -> Any:
        """Return the distribution of one leaf given the earlier ones."""
        part = self.conditionals[name]
        # NumPyro's distributions are callable, and `lift` tells how to adapt them.
        if callable(part) and not isinstance(part, Distribution) and not hasattr(part, "log_prob"):
            part = part(self.collect(earlier))
        return lift(part)

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[PyTree, Array]:
        """Draw the leaves in order; return them and Σ log q(leaf | earlier)."""
        if sample_shape:  # a conditional may not accept a sample axis, so it is added outside
            shape = tuple(sample_shape)
            keys = jax.random.split(seed, shape)
            draw: Callable[[Any], Any] = lambda key: self.sample_and_log_prob(seed=key)  # noqa: E731
            for _ in shape:
                draw = jax.vmap(draw)
            return draw(keys)
        leaves: dict[Any, Any] = {}
        log_q: Any = None
        for key, name in zip(self.keys(seed), self.names(), strict=True):
            q = self.conditional(name, leaves)
            leaves[name], log_prob = q.sample_and_log_prob(seed=key, sample_shape=())
            log_q = _add(log_q, log_prob, name)
        return self.collect(leaves), log_q

    def parts(self, z: PyTree) -> dict[Any, Array]:
        """Return {leaf: log q(leaf | earlier leaves)}, each [*batch]."""
        if len(z) != len(self.conditionals):
            raise ValueError(f"z has {len(z)} leaves where this Joint draws {len(self.conditionals)}.")
        leaves: dict[Any, Any] = {}
        found = {}
        for name in self.names():
            found[name] = self.conditional(name, leaves).log_prob(z[name])
            leaves[name] = z[name]
        return found

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), shape [*batch]."""
        log_q: Any = None
        for name, log_prob in self.parts(z).items():
            log_q = _add(log_q, log_prob, name)
        return jnp.asarray(log_q)


def _add(total: Any, log_prob: Array, name: Any) -> Any:
    if total is None:
        return log_prob
    if jnp.shape(total) != jnp.shape(log_prob):
        raise ValueError(
            f"the leaves of a Joint must share one batch shape: log q({name} | earlier) has shape "
            f"{jnp.shape(log_prob)}, those before it {jnp.shape(total)}. Wrap event dimensions in Independent."
        )
    return total + log_prob


def lift(q: Any) -> Any:
    """Return q itself where it is a distribution, and a Joint where it is a dict, list or tuple of them."""
    if isinstance(q, Distribution):
        return q
    if isinstance(q, (Mapping, tuple, list)):
        return Joint(q)
    raise TypeError(
        f"q must offer sample_and_log_prob(*, seed, sample_shape) and log_prob(z), or be a dict, list or tuple of such "
        f"distributions; got {type(q).__name__}. For a TFP or NumPyro distribution use families.adapt(q)."
    )
