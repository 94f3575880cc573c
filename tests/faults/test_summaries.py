"""What `summarize` may not believe: moments that are none, weights of the wrong kind, and draws too few or too coarse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.diagnostics import summarize, summarize_members
from vijax.types import Draws

K = 2000
Z = jax.random.normal(jax.random.key(0), (4, K))
LOG_Q = -0.5 * Z**2 - 0.919
ONE = Draws({"a": Z[0]}, LOG_Q[0], LOG_Q[0])


def test_a_latent_that_overflows_is_named_with_its_count():
    """exp of N(60, 15²) is inf above 88.7 in float32; its logarithm is not."""
    wide = ONE._replace(z={"a": 60 + 15 * Z[0]})
    many = int(jnp.sum(jnp.isinf(jnp.exp(wide.z["a"]))))
    said = summarize(wide, constrain=lambda d: {"log": d["a"], "rate": jnp.exp(d["a"])})
    assert many > 10
    assert said.verdict == 3
    assert f"rate is inf or nan in {many} draws" in str(said)
    np.testing.assert_array_equal(said.not_finite, [0, many])
    assert summarize(wide).verdict == 0
    one = Draws({"a": Z[:1].T.at[5, 0].set(jnp.inf)}, LOG_Q[:1].T, LOG_Q[:1].T)
    np.testing.assert_array_equal(summarize_members(one).verdict, [3])


@pytest.mark.parametrize("number", range(3))
def test_a_cauchy_has_no_mean(number):
    """Exact, so that no weight tells: k-hat of the draws is 1, here .8 to 1.2; of Student's t of five .2."""
    key = jax.random.fold_in(jax.random.key(3), number)
    heavy, light = jax.random.cauchy(key, (K,)), jax.random.t(key, 5.0, (K,))
    said = summarize(
        ONE._replace(z={"light": light, "rare": light > 3, "c": heavy, "same": 0 * heavy})
    )
    assert said.verdict == 3
    assert "The draws of c have a tail of k-hat" in str(said)
    assert jnp.argmax(said.own_khat) == said.names.index("c")
    fine = {
        "light": light,
        "log": jnp.log(jnp.abs(heavy)),
        "rare": light > 3,
        "scale": jnp.exp(Z[0]),
    }
    assert summarize(ONE._replace(z=fine)).verdict == 0


def test_weights_may_have_a_mean_where_q_has_none():
    """exp of Student's t has no mean, and under the weights of a normal posterior one of e^.5 = 1.65."""
    z = jax.random.t(jax.random.key(0), 5.0, (K,))
    draws = Draws({"a": z}, jax.scipy.stats.norm.logpdf(z), jax.scipy.stats.t.logpdf(z, 5.0))
    said = summarize(draws, constrain=lambda d: {"rate": jnp.exp(d["a"])})
    assert said.own_khat[0] > 0.7 > said.weighted_khat[0]
    assert said.verdict == 1
    assert abs(said.corrected_mean[0] - jnp.exp(0.5)) < 0.1 < abs(said.mean[0] - jnp.exp(0.5))
    rates = {"rate": jnp.exp(z)[:, None]}
    members = summarize_members(Draws(rates, draws.log_p[:, None], draws.log_q[:, None]))
    np.testing.assert_array_equal(members.verdict, [1])


@pytest.mark.parametrize(
    "weights",
    [jnp.ones(K), LOG_Q[0], jnp.full(K, 1 / K).at[0].set(-0.1), jnp.zeros(K), jnp.full(K, jnp.nan)],
    ids=["ones", "logs", "negative", "zeros", "nan"],
)
def test_weights_of_another_kind_are_refused(weights):
    """Ones gave a log evidence of log 2000 = 7.60 for 0."""
    with pytest.raises(
        ValueError, match="weights must be positive or 0 and sum to 1.* weights.sum"
    ):
        summarize(ONE._replace(weights=weights))
    members = Draws(Z.T, LOG_Q.T, LOG_Q.T, weights=weights)
    with pytest.raises(ValueError, match="weights must be positive or 0 and sum to 1"):
        summarize_members(members)


def test_weights_of_another_shape_are_refused_and_shares_pass():
    with pytest.raises(ValueError, match=r"weights have shape \(10,\), expected \(2000,\)"):
        summarize(ONE._replace(weights=jnp.full(10, 0.1)))
    said = summarize(ONE._replace(weights=jnp.full(K, 1 / K)))
    assert said.verdict == 0
    np.testing.assert_allclose(said.log_evidence.value, 0.0, atol=1e-5)


def test_restarts_with_a_forbidden_draw_are_compared():
    """Four of one q, in some of which one draw or two lie below -3.3, where log_joint is -inf."""
    log_p = jnp.where(Z > -3.3, LOG_Q, -jnp.inf)
    some = int(jnp.sum(jnp.any(Z <= -3.3, 1)))
    assert 0 < some < 4
    said = summarize(Draws({"a": Z}, log_p, LOG_Q))
    assert np.all(said.compared)
    assert f"log_joint is -inf in {some} of 4 runs" in str(said)
    assert "left out" not in str(said)
    assert "log_joint" not in str(summarize(Draws({"a": Z}, LOG_Q, LOG_Q)))


def test_ten_draws_cannot_tell():
    few = summarize_members(Draws({"a": Z[:, :10].T}, LOG_Q[:, :10].T, LOG_Q[:, :10].T))
    np.testing.assert_array_equal(few.verdict, [3] * 4)
    assert "4 (100%): verdict 3, cannot tell (fewer than 25 draws" in str(few)
    assert summarize(jax.tree.map(lambda a: a[:10], ONE)).verdict == 3
    assert summarize(jax.tree.map(lambda a: a[:30], ONE)).verdict == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_draws_in_half_precision_are_counted(dtype):
    """2,098 of 2,000 counted in float16."""
    half = jax.tree.map(lambda a: a.astype(dtype), ONE)
    said = summarize(half)
    assert said.verdict == 0
    np.testing.assert_allclose(said.ess, K, rtol=1e-4)
    np.testing.assert_allclose(said.mean[0], jnp.mean(Z[0]), atol=0.01)
    off = summarize(half._replace(log_p=(LOG_Q[0] + 2 * Z[0]).astype(dtype)))
    assert off.verdict == 2


def test_a_summary_passes_through_jit_and_vmap_and_is_printed_of_one():
    """Its names ended both, in JAX's words; many are printed by what takes a batch."""
    many = Draws({"a": Z[:2]}, LOG_Q[:2], LOG_Q[:2])
    alone, several = jax.jit(summarize)(ONE), jax.vmap(summarize)(many)
    assert alone.names == ("a",)
    assert str(jax.tree.map(lambda leaf: leaf[0], several)) == str(alone) == str(summarize(ONE))
    batch = jax.tree.map(jnp.transpose, many)
    for wrong in (several, jax.vmap(summarize_members)(jax.tree.map(lambda x: x[None], batch))):
        with pytest.raises(TypeError, match="summarize_members"):
            str(wrong)
    assert "2 posteriors" in str(summarize_members(batch))


def test_one_latent_is_not_told_that_it_is_no_latent_alone():
    """A tail that a parabola through the weights misses: the joint k-hat, here 1.2, is that of the weights."""
    log_w = 1.2 * jax.random.exponential(jax.random.key(1), (K,))
    for z, words in (({"a": Z[0]}, "weights themselves"), ({"a": Z[0], "b": Z[0]}, "latent alone")):
        said = summarize(Draws(z, log_w, jnp.zeros_like(log_w)))
        assert said.khat > 0.7 > 0.5 > said.marginal_khat[0]
        assert words in str(said)
