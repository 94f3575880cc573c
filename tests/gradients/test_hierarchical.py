"""gdreg: the prior's parameters through the prior's own reparameterisation, in a hierarchy of two latents."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles, table
from tests.bare import Coin, Gauss
from tests.statistics import assert_mean, assert_variance_ratio

PARAMS = jax.tree.map(
    np.float32,
    {
        "q": {"top": {"loc": 0.5, "log_scale": -0.4}, "low": {"loc": 0.9, "log_scale": -0.5}},
        "prior": {"loc": -0.2, "log_scale": 0.1, "slope": 0.7, "log_noise": -0.2},
        "theta": 0.3,
    },
)
POINTS, VOLUMES = oracles.cross(oracles.interval(-3.7, 4.7, 24), oracles.interval(-2.9, 4.7, 24))
POINTS = {"top": POINTS[0], "low": POINTS[1]}


class Prior:
    """Two Gaussians in a chain: top ~ N(loc, scale²), low | top ~ N(slope top, noise²)."""

    def __init__(self, p):
        self.p = p

    def log_prob(self, z):
        p = self.p
        log_p = norm.logpdf(z["top"], p["loc"], jnp.exp(p["log_scale"]))
        return log_p + norm.logpdf(z["low"], p["slope"] * z["top"], jnp.exp(p["log_noise"]))

    def push(self, e):
        top = self.p["loc"] + jnp.exp(self.p["log_scale"]) * e["top"]
        return {"top": top, "low": self.p["slope"] * top + jnp.exp(self.p["log_noise"]) * e["low"]}

    def pull(self, z):
        p = self.p
        low = (z["low"] - p["slope"] * z["top"]) * jnp.exp(-p["log_noise"])
        return {"top": (z["top"] - p["loc"]) * jnp.exp(-p["log_scale"]), "low": low}


def log_joint(params, z):
    return Prior(params["prior"]).log_prob(z) + norm.logpdf(1.4, z["low"] + params["theta"], 0.6)


def log_q(params, z):
    return sum(norm.logpdf(z[n], p["loc"], jnp.exp(p["log_scale"])) for n, p in params["q"].items())


def build(q):
    return {name: Gauss(p["loc"], p["log_scale"]) for name, p in q.items()}


def gdreg(bound, prior, **wrong):
    return vj.gradients.gdreg(
        bound, **{"prior": prior, "push": prior.push, "pull": prior.pull} | wrong
    )


def gradients(key, makers, k, n, params=PARAMS, **how):
    """Return the gradient under every maker, prior -> objective, for n keys."""

    def value(params, make, key):
        objective = make(Prior(params["prior"]))
        return objective(
            key, lambda z: log_joint(params, z), build(params["q"]), num_samples=k, **how
        ).value

    every = lambda key: {n: jax.grad(value)(params, make, key) for n, make in makers.items()}
    return jax.jit(jax.vmap(every))(jax.random.split(key, n))


BOUNDS = {"elbo": vj.bounds.elbo, "iwae": vj.bounds.iwae, "own": table.own_bound}


def truth(bound, k=2):
    return oracles.value_and_grad(bound, log_joint, log_q, POINTS, VOLUMES, k, PARAMS)[1]


@pytest.mark.slow
def test_unbiased(key):
    """Every parameter of q, prior and likelihood, three bounds at K = 2. By chance 2e-10 a number; detects .06."""
    makers = {name: lambda prior, b=bound: gdreg(b, prior) for name, bound in BOUNDS.items()}
    found = gradients(key, makers, 2, 60_000)
    assert_mean(
        found,
        {
            "elbo": truth(vj.bounds.elbo, 1),
            "iwae": truth(vj.bounds.iwae),
            "own": truth(table.own_bound),
        },
        detects=0.06,
    )


def test_wrong_pairs_fail(key):
    """A push and a pull that are another prior's, and gates in each other's place, are biased by more than is detected."""

    def other(prior):
        stiff = Prior({**prior.p, "slope": jax.lax.stop_gradient(prior.p["slope"])})
        return gdreg(vj.bounds.iwae, prior, push=stiff.push, pull=stiff.pull)

    found = gradients(key, {"other": other}, 2, 60_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found["other"]["prior"], truth(vj.bounds.iwae)["prior"], detects=0.06)


def test_a_prior_that_is_no_factor(key):
    """Any prior is unbiased, if not useful: here one that log_joint does not hold. Detects .15."""
    wide = Prior({**PARAMS["prior"], "loc": np.float32(0.3), "log_scale": np.float32(0.4)})
    found = gradients(key, {"wide": lambda prior: gdreg(vj.bounds.iwae, wide)}, 2, 60_000)
    assert_mean(found["wide"], truth(vj.bounds.iwae), detects=0.15)


def test_variance_beside_dreg(key):
    """(noise of the likelihood / scale of the prior)⁴, at the exact posterior of one Gaussian; all else is dreg's.

    z ~ N(loc, 1), x | z ~ N(z, noise²), K = 16: less where the likelihood says little, more where it says much.
    """

    def value(loc, make, noise, key):
        prior = Gauss(loc, jnp.float32(0.0))
        prior.push, prior.pull = lambda e: loc + e, lambda z: z - loc
        precision = 1 + noise**-2
        q = {
            "loc": (0.5 + 1.0 * noise**-2) / precision,
            "log_scale": jnp.full((), -0.5 * np.log(precision)),
        }
        target = lambda z: prior.log_prob(z) + norm.logpdf(1.0, z, noise)
        return make(prior)(
            key, target, Gauss(jnp.full((), q["loc"]), q["log_scale"]), num_samples=16
        ).value

    makers = {
        "dreg": lambda prior: vj.gradients.dreg(vj.bounds.iwae),
        "gdreg": lambda prior: gdreg(vj.bounds.iwae, prior),
    }
    every = lambda key: {
        (name, noise): jax.grad(value)(jnp.float32(0.5), make, noise, key)
        for name, make in makers.items()
        for noise in (0.7, 1.5, 2.0)
    }
    found = jax.jit(jax.vmap(every))(jax.random.split(key, 20_000))
    assert_variance_ratio(found["dreg", 1.5], found["gdreg", 1.5], at_least=0.75 * 1.5**4)
    assert_variance_ratio(found["dreg", 2.0], found["gdreg", 2.0], at_least=0.75 * 2.0**4)
    assert_variance_ratio(found["gdreg", 0.7], found["dreg", 0.7], at_least=0.75 * 0.7**-4)


def test_the_rest_is_dreg(key):
    """Gradients of q and of the likelihood, draw by draw, and value."""
    makers = {
        "dreg": lambda prior: vj.gradients.dreg(vj.bounds.iwae),
        "gdreg": lambda prior: gdreg(vj.bounds.iwae, prior),
    }
    found = gradients(key, makers, 4, 100)
    close = lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-3, atol=1e-5)
    for part in ("q", "theta"):
        jax.tree.map(close, found["gdreg"][part], found["dreg"][part])


@pytest.mark.slow
def test_transforms(key):
    """chunks = whole."""
    make = {"gdreg": lambda prior: gdreg(vj.bounds.iwae, prior)}
    whole, pieces = (gradients(key, make, 7, 3, chunk_size=size) for size in (None, 3))
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5), pieces, whole)


def test_refusals(key, unchecked):
    """A q without a path, a prior of moving support, a push that jumps, a push of another shape."""
    z = {"top": jnp.float32(0.0), "low": jnp.float32(0.0)}
    q, prior = build(PARAMS["q"]), Prior(jax.tree.map(jnp.asarray, PARAMS["prior"]))
    run = lambda q=q, **wrong: gdreg(vj.bounds.iwae, prior, **wrong)(
        key, lambda z: log_joint(PARAMS, z), q, num_samples=2
    )
    assert np.isfinite(run().value)
    with pytest.raises(TypeError, match=r"push\(pull\(z\)\) must be like z"):
        run(push=lambda e: prior.push(e)["top"])
    with pytest.raises(
        ValueError, match=r"push reaches leaf 'top' through 'floor'.*gradients.dreg"
    ):
        run(push=lambda e: {**z, "top": jnp.floor(prior.push(e)["top"])})

    def turned(e):  # by a sign that a parameter and a draw choose together
        top = prior.push(e)["top"]
        matrix = jnp.eye(2) * PARAMS["prior"]["loc"] + jnp.outer(
            jnp.array([top.ravel()[0], 1.0]), jnp.ones(2)
        )
        return {**z, "top": top * jnp.linalg.qr(matrix)[0][0, 0]}

    with pytest.raises(ValueError, match="push reaches leaf 'top' through 'qr'"):
        run(push=turned)
    box = distrax.Uniform(jnp.float32(-9.0), jnp.float32(9.0))
    with pytest.raises(
        ValueError, match=r"gdreg of this prior.*support is fixed.*moves with q's parameters"
    ):
        vj.gradients.gdreg(vj.bounds.elbo, prior=box, push=lambda e: 9 * e, pull=lambda z: z / 9)(
            key, lambda z: -(z**2), Gauss(jnp.float32(0.0), jnp.float32(0.0)), num_samples=2
        )
    with pytest.raises(ValueError, match="gdreg needs draws that carry the derivative"):
        run(q={**q, "top": Coin(jnp.float32(0.3))})


class Line:
    """A normal prior of unit scale, of which only the density is stated."""

    def __init__(self, loc):
        self.loc = loc

    def log_prob(self, z):
        return -0.5 * (z - self.loc) ** 2


@pytest.mark.parametrize(
    ("q", "refused"),
    [
        (lambda: distrax.Beta(1.3, 1.0), True),  # density 1.3 at 1: found 1.57, truth .365
        (lambda: distrax.Gamma(1.0, 1.0), True),
        (lambda: distrax.Normal(0.3, 1.0), False),
        (lambda: vj.families.mean_field().dist({"loc": jnp.zeros(()), "log_scale": 0.0}), False),
    ],
    ids=["Beta", "Gamma", "Normal", "a family"],
)
def test_a_prior_must_not_carry_an_end_of_q_along(q, refused, key, unchecked):
    """Draws that follow the prior leave q's support where it ends, and the derivative misses that."""

    def value(loc):
        objective = vj.gradients.gdreg(
            vj.bounds.elbo, prior=Line(loc), push=lambda e: loc + e, pull=lambda z: z - loc
        )
        return objective(key, lambda z: Line(loc).log_prob(z) - z**2, q(), num_samples=2).value

    if refused:
        with pytest.raises(ValueError, match="carries an end of q's support along.*use gradients"):
            jax.eval_shape(jax.grad(value), 0.2)
    else:
        jax.eval_shape(jax.grad(value), 0.2)
