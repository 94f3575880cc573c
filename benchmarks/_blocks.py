"""Five models of two blocks of latents, one of which has an exact integral, and a q over both near the posterior.

z is a vector whose q is one Gaussian: that of the collapsed target's mode and curvature, made WIDER times as wide. b is
drawn independently of z, from the exact conditional at that mode, made wider too: so q(z) is the marginal of q(z, b).
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln, logsumexp
from jax.scipy.stats import norm

import vijax as vj

WIDER, MIXED = 1.2, 0.03  # scales of Gaussians; the share of the uniform in discrete conditionals
STEPS = 500
NORMAL = vj.families.full_rank()


class Labels(NamedTuple):
    """Independent integers, one for each row of logits [n, states]."""

    logits: Array

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        c = jax.random.categorical(seed, self.logits, shape=(*sample_shape, len(self.logits)))
        log_prob = self.log_prob
        for _ in sample_shape:
            log_prob = jax.vmap(log_prob)
        return c, log_prob(c)

    def log_prob(self, c: Array, /) -> Array:
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(self.logits), c[:, None], 1))


class Rates(NamedTuple):
    """Independent Gammas of shape exp(log_a) and rate exp(log_b), both [n]."""

    log_a: Array
    log_b: Array

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        a = jnp.broadcast_to(jnp.exp(self.log_a), (*sample_shape, len(self.log_a)))
        b = jax.random.gamma(seed, a) / jnp.exp(self.log_b)
        log_prob = self.log_prob
        for _ in sample_shape:
            log_prob = jax.vmap(log_prob)
        return b, log_prob(b)

    def log_prob(self, b: Array, /) -> Array:
        return jnp.sum(log_gamma(b, jnp.exp(self.log_a), jnp.exp(self.log_b)))


def log_gamma(x: Array, a: Array, b: Array) -> Array:
    return a * jnp.log(b) + (a - 1) * jnp.log(x) - b * x - gammaln(a)


class Model(NamedTuple):
    """A model, its two targets, q, and log p(x).

    Fields:
        name: of the model, and what is integrated how.
        full: (z, b) -> log p(x, z, b).
        collapsed: z -> log p(x, z).
        params: {"z", "b"} of q.
        block: params["b"] -> q(b).
        discrete: whether b is.
        exact: () -> log p(x), by quadrature or enumeration.
        data: what NumPyro's version reads.
    """

    name: str
    full: Callable[[Array, Any], Array]
    collapsed: Callable[[Array], Array]
    params: dict[str, Any]
    block: Callable[[Any], Any]
    discrete: bool
    exact: Callable[[], float]
    data: Any


def normal(loc: Array, cov: Array) -> dict[str, Array]:
    """Return the parameters of NORMAL with these moments, WIDER times as wide."""
    root = WIDER * jnp.linalg.cholesky(cov)
    scale = jnp.diagonal(root)
    lower = (root / scale[:, None])[jnp.tril_indices(len(loc), -1)]
    return {"loc": loc, "log_scale": jnp.log(scale), "lower": lower}


def root_of(params: dict[str, Array]) -> Array:
    """Return the lower triangle L of N(loc, L Lᵀ)."""
    d = params["loc"].size
    unit = jnp.eye(d).at[jnp.tril_indices(d, -1)].set(params["lower"])
    return jnp.exp(params["log_scale"])[:, None] * unit


def at_mode(collapsed: Callable[[Array], Array], start: Array) -> dict[str, Array]:
    """Return the Gaussian of the collapsed target's mode and curvature."""
    import optax

    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        z, state = carry
        updates, state = optimizer.update(-jax.grad(collapsed)(z), state)
        return (optax.apply_updates(z, updates), state), None

    @jax.jit
    def climb(z: Array) -> tuple[Array, Array]:
        z = jax.lax.scan(step, (z, optimizer.init(z)), None, length=STEPS)[0][0]
        return z, jnp.linalg.inv(-jax.hessian(collapsed)(z))

    return normal(*climb(start))


def softened(log_probs: Array) -> Array:
    return jnp.log((1 - MIXED) * jnp.exp(log_probs) + MIXED / log_probs.shape[-1])


def quadrature(collapsed: Callable[[Array], Array], q: dict[str, Array], points: int) -> float:
    """log ∫ p(x, z) dz by the trapezoid rule in q's own axes, seven of its scales to each side."""
    d = q["loc"].size
    axis = np.linspace(-7, 7, points)
    grid = jnp.asarray(
        np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d), jnp.float32
    )
    root = root_of(q)
    log_p = jax.jit(
        lambda g: jax.lax.map(lambda e: collapsed(q["loc"] + root @ e), g, batch_size=5000)
    )(grid)
    log_p = np.asarray(log_p, np.float64)
    volume = d * np.log(axis[1] - axis[0]) + float(jnp.sum(q["log_scale"]))
    # Where the precision is lost in the far tail, so is the mass.
    return float(logsumexp(np.where(np.isfinite(log_p), log_p, -np.inf))) + volume


def ridge() -> Model:
    rng = np.random.default_rng(0)
    n, d = 50, 8
    x = jnp.asarray(rng.normal(size=(n, d)), jnp.float32)
    y = jnp.asarray(x @ (0.7 * rng.normal(size=d)) + rng.normal(size=n), jnp.float32)

    def full(z: Array, w: Array) -> Array:
        log_p = jnp.sum(norm.logpdf(z)) + jnp.sum(norm.logpdf(w, 0.0, jnp.exp(z[1])))
        return log_p + jnp.sum(norm.logpdf(y, x @ w, jnp.exp(z[0])))

    collapsed, conditional = vj.targets.collapse_gaussian(full, jnp.zeros(d))
    q = at_mode(collapsed, jnp.zeros(2))
    given = conditional(q["loc"])
    half = jnp.linalg.inv(given.root)
    b = normal(given.mean, half.T @ half)
    name = "ridge regression, coefficients by collapse_gaussian"
    return Model(
        name,
        full,
        collapsed,
        {"z": q, "b": b},
        NORMAL.dist,
        False,
        lambda: quadrature(collapsed, q, 61),
        (x, y),
    )


def mixture() -> Model:
    rng = np.random.default_rng(1)
    x = jnp.asarray(
        np.concatenate([rng.normal(-1.5, 0.8, 12), rng.normal(1.5, 0.8, 18)]), jnp.float32
    )

    def terms(z: Array, c: Array) -> dict[str, Array]:  # two means, a log-scale, a logit
        log_weights = jax.nn.log_sigmoid(jnp.stack([-z[3], z[3]]))
        return {
            "z": jnp.sum(norm.logpdf(z, PRIOR, 1.0)),
            "x": log_weights[c] + norm.logpdf(x, z[:2][c], jnp.exp(z[2])),
        }

    full = lambda z, c: sum(jnp.sum(f) for f in terms(z, c).values())  # noqa: E731
    collapsed, posterior = vj.targets.enumerate(terms, 2, plate=(len(x),))
    q = at_mode(collapsed, PRIOR)
    b = {"logits": softened(posterior(q["loc"]).log_probs)}
    exact = lambda: quadrature(collapsed, q, 25)  # noqa: E731
    name = "mixture of Gaussians, assignments by enumerate"
    return Model(name, full, collapsed, {"z": q, "b": b}, lambda b: Labels(**b), True, exact, x)


PRIOR = jnp.array([-1.0, 1.0, 0.0, 0.0])
STAY = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
START = jnp.log(jnp.array([0.7, 0.3]))
DECAY, NOISE, SEEN = jnp.array([0.95, 0.5]), jnp.array([0.4, 1.5]), 0.4
SPREAD = 0.6


def path(likelihood: Array, c: Array) -> Array:
    """Return log p(c) + Σₜ likelihood[t, cₜ]."""
    moves = START[c[0]] + jnp.sum(STAY[c[:-1], c[1:]])
    return moves + jnp.sum(jnp.take_along_axis(likelihood, c[:, None], 1))


def switching() -> Model:
    rng = np.random.default_rng(2)
    steps = 10
    state, at, path_of, x = 0, 0.0, [], []
    for _ in range(steps):
        state = int(rng.random() < np.exp(STAY[state, 1]))
        at = float(DECAY[state]) * at + float(NOISE[state]) * rng.normal()
        path_of.append(state)
        x.append(at + SEEN * rng.normal())
    x = jnp.asarray(x, jnp.float32)

    def likelihood(z: Array) -> Array:  # from the state before, 0 at first
        before = jnp.concatenate([jnp.zeros(1), z[:-1]])
        return norm.logpdf(z[:, None], before[:, None] * DECAY[None], NOISE[None])

    seen = lambda z: jnp.sum(norm.logpdf(x, z, SEEN))  # noqa: E731
    full = lambda z, c: path(likelihood(z), c) + seen(z)  # noqa: E731
    collapsed = lambda z: vj.sequences.hmm(START, STAY, likelihood(z)).log_evidence + seen(z)  # noqa: E731
    q = at_mode(collapsed, x)
    b = {
        "logits": softened(
            vj.sequences.hmm(START, STAY, likelihood(q["loc"])).posterior.log_marginals()
        )
    }

    def exact() -> float:
        """Sum the Kalman filter's evidence over all paths of the regime."""

        def evidence(c: Array) -> Array:
            model = vj.sequences.LinearGaussian(
                jnp.zeros(1), jnp.square(NOISE[c[0]])[None, None], DECAY[c[1:], None, None],
                jnp.square(NOISE[c[1:]])[:, None, None], jnp.eye(1), SEEN**2 * jnp.eye(1),
            )  # fmt: skip
            return vj.sequences.kalman_filter(model, x[:, None]).log_evidence + path(
                jnp.zeros((steps, 2)), c
            )

        paths = jnp.asarray(list(itertools.product([0, 1], repeat=steps)))
        return float(logsumexp(jax.jit(jax.vmap(evidence))(paths)))

    name = "switching linear dynamics, regimes by hmm given the states"
    return Model(name, full, collapsed, {"z": q, "b": b}, lambda b: Labels(**b), True, exact, x)


def counts() -> Model:
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.poisson(rng.gamma(2.0, 1 / 0.7, 12)), jnp.float32)

    def terms(z: Array, rate: Array) -> Array:
        a, b = jnp.exp(z[0]), jnp.exp(z[1])
        return log_gamma(rate, a, b) + x * jnp.log(rate) - rate - gammaln(x + 1)

    def conditional(z: Array) -> Any:
        return vj.targets.conjugate.gamma_poisson(jnp.exp(z[0]), jnp.exp(z[1]), total=x, exposure=1)

    prior = lambda z: jnp.sum(norm.logpdf(z))  # noqa: E731
    each = vj.targets.collapse(terms, conditional)
    collapsed = lambda z: prior(z) + jnp.sum(each(z))  # noqa: E731
    q = at_mode(collapsed, jnp.zeros(2))
    given = conditional(q["loc"])
    wide = WIDER**2  # of the variance; a and b over one number keep the mean
    b = {"log_a": jnp.log(given.a / wide), "log_b": jnp.log(given.b / wide)}
    exact = lambda: quadrature(collapsed, q, 61)  # noqa: E731
    name = "Gamma-Poisson counts, rates by collapse"
    full = lambda z, rate: prior(z) + jnp.sum(terms(z, rate))  # noqa: E731
    return Model(name, full, collapsed, {"z": q, "b": b}, lambda b: Rates(**b), False, exact, x)


def hidden() -> Model:
    rng = np.random.default_rng(4)
    c = np.repeat([0, 1, 0], [5, 6, 5])
    x = jnp.asarray(rng.normal(np.array([-1.2, 1.2])[c], SPREAD), jnp.float32)
    likelihood = lambda z: norm.logpdf(x[:, None], z[None], SPREAD)  # noqa: E731
    prior = lambda z: jnp.sum(norm.logpdf(z, PRIOR[:2], 1.0))  # noqa: E731
    full = lambda z, c: prior(z) + path(likelihood(z), c)  # noqa: E731
    collapsed = lambda z: prior(z) + vj.sequences.hmm(START, STAY, likelihood(z)).log_evidence  # noqa: E731
    q = at_mode(collapsed, PRIOR[:2])
    b = {
        "logits": softened(
            vj.sequences.hmm(START, STAY, likelihood(q["loc"])).posterior.log_marginals()
        )
    }
    exact = lambda: quadrature(collapsed, q, 61)  # noqa: E731
    name = "hidden Markov model, the chain by hmm"
    return Model(name, full, collapsed, {"z": q, "b": b}, lambda b: Labels(**b), True, exact, x)


MODELS = {
    "ridge": ridge,
    "mixture": mixture,
    "switching": switching,
    "counts": counts,
    "hidden": hidden,
}
