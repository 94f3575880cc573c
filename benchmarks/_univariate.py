"""One-dimensional distributions with their supports, and the exact gradient of an objective in their parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

INF = float("inf")
Parameters = Mapping[str, Any]
Places = Sequence[Any] | Callable[[Parameters], Sequence[Any]]
REAL, HALF, UNIT, CIRCLE = (-INF, INF), (0.0, INF), (0.0, 1.0), (-np.pi, np.pi)
STEP = 2e-3  # of the finite differences, whose error is of the fourth order


class Case(NamedTuple):
    """A distribution to try.

    Fields:
        name: library.class, and what was made of it.
        make: its parameters -> the distribution.
        parameters: those that are differentiated, scalars and tuples of numbers.
        pieces: the ends of its support, and between them places where its density has a kink; empty
            for a discrete one.
        atoms: the values that have a probability of their own.
        jumps: whether the density jumps at the places between the ends.
    """

    name: str
    make: Callable[[Parameters], Any]
    parameters: dict[str, Any]
    pieces: Places = ()
    atoms: Places = ()
    jumps: bool = False

    def at(self, theta: Array) -> dict[str, Any]:
        """Return the parameters by name, of a vector of all."""
        found, start = {}, 0
        for name, value in self.parameters.items():
            n = np.size(value)
            part = theta[start : start + n]
            found[name], start = (part if isinstance(value, tuple) else part[0]), start + n
        return found

    @property
    def theta(self) -> Array:
        return jnp.asarray(np.concatenate([np.ravel(v) for v in self.parameters.values()]))

    def build(self, theta: Array) -> Any:
        return self.make(self.at(theta))

    def places(self, theta: Array) -> tuple[list[Any], list[Any]]:
        """Return the ends and kinks, and the atoms."""
        p = self.at(theta)
        pieces, atoms = (f(p) if callable(f) else f for f in (self.pieces, self.atoms))
        return list(pieces), list(atoms)


def moves(case: Case) -> bool:
    """Whether an end of the support, a jump of the density or an atom depends on a parameter."""

    def fixed(theta: Array) -> np.ndarray:
        pieces, atoms = case.places(theta)
        inside = pieces[1:-1] if case.jumps else []
        return np.array([*pieces[:1], *pieces[-1:], *inside, *atoms], float)

    first = fixed(case.theta)
    steps = STEP * np.eye(len(case.theta))
    return any(not np.array_equal(fixed(case.theta + step), first) for step in steps)


def target(z: Array) -> Array:
    """A bounded smooth log-density."""
    z = jnp.asarray(z, float)
    return 2 / (1 + (z - 0.7) ** 2) + 0.5 * jnp.tanh(z)


# --- the truth


class Truth(NamedTuple):
    """Fields: the mass of the density, E[f - log q], its gradient, and the error of that."""

    mass: float
    value: float
    gradient: np.ndarray
    error: np.ndarray


def truth(case: Case, nodes: int = 400) -> Truth:
    """Return the exact ELBO and its gradient, by double-exponential quadrature and differences."""
    elbo = jax.jit(lambda theta: _elbo(case, theta, nodes))
    theta = np.asarray(case.theta)

    def difference(h: float) -> np.ndarray:
        return np.array(
            [
                (elbo(theta + h * e)[1] - elbo(theta - h * e)[1]) / (2 * h)
                for e in np.eye(len(theta))
            ]
        )

    coarse, fine = difference(2 * STEP), difference(STEP)
    mass, value = elbo(theta)
    gradient = (4 * fine - coarse) / 3
    return Truth(float(mass), float(value), gradient, 0.05 * np.abs(fine - coarse))


def _elbo(case: Case, theta: Array, nodes: int) -> tuple[Array, Array]:
    q = case.build(theta)
    pieces, atoms = case.places(theta)
    z = [jnp.asarray(atoms)] if atoms else []
    weights = [jnp.ones(len(atoms))] if atoms else []
    for low, high in zip(pieces[:-1], pieces[1:], strict=True):
        at, weight = _rule(low, high, nodes)
        z.append(at)
        weights.append(weight)
    log_q = jnp.concatenate([jnp.asarray(q.log_prob(at), float) for at in z])
    weight = jnp.concatenate(weights)
    inside = jnp.isfinite(log_q) & (weight > 0)
    log_q = jnp.where(inside, log_q, 0.0)
    mass = jnp.where(inside, jnp.exp(log_q) * weight, 0.0)
    return mass.sum(), jnp.sum(mass * (target(jnp.concatenate(z)) - log_q))


def _rule(low: Any, high: Any, nodes: int) -> tuple[Array, Array]:
    """Return nodes and weights of an integral between two ends, either of which may be infinite."""
    infinite = _is_infinite(low), _is_infinite(high)
    reach = {(True, True): 4.2, (False, False): 3.2}.get(infinite, 5.0)
    t = jnp.linspace(-reach, reach, nodes)
    step = t[1] - t[0]
    u, du = jnp.pi / 2 * jnp.sinh(t), jnp.pi / 2 * jnp.cosh(t)
    if infinite == (True, True):
        return jnp.sinh(u), step * du * jnp.cosh(u)
    if infinite == (False, False):
        half = (high - low) / 2
        # From the nearer end, so that a node does not round to it.
        gap = (high - low) / (1 + jnp.exp(2 * jnp.abs(u)))
        z = jnp.where(t < 0, low + gap, high - gap)
        return z, step * du * half / jnp.cosh(u) ** 2
    if infinite == (False, True):
        return low + jnp.exp(u), step * du * jnp.exp(u)
    return high - jnp.exp(u), step * du * jnp.exp(u)


def _is_infinite(end: Any) -> bool:
    return isinstance(end, float) and bool(np.isinf(end))


def kinked(name: str) -> Callable[[Parameters], Sequence[Any]]:
    """Return the pieces of a density on the real line with a kink at a parameter."""
    return lambda p: (-INF, p[name], INF)


def between(low: Any, high: Any) -> Callable[[Parameters], Sequence[Any]]:
    """Return the ends of a support, each a number or the name of a parameter."""
    return lambda p: tuple(p[end] if isinstance(end, str) else end for end in (low, high))


def mapped(case: Case, change: Callable[[Any, Any, Any], Any], *, shifted: bool = True) -> Case:
    """Return a case under an affine map z -> shift + scale z with free parameters.

    Args:
        case: the case.
        change: q, shift, scale -> the distribution of the mapped draws.
        shifted: whether the shift is free; otherwise it is zero.
    """
    free = {"map_shift": 0.4, "map_scale": 1.3} if shifted else {"map_scale": 1.3}

    def own(p: Parameters) -> Parameters:
        return {name: p[name] for name in case.parameters}

    def at(places: Places) -> Callable[[Parameters], Sequence[Any]]:
        def carried(p: Parameters) -> list[Any]:
            found, shift = places(own(p)) if callable(places) else places, p.get("map_shift", 0.0)
            return [z if _is_infinite(z) else shift + p["map_scale"] * z for z in found]

        return carried

    return case._replace(
        name=f"{case.name}, {'shifted and scaled' if shifted else 'scaled'}",
        make=lambda p: change(case.make(own(p)), p.get("map_shift", 0.0), p["map_scale"]),
        parameters=case.parameters | free,
        pieces=at(case.pieces),
        atoms=at(case.atoms),
    )
