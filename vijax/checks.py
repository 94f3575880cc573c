"""Checks at trace time, each with a message that names the argument, what was found, and the cure."""

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, SupportsIndex, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import calls, types
from vijax.calls import described, is_known
from vijax.raised import evaluated
from vijax.trees import named_leaves as named_leaves
from vijax.trees import named_scalars as named_scalars
from vijax.types import PyTree

F = TypeVar("F", bound=Callable[..., Any])


def key(key: object) -> None:
    """Refuse anything but one typed key."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        kind, cure = described(key), ""
        if isinstance(key, int):
            cure = f"; a seed becomes a key by jax.random.key({key})"
        elif dtype is not None:
            kind, cure = (
                f"{dtype}{list(jnp.shape(cast(Array, key)))}",
                "; wrap a raw key with jax.random.wrap_key_data",
            )
        raise TypeError(f"key must be a typed key, jax.random.key(seed), got {kind}{cure}.")
    shape = jnp.shape(cast(Array, key))
    if shape != ():
        raise ValueError(
            f"key must be one key of shape (), got {shape}; vmap over keys, or pass one of them."
        )


def static_count(value: object, name: str, *, least: int = 1, why: str = "") -> None:
    """Refuse counts that are not Python ints of at least `least`, known when a function is traced."""
    # NumPy's and JAX's arrays of one element have __index__, and are no counts.
    of_many = jnp.ndim(cast(Array, value)) if hasattr(value, "dtype") else 0
    is_traced = isinstance(value, jax.core.Tracer)
    if isinstance(value, bool) or is_traced or of_many or not hasattr(value, "__index__"):
        raise TypeError(
            f"{name} must be a Python int, fixed when the function is traced; got {value!r}."
        )
    if operator.index(cast(SupportsIndex, value)) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}{why}.")


def num_samples(num_samples: object, chunk_size: object = None) -> None:
    """Refuse sample counts, and chunk sizes that are not None, which are no static whole numbers."""
    static_count(num_samples, "num_samples")
    if chunk_size is not None:
        static_count(chunk_size, "chunk_size")


def key_and_counts(one_key: object, count: object, chunk_size: object) -> None:
    """Refuse keys and counts that no objective takes."""
    key(one_key)
    num_samples(count, chunk_size)


def family(family: object, name: str) -> None:
    """Refuse what is no family; nearly always one that was not called."""
    if not (hasattr(family, "init") and hasattr(family, "dist")):
        raise TypeError(
            f"{name} must be a Family, such as families.full_rank() with its brackets, got "
            f"{described(family)}."
        )


# The cure of a target of a minibatch, where a conditional is asked for.
CONDITIONAL = (
    "the conditional given a minibatch is not the conditional given the data; give it all the data"
)

# What is asked of the function that is being evaluated, beside its value. JAX's caches heed it: what
# was traced under a linear bound is traced, and checked, anew.
_asked = jax.make_user_context()
_BEYOND_MEAN = "more than its mean"
_NOT_LINEAR = "what is not linear in it"


def beyond_mean() -> AbstractContextManager[None]:
    """Enter a trace in which more than the mean of log p counts, as under a bound that is not linear."""
    return _asked(_BEYOND_MEAN)


def own_derivative(through: str = _NOT_LINEAR) -> AbstractContextManager[None]:
    """Enter a trace whose derivative must be that of its value, and not one that is right in its
    mean.

    Args:
        through: what the derivative passes through, for the refusal.
    """
    return _asked(_asked.value or through)


# As `_asked`, for fits: whether leaves that log_joint never reads are refused.
_reading_all = jax.make_user_context()


def reading_all() -> AbstractContextManager[None]:
    """Enter a fit, in which leaves of q that log_joint never reads are refused: no step would end."""
    return _reading_all("a fit")


def must_read_all() -> bool:
    """Return whether this trace is that of a fit."""
    return _reading_all.value is not None


def mean_alone(why: str) -> None:
    """Refuse, inside a target that is unbiased in its mean alone, an evaluation in which more counts."""
    if _asked.value == _BEYOND_MEAN:
        raise ValueError(
            f"{why}, and here, inside another function, it is asked for more than its mean: use "
            "bounds.elbo, or the plain log joint of all the data."
        )


def needs_own_derivative() -> str | None:
    """Return what makes a derivative that is right in its mean alone wrong in this trace, or None."""
    return _NOT_LINEAR if _asked.value == _BEYOND_MEAN else _asked.value


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def value_alone(value: PyTree, refusal: str) -> PyTree:
    """Return a value whose derivative is refused, while it is traced, by a ValueError."""
    return value


@value_alone.defjvp
def _value_alone_jvp(refusal: str, primals: PyTree, tangents: PyTree) -> NoReturn:
    raise ValueError(refusal)


def target(
    log_joint: F,
    who: str,
    *,
    keyed: bool = False,
    only_mean: bool = False,
    holds_log_q: bool = False,
    has_aux: bool = False,
    what: str = "log_joint",
    cure: str = "",
) -> F:
    """Refuse a target that is more, or less, than `who` takes; return what may be evaluated.

    Args:
        log_joint: of any arguments.
        who: what takes it, for messages.
        keyed, only_mean, holds_log_q, has_aux: which of `types.Properties` it may have.
        what: the argument's name.
        cure: of a target that is unbiased in its mean alone, where it is not to give all the data.

    Returns:
        The function. Without `only_mean` it evaluates where more than the mean counts, so that a
        target inside it that is unbiased in its mean alone is refused, however deep.
    """
    # Each mark of the target that `who` does not take has its own cure.
    calls.function(log_joint, what)
    known = types.properties(log_joint)
    if known.holds_log_q and not holds_log_q:
        raise ValueError(
            f"{who} needs the log joint itself, and this {what} holds terms of q in closed form: "
            "use the plain one, and apply targets.exact_kl or targets.exact_entropy last."
        )
    if known.only_mean and not only_mean:
        raise ValueError(
            f"{who} needs the exact {what}, and of this one the mean alone is right: "
            f"{known.only_mean}; {cure or 'give it all the data'}."
        )
    if known.keyed and not keyed:
        raise ValueError(
            f"{who} needs a {what} without noise, and this one takes a key: fix the key, "
            f"functools.partial({what}, key=key), and where draws are to differ in it give the "
            "outcome to targets.keyed(lambda key, z: ...)."
        )
    if known.has_aux and not has_aux:
        raise ValueError(
            f"{who} takes a {what} of log p alone, and this one returns (log p, aux): give it the "
            f"first of the two, lambda *z: {what}(*z)[0]."
        )
    if only_mean:
        return log_joint

    def guarded(*z: Any, **given: Any) -> Any:
        with beyond_mean():
            return evaluated(what, log_joint, *z, **given)

    return types.derive(log_joint, guarded)  # type: ignore[return-value]


def describe(function: object) -> str:
    """Return the name of a function, looking through partial."""
    while hasattr(function, "func"):
        function = function.func
    return getattr(function, "__name__", repr(function))


def log_densities(
    log_p: object,
    log_q: Array,
    z: PyTree,
    names: tuple[str, str] = ("log_joint(z)", "q.log_prob(z)"),
    independent: str | None = None,
) -> None:
    """Refuse a log_joint whose shape for one draw is not that of log q, [*batch].

    Args:
        log_p, log_q: the two log-densities.
        z: the draw.
        names: of the two, for messages.
        independent: how q's batch axes are made axes of one latent, {} for their number; distrax's where None.
    """
    of_p, of_q = names
    if not isinstance(log_p, (jax.Array, np.ndarray, np.generic, float, int)) and not hasattr(
        log_p, "__jax_array__"
    ):
        kind = "None; does it lack a return?" if log_p is None else f"{type(log_p).__name__}."
        raise TypeError(f"{of_p} must be an array of shape {jnp.shape(log_q)}, got {kind}")
    density = cast(Array, log_p)
    if not jnp.issubdtype(jnp.result_type(density), jnp.floating):
        raise TypeError(f"{of_p} must be real floating, got {jnp.result_type(density)}.")
    p, q = jnp.shape(density), jnp.shape(log_q)
    if p == q:
        return
    # Two mistakes are common, and have a cure of their own: axes of the event left in q's batch, and
    # an outer product of the batch with itself.
    leaves = ", ".join(f"{name} {jnp.shape(leaf)}" for name, leaf in named_leaves(z))
    wrap = independent or "distrax.Independent(q, reinterpreted_batch_ndims={})"
    cure = "sum over the event axes of each draw and keep the batch axes."
    if len(q) > len(p) and q[: len(p)] == p:
        cure = (
            f"where {q[len(p) :]} is a batch, let {of_p} return one value for each member, neither "
            f"summed nor averaged; where it belongs to one latent, wrap q: "
            f"{wrap.format(len(q) - len(p))}."
        )
    elif len(p) == len(q) + 1 and q and p[-1] == q[-1] and p[:-1] == q:
        cure = (
            f"the batch axis was broadcast against itself, ({p[-1]},) with ({p[-1]}, 1): give both "
            "the same rank."
        )
    raise ValueError(
        f"{of_p} has shape {p} for one draw, where {of_q} has {q}; they must be equal ([*batch]). "
        f"The draw: {leaves}. Cure: {cure}"
    )


def start_gradient(value: Array, gradient: PyTree, who: str) -> None:
    """Refuse a start whose density is finite and whose gradient is not; under a trace nothing is known."""
    if not is_known(value, gradient):
        return
    if not np.isfinite(value):
        return
    bad = [f"'{name}'" for name, leaf in named_leaves(gradient) if not np.isfinite(leaf).all()]
    if bad:
        raise ValueError(
            f"{who} cannot climb: log_joint is finite at the start and its gradient of "
            f"{', '.join(bad)} is nan. Data that are nan are masked before the density as well as "
            "after it, where(mask, log_prob(where(mask, y, 0)), 0)."
        )
