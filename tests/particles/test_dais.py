"""Differentiable annealing: bounds that tighten, and gradients against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles
from tests.bare import Gauss
from tests.particles.annealing import (
    grid,
    humps,
    log_normal,
    standard,
    two_levels,
    value_and_slopes,
)
from tests.statistics import assert_mean
from vijax import gradients
from vijax import particles as P

LINE = (0.3, -0.2, -0.5)  # loc and log scale of q, log step size
X = 1.3


def pair(params, betas=(0.0, 0.4, 1.0)):
    """DAIS of z ~ N(0, 1), x | z ~ N(z², 1): two temperatures, γ = .5."""
    loc, log_scale, log_step = params
    log_joint = lambda z: norm.logpdf(z) + norm.logpdf(X, 0.5 * z**2, 1.0)
    return P.dais(
        log_joint,
        Gauss(loc, log_scale),
        partition=jnp.asarray(betas),
        step_size=jnp.exp(log_step),
        persistence=0.5,
    )


def elbo_by_quadrature(params):
    """The ELBO of the pair by hand, a sum over a grid of z₀ and both momenta."""
    loc, log_scale, log_step = params
    scale, step = np.exp(log_scale), np.exp(log_step)
    noise, mass = grid()
    z, p = loc + scale * noise[0], noise[1]
    log_w = -log_normal(z, loc, scale)
    for beta, fresh in ((0.4, noise[2]), (1.0, 0.0)):

        def slope(z, beta=beta):
            return (1 - beta) * (loc - z) / scale**2 + beta * (-z + z * (X - 0.5 * z**2))

        half = p + 0.5 * step * slope(z)
        z = z + step * half
        end = half + 0.5 * step * slope(z)
        log_w = log_w + 0.5 * p**2 - 0.5 * end**2
        p = 0.5 * end + np.sqrt(0.75) * fresh
    return np.sum(mass * (log_w + log_normal(z, 0.0, 1.0) + log_normal(X, 0.5 * z**2, 1.0)))


@pytest.fixture(scope="module")
def exact():
    return value_and_slopes(elbo_by_quadrature, LINE)


@pytest.mark.parametrize(
    ("name", "detects"),
    [
        ("reparam", 0.2),
        pytest.param("dreg", 0.2, marks=pytest.mark.slow),
        pytest.param("vimco", 0.4, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_quadrature(key, exact, name, detects):
    """Of the location and scale of q, and of the step size, which is the model's to an estimator."""
    objective = getattr(gradients, name)(vj.bounds.elbo)

    def value(params, key):
        return objective(key, *pair(params)[:2], num_samples=4).value

    keys = jax.random.split(key, 5000)
    run = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))
    values, slopes = run(tuple(jnp.float32(p) for p in LINE), keys)
    assert_mean({"value": values}, {"value": exact[0]}, detects=0.1)
    assert_mean(slopes, exact[1], detects=detects)


@pytest.mark.slow
def test_a_forgotten_derivative_is_found(key, exact):
    """The control: slopes of the log-weights with log q stopped in the path are not those of the bound."""

    def value(params, key):
        log_joint, q, _ = pair(params)
        e, log_q = q.sample_and_log_prob(seed=key)
        return log_joint(jax.lax.stop_gradient(e)) - log_q

    run = jax.jit(jax.vmap(jax.grad(value), (None, 0)))
    slopes = run(tuple(jnp.float32(p) for p in LINE), jax.random.split(key, 5000))
    with pytest.raises(AssertionError, match="is biased"):
        assert_mean(slopes, exact[1], detects=1.0)


@jax.jit
def tightening(key):
    """Return ELBOs and mean weights of more and more steps, of the wide Gaussian for humps at ±2, of noise in common."""
    q = Gauss(0.0, 0.5 * np.log(5.0).astype(np.float32))

    def of(num_steps):
        made = P.dais(
            humps(2.0), q, partition=P.linear_partition(num_steps), step_size=0.5, persistence=0.9
        )
        log_w = vj.draws.weigh(key, made.log_joint, made.q, num_samples=20_000).log_w
        return jnp.mean(log_w), jnp.std(log_w) / 20_000**0.5, jnp.mean(jnp.exp(log_w))

    plain = vj.draws.weigh(key, humps(2.0), q, num_samples=20_000).log_w
    return jnp.mean(plain), [of(n) for n in (2, 4, 8, 16)]


@pytest.mark.slow
def test_bounds_tighten_with_every_doubling_on_two_humps(key):
    """From the ELBO of one Gaussian, -KL of the table, up to nearly 0, the truth; weights keep their mean 1."""
    plain, rows = tightening(key)
    known = -oracles.least_divergence_from_two_humps(2.0)
    np.testing.assert_allclose(plain, known, atol=0.03)
    values = [float(plain)] + [float(value) for value, _, _ in rows]
    assert values == sorted(values), values
    assert values[-1] > 0.5 * known
    for value, error, mean in rows:
        assert value < 4 * error
        np.testing.assert_allclose(mean, 1.0, atol=0.06)


def test_a_batch_of_dicts_under_a_bound_that_is_not_linear():
    """dreg(iwae) asks for evidence that members are apart, and that supports stay, and finds it."""
    q = standard({"top": jnp.zeros(3), "low": jnp.zeros(3)})
    made = P.dais(two_levels(jnp.ones(3)), q, partition=P.linear_partition(4), step_size=0.3)

    def run(key):
        dreg = gradients.dreg(vj.bounds.iwae)
        found = dreg(key, made.log_joint, made.q, num_samples=5)
        return found.value, jax.vmap(made.latents)(found.draws.z)

    value, z = jax.eval_shape(run, jax.random.key(0))
    assert value.shape == (3,)
    assert z["top"].shape == (5, 3)


def test_arguments():
    how = {"partition": [0.0, 1.0], "step_size": 0.1}
    with pytest.raises(ValueError, match=r"persistence must be in \[0, 1\), got 1"):
        P.dais(norm.logpdf, Gauss(0.0, 0.0), persistence=1.0, **how)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        P.dais(norm.logpdf, Gauss(0.0, 0.0), num_steps=0, **how)
    assert isinstance(P.dais(norm.logpdf, Gauss(0.0, 0.0), **how), P.Extended)
