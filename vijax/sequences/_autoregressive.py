"""A distribution over whole sequences, of what each step says given the steps before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.trees import scan, strong_dtypes
from vijax.types import Distribution, PyTree, lift

Cell = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Any]]
"""(carry, zₜ₋₁, inputs of step t) -> (carry, the distribution of zₜ)."""

_FIELDS = ["carry", "first", "inputs", "time"]


@partial(jax.tree_util.register_dataclass, data_fields=_FIELDS, meta_fields=["step"])
@dataclass(frozen=True, eq=False)
class _Autoregressive:
    """Distribution of sequences, leaves [*batch, T, ...]; a pytree whose arrays vmap may stack."""

    step: Cell
    carry: PyTree
    first: PyTree  # what stands for the step before the first, like one zₜ
    inputs: PyTree  # leaves [*batch, T, ...], or None
    time: Array  # [*batch, T], whose rank tells that of the batch

    @property
    def fixed_support(self) -> bool | None:
        """Return what the steps declare of their support; True where the jaxpr of one shows that it stays."""
        declared = self._declared("fixed_support")
        if declared is not None:
            return declared
        (carry, inputs), before = self._shapes()
        moving = jaxprs.step_moves(
            lambda state, before: _distribution(self.step(state[0], before, state[1])[1]),
            jax.random.key(0),
            (carry, inputs),
            before,
        )
        # Of the whole sequence the jaxpr may say why.
        return True if moving is None else None

    @property
    def reparameterized(self) -> bool | None:
        """Return what the steps declare of their draws."""
        return self._declared("reparameterized")

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw sequences step by step, and return them with log q, [*sample_shape, *batch]."""
        shape = tuple(sample_shape)
        keys = jax.random.split(seed, (*shape, *self.time.shape))
        draw = partial(self._each, _draw)
        for _ in shape:
            draw = jax.vmap(draw)
        return draw(keys)

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), [*batch] in nats: every step is given the values of z before it."""
        for name, leaf in checks.named_leaves(z):
            if jnp.shape(leaf)[: self.time.ndim] != self.time.shape:
                raise ValueError(
                    f"'{name}' must be one sequence for each member of the batch, "
                    f"{(*self.time.shape, '...')}, got {jnp.shape(leaf)}; for several draws use "
                    "jax.vmap(q.log_prob)."
                )
        return jnp.asarray(self._each(_log_prob, jax.tree.map(jnp.asarray, z)))

    def _each(self, function: Callable[..., Any], argument: PyTree) -> Any:
        function = partial(function, self.step)
        for _ in self.time.shape[:-1]:
            function = jax.vmap(function)
        return function(self.carry, self.first, self.inputs, argument)

    def _shapes(self) -> tuple[tuple[PyTree, PyTree], PyTree]:
        """Return the shapes of what one step of one member takes: (carry, inputs) and the draw before."""
        batch = self.time.ndim - 1

        def without(leaf: Array, axes: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype)

        carry, before = jax.tree.map(partial(without, axes=batch), (self.carry, self.first))
        return (carry, jax.tree.map(partial(without, axes=batch + 1), self.inputs)), before

    def _declared(self, name: str) -> bool | None:
        """Return an attribute of a step's distribution, in a trace that computes nothing."""
        declared: list[bool | None] = []

        def look(carry: PyTree, before: PyTree, inputs: PyTree) -> None:
            declared.append(getattr(_distribution(self.step(carry, before, inputs)[1]), name, None))

        (carry, inputs), before = self._shapes()
        jax.eval_shape(look, carry, before, inputs)
        return declared[-1]


def autoregressive(
    step: Cell, carry: PyTree, first: PyTree, inputs: PyTree = None, *, length: int | None = None
) -> Any:
    """Distribution over sequences whose every step is given the steps before it, and inputs.

        q(z | x) = Πₜ q(zₜ | hₜ),   hₜ, q = step(hₜ₋₁, zₜ₋₁, xₜ)

    Recurrent posteriors and priors: of a VRNN, a deep Markov model, a filter that is learned. Any
    distribution may stand in a step, discrete ones too; estimators see whether it is reparameterized.

    Args:
        step: (carry, zₜ₋₁, xₜ) -> (carry, distribution of zₜ, of batch shape (), or a dict or tuple of
            such). It closes over its weights; it is traced once, whatever T.
        carry: h₀, a pytree of arrays, () for none.
        first: what stands for z₀, like one zₜ.
        inputs: x, a pytree of arrays [T, ...] of which a step sees its own row; None for a prior. What
            is told of later data too comes from a scan backwards.
        length: T, where inputs is None.

    Returns:
        A distribution over z, leaves [T, ...]: `sample_and_log_prob` and `log_prob` (teacher forcing), a
        q for objectives and a prior for log_joint. It is a pytree: for a batch,
        jax.vmap(lambda x: autoregressive(step, carry, first, x))(xs) has leaves [*batch, T, ...].

    Raises:
        TypeError: for a step that returns no pair, or no distribution.
        ValueError: for inputs without one leading axis of time, or neither inputs nor a length; a
            carry or z whose shapes change from step to step; a step of another batch shape.

    Example:
        >>> walk = lambda carry, before, x: (carry, distrax.Normal(before + x, 1.0))
        >>> q = autoregressive(walk, (), jnp.zeros(()), jnp.array([1.0, 0.0, 0.0]))
        >>> round(float(q.log_prob(jnp.ones(3))), 3)  # -3/2 log 2π
        -2.757

    Reference: Chung, Kastner, Dinh, Goel, Courville, Bengio, A recurrent latent variable model for
        sequential data, 2015, arXiv:1506.02216; Krishnan, Shalit, Sontag, Structured inference
        networks for nonlinear state space models, 2017, arXiv:1609.09869.
    """
    carry, inputs = strong_dtypes((carry, inputs))
    time = jnp.arange(_length(inputs, length))
    row = jax.tree.map(lambda leaf: leaf[0], inputs)
    return _Autoregressive(step, carry, _checked(step, carry, first, row), inputs, time)


def _length(inputs: PyTree, length: int | None) -> int:
    leaves = jax.tree.leaves(inputs)
    if not leaves:
        if length is None:
            raise ValueError(
                "a sequence without inputs needs its length: autoregressive(..., length=T)."
            )
        checks.static_count(length, "length")
        return int(length)
    steps = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(steps) != 1 or () in steps or (0,) in steps:
        raise ValueError(
            "every leaf of inputs must begin with one axis of time, T >= 1, got "
            f"{jax.tree.map(jnp.shape, inputs)}."
        )
    (t,) = steps.pop()
    if length not in (None, t):
        raise ValueError(f"length is {length}, and inputs have {t} steps: leave length out.")
    return int(t)


def _checked(step: Cell, carry: PyTree, first: PyTree, row: PyTree) -> PyTree:
    """Return `first` with the dtypes of a draw, after one step in a trace that computes nothing."""

    def one(carry: PyTree, first: PyTree, row: PyTree) -> tuple[PyTree, PyTree, Array]:
        result = step(carry, first, row)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                "step must return (carry, distribution), got "
                f"{type(result).__name__}; carry is () where there is none."
            )
        z, log_q = _distribution(result[1]).sample_and_log_prob(
            seed=jax.random.key(0), sample_shape=()
        )
        return strong_dtypes(result[0]), z, log_q

    after, z, log_q = jax.eval_shape(one, carry, first, row)
    for name, expected, actual in (("first", z, first), ("carry", after, carry)):
        shapes = jax.tree.map(jnp.shape, expected), jax.tree.map(jnp.shape, actual)
        trees: list[Any] = [jax.tree.structure(expected), jax.tree.structure(actual)]
        if trees[0] != trees[1] or shapes[0] != shapes[1]:
            what = "zₜ that step draws" if name == "first" else "carry that step returns"
            raise ValueError(f"{name} must be like the {what}, {shapes[0]}, got {shapes[1]}.")
    if log_q.shape != ():
        raise ValueError(
            f"a step's distribution must have batch shape (), got {log_q.shape}: wrap event dimensions "
            "in Independent; batches come by jax.vmap over autoregressive."
        )
    return jax.tree.map(lambda like, leaf: jnp.asarray(leaf, like.dtype), z, first)


def _distribution(q: Any) -> Distribution:
    distribution: Distribution = lift(q, "the distribution of a step")
    return distribution


def _draw(step: Cell, carry: PyTree, first: PyTree, inputs: PyTree, keys: Array) -> Any:
    def turn(state: tuple[PyTree, PyTree], row: tuple[Array, PyTree]) -> Any:
        key, x = row
        carry, q = step(*state, x)
        z, log_q = _distribution(q).sample_and_log_prob(seed=key, sample_shape=())
        return (strong_dtypes(carry), z), (z, log_q)

    _, (z, log_q) = scan(turn, (carry, first), (keys, inputs))
    return z, jnp.sum(log_q)


def _log_prob(step: Cell, carry: PyTree, first: PyTree, inputs: PyTree, z: PyTree) -> Array:
    # zₜ₋₁ of every step is known beforehand.
    before = jax.tree.map(lambda f, leaf: jnp.concatenate([f[None], leaf[:-1]]), first, z)

    def turn(carry: PyTree, row: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, Array]:
        before, x, here = row
        carry, q = step(carry, before, x)
        return strong_dtypes(carry), _distribution(q).log_prob(here)

    return jnp.sum(scan(turn, carry, (before, inputs, z))[1])
