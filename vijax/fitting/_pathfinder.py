"""Pathfinder: the best of the Gaussians that a climb to the mode passes by."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from vijax import checks, engine
from vijax.fitting._quasi_newton import History, QuasiNewton, gaussian, remember
from vijax.types import Draws, LogJoint, PyTree, properties


class Path(NamedTuple):
    """What one climb found.

    Fields:
        q: the Gaussian of the largest ELBO on the way.
        draws: fresh draws of it, [num_samples], with log p and log q.
        elbo: its ELBO, (), from those draws; the largest of `elbos` is an optimist's.
        elbos: the ELBO of each Gaussian on the way, [steps + 1], the first that of a unit covariance at the start; -inf
            where it could not be found, and past the end.
        steps: how many steps were taken, ().
    """

    q: QuasiNewton
    draws: Draws
    elbo: Float[Array, ""]
    elbos: Float[Array, " path"]
    steps: Int[Array, ""]


def pathfinder(
    key: Key[Array, ""],
    log_joint: LogJoint,
    like: PyTree,
    *,
    num_samples: int,
    steps: int = 100,
    history: int = 10,
) -> Path:
    """Gaussian approximation by a climb to the mode: of those on the way, the one of the largest ELBO.

        qₗ = N(θₗ + Hₗ ∇log p(θₗ), Hₗ),   Hₗ the inverse Hessian that L-BFGS has seen until step l

    A posterior in some tens of gradients, for a first look, for starting a longer fit or a sampler, and for
    many starts at once (`multi_pathfinder`). Covariances are rough where the history is shorter than d: weigh the
    draws (`diagnostics.khat`, `psis`). O(d · history) memory and operations, so d may be large. Steps go towards the
    mean of the last Gaussian, whose diagonal a badly scaled posterior needs; and all ELBOs of a path are estimated with
    the same noise, which the choice of the best then feels less.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), () in nats, or a dict of factors; over free numbers (`targets.transform`), without
            noise of its own.
        like: where to start; a pytree of floats of one dtype. jit and vmap over starts and keys are fine.
        num_samples: draws for each ELBO, and fresh ones of the result.
        steps: the most steps to take; the climb ends by itself at the mode.
        history: J, how many pairs of steps and gradients the inverse Hessian remembers.

    Returns:
        Path. A climb that never had an ELBO, as from a start without a finite density, has `elbos` of -inf.

    Raises:
        TypeError: for a raw key, counts that are not whole numbers, or a start not made of floats of one dtype.
        ValueError: for a target with noise, of a minibatch, or with terms of q in closed form; for counts below 1.

    Reference: Zhang, Carpenter, Gelman, Vehtari, Pathfinder: parallel quasi-Newton variational inference, 2022,
        arXiv:2108.03782; Gilbert, Lemaréchal, Some numerical experiments with variable-storage quasi-Newton algorithms,
        1989 (the diagonal).
    """
    import optax

    checks.key(key)
    log_joint = _admit(log_joint)
    checks.num_samples(num_samples)
    _whole("steps", steps)
    _whole("history", history)
    like = jax.tree.map(jnp.asarray, like)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(like)}
    if len(dtypes) != 1 or not jnp.issubdtype(min(dtypes), jnp.floating):
        raise TypeError(f"like must be a pytree of floats of one dtype, got {jax.tree.map(jnp.result_type, like)}.")
    position, unravel = ravel_pytree(like)
    of_path, of_draws = jax.random.split(key)
    noise = jax.random.normal(of_path, (num_samples, position.size), position.dtype)

    def descend(x: Array) -> Array:
        return -_log_p(log_joint, jax.vmap(unravel)(x[None]))[0].astype(x.dtype)

    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    value_and_grad = optax.value_and_grad_from_state(descend)
    close = jnp.finfo(position.dtype).eps

    def elbo_of(q: QuasiNewton) -> Array:
        z = jax.vmap(q.affine)(noise)
        found = jnp.mean(_log_p(log_joint, z) - jax.vmap(q.density)(noise))
        return jnp.where(jnp.isnan(found) | (found == jnp.inf), -jnp.inf, found)

    def going(carry: Any) -> Array:
        # What a quasi-Newton step would gain, whatever the units of z are. Of the first, which knows no scale, nothing.
        _, _, value, grad, _, toward, *_, count, stalled = carry
        gain = -jnp.sum(grad * toward)
        enough = jnp.where(count == 0, 0.0, close * jnp.maximum(1.0, jnp.abs(value)))
        return (count < steps) & (gain > enough) & ~stalled

    def step(carry: Any) -> Any:
        x, state, value, grad, seen, toward, q, elbos, count, _ = carry
        updates, state = search.update(toward, state, x, value=value, grad=grad, value_fn=descend)
        tried = optax.apply_updates(x, updates)
        value_there, grad_there = value_and_grad(tried, state=state)  # the line search has them: no evaluation
        better = value_there < value
        seen_there = remember(seen, tried - x, grad_there - grad)
        q_there = gaussian(tried, -grad_there, seen_there, unravel)
        elbo = jnp.where(better, elbo_of(q_there), -jnp.inf)
        best = elbo > jnp.max(elbos)
        keep = lambda it, new, old: jax.tree.map(lambda n, o: jnp.where(it, n, o), new, old)  # noqa: E731
        toward = ravel_pytree(q_there.loc)[0] - tried  # the quasi-Newton step
        q, elbos, count = keep(best, q_there, q), elbos.at[count + 1].set(elbo), count + 1
        here = keep(better, (tried, value_there, grad_there, seen_there), (x, value, grad, seen))
        x, value, grad, seen = here
        return x, state, value, grad, seen, toward, q, elbos, count, ~better

    value, grad = jax.value_and_grad(descend)(position)
    none = jnp.zeros((history, position.size), position.dtype)
    seen = History(jnp.ones_like(position), none, none)
    q = gaussian(position, jnp.where(jnp.isfinite(grad), -grad, 0.0), seen, unravel)
    toward = -grad * jnp.minimum(1.0, 1 / jnp.linalg.norm(grad))  # nothing is known of the scale yet
    elbos = jnp.full(steps + 1, -jnp.inf, position.dtype).at[0].set(elbo_of(q))
    first = (position, search.init(position), value, grad, seen, toward, q, elbos, jnp.int32(0), jnp.bool_(0))
    *_, q, elbos, count, _ = jax.lax.while_loop(going, step, first)
    z, log_q = q.sample_and_log_prob(seed=of_draws, sample_shape=(num_samples,))
    drawn = Draws(z, _log_p(log_joint, z), log_q)
    return Path(q, drawn, jnp.mean(drawn.log_w), elbos, count)


def _log_p(log_joint: LogJoint, z: PyTree) -> Array:
    """Return log p of several draws, [k]; with the shape checks of every objective."""
    rows = jax.tree.leaves(z)[0]
    return engine.evaluate(log_joint, z, jnp.zeros(rows.shape[:1], rows.dtype))[0]


def _admit(log_joint: LogJoint) -> LogJoint:
    """Refuse targets that are not log p(x, z) itself, the same at every call; return one that refuses them inside."""
    engine.require_log_joint(log_joint, "pathfinder")
    if properties(log_joint).keyed:
        raise ValueError("pathfinder climbs a function without noise: fix the key, partial(log_joint, key=key).")
    if why := properties(log_joint).only_mean:
        raise ValueError(f"{why}, and pathfinder weighs draws by it: give it all the data.")
    return checks.exact(log_joint)


def _whole(name: str, count: Any) -> None:
    if isinstance(count, bool) or not hasattr(count, "__index__") or isinstance(count, jax.core.Tracer):
        raise TypeError(f"{name} must be a Python int, fixed when the function is traced; got {count!r}.")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")
