"""enumerate and hmm beside NumPyro's TraceEnum_ELBO: the same model, the same loss, the same gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj

numpyro = pytest.importorskip("numpyro")
pytest.importorskip("funsor", reason="NumPyro enumerates by funsor")
infer, dist = pytest.importorskip("numpyro.infer"), numpyro.distributions
pytestmark = [
    pytest.mark.usefixtures("loose_ranks"),
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO is an experimental:FutureWarning"),
]

X = jnp.array([0.3, -1.0, 2.0, 0.1, 1.6, 1.9])
PARAMS = {"at": jnp.array([0.1, 1.2, -0.8]), "logits": jnp.array([0.2, -0.4, 0.9])}
STAY = jnp.array([[2.0, 0.1, -0.3], [0.0, 1.5, 0.2], [-0.5, 0.3, 1.0]])


def guide():
    """Put all mass on one z, so that the loss is -log p(x, z)."""
    numpyro.sample("z", dist.Delta(numpyro.param("at"), event_dim=1))


def mixture():
    log_weights = jax.nn.log_softmax(numpyro.param("logits"))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with numpyro.plate("data", len(X)):
        c = numpyro.sample(
            "c", dist.Categorical(logits=log_weights), infer={"enumerate": "parallel"}
        )
        numpyro.sample("x", dist.Normal(z[c], 0.7), obs=X)


def our_mixture(p):
    def log_joint(z, c):
        terms = jax.nn.log_softmax(p["logits"])[c] + norm.logpdf(X, z[c], 0.7)
        return {"z": jnp.sum(norm.logpdf(z)), "x": terms}

    return vj.targets.enumerate(log_joint, 3, plate=(len(X),)).log_joint(p["at"])


def chain():
    """Written out step by step: with `contrib.control_flow.scan` TraceEnum_ELBO gives another number, 30.88 for 15.13."""
    from numpyro.contrib.funsor import markov

    z, c = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1)), 0
    moves = STAY + numpyro.param("logits")
    for t in markov(range(len(X))):
        c = numpyro.sample(
            f"c{t}", dist.Categorical(logits=moves[c]), infer={"enumerate": "parallel"}
        )
        numpyro.sample(f"x{t}", dist.Normal(z[c], 0.7), obs=X[t])


def our_chain(p):
    moves = jax.nn.log_softmax(STAY + p["logits"])
    found = vj.sequences.hmm(
        moves[0], moves, norm.logpdf(X[:, None], p["at"], 0.7), fold=vj.sequences.associative
    )
    return jnp.sum(norm.logpdf(p["at"])) + found.log_evidence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ours"), [(mixture, our_mixture), (chain, our_chain)], ids=["mixture", "HMM"]
)
def test_equal_loss_and_gradient(model, ours):
    loss = lambda p: infer.TraceEnum_ELBO(max_plate_nesting=1).loss(
        jax.random.key(0), p, model, guide
    )
    theirs = jax.jit(jax.value_and_grad(loss))(PARAMS)
    found = jax.jit(jax.value_and_grad(lambda p: -ours(p)))(PARAMS)
    jax.tree.map(lambda f, t: np.testing.assert_allclose(f, t, rtol=1e-5, atol=1e-5), found, theirs)
