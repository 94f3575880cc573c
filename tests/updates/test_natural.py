"""Natural gradients against the Fisher matrix, Gaussian targets in one step, and starts from which much goes wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import vijax as vj
from tests.statistics import assert_mean
from vijax.types import Rule, Step
from vijax.updates import _curvature, _natural, _square_root, _whitened

updates = vj.updates
full, mean_field = vj.families.full_rank(scale=0.5), vj.families.mean_field(scale=0.5)
BOTH = {"natural": updates.natural_gradient, "square_root": updates.square_root_natural_gradient}
natural, square_root = (partial(rule, curvature=updates.hessian) for rule in BOTH.values())

ROOT = np.array([[1.0, 0, 0], [-0.7, 0.6, 0], [0.3, 0.4, 0.5]])
MEAN = np.array([0.8, -1.1, 0.4])
PRECISION = np.linalg.inv(ROOT @ ROOT.T)


def gaussian(z):
    r = jnp.concatenate([z["a"][None], z["b"]]) - jnp.asarray(MEAN, z["b"].dtype)
    return -0.5 * r @ jnp.asarray(PRECISION, r.dtype) @ r


def start(family=full):
    return family.init(jax.random.key(0), {"a": jnp.zeros(()), "b": jnp.zeros(2)})


def run(rule, params, key, steps):
    """Return the last state, and the ELBO and the share taken of every step."""

    def body(state, key):
        new, report = rule.step(key, state)
        return new, (report.value, new.taken)

    return jax.jit(lambda keys: jax.lax.scan(body, rule.init(params), keys))(
        jax.random.split(key, steps)
    )


def covariance(state):
    root = jnp.diag(state.root) if state.root.ndim == 1 else state.root
    return root @ root.T


def vector(tree):
    return ravel_pytree(tree)[0]


def test_a_gaussian_target_is_reached_in_one_step(x64, key):
    update = natural(gaussian, num_samples=2)
    state, _ = run(update, start(), key, 1)
    np.testing.assert_allclose(vector(state.loc), MEAN, atol=1e-12)
    np.testing.assert_allclose(covariance(state), ROOT @ ROOT.T, atol=1e-12)
    assert state.taken == 1.0
    # In the family's own words: every draw now has the same weight.
    q = full.dist(update.params(state))
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(8,))
    assert jnp.ptp(jax.vmap(gaussian)(z) - log_q) < 1e-10
    # Mean-field: the mean, and the variances 1 / diag of the precision, after the mean has been found around itself.
    state, _ = run(natural(gaussian, num_samples=2, learning_rate=0.5), start(mean_field), key, 600)
    np.testing.assert_allclose(vector(state.loc), MEAN, atol=1e-8)
    np.testing.assert_allclose(state.root**-2, np.diag(PRECISION), rtol=1e-10)
    # The control: half the rate does not arrive.
    state, _ = run(natural(gaussian, num_samples=2, learning_rate=0.5), start(), key, 1)
    assert abs(vector(state.loc) - MEAN).max() > 1e-2


@pytest.mark.parametrize("name", ["square_root", "quadratic", "stein"])
def test_others_reach_a_gaussian_target_too(name, x64, key):
    """In tens of steps; with Stein's identity the noise vanishes with the distance, so that the last digits come too."""
    update = {
        "square_root": square_root(gaussian, num_samples=2, learning_rate=1.0),
        "quadratic": natural(
            gaussian, num_samples=2, learning_rate=1.0, retraction=updates.quadratic
        ),
        "stein": natural(gaussian, num_samples=64, learning_rate=0.5, curvature=updates.stein),
    }[name]
    state, _ = run(update, start(), key, 80)
    np.testing.assert_allclose(vector(state.loc), MEAN, atol=1e-6)
    np.testing.assert_allclose(covariance(state), ROOT @ ROOT.T, atol=1e-6)


# --- a logistic regression: the step is the Fisher matrix's inverse times the gradient

X = np.array([[1.0, 0.4], [-0.6, 1.3], [0.9, -1.1], [0.2, 0.8], [-1.5, -0.3]])
Y = np.array([1.0, -1.0, 1.0, 1.0, -1.0])


def logistic(z):
    x, y = jnp.asarray(X, z.dtype), jnp.asarray(Y, z.dtype)
    return jnp.sum(jax.nn.log_sigmoid(y * (x @ z))) - 0.5 * jnp.sum(z**2)


POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
GRID = np.stack([g.ravel() for g in np.meshgrid(POINTS, POINTS)], 1)
MASS = np.outer(WEIGHTS, WEIGHTS).ravel() / WEIGHTS.sum() ** 2
M = np.array([0.3, -0.5])
L = np.array([[0.7, 0.0], [-0.4, 0.9]])


def to_natural(m, root):
    precision = jnp.linalg.inv(root @ root.T)
    return jnp.concatenate(
        [precision @ m, jnp.asarray([1, 2, 1]) * -0.5 * precision[jnp.triu_indices(2)]]
    )


def from_natural(natural):
    a, b, c = natural[2:] * jnp.asarray([-2.0, -1.0, -2.0])
    sigma = jnp.linalg.inv(jnp.array([[a, b], [b, c]]))
    return sigma @ natural[:2], jnp.linalg.cholesky(sigma)


def elbo(natural):
    """Return the ELBO of (Λ m, -½ Λ with its off-diagonal twice), by quadrature."""
    m, root = from_natural(natural)
    z = m[None] + GRID @ root.T
    return jnp.asarray(MASS) @ jax.vmap(logistic)(z) + jnp.sum(jnp.log(jnp.diagonal(root)))


def fisher(natural):
    """Return E[-∇² log q] at its own parameters."""
    m, root = from_natural(natural)

    def mean_log_q(other):
        loc, scale = from_natural(other)
        r = jax.scipy.linalg.solve_triangular(
            scale, (m[None] + GRID @ root.T - loc[None]).T, lower=True
        )
        return jnp.asarray(MASS) @ (-0.5 * jnp.sum(r**2, 0)) - jnp.sum(jnp.log(jnp.diagonal(scale)))

    return -jax.hessian(mean_log_q)(natural)


@jax.jit
def by_quadrature():
    f = lambda e: logistic(M + L @ e)
    slope = jnp.asarray(MASS) @ jax.vmap(jax.grad(f))(jnp.asarray(GRID))
    return _curvature.Local(
        jnp.zeros(2),
        slope,
        -jnp.einsum("k,kij->ij", MASS, jax.vmap(jax.hessian(f))(jnp.asarray(GRID))),
    )


def here():
    return updates.GaussianState(jnp.asarray(M), jnp.asarray(L), jnp.int32(0), jnp.ones(()))


@pytest.mark.slow
def test_the_step_is_the_inverse_fisher_matrix_times_the_gradient(x64):
    state = here()
    before = to_natural(state.loc, state.root)
    ascent = jax.jit(lambda n: jnp.linalg.solve(fisher(n), jax.grad(elbo)(n)))(before)
    local = by_quadrature()
    for rate in (0.1, 1.0):
        new = _natural.mover(state, local, jnp.asarray(rate), updates.clipped)(jnp.ones(()))
        np.testing.assert_allclose(to_natural(new.loc, new.root), before + rate * ascent, atol=1e-9)
    # The other two agree with it to first order in the rate, and no further.
    small = jnp.asarray(1e-4)
    for new in (
        _natural.mover(state, local, small, updates.quadratic)(jnp.ones(())),
        _square_root.moved(state, local, small),
    ):
        moved = (to_natural(new.loc, new.root) - before) / small
        np.testing.assert_allclose(moved, ascent, atol=5e-4)
        assert abs(moved - ascent).max() > 1e-7
    # The control: the gradient itself is another direction.
    plain = jax.grad(elbo)(before)
    assert abs(plain @ ascent) < 0.9 * jnp.linalg.norm(plain) * jnp.linalg.norm(ascent)


@pytest.mark.parametrize("curvature", ["hessian", "stein"])
def test_slope_and_curvature_are_unbiased(curvature, x64, key):
    find, state = getattr(updates, curvature), here()

    def one(key):
        target = _whitened.whiten(key, logistic, state, 2, paired=True)
        log_p = lambda e: target.log_p(state, e)
        dense, diagonal = find.dense(log_p, target.noise), find.diagonal(log_p, target.noise)
        own = diagonal.curvature  # of a mean-field q: dense where that costs no more
        own = jnp.diag(own) if own.ndim == 2 else own
        return {
            "slope": dense.slope,
            "curvature": dense.curvature,
            "gap": jnp.diag(dense.curvature) - own,
        }

    samples = jax.jit(jax.vmap(one))(jax.random.split(key, 20_000))
    truth = by_quadrature()
    expected = {"slope": truth.slope, "curvature": truth.curvature, "gap": jnp.zeros(2)}
    assert_mean(samples, expected, detects={"slope": 0.05, "curvature": 0.1, "gap": 1e-4})
    with pytest.raises(
        AssertionError, match="biased"
    ):  # the control: a curvature that forgot its factor
        assert_mean(
            {"curvature": 0.8 * samples["curvature"]}, {"curvature": truth.curvature}, detects=0.1
        )


# --- starts from which much goes wrong

DATA = np.linspace(-1.5, 1.5, 40) + 3.0


def scale_unknown(z):
    y = jnp.asarray(DATA, z["mu"].dtype)
    log_p = jnp.sum(-0.5 * jnp.square((y - z["mu"]) * jnp.exp(-z["log_sigma"])) - z["log_sigma"])
    return log_p - 0.5 * z["log_sigma"] ** 2 - 0.5 * (z["mu"] / 10) ** 2


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param("natural", full, id="natural-full_rank"),
        *[
            pytest.param(name, family, id=f"{name}-{kind}", marks=pytest.mark.slow)
            for name, family, kind in (
                ("natural", mean_field, "mean_field"),
                ("square_root", full, "full_rank"),
            )
        ],
        pytest.param("square_root", mean_field, id="square_root-mean_field"),
    ],
)
def test_nothing_turns_nan_five_standard_deviations_away(name, family, key):
    """In float32, from log sigma 5 too low or too high; e^10 is how wrong the first curvature is."""
    update = BOTH[name](scale_unknown, num_samples=64)
    posterior = np.array([np.log(DATA.std()), DATA.mean()])
    for log_sigma in (-5.0, 5.0):
        params = family.init(key, {"log_sigma": jnp.float32(log_sigma), "mu": jnp.float32(0.0)})
        state, (values, taken) = run(update, params, key, 100)
        assert jax.tree.all(jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), (state, taken)))
        assert jnp.all(jnp.diagonal(covariance(state)) > 0)
        spread = np.array([1 / np.sqrt(80), DATA.std() / np.sqrt(40)])
        assert np.all(np.abs(vector(state.loc) - posterior) < 0.7 * spread)
        np.testing.assert_allclose(jnp.sqrt(jnp.diagonal(covariance(state))), spread, rtol=0.25)
        assert values[-10:].mean() > values[0]


def test_a_step_into_nan_is_not_taken(key):
    nowhere = lambda z: -1e4 * (z - 3.0) ** 2 + jnp.sqrt(1.0 - z)
    params = mean_field.init(key, jnp.float32(0.0))
    for halvings in (0, 10):
        state, (_, taken) = run(natural(nowhere, num_samples=4, halvings=halvings), params, key, 10)
        assert jnp.isfinite(state.loc)
        assert jnp.any(taken < 1)
    # The control: the same target without the wall is climbed.
    state, _ = run(natural(lambda z: -1e4 * (z - 3.0) ** 2, num_samples=4), params, key, 10)
    assert abs(state.loc - 3.0) < 1e-2


def test_looking_before_a_step_matters(key):
    """Newton's step of a heavy tail overshoots: taken as it comes, it leaves."""
    heavy = lambda z: -2.0 * jnp.sqrt(1 + (4 * z) ** 2)
    params = vj.families.mean_field(scale=0.01).init(key, jnp.float32(2.0))
    wild, _ = run(natural(heavy, num_samples=8, learning_rate=1.0, halvings=0), params, key, 4)
    calm, _ = run(natural(heavy, num_samples=8, learning_rate=1.0), params, key, 20)
    assert abs(wild.loc) > 4
    assert abs(calm.loc) < 0.5


@pytest.mark.slow
def test_seeds_by_vmap_are_seeds_one_by_one(key):
    update = natural(logistic, num_samples=8)
    keys = jax.random.split(key, 3)
    one = lambda key: update.step(key, update.init(full.init(key, jnp.zeros(2))))
    many = jax.jit(jax.vmap(one))(keys)
    alone = jax.jit(one)(keys[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=2e-3, atol=2e-4), many, alone
    )
    state, report = alone
    assert isinstance(update, Rule)
    assert isinstance(report, Step)
    assert report.gradient is None
    assert isinstance(updates.stein, updates.Curvature)
    assert (report.draws.log_p.shape, report.draws.z.shape) == ((8,), (8, 2))
    np.testing.assert_allclose(report.value, report.draws.log_w.mean(), rtol=1e-5)
    q = full.dist(update.params(update.init(full.init(keys[1], jnp.zeros(2)))))
    np.testing.assert_allclose(jax.vmap(q.log_prob)(report.draws.z), report.draws.log_q, rtol=1e-4)
    assert state.root.dtype == jnp.float32


@pytest.mark.slow
def test_minibatches_and_schedules(x64, key):
    """A minibatch's noise is averaged by a falling rate: the posterior of a linear regression, within its Monte Carlo error."""
    x = jnp.asarray(np.stack([np.ones(60), np.linspace(-1, 1, 60)], 1))
    y = x @ jnp.array([0.5, -1.0]) + 0.3 * jnp.sin(jnp.arange(60.0) * 7)
    precision = x.T @ x / 0.09 + jnp.eye(2)

    def body(state, key):
        key_batch, key_step = jax.random.split(key)
        rows = jax.random.choice(key_batch, 60, (10,), replace=False)
        terms = lambda z: -0.5 * jnp.square((y[rows] - x[rows] @ z) / 0.3)
        target = vj.targets.minibatch(lambda z: -0.5 * jnp.sum(z**2), terms, num_data=60)
        update = natural(target, num_samples=2, learning_rate=lambda t: 1 / (t + 1), halvings=0)
        return update.step(key_step, state)[0], None

    first = natural(logistic, num_samples=2).init(full.init(key, jnp.zeros(2)))
    state, _ = jax.jit(lambda keys: jax.lax.scan(body, first, keys))(jax.random.split(key, 400))
    np.testing.assert_allclose(jnp.linalg.inv(covariance(state)), precision, rtol=0.05, atol=15)
    error = jnp.linalg.cholesky(precision).T @ (
        state.loc - jnp.linalg.solve(precision, x.T @ y / 0.09)
    )
    assert jnp.linalg.norm(error) < 0.5


@pytest.mark.parametrize(
    "name",
    ["natural", *(pytest.param(n, marks=pytest.mark.slow) for n in ("square_root", "match"))],
)
def test_a_memory_is_the_target_that_changes(name, key):
    """A cursor through the data, called once a step: the same as a new target made by hand for each step."""
    make = BOTH.get(name, updates.batch_and_match)
    data = jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.4, 1.5]])
    log_joint = lambda x: lambda z: -0.5 * jnp.sum(jnp.square(z - x))
    calls = []

    def target(memory):
        calls.append(memory)
        return log_joint(data[memory["cursor"] % 3]), {"cursor": memory["cursor"] + 1}

    rule = make(target, num_samples=8)
    params = full.init(key, jnp.zeros(2))
    state = rule.init(params, memory={"cursor": 0})
    step = jax.jit(rule.step)
    by_hand = make(log_joint(data[0]), num_samples=8).init(params)
    assert by_hand.memory is None
    for i, of_step in enumerate(jax.random.split(key, 4)):
        state, report = step(of_step, state)
        by_hand, expected = jax.jit(make(log_joint(data[i % 3]), num_samples=8).step)(
            of_step, by_hand
        )
        np.testing.assert_allclose(report.value, expected.value, rtol=1e-5)
        np.testing.assert_allclose(state.loc, by_hand.loc, rtol=1e-4, atol=1e-5)
    assert state.memory["cursor"] == 4
    assert len(calls) == 1  # one trace, in which the target was asked for once


def test_minibatches_under_fit(key):
    """What the docstring shows: a cursor as the memory of the rule, its target of a minibatch, the loop of fit."""
    x = jax.random.normal(jax.random.key(7), (60, 2)) + jnp.array([[1.0, -2.0]])
    batches = vj.fitting.minibatches(num_data=60, batch_size=12)

    def target(cursor):
        rows, cursor = batches.next(cursor)
        terms = lambda z: -0.5 * jnp.sum(jnp.square(x[rows] - z[None]), 1)
        return vj.targets.minibatch(lambda z: -0.5 * jnp.sum(z**2), terms, num_data=60), cursor

    rule = updates.natural_gradient(target, num_samples=16, learning_rate=0.1)
    state = rule.init(full.init(key, jnp.zeros(2)), memory=batches.init(key))
    found = vj.fitting.fit(key, rule, state, steps=600, stop=None, reports=())
    assert found.state.memory.epoch == 600 * 12 // 60
    np.testing.assert_allclose(found.average["loc"], x.sum(0) / 61, atol=0.02)
    np.testing.assert_allclose(found.average["log_scale"], -0.5 * np.log(61), atol=0.1)


def test_what_is_refused(unchecked, key):
    with pytest.raises(ValueError, match="num_samples must be even, got 3"):
        natural(logistic, num_samples=3)
    for update in (natural, updates.square_root_natural_gradient):
        for rate in (0.0, -1.0, 3.0):
            with pytest.raises(ValueError, match=r"learning_rate must be a number in \(0, 1\]"):
                update(logistic, num_samples=2, learning_rate=rate)
    with pytest.raises(ValueError, match="halvings must be at least 0, got -1"):
        updates.square_root_natural_gradient(logistic, num_samples=2, halvings=-1)
    update = natural(logistic, num_samples=2)
    low = vj.families.low_rank(rank=1).init(key, jnp.zeros(2))
    with pytest.raises(
        TypeError, match=r"params must be those of families.mean_field .*got \['factor'"
    ):
        update.init(dict(sorted(low.items())))
    own = {"loc": jnp.zeros(3), "log_scale": jnp.zeros(())}  # an isotropic family of one's own
    with pytest.raises(ValueError, match=r"a log_scale for each loc.*takes fitting.ascent"):
        update.init(own)
    with pytest.raises(ValueError, match=r"one number for each pair, \(3,\); got.*lower \(2,\)"):
        update.init({"loc": jnp.zeros(3), "log_scale": jnp.zeros(3), "lower": jnp.zeros(2)})
    with pytest.raises(TypeError, match="float32 or float64, got bfloat16"):
        update.init(full.init(key, jnp.zeros(2, jnp.bfloat16)))
    with pytest.raises(TypeError, match=r"the rule's init\(params\) returned, got a dict"):
        update.step(key, full.init(key, jnp.zeros(2)))
    with pytest.raises(TypeError, match=r"begin with rule.init\(params\)"):
        update.params(full.init(key, jnp.zeros(2)))
    state = update.init(full.init(key, jnp.zeros(2)))
    with pytest.raises(TypeError, match="key must be a typed key"):
        update.step(0, state)
    with pytest.raises(ValueError, match=r"log_joint\(z\) has shape \(2,\) for one draw"):
        natural(lambda z: -(z**2), num_samples=2).step(key, state)
    split = vj.targets.exact_entropy(logistic, full.dist(update.params(state)))
    with pytest.raises(ValueError, match="holds terms of q in closed form"):
        natural(split, num_samples=2).step(key, state)
    with pytest.raises(
        TypeError, match="log_joint must be a function .* got a Transformed: pass its log_joint"
    ):
        natural(vj.targets.transform(logistic, None), num_samples=2)
    with pytest.raises(TypeError, match=r"memory -> \(log_joint, memory\), this one returned"):
        natural(logistic, num_samples=2).step(
            key, update.init(full.init(key, jnp.zeros(2)), memory=jnp.zeros(2))
        )


def test_the_default_rate():
    rates = jax.vmap(updates.settling)(jnp.arange(60))
    np.testing.assert_allclose(rates[:21], 1.0)
    np.testing.assert_allclose(rates[50], 0.5)
    both = [partial(f, jnp.linspace(-20.0, 50.0, 99)) for f in (updates.clipped, updates.quadratic)]
    assert all(jnp.all(f(jnp.float32(rate)) > 0) for f in both for rate in (0.1, 1.0))
