"""Where log_joint couples members of the batch, a signal or a gate of each is refused."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.faults.judging import G, assert_refused, assert_right, case, slopes
from tests.marks import some

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")
elbo, iwae = vj.bounds.elbo, vj.bounds.iwae

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
RIGHT = {
    "reparam(iwae)": (G.reparam(iwae), "iwae"),
    "reparam(elbo)": (G.reparam(elbo), "elbo"),
    "dreg(elbo)": (G.dreg(elbo), "elbo"),
    "split(elbo, elbo)": (G.split(model=elbo, q=elbo), "elbo"),
    "split(iwae, elbo)": (G.split(model=iwae, q=elbo), "elbo"),
}
STANDARD = distrax.Normal(jnp.zeros(4), 1.0)


def gdreg(bound):
    return G.gdreg(bound, prior=STANDARD, push=lambda e: e, pull=lambda z: z)


WRONG = {
    "dreg(iwae)": G.dreg(iwae),
    "dreg(renyi)": G.dreg(partial(vj.bounds.renyi, alpha=0.5)),
    "split(iwae, iwae)": G.split(model=iwae, q=iwae),
    "split(elbo, iwae)": G.split(model=elbo, q=iwae),
    "gdreg(iwae)": gdreg(iwae),
    "score(elbo)": G.score(elbo),
    "vimco(elbo)": G.vimco(elbo),
    "vimco(iwae)": G.vimco(iwae),
    "measure_valued(elbo)": G.measure_valued(elbo),
    "wake(iwae)": G.wake(iwae),
    "fixed(log_variance)": G.fixed(vj.bounds.log_variance),
}


@pytest.mark.parametrize(
    "name", [case(name, name=name, slow=name.startswith("split")) for name in RIGHT]
)
def test_batch_statistics_are_right_where_nothing_is_weighed_by_member(name):
    objective, bound = RIGHT[name]
    truth, error = TRUTH[bound]
    found = slopes(objective, normalized, gaussian, jnp.asarray(X / 2), num_samples=4)
    assert_right(found, truth, truth_error=error, sees=1.0)


def accepted(objective, target, q, num_samples=2):
    """Assert that a call is traced, with a value for each member."""
    value = jax.eval_shape(
        lambda key: objective(key, target, q, num_samples=num_samples).value, jax.random.key(0)
    )
    assert value.shape in ((4,), (2, 3), (1,))


def refused(objective, target, q, num_samples=4, *, chunk_size=None):
    """Assert that a call is refused while it is traced, by a message that says what to do."""
    kept = {"num_samples": num_samples, "chunk_size": chunk_size}
    traced = lambda: jax.eval_shape(  # noqa: E731
        lambda key: objective(key, target, q, **kept).value, jax.random.key(0)
    )
    assert_refused(traced)
    with pytest.raises(ValueError, match="mixes members along axis 0 of leaf"):
        traced()


@pytest.mark.parametrize("name", list(WRONG))
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_batch_statistics_are_refused_where_each_member_has_a_weight(name, chunk_size):
    refused(WRONG[name], normalized, gaussian(jnp.asarray(X / 2)), chunk_size=chunk_size)


def test_gdreg_of_a_linear_bound_passes():
    q = gaussian(jnp.asarray(X / 2))
    accepted(gdreg(elbo), normalized, q)


def test_the_message_names_the_cures():
    with pytest.raises(ValueError, match="mixes members") as caught:
        G.vimco(elbo)(jax.random.key(0), normalized, gaussian(jnp.asarray(X)), num_samples=2)
    for words in (
        "vimco(elbo)",
        "leaf 'z', through 'reduce_sum'",
        "gradients.reparam",
        "bounds.elbo",
        "use_running_average=True",
        "jax.vmap",
        "targets.independent_members",
    ):
        assert words in str(caught.value)


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

    def objective(key, log_joint, q, **kept):
        return make(elbo)(key, log_joint, q, parameters, **kept)[0]

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


@pytest.mark.parametrize("name", some(COINS, *list(COINS)[::2]))
def test_a_cumulative_sum_is_refused(name):
    refused(COINS[name], accumulated, bernoulli(jnp.asarray(LOG_ODDS)))


def test_one_member_passes():
    """The control: of batch shape () the whole is one member, whatever log_joint couples."""
    build = lambda p: distrax.Independent(bernoulli(p), 1)
    truth = jax.grad(enumerated)(jnp.asarray(LOG_ODDS))
    target = lambda z: accumulated(z).sum()
    found = slopes(G.vimco(elbo), target, build, jnp.asarray(LOG_ODDS))
    assert_right(found, truth, sees=0.5)


def test_a_control_variate_that_couples_members_is_refused():
    control = lambda parameters, z, relaxed: parameters * (z - z.mean())
    objective = stateful(partial(G.relax, control=control), 0.8)
    apart = lambda z: norm.logpdf(z, X)
    with pytest.raises(ValueError, match=r"control\(.*mixes members"):
        objective(jax.random.key(0), apart, bernoulli(jnp.asarray(LOG_ODDS)), num_samples=2)


# --- several estimators of one q


def test_each_takes_members_apart_under_every_bound():
    """The derivative by a leaf that does not learn is that of a sum over members, whatever weighs them."""
    q = {"a": gaussian(jnp.zeros(4)), "b": gaussian(jnp.zeros(4))}
    target = lambda z: norm.logpdf(z["a"]) + norm.logpdf(jnp.cumsum(z["b"]), z["a"])
    pair = {"a": G.reparam, "b": G.reparam}
    for bound in (elbo, iwae):
        refused(G.each(bound, pair), target, q)
    refused(G.each(elbo, {"a": G.vimco, "b": G.reparam}), target, q)
    accepted(G.each(elbo, pair), vj.targets.independent_members(target), q)
    accepted(G.each(elbo, pair), lambda z: norm.logpdf(z["a"]) + norm.logpdf(z["b"], z["a"]), q)


def test_strata_of_a_batch_are_refused():
    """Members are drawn from one component at a time, each with its own weight of it."""
    q = vj.families.strata(
        distrax.MixtureSameFamily(
            distrax.Categorical(jnp.zeros((4, 2))), distrax.Normal(jnp.zeros((4, 2)), 1.0)
        )
    )
    objective = G.reparam(elbo, draw=vj.draws.stratified)
    accepted(objective, norm.logpdf, q)
    refused(objective, normalized, q)


# --- whatever a target is made of is looked at as a whole


def transformed(target):
    return vj.targets.transform(target, vj.targets.constraints.positive).log_joint


def enumerated_over(target):
    return vj.targets.enumerate(lambda z, c: target(z) + 0.3 * c, 2, batch=(4,)).log_joint


DERIVED = {
    "a dict of factors": lambda f: lambda z: {"prior": norm.logpdf(z), "x": f(z)},
    "a tempered target": lambda f: lambda z: 0.5 * f(z),
    "a keyed target": lambda f: vj.targets.keyed(
        lambda key, z: f(jnp.where(jax.random.bernoulli(key, 0.5, z.shape), z, 0.0))
    ),
    "a target with batch statistics beside it": lambda f: vj.targets.keyed(
        lambda key, z: (f(z), z.mean()), has_aux=True
    ),
    "a minibatch": lambda f: vj.targets.minibatch(
        norm.logpdf, lambda z: jnp.stack([f(z), f(-z)]), num_data=10
    ),
    "a transformed target": transformed,
    "an enumerated target": enumerated_over,
    "a jitted target": jax.jit,
}


@pytest.mark.parametrize("name", list(DERIVED))
def test_derived_targets(name):
    q = gaussian(jnp.zeros(4))
    apart = DERIVED[name](lambda z: norm.logpdf(z, X))
    accepted(G.score(elbo), apart, q)
    refused(G.score(elbo), DERIVED[name](normalized), q)


def test_two_axes_of_a_batch():
    q = distrax.Independent(distrax.Normal(jnp.zeros((2, 3, 4)), 1.0), 1)
    accepted(G.vimco(iwae), lambda z: jnp.sum(jnp.tanh(z.reshape(6, 4)), -1).reshape(2, 3), q)
    with pytest.raises(ValueError, match="along axis 1 of leaf 'z'"):
        accepted(G.vimco(iwae), lambda z: jnp.sum(z - z.mean(1, keepdims=True), -1), q)
    one = distrax.Independent(distrax.Normal(jnp.zeros((1, 4)), 1.0), 1)
    accepted(G.vimco(iwae), lambda z: jnp.sum(z - z.mean(0), -1), one)


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


def test_a_conditional_that_reads_other_members_is_right_by_its_path():
    parameters = {"first": jnp.array([0.3, -0.4]), "slope": jnp.array(0.5)}
    truth = jax.grad(chained_truth)(parameters)["first"]
    build = lambda first: chained({**parameters, "first": first})
    for objective in (G.reparam(elbo), G.dreg(elbo)):
        found = slopes(objective, plain, build, parameters["first"], num_samples=4, keys=16_384)
        assert_right(found, truth, sees=0.5)


@pytest.mark.parametrize(
    "objective",
    [G.vimco(elbo), G.score(elbo), G.dreg(iwae), G.fixed(iwae)],
    ids=["vimco(elbo)", "score(elbo)", "dreg(iwae)", "fixed(iwae)"],
)
def test_a_conditional_that_reads_other_members_is_refused(objective):
    q = chained({"first": jnp.array([0.3, -0.4]), "slope": jnp.array(0.5)})
    with pytest.raises(
        ValueError, match=r"q.log_prob\(z\) mixes members along axis 0 of leaf 'first'"
    ):
        objective(jax.random.key(0), plain, q, num_samples=4)


def test_a_scored_leaf_before_one_that_reads_other_members_is_refused():
    q = vj.Joint(
        {
            "first": distrax.Bernoulli(jnp.zeros(2)),
            "second": lambda z: distrax.Normal(1.0 * z["first"][::-1], jnp.ones(2)),
        }
    )
    for objective in (G.auto(elbo), G.factored(elbo)):
        with pytest.raises(ValueError, match=r"q.log_prob\(z\) mixes members"):
            objective(jax.random.key(0), plain, q, num_samples=2)


def test_an_encoder_with_batch_statistics_passes():
    """What q's parameters are computed from is data."""
    data = jnp.asarray(X)
    q = gaussian((data - data.mean()) / data.std())
    apart = lambda z: norm.logpdf(z, X)
    for objective in (G.vimco(elbo), G.dreg(iwae)):
        accepted(objective, apart, q)
