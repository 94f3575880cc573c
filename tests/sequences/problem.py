"""Chains whose answers are known: the Nile, and small models as one dense normal over all states and observations."""

from pathlib import Path

import numpy as np
import pytest

import vijax as vj

# One set of numbers for tests, benchmarks and notebooks
DATA = Path(__file__).parents[2] / "notebooks" / "data"
NILE = np.loadtxt(DATA / "nile.txt").reshape(-1, 1)


def local_level(observation, level, *, mean=0.0, variance=0.0, diffuse=False, dtype=np.float64):
    """A random walk seen through noise."""
    one = np.ones((1, 1), dtype)
    return vj.sequences.LinearGaussian(
        np.full(1, mean, dtype),
        variance * one,
        one,
        level * one,
        one,
        observation * one,
        diffuse=one if diffuse else None,
    )


def spd(rng, *shape):
    a = rng.normal(size=(*shape, shape[-1]))
    return a @ np.swapaxes(a, -1, -2) / shape[-1] + 0.3 * np.eye(shape[-1])


def random_model(seed, t, d, p, *, varying=False, offsets=False, diffuse=0):
    """Draw a model of t steps; `diffuse` directions of its start are flat, and have no proper part."""
    rng = np.random.default_rng(seed)
    steps, time = ((t - 1,), (t,)) if varying else ((), ())
    flat = np.linalg.qr(rng.normal(size=(d, d)))[0]
    proper = np.eye(d) - flat[:, :diffuse] @ flat[:, :diffuse].T
    return vj.sequences.LinearGaussian(
        rng.normal(size=d),
        proper @ spd(rng, d) @ proper.T,
        0.6 * rng.normal(size=(*steps, d, d)) + 0.5 * np.eye(d),
        spd(rng, *steps, d),
        rng.normal(size=(*time, p, d)),
        spd(rng, *time, p),
        rng.normal(size=(*steps, d)) if offsets else None,
        rng.normal(size=(*time, p)) if offsets else None,
        flat[:, :diffuse] if diffuse else None,
    )


def _at(value, event, i, zero=None):
    if value is None:
        return np.zeros(zero)
    return value[i] if np.ndim(value) > event else value


# Written for NumPy or JAX, `xp`: values cost no compilation, and JAX is there for gradients.


def dense(model, t, xp=np):
    """Return mean and covariance of the path given δ = 0, its slopes in δ, and the map from path to observations."""
    d, p = model.initial_mean.shape[0], model.emission.shape[-2]
    means, blocks = [model.initial_mean], [[model.initial_cov]]
    slopes = [np.zeros((d, 0)) if model.diffuse is None else model.diffuse]
    for i in range(t - 1):
        f = _at(model.transition, 2, i)
        means.append(f @ means[-1] + _at(model.transition_offset, 1, i, d))
        slopes.append(f @ slopes[-1])
        row = [f @ block for block in blocks[-1]]
        blocks.append([*row, row[-1] @ f.T + _at(model.transition_cov, 2, i)])
    rows = [[blocks[i][j] if i >= j else blocks[j][i].T for j in range(t)] for i in range(t)]
    diagonal = lambda parts, shape: xp.concatenate(
        [
            xp.concatenate([b if i == j else np.zeros(shape) for j in range(t)], 1)
            for i, b in enumerate(parts)
        ],
        0,
    )
    cov = xp.concatenate([xp.concatenate(row, 1) for row in rows], 0)
    emission = diagonal([_at(model.emission, 2, i) for i in range(t)], (p, d))
    noise = diagonal([_at(model.emission_cov, 2, i) for i in range(t)], (p, p))
    offset = xp.concatenate([_at(model.emission_offset, 1, i, p) for i in range(t)])
    return xp.concatenate(means), cov, xp.concatenate(slopes), emission, offset, noise


def log_normal(r, cov, xp=np):
    return -0.5 * (r @ xp.linalg.solve(cov, r) + xp.linalg.slogdet(2 * np.pi * cov)[1])


def log_flat_normal(r, v, s, xp=np):
    """Return log ∫ N(r; v δ, s) dδ: least squares, and a Gaussian integral."""
    if v.shape[1] == 0:
        return log_normal(r, s, xp), np.zeros(0), np.zeros((0, 0))
    precision = v.T @ xp.linalg.solve(s, v)
    delta = xp.linalg.solve(precision, v.T @ xp.linalg.solve(s, r))
    rest = log_normal(r - v @ delta, s, xp) - 0.5 * xp.linalg.slogdet(precision / (2 * np.pi))[1]
    return rest, delta, precision


def posterior(model, x, seen, xp=np):
    """Return log p(x) = log ∫ p(x | δ) dδ, and mean and covariance of the path given what is seen, by dense algebra."""
    t = x.shape[0]
    seen = np.ones(x.shape, bool) if seen is None else np.broadcast_to(seen.reshape(t, -1), x.shape)
    mean, cov, slopes, emission, offset, noise = dense(model, t, xp)
    rows = np.flatnonzero(seen.ravel())
    emission, noise = emission[rows], noise[np.ix_(rows, rows)]
    r = x.ravel()[rows] - offset[rows] - emission @ mean
    s, v = emission @ cov @ emission.T + noise, emission @ slopes
    evidence, delta, precision = log_flat_normal(r, v, s, xp)
    gain = xp.linalg.solve(s, emission @ cov).T
    left, path_cov = slopes - gain @ v, cov - gain @ emission @ cov
    if v.shape[1]:
        path_cov = path_cov + left @ xp.linalg.solve(precision, left.T)
    return evidence, mean + gain @ r + left @ delta, path_cov


def log_joint(model, z, x, seen):
    """Return log p(x, z) of a path [T, d], δ integrated: adding D Dᵀ to the start's covariance moves no flat integral."""
    t, d = z.shape
    seen = np.ones(x.shape, bool) if seen is None else np.broadcast_to(seen.reshape(t, -1), x.shape)
    r = z[0] - model.initial_mean
    v = np.zeros((d, 0)) if model.diffuse is None else model.diffuse
    total = log_flat_normal(r, v, model.initial_cov + v @ v.T)[0]
    for i in range(t):
        if i:
            f = _at(model.transition, 2, i - 1)
            predicted = f @ z[i - 1] + _at(model.transition_offset, 1, i - 1, d)
            total += log_normal(z[i] - predicted, _at(model.transition_cov, 2, i - 1))
        rows = np.flatnonzero(seen[i])
        r = x[i] - _at(model.emission, 2, i) @ z[i] - _at(model.emission_offset, 1, i, x.shape[1])
        if len(rows):
            total += log_normal(r[rows], _at(model.emission_cov, 2, i)[np.ix_(rows, rows)])
    return total


T = 6
_ROWS = np.array([1, 0, 1, 1, 0, 1], bool)
_PARTS = np.array([[1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 0]], bool)
_LATE = np.array(
    [[0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [1, 1]], bool
)  # δ is known after the third step only
CASES = {
    "scalar": (random_model(1, T, 1, 1), None),
    "plain": (random_model(2, T, 3, 2), None),
    "rows missing": (random_model(3, T, 3, 2, offsets=True), _ROWS),
    "varying, parts missing": (random_model(4, T, 2, 2, varying=True, offsets=True), _PARTS),
    "diffuse": (random_model(5, T, 2, 2, diffuse=2), None),
    "diffuse in part, late": (
        random_model(6, T, 3, 2, varying=True, offsets=True, diffuse=2),
        _LATE,
    ),
    "more seen than states": (random_model(7, T, 1, 3, offsets=True, diffuse=1), None),
    "two steps": (random_model(8, 2, 2, 2, varying=True), None),
    "one step": (random_model(9, 1, 2, 2, offsets=True), None),
    "one step, varying": (random_model(10, 1, 3, 2, varying=True), None),
    "one step, diffuse": (random_model(11, 1, 2, 2, diffuse=2), None),
}


# What every run tests, a second or more each; the rest is `make slow`.
ALWAYS = {"varying, parts missing", "diffuse in part, late", "one step"}
EVERY = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in CASES]


def data(name):
    """Return model, x and mask; what is masked is nan."""
    model, mask = CASES[name]
    length = {"two steps": 2}.get(name, 1 if name.startswith("one step") else T)
    x = 2 * np.random.default_rng(0).normal(size=(length, model.emission.shape[-2]))
    if mask is not None:
        x = np.where(mask.reshape(length, -1), x, np.nan)
    return model, x, mask
