"""Laws: each runs over the rows of `tests.table`, so that a new bound or gradient costs one row."""
