"""Chain, or log joint and q -> log-weights of simulated paths: filters, and annealing."""

from vijax.particles._annealed import Annealed, ais, reverse_ais
from vijax.particles._collapse import (
    GaussianStep,
    conditionally_discrete,
    conditionally_gaussian,
    rao_blackwell,
)
from vijax.particles._dais import dais
from vijax.particles._extended import Extended
from vijax.particles._forms import fisher, fivo, scored
from vijax.particles._model import Carried, Proposal, StateSpace, carrying
from vijax.particles._partitions import (
    geometric_partition,
    linear_partition,
    sigmoid_partition,
)
from vijax.particles._paths import backward_simulate, conditional_smc, trace_back
from vijax.particles._pilot import pilot_step_size
from vijax.particles._resample import adaptive, always, never
from vijax.particles._run import Filtered, Population
from vijax.particles._samplers import Tempered, adaptive_tempered_smc, tempered_smc
from vijax.particles._semi_implicit import semi_implicit, semi_implicit_upper
from vijax.particles._smc import history, smc
from vijax.particles._transitions import hmc, langevin
from vijax.particles._transport import transported
from vijax.particles._unrolled import unrolled
from vijax.resampling import multinomial, residual, stratified, systematic

__all__ = [
    "Annealed",
    "Carried",
    "Extended",
    "Filtered",
    "GaussianStep",
    "Population",
    "Proposal",
    "StateSpace",
    "Tempered",
    "adaptive",
    "adaptive_tempered_smc",
    "ais",
    "always",
    "backward_simulate",
    "carrying",
    "conditional_smc",
    "conditionally_discrete",
    "conditionally_gaussian",
    "dais",
    "fisher",
    "fivo",
    "geometric_partition",
    "history",
    "hmc",
    "langevin",
    "linear_partition",
    "multinomial",
    "never",
    "pilot_step_size",
    "rao_blackwell",
    "residual",
    "reverse_ais",
    "scored",
    "semi_implicit",
    "semi_implicit_upper",
    "sigmoid_partition",
    "smc",
    "stratified",
    "systematic",
    "tempered_smc",
    "trace_back",
    "transported",
    "unrolled",
]
