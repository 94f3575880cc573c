"""Ways to fit a posterior over ℝᵈ, vijax's and the peers', in one form: a state, steps, and draws of q.

All see the same log-density of the same free numbers, from the same start; what a fit does before its first step,
such as a few natural gradients of another family, is on its clock. Adam's rate falls to 0 as a cosine does.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.scipy.stats import norm

import vijax as vj
from benchmarks._peers import peer

LogDensity = Callable[[Array], Array]
MEAN_FIELD, FULL_RANK, FLOW, PATH, MATCH = "mean-field", "full-rank", "flow", "Pathfinder", "BaM"


class Fit(NamedTuple):
    """One way to fit.

    Fields:
        family: whose own best it is held to.
        start: key -> state; whatever it takes is part of the fit.
        advance: (state, number of steps, rate, total steps) -> state; jitted by whoever runs it.
        draw: (key, state, n) -> (y [n, d], log q [n]).
        settings: the (rate, total steps) to try; the best in hindsight counts, for vijax and peers alike.
    """

    family: str
    start: Callable[[Array], Any]
    advance: Callable[[Any, Array, Array, Array], Any]
    draw: Callable[[Array, Any, int], tuple[Array, Array]]
    settings: tuple[tuple[float, int], ...]


GAUSSIAN = tuple((rate, steps) for steps in (2_000, 20_000) for rate in (0.1, 0.01))
FLOWING = tuple((rate, steps) for steps in (2_000, 20_000) for rate in (0.01, 0.001))
SHARED = (MEAN_FIELD, FULL_RANK, FLOW, PATH)  # with the peers
RICH = (FULL_RANK, FLOW)
ONCE = ((0.0, 1),)
NATURAL_DRAWS, FEW = 64, 16


def adam(rate: Array, total: Array) -> optax.GradientTransformation:
    def schedule(count: Array) -> Array:
        return rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / total, 1.0)))

    return optax.adam(schedule)


def loop(step: Callable[[Any], Any], state: Any, steps: Array) -> Any:
    return jax.lax.fori_loop(0, steps, lambda _, s: step(s), state)


def family_draw(
    family: vj.Family, params: Callable[[Any], Any]
) -> Callable[..., tuple[Array, Array]]:
    def draw(key: Array, state: Any, n: int) -> tuple[Array, Array]:
        return family.dist(params(state)).sample_and_log_prob(seed=key, sample_shape=(n,))

    return draw


# --- vijax


def stochastic(
    kind: str,
    family: vj.Family,
    log_density: LogDensity,
    y: Array,
    estimator: Callable[..., Any] = vj.gradients.dreg,
    num_samples: int = 8,
    settings: tuple[tuple[float, int], ...] = GAUSSIAN,
) -> Fit:
    """Sticking the landing, `dreg(elbo)`, with Adam; or another estimator of the ELBO."""
    objective = estimator(vj.bounds.elbo)

    def start(key: Array) -> Any:
        of_init, key = jax.random.split(key)
        params = family.init(of_init, y)
        return key, params, adam(jnp.zeros(()), jnp.ones(())).init(params)

    def advance(state: Any, steps: Array, rate: Array, total: Array) -> Any:
        optimizer = adam(rate, total)

        def step(state: Any) -> Any:
            key, params, opt = state
            key, of_step = jax.random.split(key)

            def down(p):
                return -objective(
                    of_step, log_density, family.dist(p), num_samples=num_samples
                ).value

            updates, opt = optimizer.update(jax.grad(down)(params), opt)
            return key, optax.apply_updates(params, updates), opt

        return loop(step, state, steps)

    return Fit(kind, start, advance, family_draw(family, lambda s: s[1]), settings)


def update(kind: str, rule: vj.types.Rule, family: vj.Family, y: Array, steps: int) -> Fit:
    """A rule of vijax.updates at its own rate."""

    def start(key: Array) -> Any:
        of_init, key = jax.random.split(key)
        return key, rule.init(family.init(of_init, y))

    def advance(state: Any, steps: Array, rate: Array, total: Array) -> Any:
        def step(state: Any) -> Any:
            key, inner = state
            key, of_step = jax.random.split(key)
            return key, rule.step(of_step, inner)[0]

        return loop(step, state, steps)

    return Fit(
        kind, start, advance, family_draw(family, lambda s: rule.params(s[1])), ((0.0, steps),)
    )


def natural(
    kind: str,
    family: vj.Family,
    log_density: LogDensity,
    y: Array,
    num_samples: int = NATURAL_DRAWS,
) -> Fit:
    rule = vj.updates.natural_gradient(log_density, num_samples=num_samples)
    return update(kind, rule, family, y, 1000)


def newton(log_density: LogDensity, y: Array, num_samples: int = NATURAL_DRAWS) -> Fit:
    """Mean-field natural gradients whose mean moves in all latents together, by the whole Hessian."""
    rule = vj.updates.natural_gradient(
        log_density, num_samples=num_samples, curvature=vj.updates.hessian
    )
    return update(MEAN_FIELD, rule, vj.families.mean_field(), y, 1000)


def match(log_density: LogDensity, y: Array, family: Any = None) -> Fit:
    rule = vj.updates.batch_and_match(log_density, num_samples=64)
    return update(MATCH, rule, family or vj.families.full_rank(), y, 300)


def flow(make: Any, estimator: Any, log_density: LogDensity, y: Array) -> Fit:
    """A flow that starts as the full-rank Gaussian which natural gradients find."""
    base = vj.families.full_rank()
    gaussian = natural(FULL_RANK, base, log_density, y)
    bent = stochastic(FLOW, make(base=base), log_density, y, estimator, settings=FLOWING)
    rule = vj.updates.natural_gradient(log_density, num_samples=NATURAL_DRAWS)

    def start(key: Array) -> Any:
        key, params, opt = bent.start(key)
        found = gaussian.advance(gaussian.start(key), jnp.asarray(60), jnp.zeros(()), jnp.ones(()))
        return key, params | {"base": rule.params(found[1])}, opt

    return bent._replace(start=start)


def pathfinder(log_density: LogDensity, y: Array) -> Fit:
    """The climb is the fit; nothing is left to advance."""
    find = lambda key: vj.solvers.pathfinder(key, log_density, y, num_samples=200, steps=100).q  # noqa: E731
    draw = lambda key, q, n: q.sample_and_log_prob(seed=key, sample_shape=(n,))  # noqa: E731
    return Fit(PATH, find, lambda state, *_: state, draw, ONCE)


# --- NumPyro


def numpyro(
    kind: str, guide_name: str, log_density: LogDensity, y: Array, particles: int = 1
) -> Fit:
    """An AutoGuide of one improper site with the log-density as a factor; it starts from 0, which is `y` here."""
    numpyro, infer = peer("numpyro"), peer("numpyro.infer")
    guides, dist = peer("numpyro.infer.autoguide"), numpyro.distributions

    def model() -> None:
        latents = numpyro.sample(
            "y", dist.ImproperUniform(dist.constraints.real_vector, (), (y.size,))
        )
        numpyro.factor("log_p", log_density(latents + y))

    guide = getattr(guides, guide_name)(
        model, init_loc_fn=infer.init_to_value(values={"y": jnp.zeros_like(y)})
    )

    def svi(rate: Any, total: Any) -> Any:
        return infer.SVI(model, guide, adam(rate, total), infer.Trace_ELBO(num_particles=particles))

    ready = svi(0.0, 1.0)
    first = ready.init(jax.random.key(0))  # eagerly, for it builds the guide

    def advance(state: Any, steps: Array, rate: Array, total: Array) -> Any:
        inference = svi(rate, total)
        inference.constrain_fn = ready.constrain_fn
        return loop(lambda s: inference.update(s)[0], state, steps)

    def draw(key: Array, state: Any, n: int) -> tuple[Array, Array]:
        params = ready.get_params(state)
        if guide_name == "AutoNormal":  # which keeps a distribution for each site
            q = dist.Normal(params["y_auto_loc"], params["y_auto_scale"]).to_event(1)
        else:
            q = guide.get_posterior(params)
        z, intermediates = (
            q.sample_with_intermediates(key, (n,))
            if hasattr(q, "transforms")
            else (q.sample(key, (n,)), None)
        )
        return z + y, q.log_prob(z, intermediates) if intermediates is not None else q.log_prob(z)

    settings = FLOWING if kind == FLOW else GAUSSIAN
    return Fit(kind, lambda key: first._replace(rng_key=key), advance, draw, settings)


# --- BlackJAX


def blackjax(kind: str, name: str, log_density: LogDensity, y: Array, num_samples: int = 8) -> Fit:
    """BlackJAX's own sticking the landing; it starts from 0, which is `y` here."""
    module = getattr(peer("blackjax.vi"), name)
    shifted = lambda at: log_density(at + y)  # noqa: E731

    def start(key: Array) -> Any:
        return key, module.init(jnp.zeros_like(y), adam(jnp.zeros(()), jnp.ones(())))

    def advance(state: Any, steps: Array, rate: Array, total: Array) -> Any:
        optimizer = adam(rate, total)

        def step(state: Any) -> Any:
            key, inner = state
            key, of_step = jax.random.split(key)
            return key, module.step(of_step, inner, shifted, optimizer, num_samples)[0]

        return loop(step, state, steps)

    def draw(key: Array, state: Any, n: int) -> tuple[Array, Array]:
        inner = state[1]
        z = module.sample(key, inner, n)
        if name == "meanfield_vi":
            log_q = jnp.sum(norm.logpdf(z, inner.mu, jnp.exp(inner.rho)), -1)
        else:
            log_q = jax.vmap(module.generate_fullrank_logdensity(inner.mu, inner.chol_params))(z)
        return z + y, log_q

    return Fit(kind, start, advance, draw, GAUSSIAN)


def blackjax_pathfinder(log_density: LogDensity, y: Array) -> Fit:
    module = peer("blackjax.vi.pathfinder")

    start = lambda key: module.approximate(key, log_density, y, 200, maxiter=100)[0]  # noqa: E731
    draw = lambda key, state, n: module.sample(key, state, n)  # noqa: E731
    return Fit(PATH, start, lambda state, *_: state, draw, ONCE)


def contenders(log_density: LogDensity, y: Array) -> dict[str, Callable[[], Fit]]:
    """Every way to fit by name; a peer that is not installed raises Missing when its turn comes."""
    partial, families, gradients = functools.partial, vj.families, vj.gradients
    laplace = families.laplace(log_density)
    return {
        "vijax mean-field, natural gradient": partial(
            natural, MEAN_FIELD, families.mean_field(), log_density, y
        ),
        "vijax mean-field, natural gradient, hessian, 16 draws": partial(
            newton, log_density, y, FEW
        ),
        "vijax mean-field, natural gradient, hessian": partial(newton, log_density, y),
        "vijax mean-field, dreg(elbo), 1 draw": partial(
            stochastic, MEAN_FIELD, families.mean_field(), log_density, y, num_samples=1
        ),
        "vijax mean-field, dreg(elbo)": partial(
            stochastic, MEAN_FIELD, families.mean_field(), log_density, y
        ),
        "numpyro AutoNormal": partial(numpyro, MEAN_FIELD, "AutoNormal", log_density, y),
        "numpyro AutoNormal, 8 particles": partial(
            numpyro, MEAN_FIELD, "AutoNormal", log_density, y, 8
        ),
        "blackjax meanfield_vi": partial(blackjax, MEAN_FIELD, "meanfield_vi", log_density, y),
        "vijax full-rank, natural gradient": partial(
            natural, FULL_RANK, families.full_rank(), log_density, y
        ),
        "vijax full-rank, natural gradient, 16 draws": partial(
            natural, FULL_RANK, families.full_rank(), log_density, y, FEW
        ),
        "vijax full-rank, natural gradient, 16 draws, from Laplace": partial(
            natural, FULL_RANK, laplace, log_density, y, FEW
        ),
        "vijax full-rank, dreg(elbo), 1 draw": partial(
            stochastic, FULL_RANK, families.full_rank(), log_density, y, num_samples=1
        ),
        "vijax full-rank, dreg(elbo)": partial(
            stochastic, FULL_RANK, families.full_rank(), log_density, y
        ),
        "numpyro AutoMultivariateNormal": partial(
            numpyro, FULL_RANK, "AutoMultivariateNormal", log_density, y
        ),
        "numpyro AutoMultivariateNormal, 8 particles": partial(
            numpyro, FULL_RANK, "AutoMultivariateNormal", log_density, y, 8
        ),
        "blackjax fullrank_vi": partial(blackjax, FULL_RANK, "fullrank_vi", log_density, y),
        "vijax inverse_autoregressive, reparam(elbo)": partial(
            flow, families.inverse_autoregressive, gradients.reparam, log_density, y
        ),
        "vijax inverse_autoregressive, dreg(elbo)": partial(
            flow, families.inverse_autoregressive, gradients.dreg, log_density, y
        ),
        "vijax spline_coupling, reparam(elbo)": partial(
            flow, families.spline_coupling, gradients.reparam, log_density, y
        ),
        "numpyro AutoIAFNormal": partial(numpyro, FLOW, "AutoIAFNormal", log_density, y),
        "numpyro AutoBNAFNormal": partial(numpyro, FLOW, "AutoBNAFNormal", log_density, y),
        "vijax pathfinder": partial(pathfinder, log_density, y),
        "blackjax pathfinder": partial(blackjax_pathfinder, log_density, y),
        "vijax batch_and_match": partial(match, log_density, y),
        "vijax batch_and_match, from Laplace": partial(match, log_density, y, laplace),
    }
