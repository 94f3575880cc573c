"""Proof that an estimator or a bound of yours is right: statistical tests of known error rates and known sight."""

from vijax.testing._bias import check_unbiased
from vijax.testing._moments import Moments, gradient_moments
from vijax.testing._order import check_bound_order
from vijax.testing._trial import Report

__all__ = ["Moments", "Report", "check_bound_order", "check_unbiased", "gradient_moments"]
