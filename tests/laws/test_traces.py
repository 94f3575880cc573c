"""Traces: a step is traced once, asks the model for what it needs and no more, and never again."""

import jax
import jax.numpy as jnp
import pytest

from tests import problems
from tests.marks import some

# Python calls of log_joint while a step is traced: one to see what its jaxpr shows, one for its value, and under dreg of
# a bound that is not linear, unless in chunks, another.
CALLS = [
    ("reparam(iwae)", None, 2),
    ("reparam(iwae)", 3, 2),
    ("dreg(elbo)", None, 2),
    ("dreg(iwae)", None, 3),
    ("dreg(iwae)", 3, 2),
    ("dreg(iwae)", problems.K, 2),
    ("dreg(own)", None, 3),
    ("score(elbo)", None, 2),
    ("vimco(iwae)", None, 2),
    ("vimco(iwae)", 3, 2),
    ("auto(iwae)", None, 2),
    ("auto(iwae)", 3, 2),
]


@pytest.mark.parametrize(
    "call",
    some(
        CALLS,
        "reparam(iwae), 3",
        "dreg(iwae), None",
        "dreg(iwae), 3",
        "dreg(own), None",
        "vimco(iwae), None",
        "auto(iwae), 3",
        name="{0[0]}, {0[1]}".format,
    ),
)
def test_one_trace_and_none_on_the_second_call(call, key, monkeypatch):
    name, chunk_size, expected = call
    calls = []
    model = problems.log_joint
    monkeypatch.setattr(problems, "log_joint", lambda *args: calls.append(1) or model(*args))
    traces = []

    @jax.jit
    def step(params, data, key):
        traces.append(1)
        return jax.value_and_grad(problems.value(name, chunk_size))(params, data, key)

    for i in range(3):  # new numbers each time, in the shapes of the first
        params, data = problems.inputs(i)
        step(params, data, jax.random.fold_in(key, i))
    assert len(traces) == 1
    assert len(calls) == expected


def test_a_new_q_in_each_step_does_not_retrace(key):
    """Objectives and q may be made afresh inside the step, as closures: nothing hangs on their identity."""
    import vijax as vj

    traces = []

    @jax.jit
    def step(params, key):
        traces.append(1)
        objective = vj.gradients.dreg(lambda log_w: jnp.mean(log_w, 0))
        q = vj.families.mean_field().dist(params)
        return objective(key, lambda z: -jnp.sum(z**2), q, num_samples=2).value

    params = vj.families.mean_field().init(key, jnp.zeros(2))
    for i in range(2):
        step(jax.tree.map(lambda p, i=i: p + i, params), jax.random.fold_in(key, i))
    assert len(traces) == 1
