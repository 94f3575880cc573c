"""vijax: variational inference as small pure functions that compose with jit, vmap, grad and sharding."""

from vijax import (
    bounds,
    diagnostics,
    draws,
    families,
    fitting,
    gaussians,
    gradients,
    numerics,
    sequences,
    solvers,
    targets,
    testing,
    types,
    updates,
)
from vijax.types import Draws, Estimate, Family, Joint

__all__ = [
    "Draws",
    "Estimate",
    "Family",
    "Joint",
    "bounds",
    "diagnostics",
    "draws",
    "families",
    "fitting",
    "gaussians",
    "gradients",
    "numerics",
    "sequences",
    "solvers",
    "targets",
    "testing",
    "types",
    "updates",
]
__version__ = "0.1.0"
