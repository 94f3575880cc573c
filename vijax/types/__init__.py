"""Types: the kinds of function, the values they exchange, and what is known of targets and bounds."""

from vijax.types._joint import Joint, lift
from vijax.types._records import (
    ClosedForms,
    Properties,
    closed_forms,
    derive,
    keywords,
    properties,
    with_closed_forms,
)
from vijax.types._values import (
    Bound,
    Distribution,
    Draw,
    Draws,
    Estimate,
    Family,
    Level,
    LogJoint,
    Objective,
    PyTree,
    Rule,
    Step,
)

__all__ = [
    "Bound",
    "ClosedForms",
    "Distribution",
    "Draw",
    "Draws",
    "Estimate",
    "Family",
    "Joint",
    "Level",
    "LogJoint",
    "Objective",
    "Properties",
    "PyTree",
    "Rule",
    "Step",
    "closed_forms",
    "derive",
    "keywords",
    "lift",
    "properties",
    "with_closed_forms",
]
