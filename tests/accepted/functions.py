"""The calls of public functions that take a target: each kind of target given to each of them."""

from importlib import import_module

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

import vijax as vj
from tests.accepted.problems import KINDS, NUM_DATA, TARGETS, X
from tests.bare import Gauss

# Where each function is found: one that moves changes one line here.
ADDRESSES = {
    "collapse": "vijax.targets",
    "collapse_gaussian": "vijax.targets",
    "enumerate": "vijax.targets",
    "gauss_hermite": "vijax.targets",
    "minorize": "vijax.targets",
    "targets.collapse_laplace": "vijax.targets",
    "transform": "vijax.targets",
    "families.laplace": "vijax.families",
    "weigh": "vijax.draws",
    "batch_and_match": "vijax.updates",
    "natural_gradient": "vijax.updates",
    "square_root_natural_gradient": "vijax.updates",
    "dadvi": "vijax.solvers",
    "linear_response": "vijax.solvers",
    "maximize": "vijax.solvers",
    "multi_pathfinder": "vijax.solvers",
    "pathfinder": "vijax.solvers",
}


def public(name):
    """Return a public function by its name, by room and name where two rooms have it."""
    return getattr(import_module(ADDRESSES[name]), name.rpartition(".")[2])


KEY, THETA = jax.random.key(0), jnp.float32(0.1)
PAIR = KINDS["mean_field"]  # two latents of one event
FAMILY = vj.families.mean_field()
FULL_RANK = vj.families.full_rank()
ROWS = jnp.array([[1.0, 0.5], [-0.3, 0.2], [0.1, -1.0]], jnp.float32)


def one_step(name):
    """Return target -> one step of an update rule, from the start of full_rank."""

    def run(target):
        rule = public(name)(target, num_samples=4)
        return rule.step(KEY, rule.init(FULL_RANK.init(KEY, jnp.zeros(2))))

    return run


def many_paths(target):
    return public("multi_pathfinder")(KEY, target, jnp.zeros((2, 2)), num_samples=4, steps=3)


def response(target):
    return public("linear_response")(
        KEY, target, FAMILY, FAMILY.init(KEY, jnp.zeros(2)), num_samples=4
    )


def site(target):
    """Take a target of one number for a site, which gauss_hermite evaluates at many."""
    return public("gauss_hermite")(target, lambda z: z, FAMILY.dist(PAIR.parameters))(jnp.zeros(2))


OF_Z = {
    "targets.gauss_hermite": site,
    "families.laplace": lambda target: public("families.laplace")(target).init(KEY, jnp.zeros(2)),
    "draws.weigh": lambda target: public("weigh")(
        KEY, target, PAIR.build(PAIR.parameters), num_samples=4
    ),
    "targets.transform": lambda target: public("transform")(target, None).log_joint(jnp.zeros(2)),
    "natural_gradient": one_step("natural_gradient"),
    "square_root_natural_gradient": one_step("square_root_natural_gradient"),
    "batch_and_match": one_step("batch_and_match"),
    "pathfinder": lambda target: public("pathfinder")(
        KEY, target, jnp.zeros(2), num_samples=4, steps=3
    ),
    "multi_pathfinder": many_paths,
    "dadvi": lambda target: public("dadvi")(
        KEY, target, FAMILY, jnp.zeros(2), num_samples=4, steps=3
    ),
    "linear_response": response,
    "maximize": lambda target: public("maximize")(target, jnp.zeros(2), steps=3),
}


def of_z(function):
    """Return the cells of one function of a target of z."""
    kind = KINDS["Normal"] if function == "targets.gauss_hermite" else PAIR

    def call(target):
        q = kind.build(kind.parameters)
        return lambda: jax.eval_shape(lambda: OF_Z[function](TARGETS[target](kind, THETA, q)))

    return {target: call(target) for target in TARGETS}


# --- targets of (z, b), z one number and b two, quadratic in b


def joint(z, b):
    return norm.logpdf(z) + jnp.sum(norm.logpdf(b, z, 1.0))


def likelihood(z, b):
    return norm.logpdf(X, jnp.sum(b) + z, 1.0)


def minibatch():
    return vj.targets.minibatch(joint, likelihood, num_data=NUM_DATA)


ONE = KINDS["Normal"].parameters
TARGETS_OF_TWO = {
    "plain": lambda: lambda z, b: joint(z, b) + jnp.sum(likelihood(z, b)),
    "minibatch": minibatch,
    "minibatch, called by a function": lambda: lambda z, b: 1.0 * minibatch()(z, b),
    "keyed": lambda: vj.targets.keyed(lambda key, z: norm.logpdf(z) + jax.random.normal(key)),
    "unbiased": lambda: vj.targets.unbiased(lambda key, z: norm.logpdf(z) + jax.random.normal(key)),
    "keyed, has_aux": lambda: vj.targets.keyed(
        lambda key, z: (norm.logpdf(z), {"seen": X}), has_aux=True
    ),
    "exact_entropy": lambda: vj.targets.exact_entropy(
        lambda z, b=0.0: joint(z, b), KINDS["Normal"].build(ONE)
    ),
    "dict of factors": lambda: (
        lambda z, b: {"joint": joint(z, b), "likelihood": jnp.sum(likelihood(z, b))}
    ),
    "wrong shape": lambda: lambda z, b: joint(z, b) + likelihood(z, b),
    "integer": lambda: lambda z, b: jnp.asarray(joint(z, b), jnp.int32),
}


def conditional(z):
    return Gauss(z * jnp.ones(2), jnp.zeros(2), event=1)


def minorized(target):
    how = {"predictor": lambda z, b: ROWS @ b, "rest": target, "like": jnp.zeros(2), "steps": 2}
    return public("minorize")(vj.targets.minorizers.jaakkola_jordan, **how).collapsed


OF_Z_AND_B = {  # target of (z, b) -> target of z
    "targets.collapse": lambda target: public("collapse")(target, conditional),
    "targets.collapse_gaussian": lambda target: public("collapse_gaussian")(target, jnp.zeros(2))[
        0
    ],
    "targets.collapse_laplace": lambda target: public("targets.collapse_laplace")(
        target, jnp.zeros(2), steps=2
    )[0],
    "targets.enumerate": lambda target: public("enumerate")(target, 2).log_joint,
    "targets.minorize": minorized,
}
AFTERWARDS = {  # what is done with the target of z
    "evaluated": lambda target: target(jnp.float32(0.2)),
    "under elbo": lambda target: _objective(vj.bounds.elbo, target),
    "under iwae": lambda target: _objective(vj.bounds.iwae, target),
}


def _objective(bound, target):
    return vj.gradients.reparam(bound)(KEY, target, KINDS["Normal"].build(ONE), num_samples=4).value


def of_z_and_b(function, afterwards):
    """Return the cells of one function of a target of (z, b), of which it makes one of z."""

    def call(target):
        run = lambda: AFTERWARDS[afterwards](OF_Z_AND_B[function](TARGETS_OF_TWO[target]()))
        return lambda: jax.eval_shape(run)

    return {target: call(target) for target in TARGETS_OF_TWO}


def rows():
    """Yield (section, function, row, cells, fast) for every row of the record."""
    for function in OF_Z:
        yield "functions of z", function, function, of_z(function), True
    for function in OF_Z_AND_B:
        for afterwards in AFTERWARDS:
            cells = of_z_and_b(function, afterwards)
            yield (
                "functions of z and b",
                function,
                f"{function}, {afterwards}",
                cells,
                afterwards == "under iwae",
            )
