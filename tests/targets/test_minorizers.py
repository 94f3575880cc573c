"""targets.minorizers: each below its term everywhere, on it where it says so, and best where touch puts it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import t as student
from scipy import stats

import vijax as vj

minorizers = vj.targets.minorizers

N, C = 40, 5
RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, C, N)
DF = 4.0


def softmax(x):
    return jnp.take_along_axis(jax.nn.log_softmax(x), LABEL[:, None], -1)[:, 0]


# name: (minorizer, log f, axes of one x, whether it touches log f)
MEMBERS = {
    "jaakkola_jordan": (minorizers.jaakkola_jordan, jax.nn.log_sigmoid, (), True),
    "bohning": (minorizers.bohning, jax.nn.log_sigmoid, (), True),
    "bohning_softmax": (minorizers.bohning_softmax(LABEL), softmax, (C,), True),
    "bouchard": (minorizers.bouchard(LABEL), softmax, (C,), False),
    "one_vs_each": (minorizers.one_vs_each(LABEL), softmax, (C,), False),
    "one_vs_each of bohning": (
        minorizers.one_vs_each(LABEL, minorizers.bohning),
        softmax,
        (C,),
        False,
    ),
    "student_t": (minorizers.student_t(DF), partial(student.logpdf, df=DF), (), True),
    "mixture": (minorizers.mixture, partial(jax.nn.logsumexp, axis=-1), (C,), True),
}
TOUCHING = [name for name, row in MEMBERS.items() if row[3]]


def points(axes, seed=0, many=60):
    """x [many, N, ...], of every size from .01 to 30."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(many, N, *axes)) * np.geomspace(0.01, 30.0, many).reshape(
        -1, 1, *(1,) * len(axes)
    )


def slack(minorizer, log_f, axes):
    """log f(x) - lower(x, touch(T(y))) at all pairs of x and y, [x, y, N]."""
    x, y = jnp.asarray(points(axes)), jnp.asarray(points(axes, seed=1))
    at = jax.vmap(lambda y: minorizer.touch(minorizer.statistics(y)))(y)
    return jax.vmap(lambda x: jax.vmap(lambda at: log_f(x) - minorizer.lower(x, at))(at))(x)


@pytest.mark.parametrize("name", MEMBERS)
def test_below_everywhere(name, x64):
    minorizer, log_f, axes, _ = MEMBERS[name]
    found = jax.jit(partial(slack, minorizer, log_f, axes))()
    assert found.shape == (60, 60, N)
    assert found.min() > -1e-9 * (1 + np.abs(points(axes)).max() ** 2)


def wrong_curvature(curvature):
    return minorizers.parabola(jax.nn.log_sigmoid, lambda d: curvature * d**2)


@pytest.mark.parametrize(
    ("minorizer", "log_f", "axes"),
    [
        (wrong_curvature(0.225), jax.nn.log_sigmoid, ()),
        (minorizers.tangent(lambda x: jax.nn.log_sigmoid(x) + 0.11 * x**2, rest=lambda x: -0.11 * x**2), jax.nn.log_sigmoid, ()),
        (minorizers.tangent(jax.nn.log_sigmoid), jax.nn.log_sigmoid, ()),
        (minorizers.bohning_softmax(LABEL)._replace(lower=lambda x, at: minorizers.bohning_softmax(LABEL).lower(x, at) + 0.05 * jnp.sum((x - at) ** 2, -1)), softmax, (C,)),
    ],
    ids=["Böhning's curvature, a tenth too small", "not convex", "concave", "softmax, too flat"],
)  # fmt: skip
def test_what_is_not_below_is_seen(minorizer, log_f, axes, x64):
    assert jax.jit(partial(slack, minorizer, log_f, axes))().min() < -0.01


@pytest.mark.parametrize("name", TOUCHING)
def test_it_touches_and_its_slope_is_that_of_the_term(name, x64):
    minorizer, log_f, axes, _ = MEMBERS[name]

    @jax.jit
    def both(x):
        at = minorizer.touch(minorizer.statistics(x))
        return [
            (f(x), jax.grad(lambda x, f=f: jnp.sum(f(x)))(x))
            for f in (log_f, lambda x: minorizer.lower(x, at))
        ]

    exact, found = jax.vmap(both)(jnp.asarray(points(axes)))
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-9), found, exact)


@pytest.mark.parametrize("name", MEMBERS)
def test_touch_is_the_best(name, x64):
    """E[lower(x, at)] over 60 points: no slope in at is left, and nothing near is better."""
    minorizer, _, axes, _ = MEMBERS[name]

    @jax.jit
    def look(x):
        at = minorizer.touch(
            jax.tree.map(lambda t: jnp.mean(t, 0), jax.vmap(minorizer.statistics)(x))
        )
        value = lambda at: jnp.mean(jax.vmap(lambda x: minorizer.lower(x, at))(x), 0)
        slope = jax.grad(lambda at: jnp.sum(value(at)))(at)
        moved = [jax.tree.map(lambda a, f=f: f * a, at) for f in (0.8, 1.2)]
        return value(at), [value(m) for m in moved], slope

    for scale in (0.1, 1.0):
        best, others, slope = look(jnp.asarray(scale * (0.5 + points(axes))))
        jax.tree.map(lambda s: np.testing.assert_allclose(s, 0.0, atol=1e-6), slope)
        for other in others:
            assert (best - other).min() > -1e-9
            assert (best - other).max() > 1e-6  # the control: elsewhere is worse


def test_published_values(x64):
    """x ~ N(.7, 2): E log(1 + eˣ) is 1.296748, below 1.326622 and 1.353186 by the two parabolas."""
    x, w = np.polynomial.hermite_e.hermegauss(40)
    x, w = 0.7 + np.sqrt(2.0) * x, w / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(w @ np.logaddexp(0.0, x), 1.296748, atol=1e-6)
    for minorizer, expected in (
        (minorizers.jaakkola_jordan, 1.326622),
        (minorizers.bohning, 1.353186),
    ):
        at = jnp.full(40, minorizer.touch(w @ minorizer.statistics(jnp.asarray(-x))))
        np.testing.assert_allclose(-w @ minorizer.lower(jnp.asarray(-x), at), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jaakkola_jordan_at_and_around_zero(dtype):
    """lower = -log 2 + x/2 - x²/8 at ξ = 0, of slope x²/96 in ξ²; elsewhere as on paper, across the series' end."""
    with jax.enable_x64(dtype is np.float64):
        lower = minorizers.jaakkola_jordan.lower
        run = jax.jit(jax.vmap(jax.value_and_grad(lower, (0, 1)), (None, 0)))
        squares = np.array([0.0, 1e-30, 1e-8, 0.01, 0.0399999, 0.0400001, 0.3, 9.0, 1e4], dtype)
        value, (in_x, in_at) = run(dtype(1.7), squares)
        xi = np.sqrt(squares[2:].astype(np.float64))
        slope = np.r_[0.125, 0.125, np.tanh(xi / 2) / (4 * xi)]
        squares = squares.astype(np.float64)
        expected = (
            -np.logaddexp(0, -np.sqrt(squares))
            + 0.5 * (1.7 - np.sqrt(squares))
            - slope * (1.7**2 - squares)
        )
        # ½ (ξ² - x²) dλ/dξ / ξ, by differences of λ in the exact formula's own words away from 0
        fall = np.r_[
            [-1 / 96] * 3,
            (0.5 / np.cosh(xi / 2) ** 2 - np.tanh(xi / 2) / xi)[1:] / (8 * xi[1:] ** 2),
        ]
        close = 1e-4 if dtype is np.float32 else 1e-9
        np.testing.assert_allclose(value, expected, rtol=close)
        np.testing.assert_allclose(in_x, 0.5 - 2 * slope * 1.7, atol=close)
        np.testing.assert_allclose(in_at, fall * (squares - 1.7**2), rtol=100 * close, atol=close)


def test_student_t_is_scipys():
    r = jnp.linspace(-30, 30, 41)
    lower = minorizers.student_t(2.5).lower
    np.testing.assert_allclose(lower(r, r**2), stats.t.logpdf(r, 2.5), rtol=1e-5, atol=1e-6)


def test_one_vs_each_of_two_classes_is_the_binary_bound(x64):
    x, at = jnp.asarray(points((2,))[:, 0]), jnp.asarray(points((2,), seed=2)[:, 0] ** 2)
    label = np.arange(60) % 2
    found = minorizers.one_vs_each(label).lower(x, at)
    gap = x[np.arange(60), label] - x[np.arange(60), 1 - label]
    expected = minorizers.jaakkola_jordan.lower(gap, at[np.arange(60), 1 - label])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bouchards_slack_at_a_point(x64):
    """From 0, where one logit stands out, to 4 log(5/4), where all five are equal."""
    minorizer, log_f, axes, _ = MEMBERS["bouchard"]
    at_itself = jax.jit(
        lambda x: log_f(x) - minorizer.lower(x, minorizer.touch(minorizer.statistics(x)))
    )
    np.testing.assert_allclose(at_itself(jnp.full((N, C), 3.0)), 4 * np.log(1.25), rtol=1e-9)
    np.testing.assert_allclose(at_itself(jnp.full((N, C), 3.0).at[:, 1].set(80.0)), 0.0, atol=1e-9)


def test_bouchards_alpha_has_derivatives_in_single_precision():
    mean = (
        jnp.float32(points((C,))),
        jnp.float32(points((C,)) ** 2),
    )  # no variance: where curvature vanishes
    minorizer = minorizers.bouchard(LABEL)
    slope = jax.jit(
        jax.grad(lambda m: sum(jnp.sum(jnp.cos(a)) for a in jax.vmap(minorizer.touch)(m)))
    )(mean)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in slope)


def test_the_fixed_q_bound_of_a_mixture_is_concave_where_its_likelihood_is_not(x64):
    """In the components' means: midpoints of 5,000 random segments."""
    y = np.r_[RNG.normal(-2.0, 1.0, 15), RNG.normal(2.0, 1.0, 15)]
    x = lambda means: np.log([[0.4, 0.6]]) - 0.5 * (y[:, None] - means[None]) ** 2
    start = jnp.array([-1.0, 0.5])
    at = x(start)
    log_f = lambda means: jnp.sum(jax.nn.logsumexp(x(means), -1))
    bound = lambda means: jnp.sum(minorizers.mixture.lower(x(means), at))

    @jax.jit
    def violations(a, b):
        low = lambda f: jnp.sum(
            jax.vmap(lambda a, b: f((a + b) / 2) < (f(a) + f(b)) / 2 - 1e-9)(a, b)
        )
        return low(log_f), low(bound)

    found = violations(*jnp.asarray(RNG.normal(scale=3.0, size=(2, 5000, 2))))
    assert found[0] > 500
    assert found[1] == 0
    tight = [jax.value_and_grad(f)(start) for f in (log_f, bound)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *tight)


def test_each_is_side_by_side():
    alone = (minorizers.student_t(3.0), minorizers.bohning_softmax(LABEL))
    both = minorizers.each(*alone)
    x = (jnp.float32(points(())[0]), jnp.float32(points((C,))[0]))
    at = both.touch(both.statistics(x))
    for m, x_m, at_m, found in zip(alone, x, at, both.lower(x, at), strict=True):
        np.testing.assert_array_equal(at_m, m.touch(m.statistics(x_m)))
        np.testing.assert_array_equal(found, m.lower(x_m, at_m))


@pytest.mark.slow
def test_labels_are_traced_or_refused():
    x = jnp.float32(points((C,))[0])
    for make in (minorizers.bohning_softmax, minorizers.bouchard, minorizers.one_vs_each):
        run = lambda label, x, make=make: make(label).lower(
            x, make(label).touch(make(label).statistics(x))
        )
        many, whole = jax.jit(lambda label, x, run=run: (jax.vmap(run)(label, x), run(label, x)))(
            jnp.asarray(LABEL), x
        )
        np.testing.assert_allclose(many, whole, rtol=1e-4, atol=1e-4)
        with pytest.raises(TypeError, match="label must be whole numbers"):
            run(jnp.float32(LABEL), x)
