"""B1, B2 and E1: garbage that is given verdict 0, weights that count twice, and noise that grows with the draws."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.faults.judging import G, case

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")


def verdict(distance):
    family = vj.families.mean_field(scale=1e-3)
    q = family.dist(family.init(None, jnp.zeros(2)))
    target = lambda z: -0.5 * jnp.sum((z - jnp.float32(distance)) ** 2)
    drawn = vj.draws.weigh(jax.random.key(0), target, q, num_samples=2000)
    return int(vj.diagnostics.summarize(drawn).verdict)


@pytest.mark.parametrize("distance", [3.0, 1e5])
def test_a_q_far_from_the_target_is_not_believed(distance):
    assert verdict(distance) == (2 if distance == 3 else 3)


@pytest.mark.slow
def test_pooled_paths_are_weighted_once(key):
    """3y - exp(y) is the log of a Gamma(3)'s logarithm: log Z = log 2, mean ψ(3) = .9228.

    A Gaussian's weights have a heavy tail there: in eight keys log Z is off by 2e-5 to .025, the mean by
    .001 to .047. Weighted twice, the mean is off by .14 to .60.
    """

    def pooled(key, starts):
        return vj.solvers.multi_pathfinder(
            key, lambda y: 3 * y - jnp.exp(y), starts, num_samples=1000, steps=10
        )

    found = jax.jit(pooled)(key, jnp.array([-1.0, 0.0, 2.0]))
    said = vj.diagnostics.summarize(found.draws)
    assert abs(said.log_evidence.value - np.log(2)) < 0.05
    assert abs(said.corrected_mean[0] - 0.9228) < 0.08
    np.testing.assert_allclose(found.weights @ found.draws.z, said.corrected_mean[0], rtol=1e-4)
    twice = vj.diagnostics.moments(found.draws.z, found.draws.log_w + jnp.log(found.weights))
    assert abs(twice.mean - 0.9228) > 0.1  # the control


MEANS = {
    "elbo": vj.bounds.elbo,
    "f_divergence": partial(vj.bounds.f_divergence, f=vj.bounds.generators.kl_reverse),
    "perturbative": partial(vj.bounds.perturbative, order=1, reference=0.0),
    "exp_cubo": partial(vj.bounds.exp_cubo, n=2.0, reference=0.0),
}


@pytest.mark.parametrize(
    "name",
    [
        case(
            n,
            name=n,
            slow=n not in ("elbo", "f_divergence"),
        )
        for n in MEANS
    ],
)
def test_the_noise_of_a_mean_falls_with_the_draws(name):
    """From 10 draws to 1,000 the sd of one gradient falls by 10; a fall by 4 is asked for."""

    def sd(k):
        def slope(key):
            value = lambda m: (
                G.score(MEANS[name])(
                    key, lambda z: -0.5 * (z - 0.2) ** 2, distrax.Normal(m, 1.0), num_samples=k
                ).value
            )
            return jax.grad(value)(0.0)

        return np.std(jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(3), 1000)))

    assert sd(1000) < sd(10) / 4
