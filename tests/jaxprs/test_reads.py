"""Which inputs an output depends on, by any way, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.jaxprs import reads

A, B, C = (jnp.arange(3.0) + shift for shift in range(3))

CASES = {
    "arithmetic": (lambda a, b, c: a * b, {0, 1}),
    "none": (lambda a, b, c: jnp.ones(3), set()),
    "through a jump": (lambda a, b, c: jnp.where(a > 0, b, 0.0), {0, 1}),
    "as an index": (lambda a, b, c: b[a.astype(int)], {0, 1}),
    "stopped": (lambda a, b, c: jax.lax.stop_gradient(c), {2}),
    "in jit": (lambda a, b, c: jax.jit(lambda x, y: x + 1)(a, b), {0}),
    "a declared derivative": (lambda a, b, c: jax.nn.softplus(a), {0}),
    "a scan": (lambda a, b, c: jax.lax.scan(lambda s, x: (s + x, s), a[0], b)[0], {0, 1}),
    "carried late": (
        lambda a, b, c: jax.lax.fori_loop(0, 3, lambda i, s: (s[1], s[2], s[2]), (a, b, c))[0],
        {1, 2},
    ),
    "a loop of no turns": (lambda a, b, c: jax.lax.fori_loop(0, 0, lambda i, s: b, a), {0, 1}),
    "a branch": (lambda a, b, c: jax.lax.cond(a[0] > 0, lambda: b, lambda: 2 * b), {0, 1}),
    "a loop until": (
        lambda a, b, c: jax.lax.while_loop(lambda s: s < a[0], lambda s: s + 1, c[0]),
        {0, 2},
    ),
    "a linear system": (lambda a, b, c: jnp.linalg.solve(jnp.diag(a + 1), b), {0, 1}),
}


@pytest.mark.parametrize("name", list(CASES))
def test_one_output(name):
    function, read = CASES[name]
    assert reads(function, A, B, C) == read


def test_trees():
    """Inputs are counted as JAX flattens the arguments, and the answer has the tree of the result."""
    found = reads(
        lambda z, s: {"p": z["a"] + s, "q": (z["b"], s)}, {"b": A, "a": B}, jnp.float32(1.0)
    )
    assert found == {"p": {0, 2}, "q": ({1}, {2})}


@pytest.mark.parametrize("name", list(CASES))
def test_no_input_is_missed(name):
    """The control: an input whose change moves the output is among those read."""
    function, read = CASES[name]
    inputs = [A, B, C]
    for at in range(3):
        moved = [x * 1.7 + 0.6 if i == at else x for i, x in enumerate(inputs)]
        if not np.array_equal(function(*inputs), function(*moved)):
            assert at in read
