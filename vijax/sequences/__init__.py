"""Chains of latents: linear-Gaussian and hidden Markov ones integrated exactly, others filtered or drawn."""

from vijax.folds import associative, sequential
from vijax.sequences._autoregressive import autoregressive
from vijax.sequences._filter import Filtered, kalman_filter, parallel_kalman_filter
from vijax.sequences._hmm import hmm
from vijax.sequences._lag import fixed_lag_marginals, fixed_lag_smoother
from vijax.sequences._linearize import Linearized, extended, unscented
from vijax.sequences._model import LinearGaussian
from vijax.sequences._nonlinear import NonlinearGaussian, condition, gaussian_filter
from vijax.sequences._smoother import kalman_smoother, parallel_kalman_smoother
from vijax.sequences._viterbi import MostLikely, viterbi

__all__ = [
    "Filtered",
    "LinearGaussian",
    "Linearized",
    "MostLikely",
    "NonlinearGaussian",
    "associative",
    "autoregressive",
    "condition",
    "extended",
    "fixed_lag_marginals",
    "fixed_lag_smoother",
    "gaussian_filter",
    "hmm",
    "kalman_filter",
    "kalman_smoother",
    "parallel_kalman_filter",
    "parallel_kalman_smoother",
    "sequential",
    "unscented",
    "viterbi",
]
