"""The log-weight of every draw, log p(x, z) - log q(z), with the shapes checked here and only here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.draws._iid import iid, split
from vijax.types import Draw, Draws, LogJoint, PyTree, lift, properties


class Plan(NamedTuple):
    """All the randomness of one estimate, a row for each draw: seeds of q, and keys of the model if it takes any."""

    draw: PyTree
    model: Any

    @property
    def rows(self) -> int:
        """How many draws."""
        return int(jax.tree.leaves(self.draw)[0].shape[0])


def plan(key: Any, log_joint: LogJoint, draw: Draw, num_samples: int) -> Plan:
    """Turn one key into one row of seeds for each draw; the key is consumed."""
    if not properties(log_joint).keyed:
        return Plan(draw.seeds(key, num_samples), None)
    key_draw, key_model = jax.random.split(key)
    return Plan(draw.seeds(key_draw, num_samples), split(key_model, num_samples))


def evaluate(log_joint: LogJoint, z: PyTree, log_q: Array, keys: Any = None) -> tuple[Array, PyTree]:
    """Evaluate log_joint on every draw by vmap, and refuse shapes that do not agree with log q's.

    Args:
        log_joint: the target, see `types.LogJoint`.
        z: draws, a pytree with leading axis k.
        log_q: [k, *batch], consulted for its shape; and handed to targets that add it (`targets.split`), so that the
            same number is taken away again, with the same derivative.
        keys: [k], for targets made by `targets.keyed`.

    Returns:
        log p(x, z) in nats, [k, *batch], and the model's auxiliary output with leading axis k, or None.

    Raises:
        ValueError: where a draw's log p is not [*batch], or a (N,) is broadcast against a (N, 1).
    """
    known = properties(log_joint)
    has_aux = known.has_aux

    def one(z: PyTree, log_q: Array, key: Any) -> tuple[Array, PyTree]:
        given = {"key": key} if key is not None else {}
        out = log_joint(z, **given, **({"log_q": log_q} if known.holds_log_q else {}))
        if isinstance(out, (tuple, list)) and not has_aux:
            raise TypeError(
                f"log_joint(z) must be one array [*batch], got a {type(out).__name__} of {len(out)}; a model with "
                "auxiliary output goes through targets.keyed(has_aux=True), and separate factors in a dict."
            )
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"a target with has_aux=True returns (log_p, aux), got {type(out).__name__}.")
        log_p, aux = out if has_aux else (out, None)
        if isinstance(log_p, dict):
            if not log_p:
                raise TypeError("log_joint(z) is an empty dict; it must hold at least one factor [*batch].")
            for name, factor in log_p.items():
                checks.log_densities(factor, log_q, z, (f"log_joint(z)[{name!r}]", "q.log_prob(z)"))
            log_p = sum(log_p.values())
        checks.log_densities(log_p, log_q, z)
        return jnp.asarray(log_p), aux

    with checks.outer_broadcasts("log_joint"):
        log_p, aux = jax.vmap(one)(z, log_q, keys)
    return log_p, jax.lax.stop_gradient(aux)


def weigh(key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, draw: Draw = iid) -> Draws:
    """Draw from q and weigh every draw: the raw material of every bound and diagnostic.

        log wₖ = log p(x, zₖ) - log q(zₖ),   zₖ ~ q

    When you want the weights themselves, to correct moments or to write a bound of your own; everything is left to
    plain autodiff, so differentiate it only for a q whose draws carry the derivative (an objective would check).

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), [*batch], in nats.
        q: a distribution with batch shape [*batch], or a pytree of them.
        num_samples: k.
        draw: how to draw; `iid`, `antithetic`, ...; draws that do not count alike
            come with `weights`.

    Returns:
        Draws with log_p and log_q [k, *batch] in nats.

    Raises:
        TypeError: for a raw key, or a q without the two methods.
        ValueError: for num_samples < 1, or shapes that do not agree.

    Reference: Kloek, van Dijk, Bayesian estimates of equation system parameters, 1978.
    """
    checks.key(key)
    checks.num_samples(num_samples)
    q = lift(q)
    seeds = plan(key, log_joint, draw, num_samples)
    z, log_q = jax.vmap(lambda seed: draw.sample(seed, q))(seeds.draw)
    log_p, aux = evaluate(log_joint, z, log_q, seeds.model)
    weights = None if draw.weights is None else draw.weights(q, num_samples)
    return Draws(z, log_p, log_q, weights, aux)
