"""What every run tests, and what is left to `make slow`."""

import pytest


def some(rows, *always, name=str):
    """Return parameters, of which every run takes those whose names are in `always`; the rest are slow."""
    names = [name(row) for row in rows]
    assert not set(always) - set(names), f"{set(always) - set(names)} are not among {names}"
    return [
        pytest.param(row, id=n, marks=() if n in always else pytest.mark.slow)
        for row, n in zip(rows, names, strict=True)
    ]


def but(rows, *slow, name=str):
    """Return parameters, of which those whose names are in `slow` are slow, and every run takes the rest."""
    names = [name(row) for row in rows]
    assert not set(slow) - set(names), f"{set(slow) - set(names)} are not among {names}"
    return some(rows, *(n for n in names if n not in slow), name=name)
