"""Control variates that learn: REBAR and RELAX, whose parameters come in and whose variance's gradient goes out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import draws, jaxprs
from vijax.engine import Estimator, Evaluated, Needs, Plan, Request, Strategy, make_objective
from vijax.gradients._relaxed import conditional, hardest
from vijax.gradients._states import States, floored, states
from vijax.numerics import with_score
from vijax.types import Bound, Estimate, LogJoint, Objective, PyTree

Relaxed = Callable[[Any], Array]
"""A temperature -> log w at the point softmax(z / temperature), [*batch]."""

Control = Callable[[PyTree, PyTree, Relaxed], Array]
"""(parameters, z, relaxed) -> [*batch]: a guess of log w from the real numbers z whose largest decide the draw."""

Controlled = Callable[..., tuple[Estimate, PyTree]]
"""(key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, gradient of the variance)."""


def relax(bound: Bound, *, control: Control) -> Controlled:
    """RELAX gradient of the ELBO for discrete latents: unbiased for any control variate, with one that learns.

        ∇φ = E[(f(b) - c(z̃)) ∇ log q(b) + ∇c(z) - ∇c(z̃)],   z = log q + Gumbel,  b = argmax z,  z̃ ~ z | b,   f = log w

    When the gradient's variance is what holds training back and a few evaluations of a small c are cheap beside the
    model. The second result is the gradient, in the parameters of c, of the squared norm of the gradient in q's logits,
    summed over the batch: its mean is the gradient of the variance. Hand it to an optimiser that minimises.

        (value, slopes), grads = value_and_grad(loss, has_aux=True)(params, parameters, key)

    Args:
        bound: linear in log_w, so `bounds.elbo`.
        control: c(parameters, z, relaxed) -> [*batch]. z is like a draw, in real numbers: log-odds plus noise for a
            Bernoulli, perturbed log-probabilities [..., states] for a categorical. `relaxed(temperature)` is log w at
            softmax(z / temperature), for log_joint that takes points of the simplex.

    Returns:
        (key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, slopes), the value [*batch] in
        nats, the slopes like `parameters` and stopped. q shows its logits as q.logits, of independent latents. Second
        derivatives mean nothing here. log_joint must not couple members of the batch.

    Raises:
        TypeError: (when called) for a raw key, a q that is not a distribution, or `relaxed` of integer categoricals.
        ValueError: (when called) for a bound that is not linear, a q of other kinds or whose latents depend on each
            other, or shapes that do not agree.

    Reference: Grathwohl, Choi, Wu, Roeder, Duvenaud, Backpropagation through the void, 2018, arXiv:1711.00123.
    """
    return _controlled(bound, control, "relax")


def rebar(bound: Bound) -> Controlled:
    """REBAR gradient of the ELBO for discrete latents: unbiased, its control variate the relaxed model, scaled.

        ∇φ as in `relax`, with c(z) = η f(softmax(z / τ));   parameters {"scale": η, "log_temperature": log τ}

    When log_joint takes points of the simplex and nothing should have to be designed. Start at η = 1, τ = .5; both are
    learned from the gradient of the variance. A draw costs three evaluations of the model.

    Args:
        bound: linear in log_w, so `bounds.elbo`.

    Returns:
        (key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, slopes), as `relax` does.

    Raises:
        TypeError: (when called) for a raw key, a q that is not a distribution, or a categorical of integer draws.
        ValueError: (when called) for a bound that is not linear, a q of other kinds or whose latents depend on each
            other, or shapes that do not agree.

    Reference: Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein, REBAR: low-variance, unbiased gradient estimates for
        discrete latent variable models, 2017, arXiv:1703.07370.
    """

    def control(parameters: PyTree, z: PyTree, relaxed: Relaxed) -> Array:
        return parameters["scale"] * relaxed(jnp.exp(parameters["log_temperature"]))

    return _controlled(bound, control, "rebar")


def _controlled(bound: Bound, control: Control, name: str) -> Controlled:
    needs = Needs(mean="corrects each draw by itself")

    def with_parameters(parameters: PyTree, term: int) -> Objective:
        """Make the objective whose derivative is that of the q's gradient (0), or of its square (1)."""

        def strategy(request: Request) -> Strategy:
            known = states(request.q, request.key, name)

            def evaluate(seeds: Plan) -> Evaluated:
                return _evaluate(request, seeds, parameters, known, control)

            def value(log_p: Array, log_q: Array, extra: Any) -> Array:
                mean = jnp.mean(extra[term], 0)
                if term == 1:
                    return mean
                bound_value = request.bound(log_p - log_q)
                return with_score(bound_value, bound_value + mean)

            return Strategy(evaluate, value)

        return make_objective(name, bound, draws.iid, Estimator(needs, strategy))

    def controlled(
        key: Key[Array, ""],
        log_joint: LogJoint,
        q: Any,
        parameters: PyTree,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> tuple[Estimate, PyTree]:
        call: dict[str, Any] = {"key": key, "log_joint": log_joint, "q": q}
        call |= {"num_samples": num_samples, "chunk_size": chunk_size}

        def squared(parameters: PyTree) -> Array:
            return jnp.sum(with_parameters(parameters, 1)(**call).value)

        # Under jit the two evaluations are one; the second knows nothing of what the caller differentiates.
        estimate = with_parameters(jax.lax.stop_gradient(parameters), 0)(**call)
        slopes, _ = jaxprs.stopped(jax.grad(squared), parameters)
        return estimate, slopes(jax.lax.stop_gradient(parameters))

    return controlled


def _evaluate(request: Request, seeds: Plan, parameters: PyTree, found: States, control: Control) -> Evaluated:
    still = found.stopped()
    tiny = jnp.finfo(still.log_probs[0].dtype).tiny
    uniform = lambda key: [  # noqa: E731
        jax.random.uniform(k, l.shape, l.dtype, minval=tiny)
        for k, l in zip(jax.random.split(key, len(still.log_probs)), still.log_probs, strict=True)
    ]
    noise, other = jax.vmap(lambda key: jax.tree.map(uniform, tuple(jax.random.split(key))))(seeds.draw)
    logits = [jnp.broadcast_to(floored(l), u.shape) for l, u in zip(still.log_probs, noise, strict=True)]

    def perturbed(logits: list[Array]) -> list[Array]:
        return [jax.nn.log_softmax(l) - jnp.log(-jnp.log(u)) for l, u in zip(logits, noise, strict=True)]

    hot = [hardest(z) for z in perturbed(logits)]

    def again(logits: list[Array]) -> list[Array]:
        return [conditional(jax.nn.log_softmax(l), b, v) for l, b, v in zip(logits, hot, other, strict=True)]

    def guess(z: list[Array]) -> Array:
        def one(z: list[Array], key: Any) -> Array:
            def relaxed(temperature: Any) -> Array:
                points = [jax.nn.softmax(x / temperature) for x in z]
                log_q = still.log_prob(points)
                row = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731
                log_p, _ = request.evaluate(row(still.soft(points)), log_q[None], Plan(None, row(key)))
                return log_p[0] - log_q

            c = control(parameters, still.real(z), relaxed)
            if jnp.shape(c) != still.log_probs[0].shape[: still.batch]:
                raise ValueError(
                    f"control must return one number for each member of the batch, "
                    f"{still.log_probs[0].shape[: still.batch]}; it returned {jnp.shape(c)}."
                )
            return c

        return jax.vmap(one)(z, seeds.model)

    def difference(logits: list[Array]) -> tuple[Array, Array]:
        after = guess(again(logits))
        return jnp.sum(guess(perturbed(logits)) - after), after

    slope, after = jax.grad(difference, has_aux=True)(logits)
    log_q = jax.vmap(still.log_prob)(hot)
    z = still.draw(hot)
    log_p, aux = request.evaluate(z, log_q, seeds)
    left = jax.lax.stop_gradient(log_p - log_q) - after
    # A draw of no mass says nothing of where to go.
    left = jnp.where(jnp.isfinite(left), left, 0.0)
    gradient = [
        jnp.reshape(left, left.shape + (1,) * (b.ndim - left.ndim)) * (b - jax.nn.softmax(l)) + s
        for b, l, s in zip(hot, logits, slope, strict=True)
    ]
    along = jax.vmap(lambda g: found.dot(g, [floored(l) for l in found.log_probs]))(jax.lax.stop_gradient(gradient))
    shares = [share * g for share, g in zip(found.shares, gradient, strict=True)]
    return Evaluated(log_p, log_q, z, aux, (along, jax.vmap(found.dot)(shares, gradient)))
