"""Terms of the ELBO in closed form: the divergence from the prior, or the entropy, integrated over q."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage
from vijax.gaussians.affine import AffineGaussian, DiagonalRoot
from vijax.types import (
    Distribution,
    Divergence,
    Entropy,
    Joint,
    LogJoint,
    PyTree,
    derive,
    is_conditional,
    lift,
    offers,
    properties,
)

# Of one draw, log_likelihood(z) - KL is no log-weight: its exponential has another mean than p(x).
WHY = (
    "a target with a closed-form {} has the right mean, but its exponential has not, and would "
    "exceed log p(x)"
)


def kl_divergence(q: PyTree, prior: PyTree) -> Array:
    """Return KL(q ‖ prior) by q's own method of that name, as distrax, TFP and vijax's Gaussian families have it.

    Where one of the two is of a Gaussian family, the other may be a Normal or a diagonal multivariate one of distrax
    or TFP, or a pytree of those.
    """
    if isinstance(q, AffineGaussian) != isinstance(prior, AffineGaussian):
        q, prior = _as_affine(q), _as_affine(prior)
    return _closed(q, Divergence, "kl_divergence", prior)


def _as_affine(p: PyTree) -> PyTree:
    """Return a Gaussian of independent numbers, or a pytree of such, as one of a family; anything else as it is."""
    if isinstance(p, AffineGaussian):
        return p
    names = p.names() if isinstance(p, Joint) else []
    # A leaf given earlier ones has no parameters of its own.
    if any(is_conditional(p.conditionals[name]) for name in names):
        return p
    parts = {name: _as_affine(p.conditional(name, {})) for name in names}
    if isinstance(p, Joint) and all(isinstance(q, AffineGaussian) for q in parts.values()):
        loc, scale = (p.collect({n: of(q) for n, q in parts.items()}) for of in (_loc, _log_scale))
    elif _is_diagonal(getattr(p, "adapted", p)):
        known: PyTree = getattr(p, "adapted", p)
        loc, scale = jnp.asarray(known.mean()), jnp.log(known.stddev())
    else:
        return p
    return AffineGaussian(loc, DiagonalRoot(ravel_pytree(scale)[0]))


def _loc(q: AffineGaussian) -> PyTree:
    return q.loc


def _log_scale(q: AffineGaussian) -> PyTree:
    return ravel_pytree(q.loc)[1](q.root.log_scale)


def _is_diagonal(p: PyTree) -> bool:
    """Whether p is a library's Gaussian of independent numbers, of batch shape ()."""
    inner = p
    while type(inner).__name__ == "Independent":
        inner = inner.distribution
    names = ("Normal", "MultivariateNormalDiag")
    return (
        type(inner).__name__ in names
        and hasattr(p, "stddev")
        and tuple(getattr(p, "batch_shape", (None,))) == ()
    )


@usage("targets.exact_kl")
def exact_kl(
    log_likelihood: Callable[[PyTree], Array],
    prior: PyTree,
    q: PyTree,
    *,
    kl: Callable[[Any, Any], Array] = kl_divergence,
) -> LogJoint:
    """Leave only the likelihood to draws, and take the divergence of q from the prior exactly.

        L = E_q[log p(x | z)] - KL(q ‖ p(z)),     log wₖ = log p(x | zₖ) - KL(q ‖ p(z))

    For a known KL and a weak likelihood. Near the posterior `dreg(elbo)` of the plain log joint is
    better: its terms cancel draw by draw.

    Args:
        log_likelihood: z -> [*batch] in nats, of one draw, or a dict of factors; `targets.keyed` if
            it has noise; of a minibatch, times N/B.
        prior: a distribution with q's batch shape, or a pytree of them like q.
        q: the same distribution (or pytree of them) that the objective gets.
        kl: (q, prior) -> [*batch] in nats, of two distributions of one leaf; by default
            q.kl_divergence(prior): what distrax and TFP register, leaf by leaf (a leaf given
            earlier ones at their drawn values), and Gaussian families of vijax among each other and
            with Normals and diagonal Gaussians of distrax and TFP, whose batch axes Independent
            makes a latent's. A mixture's from a Gaussian has no closed form: write log_joint(z) =
            log_likelihood(z) + prior.log_prob(z) instead.

    Returns:
        A target for objectives of `bounds.elbo`, with any estimator: a bound that is not linear in
        log_w would exceed log p(x), and is refused. A KL of +inf makes its value -inf.

    Raises:
        TypeError: where q or prior is no distribution, or no KL is known of them.
        ValueError: (when called) where leaves or shapes differ; by any objective of a bound that is
            not linear.

    Example:
        >>> q, prior = distrax.Normal(1.0, 1.0), distrax.Normal(0.0, 1.0)
        >>> target = exact_kl(lambda z: jnp.zeros(()), prior, q)
        >>> objective = vj.gradients.reparam(vj.bounds.elbo)
        >>> round(float(objective(jax.random.key(0), target, q, num_samples=2).value), 3)  # -KL
        -0.5

    Reference: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114 (its second
        estimator).
    """
    posterior, prior = lift(q), lift(prior, "prior")
    of_family = isinstance(posterior, AffineGaussian) or isinstance(prior, AffineGaussian)
    if of_family and kl is kl_divergence:
        posterior, prior = _as_affine(posterior), _as_affine(prior)

    exact = lambda z: -_sum_over_leaves(kl, posterior, prior, z)  # noqa: E731
    return _with(log_likelihood, exact, posterior, ("log_likelihood(z)", "KL"))


@usage("targets.exact_entropy")
def exact_entropy(log_joint: Callable[[PyTree], Array], q: PyTree) -> LogJoint:
    """Leave the log joint to draws, and take the entropy of q exactly.

        L = E_q[log p(x, z)] + H[q],     log wₖ = log p(x, zₖ) + H[q]

    For a prior that `exact_kl` knows no divergence from, and q far from the posterior; near it
    `dreg(elbo)` of the plain log joint is better.

    Args:
        log_joint: z -> log p(x, z), [*batch] in nats, of one draw.
        q: the same distribution (or pytree of them) that the objective gets, with a method
            entropy().

    Returns:
        A target for objectives of `bounds.elbo`, and other bounds linear in log_w.

    Raises:
        TypeError: where q is no distribution, or its entropy is not known.
        ValueError: (when called) where shapes differ; by any objective of a bound that is not
            linear.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> target = exact_entropy(lambda z: jnp.zeros(()), q)
        >>> objective = vj.gradients.reparam(vj.bounds.elbo)
        >>> round(float(objective(jax.random.key(0), target, q, num_samples=2).value), 3)  # H[q]
        1.419

    Reference: Kucukelbir, Tran, Ranganath, Gelman, Blei, Automatic differentiation variational
        inference, 2017, arXiv:1603.00788.
    """
    posterior = lift(q)

    entropy = lambda q, _: _closed(q, Entropy, "entropy")  # noqa: E731
    exact = lambda z: _sum_over_leaves(entropy, posterior, posterior, z)  # noqa: E731
    return _with(log_joint, exact, posterior, ("log_joint(z)", "entropy"))


def _with(
    drawn: LogJoint, exact: Callable[[PyTree], Array], q: Distribution, names: tuple[str, str]
) -> LogJoint:
    """Return drawn(z) + exact(z) + log q(z), of which the objective takes log q away again."""
    who = "targets.exact_kl" if names[1] == "KL" else "targets.exact_entropy"
    drawn = checks.target(
        drawn, who, keyed=True, only_mean=True, has_aux=True, what=names[0].partition("(")[0]
    )
    has_aux = properties(drawn).has_aux

    def target(z: PyTree, *, log_q: Array | None = None, **given: Any) -> Any:
        checks.mean_alone(WHY.format(names[1]))
        # log q is added here, so that log p - log q leaves the closed form alone.
        of_q = q.log_prob(z) if log_q is None else log_q
        term, closed = drawn(z, **given), exact(z)
        term, aux = term if has_aux else (term, None)
        checks.log_densities(closed, of_q, z, (f"the {names[1]} of q", "q.log_prob(z)"))
        if isinstance(term, dict):
            total: Any = {**term, f"closed-form {names[1]}": closed + of_q}
        else:
            checks.log_densities(term, of_q, z, (names[0], "q.log_prob(z)"))
            total = term + closed + of_q
        return (total, aux) if has_aux else total

    return derive(
        drawn, target, only_mean=WHY.format(names[1]), holds_log_q=True, independent_members=False
    )


def _sum_over_leaves(
    term: Callable[[PyTree, PyTree], Array], q: PyTree, prior: PyTree, z: PyTree
) -> Array:
    """Return the sum over leaves of a term of q and the prior, each given the earlier leaves of the draw."""
    if not isinstance(q, Joint) and not isinstance(prior, Joint):
        return term(q, prior)
    names = [p.names() if isinstance(p, Joint) else None for p in (q, prior)]
    if names[0] != names[1]:
        raise ValueError(
            f"q and prior must have the same leaves, drawn in the same order: q has {names[0]}, "
            f"prior {names[1]} (None: one distribution over all; of a Gaussian family the "
            "divergence is known from a pytree of Normals and diagonal Gaussians, each of batch "
            "shape (): distrax.Independent(distrax.Normal(loc, scale), 1))."
        )
    # Σ over leaves, each a term of two conditionals
    total: Any = None
    earlier: dict[Any, Any] = {}
    for name in q.names():
        # The conditionals of both at the drawn values of the leaves before
        part = _sum_over_leaves(
            term, q.conditional(name, earlier), prior.conditional(name, earlier), z[name]
        )
        if total is not None and jnp.shape(total) != jnp.shape(part):
            raise ValueError(
                f"the closed-form terms of the leaves must share one batch shape: that of '{name}' "
                f"is {jnp.shape(part)}, of those before it {jnp.shape(total)}. Wrap event "
                "dimensions in Independent."
            )
        total = part if total is None else total + part
        earlier[name] = z[name]
    return jnp.asarray(total)


def _closed(q: PyTree, ability: type, name: str, *args: PyTree) -> Array:
    """Return q.name(*args), or say that it is not known and what to do."""
    against = f" from {type(args[0]).__name__}" if args else ""
    refusal = (
        f"{type(q).__name__} has no closed-form {name}{against}: leave it to Monte Carlo, with the "
        "plain "
        "log_joint(z) = log_likelihood(z) + prior.log_prob(z)" + (", or pass kl=." if args else ".")
    )
    # Neither the method, nor the pair, need be known.
    if not offers(q, ability):
        raise TypeError(refusal)
    try:
        return jnp.asarray(getattr(q, name)(*args))
    # What distrax and TFP raise for a pair, or an entropy, that they lack
    except NotImplementedError as error:
        raise TypeError(refusal) from error
