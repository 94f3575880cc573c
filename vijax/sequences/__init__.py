"""Chains of latents: linear-Gaussian state space models, integrated exactly."""

from vijax.sequences._filter import Filtered, kalman_filter, parallel_kalman_filter
from vijax.sequences._model import LinearGaussian
from vijax.sequences._smoother import kalman_smoother, parallel_kalman_smoother

__all__ = [
    "Filtered",
    "LinearGaussian",
    "kalman_filter",
    "kalman_smoother",
    "parallel_kalman_filter",
    "parallel_kalman_smoother",
]
