"""The climb of Pathfinder: L-BFGS to the mode, with the best of the Gaussians that it passes by."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vijax.gaussians import AffineGaussian
from vijax.solvers._line_search import Point, point_at, search_line
from vijax.solvers._quasi_newton import History, gaussian, remember
from vijax.trees import where
from vijax.types import PyTree


class Problem(NamedTuple):
    """What is climbed, and how the Gaussians on the way are judged.

    Fields:
        log_p: several draws, a pytree with leaves [k, ...] -> log p(x, z), [k].
        unravel: [d] -> one draw.
        noise: of the draws that estimate every ELBO, [k, d].
        steps: the most steps.
        history: how many pairs of steps and gradients an inverse Hessian remembers.
    """

    log_p: Callable[[PyTree], Array]
    unravel: Callable[[Array], PyTree]
    noise: Array
    steps: int
    history: int


class Climb(NamedTuple):
    """Where the climb is; it descends minus log p, over vectors [d].

    Fields:
        point: where it is.
        search: the state of the line search.
        history: what the steps so far say of the curvature.
        direction: the next step, [d].
        q: the Gaussian of the largest ELBO so far.
        elbos: of each Gaussian so far, [steps + 1]; -inf for those to come.
        taken: how many steps were taken, ().
        stalled: whether the last step was not better, ().
    """

    point: Point
    search: PyTree
    history: History
    direction: Array
    q: AffineGaussian
    elbos: Array
    taken: Array
    stalled: Array


def climb_to_mode(problem: Problem, start: Float[Array, " d"]) -> Climb:
    """Climb from a start until a step would gain nothing, or until the steps are spent."""
    return jax.lax.while_loop(
        partial(_unfinished, problem), partial(_step, problem), _first(problem, start)
    )


def _first(problem: Problem, start: Array) -> Climb:
    """Return the climb before its first step, with a Gaussian of unit covariance."""
    point = point_at(partial(_descend, problem), start)
    gradient = point.gradient
    none = jnp.zeros((problem.history, start.size), start.dtype)
    history = History(jnp.ones_like(start), none, none)
    slope = jnp.where(jnp.isfinite(gradient), -gradient, 0.0)
    q = gaussian(start, slope, history, problem.unravel)
    # Nothing is known of the scale yet: the first step is at most of length one.
    direction = -gradient * jnp.minimum(1.0, 1 / jnp.linalg.norm(gradient))
    # A start without a gradient is no fit, whatever the ELBO of a unit covariance there is.
    first = jnp.where(jnp.all(jnp.isfinite(gradient)), _elbo(problem, q), -jnp.inf)
    elbos = jnp.full(problem.steps + 1, -jnp.inf, start.dtype).at[0].set(first)
    search = _line_search().init(start)
    return Climb(point, search, history, direction, q, elbos, jnp.int32(0), jnp.bool_(0))


def _step(problem: Problem, climb: Climb) -> Climb:
    """Take one step; judge the Gaussian where it arrives; keep the better place and the best q."""
    descend = partial(_descend, problem)
    reached, search, better = search_line(
        descend, _line_search(), climb.search, climb.point, climb.direction
    )
    history = remember(
        climb.history,
        reached.params - climb.point.params,
        reached.gradient - climb.point.gradient,
    )
    q = gaussian(reached.params, -reached.gradient, history, problem.unravel)
    elbo = jnp.where(better, _elbo(problem, q), -jnp.inf)
    best = elbo > jnp.max(climb.elbos)
    point, history = where(better, (reached, history), (climb.point, climb.history))
    return Climb(
        point,
        search,
        history,
        ravel_pytree(q.loc)[0] - reached.params,  # the quasi-Newton step
        where(best, q, climb.q),
        climb.elbos.at[climb.taken + 1].set(elbo),
        climb.taken + 1,
        ~better,
    )


def _unfinished(problem: Problem, climb: Climb) -> Array:
    # What a quasi-Newton step would gain, whatever the units of z are. Of the first step, which
    # knows no scale, nothing is asked.
    point = climb.point
    gain = -jnp.sum(point.gradient * climb.direction)
    rounding = jnp.finfo(point.params.dtype).eps * jnp.maximum(1.0, jnp.abs(point.value))
    enough = jnp.where(climb.taken == 0, 0.0, rounding)
    return (climb.taken < problem.steps) & (gain > enough) & ~climb.stalled


def _descend(problem: Problem, x: Array) -> Array:
    """Return -log p of a vector, ()."""
    return -problem.log_p(jax.vmap(problem.unravel)(x[None]))[0].astype(x.dtype)


def _elbo(problem: Problem, q: AffineGaussian) -> Array:
    """Return the ELBO of a Gaussian at the problem's noise, -inf where it is not a number."""
    z, log_q = jax.vmap(q.draw)(problem.noise)
    elbo = jnp.mean(problem.log_p(z) - log_q)
    return jnp.where(jnp.isnan(elbo) | (elbo == jnp.inf), -jnp.inf, elbo)


def _line_search() -> PyTree:
    """Return Optax's zoom line search, which tries the quasi-Newton step itself first."""
    import optax

    return optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
