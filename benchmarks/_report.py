"""Rows of a benchmark: what each holds, how it is printed, where it is kept."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Options(NamedTuple):
    """What the command line asked for: a short run, a folder of real data; and the rows of an earlier run."""

    quick: bool = False
    data: Path | None = None
    earlier: tuple[Row, ...] = ()


def row(
    name: str,
    metric: str,
    value: float | None,
    unit: str,
    baseline: str | None = None,
    ratio: float | None = None,
    *,
    bar: float | None = None,
    **extra: Any,
) -> Row:
    """One measurement.

    Args:
        name: what was measured.
        metric: which property, with the setting it was measured in.
        value: the number, in `unit`; None where there is none, as for a peer that is not installed.
        unit: of the value.
        baseline: what it is compared with.
        ratio: value over the baseline's value; for times the median of paired ratios.
        bar: the most that the ratio may be, or the value where there is no ratio.
        extra: anything else, kept in the JSON; `void` and `note` are printed too.
    """
    found = dict(
        name=name, metric=metric, value=value, unit=unit, baseline=baseline, ratio=ratio, **extra
    )
    if bar is not None:
        judged = value if ratio is None else ratio
        found |= {"bar": bar, "met": judged is not None and judged <= bar}
    return found


def missing(name: str, metric: str, why: object) -> Row:
    return row(name, metric, None, "", note=f"missing: {why}")


def failed(name: str, metric: str, why: Exception) -> Row:
    """A measurement that raised: it counts as an acceptance line not met, and the others go on."""
    return row(
        name, metric, None, "", met=False, note=f"FAILED: {type(why).__name__}: {str(why)[:200]}"
    )


def ratio_of(value: float | None, baseline: float | None) -> float | None:
    return value / baseline if value is not None and baseline else None


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(r: Row) -> str:
    """A row as a line of the printed table."""
    value = "-" if r["value"] is None else f"{_number(r['value'])} {r['unit']}"
    text = f"  {r['name']:<42} {value:>18}"
    if r["ratio"] is not None:
        text += f"   {r['ratio']:6.3f} of {r['baseline']}"
        if "iqr" in r:
            text += f" [{r['iqr'][0]:.2f}, {r['iqr'][1]:.2f}]"
    if "bar" in r:
        text += f"   {'met' if r['met'] else 'NOT MET'}, at most {r['bar']:g}"
    if r.get("void"):
        text += "   VOID"
    return text + (f"   {r['note']}" if "note" in r else "")


class Table:
    """Prints rows as they come, under a heading for each metric, and remembers what it has to say at the end."""

    def __init__(self) -> None:
        self.metric: str | None = None
        self.rows: list[Row] = []

    def add(self, r: Row) -> None:
        if r["metric"] != self.metric:
            self.metric = r["metric"]
            print(f"\n{self.metric}", flush=True)
        print(line(r), flush=True)
        self.rows.append(r)

    def close(self) -> None:
        void = sorted({r["metric"] for r in self.rows if r.get("void")})
        if void:
            print(
                "\n*** VOID: the A/A control, two copies of one program, differs by more than 3 % in"
            )
            print(
                "".join(f"***   {metric}\n" for metric in void)
                + "*** Those times say nothing. Run again, alone."
            )
        judged: Sequence[Row] = [r for r in self.rows if "met" in r and not r.get("void")]
        failed = [r for r in judged if not r["met"]]
        print(
            f"\n{len(judged)} acceptance lines judged, {len(failed)} not met"
            + (":" if failed else ".")
        )
        for r in failed:
            print(f"  {r['metric']}:{line(r)}")


def write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(rows, indent=1) + "\n")
    whole.replace(path)


def read(path: Path | None, known: Callable[[Row], bool] | None) -> tuple[Row, ...]:
    """Return the rows of an earlier run that a benchmark need not measure again; none where it does not say which."""
    if not (known and path and path.exists()):
        return ()
    return tuple(filter(known, json.loads(path.read_text())))


def follow(rows: Iterable[Row], table: Table, path: Path | None, earlier: tuple[Row, ...]) -> None:
    """Print rows as they come and keep them, with those of an earlier run whose turn has not come yet."""
    left = list(earlier)
    for r in rows:
        left = [other for other in left if other != r]
        table.add(r)
        if path:
            write([*table.rows, *left], path)
