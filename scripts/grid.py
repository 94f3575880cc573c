"""Writes docs/grid.md from out/grid.json: what tests/laws/test_grid.py found in each cell of the grid."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "out" / "grid.json", ROOT / "docs" / "grid.md"
HEAD = """# The grid

Every bound under every estimator for every kind of q, as `tests/laws/test_grid.py` last found it; `scripts/grid.py` writes this
page from its results.

- A number: **unbiased**; the mean gradient, the model's parameters included, is a sum over all noise, and this is how far it is
  from the derivative of the same sum written plainly (relative to the truth's largest number, or to 1). 1e-13 is rounding: noise is
  discrete, or nothing was dropped. More is the error of the quadrature's nodes, coarse where five draws of two latents meet; at two
  draws the wrong estimators of the same tests are off by more than ten times what is allowed.
- **< number**: unbiased, by many keys; a bias of this size (nats per unit of a parameter) is caught with probability .999, and one
  cell in 10⁸ fails by chance.
- **=**: instruction by instruction the program of the estimator named, so as unbiased as that one.
- **refused**: an error while tracing that names the cure; it is printed below the table.
- **biased**: by design, and the first line of its docstring says so.

Printed here are {cells} cells ({counts}), of q: {kinds}. The tests hold nine kinds; `make grid` runs
and prints them all. Estimators that refuse every bound for a kind of q have no column there. The objectives
of `fixed`, `wake` and `sleep` are not a bound's, and are held to their own in `tests/gradients/test_wake.py`.

Gradients of particle filters are not a bound's, and have a test of their own: on a two-state chain with two particles and three steps
all draws and ancestors are enumerated (`tests/particles/test_forms.py`). `particles.scored` is **unbiased** for E log Ẑ, to rounding;
`particles.fisher` is unbiased for the slope of p(x) where it is weighed by Ẑ, to rounding, and **biased** by 1/N unweighed;
`particles.fivo` and `particles.transported` are **biased** by design.
"""  # noqa: E501


def cell(seen: dict) -> str:
    """Say in a word what was found."""
    if "same as" in seen:
        return f"= {seen['same as']}"
    if "within" in seen:
        return f"{seen['within']:.0e}"
    return f"< {seen['detects']:.2g}" if "detects" in seen else seen["verdict"]


def names(rows: list[dict], what: str) -> list[str]:
    """Return what occurs, in the order of the tests."""
    return list(dict.fromkeys(row[what] for row in rows))


def table(rows: list[dict]) -> str:
    """One kind of q: bounds down, estimators across."""
    found = {(row["bound"], row["estimator"]): row for row in rows}
    bounds = names(rows, "bound")
    shown = [
        e
        for e in names(rows, "estimator")
        if any(found[b, e]["verdict"] != "refused" for b in bounds)
    ]
    lines = ["| | " + " | ".join(f"`{e}`" for e in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    lines += [f"| `{b}` | " + " | ".join(cell(found[b, e]) for e in shown) + " |" for b in bounds]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "why" in row:
            who = rf"\b({row['estimator']}|{row['bound'].partition('(')[0]})(?=\W)"
            generic = re.sub(who, "…", row["why"])
            reasons.setdefault(re.sub(r"\s+", " ", generic.partition("-----")[0]), []).append(
                f"`{row['estimator']}`"
            )
    lines += [""] + [
        f"Refused ({', '.join(dict.fromkeys(who))}): *{why.strip()}*\n"
        for why, who in reasons.items()
    ]
    return "\n".join(lines)


def page(rows: list[dict]) -> str:
    """One table for each kind of q."""
    verdicts = [row["verdict"] for row in rows]
    counts = ", ".join(
        f"{verdicts.count(v)} {v}"
        for v in dict.fromkeys(sorted(verdicts, key=verdicts.count)[::-1])
    )
    parts = [HEAD.format(cells=len(rows), counts=counts, kinds="; ".join(names(rows, "kind")))]
    for kind in names(rows, "kind"):
        parts.append(f"## {kind}\n\n{table([row for row in rows if row['kind'] == kind])}")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    if not FOUND.exists():
        sys.exit(
            f"{FOUND.relative_to(ROOT)} is not there: python -m pytest -m '' tests/laws/test_grid.py writes it."
        )
    rows = json.loads(FOUND.read_text())
    missing = len(names(rows, "kind")) * len(names(rows, "estimator")) * len(
        names(rows, "bound")
    ) - len(rows)
    if missing:
        sys.exit(
            f"{missing} cells were not tested: run python -m pytest -m '' tests/laws/test_grid.py."
        )
    PAGE.write_text(page(rows))
    print(f"{PAGE.relative_to(ROOT)} written")
