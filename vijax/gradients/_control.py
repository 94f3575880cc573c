"""Control variates that learn: REBAR and RELAX, whose parameters come in and whose variance's gradient goes out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import draws, engine, jaxprs
from vijax.gradients._relaxed import conditional, hardest
from vijax.numerics import with_score
from vijax.types import Bound, Estimate, LogJoint, Objective, PyTree

Relaxed = Callable[[Any], Array]
"""A temperature -> log w at the point softmax(z / temperature), [*batch]."""

Control = Callable[[PyTree, PyTree, Relaxed], Array]
"""(parameters, z, relaxed) -> [*batch]: a guess of log w from the real numbers z whose largest decide the draw."""

Controlled = Callable[..., tuple[Estimate, PyTree]]
"""(key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, gradient of the variance)."""


@engine.taking("relax", "bounds.elbo, control=control")
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
        derivatives are refused.

    Raises:
        TypeError: (when called) without parameters, for a raw key, a q that is not a distribution, or `relaxed` of
            integer categoricals.
        ValueError: (when called) for a bound that is not linear, a q of other kinds or whose latents depend on each
            other, members of the batch that log_joint couples, or shapes that do not agree.

    Reference: Grathwohl, Choi, Wu, Roeder, Duvenaud, Backpropagation through the void, 2018, arXiv:1711.00123.
    """
    return _controlled(bound, control, "relax", "what `control` takes first, such as its weights")


@engine.taking("rebar")
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
        TypeError: (when called) without parameters, for a raw key, a q that is not a distribution, or a categorical of
            integer draws.
        ValueError: (when called) for a bound that is not linear, a q of other kinds or whose latents depend on each
            other, members of the batch that log_joint couples, or shapes that do not agree.

    Reference: Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein, REBAR: low-variance, unbiased gradient estimates for
        discrete latent variable models, 2017, arXiv:1703.07370.
    """

    def control(parameters: PyTree, z: PyTree, relaxed: Relaxed) -> Array:
        return parameters["scale"] * relaxed(jnp.exp(parameters["log_temperature"]))

    example = '{"scale": jnp.ones(()), "log_temperature": jnp.log(0.5)}'
    return _controlled(bound, control, "rebar", example)


def _controlled(bound: Bound, control: Control, name: str, example: str) -> Controlled:
    needs = engine.Needs(mean="corrects each draw by itself", members=True)

    def with_parameters(parameters: PyTree, term: int) -> Objective:
        """Make the objective whose derivative is that of the q's gradient (0), or of its square (1)."""

        def strategy(request: engine.Request) -> engine.Strategy:
            known = request.states

            def evaluate(seeds: engine.Plan) -> engine.Evaluated:
                return _evaluate(request, seeds, parameters, known, control)

            def value(log_p: Array, log_q: Array, extra: Any) -> Array:
                mean = jnp.mean(extra[term], 0)
                if term == 1:
                    return mean
                bound_value = request.bound(log_p - log_q)
                return with_score(bound_value, bound_value + mean)

            return engine.Strategy(evaluate, value)

        return engine.make_objective(name, bound, draws.iid, engine.Estimator(needs, strategy))

    def controlled(
        key: Key[Array, ""],
        log_joint: LogJoint,
        q: Any,
        parameters: PyTree = ...,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> tuple[Estimate, PyTree]:
        if parameters is ...:
            raise TypeError(
                f"gradients.{name} needs `parameters`, of the control variate it learns, after q: {example}. Make them "
                "once and train them beside q's, by the slopes that come second: "
                f"(value, draws), slopes = gradients.{name}(...)(key, log_joint, q, parameters, num_samples=...)."
            )
        call: dict[str, Any] = {"key": key, "log_joint": log_joint, "q": q}
        call |= {"num_samples": num_samples, "chunk_size": chunk_size}

        def squared(parameters: PyTree) -> Array:
            return jnp.sum(with_parameters(parameters, 1)(**call).value)

        # Under jit the two evaluations are one; the second knows nothing of what the caller differentiates.
        estimate = with_parameters(jax.lax.stop_gradient(parameters), 0)(**call)
        slopes, _ = jaxprs.stopped(jax.grad(squared), parameters)
        return estimate, slopes(jax.lax.stop_gradient(parameters))

    return controlled


def _evaluate(
    request: engine.Request,
    seeds: engine.Plan,
    parameters: PyTree,
    known: engine.States,
    control: Control,
) -> engine.Evaluated:
    """Evaluate draws b, and with each its gradient g in q's log-probabilities, and |g|².

    g = (f(b) - c(z̃)) ∇ log q(b) + ∇c(z) - ∇c(z̃)
    """
    stopped = known.stopped()
    # z decides the draw b; the other noise draws z̃ given b.
    noise, other = _uniforms(seeds, stopped.log_probs)
    logits = jax.tree.map(
        lambda l, u: jnp.broadcast_to(engine.floored(l), u.shape),
        stopped.log_probs,
        noise,
    )
    hot = [hardest(z) for z in _perturbed(logits, noise)]

    def guesses(z: list[Array]) -> Array:
        return _guesses(request, z, seeds, parameters, stopped, control)

    def difference(logits: list[Array]) -> tuple[Array, Array]:
        after = guesses(_perturbed_given(logits, hot, other))
        return jnp.sum(guesses(_perturbed(logits, noise)) - after), after

    # ∇c(z) - ∇c(z̃), and c(z̃).
    slope, after = jax.grad(difference, has_aux=True)(logits)

    # The model at the draws.
    log_q = jax.vmap(stopped.log_prob)(hot)
    z = stopped.draw(hot)
    log_p, aux = request.evaluate(z, log_q, seeds)

    signal = jax.lax.stop_gradient(log_p - log_q) - after
    # A draw of no mass says nothing of where to go.
    signal = jnp.where(jnp.isfinite(signal), signal, 0.0)
    gradient = _gradient(signal, hot, logits, slope)
    extra = _along(known, gradient), _squared_norm(known, gradient)
    return engine.Evaluated(log_p, log_q, z, aux, extra)


def _uniforms(seeds: engine.Plan, log_probs: list[Array]) -> tuple[list[Array], list[Array]]:
    """Return two uniforms in (0, 1) for every state of every leaf, [k, *batch, *event, s]."""
    tiny = jnp.finfo(log_probs[0].dtype).tiny

    def of_leaves(key: Key[Array, ""]) -> list[Array]:
        keys = jax.random.split(key, len(log_probs))
        pairs = zip(keys, log_probs, strict=True)
        return [jax.random.uniform(k, l.shape, l.dtype, minval=tiny) for k, l in pairs]

    def both(key: Key[Array, ""]) -> tuple[list[Array], list[Array]]:
        first, second = jax.random.split(key)
        return of_leaves(first), of_leaves(second)

    return jax.vmap(both)(seeds.draw)


def _perturbed(logits: list[Array], noise: list[Array]) -> list[Array]:
    """Return z = log q + Gumbel noise, whose largest state is the draw."""
    pairs = zip(logits, noise, strict=True)
    return [jax.nn.log_softmax(l) - jnp.log(-jnp.log(u)) for l, u in pairs]


def _perturbed_given(logits: list[Array], hot: list[Array], noise: list[Array]) -> list[Array]:
    """Return z̃, drawn as z is, given the draw that it decides."""
    triples = zip(logits, hot, noise, strict=True)
    return [conditional(jax.nn.log_softmax(l), b, u) for l, b, u in triples]


def _guesses(
    request: engine.Request,
    z: list[Array],
    seeds: engine.Plan,
    parameters: PyTree,
    stopped: engine.States,
    control: Control,
) -> Array:
    """Return c of perturbed log-probabilities z, [k, *batch]; a draw's model has its own key."""
    batch = tuple(stopped.log_probs[0].shape[: stopped.batch])

    def guess(z: list[Array], key: Any) -> Array:
        def relaxed(temperature: Any) -> Array:
            points = [jax.nn.softmax(x / temperature) for x in z]
            return _relaxed_log_w(request, points, key, stopped)

        value = control(parameters, stopped.real(z), relaxed)
        if jnp.shape(value) != batch:
            raise ValueError(
                f"control must return one number for each member of the batch, {batch}; it returned {jnp.shape(value)}."
            )
        return value

    def apart(z: list[Array], key: Any) -> Array:
        if request.members is not None:
            closed = jaxprs.trace(guess, z, key)[0]
            request.members.refuse("control(parameters, z, relaxed)", closed, z, batch, key)
        return guess(z, key)

    return jax.vmap(apart)(z, seeds.model)


def _relaxed_log_w(
    request: engine.Request, points: list[Array], key: Any, stopped: engine.States
) -> Array:
    """Return log w at points of the simplex, [*batch]."""

    def row(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[None], tree)

    log_q = stopped.log_prob(points)
    log_p, _ = request.evaluate(row(stopped.soft(points)), log_q[None], engine.Plan(None, row(key)))
    return log_p[0] - log_q


def _gradient(
    signal: Array,
    hot: list[Array],
    logits: list[Array],
    slope: list[Array],
) -> list[Array]:
    """Return each draw's gradient in the log-probabilities, whose score is b - softmax."""

    def of_leaf(b: Array, logits: Array, slope: Array) -> Array:
        column = jnp.reshape(signal, signal.shape + (1,) * (b.ndim - signal.ndim))
        return column * (b - jax.nn.softmax(logits)) + slope

    return jax.tree.map(of_leaf, hot, logits, slope)


def _along(known: engine.States, gradient: list[Array]) -> Array:
    """Return numbers [k, *batch] whose derivative in q's parameters is the gradient, carried through log q."""
    log_probs = [engine.floored(l) for l in known.log_probs]
    return jax.vmap(lambda g: known.dot(g, log_probs))(jax.lax.stop_gradient(gradient))


def _squared_norm(known: engine.States, gradient: list[Array]) -> Array:
    """Return the squared norm of each draw's gradient in the logits, [k, *batch]."""
    shares = [share * g for share, g in zip(known.shares, gradient, strict=True)]
    return jax.vmap(known.dot)(shares, gradient)
