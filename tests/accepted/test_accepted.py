"""What was refused is refused, what was accepted is accepted: each call beside tests/accepted.json.

A call is traced, not compiled: `jax.eval_shape` of the gradient of an objective. Of a refusal the
exception's type must stay, and of the names of vijax in its message (the cure) one at least; the
words may change. Where a change is meant, write the record anew, five minutes of a free core,

    .venv/bin/python -m tests.accepted

and read its difference: every number in it that changes is a call that users will find accepted or
refused. `make test` holds a spread of the calls, `make slow` the rest.
"""

import pytest

from tests.accepted import functions, grid, record

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
ROWS = [*grid.rows(), *functions.rows()]
# Of the spread that every run holds, those of fewer estimators and of no solver that climbs.
LEFT = {
    "arm",
    "factored",
    "gdreg",
    "each",
    "gumbel_softmax",
    "straight_through",
    "gumbel_rao",
    "square_root_natural_gradient",
    "batch_and_match",
    "pathfinder",
    "dadvi",
    "linear_response",
    "maximize",
    "local_expectation",
    "rebar",
    "relax",
    "split",
    "fixed",
    "wake",
    "measure_valued",
    "disarm",
    "top_states",
    "multi_pathfinder",
}


@pytest.fixture(scope="module")
def recorded():
    return record.read()


def parts():
    """Yield the rows of each section and estimator or function; the slow ones by themselves."""
    groups = {}
    for section, name, row, cells, spread in ROWS:
        fast = spread and name not in LEFT
        groups.setdefault((section, name, fast), []).append((row, cells))
    for (section, name, fast), rows in groups.items():
        marks = () if fast else pytest.mark.slow
        yield pytest.param(
            section, rows, id=f"{section}, {name}{'' if fast else ', rest'}", marks=marks
        )


@pytest.mark.parametrize(("section", "rows"), list(parts()))
def test_calls_are_accepted_or_refused_as_they_were(section, rows, recorded):
    changed = []
    for row, cells in rows:
        for cell, call in cells.items():
            difference = record.differences(recorded[section][row][cell], record.outcome(call))
            if difference:
                changed.append(f"{row}, {cell}: {difference}")
    assert not changed, f"{len(changed)} calls are not what they were:\n" + "\n".join(changed)


def test_the_record_is_of_these_calls(recorded):
    """No row or cell of the record is without a call, and no call without a cell."""
    calls = {}
    for section, _, row, cells, _ in ROWS:
        calls.setdefault(section, {})[row] = set(cells)
    assert calls == {
        section: {row: set(cells) for row, cells in rows.items()}
        for section, rows in recorded.items()
    }


def test_the_comparison_can_tell():
    """The controls: what counts as a difference, and what does not."""
    refused = {
        "type": "ValueError",
        "says": "dreg needs",
        "names": ["gradients.reparam", "gradients.vimco"],
    }
    assert record.differences("accepted", "accepted") is None
    assert "now" in record.differences("accepted", refused)
    assert "now" in record.differences(refused, "accepted")
    assert "now" in record.differences(refused, refused | {"type": "TypeError"})
    assert (
        record.differences(refused, refused | {"says": "other words", "names": ["gradients.vimco"]})
        is None
    )
    assert "named" in record.differences(refused, refused | {"names": ["bounds.elbo"]})


def test_an_outcome_is_read_from_the_error():
    def refuse():
        raise ValueError("z of shape (3, 4) is refused; use gradients.vimco")

    assert record.outcome(refuse) == {
        "type": "ValueError",
        "says": "z of shape (#, #) is refused; use gradie",
        "names": ["gradients.vimco"],
    }
    assert record.outcome(lambda: 1) == "accepted"
