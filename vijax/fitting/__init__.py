"""The optional outer ring: whole fits. Nothing else in vijax imports it."""

from vijax.fitting._ascent import Ascent, AscentState, Seen, ascent
from vijax.fitting._checkpoint import Checkpoints, Restored, restore, save
from vijax.fitting._fit import Fit, fit
from vijax.fitting._iterates import Tail
from vijax.fitting._minibatches import Cursor, Minibatches, minibatches
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
    "Minibatches",
    "NotFinite",
    "Restarts",
    "Restored",
    "Seen",
    "Tail",
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
]
