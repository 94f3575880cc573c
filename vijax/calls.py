"""Calls that do not fit: what was handed over, in words, and how the function is called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vijax import types

F = TypeVar("F", bound=Callable[..., Any])


def is_known(*values: object) -> bool:
    """Return whether numbers are known while a function is traced: of Python, NumPy or JAX, and not tracers."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def usage(name: str, example: str = "") -> Callable[[F], F]:
    """Return a decorator that answers a call which lacks an argument, or has one too many, by an example.

    Args:
        name: of the function, with its room.
        example: a call that fits; made of the arguments without defaults where there is none.
    """
    return lambda function: answered(function, name, example)


def answered(
    function: F, name: str, example: str = "", admit: Callable[..., None] | None = None
) -> F:
    """Return the function as `usage` decorates it, its calls first shown to `admit`."""
    expected = inspect.signature(function)
    example = example or f"{name}({_needed(expected)})"

    @functools.wraps(function)
    def called(*args: Any, **given: Any) -> Any:
        if admit is not None:
            admit(*args, **given)
        try:
            expected.bind(*args, **given)
        except TypeError as error:
            # What was handed over, in words, and the names of the keywords.
            words = ", ".join([*map(described, args), *(f"{keyword}=" for keyword in given)])
            raise TypeError(f"{name} got ({words}): {error}. Call it as {example}.") from None
        return function(*args, **given)

    return called  # type: ignore[return-value]


def bound(function: F) -> F:
    """Decorate a bound: refuse what are no log-weights, and weights that are known to be no shares."""
    name = f"bounds.{function.__name__}"
    cure = (
        "an estimator takes the bound, and what it makes the key, the model and q: "
        f"gradients.dreg({name})(key, log_joint, q, num_samples=16)"
    )
    example = f"{name}(log_w, ...), with its keywords by name"

    def admit(*args: Any, **given: Any) -> None:
        if args:
            log_weights(args[0], name, cure)
            shares(given.get("weights"), args[0])

    return answered(function, name, example, admit)


def _needed(expected: inspect.Signature) -> str:
    """Return the arguments without defaults, as a call has them."""
    needed = [
        f"{part.name}=..." if part.kind is part.KEYWORD_ONLY else part.name
        for part in expected.parameters.values()
        if part.default is part.empty
    ]
    return ", ".join(needed)


def function(value: object, name: str) -> None:
    """Refuse what is no function; a target that is one of its own, or came in the place of q."""
    if callable(value) and not isinstance(value, types.Distribution):
        return
    # A model with a method of that name, a q in the wrong place, or the outcome of a call.
    cure = ""
    if hasattr(value, name):
        cure = f": pass its {name}"
    elif isinstance(value, types.Distribution):
        cure = f": {name} comes before q; of another one pass its log_prob"
    elif isinstance(value, (jax.Array, np.ndarray, float)):
        cure = ": pass the function of z, not its value"
    raise TypeError(f"{name} must be a function, got {described(value)}{cure}.")


def latents(like: object, name: str = "like") -> None:
    """Refuse what is no pytree of latents: a distribution or a family, of whose arrays a q would be made, or text."""
    odd: list[object] = [like] if isinstance(like, (types.Distribution, types.Family)) else []
    odd += [
        leaf for leaf in jax.tree.leaves(like) if isinstance(leaf, str) or inspect.isroutine(leaf)
    ]
    if odd:
        raise TypeError(
            f"{name} must be a pytree of latents, such as one draw of z, got {described(odd[0])}: a "
            "dict of arrays in the shapes of z, zeros where nothing is known."
        )


def log_weights(
    log_w: object, who: str, cure: str = "give it those of draws.weigh(...).log_w"
) -> None:
    """Refuse what are no log-weights [k, *batch]; `cure` is of a function, a key or a distribution."""
    # A typed key has a dtype and a shape too, and is no array of numbers.
    dtype: Any = getattr(log_w, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # The cure depends on what came: draws or an estimate, a function, key or distribution, or numbers.
    if is_key or not isinstance(log_w, (jax.Array, np.ndarray)):
        if hasattr(log_w, "log_w") or hasattr(log_w, "draws"):
            cure = "give it their log_w: draws.log_w, or estimate.draws.log_w"
        elif not (is_key or callable(log_w) or hasattr(log_w, "log_prob")):
            cure = "give it an array [k, *batch]"
        raise TypeError(f"{who} judges log-weights, and log_w is {described(log_w)}: {cure}.")
    if log_w.ndim == 0 or log_w.shape[0] == 0:
        raise ValueError(
            f"log-weights must have shape [k, *batch] with k >= 1, got {log_w.shape}: the axis of "
            "the draws comes first."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"log-weights must be real floating, in nats, got {dtype}: log_w * 1.0.")


def shares(weights: Any, log_w: Any, *, axis: int = 0) -> None:
    """Refuse weights of strata that do not fit log_w; of their values, those that are known while tracing."""
    if weights is None:
        return
    shape, number = jnp.shape(weights), log_w.shape[axis]
    if shape not in ((number,), log_w.shape):
        raise ValueError(
            f"weights have shape {shape}, expected {(number,)} or {log_w.shape}, as log_w's."
        )
    if not is_known(weights):
        return
    known = np.asarray(weights).astype(np.float64)
    total = known.sum(axis)
    # Half precision sums to 1 within a few of its own units.
    room = max(1e-4, 8 * float(jnp.finfo(jnp.result_type(weights, jnp.float16)).eps))
    # Written so that a nan is refused as well.
    if not (np.all(known >= 0) and np.all(np.abs(total - 1) <= room)):
        raise ValueError(
            f"weights must be positive or 0 and sum to 1 over axis {axis % log_w.ndim}; the least is "
            f"{known.min():.4g} and the sums are {total.min():.4g} to {total.max():.4g}: give it "
            f"weights / weights.sum({axis if axis == 0 else f'{axis}, keepdims=True'}); those of "
            "importance are in log_w already."
        )


def described(value: object) -> str:
    """Return in a few words what a value is."""
    dtype, kind = getattr(value, "dtype", None), type(value).__name__
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "a key"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return f"an array {dtype}{list(value.shape)}"
    if isinstance(value, types.Family):
        return "a Family"
    if isinstance(value, types.Distribution):
        return f"a distribution, {kind}"
    if inspect.isroutine(value):
        return "a function" if value.__name__ == "<lambda>" else f"a function, {value.__name__}"
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value)
    return f"a {kind}"
