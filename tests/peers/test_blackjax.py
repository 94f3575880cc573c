"""Cases of BlackJAX's tests/vi, ported to vijax. Facts and figures are the peer's, the code is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy import stats

import vijax as vj
from tests.peers.climbing import climb
from vijax import fitting, solvers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("loose_ranks", "unchecked"),
    pytest.mark.filterwarnings("ignore"),
]
elbo = vj.bounds.elbo
G = vj.gradients

std_normal = lambda x: -0.5 * sum(jnp.sum(l**2) for l in jax.tree.leaves(x))
PF = "solvers.pathfinder(key, log_joint, like, num_samples=)"


def path(log_joint, like, seed=0, **kw):
    return jax.jit(
        lambda k: solvers.pathfinder(
            k, log_joint, like, num_samples=kw.pop("num_samples", 200), **kw
        )
    )(jax.random.key(seed))


@pytest.mark.parametrize("d", [2, 3, 4])
def test_finite_elbo(row, d):
    p = path(std_normal, jnp.zeros(d))
    assert p.q.loc.shape == (d,)
    row(
        "tests/vi/test_pathfinder.py::test_state_has_finite_elbo, test_state_position_shape",
        f"from the mode itself, d = {d}",
        PF,
        True,
        jnp.isfinite(p.elbo),
        rtol=0,
        atol=0,
    )


def test_elbo_is_the_evidence(row):
    p = path(std_normal, jnp.zeros(3))
    row(
        "tests/vi/test_pathfinder.py::test_state_has_finite_elbo",
        "its value: 3/2 log 2 pi",
        PF,
        1.5 * np.log(2 * np.pi),
        p.elbo,
        rtol=1e-5,
        atol=0,
    )


def test_near_mode(row):
    m = jnp.array([2.0, -1.0])
    p = path(lambda x: -0.5 * jnp.sum((x - m) ** 2), jnp.zeros(2))
    row(
        "tests/vi/test_pathfinder.py::test_state_position_near_mode",
        "mode (2, -1)",
        PF,
        m,
        p.q.loc,
        rtol=1e-7,
        atol=0.5,
    )


def test_path_shape(row):
    p = path(std_normal, jnp.zeros(2), steps=10)
    row(
        "tests/vi/test_pathfinder.py::test_path_elbo_shape",
        "(maxiter + 1,)",
        PF + ".elbos",
        11,
        p.elbos.shape[0],
        rtol=0,
        atol=0,
    )


def test_sample_mean(row):
    m = jnp.array([1.0, -2.0])
    z, _ = path(lambda x: -0.5 * jnp.sum((x - m) ** 2), jnp.zeros(2)).q.sample_and_log_prob(
        seed=jax.random.key(1), sample_shape=(500,)
    )
    row(
        "tests/vi/test_pathfinder.py::test_sample_mean_near_mode",
        "500 draws",
        "path.q.sample_and_log_prob",
        m,
        z.mean(0),
        rtol=1e-7,
        atol=0.5,
    )


def test_multipathfinder_evidence(row):
    m, c = jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.3], [0.3, 2.0]])
    p = solvers.multi_pathfinder(
        jax.random.key(1),
        lambda x: stats.multivariate_normal.logpdf(x, m, c),
        jax.random.normal(jax.random.key(0), (4, 2)),
        num_samples=100,
    )
    row(
        "tests/vi/test_multipathfinder.py::test_recover_posterior",
        "its evidence, 0",
        "solvers.multi_pathfinder(...).log_evidence",
        0.0,
        p.log_evidence,
        rtol=0,
        atol=0.05,
    )


def target(x):
    return stats.norm.logpdf(x["x_1"], 2, 4) + stats.norm.logpdf(x["x_2"], 3, 5)


@pytest.mark.parametrize(
    "how", ["dreg"]
)  # BlackJAX's default is the sticking-the-landing estimator too
def test_meanfield_recover(row, how):
    t, start = vj.targets.adapters.from_logdensity(target, {"x_1": 0.0, "x_2": 0.0})
    family = vj.families.mean_field(scale=float(np.exp(-2.0)))
    rule = fitting.ascent(
        lambda k, p: getattr(G, how)(elbo)(k, t.log_joint, family.dist(p), num_samples=100),
        optax.sgd(1e-2),
    )
    p = climb(rule, family.init(jax.random.key(0), start), 15_000)
    got = [
        p["loc"]["x_1"],
        jnp.exp(p["log_scale"]["x_1"]),
        p["loc"]["x_2"],
        jnp.exp(p["log_scale"]["x_2"]),
    ]
    row(
        "tests/vi/test_meanfield_vi.py::MFVITest.test_recover_posterior",
        f"N(2, 4), N(3, 5): 15,000 steps of sgd(.01), {how}",
        f"ascent({how}(elbo)) of mean_field",
        [2.0, 4.0, 3.0, 5.0],
        got,
        rtol=0,
        atol=0.01,
    )


def test_meanfield_improves(row):
    family = vj.families.mean_field(scale=float(np.exp(-2.0)))
    t = lambda x: -0.5 * jnp.sum((x - 3.0) ** 2)
    objective = G.reparam(elbo)
    rule = fitting.ascent(
        lambda k, p: objective(k, t, family.dist(p), num_samples=5), optax.adam(1e-2)
    )
    p0 = family.init(jax.random.key(0), jnp.zeros(2))
    p = climb(rule, p0, 50)
    v = [objective(jax.random.key(5), t, family.dist(x), num_samples=1000).value for x in (p0, p)]
    row(
        "tests/vi/test_meanfield_vi.py::test_elbo_decreases_over_steps",
        "50 steps of adam(.01)",
        "ascent(reparam(elbo))",
        True,
        v[1] > v[0],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", ["svgd", "schrodinger_follmer"])
def test_others(row, name):
    row.cannot(f"tests/vi/test_{name}.py", name, f"vijax has no {name}")
