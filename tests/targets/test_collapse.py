"""Collapse: what is integrated out equals its closed form, whatever point the identity is taken at."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj


def test_collapse_is_the_beta_bernoulli_marginal(x64):
    data = jnp.array([1.0, 0.0, 1.0, 1.0])
    ones, zeros = data.sum(), (1 - data).sum()

    def log_joint(z, b):  # z: log of both shapes of the prior
        a = jnp.exp(z)
        return distrax.Beta(a[0], a[1]).log_prob(b) + ones * jnp.log(b) + zeros * jnp.log1p(-b)

    def exact(z):
        a = jnp.exp(z)
        log_beta = lambda a, b: (
            jax.scipy.special.gammaln(a) + jax.scipy.special.gammaln(b) - jax.scipy.special.gammaln(a + b)
        )
        return log_beta(a[0] + ones, a[1] + zeros) - log_beta(a[0], a[1])

    conditional = lambda z: distrax.Beta(jnp.exp(z[0]) + ones, jnp.exp(z[1]) + zeros)
    z = jnp.array([0.3, -0.2])
    for key in (None, jax.random.key(1), jax.random.key(2)):  # the identity holds at any b
        found = jax.value_and_grad(vj.targets.collapse(log_joint, conditional, key=key))(z)
        for a, b in zip(found, jax.value_and_grad(exact)(z), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
    wrong = lambda z: distrax.Beta(jnp.exp(z[0]) + ones, jnp.exp(z[1]))  # a wrong conditional depends on b
    values = [vj.targets.collapse(log_joint, wrong, key=jax.random.key(i))(z) for i in (1, 2)]
    assert abs(values[0] - values[1]) > 1e-3


def test_collapse_is_the_gamma_poisson_marginal(x64):
    counts = jnp.array([3.0, 0.0, 5.0])
    log_joint = lambda z, b: (
        distrax.Gamma(jnp.exp(z), 1.0).log_prob(b)
        + jnp.sum(counts) * jnp.log(b) - 3 * b - jnp.sum(jax.scipy.special.gammaln(counts + 1))
    )  # fmt: skip
    conditional = lambda z: distrax.Gamma(jnp.exp(z) + counts.sum(), 4.0)
    z, a, s = jnp.array(0.4), jnp.exp(0.4), counts.sum()
    gammaln = jax.scipy.special.gammaln
    exact = gammaln(a + s) - gammaln(a) - (a + s) * jnp.log(4.0) - jnp.sum(gammaln(counts + 1))
    np.testing.assert_allclose(vj.targets.collapse(log_joint, conditional)(z), exact, rtol=1e-10)


def test_collapsed_bound_is_tighter(key):
    """Two Gaussian latents, one integrated out: q(z) the same, the bound of the collapsed target lies above."""
    x = 1.5
    log_joint = lambda z, b: (
        distrax.Normal(0.0, 1.0).log_prob(z) + distrax.Normal(z, 1.0).log_prob(b) + distrax.Normal(b, 1.0).log_prob(x)
    )
    conditional = lambda z: distrax.Normal((z + x) / 2, jnp.sqrt(0.5))
    elbo = vj.gradients.reparam(vj.bounds.elbo)
    q = distrax.Normal(0.2, 0.8)
    thin = elbo(key, vj.targets.collapse(log_joint, conditional), q, num_samples=20_000).value
    full = elbo(
        key, lambda z: log_joint(z["z"], z["b"]), {"z": q, "b": distrax.Normal(0.5, 0.9)}, num_samples=20_000
    ).value
    log_p = distrax.Normal(0.0, jnp.sqrt(3.0)).log_prob(x)
    assert full + 0.1 < thin < log_p  # the standard error of either is below .02
