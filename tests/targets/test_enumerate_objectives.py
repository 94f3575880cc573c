"""targets.enumerate under objectives: unbiased on a mixture, with every estimator, in minibatches, and beside collapse."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import enumeration as enum
from tests.bare import Gauss

enumerate_ = vj.targets.enumerate
X = jnp.array([0.3, -1.0, 2.0, 0.1])
PARAMS = {"z": jnp.array([0.1, 1.2, -0.8]), "logits": jnp.array([0.2, -0.4, 0.9])}


def mixture(p, c):
    log_weights = jax.nn.log_softmax(p["logits"])
    return {
        "prior": jnp.sum(norm.logpdf(p["z"])),
        "x": log_weights[c] + norm.logpdf(X, p["z"][c], 0.7),
    }


@pytest.mark.slow
def test_the_candidates_identity():
    """collapse by the posterior is enumerate; and q(z) p(c | x, z) on the whole target has enumerate's log-weights."""
    target, posterior = enumerate_(mixture, 3, plate=(4,))
    whole = lambda z, c: sum(jnp.sum(f) for f in mixture(z, c).values())
    collapsed = vj.targets.collapse(whole, posterior, key=jax.random.key(3))
    np.testing.assert_allclose(collapsed(PARAMS), target(PARAMS), rtol=1e-6)
    q = {
        "z": Gauss(PARAMS["z"], jnp.zeros(3), event=1),
        "c": lambda e: posterior(PARAMS | {"z": e["z"]}),
    }
    draws = vj.draws.weigh(
        jax.random.key(1), lambda z: whole(PARAMS | {"z": z["z"]}, z["c"]), q, num_samples=5
    )
    alone = jax.vmap(lambda z: target(PARAMS | {"z": z}) - q["z"].log_prob(z))(draws.z["z"])
    np.testing.assert_allclose(draws.log_w, alone, rtol=2e-5)


@pytest.mark.slow
def test_dreg_of_iwae_on_a_mixture_is_the_truth(x64):
    """Mean over all noise of two draws, at 90 Gauss-Hermite nodes, against derivatives of the mixture written plainly.

    The control enumerates with a wrong weight of the components, and is found.
    """
    params = {
        "q": {"loc": jnp.float64(0.4), "log_scale": jnp.float64(-0.3)},
        "theta": {"logit": jnp.float64(0.6), "jump": jnp.float64(1.5)},
    }
    build = lambda q: enum.Normal(q["loc"], q["log_scale"], 90)
    log_sigmoid = jax.nn.log_sigmoid

    def target(theta, z, slip=0.0):
        def log_joint(z, c):
            terms = log_sigmoid((2 * c - 1) * theta["logit"] + slip) + norm.logpdf(
                X, z + theta["jump"] * c, 1.0
            )
            return {"z": norm.logpdf(z), "x": terms}

        return enumerate_(log_joint, 2, plate=(4,)).log_joint(z)

    def plainly(theta, z):
        one, two = log_sigmoid(-theta["logit"]), log_sigmoid(theta["logit"])
        terms = [
            jnp.logaddexp(one + norm.logpdf(x, z), two + norm.logpdf(x, z + theta["jump"]))
            for x in X
        ]
        return norm.logpdf(z) + sum(terms)

    slopes = {}
    for name, log_p in {
        "found": target,
        "plain": plainly,
        "off": lambda t, z: target(t, z, 0.1),
    }.items():
        problem = enum.Problem(params, build, log_p, (90,))
        make = lambda theta: vj.gradients.dreg(vj.bounds.iwae)
        if name == "plain":
            slopes[name] = problem.truth(vj.bounds.iwae, 2, symmetric=True)
        else:
            slopes[name] = problem.mean(make, 2, symmetric=True)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, atol=1e-5), slopes["found"], slopes["plain"]
    )
    off = jax.tree.map(lambda f, e: float(jnp.abs(f - e)), slopes["off"], slopes["plain"])
    assert min(jax.tree.leaves(off)) > 1e-3


@pytest.mark.parametrize(
    "make", [vj.gradients.reparam, vj.gradients.dreg, vj.gradients.score], ids=lambda m: m.__name__
)
def test_every_estimator_takes_it(make, key, loose_ranks):
    """A batch of local mixtures, chunked as whole, with a gradient; the bound lies below the evidence."""
    q = lambda loc: distrax.Normal(loc, 0.8)
    target = enumerate_(
        lambda z, c: norm.logpdf(z) - jnp.log(2.0) + norm.logpdf(X, z + 2 * c, 1.0), 2, batch=(4,)
    )
    value = lambda loc, chunk: (
        make(vj.bounds.iwae)(key, target.log_joint, q(loc), num_samples=8, chunk_size=chunk).value
    )
    run = lambda chunk: jax.jit(jax.value_and_grad(lambda loc: value(loc, chunk).sum()))(X / 2)
    (whole, slope), (chunked, chunked_slope) = run(None), run(4)
    np.testing.assert_allclose(whole, chunked, rtol=1e-5)
    np.testing.assert_allclose(slope, chunked_slope, rtol=1e-4, atol=1e-5)


def test_a_minibatch_of_sites():
    """Sites of a minibatch as members of a batch, and minibatch's N/B on their terms."""
    z = PARAMS["z"]
    terms = lambda x: (
        enumerate_(lambda z, c: norm.logpdf(x, z[c], 1.0), 3, batch=(len(x),)).log_joint
    )
    prior = lambda z: jnp.sum(norm.logpdf(z))
    target = vj.targets.minibatch(prior, terms(X[:2]), num_data=4)
    np.testing.assert_allclose(target(z), prior(z) + 2 * jnp.sum(terms(X[:2])(z)), rtol=1e-6)
    with pytest.raises(ValueError, match="minibatch estimate"):
        enumerate_(target, 3, plate=(4,))
