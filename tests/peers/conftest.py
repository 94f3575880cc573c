"""What the peers' cases share: a record of each, and the comparison at the peer's tolerance."""

import jax
import numpy as np
import pytest


def show(x, most=4):
    """Return a few numbers of a pytree as text."""
    try:
        flat = np.concatenate(
            [np.ravel(np.asarray(leaf, dtype=float)) for leaf in jax.tree.leaves(x)]
        )
    except (TypeError, ValueError):
        return str(x)[:60]
    text = ", ".join(f"{value:.5g}" for value in flat[:most])
    return text + (f", ... [{flat.size}]" if flat.size > most else "")


@pytest.fixture
def row(record_property):
    """Record the peer's case, the call and both numbers, then compare at the peer's tolerance."""

    def record(**properties):
        for name, value in properties.items():
            record_property(name, value)

    def note(
        case, what, sentence, expected=None, got=None, *, rtol=1e-6, atol=1e-6, ok=None, tol=None
    ):
        within = tol or f"rtol {rtol:g} atol {atol:g}"
        record(
            case=case,
            what=what,
            sentence=sentence,
            expected=f"{show(expected)} ({within})",
            got=show(got),
        )
        if ok is not None:
            assert ok, f"expected {show(expected)}, got {show(got)}"
            return
        pairs = (
            zip(expected, got, strict=True) if isinstance(got, (list, tuple)) else [(expected, got)]
        )
        for e, g in pairs:
            np.testing.assert_allclose(
                np.asarray(g, float), np.asarray(e, float), rtol=rtol, atol=atol
            )

    def cannot(case, what, why):
        record(case=case, what=what, sentence="-", expected="-", got=why)
        pytest.skip("not expressible: " + why)

    note.cannot = cannot
    return note
