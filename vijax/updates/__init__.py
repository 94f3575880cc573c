"""Rules with no scalar objective, each as (init, step): natural gradients, batch and match, IVON."""

from vijax.updates._curvature import Curvature, Local, hessian, stein
from vijax.updates._gaussian import GaussianState, Update
from vijax.updates._ivon import IvonState, ivon, perturb
from vijax.updates._match import batch_and_match
from vijax.updates._natural import clipped, natural_gradient, quadratic, settling
from vijax.updates._square_root import square_root_natural_gradient

__all__ = [
    "Curvature",
    "GaussianState",
    "IvonState",
    "Local",
    "Update",
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
