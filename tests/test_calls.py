"""D and F9: calls that do not fit name the argument, what was found, and the cure; known numbers are checked, of whatever kind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax.calls import described, is_known

pytestmark = pytest.mark.usefixtures("unchecked")

B, D, F, G, T = vj.bounds, vj.diagnostics, vj.families, vj.gradients, vj.targets
KEY = jax.random.key(0)
FAMILY = F.mean_field()
PARAMS = FAMILY.init(KEY, jnp.zeros(2))
Q = FAMILY.dist(PARAMS)
LOG_W = jnp.array([-1.0, -2.0, -0.5, -3.0])
DRAWS = vj.Draws(jnp.zeros(4), LOG_W, jnp.zeros(4))


def target(z):
    return -0.5 * jnp.sum(z**2)


RULE = vj.updates.natural_gradient(target)
# Each with the words of its cure.
CALLS = {
    "a bound of an estimator": (
        lambda: B.iwae(G.dreg),
        r"log_w is a function, dreg: .*gradients.dreg\(bounds.iwae\)\(key, log_joint, q",
    ),
    "a bound of a call": (
        lambda: B.iwae(KEY, target, Q, num_samples=4),
        r"log_w is a key: .*gradients.dreg\(bounds.iwae\)\(key, log_joint, q",
    ),
    "a bound of q": (lambda: B.elbo(Q), "log_w is a distribution, AffineGaussian: .*gradients"),
    "a bound of draws": (lambda: B.eubo(DRAWS), "log_w is a Draws: give it their log_w"),
    "a bound of a list": (lambda: B.iwae([1.0, 2.0]), "log_w is a list: give it an array"),
    "a bound of whole numbers": (lambda: B.iwae(jnp.arange(3)), r"floating.*int32: log_w \* 1.0"),
    "a bound of one number": (lambda: B.elbo(jnp.array(1.0)), r"\[k, \*batch\].*comes first"),
    "a bound without its keyword": (lambda: B.renyi(LOG_W), "'alpha'. Call it as bounds.renyi"),
    "a keyword by place": (lambda: B.renyi(LOG_W, 0.5), "too many.*with its keywords by name"),
    "an estimator of a call": (
        lambda: G.reparam(KEY, target, Q, num_samples=4),
        r"gradients.reparam got \(a key, a function, target, .*Call it as gradients.reparam\(bounds",
    ),
    "no num_samples": (
        lambda: G.dreg(B.iwae)(KEY, target, Q),
        r"gradients.dreg\(iwae\) .*'num_samples'. Call it as .*num_samples=16",
    ),
    "num_samples by place": (
        lambda: G.dreg(B.iwae)(KEY, target, Q, 4),
        "AffineGaussian, 4.*too many positional.*num_samples=16",
    ),
    "no key": (lambda: G.vimco(B.elbo)(target, Q, num_samples=4), "missing.*'q'. Call it as"),
    "log_joint and q swapped": (
        lambda: G.dreg(B.iwae)(KEY, Q, target, num_samples=4),
        "log_joint must be a function, got a distribution.*log_joint comes before q",
    ),
    "a value for log_joint": (
        lambda: G.dreg(B.iwae)(KEY, target(jnp.zeros(2)), Q, num_samples=4),
        "got an array.*function of z, not its value",
    ),
    "a transformed target": (
        lambda: G.dreg(B.iwae)(KEY, T.transform(target, T.constraints.positive), Q, num_samples=4),
        "got a Transformed: pass its log_joint",
    ),
    "a family for q": (
        lambda: G.dreg(B.iwae)(KEY, target, FAMILY, num_samples=4),
        r"q must offer.*got Family: .*family.dist\(family.init",
    ),
    "a family's maker for q": (
        lambda: vj.draws.weigh(KEY, target, F.mean_field, num_samples=4),
        r"q must offer.*a function, mean_field: .*family.dist\(params\)",
    ),
    "params for q": (
        lambda: vj.draws.weigh(KEY, target, PARAMS, num_samples=4),
        r"a dict of arrays: params become one by family.dist\(params\)",
    ),
    "weigh without num_samples": (lambda: vj.draws.weigh(KEY, target, Q), "Call it as draws.weigh"),
    "a function for the prior": (
        lambda: T.exact_kl(target, lambda z: -z, Q),
        r"prior must offer.*a log-density goes into log_joint, prior.log_prob",
    ),
    "a family for the prior": (lambda: T.exact_kl(target, FAMILY, Q), "prior must.*got Family"),
    "a step for a rule": (
        lambda: vj.fitting.fit(KEY, RULE.step, PARAMS, steps=10),
        "takes the rule itself.*got a function, step",
    ),
    "a family for the state": (
        lambda: vj.fitting.fit(KEY, RULE, FAMILY, steps=10),
        r"leaf 'init' is a function, init: begin with rule.init\(params\)",
    ),
    "a rate for the optimizer": (
        lambda: vj.fitting.ascent(lambda key, params: None, 0.1),
        "optimizer must be one of Optax.*got 0.1",
    ),
    "the optimizer first": (
        lambda: vj.fitting.ascent(optax.adam(0.1), lambda key, params: None),
        "estimate must be a function",
    ),
    "q for a family": (
        lambda: vj.solvers.dadvi(KEY, target, Q, jnp.zeros(2), num_samples=4),
        "family must be a Family",
    ),
    "log-weights to be summarized": (lambda: D.summarize(LOG_W), "Draws or an Estimate.*weigh"),
    "k-hat of draws": (lambda: D.khat(DRAWS), "give it their log_w"),
    "q for latents": (
        lambda: FAMILY.init(KEY, Q),
        "like must be a pytree of latents.*got a distribution, AffineGaussian: a dict of arrays",
    ),
    "a start of q": (
        lambda: vj.solvers.pathfinder(KEY, target, Q, num_samples=4),
        "like must be a pytree of latents",
    ),
    "params of full_rank": (
        lambda: FAMILY.dist(F.full_rank().init(KEY, jnp.zeros(2))),
        "families.mean_field, loc, log_scale, got loc, log_scale, lower",
    ),
    "params of mean_field": (lambda: F.full_rank().dist(PARAMS), "families.full_rank"),
    "params of no flow": (
        lambda: F.spline_coupling().dist(PARAMS),
        "spline_coupling, base, layers",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_does_not_fit(name):
    call, said = CALLS[name]
    with pytest.raises((TypeError, ValueError), match=said):
        call()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (KEY, "a key"),
        (LOG_W, r"an array float32[4]"),
        (np.float32(2.0), "an array float32[]"),
        (target, "a function, target"),
        (lambda z: z, "a function"),
        (FAMILY, "a Family"),
        (0.5, "0.5"),
        (None, "None"),
        ([1], "a list"),
    ],
)
def test_in_words(value, said):
    assert described(value) == said


def test_what_is_known():
    """Not by its type: an array of JAX is as known as a number, outside of a trace and closed over within."""
    assert is_known(0.5, jnp.array(0.5), np.float64(0.5), [jnp.zeros(2), None])
    jax.jit(lambda x: pytest.fail("known") if is_known([0.5, x]) else x)(0.5)


# --- numbers outside their range, as a number, of NumPy and of JAX

RANGES = {
    "ciwae": (lambda x: B.ciwae(LOG_W, beta=x), (2.0, -0.1, np.nan), 0.5, "beta must lie"),
    "cubo": (lambda x: B.cubo(LOG_W, n=x), (0.5, np.nan), 2.0, "n must be at least 1"),
    "exp_cubo": (lambda x: B.exp_cubo(LOG_W, n=x), (0.5, np.nan), 2.0, "n must be at least 1"),
    "tvo": (
        lambda x: B.tvo_lower(LOG_W, partition=jnp.stack([0.0, x, 1.0])),
        (np.nan, 1.5, 0.0),
        0.5,
        "partition must be",
    ),
    "temperature": (
        lambda x: G.gumbel_softmax(B.elbo, temperature=x),
        (0.0, np.nan),
        0.5,
        "temperature must be",
    ),
    "scale": (lambda x: T.constraints.affine(0.0, x), (0.0, np.nan), 0.5, "scale must be positive"),
    "ratio": (lambda x: vj.draws.geometric(3, ratio=x), (0.0, np.nan, np.inf), 0.5, "ratio must"),
    "rate": (
        lambda x: vj.updates.natural_gradient(target, learning_rate=x),
        (2.0, np.nan),
        0.5,
        "learning_rate",
    ),
}


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
@pytest.mark.parametrize("name", RANGES)
def test_known_numbers_are_checked(name, kind):
    call, wrong, right, said = RANGES[name]
    for x in wrong:
        with pytest.raises(ValueError, match=said):
            call(kind(x))
    call(kind(right))


def test_traced_numbers_pass():
    """They are documented: what is out of range is the caller's."""
    for x in (2.0, np.nan):
        jax.jit(lambda beta: B.ciwae(LOG_W, beta=beta))(x)


@pytest.mark.parametrize("count", [2.0, True, jnp.array([2]), "2"])
def test_counts_are_whole(count):
    for call in (
        lambda: B.multi_iwae(LOG_W, groups=count),
        lambda: B.jackknife(LOG_W, order=count),
        lambda: B.perturbative(LOG_W, reference=0.0, order=count),
        lambda: vj.draws.harmonic(count),
        lambda: T.minibatch(target, target, num_data=count),
    ):
        with pytest.raises(TypeError, match="must be a Python int"):
            call()
    assert B.multi_iwae(LOG_W, groups=np.int64(2)).shape == ()


# --- weights of strata

WEIGHED = {
    "elbo": B.elbo,
    "iwae": B.iwae,
    "multi_iwae": partial(B.multi_iwae, groups=2),
    "ciwae": partial(B.ciwae, beta=0.5),
    "renyi": partial(B.renyi, alpha=0.5),
    "cubo": B.cubo,
    "eubo": B.eubo,
    "tvo_lower": partial(B.tvo_lower, partition=(0.0, 0.5, 1.0)),
    "tvo_upper": partial(B.tvo_upper, partition=(0.0, 0.5, 1.0)),
    "exp_cubo": B.exp_cubo,
    "perturbative": partial(B.perturbative, reference=0.0),
    "f_divergence": partial(B.f_divergence, f=B.generators.kl_reverse),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_are_shares(name):
    """F9: iwae with weights of ones was log 4 too high, and weights of another shape were broadcast by elbo."""
    bound = WEIGHED[name]
    for weights in (jnp.ones(4), jnp.array([0.5, 0.7, -0.2, 0.0]), np.full(4, 0.2)):
        with pytest.raises(ValueError, match="positive or 0 and sum to 1.*weights / weights.sum"):
            bound(LOG_W, weights=weights)
    for shape in ((1,), (4, 1), (3,), ()):
        with pytest.raises(ValueError, match="weights have shape"):
            bound(LOG_W, weights=jnp.full(shape, 0.25))
    with pytest.raises(ValueError, match="weights have shape"):
        jax.jit(bound)(LOG_W, weights=jnp.ones(1))
    even, plain = bound(LOG_W, weights=jnp.full(4, 0.25)), bound(LOG_W)
    np.testing.assert_allclose(even, plain, rtol=1e-5)


def test_weights_of_each_member_and_of_rounding_pass():
    weights = jax.nn.softmax(jax.random.normal(KEY, (1000, 3)), 0)
    log_w = jnp.zeros((1000, 3))
    for some in (weights, weights.astype(jnp.bfloat16), np.full(1000, np.float16(0.001))):
        np.testing.assert_allclose(B.iwae(log_w, weights=some), 0.0, atol=0.02)
    jax.jit(lambda weights: B.iwae(log_w, weights=weights))(2 * weights)  # traced: as they are
