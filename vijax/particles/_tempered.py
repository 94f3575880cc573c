"""Densities between q and the posterior, and what may be annealed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks, jaxprs
from vijax.engine import evaluate
from vijax.types import Distribution, LogJoint, PyTree, lift, properties

# Of what accepts or resamples: it jumps where a parameter moves.
NO_DERIVATIVE = (
    "{0} accepts and resamples, which has no derivative in what log_joint and q close over: "
    "evaluate it outside of jax.grad, or train by particles.dais, whose moves are smooth."
)


class Ends(NamedTuple):
    """Both ends of a path of densities.

    Fields:
        log_joint: z -> [*batch], a number for each member.
        q: a distribution.
    """

    log_joint: LogJoint
    q: Any

    def between(self, beta: Array) -> Callable[[PyTree], Array]:
        """Return the log-density at an inverse temperature, (1 - β) log q(z) + β log p(x, z)."""

        def log_density(z: PyTree) -> Array:
            log_q, log_p = self.q.log_prob(z), self.log_joint(z)
            # An end that does not count may be impossible, and 0 · -inf is nan.
            of_q = jnp.where(beta < 1, (1 - beta).astype(log_q.dtype) * log_q, 0.0)
            return of_q + jnp.where(beta > 0, beta.astype(log_p.dtype) * log_p, 0.0)

        return log_density

    def log_ratio(self, z: PyTree) -> Array:
        """Return log p(x, z) - log q(z) of draws with a leading axis, [k, *batch], shapes checked."""
        log_q = jax.vmap(self.q.log_prob)(z)
        log_p, _ = evaluate(self.log_joint, z, log_q, beyond_mean=True)
        return log_p - log_q


def ends(who: str, log_joint: LogJoint, q: Distribution | PyTree) -> Ends:
    """Return both ends of a path; refuse what its moves would be wrong for.

    Args:
        who: the public function, for messages.
        log_joint: the target: log p(x, z) itself, without noise.
        q: a distribution over floats, or a pytree of them.
    """
    plain = checks.target(log_joint, who)
    q = lift(q)

    def total(z: PyTree) -> Any:
        made = plain(z)
        # A sum of factors, which `evaluate` has checked one by one where draws are weighed
        log_p: Any = sum(made.values()) if isinstance(made, dict) else made
        return log_p

    z, log_q = jax.eval_shape(lambda key: _sample(key, q), jax.random.key(0))
    for name, leaf in checks.named_leaves(z):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{who} moves latents along gradients, and leaf '{name}' is {leaf.dtype}: sum over "
                "discrete latents by targets.enumerate."
            )
        if leaf.shape[: log_q.ndim] != log_q.shape:
            raise ValueError(
                f"{who}: each leaf of a draw must begin with q's batch shape {log_q.shape}, and "
                f"leaf '{name}' is {leaf.shape}."
            )
    if not properties(log_joint).independent_members:
        _refuse_coupled(who, total, z, log_q.shape)
    return Ends(total, q)


def _sample(key: Key[Array, ""], q: Any) -> tuple[PyTree, Array]:
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=())
    return z, log_q


def start(keys: Key[Array, " k"], q: Any) -> PyTree:
    """Return one draw of q for each key."""
    return jax.vmap(lambda key: _sample(key, q)[0])(keys)


def _refuse_coupled(who: str, log_joint: LogJoint, z: PyTree, batch: tuple[int, ...]) -> None:
    """Refuse a log_joint whose members read each other's latents, which are moved by themselves."""
    several = tuple(axis for axis, n in enumerate(batch) if n > 1)
    if not several:
        return
    closed, made = jaxprs.trace(log_joint, z)
    # Other shapes are refused where draws are evaluated, with their cure.
    if made.shape != batch:
        return
    found = jaxprs.axes(closed, [several for _ in jax.tree.leaves(z)])[0]
    if found not in (several, None):
        raise ValueError(
            f"{who} moves each member of the batch by itself, and log_joint(z) mixes members, or "
            "passes them through what cannot be followed: make all members one, by "
            "distrax.Independent and a sum over the batch; or, if each value reads its own member "
            "alone, declare it: targets.independent_members(log_joint)."
        )
