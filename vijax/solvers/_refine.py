"""An encoder's answers refined: every datum's own q climbs its own ELBO."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from vijax import checks
from vijax.bounds import elbo
from vijax.calls import described, function, usage
from vijax.diagnostics import Measured
from vijax.gradients import dreg
from vijax.trees import strong_dtypes, where
from vijax.types import Family, LogJoint, Objective, PyTree

JUDGES = 256  # draws that say what a refinement brought, the same for before and after
SURE = 2.0  # standard errors

_dreg_elbo = dreg(elbo)


class Refined(NamedTuple):
    """Each datum's own q; all but the params are [n].

    Fields:
        params: of the family, leaves [n, ...].
        rise: ELBO of these params less that of the start, `Measured` in nats.
        last: what doubling the steps brought, `Measured` in nats.
        settled: whether that is known to be within the tolerance. A datum of which it is not has not arrived, or its
            steps are too noisy: more `num_samples` or `steps`.
    """

    params: PyTree
    rise: Measured
    last: Measured
    settled: Bool[Array, " n"]


@usage("solvers.refine", "solvers.refine(key, log_joint, family, params, steps=1000)")
def refine(
    key: Key[Array, ""],
    log_joint: LogJoint,
    family: Family,
    params: PyTree,
    *,
    steps: int,
    num_samples: int = 8,
    optimizer: Callable[[int], Any] | None = None,
    objective: Objective = _dreg_elbo,
    tolerance: float = 0.1,
) -> Refined:
    """Refine q of every datum by itself, all at once, from an encoder's answer on.

        φₙ* = argmaxᵩ E_q(z; φ)[log p(xₙ, z) - log q(z; φ)],     begun at φ(xₙ)

    For the gap that amortization leaves (`diagnostics.gaps`), and a proposal for log p(xₙ) that the
    encoder is too poor for.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(xₙ, zₙ) of all n data, [n] in nats, for leaves of z [n, *event].
        family: `families.members(family)` of any family, or one of your own with batch shape [n].
        params: where to start, leaves [n, ...]: the encoder's locations and scales, and zeros for a
            triangle.
        steps: even. A climb of half as many comes first, from whose end the one of `steps` begins:
            its slower schedule shows noise that a second climb of the same length would repeat.
        num_samples: draws for each datum and step.
        optimizer: steps -> an optimizer of Optax for a climb of that length, one that treats numbers
            apart as Adam does; by default Adam at a rate of .03 that falls to 0 as a cosine.
        objective: of `bounds.elbo`; `reparam(elbo)` for a `spline_coupling`, an estimator by strata
            or scores for a mixture.
        tolerance: in nats, for `settled`.

    Returns:
        Refined. Of each datum the end of the longer climb is kept, or of the shorter, or the start,
        where the later is worse by the same 256 draws; so no bound falls by more than their noise.

    Raises:
        TypeError: for what is no family, or an optimizer that is no function of the steps.
        ValueError: for steps that are not even and above 0; for leaves of params without one axis of
            data; where log_joint's shape is not [n].

    Example:
        >>> x = jnp.array([0.5, 2.0, -1.0])  # p(z | x) = N(x / 2, 1 / 2)
        >>> log_joint = lambda z: -0.5 * z**2 - 0.5 * (x - z) ** 2
        >>> family = vj.families.members(vj.families.mean_field())
        >>> start = {"loc": jnp.zeros(3), "log_scale": jnp.zeros(3)}
        >>> refined = refine(jax.random.key(0), log_joint, family, start, steps=400)
        >>> bool(jnp.allclose(refined.params["loc"], x / 2, atol=1e-2)), refined.settled.tolist()
        (True, [True, True, True])

    Reference: Cremer, Li, Duvenaud, Inference suboptimality in variational autoencoders, 2018,
        arXiv:1801.03558; Kim, Wiseman, Miller, Sontag, Rush, Semi-amortized variational
        autoencoders, 2018, arXiv:1802.02550.
    """
    checks.key(key)
    checks.num_samples(num_samples)
    checks.family(family, "family")
    checks.static_count(steps, "steps", least=2)
    if steps % 2:
        raise ValueError(
            f"steps must be even, for a climb of half as many comes first, got {steps}."
        )
    if optimizer is not None:
        function(optimizer, "optimizer")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0 nats, got {tolerance!r}.")
    # The second climb is twice as long: what it brings is what doubling the steps brings.
    lengths = steps // 2, steps
    optimizers = [(_adam if optimizer is None else optimizer)(length) for length in lengths]
    for made in optimizers:
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise TypeError(
                "optimizer must be a function steps -> an optimizer of Optax, such as lambda steps: "
                f"optax.adam(optax.cosine_decay_schedule(1e-2, steps)), it returned {described(made)}."
            )
    params = strong_dtypes(params)
    n = _number_of_data(params)
    of_first, of_second, of_judge = jax.random.split(key, 3)
    keys = [
        jax.random.split(of, length)
        for of, length in zip((of_first, of_second), lengths, strict=True)
    ]

    def bound(key: Key[Array, ""], params: PyTree) -> Array:
        made = objective(key, log_joint, family.dist(params), num_samples=num_samples)
        if made.value.shape != (n,):
            raise ValueError(
                f"the bound must have one value for each of the {n} data that params hold, got shape "
                f"{made.value.shape}: families.members(family), and log_joint(z) of shape [{n}]."
            )
        return jnp.sum(made.value)

    def log_weights(params: PyTree) -> Array:
        """Return those of the draws that judge, [256, n]: the same noise for every params."""
        q = family.dist(params)
        made = objective(of_judge, log_joint, q, num_samples=JUDGES, chunk_size=num_samples)
        return made.draws.log_w

    @jax.jit
    def run(start: PyTree) -> Refined:
        middle, end = _climb(bound, optimizers, start, jnp.concatenate(keys))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), start, middle, end)
        start_w, middle_w, end_w = jax.lax.map(log_weights, stacked)
        last = _paired(end_w, middle_w)
        # The later params, but for data that are worse there by more than noise, or nan.
        best, best_w = _better(middle, middle_w, start, start_w)
        best, best_w = _better(end, end_w, best, best_w)
        settled = jnp.abs(last.value) + SURE * last.error <= tolerance
        return Refined(best, _paired(best_w, start_w), last, settled)

    return run(params)


def _adam(steps: int) -> Any:
    """Return Adam whose rate falls from .03 to 0 in so many steps."""
    import optax

    return optax.adam(optax.cosine_decay_schedule(0.03, steps))


def _climb(
    bound: Callable[..., Array], optimizers: list[Any], start: PyTree, keys: Array
) -> tuple[PyTree, PyTree]:
    """Return where gradient ascent is after a third of the keys, and from there by the second optimizer at the end.

    Three thirds of one scan, so that the gradient is compiled once for both climbs.
    """
    import optax

    def step(first: Array, carry: PyTree, key: Key[Array, ""]) -> tuple[PyTree, None]:
        params, states = carry
        with checks.reading_all():
            gradient = jax.grad(bound, argnums=1)(key, params)
        # Optax steps downhill.
        downhill = jax.tree.map(jnp.negative, gradient)

        def update(which: int) -> tuple[PyTree, PyTree]:
            updates, state = optimizers[which].update(downhill, states[which], params)
            return updates, (state, states[1]) if which == 0 else (states[0], state)

        updates, states = jax.lax.cond(first, partial(update, 0), partial(update, 1))
        return (optax.apply_updates(params, updates), states), None

    def third(carry: PyTree, part: tuple[Array, Array]) -> tuple[PyTree, PyTree]:
        number, keys = part
        params, (one, two) = carry
        # The second optimizer begins where the first ends.
        two = where(number == 1, strong_dtypes(optimizers[1].init(params)), two)
        carry, _ = jax.lax.scan(partial(step, number == 0), (params, (one, two)), keys)
        return carry, carry[0]

    states = tuple(strong_dtypes(optimizer.init(start)) for optimizer in optimizers)
    parts = jnp.arange(3), keys.reshape(3, -1)
    _, ends = jax.lax.scan(third, (start, states), parts)
    middle, end = (jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in (0, 2))
    return middle, end


def _number_of_data(params: PyTree) -> int:
    """Return the leading axis that all leaves of params share."""
    shapes = {name: jnp.shape(leaf) for name, leaf in checks.named_leaves(params)}
    if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
        raise ValueError(
            "every leaf of params must begin with one axis of data, for each datum has its own, got "
            f"{shapes}: families.members(family) and its params."
        )
    return int(next(iter(shapes.values()))[0])


def _paired(log_w: Array, before: Array) -> Measured:
    """Return by how much a bound rose, of log-weights [k, n] made by the same noise, and its error."""
    rise = log_w - before
    return Measured(jnp.mean(rise, 0), jnp.std(rise, 0, ddof=1) / len(rise) ** 0.5)


def _better(new: PyTree, new_w: Array, old: PyTree, old_w: Array) -> tuple[PyTree, Array]:
    """Return of every datum the new params and log-weights, or the old where those are worse by more than noise."""
    rise = _paired(new_w, old_w)
    taken = rise.value >= -SURE * rise.error
    return where(taken, new, old), jnp.where(taken[None], new_w, old_w)
