"""Discrete states: what kind q's draws are of is read from q, whatever its dtype and size, and q is held to it."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import problems
from vijax.engine import _states

ELBO = vj.bounds.elbo
pytestmark = pytest.mark.usefixtures("unchecked", "loose_ranks")


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.float32]
)
@pytest.mark.parametrize("n", [4, pytest.param(20_000, marks=pytest.mark.slow)])
def test_states_are_read_as_what_they_are(dtype, n, key):
    """One-hot draws are not taken for Bernoullis in half precision, nor where there are so many that their sum hides it."""
    hot = distrax.OneHotCategorical(logits=jnp.zeros((n, 4), dtype), dtype=dtype)
    for q, kind in (
        (distrax.Independent(hot, 1), _states.ONE_HOT),
        (
            distrax.Independent(distrax.Bernoulli(logits=jnp.zeros(n, dtype), dtype=dtype), 1),
            _states.BERNOULLI,
        ),
    ):
        found = _states.states(q, key, "disarm")
        assert found.shares == [0.5 if kind is _states.BERNOULLI else 1.0]
        assert found.log_probs[0].shape == ((n, 4) if kind is _states.ONE_HOT else (n, 2))


class Clipped(problems.Bits):
    """Bits whose density and draws clip the logits that they show."""

    def log_prob(self, z):
        return problems.Bits(jnp.clip(self.logits, -3.0, 3.0)).log_prob(z)


@pytest.mark.slow
def test_what_is_clipped_or_truncated_is_seen(key):
    with pytest.raises(ValueError, match="not that of its logits"):
        vj.gradients.disarm(ELBO)(
            key, lambda z: z.sum(-1), Clipped(jnp.array([5.0, -5.0])), num_samples=2
        )
    numpyro = pytest.importorskip("numpyro.distributions")
    for low, high in ((-4.0, 4.0), (-4.0, None)):
        q = vj.families.adapt(
            numpyro.TruncatedNormal(jnp.asarray(1.0), jnp.asarray(5.0), low=low, high=high)
        )
        with pytest.raises(ValueError, match="independent normals"):
            vj.gradients.measure_valued(ELBO)(key, lambda z: -(z**2), q, num_samples=1)
    plain = vj.families.adapt(numpyro.Normal(0.0, 1.0))
    assert jnp.isfinite(
        vj.gradients.measure_valued(ELBO)(key, lambda z: -(z**2), plain, num_samples=1).value
    )


MAKE = {
    "arm": vj.gradients.arm,
    "disarm": vj.gradients.disarm,
    "local_expectation": vj.gradients.local_expectation,
    "top_states": partial(vj.gradients.top_states, states=1),
    "gumbel_softmax": partial(vj.gradients.gumbel_softmax, temperature=0.5),
    "straight_through": partial(vj.gradients.straight_through, temperature=0.5),
    "gumbel_rao": partial(vj.gradients.gumbel_rao, temperature=0.5, inner=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MAKE))
def test_one_bit_alone_and_by_vmap(name, key):
    """A Bernoulli of batch shape () is one member of a batch, as under a vmap over data."""
    objective = MAKE[name](ELBO)

    def run(logit, key):
        q = distrax.Bernoulli(logits=logit, dtype=float)
        return objective(key, lambda z: -((z - 0.3) ** 2), q, num_samples=2).value

    slope = jax.vmap(jax.grad(run))(jnp.array([0.3, -0.5]), jax.random.split(key, 2))
    assert slope.shape == (2,)
    assert np.all(np.isfinite(slope))
