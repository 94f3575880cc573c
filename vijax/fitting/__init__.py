"""The optional outer ring: whole fits. Nothing else in vijax imports it."""

from vijax.fitting._dadvi import Response, dadvi, dense, linear_response
from vijax.fitting._maximize import Maximum, maximize
from vijax.fitting._minibatches import Cursor, Minibatches, minibatches
from vijax.fitting._multi_pathfinder import Paths, multi_pathfinder, scatter
from vijax.fitting._pathfinder import Path, pathfinder
from vijax.fitting._quasi_newton import QuasiNewton

__all__ = [
    "Cursor",
    "Maximum",
    "Minibatches",
    "Path",
    "Paths",
    "QuasiNewton",
    "Response",
    "dadvi",
    "dense",
    "linear_response",
    "maximize",
    "minibatches",
    "multi_pathfinder",
    "pathfinder",
    "scatter",
]
