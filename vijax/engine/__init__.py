"""What every objective does: admit the call, evaluate the draws, in chunks or in one pass, and report.

Private to vijax: gradient estimators, updates and solvers are built on it.
"""

from vijax.engine._bound import is_mean
from vijax.engine._chunks import chunked, split_rows
from vijax.engine._evaluate import Plan, evaluate, iid, plan, split
from vijax.engine._members import Members
from vijax.engine._objective import (
    Estimator,
    Evaluated,
    OnePass,
    Strategy,
    estimate,
    make_objective,
    once_differentiable,
    taking,
)
from vijax.engine._one_pass import one_pass
from vijax.engine._refusals import CURE, densities_disagree, not_one_value_per_draw, support_moves
from vijax.engine._request import (
    Needs,
    Request,
    admit,
    require,
)
from vijax.engine._states import States, floored, parts

__all__ = [
    "CURE",
    "Estimator",
    "Evaluated",
    "Members",
    "Needs",
    "OnePass",
    "Plan",
    "Request",
    "States",
    "Strategy",
    "admit",
    "chunked",
    "densities_disagree",
    "estimate",
    "evaluate",
    "floored",
    "iid",
    "is_mean",
    "make_objective",
    "not_one_value_per_draw",
    "once_differentiable",
    "one_pass",
    "parts",
    "plan",
    "require",
    "split",
    "split_rows",
    "support_moves",
    "taking",
]
