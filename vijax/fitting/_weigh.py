"""From a fit to draws of its q: the step between fitting and a verdict."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks, draws
from vijax.fitting._fit import Fit
from vijax.fitting._restarts import Restarts
from vijax.types import Draws, Family, LogJoint, PyTree


def weigh(
    key: Key[Array, ""],
    found: Fit | Restarts,
    log_joint: LogJoint,
    family: Family,
    *,
    num_samples: int,
) -> Draws:
    """Draws of the q that a fit, or each of several restarts, has found, with their log-weights.

        q = family.dist(found.average),     zₖ ~ q,     log wₖ = log p(x, zₖ) - log q(zₖ)

    What `diagnostics.summarize` takes. Of restarts it gives R-hat too; those that died are left
    out.

        found = restarts(key, rule, jax.vmap(rule.init)(starts), steps=5000)
        print(summarize(weigh(key, found, log_joint, family, num_samples=4000)))

    Args:
        key: a typed key, consumed.
        found: what `fit` or `restarts` returned.
        log_joint: z -> log p(x, z), () in nats, that was fitted.
        family: whose params were fitted.
        num_samples: draws of each q; a few thousand make k-hat stable.

    Returns:
        Draws, [num_samples]; of restarts [restarts that live, num_samples].

    Raises:
        TypeError: for what is no fit, or no family.
        ValueError: for a target with noise, or of a minibatch.

    Reference: Yao, Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational
        inference, 2018, arXiv:1802.02538.
    """
    checks.key(key)
    checks.family(family, "family")
    if not isinstance(found, (Fit, Restarts)):
        raise TypeError(
            f"found must be what fit or restarts returned, got a {type(found).__name__}; of params "
            "alone use draws.weigh(key, log_joint, family.dist(params), num_samples=...)."
        )

    def of(key: Array, params: PyTree) -> Draws:
        return draws.weigh(key, log_joint, family.dist(params), num_samples=num_samples)

    if isinstance(found, Fit):
        return of(key, found.average)
    alive = jnp.flatnonzero(found.died < 0)
    averages = jax.tree.map(lambda leaf: leaf[alive], found.fit.average)
    return jax.jit(jax.vmap(of))(jax.random.split(key, len(alive)), averages)
