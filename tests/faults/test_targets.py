"""A6 and A9: functions that take a target for what it is not, and shapes that broadcast unheard."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dists
import pytest
from jax.scipy import special, stats
from jax.scipy.stats import norm
from tensorflow_probability.substrates.jax import distributions as tfd

import vijax as vj
from tests.bare import Gauss
from tests.faults.judging import G, assert_accepted, assert_refused

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
    "targets.collapse_laplace(minibatch)": lambda: vj.targets.collapse_laplace(
        minibatch_of_two(), ZERO
    )[0](ZERO),
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
    "targets.collapse_laplace(keyed)": lambda: vj.targets.collapse_laplace(keyed_of_two(), ZERO)[0](
        ZERO
    ),
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


@jax.custom_jvp
def difference(z, x):
    """Return z - x, with a derivative of its own."""
    return z - x


difference.defjvps(lambda t, out, z, x: t + 0 * out, lambda t, out, z, x: -t + 0 * out)

ACCIDENTS = {
    "z - x": lambda z, x: z - x,
    "logpdf(x, z)": lambda z, x: norm.logpdf(x, z, 1.0),
    "where(z > 0, x, 0)": lambda z, x: jnp.where(z > 0, x, 0.0),
    "where(z > 0, 0, x)": lambda z, x: jnp.where(z > 0, 0.0, x),
    "select": lambda z, x: jnp.select([z > 0], [x], 0.0),
    "maximum": lambda z, x: jnp.maximum(x, z),
    "clip": lambda z, x: jnp.clip(x, z, None),
    "nan_to_num": lambda z, x: jnp.nan_to_num(z, nan=x),
    "sum(where=)": lambda z, x: jnp.sum(z, where=x > 0),
    "a sum over the outer product": lambda z, x: jnp.where(z > 0, x, 0.0).sum(-1),
    "in a function of its own, compiled": jax.jit(lambda z, x: jnp.where(z > 0, x, 0.0)),
    "in a loop": lambda z, x: jax.lax.scan(lambda s, e: (s + (z * e - x).sum(), None), 0.0, x)[0],
    "under a custom derivative": difference,
    "in remat": jax.checkpoint(lambda z, x: jnp.exp(z) * x),
    "poisson.logpmf": lambda z, x: stats.poisson.logpmf(x, jnp.exp(z)),
    "gamma.logpdf": lambda z, x: stats.gamma.logpdf(x + 1, jnp.exp(z)),
    "beta.logpdf": lambda z, x: stats.beta.logpdf(x / 9, jnp.exp(z), 2.0),
    "nbinom.logpmf": lambda z, x: stats.nbinom.logpmf(x, 3.0, jax.nn.sigmoid(z)),
    "bernoulli.logpmf": lambda z, x: stats.bernoulli.logpmf(x, jax.nn.sigmoid(z)),
    "expon.logpdf": lambda z, x: stats.expon.logpdf(x, 0.0, jnp.exp(z)),
    "logaddexp": jnp.logaddexp,
    "hypot": jnp.hypot,
    "copysign": jnp.copysign,
    "xlogy": lambda z, x: special.xlogy(x, jnp.exp(z)),
    "broadcast_arrays": lambda z, x: jnp.subtract(*jnp.broadcast_arrays(z, x)),
    "with more axes": lambda z, x: (z[..., None] * jnp.ones(3)) - (x[:, None] * jnp.ones(3)),
    "under vmap": lambda z, x: jax.vmap(lambda a: a * z - x)(jnp.arange(3.0)),
    "vmap of both": lambda z, x: jax.vmap(jnp.subtract)(jnp.stack([z, z]), jnp.stack([x, x])),
    "a product of matrices": lambda z, x: jnp.ones((4, 4)) @ z + x,
    "gamma of NumPyro": lambda z, x: dists.Gamma(2.0, jnp.exp(z)).log_prob(x + 1),
    "beta of NumPyro": lambda z, x: dists.Beta(2.0, jnp.exp(z)).log_prob(x / 9),
    "gamma of TFP": lambda z, x: tfd.Gamma(2.0, jnp.exp(z)).log_prob(x + 1),
    "a scale, in NumPyro": lambda z, x: dists.Normal(0.0, jnp.exp(z)).log_prob(x),
    "beta of TFP": lambda z, x: tfd.Beta(2.0, jnp.exp(z)).log_prob(x / 9),
}


@pytest.mark.parametrize(
    "name",
    ACCIDENTS,
)
def test_a_column_against_a_row_is_refused(name):
    assert_refused(lambda: jax.eval_shape(lambda: accident(ACCIDENTS[name])))


@pytest.mark.parametrize(
    "log_prob",
    [
        lambda z, x: norm.logpdf(x, z, 1.0),
        lambda z, x: tfd.MultivariateNormalDiag(z, jnp.ones(3)).log_prob(x),
        lambda z, x: dists.Dirichlet(jnp.exp(z)).log_prob(x),
    ],
)
def test_earlier_axes_are_followed(log_prob):
    """Latents (N, 1, D) against data (N, D); those that were given the axis by hand pass."""
    x, q = jnp.ones((4, 3)) / 3, Gauss(jnp.zeros((4, 1, 3)), 0.0, event=3)
    assert_refused(
        lambda: jax.eval_shape(
            lambda: vj.draws.weigh(KEY, lambda z: log_prob(z, x).sum(), q, num_samples=2)
        )
    )
    q = Gauss(jnp.zeros((4, 3)), 0.0, event=2)
    assert_accepted(
        lambda: jax.eval_shape(
            lambda: vj.draws.weigh(KEY, lambda z: log_prob(z[:, None], x).sum(), q, num_samples=2)
        )
    )


def test_the_line_is_named_wherever_jax_traced_its_functions():
    jnp.hypot(COLUMN["z"], COLUMN["x"])  # JAX keeps the trace of this line
    with pytest.raises(ValueError, match=r"at test_targets\.py:") as first:
        accident(lambda z, x: jnp.hypot(z, x))
    with pytest.raises(ValueError, match=r"at test_targets\.py:") as second:
        accident(
            lambda z, x: jnp.hypot(z, x),
        )
    assert str(first.value) != str(second.value)


def test_an_outer_difference_of_data_is_accepted():
    q = Gauss(0.0, 0.0)
    assert_accepted(lambda: jax.eval_shape(lambda: vj.draws.weigh(KEY, kernel, q, num_samples=2)))


MEANT = {
    "x[None]": lambda z, x: z - x[None],
    "where of x[None]": lambda z, x: jnp.where(z > 0, x[None], 0.0),
    "expand_dims": lambda z, x: z * jnp.expand_dims(x, 0),
    "reshape": lambda z, x: z * x.reshape(1, -1),
    "outer": lambda z, x: jnp.outer(z[:, 0], x),
    "matmul": lambda z, x: z @ x[None],
    "a row": lambda z, x: z[:, 0] - x,
    "one hot": lambda z, x: jax.nn.one_hot(z[:, 0].astype(int), 4) @ x,
    "where of data alone": lambda z, x: z[0] * jnp.where(x[:, None] > 1, x, 0.0),
    "a difference of data, compiled": lambda z, x: z[0] * jax.jit(lambda x: x[:, None] - x)(x),
    "a difference of data in a loop": lambda z, x: jax.lax.scan(
        lambda s, e: (s + z[0, 0] * (x[:, None] * e - x).sum(), None), 0.0, x
    )[0],
    "a covariance": lambda z, x: jnp.cov(z * jnp.ones((4, 5))),
    "a softmax": lambda z, x: jax.nn.softmax(z * x[None]),
    "vmap of diag": lambda z, x: jax.vmap(jnp.diag)(z * jnp.ones((1, 4))),
    "a batch of diagonals": lambda z, x: (z * jnp.ones((1, 4)))[..., None] * jnp.eye(4),
    "pairs of latents": lambda z, x: z[:, 0][:, None] - z[:, 0],
    "pairs by reshape": lambda z, x: z[:, 0].reshape(-1, 1) - z[:, 0],
    "pairs by expand_dims": lambda z, x: jnp.expand_dims(z[:, 0], 1) - z[:, 0],
    "a kernel of latents": lambda z, x: jnp.exp(-((z[:, 0][:, None] - z[:, 0]) ** 2)),
    "keepdims": lambda z, x: jnp.sum(z**2, 1, keepdims=True) + jnp.sum(z**2, 1),
    "keepdims of a row": lambda z, x: z - jnp.sum(z * x[None], 0, keepdims=True),
    "a mixture of as many": lambda z, x: special.logsumexp(
        dists.Normal(z[:, 0], 1.0).log_prob(x[:, None]), -1
    ),
    "a mixture of gammas": lambda z, x: stats.gamma.logpdf(x[:, None] + 1, jnp.exp(z[:, 0])),
    "pairs under vmap": lambda z, x: jax.vmap(lambda a: (a * x)[:, None] - a * x)(z[:, 0]),
    "stack": lambda z, x: jnp.stack([z[:, 0]], -1) - x,
    "swapaxes": lambda z, x: jnp.swapaxes(z[:, 0][None], 0, 1) - x,
    "a loop of pairs": lambda z, x: jax.lax.scan(
        lambda s, e: (special.logsumexp(s[:, None] + e * s, 0), None), z[:, 0], x
    )[0],
    "broadcast_to": lambda z, x: jnp.broadcast_to(z, (4, 4)) - x,
}


@pytest.mark.parametrize("name", MEANT)
def test_an_outer_product_that_is_meant_is_accepted(name):
    assert_accepted(lambda: jax.eval_shape(lambda: accident(MEANT[name])))


def test_the_same_accident_is_refused_again():
    """JAX remembers the traces of functions compiled by themselves: that nobody complained then says nothing."""
    inner = jax.jit(lambda z, x: jnp.where(z > 0, x, 0.0))
    assert_accepted(lambda: inner(COLUMN["z"], COLUMN["x"]))
    for _ in range(2):
        assert_refused(lambda: accident(inner))
        assert_refused(lambda: jax.jit(lambda: accident(inner))())


def test_a_model_that_reads_numbers_is_evaluated_as_ever():
    """Outside of jit a log_joint may look at what it closes over; it is then not traced for accidents."""
    x = jnp.arange(3.0)
    found = vj.draws.weigh(
        KEY, lambda z: -(z**2) if float(x.sum()) > 0 else z, Gauss(0.0, 0.0), num_samples=2
    )
    assert found.log_p.shape == (2,)
