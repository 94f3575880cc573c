"""A7 and A8: second derivatives, and a derivative removed with the -inf that it was guarding."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import table
from tests.bare import Gauss
from tests.faults.judging import G, assert_refused, case, refusal

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")
C = vj.targets.constraints
Y = np.array([0.3, -0.4, 0.5])


# --- A7: the Hessian of what a constraint makes, against differences of its gradient

CONSTRAINTS = {
    "interval(low=0)": (C.interval(low=0.0), Y),
    "interval(high=1)": (C.interval(high=1.0), Y),
    "interval(0, 1)": (C.interval(0.0, 1.0), Y),
    "positive": (C.positive, Y),
    "affine": (C.affine(1.0, 2.0), Y),
    "ordered": (C.ordered, Y),
    "simplex": (C.simplex, Y),
    "cholesky_correlation": (C.cholesky_correlation, Y),
    "cholesky_covariance": (C.cholesky_covariance, Y),
}


def hessian_and_differences(f, x, step=1e-5):
    x = jnp.asarray(x)
    slope, moved = jax.grad(f), step * jnp.eye(x.size)
    differences = (jax.vmap(slope)(x + moved) - jax.vmap(slope)(x - moved)) / (2 * step)
    return jax.hessian(f)(x), differences


FAST = {"positive", "interval(low=0)", "ordered"}


@pytest.mark.parametrize(
    "name",
    [case(n, name=n, slow=n not in FAST) for n in CONSTRAINTS],
)
def test_a_constraint_is_differentiable_twice(name):
    constraint, y = CONSTRAINTS[name]

    def value(y):
        z, log_slope = constraint.forward(y)
        return jnp.sum(jnp.sin(z + 0.1 * z**2)) + jnp.sum(log_slope)

    hessian, differences = jax.jit(lambda y: hessian_and_differences(value, y))(y)
    np.testing.assert_allclose(hessian, differences, atol=1e-6)


@pytest.mark.slow
def test_the_laplace_approximation_of_a_transformed_target():
    """6 log p + 3 log(1 - p) at p = σ(y), the Jacobian's terms among it: curvature 9 p (1 - p) = 2."""
    target = vj.targets.transform(
        lambda z: 5 * jnp.log(z["p"]) + 2 * jnp.log1p(-z["p"]), {"p": C.interval(0.0, 1.0)}
    )
    params = vj.families.laplace(target.log_joint).init(jax.random.key(0), {"p": jnp.array(0.0)})
    np.testing.assert_allclose(jnp.exp(params["log_scale"]["p"]), 2**-0.5, rtol=1e-5)


# --- A7: Hessians of surrogates, which docstrings call meaningless: right or refused

SCALE = 0.6


def elbo_hessian(p):
    """E of -.25 (z - 1)² under N(p, .6), and its entropy: -.5 in p. With sin z: less E sin z."""
    return -0.5 - jnp.sin(p) * jnp.exp(-0.5 * SCALE**2)


ESTIMATORS = {
    name: getattr(G, name)(vj.bounds.elbo) for name in ("reparam", "dreg", "score", "vimco", "auto")
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_hessian_of_an_objective_is_right_or_refused(name):
    def value(p, key):
        q = Gauss(p, jnp.log(SCALE))
        return ESTIMATORS[name](
            key, lambda z: -0.25 * (z - 1) ** 2 + jnp.sin(z), q, num_samples=4
        ).value

    run = jax.jit(jax.vmap(jax.hessian(value), (None, 0)))
    found = []
    if (
        refusal(
            lambda: found.append(run(jnp.float64(0.3), jax.random.split(jax.random.key(0), 20_000)))
        )
        is None
    ):
        error = np.std(found[0]) / len(found[0]) ** 0.5 + 1e-9
        assert abs(np.mean(found[0]) - elbo_hessian(0.3)) < 6 * error
        assert error < 0.1


# --- A8: the slope at a weight of zero

LOG_W = np.array([-0.96, -1.16, -2.36])
WEIGHTS = np.array([0.0, 0.5, 0.5])
SLOPES = np.exp(LOG_W) / np.sum(WEIGHTS * np.exp(LOG_W))


def test_the_slope_at_a_weight_of_zero():
    slope = jax.grad(lambda w: vj.numerics.log_mean_exp(jnp.asarray(LOG_W), weights=w))(
        jnp.asarray(WEIGHTS)
    )
    np.testing.assert_allclose(slope, SLOPES, rtol=1e-6)


def test_the_slope_at_other_weights():
    """The control: the weights that are not zero."""
    slope = jax.grad(lambda w: vj.numerics.log_mean_exp(jnp.asarray(LOG_W), weights=w))(
        jnp.asarray(WEIGHTS)
    )
    np.testing.assert_allclose(slope[1:], SLOPES[1:], rtol=1e-6)


def test_the_slope_at_a_weight_of_zero_to_second_order():
    """- exp(x₀)² / (Σ w exp(x))², and in x₀ the same slope again; of an impossible row 0, and finite of a huge one."""
    value = lambda w, x: vj.numerics.log_mean_exp(x, weights=w)
    by_w, by_both = jax.jit(
        lambda w, x: (jax.hessian(value)(w, x), jax.jacfwd(jax.grad(value), 1)(w, x))
    )(jnp.asarray(WEIGHTS), jnp.asarray(LOG_W))
    np.testing.assert_allclose(by_w, -np.outer(SLOPES, SLOPES), rtol=1e-6)
    np.testing.assert_allclose(by_both[0, 0], SLOPES[0], rtol=1e-6)
    slope = jax.jit(jax.grad(value))
    impossible = slope(jnp.asarray(WEIGHTS), jnp.array([-np.inf, *LOG_W[1:]]))
    np.testing.assert_allclose(impossible, [0.0, *SLOPES[1:]], rtol=1e-6)
    huge = slope(jnp.asarray(WEIGHTS), jnp.array([1e4, *LOG_W[1:]]))
    assert np.isfinite(huge).all()
    assert huge[0] > 1e300
    assert value(jnp.asarray(WEIGHTS), jnp.array([np.inf, 0.0, 0.0])) == 0.0


def test_normalized_weights_at_a_weight_of_zero():
    slope = jax.jacfwd(lambda w: vj.numerics.normalized_weights(jnp.asarray(LOG_W), weights=w))(
        jnp.asarray(WEIGHTS)
    )
    expected = np.diag(SLOPES) - np.outer(WEIGHTS * SLOPES, SLOPES)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-12)


WEIGHTED = {row.name: row.function for row in table.BOUNDS if row.weighted and row.name != "own"}
ALONG = np.array([1.0, -0.4, -0.3, -0.3])


@pytest.mark.parametrize("bound", WEIGHTED)
def test_the_slope_of_a_bound_at_a_weight_of_zero(bound):
    """Through `weights=`, against differences on the side of positive weights; of a group of no weight too."""
    log_w, step = jnp.array([-0.96, -1.16, -2.36, 0.4]), 1e-7
    value = lambda w: WEIGHTED[bound](log_w, weights=w)
    for weights, along in [
        ([0.0, 0.5, 0.3, 0.2], ALONG),
        ([0.0, 0.0, 0.6, 0.4], np.array([0.5, 0.5, -0.4, -0.6])),
    ]:
        w = jnp.asarray(weights)
        expected = (value(w + step * along) - value(w)) / step
        np.testing.assert_allclose(jax.grad(value)(w) @ along, expected, rtol=1e-5, atol=1e-6)


def test_log_of_a_weight_of_zero_is_the_users():
    """What no library can undo: a user's own log(w) has an infinite slope; `weights=` is the cure."""
    slope = jax.grad(lambda w: jax.nn.logsumexp(jnp.log(w) + norm.logpdf(LOG_W)))(
        jnp.asarray(WEIGHTS)
    )
    assert not np.isfinite(slope[0])


# --- what a function's author declared of its derivative, taken for the value's own


def _declared(value, slope):
    function = jax.custom_jvp(value)
    function.defjvps(lambda t, out, b: slope(b) * t)
    return function


NOT_QUADRATIC = {
    "-b⁴, whose slope is said to be -2b": (lambda b: -(jnp.abs(b) ** 4.0), lambda b: -2 * b),
    "-b⁴ by products": (lambda b: -b * b * b * b, lambda b: -2 * b),
    "-|b|": (lambda b: -jnp.abs(b), lambda b: -jnp.ones_like(b)),
    "-b², whose slope is said to be half of it": (lambda b: -(b**2), lambda b: -b),
}


@pytest.mark.parametrize("name", NOT_QUADRATIC)
def test_a_declared_derivative_makes_nothing_quadratic(name):
    function = _declared(*NOT_QUADRATIC[name])
    collapsed = vj.targets.collapse_gaussian(
        lambda z, b: -(z**2) + function(b) - b**2, jnp.zeros(())
    )[0]
    assert_refused(lambda: jax.eval_shape(collapsed, 0.3))


def test_a_declared_derivative_that_is_the_values_own_passes():
    """∫ exp(-2b²) db = √(π/2), through a custom_jvp, in a jit and under another function's declared derivative of z."""
    function = _declared(lambda b: -(b**2), lambda b: -2 * b)
    log_joint = lambda z, b: jax.jit(function)(b) - b**2 + jax.nn.softplus(z)
    collapsed = vj.targets.collapse_gaussian(log_joint, jnp.zeros(()))[0]
    expected = 0.5 * np.log(np.pi / 2) + np.log1p(np.exp(0.3))
    np.testing.assert_allclose(jax.jit(collapsed)(0.3), expected, rtol=1e-6)


# --- a Bernoulli that is sure of itself

SURE = {
    "local_expectation": (G.local_expectation, {}),
    "top_states": (G.top_states, {"states": 2}),
    "vimco": (G.vimco, {}),
    "score": (G.score, {}),
    "arm": (G.arm, {}),
    "disarm": (G.disarm, {}),
    "auto": (G.auto, {}),
}


@pytest.mark.parametrize("name", [case(n, name=n, slow=n != "vimco") for n in SURE])
def test_in_logits_the_gradient_of_a_sure_bernoulli_is_zero(name):
    """Its limit at -inf and inf; in the probability the slope of log q is infinite there, and nan says so."""
    estimator, keywords = SURE[name]

    def value(by, p):
        q = distrax.Bernoulli(**{by: p}, dtype=jnp.float64)
        objective = estimator(vj.bounds.elbo, **keywords)
        result = objective(
            jax.random.key(0), lambda z: jnp.where(z > 0, 2.0, 0.5), q, num_samples=4
        )
        return result.value

    both = jax.jit(jax.vmap(jax.value_and_grad(lambda p: value("logits", p))))
    ends, slopes = both(jnp.array([-jnp.inf, -40.0, 40.0, jnp.inf]))
    np.testing.assert_allclose(ends, [0.5, 0.5, 2.0, 2.0], atol=1e-12)
    np.testing.assert_allclose(slopes, 0.0, atol=1e-12)
    assert np.isnan(jax.jit(jax.grad(lambda p: value("probs", p)))(0.0))


def test_an_expectation_over_states_in_their_probabilities():
    """The cure: Σ p f by `weights=`, whose slope is f(1) - f(0) at 0 and 1 too, and the same of log Σ p exp f."""
    f = jnp.array([0.5, 2.0])
    for bound, expected in [
        (vj.bounds.elbo, lambda p: 1.5 + 0 * p),
        (
            vj.bounds.iwae,
            lambda p: (np.exp(2) - np.exp(0.5)) / ((1 - p) * np.exp(0.5) + p * np.exp(2)),
        ),
    ]:
        slope = jax.jit(jax.vmap(jax.grad(lambda p, b=bound: b(f, weights=jnp.stack([1 - p, p])))))
        p = np.array([0.0, 0.3, 1.0])
        np.testing.assert_allclose(slope(jnp.asarray(p)), expected(p), rtol=1e-6)
