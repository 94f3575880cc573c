"""vijax: variational inference as small pure functions that compose with jit, vmap, grad and sharding."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from vijax import (
    bounds,
    diagnostics,
    draws,
    families,
    gaussians,
    gradients,
    numerics,
    particles,
    sequences,
    targets,
    testing,
    types,
    updates,
)
from vijax.types import Draws, Estimate, Family, Joint

# Imported by __getattr__ below, so that `import vijax` needs neither Optax nor Flax.
if TYPE_CHECKING:
    from vijax import fitting, models, solvers

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
    "models",
    "numerics",
    "particles",
    "sequences",
    "solvers",
    "targets",
    "testing",
    "types",
    "updates",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import the rooms that stand outside when they are first asked for."""
    if name in ("fitting", "models", "solvers"):
        return import_module(f"vijax.{name}")
    raise AttributeError(f"module 'vijax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
