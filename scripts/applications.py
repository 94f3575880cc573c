"""Print docs/applications.md: what the notebooks of `applications/` found at full size, from what each run left.

`python scripts/applications.py > docs/applications.md`. Each notebook leaves `out/NAME.json`; what a full run left is
kept as `benchmarks/results/notebook-NAME.json`.
"""

import json
from pathlib import Path

HEAD = """# Applications

One bound in several fields, each a notebook under `notebooks/applications/` with a figure in the [gallery](gallery.md).
These are the numbers of full runs beside the exact or published ones, under the command of each.

| | ours | beside | what stands beside |
|---|---|---|---|"""


def digits(x: float) -> str:
    """Four digits, in the plainest form."""
    return f"{x:.4g}" if abs(x) >= 1e-3 or x == 0 else f"{x:.0e}"


def main() -> None:
    """Print the table."""
    print(HEAD)
    for path in sorted(Path("benchmarks/results").glob("notebook-*.json")):
        record = json.loads(path.read_text())
        print(f"| **`{record['command']}`** | | | |")
        for what, ours, beside, source in record["rows"]:
            print(f"| {what} | {digits(ours)} | {digits(beside)} | {source} |")


if __name__ == "__main__":
    main()
