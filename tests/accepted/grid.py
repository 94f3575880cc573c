"""The calls of objectives: bound x estimator x q, and bound x estimator x target x draw x chunk."""

from functools import partial

import jax
import jax.numpy as jnp

import vijax as vj
from tests import table
from tests.accepted.problems import KINDS, TARGETS

G, KEY = vj.gradients, jax.random.key(0)
THETA = jnp.float32(0.1)


class Prior:
    """As gdreg wants it: a density, and how its noise becomes a draw."""

    def __init__(self, kind, theta):
        self.kind, self.theta = kind, theta

    def log_prob(self, z):
        return self.kind.log_density(self.theta, z)

    def push(self, noise):
        return jax.tree.map(lambda leaf: leaf + self.theta, noise)

    def pull(self, z):
        return jax.tree.map(lambda leaf: leaf - self.theta, z)


def gdreg(bound, kind, theta):
    prior = Prior(kind, theta)
    return G.gdreg(bound, prior=prior, push=prior.push, pull=prior.pull)


def stateful(make, parameters):
    """Return (bound, kind, theta) -> objective, of an estimator that takes a state."""

    def objective(bound, kind, theta):
        def call(*args, **how):
            return make(bound)(*args, parameters, **how)[0]

        return call

    return objective


def plainly(make, **bound_to):
    return lambda bound, kind, theta, **how: make(bound, **bound_to, **how)


def control(parameters, z, relaxed):
    return parameters * relaxed(0.7)


def split(bound, kind, theta, **how):
    return G.split(model=bound, q=bound, **how)


EACH = {"a": G.reparam, "b": G.vimco}
ESTIMATORS = {  # name -> (bound, kind, theta) -> objective
    **{
        name: plainly(getattr(G, name))
        for name in ("reparam", "dreg", "score", "vimco", "auto", "factored", "fixed")
    },
    **{
        name: plainly(getattr(G, name))
        for name in ("wake", "arm", "disarm", "local_expectation", "measure_valued")
    },
    "split": split,
    "gdreg": gdreg,
    "each": plainly(G.each, estimators=EACH),
    "rebar": stateful(G.rebar, {"log_temperature": jnp.float32(-0.5), "scale": jnp.float32(1.0)}),
    "relax": stateful(partial(G.relax, control=control), jnp.float32(0.8)),
    "gumbel_softmax": plainly(G.gumbel_softmax, temperature=0.5),
    "straight_through": plainly(G.straight_through, temperature=0.5),
    "gumbel_rao": plainly(G.gumbel_rao, temperature=0.5, inner=3),
    "top_states": plainly(G.top_states, states=1),
}
DRAWS = {name: getattr(vj.draws, name) for name in ("iid", "antithetic", "sobol", "stratified")}
TAKES_DRAW = ("reparam", "dreg", "split")
CHUNKS = (None, 2)
Q_OF_TARGETS = ("mean_field", "Bernoulli", "mixture")
BOUNDS_OF_TARGETS = ("elbo", "iwae")


def call(estimator, bound, kind, target="plain", draw=None, chunk_size=None):
    """Return a function that traces the gradient in q's and the model's parameters."""
    row, kind = table.BOUND[bound], KINDS[kind]
    how = {} if draw is None else {"draw": DRAWS[draw]}

    def value(parameters):
        q = kind.build(parameters["q"])
        log_joint = TARGETS[target](kind, parameters["theta"], q)
        objective = ESTIMATORS[estimator](row.function, kind, parameters["theta"], **how)
        # Enough to lose one, and even.
        return jnp.sum(
            objective(KEY, log_joint, q, num_samples=row.draws(6), chunk_size=chunk_size).value
        )

    return lambda: jax.eval_shape(jax.grad(value), {"q": kind.parameters, "theta": THETA})


def by_q(estimator, bound):
    """Return the cells of one estimator and bound: kind of q -> call."""
    return {kind: call(estimator, bound, kind) for kind in KINDS}


def by_target(estimator, bound, draw, chunk_size):
    """Return the cells of one estimator, bound, draw and chunk: 'kind of q, target' -> call."""
    return {
        f"{kind}, {target}": call(estimator, bound, kind, target, draw, chunk_size)
        for kind in Q_OF_TARGETS
        for target in TARGETS
    }


def rows():
    """Yield (section, estimator, row, cells, fast) for every row of the record."""
    names, rest = list(table.BOUND), [name for name in table.BOUND if name not in BOUNDS_OF_TARGETS]
    for i, estimator in enumerate(ESTIMATORS):
        spread = {"elbo"} if i % 2 else {"elbo", rest[i % len(rest)]}
        for bound in names:
            yield "q", estimator, f"{estimator}({bound})", by_q(estimator, bound), bound in spread
        for bound in BOUNDS_OF_TARGETS:
            for draw in DRAWS if estimator in TAKES_DRAW else (None,):
                for chunk_size in CHUNKS:
                    name = f"{estimator}({bound}), draw {draw or 'iid'}, chunk_size {chunk_size}"
                    plainest = draw in (None, "iid") and chunk_size is None
                    fast = plainest and i % 3 == 0 and bound == BOUNDS_OF_TARGETS[i % 2]
                    yield (
                        "target",
                        estimator,
                        name,
                        by_target(estimator, bound, draw, chunk_size),
                        fast,
                    )
