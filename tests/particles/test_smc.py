"""Particle filters against Kalman: evidence, filtered means, masks, lengths, batches, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.marks import some
from tests.particles import lines
from tests.statistics import Z
from vijax import particles
from vijax.particles import (
    Filtered,
    StateSpace,
    adaptive,
    always,
    fivo,
    history,
    multinomial,
    never,
    residual,
    smc,
    stratified,
    systematic,
)

KEY = jax.random.key(0)
EXACT = float(lines.kalman(lines.UNITS, lines.X, start=lines.SMALL).log_evidence)
RESAMPLE = {
    "never": never,
    "systematic": always(systematic),
    "stratified": always(stratified),
    "residual": always(residual),
    "multinomial": always(multinomial),
    "adaptive": adaptive(systematic),
}
GUIDED = lines.optimal(lines.UNITS, start=lines.SMALL)
AHEAD = {"proposal": GUIDED, "twist": lines.lookahead(lines.UNITS)}


def relative_evidence(log_z, exact):
    """Return E Ẑ / Z - 1 and its standard error."""
    ratio = np.exp(np.asarray(log_z, np.float64) - exact)
    return ratio.mean() - 1, ratio.std(ddof=1) / len(ratio) ** 0.5


@pytest.mark.parametrize("how", some(RESAMPLE, "adaptive"))
def test_the_evidence_is_unbiased(how, key):
    """Fails by chance 1e-10, as all of these; sees 8%. Weights that forget the proposal's density are off by more."""
    run = partial(smc, data=lines.X, num_particles=8, resample=RESAMPLE[how], proposal=GUIDED)
    log_z = lines.filters(key, 8000, lambda k: run(k, lines.small()).log_evidence)
    bias, error = relative_evidence(log_z, EXACT)
    assert abs(bias) < Z * error
    assert Z * error < 0.08
    wrong = StateSpace(*lines.small()[:2], lambda z, x: 1.1 * lines.small().emission(z, x))
    log_z = lines.filters(key, 8000, lambda k: run(k, wrong).log_evidence)
    bias, error = relative_evidence(log_z, EXACT)
    assert abs(bias) > Z * error


@pytest.mark.slow
def test_a_twist_changes_no_evidence_and_saves_variance(key):
    plain = lines.filters(
        key, 4000, lambda k: smc(k, lines.small(), lines.X, num_particles=8).log_evidence
    )
    twisted = lines.filters(
        key, 4000, lambda k: smc(k, lines.small(), lines.X, num_particles=8, **AHEAD).log_evidence
    )
    bias, error = relative_evidence(twisted, EXACT)
    assert abs(bias) < Z * error
    assert twisted.var() < 0.5 * plain.var()
    assert plain.mean() < twisted.mean() < EXACT
    # A twist that is not taken off again would show: this one is no likelihood at all.
    odd = lines.filters(
        key,
        4000,
        lambda k: (
            smc(
                k, lines.small(), lines.X, num_particles=8, twist=lambda z, x: jnp.sin(2 * z) + x
            ).log_evidence
        ),
    )
    bias, error = relative_evidence(odd, EXACT)
    assert abs(bias) < Z * error


def test_filtered_means_are_kalmans(key):
    mean = lambda p: jnp.sum(jnp.exp(p.log_weights) * p.z, 0)
    result = jax.jit(lambda k: smc(k, lines.small(), lines.X, num_particles=40_000, record=mean))(
        key
    )
    exact = lines.kalman(lines.UNITS, lines.X, start=lines.SMALL)
    np.testing.assert_allclose(result.recorded, exact.mean[:, 0], atol=0.05)
    np.testing.assert_allclose(result.increments, exact.log_predictive, atol=0.1)
    np.testing.assert_allclose(result.increments.sum(), result.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(result.log_weights).sum(), 1.0, rtol=1e-5)


def test_missing_steps_and_lengths_are_kalmans(key):
    mask = jnp.array([True, False, True, True, False])
    x = jnp.where(mask, lines.X, 1e6)
    run = lambda k, **how: smc(k, lines.small(), x, num_particles=20_000, **how)
    masked = jax.jit(lambda k: run(k, mask=mask))(key)
    exact = lines.kalman(lines.UNITS, lines.X, start=lines.SMALL, mask=mask)
    np.testing.assert_allclose(masked.log_evidence, exact.log_evidence, atol=0.1)
    assert masked.increments[1] == pytest.approx(0.0, abs=1e-5)
    short = jax.jit(lambda k, n: run(k, mask=mask, length=n))(key, 3)
    np.testing.assert_allclose(short.log_evidence, masked.increments[:3].sum(), rtol=1e-5)
    np.testing.assert_array_equal(short.increments[3:], 0.0)


def test_sequences_of_a_batch_are_filtered_each_by_itself(key):
    """Data [T, B], lengths [B]: members agree with Kalman, and one that is impossible harms no other."""
    x = jnp.stack([lines.X, lines.X[::-1], jnp.full(5, 1e30)], 1)
    zero = jnp.zeros(3)
    model = StateSpace(
        lambda x: lines.Line(lines.SMALL[0] + zero, lines.SMALL[1]),
        lambda z, x: lines.Line(z, 0.5),
        lambda z, x: lines.Line(z, 0.7).log_prob(x),
    )
    result = jax.jit(
        lambda k: smc(k, model, x, num_particles=5000, length=jnp.array([5, 2, 5]), record=history)
    )(key)
    assert result.increments.shape == (5, 3)
    assert result.z.shape == result.log_weights.shape == (5000, 3)
    short = lines.kalman(lines.UNITS, x[:2, 1], start=lines.SMALL).log_evidence
    np.testing.assert_allclose(result.log_evidence[:2], [EXACT, short], atol=0.15)
    assert result.log_evidence[2] == -jnp.inf
    paths = particles.trace_back(result.recorded)
    assert paths.shape == (5000, 5, 3)
    # Beyond its length a member stands still.
    np.testing.assert_array_equal(paths[:, 2:, 1], paths[:, 1:2, 1].repeat(3, 1))


def test_one_particle_and_one_step(key):
    run = jax.jit(lambda k, x: smc(k, lines.small(), x, num_particles=1))
    result = run(key, lines.X[:1])
    np.testing.assert_allclose(
        result.log_evidence, lines.small().emission(result.z[0], lines.X[0]), rtol=1e-6
    )
    chain = run(key, lines.X)
    assert chain.increments.shape == (5,)
    assert chain.log_weights[0] == 0


@pytest.mark.parametrize("form", ["fivo", "scored", "fisher", "transported"])
def test_a_step_without_any_weight_is_minus_infinity_without_slope(form, key):
    def value(shift):
        model = StateSpace(
            lambda x: lines.Line(shift, 1.0),
            lambda z, x: lines.Line(z + shift, 1.0),
            lambda z, x: jnp.where(x > 1e3, -jnp.inf, lines.Line(z, 1.0).log_prob(x)),
        )
        x = lines.X.at[2].set(1e4)
        return getattr(particles, form)(key, model, x, num_particles=4).value

    log_z, slope = jax.jit(jax.value_and_grad(value))(0.3)
    assert log_z == -jnp.inf
    assert slope == 0


def test_the_derivative_of_a_plain_filter_is_refused(key):
    value = lambda params: smc(key, lines.small(params), lines.X, num_particles=4).log_evidence
    with pytest.raises(ValueError, match=r"smc has no derivative.*particles.fivo.*scored.*fisher"):
        jax.grad(lambda params: value(params))(lines.UNITS)
    # Its value alone may stand in a loss.
    loss = lambda params: jnp.sum(params) + value(jax.lax.stop_gradient(params))
    np.testing.assert_array_equal(jax.grad(loss)(lines.UNITS), 1.0)


def test_discrete_draws_have_no_fivo(key):
    class Toss:
        def sample_and_log_prob(self, *, seed, sample_shape=()):
            z = jax.random.bernoulli(seed, 0.5, sample_shape).astype(int)
            return z, self.log_prob(z)

        def log_prob(self, z):
            return jnp.full(jnp.shape(z), -0.69)

    model = StateSpace(lambda x: Toss(), lambda z, x: Toss(), lambda z, x: -1.0 * z)
    with pytest.raises(ValueError, match="leaf 'z' is discrete.*particles.scored"):
        fivo(key, model, jnp.ones(3), num_particles=4)
    assert isinstance(smc(key, model, jnp.ones(3), num_particles=4), Filtered)


def test_particles_of_one_filter_are_draws_of_no_estimator(key):
    """They are coupled: neither their record nor a Draw that says so passes dreg or vimco."""
    result = jax.jit(lambda k: smc(k, lines.small(), lines.X, num_particles=4))(key)
    log_joint = lambda z: -0.5 * z**2
    coupled = vj.types.Draw(
        lambda key, n: jnp.arange(n), lambda row, q: (result.z[row], 0.0), False
    )
    q = vj.families.mean_field().dist({"loc": jnp.zeros(()), "log_scale": jnp.zeros(())})
    with pytest.raises(ValueError, match="needs independent draws, and these are coupled"):
        vj.gradients.dreg(vj.bounds.iwae, draw=coupled)(key, log_joint, q, num_samples=4)
    for estimator in (vj.gradients.dreg, vj.gradients.vimco):
        with pytest.raises(TypeError, match="q must offer sample_and_log_prob"):
            estimator(vj.bounds.iwae)(key, log_joint, result, num_samples=4)


def test_independent_filters_are_draws_of_every_bound(key):
    log_z = lines.filters(
        key, 500, lambda k: smc(k, lines.small(), lines.X, num_particles=16).log_evidence
    )
    elbo, iwae = vj.bounds.elbo(log_z), vj.bounds.iwae(log_z)
    assert elbo < iwae
    value, error = vj.diagnostics.evidence(log_z)
    assert abs(value - EXACT) < 5 * error


def bad(**changes):
    arguments = {"key": KEY, "model": lines.small(), "data": lines.X, "num_particles": 4}
    return smc(**(arguments | changes))


REFUSED = {
    "ragged": ({"data": {"x": jnp.zeros(4), "u": jnp.zeros(5)}}, ValueError, r"leading axis T >= 1.*'u' \(5,\).*'x' \(4,\)"),
    "no steps": ({"data": jnp.zeros((0, 2))}, ValueError, "one leading axis T >= 1"),
    "a number": ({"data": jnp.array(1.0)}, ValueError, "one leading axis T >= 1"),
    "no particles": ({"num_particles": 0}, ValueError, "num_particles must be at least 1"),
    "several numbers": ({"num_particles": jnp.array([3])}, TypeError, "num_particles must be a Python int"),
    "a raw key": ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, "key must be a typed key"),
    "no model": ({"model": lambda z: z}, TypeError, "model must be a particles.StateSpace"),
    "no proposal": ({"proposal": lambda z: z}, TypeError, "proposal must be a particles.Proposal"),
    "mask of numbers": ({"mask": jnp.ones(5)}, ValueError, "mask must be booleans"),
    "mask of other length": ({"mask": jnp.ones(4, bool)}, ValueError, "with T = 5"),
    "length in floats": ({"length": jnp.array(3.0)}, ValueError, "length must be whole numbers"),
    "no distribution": ({"model": StateSpace(lambda x: x, lines.small().transition, lines.small().emission)}, TypeError, "model.initial returns"),
    "wide emission": ({"model": lines.small()._replace(emission=lambda z, x: jnp.zeros(3))}, ValueError, "model.emission"),
    "wide twist": ({"twist": lambda z, x: jnp.zeros(3)}, ValueError, "twist"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, unchecked):
    changes, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        bad(**changes)


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_is_a_share(threshold):
    with pytest.raises(ValueError, match="threshold must be a share"):
        adaptive(systematic, threshold=threshold)


def test_adaptive_carries_weights_on(key):
    log_weights = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    chosen, kept = adaptive(systematic, threshold=0.0)(key, log_weights)
    np.testing.assert_array_equal(chosen, [0, 1, 2])
    np.testing.assert_array_equal(kept, log_weights)
    _, kept = adaptive(systematic, threshold=1.0)(key, log_weights)
    np.testing.assert_allclose(kept, -jnp.log(3.0), rtol=1e-6)


def test_neither_compile_time_nor_memory_grows_with_steps(key):
    """The program of 1,000 steps has as many instructions as that of 10, and as much temporary memory beside its data."""

    def compiled(t):
        f = lambda k, x: smc(k, lines.small(), x, num_particles=16).log_evidence
        return jax.jit(f).lower(key, jnp.zeros(t)).compile()

    short, long = compiled(10), compiled(1000)
    lines_of = lambda c: len(c.as_text().splitlines())
    assert lines_of(long) == lines_of(short)
    grown = long.memory_analysis().temp_size_in_bytes - short.memory_analysis().temp_size_in_bytes
    assert grown <= 8 * 1000  # a datum and the number of each step, and none of its 16 particles


def test_it_lowers_for_every_platform(key):
    f = lambda k: (
        smc(k, lines.small(), lines.X, num_particles=8, resample=adaptive(residual)).log_evidence
    )
    jax.export.export(jax.jit(f), platforms=["cpu", "cuda", "tpu"])(key)
