"""Small chains, and all their paths."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.scipy.special import logsumexp

from vijax.sequences import associative, sequential

S, T = 3, 5
PATHS = jnp.asarray(list(itertools.product(range(S), repeat=T)))
FOLDS = [sequential, associative]
folds = pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.__name__)


def factors(key, t=T, s=S, moving=False, dtype=jnp.float32):
    a, b, c = jax.random.split(key, 3)
    transition = jax.random.normal(b, (t - 1, s, s) if moving else (s, s), dtype)
    initial = jax.nn.log_softmax(2 * jax.random.normal(a, (s,), dtype))
    return initial, jax.nn.log_softmax(2 * transition, -1), 2 * jax.random.normal(c, (t, s), dtype)


def weights(initial, transition, likelihood):
    """Return log p(x, c) of all paths, [S^T]."""
    steps = (
        jnp.broadcast_to(transition, (T - 1, S, S))
        if transition.ndim == 3
        else jnp.stack([transition] * (T - 1))
    )
    at = jnp.arange(T)[None]
    moved = steps[at[:, 1:] - 1, PATHS[:, :-1], PATHS[:, 1:]]
    return initial[PATHS[:, 0]] + jnp.sum(moved, 1) + jnp.sum(likelihood[at, PATHS], 1)


def brute(*arrays):
    return logsumexp(weights(*arrays))
