"""Updates with no scalar objective: rules of a Gaussian q, and IVON as an Optax optimizer."""

from vijax.updates._curvature import Curvature, hessian, stein
from vijax.updates._gaussian import GaussianState
from vijax.updates._ivon import IvonState, ivon, perturb
from vijax.updates._match import batch_and_match
from vijax.updates._natural import clipped, natural_gradient, quadratic, settling
from vijax.updates._square_root import square_root_natural_gradient

__all__ = [
    "Curvature",
    "GaussianState",
    "IvonState",
    "batch_and_match",
    "clipped",
    "hessian",
    "ivon",
    "natural_gradient",
    "perturb",
    "quadratic",
    "settling",
    "square_root_natural_gradient",
    "stein",
]
