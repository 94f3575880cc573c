"""Solvers: log_joint -> q with no training loop, by climbing a function without noise."""

from vijax.solvers._dadvi import dadvi
from vijax.solvers._linear_response import Response, dense, linear_response
from vijax.solvers._maximize import Maximum, maximize
from vijax.solvers._multi_pathfinder import Paths, multi_pathfinder, scatter
from vijax.solvers._pathfinder import Path, pathfinder
from vijax.solvers._refine import Refined, refine

__all__ = [
    "Maximum",
    "Path",
    "Paths",
    "Refined",
    "Response",
    "dadvi",
    "dense",
    "linear_response",
    "maximize",
    "multi_pathfinder",
    "pathfinder",
    "refine",
    "scatter",
]
