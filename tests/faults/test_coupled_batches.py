"""A3: log_joint couples members of the batch; a signal or gate of each is not enough."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.faults.judging import G, assert_right_or_refused, case

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")
elbo, iwae = vj.bounds.elbo, vj.bounds.iwae
WRONG = "A3: {} takes each member of the batch for itself"

# --- batch statistics, as batch normalization makes them

X = np.array([1.0, -0.5, 2.0, 0.0])


def normalized(z):
    h = (z - z.mean()) / jnp.sqrt(z.var() + 1e-3)
    return norm.logpdf(z) + norm.logpdf(h, X, 0.5)


def gaussian(loc):
    return distrax.Normal(loc, jnp.full(4, jnp.exp(-0.5)))


# The slope of q's four means at four draws, by reparam of 1,000,000 other keys: the derivative
# of the value itself.
TRUTH = {
    "iwae": (np.array([-0.608, -1.016, 0.430, -0.918]), 0.0024),
    "elbo": (np.array([0.802, -3.662, 3.779, -2.169]), 0.0033),
}
GAUSSIAN = {
    "reparam(iwae)": (G.reparam(iwae), "iwae", True),
    "reparam(elbo)": (G.reparam(elbo), "elbo", True),
    "dreg(elbo)": (G.dreg(elbo), "elbo", True),
    "split(elbo, elbo)": (G.split(model=elbo, q=elbo), "elbo", True),
    "dreg(iwae)": (G.dreg(iwae), "iwae", False),
    "split(iwae, iwae)": (G.split(model=iwae, q=iwae), "iwae", False),
    "score(elbo)": (G.score(elbo), "elbo", False),
    "vimco(elbo)": (G.vimco(elbo), "elbo", False),
    "vimco(iwae)": (G.vimco(iwae), "iwae", False),
    "measure_valued(elbo)": (G.measure_valued(elbo), "elbo", False),
}


@pytest.mark.parametrize(
    "name",
    [
        case(
            name,
            name=name,
            reason="" if right else WRONG.format(name),
            slow=name.startswith("split"),
        )
        for name, (*_, right) in GAUSSIAN.items()
    ],
)
def test_batch_statistics_are_right_or_refused(name):
    objective, bound, _ = GAUSSIAN[name]
    truth, error = TRUTH[bound]
    assert_right_or_refused(
        objective,
        normalized,
        gaussian,
        jnp.asarray(X / 2),
        truth,
        truth_error=error,
        sees=1.0,
        num_samples=4,
    )


# --- a cumulative sum over a batch of coins, whose gradient is a sum over 2^4 states

LOG_ODDS = np.array([0.4, -0.3, 0.8, -0.6])


def accumulated(z):
    return norm.logpdf(jnp.cumsum(z, -1), X, 0.7) - 0.3 * z


def enumerated(log_odds):
    z = jnp.stack(jnp.meshgrid(*[jnp.arange(2.0)] * 4, indexing="ij"), -1).reshape(-1, 4)
    log_q = (z * jax.nn.log_sigmoid(log_odds) + (1 - z) * jax.nn.log_sigmoid(-log_odds)).sum(-1)
    return jnp.sum(jnp.exp(log_q) * (accumulated(z).sum(-1) - log_q))


def bernoulli(log_odds):
    return distrax.Bernoulli(log_odds, dtype=jnp.float64)


def stateful(make, parameters):
    """Return the objective of an estimator that takes a state and gives its slopes back."""

    def objective(key, log_joint, q, *, num_samples):
        return make(elbo)(key, log_joint, q, parameters, num_samples=num_samples)[0]

    return objective


def control(parameters, z, relaxed):
    return parameters * relaxed(0.7)


COINS = {
    "score": G.score(elbo),
    "vimco": G.vimco(elbo),
    "auto": G.auto(elbo),
    "factored": G.factored(elbo),
    "arm": G.arm(elbo),
    "disarm": G.disarm(elbo),
    "local_expectation": G.local_expectation(elbo),
    "top_states": G.top_states(elbo, states=1),
    "rebar": stateful(G.rebar, {"log_temperature": -0.5, "scale": 1.0}),
    "relax": stateful(partial(G.relax, control=control), 0.8),
}
FAST = {"vimco", "auto", "disarm", "local_expectation", "rebar"}


@pytest.mark.parametrize(
    "name",
    [case(name, name=name, reason=WRONG.format(name), slow=name not in FAST) for name in COINS],
)
def test_a_cumulative_sum_is_right_or_refused(name):
    truth = jax.grad(enumerated)(jnp.asarray(LOG_ODDS))
    objective = COINS[name]
    assert_right_or_refused(
        objective, accumulated, bernoulli, jnp.asarray(LOG_ODDS), truth, sees=0.3
    )


def test_one_member_passes():
    """The control: of batch shape () the whole is one member, whatever log_joint couples."""
    build = lambda p: distrax.Independent(bernoulli(p), 1)
    truth = jax.grad(enumerated)(jnp.asarray(LOG_ODDS))
    target = lambda z: accumulated(z).sum()
    assert_right_or_refused(G.vimco(elbo), target, build, jnp.asarray(LOG_ODDS), truth, sees=0.5)


# --- a conditional of q that reads other members is the same fault


def chained(p):
    """Return a Joint whose second leaf reads the other member's first."""
    first = distrax.Normal(p["first"], jnp.ones(2))
    return vj.Joint(
        {
            "first": first,
            "second": lambda z: distrax.Normal(p["slope"] * z["first"][::-1], jnp.ones(2)),
        }
    )


def plain(z):
    return norm.logpdf(z["first"], 0.5) + norm.logpdf(z["second"], jnp.array([1.0, -2.0]), 0.5)


def chained_truth(p):
    """-(m - .5)²/2 and -(s² (m² + 1) - 2 s m y)/(2 .25), summed over members, less constants."""
    m, other = p["first"], p["first"][::-1]
    y = jnp.array([1.0, -2.0])
    second = -2 * (p["slope"] ** 2 * (other**2 + 1) - 2 * p["slope"] * other * y)
    return jnp.sum(-0.5 * (m - 0.5) ** 2 + second)


CHAINED = {
    "reparam": G.reparam(elbo),
    "dreg": G.dreg(elbo),
    "vimco": G.vimco(elbo),
    "score": G.score(elbo),
}


@pytest.mark.parametrize(
    "name",
    [
        case(
            name,
            name=name,
            reason="" if name in ("reparam", "dreg") else WRONG.format(name),
            slow=name in ("score", "dreg"),
        )
        for name in CHAINED
    ],
)
def test_a_conditional_that_reads_other_members_is_right_or_refused(name):
    parameters = {"first": jnp.array([0.3, -0.4]), "slope": jnp.array(0.5)}
    truth = jax.grad(chained_truth)(parameters)["first"]
    build = lambda first: chained({**parameters, "first": first})
    assert_right_or_refused(
        CHAINED[name],
        plain,
        build,
        parameters["first"],
        truth,
        sees=0.5,
        num_samples=4,
        keys=16_384,
    )
