"""A6 and A9: functions that take a target for what it is not, and shapes that broadcast unheard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.faults.judging import G, assert_accepted, assert_refused, wrong

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
X = np.linspace(-1.0, 2.0, 12).astype(np.float32)
KEY, ZERO = jax.random.key(0), jnp.float32(0.0)


# --- A6: an estimate of log p for log p itself


def minibatch():
    return vj.targets.minibatch(norm.logpdf, lambda z: norm.logpdf(X[:3], z, 1.0), num_data=12)


def minibatch_of_two():
    prior = lambda z, b: norm.logpdf(z) + norm.logpdf(b, z, 1.0)
    return vj.targets.minibatch(prior, lambda z, b: norm.logpdf(X[:3], b, 1.0), num_data=12)


def keyed_of_two():
    return vj.targets.keyed(lambda key, z: norm.logpdf(z) + jax.random.normal(key))


ESTIMATES = {
    "targets.laplace(minibatch)": lambda: vj.targets.laplace(minibatch_of_two(), ZERO)[0](ZERO),
    "targets.collapse_gaussian(minibatch)": lambda: vj.targets.collapse_gaussian(
        minibatch_of_two(), ZERO
    )[0](ZERO),
    "targets.collapse(minibatch)": lambda: vj.targets.collapse(
        minibatch_of_two(), lambda z: Gauss(z, z)
    )(ZERO),
    "targets.enumerate(minibatch)": lambda: vj.targets.enumerate(minibatch_of_two(), 2).log_joint(
        ZERO
    ),
    "families.laplace(minibatch)": lambda: vj.families.laplace(minibatch()).init(KEY, ZERO),
    "draws.weigh(minibatch)": lambda: vj.draws.weigh(
        KEY, minibatch(), Gauss(0.0, 0.0), num_samples=4
    ),
    "iwae(minibatch)": lambda: G.reparam(vj.bounds.iwae)(
        KEY, minibatch(), Gauss(0.0, 0.0), num_samples=4
    ),
    "targets.collapse(keyed)": lambda: vj.targets.collapse(keyed_of_two(), lambda z: Gauss(z, z))(
        ZERO
    ),
    "targets.enumerate(keyed)": lambda: vj.targets.enumerate(keyed_of_two(), 2).log_joint(ZERO),
    "targets.laplace(keyed)": lambda: vj.targets.laplace(keyed_of_two(), ZERO)[0](ZERO),
    "families.laplace(keyed)": lambda: vj.families.laplace(keyed_of_two()).init(KEY, ZERO),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimate_of_log_p_is_refused(name):
    assert_refused(lambda: jax.eval_shape(ESTIMATES[name]))


# --- A9: broadcasts

COLUMN = {"z": jnp.zeros((4, 1)), "x": jnp.arange(4.0)}


def accident(combine):
    """Weigh draws z of (4, 1) where data x are (4,)."""
    x = COLUMN["x"]
    return vj.draws.weigh(
        KEY, lambda z: combine(z, x).sum(), Gauss(jnp.zeros((4, 1)), 0.0, event=2), num_samples=2
    )


def kernel(z):
    """A Gaussian process of a length scale exp(z): its data alone make an outer difference."""
    x = COLUMN["x"]
    distance = x[:, None] - x
    gram = jnp.exp(-0.5 * (distance / jnp.exp(z)) ** 2) + 0.1 * jnp.eye(4)
    return norm.logpdf(z) - 0.5 * x @ jnp.linalg.solve(gram, x) - 0.5 * jnp.linalg.slogdet(gram)[1]


ACCIDENTS = {
    "z - x": lambda z, x: z - x,
    "logpdf(x, z)": lambda z, x: norm.logpdf(x, z, 1.0),
    "where(z > 0, x, 0)": lambda z, x: jnp.where(z > 0, x, 0.0),
    "where(z > 0, 0, x)": lambda z, x: jnp.where(z > 0, 0.0, x),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=wrong("A9: where broadcasts unheard", when=n.startswith("where")))
        for n in ACCIDENTS
    ],
)
def test_a_column_against_a_row_is_refused(name):
    assert_refused(lambda: jax.eval_shape(lambda: accident(ACCIDENTS[name])))


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="A9: an outer difference of data alone is refused"
)
def test_an_outer_difference_of_data_is_accepted():
    q = Gauss(0.0, 0.0)
    assert_accepted(lambda: jax.eval_shape(lambda: vj.draws.weigh(KEY, kernel, q, num_samples=2)))
