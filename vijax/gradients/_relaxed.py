"""Relaxed gradients for discrete latents: derivatives of a continuous stand-in. All are biased, and say so.

They are estimators rather than distributions because q stays discrete: the same q is trained by one, evaluated by
another and sampled as it is. A q that is itself continuous (TFP's RelaxedBernoulli, through families.adapt) needs
nothing of this: `reparam` of it is unbiased, for the bound of a model whose latents are relaxed too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key

from vijax import draws, engine
from vijax.gradients._perturbed import conditional, hardest
from vijax.numerics import with_score
from vijax.types import Bound, Objective, PyTree

# (key, log-probabilities, Gumbel noise) -> the point of the simplex where the model is evaluated.
Point = Callable[[Key[Array, ""], Array, Array], Array]


@engine.taking("gumbel_softmax", "bounds.elbo, temperature=0.5")
def gumbel_softmax(bound: Bound, *, temperature: ArrayLike) -> Objective:
    """Gumbel-softmax (binary Concrete) gradient of any bound: biased, in value too; discrete as
    temperature → 0.

        ∇φ B(log w(s)),   s = softmax((log q + g) / τ),  g ~ Gumbel

    When speed of training matters more than where it ends.
    The value is neither a bound nor an estimate of one.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].
        temperature: τ > 0, a number or a traced scalar, so that it can be annealed inside a jitted step.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. q shows
        its logits as q.logits, of independent latents; log_joint gets floats in [0, 1], and must be smooth in them.
        The prior and q are evaluated at the relaxed point, log q(s) = Σ s log q. A Bernoulli gives
        σ((a + logistic noise) / τ).

    Raises:
        TypeError: (when called) for a categorical of integer draws.
        ValueError: for a temperature that is not positive; (when called) for a q of other kinds or whose latents depend
            on each other, or shapes that do not agree.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)  # log q(s) = -log 2 at any s in [0, 1]
        >>> log_joint = lambda z: 0.0 * z + 3.0 - jnp.log(2.0)
        >>> estimate = gumbel_softmax(vj.bounds.elbo, temperature=0.5)(jax.random.key(0), log_joint, q, num_samples=4)
        >>> round(float(estimate.value), 3)
        3.0

    Reference: Jang, Gu, Poole, Categorical reparameterization with Gumbel-softmax, 2017, arXiv:1611.01144; Maddison,
        Mnih, Teh, The Concrete distribution, 2017, arXiv:1611.00712.
    """
    tau = _temperature(temperature)

    def point(key: Key[Array, ""], log_probs: Array, noise: Array) -> Array:
        return jax.nn.softmax((log_probs + noise) / tau)

    return _relaxed("gumbel_softmax", bound, point, stop_density=False)


@engine.taking("straight_through", "bounds.elbo, temperature=0.5")
def straight_through(bound: Bound, *, temperature: ArrayLike) -> Objective:
    """Straight-through Gumbel-softmax gradient of any bound: biased, though its value is the
    discrete bound's own.

        forward b = one-hot argmax (log q + g),   backward ∂b/∂φ := ∂softmax((log q + g) / τ)/∂φ

    For models without values between the states, yet with derivatives at them. `gumbel_rao`
    has the same mean and less variance.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch]. Where it is linear, the density of
            q is stopped: there its score has mean zero.
        temperature: τ > 0, a number or a traced scalar; a low one has less bias and more variance.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. q shows
        its logits as q.logits, of independent latents; log_joint gets hard draws as floats.

    Raises:
        TypeError: (when called) for a categorical of integer draws.
        ValueError: for a temperature that is not positive; (when called) for a q of other kinds or whose latents depend
            on each other, or shapes that do not agree.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)  # the posterior, of evidence e³
        >>> log_joint = lambda z: 0.0 * z + 3.0 - jnp.log(2.0)
        >>> estimate = straight_through(vj.bounds.elbo, temperature=0.5)(jax.random.key(0), log_joint, q, num_samples=4)
        >>> round(float(estimate.value), 3)
        3.0

    Reference: Jang, Gu, Poole, Categorical reparameterization with Gumbel-softmax, 2017, arXiv:1611.01144; Bengio,
        Léonard, Courville, Estimating or propagating gradients through stochastic neurons, 2013, arXiv:1308.3432.
    """
    tau = _temperature(temperature)

    def point(key: Key[Array, ""], log_probs: Array, noise: Array) -> Array:
        # Hard in value, soft in derivative.
        perturbed = log_probs + noise
        return with_score(hardest(perturbed), jax.nn.softmax(perturbed / tau))

    return _relaxed("straight_through", bound, point, stop_density=True)


@engine.taking("gumbel_rao", "bounds.elbo, temperature=0.5, inner=10")
def gumbel_rao(bound: Bound, *, temperature: ArrayLike, inner: int) -> Objective:
    """Gumbel-Rao gradient of any bound: biased exactly as `straight_through`, with less variance at
    no model's cost.

        forward b = one-hot argmax (log q + g),   backward ∂b/∂φ := 1/m Σⱼ ∂softmax((log q + gⱼ) / τ)/∂φ,   gⱼ ~ g | b

    Prefer it wherever you would use `straight_through`: noise that b does not determine is averaged
    over.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].
        temperature: τ > 0, a number or a traced scalar; with an average, lower ones are affordable.
        inner: m, how much noise is averaged over for each draw; 10 to 100.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. q shows
        its logits as q.logits, of independent latents; log_joint gets hard draws as floats, once for
        each draw.

    Raises:
        TypeError: (when called) for a categorical of integer draws.
        ValueError: for a temperature that is not positive or inner < 1; (when called) for a q of other kinds or whose
            latents depend on each other, or shapes that do not agree.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)  # the posterior, of evidence e³
        >>> log_joint = lambda z: 0.0 * z + 3.0 - jnp.log(2.0)
        >>> objective = gumbel_rao(vj.bounds.elbo, temperature=0.5, inner=10)
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(float(value(jax.random.key(0))), 3)
        3.0

    Reference: Paulus, Maddison, Krause, Rao-Blackwellizing the straight-through Gumbel-softmax gradient estimator,
        2021, arXiv:2010.04838.
    """
    tau = _temperature(temperature)
    if isinstance(inner, bool) or not isinstance(inner, (int, np.integer)) or inner < 1:
        raise ValueError(f"inner must be a whole number of at least 1, got {inner!r}.")

    def point(key: Key[Array, ""], log_probs: Array, noise: Array) -> Array:
        # The draw, and the noise that could have made it: m perturbations given b.
        hard = hardest(log_probs + noise)
        tiny = jnp.finfo(log_probs.dtype).tiny

        def soft(key: Key[Array, ""]) -> Array:
            uniform = jax.random.uniform(key, log_probs.shape, log_probs.dtype, minval=tiny)
            perturbed = conditional(log_probs, hard, uniform)
            # Noise alone, so that the derivative in log q is the softmax's.
            noise = jax.lax.stop_gradient(perturbed - engine.floored(log_probs))
            return jax.nn.softmax((log_probs + noise) / tau)

        return with_score(hard, jnp.mean(jax.vmap(soft)(jax.random.split(key, inner)), 0))

    return _relaxed("gumbel_rao", bound, point, stop_density=True)


def _temperature(temperature: ArrayLike) -> ArrayLike:
    if not isinstance(temperature, jax.core.Tracer) and (
        jnp.ndim(temperature) or not np.all(np.asarray(temperature) > 0)
    ):
        raise ValueError(f"temperature must be one positive number, got {temperature!r}.")
    return temperature


def _relaxed(name: str, bound: Bound, point: Point, *, stop_density: bool) -> Objective:
    """Make the objective that evaluates the model at points of the simplex.

    `stop_density`: drop the density of q where its score has mean zero, under a mean of log-weights.
    """

    def strategy(request: engine.Request) -> engine.Strategy:
        known = request.states
        density = known.stopped() if stop_density and request.is_mean else known

        def relaxed_draw(key: Key[Array, ""]) -> tuple[PyTree, Array]:
            keys = jax.random.split(key, (len(known.log_probs), 2))
            # A point of the simplex for every leaf, [*batch, *event, s].
            points = [
                point(
                    of_point,
                    log_probs,
                    jax.random.gumbel(of_noise, log_probs.shape, log_probs.dtype),
                )
                for (of_noise, of_point), log_probs in zip(keys, known.log_probs, strict=True)
            ]
            return known.soft(points), density.log_prob(points)

        def evaluate(seeds: engine.Plan) -> engine.Evaluated:
            z, log_q = jax.vmap(relaxed_draw)(seeds.draw)
            log_p, aux = request.evaluate(z, log_q, seeds)
            return engine.Evaluated(log_p, log_q, z, aux)

        def value(log_p: Array, log_q: Array, _: None) -> Array:
            return request.bound(log_p - log_q)

        return engine.Strategy(evaluate, value)

    estimator = engine.Estimator(engine.Needs(), strategy, own_derivative=not stop_density)
    return engine.make_objective(name, bound, draws.iid, estimator)
