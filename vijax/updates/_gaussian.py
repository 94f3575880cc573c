"""What the updates of a Gaussian q share: its state, draws in units of its own spread, and steps that are looked at."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from vijax import checks, draws, engine
from vijax.types import Draws, Estimate, LogJoint, PyTree, properties

Rate = float | Array | Callable[[Array], Array]
"""A learning rate: a number, or a schedule from the count of steps."""


class Update(NamedTuple):
    """A rule without a scalar objective.

    Fields:
        init: params of a family -> state.
        step: (key, log_joint, state) -> (state, Estimate of the ELBO in nats of the state that came in).
        params: state -> params of that family.
    """

    init: Callable[[PyTree], Any]
    step: Callable[[Any, LogJoint, Any], tuple[Any, Estimate]]
    params: Callable[[Any], PyTree]


class GaussianState(NamedTuple):
    """A Gaussian q = N(loc, L Lᵀ) on its way.

    Fields:
        loc: like z.
        root: L, lower triangular [d, d]; or the standard deviations [d], where q is mean-field.
        steps: how many were made, ().
        taken: what share of the last step was taken, (): 0 where q stayed as it was.
    """

    loc: PyTree
    root: Array
    steps: Int[Array, ""]
    taken: Float[Array, ""]


def init(params: PyTree) -> GaussianState:
    """Return the state of `families.mean_field`'s or `families.full_rank`'s params."""
    if not isinstance(params, dict) or set(params) not in ({"loc", "log_scale"}, {"loc", "log_scale", "lower"}):
        found = list(params) if isinstance(params, dict) else type(params).__name__
        raise TypeError(
            "params must be those of families.mean_field (loc, log_scale) or families.full_rank (loc, log_scale, "
            f"lower), got {found}: begin with families.full_rank().init(key, like)."
        )
    loc, _ = ravel_pytree(params["loc"])
    root = jnp.exp(ravel_pytree(params["log_scale"])[0]).astype(loc.dtype)
    if "lower" in params:
        if jnp.finfo(loc.dtype).bits < 32:
            raise TypeError(f"a full-rank q is updated in float32 or float64, got {loc.dtype}: it factorises matrices.")
        unit = jnp.eye(loc.size, dtype=loc.dtype).at[jnp.tril_indices(loc.size, -1)].set(params["lower"])
        root = root[:, None] * unit
    strong = jax.tree.map(lambda l: jax.lax.convert_element_type(l, jnp.result_type(l)), params["loc"])
    return GaussianState(strong, root, jnp.int32(0), jnp.ones((), loc.dtype))


def params(state: GaussianState) -> PyTree:
    """Return the params of the family that the state came from."""
    _, unravel = ravel_pytree(state.loc)
    if state.root.ndim == 1:
        return {"loc": state.loc, "log_scale": unravel(jnp.log(state.root))}
    scale = jnp.diagonal(state.root)
    lower = (state.root / scale[:, None])[jnp.tril_indices(scale.size, -1)]
    return {"loc": state.loc, "log_scale": unravel(jnp.log(scale)), "lower": lower}


def half_log_det(root: Array) -> Array:
    """Return ½ log |L Lᵀ|."""
    return jnp.sum(jnp.log(root if root.ndim == 1 else jnp.diagonal(root)))


def push(root: Array, e: Array) -> Array:
    """Return L e for a vector e [d]."""
    return root * e if root.ndim == 1 else root @ e


def triangle(root: Array) -> Array:
    """Return the lower triangular L with positive diagonal for which L Lᵀ = root rootᵀ; root is [d, n], n >= d."""
    lower = jnp.linalg.qr(root.T, mode="r").T
    return lower * jnp.where(jnp.diagonal(lower) < 0, -1, 1)[None, :]


class Sight(NamedTuple):
    """The target seen in units of q: z = loc + L e.

    Fields:
        noise: e, [k, d], standard normal, from which a step is made.
        fresh: as many others, by which it is judged: noise that made a step flatters it.
        log_p: (state, e [k, d]) -> log p(x, z), [k] in nats.
        log_q: (state, e [k, d]) -> log q(z), [k] in nats.
    """

    noise: Array
    fresh: Array
    log_p: Callable[[GaussianState, Array], Array]
    log_q: Callable[[GaussianState, Array], Array]


def see(key: Any, log_joint: LogJoint, state: GaussianState, num_samples: int, *, paired: bool, who: str) -> Sight:
    """Draw the noise, in mirrored pairs if asked, and say how the target is seen through it."""
    checks.key(key)
    engine.require_log_joint(log_joint, f"updates.{who}")
    if not isinstance(state, GaussianState):
        raise TypeError(f"state must be what {who}'s init(params) returned, got a {type(state).__name__}.")
    loc, unravel = ravel_pytree(state.loc)
    key_noise, key_fresh, key_model = jax.random.split(key, 3)
    model = engine.plan(key_model, properties(log_joint).keyed, draws.iid, num_samples).model

    def normal(key: Any) -> Array:
        e = jax.random.normal(key, (num_samples // 2 if paired else num_samples, loc.size), loc.dtype)
        return jnp.concatenate([e, -e]) if paired else e

    def log_q(state: GaussianState, e: Array) -> Array:
        density = -0.5 * jnp.sum(jnp.square(e) + jnp.log(2 * jnp.pi).astype(e.dtype), -1)
        return density - half_log_det(state.root)

    def log_p(state: GaussianState, e: Array) -> Array:
        at, _ = ravel_pytree(state.loc)
        z = jax.vmap(lambda e: unravel(at + push(state.root, e)))(e)
        return engine.evaluate(log_joint, z, jax.lax.stop_gradient(log_q(state, e)), model)[0].astype(e.dtype)

    return Sight(normal(key_noise), normal(key_fresh), log_p, log_q)


def report(state: GaussianState, sight: Sight, log_p: Array) -> Estimate:
    """Return the ELBO at the state that came in, with its draws."""
    loc, unravel = ravel_pytree(state.loc)
    z = jax.vmap(lambda e: unravel(loc + push(state.root, e)))(sight.noise)
    log_q = sight.log_q(state, sight.noise)
    return Estimate(jnp.mean(log_p - log_q), Draws(z, log_p, log_q))


def moved(state: GaussianState, change: Array, root: Array) -> GaussianState:
    """Return the state with another mean and root, in the dtypes that it had."""
    loc, unravel = ravel_pytree(state.loc)
    return state._replace(loc=unravel((loc + change).astype(loc.dtype)), root=root.astype(state.root.dtype))


def rate_at(rate: Rate, state: GaussianState) -> Array:
    """Return the learning rate of this step."""
    return jnp.asarray(rate(state.steps) if callable(rate) else rate, state.taken.dtype)


def sound(state: GaussianState) -> Array:
    """Whether a state is a Gaussian at all."""
    return jnp.all(jnp.isfinite(ravel_pytree(state.loc)[0])) & jnp.isfinite(half_log_det(state.root))


def advance(state: GaussianState, sight: Sight, move: Callable[[Array], GaussianState], halvings: int) -> GaussianState:
    """Take the longest of the steps 1, 1/2, 1/4, ... under which the ELBO does not fall, as fresh draws see it.

    The same draws judge before and after, on the same minibatch, and only the difference counts, which is far less
    noisy than the ELBO. It may be below zero by half its own error, since a good step can look bad by chance; no more,
    so that one disastrous draw cannot excuse itself by the spread that it makes. With `halvings` = 0 a step is taken
    as it comes, unless it ends in nan; what cannot be taken leaves q where it was.
    """
    one = jnp.ones_like(state.taken)

    def worse(new: GaussianState) -> Array:
        if halvings == 0:
            return ~sound(new)
        gain = sight.log_p(new, sight.fresh) - before
        rise = jnp.mean(gain) + half_log_det(new.root) - half_log_det(state.root)
        # The mean deviation: a square would overflow, and an infinite error excuse anything.
        error = jnp.mean(jnp.abs(gain - jnp.mean(gain))) / gain.size**0.5
        return ~(sound(new) & jnp.isfinite(error) & (rise >= -0.5 * error))

    def going(carry: Any) -> Array:
        _, tried, bad = carry
        return bad & (tried <= halvings)

    def shorter(carry: Any) -> Any:
        _, tried, _ = carry
        new = move(one * 0.5**tried)
        return new, tried + 1, worse(new)

    before = sight.log_p(state, sight.fresh) if halvings else jnp.zeros(())
    # The first step is the loop's too: the model is compiled once for all of them.
    new, tried, bad = jax.lax.while_loop(going, shorter, (state, jnp.int32(0), one > 0))
    share = jnp.where(bad, 0.0, 0.5 ** (tried - 1)).astype(one.dtype)
    new = jax.tree.map(lambda here, there: jnp.where(bad, here, there), state, new)
    return new._replace(steps=state.steps + 1, taken=share)


def admit(num_samples: int, halvings: int, rate: Any, *, paired: bool, most: float = 1.0) -> None:
    """Refuse arguments that no step could use."""
    # A traced rate, and what a schedule says, are seen only while running.
    if not (callable(rate) or isinstance(rate, jax.core.Tracer) or (jnp.ndim(rate) == 0 and 0 < rate <= most)):
        where = f"in (0, {most:g}]" if most < float("inf") else "positive"
        raise ValueError(f"learning_rate must be a number {where}, or a function of the count of steps, got {rate}.")
    checks.num_samples(num_samples)
    if paired and num_samples % 2:
        raise ValueError(f"draws come in mirrored pairs: num_samples must be even, got {num_samples}.")
    if isinstance(halvings, bool) or not hasattr(halvings, "__index__") or halvings < 0:
        raise ValueError(f"halvings must be a whole number of at least 0, got {halvings!r}.")
