"""How a fault is judged: a mean within six standard errors, or a refusal that names a cure."""

import math
import re

import jax
import numpy as np
import pytest

import vijax as vj

G = vj.gradients
Z = 6.0  # standard errors: one comparison fails by chance in 5e8
CURE = re.compile(
    r"(gradients|bounds|targets|draws|families)\.\w|\b(use|give|declare|close over|wrap|pass|exact log joint)\b",
    re.IGNORECASE,
)
REFUSALS = (ValueError, TypeError)


def wrong(reason, *, when=True):
    """Return the mark of what is wrong today: it must fail, and by an AssertionError alone."""
    return [pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)] if when else []


def case(*values, name, reason="", slow=False):
    """Return one row of a table of cases: wrong today where a reason is given."""
    marks = [*wrong(reason, when=bool(reason)), *([pytest.mark.slow] if slow else [])]
    return pytest.param(*values, id=name, marks=marks)


def refusal(call):
    """Return the words of a refusal that names a cure, None without one; raise any other error."""
    try:
        call()
    except REFUSALS as error:
        if CURE.search(str(error)):
            return str(error)
        raise
    return None


def assert_refused(call):
    """Assert that a call is refused with a cure, not accepted or left to Python's own words."""
    try:
        call()
    except REFUSALS as error:
        assert CURE.search(str(error)), f"refused without a cure: {error}"
        return
    raise AssertionError("accepted, and wrong")


def assert_accepted(call):
    """Assert that a call is not refused."""
    message = refusal(call)
    assert message is None, message


def slopes(objective, target, build, params, *, num_samples=2, keys=4096, seed=5):
    """Return an objective's gradient in the parameters of q = build(params), for many keys."""

    def value(params, key):
        return objective(key, target, build(params), num_samples=num_samples).value.sum()

    run = jax.jit(jax.vmap(jax.grad(value), (None, 0)))
    return run(params, jax.random.split(jax.random.key(seed), keys))


def assert_right(samples, truth, *, sees, truth_error=0.0):
    """Assert that samples [n, ...] have mean `truth`; too few to see a bias of `sees` are an error."""
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    error = np.sqrt(samples.var(0) / len(samples) + truth_error**2) + 1e-9
    if np.any(Z * error > sees):
        raise RuntimeError(
            f"too few keys: {Z * error.max():.3g} standard errors, a bias of {sees} must be seen"
        )
    distance = np.max(np.abs(samples.mean(0) - truth) / error)
    assert distance <= Z, f"mean {samples.mean(0)} for {truth}, {distance:.1f} standard errors off"


def assert_right_or_refused(
    objective, target, build, params, truth, *, sees, truth_error=0.0, **how
):
    """Assert the promise: an unbiased gradient, or an error that names the cure."""
    found = []
    if refusal(lambda: found.append(slopes(objective, target, build, params, **how))) is None:
        assert_right(found[0], truth, sees=sees, truth_error=truth_error)


class Own:
    """A q of one's own from draw(params, key) and log_prob(params, z), batch shape ()."""

    def __init__(self, params, draw, log_prob):
        self.params, self._draw, self._log_prob = params, draw, log_prob

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        if sample_shape:
            seeds = jax.random.split(seed, math.prod(sample_shape))
            z = jax.vmap(lambda key: self._draw(self.params, key))(seeds).reshape(*sample_shape)
        else:
            z = self._draw(self.params, seed)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return self._log_prob(self.params, z)


def parabola(z):
    """A target that most cases share."""
    return -0.25 * (z - 1) ** 2
