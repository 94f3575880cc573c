"""Semi-implicit q: both sides of its ELBO, and exact weights and gradients on the extended space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.particles.annealing import grid, log_normal, value_and_slopes
from tests.statistics import assert_mean
from vijax import gradients
from vijax import particles as P

PARAMS = (0.4, 0.2, 0.9)  # location and log scale of the mixing, slope of the conditional


def log_joint(z):
    return norm.logpdf(z, 0.5, 2.0) - 1.0  # log p(x) = -1


def semi(params, make=P.semi_implicit, num_mixing=1):
    """q(z) = ∫ N(z; a ψ + sin ψ, .7²) N(ψ; m, s²), with parameters on both sides."""
    loc, log_scale, slope = params
    conditional = lambda psi: Gauss(slope * psi + jnp.sin(psi), jnp.log(0.7).astype(jnp.float32))
    return make(log_joint, conditional, Gauss(loc, log_scale), num_mixing=num_mixing)


def elbo_by_quadrature(params):
    """The lower bound at K = 1, a sum over a grid of both ψ and the noise of z."""
    loc, log_scale, slope = params
    noise, mass = grid()
    psi = [loc + np.exp(log_scale) * e for e in noise[:2]]
    means = [slope * p + np.sin(p) for p in psi]
    z = means[0] + 0.7 * noise[2]
    log_q = np.logaddexp(*(log_normal(z, m, 0.7) for m in means)) - np.log(2.0)
    return np.sum(mass * (log_normal(z, 0.5, 2.0) - 1.0 - log_q))


@pytest.fixture(scope="module")
def exact():
    return value_and_slopes(elbo_by_quadrature, PARAMS)


@pytest.mark.parametrize(
    ("name", "detects"),
    [
        pytest.param("reparam", 0.08, marks=pytest.mark.slow),
        ("dreg", 0.15),
        pytest.param("vimco", 0.3, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_quadrature(key, exact, name, detects):
    objective = getattr(gradients, name)(vj.bounds.elbo)

    def value(params, key):
        return objective(key, *semi(params)[:2], num_samples=4).value

    run = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))
    values, slopes = run(tuple(jnp.float32(p) for p in PARAMS), jax.random.split(key, 5000))
    assert_mean({"value": values}, {"value": exact[0]}, detects=0.05)
    assert_mean(slopes, exact[1], detects=detects)


def test_a_density_of_z_alone_is_found(key, exact):
    """The control: log q(z | ψ₀) for log q, whose slope is another."""

    def value(params, key):
        made, log_q = semi(params, num_mixing=0).q.sample_and_log_prob(seed=key)
        return log_joint(made["z"]) - log_q

    run = jax.jit(jax.vmap(jax.grad(value), (None, 0)))
    slopes = run(tuple(jnp.float32(p) for p in PARAMS), jax.random.split(key, 5000))
    with pytest.raises(AssertionError, match="is biased"):
        assert_mean(slopes, exact[1], detects=1.0)


def test_both_sides_close_on_the_elbo(key):
    """q(z) = N(0, 4) as a mixture, the posterior of a log joint with log p(x) = 0, so that both go to 0."""

    @jax.jit
    def run(key):
        given = lambda e: Gauss(jnp.sqrt(3.0) * e, 0.0)
        rows = []
        for k in (1, 4, 32):
            both = []
            for make in (P.semi_implicit, P.semi_implicit_upper):
                made = make(
                    lambda z: norm.logpdf(z, 0.0, 2.0), given, Gauss(0.0, 0.0), num_mixing=k
                )
                draw = lambda key, made=made: made.q.sample_and_log_prob(seed=key)
                e, log_q = jax.vmap(draw)(jax.random.split(key, 10_000))
                both.append(jax.vmap(made.log_joint)(e) - log_q)
            rows.append(both)
        return rows

    rows = run(key)
    low, high = (np.array([np.mean(row[side]) for row in rows]) for side in (0, 1))
    assert np.all(np.diff(low) > 0.05)
    assert np.all(np.diff(high) < -0.05)
    assert low[-1] < 0 < high[-1]
    assert -0.1 < low[-1]
    assert high[-1] < 0.15
    # Of the lower side the weights are exact, E w = p(x); of the upper side they are too large.
    for lower, upper in rows:
        assert_mean(jnp.exp(lower), np.ones(()), detects=0.5)
        assert np.mean(np.exp(upper)) > 1.1


def traced(bound, made, make=gradients.reparam, num_samples=4):
    run = lambda key: make(bound)(key, made.log_joint, made.q, num_samples=num_samples)
    return jax.eval_shape(run, jax.random.key(0))


def test_which_bounds_take_which_side():
    lower, upper = semi(PARAMS), semi(PARAMS, P.semi_implicit_upper)
    traced(vj.bounds.iwae, lower)
    traced(vj.bounds.elbo, upper)
    with pytest.raises(
        ValueError, match=r"did not make z.*must be linear in log_w: use bounds\.elbo"
    ):
        traced(vj.bounds.iwae, upper)


def test_batches_minibatches_and_factors(key):
    """A batch of three with a mixing of two numbers each; log joints that are minibatches, or dicts of factors."""
    mixing = Gauss(jnp.zeros((3, 2)), jnp.zeros((3, 2)), event=1)
    conditional = lambda psi: Gauss(psi.sum(-1), jnp.zeros(3))
    made = P.semi_implicit(lambda z: -0.5 * z**2, conditional, mixing, num_mixing=4)
    found = traced(vj.bounds.iwae, made, gradients.dreg, num_samples=6)
    assert found.value.shape == (3,)
    assert found.draws.z["mixing"].shape == (6, 3, 5, 2)
    factors = lambda z: {"prior": -0.25 * z**2, "rest": -0.25 * z**2}
    again = P.semi_implicit(factors, conditional, mixing, num_mixing=4)

    @jax.jit
    def both(key):
        drawn = made.q.sample_and_log_prob(seed=key)[0]
        return made.log_joint(drawn), sum(again.log_joint(drawn).values()), made.latents(drawn)

    one, two, z = both(key)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert z.shape == (3,)
    batch = vj.targets.minibatch(norm.logpdf, lambda z: -((z - jnp.ones(2)) ** 2), num_data=4)
    part = P.semi_implicit(batch, lambda psi: Gauss(psi, 0.0), Gauss(0.0, 0.0), num_mixing=2)
    with pytest.raises(ValueError, match="minibatch.*must be linear"):
        traced(vj.bounds.iwae, part)


def test_arguments(key, unchecked):
    with pytest.raises(ValueError, match="num_mixing must be at least 1, got 0"):
        semi(PARAMS, P.semi_implicit_upper, num_mixing=0)
    with pytest.raises(TypeError, match="conditional must be a function"):
        P.semi_implicit(log_joint, Gauss(0.0, 0.0), Gauss(0.0, 0.0), num_mixing=1)
    apart = P.semi_implicit(
        log_joint,
        lambda psi: Gauss(psi.sum(), 0.0),
        Gauss(jnp.zeros(2), jnp.zeros(2)),
        num_mixing=1,
    )
    with pytest.raises(ValueError, match=r"must have one batch shape, got \(2,\) and \(\)"):
        apart.q.sample_and_log_prob(seed=key)
