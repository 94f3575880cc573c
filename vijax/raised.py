"""What a user's function raised in the words of Python or JAX, and what to write instead."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vijax.trees import named_leaves
from vijax.types import PyTree

# How Python says that a function was called with arguments that it does not take.
_ARGUMENTS = re.compile(r"^(\S+)\(\) (missing|takes|got an unexpected|got multiple) ")


class ReadsNumbersError(TypeError):
    """A function asks Python for a number that is not known while the function is traced."""


# What JAX raises then, by if, float(), NumPy, and as an index; and what it is made into.
READS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    ReadsNumbersError,
)


# What is answered in words: a leaf that q lacks, and calls and operations that do not fit.
ANSWERED = (KeyError, AttributeError, TypeError)


def evaluated(name: str, function: Callable[..., Any], *z: Any, **given: Any) -> Any:
    """Return function(*z, **given); of what a user may have meant otherwise, say how it is written.

    Args:
        name: of the function as an argument, for messages.
        function: a log joint, or another function that is traced.
        z, given: what it is called with.
    """
    try:
        return function(*z, **given)
    except ANSWERED as error:
        said = in_words(name, error, *z)
        if said is None:
            raise
        raise said from error


def in_words(name: str, error: Exception, *z: Any) -> Exception | None:
    """Return an error that says how a function is to be written, or None.

    Args:
        name: of the function as an argument.
        error: that it raised, one of `ANSWERED`.
        z: what it was called with.
    """
    if isinstance(error, (KeyError, AttributeError)):
        return _missing_leaf(name, error, z[0] if z else None)
    return _of_call(name, error, z) if isinstance(error, TypeError) else None


def _missing_leaf(name: str, error: KeyError | AttributeError, z: PyTree) -> ValueError | None:
    """Return what to say of a function that asks q for a leaf that it has not; None of other errors."""
    asked = error.name if isinstance(error, AttributeError) else error.args[0]
    # The error is about the draw itself, and not about a dict or object inside the model.
    of_draw = isinstance(error, KeyError) and isinstance(z, Mapping) and asked not in z
    if isinstance(error, AttributeError):
        of_draw = isinstance(z, tuple) and error.obj is z
    if not of_draw:
        return None
    names = [name for name, _ in named_leaves(z)]
    return ValueError(
        f"{name}(z) raised {error!r}, where q offers the leaves {names}: give q the leaf that "
        "is missing, or bind it, functools.partial."
    )


def _of_call(name: str, error: TypeError, z: tuple[PyTree, ...]) -> TypeError | None:
    if isinstance(error, ReadsNumbersError):
        return None
    if isinstance(error, READS_NUMBERS):
        return ReadsNumbersError(
            f"{name} needs a value that is not known while it is traced, for an if, float(), an index or NumPy: write "
            f"jnp.where(condition, a, b) for an if, jax.numpy for NumPy, and leave numbers arrays. Its line is named "
            "above, under the error of JAX."
        )
    if "'list'" in str(error) and any(isinstance(part, list) for part in z):
        return TypeError(
            f"{name} is given a list, a pytree of its numbers, as what it began with is one ({error}): of a "
            "vector make an array, jnp.array([...])."
        )
    called = _ARGUMENTS.match(str(error))
    if called is None or not _called_here(error):
        return None
    return TypeError(
        f"{name} is called with the latents alone, and {error}: bind what else it takes, as "
        f"functools.partial({name}, x=x) or lambda z: {name}(z, x)."
    )


def _called_here(error: TypeError) -> bool:
    """Return whether the call that failed is vijax's own, and not one within the user's function."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("vijax.")
