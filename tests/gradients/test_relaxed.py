"""The relaxed estimators: biased as the literature says, exactly so where quadrature knows by how much."""

import re

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import oracles, problems, table
from tests.statistics import assert_mean, assert_variance_ratio

ELBO, IWAE = vj.bounds.elbo, vj.bounds.iwae
TAU = 0.7
MAKE = {
    "gumbel_softmax": lambda bound: vj.gradients.gumbel_softmax(bound, temperature=TAU),
    "straight_through": lambda bound: vj.gradients.straight_through(bound, temperature=TAU),
    "gumbel_rao": lambda bound: vj.gradients.gumbel_rao(bound, temperature=TAU, inner=16),
}

BIT = problems.BITS._replace(  # one bit, with a model that is not linear in it
    params={"q": np.array([[0.6]], np.float32), "theta": np.array([0.4, -0.9], np.float32)},
    log_p=lambda theta, z: theta[0] * z[..., 0] + theta[1] * jnp.square(z[..., 0] - 0.3) ** 2,
)


@oracles.exact
def bit_truth(params, *, hard):
    """Return the expected value and gradient over logistic noise, for the hard forward or the soft."""
    noise, volume = oracles.interval(-40.0, 40.0, 80_001)
    mass = volume * jax.nn.sigmoid(noise) * jax.nn.sigmoid(-noise)

    def f(q, theta, s, a):
        return BIT.log_p(theta, s[:, None]) - s * a + jax.nn.softplus(a)

    def total(params):
        a = params["q"][0, 0]
        soft = jax.nn.sigmoid((a + noise) / TAU)
        if not hard:
            # log q(s) = Σ s log q
            return jnp.sum(mass * f(params["q"], params["theta"], soft, a))
        b, stop = (a + noise > 0) * 1.0, jax.lax.stop_gradient
        slope = stop(
            jax.vmap(jax.grad(lambda s: f(params["q"], params["theta"], s[None], a)[0]))(b)
        )
        value = jnp.sum(
            stop(mass * (b == 1)) * f(params["q"], params["theta"], b, stop(a))
        ) + jnp.sum(stop(mass * (b == 0)) * f(params["q"], params["theta"], b, stop(a)))
        along = jnp.sum(stop(mass) * slope * soft)
        return value + along - stop(along)

    return jax.value_and_grad(total)(params)


@pytest.mark.slow
def test_their_means_are_what_quadrature_says(key):
    objectives = {name: make(ELBO) for name, make in MAKE.items()}
    found = problems.value_and_grads(key, BIT, objectives, 1, 60_000)
    truth = {name: bit_truth(BIT.params, hard=name != "gumbel_softmax") for name in objectives}
    assert_mean(found, truth, detects=0.05)


@pytest.mark.parametrize("name", MAKE)
def test_biased_as_the_first_line_says(name, key):
    """The control: against the discrete truth each of them fails."""
    assert name in table.BIASED
    assert "biased" in getattr(vj.gradients, name).__doc__.split("\n")[0]
    objectives = {name: MAKE[name](ELBO)}
    found = problems.value_and_grads(key, problems.HOT, objectives, 1, 20_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, problems.truths(problems.HOT, objectives), detects=1.0)


def test_no_other_estimator_says_so():
    for name in vj.gradients.__all__:
        first = getattr(vj.gradients, name).__doc__.split("\n")[0]
        assert bool(re.search(r"\bbiased", first)) == (name in table.BIASED), name


@pytest.mark.slow
def test_gumbel_rao_has_the_mean_of_straight_through_and_less_variance(key):
    objectives = {name: MAKE[name](ELBO) for name in ("straight_through", "gumbel_rao")}
    found = problems.value_and_grads(key, problems.HOT, objectives, 1, 40_000)
    through, rao = (problems.of_q(found, name) for name in objectives)
    others = problems.value_and_grads(
        jax.random.fold_in(key, 1), problems.HOT, objectives, 1, 40_000
    )
    assert_mean(rao - problems.of_q(others, "straight_through"), np.zeros((2, 4)), detects=0.1)
    assert_variance_ratio(through, rao, at_least=1.15)


@pytest.mark.slow
def test_the_model_gets_the_gradient_of_the_discrete_bound(key):
    """straight_through and gumbel_rao are unbiased for the model's parameters, under any bound."""
    objectives = {name: MAKE[name](IWAE) for name in ("straight_through", "gumbel_rao")}
    found = problems.value_and_grads(key, problems.BITS, objectives, 2, 20_000)
    value, slopes = problems.BITS.truth(IWAE, 2)
    model = {name: (f[0], f[1]["theta"]) for name, f in found.items()}
    assert_mean(model, dict.fromkeys(objectives, (value, slopes["theta"])), detects=0.15)


def test_a_low_temperature_is_discrete(key):
    soft = vj.gradients.gumbel_softmax(ELBO, temperature=1e-6)
    z = soft(
        key, lambda z: jnp.zeros(2), problems.HOT.build(problems.HOT.params["q"]), num_samples=50
    ).draws.z
    np.testing.assert_allclose(np.sort(z, -1)[..., -1], 1.0, atol=1e-3)


@pytest.mark.parametrize("name", MAKE)
def test_chunks_and_traced_temperatures_change_no_number(name, key):
    def total(a, temperature, chunk_size):
        make = getattr(vj.gradients, name)
        objective = make(
            ELBO, temperature=temperature, **({"inner": 4} if name == "gumbel_rao" else {})
        )
        log_joint = lambda z: problems.BITS.log_p(problems.BITS.params["theta"], z)
        return objective(
            key, log_joint, problems.Bits(a, jnp.int32), num_samples=5, chunk_size=chunk_size
        ).value.sum()

    a = jnp.asarray(problems.BITS.params["q"])
    whole = jax.jit(jax.value_and_grad(lambda a: total(a, TAU, None)))(a)
    pieces = jax.jit(jax.value_and_grad(lambda a, t: total(a, t, 2)))(a, TAU)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), whole, pieces)


def test_a_relaxed_q_of_a_relaxed_model_is_a_matter_for_reparam(key, loose_ranks):
    """Why the room for distributions needs nothing new: TFP's relaxed Bernoulli under reparam, against quadrature."""
    from tensorflow_probability.substrates import jax as tfp

    def total(a, key):
        q = vj.families.adapt(tfp.distributions.RelaxedBernoulli(TAU, logits=a))
        return vj.gradients.reparam(ELBO)(
            key, lambda z: -3.0 * z**2 + q.log_prob(z), q, num_samples=1
        ).value

    noise, volume = oracles.interval(-40.0, 40.0, 8001)
    mass = volume * jax.nn.sigmoid(noise) * jax.nn.sigmoid(-noise)
    truth = jax.value_and_grad(
        lambda a: jnp.sum(mass * -3.0 * jax.nn.sigmoid((a + noise) / TAU) ** 2)
    )(0.4)
    found = jax.jit(jax.vmap(jax.value_and_grad(total), (None, 0)))(
        0.4, jax.random.split(key, 20_000)
    )
    assert_mean(found, jax.tree.map(np.asarray, truth), detects=0.2)


def test_extreme_logits_stay_finite(key):
    logits = jnp.array([[-jnp.inf, 0.3, 1e4, -1e4], [60.0, -60.0, 0.0, 1.0]])
    for name, make in MAKE.items():
        slope = jax.jit(jax.grad(lambda l, make=make: make(IWAE)(
            key, lambda z: jnp.sum(z**2, -1), problems.Choice(l, hot=True), num_samples=8
        ).value.sum()))(logits)  # fmt: skip
        assert np.all(np.isfinite(slope)), name


@pytest.mark.parametrize("name", MAKE)
def test_refusals(name, key, loose_ranks):
    log_joint = lambda z: jnp.zeros(())
    with pytest.raises(TypeError, match="integer draws cannot be relaxed.*OneHotCategorical"):
        MAKE[name](ELBO)(key, log_joint, distrax.Categorical(logits=jnp.zeros(3)), num_samples=2)
    with pytest.raises(ValueError, match="shows none"):
        MAKE[name](ELBO)(key, log_joint, distrax.Normal(0.0, 1.0), num_samples=2)
    for bad in (0.0, -1.0, jnp.ones(2)):
        with pytest.raises(ValueError, match="temperature must be one positive number"):
            getattr(vj.gradients, name)(
                ELBO, temperature=bad, **({"inner": 4} if name == "gumbel_rao" else {})
            )
    with pytest.raises(ValueError, match="inner must be"):
        vj.gradients.gumbel_rao(ELBO, temperature=1.0, inner=0)


@pytest.mark.usefixtures("unchecked", "loose_ranks")
def test_straight_through_of_iwae_is_nearer_the_truth_than_without_its_density(key):
    """log p = 2b, logit .4, K = 8: the exact slope is .0356; with q's density stopped it was .343 at temperature .1."""
    objective = vj.gradients.straight_through(IWAE, temperature=0.1)

    def run(logit, key):
        q = distrax.Bernoulli(logits=logit, dtype=float)
        return objective(key, lambda z: 2.0 * z, q, num_samples=8).value

    slopes = jax.jit(jax.vmap(jax.grad(run), (None, 0)))(
        jnp.float32(0.4), jax.random.split(key, 20_000)
    )
    assert abs(slopes.mean() - 0.0356) < 0.1
