"""Members of the batch that meet under a named axis, of jax.vmap or of shard_map: q itself has but one."""

import distrax
import jax
import jax.numpy as jnp
import pytest

import vijax as vj
from tests.faults.judging import G

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
elbo, iwae = vj.bounds.elbo, vj.bounds.iwae
X = jnp.array([1.0, -0.5, 2.0, 0.0])
KEYS = jax.random.split(jax.random.key(0), 4)


def normalized(x, declared=False):
    """Batch normalization by axis_name, as Flax and Haiku have it."""

    def log_joint(z):
        centred = z - jax.lax.pmean(z, "batch")
        return distrax.Normal(0.0, 1.0).log_prob(z) + distrax.Normal(centred, 0.5).log_prob(x)

    return vj.targets.independent_members(log_joint) if declared else log_joint


def slopes(objective, target=normalized):
    def one(key, m, x):
        return objective(key, target(x), distrax.Normal(m, 0.6), num_samples=4).value

    def value(m):
        return jax.vmap(one, axis_name="batch")(KEYS, m, X).sum()

    return jax.eval_shape(jax.grad(value), X / 2)


@pytest.mark.parametrize(
    "objective",
    [G.vimco(elbo), G.score(elbo), G.dreg(iwae), G.vimco(iwae)],
    ids=["vimco(elbo)", "score(elbo)", "dreg(iwae)", "vimco(iwae)"],
)
def test_members_that_meet_are_refused(objective):
    with pytest.raises(ValueError, match="over a named axis.*[Uu]se gradients.reparam"):
        slopes(objective)


@pytest.mark.parametrize("objective", [G.reparam(iwae), G.dreg(elbo)], ids=["reparam", "dreg"])
def test_paths_pass(objective):
    slopes(objective)


def test_a_declaration_passes():
    slopes(G.vimco(elbo), lambda x: normalized(x, declared=True))


def test_a_collective_of_data_alone_passes():
    def target(x):
        scale = 1.0 + jax.lax.pmean(jnp.square(x), "batch")
        return lambda z: distrax.Normal(0.0, scale).log_prob(z)

    slopes(G.vimco(elbo), target)


def test_a_bound_of_ones_own_that_couples_members_is_refused():
    """Each bound weighed by all of them: found (-.87, .53, -.69, 0) for (-.12, .04, -.18, .00)."""

    def weighed(log_w):
        each = iwae(log_w)
        return each * jax.nn.softmax(each) * 4

    def value(m, objective):
        target = lambda z: distrax.Normal(X, 0.5).log_prob(z)
        return objective(KEYS[0], target, distrax.Normal(m, 0.6), num_samples=4).value.sum()

    for make in (G.vimco, G.dreg, G.score):
        with pytest.raises(ValueError, match="bound.*members.*gradients.reparam"):
            jax.eval_shape(jax.grad(lambda m, make=make: value(m, make(weighed))), X)
    jax.eval_shape(jax.grad(lambda m: value(m, G.reparam(weighed))), X)
    own = lambda log_w: 0.5 * iwae(log_w)
    jax.eval_shape(jax.grad(lambda m: value(m, G.vimco(own))), X)
