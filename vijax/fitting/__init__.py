"""The optional outer ring: whole fits. Nothing else in vijax imports it."""

from vijax.fitting._ascent import Ascent, AscentState, Seen, ascent
from vijax.fitting._checkpoint import Checkpoints, Restored, restore, save
from vijax.fitting._dadvi import Response, dadvi, dense, linear_response
from vijax.fitting._fit import Fit, fit
from vijax.fitting._iterates import Tail
from vijax.fitting._maximize import Maximum, maximize
from vijax.fitting._minibatches import Cursor, Minibatches, minibatches
from vijax.fitting._multi_pathfinder import Paths, multi_pathfinder, scatter
from vijax.fitting._pathfinder import Path, pathfinder
from vijax.fitting._quasi_newton import QuasiNewton
from vijax.fitting._reports import bar, jsonl
from vijax.fitting._restarts import Many, Restarts, restarts
from vijax.fitting._stopping import Verdict, scale_units, stationary
from vijax.fitting._trouble import NotFinite

__all__ = [
    "Ascent",
    "AscentState",
    "Checkpoints",
    "Cursor",
    "Fit",
    "Many",
    "Maximum",
    "Minibatches",
    "NotFinite",
    "Path",
    "Paths",
    "QuasiNewton",
    "Response",
    "Restarts",
    "Restored",
    "Seen",
    "Tail",
    "Verdict",
    "ascent",
    "bar",
    "dadvi",
    "dense",
    "fit",
    "jsonl",
    "linear_response",
    "maximize",
    "minibatches",
    "multi_pathfinder",
    "pathfinder",
    "restarts",
    "restore",
    "save",
    "scale_units",
    "scatter",
    "stationary",
]
