"""Change the question: log_joint -> log_joint."""

from vijax.targets import adapters, conjugate, constraints, minorizers
from vijax.targets._collapse import collapse, collapse_error
from vijax.targets._enumerate import enumerate
from vijax.targets._exact_kl import exact_entropy, exact_kl
from vijax.targets._gauss_hermite import gauss_hermite, gauss_hermite_error
from vijax.targets._independent_members import independent_members
from vijax.targets._keyed import keyed, unbiased
from vijax.targets._minibatch import minibatch
from vijax.targets._minorize import Minorized, minorize
from vijax.targets._missing import missing
from vijax.targets._quadratic import collapse_gaussian, collapse_laplace
from vijax.targets._quadrature import quadrature, quadrature_error
from vijax.targets._tied import tied
from vijax.targets._transform import Transformed, transform

__all__ = [
    "Minorized",
    "Transformed",
    "adapters",
    "collapse",
    "collapse_error",
    "collapse_gaussian",
    "collapse_laplace",
    "conjugate",
    "constraints",
    "enumerate",
    "exact_entropy",
    "exact_kl",
    "gauss_hermite",
    "gauss_hermite_error",
    "independent_members",
    "keyed",
    "minibatch",
    "minorize",
    "minorizers",
    "missing",
    "quadrature",
    "quadrature_error",
    "tied",
    "transform",
    "unbiased",
]
