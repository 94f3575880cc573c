"""gradients.each: leaves under estimators of their own, against sums over all noise; and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Coin, Gauss
from tests.marks import but
from tests.statistics import assert_mean
from vijax.gradients import (
    _each,
    disarm,
    dreg,
    each,
    local_expectation,
    reparam,
    straight_through,
    vimco,
)

elbo, iwae = vj.bounds.elbo, vj.bounds.iwae
PARAMS = {
    "q": {"loc": jnp.array(0.3), "log_scale": jnp.array(-0.4), "logit": jnp.array(0.4)},
    "theta": jnp.array(0.7),
}


class Shown(Coin):
    """A coin that shows its logits, as estimators which count states ask."""

    @property
    def logits(self):
        return self.logit


def posterior(q):
    return {"z": Gauss(q["loc"], q["log_scale"]), "bit": Shown(q["logit"])}


def log_joint(theta, z):
    prior = norm.logpdf(z["z"], theta * (2 * z["bit"] - 1), 1.0) - jnp.log(2.0)
    return prior + norm.logpdf(0.9, z["z"] + 0.5 * z["bit"], 0.8)


def truth(bound, k):
    """The gradient by quadrature of the Gaussian and both states of the coin, of k draws."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(14)
    weights = jnp.asarray(weights / weights.sum(), jnp.float32)

    def value(params):
        q, theta = params["q"], params["theta"]
        z = jnp.repeat(q["loc"] + jnp.exp(q["log_scale"]) * jnp.asarray(nodes, jnp.float32), 2)
        bit = jnp.tile(jnp.array([0.0, 1.0]), 14)
        log_w = (
            log_joint(theta, {"z": z, "bit": bit})
            - posterior(q)["z"].log_prob(z)
            - posterior(q)["bit"].log_prob(bit)
        )
        chance = jnp.repeat(weights, 2) * jnp.exp(posterior(q)["bit"].log_prob(bit))
        grid = jnp.meshgrid(*[jnp.arange(28)] * k, indexing="ij")
        draws = jnp.stack([g.ravel() for g in grid])
        return jnp.sum(jnp.prod(chance[draws], 0) * bound(log_w[draws]))

    return jax.grad(value)(PARAMS)


def gradients(objective, k, n=60_000):
    def one(key):
        value = lambda p: (
            objective(key, partial(log_joint, p["theta"]), posterior(p["q"]), num_samples=k).value
        )
        return jax.grad(value)(PARAMS)

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=2000))(
        jax.random.split(jax.random.key(0), n)
    )


CASES = {
    "dreg and vimco of iwae": ({"z": dreg, "bit": vimco}, iwae, 2),
    "vimco first": ({"bit": vimco, "z": dreg}, iwae, 2),
    "reparam and disarm": ({"z": reparam, "bit": disarm}, elbo, 2),
    "dreg and local expectation": ({"z": dreg, "bit": local_expectation}, elbo, 1),
}


@pytest.mark.parametrize("case", but(CASES, "dreg and local expectation", "dreg and vimco of iwae"))
def test_its_mean_is_the_gradient(case):
    estimators, bound, k = CASES[case]
    assert_mean(gradients(each(bound, estimators), k), truth(bound, k), detects=0.06)


def test_what_is_wrong_is_seen(monkeypatch):
    """A biased leaf, and a model that learns from every leaf: two controls of the test above."""
    biased = each(elbo, {"z": reparam, "bit": partial(straight_through, temperature=0.5)})
    with pytest.raises(AssertionError, match="logit.* is biased"):
        assert_mean(gradients(biased, 2), truth(elbo, 2), detects=0.06)
    monkeypatch.setattr(_each, "_by_draws_alone", lambda log_p, z: log_p(z))
    with pytest.raises(AssertionError, match="theta.* is biased"):
        assert_mean(
            gradients(each(elbo, CASES["reparam and disarm"][0]), 2), truth(elbo, 2), detects=0.06
        )


@pytest.mark.slow
def test_batches_chunks_tuples_and_auxiliary_output():
    """A batch of three and a keyed model: chunks change nothing, and draws come back whole where they are kept."""
    loc, logit = jnp.arange(3.0), jnp.linspace(-1.0, 1.0, 3)

    def model(key, z):
        x, bit = z
        return -0.5 * (x - bit) ** 2 + 0.1 * jax.random.normal(key), {"seen": bit}

    objective, target = each(elbo, (dreg, vimco)), vj.targets.keyed(model, has_aux=True)

    def run(loc, key, **keywords):
        found = objective(
            key, target, (Gauss(loc, jnp.zeros(3)), Coin(logit)), num_samples=4, **keywords
        )
        return jnp.sum(found.value), found

    slopes, whole = jax.jit(jax.grad(run, has_aux=True))(loc, jax.random.key(1))
    in_chunks, chunked = jax.jit(partial(jax.grad(run, has_aux=True), chunk_size=2))(
        loc, jax.random.key(1)
    )
    np.testing.assert_allclose(slopes, in_chunks, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.value, chunked.value, rtol=1e-5, atol=1e-6)
    x, bit = whole.draws.z
    assert chunked.draws.z is None
    assert x.shape == bit.shape == whole.draws.log_w.shape == (4, 3)
    np.testing.assert_array_equal(whole.draws.aux["seen"], bit)
    log_q = jax.vmap(
        lambda x, bit: Gauss(loc, jnp.zeros(3)).log_prob(x) + Coin(logit).log_prob(bit)
    )(x, bit)
    np.testing.assert_allclose(whole.draws.log_q, log_q, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole.value, jnp.mean(whole.draws.log_w, 0), rtol=1e-5, atol=1e-6)
    several = jax.vmap(lambda key: jax.grad(run, has_aux=True)(loc, key)[0])(
        jax.random.split(jax.random.key(1), 2)
    )
    assert several.shape == (2, 3)
    assert jnp.all(jnp.isfinite(several))


def test_refusals():
    key, p = jax.random.key(0), lambda z: log_joint(0.7, z)
    pair, q = {"z": dreg, "bit": vimco}, posterior(PARAMS["q"])
    run = lambda estimators, q, target=p, bound=elbo: each(bound, estimators)(
        key, target, q, num_samples=2
    )
    with pytest.raises(ValueError, match=r"for the leaves \['z'\], and q has \['z', 'bit'\]"):
        run({"z": dreg}, q)
    with pytest.raises(TypeError, match="several leaves"):
        run(pair, q["z"])
    with pytest.raises(ValueError, match=r"'bit' of q is given earlier leaves.*gradients\.auto"):
        run(pair, q | {"bit": lambda e: Coin(e["z"])})
    with pytest.raises(ValueError, match="no path|cannot|vimco"):
        run({"z": dreg, "bit": reparam}, q)
    with pytest.raises(ValueError, match="shape"):
        run(pair, q, lambda z: jnp.zeros(3) + z["z"])
    with pytest.raises(ValueError, match="shape"):
        run(pair, q | {"bit": Coin(jnp.zeros(3))})
    with pytest.raises(TypeError, match="carries a state|not an Estimate"):
        run(pair | {"bit": lambda bound: lambda *a, **k: (vimco(bound)(*a, **k), None)}, q)
    with pytest.raises(ValueError, match="closed form"):
        run(pair, q, vj.targets.exact_entropy(p, q["z"]))
    part = vj.targets.minibatch(lambda z: 0.0 * z["z"], lambda z: p(z)[None], num_data=8)
    with pytest.raises(ValueError, match="linear in log_w"):
        run(pair, q, part, iwae)
