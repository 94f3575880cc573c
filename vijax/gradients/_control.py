"""Control variates that learn: REBAR and RELAX, whose parameters come in and whose variance's gradient goes out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vijax import draws, engine, jaxprs
from vijax.gradients._perturbed import hardest, perturbed, perturbed_given, uniforms
from vijax.numerics import with_score
from vijax.types import Bound, Distribution, Estimate, LogJoint, Objective, PyTree

# What a control variate may ask: the model between the states.
Relaxed = Callable[[Any], Array]
"""A temperature -> log w at softmax(z / temperature), [*batch]."""

Control = Callable[[PyTree, PyTree, Relaxed], Array]
"""(parameters, z, relaxed) -> [*batch]: a guess of log w from real numbers that decide the draw."""

Controlled = Callable[..., tuple[Estimate, PyTree]]
"""(key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, slopes)."""


@engine.taking("relax", "bounds.elbo, control=control")
def relax(bound: Bound, *, control: Control) -> Controlled:
    """RELAX gradient of the ELBO for discrete latents: unbiased for any control variate, which
    learns.

        ∇φ = E[(f(b) - c(z̃)) ∇ log q(b) + ∇c(z) - ∇c(z̃)],   z = log q + Gumbel,  b = argmax z,  z̃ ~ z | b

    When the gradient's variance holds training back, and a small c is cheap beside the model.

    Args:
        bound: linear in log_w, so `bounds.elbo`. f is log w.
        control: c(parameters, z, relaxed) -> [*batch]. z is like a draw, in real numbers: log-odds plus noise for a
            Bernoulli, perturbed log-probabilities [..., states] for a categorical. `relaxed(temperature)` is log w at
            softmax(z / temperature), for log_joint that takes points of the simplex.

    Returns:
        (key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, slopes), the value [*batch] in
        nats, the slopes like `parameters` and stopped: the gradient in c's parameters of the squared
        norm of the gradient in q's logits, summed over the batch, for an optimizer that minimizes. q shows
        its logits as q.logits, of independent latents. Second derivatives are refused.

    Raises:
        TypeError: (when called) without parameters, or for `relaxed` of integer categoricals.
        ValueError: (when called) for a bound that is not linear, a q of other kinds or whose latents depend on each
            other, members of the batch that log_joint couples, or shapes that do not agree.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)
        >>> objective = relax(vj.bounds.elbo, control=lambda scale, z, relaxed: scale * z)
        >>> log_joint = lambda z: q.log_prob(z) + 3.0
        >>> run = jax.jit(lambda key: objective(key, log_joint, q, 1.0, num_samples=4))
        >>> estimate, slope = run(jax.random.key(0))
        >>> round(float(estimate.value), 3), slope.shape
        (3.0, ())

    Reference: Grathwohl, Choi, Wu, Roeder, Duvenaud, Backpropagation through the void, 2018, arXiv:1711.00123.
    """
    return _controlled(bound, control, "relax", "what `control` takes first, such as its weights")


@engine.taking("rebar")
def rebar(bound: Bound) -> Controlled:
    """REBAR gradient of the ELBO for discrete latents: unbiased, its control variate the relaxed
    model, scaled.

        ∇φ as in `relax`, with c(z) = η f(softmax(z / τ))

    When log_joint takes points of the simplex and no control variate should have to be designed. A
    draw costs three evaluations of the model.

    Args:
        bound: linear in log_w, so `bounds.elbo`.

    Returns:
        (key, log_joint, q, parameters, *, num_samples, chunk_size=None) -> (Estimate, slopes), as `relax`
        does, with parameters {"scale": η, "log_temperature": log τ}, learned by the slopes; start at
        η = 1, τ = .5.

    Raises:
        TypeError: (when called) without parameters, or for a categorical of integer draws.
        ValueError: (when called) for a bound that is not linear, a q of other kinds or whose latents depend on each
            other, members of the batch that log_joint couples, or shapes that do not agree.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)
        >>> start = {"scale": jnp.ones(()), "log_temperature": jnp.log(0.5)}
        >>> log_joint = lambda z: 0.0 * z + 3.0 - jnp.log(2.0)
        >>> objective = rebar(vj.bounds.elbo)
        >>> run = jax.jit(lambda key: objective(key, log_joint, q, start, num_samples=4))
        >>> estimate, slopes = run(jax.random.key(0))
        >>> round(float(estimate.value), 3), sorted(slopes)
        (3.0, ['log_temperature', 'scale'])

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

            def value(log_p: Array, log_q: Array, extra: tuple[Array, Array]) -> Array:
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
        q: Distribution | PyTree,
        parameters: PyTree = ...,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> tuple[Estimate, PyTree]:
        if parameters is ...:
            raise TypeError(
                f"gradients.{name} needs `parameters`, of the control variate it learns, after q: "
                f"{example}. Make them once and train them beside q's, by the slopes that come "
                f"second: (value, draws), slopes = gradients.{name}(...)(key, log_joint, q, "
                "parameters, num_samples=...)."
            )
        call: dict[str, Any] = {"key": key, "log_joint": log_joint, "q": q}
        call |= {"num_samples": num_samples, "chunk_size": chunk_size}

        def squared(parameters: PyTree) -> Array:
            return jnp.sum(with_parameters(parameters, 1)(**call).value)

        # The gradient of the value in q, then that of its square in the parameters.
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
    noise, other = uniforms(seeds, stopped.log_probs)
    # [k, *batch, *event, s]: a copy for each draw, so that the slopes below are each draw's own.
    logits = jax.tree.map(
        lambda l, u: jnp.broadcast_to(engine.floored(l), u.shape),
        stopped.log_probs,
        noise,
    )
    one_hot = [hardest(z) for z in perturbed(logits, noise)]

    def guesses(z: list[Array]) -> Array:
        return _guesses(request, z, seeds, parameters, stopped, control)

    # c(z) - c(z̃) as a function of the logits that both are made of, at fixed noise and draw.
    def difference(logits: list[Array]) -> tuple[Array, Array]:
        after = guesses(perturbed_given(logits, one_hot, other))
        return jnp.sum(guesses(perturbed(logits, noise)) - after), after

    # ∇c(z) - ∇c(z̃), and c(z̃).
    slope, after = jax.grad(difference, has_aux=True)(logits)

    # The model at the draws.
    log_q = jax.vmap(stopped.log_prob)(one_hot)
    z = stopped.draw(one_hot)
    log_p, aux = request.evaluate(z, log_q, seeds)

    signal = jax.lax.stop_gradient(log_p - log_q) - after
    # A draw of no mass says nothing of where to go.
    signal = jnp.where(jnp.isfinite(signal), signal, 0.0)
    gradient = _gradient(signal, one_hot, logits, slope)
    extra = _along(known, gradient), _squared_norm(known, gradient)
    return engine.Evaluated(log_p, log_q, z, aux, extra)


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

    def guess(z: list[Array], key: Key[Array, ""] | None) -> Array:
        def relaxed(temperature: ArrayLike) -> Array:
            points = [jax.nn.softmax(x / temperature) for x in z]
            return _relaxed_log_w(request, points, key, stopped)

        value = control(parameters, stopped.real(z), relaxed)
        if jnp.shape(value) != batch:
            raise ValueError(
                f"control must return one number for each member of the batch, {batch}; it "
                f"returned {jnp.shape(value)}."
            )
        return value

    def apart(z: list[Array], key: Key[Array, ""] | None) -> Array:
        # A control that couples members of the batch would mix their signals.
        if request.members is not None:
            closed = jaxprs.trace(guess, z, key)[0]
            request.members.refuse("control(parameters, z, relaxed)", closed, z, batch, key)
        return guess(z, key)

    return jax.vmap(apart)(z, seeds.model)


def _relaxed_log_w(
    request: engine.Request, points: list[Array], key: Key[Array, ""] | None, stopped: engine.States
) -> Array:
    """Return log w at points of the simplex, [*batch]."""

    def row(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[None], tree)

    log_q = stopped.log_prob(points)
    log_p, _ = request.evaluate(row(stopped.soft(points)), log_q[None], engine.Plan(None, row(key)))
    return log_p[0] - log_q


def _gradient(
    signal: Array,
    one_hot: list[Array],
    logits: list[Array],
    slope: list[Array],
) -> list[Array]:
    """Return each draw's gradient in the log-probabilities, whose score is b - softmax."""

    def of_leaf(b: Array, logits: Array, slope: Array) -> Array:
        # [k, *batch] to [k, *batch, *1s of event, 1].
        column = jnp.reshape(signal, signal.shape + (1,) * (b.ndim - signal.ndim))
        return column * (b - jax.nn.softmax(logits)) + slope

    return jax.tree.map(of_leaf, one_hot, logits, slope)


def _along(known: engine.States, gradient: list[Array]) -> Array:
    """Return numbers [k, *batch] whose derivative in q's parameters is the gradient, carried through log q."""
    log_probs = [engine.floored(l) for l in known.log_probs]
    return jax.vmap(lambda g: known.dot(g, log_probs))(jax.lax.stop_gradient(gradient))


def _squared_norm(known: engine.States, gradient: list[Array]) -> Array:
    """Return the squared norm of each draw's gradient in the logits, [k, *batch]."""
    # Log-probabilities of a Bernoulli count its one logit twice.
    shares = [share * g for share, g in zip(known.shares, gradient, strict=True)]
    return jax.vmap(known.dot)(shares, gradient)
