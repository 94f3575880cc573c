"""Noise of score gradients: vimco and score of Gaussians, every estimator of discrete latents beside NumPyro."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import vijax as vj
from benchmarks import _measure, _scores
from benchmarks._peers import Missing, peer
from benchmarks._report import Options, Row, missing, ratio_of, row

ELBO, K = vj.bounds.elbo, 4
# Leave-one-out on K draws has at most a fifth of NumPyro's variance on as many; a z-score beyond 6 is a bias.
STEPS = 40  # to a timed call: one alone is shorter than the way to the device
PEER, BAR, BIAS = "numpyro TraceGraph_ELBO", 0.2, 6.0
BASELINE, LEAVE_ONE_OUT = "score(elbo)", "vimco(elbo)"


class Bits(NamedTuple):
    """Independent Bernoullis over the last axis."""

    logits: Array

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        p = jax.nn.sigmoid(self.logits)
        z = jax.random.bernoulli(seed, p, (*sample_shape, *p.shape)).astype(p.dtype)
        return z, self.log_prob(z)

    def log_prob(self, z: Array, /) -> Array:
        return jnp.sum(z * self.logits - jax.nn.softplus(self.logits), -1)


class Choice(NamedTuple):
    """One categorical for each member of the batch, one-hot."""

    logits: Array

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        z = jax.random.categorical(
            seed, self.logits, shape=(*sample_shape, *self.logits.shape[:-1])
        )
        hot = jax.nn.one_hot(z, self.logits.shape[-1])
        return hot, self.log_prob(hot)

    def log_prob(self, z: Array, /) -> Array:
        return jnp.sum(z * jax.nn.log_softmax(self.logits), -1)


class Problem(NamedTuple):
    """A model at fixed parameters: gradients are those of q's logits. `points` are all its states, where countable."""

    name: str
    make: Callable[[Array], Any]
    logits: Array
    log_joint: Callable[[Array], Array]
    points: Array | None
    repeats: tuple[int, int]  # in full, and quick


def problems() -> list[Problem]:
    """Normalised models of synthetic data: two sigmoid belief nets, and a mixture of Gaussians."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    means, point = 1.5 * draw(16, 8), 1.5 * draw(8)

    def mixture(z: Array) -> Array:
        log_likelihood = jnp.sum(jax.scipy.stats.norm.logpdf(point[None], means, 1.0), -1)
        return jnp.sum(z * (log_likelihood - jnp.log(16.0)), -1)

    every = jnp.asarray(list(itertools.product([0.0, 1.0], repeat=6)), jnp.float32)
    large = "belief net, 200 Bernoullis, 784 pixels, batch 8"
    return [
        Problem(
            "6 Bernoullis, 20 pixels",
            Bits,
            draw(6),
            belief_net(draw, 6, 20, ()),
            every,
            (20_000, 2_000),
        ),
        Problem(large, Bits, 0.5 * draw(8, 200), belief_net(draw, 200, 784, (8,)), None, (400, 40)),
        Problem(
            "categorical of 16 states", Choice, draw(16), mixture, jnp.eye(16), (20_000, 2_000)
        ),
    ]


def belief_net(
    draw: Any, latents: int, pixels: int, batch: tuple[int, ...]
) -> Callable[[Array], Array]:
    weights, bias, prior = (
        draw(latents, pixels) * 2 / latents**0.5,
        0.1 * draw(pixels),
        0.5 * draw(latents),
    )
    images = (draw(*batch, pixels) > 0.5).astype(jnp.float32)
    like = lambda parameter, x: jnp.broadcast_to(parameter, x.shape)  # noqa: E731
    log_bernoulli = lambda x, logits: jnp.sum(x * logits - jax.nn.softplus(logits), -1)  # noqa: E731
    return lambda z: (
        log_bernoulli(images, z @ weights + like(bias, images)) + log_bernoulli(z, like(prior, z))
    )


REBAR = {"scale": jnp.array(1.0), "log_temperature": jnp.log(jnp.array(0.5))}


def estimators(problem: Problem) -> dict[str, tuple[Any, int, float]]:
    """Return objectives with the draws they take, and the evaluations of the model that a draw, or all, come to."""
    g = vj.gradients
    rebar = g.rebar(ELBO)

    def controlled(key, log_joint, q, **keywords):
        return rebar(key, log_joint, q, REBAR, **keywords)[0]

    found: dict[str, tuple[Any, int, float]] = {
        BASELINE: (g.score(ELBO), K, K),
        LEAVE_ONE_OUT: (g.vimco(ELBO), K, K),
        "arm(elbo)": (g.arm(ELBO), K, K),
        "disarm(elbo)": (g.disarm(ELBO), K, K),
        "rebar(elbo), scale 1, temperature .5": (controlled, K, 3 * K),
        "gumbel_softmax(elbo), .5, biased": (g.gumbel_softmax(ELBO, temperature=0.5), K, K),
        "straight_through(elbo), .5, biased": (g.straight_through(ELBO, temperature=0.5), K, K),
        "gumbel_rao(elbo), .5, 16 inner, biased": (
            g.gumbel_rao(ELBO, temperature=0.5, inner=16),
            K,
            K,
        ),
    }
    if problem.points is not None:
        others = 6 if problem.make is Bits else 15
        found["local_expectation(elbo), 1 draw"] = (g.local_expectation(ELBO), 1, 1 + others)
    if problem.make is Choice:
        found["top_states(elbo, states=2)"] = (g.top_states(ELBO, states=2), K - 2, K)
    return found


def gradient(problem: Problem, objective: Any, num_samples: int) -> Callable[[Array, Array], Array]:
    def total(logits: Array, key: Array) -> Array:
        return jnp.sum(
            objective(key, problem.log_joint, problem.make(logits), num_samples=num_samples).value
        )

    return jax.grad(total)


def numpyro(problem: Problem) -> Callable[[Array, Array], Array]:
    """The same latents and the same model in NumPyro, K particles."""
    numpyro = peer("numpyro")
    infer, dist = peer("numpyro.infer"), numpyro.distributions
    members = problem.logits.shape[:-1]

    def latent(logits: Array) -> Array:
        if problem.make is Choice:
            return jax.nn.one_hot(
                numpyro.sample("z", dist.Categorical(logits=logits)), logits.shape[-1]
            )
        return numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    def in_plate(body: Callable[[], Any]) -> None:
        with numpyro.plate("data", members[0]) if members else contextlib.nullcontext():
            body()

    def model() -> None:
        def body() -> None:
            z = latent(jnp.zeros_like(problem.logits))
            prior = problem.make(jnp.zeros_like(problem.logits)).log_prob(z)
            numpyro.factor("model", problem.log_joint(z) - prior)

        in_plate(body)

    def guide() -> None:
        logits = numpyro.param("logits", problem.logits)
        in_plate(lambda: latent(logits))

    def loss(logits: Array, key: Array) -> Array:
        return -infer.TraceGraph_ELBO(num_particles=K).loss(key, {"logits": logits}, model, guide)

    return jax.grad(loss)


def exact(problem: Problem, points: Array) -> Array:
    """The gradient by enumeration."""

    def total(logits: Array) -> Array:
        log_q = jax.vmap(problem.make(logits).log_prob)(points)
        return jnp.sum(jnp.exp(log_q) * (jax.vmap(problem.log_joint)(points) - log_q))

    return jax.grad(total)(problem.logits)


def run(options: Options) -> Iterator[Row]:
    yield from _scores.run(options)
    for problem in problems():
        functions: dict[str, Callable[[Array, Array], Array]] = {}
        evaluations: dict[str, float] = {}
        for name, (objective, num_samples, cost) in estimators(problem).items():
            functions[name], evaluations[name] = gradient(problem, objective, num_samples), cost
        try:
            functions[PEER], evaluations[PEER] = numpyro(problem), K
        except Missing as why:
            yield missing(PEER, f"{problem.name}: variance of the gradient in q's logits", why)
        yield from measured(problem, functions, evaluations, options)


def measured(
    problem: Problem, functions: dict[str, Any], evaluations: dict[str, float], options: Options
) -> Iterator[Row]:
    n = problem.repeats[options.quick]
    keys = jax.random.split(jax.random.key(0), n)
    many = lambda f: jax.jit(lambda a, ks: jax.lax.map(lambda k: f(a, k), ks, batch_size=100))  # noqa: E731
    slopes = {
        name: np.asarray(many(f)(problem.logits, keys), np.float64) for name, f in functions.items()
    }
    variances = {name: float(s.var(0, ddof=1).sum()) for name, s in slopes.items()}
    metric = f"{problem.name}: variance of the gradient in q's logits, summed"
    for name, value in variances.items():
        note = f"{evaluations[name]:g} evaluations"
        yield row(
            name,
            metric,
            value,
            "nats²",
            BASELINE,
            ratio_of(value, variances[BASELINE]),
            note=note,
            draws=n,
        )
    if PEER in variances:
        ours = variances[LEAVE_ONE_OUT]
        ratio = ratio_of(ours, variances[PEER])
        yield row(
            LEAVE_ONE_OUT, f"{metric}; equal evaluations", ours, "nats²", PEER, ratio, bar=BAR
        )
    arm, disarm = variances["arm(elbo)"], variances["disarm(elbo)"]
    yield row(
        "disarm(elbo)",
        f"{metric}; the theorem",
        disarm,
        "nats²",
        "arm(elbo)",
        ratio_of(disarm, arm),
        bar=1.0,
    )
    if problem.points is not None:
        truth = np.asarray(exact(problem, problem.points), np.float64)
        for name, s in slopes.items():
            error = s.std(0, ddof=1) / np.sqrt(n) + 1e-6
            z = float(np.max(np.abs(s.mean(0) - truth) / error))
            bar = None if "biased" in name else BIAS
            yield row(name, f"{problem.name}: largest bias, in standard errors", z, "se", bar=bar)
    calls: dict[str, Any] = {}
    for name, f in [*functions.items(), (f"{BASELINE} A/A", functions[BASELINE])]:
        walk = jax.jit(
            lambda a, ks, f=f: jax.lax.scan(lambda at, k: (at + 1e-6 * f(at, k), None), a, ks)[0]
        )
        calls[name] = lambda walk=walk: walk(problem.logits, keys[:STEPS])
    rounds = 5 if options.quick else 25
    timings = _measure.paired(
        calls, BASELINE, rounds, control=f"{BASELINE} A/A", least=1e-2, warm=2
    )
    for name in functions:
        yield timings.row(name, f"{problem.name}: time of {STEPS} steps", BASELINE)
