"""Arrays that a jaxpr makes of constants alone, computed where their values are asked for."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import inner_jaxprs, shape_of

# Larger arrays, and those of longer ways, are not computed.
_ELEMENTS = 512 * 512
_STEPS = 200


class Constant:
    """An array of constants: its value, or the equation that makes it of others."""

    def __init__(
        self, value: Any = None, eqn: core.JaxprEqn | None = None, of: Sequence["Constant"] = ()
    ) -> None:
        self.value, self.eqn, self.of = value, eqn, of
        self.steps: int = 1 + max((c.steps for c in of), default=0)

    def array(self) -> np.ndarray | None:
        """Return the array as floats, None where it cannot be computed."""
        try:
            with jax.ensure_compile_time_eval():
                return np.asarray(self._evaluate(), np.float64)
        except Exception:  # whatever a primitive raises outside of its trace: then it is not known
            return None

    def _evaluate(self) -> Any:
        if self.eqn is not None:
            ins = [
                jnp.asarray(c._evaluate(), v.aval.dtype)  # type: ignore[attr-defined]
                for c, v in zip(self.of, self.eqn.invars, strict=True)
            ]
            params = self.eqn.primitive.get_bind_params(self.eqn.params)
            self.value, self.eqn = self.eqn.primitive.bind(*ins, **params), None
        return self.value


def given_constant(value: Any) -> Constant | None:
    """Return a known array, unless it is large."""
    return Constant(value) if np.size(value) <= _ELEMENTS else None


def made_constant(eqn: core.JaxprEqn, of: Sequence[Constant | None]) -> Constant | None:
    """Return what an equation makes of constants; None where not all are known, or it is large."""
    known = [c for c in of if c is not None]
    small = all(np.prod(shape_of(v)) <= _ELEMENTS for v in eqn.outvars)
    if len(known) < len(of) or len(eqn.outvars) != 1 or not small or eqn.effects:
        return None
    if inner_jaxprs(eqn) or max((c.steps for c in known), default=0) >= _STEPS:
        return None
    return Constant(eqn=eqn, of=known)
