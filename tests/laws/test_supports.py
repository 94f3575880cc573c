"""Distributions of distrax, NumPyro and TFP, one of each kind: every estimator is right, or refuses.

`python -m benchmarks supports` goes through all of them.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from benchmarks import supports
from benchmarks._univariate import mapped, moves
from tests.faults.judging import refusal
from tests.marks import some

td, tb = tfp.distributions, tfp.bijectors
adapt, Joint = vj.families.adapt, vj.types.Joint
pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")
LIBRARIES = {name: supports.library(name) for name in supports.LIBRARIES}
CASES = {case.name: case for found in LIBRARIES.values() for case in found.CASES}
FEW = {name: supports.ESTIMATORS[name] for name in ("reparam", "dreg", "vimco")}


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_class_of_a_library_is_tried_or_said_to_be_left_out(name):
    assert not supports.unlisted(name)


# --- measured

KINDS = [
    pytest.param("distrax CategoricalUniform, fixed bins", id="a density that jumps"),
    pytest.param("distrax ClippedNormal", id="clipped draws"),
    *(
        pytest.param(name, id=name, marks=pytest.mark.slow)
        for name in (
            "distrax Quantized",
            "distrax VonMises",
            "numpyro HurdleLogNormal",
            "numpyro Levy",
            "tfp HalfCauchy",
            "tfp TwoPieceNormal",
        )
    ),
]


@pytest.mark.parametrize("name", KINDS)
def test_every_estimator_is_right_or_refuses(name):
    case = CASES[name]
    verdicts = supports.check(case, 4_000)
    words = {verdict.word for verdict in verdicts.values()}
    assert words <= {supports.RIGHT, supports.PATH, supports.SUPPORT}, verdicts
    assert not supports.unmet(case, verdicts), verdicts


# --- admitted

ADMITTED = [
    "distrax Gamma",
    "distrax Bernoulli",
    "distrax MixtureOfTwo",
    "distrax MixtureOfTwo of a Normal and a Uniform",
    "distrax Transformed Normal by Inverse Sigmoid of Sigmoid",
    "numpyro MixtureGeneral",
    "numpyro MixtureGeneral of a Normal and a Uniform",
    "numpyro TwoSidedTruncatedDistribution of Cauchy, limits fixed",
    "tfp Mixture of a Normal and a Uniform",
    "tfp Pareto",
    "tfp Inflated Gamma",
    "tfp GeneralizedPareto, loc fixed",
]


@pytest.mark.parametrize("change", some(["as it is", "shifted and scaled"], "shifted and scaled"))
@pytest.mark.parametrize("name", ADMITTED)
def test_a_fixed_support_alone_is_taken(name, change):
    case = CASES[name]
    if change != "as it is":
        case = mapped(case, LIBRARIES[name.split()[0]].affine)
    taken, refused = supports.admitted(case, FEW)
    assert not supports.unmet(case, refused), refused
    if moves(case):
        assert set(taken) <= {"reparam"}


@pytest.mark.parametrize("name", ["distrax Gamma", "numpyro LogNormal"])
def test_a_scale_alone_leaves_half_a_line_where_it_is(name):
    case = mapped(CASES[name], LIBRARIES[name.split()[0]].affine, shifted=False)
    assert not moves(case)
    assert not supports.admitted(case, FEW)[1]


# --- made of several

W = np.random.default_rng(0).normal(size=(2, 14)) * 0.1


def spline(x):
    return distrax.RationalQuadraticSpline(x, -3.0, 3.0)


def coupling(p):
    def conditioner(z):
        return (z @ (p * W)).reshape(*z.shape[:-1], 2, 7)

    return distrax.MaskedCoupling(
        mask=jnp.array([True, False]), bijector=spline, conditioner=conditioner
    )


def gaussian(p):
    return distrax.MultivariateNormalDiag(p * jnp.ones(2), jnp.ones(2))


def real_nvp(p):
    def line(x, n, **_):
        return p * x, p * x

    base = td.Sample(td.Normal(jnp.float64(0.0), 1.0), 2)
    return adapt(td.TransformedDistribution(base, tb.RealNVP(1, shift_and_log_scale_fn=line)))


FIXED = {
    "a spline coupling": lambda p: distrax.Transformed(gaussian(p), coupling(p)),
    "its inverse": lambda p: distrax.Transformed(gaussian(p), distrax.Inverse(coupling(p))),
    "a sigmoid of a coupling": lambda p: distrax.Transformed(
        gaussian(p), distrax.Chain([distrax.Block(distrax.Sigmoid(), 1), coupling(p)])
    ),
    "RealNVP of TFP": real_nvp,
    "a mixture of TFP, of several dimensions": lambda p: adapt(
        td.MixtureSameFamily(
            td.Categorical(logits=jnp.stack([p, 0.2])),
            td.MultivariateNormalDiag(p * jnp.ones((2, 3)), jnp.ones((2, 3))),
        )
    ),
    "a discrete leaf beside a continuous one": lambda p: {
        "a": distrax.Gamma(jnp.exp(p), 1.0),
        "b": distrax.Bernoulli(logits=p),
    },
    "given an earlier leaf": lambda p: Joint(
        {"a": distrax.Normal(p, 1.0), "b": lambda z: distrax.Uniform(z["a"], z["a"] + 1.0)}
    ),
    "constant limits of NumPyro": lambda p: adapt(
        nd.TruncatedNormal(p * jnp.ones(2), 1.0, low=0.0, high=1.0).to_event(1)
    ),
}
MOVING = {
    "a line of a Tanh": lambda p: distrax.Transformed(
        distrax.Normal(0.0, 1.0), distrax.Chain([distrax.ScalarAffine(p, 2.0), distrax.Tanh()])
    ),
    "independent Uniforms": lambda p: distrax.Independent(
        distrax.Uniform(jnp.zeros(2), jnp.exp(p) * jnp.ones(2)), 1
    ),
    "exp of a line of a Gamma": lambda p: adapt(
        nd.TransformedDistribution(
            nd.Gamma(2.0, 1.0),
            [nd.transforms.AffineTransform(p, 2.0), nd.transforms.ExpTransform()],
        )
    ),
    "a mixture of Uniforms": lambda p: adapt(
        td.MixtureSameFamily(
            td.Categorical(logits=jnp.stack([p, 0.2])),
            td.Uniform(jnp.zeros(2), jnp.exp(p) * jnp.ones(2)),
        )
    ),
    "a leaf that moves beside a discrete one": lambda p: {
        "a": distrax.Uniform(0.0, jnp.exp(p)),
        "b": distrax.Bernoulli(logits=p),
    },
}


def asked(build, name):
    """Return the words of a refusal of q by an estimator, or None."""

    def target(z):
        return -sum(jnp.sum(jnp.asarray(leaf, float) ** 2) for leaf in jax.tree.leaves(z))

    def value(p):
        objective = FEW[name]
        return objective(jax.random.key(0), target, build(p), num_samples=2).value

    return refusal(lambda: jax.eval_shape(jax.grad(value), jnp.float64(0.3)))


@pytest.mark.parametrize("name", ["dreg", "vimco"])
@pytest.mark.parametrize("q", FIXED)
def test_a_fixed_support_made_of_several_is_taken(q, name):
    message = asked(FIXED[q], name)
    assert message is None or (name == "dreg" and "support" not in message), message


@pytest.mark.parametrize("q", MOVING)
def test_a_moving_support_made_of_several_is_refused(q):
    assert "support" in (asked(MOVING[q], "vimco") or "")


# --- a density that jumps, within others

JUMPS = {
    "independent": lambda p: distrax.Independent(
        distrax.ClippedNormal(p * jnp.ones(2), 1.0, -1.0, 1.0), 1
    ),
    "moved by a constant": lambda p: distrax.Transformed(
        distrax.ClippedLogistic(p, 1.0, -1.0, 1.0), distrax.ScalarAffine(1.0, 2.0)
    ),
    "adapted": lambda p: adapt(
        distrax.CategoricalUniform(low=0.0, high=1.0, logits=jnp.stack([p, 0.0]))
    ),
}


@pytest.mark.parametrize("q", JUMPS)
def test_a_path_through_a_jump_of_the_density_is_refused(q):
    assert asked(JUMPS[q], "vimco") is None
    for name in ("reparam", "dreg"):
        assert "gradients.vimco" in (asked(JUMPS[q], name) or "")


def test_a_path_that_is_declared_is_taken():
    declared = lambda p: adapt(distrax.ClippedNormal(p, 1.0, -1.0, 1.0), reparameterized=True)
    assert asked(declared, "reparam") is None


# --- mixtures whose parts end at different places: the density jumps where the draws of others pass


def two(m, b):
    return distrax.MixtureOfTwo(0.5, distrax.Normal(m, 1.0), distrax.Uniform(0.0, b))


JUMPING = {
    "a normal and a uniform": lambda p: two(p, 1.0),
    "an end that moves": lambda p: two(0.0, 1.0 + p),
    "uniforms": lambda p: distrax.MixtureSameFamily(
        distrax.Categorical(jnp.zeros(2)), distrax.Uniform(jnp.zeros(2), jnp.stack([1 + p, 2.0]))
    ),
    "of NumPyro": lambda p: vj.families.adapt(
        nd.MixtureGeneral(
            nd.Categorical(jnp.array([0.5, 0.5])),
            [nd.Normal(p, 1.0), nd.Uniform(0.0, 1.0)],
            support=nd.constraints.real,
        )
    ),
}
SMOOTH = {
    "normals": lambda p: distrax.MixtureOfTwo(
        0.5, distrax.Normal(p, 1.0), distrax.Normal(2.0, jnp.exp(p))
    ),
    "gammas": lambda p: distrax.MixtureSameFamily(
        distrax.Categorical(jnp.zeros(2)), distrax.Gamma(jnp.stack([1 + p, 2.0]), jnp.ones(2))
    ),
    "of NumPyro": lambda p: vj.families.adapt(
        nd.MixtureSameFamily(
            nd.Categorical(jnp.array([0.5, 0.5])), nd.Normal(jnp.stack([p, 2.0]), 1.0)
        )
    ),
}


@pytest.mark.parametrize("name", ["reparam", "dreg"])
@pytest.mark.parametrize("kind", list(JUMPING))
def test_a_path_through_parts_that_end_is_refused(kind, name, key):
    def value(p):
        objective = getattr(vj.gradients, name)(vj.bounds.elbo)
        return objective(key, lambda z: -(z**2), JUMPING[kind](p), num_samples=2).value

    with pytest.raises(ValueError, match="mixture whose parts may end at different places"):
        jax.eval_shape(jax.grad(value), 0.3)


@pytest.mark.parametrize("kind", list(SMOOTH))
def test_a_path_through_parts_that_span_the_same_is_taken(kind, key):
    def value(p):
        objective = vj.gradients.reparam(vj.bounds.elbo)
        return objective(key, lambda z: -(z**2), SMOOTH[kind](p), num_samples=2).value

    jax.eval_shape(jax.grad(value), 0.3)


def affine_coupling(base):
    """Return RealNVP, which shifts two latents by a multiple of the first."""
    return lambda p: vj.families.adapt(
        td.TransformedDistribution(
            td.Sample(base, 3),
            tb.RealNVP(
                num_masked=1,
                shift_and_log_scale_fn=lambda x, n, **_: (x * jnp.stack([p, 0.4]), None),
            ),
        )
    )


def bent(base):
    return lambda p: distrax.Transformed(
        base,
        distrax.RationalQuadraticSpline(
            p * jnp.array([0.3, -0.2, 0.1, 0.4, 0.2, -0.3, 0.5]), range_min=0.0, range_max=1.0
        ),
    )


@pytest.mark.parametrize(
    ("build", "fixed"),
    [
        (affine_coupling(td.Normal(np.float64(0.0), 1.0)), True),
        (affine_coupling(td.Uniform(np.float64(0.0), 1.0)), False),
        (affine_coupling(td.Exponential(np.float64(1.0))), False),
        (bent(distrax.Normal(0.0, 1.0)), True),
        (bent(distrax.Uniform(0.0, 0.5)), False),
    ],
    ids=[
        "coupled normals",
        "coupled uniforms",
        "coupled exponentials",
        "a spline",
        "a bent uniform",
    ],
)
def test_layers_of_a_flow_keep_the_real_line_alone(build, fixed, key):
    """What they carry of a bounded base ends elsewhere, by parameters that its library hides."""

    def value(p):
        objective = vj.gradients.vimco(vj.bounds.elbo)
        target = lambda z: -jnp.sum(z**2)
        return objective(key, target, build(p), num_samples=2).value

    message = refusal(lambda: jax.eval_shape(jax.grad(value), 0.3))
    assert (message is None) is fixed, message
