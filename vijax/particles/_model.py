"""State-space models as functions of one particle, and the checks of their data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vijax import checks
from vijax.calls import described
from vijax.types import PyTree, lift


class StateSpace(NamedTuple):
    """A state-space model, written for one particle; z is any pytree.

        z₁ ~ initial(x₁),    zₜ ~ transition(zₜ₋₁, xₜ),    log p(xₜ | zₜ) = emission(zₜ, xₜ)

    xₜ is slice t of the data, a pytree with leading axis T: observations, inputs, and whatever else a
    step reads. Distributions have batch shape [*batch], and leaves of z begin with it.

    Fields:
        initial: x₁ -> the distribution of z₁.
        transition: (zₜ₋₁, xₜ) -> the distribution of zₜ, t ≥ 2.
        emission: (zₜ, xₜ) -> log p(xₜ | zₜ) in nats, [*batch].
    """

    initial: Callable[[Any], Any]
    transition: Callable[[Any, Any], Any]
    emission: Callable[[Any, Any], Array]


class Proposal(NamedTuple):
    """Where particles are drawn from instead of the model; both may read xₜ.

    Fields:
        initial: x₁ -> a distribution of z₁.
        transition: (zₜ₋₁, xₜ) -> a distribution of zₜ, t ≥ 2.
    """

    initial: Callable[[Any], Any]
    transition: Callable[[Any, Any], Any]


class Moves(NamedTuple):
    """The distributions of one step: what is drawn from, and the model's, None where it is the same."""

    q: Any
    p: Any


def start(model: StateSpace, proposal: Proposal | None, x: PyTree) -> Moves:
    """Return the distributions of z₁."""
    p = lift(model.initial(x), "the distribution that model.initial returns")
    if proposal is None:
        return Moves(p, None)
    return Moves(lift(proposal.initial(x), "the distribution that proposal.initial returns"), p)


def move(model: StateSpace, proposal: Proposal | None, z: PyTree, x: PyTree) -> Moves:
    """Return the distributions of zₜ given zₜ₋₁."""
    p = lift(model.transition(z, x), "the distribution that model.transition returns")
    if proposal is None:
        return Moves(p, None)
    q = proposal.transition(z, x)
    return Moves(lift(q, "the distribution that proposal.transition returns"), p)


def admit(model: object, data: PyTree, proposal: object) -> int:
    """Refuse what is no model, proposal or data; return T."""
    if not isinstance(model, StateSpace):
        raise TypeError(
            f"model must be a particles.StateSpace(initial, transition, emission), got "
            f"{described(model)}."
        )
    if not (proposal is None or isinstance(proposal, Proposal)):
        raise TypeError(
            "proposal must be a particles.Proposal(initial, transition), or None for the model's "
            f"own transition, got {described(proposal)}."
        )
    return length_of(data)


def length_of(data: PyTree) -> int:
    """Return T, the leading axis of every leaf."""
    leaves = checks.named_leaves(data)
    shapes = {name: jnp.shape(leaf) for name, leaf in leaves}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        found = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items()) or "no arrays"
        raise ValueError(
            f"data must be arrays with one leading axis T >= 1, got {found}: pad sequences of "
            "different lengths to one T, and give `length`; of missing steps give `mask`."
        )
    return int(lengths.pop()[0])


def at(data: PyTree, t: int) -> PyTree:
    """Return slice t of the data."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[t], data)


def admit_mask(mask: Bool[Array, "..."] | None, t: int) -> None:
    """Refuse a mask that is not boolean [T, ...]."""
    if mask is None:
        return
    if jnp.result_type(mask) != jnp.bool_ or jnp.shape(mask)[:1] != (t,):
        raise ValueError(
            f"mask must be booleans [T, *batch] with T = {t}, True where x is observed, got "
            f"{jnp.result_type(mask)}{list(jnp.shape(mask))}."
        )


def admit_length(length: Int[Array, "..."] | int | None) -> None:
    """Refuse lengths that are not whole numbers."""
    if length is not None and not jnp.issubdtype(jnp.result_type(length), jnp.integer):
        raise ValueError(
            "length must be whole numbers [*batch], how many steps each sequence has, got "
            f"{jnp.result_type(length)}{list(jnp.shape(length))}."
        )


def one_value(log_density: Array, log_q: Array, z: PyTree, what: str) -> Array:
    """Return a log-density; refuse one whose shape is not [*batch]."""
    checks.log_densities(log_density, log_q, z, (what, "log q(z)"))
    return jnp.asarray(log_density)
