"""targets.minorize: below the evidence by quadrature, climbing with every step, with the derivatives of its own value."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from jax.scipy.stats import t as student

import vijax as vj
from tests.marks import some
from vijax import gaussians

minorizers, minorize = vj.targets.minorizers, vj.targets.minorize

RNG = np.random.default_rng(0)
N, C = 25, 4
X = RNG.normal(size=(N, 2))
SIGN = np.where(RNG.uniform(size=N) < 1 / (1 + np.exp(-X @ [2.0, -1.0])), 1.0, -1.0)
LABEL = RNG.integers(0, C, N)
HEADINGS = RNG.normal(size=(2, C))
Y = X @ [1.5, -0.7] + 0.3 * RNG.standard_t(2.0, N)
TWO = np.where(RNG.uniform(size=N) < 0.4, -1.0, 1.5) + 0.7 * RNG.normal(size=N)


def prior(v, b):
    return jnp.sum(norm.logpdf(b, 0.0, jnp.sqrt(v)))


def classes(v, b):
    return (X * b[None]) @ HEADINGS


def components(v, b):
    """Log πⱼ N(yₙ; bⱼ, .7²), quadratic in b."""
    return np.log([[0.4, 0.6]]) + norm.logpdf(TWO[:, None], b[None], 0.7)


# name: (minorizer, predictor, log f, like)
logistic = lambda v, b: SIGN * (X @ b)
softmax = lambda x: jnp.take_along_axis(jax.nn.log_softmax(x), LABEL[:, None], -1)[:, 0]
PROBLEMS = {
    "jaakkola_jordan": (minorizers.jaakkola_jordan, logistic, jax.nn.log_sigmoid, np.zeros(2)),
    "bohning": (minorizers.bohning, logistic, jax.nn.log_sigmoid, np.zeros(2)),
    "bohning_softmax": (minorizers.bohning_softmax(LABEL), classes, softmax, np.zeros(2)),
    "bouchard": (minorizers.bouchard(LABEL), classes, softmax, np.zeros(2)),
    "one_vs_each": (minorizers.one_vs_each(LABEL), classes, softmax, np.zeros(2)),
    "student_t": (minorizers.student_t(2.0), lambda v, b: (Y - X @ b) / 0.3, partial(student.logpdf, df=2.0), np.zeros(2)),
    "mixture": (minorizers.mixture, components, partial(logsumexp, axis=-1), np.array([-0.1, 0.1])),
}  # fmt: skip


def evidence(predictor, log_f, rest, v, half=9.0, points=301):
    """Log ∫ exp(Σ log f + rest) by a grid over two b's, at each v."""
    b = np.stack(np.meshgrid(*[np.linspace(-half, half, points)] * 2, indexing="ij"), -1).reshape(
        -1, 2
    )
    density = lambda v, b: jnp.sum(log_f(predictor(v, b))) + rest(v, b)
    grid = lambda v: logsumexp(jax.lax.map(partial(density, v), b, batch_size=2000))
    return jax.jit(lambda v: jax.lax.map(grid, v))(jnp.atleast_1d(v)) + 2 * np.log(
        2 * half / (points - 1)
    )


def by_sigma_points(minorizer, predictor, like, steps, v):
    """The same fixed point without derivatives: T is quadratic, so its mean is that of 2d points of the Gaussian."""

    def held(at):
        lower = lambda v, b: jnp.sum(minorizer.lower(predictor(v, b), at)) + prior(v, b)
        collapsed, conditional = vj.targets.collapse_gaussian(lower, like)
        return collapsed(v), conditional(v)

    def step(at, _):
        value, p = held(at)
        root = jnp.linalg.inv(p.root) * jnp.sqrt(1.0 * like.size)
        statistics = jax.vmap(lambda b: minorizer.statistics(predictor(v, b)))
        mean = jax.tree.map(
            lambda t: jnp.mean(t, 0), statistics(p.mean[None] + jnp.concatenate([root, -root]))
        )
        return minorizer.touch(mean), value

    at, values = jax.lax.scan(
        step, minorizer.touch(minorizer.statistics(predictor(v, like))), None, length=steps
    )
    return (
        at,
        values,
        jax.vmap(lambda f: held(jax.tree.map(lambda a: f * a, at))[0])(jnp.array([0.7, 1.0, 1.4])),
    )


# test_minorizers.py holds the slow ones to account in every run.
@pytest.mark.parametrize("name", some(PROBLEMS, "student_t"))
def test_it_climbs_and_stays_below_the_evidence(name, x64):
    minorizer, predictor, log_f, like = PROBLEMS[name]
    like = jnp.asarray(like)
    found = minorize(minorizer, predictor, prior, like, steps=40)
    at, (expected, values, around) = jax.jit(
        lambda v: (found.local(v), by_sigma_points(minorizer, predictor, like, 40, v))
    )(2.0)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6, atol=1e-9), at, expected)
    assert values[1] > values[0] + 1e-3
    assert np.all(np.diff(values) > -1e-10)
    exact = evidence(predictor, log_f, prior, 2.0)
    assert exact - N < values[-1] < exact - 1e-4
    # The control: local parameters elsewhere give less.
    assert around[0] < around[1] - 1e-5
    assert around[2] < around[1] - 1e-5


@pytest.mark.slow
def test_derivatives_are_those_of_the_value(x64):
    """In the prior's variance: after two steps by differences; held, `at` gives them where it has settled, alone."""
    make = lambda steps: minorize(
        minorizers.jaakkola_jordan, logistic, prior, jnp.zeros(2), steps=steps
    )

    def held(v, at):
        lower = lambda v, b: (
            minorizers.jaakkola_jordan.lower(logistic(v, b), at).sum() + prior(v, b)
        )
        return vj.targets.collapse_gaussian(lower, jnp.zeros(2))[0](v)

    @jax.jit
    def every(v):
        ats = jnp.stack([make(2).local(v), make(100).local(v)])
        two = jax.vmap(make(2).collapsed)(v + jnp.array([-1e-3, 0.0, 1e-3]))
        slopes = [jax.value_and_grad(make(steps).collapsed)(v) for steps in (2, 100)]
        return two, slopes, jax.vmap(jax.value_and_grad(held), (None, 0))(v, ats)

    two, slopes, (values, of_held) = every(2.0)
    np.testing.assert_allclose([slopes[0][0], slopes[1][0]], values, rtol=1e-12)
    np.testing.assert_allclose(slopes[0], (two[1], (two[2] - two[0]) / 0.002), rtol=1e-5)
    np.testing.assert_allclose(of_held[1], slopes[1][1], rtol=1e-7)
    assert abs(of_held[0] - slopes[0][1]) > 1e-3  # the control


@pytest.mark.slow
def test_a_batch_is_a_map():
    """Over data sets and variances: b [3, 2], x [3, N], and the same of one, mapped; in float32, with slopes."""
    signs = jnp.float32(np.stack([SIGN, -SIGN, RNG.choice([-1.0, 1.0], N)]))
    x, v = jnp.float32(X), jnp.array([0.5, 2.0, 8.0])
    jj = minorizers.jaakkola_jordan
    priors = lambda v, b: jnp.sum(norm.logpdf(b, 0.0, jnp.sqrt(v)[:, None]), -1)
    batch = minorize(jj, lambda v, b: signs * (b @ x.T), priors, jnp.zeros((3, 2)), steps=5)
    one = lambda sign: (
        minorize(jj, lambda v, b: sign * (x @ b), prior, jnp.zeros(2), steps=5).collapsed
    )

    slopes = lambda f: lambda v: jax.jvp(f, (v,), (jnp.ones_like(v),))
    mapped = lambda v: jax.vmap(lambda sign, v: one(sign)(v))(signs, v)
    assert isinstance(batch, vj.targets.Minorized)
    both = jax.jit(lambda v: (slopes(batch.collapsed)(v), slopes(mapped)(v)))(v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *both)


@pytest.mark.slow
def test_a_chain_of_states():
    """A walk seen through its sign: block-tridiagonal and dense precisions agree."""
    walk = lambda z, b: (
        norm.logpdf(b[0, 0], 0.0, 1.0) + jnp.sum(norm.logpdf(b[1:], b[:-1], jnp.exp(z)))
    )
    sign = jnp.float32(SIGN[:9])
    make = lambda precision: minorize(
        minorizers.jaakkola_jordan,
        lambda z, b: sign * b[:, 0],
        walk,
        jnp.zeros((9, 1)),
        steps=4,
        precision=precision,
    )
    thin, full = make(gaussians.tridiagonal), make(gaussians.dense)
    each = jax.jit(lambda z: [(m.collapsed(z), m.local(z)) for m in (thin, full)])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        *each(jnp.float32(-1.0)),
    )


@pytest.mark.slow
def test_regression_with_outliers(x64, key):
    """Student-t errors of an unknown scale: below log p(x, z) at every z, and below the evidence by elbo and iwae."""
    spoiled = Y.copy()
    spoiled[3] += 20.0
    residual = lambda z, b: (spoiled - X @ b) * jnp.exp(-z)
    rest = lambda z, b: prior(4.0, b) + norm.logpdf(z, -1.0, 0.5) - N * z
    found = minorize(minorizers.student_t(2.0), residual, rest, jnp.zeros(2), steps=30)
    z = jnp.linspace(-3.0, 1.0, 9)
    bound = jax.jit(jax.vmap(found.collapsed))(z)
    exact = evidence(residual, partial(student.logpdf, df=2.0), rest, z, half=5.0)
    assert np.all(bound < exact - 1e-3)
    assert np.all(bound > exact - 2.5)
    # Weights of the data: the outlier's is the smallest, by far.
    weights = 3.0 / (2.0 + jax.jit(found.local)(-1.0))
    assert weights[3] < 0.1 * jnp.delete(weights, 3).min()
    np.testing.assert_allclose(
        jax.jit(lambda z: found.conditional(z).mean)(-1.0), [1.5, -0.7], atol=0.3
    )

    q = vj.families.mean_field(scale=0.2)
    params = q.init(key, jnp.array(-1.0))
    both = jax.jit(lambda k: [vj.gradients.reparam(b)(k, found.collapsed, q.dist(params), num_samples=200).value for b in (vj.bounds.elbo, vj.bounds.iwae)])  # fmt: skip
    elbo, iwae = both(key)
    assert elbo < iwae < logsumexp(exact) + np.log(0.5)


def test_components_are_told_apart_by_like(x64):
    """Responsibilities are softmax(at); a `like` that is symmetric stays so, and ends lower."""
    symmetric = lambda z, b: jnp.log(0.5) + norm.logpdf(TWO[:, None], b[None], 0.7)
    ends = [
        minorize(
            minorizers.mixture, symmetric, lambda z, b: prior(9.0, b), jnp.array(like), steps=60
        )
        for like in ([-0.1, 0.1], [0.0, 0.0])
    ]
    apart, together = jax.jit(
        lambda: [(m.collapsed(()), jax.nn.softmax(m.local(()))) for m in ends]
    )()
    np.testing.assert_allclose(together[1], 0.5)
    assert apart[0] > together[0] + 2.0
    np.testing.assert_array_equal(
        apart[1][:, 1] > 0.5, TWO > TWO[np.argsort(np.abs(apart[1][:, 1] - 0.5))[:2]].mean()
    )


@pytest.mark.slow
def test_several_kinds_of_terms(x64):
    """Labels and heavy-tailed measurements of one b; the same as collapsing both lower bounds by hand."""
    both = minorizers.each(minorizers.jaakkola_jordan, minorizers.student_t(2.0))
    predictor = lambda v, b: (SIGN * (X @ b), (Y - X @ b) / 0.3)
    found = minorize(both, predictor, prior, jnp.zeros(2), steps=40)

    def by_hand(v, b):
        one, other = found.local(v)
        x, r = predictor(v, b)
        terms = jnp.sum(minorizers.jaakkola_jordan.lower(x, one)) + jnp.sum(
            minorizers.student_t(2.0).lower(r, other)
        )
        return terms + prior(v, b)

    collapsed, _ = vj.targets.collapse_gaussian(by_hand, jnp.zeros(2))
    value, expected = jax.jit(lambda v: (found.collapsed(v), collapsed(v)))(2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    log_f = lambda x: jnp.sum(jax.nn.log_sigmoid(x[0])) + jnp.sum(student.logpdf(x[1], 2.0))
    exact = evidence(predictor, log_f, prior, 2.0)
    assert exact - 2.0 < value < exact - 0.01


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    jj, rest = minorizers.jaakkola_jordan, lambda z, b: -jnp.sum(b**2)
    linear = lambda z, b: 2 * b
    for predictor, other in (
        (lambda z, b: jnp.exp(b), rest),
        (linear, lambda z, b: -jnp.sum(jnp.exp(b))),
    ):
        found = minorize(jj, predictor, other, jnp.zeros(3), steps=2)
        for function in found[:2]:
            with pytest.raises(ValueError, match="not quadratic in b: 'exp'") as caught:
                function(())
            assert any(
                re.search("predictor must be linear in b", note) for note in caught.value.__notes__
            )
    with pytest.raises(ValueError, match=r"not quadratic in b"):  # x² of what is quadratic
        minorize(jj, lambda z, b: b**2, rest, jnp.zeros(3), steps=1).collapsed(())
    with pytest.raises(
        ValueError, match=r"batch axes of rest\(z, b\), \(3,\); a term of it has shape \(2, 3\)"
    ):
        minorize(
            jj, lambda z, b: jnp.stack([b, b]), lambda z, b: -(b**2), jnp.zeros(3), steps=1
        ).collapsed(())
    with pytest.raises(TypeError, match="steps must be a Python int"):
        minorize(jj, linear, rest, jnp.zeros(3), steps=2.0)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        minorize(jj, linear, rest, jnp.zeros(3), steps=-1)
    with pytest.raises(TypeError, match="pytree of float arrays"):
        minorize(jj, linear, rest, jnp.zeros(3, int), steps=1)
    part = vj.targets.minibatch(lambda z: z.sum(), lambda z: z, num_data=3)
    with pytest.raises(ValueError, match="exact rest"):
        minorize(jj, linear, part, jnp.zeros(3), steps=1)
