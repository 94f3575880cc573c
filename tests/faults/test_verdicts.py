"""B1 and E1: garbage that is given verdict 0, and noise that grows with the number of draws."""

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


@pytest.mark.parametrize(
    "distance",
    [
        case(3.0, name="3 sd", slow=True),
        case(
            1e5,
            name="100,000 sd",
            reason="B1: log-weights that are rounded to a constant pass for exact",
            slow=True,
        ),
    ],
)
def test_a_q_far_from_the_target_is_not_believed(distance):
    assert verdict(distance) != 0


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
