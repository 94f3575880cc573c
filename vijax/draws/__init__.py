"""key, q, log_joint -> draws and log-weights: ways to draw, and the weight of every draw."""

from vijax.draws._antithetic import antithetic
from vijax.draws._expectation import Expectation, expectation
from vijax.draws._level import geometric, harmonic, level
from vijax.draws._qmc import sobol
from vijax.draws._sharded import sharded
from vijax.draws._stratified import stratified
from vijax.draws._weigh import weigh
from vijax.engine import iid

__all__ = [
    "Expectation",
    "antithetic",
    "expectation",
    "geometric",
    "harmonic",
    "iid",
    "level",
    "sharded",
    "sobol",
    "stratified",
    "weigh",
]
