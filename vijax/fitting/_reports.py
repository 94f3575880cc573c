"""What is told of a fit while it runs: a bar on the screen, a file of JSON lines."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""step, steps, first, bound, ess, khat, drift, error, steps_per_second, seconds, stopped."""
Write = Callable[[Line], None]
Report = AbstractContextManager[Write] | Write


@contextmanager
def bar(*, every: float = 0.1) -> Iterator[Write]:
    """Show a live bar: steps, the bound, effective sample size and k-hat of its draws, the pace.

        step / steps,    mean bound of the last steps,    1 / Σ w̃²,    k̂ of pooled last draws

    It is updated from the host between chunks of steps, so the device never waits for it. Needs tqdm.

    Args:
        every: the fewest seconds from one drawing to the next.

    Returns:
        A context manager that yields line -> None, for `fit(..., reports=[bar()])`.

    Raises:
        ImportError: where tqdm is not installed.

    Reference: none.
    """
    from tqdm import tqdm

    progress: Any = None

    def write(line: Line) -> None:
        nonlocal progress
        if progress is None:
            progress = tqdm(
                total=line["steps"], initial=line["first"], unit="step", mininterval=every
            )
        shown = [
            f"{name} {line[name]:.4g}"
            for name in ("bound", "ess", "khat", "drift")
            if line[name] is not None
        ]
        # The count of steps draws both, at most every so many seconds.
        progress.set_postfix_str(", ".join(shown), refresh=False)
        progress.update(line["step"] - progress.n)

    try:
        yield write
    finally:
        if progress is not None:
            progress.close()


@contextmanager
def jsonl(path: str | os.PathLike[str]) -> Iterator[Write]:
    """Append one line of JSON to a file after each chunk of steps; whole lines survive a kill.

        {"step": 2000, "steps": 20000, "bound": -12.3, "ess": 8.1, "khat": 0.31, ...}

    After a resumed fit some steps are there twice: the later line counts. Numbers that JSON has no word
    for are null.

    Args:
        path: of the file; its folder is made. A half line that an earlier kill left is cut off first.

    Returns:
        A context manager that yields line -> None, for `fit(..., reports=[jsonl("fit.jsonl")])`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "fit.jsonl")
        >>> with jsonl(path) as write:
        ...     write({"step": 8, "bound": -1.5, "khat": float("nan")})
        >>> print(path.read_text().strip())
        {"step": 8, "bound": -1.5, "khat": null}

    Reference: none.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Appending, so that two writers cannot overwrite each other's lines.
    file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _mend(file)

        def write(line: Line) -> None:
            plain = {name: _plain(value) for name, value in line.items()}
            # One write for a line: a kill leaves all of it or none, or its beginning.
            os.write(file, (json.dumps(plain, allow_nan=False) + "\n").encode())

        yield write
    finally:
        os.close(file)


def _plain(value: object) -> object:
    """Return a value that JSON has a word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mend(file: int) -> None:
    """Cut off what follows the last end of a line, unless it only lacks its own end."""
    size = os.fstat(file).st_size
    # The last mebibyte holds the end of the last whole line.
    tail = os.pread(file, min(size, 1 << 20), max(size - (1 << 20), 0))
    rest = tail[tail.rfind(b"\n") + 1 :]
    if not rest:
        return
    # A whole line that lacks its end gets it; half a line is no JSON, and goes.
    try:
        json.loads(rest)
        os.write(file, b"\n")
    except ValueError:
        os.ftruncate(file, size - len(rest))


def chosen(reports: Sequence[Report] | None) -> Sequence[Report]:
    """Return the reports that a fit was given, or a bar where it was given none."""
    if isinstance(reports, str) or callable(reports) or isinstance(reports, AbstractContextManager):
        raise TypeError(
            "reports must be a sequence, [fitting.bar(), fitting.jsonl(path)] or () for silence; "
            f"got {reports!r}."
        )
    if reports is not None:
        return reports
    return [bar()] if find_spec("tqdm") else []


def opened(stack: ExitStack, report: Report) -> Write:
    """Enter a report that has an end of its own."""
    makers: tuple[Any, ...] = (bar, jsonl)
    if report in makers or not (callable(report) or isinstance(report, AbstractContextManager)):
        raise TypeError(
            "a report is a function of a dict, fitting.bar() or fitting.jsonl(path) with its "
            f"brackets, got {report!r}."
        )
    if not isinstance(report, AbstractContextManager):
        return report
    # contextlib deletes the arguments of a generator's manager when it is entered.
    if hasattr(report, "gen") and not hasattr(report, "args"):
        raise ValueError("a report serves one fit, and this one has: make another, fitting.bar().")
    return stack.enter_context(report)


def tell(writers: list[Write], line: Line) -> None:
    """Tell every report, and leave out from there on what raises: it must not cost the fit."""
    for write in tuple(writers):
        try:
            write(line)
        except Exception as why:
            writers.remove(write)
            warnings.warn(
                f"a report raised at step {line['step']} and is told no more: {why!r}", stacklevel=6
            )
