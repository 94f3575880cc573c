"""targets.transform and its constraints: Jacobians, normalisers, total numerics, leaves given leaves, marks, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from jax.scipy.stats import beta, dirichlet, gamma, norm, poisson

import vijax as vj
from tests import oracles
from tests.bare import Gauss
from vijax.solvers import maximize
from vijax.targets import constraints as c

# name -> constraint, how many free numbers one value takes (0: it is elementwise), z's free coordinates, whether z is inside
KINDS = {
    "real": (c.real, 0, lambda z: z, lambda z: True),
    "positive": (c.positive, 0, lambda z: z, lambda z: np.all(z > 0)),
    "softplus": (c.softplus, 0, lambda z: z, lambda z: np.all(z > 0)),
    "interval": (c.interval(-1.0, 3.0), 0, lambda z: z, lambda z: np.all((z > -1) & (z < 3))),
    "unit": (c.interval(0.0, 1.0), 0, lambda z: z, lambda z: np.all((z > 0) & (z < 1))),
    "intervals": (
        c.interval(np.array([[-1.0]]), np.array([[3.0, 4.0]])),
        0,
        lambda z: z,
        lambda z: np.all((z > -1) & (z < 4)),
    ),
    "above": (c.interval(0.5), 0, lambda z: z, lambda z: np.all(z > 0.5)),
    "below": (c.interval(high=0.5), 0, lambda z: z, lambda z: np.all(z < 0.5)),
    "affine": (c.affine(1.0, 2.0), 0, lambda z: z, lambda z: True),
    "ordered": (c.ordered, 4, lambda z: z, lambda z: np.all(np.diff(z) > 0)),
    "positive_ordered": (
        c.positive_ordered,
        4,
        lambda z: z,
        lambda z: np.all(z > 0) and np.all(np.diff(z) > 0),
    ),
    "simplex": (
        c.simplex,
        3,
        lambda z: z[:-1],
        lambda z: np.all((z > 0) & (z < 1)) and np.allclose(z.sum(-1), 1),
    ),
    "correlation": (
        c.cholesky_correlation,
        3,
        lambda z: z[np.tril_indices(3, -1)],
        lambda z: (
            np.all(np.diagonal(z, 0, -2, -1) > 0) and np.allclose((z**2).sum(-1), 1, rtol=1e-6)
        ),
    ),
    "covariance": (
        c.cholesky_covariance,
        6,
        lambda z: z[np.tril_indices(3)],
        lambda z: np.all(np.diagonal(z, 0, -2, -1) > 0),
    ),
}


def shape(name):
    n = KINDS[name][1]
    return (2, n) if n else (2, 2)


def test_jacobians_and_inverses(x64):
    """Against log |det| by forward differentiation of the free coordinates; with a batch, where it does not cross it."""

    @jax.jit
    def run(ys):
        found = {}
        for name, y in ys.items():
            constraint, n, free, _ = KINDS[name]
            z, log_jacobian = constraint.forward(y)
            of = lambda y, constraint=constraint, free=free: free(constraint.forward(y)[0])
            if n:
                expected = jnp.linalg.slogdet(jax.vmap(jax.jacfwd(of))(y))[1]
            else:
                matrix = jax.jacfwd(of)(y).reshape(y.size, y.size)
                expected = jnp.log(jnp.abs(jnp.diagonal(matrix))).reshape(y.shape)
            found[name] = z, log_jacobian, expected, constraint.inverse(z)
        return found

    keys = jax.random.split(jax.random.key(3), len(KINDS))
    ys = {
        name: 1.5 * jax.random.normal(key, shape(name))
        for name, key in zip(KINDS, keys, strict=True)
    }
    for name, (z, log_jacobian, expected, back) in run(ys).items():
        assert log_jacobian.shape == (ys[name].shape[:-1] if KINDS[name][1] else ys[name].shape), (
            name
        )
        np.testing.assert_allclose(log_jacobian, expected, rtol=1e-11, atol=1e-11, err_msg=name)
        np.testing.assert_allclose(back, ys[name], rtol=1e-9, err_msg=name)
        assert KINDS[name][3](np.asarray(z)), name


def test_zero_is_the_middle():
    """y = 0 is the uniform point of a simplex, the middle of an interval, and no correlation."""
    kinds = {"share": c.simplex, "middle": c.interval(-1.0, 3.0), "root": c.cholesky_correlation}
    y = {"share": jnp.zeros(4), "middle": jnp.zeros(()), "root": jnp.zeros(6)}
    z = jax.jit(vj.targets.transform(lambda z: 0.0, kinds).constrain)(y)
    np.testing.assert_allclose(z["share"], np.full(5, 0.2), rtol=1e-6)
    np.testing.assert_allclose(z["middle"], 1.0)
    np.testing.assert_allclose(z["root"], np.eye(4))


@pytest.mark.parametrize("constraint", [c.positive, c.softplus, c.interval(0, 1), c.interval(-1)])
def test_numbers_of_python_are_mapped(constraint):
    for number in (0.5, 1, np.float32(0.5), np.int32(1)):
        z, log_jacobian = constraint.forward(number)
        assert jnp.issubdtype(z.dtype, jnp.floating)
        expected = constraint.forward(jnp.asarray(number, float))
        np.testing.assert_array_equal((z, log_jacobian), expected)
        np.testing.assert_allclose(constraint.inverse(float(z)), number, rtol=1e-5)
    assert constraint.inverse(2 if z > 1 else z).dtype == z.dtype


def test_extremes_stay_inside():
    """In float32, at |y| = 100 and more: inside its constraint, with finite derivatives, and a density that falls."""
    sizes = (10.0, 20.0, 100.0, -100.0, 1e4, -1e4)

    @jax.jit
    def run():
        found = {}
        for name, (constraint, *_) in KINDS.items():
            total = lambda y, f=constraint.forward: sum(jnp.sum(part) for part in f(y))
            mixed = jnp.where(jnp.arange(shape(name)[-1]) % 2 == 0, 1.0, -0.7)[None]
            ys = jnp.stack(
                [size * sign * jnp.ones(shape(name)) for size in sizes for sign in (1.0, mixed)]
            )
            found[name] = jax.vmap(
                lambda y, f=constraint.forward, t=total: (*f(y), jax.grad(t)(y))
            )(ys)
        return found

    for name, (z, log_jacobian, slope) in run().items():
        assert all(np.all(np.isfinite(found)) for found in (z, log_jacobian, slope)), name
        for one in np.asarray(z):
            assert KINDS[name][3](one), (name, one)
        if name in ("positive", "interval", "unit", "above", "below", "simplex", "correlation"):
            assert np.all(log_jacobian[-4:] < -1e3), name


@pytest.mark.parametrize("y", [100.0, -100.0])
def test_densities_at_extremes_have_slopes(y):
    """Log-densities that are infinite at the boundary, in float32; written naively, 1 - σ(100) is 0 and the slope nan."""
    densities = {
        "unit": lambda z: 1.5 * jnp.log(z) + 2.5 * jnp.log1p(-z) - 1 / z,
        "positive": lambda z: norm.logpdf(30.0, 0.0, z) - jnp.square(z) - 1 / z,
        "softplus": lambda z: norm.logpdf(30.0, 0.0, z) - 2 * z,
    }
    for name, density in densities.items():
        target = vj.targets.transform(density, KINDS[name][0]).log_joint
        value, slope = jax.jit(jax.value_and_grad(target))(jnp.float32(y))
        assert np.isfinite(value), name
        assert -np.inf < slope * y < 0, name
    naive = jax.grad(lambda y: densities["unit"](jax.nn.sigmoid(y)))(jnp.float32(abs(y)))
    assert np.isnan(naive)


# --- what integrates to one over z does so over y

LINE = oracles.interval(-60.0, 60.0, 4001)
DENSITIES = {
    "real": lambda z: norm.logpdf(z, 0.3, 2.0),
    "positive": lambda z: gamma.logpdf(z, 2.5, scale=1.3),
    "softplus": lambda z: gamma.logpdf(z, 2.5, scale=1.3),
    "interval": lambda z: beta.logpdf(z, 2.0, 3.5, -1.0, 4.0),
    "unit": lambda z: beta.logpdf(z, 2.0, 0.7),
    "above": lambda z: gamma.logpdf(z - 0.5, 1.5),
    "below": lambda z: gamma.logpdf(0.5 - z, 1.5),
    "affine": lambda z: norm.logpdf(z, 0.3, 2.0),
    "simplex": lambda z: dirichlet.logpdf(z, jnp.array([1.5, 0.8])),
    "ordered": lambda z: norm.logpdf(z[0]),
    "positive_ordered": lambda z: gamma.logpdf(z[0], 2.5, scale=1.3),
    "correlation": lambda z: -jnp.log(2.0),  # LKJ(1): r is uniform
    "covariance": lambda z: jnp.log(2.0) + norm.logpdf(z[0, 0]),
}


def test_densities_integrate_to_one(x64):
    """By quadrature over y; and not where the Jacobian is left out."""

    @jax.jit
    def run(y):
        found = {}
        for name, density in DENSITIES.items():
            constraint, n, *_ = KINDS[name]
            target, constrain, _ = vj.targets.transform(density, constraint)
            line = y[:, None] if n else y
            without = lambda y, density=density, constrain=constrain: density(constrain(y))
            found[name] = [jnp.sum(jnp.exp(jax.vmap(f)(line)) * LINE[1]) for f in (target, without)]
        return found

    for name, (whole, without) in run(jnp.asarray(LINE[0])).items():
        np.testing.assert_allclose(whole, 1.0, rtol=1e-9, err_msg=name)
        assert abs(without - 1) > 0.1 or name in ("real", "ordered"), (
            name
        )  # whose first number has Jacobian 1


def test_normalisers_of_vectors_and_matrices(x64):
    """Dirichlet(1, 1, 1); order statistics; LKJ(1), whose normaliser for d = 3 is the volume π² / 2 of correlations."""
    lkj = lambda z: sum((3 - k) * jnp.log(z[k - 1, k - 1]) for k in (2, 3)) - jnp.log(jnp.pi**2 / 2)
    rows = {
        "simplex": (
            lambda z: dirichlet.logpdf(z, jnp.ones(3)),
            2,
            oracles.interval(-45.0, 45.0, 301),
        ),
        "ordered": (
            lambda z: jnp.log(2.0) + jnp.sum(norm.logpdf(z)),
            2,
            oracles.interval(-40.0, 10.0, 801),
        ),
        "positive_ordered": (
            lambda z: jnp.log(2.0) - jnp.sum(z),
            2,
            oracles.interval(-40.0, 6.0, 801),
        ),
        "correlation": (lkj, 3, oracles.interval(-14.0, 14.0, 71)),
    }
    for name, (density, n, axis) in rows.items():
        target = vj.targets.transform(density, KINDS[name][0]).log_joint
        points, volumes = oracles.cross(*[axis] * n)
        total = jax.jit(lambda y, v, f=target: jnp.sum(jnp.exp(jax.vmap(f)(y)) * v))(
            np.stack(points, -1), volumes
        )
        np.testing.assert_allclose(total, 1.0, rtol=1e-6, err_msg=name)


def test_uniform_dirichlet_is_its_jacobian():
    """log p = log Γ(K) + log J: at y = 0, log 2 + log 1/27 for K = 3."""
    target = vj.targets.transform(lambda z: dirichlet.logpdf(z, jnp.ones(3)), c.simplex).log_joint
    np.testing.assert_allclose(jax.jit(target)(jnp.zeros(2)), np.log(2 / 27), rtol=1e-5)


# --- pytrees, batches, leaves bounded by leaves


def hierarchy(z):
    below = jnp.sum(norm.logpdf(z["low"], z["mu"], 1.0))
    return (
        below
        + norm.logpdf(z["mu"])
        + jnp.sum(norm.logpdf(z["theta"], z["mu"], z["tau"]))
        - z["tau"]
    )


HIERARCHY = {
    "tau": c.positive,
    "mu": None,
    "theta": lambda z: c.affine(z["mu"], z["tau"]),
    "low": lambda z: c.interval(high=z["mu"]),
}


def test_leaves_given_earlier_leaves(x64):
    """The Jacobian over all leaves is triangular; theta in units of tau is the non-centered form, written by hand."""
    y = {
        "tau": jnp.array(-0.4),
        "mu": jnp.array(0.3),
        "theta": jnp.array([0.2, -1.0]),
        "low": jnp.array([0.1, 0.5]),
    }
    target, constrain, unconstrain = vj.targets.transform(hierarchy, HIERARCHY)
    flat, unravel = jax.flatten_util.ravel_pytree(y)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), y)

    @jax.jit
    def run(first, second):
        z, slopes = constrain(y), jax.value_and_grad(target)
        matrix = jax.jacfwd(lambda v: jax.flatten_util.ravel_pytree(constrain(unravel(v)))[0])(flat)
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), slopes(first), slopes(second))
        by_hand = hierarchy(z) + jnp.linalg.slogdet(matrix)[1]
        return z, unconstrain(z), target(y), by_hand, jax.vmap(slopes)(several), rows

    z, back, value, by_hand, mapped, rows = run(y, jax.tree.map(lambda leaf: 2 * leaf, y))
    np.testing.assert_allclose(value, by_hand, rtol=1e-12)
    np.testing.assert_allclose(z["theta"], 0.3 + np.exp(-0.4) * y["theta"], rtol=1e-12)
    assert np.all(z["low"] < z["mu"])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12)
    jax.tree.map(close, back, y)
    jax.tree.map(close, mapped, rows)


def test_containers_prefixes_and_orders():
    """Tuples, one constraint for a subtree, containers made by a callable; jit sorts the names of y, which is no matter."""
    made = {"b": c.positive, "a": lambda z: {"x": c.interval(z["b"]), "y": None}}
    target, constrain, unconstrain = vj.targets.transform(
        lambda z: -jnp.sum(z["b"]) + 0 * z["a"]["x"], made
    )
    y = {"a": {"x": jnp.float32(0.5), "y": jnp.float32(2.0)}, "b": jnp.float32(-1.0)}
    z = jax.jit(constrain)(y)
    np.testing.assert_allclose(z["a"]["x"], np.exp(-1.0) + np.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(target)(y), -np.exp(-1.0) - 1.0 + 0.5, rtol=1e-6)
    assert z["a"]["y"] == 2.0
    pair = (jnp.float32(0.0), [jnp.zeros(2), jnp.zeros(3)])
    both = vj.targets.transform(lambda z: -z[0], (None, c.positive))
    assert jax.tree.structure(both.constrain(pair)) == jax.tree.structure(pair)
    jax.tree.map(np.testing.assert_allclose, both.unconstrain(both.constrain(pair)), pair)
    given = vj.targets.transform(lambda z: -z[0], (c.positive, lambda z: c.interval(0.0, z[0])))
    assert given.constrain((jnp.float32(0.0), jnp.float32(0.0)))[1] == 0.5


def test_a_batch_is_kept_and_events_are_summed():
    """log_joint [2] of leaves [2, 3] and [2, 4]: one Jacobian for each member."""
    batched = lambda z: -jnp.sum(z["rate"], -1) + jnp.sum(jnp.log(z["share"]), -1)
    kinds = {"rate": c.positive, "share": c.simplex}
    y = {
        "rate": jnp.array([[-0.3, 0.8, 0.1], [1.2, -1.5, 0.4]]),
        "share": jnp.array([[0.3, 0.2], [-1.0, 2.0]]),
    }
    target = vj.targets.transform(batched, kinds).log_joint
    one = vj.targets.transform(
        lambda z: batched(jax.tree.map(lambda leaf: leaf[None], z))[0], kinds
    ).log_joint
    found = jax.jit(target)(y)
    assert found.shape == (2,)
    np.testing.assert_allclose(found, jax.jit(jax.vmap(one))(y), rtol=1e-6)


# --- fits

X = np.array([3.0, 5.0, 1.0, 4.0])
A, B = 2.0, 1.5
A_N, B_N = A + X.sum(), B + len(X)


def counts(z):
    return gamma.logpdf(z, A, scale=1 / B) + jnp.sum(poisson.logpmf(jnp.asarray(X, z.dtype), z))


def evidence():
    return A * np.log(B) - gammaln(A) - gammaln(X + 1).sum() + gammaln(A_N) - A_N * np.log(B_N)


class LogGamma:
    """The exact posterior of log rate."""

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        y = jax.random.loggamma(seed, A_N, tuple(sample_shape)) - jnp.log(B_N)
        return y, self.log_prob(y)

    def log_prob(self, y):
        return A_N * y - B_N * jnp.exp(y) + A_N * jnp.log(B_N) - gammaln(A_N)


def test_an_exact_posterior_has_constant_weights(x64, key):
    """Gamma-Poisson: every log-weight is the evidence, and is not where the Jacobian is left out."""
    target, constrain, _ = found = vj.targets.transform(counts, c.positive)
    assert isinstance(found, vj.targets.Transformed)
    log_w = lambda f: vj.draws.weigh(key, f, LogGamma(), num_samples=50).log_w
    right, wrong = jax.jit(lambda: (log_w(target), log_w(lambda y: counts(constrain(y)))))()
    np.testing.assert_allclose(right, evidence(), rtol=1e-10)
    assert np.std(wrong) > 0.1


@pytest.mark.slow
def test_mean_field_reaches_its_own_best_below_the_evidence(x64, key):
    """The best N(m, s²) over log rate is known: s² = 1 / a, m = log a / b - s² / 2, and its ELBO is Stirling's log Γ(a)."""
    target, constrain, unconstrain = vj.targets.transform(
        lambda z: counts(z["rate"]), {"rate": c.positive}
    )
    family = vj.families.mean_field()
    start = family.init(key, unconstrain({"rate": jnp.array(2.0)}))
    elbo = vj.gradients.reparam(vj.bounds.elbo, draw=vj.draws.sobol)

    def climb(log_joint):
        value = lambda p: elbo(key, log_joint, family.dist(p), num_samples=512).value
        return maximize(value, start, steps=40)

    best, wrong = jax.jit(lambda: (climb(target), climb(lambda y: counts(constrain(y)["rate"]))))()
    stirling = A_N * np.log(A_N) - A_N + 0.5 * np.log(2 * np.pi / A_N)
    value = evidence() - gammaln(A_N) + stirling
    assert value < evidence() - 4e-3
    np.testing.assert_allclose(best.value, value, atol=1e-3)
    assert best.value < evidence()
    mean = lambda found: found.params["loc"]["rate"]
    np.testing.assert_allclose(mean(best), np.log(A_N / B_N) - 0.5 / A_N, atol=2e-3)
    assert (
        abs(mean(wrong) - mean(best)) > 0.05
    )  # without the Jacobian, log rate has another posterior


# --- factors, marks, refusals


def test_factors_and_marks(key):
    """Each constrained leaf is a factor of its own, once for each transform; keyed, aux and minibatch marks stay."""
    kinds = {"s": c.positive, "t": c.positive, "m": None}
    once = vj.targets.transform(
        lambda z: {"prior": -z["s"] - z["t"], "x": -jnp.square(z["m"])}, kinds
    ).log_joint
    y = {"s": jnp.float32(0.2), "t": jnp.float32(0.3), "m": jnp.float32(0.1)}
    assert set(jax.eval_shape(once, y)) == {"prior", "x", "log-Jacobian of s", "log-Jacobian of t"}
    twice = vj.targets.transform(once, {"s": c.affine(0.0, 2.0), "t": None, "m": None}).log_joint
    np.testing.assert_allclose(jax.jit(twice)(y)["log-Jacobian of s"], np.log(2.0) + 0.4, rtol=1e-6)
    assert vj.targets.transform(once, c.positive).unconstrain({"s": 2.0})["s"].weak_type is False

    noisy = vj.targets.keyed(
        lambda key, z: (-z + 0 * jax.random.normal(key), {"z": z}), has_aux=True
    )
    target = vj.targets.transform(noisy, c.positive).log_joint
    q = Gauss(jnp.float32(0.0), jnp.float32(-1.0))
    draws = jax.jit(lambda: vj.draws.weigh(key, target, q, num_samples=4))()
    np.testing.assert_allclose(draws.log_p, jnp.log(draws.aux["z"]) - draws.aux["z"], rtol=1e-5)

    part = vj.targets.minibatch(lambda z: -z, lambda z: -z * jnp.ones(2), num_data=6)
    target = vj.targets.transform(part, c.positive).log_joint
    np.testing.assert_allclose(target(jnp.float32(0.5)), 0.5 - 7 * np.exp(0.5), rtol=1e-6)
    with pytest.raises(ValueError, match="linear in log_w"):
        vj.gradients.reparam(vj.bounds.iwae)(key, target, q, num_samples=4)


def test_closed_forms_go_on_afterwards(x64, key):
    """The entropy of a Gaussian q over y, exactly, under the elbo; put on before, it is refused."""
    target = vj.targets.transform(counts, c.positive).log_joint
    q = vj.families.mean_field().dist({"loc": jnp.ones(()), "log_scale": -jnp.ones(())})
    exact = vj.targets.exact_entropy(target, q)

    @jax.jit
    def run():
        found = vj.gradients.reparam(vj.bounds.elbo)(key, exact, q, num_samples=50)
        return found.value, jnp.mean(jax.vmap(target)(found.draws.z))

    value, drawn = run()
    np.testing.assert_allclose(value, drawn + 0.5 * np.log(2 * np.pi * np.e) - 1.0, rtol=1e-12)
    with pytest.raises(ValueError, match=r"apply .* targets\.exact_entropy last"):
        vj.targets.transform(vj.targets.exact_entropy(counts, q), c.positive)


def at(constraints, y, log_joint=lambda z: jnp.zeros(())):
    return jax.eval_shape(vj.targets.transform(log_joint, constraints).log_joint, y)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (
            lambda y: at({"a": None, "c": None}, {"a": y, "b": y}),
            ValueError,
            r"same leaves at 'z'.*'a', 'c'.*'b': \(3,\)",
        ),
        (lambda y: at({"a": {"b": None}}, {"a": y}), ValueError, r"same leaves at 'a'"),
        (lambda y: at((None,), [y, y]), ValueError, "same leaves"),
        (lambda y: at("positive", y), TypeError, "must be one of targets.constraints"),
        (lambda y: at({"a": c.interval}, {"a": y}), TypeError, "low must be numbers"),
        (lambda y: at({"a": lambda z: "positive"}, {"a": y}), TypeError, "at 'a' must be one of"),
        (lambda y: at(c.interval, y), TypeError, "lack its arguments"),
        (
            lambda y: at({"a": lambda z: z["b"], "b": None}, {"a": y, "b": y}),
            ValueError,
            "asks for 'b'.*after those",
        ),
        (
            lambda y: at({"a": {"b": c.positive}}, {"a": {"b": y.astype(int)}}),
            TypeError,
            "leaf 'a.b' is int32",
        ),
        (
            lambda y: at({"a": c.simplex}, {"a": y[0]}),
            ValueError,
            r"leaf 'a', \(\): simplex is a constraint on vectors",
        ),
        (
            lambda y: at(c.cholesky_correlation, y[:2]),
            ValueError,
            r"d \(d - 1\) / 2 numbers, got 2",
        ),
        (
            lambda y: at(c.cholesky_covariance, y[:2]),
            ValueError,
            r"d \(d \+ 1\) / 2 numbers, got 2",
        ),
        (
            lambda y: at(c.interval(jnp.zeros(3)), y[None]),
            ValueError,
            r"low has shape \(3,\) and the latent \(1, 3\)",
        ),
        (lambda y: at(c.affine(0.0, jnp.ones(2)), y), ValueError, r"scale has shape \(2,\)"),
        (
            lambda y: at(c.positive, y, lambda z: jnp.zeros(5)),
            ValueError,
            r"shape \(5,\), and leaf 'z' has \(3,\)",
        ),
        (lambda y: at(c.simplex, y, lambda z: z), ValueError, r"before the axes of its constraint"),
        (lambda y: c.interval(), ValueError, "constraint None"),
        (lambda y: c.affine(0.0, -1.0), ValueError, "scale must be positive, got -1.0"),
        (lambda y: c.interval(0.0, np.inf), ValueError, "leave it None"),
        (lambda y: c.interval(np.array([0.0, 2.0]), 1.0), ValueError, "low must be below high"),
    ],
)
def test_refusals(run, error, message):
    with pytest.raises(error, match=message):
        run(jnp.zeros(3))


def test_what_is_no_density_is_refused_by_the_objective(key):
    q = Gauss(jnp.float32(0.0), jnp.float32(-1.0))
    for wrong, message in (
        (lambda z: None, "lack a return"),
        (lambda z: (z, z), "got a tuple"),
        (lambda z: {}, "empty"),
    ):
        with pytest.raises(TypeError, match=message):
            vj.draws.weigh(key, vj.targets.transform(wrong, c.positive).log_joint, q, num_samples=2)
