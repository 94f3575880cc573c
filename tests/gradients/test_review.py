"""What reviews of the catalogue broke, kept from breaking again."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import problems
from tests.marks import some
from tests.statistics import assert_mean
from vijax.gradients import _states
from vijax.types import with_closed_forms

G, ELBO = vj.gradients, vj.bounds.elbo
pytestmark = pytest.mark.usefixtures("unchecked", "loose_ranks")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("n", [4, pytest.param(20_000, marks=pytest.mark.slow)])
def test_states_are_read_as_what_they_are(dtype, n, key):
    """One-hot draws are not taken for Bernoullis in half precision, nor where there are so many that their sum hides it."""
    hot = distrax.OneHotCategorical(logits=jnp.zeros((n, 4), dtype), dtype=dtype)
    for q, kind in (
        (distrax.Independent(hot, 1), _states.ONE_HOT),
        (distrax.Independent(distrax.Bernoulli(logits=jnp.zeros(n, dtype), dtype=dtype), 1), _states.BERNOULLI),
    ):
        found = _states.states(q, key, "disarm")
        assert found.shares == [0.5 if kind is _states.BERNOULLI else 1.0]
        assert found.log_probs[0].shape == ((n, 4) if kind is _states.ONE_HOT else (n, 2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("n", [1, 50_000])
def test_a_laplace_is_no_normal(dtype, n, key):
    q = distrax.Independent(distrax.Laplace(jnp.zeros(n, dtype), jnp.ones(n, dtype)), 1)
    with pytest.raises(ValueError, match="independent normals"):
        G.measure_valued(ELBO)(key, lambda z: -jnp.sum(z**2), q, num_samples=1)


class Clipped(problems.Bits):
    """Bits whose density and draws clip the logits that they show."""

    def log_prob(self, z):
        return problems.Bits(jnp.clip(self.logits, -3.0, 3.0)).log_prob(z)


@pytest.mark.slow
def test_what_is_clipped_or_truncated_is_seen(key):
    with pytest.raises(ValueError, match="not that of its logits"):
        G.disarm(ELBO)(key, lambda z: z.sum(-1), Clipped(jnp.array([5.0, -5.0])), num_samples=2)
    numpyro = pytest.importorskip("numpyro.distributions")
    for low, high in ((-4.0, 4.0), (-4.0, None)):
        q = vj.families.adapt(numpyro.TruncatedNormal(jnp.asarray(1.0), jnp.asarray(5.0), low=low, high=high))
        with pytest.raises(ValueError, match="independent normals"):
            G.measure_valued(ELBO)(key, lambda z: -(z**2), q, num_samples=1)
    plain = vj.families.adapt(numpyro.Normal(0.0, 1.0))
    assert jnp.isfinite(G.measure_valued(ELBO)(key, lambda z: -(z**2), plain, num_samples=1).value)


@with_closed_forms(linear=True)
def loss(log_w):
    return -jnp.mean(log_w, 0)


@with_closed_forms(linear=True)
def total(log_w):
    return jnp.sum(log_w, 0)


@pytest.mark.slow
def test_a_linear_bound_that_is_no_mean_has_its_own_gradient(key):
    """Minus the mean, and a sum: score and local expectations follow the bound; those that need the mean refuse."""
    case, k = problems.HOT, 2
    for bound in (loss, total):
        objectives = {"score": G.score(bound), "local": G.local_expectation(bound), "vimco": G.vimco(bound)}
        found = problems.value_and_grads(key, case, objectives, k, 20_000)
        assert_mean(found, problems.truths(case, objectives, bound, k), detects=0.4)
        with pytest.raises(ValueError, match="use bounds.elbo"):
            G.disarm(bound)(key, lambda z: z.sum(-1), problems.Bits(jnp.zeros((1, 2))), num_samples=2)


@pytest.mark.slow
def test_a_mean_with_weights_keeps_them(key):
    """Known or traced while tracing: the weighted mean of independent draws has the elbo's gradient, exactly in mean."""
    weights = jnp.array([0.5, 0.1, 0.1, 0.2, 0.1])
    by_vmap = lambda w: G.score(partial(ELBO, weights=w))
    objectives = {"known": by_vmap(weights), "local": G.local_expectation(partial(ELBO, weights=weights))}
    found = problems.value_and_grads(key, problems.HOT, objectives, 5, 20_000)
    assert_mean(found, problems.truths(problems.HOT, objectives), detects=0.4)
    bits = problems.Bits(jnp.zeros((1, 2)))
    traced = jax.jit(lambda w: by_vmap(w)(key, lambda z: z.sum(-1), bits, num_samples=5).value)(weights)
    np.testing.assert_allclose(traced, by_vmap(weights)(key, lambda z: z.sum(-1), bits, num_samples=5).value, rtol=1e-5)


SCALAR = {
    "arm": (G.arm, {}),
    "disarm": (G.disarm, {}),
    "local_expectation": (G.local_expectation, {}),
    "top_states": (partial(G.top_states, states=1), {}),
    "gumbel_softmax": (partial(G.gumbel_softmax, temperature=0.5), {}),
    "straight_through": (partial(G.straight_through, temperature=0.5), {}),
    "gumbel_rao": (partial(G.gumbel_rao, temperature=0.5, inner=2), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", some(SCALAR, "disarm", "gumbel_softmax"))
def test_one_bit_alone_and_by_vmap(name, key):
    """A Bernoulli of batch shape () is one member of a batch, as under a vmap over data."""
    make = SCALAR[name][0]
    objective = make(ELBO)
    run = lambda logit, key: (
        objective(key, lambda z: -((z - 0.3) ** 2), distrax.Bernoulli(logits=logit, dtype=float), num_samples=2).value
    )
    slope = jax.vmap(jax.grad(run))(jnp.array([0.3, -0.5]), jax.random.split(key, 2))
    assert slope.shape == (2,)
    assert np.all(np.isfinite(slope))


def test_antithetic_draws_have_the_tails_of_q():
    """The sixth and eighth moments over the whole grid of cells, 15 and 105; a u of 0 alone would add 47 to the last."""
    u = (jnp.arange(2.0**20, dtype=jnp.float32) + 0.5) * 2.0**-20
    z = np.asarray(jax.scipy.stats.norm.ppf(u), np.float64)
    np.testing.assert_allclose([np.mean(z**6), np.mean(z**8)], [15.0, 105.0], rtol=5e-3)
    q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
    for word in (0, 2**32 - 1):  # whatever bits come, no draw is at a clip of the quantile function
        u = vj.draws._qmc.unit(jnp.full((1,), word, jnp.uint32))
        assert 0 < u < 1
        assert np.abs(q.transport(u)) < 6


def test_coupled_draws_under_bounds_of_independent_ones(key):
    q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
    level = vj.draws.level(key, vj.draws.harmonic(4))
    for bound in (
        vj.bounds.log_variance,
        partial(vj.bounds.jackknife, order=1),
        partial(vj.bounds.sumo, level=level),
    ):
        with pytest.raises(ValueError, match="use draws.iid"):
            G.reparam(bound, draw=vj.draws.antithetic)(key, lambda z: -jnp.sum(z**2), q, num_samples=4)


@pytest.mark.slow
def test_rebars_slopes_are_the_derivative_of_the_squared_gradient(key):
    """In the logits, by central differences with the same keys, of Bernoullis beside a categorical."""
    logits = {"b": jnp.array([[0.4, -0.7]]), "c": jnp.array([[0.3, -0.2, 0.6]])}
    q = lambda l: {"b": problems.Bits(l["b"]), "c": problems.Choice(l["c"], hot=True)}
    log_joint = lambda z: -((z["b"].sum(-1) + (z["c"] @ jnp.array([0.5, -1.0, 2.0])) - 1.3) ** 2)
    rebar, start = G.rebar(ELBO), jnp.array([1.0, -0.5])
    keys = jax.random.split(key, 400)
    parameters = lambda p: {"scale": p[0], "log_temperature": p[1]}

    def squared(p, key):
        value = lambda l: rebar(key, log_joint, q(l), parameters(p), num_samples=1)[0].value.sum()
        slope = jax.grad(value)(logits)
        # A categorical's derivative counts as it is; the logit of a bit is one number.
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope))

    mean = jax.jit(lambda p: jnp.mean(jax.vmap(squared, (None, 0))(p, keys)))
    step = 1e-2
    differences = [(mean(start + step * e) - mean(start - step * e)) / (2 * step) for e in jnp.eye(2)]
    slopes = jax.vmap(lambda k: rebar(k, log_joint, q(logits), parameters(start), num_samples=1)[1])(keys)
    found = [slopes["scale"].mean(), slopes["log_temperature"].mean()]
    np.testing.assert_allclose(found, differences, rtol=0.03)


def test_a_level_of_no_mass_spoils_no_derivative(key):
    level = vj.types.Level(jnp.asarray(0), jnp.array([0.6, 0.4, 0.0]))
    slope = jax.grad(lambda l: vj.bounds.mlmc_iwae(l, level=level))(jnp.array([0.1, -0.3, 0.5, 0.2]))
    np.testing.assert_array_equal(slope, [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: vj.draws.level(key, [-1.0, 2.0]), "must not be negative"),
        (lambda key: vj.draws.level(key, jnp.zeros(3)), "nor all 0"),
        (lambda key: vj.draws.harmonic(0), "number of levels"),
        (lambda key: vj.draws.geometric(3, ratio=-1.0), "ratio must be positive"),
        (lambda key: vj.bounds.exp_cubo(jnp.zeros(2), n=0.5), "n must be at least 1"),
        (lambda key: vj.bounds.cubo(jnp.zeros(2), n=np.float32(0.5)), "n must be at least 1"),
        (lambda key: vj.bounds.ciwae(jnp.zeros(2), beta=np.float32(2.0)), "beta must lie"),
        (lambda key: vj.bounds.jackknife(jnp.zeros(4), order=1.0), "order 1, 2 or 3"),
        (
            lambda key: G.sleep(
                key, lambda k: (jnp.zeros(3), jnp.zeros((3, 1))), lambda x: distrax.Normal(x, 1.0), num_samples=2
            ),
            "must agree",
        ),
        (lambda key: G.sleep(key, lambda k: jnp.zeros(3), lambda x: distrax.Normal(x, 1.0), num_samples=2), "pair"),
    ],
)
def test_bad_input_has_a_message(call, message, key):
    with pytest.raises((ValueError, TypeError), match=message):
        call(key)


def test_straight_through_of_iwae_is_nearer_the_truth_than_without_its_density(key):
    """log p = 2b, logit .4, K = 8: the exact slope is .0356; with q's density stopped it was .343 at temperature .1."""
    q = lambda logit: distrax.Bernoulli(logits=logit, dtype=float)
    objective = G.straight_through(vj.bounds.iwae, temperature=0.1)
    run = lambda logit, key: objective(key, lambda z: 2.0 * z, q(logit), num_samples=8).value
    slopes = jax.jit(jax.vmap(jax.grad(run), (None, 0)))(jnp.float32(0.4), jax.random.split(key, 20_000))
    assert abs(slopes.mean() - 0.0356) < 0.1


def test_weights_of_a_moving_average_go_along_draws():
    average = G.moving_average(decay=0.0)
    log_w = jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 300.0]])
    weights = jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(average.value(average.update(average.init(), log_w, weights)), 2.0)
    np.testing.assert_allclose(average.value(average.update(average.init((3,)), log_w, weights)), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"\[k\] or \[k, \*batch\]"):
        average.update(average.init(), log_w, jnp.ones(2))


def test_squared_scores_of_a_dict(key):
    params = {"a": jnp.float32(0.2), "b": jnp.float32(-0.4)}
    build = lambda p: {name: problems.Normal(loc, 1.0) for name, loc in p.items()}
    z = {"a": jnp.array([0.3, 1.0]), "b": jnp.array([0.0, -1.0])}
    expected = (z["a"] - 0.2) ** 2 + (z["b"] + 0.4) ** 2
    np.testing.assert_allclose(G.squared_scores(build, params, z), expected, rtol=1e-5)


def test_moments_in_half_precision_do_not_stall(key):
    value = lambda k, p: p * (1 + jax.random.normal(k).astype(p.dtype))
    found = vj.testing.gradient_moments(key, value, jnp.array(1.0, jnp.bfloat16), num_keys=100_000)
    np.testing.assert_allclose(found.sd, 1.0, rtol=0.02)
    np.testing.assert_allclose(found.mean, 1.0, rtol=0.02)
