"""Stochastic gradient ascent of an estimate, as (init, step, params): what a loop, ours or yours, repeats."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.types import Draws, Estimate, PyTree


class AscentState(NamedTuple):
    """Where an ascent stands: a pytree of arrays, the whole of what a step reads and writes.

    Fields:
        params: what is fitted.
        optimizer: the state of the Optax transformation.
        memory: whatever else the estimate carries on: a data cursor, baselines; None where it carries nothing.
    """

    params: PyTree
    optimizer: PyTree
    memory: PyTree = None


class Seen(NamedTuple):
    """What a step saw at the state that came in.

    Fields:
        value: the estimate that is climbed, () in nats.
        draws: what it was made of.
        gradient: of `value`, like params.
    """

    value: Array
    draws: Draws
    gradient: PyTree


class Ascent(NamedTuple):
    """A rule that climbs.

    Fields:
        init: (params, memory=None) -> state.
        step: (key, state) -> (state, Seen).
        params: state -> params.
    """

    init: Callable[..., AscentState]
    step: Callable[[Any, AscentState], tuple[AscentState, Seen]]
    params: Callable[[AscentState], PyTree]


def ascent(estimate: Callable[..., Any], optimizer: Any) -> Ascent:
    """Climb an estimate by stochastic gradients: any objective, with an optimiser of Optax.

        θ ← θ + optimizer(∇ L̂(θ)),    L̂(θ) = estimate(key, θ).value

    The estimate is your own function around an objective: it makes q of params and, for a batch, takes the mean.
    It is maximised, so write no minus sign. What must be carried on from step to step, such as a data cursor or a
    baseline that learns, it takes as a third argument and returns beside its Estimate:

        def estimate(key, params, memory):
            rows, cursor = batches.next(memory["cursor"])
            value, seen = score(elbo, baseline=b.value(memory["baseline"]))(key, target(rows), q(params), num_samples=1)
            return Estimate(value, seen), {"cursor": cursor, "baseline": b.update(memory["baseline"], seen.log_w)}

    Args:
        estimate: (key, params) -> Estimate with value (); or (key, params, memory) -> (Estimate, memory), where init is
            given a memory.
        optimizer: of Optax; its learning rate is that of a minimiser, positive. One that wants `value` is given -value.

    Returns:
        Ascent(init, step, params), with init(params, memory=None). step(key, state) jits, vmaps and scans, and keeps
        the dtypes of the state.

    Raises:
        TypeError: (step) where the estimate returns no Estimate, or params are no floats.
        ValueError: (step) where the value is not a scalar.

    Reference: Robbins, Monro, A stochastic approximation method, 1951; Kingma, Welling, Auto-encoding variational
        Bayes, 2014, arXiv:1312.6114.
    """

    def init(params: PyTree, memory: PyTree = None) -> AscentState:
        params = strong(params)
        for name, leaf in checks.named_leaves(params):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"params must be a pytree of float arrays, leaf '{name}' is {leaf.dtype}.")
        return AscentState(params, strong(optimizer.init(params)), strong(memory))

    def step(key: Any, state: AscentState) -> tuple[AscentState, Seen]:
        import optax

        def value(params: PyTree) -> tuple[Array, tuple[Estimate, PyTree]]:
            if state.memory is None:
                found, memory = estimate(key, params), None
            else:
                found, memory = _pair(estimate(key, params, state.memory))
            return _scalar(found), (found, memory)

        (at, (found, memory)), gradient = jax.value_and_grad(value, has_aux=True)(state.params)
        down = jax.tree.map(jnp.negative, gradient)
        updater = optax.with_extra_args_support(optimizer)
        updates, optimized = updater.update(down, state.optimizer, state.params, value=-at)
        params = optax.apply_updates(state.params, updates)
        return AscentState(params, optimized, jax.lax.stop_gradient(memory)), Seen(at, found.draws, gradient)

    return Ascent(init, step, lambda state: state.params)


def strong(tree: PyTree) -> PyTree:
    """Return arrays whose dtypes do not yield to others', as a Python number's does: a loop's carry keeps them."""
    return jax.tree.map(lambda l: jax.lax.convert_element_type(jnp.asarray(l), jnp.result_type(l)), tree)


def _pair(found: Any) -> tuple[Any, PyTree]:
    if isinstance(found, Estimate) or not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(
            "estimate(key, params, memory) must return (Estimate, memory), for its state has a memory; got "
            f"{type(found).__name__}."
        )
    return found


def _scalar(found: Any) -> Array:
    if not hasattr(found, "value") or not hasattr(found, "draws"):
        raise TypeError(
            f"estimate must return an Estimate(value, draws), as objectives do, got {type(found).__name__}; one that "
            "returns a memory too needs init(params, memory)."
        )
    if jnp.shape(found.value) != ():
        raise ValueError(
            f"the estimate's value must be one number, got shape {jnp.shape(found.value)}: sum or average over the "
            "batch, estimate._replace(value=estimate.value.mean())."
        )
    return found.value
