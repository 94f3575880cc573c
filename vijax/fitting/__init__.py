"""The optional outer ring: whole fits. Nothing else in vijax imports it."""

from vijax.fitting._maximize import Maximum, maximize
from vijax.fitting._multi_pathfinder import Paths, multi_pathfinder, scatter
from vijax.fitting._pathfinder import Path, pathfinder
from vijax.fitting._quasi_newton import QuasiNewton

__all__ = ["Maximum", "Path", "Paths", "QuasiNewton", "maximize", "multi_pathfinder", "pathfinder", "scatter"]
