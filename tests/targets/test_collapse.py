"""collapse: exact integrals, at any b, and bounds that are never looser for them."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import bernoulli, norm, poisson

import vijax as vj
from tests import oracles
from tests.marks import some
from tests.statistics import assert_mean

pytestmark = pytest.mark.usefixtures("loose_ranks")


def gamma_poisson(x):
    """A rate for each datum, integrated; z is the log of the prior's shape."""
    log_joint = lambda z, b: (
        norm.logpdf(z) + distrax.Gamma(jnp.exp(z), 1.3).log_prob(b) + poisson.logpmf(x, b)
    )
    conditional = lambda z: distrax.Gamma(jnp.exp(z) + x, jnp.full_like(z, 2.3))
    return (
        log_joint,
        conditional,
        lambda z: norm.logpdf(z) + oracles.gamma_poisson_evidence(np.exp(z), 1.3, x),
    )


def beta_bernoulli(x):
    log_joint = lambda z, b: (
        norm.logpdf(z)
        + distrax.Beta(jnp.exp(z), 2.0).log_prob(b)
        + x * jnp.log(b)
        + (5 - x) * jnp.log1p(-b)
    )
    conditional = lambda z: distrax.Beta(jnp.exp(z) + x, 2.0 + 5 - x)
    return (
        log_joint,
        conditional,
        lambda z: norm.logpdf(z) + oracles.beta_bernoulli_evidence(np.exp(z), 2.0, x, 5.0),
    )


def two_blocks():
    """Science 4.15's shape: z ~ N(0, 1), b | z ~ N(z, 1), x | b ~ N(b, 1) at x = 1.5."""
    log_joint = lambda z, b: norm.logpdf(z) + norm.logpdf(b, z, 1.0) + norm.logpdf(1.5, b, 1.0)
    conditional = lambda z: distrax.Normal((z + 1.5) / 2, jnp.sqrt(0.5))
    return log_joint, conditional, lambda z: norm.logpdf(z) + norm.logpdf(1.5, z, jnp.sqrt(2.0))


X = np.array([3.0, 0.0, 1.0], np.float32)
MODELS = {
    "gamma-poisson": gamma_poisson(X),
    "beta-bernoulli": beta_bernoulli(X),
    "gaussian": two_blocks(),
}
Z = jnp.array([0.4, -0.3, 0.9])


@pytest.mark.parametrize("name", some(MODELS, "gaussian"))
def test_the_integral_is_exact_at_any_b(name, key):
    """Three b, one answer: the closed form. And the same slope in z as the closed form's."""
    log_joint, conditional, exact = MODELS[name]
    for b_key in (None, key, jax.random.fold_in(key, 1)):
        collapsed = vj.targets.collapse(log_joint, conditional, key=b_key)
        np.testing.assert_allclose(collapsed(Z), exact(Z), rtol=2e-5, atol=2e-5)
        slope = jax.grad(lambda z: jnp.sum(collapsed(z)))(Z)  # noqa: B023
        step = 1e-3
        expected = (
            np.asarray(exact(Z + step), np.float64) - np.asarray(exact(Z - step), np.float64)
        ) / (2 * step)
        np.testing.assert_allclose(slope, expected, atol=2e-3)


def test_a_wrong_conditional_depends_on_b(key):
    """The control, and how a user tests a conditional: two keys disagree."""
    log_joint, _, _ = MODELS["gaussian"]
    wrong = lambda z: distrax.Normal(z, 1.0)
    one, two = (
        vj.targets.collapse(log_joint, wrong, key=jax.random.fold_in(key, i))(Z) for i in range(2)
    )
    assert np.abs(one - two).max() > 1e-2


WRONG = {
    "gamma-poisson": lambda z: distrax.Gamma(jnp.exp(z) + X, jnp.full_like(z, 2.2)),
    "beta-bernoulli": lambda z: distrax.Beta(jnp.exp(z) + X, 2.1 + 5 - X),
    "gaussian": lambda z: distrax.Normal((z + 1.5) / 2, 0.8),  # whose mean is right
}


@pytest.mark.parametrize("name", MODELS)
def test_the_error_shows_a_wrong_conditional(name, key):
    """A few percent wrong in one parameter: over 20 draws .01 and more, where of the right one rounding is left."""
    log_joint, conditional, _ = MODELS[name]
    keys = jax.random.split(key, 20)

    @jax.jit
    def errors():
        of = lambda given: jax.vmap(lambda k: vj.targets.collapse_error(k, log_joint, given, Z))(
            keys
        )
        return of(conditional), of(WRONG[name])

    right, wrong = errors()
    assert right.shape == (20, 3)
    assert np.abs(right).max() < 2e-5
    assert np.all(np.abs(wrong).max(0) > 0.01)


CONJUGATE = vj.targets.conjugate.gamma_poisson(2.0, 1.0, total=X, exposure=1.0)
CENTERED = {
    "conjugate": (lambda: CONJUGATE, (2 + X) / 2),
    "distrax": (lambda: distrax.Gamma(2 + X, 2.0), (2 + X) / 2),
    "independent": (
        lambda: distrax.Independent(distrax.Normal(jnp.ones(3), 1.0), 1),
        np.ones(3),
    ),
    "family": (
        lambda: vj.families.mean_field().dist({"loc": jnp.ones(3), "log_scale": jnp.zeros(3)}),
        np.ones(3),
    ),
    "joint": (
        lambda: vj.types.lift({"a": CONJUGATE, "b": lambda a: distrax.Normal(a["a"], 1.0)}),
        {"a": (2 + X) / 2, "b": (2 + X) / 2},
    ),
}


@pytest.mark.parametrize("name", CENTERED)
def test_no_draw_is_made_where_a_center_is_known(name):
    make, expected = CENTERED[name]
    at = []
    zero = lambda z, b: at.append(b) or jnp.sum(0 * make().log_prob(b))
    jax.eval_shape(
        lambda: vj.targets.collapse(
            lambda z, b: zero(z, b) + 0 * make().log_prob(b), lambda z: make()
        )(0.0)
    )
    at.clear()
    vj.targets.collapse(lambda z, b: zero(z, b) + 0 * make().log_prob(b), lambda z: make())(0.0)
    jax.tree.map(lambda b, e: np.testing.assert_allclose(b, e, rtol=1e-6), at[0], expected)


def test_a_mean_outside_the_support_is_no_center():
    """A discrete b, of integers or floats, and a mixture: a draw is made."""
    coin = distrax.Bernoulli(probs=0.3)
    floats = vj.families.adapt(distrax.Bernoulli(probs=0.3, dtype=jnp.float32))
    gap = distrax.MixtureSameFamily(
        distrax.Categorical(probs=jnp.array([0.5, 0.5])),
        distrax.Normal(jnp.array([-50.0, 50.0]), 1.0),
    )
    for p in (coin, floats, gap):
        at = []
        joint = lambda z, b, p=p: at.append(b) or p.log_prob(b)  # noqa: B023
        vj.targets.collapse(joint, lambda z, p=p: p)(0.0)
        assert float(at[0]) in (0.0, 1.0) or abs(abs(float(at[0])) - 50) < 6


def test_collapsed_bounds_are_tighter(key):
    """Means over 20,000 keys: each bound above its uncollapsed self by more than 6 standard errors, below log p(x)."""
    log_joint, conditional, _ = MODELS["gaussian"]
    collapsed = vj.targets.collapse(log_joint, conditional)
    q_z = distrax.Normal(0.2, 1.1)
    full = {"z": q_z, "b": lambda e: distrax.Normal(0.4 * e["z"] + 0.3, 1.0)}
    evidence = float(norm.logpdf(1.5, 0.0, jnp.sqrt(3.0)))
    for bound in (vj.bounds.elbo, vj.bounds.iwae):
        objective = vj.gradients.reparam(bound)
        both = lambda k: (
            objective(k, lambda z: log_joint(z["z"], z["b"]), full, num_samples=4).value,  # noqa: B023
            objective(k, collapsed, q_z, num_samples=4).value,  # noqa: B023
        )
        plain, tight = (
            np.asarray(v, np.float64)
            for v in jax.jit(jax.vmap(both))(jax.random.split(key, 20_000))
        )
        error = np.hypot(plain.std(), tight.std()) / np.sqrt(20_000)
        assert tight.mean() - plain.mean() > 6.3 * error
        assert tight.mean() < evidence + 6.3 * error


def test_gradients_through_a_collapsed_target(key):
    """dreg(iwae) of a collapsed target with a parameter in its conditional: unbiased. Detects .05, 2e-10 by chance."""

    def value(theta, key):
        log_joint = lambda z, b: (
            norm.logpdf(z) + norm.logpdf(b, theta * z, 1.0) + norm.logpdf(1.5, b, 1.0)
        )
        conditional = lambda z: distrax.Normal((theta * z + 1.5) / 2, jnp.sqrt(0.5))
        target = vj.targets.collapse(log_joint, conditional)
        return vj.gradients.dreg(vj.bounds.iwae)(
            key, target, distrax.Normal(0.2, 1.1), num_samples=2
        ).value

    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(1.0, jax.random.split(key, 60_000))
    points, volumes = oracles.interval(-7.5, 7.9, 90)
    log_p = lambda p, z: norm.logpdf(z) + norm.logpdf(1.5, p["theta"] * z, jnp.sqrt(2.0))
    log_q = lambda p, z: norm.logpdf(z, 0.2, 1.1)
    _, truth = oracles.value_and_grad(
        vj.bounds.iwae, log_p, log_q, points, volumes, 2, {"theta": np.float64(1.0)}
    )
    assert_mean({"theta": found}, truth, detects=0.05)


def test_refusals(key, unchecked):
    log_joint, conditional, _ = MODELS["gaussian"]
    with pytest.raises(ValueError, match="conditional given a minibatch"):
        vj.targets.collapse(
            vj.targets.minibatch(lambda z: z, lambda z: z[None], num_data=3), conditional
        )
    with pytest.raises(ValueError, match=r"log_joint\(z, b\) has shape"):
        vj.targets.collapse(lambda z, b: jnp.sum(log_joint(z, b)), conditional)(Z)
    with pytest.raises(TypeError, match="typed key"):
        vj.targets.collapse(log_joint, conditional, key=3)


def test_a_discrete_block(key):
    """b may be discrete: a coin integrated out leaves the two-component mixture."""
    log_joint = lambda z, b: (
        norm.logpdf(z) + bernoulli.logpmf(b, 0.3) + norm.logpdf(1.0, z + 2 * b, 1.0)
    )

    def conditional(z):
        odds = jnp.log(0.3 / 0.7) + norm.logpdf(1.0, z + 2, 1.0) - norm.logpdf(1.0, z, 1.0)
        return distrax.Bernoulli(logits=odds)

    exact = norm.logpdf(Z) + jnp.log(0.3 * norm.pdf(1.0, Z + 2, 1.0) + 0.7 * norm.pdf(1.0, Z, 1.0))
    np.testing.assert_allclose(
        vj.targets.collapse(log_joint, conditional, key=key)(Z), exact, rtol=1e-5
    )
