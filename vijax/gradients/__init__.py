"""How derivatives flow: each function makes of a bound an objective with its own gradient."""

from vijax.gradients._auto import auto
from vijax.gradients._pathwise import dreg, reparam
from vijax.gradients._score import score, vimco

__all__ = ["auto", "dreg", "reparam", "score", "vimco"]
