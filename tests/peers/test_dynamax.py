"""Cases of Dynamax's tests (HMM, linear-Gaussian), ported to vijax. Facts and figures are the peer's, the code is not."""

import itertools as it

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

import vijax as vj

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("loose_ranks", "unchecked"),
    pytest.mark.filterwarnings("ignore"),
]


def hmm_args(t, s, scale=1.0, moving=False):
    k1, k2, k3 = jax.random.split(jax.random.PRNGKey(0), 3)
    p0 = jax.random.uniform(k1, (s,))
    a = jax.random.uniform(k2, (t - 1, s, s) if moving else (s, s))
    return (
        jnp.log(p0 / p0.sum()),
        jnp.log(a / a.sum(-1, keepdims=True)),
        scale * jax.random.normal(k3, (t, s)),
    )


def table(l0, la, ll):
    """Every path's log joint, by brute force."""
    l0, la, ll = (np.asarray(x, float) for x in (l0, la, ll))
    t, s = ll.shape
    out = np.zeros((s,) * t)
    for c in it.product(range(s), repeat=t):
        step = lambda i: la[i] if la.ndim == 3 else la
        out[c] = (
            l0[c[0]]
            + sum(step(i)[c[i], c[i + 1]] for i in range(t - 1))
            + sum(ll[i, c[i]] for i in range(t))
        )
    return out


def marginals(joint):
    p = np.exp(joint - logsumexp(joint))
    return np.stack([p.sum(tuple(j for j in range(p.ndim) if j != i)) for i in range(p.ndim)])


FOLDS = ["sequential", "associative"]
fold_of = lambda name: getattr(vj.sequences, name)
H = "hidden_markov_model/inference_test.py::"


@pytest.mark.parametrize("fold", FOLDS)
def test_hmm_filter(row, fold):
    l0, la, ll = hmm_args(3, 2)
    f = lambda ll: vj.sequences.hmm(l0, la, ll, fold=fold_of(fold))
    want = (
        [logsumexp(table(l0, la, ll))]
        + [marginals(table(l0, la, ll[: t + 1]))[-1] for t in range(3)]
        + [marginals(table(l0, la, jnp.vstack([ll[:t], jnp.zeros(2)])))[-1] for t in range(3)]
    )
    got = (
        [f(ll).log_evidence]
        + [jnp.exp(f(ll[: t + 1]).posterior.log_last) for t in range(3)]
        + [jnp.exp(f(jnp.vstack([ll[:t], jnp.zeros(2)])).posterior.log_last) for t in range(3)]
    )
    row(
        H + "test_hmm_filter",
        f"evidence, filtered and predicted, {fold}",
        "hmm(l0, la, ll[:t + 1]).posterior.log_last",
        want,
        got,
        rtol=0,
        atol=1e-4,
    )


def test_transition_probs_by_gradient(row):
    l0, la, ll = hmm_args(5, 2)
    joint = table(l0, la, ll)
    p = np.exp(joint - logsumexp(joint))
    want = sum(p.sum(tuple(j for j in range(5) if j not in (t, t + 1))) for t in range(4))
    row(
        H + "test_compute_transition_probs",
        "the same, as a gradient of the evidence",
        "jax.grad(hmm(...).log_evidence)",
        want,
        jax.grad(lambda la: vj.sequences.hmm(l0, la, ll).log_evidence)(la),
        rtol=0,
        atol=1e-3,
    )


def test_posterior_mode(row):
    args = hmm_args(5, 2)
    joint = table(*args)
    want = np.array(np.unravel_index(joint.argmax(), joint.shape))
    cold = vj.sequences.hmm(*(1e3 * a for a in args)).posterior.log_marginals()
    row(
        H + "test_hmm_posterior_mode",
        "most likely path; NO NAME FOR IT, by a cold chain",
        "argmax of hmm(1e3 * ...).log_marginals()",
        want,
        jnp.argmax(cold, -1),
        rtol=0,
        atol=0,
    )


def test_fixed_lag(row):
    row.cannot(
        H + "test_hmm_fixed_lag_smoother", "smoothing with a window", "no fixed-lag smoother"
    )


def test_stability(row):
    args = hmm_args(10_000, 100, scale=100.0)
    post = jax.jit(lambda *a: jnp.exp(vj.sequences.hmm(*a).posterior.log_marginals()))(*args)
    row(
        H + "test_hmm_smoother_stability",
        "10,000 steps of 100 states, log-likelihoods of sd 100: rows sum to 1",
        "hmm(...).posterior.log_marginals()",
        np.ones(10_000),
        post.sum(1),
        rtol=1e-5,
        atol=1e-8,
    )


@pytest.mark.parametrize("fold", FOLDS)
def test_posterior_sample(row, fold):
    args = hmm_args(5, 2)
    c, lp = vj.sequences.hmm(*args).posterior.sample_and_log_prob(
        seed=jax.random.key(2), sample_shape=(1_000_000,), fold=fold_of(fold)
    )
    index = np.asarray(c) @ (2 ** np.arange(5)[::-1])
    joint = table(*args)
    p = np.exp(joint - logsumexp(joint)).ravel()
    # the peer's eps of 1e-3 is 2 to 3 standard errors of a million draws
    row(
        H + "test_parallel_posterior_sample",
        f"a million paths, frequencies, {fold}",
        "hmm(...).posterior.sample_and_log_prob",
        p,
        np.bincount(index, minlength=32) / 1e6,
        rtol=0,
        atol=1e-3,
    )
    np.testing.assert_allclose(np.asarray(lp)[:1000], np.log(p)[index[:1000]], atol=1e-4)


# --- linear_gaussian_ssm

S = "linear_gaussian_ssm/"
LG = vj.sequences.LinearGaussian


def simulate(m, t, seed=0):
    r = np.random.RandomState(seed)
    d, p = len(m.initial_mean), m.emission.shape[-2]
    at = lambda a, i, n: np.asarray(a, float) if np.ndim(a) == n else np.asarray(a[i], float)
    off = lambda a, i: 0.0 if a is None else at(a, i, 1)
    z, xs = r.multivariate_normal(m.initial_mean, m.initial_cov), []
    for i in range(t):
        if i:
            z = (
                at(m.transition, i - 1, 2) @ z
                + off(m.transition_offset, i - 1)
                + r.multivariate_normal(np.zeros(d), at(m.transition_cov, i - 1, 2))
            )
        xs.append(
            at(m.emission, i, 2) @ z
            + off(m.emission_offset, i)
            + r.multivariate_normal(np.zeros(p), at(m.emission_cov, i, 2))
        )
    return jnp.asarray(np.stack(xs), jnp.float32)


def dense(m, x):
    """Joint Gaussian of all states and data, in float64: evidence, smoothed means and covariances."""
    x = np.asarray(x, float)
    t, p = x.shape
    d = len(m.initial_mean)
    at = lambda a, i, n: np.asarray(a, float) if np.ndim(a) == n else np.asarray(a[i], float)
    off = lambda a, i, n: np.zeros(n) if a is None else at(a, i, 1)
    mu, cov = [np.asarray(m.initial_mean, float)], np.zeros((t * d, t * d))
    cov[:d, :d] = np.asarray(m.initial_cov, float)
    for i in range(1, t):
        f = at(m.transition, i - 1, 2)
        mu.append(f @ mu[-1] + off(m.transition_offset, i - 1, d))
        a, b = slice((i - 1) * d, i * d), slice(i * d, (i + 1) * d)
        cov[b, : i * d] = f @ cov[a, : i * d]
        cov[: i * d, b] = cov[b, : i * d].T
        cov[b, b] = f @ cov[a, a] @ f.T + at(m.transition_cov, i - 1, 2)
    mu = np.concatenate(mu)
    h, r = np.zeros((t * p, t * d)), np.zeros((t * p, t * p))
    for i in range(t):
        h[i * p : (i + 1) * p, i * d : (i + 1) * d] = at(m.emission, i, 2)
        r[i * p : (i + 1) * p, i * p : (i + 1) * p] = at(m.emission_cov, i, 2)
    res = x.ravel() - h @ mu - np.concatenate([off(m.emission_offset, i, p) for i in range(t)])
    s = h @ cov @ h.T + r
    gain = np.linalg.solve(s, h @ cov).T
    lp = -0.5 * (
        res @ np.linalg.solve(s, res) + np.linalg.slogdet(s)[1] + len(res) * np.log(2 * np.pi)
    )
    c = cov - gain @ h @ cov
    return (
        lp,
        (mu + gain @ res).reshape(t, d),
        np.stack([c[i * d : (i + 1) * d, i * d : (i + 1) * d] for i in range(t)]),
    )


def static():
    dt = 0.1
    q = np.kron([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]], np.eye(2))
    return LG(
        jnp.array([0.0, 0, 1, -1]),
        jnp.eye(4),
        jnp.eye(4) + dt * jnp.eye(4, k=2),
        jnp.asarray(q, jnp.float32),
        jnp.eye(2, 4),
        0.25 * jnp.eye(2),
    )


def constant_velocity():
    f = jnp.eye(4) + jnp.eye(4, k=2)
    return LG(jnp.zeros(4), 0.1 * jnp.eye(4), f, 0.001 * jnp.eye(4), jnp.eye(2, 4), jnp.eye(2))


def with_inputs():
    b = 0.1 * jnp.array([[0.0, 0], [1, 0], [0, 0], [0, 1]])
    return static()._replace(
        transition_offset=b @ jnp.ones(2), emission_offset=jnp.ones((2, 2)) @ jnp.ones(2)
    )


def moving(t=50):
    r = np.random.RandomState(0)
    f = 0.5 * r.randn(t - 1)[:, None, None] * np.eye(4) + 0.1 * np.eye(4, k=2)
    rr = (0.1 * r.randn(t)) ** 2
    return static()._replace(
        transition=jnp.asarray(f, jnp.float32),
        emission_cov=jnp.asarray(rr[:, None, None] * np.eye(2), jnp.float32),
    )


def with_bias():
    u = 1.0
    b = jnp.array([1.0, 0.5, -0.05, -0.01]) * u + 0.01
    return constant_velocity()._replace(
        initial_mean=jnp.array([8.0, 10, 1, 0]),
        transition_offset=b,
        emission_offset=jnp.ones(2) * u + 0.02,
    )


CASES = [
    ("inference_test.py::test_kalman_vs_joint, test_smoother_vs_tfp", constant_velocity, 15, 1e-4),
    ("parallel_inference_test.py::TestParallelLGSSMSmoother", static, 50, 1e-3),
    ("parallel_inference_test.py::TestParallelLGSSMSmootherWithInputs", with_inputs, 50, 1e-3),
    ("parallel_inference_test.py::TestTimeVaryingParallelLGSSMSmoother", moving, 50, 1e-3),
    ("info_inference_test.py (biases and inputs)", with_bias, 15, 1e-4),
]


@pytest.mark.parametrize("form", ["", "parallel_"])
@pytest.mark.parametrize("i", range(5), ids=["velocity", "static", "inputs", "moving", "biases"])
def test_lgssm(row, i, form):
    name, make, t, atol = CASES[i]
    m = make()
    x = simulate(m, t)
    lp, mean, cov = dense(m, x)
    sm, sc = getattr(vj.sequences, form + "kalman_smoother")(m, x).marginals()
    f = getattr(vj.sequences, form + "kalman_filter")(m, x)
    assert abs(float(f.log_evidence) - lp) < 1e-4 * t + 1e-5 * abs(lp), (f.log_evidence, lp)
    row(
        S + name,
        f"{t} steps beside the dense joint Gaussian, {form or 'sequential'}",
        f"{form}kalman_filter, {form}kalman_smoother",
        [mean, cov, mean[-1]],
        [sm, sc, f.mean[-1]],
        rtol=1e-5,
        atol=atol,
    )


def test_nonlinear(row):
    row.cannot(
        "nonlinear_gaussian_ssm/*_test.py, slds/inference_test.py",
        "EKF, UKF, switching chains",
        "no nonlinear or switching filter",
    )
