"""State-space model, data -> evidence, weights and paths of simulated particles."""

from vijax.particles._forms import fisher, fivo, scored
from vijax.particles._model import Proposal, StateSpace
from vijax.particles._resample import adaptive, always, never
from vijax.particles._run import Filtered, Population
from vijax.particles._smc import history, smc
from vijax.resampling import multinomial, residual, stratified, systematic

__all__ = [
    "Filtered",
    "Population",
    "Proposal",
    "StateSpace",
    "adaptive",
    "always",
    "fisher",
    "fivo",
    "history",
    "multinomial",
    "never",
    "residual",
    "scored",
    "smc",
    "stratified",
    "systematic",
]
