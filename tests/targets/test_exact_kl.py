"""targets.exact_kl and exact_entropy: three forms of one ELBO, equal in mean, with gradients that are exact under every estimator."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import enumeration as enum
from tests.bare import Gauss
from tests.marks import some

exact_kl, exact_entropy, elbo = vj.targets.exact_kl, vj.targets.exact_entropy, vj.bounds.elbo
reparam = vj.gradients.reparam(elbo)


def normal_kl(q, p):
    ratio = jnp.exp(2 * (q.log_scale - p.log_scale))
    return (
        0.5 * (ratio + jnp.square(q.loc - p.loc) * jnp.exp(-2 * p.log_scale) - 1)
        + p.log_scale
        - q.log_scale
    )


class Normal(enum.Normal):
    kl_divergence = normal_kl
    entropy = lambda self: self.log_scale + 0.5 * np.log(2 * np.pi * np.e)


class Flip(enum.Flip):
    def kl_divergence(self, p):
        states = jnp.stack([jnp.zeros_like(self.logit), jnp.ones_like(self.logit)])
        own, other = jax.vmap(self.log_prob)(states), jax.vmap(p.log_prob)(states)
        return jnp.sum(jnp.exp(own) * (own - other), 0)

    def entropy(self):
        return -self.kl_divergence(Flip(jnp.zeros_like(self.logit))) + np.log(2.0)


class Known(Gauss):
    kl_divergence = normal_kl
    entropy = lambda self: self.log_scale + 0.5 * np.log(2 * np.pi * np.e)


# --- exact mean gradients, of q and of the model with its prior


def line():
    params = {
        "q": {"loc": 0.3, "log_scale": -0.5},
        "theta": {"loc": -0.2, "log_scale": 0.1, "gain": 0.7},
    }
    build = lambda q: Normal(q["loc"], q["log_scale"], 40)
    prior = lambda theta: Known(theta["loc"], theta["log_scale"])
    return params, build, prior, lambda theta, z: norm.logpdf(1.2, theta["gain"] * z, 0.8), (40,)


def coin():
    params = {"q": {"logit": 0.4}, "theta": {"logit": -0.7, "gain": 0.7}}
    prior = lambda theta: Flip(theta["logit"])
    return (
        params,
        lambda q: Flip(q["logit"]),
        prior,
        lambda theta, z: norm.logpdf(1.2, theta["gain"] * z, 0.8),
        (2,),
    )


def both():
    """A coin, a normal given the coin, and a coin given both: a prior of the same order, with conditionals of its own."""
    params = {
        "q": {"logit": 0.4, "loc": 0.3, "jump": 0.5, "slope": -0.6},
        "theta": {"logit": -0.7, "gain": 0.7, "jump": 0.2},
    }
    build = lambda q: {
        "b": Flip(q["logit"]),
        "a": lambda e: Normal(q["loc"] + q["jump"] * e["b"], jnp.full_like(q["loc"], -0.4), 24),
        "c": lambda e: Flip(q["slope"] * e["a"] + e["b"]),
    }
    prior = lambda theta: {
        "b": Flip(theta["logit"]),
        "a": lambda e: Known(theta["jump"] * e["b"], jnp.zeros_like(e["b"])),
        "c": lambda e: Flip(0.3 * e["a"]),
    }
    likelihood = lambda theta, z: norm.logpdf(1.2, theta["gain"] * z["a"] + z["b"] * z["c"], 0.8)
    return params, build, prior, likelihood, (2, 24, 2)


CASES = [
    *[(line, name) for name in ("reparam", "dreg", "score", "vimco")],
    *[(coin, name) for name in ("score", "vimco", "auto")],
    (both, "auto"),
]


def check(case, name, target):
    """Compare the mean over all noise of two draws with the derivative of the plain ELBO."""
    params, build, prior, likelihood, sizes = case()
    params = jax.tree.map(jnp.float64, params)
    whole = lambda theta, z: likelihood(theta, z) + vj.types.lift(prior(theta)).log_prob(z)
    problem = enum.Problem(params, build, whole, sizes)

    def make(theta):
        def run(key, _, q, *, num_samples):
            log_joint = target(partial(likelihood, theta), prior(theta), q)
            return getattr(vj.gradients, name)(elbo)(key, log_joint, q, num_samples=num_samples)

        return run

    expected = problem.truth(elbo, 2, symmetric=True)
    found = problem.mean(make, 2, symmetric=True)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-8), found, expected)


@pytest.mark.parametrize(
    "pair", some(CASES, "line-dreg", "coin-vimco", name=lambda p: f"{p[0].__name__}-{p[1]}")
)
def test_every_estimator_is_unbiased_for_it(pair, x64):
    case, name = pair
    with jax.numpy_rank_promotion("allow"):
        check(case, name, exact_kl)


@pytest.mark.parametrize(
    ("case", "name"), [(line, "dreg"), pytest.param(both, "auto", marks=pytest.mark.slow)]
)
def test_with_the_entropy_too(case, name, x64):
    whole = lambda likelihood, prior, q: exact_entropy(
        lambda z: likelihood(z) + vj.types.lift(prior).log_prob(z), q
    )
    with jax.numpy_rank_promotion("allow"):
        check(case, name, whole)


def test_a_wrong_divergence_is_seen(x64):
    """The control: KL(prior ‖ q) in its place is a bias, as is a KL at stopped parameters."""
    for wrong in (
        lambda q, p: normal_kl(p, q),
        lambda q, p: jax.lax.stop_gradient(normal_kl(q, p)),
    ):
        with pytest.raises(AssertionError), jax.numpy_rank_promotion("allow"):
            check(line, "reparam", partial(exact_kl, kl=wrong))


# --- the three forms: one mean, and variances in the order of the literature


X, WEAK = 1.5, 6.0


def forms(q, noise):
    prior, likelihood = Known(0.0, 0.0), lambda z: norm.logpdf(X, z, noise)
    whole = lambda z: likelihood(z) + norm.logpdf(z)
    return {
        "drawn": whole,
        "entropy": exact_entropy(whole, q),
        "KL": exact_kl(likelihood, prior, q),
    }


@partial(jax.jit, static_argnums=(3, 4))
def seen(params, keys, noise, form, estimator):
    def value(params, key):
        q = Known(*params)
        return getattr(vj.gradients, estimator)(elbo)(
            key, forms(q, noise)[form], q, num_samples=1
        ).value

    return jax.vmap(jax.value_and_grad(value), (None, 0))(params, keys)


def exact_elbo(params, noise):
    loc, s = params[0], jnp.exp(params[1])
    fit = norm.logpdf(X, loc, noise) - 0.5 * s**2 / noise**2
    return fit - normal_kl(Known(*params), Known(0.0, 0.0))


def spread(params, key, noise, form, estimator="reparam"):
    """Return the variances of the value and of the gradient, once their means are seen to be the ELBO's."""
    value, slopes = seen(params, jax.random.split(key, 20_000), noise, form, estimator)
    for found, expected in zip(
        (value, *slopes),
        (exact_elbo(params, noise), *jax.grad(exact_elbo)(params, noise)),
        strict=True,
    ):
        found = np.asarray(found, np.float64)
        assert abs(found.mean() - expected) < 6 * found.std() / np.sqrt(len(found)) + 1e-5
    return np.var(value), sum(np.var(s) for s in slopes)


def test_a_weak_likelihood_wants_the_exact_divergence(key):
    """With noise of 6 and q = N(.4, .6²), the variance of one draw in value is .0004, .12, .24, and of its slope .0008, .70, .70.

    A Gaussian's log q(z(ε)) differs from minus its entropy by a function of ε alone, so reparam's slopes of the two forms are one.
    """
    params = jnp.float32(0.4), jnp.log(jnp.float32(0.6))
    (of_kl, slope_kl), (of_entropy, slope_entropy), (of_drawn, slope_drawn) = (
        spread(params, key, WEAK, form) for form in ("KL", "entropy", "drawn")
    )
    assert 100 * of_kl < of_entropy < of_drawn
    assert 100 * slope_kl < slope_entropy
    np.testing.assert_allclose(slope_entropy, slope_drawn, rtol=1e-3)


def test_at_the_posterior_all_drawn_has_no_variance(key):
    """Roeder's point: there the drawn terms cancel, in value under every estimator and in slope under dreg; exact terms cannot."""
    params = jnp.float32(X / 2), jnp.log(jnp.sqrt(jnp.float32(0.5)))
    value, slope = spread(params, key, 1.0, "drawn", "dreg")
    assert value < 1e-10
    assert slope < 1e-10
    for form in ("entropy", "KL"):
        value, slope = spread(params, key, 1.0, form, "dreg")
        assert value > 0.1
        assert slope > 0.1


@pytest.mark.parametrize("form", ["entropy", "KL"])
def test_dreg_of_exact_terms_is_reparam_draw_by_draw(form, key):
    """No score of q comes in with the log q that is added and taken away."""
    params = jnp.float32(0.4), jnp.float32(-0.6)
    one, two = (
        seen(params, jax.random.split(key, 16), 1.0, form, name) for name in ("reparam", "dreg")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)


@pytest.mark.slow
def test_chunks_keys_and_factors(key):
    """Chunks equal the whole; noise in the likelihood and a dict of factors pass through."""
    q, prior = Known(jnp.array([0.3]), jnp.array([-0.5])), Known(jnp.zeros(1), jnp.zeros(1))
    plain = lambda z: norm.logpdf(1.2, z, 0.8)
    expected = reparam(key, exact_kl(plain, prior, q), q, num_samples=6).value
    keyed = vj.targets.keyed(lambda key, z: plain(z))
    for likelihood in (plain, lambda z: {"x": 0.5 * plain(z), "y": 0.5 * plain(z)}):
        for chunk in (None, 2):
            for objective in (reparam, vj.gradients.dreg(elbo)):
                found = objective(
                    key, exact_kl(likelihood, prior, q), q, num_samples=6, chunk_size=chunk
                ).value
                np.testing.assert_allclose(found, expected, rtol=2e-6)
    noisy = reparam(key, exact_kl(keyed, prior, q), q, num_samples=6)
    np.testing.assert_allclose(
        noisy.draws.log_w, vj.draws.weigh(key, exact_kl(keyed, prior, q), q, num_samples=6).log_w
    )
    aux = exact_kl(vj.targets.keyed(lambda key, z: (plain(z), z), has_aux=True), prior, q)
    found = reparam(key, aux, q, num_samples=6).draws
    np.testing.assert_allclose(found.aux, found.z)
    np.testing.assert_allclose(
        found.log_w, jax.vmap(lambda z: plain(z) - normal_kl(q, prior))(found.z), rtol=1e-5
    )
    np.testing.assert_allclose(
        exact_kl(plain, prior, q)(q.loc), plain(q.loc) - normal_kl(q, prior) + q.log_prob(q.loc)
    )


# --- whose divergence is known


FAMILIES = {
    "mean_field": vj.families.mean_field(scale=0.7),
    "full_rank": vj.families.full_rank(scale=0.5),
    "low_rank": vj.families.low_rank(rank=2, scale=0.9),
}


def member(name, seed):
    like = {"a": np.zeros(2), "b": np.zeros(())}
    params = FAMILIES[name].init(jax.random.key(0), jax.tree.map(jnp.asarray, like))
    rng = np.random.default_rng(seed)
    return FAMILIES[name].dist(jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), params))


def test_a_family_in_split(key):
    q, p = member("full_rank", 1), member("mean_field", 2)
    found = reparam(key, exact_kl(lambda z: z["b"], p, q), q, num_samples=3).draws
    np.testing.assert_allclose(found.log_w, found.z["b"] - q.kl_divergence(p), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.slow
def test_pairs_of_distrax(key):
    q = {
        "a": distrax.Normal(jnp.array([0.3, 0.1]), 0.5),
        "b": distrax.Bernoulli(logits=jnp.array([0.2, -0.4])),
    }
    p = {"a": distrax.Normal(jnp.zeros(2), 1.0), "b": distrax.Bernoulli(logits=jnp.zeros(2))}
    likelihood = lambda z: norm.logpdf(1.2, z["a"] + z["b"], 0.8)
    found = vj.gradients.auto(elbo)(key, exact_kl(likelihood, p, q), q, num_samples=5).draws
    kl = q["a"].kl_divergence(p["a"]) + q["b"].kl_divergence(p["b"])
    np.testing.assert_allclose(
        found.log_w, jax.vmap(likelihood)(found.z) - kl, rtol=1e-4, atol=1e-5
    )
    mixture = distrax.MixtureSameFamily(
        distrax.Categorical(jnp.zeros(2)), distrax.Normal(jnp.zeros(2), 1.0)
    )
    target = exact_kl(lambda z: norm.logpdf(z), distrax.Normal(0.0, 1.0), mixture)
    with pytest.raises(
        TypeError,
        match="MixtureSameFamily has no closed-form kl_divergence from Normal: leave it to",
    ):
        vj.gradients.vimco(elbo)(key, target, mixture, num_samples=2)
    with pytest.raises(TypeError, match="no closed-form entropy"):
        vj.gradients.vimco(elbo)(key, exact_entropy(norm.logpdf, mixture), mixture, num_samples=2)


# --- what is refused, and why


@pytest.mark.parametrize("bound", ["iwae", "renyi", "cubo", "eubo", "log_variance"])
@pytest.mark.parametrize("name", ["reparam", "vimco", "dreg"])
def test_any_other_bound_is_refused(bound, name, key):
    q = Known(0.0, 0.0)
    of = {"renyi": partial(vj.bounds.renyi, alpha=0.5), "cubo": partial(vj.bounds.cubo, n=2.0)}
    of = of.get(bound, getattr(vj.bounds, bound))
    for target in forms(q, 1.0).values():
        if target.__name__ == "target":
            with pytest.raises(ValueError, match="would exceed log p.*linear in log_w"):
                getattr(vj.gradients, name)(of)(key, target, q, num_samples=2)


def test_it_would_exceed_the_evidence(key):
    """The reason: IWAE of 1,000 draws of log p(x|z) - KL lies above log p(x) by more than .1; hiding the mark is no help."""
    q, (loc, scale) = Known(X / 2, jnp.log(jnp.sqrt(0.5))), (0.0, jnp.sqrt(2.0))
    hidden = lambda z: forms(q, 1.0)["KL"](z)
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(1000,))
    value = vj.bounds.iwae(jax.vmap(hidden)(z) - log_q)
    assert value > norm.logpdf(X, loc, scale) + 0.1
    with pytest.raises(
        ValueError, match=r"would exceed log p\(x\).*inside another function.*bounds\.elbo"
    ):
        vj.gradients.reparam(vj.bounds.iwae)(key, hidden, q, num_samples=1000)


@pytest.mark.usefixtures("unchecked")
def test_refusals(key):
    q, prior, likelihood = Known(0.0, 0.0), Known(0.0, 0.0), lambda z: norm.logpdf(X, z, 1.0)
    target = exact_kl(likelihood, prior, q)
    for objective in (vj.gradients.wake(elbo), vj.gradients.fixed(elbo)):
        with pytest.raises(ValueError, match="holds terms of q in closed form"):
            objective(key, target, q, num_samples=2)
    with pytest.raises(TypeError, match="Gauss has no closed-form kl_divergence from Known"):
        reparam(key, exact_kl(likelihood, prior, Gauss(0.0, 0.0)), q, num_samples=2)
    with pytest.raises(TypeError, match="Gauss has no closed-form entropy"):
        reparam(key, exact_entropy(likelihood, Gauss(0.0, 0.0)), q, num_samples=2)
    with pytest.raises(TypeError, match="distributions"):
        exact_kl(likelihood, prior, 3.0)
    with pytest.raises(ValueError, match="the same leaves"):
        reparam(key, exact_kl(lambda z: z["a"], {"b": prior}, {"a": q}), {"a": q}, num_samples=2)
    wide = {"a": q, "b": Known(jnp.zeros(3), jnp.zeros(3))}
    with pytest.raises(ValueError, match="share one batch shape"):
        reparam(key, exact_kl(lambda z: z["a"], wide, wide), wide, num_samples=2)
    long = Known(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match="the KL of q"):
        exact_kl(lambda z: jnp.sum(z), long, long)(jnp.zeros(3), log_q=jnp.zeros(()))
    other = vj.families.mean_field().dist(vj.families.mean_field().init(None, jnp.zeros(4)))
    with pytest.raises(ValueError, match="must be alike"):
        member("mean_field", 1).kl_divergence(other)


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.slow
def test_local_expectations_stay_exact(key):
    """Of one coin: at any key the gradient is that of the sum over both states, with no score of q left over."""
    likelihood, prior = lambda z: norm.logpdf(1.2, 0.7 * z, 0.8), distrax.Bernoulli(logits=-0.7)

    def drawn(logit, key):
        q = distrax.Bernoulli(logits=logit)
        objective = vj.gradients.local_expectation(elbo)
        return objective(key, exact_kl(likelihood, prior, q), q, num_samples=2).value

    def exact(logit):
        p = jax.nn.sigmoid(logit)
        fit = p * likelihood(1.0) + (1 - p) * likelihood(0.0)
        return fit - distrax.Bernoulli(logits=logit).kl_divergence(prior)

    found = jax.vmap(jax.grad(drawn), (None, 0))(jnp.float32(0.4), jax.random.split(key, 8))
    np.testing.assert_allclose(found, jnp.full(8, jax.grad(exact)(jnp.float32(0.4))), rtol=1e-4)
