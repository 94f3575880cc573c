"""Which call an equation of a jaxpr is part of, read from JAX's record of frames."""

from os import path as paths_of
from typing import NamedTuple

import jax
from jax.extend import core

# The folder of JAX's own files; frames in it are no user's.
JAX = paths_of.join(paths_of.dirname(jax.__file__ or ""), "")
INSTALLED = paths_of.join(paths_of.dirname(paths_of.dirname(JAX)), "")  # site-packages


class Call(NamedTuple):
    """The call that an equation is part of, and JAX's functions on the way, inmost first.

    Its place is the user's file:line, "" where none is known.
    """

    file: str
    line: int
    functions: tuple[str, ...]
    place: str


def call_of(eqn: core.JaxprEqn) -> Call:
    """Return the call that an equation is part of; its file is "" where only JAX's are known."""
    # Inmost first. The first frame outside JAX made the call; those before it are JAX's functions.
    frames = getattr(eqn.source_info.traceback, "frames", ())
    outside = next((i for i, f in enumerate(frames) if not f.file_name.startswith(JAX)), None)
    functions = tuple(f.function_name for f in frames[:outside])
    if outside is None:
        return Call("", 0, functions, "")
    # A library that was installed is no place for a user to change.
    own = (f for f in frames[outside:] if not f.file_name.startswith(INSTALLED))
    shown = next((f"{paths_of.basename(f.file_name)}:{f.line_num}" for f in own), "")
    return Call(frames[outside].file_name, frames[outside].line_num, functions, shown)
