"""Draws held fixed: VarGrad, both halves of reweighted wake-sleep, and dreams, against enumeration."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import cases, oracles
from tests.bare import Coin, Die
from tests.laws.test_unbiased import gradients
from tests.problems import assert_close
from tests.statistics import assert_mean

K = 3
fixed, wake, sleep = vj.gradients.fixed, vj.gradients.wake, vj.gradients.sleep


@oracles.exact
def exact(case, k, held):
    """E over k draws of the gradient of held(log_p, log_q) in both, draws and their probabilities not differentiated."""
    params = case.params
    points = np.indices((len(case.points),) * k).reshape(k, -1)
    at = lambda log: jax.vmap(log)(jnp.asarray(case.points))
    log_q = at(lambda z: case.log_q(params["q"], z))
    mass = jnp.exp(log_q[points].sum(0))

    def total(params):
        p, q = (
            at(lambda z: case.log_p(params["theta"], z)),
            at(lambda z: case.log_q(params["q"], z)),
        )
        return jnp.sum(mass * held(p[points], q[points]))

    return jax.grad(total)(jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params))


def rws(log_p, log_q):
    w = jax.lax.stop_gradient(jax.nn.softmax(log_p - log_q, 0))
    return jnp.sum(w * (log_p + log_q), 0)


HELD = {
    "fixed": lambda p, q: vj.bounds.iwae(p - q),
    "variance": lambda p, q: 0.5 * jnp.var(p - q, axis=0, ddof=1),
    "wake": rws,
}
OBJECTIVES = {
    "fixed": fixed(vj.bounds.iwae),
    "variance": fixed(vj.bounds.log_variance),
    "wake": wake(vj.bounds.iwae),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [cases.COIN, cases.DIE], ids=lambda case: case.name)
def test_the_mean_is_what_the_docstring_says(case, key):
    """Every triple of states. Detects .03, in gradients of .05 to .6."""
    found = gradients(key, case, OBJECTIVES, K, 60_000)
    assert_mean(found, {name: exact(case, K, held) for name, held in HELD.items()}, detects=0.04)


def test_wake_is_not_the_gradient_of_the_bound_in_q(key):
    """The control, and what the first line warns of: q's half is not that of E[iwae], nor exactly that of -KL(p || q)."""
    found = gradients(
        key, cases.DIE, {"wake": OBJECTIVES["wake"], "fixed": OBJECTIVES["fixed"]}, K, 60_000
    )
    bound = cases.DIE.truth(vj.bounds.iwae, K)[1]
    posterior = jax.nn.softmax(
        jnp.stack([cases.DIE.log_p(cases.DIE.params["theta"], z) for z in range(3)])
    )
    forward = posterior - jax.nn.softmax(cases.DIE.params["q"])
    assert_mean({"theta": found["wake"]["theta"]}, {"theta": bound["theta"]}, detects=0.04)
    for name, wrong in (("wake", bound["q"]), ("fixed", bound["q"]), ("wake", forward)):
        with pytest.raises(AssertionError, match="biased"):
            assert_mean({"q": found[name]["q"]}, {"q": wrong}, detects=0.04)


@pytest.mark.slow
def test_wake_tends_to_the_forward_divergence():
    """E of q's half over k draws, by enumeration: off -∇KL(p || q) by less with every draw."""
    posterior = jax.nn.softmax(
        jnp.stack([cases.DIE.log_p(cases.DIE.params["theta"], z) for z in range(3)])
    )
    forward = np.asarray(posterior - jax.nn.softmax(cases.DIE.params["q"]))
    off = [np.abs(exact(cases.DIE, k, rws)["q"] - forward).max() for k in (1, 2, 4, 8)]
    assert np.all(np.diff(off) < 0)
    assert off[-1] < 0.3 * off[0]


def slopes(objective, case, key, chunk_size=None):
    def total(params):
        log_joint = lambda z: case.log_p(params["theta"], z)
        found = objective(
            key, log_joint, case.build(params["q"]), num_samples=K, chunk_size=chunk_size
        )
        return jnp.sum(found.value), found

    return jax.grad(total, has_aux=True)(case.params)


@pytest.mark.parametrize("case", [cases.COIN, cases.DIE, cases.LINE], ids=lambda case: case.name)
def test_vargrad_is_leave_one_out_reinforce(case, key):
    """-∇ log_variance = ∇ vimco(elbo) in q, draw by draw to rounding."""

    @jax.jit
    def every(key):
        minus, _ = slopes(fixed(vj.bounds.log_variance), case, key)
        plus, _ = slopes(vj.gradients.vimco(vj.bounds.elbo), case, key)
        alone, _ = slopes(vj.gradients.score(vj.bounds.elbo), case, key)
        return minus["q"], plus["q"], alone["q"]

    minus, plus, alone = every(key)
    assert_close(jax.tree.map(jnp.negative, minus), plus)
    differ = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone, plus)
    assert max(jax.tree.leaves(differ)) > 1e-2  # the control: without the others' mean they differ


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_value_chunks_and_x64(name, key):
    """The value is the bound's; chunks change no number; gradients come in the dtype of the parameters."""
    run = jax.jit(
        lambda key: {
            str(size): slopes(OBJECTIVES[name], cases.COIN, key, size) for size in (None, 2)
        }
    )
    found = run(key)
    bound = vj.bounds.log_variance if name == "variance" else vj.bounds.iwae
    np.testing.assert_allclose(
        found["None"][1].value, bound(found["None"][1].draws.log_w), rtol=1e-6
    )
    assert_close(found["2"][0], found["None"][0])


@pytest.mark.parametrize("make", [fixed, wake])
def test_a_support_that_moves_is_refused(make, key, loose_ranks, unchecked):
    def value(h):
        return make(vj.bounds.iwae)(
            key, lambda z: -jnp.square(z), distrax.Uniform(0.0, h), num_samples=2
        ).value

    with pytest.raises(ValueError, match="gradients.reparam"):
        jax.grad(value)(1.3)


# --- sleep: x, z ~ p; z a coin, x a die given the coin; q(z | x) a coin with a logit for each face

FACES = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], np.float32))
CHANCE = np.float32(0.35)


def generate(chance, batch=2):
    def dream(key):
        key_z, key_x = jax.random.split(key)
        z = jax.random.bernoulli(key_z, chance, (batch,)).astype(jnp.float32)
        return jax.random.categorical(key_x, jnp.asarray(FACES)[z.astype(int)]), z + 0.0 * chance

    return dream


def value(logits, chance, key, num_samples=4):
    return jnp.sum(sleep(key, generate(chance), lambda x: Coin(logits[x]), num_samples=num_samples))


def test_dreams_teach_q_its_part(key):
    """The gradient in q against enumeration, Σ p(x, z) ∇ log q(z | x); none in the model. Detects .02."""
    logits = jnp.array([0.3, -0.5, 1.0])
    found = jax.jit(jax.vmap(jax.grad(value, (0, 1)), (None, None, 0)))(
        logits, CHANCE, jax.random.split(key, 60_000)
    )

    def truth(logits):
        joint = jnp.array([1 - CHANCE, CHANCE])[:, None] * jnp.exp(FACES)
        log_q = jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)])
        return 2 * jnp.sum(joint / joint.sum() * log_q)

    assert_mean({"q": found[0]}, {"q": oracles.exact(jax.grad(truth))(logits)}, detects=0.02)
    assert np.all(found[1] == 0)
    own = lambda l: 2 * jnp.sum(jax.nn.sigmoid(l) * jax.nn.log_sigmoid(l))
    wrong = oracles.exact(jax.grad(own))(logits)  # the control: draws of q's own instead of dreams
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"q": found[0]}, {"q": wrong}, detects=0.02)


def test_sleep_at_the_posterior_has_no_mean_slope(key):
    """q's optimum is the model's own posterior: p(z = 1 | x) by Bayes."""
    best = jnp.log(CHANCE / (1 - CHANCE)) + jnp.asarray(FACES[1] - FACES[0])
    found = jax.jit(jax.vmap(jax.grad(value), (None, None, 0)))(
        best, CHANCE, jax.random.split(key, 30_000)
    )
    assert_mean({"q": found}, {"q": np.zeros(3)}, detects=0.03)


def test_sleep_refuses(key, loose_ranks, unchecked):
    with pytest.raises(TypeError, match="typed key"):
        sleep(jnp.zeros(2, jnp.uint32), generate(0.5), lambda x: Coin(x), num_samples=2)
    with pytest.raises(ValueError, match="num_samples"):
        sleep(key, generate(0.5), lambda x: Coin(x), num_samples=0)
    with pytest.raises(TypeError, match="sample_and_log_prob"):
        sleep(key, generate(0.5), lambda x: x, num_samples=2)
    with pytest.raises((ValueError, TypeError), match="must agree"):
        sleep(
            key,
            lambda k: (jnp.zeros(3), jnp.zeros((3, 1))),
            lambda x: distrax.Normal(x, 1.0),
            num_samples=2,
        )
    with pytest.raises((ValueError, TypeError), match="pair"):
        sleep(key, lambda k: jnp.zeros(3), lambda x: distrax.Normal(x, 1.0), num_samples=2)
    dict_of_leaves = lambda key: (jnp.zeros(()), {"a": jnp.int32(1)})
    assert sleep(
        key, dict_of_leaves, lambda x: {"a": Die(jnp.zeros(3))}, num_samples=2
    ) == -jnp.log(3.0)
