"""Annealed importance sampling: the evidence in closed form and by quadrature, from below and from above."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Coin, Gauss
from tests.particles.annealing import (
    humps,
    simulated,
    standard,
    two_levels,
    two_levels_evidence,
    unadjusted,
)
from tests.statistics import assert_mean
from vijax import particles as P

DATA = 100


def both_ways(key, transition, num_steps, num_data):
    """Return data of the two-level model, and log-weights from q and from the z that they came from."""

    @jax.jit
    def run(key):
        of_data, of_ais, of_reverse = jax.random.split(key, 3)
        z, x = simulated(of_data, num_data)
        log_joint, q = two_levels(x), standard(jax.tree.map(jnp.zeros_like, z))
        how = {"partition": P.linear_partition(num_steps), "transition": transition}
        made = P.ais(of_ais, log_joint, q, num_samples=50, **how)
        z = jax.tree.map(lambda a: a[None], z)
        return x, made, P.reverse_ais(of_reverse, log_joint, q, z, **how).log_w

    return run(key)


STEP = lambda beta: 1.0 - 0.5 * beta
GOOD, WRONG = P.langevin(step_size=STEP), unadjusted(step_size=STEP)


def test_two_levels_have_their_evidence_and_a_sandwich(key):
    """Budget: 400 temperatures of one Langevin move, 50 chains; evidence within .02 nats, the sandwich within .1."""
    x, made, back = both_ways(key, GOOD, 400, DATA)
    truth = two_levels_evidence(x)
    sandwich = vj.diagnostics.sandwich(made.log_w, back)
    low, high = sandwich.iwae.value, sandwich.eubo.value
    assert abs(np.mean(low - truth)) < 0.02
    assert abs(np.mean(high) - np.mean(low)) < 0.1
    # Weights have the mean p(x), and their reciprocals over data drawn with z the mean 1/p(x).
    assert_mean(jnp.exp(made.log_w - truth[None]).mean(0), np.ones(()), detects=0.1)
    assert_mean(jnp.exp(truth - back[0]), np.ones(()), detects=0.5)
    assert isinstance(made, P.Annealed)
    assert made.acceptance.shape == (400, DATA)
    assert np.mean(made.acceptance) > 0.5


def test_a_transition_without_an_accept_step_is_found(key):
    """The control: its evidence is off by more than what the true one may be."""
    x = jnp.linspace(-2.0, 2.0, 20)

    @jax.jit
    def run(key):
        q = standard({"top": jnp.zeros(20), "low": jnp.zeros(20)})
        how = {"partition": P.linear_partition(100), "transition": WRONG, "num_samples": 50}
        return vj.bounds.iwae(P.ais(key, two_levels(x), q, **how).log_w)

    assert abs(np.mean(run(key) - two_levels_evidence(x))) > 0.04


@pytest.mark.slow
def test_few_temperatures_are_bounds_on_both_sides(key):
    """Mean log-weights are loose from below and from above."""
    x, made, back = both_ways(key, GOOD, 2, DATA)
    truth = two_levels_evidence(x)
    for side in (jnp.mean(truth - made.log_w.mean(0)), jnp.mean(back[0] - truth)):
        assert side > 0.2


def iris(v):
    from tests.targets.test_iris import VALUES, log_joint

    return partial(log_joint, jnp.float32(v)), VALUES[v]["log Z"]


def annealed_irises(key, target, q, partition, step_size, num_samples):
    how = {"partition": partition, "transition": P.hmc(step_size=step_size, num_steps=3)}
    return jax.jit(lambda key: P.ais(key, target, q, num_samples=num_samples, **how))(key)


# Close to the means of the posteriors, and a tenth wider
FITTED = {
    1.0: ([2.1, 2.3, 0.1], [0.72, 0.68, 0.4]),
    25.0: ([4.2, 4.0, 0.4], [1.75, 1.5, 0.62]),
}


@pytest.mark.parametrize("v", [1.0, pytest.param(25.0, marks=pytest.mark.slow)])
def test_the_evidence_of_two_irises(key, v):
    """Within .02 nats of quadrature: 40 temperatures from a wider Gaussian, 3 leapfrog steps, 500 chains."""
    target, truth = iris(v)
    loc, scale = (jnp.asarray(a, jnp.float32) for a in FITTED[v])
    q = Gauss(loc, jnp.log(scale), event=1)
    made = annealed_irises(key, target, q, P.linear_partition(40), 0.6 * scale, 500)
    assert abs(float(vj.bounds.iwae(made.log_w)) - truth) < 0.02
    assert float(vj.diagnostics.evidence(made.log_w).error) < 0.01
    assert np.all(made.acceptance > 0.6)


@pytest.mark.slow
def test_the_evidence_of_two_irises_from_the_prior(key):
    """Within .02 nats: 500 temperatures, 3 leapfrog steps, 4,000 chains."""
    target, truth = iris(1.0)
    q = Gauss(jnp.zeros(3), jnp.zeros(3), event=1)
    made = annealed_irises(key, target, q, P.geometric_partition(500), 0.45, 4000)
    assert abs(float(vj.bounds.iwae(made.log_w)) - truth) < 0.02


def test_impossible_chains_count_for_nothing(key):
    """Half of q is impossible: those that start there stay at -inf, and the evidence is that of the other half."""

    @jax.jit
    def run(key, least):
        return run_line(key, lambda z: jnp.where(z > least, norm.logpdf(z), -jnp.inf)).log_w

    log_w = run(key, 0.0)
    assert 0.4 < float((log_w == -jnp.inf).mean()) < 0.6
    np.testing.assert_allclose(vj.bounds.iwae(log_w), np.log(0.5), atol=0.1)
    assert np.all(run(key, 1e6) == -jnp.inf)


def run_line(key, log_joint, **how):
    how = {
        "partition": [0.0, 0.5, 1.0],
        "transition": P.langevin(step_size=0.5),
        "num_samples": 1000,
    } | how
    return P.ais(key, log_joint, Gauss(0.0, 0.0), **how)


@pytest.mark.slow
def test_steps_found_by_a_pilot(key):
    """The wanted acceptance, .7, within .12 once it has begun, of a posterior ten times as narrow as q."""
    target = lambda z: norm.logpdf(z, 0.0, 0.1)
    partition = P.linear_partition(8)

    @jax.jit
    def run(key):
        of_pilot, of_chains = jax.random.split(key)
        how = {"partition": partition, "transition": P.langevin, "num_samples": 64}
        steps = P.pilot_step_size(of_pilot, target, Gauss(0.0, 0.0), **how)
        move = P.langevin(step_size=steps)
        made = run_line(of_chains, target, transition=move, partition=partition)
        return made.acceptance, steps(0.0), steps(1.0)

    acceptance, first, last = run(key)
    assert np.all(np.abs(acceptance[2:] - 0.7) < 0.12), acceptance
    assert first > 4 * last


def test_partitions():
    for betas in (
        P.linear_partition(7),
        P.sigmoid_partition(7),
        P.geometric_partition(7),
        P.geometric_partition(1),
    ):
        assert betas[0] == 0
        np.testing.assert_allclose(betas[-1], 1.0, rtol=1e-6)
        assert np.all(np.diff(betas) > 0)
    np.testing.assert_allclose(P.sigmoid_partition(2)[1], 0.5)
    for betas in ([0.0, 0.5], [0.1, 1.0], [0.0, 0.6, 0.5, 1.0], [0.0, np.nan, 1.0]):
        with pytest.raises(ValueError, match="partition must rise from 0 to 1"):
            run_line(jax.random.key(0), norm.logpdf, partition=betas)
    with pytest.raises(ValueError, match=r"partition must be a vector \[T \+ 1\]"):
        run_line(jax.random.key(0), norm.logpdf, partition=1.0)


def test_refusals(key, unchecked):
    with pytest.raises(TypeError, match="must be a typed key"):
        run_line(0, norm.logpdf)
    with pytest.raises(TypeError, match=r"moves latents along gradients.*int.*targets\.enumerate"):
        P.ais(
            key,
            lambda z: 1.0 * z,
            Coin(0.0, jnp.int32),
            partition=[0.0, 1.0],
            transition=GOOD,
            num_samples=2,
        )
    mixing = lambda z: -0.5 * (z - jnp.mean(z)) ** 2
    with pytest.raises(ValueError, match=r"mixes members.*targets\.independent_members"):
        P.ais(
            key,
            mixing,
            Gauss(jnp.zeros(3), jnp.zeros(3)),
            partition=[0.0, 1.0],
            transition=GOOD,
            num_samples=2,
        )
    back = partial(P.reverse_ais, key, norm.logpdf, Gauss(0.0, 0.0), transition=GOOD)
    with pytest.raises(ValueError, match=r"one draw is z\[None\]"):
        back(jnp.float32(1.0), partition=[0.0, 1.0])
    of_mean = lambda m: run_line(key, lambda z: norm.logpdf(z, m), num_samples=2).log_w[0]
    with pytest.raises(ValueError, match=r"has no derivative.*particles\.dais"):
        jax.eval_shape(jax.grad(of_mean), 0.0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_temperatures():
    """Beyond the temperatures and acceptances themselves, some floats each."""

    def held(num_steps):
        run = jax.jit(
            lambda key: run_line(key, humps(2.0), partition=P.linear_partition(num_steps)).log_w
        )
        return run.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert held(2000) - held(20) < 1980 * 64
