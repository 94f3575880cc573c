"""Adapters: the peers' own log-densities at random points, exact evidence of conjugate models, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import gamma, norm, poisson
from numpyro.infer.util import initialize_model, log_density
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from tests import oracles
from tests.marks import but
from vijax.targets import adapters

tfd = tfp.distributions
DESIGN = np.array([[1.0, -1.0], [1.0, 0.5], [1.0, 2.0]], np.float32)
Y = np.array([0.3, 0.9, 2.4], np.float32)
COUNTS = np.array([3.0, 1.0, 4.0], np.float32)
pytestmark = pytest.mark.usefixtures("loose_ranks")


def fitted_evidence(target, like):
    """Climb to a full-rank Gaussian, whose gradient has no noise left there; the ELBO is the evidence, draw by draw."""
    family, optimizer = (
        vj.families.full_rank(scale=0.5),
        optax.adam(optax.cosine_decay_schedule(0.1, 1000)),
    )
    objective = vj.gradients.dreg(vj.bounds.elbo)

    @jax.jit
    def run(key, params):
        def step(carry, key):
            params, state = carry
            loss = lambda p: -objective(key, target, family.dist(p), num_samples=4).value
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(
            step, (params, optimizer.init(params)), jax.random.split(key, 1000)
        )
        return vj.draws.weigh(key, target, family.dist(params), num_samples=50).log_w

    return run(jax.random.key(0), family.init(jax.random.key(1), like))


def regression(design, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", len(design)):
        numpyro.sample("y", dist.Normal(design @ w, 0.5), obs=y)


def regression_tfp():
    return tfd.JointDistributionNamedAutoBatched(
        {
            "w": tfd.Sample(tfd.Normal(0.0, 1.0), 2),
            "y": lambda w: tfd.Independent(tfd.Normal(DESIGN @ w, 0.5), 1),
        }
    )


def regression_logdensity(w):
    return jnp.sum(norm.logpdf(w)) + jnp.sum(norm.logpdf(Y, DESIGN @ w, 0.5))


def conjugate():
    return {
        "numpyro": lambda: adapters.from_numpyro(regression, DESIGN, y=Y),
        "tfp": lambda: adapters.from_tfp(regression_tfp(), {"y": Y}),
        "logdensity": lambda: adapters.from_logdensity(regression_logdensity, jnp.zeros(2)),
    }


@pytest.mark.parametrize("name", but(conjugate(), "numpyro", "tfp"))
def test_a_conjugate_fit_reaches_the_exact_evidence(name):
    """Every draw to 2e-2 and their mean to 2e-3. The control: from the start it is nats away."""
    target, start = conjugate()[name]()
    exact = oracles.regression_evidence(DESIGN, Y, 0.5)
    log_w = fitted_evidence(target.log_joint, start)
    np.testing.assert_allclose(log_w, exact, atol=2e-2)
    np.testing.assert_allclose(log_w.mean(), exact, atol=2e-3)
    assert abs(target.log_joint(start) - exact) > 1


# --- constraints that depend on other sites, plates, and the peers' own numbers


def hierarchy(counts=None):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    high = numpyro.sample("high", dist.Uniform(rate, rate + 5.0))
    mix = numpyro.sample("mix", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("data", 3):
        effect = numpyro.sample("effect", dist.Normal(mix[0], 1.0))
        numpyro.deterministic("shown", 2 * effect)
        numpyro.sample("counts", dist.Poisson(rate + high + jnp.exp(effect)), obs=counts)


def points(start, n=4):
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    drawn = [
        jax.random.normal(key, (n, *leaf.shape)) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


@pytest.mark.slow
def test_numpyro_agrees_with_its_own_potential():
    """And with log p(x, z) at the constrained point plus a Jacobian by forward differentiation."""
    target, start = adapters.from_numpyro(hierarchy, counts=COUNTS)
    assert {name: leaf.shape for name, leaf in start.items()} == {
        "rate": (),
        "high": (),
        "mix": (2,),
        "effect": (3,),
    }
    info = initialize_model(jax.random.key(0), hierarchy, model_kwargs={"counts": COUNTS})
    ys = points(start)
    found = jax.jit(jax.vmap(target.log_joint))(ys)
    np.testing.assert_allclose(found, -jax.jit(jax.vmap(info.potential_fn))(ys), rtol=1e-5)

    def by_hand(y):
        z = target.constrain(y)
        free = lambda y: jnp.concatenate(
            [jnp.ravel(v[:-1] if k == "mix" else v) for k, v in target.constrain(y).items()]
        )
        flat, unravel = jax.flatten_util.ravel_pytree(y)
        jacobian = jax.jacfwd(lambda v: free(unravel(v)))(flat)
        return (
            log_density(hierarchy, (), {"counts": COUNTS}, z)[0] + jnp.linalg.slogdet(jacobian)[1]
        )

    np.testing.assert_allclose(found, jax.jit(jax.vmap(by_hand))(ys), rtol=1e-4)
    back = jax.vmap(lambda y: target.unconstrain(target.constrain(y)))(ys)
    jax.tree.map(lambda b, y: np.testing.assert_allclose(b, y, atol=1e-3), back, ys)
    assert "shown" not in target.constrain(start)


def joint_tfp():
    return tfd.JointDistributionSequentialAutoBatched(
        [
            tfd.Gamma(2.0, 1.0),
            lambda rate: tfd.Uniform(rate, rate + 5.0),
            lambda high, rate: tfd.Sample(tfd.Normal(high, 1.0), 3),
            lambda effect: tfd.Independent(tfd.Poisson(jnp.exp(effect)), 1),
        ]
    )


@pytest.mark.slow
def test_tfp_agrees_with_its_own_densities():
    joint = joint_tfp()
    target, start = adapters.from_tfp(joint, [None, None, None, COUNTS])
    assert [leaf.shape for leaf in jax.tree.leaves(start)] == [(), (), (3,)]
    ys = points(start)

    def by_hand(y):
        rate, high, effect = target.constrain(y)
        jacobian = jax.jacfwd(lambda y: jnp.stack(target.constrain(y)[:2]))
        columns = jnp.stack(jax.tree.leaves(jacobian(y))[:2], 1)
        return joint.log_prob([rate, high, effect, COUNTS]) + jnp.linalg.slogdet(columns)[1]

    found = jax.jit(jax.vmap(target.log_joint))(ys)
    np.testing.assert_allclose(found, jax.jit(jax.vmap(by_hand))(ys), rtol=1e-4)
    rate = jax.vmap(target.constrain)(ys)[0]
    assert (rate > 0).all()


@pytest.mark.slow
def test_a_positive_latent_integrates_to_its_evidence():
    """Gamma-Poisson through both, by quadrature over the free number; and not where the Jacobian is left out."""

    def model(x=None):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.5))
        numpyro.sample("x", dist.Poisson(rate), obs=x)

    joint = tfd.JointDistributionNamedAutoBatched(
        {"rate": tfd.Gamma(2.0, 1.5), "x": lambda rate: tfd.Poisson(rate)}
    )
    grid, volumes = oracles.interval(-12.0, 12.0, 2001)
    exact = oracles.gamma_poisson_evidence(2.0, 1.5, 3.0)
    for target, start in (
        adapters.from_numpyro(model, x=3.0),
        adapters.from_tfp(joint, {"x": 3.0}),
    ):
        tree = jax.tree.structure(start)
        log_p = jax.vmap(lambda y, t=target, s=tree: t.log_joint(jax.tree.unflatten(s, [y])))(
            jnp.asarray(grid, jnp.float32)
        )
        np.testing.assert_allclose(np.log(np.sum(np.exp(log_p) * volumes)), exact, atol=1e-4)
    without = gamma.logpdf(np.exp(grid), 2.0, scale=1 / 1.5) + poisson.logpmf(3, np.exp(grid))
    assert abs(np.log(np.sum(np.exp(without) * volumes)) - exact) > 0.1


def test_refusals(unchecked):
    def discrete():
        numpyro.sample("which", dist.Bernoulli(0.3))

    def parametrised():
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    def subsampled():
        loc = numpyro.sample("loc", dist.Normal(0, 1))
        with numpyro.plate("rows", 10, subsample_size=3) as rows:
            numpyro.sample("x", dist.Normal(loc, 1), obs=jnp.zeros(10)[rows])

    def observed():
        numpyro.sample("x", dist.Normal(0, 1), obs=0.0)

    for model, match in (
        (discrete, "'which' is a discrete latent"),
        (parametrised, "'loc' is a param"),
        (subsampled, "'rows' subsamples 3 of 10"),
        (observed, "no latent site"),
    ):
        with pytest.raises(ValueError, match=match):
            adapters.from_numpyro(model)
    target, start = adapters.from_numpyro(
        lambda: [numpyro.sample(name, dist.Normal(0, 1)) for name in "ab"]
    )
    for call in (target.log_joint, target.constrain):
        for wrong in ({"a": start["a"]}, {**start, "c": start["a"]}):
            with pytest.raises(ValueError, match=r"latent sites, \['a', 'b'\], got \['a'"):
                call(wrong)
    named = tfd.JointDistributionNamedAutoBatched
    with pytest.raises(ValueError, match="'which' is int32"):
        adapters.from_tfp(
            named({"which": tfd.Bernoulli(0.3), "x": lambda which: tfd.Normal(1.0 * which, 1.0)}),
            {"x": 1.0},
        )
    with pytest.raises(ValueError, match="continuous latents alone"):
        adapters.from_tfp(
            named({"n": tfd.Poisson(3.0), "x": lambda n: tfd.Normal(n, 1.0)}), {"x": 1.0}
        )
    batched = tfd.JointDistributionNamed(
        {"z": tfd.Normal(jnp.zeros(2), 1.0), "x": lambda z: tfd.Normal(z, 1.0)}
    )
    target, start = adapters.from_tfp(batched, {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match="batch shape \\(2,\\)"):
        target.log_joint(start)
    with pytest.raises(TypeError, match="JointDistribution"):
        adapters.from_tfp(tfd.Normal(0.0, 1.0), {})
    with pytest.raises(TypeError, match="takes floats"):
        adapters.from_logdensity(lambda z: 0.0, {"n": jnp.arange(2)})
    with pytest.raises(ValueError, match="one number for one position, got \\(2,\\)"):
        adapters.from_logdensity(lambda z: z, jnp.zeros(2))


def test_a_jitted_step_may_take_the_data():
    """The model is adapted inside; as with closed-over data."""
    value = jax.jit(
        lambda y, w: adapters.from_numpyro(regression, DESIGN, y=y)[0].log_joint({"w": w})
    )
    w = jnp.array([0.3, -0.2])
    np.testing.assert_allclose(value(Y, w), regression_logdensity(w), rtol=1e-5)


# --- sites without a density in some direction


def missing(mask, y=None, scale=0.7):
    """Four normal data, of which those where mask is False are missing."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(mask)):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y, obs_mask=mask)


MASK, SEEN = jnp.array([True, False, True, True]), jnp.array([0.4, jnp.nan, 1.1, -0.2])


def test_data_that_are_missing_leave_the_evidence_that_of_the_others():
    """Under obs_mask every element of the imputed site has a density: the evidence is exact, the slope never 0.

    The control: NumPyro's own density has slope 0 in the place of data.
    """
    target, start = adapters.from_numpyro(missing, MASK, y=SEEN)
    assert start["y_unobserved"].shape == (4,)
    slopes = jax.grad(target.log_joint)({"mean": jnp.float32(0.3), "y_unobserved": jnp.ones(4)})
    assert np.all(np.asarray(slopes["y_unobserved"]) != 0)
    assert np.isfinite(slopes["mean"])
    seeded = numpyro.handlers.seed(missing, 0)
    of_numpyro = lambda y: numpyro.infer.util.potential_energy(seeded, (MASK,), {"y": SEEN}, y)
    theirs = jax.grad(of_numpyro)({"mean": jnp.float32(0.3), "y_unobserved": jnp.ones(4)})
    assert np.sum(np.asarray(theirs["y_unobserved"]) == 0) == 3

    # Gaussian in all five latents: the evidence follows from the mode and the curvature.
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    log_p = lambda v: target.log_joint(unravel(v))
    hessian, slope = jax.jit(lambda v: (jax.hessian(log_p)(v), jax.grad(log_p)(v)))(flat)
    mode = flat - jnp.linalg.solve(hessian, slope)
    evidence = log_p(mode) + 0.5 * (5 * jnp.log(2 * jnp.pi) - jnp.linalg.slogdet(-hessian)[1])
    y = np.asarray(SEEN)[np.asarray(MASK)]
    covariance = 0.49 * np.eye(3) + 1.0
    exact = -0.5 * (
        y @ np.linalg.solve(covariance, y)
        + np.linalg.slogdet(covariance)[1]
        + 3 * np.log(2 * np.pi)
    )
    np.testing.assert_allclose(evidence, exact, rtol=1e-4)


def test_a_mask_may_be_an_argument_of_a_jitted_step():
    """What is missing, and what was seen, as tracers; as with closed-over data."""

    @jax.jit
    def value(mask, y, scale):
        target, start = adapters.from_numpyro(missing, mask, y=y, scale=scale)
        return target.log_joint(jax.tree.map(lambda s: s + 0.1, start))

    target, start = adapters.from_numpyro(missing, MASK, y=SEEN, scale=0.7)
    np.testing.assert_allclose(
        value(MASK, SEEN, 0.7), target.log_joint(jax.tree.map(lambda s: s + 0.1, start)), rtol=1e-6
    )


def padded(read_all, latent=None):
    """Three groups of which the last is padding, masked with its data."""
    real = jnp.array([True, True, False])
    with numpyro.plate("groups", 3):
        with numpyro.handlers.mask(mask=real):
            effect = numpyro.sample("effect", latent or dist.Normal(0.0, 1.0))
        with numpyro.handlers.mask(mask=True if read_all else real):
            numpyro.sample("y", dist.Normal(effect, 1.0), obs=jnp.ones(3))


def unread(latent):
    numpyro.sample("free", latent)
    numpyro.sample("x", dist.Normal(0, 1))


def noisy():
    x = numpyro.sample("x", dist.Normal(0, 1))
    kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, (3,))
    numpyro.sample("y", dist.Normal(x * kept, 1.0), obs=jnp.ones(3))


def noise_at_hand():
    """A frozen basis of random features, as the user wants it: it is of a key of the model's own."""
    x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
    numpyro.sample(
        "y", dist.Normal(jax.random.normal(jax.random.key(7), (4, 3)) @ x, 1.0), obs=jnp.ones(4)
    )


def constant(value):
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("at", value)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)


def stateful():
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.primitives.mutable("count", {"n": 0})
    numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)


def masked(latent, real, read=None):
    """A latent masked by itself, with its data: where nothing reads it, only the Jacobian has a slope."""
    with numpyro.plate("groups", 3):
        w = numpyro.sample("w", latent.mask(real))
        numpyro.sample(
            "y", dist.Normal(w, 1.0).mask(real if read is None else read), obs=jnp.ones(3)
        )


IMPROPER = dist.ImproperUniform(dist.constraints.real, (), ())
WITHOUT = {
    "padding": (lambda: padded(read_all=False), "'effect' has 1 elements without a density"),
    "positive padding": (
        lambda: padded(read_all=False, latent=dist.Gamma(2.0, 1.0)),
        "'effect' has 1 elements",
    ),
    "improper, unread": (lambda: unread(IMPROPER), "'free' has 1 elements without a density"),
    "masked, unread": (
        lambda: unread(dist.Normal(0.0, 1.0).mask(False)),
        "'free' has 1 elements",
    ),
    "masked half normal": (
        lambda: masked(dist.HalfNormal(1.0), jnp.array([True, True, False])),
        "'w' has 1 elements without a density",
    ),
    "improper, positive, unread": (
        lambda: unread(dist.ImproperUniform(dist.constraints.positive, (), ())),
        "'free' has 1 elements",
    ),
    "improper, below a bound, unread": (
        lambda: unread(dist.ImproperUniform(dist.constraints.less_than(2.0), (), ())),
        "'free' has 1 elements",
    ),
    "prng_key": (noisy, "draws noise of its own.*targets.keyed"),
    "Delta": (lambda: constant(dist.Delta(1.0)), "'at' is a Delta.*numpyro.deterministic"),
    "Deltas": (
        lambda: constant(dist.Delta(jnp.ones(2)).expand([3, 2]).to_event(2)),
        "'at' is a Delta.*numpyro.deterministic",
    ),
    "mutable": (stateful, "'count' is mutable state"),
}


@pytest.mark.parametrize(
    "name",
    but(WITHOUT, "positive padding", "masked, unread", "Deltas", "improper, below a bound, unread"),
)
def test_sites_without_a_density_are_refused(name):
    model, match = WITHOUT[name]
    with pytest.raises(ValueError, match=match):
        adapters.from_numpyro(model)


PROPER = {
    "a flat prior by a mask": lambda: padded(read_all=True),
    "an improper prior": lambda: padded(
        read_all=True, latent=dist.ImproperUniform(dist.constraints.real, (3,), ())
    ),
    "scaled": lambda: numpyro.handlers.scale(unread, 2.0)(dist.Normal(0, 1)),
    "a fixed basis": noise_at_hand,
    "a masked half normal that is read": lambda: masked(
        dist.HalfNormal(1.0), jnp.array([True, True, False]), read=True
    ),
    "a masked Beta, uniform there": lambda: masked(
        dist.Beta(2.0, 1.0), jnp.array([True, True, False])
    ),
    "a uniform simplex": lambda: unread(
        dist.ImproperUniform(dist.constraints.simplex, (), event_shape=(3,))
    ),
}


@pytest.mark.parametrize("name", but(PROPER, "an improper prior", "scaled", "a uniform simplex"))
def test_what_the_data_inform_and_noise_that_is_none_pass(name):
    target, start = adapters.from_numpyro(PROPER[name])
    assert np.isfinite(target.log_joint(start))


def test_latents_of_tfp_without_a_density_are_refused():
    named = tfd.JointDistributionNamedAutoBatched
    y = lambda x: tfd.Normal(x, 1.0)
    mask = jnp.array([True, False])
    for part, match in (
        (tfd.Deterministic(1.0), "'at' is Deterministic"),
        (tfd.Independent(tfd.Deterministic(jnp.ones(2)), 1), "'at' is Deterministic"),
        (tfd.Masked(tfd.Normal(jnp.zeros(2), 1.0), mask), "'at' is Masked"),
    ):
        joint = named({"x": tfd.Normal(0.0, 1.0), "at": part, "y": y})
        with pytest.raises(ValueError, match=match):
            adapters.from_tfp(joint, {"y": 0.3})
    with pytest.raises(ValueError, match="0 is Deterministic"):
        adapters.from_tfp(tfd.JointDistributionSequential([tfd.Deterministic(1.0), y]), [None, 0.3])
    seen = named(
        {
            "x": tfd.Normal(0.0, 1.0),
            "y": lambda x: tfd.Masked(tfd.Normal(x * jnp.ones(2), 1.0), mask),
        }
    )
    target, start = adapters.from_tfp(seen, {"y": jnp.ones(2)})
    assert np.isfinite(target.log_joint(start))
