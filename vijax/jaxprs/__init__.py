"""What a traced function shows: one walk over its jaxpr, and for each question a table of rules.

Private to vijax. No question is answered by the absence of a sign: what a mutable reference or a
host callback returns is unknown to each of them.
"""

from vijax.jaxprs._axes import Axes, axes
from vijax.jaxprs._collective import collective
from vijax.jaxprs._degree import Blame
from vijax.jaxprs._derivative import flows
from vijax.jaxprs._equations import OPAQUE, hidden, shape_of, trace
from vijax.jaxprs._fingerprint import fingerprint
from vijax.jaxprs._flow import Flow, merge
from vijax.jaxprs._hoist import bare, hoist, stopped, totals
from vijax.jaxprs._mean_alone import (
    beyond_mean,
    beyond_mean_slope,
    mean_alone,
    mean_slope_alone,
)
from vijax.jaxprs._outer import Outer, accidental_outer
from vijax.jaxprs._paths import DRAWN, LOOK_UP, NOISE, PARAMETER, Path, by_leaf, joint_paths, paths
from vijax.jaxprs._polynomial import not_linear, not_quadratic
from vijax.jaxprs._programs import once
from vijax.jaxprs._reads import read_by, reads
from vijax.jaxprs._scored import Scored, scored_leaves
from vijax.jaxprs._smooth import not_smooth
from vijax.jaxprs._stand_in import misfit
from vijax.jaxprs._step import step_moves
from vijax.jaxprs._support import Moving, carried_away, moving_support

__all__ = [
    "Axes",
    "Blame",
    "DRAWN",
    "Flow",
    "LOOK_UP",
    "Moving",
    "NOISE",
    "OPAQUE",
    "Outer",
    "PARAMETER",
    "Path",
    "Scored",
    "accidental_outer",
    "axes",
    "bare",
    "beyond_mean",
    "beyond_mean_slope",
    "by_leaf",
    "carried_away",
    "collective",
    "fingerprint",
    "flows",
    "hidden",
    "hoist",
    "joint_paths",
    "mean_alone",
    "mean_slope_alone",
    "merge",
    "misfit",
    "moving_support",
    "not_linear",
    "not_quadratic",
    "not_smooth",
    "once",
    "paths",
    "read_by",
    "reads",
    "scored_leaves",
    "shape_of",
    "step_moves",
    "stopped",
    "totals",
    "trace",
]
