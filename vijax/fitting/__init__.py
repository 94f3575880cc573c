"""The outer ring: whole fits by a rule, restarts, stopping, checkpoints and minibatches."""

from vijax.fitting._ascent import ascent
from vijax.fitting._checkpoint import Checkpoints, Restored, restore, save
from vijax.fitting._fit import Curve, Fit, fit
from vijax.fitting._marginals import scale_units
from vijax.fitting._minibatches import minibatches
from vijax.fitting._reports import bar, jsonl
from vijax.fitting._restarts import Restarts, restarts
from vijax.fitting._stopping import Verdict, stationary
from vijax.fitting._weigh import weigh

__all__ = [
    "Checkpoints",
    "Curve",
    "Fit",
    "Restarts",
    "Restored",
    "Verdict",
    "ascent",
    "bar",
    "fit",
    "jsonl",
    "minibatches",
    "restarts",
    "restore",
    "save",
    "scale_units",
    "stationary",
    "weigh",
]
