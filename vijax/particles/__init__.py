"""State-space model, data -> evidence, weights and paths of simulated particles."""

from vijax.particles._collapse import (
    GaussianStep,
    conditionally_discrete,
    conditionally_gaussian,
    rao_blackwell,
)
from vijax.particles._forms import fisher, fivo, scored
from vijax.particles._model import Carried, Proposal, StateSpace, carrying
from vijax.particles._paths import backward_simulate, conditional_smc, trace_back
from vijax.particles._resample import adaptive, always, never
from vijax.particles._run import Filtered, Population
from vijax.particles._smc import history, smc
from vijax.particles._transport import transported
from vijax.particles._unrolled import unrolled
from vijax.resampling import multinomial, residual, stratified, systematic

__all__ = [
    "Carried",
    "Filtered",
    "GaussianStep",
    "Population",
    "Proposal",
    "StateSpace",
    "adaptive",
    "always",
    "backward_simulate",
    "carrying",
    "conditional_smc",
    "conditionally_discrete",
    "conditionally_gaussian",
    "fisher",
    "fivo",
    "history",
    "multinomial",
    "never",
    "rao_blackwell",
    "residual",
    "scored",
    "smc",
    "stratified",
    "systematic",
    "trace_back",
    "transported",
    "unrolled",
]
