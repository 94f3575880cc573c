"""Products with Gaussian weights whose noise is each row's own: their law, their gradients, what they save."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.models import flipout, local_reparameterization

pytestmark = pytest.mark.usefixtures("loose_ranks")  # of distrax's own arithmetic

ROWS, INPUTS, OUTPUTS = 16, 3, 2
X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, INPUTS)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, OUTPUTS)), jnp.float32)
PARAMS = {
    "loc": jnp.asarray(np.random.default_rng(2).normal(size=(INPUTS, OUTPUTS)), jnp.float32),
    "scale": jnp.asarray([[0.3, 0.5], [0.6, 0.2], [0.4, 0.4]]),
}


def exact(params):
    """E_q log p(y | W) - KL(q ‖ N(0, 1)) of a linear regression of unit noise, without its constant."""
    squares = (Y - X @ params["loc"]) ** 2 + X**2 @ params["scale"] ** 2
    kl = 0.5 * (params["scale"] ** 2 + params["loc"] ** 2 - 1) - jnp.log(params["scale"])
    return -0.5 * jnp.sum(squares) - jnp.sum(kl)


def likelihood(y):
    return -0.5 * jnp.sum((Y - y) ** 2)


def plain(key, params, w):
    return likelihood(X @ w)


def local(key, params, w):
    return likelihood(local_reparameterization(key, X, **params))


def flipped(key, params, w):
    return likelihood(flipout(key, X, w, params["loc"]))


def wrong(key, params, w):
    noise = jax.random.normal(key, Y.shape)
    return likelihood(X @ params["loc"] + jnp.abs(X) @ params["scale"] * noise)


def samples(of_weights, n, k=1):
    """Values and gradients of the ELBO by the library's objective, its divergence exact."""

    def value(params, key):
        q = distrax.Independent(distrax.Normal(params["loc"], params["scale"]), 2)
        unit = jnp.ones_like(params["loc"])
        prior = distrax.Independent(distrax.Normal(0 * unit, unit), 2)
        noisy = vj.targets.unbiased(lambda key, w: of_weights(key, params, w))
        target = vj.targets.exact_kl(noisy, prior, q)
        return vj.gradients.reparam(vj.bounds.elbo)(key, target, q, num_samples=k).value

    run = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))
    found, slopes = run(PARAMS, jax.random.split(jax.random.key(0), n))
    return {"value": found, **slopes}


def truth():
    value, slopes = jax.value_and_grad(exact)(PARAMS)
    return {"value": value, **slopes}


@pytest.mark.parametrize("of_weights", [local, flipped])
def test_value_and_gradient_are_those_of_the_closed_form(of_weights):
    """Through exact_kl and unbiased; one draw, and three."""
    detects = {"value": 1.5, "loc": 1.0, "scale": 1.5}
    for n, k in ((20_000, 1), (10_000, 3)):
        assert_mean(samples(of_weights, n, k), truth(), detects=detects)


def test_a_wrong_law_is_found():
    """|x| S in the place of √(x² S²)."""
    with pytest.raises(AssertionError, match="is biased"):
        assert_mean(samples(wrong, 20_000), truth(), detects=1.0)


def test_gradients_vary_less_than_with_one_draw_for_all_rows():
    """What the trick is for."""
    found = {f: samples(f, 20_000) for f in (plain, local, flipped)}
    assert_mean(found[plain], truth(), detects=2.0)
    for f in (local, flipped):
        slopes = [{n: found[g][n] for n in ("loc", "scale")} for g in (plain, f)]
        assert_variance_ratio(*slopes, at_least=1.5)


def test_rows_of_flipout_are_uncorrelated_and_share_one_size_of_noise(key):
    """Given one draw of the weights: the mean over signs is that of the mean, and no two rows go together."""
    w = PARAMS["loc"] + PARAMS["scale"]
    keys = jax.random.split(key, 20_000)
    y = jax.vmap(lambda key: flipout(key, X[:2], w, PARAMS["loc"]))(keys)
    off = np.asarray(y - X[:2] @ PARAMS["loc"], np.float64)
    assert_mean(off, np.zeros((2, 2)), detects=0.2)
    assert_mean(off[:, 0] * off[:, 1], np.zeros(2), detects=0.2)
    assert_mean(off**2, np.asarray(X[:2] ** 2 @ PARAMS["scale"] ** 2), detects=0.2)


def test_a_row_of_zeros_has_a_slope(key):
    """Dead units make such rows; the root of their variance has none at 0."""
    x = X.at[0].set(0.0)
    value = lambda x, p: jnp.sum(local_reparameterization(key, x, **p) ** 2)
    slopes = jax.grad(value, (0, 1))(x, PARAMS)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))
    np.testing.assert_array_equal(local_reparameterization(key, x, **PARAMS)[0], 0.0)


@pytest.mark.parametrize("mark", [vj.targets.unbiased, vj.targets.keyed])
@pytest.mark.parametrize("of_weights", [local, flipped])
def test_only_a_linear_bound_takes_them(key, mark, of_weights):
    """The rows are of no single W, so their product is no estimate of p(y, W), however the target is marked."""
    target = mark(lambda key, w: of_weights(key, PARAMS, w))
    q = distrax.Independent(distrax.Normal(PARAMS["loc"], PARAMS["scale"]), 2)
    vj.gradients.reparam(vj.bounds.elbo)(key, target, q, num_samples=2)
    for objective in (vj.gradients.reparam(vj.bounds.iwae), vj.gradients.dreg(vj.bounds.iwae)):
        with pytest.raises(ValueError, match="iwae|bounds.elbo"):
            objective(key, target, q, num_samples=2)
    closed = lambda w: of_weights(key, PARAMS, w)
    with pytest.raises(ValueError, match="p\\(y, W\\)"):
        vj.gradients.reparam(vj.bounds.iwae)(key, closed, q, num_samples=2)


@pytest.mark.parametrize(
    ("x", "loc", "scale", "words"),
    [
        (X, PARAMS["loc"], PARAMS["scale"][:2], r"one shape, got \[3, 2\] and \[2, 2\]"),
        (X[:, :2], PARAMS["loc"], PARAMS["scale"], r"x must be \[\*rows, 3\].*got \[16, 2\]"),
        (X, PARAMS["loc"][:, 0], PARAMS["scale"][:, 0], "jax.vmap"),
    ],
)
def test_what_does_not_fit_is_a_sentence(key, x, loc, scale, words):
    """Both functions."""
    for function in (local_reparameterization, flipout):
        with pytest.raises(ValueError, match=words):
            function(key, x, loc, scale)
