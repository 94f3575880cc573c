"""Bounds of the log-evidence: arithmetic on log-weights [k, *batch], in nats, with no gradient code."""

from vijax.bounds import generators
from vijax.bounds._debiased import mlmc_iwae, sumo
from vijax.bounds._divergences import f_divergence
from vijax.bounds._importance import ciwae, elbo, iwae, multi_iwae
from vijax.bounds._jackknife import jackknife
from vijax.bounds._moments import exp_cubo, log_variance, perturbative
from vijax.bounds._renyi import cubo, renyi
from vijax.bounds._thermodynamic import eubo, tvo_lower, tvo_upper

__all__ = [
    "ciwae",
    "cubo",
    "elbo",
    "eubo",
    "exp_cubo",
    "f_divergence",
    "generators",
    "iwae",
    "jackknife",
    "log_variance",
    "mlmc_iwae",
    "multi_iwae",
    "perturbative",
    "renyi",
    "sumo",
    "tvo_lower",
    "tvo_upper",
]
