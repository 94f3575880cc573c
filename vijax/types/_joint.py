"""A distribution over several latents, drawn one after another."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax.types._values import Distribution, Family, PyTree


class Joint:
    """A distribution over a dict or tuple of latents, drawn in order, each possibly given the
    earlier ones.

        log q(z) = Σ_leaf log q(leaf | earlier leaves)

    Values are distributions, callables from the earlier leaves to a distribution, or further dicts, lists and tuples.
    A pytree of distributions passed as q is lifted to a Joint, so writing the class name is needed only for clarity.

    Args:
        conditionals: an ordered mapping leaf -> Distribution or (earlier -> Distribution); or a tuple or list of them.
            A callable receives the earlier leaves in the same kind of container.

    Example:
        >>> normal = distrax.Normal
        >>> q = Joint({"a": normal(0.0, 1.0), "b": lambda earlier: normal(earlier["a"], 1.0)})
        >>> round(float(q.log_prob({"a": 1.0, "b": 1.0})), 3)  # -½ - log 2π
        -2.338
    """

    def __init__(self, conditionals: Mapping[str, Any] | tuple[Any, ...] | list[Any]):
        if not isinstance(conditionals, (Mapping, tuple, list)) or not conditionals:
            raise TypeError(
                "Joint takes a non-empty dict, tuple or list of distributions, got "
                f"{conditionals!r}."
            )
        self.conditionals = conditionals

    def names(self) -> list[Any]:
        """Return the names of the leaves, in the order they are drawn."""
        c = self.conditionals
        return list(c) if isinstance(c, Mapping) else list(range(len(c)))

    def keys(self, key: Key[Array, ""]) -> Key[Array, " leaves"]:
        """Return one key for each leaf."""
        return jax.random.split(key, len(self.conditionals))

    def collect(self, leaves: Mapping[Any, Any]) -> PyTree:
        """Put leaves, in the order they were drawn, in a container of the kind the conditionals came in."""
        c = self.conditionals
        if isinstance(c, Mapping):
            return dict(leaves)
        # A NamedTuple, once all its leaves are drawn; before that a plain tuple stands for it.
        if hasattr(c, "_fields") and len(leaves) == len(c):
            return type(c)(*leaves.values())
        return list(leaves.values()) if isinstance(c, list) else tuple(leaves.values())

    def conditional(self, name: Hashable, earlier: Mapping[Any, Any]) -> Any:
        """Return the distribution of one leaf given the earlier ones."""
        # A container of either kind: a name is a key of a mapping, and a position in a sequence.
        conditionals: Any = self.conditionals
        part = conditionals[name]
        # A function of the earlier leaves becomes a distribution; either may be a container of more.
        if is_conditional(part):
            part = part(self.collect(earlier))
        return lift(part)

    def sample_and_log_prob(
        self, *, seed: Key[Array, ""], sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw the leaves in order; return them and Σ log q(leaf | earlier)."""
        if sample_shape:  # a conditional may not accept a sample axis, so it is added outside
            shape = tuple(sample_shape)
            keys = jax.random.split(seed, shape)
            draw: Callable[..., Any] = self._draw
            for _ in shape:
                draw = jax.vmap(draw)
            return draw(keys)
        return self._draw(seed)

    def _draw(self, seed: Key[Array, ""]) -> tuple[PyTree, Array]:
        leaves: dict[Any, Any] = {}
        log_q: Any = None
        # The chain rule: each leaf adds log q(leaf | those before it), [*batch].
        for key, name in zip(self.keys(seed), self.names(), strict=True):
            q = self.conditional(name, leaves)
            leaves[name], log_prob = q.sample_and_log_prob(seed=key, sample_shape=())
            log_q = _add(log_q, log_prob, name)
        return self.collect(leaves), log_q

    def parts(self, z: PyTree) -> dict[Any, Array]:
        """Return {leaf: log q(leaf | earlier leaves)}, each [*batch]."""
        if len(z) != len(self.conditionals):
            raise ValueError(
                f"z has {len(z)} leaves where this Joint draws {len(self.conditionals)}."
            )
        leaves: dict[Any, Any] = {}
        densities = {}
        for name in self.names():
            densities[name] = self.conditional(name, leaves).log_prob(z[name])
            leaves[name] = z[name]
        return densities

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), shape [*batch]."""
        log_q: Any = None
        for name, log_prob in self.parts(z).items():
            log_q = _add(log_q, log_prob, name)
        return jnp.asarray(log_q)


def _add(total: Array | None, log_prob: Array, name: Hashable) -> Array:
    if total is None:
        return log_prob
    # Densities of different shapes would broadcast to an outer product in silence.
    if jnp.shape(total) != jnp.shape(log_prob):
        raise ValueError(
            f"the leaves of a Joint must share one batch shape: log q({name} | earlier) has shape "
            f"{jnp.shape(log_prob)}, those before it {jnp.shape(total)}. Wrap event dimensions in "
            "Independent."
        )
    return total + log_prob


def is_conditional(part: object) -> bool:
    """Return whether a part of a Joint is a function of the earlier leaves, and not a distribution.

    NumPyro's distributions are callable too, and `lift` says how to adapt them.

    Args:
        part: what stands for a leaf in a Joint.

    Returns:
        Whether it is a function of the earlier leaves.

    Example:
        >>> is_conditional(lambda earlier: distrax.Normal(earlier["a"], 1.0))
        True
        >>> is_conditional(distrax.Normal(0.0, 1.0))
        False
    """
    return callable(part) and not isinstance(part, Distribution) and not hasattr(part, "log_prob")


def lift(q: Distribution | PyTree, what: str = "q") -> Any:
    """Return q itself where it is a distribution, and a Joint where it is a dict, list or tuple of
    them.

    Args:
        q: a distribution, or a container of distributions and of functions to them.
        what: the argument's name, for messages.

    Returns:
        A Distribution.

    Raises:
        TypeError: for anything else, such as arrays, a family, or a function; it names the cure.

    Example:
        >>> lift({"a": distrax.Normal(0.0, 1.0), "b": distrax.Normal(0.0, 1.0)}).names()
        ['a', 'b']
    """
    if isinstance(q, Distribution):
        return q
    kind, cure = type(q).__name__, "for a TFP or NumPyro distribution use families.adapt(q)"
    # The rest is about the message: each of the likely mistakes has its own cure.
    leaves = list(q.values() if isinstance(q, Mapping) else q) if _is_container(q) else []
    if isinstance(q, Family):
        cure = "a family makes one of its params, family.dist(family.init(key, like))"
    elif leaves and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
        kind = f"a {kind} of arrays"
        cure = "params become one by family.dist(params)"
    elif _is_container(q):
        return Joint(q)
    elif inspect.isroutine(q):
        kind = f"a function, {q.__name__}"
        cure = f"a family makes a {what} of its params, family.dist(params)"
        if what == "q":
            cure = f"log_joint comes before q, and {cure}"
        else:
            cure = f"a log-density goes into log_joint, {what}.log_prob makes one, and {cure}"
    raise TypeError(
        f"{what} must offer sample_and_log_prob(*, seed, sample_shape) and log_prob(z), or be a "
        f"dict, list or tuple of such distributions; got {kind}: {cure}."
    )


def _is_container(q: object) -> bool:
    return isinstance(q, (Mapping, tuple, list))
