"""Signals of score gradients: exactly unbiased for every bound, and no noisier than the best known form."""

from functools import partial
from itertools import product

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.marks import but, some
from vijax.gradients._score import centered, own_parts
from vijax.types import closed_forms, with_closed_forms

B, G = vj.bounds, vj.gradients
K = 4
pytestmark = pytest.mark.usefixtures("loose_ranks")


def minus_mean(log_w):
    return -jnp.mean(log_w, 0)


@with_closed_forms(terms=lambda log_w: jnp.tanh(log_w))
def mean_of_tanh(log_w):
    return jnp.mean(jnp.tanh(log_w), 0)


@jax.custom_vjp
def reverse_only(log_w):
    return jax.nn.logsumexp(log_w, 0)


reverse_only.defvjp(
    lambda l: (reverse_only(l), l), lambda l, c: (c[None] * jax.nn.softmax(l, axis=0),)
)

BOUNDS = {
    "elbo": B.elbo,
    "iwae": B.iwae,
    "multi_iwae": partial(B.multi_iwae, groups=2),
    "ciwae": partial(B.ciwae, beta=0.3),
    "renyi": partial(B.renyi, alpha=0.5),
    "renyi at 1": partial(B.renyi, alpha=jnp.asarray(1.0)),
    "cubo": B.cubo,
    "eubo": B.eubo,
    "tvo_lower": partial(B.tvo_lower, partition=[0.0, 0.4, 1.0]),
    "tvo_upper": partial(B.tvo_upper, partition=[0.0, 0.4, 1.0]),
    "jackknife": B.jackknife,
    "log_variance": B.log_variance,
    "exp_cubo": partial(B.exp_cubo, n=1.5, reference=0.3),
    "perturbative": partial(B.perturbative, reference=-0.2),
    "kl_reverse": partial(B.f_divergence, f=B.generators.kl_reverse),
    "jensen_shannon": partial(B.f_divergence, f=B.generators.jensen_shannon),
    "your own, linear": with_closed_forms(linear=True)(minus_mean),
    "your own, terms": mean_of_tanh,
    "your own, nothing known": lambda log_w: jnp.log(jnp.mean(jnp.exp(0.5 * log_w), 0)),
    "your own, custom_vjp": reverse_only,
}
TUPLES = np.array(list(product(range(3), repeat=K)))


def known_of(bound):
    return bound, closed_forms(bound)


def by_enumeration(bound, log_p, signals):
    """Return the estimator's mean over all K-tuples of three states, and the gradient of the bound's mean."""
    phi = jnp.array([0.2, -0.4, 0.5])

    def log_q(phi):
        return jax.nn.log_softmax(phi)[TUPLES]  # [tuples, K]

    def log_w(phi):
        return log_p[TUPLES] - log_q(phi)

    def mean(phi):
        return jnp.sum(jnp.exp(log_q(phi).sum(1)) * jax.vmap(bound)(log_w(phi)))

    fixed = jax.lax.stop_gradient

    def surrogate(phi):
        coefficient = jax.vmap(lambda l: jnp.broadcast_to(signals(l), l.shape))(fixed(log_w(phi)))
        coefficient = jnp.where(jnp.isfinite(coefficient), coefficient, 0.0)
        along = jax.vmap(bound)(log_w(phi)) + jnp.sum(fixed(coefficient) * log_q(phi), 1)
        return jnp.sum(fixed(jnp.exp(log_q(phi).sum(1))) * along)

    return jax.grad(surrogate)(phi), jax.grad(mean)(phi)


@pytest.mark.parametrize(
    "name", but(BOUNDS, "jackknife", "tvo_upper", "eubo", "cubo", "kl_reverse")
)
def test_the_mean_is_the_gradient_exactly(name, x64):
    """Over all draws: score, with a baseline too, and vimco; the control, a signal too large, is seen."""
    bound, log_p = BOUNDS[name], jnp.array([0.3, -1.0, 0.9])
    known = known_of(bound)

    def alone(log_w, baseline=0.0):
        part, share = own_parts(*known, log_w)
        return part - share * baseline

    found = jax.jit(
        lambda: [
            by_enumeration(bound, log_p, signals)
            for signals in (
                alone,
                lambda l: alone(l, 0.7),
                lambda l: centered(*known, l),
                lambda l: 1.1 * centered(*known, l),
            )
        ]
    )()
    *right, (wrong, truth) = found
    for mean, truth in right:
        np.testing.assert_allclose(mean, truth, atol=1e-10)
    assert np.abs(wrong - truth).max() > 1e-4


@pytest.mark.parametrize("f", [B.generators.squared_hellinger, B.generators.pearson])
def test_an_impossible_state_leaves_the_mean_right(f, x64):
    """log p = -inf in one state of three, where the divergence is finite all the same."""
    bound, log_p = partial(B.f_divergence, f=f), jnp.array([0.3, -jnp.inf, 0.9])
    known = known_of(bound)
    for signals in (lambda l: own_parts(*known, l)[0], partial(centered, *known)):
        mean, truth = jax.jit(partial(by_enumeration, bound, log_p, signals))()
        np.testing.assert_allclose(mean, truth, atol=1e-10)


def test_signals_beside_impossible_draws():
    """Finite where any other draw is possible; where none is, 0 stands for the others, and nothing is nan."""
    known = known_of(B.iwae)
    one = centered(*known, jnp.array([0.5, -jnp.inf, -jnp.inf, -jnp.inf]))
    np.testing.assert_allclose(one[0], 0.5 - np.log(4), rtol=1e-6)
    np.testing.assert_allclose(one[1:], np.log(3 / 4) + (1 - 1.2 / 16) / 4, rtol=1e-5)
    assert not np.isnan(centered(*known, jnp.full(K, -jnp.inf))).any()


@pytest.mark.parametrize("name", but(BOUNDS, "jackknife", "tvo_lower", "tvo_upper", "eubo"))
def test_no_draw_has_a_part_in_its_own_baseline(name, x64):
    """B - the signal of draw 0 is the same wherever draw 0 is, -inf included."""
    known = known_of(BOUNDS[name])
    log_w = jnp.array([0.3, -1.0, 0.9, 0.1])
    there = [-2.0, 5.0] + ([-jnp.inf] if name in ("iwae", "renyi", "cubo") else [])

    @jax.jit
    @jax.vmap
    def baseline(first):
        moved = log_w.at[0].set(first)
        return known[0](moved) - centered(*known, moved)[0]

    found = baseline(jnp.array([0.3, *there]))
    np.testing.assert_allclose(found[1:], found[0], rtol=1e-9, atol=1e-9)


# --- how they vary


def coefficients(log_w, n=1.0):
    """Return the coefficients of iwae's scores with the draw dropped, the constant removed, and by the geometric mean."""
    k = len(log_w)
    own = jax.nn.softmax(log_w)
    drop = B.iwae(log_w) - closed_forms(B.iwae).leave_one_out(log_w) - own
    mean = (jnp.sum(log_w) - log_w) / (k - 1)
    swapped = jnp.where(jnp.eye(k, dtype=bool), mean[:, None], log_w[None])
    geometric = B.iwae(log_w) - jax.vmap(B.iwae)(swapped) - own
    ours = centered(*known_of(B.iwae), log_w) - own
    return jnp.stack([ours, drop, drop + 1 / k, geometric])


FITS = {"near": (0.1, 0.95), "fair": (0.3, 0.8), "wide": (0.2, 1.5), "poor": (0.8, 0.6)}


def spreads(k, loc, scale, keys, d=5):
    """Return the sd of the gradient of q = N(loc, scale) in d latents, for each of the four forms."""

    def gradients(key):
        e = jax.random.normal(key, (k, d))
        z = loc + scale * e
        log_w = 0.5 * jnp.sum(e**2 - z**2, 1)
        score = jnp.concatenate([e / scale, e**2 - 1], 1)
        return coefficients(log_w) @ score

    found = jax.lax.map(gradients, keys, batch_size=500)
    return jnp.sqrt(jnp.sum(jnp.var(found, 0), 1))


@pytest.mark.parametrize("k", some([2, 3, 10, 30], "2", "10", name=str))
def test_vimco_varies_no_more_than_the_best_form(k):
    """At most 1.1 of the best of three, over four fits of q; the controls: each of the three is beaten."""
    keys = jax.random.split(jax.random.key(4), 20_000 if k < 30 else 4_000)
    run = jax.jit(lambda loc, scale: spreads(k, loc, scale, keys))
    found = {name: np.asarray(run(*fit)) for name, fit in FITS.items()}
    ratios = {name: f[0] / f[1:].min() for name, f in found.items()}
    assert max(ratios.values()) < 1.1, ratios
    worst = np.max([f[1:] / f[0] for f in found.values()], 0)
    assert worst[0] > 2  # dropping alone
    assert worst[2] > 2  # the geometric mean


def sd(objective, k, repeats=400):
    def slope(key):
        value = lambda m: (
            objective(
                key, lambda z: -0.5 * (z - 0.2) ** 2, distrax.Normal(m, 1.0), num_samples=k
            ).value
        )
        return jax.grad(value)(0.0)

    return np.std(jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(3), repeats)))


SUMS = {
    "jensen_shannon": lambda k: BOUNDS["jensen_shannon"],
    "perturbative": lambda k: BOUNDS["perturbative"],
    "log_variance": lambda k: B.log_variance,
    "your own, linear": lambda k: BOUNDS["your own, linear"],
    "multi_iwae": lambda k: partial(B.multi_iwae, groups=k // 2),
    "ciwae at 1": lambda k: partial(B.ciwae, beta=1.0),
    "renyi at 1": lambda k: partial(B.renyi, alpha=1.0),
    "tvo of [0, 1]": lambda k: partial(B.tvo_lower, partition=[0.0, 1.0]),
    "weights": lambda k: partial(B.elbo, weights=np.full(k, 1 / k, np.float32)),
    "terms with weights": lambda k: partial(
        B.f_divergence, f=B.generators.pearson, weights=np.full(k, 1 / k, np.float32)
    ),
}


@pytest.mark.parametrize("name", some(SUMS, "jensen_shannon", "weights"))
def test_the_noise_of_sums_falls_as_the_root_of_the_draws(name, unchecked):
    """By 10 from 10 draws to 1,000, within 30%, where the whole bound as every draw's signal lets it grow."""
    few, many = (sd(G.score(SUMS[name](k)), k) for k in (10, 1000))
    assert 7 < few / many < 14


def test_the_control_grows(unchecked):
    """A bound of which nothing is known has the whole of it as the signal of each draw."""
    unknown = lambda log_w: jnp.mean(log_w, 0)
    assert sd(G.score(unknown), 300) > 2 * sd(G.score(unknown), 10)


def test_vimco_of_a_mean_is_linear_in_the_draws():
    """No loop over draws; the control, the same bound with nothing known of it, has one."""

    def loops(bound):
        return "scan" in str(jax.make_jaxpr(partial(centered, *known_of(bound)))(jnp.zeros(300)))

    divergence = BOUNDS["jensen_shannon"]
    assert not loops(divergence)
    assert loops(lambda log_w: divergence(log_w))
