"""A1: a support that moves with q's parameters, where the mean of q's score is not zero."""

from functools import partial
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from tests.faults.judging import (
    G,
    Own,
    assert_refused,
    assert_right_or_refused,
    case,
    parabola,
    refusal,
)
from tests.marks import some

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")
tb, td, adapt = tfp.bijectors, tfp.distributions, vj.families.adapt


class Moving(NamedTuple):
    """q(parameter), the parameter, and the derivative of the ELBO in it."""

    build: Any
    parameter: float
    truth: float


def shifted_gamma(a):
    return distrax.Transformed(distrax.Gamma(1.0, 1.0), distrax.ScalarAffine(a, 1.0))


def shifted_exponential(a):
    return adapt(tb.Shift(a)(td.Exponential(jnp.float64(1.0))))


def scaled_beta(b):
    return distrax.Transformed(distrax.Beta(2.0, 1.0), distrax.ScalarAffine(0.0, b))


def pareto(p):
    return adapt(td.GeneralizedPareto(p, 1.0, 0.1))


def uniform(guard, b):
    return Own(b, lambda b, key: b * jax.random.uniform(key), guard)


GUARDS = {
    "a finite floor": lambda b, z: jnp.where((z >= 0) & (z <= b), -jnp.log(b), -1e30),
    "0 * z": lambda b, z: -jnp.log(b) + 0 * z,
    "sign": lambda b, z: -jnp.log(b) + 50 * (jnp.sign(b - z) - 1),
    "a logarithm of max": lambda b, z: jnp.log(jnp.maximum(((z >= 0) & (z <= b)) / b, 1e-30)),
}


def cut_exponential(b):
    """An exponential of rate 1 cut at b, whose density is not guarded."""
    draw = lambda b, key: -jnp.log1p(jax.random.uniform(key) * jnp.expm1(-b))
    return Own(b, draw, lambda b, z: -z - jnp.log(-jnp.expm1(-b)))


def cut_exponential_truth(b, step=1e-4, points=200_000):
    def elbo(b):
        z = -np.log1p((np.arange(points) + 0.5) / points * np.expm1(-b))
        return np.mean(-0.25 * (z - 1) ** 2 + z) + np.log(-np.expm1(-b))

    return (elbo(b + step) - elbo(b - step)) / (2 * step)


# E (z - 1)² and the entropy in closed form, differentiated.
MOVING = {
    "a + Gamma(1, 1)": Moving(shifted_gamma, 0.2, -0.5 * 0.2),
    "Shift(a)(Exponential)": Moving(shifted_exponential, 0.2, -0.5 * 0.2),
    "b * Beta(2, 1)": Moving(scaled_beta, 1.5, 1 / 1.5 - 0.25 * (1.5 - 4 / 3)),
    "GeneralizedPareto(p, 1, .1)": Moving(pareto, 0.2, -0.5 * (0.2 + 1 / 0.9 - 1)),
    "exponential cut at b": Moving(cut_exponential, 1.4, cut_exponential_truth(1.4)),
} | {
    f"uniform on [0, b] with {name}": Moving(
        partial(uniform, guard), 1.2, 1 / 1.2 - 0.25 * (2 * 1.2 / 3 - 1)
    )
    for name, guard in GUARDS.items()
}
ESTIMATORS = {
    "reparam": G.reparam(vj.bounds.elbo),
    "dreg": G.dreg(vj.bounds.elbo),
    "split": G.split(model=vj.bounds.elbo, q=vj.bounds.elbo),
    "score": G.score(vj.bounds.elbo),
    "vimco": G.vimco(vj.bounds.elbo),
    "auto": G.auto(vj.bounds.elbo),
}
# VarGrad's mean gradient is minus the ELBO's; both take any q that has a density.
HELD = {"fixed": G.fixed(vj.bounds.log_variance), "wake": G.wake(vj.bounds.iwae)}
PARETO = (
    "GeneralizedPareto(p, 1, .1)"  # its sampler compares, so that reparam asks for a declaration
)
FAST = {
    *((q, e) for q in ("exponential cut at b", "uniform on [0, b] with 0 * z") for e in ESTIMATORS),
    *(
        (q, e)
        for q in ("a + Gamma(1, 1)", "Shift(a)(Exponential)", PARETO)
        for e in ("dreg", "vimco")
    ),
    *((q, "vimco") for q in MOVING if q.startswith("uniform")),
}


def moving():
    for q in MOVING:
        for name in ESTIMATORS:
            yield case(q, name, name=f"{q}, {name}", slow=(q, name) not in FAST)


@pytest.mark.parametrize(("q", "name"), list(moving()))
def test_a_moving_support_is_right_or_refused(q, name):
    build, parameter, truth = MOVING[q]
    assert_right_or_refused(ESTIMATORS[name], parabola, build, parameter, truth, sees=0.1)


@pytest.mark.parametrize("name", list(HELD))
@pytest.mark.parametrize("q", [*MOVING, "of distrax itself"])
def test_held_draws_of_a_moving_support_are_refused(q, name):
    build = MOVING[q].build if q in MOVING else lambda h: distrax.Uniform(0.0, h)

    def value(parameter):
        return HELD[name](jax.random.key(0), parabola, build(parameter), num_samples=2).value

    assert_refused(lambda: jax.eval_shape(jax.grad(value), jnp.float64(1.2)))


# --- no distribution of distrax, NumPyro or TFP whose support is fixed may be refused

FIXED = {
    "Normal": lambda p: distrax.Normal(p, 1.0),
    "Gamma": lambda p: distrax.Gamma(jnp.exp(p), 1.0),
    "Beta": lambda p: distrax.Beta(jnp.exp(p), 2.0),
    "Laplace": lambda p: distrax.Laplace(p, 1.0),
    "Logistic": lambda p: distrax.Logistic(p, 1.0),
    "Gumbel": lambda p: distrax.Gumbel(p, 1.0),
    "log-normal": lambda p: distrax.Transformed(
        distrax.Normal(p, 1.0), distrax.Lambda(jnp.exp, jnp.log)
    ),
    "Dirichlet": lambda p: distrax.Dirichlet(jnp.exp(p) * jnp.ones(3)),
    "von Mises": lambda p: distrax.VonMises(p, 1.0),
    "TFP StudentT": lambda p: adapt(td.StudentT(4.0, p, 1.0)),
    "TFP Cauchy": lambda p: adapt(td.Cauchy(p, 1.0)),
    "TFP HalfNormal": lambda p: adapt(td.HalfNormal(jnp.exp(p))),
    "TFP Kumaraswamy": lambda p: adapt(td.Kumaraswamy(jnp.exp(p), 2.0)),
    "TFP LogNormal": lambda p: adapt(td.LogNormal(p, 1.0)),
    "TFP Weibull": lambda p: adapt(td.Weibull(2.0, jnp.exp(p))),
    "TFP InverseGaussian": lambda p: adapt(td.InverseGaussian(jnp.exp(p), 1.0)),
    "TFP RelaxedBernoulli": lambda p: adapt(td.RelaxedBernoulli(0.5, logits=p)),
    "TFP TruncatedNormal": lambda p: adapt(td.TruncatedNormal(p, 1.0, 0.0, 1.0)),
    "TFP LogitNormal": lambda p: adapt(td.LogitNormal(p, 1.0)),
    "TFP Exponential": lambda p: adapt(td.Exponential(jnp.exp(p))),
    "NumPyro Normal": lambda p: adapt(nd.Normal(p, 1.0)),
    "NumPyro LogNormal": lambda p: adapt(nd.LogNormal(p, 1.0)),
    "NumPyro Gamma": lambda p: adapt(nd.Gamma(jnp.exp(p), 1.0)),
    "NumPyro HalfCauchy": lambda p: adapt(nd.HalfCauchy(jnp.exp(p))),
    "NumPyro Weibull": lambda p: adapt(nd.Weibull(jnp.exp(p), 2.0)),
    "NumPyro TruncatedNormal": lambda p: adapt(nd.TruncatedNormal(p, 1.0, low=0.0, high=1.0)),
}


@pytest.mark.parametrize("name", some(["dreg", "vimco", "fixed"], "dreg", "vimco"))
@pytest.mark.parametrize("q", list(FIXED))
def test_a_fixed_support_is_accepted(q, name):
    """A hidden path is another matter: dreg asks for a declaration, which names no support."""
    objective = (ESTIMATORS | HELD)[name]

    def value(p):
        target = lambda z: jnp.sum(parabola(z))
        return objective(jax.random.key(0), target, FIXED[q](p), num_samples=2).value

    message = refusal(lambda: jax.eval_shape(jax.grad(value), jnp.float64(0.3)))
    assert message is None or "support" not in message, message


# --- a density on an arc that moves, behind functions that jump and have slopes between

TURN = 2 * jnp.pi
WRAPS = {
    "remainder": lambda t: t % 1,
    "arctan2": lambda t: jnp.arctan2(jnp.sin(TURN * t), jnp.cos(TURN * t)) / TURN,
    "angle": lambda t: jnp.angle(jnp.exp(1j * TURN * t)) / TURN,
    "logarithm": lambda t: jnp.log(jnp.exp(1j * TURN * t)).imag / TURN,
}


class Arc:
    """Uniform on [m, m + 1/2) modulo 1."""

    batch_shape = event_shape = ()

    def __init__(self, m, wrap):
        self.m, self.wrap = m, wrap

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.wrap(0.5 * jax.random.uniform(seed, sample_shape) + self.m)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jnp.where((z - self.m) % 1 < 0.5, jnp.log(2.0), -jnp.inf)


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("estimator", [G.score, G.vimco, G.auto])
def test_an_arc_that_moves_is_refused(estimator, name, key):
    def value(m):
        target, q = lambda z: jnp.cos(TURN * z), Arc(m, WRAPS[name])
        return estimator(vj.bounds.iwae)(key, target, q, num_samples=4).value

    # The score is 0 everywhere; the gradient at m = .2 is -1.24.
    with pytest.raises(ValueError, match="fixed_support"):
        jax.eval_shape(jax.grad(value), jnp.array(0.2))
