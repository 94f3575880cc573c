"""The record: what each call was, how it is written, and how a call is held to it."""

import json
import re
from pathlib import Path

FILE = Path(__file__).parents[1] / "accepted.json"
ACCEPTED = "accepted"
NAMES = re.compile(
    r"\b(?:gradients|bounds|targets|draws|families|fitting|solvers|updates)\.[a-z_]+"
)
LENGTH = 40


def outcome(call):
    """Return "accepted", or the exception's type, the start of its words, and the names in it."""
    try:
        call()
    except Exception as error:
        words = " ".join(str(error).split())
        names = sorted(set(NAMES.findall(words)))
        # What differs from one shape or address to another is no part of what is said.
        says = re.sub(r"0x[0-9a-f]+|\d+", "#", words)[:LENGTH]
        return {"type": type(error).__name__, "says": says, "names": names}
    return ACCEPTED


def differences(recorded, now):
    """Return how a call differs from what it was, or None: words may change, type and cure may not."""
    if recorded == ACCEPTED or now == ACCEPTED:
        return None if recorded == now else f"{_short(recorded)} before, {_short(now)} now"
    if recorded["type"] != now["type"]:
        return f"{_short(recorded)} before, {_short(now)} now"
    if recorded["names"] and not set(recorded["names"]) & set(now["names"]):
        return f"none of {recorded['names']} is named any longer: {_short(now)}"
    return None


def _short(found):
    return found if found == ACCEPTED else f"{found['type']} ({found['says']!r})"


def write(rows):
    """Write (section, row, {cell: outcome}): each outcome once, and numbers for each row."""
    outcomes, sections, columns = [ACCEPTED], {}, {}
    for section, row, found in rows:
        columns.setdefault(section, list(found))
        assert columns[section] == list(found), (
            f"{section}: {row} has other cells than the rows before"
        )
        for each in found.values():
            if each not in outcomes:
                outcomes.append(each)
        sections.setdefault(section, {})[row] = [outcomes.index(each) for each in found.values()]
    lines = ["{", ' "outcomes": [']
    lines += [f"  {json.dumps(each)}," for each in outcomes[:-1]] + [
        f"  {json.dumps(outcomes[-1])}",
        " ],",
    ]
    lines += [f' "columns": {json.dumps(columns)},', ' "rows": {']
    for i, (section, of_section) in enumerate(sections.items()):
        lines.append(f"  {json.dumps(section)}: {{")
        rows_of_section = [
            f"   {json.dumps(row)}: {json.dumps(numbers)}" for row, numbers in of_section.items()
        ]
        lines += [",\n".join(rows_of_section), "  }" + ("," if i < len(sections) - 1 else "")]
    FILE.write_text("\n".join([*lines, " }", "}", ""]))


def read():
    """Return {section: {row: {cell: outcome}}}."""
    held = json.loads(FILE.read_text())
    return {
        section: {
            row: {
                cell: held["outcomes"][number]
                for cell, number in zip(held["columns"][section], numbers, strict=True)
            }
            for row, numbers in rows.items()
        }
        for section, rows in held["rows"].items()
    }
