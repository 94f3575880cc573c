"""Writes docs/grid.md from out/grid.json: what tests/laws/test_grid.py found in each cell of the grid."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "out" / "grid.json", ROOT / "docs" / "grid.md"
HEAD = """# The grid

The core bounds under the core estimators for every kind of q, as `tests/laws/test_grid.py` last found it; `scripts/grid.py`
writes this page from its results.

- **unbiased**: the mean gradient, the model's parameters included, is that of quadrature or enumeration. A bias of the size
  in brackets (nats per unit of a parameter) is caught with probability .999; the whole grid fails by chance once in a million.
- **=**: instruction by instruction the program of the estimator named, so as unbiased as that one.
- **refused**: an error while tracing that names the cure; it is printed below the table.
- **biased**: by design, and the first line of its docstring says so.

There are {cells} cells: {counts}.
"""  # noqa: E501


def cell(seen: dict) -> str:
    """Say in a word what was found."""
    if seen["verdict"] == "unbiased" and "same as" in seen:
        return f"= {seen['same as']}"
    return f"unbiased ({seen['detects']:.3g})" if seen["verdict"] == "unbiased" else seen["verdict"]


def names(rows: list[dict], what: str) -> list[str]:
    """Return what occurs, in the order of the tests."""
    return list(dict.fromkeys(row[what] for row in rows))


def table(rows: list[dict]) -> str:
    """One kind of q: bounds down, estimators across."""
    estimators, bounds = names(rows, "estimator"), names(rows, "bound")
    found = {(row["bound"], row["estimator"]): row for row in rows}
    lines = ["| | " + " | ".join(f"`{e}`" for e in estimators) + " |", "|---" * (len(estimators) + 1) + "|"]
    lines += [f"| `{b}` | " + " | ".join(cell(found[b, e]) for e in estimators) + " |" for b in bounds]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "why" in row:
            reasons.setdefault(re.sub(r"\s+", " ", row["why"]), []).append(f"`{row['estimator']}`")
    lines += [""] + [f"Refused ({', '.join(dict.fromkeys(who))}): *{why}*\n" for why, who in reasons.items()]
    return "\n".join(lines)


def page(rows: list[dict]) -> str:
    """One table for each kind of q."""
    verdicts = [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts, key=verdicts.count)[::-1]))
    parts = [HEAD.format(cells=len(rows), counts=counts)]
    for kind in names(rows, "kind"):
        parts.append(f"## {kind}\n\n{table([row for row in rows if row['kind'] == kind])}")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    if not FOUND.exists():
        sys.exit(f"{FOUND.relative_to(ROOT)} is not there: python -m pytest -m '' tests/laws/test_grid.py writes it.")
    rows = json.loads(FOUND.read_text())
    missing = len(names(rows, "kind")) * len(names(rows, "estimator")) * len(names(rows, "bound")) - len(rows)
    if missing:
        sys.exit(f"{missing} cells were not tested: run python -m pytest -m '' tests/laws/test_grid.py.")
    PAGE.write_text(page(rows))
    print(f"{PAGE.relative_to(ROOT)} written")
