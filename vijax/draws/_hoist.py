"""Closed-over values as arguments; they live in jaxprs."""

from vijax.jaxprs import bare, hoist, totals

__all__ = ["bare", "hoist", "totals"]
