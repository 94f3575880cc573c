"""How derivatives flow: each function makes of a bound an objective with its own gradient."""

from vijax.gradients._auto import auto
from vijax.gradients._control import rebar, relax
from vijax.gradients._coupled import arm, disarm
from vijax.gradients._pathwise import dreg, reparam
from vijax.gradients._relaxed import gumbel_rao, gumbel_softmax, straight_through
from vijax.gradients._score import score, vimco

__all__ = [
    "arm",
    "auto",
    "disarm",
    "dreg",
    "gumbel_rao",
    "gumbel_softmax",
    "rebar",
    "relax",
    "reparam",
    "score",
    "straight_through",
    "vimco",
]
