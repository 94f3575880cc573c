"""Rao-Blackwellization: what integrating a block of latents out is sure to do to a bound, and what it is not.

With q(z) the marginal of q(z, b): the K-sample bound is never looser. Where q(b | z) reaches all of p(b | x, z), the
weight varies no more either, since E[w_full | z] = w. The log-weight may vary more.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles

# --- two Gaussian blocks, by quadrature: z ~ N(0, 1), b | z ~ N(z, 1), x | z, b ~ N(z + b, 1), so that x ~ N(0, 6)

X, EVIDENCE = 1.5, norm.logpdf(1.5, 0.0, 6**0.5)
Q = {"loc": 0.8, "scale": 0.8**0.5}  # q(z); and q(b | z) = N(.7 + z/2, .81)
NODES = np.linspace(-8.0, 8.0, 121)


def two_blocks(z, b):
    return norm.logpdf(z, 0.0, 1.0) + norm.logpdf(b, z, 1.0) + norm.logpdf(X, z + b, 1.0)


def weights(q):
    """Return (mass, log w) of both targets on a grid of q's own noise, the collapsed one by vijax."""
    nodes = jnp.asarray(NODES)
    mass = norm.pdf(nodes)
    mass = mass / mass.sum()
    collapsed, conditional = vj.targets.collapse_gaussian(two_blocks, jnp.zeros(()))

    def both(e, d):
        z = q["loc"] + q["scale"] * e
        b = 0.7 + 0.5 * z + 0.9 * d
        log_q = norm.logpdf(z, q["loc"], q["scale"])
        identity = two_blocks(z, b) - conditional(z).log_prob(b)
        return (
            collapsed(z) - log_q,
            two_blocks(z, b) - log_q - norm.logpdf(b, 0.7 + 0.5 * z, 0.9),
            identity - log_q,
        )

    one, pair, identity = jax.jit(jax.vmap(jax.vmap(both, (None, 0)), (0, None)))(nodes, nodes)
    np.testing.assert_allclose(identity, one, atol=1e-12)
    return {
        "full": ((mass[:, None] * mass[None]).ravel(), pair.ravel()),
        "collapsed": (mass, one[:, 0]),
    }


@jax.jit
def k_sample_bounds(mass, log_w):
    """E[log mean of K weights] for K = 1, 8, 64, from E log S = ∫ (e^-t - E[e^-tS]) / t dt with t = e^u."""
    u = jnp.linspace(-50.0, 70.0, 1501)
    laplace = lambda u: jnp.sum(mass * jnp.exp(-jnp.exp(u + log_w)))
    phi = jax.lax.map(laplace, u, batch_size=25)
    return jnp.stack(
        [jnp.sum(jnp.exp(-jnp.exp(u)) - phi**k) * (u[1] - u[0]) - jnp.log(k) for k in (1, 8, 64)]
    )


def spread(mass, values):
    return jnp.sum(mass * values**2) - jnp.sum(mass * values) ** 2


def test_two_blocks(x64):
    """The example of the docs: every K-sample bound rises, both variances fall; quadrature, exact to 1e-6.

    Numbers in the comments are those of 2e5 draws in the project's notes, whose q is not stated: they are met within
    two standard errors of theirs, and so is K = 8.
    """
    found = weights(Q)
    bounds = {name: k_sample_bounds(*given) for name, given in found.items()}
    for (
        mass,
        log_w,
    ) in found.values():  # unbiased, both; and the formula of bounds is the plain mean at K = 1
        np.testing.assert_allclose(jnp.log(jnp.sum(mass * jnp.exp(log_w))), EVIDENCE, atol=1e-7)
        np.testing.assert_allclose(
            k_sample_bounds(mass, log_w)[0], jnp.sum(mass * log_w), atol=1e-7
        )
    np.testing.assert_allclose(EVIDENCE, -2.00232, atol=5e-6)
    np.testing.assert_allclose(
        bounds["full"], [-2.790871, -2.040015, -2.006602], atol=2e-6
    )  # -2.7947, -2.0385
    np.testing.assert_allclose(
        bounds["collapsed"], [-2.399584, -2.024165, -2.004857], atol=2e-6
    )  # -2.4027, -2.0232
    assert np.all(bounds["collapsed"] > bounds["full"])
    assert np.all(bounds["collapsed"] < EVIDENCE)
    of_log = {name: spread(*given) for name, given in found.items()}
    of_weight = {name: spread(mass, jnp.exp(log_w)) for name, (mass, log_w) in found.items()}
    np.testing.assert_allclose(
        [of_log["full"], of_log["collapsed"]], [4.1071, 1.6280], atol=1e-5
    )  # 4.144, 1.648
    np.testing.assert_allclose(
        [of_weight["full"], of_weight["collapsed"]], [0.009878, 0.005867], atol=2e-6
    )
    for (
        name,
        var,
    ) in of_weight.items():  # the first term of what many draws lack is the weight's variance
        np.testing.assert_allclose(
            EVIDENCE - bounds[name][2], var / (128 * np.exp(2 * EVIDENCE)), rtol=0.03
        )


def test_another_q_of_the_block_that_is_left_may_be_looser(x64):
    """The control: with a q(z) that is not the marginal of the full q, nothing is promised, and here it is broken."""
    kept, narrow = weights(Q), weights({"loc": -0.8, "scale": 0.3})
    assert np.all(k_sample_bounds(*narrow["collapsed"]) < k_sample_bounds(*kept["full"]))


# --- tables, by enumeration of all K-tuples of states


@jax.jit
def exactly(table, log_q1, log_q2):
    """Return E[B_K] for K = 1, 2, 3, E[w], Var[w] and Var[log w] of (z, c), and of z with c summed out by vijax."""
    target, posterior = vj.targets.enumerate(lambda z, c: table[z, c], table.shape[1])
    states = jnp.arange(len(table))
    one = jax.vmap(target)(states)
    stated = vj.targets.collapse(
        lambda z, c: table[z, c], posterior
    )  # the same by the candidate's identity
    return (
        moments(table.ravel(), (log_q1[:, None] + log_q2).ravel()),
        moments(one, log_q1),
        jnp.max(jnp.abs(jax.vmap(stated)(states) - one)),
    )


def moments(log_p, log_q):
    iwae = lambda log_w: jax.nn.logsumexp(log_w, axis=0) - jnp.log(1.0 * log_w.shape[0])
    bounds = jnp.stack(
        [oracles.expectation(iwae, log_p, log_q, jnp.ones(log_p.shape), k) for k in (1, 2, 3)]
    )
    mass, log_w = jnp.exp(log_q), jnp.where(jnp.isfinite(log_q), log_p - log_q, 0.0)
    return bounds, jnp.sum(mass * jnp.exp(log_w)), spread(mass, jnp.exp(log_w)), spread(mass, log_w)


@pytest.mark.slow
def test_random_tables(x64):
    """Three states by three, 200 tables: every bound rises and every weight varies less; the control is a q(z) moved."""

    def one(key, moved):
        a, b, c = jax.random.split(key, 3)
        logits = jax.random.normal(b, (3,))
        log_q2 = jax.nn.log_softmax(0.5 * jax.random.normal(c, (3, 3)), 1)
        table = 2 * jax.random.normal(a, (3, 3))
        full, collapsed, apart = exactly(table, jax.nn.log_softmax(logits), log_q2)
        return (
            full,
            (exactly(table, jax.nn.log_softmax(-3 * logits), log_q2)[1] if moved else collapsed),
            apart,
        )

    keys = jax.random.split(jax.random.key(0), 200)
    both = lambda moved: jax.jit(jax.vmap(lambda key: one(key, moved)))(keys)
    (low, mean, var, _), (high, exact, less, _), apart = both(moved=False)
    np.testing.assert_allclose(mean, exact, rtol=1e-12)
    np.testing.assert_allclose(apart, 0.0, atol=1e-12)
    assert np.all(high > low)
    assert np.all(high < np.log(exact)[:, None])
    assert np.all(less < var)
    (low, _, var, _), (high, _, more, _), _ = both(moved=True)
    assert np.mean(high > low) < 0.7
    assert np.mean(more < var) < 0.7


W1, Q1 = np.log([1.0, 4.0]), np.log([0.5, 0.5])  # the weight of z once c is summed out: 1 or 4


def cut(escape):
    """Return q(c | z) of four equally likely states: all at z = 0, one at z = 1 save for a probability to escape it."""
    with np.errstate(divide="ignore"):
        return np.log(np.array([[0.25] * 4, [1 - escape] + [escape / 3] * 3]))


@pytest.fixture
def table():
    """Return log p(x, z, c), with p(c | x, z) uniform."""
    return jnp.asarray((W1 + Q1)[:, None] + np.log(np.full((2, 4), 0.25)))


def test_the_log_weight_may_vary_more(x64, table):
    """The conditional cut to a set of mass 1 / w: the pair's weight is 1 whatever is drawn, and its bound 0 at any K.

    Summing c out makes the bound tighter and the variance of log w (log 4 / 2)² = .4805 where there was none. That of w
    rises as well, 2.25 from 0: this q(c | x, z) misses states that the posterior has, so E[w_full | z] is not w.
    """
    full, collapsed, _ = exactly(table, jnp.asarray(Q1), jnp.asarray(cut(0.0)))
    low, mean, var, of_log = full
    np.testing.assert_allclose([*low, mean, var, of_log], [0, 0, 0, 1, 0, 0], atol=1e-12)
    high, mean, var, of_log = collapsed
    np.testing.assert_allclose(
        [high[0], mean, var, of_log], [np.log(2), 2.5, 2.25, np.log(2) ** 2], rtol=1e-12
    )
    assert np.all(high > low)


@pytest.mark.parametrize("escape", [1e-2, 1e-4])
def test_the_log_weight_may_vary_more_where_q_misses_nothing(x64, table, escape):
    """One draw in 200, or 20,000, escapes: the weight varies less once c is summed out, as it must, log w still more."""
    full, collapsed, _ = exactly(table, jnp.asarray(Q1), jnp.asarray(cut(escape)))
    low, mean, var, of_log = full
    escapes, kept = np.log(3 / escape), -np.log(1 - escape)  # log w at z = 1
    second = 0.5 * (escape * escapes**2 + (1 - escape) * kept**2)
    expected = second - (0.5 * (escape * escapes + (1 - escape) * kept)) ** 2
    np.testing.assert_allclose([mean, of_log], [2.5, expected], rtol=1e-9)
    high, mean, less, of_log_one = collapsed
    np.testing.assert_allclose([mean, less, of_log_one], [2.5, 2.25, np.log(2) ** 2], rtol=1e-12)
    assert np.all(high > low)
    assert less < var
    assert of_log_one > 2 * of_log


# --- "pushing the bound up pushes the evidence up"


def test_the_bound_may_rise_while_the_evidence_falls(x64):
    """x = 2, z ~ N(mu, 1), x | z ~ N(z, 1), q held at N(-1, 1/2): as mu falls the bound rises and log p(x) falls.

    EM's E-step is the control: with q the posterior at each mu, the bound is log p(x) and falls with it.
    """
    mus, nodes = np.array([2.0, 1.0, 0.0, -1.0]), jnp.asarray(NODES)
    mass = norm.pdf(nodes) / norm.pdf(nodes).sum()

    def elbo(mu, loc):
        z = loc + np.sqrt(0.5) * nodes
        log_w = oracles.gaussian_log_joint(mu, 2.0, z) - norm.logpdf(z, loc, np.sqrt(0.5))
        return float(vj.bounds.elbo(log_w, weights=mass))

    evidence = oracles.gaussian_evidence(mus, 2.0)
    np.testing.assert_allclose(evidence, [-1.2655, -1.5155, -2.2655, -3.5155], atol=1e-4)
    held = [elbo(mu, -1.0) for mu in mus]
    np.testing.assert_allclose(held, [-10.2655, -7.7655, -6.2655, -5.7655], atol=1e-4)
    assert np.all(np.diff(held) > 0)
    np.testing.assert_allclose([elbo(mu, (2 + mu) / 2) for mu in mus], evidence, atol=1e-10)
