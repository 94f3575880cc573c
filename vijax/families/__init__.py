"""Variational families: params -> q, over any pytree of latents."""

from vijax.families._adapt import adapt
from vijax.families._autoregressive import inverse_autoregressive
from vijax.families._committed import committed_rate
from vijax.families._gaussian import full_rank, low_rank, mean_field
from vijax.families._laplace import laplace, standing
from vijax.families._markov import markov
from vijax.families._members import members
from vijax.families._mixture import mixture, strata
from vijax.families._observations import bernoulli, beta_binomial, discretized_logistics
from vijax.families._spline import spline_coupling
from vijax.families._structured import Given, given, structured
from vijax.families._student import student_t

__all__ = [
    "Given",
    "adapt",
    "bernoulli",
    "beta_binomial",
    "committed_rate",
    "discretized_logistics",
    "full_rank",
    "given",
    "inverse_autoregressive",
    "laplace",
    "low_rank",
    "markov",
    "mean_field",
    "members",
    "mixture",
    "spline_coupling",
    "standing",
    "strata",
    "structured",
    "student_t",
]
