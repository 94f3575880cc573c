"""What is known of a target and of a bound beside their values: one record for each."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Array, ArrayLike


class Properties(NamedTuple):
    """What is known of a target beside its values; set by `derive`, read by `properties`.

    Fields:
        keyed: it takes a key of its own, log_joint(z, key=key).
        has_aux: it returns (log p, auxiliary output).
        holds_log_q: it takes log_q=, and adds terms of q in closed form.
        only_mean: why only its mean is an unbiased estimate of log p(x, z), a clause; "" where it is log p(x, z).
        scales_data: it multiplies the log-likelihood of a minibatch by N/B.
        independent_sites: each site's term reads its own site alone, which is declared by the user.
        independent_members: log p of each member of the batch reads the latents of that member
            alone, which is declared by the user.
        smooth: it has neither kinks nor jumps, though its form may, which is declared by the user.
    """

    keyed: bool = False
    has_aux: bool = False
    holds_log_q: bool = False
    only_mean: str = ""
    scales_data: bool = False
    independent_sites: bool = False
    independent_members: bool = False
    smooth: bool = False


# A decorator returns the function it is given, of the same type.
F = TypeVar("F", bound=Callable[..., Any])


def properties(log_joint: Callable[..., Any]) -> Properties:
    """Return the properties of a target, found through any number of `functools.partial`.

    A key that a partial bound is fixed: such a target is keyed no longer.

    Example:
        >>> noisy = vj.targets.keyed(lambda key, z: -(z**2))
        >>> properties(noisy).keyed, properties(partial(noisy, key=jax.random.key(0))).keyed
        (True, False)
    """
    # From the outermost partial inwards; the first that carries properties of its own decides.
    fixed = False
    while True:
        known = getattr(log_joint, "properties", None)
        if isinstance(known, Properties):
            return known._replace(keyed=False) if fixed else known
        if not isinstance(log_joint, partial):
            return Properties()
        fixed = fixed or "key" in log_joint.keywords
        log_joint = log_joint.func


def derive(inner: Callable[..., Any], function: F, **changes: Any) -> F:
    """Give a function the properties of the target that it wraps, with some changed; return the
    function.

    Args:
        inner: the target that is wrapped.
        function: what evaluates it.
        changes: fields of `Properties` in which the two differ.

    Raises:
        TypeError: for a function that takes no attributes, such as a bound method.

    Example:
        >>> inner = vj.targets.keyed(lambda key, z: -(z**2))
        >>> half = derive(inner, lambda z, *, key: 0.5 * inner(z, key=key), smooth=True)
        >>> properties(half).keyed, properties(half).smooth
        (True, True)
    """
    try:
        function.properties = properties(inner)._replace(**changes)  # type: ignore[attr-defined]
    except AttributeError as error:
        raise TypeError(
            f"derive needs a function that takes attributes, got a {type(function).__name__}: wrap "
            "it, lambda z: model.log_joint(z)."
        ) from error
    return function


class ClosedForms(NamedTuple):
    """What a bound knows of itself in closed form; set by `with_closed_forms`, read by
    `closed_forms`.

    A callable field takes what the bound takes, log_w and the bound's own keywords, unless it says otherwise.

    Fields:
        linear: whether the bound is linear in log_w, so that the mean of an unbiased log_w suffices.
        smooth: whether it has no kink; a bool, a function of the bound's keywords, or None where the
            bound's jaxpr is to tell, unless it is linear or has a gate.
        independent: whether its statement is about independent draws alone.
        power: () -> n where it is the power mean 1/n log mean wⁿ, 0 for the mean of log w, or None;
            written as a function of the bound's keywords.
        gate: log_w -> (B'ₖ - B''ₖₖ) / B'ₖ, [k, *batch]: what a doubly-reparameterized path is multiplied by.
        leave_one_out: log_w -> the bound without each draw in turn, [k, *batch], in O(k).
        terms: log_w -> [k, *batch], a function of each draw alone, where the bound is the mean of it
            (under `weights`, if the bound is given some): score and vimco need no other field.
        own: log_w -> (part [k, *batch], share), where B - partₖ does not depend on draw k, and a
            baseline of B counts for draw k in the share of it, a number or [k, *batch].
    """

    linear: bool = False
    smooth: Any = None
    independent: bool = False
    power: Callable[..., Any] | None = None
    gate: Callable[..., Array] | None = None
    leave_one_out: Callable[..., Array] | None = None
    terms: Callable[..., Array] | None = None
    own: Callable[..., tuple[Array, ArrayLike]] | None = None


def with_closed_forms(**forms: Any) -> Callable[[F], F]:
    """Give a bound its closed forms, as a decorator; see `ClosedForms` for the fields.

    Example:
        >>> @with_closed_forms(linear=True)
        ... def total(log_w):
        ...     return jnp.sum(log_w, 0)
        >>> closed_forms(total).linear
        True
    """

    def decorate(bound: F) -> F:
        bound._closed_forms = bound, ClosedForms(**forms)  # type: ignore[attr-defined]
        return bound

    return decorate


def closed_forms(bound: Callable[..., Any]) -> ClosedForms:
    """Return the closed forms of a bound, with the keywords that `functools.partial` bound to it
    filled in.

    Example:
        >>> closed_forms(vj.bounds.elbo).linear, closed_forms(vj.bounds.iwae).linear
        (True, False)
        >>> closed_forms(partial(vj.bounds.renyi, alpha=0.25)).power()
        0.75
    """
    # Keywords of an outer partial win over those of an inner one.
    given: dict[str, Any] = {}
    while isinstance(bound, partial) and not hasattr(bound, "_closed_forms"):
        given = {**bound.keywords, **given}
        bound = bound.func
    owner, forms = getattr(bound, "_closed_forms", (bound, ClosedForms()))
    # functools.wraps copies attributes to a function that may compute another thing; jax.jit copies
    # them to one that computes the same, but what it was given may have been such a copy.
    while bound is not owner and hasattr(bound, "lower"):
        bound = getattr(bound, "__wrapped__", None)  # type: ignore[assignment]
    # What remains is a wrapper of another function, of which nothing is known.
    if bound is not owner:
        return ClosedForms()
    smooth = forms.smooth(**given) if callable(forms.smooth) else forms.smooth

    def bind(form: object) -> Any:
        return partial(form, **given) if callable(form) and given else form

    return ClosedForms(*map(bind, forms._replace(smooth=smooth)))


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what any number of `functools.partial` bound to a function.

    Example:
        >>> keywords(partial(partial(vj.bounds.renyi, alpha=0.5), alpha=0.25))
        {'alpha': 0.25}
    """
    given: dict[str, Any] = {}
    while isinstance(function, partial):
        given = {**function.keywords, **given}
        function = function.func
    return given
