"""How derivatives flow: each function makes of a bound an objective with its own gradient."""

from vijax.gradients._auto import auto
from vijax.gradients._baselines import learned, moving_average, squared_scores
from vijax.gradients._control import rebar, relax
from vijax.gradients._coupled import arm, disarm
from vijax.gradients._each import each
from vijax.gradients._factored import factored
from vijax.gradients._hierarchical import gdreg
from vijax.gradients._measure import measure_valued
from vijax.gradients._pathwise import dreg, reparam, split
from vijax.gradients._relaxed import gumbel_rao, gumbel_softmax, straight_through
from vijax.gradients._score import score, vimco
from vijax.gradients._sums import local_expectation, top_states
from vijax.gradients._wake import fixed, sleep, wake

__all__ = [
    "arm",
    "auto",
    "disarm",
    "dreg",
    "each",
    "factored",
    "fixed",
    "gdreg",
    "gumbel_rao",
    "gumbel_softmax",
    "learned",
    "local_expectation",
    "measure_valued",
    "moving_average",
    "rebar",
    "relax",
    "reparam",
    "score",
    "sleep",
    "split",
    "squared_scores",
    "straight_through",
    "top_states",
    "vimco",
    "wake",
]
