"""Chains of latents, integrated exactly: linear-Gaussian state spaces and hidden Markov chains."""

from vijax.sequences._filter import Filtered, kalman_filter, parallel_kalman_filter
from vijax.folds import associative, sequential
from vijax.sequences._hmm import hmm
from vijax.sequences._model import LinearGaussian
from vijax.sequences._smoother import kalman_smoother, parallel_kalman_smoother

__all__ = [
    "Filtered",
    "LinearGaussian",
    "associative",
    "hmm",
    "kalman_filter",
    "kalman_smoother",
    "parallel_kalman_filter",
    "parallel_kalman_smoother",
    "sequential",
]
