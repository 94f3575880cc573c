"""From a fit to draws of its q: the step between fitting and a verdict."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks, draws
from vijax.calls import usage
from vijax.fitting._fit import Fit
from vijax.fitting._restarts import Restarts
from vijax.types import Draws, Family, LogJoint, PyTree


@usage("fitting.weigh", "fitting.weigh(key, found, log_joint, family, num_samples=4000)")
def weigh(
    key: Key[Array, ""],
    found: Fit | Restarts,
    log_joint: LogJoint,
    family: Family,
    *,
    num_samples: int,
) -> Draws:
    """Draws of the q of a fit, or of each of several restarts, with their log-weights.

        q = family.dist(found.average),     zₖ ~ q,     log wₖ = log p(x, zₖ) - log q(zₖ)

    What `diagnostics.summarize` takes; of restarts it gives R-hat too, and those that died are left out.

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

    Example:
        >>> family, log_joint = vj.families.mean_field(), lambda z: -0.5 * z**2
        >>> objective = vj.gradients.reparam(vj.bounds.elbo)
        >>> estimate = lambda key, p: objective(key, log_joint, family.dist(p), num_samples=2)
        >>> rule = vj.fitting.ascent(estimate, optax.sgd(0.1))
        >>> state = rule.init(family.init(None, jnp.zeros(())))
        >>> result = vj.fitting.fit(jax.random.key(0), rule, state, steps=8, reports=())
        >>> weigh(jax.random.key(1), result, log_joint, family, num_samples=100).log_w.shape
        (100,)

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

    def of(key: Key[Array, ""], params: PyTree) -> Draws:
        return draws.weigh(key, log_joint, family.dist(params), num_samples=num_samples)

    if isinstance(found, Fit):
        return of(key, found.average)
    alive = jnp.flatnonzero(found.died < 0)
    # Restarts that died have no average worth drawing from: [alive, ...].
    averages = jax.tree.map(lambda leaf: leaf[alive], found.fit.average)
    return jax.jit(jax.vmap(of))(jax.random.split(key, len(alive)), averages)
