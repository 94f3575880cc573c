"""How a case of NumPyro is written."""

from collections.abc import Callable
from typing import Any

import numpyro.distributions as nd
from numpyro.distributions import transforms as nt

import vijax as vj
from benchmarks._univariate import (
    Case,
    Parameters,
    Places,
)

LIBRARY = "numpyro"
BASE = nd.Distribution
LOGITS = (0.3, -0.4, 0.6)


def affine(q: Any, shift: Any, scale: Any) -> Any:
    inner = nd.TransformedDistribution(q.adapted, nt.AffineTransform(shift, scale))
    return vj.families.adapt(inner)


def case(
    cls: str,
    pieces: Places = (),
    *,
    atoms: Places = (),
    of: Any = None,
    jumps: bool = False,
    **parameters: Any,
) -> Case:
    make: Callable[[Parameters], Any] = of or (lambda p: getattr(nd, cls)(**p))
    return Case(
        f"numpyro {cls}", lambda p: vj.families.adapt(make(p)), parameters, pieces, atoms, jumps
    )


def gaussian(p: Parameters) -> Any:
    return nd.Normal(p["loc"], p["scale"])


GAUSS = dict(loc=0.3, scale=0.8)
COUNTS, FEW = range(80), range(6)
LIMITS = dict(low=0.4, high=2.2)
