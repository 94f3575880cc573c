"""vijax: variational inference as small pure functions that compose with jit, vmap, grad and sharding."""

from vijax import (
    bounds,
    checks,
    dataflow,
    diagnostics,
    draws,
    families,
    gradients,
    numerics,
    sequences,
    targets,
    testing,
    types,
)  # fmt: skip
from vijax.types import Draws, Estimate, Family, Joint

__all__ = [
    "Draws", "Estimate", "Family", "Joint",
    "bounds", "checks", "dataflow", "diagnostics", "draws", "families", "gradients", "numerics", "sequences",
    "targets", "testing", "types",
    "targets", "testing",
    "types",
]  # fmt: skip
__version__ = "0.1.0"
