"""targets.gauss_hermite: closed-form expectations, an ELBO without noise, concave where its sites are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import t as student

import vijax as vj
from tests.marks import some

gauss_hermite, exact_kl = vj.targets.gauss_hermite, vj.targets.exact_kl
error = vj.targets.gauss_hermite_error
elbo = vj.bounds.elbo

RNG = np.random.default_rng(0)
N, D = 12, 3
X = RNG.normal(size=(N, D))
X[4] = 0.0  # a predictor that does not vary under q
COUNTS = RNG.poisson(2.0, N)
SIGN = RNG.choice([-1.0, 1.0], N)
LIKE = {"w": np.zeros(D - 1), "c": np.zeros(())}
FAMILIES = {
    "mean_field": vj.families.mean_field(scale=0.4),
    "full_rank": vj.families.full_rank(scale=0.4),
    "low_rank": vj.families.low_rank(rank=2, scale=0.4),
}


def predictor(z):
    return (
        jnp.asarray(X[:, 0], z["c"].dtype) * z["c"]
        + jnp.asarray(X[:, 1:], z["c"].dtype) @ z["w"]
        + 0.3
    )


def poisson(x):
    return jnp.asarray(COUNTS, x.dtype) * x - jnp.exp(x)


def start(family, dtype=np.float64):
    params = family.init(jax.random.key(3), jax.tree.map(lambda a: jnp.asarray(a, dtype), LIKE))
    return jax.tree.map(
        lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), params
    )


def covariance(params):
    """Cov of (c, w) in the order of the leaves' names."""
    s = jnp.exp(jnp.concatenate([params["log_scale"]["c"][None], params["log_scale"]["w"]]))
    if "lower" in params:
        root = s[:, None] * jnp.eye(D).at[jnp.tril_indices(D, -1)].set(params["lower"])
        return root @ root.T
    factor = params.get("factor", jnp.zeros((D, 1)))
    return jnp.diag(s**2) + factor @ factor.T


def exactly(family, params):
    """E_q[Σ y x - eˣ] in closed form, minus the divergence from N(0, 1)."""
    variance = jnp.einsum("ni,ij,nj->n", X, covariance(params), X)
    mean = predictor(params["loc"])
    q, p = family.dist(params), family.dist(family.init(jax.random.key(0), LIKE))
    return jnp.sum(COUNTS * mean - jnp.exp(mean + 0.5 * variance)) - q.kl_divergence(p)


@pytest.mark.parametrize("name", some(FAMILIES, "mean_field"))
def test_the_elbo_in_closed_form(name, x64):
    """Value and gradient, by reparam and dreg, whatever the key; three nodes are not enough."""
    family = FAMILIES[name]
    prior = family.dist(family.init(jax.random.key(0), LIKE))

    def bound(params, key, make=vj.gradients.reparam, nodes=32):
        q = family.dist(params)
        target = exact_kl(gauss_hermite(poisson, predictor, q, nodes=nodes), prior, q)
        return make(elbo)(key, target, q, num_samples=2).value

    both = [
        jax.value_and_grad(lambda p, k, m=m: bound(p, k, m))
        for m in (vj.gradients.reparam, vj.gradients.dreg)
    ]
    params, keys = start(family), [jax.random.key(seed) for seed in (0, 1)]
    run = jax.jit(
        lambda p: ([f(p, k) for f, k in zip(both, keys, strict=True)], bound(p, keys[0], nodes=3))
    )
    found, coarse = run(params)
    expected = jax.jit(jax.value_and_grad(lambda p: exactly(family, p)))(params)
    for one in found:
        jax.tree.map(
            lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-9), one, expected
        )
    assert abs(coarse - expected[0]) > 1e-3


def test_batches_by_vmap_in_single_precision(key):
    family = FAMILIES["full_rank"]
    many = jax.tree.map(lambda a: jnp.stack([a, a + 0.2]), start(family, np.float32))
    value = lambda p: gauss_hermite(poisson, predictor, family.dist(p))(p["loc"])
    mapped = jax.jit(jax.vmap(jax.value_and_grad(value)))(many)
    assert mapped[0].dtype == jnp.float32
    one = jax.jit(jax.value_and_grad(value))(jax.tree.map(lambda a: a[1], many))
    jax.tree.map(
        lambda m, o: np.testing.assert_allclose(m[1], o, rtol=2e-4, atol=2e-4), mapped, one
    )


@pytest.mark.parametrize(
    ("log_site", "concave"),
    [
        (lambda x: jax.nn.log_sigmoid(3 * SIGN * x), True),
        (lambda x: student.logpdf(9 * (x - 2 * SIGN), 1.0), False),
    ],
    ids=["logistic", "Student-t"],
)
def test_concave_in_mean_and_cholesky_where_the_sites_are(log_site, concave, x64):
    """Midpoints of 400 random segments, of the ELBO with prior N(0, 10²)."""
    family = vj.families.full_rank(scale=10.0)

    def bound(mean, root):
        """Of q = N(mean, root rootᵀ), in the family's own parameters."""
        s = jnp.diag(root)
        lower = (root / s[:, None])[jnp.tril_indices(D, -1)]
        q = family.dist({"loc": mean, "log_scale": jnp.log(s), "lower": lower})
        kl = q.kl_divergence(family.dist(family.init(jax.random.key(0), jnp.zeros(D))))
        return gauss_hermite(log_site, lambda z: jnp.asarray(X) @ z, q, nodes=60)(mean) - kl

    roots = np.tril(0.2 * RNG.normal(size=(2, 400, D, D)), -1) + np.eye(D) * np.exp(
        RNG.normal(size=(2, 400, D, 1)) - 1.0
    )
    ends = jnp.asarray(RNG.normal(size=(2, 400, D))), jnp.asarray(roots)

    @jax.jit
    def slack(ends):
        values = jax.vmap(jax.vmap(bound))(*ends)
        return jax.vmap(bound)(*jax.tree.map(lambda a: jnp.mean(a, 0), ends)) - jnp.mean(values, 0)

    found = slack(ends)
    assert (found.min() > 0) == concave
    assert np.sum(found < -1e-3) > 10 or concave


def test_it_goes_with_linear_bounds_alone(key):
    family = FAMILIES["mean_field"]
    q = family.dist(start(family, np.float32))
    target = exact_kl(gauss_hermite(poisson, predictor, q), q, q)
    for alone in (target, gauss_hermite(poisson, predictor, q)):
        with pytest.raises(ValueError, match="must be linear in log_w"):
            vj.gradients.reparam(vj.bounds.iwae)(key, alone, q, num_samples=2)


LINEAR = {
    "a scan": lambda z: jax.lax.scan(lambda c, w: (c + 2 * w, c), z["c"], z["w"])[1],
    "a convolution": lambda z: jnp.convolve(z["w"], jnp.array([1.0, 2.0])),
    "a choice by data": lambda z: jnp.where(jnp.array([True, False]), z["w"], -z["c"]),
    "quotients": lambda z: z["w"][::-1] / 3 - jnp.sum(z["w"]),
}


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_passes(name):
    q = FAMILIES["mean_field"].dist(start(FAMILIES["mean_field"], np.float32))
    assert (
        jax.eval_shape(
            gauss_hermite(lambda x: -(x**2), LINEAR[name], q), q.affine(jnp.zeros(D))
        ).shape
        == ()
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("bent", "how"),
    [
        (lambda z: jnp.exp(z["w"]), "exp"),
        (lambda z: jnp.abs(z["w"]), "abs"),
        (lambda z: jax.nn.relu(z["w"]), "max|jit|relu|gt|select_n"),
        (lambda z: z["w"] * z["c"], "mul"),
        (lambda z: jnp.where(z["c"] > 0, z["w"], 0.0), r"\w+"),
        (lambda z: 1 / z["c"], "div"),
    ],
)
def test_what_is_not_linear_is_refused(bent, how):
    q = FAMILIES["mean_field"].dist(start(FAMILIES["mean_field"], np.float32))
    with pytest.raises(
        ValueError, match=rf"predictor is not linear in z: '({how})' keeps z .* log_site"
    ):
        gauss_hermite(lambda x: -(x**2), bent, q)(q.affine(jnp.zeros(D)))


# --- sites that nodes do not integrate

BENT = {  # a site, and the name of its kink or jump
    "Laplace": (lambda x: jax.scipy.stats.laplace.logpdf(0.3, x, 0.05), "abs"),
    "hinge": (lambda x: -jnp.maximum(0.0, 1 - SIGN * x), "max"),
    "step": (lambda x: jnp.where(SIGN * x > 0, 0.0, -5.0), "select_n|gt"),
    "relu": (lambda x: -jax.nn.relu(x), "max"),
    "of rounded x": (lambda x: -((x - jnp.round(x)) ** 2), "round"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BENT)
def test_a_site_with_a_kink_is_refused(name):
    """Nodes step over it: of a narrow Laplace site the slope of the mean came out 3e-7 for 1.593."""
    site, how = BENT[name]
    q = FAMILIES["mean_field"].dist(start(FAMILIES["mean_field"], np.float32))
    words = rf"log_site is not smooth in x.*'({how})'.*gradients.reparam\(bounds.elbo\)"
    for run in (gauss_hermite(site, predictor, q), jax.jit(gauss_hermite(site, predictor, q))):
        with pytest.raises(ValueError, match=words):
            run(q.affine(jnp.zeros(D)))
    with pytest.raises(ValueError, match=words):
        error(site, predictor, q)


def test_a_declared_site_passes(x64):
    """A logistic site by max and abs, whose kinks cancel: refused, and right once it is declared."""

    def site(x):
        return -(jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x))))

    q = FAMILIES["mean_field"].dist(start(FAMILIES["mean_field"]))
    z = q.affine(jnp.zeros(D))
    with pytest.raises(ValueError, match="types.derive"):
        gauss_hermite(site, predictor, q)(z)
    declared = vj.types.derive(site, site, smooth=True)
    plain = gauss_hermite(lambda x: -jax.nn.softplus(x), predictor, q)
    np.testing.assert_allclose(gauss_hermite(declared, predictor, q)(z), plain(z), rtol=1e-12)


SHARP = {  # a smooth site, the sd of x, and whether 32 nodes integrate it to 1e-4
    "logistic": (jax.nn.log_sigmoid, 2.0, True),
    "Student-t": (lambda x: student.logpdf(x, 4.0), 2.0, True),
    "narrow Cauchy": (lambda x: jax.scipy.stats.cauchy.logpdf(x, 0.0, 0.05), 1.0, False),
    "narrow Student-t": (lambda x: student.logpdf(x, 4.0, 0.0, 0.2), 4.0, False),
    "|x| that no form shows": (lambda x: -jnp.sqrt(x**2 + 1e-12), 1.0, False),
}


@pytest.mark.parametrize("name", SHARP)
def test_the_error_of_a_site(name, x64):
    """Twice the nodes tell those that are integrated from those that are not, within a factor of 20."""
    site, sd, fine = SHARP[name]
    q = FAMILIES["mean_field"].dist({"loc": jnp.array(0.3), "log_scale": jnp.log(sd)})
    grid = jnp.linspace(0.3 - 12 * sd, 0.3 + 12 * sd, 400_001)
    density = jnp.exp(-0.5 * ((grid - 0.3) / sd) ** 2) / (sd * jnp.sqrt(2 * jnp.pi))
    truth = jnp.trapezoid(site(grid) * density, grid)
    true_error = truth - gauss_hermite(site, lambda z: z, q)(jnp.array(0.0))
    found = error(site, lambda z: z, q)
    assert found.shape == ()
    assert (abs(found) < 1e-4) == (abs(true_error) < 1e-4) == fine
    assert abs(true_error) / 20 <= abs(found) + 1e-10


@pytest.mark.slow
def test_the_error_is_of_each_site(x64):
    """Of x's own shape, batched by vmap, with a derivative: what the slope of the bound would change by."""
    q = FAMILIES["full_rank"].dist(start(FAMILIES["full_rank"]))
    found = error(lambda x: student.logpdf(9 * x, 1.0), predictor, q)
    assert found.shape == (N,)
    whole = [
        gauss_hermite(lambda x: student.logpdf(9 * x, 1.0), predictor, q, nodes=nodes)
        for nodes in (32, 65)
    ]
    z = q.affine(jnp.zeros(D))
    np.testing.assert_allclose(jnp.sum(found), whole[1](z) - whole[0](z), rtol=1e-9)
    family = FAMILIES["full_rank"]
    slope = jax.grad(lambda p: jnp.sum(error(poisson, predictor, family.dist(p))))(start(family))
    assert all(np.all(np.abs(leaf) < 1e-9) for leaf in jax.tree.leaves(slope))


@pytest.mark.usefixtures("unchecked")
def test_other_refusals():
    q = FAMILIES["mean_field"].dist(start(FAMILIES["mean_field"], np.float32))
    with pytest.raises(
        ValueError, match=r"log_site\(x\) must have the shape of x = predictor\(z\), \(12,\)"
    ):
        gauss_hermite(lambda x: jnp.sum(x), predictor, q)(q.affine(jnp.zeros(D)))
    with pytest.raises(TypeError, match="one Gaussian of vijax.families over all latents"):
        gauss_hermite(poisson, predictor, {"w": q, "c": q})
    with pytest.raises(TypeError, match="nodes must be a Python int"):
        gauss_hermite(poisson, predictor, q, nodes=3.0)
    with pytest.raises(ValueError, match="nodes must be at least 1"):
        gauss_hermite(poisson, predictor, q, nodes=0)
