"""Stochastic gradient ascent of an estimate, as a rule: what a training loop repeats."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import calls, checks
from vijax.trees import strong_dtypes
from vijax.types import Estimate, PyTree, Rule, Step

Optimizer = Any
"""optax.GradientTransformation: Optax is imported by whoever makes one."""


class AscentState(NamedTuple):
    """Where an ascent stands: a pytree of arrays, the whole of what a step reads and writes.

    Fields:
        params: what is fitted.
        optimizer: the state of the Optax transformation.
        memory: whatever else the estimate carries on: a data cursor, baselines; None where it
            carries nothing.
    """

    params: PyTree
    optimizer: PyTree
    memory: PyTree = None


@calls.usage("fitting.ascent", "fitting.ascent(estimate, optax.adam(1e-2))")
def ascent(estimate: Callable[..., Any], optimizer: Optimizer) -> Rule:
    """Climb an estimate by stochastic gradients: any objective, with an optimizer of Optax.

        θ ← θ + optimizer(∇ L̂(θ)),    L̂(θ) = estimate(key, θ).value

    The estimate is your own function around a `types.Objective`: it makes q of params and, for a batch,
    takes the mean. It is maximized, so write no minus sign.

    Args:
        estimate: (key, params) -> Estimate with value (); or (key, params, memory) -> (Estimate,
            memory), where init is given a memory: what must be carried from step to step, such as a
            data cursor or a baseline that learns, in any pytree.
        optimizer: of Optax; its learning rate is that of a minimizer, positive. One that wants
            `value` is given -value.

    Returns:
        types.Rule: `init(params, memory=None)`, `step(key, state) -> (state, Step)` with the
        gradient of the estimate, and `params(state)`. A step jits, vmaps and scans, and keeps the
        dtypes of the state.

    Raises:
        TypeError: for an optimizer that is none; (init) for params that are no floats; (step) where
            the estimate returns no Estimate, or for a state that `init` did not make.
        ValueError: (step) where the value is not a scalar, and for leaves of q that log_joint never
            reads, with whose scale the bound would grow without end.

    Example:
        >>> draws = vj.types.Draws(None, jnp.zeros(1), jnp.zeros(1))
        >>> estimate = lambda key, params: vj.types.Estimate(-((params["m"] - 3.0) ** 2), draws)
        >>> rule = ascent(estimate, optax.sgd(0.5))
        >>> state, step = rule.step(jax.random.key(0), rule.init({"m": jnp.zeros(())}))
        >>> float(step.value), float(rule.params(state)["m"])
        (-9.0, 3.0)

    Reference: Robbins, Monro, A stochastic approximation method, 1951; Kingma, Welling,
        Auto-encoding variational Bayes, 2014, arXiv:1312.6114.
    """
    calls.function(estimate, "estimate")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be one of Optax, such as optax.adam(1e-3), got "
            f"{calls.described(optimizer)}: ascent(estimate, optimizer)."
        )

    def init(params: PyTree, memory: PyTree = None) -> AscentState:
        # Integers have no gradient, and an int of a config is easily among params.
        params = strong_dtypes(params)
        for name, leaf in checks.named_leaves(params):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"params must be a pytree of float arrays, leaf '{name}' is {leaf.dtype}."
                )
        # Weak types would change in the first step, and no scan takes a state that does.
        optimized = strong_dtypes(optimizer.init(params))
        return AscentState(params, optimized, strong_dtypes(memory))

    def step(key: Key[Array, ""], state: AscentState) -> tuple[AscentState, Step]:
        _check_state(state)

        def value(params: PyTree) -> tuple[Array, tuple[Estimate, PyTree]]:
            if state.memory is None:
                made, memory = estimate(key, params), None
            else:
                made, memory = _pair(estimate(key, params, state.memory))
            return _scalar(made), (made, memory)

        # Draws and memory come out beside the value, undifferentiated.
        differentiate = jax.value_and_grad(value, has_aux=True)
        # A leaf of q that log_joint never reads has a scale that would grow without end.
        with checks.reading_all():
            (bound, (made, memory)), gradient = differentiate(state.params)
        params, optimized = _climb(optimizer, state, bound, gradient)
        # The memory is carried, not differentiated.
        new = AscentState(params, optimized, jax.lax.stop_gradient(memory))
        return new, Step(bound, made.draws, gradient)

    def params(state: AscentState) -> PyTree:
        _check_state(state)
        return state.params

    return Rule(init, step, params)


def _climb(
    optimizer: Optimizer, state: AscentState, bound: Array, gradient: PyTree
) -> tuple[PyTree, PyTree]:
    """Return params and the optimizer's state after a step uphill; Optax steps downhill."""
    import optax

    # Optax minimizes: gradient and value both change their sign.
    down = jax.tree.map(jnp.negative, gradient)
    optimizer = optax.with_extra_args_support(optimizer)
    updates, optimized = optimizer.update(down, state.optimizer, state.params, value=-bound)
    return optax.apply_updates(state.params, updates), optimized


def _check_state(state: object) -> None:
    """Refuse what is not the state of an ascent, nearly always params."""
    if not isinstance(state, AscentState):
        raise TypeError(
            "state must be what the rule's init(params) returned, got a "
            f"{type(state).__name__}; begin with rule.init(params)."
        )


def _pair(made: object) -> tuple[Any, PyTree]:
    """Return what an estimate with a memory returned; refuse anything but a pair."""
    # An Estimate is itself a pair, of value and draws.
    if isinstance(made, Estimate) or not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(
            "estimate(key, params, memory) must return (Estimate, memory), for its state has a "
            f"memory; got {type(made).__name__}."
        )
    return made


def _scalar(made: PyTree) -> Array:
    """Return the value of an estimate, (); refuse what has none, or one for each of a batch."""
    if not hasattr(made, "value") or not hasattr(made, "draws"):
        raise TypeError(
            "estimate must return an Estimate(value, draws), as objectives do, got "
            f"{type(made).__name__}; one that returns a memory too needs init(params, memory)."
        )
    if jnp.shape(made.value) != ():
        raise ValueError(
            f"the estimate's value must be one number, got shape {jnp.shape(made.value)}: sum or "
            "average over the batch, estimate._replace(value=estimate.value.mean())."
        )
    return made.value
