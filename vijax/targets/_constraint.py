"""What a constraint is, and how it hands over the logarithms that a float near its boundary loses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from vijax.calls import usage


class Logged(NamedTuple):
    """A constrained value beside its distances from its bounds, as logarithms: what `with_log` makes of a latent.

    Fields:
        value: z, [..., *event].
        log: log (z - low), which is log z above 0, of z's shape; None without a lower bound.
        log_rest: log (high - z), which is log (1 - z) below 1, of z's shape; None without an upper bound.
    """

    value: Array
    log: Array | None = None
    log_rest: Array | None = None


class Constraint(NamedTuple):
    """A smooth map of all of ℝⁿ onto the values that a latent may take, one to one.

    Fields:
        forward: y [..., *free] -> (z [..., *event], log |det ∂z/∂y| [...] in nats), of z's free coordinates.
        inverse: z -> y.
        logs: y -> (log (z - low), log (high - z)), from y itself, for `with_log`; None of a bound that there is not.
        from_logs: (log (z - low), log (high - z)) -> y.
    """

    forward: Callable[[Array], tuple[Any, Array]]
    inverse: Callable[[Any], Array]
    logs: Callable[[Array], tuple[Array | None, Array | None]] | None = None
    from_logs: Callable[..., Array] | None = None


@usage("constraints.with_log")
def with_log(constraint: Constraint) -> Constraint:
    """Return a constraint that gives log z beside z, for densities infinite at an end.

        z = Logged(value, log, log_rest),     log = log (z - low),   log_rest = log (high - z)

    For sparse Gamma, Beta and Dirichlet priors. Written in the logarithms their densities integrate
    to 1; written in z, 11% of the mass of Gamma(.1, 1) is lost in float32, and 80% of Gamma(.01,
    1).

    Args:
        constraint: `positive`, `softplus`, `interval`, `positive_ordered` or `simplex`.

    Returns:
        The constraint, with the same y and log-Jacobian; its inverse takes z, or a Logged z and
        reads the logarithms.

    Raises:
        TypeError: for another constraint, which has no such logarithms.

    Example:
        >>> log_joint = lambda z: (0.01 - 1) * z.log - z.value
        >>> target = vj.targets.transform(log_joint, with_log(vj.targets.constraints.positive))
        >>> round(float(target.log_joint(-200.0)), 3)
        -2.0

    Reference: none.
    """
    logs = getattr(constraint, "logs", None)
    if logs is None:
        raise TypeError(
            "constraint must be positive, softplus, interval(...), positive_ordered or simplex, "
            f"which know log z from y; got {constraint!r:.60}: give it as it is."
        )

    def forward(y: ArrayLike) -> tuple[Logged, Array]:
        z, log_jacobian = constraint.forward(y)  # type: ignore[arg-type]
        # Half precision has no room for the logarithms: they are computed in float32.
        wide = jnp.promote_types(z.dtype, jnp.float32)
        each = logs(jnp.asarray(y, wide))
        narrow = [None if part is None else part.astype(z.dtype) for part in each]
        return Logged(z, *narrow), log_jacobian

    def inverse(z: Array | Logged) -> Array:
        if not isinstance(z, Logged):
            return constraint.inverse(z)
        return constraint.from_logs(z.log, z.log_rest)  # type: ignore[misc]

    return Constraint(forward, inverse)
