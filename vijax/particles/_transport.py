"""Resampling by optimal transport: particles move to equal weights, smoothly in everything."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int, Key

from vijax import checks, trees
from vijax.calls import usage
from vijax.numerics import log_mean_exp
from vijax.particles._forms import as_estimate, by_whole_path
from vijax.particles._model import Proposal, StateSpace
from vijax.particles._run import Form, Inputs, Selected, run
from vijax.types import Estimate, PyTree


@usage(
    "particles.transported", "particles.transported(key, model, data, proposal, num_particles=16)"
)
def transported(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    proposal: Proposal | None = None,
    *,
    num_particles: int,
    epsilon: float = 0.5,
    iterations: int = 30,
    twist: Callable[[Any, Any], Array] | None = None,
    mask: Bool[Array, "time *batch"] | None = None,
    length: Int[Array, "*batch"] | int | None = None,
) -> Estimate:
    """Log evidence of a filter that transports particles, with the exact gradient of its value; both
    biased by design, as resampled particles are moved.

        z̃ᵢ = N Σⱼ Pᵢⱼ zⱼ,     P = argmin ⟨P, C⟩ + ε KL(P ‖ 1/N ⊗ w),     P 1 = 1/N,  Pᵀ 1 = w

    A surface without jumps, for a few continuous states and learning that must not be noisy; E Ẑ is
    not p(x), and log Ẑ may exceed it. Cost N² a step.

    Args:
        key: a typed key, consumed.
        model: a StateSpace of floating states.
        data: a pytree with leading axis T.
        proposal: a Proposal whose draws carry the derivative; the model's own transition where None.
        num_particles: N.
        epsilon: ε > 0, in units of the particles' spread, squared. Small is close to resampling,
            large contracts them to their mean.
        iterations: of Sinkhorn, ε falling by a quarter each from 4 on; more where ε is small.
        twist, mask, length: as of `smc`.

    Returns:
        Estimate(value, draws): log Ẑ [*batch] in nats, as of `fivo`.

    Raises:
        TypeError, ValueError: as `fivo`; for states that are not floating, or an epsilon that is not
            positive.

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> def value(shift):
        ...     walk = vj.particles.StateSpace(
        ...         lambda x: normal(shift), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ...     )
        ...     return transported(jax.random.key(0), walk, jnp.ones(3), num_particles=20).value
        >>> bool(jax.grad(value)(0.0) > 0)
        True

    Reference: Corenflos, Thornton, Deligiannidis, Doucet, Differentiable particle filtering via
        entropy-regularized optimal transport, 2021, arXiv:2102.07850.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}.")
    checks.static_count(iterations, "iterations")
    move = partial(_move, epsilon=epsilon, iterations=iterations)

    def select(key: Array, z: PyTree, log_weights: Array) -> Selected:
        for name, leaf in checks.named_leaves(z):
            if not trees.is_floating(leaf):
                raise ValueError(
                    f"particles.transported needs floating states, and leaf '{name}' is "
                    f"{leaf.dtype}: use particles.scored or particles.fisher."
                )
        transport = move
        for _ in log_weights.shape[1:]:
            transport = jax.vmap(transport, 1, 1)
        equal = jnp.full_like(log_weights, -math.log(num_particles))
        return Selected(transport(z, log_weights), equal, None)

    form = Form(partial(by_whole_path, "transported"), select)
    inputs = Inputs(twist, mask, length)
    return as_estimate(run(key, model, data, proposal, num_particles, form, inputs))


def _move(z: PyTree, log_weights: Array, *, epsilon: float | Array, iterations: int) -> PyTree:
    """Return N Σⱼ Pᵢⱼ zⱼ of one filter's particles."""
    rows = jax.vmap(lambda z: ravel_pytree(z)[0])(z)
    # In units of their spread, the largest of any coordinate; what is in one place stays there.
    variance = jnp.max(jnp.var(rows, 0))
    cost = 0.5 * jnp.sum(jnp.square(rows[:, None] - rows[None]), -1)
    cost = cost / (jnp.where(variance > 0, variance, 1.0) * rows.shape[1])
    log_plan = _plan(cost, log_weights, epsilon, iterations)
    moved = jnp.exp(log_plan) @ rows
    back = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], z))[1]
    return jax.vmap(back)(moved)


def _plan(cost: Array, log_weights: Array, epsilon: float | Array, iterations: int) -> Array:
    """Return log N Pᵢⱼ, rows summing to 1: Sinkhorn in logs, ε falling from 4 by a quarter a turn."""
    n = cost.shape[0]
    log_n = math.log(n)

    @jax.checkpoint
    def turn(g: Array, epsilon: Array) -> tuple[Array, None]:
        f = rows(g, epsilon)
        # Over sources j: the targets count 1/N each.
        return -epsilon * log_mean_exp((f[:, None] - cost) / epsilon), None

    def rows(g: Array, epsilon: Array | float) -> Array:
        # Over targets i: the sources count wⱼ.
        inside = log_weights[None] + (g[None] - cost) / epsilon
        return -epsilon * (log_mean_exp(inside.T) + log_n)

    falling = jnp.maximum(jnp.asarray(epsilon), 4.0 * 0.75 ** jnp.arange(iterations))
    g, _ = trees.scan(turn, jnp.zeros_like(log_weights), falling.astype(cost.dtype))
    f = rows(g, epsilon)
    return log_weights[None] + (f[:, None] + g[None] - cost) / epsilon
