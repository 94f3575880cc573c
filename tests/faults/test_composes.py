"""D, F10 and B6: what did not compose, or told of itself what is not so; each with the right value."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_probability.substrates.jax as tfp

import vijax as vj

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")

D, F, G, T = vj.diagnostics, vj.families, vj.gradients, vj.targets
ELBO = G.reparam(vj.bounds.elbo)
KEY = jax.random.key(0)
LIKE = {"a": jnp.zeros(2), "b": jnp.zeros(())}

# --- closed-form divergences between a family's Gaussian and a library's


def gaussian():
    family = F.full_rank(scale=0.7)
    return family.dist(family.init(KEY, LIKE) | {"lower": jnp.array([0.3, -0.2, 0.5])})


def independent(loc, scale):
    return distrax.Independent(distrax.Normal(loc, scale), 1)


def adapted(name, *params):
    return F.adapt(getattr(tfp.distributions, name)(*params))


M, S = jnp.array([0.5, -1.0]), jnp.array([2.0, 0.8])
PRIORS = {
    "Normals": {"a": independent(M, S), "b": distrax.Normal(0.0, 1.5)},
    "MultivariateNormalDiag": {
        "a": distrax.MultivariateNormalDiag(M, S),
        "b": distrax.Normal(0.0, 1.5),
    },
    "of TFP": {
        "a": adapted("MultivariateNormalDiag", M, S),
        "b": adapted("Normal", 0.0, 1.5),
    },
}


def by_matrices(mean, cov, other_mean, other_cov):
    inner = np.linalg.inv(other_cov)
    off = other_mean - mean
    trace, square = np.trace(inner @ cov), off @ inner @ off
    log_dets = np.linalg.slogdet(other_cov)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (trace + square - len(mean) + log_dets)


@pytest.mark.parametrize("prior", PRIORS)
def test_divergence_from_a_librarys_gaussian_and_to_it(prior):
    q, prior = gaussian(), PRIORS[prior]
    triangle = 0.7 * np.array([[1, 0, 0], [0.3, 1, 0], [-0.2, 0.5, 1]])
    of_q = np.zeros(3), triangle @ triangle.T
    of_prior = np.array([0.5, -1.0, 0.0]), np.diag([4.0, 0.64, 2.25])
    nothing = lambda z: 0.0 * z["b"]
    found = ELBO(KEY, T.exact_kl(nothing, prior, q), q, num_samples=1).value
    np.testing.assert_allclose(found, -by_matrices(*of_q, *of_prior), rtol=1e-5)
    back = ELBO(KEY, T.exact_kl(nothing, q, prior), prior, num_samples=1).value
    np.testing.assert_allclose(back, -by_matrices(*of_prior, *of_q), rtol=1e-5)


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (distrax.Normal(M, S), r"batch shape \(\): distrax.Independent"),
        (distrax.Independent(distrax.Laplace(M, S), 1), "pytree of Normals"),
        (distrax.Normal(0.0, 1.0), "they must be alike"),
        (lambda b: distrax.Normal(0.0, 1.0), "pytree of Normals"),
    ],
    ids=["a batch", "Laplace", "another shape", "a conditional"],
)
def test_what_has_no_divergence_says_so(a, said):
    q = gaussian()
    with pytest.raises(ValueError, match=said):
        ELBO(
            KEY,
            T.exact_kl(lambda z: 0.0 * z["b"], {"b": distrax.Normal(0.0, 1.0), "a": a}, q),
            q,
            num_samples=1,
        )


def test_a_divergence_of_ones_own_gets_the_prior_as_it_is():
    q = gaussian()
    kl = lambda q, prior: jnp.where(type(prior).__name__ == "Laplace", 2.0, 0.0)
    family = F.mean_field()
    q = family.dist(family.init(KEY, jnp.zeros(())))
    target = T.exact_kl(lambda z: 0.0 * z, distrax.Laplace(0.0, 1.0), q, kl=kl)
    assert ELBO(KEY, target, q, num_samples=1).value == -2.0


# --- quadrature of a minibatch


def regression(rows=slice(None), *, scale=1.0):
    """Return E_q of the logistic terms of some rows, of four."""
    x = jnp.array([[1.0, 0.5], [0.2, -1.0], [-0.7, 1.5], [1.0, 1.0]])[rows]
    y = jnp.array([1.0, -1.0, 1.0, 1.0])[rows]
    family = F.full_rank(scale=0.8)
    q = family.dist(family.init(KEY, jnp.array([0.3, -0.4])))
    log_site = lambda t: scale * jax.nn.log_sigmoid(y * t)
    return T.gauss_hermite(log_site, lambda z: x @ z, q), q


def test_a_minibatch_without_noise_is_a_sentence():
    """Sites times N/B inside: the mean over the batches is the bound of all the data, and no key matters."""
    prior = distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))

    def bound(key, rows, scale):
        sites, q = regression(rows, scale=scale)
        return ELBO(key, T.exact_kl(sites, prior, q), q, num_samples=1).value

    whole = bound(KEY, slice(None), 1.0)
    halves = [bound(jax.random.key(i), slice(2 * i, 2 * i + 2), 2.0) for i in range(2)]
    np.testing.assert_allclose(np.mean(halves), whole, rtol=1e-6)


def test_a_quadrature_inside_minibatch_names_the_sentence():
    sites, _ = regression()
    for parts in ((lambda z: 0.0 * z[0], sites), (sites, lambda z: jnp.zeros(2))):
        with pytest.raises(
            ValueError, match=r"is itself a targets.gauss_hermite.*N / B \* log_site"
        ):
            T.minibatch(*parts, num_data=8)


# --- restarts, climbs and strata


def walk(noise=0.1):
    """A rule that stays about where it began; from beyond 50 its bound is -1e29."""

    def step(key, x):
        value = jnp.where(x["start"] > 50, -1e29, -1.0) + 0.01 * jax.random.normal(key)
        moved = x["start"] + noise * jax.random.normal(jax.random.fold_in(key, 1))
        return {"start": x["start"], "x": moved}, vj.types.Step(value)

    return vj.types.Rule(lambda x: {"start": x, "x": x}, step, lambda state: {"x": state["x"]})


def agreement(*starts):
    rule = walk()
    states = jax.vmap(rule.init)(jnp.array(starts))
    options = {"stop": None, "reports": (), "steps": 256}
    return vj.fitting.restarts(KEY, rule, states, unit=lambda p: {"x": jnp.ones(())}, **options)


def test_a_run_that_is_worse_by_far_does_not_condemn_the_rest():
    """B6: R-hat pooled it, and was in the hundreds; two that differ with bounds as good are still heard."""
    found = agreement(0.0, 0.0, 100.0)
    assert found.rhat < 1.2
    assert found.same_params.tolist() == [True, True, False]
    assert agreement(0.0, 3.0, 100.0).rhat > 3
    assert np.isnan(agreement(0.0, 100.0, 200.0).rhat)  # none to compare it with


def climb(log_joint, like):
    family = F.mean_field()

    def estimate(key, params):
        q = family.dist(params)
        return ELBO(key, log_joint(q), q, num_samples=2)

    rule = vj.fitting.ascent(estimate, optax.adam(0.1))
    return jax.eval_shape(rule.step, KEY, rule.init(family.init(KEY, like)))


def test_a_leaf_that_log_joint_never_reads_is_refused_in_a_climb():
    """B7: its scale grew for ever, in ascent as in the updates."""
    like = {"theta": jnp.zeros(2), "idle": jnp.zeros(())}
    with pytest.raises(ValueError, match="never reads 'idle'.*give it a prior"):
        climb(lambda q: lambda z: -jnp.sum(z["theta"] ** 2), like)
    climb(lambda q: lambda z: -jnp.sum(z["theta"] ** 2) - z["idle"] ** 2, like)
    prior = {"theta": independent(M, S), "idle": distrax.Normal(0.0, 1.0)}
    climb(lambda q: T.exact_kl(lambda z: -jnp.sum(z["theta"] ** 2), prior, q), like)
    # Outside of a fit it is a number like any other: the entropy, say.
    q = gaussian()
    ELBO(KEY, lambda z: 0.0 * z["b"], q, num_samples=2)


def test_dadvi_is_compiled_once_for_a_log_joint():
    compiled = []

    def log_joint(z):
        return -0.5 * jnp.sum((z - 1.0) ** 2)

    def heard(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    run = lambda seed: vj.solvers.dadvi(
        jax.random.key(seed), log_joint, F.mean_field(), jnp.zeros(2), num_samples=8
    )
    first = run(0)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        second = run(1)
        jax.block_until_ready(second)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert not compiled
    assert float(jnp.abs(first.params["loc"] - second.params["loc"]).max()) > 0
    np.testing.assert_allclose(second.params["loc"], 1.0, atol=1.0)


def test_strata_count_by_their_weights_in_a_fits_k_hat():
    """Log-weights of equal size but for what strata hold of q: with their shares q is exact."""
    weights = jnp.array([0.7, 0.1, 0.1, 0.1])
    log_w = -jnp.log(4 * weights)

    def step(key, state):
        draws = vj.Draws(None, log_w, jnp.zeros(4), weights)
        return state + 1, vj.types.Step(jnp.float32(0.0), draws)

    rule = vj.types.Rule(lambda x: x, step, lambda x: x)
    fit = vj.fitting.fit(KEY, rule, jnp.zeros(()), steps=16, stop=None, reports=())
    np.testing.assert_allclose(fit.log_w, 0.0, atol=1e-6)


# --- numbers that say how far they can be believed


def test_student_t_refuses_degrees_that_leave_the_range():
    """F10: degrees=.1 drew infinities."""
    params = F.full_rank().init(KEY, jnp.zeros(2))
    for degrees in (0.1, 0.3):
        with pytest.raises(ValueError, match="degrees must be at least 0.31 in float32"):
            F.student_t(degrees=degrees).dist(params)
    q = F.student_t(degrees=0.35).dist(params)
    z, log_q = q.sample_and_log_prob(seed=KEY, sample_shape=(20_000,))
    assert np.isfinite(z).all()
    assert np.isfinite(log_q).all()
    with pytest.raises(ValueError, match="at least 2.49 in float16"):
        F.student_t(degrees=2.0).dist(jax.tree.map(lambda a: a.astype(jnp.float16), params))


@pytest.mark.parametrize("loc", [100.0])
def test_linear_response_is_no_surer_than_floats_are(loc):
    """F10: of a Gaussian target the draws leave no error, and what was left was below rounding."""
    log_joint = lambda z: -0.5 * (z - loc) ** 2
    params = {"loc": jnp.array(loc), "log_scale": jnp.array(0.0)}
    found = vj.solvers.linear_response(KEY, log_joint, F.mean_field(), params, num_samples=4)
    assert found.error >= np.finfo(np.float32).eps * loc
    assert found.error < 1e-4


def test_a_flow_says_how_far_its_two_log_densities_are_apart():
    """F10: the sentence of the docstring hears large weights, and is silent of moderate ones."""
    family = F.inverse_autoregressive(hidden=(16, 16))
    start = family.init(KEY, jnp.zeros(5))
    leaves, tree = jax.tree.flatten(start["layers"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    random = [
        jax.random.normal(k, a.shape) / max(a.shape[0], 1) ** 0.5
        for k, a in zip(keys, leaves, strict=True)
    ]

    @jax.jit
    def apart(scale):
        layers = jax.tree.unflatten(tree, [scale * leaf for leaf in random])
        q = family.dist({"base": start["base"], "layers": layers})
        z, log_q = q.sample_and_log_prob(seed=jax.random.key(2), sample_shape=(200,))
        return jnp.max(jnp.abs(jax.vmap(q.log_prob)(z) - log_q))

    assert apart(1.0) < 1e-4
    assert apart(10.0) > 0.1
