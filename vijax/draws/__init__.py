"""How q is looked at: ways to draw, and the log-weight of every draw."""

from vijax.draws._antithetic import antithetic
from vijax.draws._chunked import chunked
from vijax.draws._iid import iid, sharded
from vijax.draws._level import geometric, harmonic, level
from vijax.draws._online import online
from vijax.draws._qmc import sobol
from vijax.draws._stratified import stratified
from vijax.draws._weigh import Plan, evaluate, plan, weigh

__all__ = [
    "Plan",
    "antithetic",
    "chunked",
    "evaluate",
    "geometric",
    "harmonic",
    "iid",
    "level",
    "online",
    "plan",
    "sharded",
    "sobol",
    "stratified",
    "weigh",
]
