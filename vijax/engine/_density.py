"""What an objective answers where q's library has no density at given values."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from vijax.engine import _refusals as refusals
from vijax.types import Distribution, Joint, PyTree, lift


def no_density(estimator: str, q: Distribution | PyTree, key: Key[Array, ""]) -> Exception | None:
    """Return what to say of a q whose log_prob is not implemented; None of any other error."""
    # Not before there is such an error: asking costs a trace.
    missing = _unimplemented(lift(q), key)
    if missing is None:
        return None
    return refusals.no_density(estimator, missing.of, missing.said, drawn=missing.drawn)


class Unimplemented(NamedTuple):
    """A density that is missing.

    Fields:
        of: the distribution.
        said: what its library says.
        drawn: whether it gives log q where it draws.
    """

    of: str
    said: str
    drawn: bool


def _unimplemented(q: Any, key: Key[Array, ""]) -> Unimplemented | None:
    """Return which distribution has no density at given values."""
    if isinstance(q, Joint):
        leaves: dict[Any, PyTree] = {}
        for name in q.names():
            part = q.conditional(name, leaves)
            missing = _unimplemented(part, key)
            if missing is not None:
                return missing._replace(of=f"leaf '{name}', {missing.of},")
            leaves[name] = part.sample_and_log_prob(seed=key)[0]
        return None
    z: Any = None
    try:
        # In two traces: TFP remembers what a value of the same trace was made of.
        z = jax.eval_shape(lambda key: q.sample_and_log_prob(seed=key)[0], key)
        jax.eval_shape(q.log_prob, z)
    except NotImplementedError as error:
        of = type(getattr(q, "adapted", q)).__name__
        return Unimplemented(of, str(error).rstrip("."), drawn=z is not None)
    return None
