"""Generators of f-divergences: against TFP, closed forms, quadrature, and at their extremes; and kinks under dreg."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from tests import cases, oracles
from tests.laws.test_unbiased import gradients
from tests.statistics import assert_mean
from vijax.bounds import generators as g
from vijax.types import closed_forms, with_closed_forms

vi = tfp.vi
normalised = lambda f, **keywords: lambda l: f(l, self_normalized=True, **keywords)

# Ours, TFP's, and f(0): the form with f(1) = 0, which for some is TFP's self-normalised one; modified_gan is off by log 2.
FORMS = {
    "amari_alpha(-1)": (
        partial(g.amari_alpha, alpha=-1.0),
        partial(vi.amari_alpha, alpha=-1.0),
        np.inf,
    ),
    "amari_alpha(0)": (
        partial(g.amari_alpha, alpha=0.0),
        partial(vi.amari_alpha, alpha=0.0),
        np.inf,
    ),
    "amari_alpha(.5)": (partial(g.amari_alpha, alpha=0.5), partial(vi.amari_alpha, alpha=0.5), 4.0),
    "amari_alpha(1)": (partial(g.amari_alpha, alpha=1.0), partial(vi.amari_alpha, alpha=1.0), 0.0),
    "amari_alpha(2)": (partial(g.amari_alpha, alpha=2.0), partial(vi.amari_alpha, alpha=2.0), -0.5),
    "arithmetic_geometric": (g.arithmetic_geometric, normalised(vi.arithmetic_geometric), np.inf),
    "chi_square": (g.chi_square, vi.chi_square, -1.0),
    "jeffreys": (g.jeffreys, vi.jeffreys, np.inf),
    "jensen_shannon": (g.jensen_shannon, normalised(vi.jensen_shannon), np.log(2)),
    "kl_forward": (g.kl_forward, vi.kl_forward, 0.0),
    "kl_reverse": (g.kl_reverse, vi.kl_reverse, np.inf),
    "log1p_abs": (g.log1p_abs, vi.log1p_abs, np.inf),
    "modified_gan": (g.modified_gan, lambda l: vi.modified_gan(l) - np.log(2), np.inf),
    "pearson": (g.pearson, vi.pearson, 1.0),
    "squared_hellinger": (g.squared_hellinger, vi.squared_hellinger, 1.0),
    "t_power(-.5)": (partial(g.t_power, t=-0.5), normalised(vi.t_power, t=-0.5), np.inf),
    "t_power(.5)": (partial(g.t_power, t=0.5), normalised(vi.t_power, t=0.5), 0.5),
    "t_power(2)": (partial(g.t_power, t=2.0), normalised(vi.t_power, t=2.0), 1.0),
    "total_variation": (g.total_variation, vi.total_variation, 0.5),
    "triangular": (g.triangular, vi.triangular, 1.0),
    "dual(kl_reverse)": (g.dual(g.kl_reverse), vi.kl_forward, 0.0),
    "dual(kl_forward)": (g.dual(g.kl_forward), vi.kl_reverse, np.inf),
    "dual(triangular)": (g.dual(g.triangular), vi.triangular, 1.0),
    "dual(jensen_shannon)": (g.dual(g.jensen_shannon), normalised(vi.jensen_shannon), np.log(2)),
    "symmetrized(kl_reverse)": (g.symmetrized(g.kl_reverse), vi.jeffreys, np.inf),
    "symmetrized(pearson)": (
        g.symmetrized(g.pearson),
        lambda l: vi.symmetrized_csiszar_function(l, vi.pearson),
        np.inf,
    ),
}
L = np.array([-40.0, -9.0, -1.0, -1e-2, 0.0, 1e-2, 1.0, 9.0, 30.0])
EXTREMES = np.array([-np.inf, np.inf, np.nan, -1e4, 1e4, -85.0, 85.0, -300.0, 300.0], np.float32)


@jax.jit
def every(l):
    one = lambda f: (
        f(l),
        jax.vjp(f, l)[1](jnp.ones_like(l))[0],
        jax.jvp(jax.grad(lambda l: f(l).sum()), (l,), (jnp.ones_like(l),))[1],
    )
    return {name: one(f) for name, (f, _, _) in FORMS.items()}


@pytest.mark.slow
def test_against_tfp(x64, loose_ranks):
    found = every(jnp.asarray(L))
    for name, (_, theirs, _) in FORMS.items():
        np.testing.assert_allclose(
            found[name][0], theirs(jnp.asarray(L)), rtol=1e-9, atol=1e-14, err_msg=name
        )
        slope = jax.vmap(jax.grad(theirs))(jnp.asarray(L[np.abs(L) > 0.5]))
        np.testing.assert_allclose(
            found[name][1][np.abs(L) > 0.5], slope, rtol=1e-8, atol=1e-14, err_msg=name
        )


@pytest.mark.slow
def test_zero_and_convex_in_u(x64):
    """f(1) = 0, and u² f''(u) = d²f/dl² - df/dl >= 0 where f is smooth."""
    found = every(jnp.asarray(L))
    for name, (f, _, _) in FORMS.items():
        value, slope, second = found[name]
        np.testing.assert_allclose(value[L == 0], 0, atol=1e-15, err_msg=name)
        if closed_forms(f).smooth:
            bend = (second - slope)[np.abs(L) < 10]
            assert np.all(bend > -1e-9 * (1 + np.abs(slope[np.abs(L) < 10]))), f"{name}: {bend}"


@pytest.mark.slow
def test_extremes():
    """f(0) as stated, nan of nan alone, and finite slopes, at weights of nothing, of infinity and of 1e4 nats."""
    found = every(jnp.asarray(EXTREMES))
    for name, (_, _, at_zero) in FORMS.items():
        value, slope, second = (np.asarray(a) for a in found[name])
        np.testing.assert_allclose(value[0], at_zero, rtol=1e-5, atol=1e-30, err_msg=name)
        assert np.all(np.isnan(value) == np.isnan(EXTREMES)), f"{name}: {value}"
        finite = ~np.isnan(EXTREMES)
        assert np.all(np.isfinite(slope[finite])), f"{name}: {slope}"
        assert np.all(np.isfinite(second[finite])), f"{name}: {second}"


@pytest.mark.slow
def test_small_distances_do_not_cancel():
    """At |log u| = 1e-3, float32 against float64: what tends to 0 as (log u)² keeps 3 digits or more."""
    l = np.array([-1e-3, 1e-3])
    with jax.enable_x64(True):
        exact = {name: np.asarray(f(jnp.asarray(l))) for name, (f, _, _) in FORMS.items()}
    for name in (
        "jensen_shannon",
        "arithmetic_geometric",
        "pearson",
        "squared_hellinger",
        "triangular",
        "jeffreys",
    ):
        np.testing.assert_allclose(
            FORMS[name][0](jnp.asarray(l, jnp.float32)), exact[name], rtol=1e-3, err_msg=name
        )


# --- divergences of two Gaussians


def gaussian_divergence(name):
    """KL, χ² and Hellinger in closed form, p = N(0, 1) and q = N(a, s): from ∫ pᵗ q^(1-t)."""
    a, s = 0.4, 1.2

    def power(t):  # log ∫ p^t q^(1-t)
        precision = t + (1 - t) / s**2
        mean = (1 - t) * a / s**2 / precision
        return (
            -(1 - t) * np.log(s)
            - 0.5 * np.log(precision)
            - 0.5 * ((1 - t) * a**2 / s**2 - precision * mean**2)
        )

    forward = np.log(s) + (1 + a**2) / (2 * s**2) - 0.5
    reverse = -np.log(s) + (s**2 + a**2) / 2 - 0.5
    return {
        "kl_forward": forward,
        "kl_reverse": reverse,
        "jeffreys": 0.5 * (forward + reverse),
        "pearson": np.exp(power(2.0)) - 1,
        "chi_square": np.exp(power(2.0)) - 1,
        "squared_hellinger": 2 - 2 * np.exp(power(0.5)),
        "amari_alpha(.5)": 4 * (1 - np.exp(power(0.5))),
        "t_power(.5)": 1 - np.exp(power(0.5)),
        "dual(kl_forward)": reverse,
    }.get(name)


@pytest.mark.slow
def test_divergences_of_two_gaussians(key):
    """E_q[f] of 200,000 draws: closed forms where there are any, quadrature of TFP's f elsewhere. Detects .08."""
    z, volumes = oracles.interval(-9.0, 10.0, 4001)
    e = jax.random.normal(key, (1, 200_000))
    log_u = lambda z: norm.logpdf(z) - norm.logpdf(z, 0.4, 1.2)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        mass = volumes * norm.pdf(z, 0.4, 1.2)
        exact = {
            name: np.sum(mass * theirs(log_u(jnp.asarray(z))))
            for name, (_, theirs, _) in FORMS.items()
        }
    for name in FORMS:
        if (closed := gaussian_divergence(name)) is not None:
            np.testing.assert_allclose(exact[name], closed, rtol=1e-8, err_msg=name)
    every = lambda l: {name: vj.bounds.f_divergence(l, f=f) for name, (f, _, _) in FORMS.items()}
    assert_mean(jax.jit(every)(log_u(0.4 + 1.2 * e)), exact, detects=0.08)


# --- kinks


KINKED = {
    "total_variation": partial(vj.bounds.f_divergence, f=g.total_variation),
    "log1p_abs": partial(vj.bounds.f_divergence, f=g.log1p_abs),
    "dual": partial(vj.bounds.f_divergence, f=g.dual(g.total_variation)),
    "symmetrized": partial(vj.bounds.f_divergence, f=g.symmetrized(g.log1p_abs)),
    "partial": partial(
        vj.bounds.f_divergence,
        f=partial(with_closed_forms(smooth=False)(lambda l, *, a: jnp.abs(l - a)), a=0.0),
    ),
    "own": with_closed_forms(smooth=False)(lambda l: jnp.max(l, 0)),
}


@pytest.mark.parametrize("name", list(KINKED))
def test_dreg_refuses_a_kink(name, key, unchecked):
    params = cases.LINE.params
    log_joint = lambda z: cases.LINE.log_p(params["theta"], z)
    with pytest.raises(ValueError, match=r"dreg\(.*without kinks: use gradients.reparam"):
        vj.gradients.dreg(KINKED[name])(
            key, log_joint, cases.LINE.build(params["q"]), num_samples=2
        )
    assert closed_forms(partial(vj.bounds.f_divergence, f=g.pearson)).smooth is True


def test_why_dreg_refuses_a_kink(key):
    """The control: declared smooth, its gradient of total variation is biased, and reparam's is not."""
    shifted = with_closed_forms(smooth=True)(
        lambda log_w: vj.bounds.f_divergence(log_w + 2.0, f=g.total_variation)
    )
    objectives = {"dreg": vj.gradients.dreg(shifted), "reparam": vj.gradients.reparam(shifted)}
    found = gradients(key, cases.LINE, objectives, 1, 200_000)
    line = cases.LINE._replace(
        points=oracles.interval(-8.5, 9.5, 4001)[0], volumes=oracles.interval(-8.5, 9.5, 4001)[1]
    )
    truth = line.truth(shifted, 1)[1]
    assert_mean({"reparam": found["reparam"]}, {"reparam": truth}, detects=0.06)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"dreg": found["dreg"]}, {"dreg": truth}, detects=0.06)
