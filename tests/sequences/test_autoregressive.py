"""autoregressive: a chain's exact posterior, an unrolled loop, all paths of a discrete one; what estimators make of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal

import vijax as vj
from tests.bare import Coin, Die, Gauss
from tests.problems import assert_close
from tests.sequences import problem

autoregressive = vj.sequences.autoregressive
T = 4
X = np.array([0.3, -1.0, 0.8, 0.1], np.float32)
W = {"h": np.float32(0.4), "z": np.float32(0.7), "s": np.float32(-0.3)}


def cell(w):
    """A recurrent step: what it carries depends on the draw before, mean and scale on what it carries."""

    def step(h, before, x):
        h = jnp.tanh(w["h"] * h + w["z"] * before + x)
        return h, Gauss(2 * h, w["s"] * h)

    return step


def recurrent(w, x=X):
    return autoregressive(cell(w), jnp.zeros(()), jnp.zeros(()), jnp.asarray(x))


def test_draws_are_those_of_a_loop(key):
    """Value and derivative in the weights, and the density that comes with a draw is that of teacher forcing."""

    def loop(w):
        h, z, log_q, zs = jnp.zeros(()), jnp.zeros(()), 0.0, []
        for k, x in zip(jax.random.split(key, T), X, strict=True):
            h, q = cell(w)(h, z, x)
            z, log = q.sample_and_log_prob(seed=k)
            zs, log_q = [*zs, z], log_q + log
        return jnp.stack(zs), log_q

    @jax.jit
    def look(w):
        scanned = lambda w: recurrent(w).sample_and_log_prob(seed=key)
        run = lambda f: (f(w), jax.jacrev(f)(w))
        return run(scanned), run(loop), recurrent(w).log_prob(scanned(w)[0])

    scanned, unrolled, forced = look(W)
    assert_close(scanned, unrolled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(forced, scanned[0][1], rtol=1e-5)


@pytest.mark.slow
def test_a_smoothers_posterior(x64, key):
    """A linear step with the smoother's conditionals: the same density, and log-weights of log p(x)."""
    model, x = problem.random_model(5, T, 2, 2), np.random.default_rng(1).normal(size=(T, 2))
    smoother = vj.sequences.kalman_smoother(model, x)

    class Normal:
        def __init__(self, mean, cov):
            self.mean, self.cov = mean, cov

        def sample_and_log_prob(self, *, seed, sample_shape=()):
            e = jax.random.normal(seed, (*sample_shape, 2), self.mean.dtype)
            z = self.mean + jnp.linalg.cholesky(self.cov) @ e
            return z, self.log_prob(z)

        def log_prob(self, z):
            return multivariate_normal.logpdf(z, self.mean, self.cov)

    step = lambda carry, before, link: (carry, Normal(link[0] @ before + link[1], link[2]))
    q = autoregressive(step, (), jnp.zeros(2), (smoother.gain, smoother.offset, smoother.cov))
    z, log_q = jax.jit(lambda: q.sample_and_log_prob(seed=key, sample_shape=(3,)))()
    np.testing.assert_allclose(log_q, jax.vmap(smoother.log_prob)(z), rtol=1e-11)


def walk(logits):
    """A walk over three states, whose next step depends on all before it through what it carries."""

    def step(h, before, x):
        h = 0.5 * h + before
        return h, Die(logits + h * jnp.array([0.5, 0.0, -0.5]) + x * jnp.array([0.0, 1.0, 0.0]))

    return autoregressive(step, jnp.zeros(()), jnp.zeros((), int), jnp.asarray(X))


LOGITS = np.array([0.2, -0.4, 0.7], np.float32)
PATHS = jnp.asarray(list(itertools.product(range(3), repeat=T)))


def test_all_paths_of_a_discrete_one(key):
    """Its densities sum to 1; 20,000 draws of it, by chi-squared over 81 paths; another walk's are told apart.

    The distance is in units of its spread: above 8 by chance less than 1e-6 of the time.
    """
    n = 20_000

    @jax.jit
    def look(logits):
        q = walk(logits)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(n,))
        return z, log_q, jax.vmap(q.log_prob)(PATHS)

    z, log_q, exact = look(LOGITS)
    np.testing.assert_allclose(np.exp(exact).sum(), 1.0, rtol=1e-5)
    number = np.asarray(z) @ 3 ** np.arange(T)[::-1]
    np.testing.assert_allclose(log_q, exact[number], rtol=1e-4, atol=1e-5)

    def distance(exact):
        expected, counts = n * np.exp(exact), np.bincount(number, minlength=3**T)
        total = np.sum((counts - expected) ** 2 / expected)
        return (total - 3**T) / np.sqrt(2 * 3**T)

    assert distance(exact) < 8
    assert distance(look(LOGITS + np.array([0.1, 0.0, 0.0], np.float32))[2]) > 8


@pytest.mark.slow
def test_the_score_estimator_is_right_for_a_discrete_one(key):
    """vimco(elbo) in the logits, by enumeration: fails by chance 1e-6 of the time, detects .03."""
    target = lambda z: jnp.sum(jnp.sin(z * 1.3 + jnp.arange(4.0)))

    def elbo(logits):
        log_q = jax.vmap(walk(logits).log_prob)(PATHS)
        return jnp.sum(jnp.exp(log_q) * (jax.vmap(target)(PATHS) - log_q))

    def gradient(key):
        objective = vj.gradients.vimco(vj.bounds.elbo)
        return jax.grad(lambda p: objective(key, target, walk(p), num_samples=8).value)(LOGITS)

    truth = jax.jit(jax.grad(elbo))(LOGITS)
    vj.testing.check_unbiased(key, gradient, truth, detects=0.03)
    with pytest.raises(AssertionError):
        vj.testing.check_unbiased(key, lambda k: 0.9 * gradient(k), truth, detects=0.03)


def test_path_estimators_refuse_a_discrete_one(key):
    with pytest.raises(ValueError, match="leaf 'z' is discrete"):
        vj.gradients.dreg(vj.bounds.elbo)(key, jnp.sum, walk(LOGITS), num_samples=2)


def test_path_estimators_of_a_batch(key):
    """dreg and reparam take it through the scan; a batch by vmap, whose members are known to be apart."""
    xs = jnp.stack([X, -X, 0.5 * X])
    target = lambda z: -0.5 * jnp.sum(z**2, -1)

    def estimate(w, make, bound):
        q = jax.vmap(lambda x: recurrent(w, x))(xs)
        return make(bound)(key, target, q, num_samples=4).value

    for make in (vj.gradients.reparam, vj.gradients.dreg, vj.gradients.vimco, vj.gradients.auto):
        slope = jax.eval_shape(
            jax.grad(lambda w, make=make: estimate(w, make, vj.bounds.iwae).sum()), W
        )
        assert set(slope) == set(W)

    @jax.jit
    def look(w):
        q = jax.vmap(lambda x: recurrent(w, x))(xs)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(5,))
        alone = [jax.vmap(recurrent(w, x).log_prob)(z[:, i]) for i, x in enumerate(xs)]
        return z, log_q, jnp.stack(alone, 1)

    z, log_q, alone = look(W)
    assert z.shape == (5, 3, T)
    np.testing.assert_allclose(log_q, alone, rtol=1e-5, atol=1e-6)


def test_several_latents_a_step(key):
    """A dict at each step, discrete and continuous: auto takes each leaf as it is, dreg names the one it cannot."""

    def step(carry, before, x):
        coin = Coin(before["z"] + x)
        return carry, {"c": coin, "z": lambda z: Gauss(z["c"] + before["z"], x)}

    first = {"c": 0.0, "z": 0.0}
    q = lambda x: autoregressive(step, (), first, x)
    z, log_q = q(jnp.asarray(X)).sample_and_log_prob(seed=key)
    assert jax.tree.map(jnp.shape, z) == {"c": (T,), "z": (T,)}
    np.testing.assert_allclose(q(jnp.asarray(X)).log_prob(z), log_q, rtol=1e-5)
    target = lambda z: -jnp.sum((z["z"] - z["c"]) ** 2)
    value = lambda x, make: make(vj.bounds.elbo)(key, target, q(x), num_samples=3).value
    jax.eval_shape(jax.grad(lambda x: value(x, vj.gradients.auto)), jnp.asarray(X))
    with pytest.raises(ValueError, match="leaf 'c'"):
        value(jnp.asarray(X), vj.gradients.dreg)


def test_a_prior_without_inputs(key):
    """A random walk of a given length, against the dense normal; one step too."""
    prior = autoregressive(lambda c, before, _: (c, Gauss(before, 0.0)), (), 0.0, length=T)
    z = jnp.asarray(X)
    covariance = np.minimum.outer(np.arange(1.0, T + 1), np.arange(1.0, T + 1))
    exact = multivariate_normal.logpdf(z, np.zeros(T), covariance)
    np.testing.assert_allclose(prior.log_prob(z), exact, rtol=1e-5)
    one = autoregressive(lambda c, before, _: (c, Gauss(before, 0.0)), (), 0.0, length=1)
    np.testing.assert_allclose(one.log_prob(z[:1]), Gauss(0.0, 0.0).log_prob(z[0]), rtol=1e-6)


def test_the_program_does_not_grow_with_time():
    def equations(t):
        q = lambda x: recurrent(W, x).sample_and_log_prob(seed=jax.random.key(0))[1]
        return str(jax.make_jaxpr(q)(jnp.zeros(t))).count("\n")

    assert equations(5) == equations(5000)


def test_what_steps_declare_is_heard():
    """A distribution that says how its draws move says so for the whole sequence."""
    declared = lambda **how: autoregressive(
        lambda c, before, _: (c, vj.families.adapt(Gauss(before, 0.0), **how)), (), 0.0, length=T
    )
    assert declared(reparameterized=True).reparameterized is True
    assert declared(fixed_support=False).fixed_support is False
    assert recurrent(W).reparameterized is None


class Uniform:
    def __init__(self, width):
        self.width = width

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.width * jax.random.uniform(seed, tuple(sample_shape))
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jnp.where((z >= 0) & (z <= self.width), -jnp.log(self.width), -jnp.inf)


def test_a_support_that_moves_is_found_through_the_scan(key):
    """By one step, whose draw before is given: parameters must not reach its ends, not even where z₀ hides them."""
    steps = {
        "weight": lambda w, h, before, x: w,
        "hidden by the start": lambda w, h, before, x: 1 + w * before,
        "carried": lambda w, h, before, x: 1 + h**2,
        "the draw before": lambda w, h, before, x: 1 + before**2,
    }

    def value(w, width):
        step = lambda h, before, x: (w * before, Uniform(width(w, h, before, x)))
        q = autoregressive(step, jnp.zeros(()), jnp.zeros(()), jnp.ones(T))
        target = lambda z: -jnp.sum(z)
        return vj.gradients.dreg(vj.bounds.elbo)(key, target, q, num_samples=2).value

    for name in ("weight", "hidden by the start", "carried"):
        with pytest.raises(ValueError, match="while q's support is fixed"):
            jax.eval_shape(jax.grad(lambda w, n=name: value(w, steps[n])), 1.0)
    jax.eval_shape(jax.grad(lambda w: value(w, steps["the draw before"])), 1.0)
    assert recurrent(W).fixed_support is True
    assert walk(LOGITS).fixed_support is True


def test_refusals(unchecked):
    step = lambda c, before, x: (c, Gauss(before, 0.0))
    with pytest.raises(ValueError, match="needs its length"):
        autoregressive(step, (), 0.0)
    with pytest.raises(ValueError, match="length is 3, and inputs have 4 steps"):
        autoregressive(step, (), 0.0, jnp.zeros(4), length=3)
    with pytest.raises(ValueError, match="one axis of time"):
        autoregressive(step, (), 0.0, {"a": jnp.zeros(4), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"first must be like the zₜ that step draws, \(2,\), got"):
        autoregressive(lambda c, b, x: (c, Gauss(jnp.zeros(2), 0.0, event=1)), (), 0.0, length=3)
    with pytest.raises(ValueError, match=r"carry must be like the carry that step returns"):
        autoregressive(lambda c, b, x: (jnp.zeros(2), Gauss(b, 0.0)), jnp.zeros(3), 0.0, length=3)
    with pytest.raises(ValueError, match=r"batch shape \(\), got \(2,\)"):
        autoregressive(step, (), jnp.zeros(2), length=3)
    with pytest.raises(TypeError, match="step must return .carry, distribution., got Gauss"):
        autoregressive(lambda c, b, x: Gauss(b, 0.0), (), 0.0, length=3)
    with pytest.raises(TypeError, match="the distribution of a step must offer"):
        autoregressive(lambda c, b, x: (c, b), (), 0.0, length=3)
    q = autoregressive(step, (), 0.0, length=3)
    with pytest.raises(ValueError, match="one sequence for each member"):
        q.log_prob(jnp.zeros(4))
