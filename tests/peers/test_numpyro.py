"""Cases of NumPyro's tests (gradients, SVI, autoguides, bijections), ported to vijax. Facts and figures are the peer's, the code is not."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import vijax as vj
from tests.peers.climbing import climb
from vijax import fitting
from vijax.targets import constraints as C

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("loose_ranks", "unchecked"),
    pytest.mark.filterwarnings("ignore"),
]
elbo, renyi = vj.bounds.elbo, vj.bounds.renyi
G = vj.gradients

simplex = lambda y: C.simplex.forward(jnp.asarray(y))[0]
unsimplex = lambda z: C.simplex.inverse(jnp.asarray(z, jnp.float32))
logn = jax.scipy.stats.norm.logpdf


def kl(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    return jnp.sum(a * (jnp.log(a) - jnp.log(b)), -1)


# --- infer/test_gradient.py::test_gradient: TraceGraph_ELBO at 10,000 particles beside exact sums, prec .02


@pytest.mark.parametrize(
    "how", ["vimco", "score", "auto", "factored", "disarm", "local_expectation"]
)
def test_gradient_model_0(row, how):
    data, prior = jnp.array([-0.5, 2.0]), jnp.log(jnp.array([0.3, 0.7]))
    raw = unsimplex([[0.4, 0.6], [0.5, 0.5]])

    def exact(raw):
        p = simplex(raw)
        return jnp.sum(p * (jnp.log(p) - prior - logn(data[:, None], jnp.arange(2.0), 1.0)))

    def loss(raw):
        p = simplex(raw)
        q = (
            distrax.Bernoulli(probs=p[:, 1])
            if how in ("disarm", "local_expectation")
            else distrax.Categorical(probs=p)
        )
        target = lambda z: prior[z] + logn(data, z, 1.0)
        return -jnp.sum(
            getattr(G, how)(elbo)(
                jax.random.key(0), target, q, num_samples=40_000 if how == "score" else 10_000
            ).value
        )  # 10,000 are 1.2 standard errors of score

    row(
        "infer/test_gradient.py::test_gradient[model_0]",
        f"plate of 2 categoricals, {how}",
        f"{how}(elbo), batch of 2",
        jax.grad(exact)(raw),
        jax.grad(loss)(raw),
        rtol=0,
        atol=0.02,
    )


PB = jnp.array([[0.1, 0.9], [0.2, 0.8]])


@pytest.mark.parametrize("how", ["auto", "factored"])
def test_gradient_model_1(row, how):
    data = jnp.array([-0.5, 2.0])
    raw = {
        "a": unsimplex([0.5, 0.5]),
        "b": unsimplex([[[0.5, 0.5], [0.6, 0.4]], [[0.4, 0.6], [0.35, 0.65]]]),
    }
    la = jnp.log(jnp.array([0.3, 0.7]))

    def exact(raw):
        pa, pb = simplex(raw["a"]), simplex(raw["b"])
        inner = jnp.sum(
            pb
            * (
                jnp.log(pb)
                - jnp.log(PB)[:, None, :]
                - logn(data[None, :, None], jnp.arange(2.0), 1.0)
            ),
            (1, 2),
        )
        return jnp.sum(pa * (jnp.log(pa) - la + inner))

    def loss(raw):
        pa, pb = simplex(raw["a"]), simplex(raw["b"])
        q = {
            "a": distrax.Categorical(probs=pa),
            "b0": lambda e: distrax.Categorical(probs=pb[e["a"], 0]),
            "b1": lambda e: distrax.Categorical(probs=pb[e["a"], 1]),
        }
        target = lambda z: {
            "a": la[z["a"]],
            "0": jnp.log(PB)[z["a"], z["b0"]] + logn(data[0], z["b0"], 1.0),
            "1": jnp.log(PB)[z["a"], z["b1"]] + logn(data[1], z["b1"], 1.0),
        }
        return -getattr(G, how)(elbo)(jax.random.key(0), target, q, num_samples=10_000).value

    e, got = jax.grad(exact)(raw), jax.grad(loss)(raw)
    row(
        "infer/test_gradient.py::test_gradient[model_1]",
        f"a -> plate of b, {how}",
        f"{how}(elbo), a leaf per site",
        [e["a"], e["b"]],
        [got["a"], got["b"]],
        rtol=0,
        atol=0.02,
    )


# --- infer/test_gradient.py::test_analytic_kl_1: exact values and gradients, prec 1e-5; by one latent of all joint states

Z1, Z2, Z3 = [jnp.asarray(a) for a in np.indices((2, 2, 2)).reshape(3, -1)]


def _models():
    L = lambda a: jnp.log(jnp.array(a))
    half, z3 = L([0.5, 0.5]), L([[[0.4, 0.6], [0.1, 0.9]], [[0.7, 0.3], [0.2, 0.8]]])
    over_d = lambda term: vj.targets.enumerate(lambda z, d: term(*z, d) + half[d], 2).log_joint
    return {
        "model_0": lambda z: half[z[0]] + L([0.7, 0.3])[z[1]] + L([0.8, 0.2])[z[2]],
        "model_1": lambda z: (
            half[z[0]] + L([[0.4, 0.6], [0.6, 0.4]])[z[0], z[1]] + z3[z[0], z[1], z[2]]
        ),
        "model_2": lambda z: (
            half[z[1]] + L([[0.4, 0.6], [0.6, 0.4]])[z[1], z[0]] + z3[z[0], z[1], z[2]]
        ),
        "model_3": over_d(
            lambda a, b, c, d: (
                L([[0.4, 0.6], [0.6, 0.4]])[d, a] + L([0.7, 0.3])[b] + L([0.8, 0.2])[c]
            )
        ),
        "model_4": over_d(
            lambda a, b, c, d: (
                L([[0.5, 0.5], [0.2, 0.8]])[d, a]
                + L([[0.4, 0.6], [0.6, 0.4]])[d, b]
                + L([0.8, 0.2])[c]
            )
        ),
        "model_5": over_d(
            lambda a, b, c, d: (
                L([[0.5, 0.5], [0.2, 0.8]])[d, a]
                + L([0.8, 0.2])[b]
                + L([[0.4, 0.6], [0.6, 0.4]])[d, c]
            )
        ),
        "model_6": over_d(
            lambda a, b, c, d: (
                L([[0.5, 0.5], [0.2, 0.8]])[d, a]
                + L([[0.1, 0.9], [0.3, 0.7]])[d, b]
                + L([[0.4, 0.6], [0.6, 0.4]])[d, c]
            )
        ),
        "model_7": over_d(
            lambda a, b, c, d: (
                L([[0.5, 0.5], [0.2, 0.8]])[d, a]
                + L([[0.4, 0.6], [0.6, 0.4]])[d, b]
                + L([[0.8, 0.2], [0.6, 0.4]])[b, c]
            )
        ),
    }


def _by_hand(name):
    """log p(z1, z2, z3) of every joint state, in numpy."""
    n = np.array
    half = n([0.5, 0.5])
    two = n([[0.4, 0.6], [0.6, 0.4]])
    five = n([[0.5, 0.5], [0.2, 0.8]])
    z3 = n([[[0.4, 0.6], [0.1, 0.9]], [[0.7, 0.3], [0.2, 0.8]]])
    return {
        "model_0": lambda: np.einsum("a,b,c->abc", half, n([0.7, 0.3]), n([0.8, 0.2])),
        "model_1": lambda: np.einsum("a,ab,abc->abc", half, two, z3),
        "model_2": lambda: np.einsum("b,ba,abc->abc", half, two, z3),
        "model_3": lambda: np.einsum("d,da,b,c->abc", half, two, n([0.7, 0.3]), n([0.8, 0.2])),
        "model_4": lambda: np.einsum("d,da,db,c->abc", half, five, two, n([0.8, 0.2])),
        "model_5": lambda: np.einsum("d,da,b,dc->abc", half, five, n([0.8, 0.2]), two),
        "model_6": lambda: np.einsum(
            "d,da,db,dc->abc", half, five, n([[0.1, 0.9], [0.3, 0.7]]), two
        ),
        "model_7": lambda: np.einsum(
            "d,da,db,bc->abc", half, five, two, n([[0.8, 0.2], [0.6, 0.4]])
        ),
    }[name]().reshape(-1)


@pytest.mark.parametrize("s1", [1, 10])
@pytest.mark.parametrize("s2", [1, 10])
@pytest.mark.parametrize(("d1", "d2"), [(2, 3), (3, 2)])
def test_analytic_kl_4(row, d1, d2, s1, s2):
    raw = {"1": unsimplex([0.3, 0.7]), "2": jnp.float32(0.0)}
    exact = lambda r: (
        s1 * (s2 * d1 * kl(simplex(r["1"]), jnp.array([0.5, 0.5])) + d2 * 0.5 * r["2"] ** 2)
    )

    def loss(raw):
        plate = lambda d: distrax.Independent(d, 1)
        q = {
            "1": plate(distrax.Categorical(probs=jnp.broadcast_to(simplex(raw["1"]), (d1, 2)))),
            "2": plate(distrax.Normal(jnp.full(d2, raw["2"]), 1.0)),
        }
        prior = {
            "1": plate(distrax.Categorical(probs=jnp.full((d1, 2), 0.5))),
            "2": plate(distrax.Normal(jnp.zeros(d2), 1.0)),
        }
        scaled = lambda q, p: (s1 * s2 if q.dtype == jnp.int32 else s1) * q.kl_divergence(p)
        target = vj.targets.exact_kl(lambda z: jnp.float32(0), prior, q, kl=scaled)
        return -G.auto(elbo)(jax.random.key(0), target, q, num_samples=2).value

    (ev, eg), (v, g) = jax.value_and_grad(exact)(raw), jax.value_and_grad(loss)(raw)
    row(
        "infer/test_gradient.py::test_analytic_kl_4",
        f"plates {d1}, {d2}; scales {s1}, {s2}",
        "auto(elbo) on split(..., kl=scaled)",
        [ev, eg["1"], eg["2"]],
        [v, g["1"], g["2"]],
        rtol=0,
        atol=1e-5,
    )


# --- infer/test_svi.py


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_renyi_elbo_without_latents(row, alpha):
    class Nothing:
        def sample_and_log_prob(self, *, seed, sample_shape=()):
            return jnp.zeros((*sample_shape, 0)), jnp.zeros(sample_shape)

        def log_prob(self, z):
            return jnp.zeros(())

    f = lambda x: (
        -G.reparam(partial(renyi, alpha=alpha))(
            jax.random.key(0), lambda z: logn(x, 0.0, 1.0), Nothing(), num_samples=10
        ).value
    )
    e = lambda x: -logn(x, 0.0, 1.0)
    row(
        "infer/test_svi.py::test_renyi_elbo",
        f"alpha={alpha}, a guide without latents",
        "reparam(partial(renyi, alpha=)) with a q of nothing",
        [e(2.0), jax.grad(e)(2.0)],
        [f(2.0), jax.grad(f)(2.0)],
        rtol=1e-6,
        atol=0,
    )


def test_renyi_local(row):
    q = lambda n: distrax.Normal(jnp.zeros(n), 1.0)
    f = lambda n: (
        -100
        / n
        * jnp.sum(
            G.reparam(partial(renyi, alpha=0.0))(
                jax.random.key(0), lambda z: logn(z, 0.0, 1.0) + jnp.log(0.6), q(n), num_samples=10
            ).value
        )
    )
    e = -np.log(0.6) * 100
    row(
        "infer/test_svi.py::test_renyi_local",
        "local latents, whole and 2 of 100",
        "reparam(renyi), batch [n], sum 100/n",
        [e, e],
        [f(100), f(2)],
        rtol=1e-6,
        atol=0,
    )


def _beta(p):
    return distrax.Beta(jnp.exp(p["a"]), jnp.exp(p["b"]))


@pytest.mark.parametrize("name", ["elbo", "renyi"])
def test_svi_beta_bernoulli(row, name):
    data = jnp.array([1.0] * 8 + [0.0] * 2)
    target = lambda z: jnp.sum(data * jnp.log(z) + (1 - data) * jnp.log1p(-z))
    objective, k = (
        (G.reparam(elbo), 1) if name == "elbo" else (G.reparam(partial(renyi, alpha=0.0)), 10)
    )
    p = climb(
        fitting.ascent(
            lambda key, p: objective(key, target, _beta(p), num_samples=k), optax.adam(0.01)
        ),
        {"a": jnp.float32(0), "b": jnp.float32(0)},
        10_000,
        1,
    )
    a, b = jnp.exp(p["a"]), jnp.exp(p["b"])
    row(
        "infer/test_svi.py::test_beta_bernoulli",
        f"posterior mean 9/12, {name}",
        f"ascent(reparam({name})) of distrax.Beta",
        9 / 12,
        a / (a + b),
        rtol=0.03,
        atol=0.03,
    )


def test_svi_run(row):
    data = jnp.array([1.0] * 8 + [0.0] * 2)
    target = lambda z: jnp.sum(data * jnp.log(z) + (1 - data) * jnp.log1p(-z))
    p = climb(
        fitting.ascent(
            lambda key, p: G.reparam(elbo)(key, target, _beta(p), num_samples=1), optax.adam(0.05)
        ),
        {"a": jnp.float32(0.3), "b": jnp.float32(-0.2)},
        1000,
        1,
    )
    a, b = jnp.exp(p["a"]), jnp.exp(p["b"])
    row(
        "infer/test_svi.py::test_run",
        "mean .8 to 5% + .05",
        "ascent(reparam(elbo)) of distrax.Beta",
        0.8,
        a / (a + b),
        rtol=0.05,
        atol=0.05,
    )


# --- infer/test_autoguide.py, through targets.adapters.from_numpyro

FAMILIES = {
    "AutoDiagonalNormal": lambda t: vj.families.mean_field(),
    "AutoMultivariateNormal": lambda t: vj.families.full_rank(),
    "AutoLowRankMultivariateNormal": lambda t: vj.families.low_rank(rank=1),
    "AutoLaplaceApproximation": lambda t: vj.families.laplace(t.log_joint),
    "AutoIAFNormal": lambda t: vj.families.inverse_autoregressive(),
}


def _fit(family, target, start, steps, lr=0.01, k=1):
    rule = fitting.ascent(
        lambda key, p: G.reparam(elbo)(key, target.log_joint, family.dist(p), num_samples=k),
        optax.adam(lr),
    )
    return climb(rule, family.init(jax.random.key(1), start), steps, 1)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_autoguide_beta_bernoulli(row, name):
    data = jnp.array([[1.0] * 8 + [0.0] * 2, [1.0] * 4 + [0.0] * 6]).T

    def model(data):
        f = numpyro.sample("beta", dist.Beta(jnp.ones(2), jnp.ones(2)).to_event())
        with numpyro.plate("N", 10):
            numpyro.sample("obs", dist.Bernoulli(f).to_event(1), obs=data)

    target, start = vj.targets.adapters.from_numpyro(model, data)
    family = FAMILIES[name](target)
    p = (
        family.init(jax.random.key(1), start)
        if "Laplace" in name
        else _fit(family, target, start, 3000)
    )
    z, _ = family.dist(p).sample_and_log_prob(seed=jax.random.key(2), sample_shape=(1000,))
    got = jax.vmap(target.constrain)(z)["beta"].mean(0)
    row(
        f"infer/test_autoguide.py::test_beta_bernoulli[{name}]",
        "posterior means 9/12, 5/12",
        "from_numpyro; ascent(reparam(elbo)), 3,000 steps of adam(.01)",
        [9 / 12, 5 / 12],
        [got[0], got[1]],
        rtol=1e-7,
        atol=0.05,
    )


def test_autoguide_uniform_normal(row):
    data = 0.9 + jax.random.normal(jax.random.key(0), (1000,))
    t = vj.targets.transform(
        lambda z: -jnp.log(z["alpha"]) + jnp.sum(logn(data, z["loc"], 0.1)),
        {"alpha": C.interval(0.0, 1.0), "loc": lambda z: C.interval(0.0, z["alpha"])},
    )
    start = t.unconstrain({"alpha": jnp.float32(0.5), "loc": jnp.float32(0.25)})
    family = vj.families.mean_field()
    p = _fit(family, t, start, 1000)
    got = t.constrain(p["loc"])["loc"]
    row(
        "infer/test_autoguide.py::test_uniform_normal",
        "loc in (0, alpha), median .9",
        "targets.transform with interval(0, z['alpha'])",
        0.9,
        got,
        rtol=0.05,
        atol=0,
    )


@pytest.mark.parametrize("name", ["AutoBNAFNormal", "AutoDAIS", "AutoDelta"])
def test_no_such_guide(row, name):
    row.cannot(
        f"infer/test_autoguide.py::test_beta_bernoulli[{name}], test_logistic_regression[{name}]",
        name,
        f"no counterpart of {name}",
    )


def test_mvn_quantile(row):
    row.cannot(
        "infer/test_autoguide.py::test_mvn_quantile",
        "marginal quantile .3 of a full-rank guide",
        "families have no quantiles, marginal means or covariances; by draws only",
    )


# --- test_distributions.py::test_biject_to, test_constraints; test_transforms.py::test_biject_to

BIJECT = {
    "interval(-3, 5)": (C.interval(-3.0, 5.0), 0, lambda z: (z > -3) & (z < 5)),
    "greater_than(2)": (C.interval(2.0, None), 0, lambda z: z > 2),
    "less_than(1)": (C.interval(None, 1.0), 0, lambda z: z < 1),
    "positive": (C.positive, 0, lambda z: z > 0),
    "softplus_positive": (C.softplus, 0, lambda z: z > 0),
    "unit_interval": (C.interval(0.0, 1.0), 0, lambda z: (z > 0) & (z < 1)),
    "real": (C.real, 0, jnp.isfinite),
    "ordered_vector": (C.ordered, 1, lambda z: jnp.all(jnp.diff(z, axis=-1) > 0, -1)),
    "simplex": (C.simplex, 1, lambda z: (jnp.abs(z.sum(-1) - 1) < 1e-6) & jnp.all(z > 0, -1)),
    "corr_cholesky": (
        C.cholesky_correlation,
        1,
        lambda z: (
            jnp.all(jnp.abs(jnp.sum(z**2, -1) - 1) < 1e-5, -1)
            & jnp.all(jnp.diagonal(z, axis1=-2, axis2=-1) > 0, -1)
        ),
    ),
    "lower_cholesky": (
        C.cholesky_covariance,
        1,
        lambda z: jnp.all(jnp.diagonal(z, axis1=-2, axis2=-1) > 0, -1),
    ),
}


def _numbers(name, z):
    if name == "simplex":
        return z[:-1]
    if "cholesky" in name:
        return z[np.tril_indices(z.shape[-1], -1 if name == "corr_cholesky" else 0)]
    return z


@pytest.mark.parametrize("name", list(BIJECT))
def test_biject_to(row, name):
    c, event, check = BIJECT[name]
    shapes = (
        [(), (1,), (3,), (6,), (3, 1), (1, 3), (5, 3)]
        if event == 0
        else [(1,), (3,), (6,), (3, 1), (1, 3), (5, 3)]
    )
    want, got = [], []
    for shape in shapes:
        y = jax.random.normal(jax.random.key(0), shape)
        z, lj = c.forward(y)
        batch = shape if event == 0 else shape[:-1]
        assert lj.shape == batch
        assert bool(jnp.all(check(z)))
        assert c.inverse(jnp.full(z.shape, jnp.nan)).shape == y.shape
        want.append(y), got.append(c.inverse(z))
        if len(shape) == event:
            slog = (
                jnp.log(jnp.abs(jax.grad(lambda y: c.forward(y)[0])(y)))
                if event == 0
                else jnp.linalg.slogdet(jax.jacobian(lambda y: _numbers(name, c.forward(y)[0]))(y))[
                    1
                ]
            )
            np.testing.assert_allclose(lj, slog, atol=1e-5, rtol=1e-5)
    row(
        f"test_distributions.py::test_biject_to[{name}]",
        "7 shapes: support, inverse, nan, log-Jacobian",
        f"targets.constraints: {name}",
        want,
        got,
        rtol=1e-5,
        atol=1e-4,
    )


FEASIBLE = {
    "interval(-3, 5)": 1.0,
    "greater_than(2)": 3.0,
    "less_than(1)": 0.0,
    "positive": 1.0,
    "softplus_positive": np.log(2.0),
    "unit_interval": 0.5,
    "real": 0.0,
    "ordered_vector": np.arange(3.0),
    "simplex": np.full(3, 1 / 3),
    "corr_cholesky": np.eye(3),
    "lower_cholesky": np.eye(2),
}


@pytest.mark.parametrize("name", list(FEASIBLE))
def test_feasible_is_zero(row, name):
    got = BIJECT[name][0].inverse(jnp.asarray(FEASIBLE[name], jnp.float32))
    row(
        f"test_distributions.py::test_constraints[{name}]",
        "the feasible value lies at 0",
        "targets.constraints.*.inverse",
        jnp.zeros_like(got),
        got,
        rtol=0,
        atol=2e-7,
    )


@pytest.mark.parametrize(
    "name",
    [
        "corr_matrix",
        "positive_definite",
        "positive_ordered_vector",
        "l1_ball",
        "scaled_unit_lower_cholesky",
        "softplus_lower_cholesky",
        "circular",
        "sphere",
        "zero_sum",
        "complex",
    ],
)
def test_no_such_constraint(row, name):
    row.cannot(
        f"test_distributions.py::test_biject_to[{name}]", name, f"no targets.constraints.{name}"
    )


# --- test_diagnostics.py
