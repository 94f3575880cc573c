"""A2: the values of a discrete q move with a parameter, which a score alone does not see."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from tests.faults.judging import (
    G,
    Own,
    assert_accepted,
    assert_right,
    assert_right_or_refused,
    case,
    parabola,
)

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")
PARAMETERS = np.array([0.4, -0.5, 2.2])  # the log-odds of the first value, and two values


def logits(p):
    return jax.nn.log_softmax(jnp.stack([p[0], 0 * p[0]]))


def finite_discrete(p):
    return vj.families.adapt(
        tfp.distributions.FiniteDiscrete(p[1:], logits=jnp.stack([p[0], 0 * p[0]]))
    )


def codebook(p):
    nearest = lambda p, z: logits(p)[jnp.argmin(jnp.abs(p[1:] - z[..., None]), -1)]
    return Own(p, lambda p, key: p[1:][jax.random.categorical(key, logits(p))], nearest)


def affine_bernoulli(p):
    """Return p[2] where a Bernoulli draw is 0, and p[1] where it is 1."""

    def draw(p, key):
        bit = (jax.random.uniform(key) < jax.nn.sigmoid(p[0])).astype(float)
        return p[2] + (p[1] - p[2]) * bit

    def log_prob(p, z):
        bit = jnp.round((z - p[2]) / (p[1] - p[2]))
        return bit * jax.nn.log_sigmoid(p[0]) + (1 - bit) * jax.nn.log_sigmoid(-p[0])

    return Own(p, draw, log_prob)


def one_hot_code(p):
    """The codebook read by a product instead of an index."""
    row = lambda key: jax.nn.one_hot(jax.random.categorical(key, logits(p)), 2)
    return Own(p, lambda p, key: row(key) @ p[1:], codebook(p)._log_prob)


def truth():
    first = 1 / (1 + np.exp(-PARAMETERS[0]))
    weights = np.array([first, 1 - first])
    log_w = -0.25 * (PARAMETERS[1:] - 1) ** 2 - np.log(weights)
    return np.array(
        [(log_w[0] - log_w[1]) * first * (1 - first), *(-0.5 * weights * (PARAMETERS[1:] - 1))]
    )


KINDS = {
    "FiniteDiscrete": (finite_discrete, PARAMETERS, truth()),
    "codebook": (codebook, PARAMETERS, truth()),
    "affine Bernoulli": (affine_bernoulli, PARAMETERS, truth()),
    "one-hot code": (one_hot_code, PARAMETERS, truth()),
    "Deterministic": (distrax.Deterministic, 0.4, -0.5 * (0.4 - 1)),
}
# A rate e^p and steps of e^p too; a spike at p beside a normal. No estimator has what they need.
REFUSED = {
    "scaled Poisson": lambda p: Own(
        p,
        lambda p, key: jnp.exp(p) * jax.random.poisson(key, jnp.exp(p)).astype(float),
        lambda p, z: jnp.round(z * jnp.exp(-p)) * p - jnp.exp(p),
    ),
    "a spike that moves": lambda p: Own(
        p,
        lambda p, key: jnp.where(
            jax.random.bernoulli(jax.random.fold_in(key, 1), jax.nn.sigmoid(p)),
            jax.random.normal(jax.random.fold_in(key, 2)),
            p,
        ),
        lambda p, z: jnp.where(z == p, 0.0, -0.5 * z**2),
    ),
}
# Values that no parameter reaches; of numbers in NumPy, and of a library's own.
STAY = {
    "numbers of the code": lambda p: Own(
        p,
        lambda p, key: jnp.asarray(np.array([-0.5, 2.2]))[
            jax.random.bernoulli(key, jax.nn.sigmoid(p)).astype(int)
        ],
        lambda p, z: jnp.where(z > 0, jax.nn.log_sigmoid(p), jax.nn.log_sigmoid(-p)),
    ),
    "FiniteDiscrete of numbers": lambda p: vj.families.adapt(
        tfp.distributions.FiniteDiscrete([-0.5, 2.2], logits=jnp.stack([p, 0 * p]))
    ),
    "a Bernoulli of floats": lambda p: distrax.Bernoulli(p, dtype=float),
    "a Poisson": lambda p: vj.families.adapt(tfp.distributions.Poisson(log_rate=p)),
    "a step of one's own": lambda p: Own(
        p,
        lambda p, key: jnp.floor(jnp.exp(p) * jax.random.exponential(key)),
        lambda p, z: jnp.log(-jnp.expm1(-jnp.exp(-p))) - z * jnp.exp(-p),
    ),
}
ESTIMATORS = ("reparam", "dreg", "score", "vimco", "auto")
SLOW = {
    ("codebook", "vimco"),
    ("codebook", "dreg"),
    ("affine Bernoulli", "auto"),
    ("affine Bernoulli", "dreg"),
}


def cells():
    for kind in KINDS:
        for name in ESTIMATORS:
            yield case(
                kind,
                name,
                name=f"{kind}, {name}",
                slow=name == "score" or (kind, name) in SLOW,
            )


@pytest.mark.parametrize(("kind", "name"), list(cells()))
def test_atoms_that_move_are_right_or_refused(kind, name):
    build, parameters, expected = KINDS[kind]
    objective = getattr(G, name)(vj.bounds.elbo)
    assert_right_or_refused(objective, parabola, build, jnp.asarray(parameters), expected, sees=0.2)


@pytest.mark.parametrize("name", ["score", "vimco", "auto"])
@pytest.mark.parametrize("kind", list(REFUSED))
def test_other_atoms_that_move_are_refused(kind, name):
    objective = getattr(G, name)(vj.bounds.elbo)

    def value(p):
        return objective(jax.random.key(0), parabola, REFUSED[kind](p), num_samples=2).value

    with pytest.raises(
        ValueError, match=r"moves? with q's parameters.*(look the value up|use|Use)"
    ):
        jax.eval_shape(jax.grad(value), jnp.float64(0.4))


@pytest.mark.parametrize("name", ["score", "vimco", "auto"])
@pytest.mark.parametrize("kind", list(STAY))
def test_atoms_that_stay_are_accepted(kind, name):
    objective = getattr(G, name)(vj.bounds.elbo)

    def value(p):
        target = lambda z: parabola(jnp.asarray(z, float))
        return objective(jax.random.key(0), target, STAY[kind](p), num_samples=2).value

    assert_accepted(lambda: jax.eval_shape(jax.grad(value), jnp.float64(0.4)))


@pytest.mark.parametrize("name", ["vimco", "auto"])
def test_the_cure_of_a_codebook(name):
    """q draws which value it is, and log_joint, whose own derivative sees it move, looks it up."""
    objective = getattr(G, name)(vj.bounds.elbo)

    def value(p, key):
        target = lambda i: parabola(p[1:][i])
        return objective(key, target, distrax.Categorical(logits(p)), num_samples=2).value

    run = jax.jit(jax.vmap(jax.grad(value), (None, 0)))
    found = run(jnp.asarray(PARAMETERS), jax.random.split(jax.random.key(5), 4096))
    assert_right(found, truth(), sees=0.2)
