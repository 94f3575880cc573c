"""The randomness of one estimate, and log p of every draw, with the shapes checked here and only here."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Key

from vijax import checks, jaxprs, raised
from vijax.engine import _refusals as refusals
from vijax.engine._members import Members
from vijax.types import Distribution, Draw, LogJoint, Properties, PyTree, properties


class Traced(NamedTuple):
    """One trace of log_joint, and what it shows.

    Fields:
        closed: the jaxpr; None where log_joint reads the numbers that it closes over, as outside of
            jit it may.
        through: what the derivative of an objective inside passes through, where that is not linear
            in it, for refusals; or None.
    """

    closed: core.ClosedJaxpr | None
    through: str | None = None


class Plan(NamedTuple):
    """All the randomness of one estimate, a row for each draw.

    Fields:
        draw: seeds of q, a pytree with leading axis k.
        model: keys of the target [k], None where it takes none.
    """

    draw: PyTree
    model: Key[Array, " k"] | None

    @property
    def rows(self) -> int:
        """How many draws."""
        return int(jax.tree.leaves(self.draw)[0].shape[0])


def split(key: Key[Array, ""], num_samples: int) -> Key[Array, " k"]:
    """Return `num_samples` keys; one sample takes the key itself and saves the hash.

    Example:
        >>> split(jax.random.key(0), 3).shape, split(jax.random.key(0), 1).shape
        ((3,), (1,))
    """
    return key[None] if num_samples == 1 else jax.random.split(key, num_samples)


def _sample(key: Key[Array, ""], q: Distribution) -> tuple[PyTree, Array]:
    """Return one draw and log q of it; whatever TFP or distrax wrap around the pair is taken off."""
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=())
    return z, log_q


iid = Draw(seeds=split, sample=_sample, independent=True)
"""Independent draws: one key for each; draw i is the same however many are drawn at a time."""


def plan(key: Key[Array, ""], keyed: bool, draw: Draw, num_samples: int) -> Plan:  # noqa: FBT001
    """Turn one key into one row of seeds for each draw, and of the target's where it is `keyed`.

    Example:
        >>> seeds = plan(jax.random.key(0), True, iid, 4)
        >>> seeds.rows, seeds.draw.shape, seeds.model.shape
        (4, (4,), (4,))
    """
    # Without a model's key the draws get the whole key, so that plain targets keep their draws.
    if not keyed:
        return Plan(draw.seeds(key, num_samples), None)
    key_draw, key_model = jax.random.split(key)
    return Plan(draw.seeds(key_draw, num_samples), split(key_model, num_samples))


def evaluate(
    log_joint: LogJoint,
    z: PyTree,
    log_q: Array,
    keys: Key[Array, " k"] | None = None,
    *,
    known: Properties | None = None,
    beyond_mean: bool = False,
    members: Members | None = None,
    traces: dict[Any, Any] | None = None,
) -> tuple[Array, PyTree]:
    """Evaluate log_joint on every draw by vmap, and refuse shapes that do not agree with log q's.

    Args:
        log_joint: the target, see `types.LogJoint`.
        z: draws, a pytree with leading axis k.
        log_q: [k, *batch], read for its shape; and handed to targets that add it (`targets.exact_kl`),
            so that the same number is taken away again, with the same derivative.
        keys: [k], for targets made by `targets.keyed`.
        known: the target's properties, where the caller has them.
        beyond_mean: whether more than the mean of log p counts, as under a bound that is not
            linear: targets that are unbiased in their mean alone refuse it, however deep inside.
        members: what proves that log p of each member of the batch reads that member alone.
        traces: of log_joint, made for what they show; filled here, once for each shape of a draw.

    Returns:
        log p(x, z) in nats, [k, *batch], and the model's auxiliary output with leading axis k, or
        None.

    Raises:
        ValueError: where a draw's log p is not [*batch], or a latent is broadcast to an outer product
            by accident, (N,) against (N, 1).

    Example:
        >>> log_p, aux = evaluate(lambda z: -0.5 * z**2, jnp.array([1.0, 2.0]), jnp.zeros(2))
        >>> log_p.tolist()
        [-0.5, -2.0]
    """
    known = properties(log_joint) if known is None else known

    def one(z: PyTree, log_q: Array, key: Key[Array, ""] | None) -> tuple[Array, PyTree]:
        # A keyed target takes its key, one that adds log q the number itself.
        given = {} if key is None else {"key": key}
        if known.holds_log_q:
            given["log_q"] = log_q
        try:
            made = log_joint(z, **given)
        except raised.ANSWERED as error:
            said = raised.in_words("log_joint", error, z)
            if said is None:
                raise
            raise said from error
        # log p is [*batch], a dict of factors of that shape, or a pair with the auxiliary output.
        log_p, aux = _apart(made, known)
        if isinstance(log_p, dict):
            log_p = _sum_of_factors(log_p, log_q, z)
        checks.log_densities(log_p, log_q, z)
        return jnp.asarray(log_p), aux

    # One trace for each shape of a draw: the caller's where it evaluates several times.
    known_traces = {} if traces is None else traces

    def of_draw(z: PyTree, log_q: Array, key: Key[Array, ""] | None) -> tuple[Array, PyTree]:
        # Called once for each vmap: tracers of one draw, whose shapes and dtypes name the trace.
        leaves, tree = jax.tree.flatten((z, log_q, key))
        call = (id(log_joint), tree, *map(jax.typeof, leaves))
        if call not in known_traces:
            # log_joint is held beside its trace, so that no other function gets its id.
            known_traces[call] = log_joint, _trace(one, z, log_q, key)
        closed, through = known_traces[call][1]
        if closed is not None and checks.must_read_all() and not known.holds_log_q:
            _refuse_unread(closed, z)
        if members is not None:
            members.apart(closed, z, log_q, key)
        # An objective inside log_joint reads here whether its own derivative is asked for.
        with nullcontext() if through is None else checks.own_derivative(through):
            return one(z, log_q, key)

    # A minibatch deep inside refuses to stand where more than its mean counts.
    with checks.beyond_mean() if beyond_mean else nullcontext():
        log_p, aux = jax.vmap(of_draw)(z, log_q, keys)
    return log_p, jax.lax.stop_gradient(aux)


def _trace(one: Callable[..., PyTree], *draw: PyTree) -> Traced:
    """Return the trace of one(*draw), which evaluates log_joint, its first result log p.

    Refuses accidental outer products, and what is not linear in values whose mean alone is right. The
    draws are evaluated by calling log_joint again: JAX's caches make that cheaper than the jaxpr is.
    """
    # Outside of jit a log_joint may read numbers in Python: then nothing is known of it.
    try:
        closed, _ = jaxprs.trace(one, *draw)
    except raised.READS_NUMBERS:
        return Traced(None)
    except Exception as error:
        if type(error).__name__ == "TraceContextError":  # Flax's
            raise refusals.changes_a_variable(error) from error
        raise
    # (N,) against (N, 1): a value of the right shape, and wrong.
    outer = jaxprs.accidental_outer(closed)
    if outer is not None:
        raise refusals.outer_product("log_joint", outer)
    # The mean of a minibatch's log p does not survive an exp or a square.
    passed = jaxprs.beyond_mean(closed)
    if passed is not None:
        raise refusals.mean_passed_through(passed.primitive)
    # Nor does a gradient that is right in its mean alone.
    slope = jaxprs.beyond_mean_slope(closed)
    return Traced(closed, slope and f"'{slope.primitive}' in log_joint, which is not linear in it")


def _refuse_unread(closed: core.ClosedJaxpr, z: PyTree) -> None:
    """Refuse leaves of a draw that log p never reads."""
    # Leaves are numbered as they are flattened: z comes first among the arguments.
    read, names = jaxprs.read_by(closed)[0], [name for name, _ in checks.named_leaves(z)]
    unread = [name for at, name in enumerate(names) if at not in read]
    if unread:
        missed = ", ".join(f"'{name}'" for name in unread)
        raise ValueError(
            f"log_joint never reads {missed}, so that the ELBO grows with its scale without end, "
            f"and q has the leaves {names}: leave it out of params, or give it a prior."
        )


def _apart(out: PyTree, known: Properties) -> tuple[Any, PyTree]:
    """Return log p and the auxiliary output of what a target returned; refuse what is neither."""
    pair = isinstance(out, (tuple, list))
    if pair and not known.has_aux:
        raise TypeError(
            f"log_joint(z) must be one array [*batch], got a {type(out).__name__} of {len(out)}; "
            "a model with auxiliary output goes through targets.keyed(has_aux=True), and "
            "separate factors in a dict."
        )
    if known.has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"a target with has_aux=True returns (log_p, aux), got {type(out).__name__}."
        )
    return out if known.has_aux else (out, None)


def _sum_of_factors(factors: dict[Any, Any], log_q: Array, z: PyTree) -> Any:
    """Return the sum of the factors, each checked by its own name first."""
    if not factors:
        raise TypeError("log_joint(z) is an empty dict; it must hold at least one factor [*batch].")
    for name, factor in factors.items():
        checks.log_densities(factor, log_q, z, (f"log_joint(z)[{name!r}]", "q.log_prob(z)"))
    return sum(factors.values())
