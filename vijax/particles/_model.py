"""State-space models as functions of one particle, and the checks of their data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vijax import checks
from vijax.calls import described, usage
from vijax.types import Distribution, PyTree, lift


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


class Carried(NamedTuple):
    """A state with what is computed of it and of the past.

    Fields:
        z: what was drawn.
        carried: what was computed from it, [*batch, ...].
    """

    z: PyTree
    carried: PyTree


class _Carrying(NamedTuple):
    """A distribution of `Carried`: only z is drawn."""

    q: Any
    complete: Callable[[Any], PyTree]

    def sample_and_log_prob(self, *, seed: Array, sample_shape: Sequence[int] = ()) -> Any:
        def one(key: Array) -> tuple[Carried, Array]:
            z, log_q = self.q.sample_and_log_prob(seed=key, sample_shape=())
            return Carried(z, self.complete(z)), log_q

        shape = tuple(sample_shape)
        for _ in shape:
            one = jax.vmap(one)
        return one(jax.random.split(seed, shape) if shape else seed)

    def log_prob(self, z: Carried, /) -> Array:
        return self.q.log_prob(z.z)


@usage("particles.carrying")
def carrying(q: Distribution | PyTree, complete: Callable[[Any], PyTree]) -> Distribution:
    """Distribution of a state together with what is computed from it: an RNN's state, moments, counts.

        z ~ q,     carried = complete(z),     log q(z, carried) = log q(z)

    What a transition returns for models that are not Markov in z alone, such as a VRNN. Every
    gradient treats z as drawn and the rest as computed, whereas a state of your own that mixes the
    two would be held as a whole where draws are held.

    Args:
        q: a distribution of z.
        complete: z -> a pytree of arrays, which may close over the state before and xₜ.

    Returns:
        A distribution of `Carried(z, carried)`. A proposal of such a model draws z alone.

    Raises:
        TypeError: for a q that is no distribution.

    Example:
        >>> total = carrying(distrax.Normal(0.0, 1.0), lambda z: 3.0 + z)
        >>> state, log_q = total.sample_and_log_prob(seed=jax.random.key(0))
        >>> round(float(state.carried - state.z), 3)
        3.0

    Reference: Chung et al., A recurrent latent variable model for sequential data, 2015,
        arXiv:1506.02216.
    """
    return _Carrying(lift(q), complete)


class Moves(NamedTuple):
    """The distributions of one step.

    Fields:
        q: what is drawn from.
        p: the model's, None where it is the same.
        complete: what is drawn -> what the state carries beside it; None where that is nothing.
    """

    q: Any
    p: Any
    complete: Callable[[Any], PyTree] | None

    def state(self, z: PyTree) -> PyTree:
        """Return the whole state of what was drawn."""
        return z if self.complete is None else Carried(z, self.complete(z))

    def drawn(self, state: PyTree) -> PyTree:
        """Return what was drawn of a whole state."""
        return state if self.complete is None else state.z


def as_distribution(q: Any, what: str) -> tuple[Any, Callable[[Any], PyTree] | None]:
    """Return the distribution of what is drawn, and what completes it to a state."""
    if isinstance(q, _Carrying):
        return q.q, q.complete
    return lift(q, f"the distribution that {what} returns"), None


def start(model: StateSpace, proposal: Proposal | None, x: PyTree) -> Moves:
    """Return the distributions of z₁."""
    p, complete = as_distribution(model.initial(x), "model.initial")
    if proposal is None:
        return Moves(p, None, complete)
    return Moves(as_distribution(proposal.initial(x), "proposal.initial")[0], p, complete)


def move(model: StateSpace, proposal: Proposal | None, z: PyTree, x: PyTree) -> Moves:
    """Return the distributions of zₜ given zₜ₋₁."""
    p, complete = as_distribution(model.transition(z, x), "model.transition")
    if proposal is None:
        return Moves(p, None, complete)
    return Moves(as_distribution(proposal.transition(z, x), "proposal.transition")[0], p, complete)


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
