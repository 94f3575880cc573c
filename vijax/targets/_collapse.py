"""Rao-Blackwellization: integrate a block of latents out of the target through its exact conditional."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from vijax import checks
from vijax.targets._center import center
from vijax.targets._conjugate import Conjugate
from vijax.types import LogJoint, PyTree, lift

_NAMES = ("log_joint(z, b)", "conditional(z).log_prob(b)")
_OF_Z = ("log_joint(z)", "conditional(z).log_marginal")
_INDEPENDENT = "targets.conjugate.independent(conditional, {})"


def collapse(
    log_joint: Callable[..., Array],
    conditional: Callable[[PyTree], Any],
    *,
    key: Any = None,
) -> LogJoint:
    """Integrate b out of log p(x, z, b) exactly, by stating p(b | x, z).

        log p(x, z) = log p(x, z, b) - log p(b | x, z)   at any b (the candidate's identity)
        log p(x, z) = log p(z) + log p(x | z)            where a conjugate knows the last

    When part of the model is conjugate given the rest: the collapsed target has fewer latents and every bound of it is
    at least as tight (see docs/rao_blackwell.md). A wrong conditional is a wrong target: `collapse_error` shows it, and
    how many digits two large densities leave. Draw b afterwards from `conditional(z)`.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats. With one of `targets.conjugate` also z -> what the model
            holds beside the conjugate part, such as log p(z): then no b is evaluated, which is quickest, and keeps its
            digits for shapes of 1e8.
        conditional: z -> the exact p(b | x, z), a distribution with batch shape [*batch].
        key: of a draw of b at which the identity is evaluated; by default the conditional's center, without a draw
            where it knows one. The result does not depend on it.

    Returns:
        The collapsed target z -> log p(x, z).

    Raises:
        TypeError: for a log_joint of z alone and (when called) a conditional that is no conjugate.
        ValueError: (when called) where the two log-densities differ in shape.

    Reference: Chib, Marginal likelihood from the Gibbs output, 1995; Casella, Robert, Rao-Blackwellisation of sampling
        schemes, 1996.
    """
    least, most = _positional(log_joint)
    log_joint = checks.target(log_joint, "targets.collapse", cure=checks.CONDITIONAL)
    if key is not None:
        checks.key(key)

    def collapsed(z: PyTree) -> Array:
        p = lift(conditional(z))
        if most == 1:
            return _marginal(log_joint, p, z)
        if least == 1 and isinstance(p, Conjugate):
            raise ValueError(
                "log_joint must take z alone or z and b, and this one's second argument has a default: write "
                "lambda z: log_joint(z), or lambda z, b: log_joint(z, b)."
            )
        return _identity(log_joint, p, z, center(p, key))

    return collapsed


def collapse_error(
    key: Key[Array, ""],
    log_joint: Callable[[PyTree, PyTree], Array],
    conditional: Callable[[PyTree], Any],
    z: PyTree,
) -> Array:
    """Error of a stated conditional: how much log p(x, z) depends on the b at which `collapse` evaluates it.

        error = [log p(x, z, b) - log p(b | x, z)] at a draw of b, less that at the conditional's center

    Rounding, some 1e-6 of the two densities, where the conditional is exact; anything else, of the size of what is
    missing from it, where it is not. An error of more than that with a right conditional says that the densities are
    large and cancel, as of Gamma priors of shape 1e5 and more in float32: let a conjugate know its log marginal.

    Args:
        key: of the draw.
        log_joint: (z, b) -> log p(x, z, b), as for `collapse`.
        conditional: z -> p(b | x, z), as for `collapse`.
        z: one draw of the other latents.

    Returns:
        Signed errors in nats, [*batch].

    Raises:
        TypeError, ValueError: as `collapse` does.

    Reference: Chib, Marginal likelihood from the Gibbs output, 1995.
    """
    log_joint = checks.target(log_joint, "targets.collapse_error", cure=checks.CONDITIONAL)
    checks.key(key)
    p = lift(conditional(z))
    drawn, central = (_identity(log_joint, p, z, center(p, one)) for one in (key, None))
    return drawn - central


def _identity(log_joint: Callable[..., Array], p: Any, z: PyTree, b: PyTree) -> Array:
    """Return log p(x, z, b) - log p(b | x, z) at a fixed b, whose own path is no part of it."""
    b = jax.lax.stop_gradient(b)
    joint, log_b = log_joint(z, b), p.log_prob(b)
    cure = _INDEPENDENT if isinstance(p, Conjugate) else None
    checks.log_densities(joint, log_b, b, _NAMES, cure)
    return joint - log_b


def _marginal(log_rest: Callable[[PyTree], Array], p: Any, z: PyTree) -> Array:
    """Return what the model holds beside a conjugate part, and that part's log marginal."""
    if not isinstance(p, Conjugate):
        raise TypeError(
            "conditional must be one of targets.conjugate, which knows its log marginal, where log_joint takes z "
            f"alone; got {type(p).__name__}: state log_joint(z, b), with b's prior and likelihood in it."
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
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return 0, None
    given = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    return sum(p.default is kinds.empty for p in given), len(given)
