"""gradients.rebar and gradients.relax: unbiased whatever their control, which learns to lower the variance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from tests import problems
from tests.marks import some
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.gradients import _perturbed

ELBO = vj.bounds.elbo


def network(params, z, relaxed):
    """Guess log w from every real number of a draw."""
    h = sum(
        jnp.sum(jnp.tanh(leaf * params["slope"]), range(1, leaf.ndim))
        for leaf in jax.tree.leaves(z)
    )
    return params["scale"] * h


def both(params, z, relaxed):
    return network(params, z, relaxed) + params["eta"] * relaxed(0.7)


NETWORK = {"slope": jnp.array(0.8), "scale": jnp.array(-0.6), "eta": jnp.array(0.5)}
REBAR = {"scale": jnp.array(0.9), "log_temperature": jnp.array(-0.4)}
REBARED = vj.gradients.rebar(ELBO)
RELAXED = vj.gradients.relax(ELBO, control=network)
BOTH = vj.gradients.relax(ELBO, control=both)


def fixed(objective, params):
    """Return an Objective with its control's parameters bound, and their slopes dropped."""
    return lambda key, log_joint, q, **keywords: objective(key, log_joint, q, params, **keywords)[0]


@pytest.mark.parametrize(
    "case",
    some([problems.BITS, problems.HOT, problems.WHOLE], "whole", name=lambda case: case.name),
)
def test_unbiased_whatever_the_control(case, key):
    objectives = {"relax": fixed(RELAXED, NETWORK)}
    if case is not problems.WHOLE:
        objectives |= {"rebar": fixed(REBARED, REBAR), "both": fixed(BOTH, NETWORK)}
    found = problems.value_and_grads(key, case, objectives, 1, 60_000)
    assert_mean(found, problems.truths(case, objectives), detects=0.15)


def test_a_control_that_forgets_its_correction_fails(key, monkeypatch):
    """The control of the test: without the path of z̃ given b the same comparison refuses."""
    right = _perturbed.conditional
    wrong = lambda l, b, v: right(jax.lax.stop_gradient(l), b, v)
    monkeypatch.setattr("vijax.gradients._perturbed.conditional", wrong)
    objectives = {"rebar": fixed(vj.gradients.rebar(ELBO), REBAR)}
    found = problems.value_and_grads(key, problems.BITS, objectives, 1, 20_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, problems.truths(problems.BITS, objectives), detects=1.0)


def test_slopes_are_those_of_the_variance(key):
    """The mean slope against the difference of the variances at two scales, from the same keys."""

    def run(params, keys):
        def one(key):
            def total(logits):
                q = problems.Bits(logits)
                log_joint = lambda z: problems.BITS.log_p(problems.BITS.params["theta"], z)
                estimate, slopes = REBARED(key, log_joint, q, params, num_samples=1)
                return estimate.value.sum(), slopes

            slope, of_variance = jax.grad(total, has_aux=True)(
                jnp.asarray(problems.BITS.params["q"])
            )
            return jnp.sum(jnp.square(slope)), of_variance["scale"]

        return jax.tree.map(jnp.mean, jax.vmap(one)(keys))

    keys, step = jax.random.split(key, 5_000), 0.02
    at = lambda scale: jax.jit(run)({**REBAR, "scale": jnp.array(scale)}, keys)
    (low, _), (_, slope), (high, _) = at(0.9 - step), at(0.9), at(0.9 + step)
    np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=2e-2)


@pytest.mark.slow
def test_chunks_change_no_number(key):
    def run(chunk_size):
        def total(params):
            log_joint = lambda z: problems.BITS.log_p(params["theta"], z)
            q = problems.Bits(params["q"])
            estimate, slopes = BOTH(
                key, log_joint, q, NETWORK, num_samples=5, chunk_size=chunk_size
            )
            return estimate.value.sum(), slopes

        return jax.jit(jax.value_and_grad(total, has_aux=True))(problems.BITS.params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(None), run(2)
    )


# --- the toy of both papers: E(b - t)² with t = .499, to be minimised

T = 0.499


def toy(objective, theta, key, params, num_samples=1):
    """Return -E(b - t)² of a Bernoulli, as the bound of a model that cancels log q, and the control's slopes."""
    log_q = lambda z, a: jnp.sum(z * a - jax.nn.softplus(a), -1)
    log_joint = lambda z: -jnp.sum(jnp.square(z - T), -1) + log_q(z, jax.lax.stop_gradient(theta))
    estimate, slopes = objective(
        key, log_joint, problems.Bits(theta), params, num_samples=num_samples
    )
    return estimate.value, slopes


def units(params, z, relaxed):
    """Return RELAX's own control: the relaxed model, and a small network beside it."""
    h = jnp.tanh(z[0] * params["in"] + params["shift"])
    return (
        params["scale"] * relaxed(jnp.exp(params["log_temperature"]))
        + jnp.sum(h * params["out"])
        + params["bias"]
    )


UNITS = {
    **REBAR,
    "in": jnp.linspace(-2.0, 2.0, 8),
    "shift": jnp.linspace(-1.0, 1.0, 8),
    "out": jnp.zeros(8),
    "bias": jnp.array(0.0),
}


def learned(objective, params, key, steps=1500):
    """Fit a control at fixed theta, inside one scan."""
    optimiser = optax.adam(0.03)

    def step(carry, key):
        params, state = carry
        slopes = jax.vmap(lambda k: toy(objective, jnp.zeros(1), k, params)[1])(
            jax.random.split(key, 8)
        )
        updates, state = optimiser.update(jax.tree.map(lambda s: s.mean(0), slopes), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(key, steps))[0][0]


@pytest.mark.slow
def test_relax_varies_less_than_rebar_and_that_less_than_reinforce(key):
    """At theta = 0, each control learned at that point.

    At t = .499 the relaxed model says nothing of the two states: no scale or temperature of REBAR beats f(b) ∇log q by
    more than a thousandth, so it is held to that, and to a fraction of `score` without a baseline.
    """
    relaxed = vj.gradients.relax(ELBO, control=units)
    plain = lambda b: (
        lambda key, log_joint, q, _, **k: (
            vj.gradients.score(ELBO, baseline=b)(key, log_joint, q, **k),
            0,
        )
    )

    @jax.jit
    def run(key):
        fit, look = jax.random.split(key)
        slope = lambda objective, params: jax.vmap(
            lambda k: jax.grad(lambda a: toy(objective, a, k, params)[0])(jnp.zeros(1))
        )(jax.random.split(look, 20_000))
        return {
            "rebar": slope(REBARED, learned(REBARED, REBAR, fit)),
            "relax": slope(relaxed, learned(relaxed, UNITS, fit)),
            "reinforce": slope(plain(None), None),
            # log q's own score, which `score` keeps, is what a baseline of -1 takes out
            "f(b)": slope(plain(-1.0), None),
        }

    found = run(key)
    truth = np.array([-(1 - 2 * T) / 4])
    assert_mean(found, dict.fromkeys(found, truth), detects=0.05)
    assert_variance_ratio(found["reinforce"], found["rebar"], at_least=15.0)
    assert_variance_ratio(found["f(b)"], found["rebar"], at_least=0.97)
    assert_variance_ratio(found["rebar"], found["relax"], at_least=100.0)


def test_rebar_varies_less_than_reinforce_where_the_relaxed_model_speaks(key):
    objectives = {
        "rebar": fixed(REBARED, REBAR),
        "reinforce": vj.gradients.score(ELBO, baseline=-1.0),
    }
    found = problems.value_and_grads(key, problems.BITS, objectives, 1, 20_000)
    assert_variance_ratio(
        problems.of_q(found, "reinforce"), problems.of_q(found, "rebar"), at_least=6.0
    )


@pytest.mark.slow
def test_the_toy_converges_for_every_seed(key):
    """Model and control learn together, in a scan, vmapped over seeds, after a while of the control alone: q goes to b = 0."""
    objective = vj.gradients.relax(ELBO, control=units)
    optimiser = optax.adam(0.03)

    def loss(theta, params, key):
        value, slopes = toy(objective, theta, key, params, num_samples=4)
        return -value, slopes

    def step(carry, key):
        params, state = carry
        (_, slopes), slope = jax.value_and_grad(loss, has_aux=True)(*params, key)
        updates, state = optimiser.update((slope, slopes), state)
        return (optax.apply_updates(params, updates), state), None

    def train(key):
        warm, key = jax.random.split(key)
        start = (jnp.zeros(1), learned(objective, UNITS, warm, steps=500))
        (params, _), _ = jax.lax.scan(
            step, (start, optimiser.init(start)), jax.random.split(key, 8_000)
        )
        return jax.nn.sigmoid(params[0])

    p = jax.jit(jax.vmap(train))(jax.random.split(key, 3))
    assert np.all(np.asarray(p) < 0.25), p


@pytest.mark.slow
def test_double_precision_and_extreme_logits(x64, key):
    q = (
        problems.Bits(jnp.array([60.0, -60.0, 0.1])),
        problems.Choice(jnp.array([-jnp.inf, 0.3, 1e4, -1e4]), hot=True),
    )
    log_joint = lambda z: jnp.sum(z[0]) - jnp.sum(z[1] ** 2)
    params = {"scale": jnp.array(0.9), "log_temperature": jnp.array(-0.4)}
    estimate, slopes = jax.jit(
        lambda k: vj.gradients.rebar(ELBO)(k, log_joint, q, params, num_samples=8)
    )(key)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((estimate.value, slopes)))
    assert estimate.value.dtype == slopes["scale"].dtype == jnp.float64


@pytest.mark.slow
def test_refusals(key, unchecked):
    q, log_joint = problems.Bits(jnp.zeros(3)), lambda z: jnp.zeros(())
    with pytest.raises(ValueError, match=r"rebar.*linear in log_w.*gradients\.vimco for iwae"):
        vj.gradients.rebar(vj.bounds.iwae)(key, log_joint, q, REBAR, num_samples=1)
    with pytest.raises(ValueError, match="control must return one number"):
        vj.gradients.relax(ELBO, control=lambda p, z, r: z)(key, log_joint, q, REBAR, num_samples=1)
    whole = problems.Choice(jnp.zeros(4))
    with pytest.raises(TypeError, match="integer draws cannot be relaxed"):
        vj.gradients.rebar(ELBO)(key, lambda z: jnp.zeros(()), whole, REBAR, num_samples=1)


@pytest.mark.usefixtures("unchecked", "loose_ranks")
@pytest.mark.slow
def test_rebars_slopes_are_the_derivative_of_the_squared_gradient(key):
    """In the logits, by central differences with the same keys, of Bernoullis beside a categorical."""
    logits = {"b": jnp.array([[0.4, -0.7]]), "c": jnp.array([[0.3, -0.2, 0.6]])}

    def q(logits):
        return {"b": problems.Bits(logits["b"]), "c": problems.Choice(logits["c"], hot=True)}

    def log_joint(z):
        return -((z["b"].sum(-1) + (z["c"] @ jnp.array([0.5, -1.0, 2.0])) - 1.3) ** 2)

    rebar, start = vj.gradients.rebar(ELBO), jnp.array([1.0, -0.5])
    keys = jax.random.split(key, 400)

    def parameters(p):
        return {"scale": p[0], "log_temperature": p[1]}

    def squared(p, key):
        def value(logits):
            return rebar(key, log_joint, q(logits), parameters(p), num_samples=1)[0].value.sum()

        slope = jax.grad(value)(logits)
        # A categorical's derivative counts as it is; the logit of a bit is one number.
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope))

    @jax.jit
    def mean(p):
        return jnp.mean(jax.vmap(squared, (None, 0))(p, keys))

    step = 1e-2
    differences = [
        (mean(start + step * e) - mean(start - step * e)) / (2 * step) for e in jnp.eye(2)
    ]
    slopes = jax.vmap(
        lambda k: rebar(k, log_joint, q(logits), parameters(start), num_samples=1)[1]
    )(keys)
    found = [slopes["scale"].mean(), slopes["log_temperature"].mean()]
    np.testing.assert_allclose(found, differences, rtol=0.03)


@pytest.mark.parametrize("objective", [REBARED, RELAXED])
def test_parameters_that_are_forgotten_are_named(objective, key, unchecked):
    with pytest.raises(TypeError, match=r"needs `parameters`.* after q: "):
        objective(key, jnp.sum, vj.families.mean_field(), num_samples=2)
