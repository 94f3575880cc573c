"""The table is complete: every public function has a row, or names the file of its tests."""

import importlib
from pathlib import Path

import pytest

import vijax as vj
from tests import table


@pytest.mark.parametrize("room", sorted(table.PUBLIC))
def test_every_public_function_is_in_the_table(room):
    assert set(table.PUBLIC[room]) == set(importlib.import_module(f"vijax.{room}").__all__)


PRIVATE = {"engine", "jaxprs"}


def test_every_room_is_in_the_table():
    """Folders of vijax are rooms; each that is public has its entry."""
    rooms = {path.parent.name for path in Path(vj.__file__).parent.glob("*/__init__.py")}
    assert rooms - PRIVATE == set(table.PUBLIC)


@pytest.mark.parametrize("room", [room for room in table.PUBLIC if room != "types"])
def test_the_named_file_tests_the_function(room):
    for name, file in table.PUBLIC[room].items():
        assert name in (Path(__file__).parents[1] / file).read_text(), (
            f"{file} does not mention {room}.{name}"
        )


def test_the_names_of_rows_are_unique():
    assert len(table.BOUND) == len(table.BOUNDS)
