"""Collapse under a lower bound: terms that are not quadratic give way to the best parabolas below them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage
from vijax.gaussians import Gaussian, Precision, dense
from vijax.targets._block import require_floats, summed
from vijax.targets._minorizer import Minorizer
from vijax.targets._quadratic import collapse_gaussian
from vijax.trees import own_point, scan
from vijax.types import LogJoint, PyTree


class Minorized(NamedTuple):
    """What is left where terms have been bounded below and b integrated out.

    Fields:
        collapsed: z -> a lower bound on log p(x, z), [*batch] in nats: the target.
        conditional: z -> the Gaussian over b that the bound stands for, batch shape [*batch].
        local: z -> `at`, where each term's lower bound was put: responsibilities, weights of outliers.
    """

    collapsed: LogJoint
    conditional: Callable[[PyTree], Gaussian]
    local: Callable[[PyTree], PyTree]


@usage("targets.minorize")
def minorize(
    minorizer: Minorizer,
    predictor: Callable[[PyTree, PyTree], PyTree],
    rest: Callable[[PyTree, PyTree], Array],
    like: PyTree,
    *,
    steps: int,
    precision: Precision = dense,
) -> Minorized:
    """Integrate b out under non-quadratic terms, each bounded below by its best parabola.

        log p(x, z) ≥ max_at log ∫ exp(Σₙ lower(xₙ, atₙ) + rest(z, b)) db,     x = predictor(z, b)

    For logistic and softmax regressions, Student-t errors and mixtures. Looser than a Gaussian q(b)
    fitted to the exact terms (`gauss_hermite`), but with no q to fit.

    Args:
        minorizer: of `targets.minorizers`, or your own; `minorizers.each` for terms of several
            kinds.
        predictor: (z, b) -> x, leaves [*batch, ...], linear in b (quadratic will do for
            `minorizers.mixture`).
        rest: (z, b) -> [*batch] in nats, or a dict of factors, quadratic in b: priors, likelihoods
            that need no bound.
        like: a b for its structure, shapes and dtypes, leaves [*batch, ...], at which the first
            `at` is taken; for mixtures it must tell the components apart.
        steps: of the fixed point at ← touch(E[T(x)]), as in EM: no step lowers the bound, and any
            number leaves it a bound. Some 20 where the prior is as informative as the data, and
            hundreds where it is not: check whether more steps raise it.
        precision: `gaussians.dense`, `diagonal` or `tridiagonal`, the zeros of the bound's Hessian
            in b.

    Returns:
        Minorized: the target, the Gaussian over b, and the local parameters, each a function of z
        (() where nothing else is latent). The target is below log p(x, z) at every z, so that
        `elbo` and `iwae` of it stay lower bounds; `cubo` and `eubo` of it bound nothing.
        Derivatives go through all the steps, each computed anew on the way back; to hold `at`, as
        EM does, stop the gradient of `local(z)` and give Σ lower(x, at) + rest to
        `collapse_gaussian`.

    Raises:
        TypeError: for a `like` that holds no floats, or steps that are no whole number.
        ValueError: for steps < 0, for a target with noise or of a minibatch, and (when called)
            where the terms do not begin with rest's batch axes, or where predictor or rest do not
            leave the bound quadratic in b.

    Example:
        >>> from vijax.targets import minorizers
        >>> log_prior = lambda z, b: distrax.Normal(0.0, 1.0).log_prob(b)
        >>> result = minorize(
        ...     minorizers.jaakkola_jordan, lambda z, b: b, log_prior, jnp.zeros(()), steps=3
        ... )
        >>> round(float(jax.jit(result.collapsed)(())), 3)  # below log ∫ σ(b) N(b; 0, 1) db = log ½
        -0.7

    Reference: Jaakkola, Jordan, Bayesian parameter estimation via variational methods, 2000;
        Palmer, Wipf, Kreutz-Delgado, Rao, Variational EM algorithms for non-Gaussian latent
        variable models, 2006.
    """
    checks.static_count(steps, "steps", least=0)
    rest = checks.target(rest, "targets.minorize", what="rest", cure=checks.CONDITIONAL)

    require_floats(like)

    # The collapsed lower bound at given `at`, with ⟨tilt, T(x)⟩ added: its slope in the tilt is E[T(x)].
    def below(at: PyTree, tilt: PyTree) -> tuple[LogJoint, Callable[[PyTree], Gaussian]]:
        def log_joint(z: PyTree, b: PyTree) -> Array:
            x, total = predictor(z, b), jnp.asarray(summed(rest(z, b)))
            terms = minorizer.lower(x, at)
            if tilt is not None:
                terms = (terms, jax.tree.map(jnp.multiply, tilt, minorizer.statistics(x)))
            return sum((_sum(term, total.shape) for term in jax.tree.leaves(terms)), total)

        collapsed, conditional = collapse_gaussian(log_joint, like, precision=precision)
        return _noted(collapsed), _noted(conditional)

    def local(z: PyTree) -> PyTree:
        # As if all mass were at `like`
        first = minorizer.statistics(predictor(z, like))

        def improve(at: PyTree, _: None) -> tuple[PyTree, None]:
            def value(tilt: Array) -> Array:
                return jnp.sum(below(at, tilt)[0](z))

            # E[T(x)] of every term by one reverse pass, at a tilt of 0
            none = own_point(value, jax.tree.map(jnp.zeros_like, first))
            return minorizer.touch(jax.grad(value)(none)), None

        return scan(jax.checkpoint(improve), minorizer.touch(first), None, length=steps)[0]

    return Minorized(
        lambda z: below(local(z), None)[0](z), lambda z: below(local(z), None)[1](z), local
    )


def _noted(function: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
    """Say what the log_joint is that collapse_gaussian refuses: the user wrote its parts."""

    def run(z: PyTree) -> Any:
        try:
            return function(z)
        except ValueError as error:
            if "not quadratic in b" in str(error):
                error.add_note(
                    "Here log_joint is Σ lower(predictor(z, b), at) + rest(z, b): predictor must "
                    "be linear in b (quadratic will do for minorizers.mixture), and rest "
                    "quadratic."
                )
            raise

    return run


def _sum(term: Array, batch: tuple[int, ...]) -> Array:
    if jnp.shape(term)[: len(batch)] != batch:
        raise ValueError(
            f"each leaf of predictor(z, b) must begin with the batch axes of rest(z, b), {batch}; "
            f"a term of it has shape {jnp.shape(term)}."
        )
    return jnp.sum(term, tuple(range(len(batch), jnp.ndim(term))))
