"""The rule that updates of a Gaussian q share: a step is proposed, judged, and taken in part."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vijax import checks
from vijax.calls import is_known
from vijax.gaussians.triangle import half_log_det
from vijax.trees import where, while_loop
from vijax.types import LogJoint, PyTree, Rule, Step, properties
from vijax.updates import _gaussian
from vijax.updates._gaussian import GaussianState
from vijax.updates._whitened import Whitened, report, whiten

Rate = float | Array | Callable[[Array], Array]
"""A learning rate: a number, or a schedule from the count of steps."""


class Proposal(NamedTuple):
    """A step that may be taken.

    Fields:
        log_p: of the draws that it was made from, [k] in nats.
        move: share of the step in (0, 1], () -> the state after it.
    """

    log_p: Float[Array, " k"]
    move: Callable[[Array], GaussianState]


Propose = Callable[[GaussianState, Whitened], Proposal]
"""(state, the target in units of q) -> Proposal."""


def gaussian_rule(
    log_joint: Callable[..., Any],
    propose: Propose,
    *,
    name: str,
    num_samples: int | None,
    paired: bool,
    halvings: int,
    init: Callable[..., GaussianState] = _gaussian.init,
    admit: Callable[[LogJoint], LogJoint] | None = None,
) -> Rule:
    """Make a rule of what proposes its steps.

    Args:
        log_joint: the target; or memory -> (target, memory), for states with a memory.
        propose: how a step is found.
        name: of the rule, for messages.
        num_samples: draws that a step is made from, and as many that judge it; None for
            `default_samples`.
        paired: whether they come in mirrored pairs.
        halvings: how often a step may be halved.
        init: (params, memory) -> state.
        admit: target -> target, which refuses those that the rule cannot use; by default those that
            hold terms of q in closed form.

    Returns:
        Rule, whose step reports the ELBO of the state that came in.
    """
    if not callable(log_joint):
        cure = ": pass its log_joint" if hasattr(log_joint, "log_joint") else ""
        raise TypeError(
            "log_joint must be a function z -> log p(x, z), got a "
            f"{type(log_joint).__name__}{cure}."
        )

    def admit_mean(target: LogJoint) -> LogJoint:
        return checks.target(target, f"updates.{name}", keyed=True, only_mean=True, has_aux=True)

    def step(key: Key[Array, ""], state: GaussianState) -> tuple[GaussianState, Step]:
        checks.key(key)
        _gaussian.check_state(state)
        # One target for the whole step: what proposes it and what judges it read the same minibatch.
        target, memory = _target(log_joint, state.memory)
        # No step reads the memory, and the loop that halves steps need not carry it.
        state = state._replace(memory=None)

        target = admit_mean(target) if admit is None else admit(target)
        count = default_samples(state) if num_samples is None else num_samples
        with checks.reading_all():
            whitened = whiten(key, target, state, count, paired=paired)
            proposal = propose(state, whitened)
            new = take(state, whitened, proposal.move, halvings)
            reported = report(state, whitened, proposal.log_p, properties(target).only_mean)
        return new._replace(memory=memory), reported._replace(taken=new.taken)

    return Rule(init, step, _gaussian.params)


def _target(log_joint: Callable[..., Any], memory: PyTree) -> tuple[LogJoint, PyTree]:
    """Return the target of this step, and the memory of the next one."""
    if memory is None:
        return log_joint, None
    made = log_joint(memory)
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[0]):
        raise TypeError(
            "for a state with a memory the rule's first argument is a function memory -> "
            f"(log_joint, memory), this one returned {type(made).__name__}; where the target is "
            "always the same, leave the memory out: init(params)."
        )
    return made


Trial = tuple[GaussianState, Array, Array]
"""The state after a step, how many lengths were tried, and whether this one is worse."""


def take(
    state: GaussianState, target: Whitened, move: Callable[[Array], GaussianState], halvings: int
) -> GaussianState:
    """Take the longest of the steps 1, 1/2, 1/4, ... that does not lower the ELBO of fresh draws.

    The same draws judge before and after, on the same minibatch, and only the difference counts,
    which is far less noisy than the ELBO. It may be below zero by half its own error, since a good
    step can look bad by chance; no more, so that one disastrous draw cannot excuse itself by the
    spread that it makes. With `halvings` = 0 a step is taken as it comes, unless it ends in nan;
    what cannot be taken leaves q where it was.
    """
    one = jnp.ones_like(state.taken)
    # [k]: log p at the state that came in, for all halvings.
    before = target.log_p(state, target.fresh_noise) if halvings else jnp.zeros(())

    def worse(new: GaussianState) -> Array:
        """Whether a state is no Gaussian, or has a lower ELBO than the one that came in, ()."""
        if halvings == 0:
            return ~_gaussian.is_gaussian(new)
        # ΔELBO = E[Δ log p] + Δ log |L|, with the noise of both states the same.
        gain = target.log_p(new, target.fresh_noise) - before
        entropy, entropy_before = (half_log_det(s.root) for s in (new, state))
        rise = jnp.mean(gain) + entropy - entropy_before
        # The mean deviation: a square would overflow, and an infinite error excuse anything.
        error = jnp.mean(jnp.abs(gain - jnp.mean(gain))) / gain.size**0.5
        # Where q is exact nothing is left but rounding, which is no reason to stand still.
        rounding = 4 * jnp.finfo(gain.dtype).eps * jnp.maximum(1.0, jnp.mean(jnp.abs(before)))
        fair = rise >= -0.5 * error - rounding
        return ~(_gaussian.is_gaussian(new) & jnp.isfinite(error) & fair)

    def too_long(carry: Trial) -> Array:
        _, tried, bad = carry
        return bad & (tried <= halvings)

    def shorten(carry: Trial) -> Trial:
        _, tried, _ = carry
        new = move(one * 0.5**tried)
        return new, tried + 1, worse(new)

    # The first step is the loop's too: the model is compiled once for all of them.
    new, tried, bad = while_loop(too_long, shorten, (state, jnp.int32(0), one > 0))
    # `tried` counts the last trial too, at 1/2 to the power of one less.
    share = jnp.where(bad, 0.0, 0.5 ** (tried - 1)).astype(one.dtype)
    return where(bad, state, new)._replace(steps=state.steps + 1, taken=share)


def rate_at(rate: Rate, state: GaussianState) -> Array:
    """Return the learning rate of this step."""
    return jnp.asarray(rate(state.steps) if callable(rate) else rate, state.taken.dtype)


def check_rate(rate: Rate, *, most: float = 1.0) -> None:
    """Refuse a learning rate that no step could use."""
    # A traced rate, and a schedule's values, are known only while running.
    if callable(rate) or not is_known(rate):
        return
    if not (jnp.ndim(rate) == 0 and 0 < rate <= most):
        allowed = f"in (0, {most:g}]" if most < float("inf") else "positive"
        raise ValueError(
            f"learning_rate must be a number {allowed}, or a function of the count of steps, got "
            f"{rate}."
        )


def default_samples(state: GaussianState) -> int:
    """Return max(64, 2 d) for a full-rank q: its curvature has d² numbers; 64 for a mean-field one."""
    return 64 if state.root.ndim == 1 else max(64, 2 * state.root.shape[0])


def check_counts(num_samples: int | None, halvings: int, *, paired: bool) -> None:
    """Refuse numbers of draws, or of halvings, that no step could use."""
    if num_samples is not None:
        checks.num_samples(num_samples)
    if paired and num_samples is not None and num_samples % 2:
        raise ValueError(
            f"draws come in mirrored pairs: num_samples must be even, got {num_samples}."
        )
    checks.static_count(halvings, "halvings", least=0)
