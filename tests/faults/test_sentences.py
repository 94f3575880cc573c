"""Calls of targets, conjugates and solvers that do not fit, and log joints that cannot be traced: argument, found, cure."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj

pytestmark = pytest.mark.usefixtures("unchecked")

T, S = vj.targets, vj.solvers
C, K = T.conjugate, T.constraints
KEY, AT, FAMILY = jax.random.key(0), jnp.zeros(2), vj.families.mean_field()
DESIGN = np.random.default_rng(0).normal(size=(5, 2))


def target(z):
    return -0.5 * jnp.sum(z**2)


def group(z, b):
    return -0.5 * (b - z) ** 2


def by_if(z):
    return target(z) if z[0] > 0 else -target(z)


def two(z, x):
    return target(z - x)


def update(log_joint):
    rule = vj.updates.natural_gradient(log_joint, num_samples=4)
    return rule.step(KEY, rule.init(FAMILY.init(None, AT)))


def regression(**changed):
    return C.linear_regression(
        DESIGN, DESIGN[:, 0], **{"noise": 1.0, "loc": 0.0, "scale": 1.0} | changed
    )


def start(constraint, z):
    return T.transform(target, constraint).unconstrain(z)


counts = partial(C.gamma_poisson, total=3.0, exposure=1.0)
coin = partial(C.beta_bernoulli, successes=1.0, failures=1.0)
ANY = C.gamma_poisson(1.0, 1.0, total=1.0, exposure=1.0)

WRONG = {
    # Arguments that are missing, too many, or in another's place.
    "collapse": (lambda: T.collapse(target), r"'conditional'. Call it as targets.collapse\(log_j"),
    "no exposure": (
        lambda: C.gamma_poisson(1.0, 1.0, total=3),
        r"gamma_poisson\(a, b, total=\.\.\., ",
    ),
    "a misnamed one": (
        lambda: counts(1.0, 1.0, rate=2),
        "an unexpected keyword argument 'rate'. Call",
    ),
    "scale alone": (lambda: K.affine(1.0), r"Call it as constraints.affine\(loc, scale\)"),
    "no like": (
        lambda: S.dadvi(KEY, target, FAMILY, num_samples=2),
        r"Call it as solvers.dadvi\(key",
    ),
    "a count by place": (
        lambda: S.scatter(KEY, AT, 4),
        r"solvers.scatter\(key, like, paths=\.\.\.\)",
    ),
    "swapped": (lambda: T.quadrature(AT, group), "log_joint must be a function, got an array"),
    "a conjugate": (
        lambda: T.collapse(target, ANY),
        "conditional must be a .* lambda z: before it",
    ),
    "no function": (lambda: T.keyed(3), "function must be a function, got 3"),
    "members of 3": (lambda: T.independent_members(3), "log_joint must be a function, got 3"),
    "of an array": (
        lambda: S.linear_response(KEY, target, FAMILY, FAMILY.init(None, AT), num_samples=4, of=AT),
        "of must be a function, got an array",
    ),
    "a seed": (lambda: S.dadvi(0, target, FAMILY, AT, num_samples=4), "jax.random.key"),
    "text": (lambda: T.collapse_laplace(group, "x"), "like must be a pytree of latents.*got 'x'"),
    "text to climb": (lambda: S.maximize(target, "x"), "start must be a pytree of latents.*'x'"),
    "a list to climb": (lambda: S.maximize(lambda z: -(z**2), [1.0, 2.0]), r"jnp.array\(\["),
    # Numbers out of range.
    "-1 steps": (lambda: S.maximize(target, AT, steps=-1), "steps must be at least 0, got -1"),
    "slope": (lambda: S.maximize(target, AT, slope=-1.0), "slope must be a number of at least 0"),
    "slope nan": (lambda: S.maximize(target, AT, slope=np.nan), "slope must be .* got nan"),
    "2.5 steps": (lambda: T.collapse_laplace(group, AT, steps=2.5), "steps must be a Python int"),
    "quadrature": (lambda: T.quadrature(group, AT, steps=-1), "steps must be at least 0"),
    "a rate": (lambda: counts(-1.0, 1.0), "a must be above 0, got -1.0"),
    "rates": (lambda: counts(1.0, jnp.array([1.0, -2.0])), r"b must be above 0, got \[ 1. -2.\]"),
    "a nan": (lambda: coin(np.nan, 1.0), "a must be above 0, got nan"),
    "a total": (lambda: C.gamma_poisson(1, 1, total=-3, exposure=1), "total must be at least 0"),
    "noise": (lambda: regression(noise=-1.0), "noise must be above 0"),
    "scale": (lambda: regression(scale=jnp.zeros(2)), "scale must be above 0"),
    "concentration": (
        lambda: C.dirichlet_multinomial([1.0, -1.0], counts=[1, 2]),
        "concentration must be above 0",
    ),
    "a name": (lambda: coin("x", 1.0), "a must be numbers, got 'x'"),
    "a function": (lambda: coin(target, 1.0), "a must be numbers, got a function, target"),
    "lengths": (
        lambda: counts(jnp.ones(3), jnp.ones(2)),
        r"of one shape .*'a': \(3,\), 'b': \(2,\)",
    ),
    "an outer product": (
        lambda: counts(jnp.ones((3, 1)), jnp.ones(2)),
        r"'a': \(3, 1\), 'b': \(2,",
    ),
    # Starts outside, which were nan.
    "below 0": (lambda: start({"a": K.positive}, {"a": -1.0}), "leaf 'a'.* inside .* -1.0"),
    "above 1": (lambda: start(K.interval(0.0, 1.0), 2.0), "must lie inside of its constraint"),
    "not ordered": (lambda: start(K.ordered, jnp.array([2.0, 1.0])), "must lie inside"),
    # Log joints that cannot be traced, or take more than z.
    "constrain": (
        lambda: vj.diagnostics.summarize(
            vj.draws.weigh(KEY, target, FAMILY.dist(FAMILY.init(None, AT)), num_samples=8),
            constrain=lambda z: z if z[0] > 0 else -z,
        ),
        r"constrain needs a value .* jnp.where",
    ),
}
WHERE = {
    "update": update,
    "climb": lambda log_joint: S.maximize(log_joint, AT),
    "pathfinder": lambda log_joint: S.pathfinder(KEY, log_joint, AT, num_samples=4),
    "dadvi": lambda log_joint: S.dadvi(KEY, log_joint, FAMILY, AT, num_samples=4),
}
for name, run in WHERE.items():
    WRONG |= {
        f"an if in {name}": (partial(run, by_if), r"needs a value that is not known .*jnp.where\("),
        f"NumPy in {name}": (partial(run, lambda z: -np.sum(np.exp(z))), "jax.numpy for NumPy"),
        f"two in {name}": (partial(run, two), "with the latents alone, and .*functools.partial"),
    }


@pytest.mark.parametrize("name", WRONG)
def test_a_call_that_does_not_fit(name):
    call, words = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_errors_of_the_model_stay_its_own():
    """A call that fails within it is not vijax's."""

    def inner(a, b):
        return a + b

    for broken, words in ((lambda z: inner(z), "missing 1"), (lambda z: z + "x", "str")):
        with pytest.raises(TypeError, match=words) as caught:
            S.maximize(broken, AT)
        assert "latents alone" not in str(caught.value)


def test_calls_that_fit_pass():
    lists = C.gamma_poisson([1.0, 2.0], 1.0, total=[3, 1], exposure=0)
    arrays = C.gamma_poisson(jnp.array([1.0, 2.0]), 1.0, total=jnp.array([3, 1]), exposure=0)
    np.testing.assert_array_equal(lists.log_marginal, arrays.log_marginal)
    assert counts(jnp.ones((3, 1)), jnp.ones((1, 2))).log_marginal.shape == (3, 2)
    # What is traced is the caller's: nan, as it was.
    assert np.isnan(jax.jit(lambda a: counts(a, 1.0).log_marginal)(-1.0))
    assert np.isnan(jax.jit(lambda z: start(K.positive, z))(-1.0))
    # The boundary is where the inverse is infinite, and a value.
    assert start(K.positive, 0.0) == -np.inf
    assert S.maximize(target, AT + 1, steps=0, slope=0.0).steps == 0
    # Outside of jit Python reads numbers, as in a log_joint that closes over them.
    assert T.transform(by_if, K.positive).log_joint(AT) == -1.0
