"""Rao-Blackwellization: integrate a block of latents out of the target through its exact conditional."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from vijax import calls, checks, raised
from vijax.calls import usage
from vijax.targets._center import center
from vijax.targets._conjugate import Conjugate
from vijax.types import Distribution, LogJoint, PyTree, lift

# What the two densities that must agree in shape are called in errors.
_NAMES = ("log_joint(z, b)", "conditional(z).log_prob(b)")
_OF_Z = ("log_joint(z)", "conditional(z).log_marginal")
_INDEPENDENT = "targets.conjugate.independent(conditional, {})"


@usage("targets.collapse")
def collapse(
    log_joint: Callable[..., Array],
    conditional: Callable[[PyTree], Any],
    *,
    key: Key[Array, ""] | None = None,
) -> LogJoint:
    """Integrate b out of log p(x, z, b) exactly, by stating p(b | x, z).

        log p(x, z) = log p(x, z, b) - log p(b | x, z)   at any b (the candidate's identity)

    For a part of the model that is conjugate given the rest: the target has fewer latents, and
    every bound of it is at least as tight (docs/rao_blackwell.md).

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats. With one of `targets.conjugate`, also
            z -> the terms of the model outside the conjugate part, such as log p(z), to which its
            log marginal is added: no b is evaluated, which is fastest, and precise for shapes of
            1e8.
        conditional: z -> the exact p(b | x, z), a distribution with batch shape [*batch]. A wrong
            conditional gives a wrong target: check it with `collapse_error`. Draw b from it
            afterwards.
        key: of a draw of b at which the identity is evaluated; by default the conditional's center,
            without a draw where it knows one. The result does not depend on it.

    Returns:
        The collapsed target z -> log p(x, z).

    Raises:
        TypeError: for a log_joint of z alone and (when called) a conditional that is no conjugate.
        ValueError: (when called) where the two log-densities differ in shape.

    Example:
        >>> def log_joint(z, b):
        ...     return distrax.Normal(z, 1.0).log_prob(b) + distrax.Normal(b, 1.0).log_prob(1.0)
        >>> target = collapse(log_joint, lambda z: distrax.Normal((1 + z) / 2, 0.5**0.5))
        >>> round(float(target(0.0)), 3), round(float(distrax.Normal(0.0, 2**0.5).log_prob(1.0)), 3)
        (-1.516, -1.516)

    Reference: Chib, Marginal likelihood from the Gibbs output, 1995; Casella, Robert,
        Rao-Blackwellisation of sampling schemes, 1996.
    """
    least, most = _positional(log_joint)
    log_joint = checks.target(log_joint, "targets.collapse", cure=checks.CONDITIONAL)
    if key is not None:
        checks.key(key)
    if not callable(conditional):
        raise TypeError(
            f"conditional must be a function of z, got {calls.described(conditional)}: write lambda z: before it."
        )

    def collapsed(z: PyTree) -> Array:
        p = lift(raised.evaluated("conditional", conditional, z))
        # A log_joint of z alone is what the model holds beside the conjugate part.
        if most == 1:
            return _marginal(log_joint, p, z)
        if least == 1 and isinstance(p, Conjugate):
            raise ValueError(
                "log_joint must take z alone or z and b, and this one's second argument has a "
                "default: write lambda z: log_joint(z), or lambda z, b: log_joint(z, b)."
            )
        return _identity(log_joint, p, z, center(p, key))

    return collapsed


@usage("targets.collapse_error")
def collapse_error(
    key: Key[Array, ""],
    log_joint: Callable[[PyTree, PyTree], Array],
    conditional: Callable[[PyTree], Any],
    z: PyTree,
) -> Array:
    """Error of a stated conditional: how much log p(x, z) depends on b in `collapse`.

        error = [log p(x, z, b) - log p(b | x, z)] at a draw of b, less that at its center

    Rounding, about 1e-6 of the two densities, where the conditional is exact; otherwise of the
    size of what the conditional misses.

    Args:
        key: of the draw.
        log_joint: (z, b) -> log p(x, z, b), as for `collapse`.
        conditional: z -> p(b | x, z), as for `collapse`. A larger error of a right one means that
            large densities cancel, as of Gamma priors of shape 1e5 and more in float32: use the log
            marginal of a conjugate.
        z: one draw of the other latents.

    Returns:
        Signed errors in nats, [*batch].

    Raises:
        TypeError, ValueError: as `collapse` does.

    Example:
        >>> log_joint = lambda z, b: distrax.Normal(z, 1.0).log_prob(b)
        >>> exact = lambda z: distrax.Normal(z, 1.0)
        >>> round(abs(float(collapse_error(jax.random.key(0), log_joint, exact, 2.0))), 3)
        0.0

    Reference: Chib, Marginal likelihood from the Gibbs output, 1995.
    """
    log_joint = checks.target(log_joint, "targets.collapse_error", cure=checks.CONDITIONAL)
    checks.key(key)
    p = lift(raised.evaluated("conditional", conditional, z))
    drawn, central = (_identity(log_joint, p, z, center(p, one)) for one in (key, None))
    return drawn - central


def _identity(log_joint: Callable[..., Array], p: Distribution, z: PyTree, b: PyTree) -> Array:
    """Return log p(x, z, b) - log p(b | x, z) at a fixed b, whose own path is no part of it."""
    b = jax.lax.stop_gradient(b)
    joint, log_b = log_joint(z, b), p.log_prob(b)
    cure = _INDEPENDENT if isinstance(p, Conjugate) else None
    checks.log_densities(joint, log_b, b, _NAMES, cure)
    return joint - log_b


def _marginal(log_rest: Callable[[PyTree], Array], p: Distribution, z: PyTree) -> Array:
    """Return what the model holds beside a conjugate part, and that part's log marginal."""
    if not isinstance(p, Conjugate):
        raise TypeError(
            "conditional must be one of targets.conjugate, which knows its log marginal, where "
            f"log_joint takes z alone; got {type(p).__name__}: state log_joint(z, b), with b's "
            "prior and likelihood in it."
        )
    rest = log_rest(z)
    checks.log_densities(rest, p.log_marginal, z, _OF_Z, _INDEPENDENT)
    return rest + p.log_marginal


def _positional(function: Callable[..., Any]) -> tuple[int, int | None]:
    """Return how many positional arguments a function takes, at least and at most; None for any."""
    kinds = inspect.Parameter
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, None
    # *args takes any number.
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return 0, None
    given = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    return sum(p.default is kinds.empty for p in given), len(given)
