"""Gaussians: by their precision, as conditionals are, and as affine maps of noise, as q is."""

from vijax.gaussians._precision import Precision, dense, diagonal
from vijax.gaussians._tridiagonal import tridiagonal
from vijax.gaussians.affine import AffineGaussian
from vijax.gaussians.conditional import Gaussian

__all__ = [
    "AffineGaussian",
    "Gaussian",
    "Precision",
    "dense",
    "diagonal",
    "tridiagonal",
]
