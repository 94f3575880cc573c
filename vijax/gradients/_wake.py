"""Draws held fixed: learning from weighted draws as from data, in wake and in sleep."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks, draws, engine
from vijax.gradients._score import at_fixed_draws
from vijax.numerics import with_score
from vijax.types import Bound, Objective, PyTree, lift


def _at_fixed_draws(name: str, bound: Bound, value: Callable[[Array, Array], Array]) -> Objective:
    """Make the objective of a value of (log p, log q) at draws without a derivative."""

    def strategy(request: engine.Request) -> engine.Strategy:
        return engine.Strategy(at_fixed_draws(request), lambda log_p, log_q, _: value(log_p, log_q))

    needs = engine.Needs(fixed_support=True, plain_target=True, gated_members=True)
    return engine.make_objective(name, bound, draws.iid, engine.Estimator(needs, strategy))


@engine.taking("fixed")
def fixed(bound: Bound) -> Objective:
    """Gradient of any bound in log p and log q at draws held fixed; as the gradient of E_q[B] in q
    it would be biased.

        ∇φ = -Σₖ B'ₖ ∇φ log q(zₖ),     ∇θ = Σₖ B'ₖ ∇θ log p(x, zₖ; θ),     zₖ ~ q, stopped

    `fixed(log_variance)`, minimized, is VarGrad, whose gradient in q is minus the ELBO's.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch]. With log_variance the gradient in θ
            is not the ELBO's.

    Returns:
        An Objective (`types.Objective`), value [*batch] as the bound's, for any q of fixed support.

    Raises:
        ValueError: (when called) for a q whose support moves with its parameters, for members of the batch
            that log_joint or q couples under a bound that is not linear, and for shapes that do not agree.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> objective = fixed(vj.bounds.log_variance)
        >>> estimate = objective(jax.random.key(0), lambda z: q.log_prob(z) + 3.0, q, num_samples=4)
        >>> round(float(estimate.value), 3)  # 0 at the posterior
        0.0

    Reference: Richter, Boustati, Nüsken, Ruiz, Akyildiz, VarGrad: a low-variance gradient estimator for variational
        inference, 2020, arXiv:2010.10436.
    """
    return _at_fixed_draws("fixed", bound, lambda log_p, log_q: bound(log_p - log_q))


@engine.taking("wake")
def wake(bound: Bound) -> Objective:
    """Reweighted wake-sleep: unbiased for the model; q ascends its own objective, -KL(p(z|x) ‖ q),
    biased at finite k.

        ∇θ = Σₖ B'ₖ ∇θ log p(x, zₖ; θ),     ∇φ = Σₖ B'ₖ ∇φ log q(zₖ),     zₖ ~ q, stopped

    q learns to cover the posterior, the better the larger k is, where score estimators get worse.
    `wake(iwae)` is RWS.

    Args:
        bound: `bounds.iwae`, for which B'ₖ = w̃ₖ, or any whose slopes are weights of the draws.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats, the bound's own. Both ascend: maximize
        the value, of a bound that is itself maximized. At k = 1 q has no signal. Add `sleep` for q's
        sleep phase.

    Raises:
        ValueError: (when called) for a q whose support moves with its parameters, for members of the batch
            that log_joint or q couples under a bound that is not linear, and for shapes that do not agree.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)  # the posterior, of evidence e³
        >>> estimate = wake(vj.bounds.iwae)(jax.random.key(0), lambda z: q.log_prob(z) + 3.0, q, num_samples=4)
        >>> round(float(estimate.value), 3)
        3.0

    Reference: Bornschein, Bengio, Reweighted wake-sleep, 2015, arXiv:1406.2751; Le, Kosiorek, Siddharth, Teh, Wood,
        Revisiting reweighted wake-sleep for models with stochastic control flow, 2019, arXiv:1805.10469.
    """

    def value(log_p: Array, log_q: Array) -> Array:
        # Both the model and q ascend B'ₖ-weighted densities, as if the draws were data.
        stopped = jax.lax.stop_gradient(log_p - log_q)
        bound_value = bound(stopped)  # with the derivative of whatever else the bound depends on
        slopes = jax.lax.stop_gradient(jax.grad(lambda log_w: jnp.sum(bound(log_w)))(stopped))
        return with_score(bound_value, bound_value + jnp.sum(slopes * (log_p + log_q), 0))

    return _at_fixed_draws("wake", bound, value)


def sleep(
    key: Key[Array, ""],
    generate: Callable[[Any], tuple[PyTree, PyTree]],
    posterior: Callable[[PyTree], Any],
    *,
    num_samples: int,
) -> Array:
    """Log-density of q at the model's dreams, to be maximized in q alone: unbiased for -E KL(p(z|x)
    ‖ q(z|x)) but for a constant.

        L = 1/K Σₖ log q(zₖ | xₖ),     xₖ, zₖ ~ p(x, z), stopped

    For an encoder far from good, or to fit q to a simulator without a density: no weights, so no bias.

    Args:
        key: a typed key, consumed.
        generate: key -> (x, z), one draw of the model; where x has a batch, [*batch, ...].
        posterior: x -> q(z | x), a distribution with batch shape [*batch], or a pytree of them.
        num_samples: K dreams.

    Returns:
        [*batch], in nats. Dreams of an early model are not where the data are: later add `wake`.

    Raises:
        TypeError: for a raw key, a posterior that is not a distribution, or dreams that are no pair.
        ValueError: for num_samples < 1, or dreams that are not shaped as the posterior's draws.

    Example:
        >>> generate = lambda key: (jnp.array(0.0), jnp.array(1.0))  # always x = 0, z = 1
        >>> posterior = lambda x: distrax.Normal(x, 1.0)
        >>> round(float(sleep(jax.random.key(0), generate, posterior, num_samples=2)), 3)
        -1.419

    Reference: Hinton, Dayan, Frey, Neal, The wake-sleep algorithm for unsupervised neural networks, 1995.
    """
    checks.key(key)
    checks.num_samples(num_samples)

    def dream(key: Key[Array, ""]) -> Array:
        dreamt = generate(key)
        if not isinstance(dreamt, tuple) or len(dreamt) != 2:
            raise TypeError(
                f"generate(key) must return a pair (x, z), got {type(dreamt).__name__}."
            )
        x, z = jax.lax.stop_gradient(dreamt)
        q = lift(posterior(x))
        log_q = q.log_prob(z)
        # What q would draw by itself, in shape.
        own = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=()), key)
        if (
            jax.tree.map(jnp.shape, own[0]) != jax.tree.map(jnp.shape, z)
            or own[1].shape != log_q.shape
        ):
            raise ValueError(
                f"generate's z has shapes {jax.tree.map(jnp.shape, z)}, for which log q has "
                f"{log_q.shape}; draws of posterior(x) have {jax.tree.map(jnp.shape, own[0])} and "
                f"log q {own[1].shape}. They must agree."
            )
        return log_q

    return jnp.mean(jax.vmap(dream)(jax.random.split(key, num_samples)), 0)
