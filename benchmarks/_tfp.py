"""How a case of TFP on JAX is written."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from benchmarks._univariate import (
    Case,
    Parameters,
    Places,
)

td, tb = tfp.distributions, tfp.bijectors
LIBRARY = "tfp"
BASE = td.Distribution
LOGITS = (0.3, -0.4, 0.6)


def affine(q: Any, shift: Any, scale: Any) -> Any:
    line = tb.Chain([tb.Shift(jnp.asarray(shift, float)), tb.Scale(scale)])
    return vj.families.adapt(td.TransformedDistribution(q.adapted, line))


def case(
    cls: str,
    pieces: Places = (),
    *,
    atoms: Places = (),
    of: Any = None,
    jumps: bool = False,
    **parameters: Any,
) -> Case:
    make: Callable[[Parameters], Any] = of or (lambda p: getattr(td, cls)(**p))
    return Case(
        f"tfp {cls}", lambda p: vj.families.adapt(make(p)), parameters, pieces, atoms, jumps
    )


def gaussian(p: Parameters) -> Any:
    return td.Normal(p["loc"], p["scale"])


GAUSS = dict(loc=0.3, scale=0.8)
COUNTS, FEW = range(80), range(6)
ONE = np.float64(1.0)  # TFP asks for one dtype throughout
