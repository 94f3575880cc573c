"""Runs one benchmark: `python -m benchmarks NAME [--quick] [--json PATH] [--data DIR]`.

`python -m benchmarks paper --table prior` is the benchmark that makes one table of a paper, by the table's name.
"""

import argparse
import importlib
import os
import pkgutil
import time
from pathlib import Path

# Children measure their own memory on the same device; a parent that takes three quarters of a GPU leaves them nothing.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

import benchmarks
from benchmarks._report import Options, Table, follow, read

TABLES = {"prior": "priors", "gaps": "gaps", "iwae": "iwae", "fivo": "fivo"}


def main() -> None:
    names = [
        m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")
    ]
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Benchmarks of vijax beside its peers."
    )
    tables = {table: name for table, name in TABLES.items() if name in names}
    parser.add_argument("name", choices=[*names, "paper"])
    parser.add_argument("--table", choices=tables, help="of `paper`: which benchmark to run")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds and settings: to see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the rows")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with binarized_mnist/ or posteriordb/"
    )
    args = parser.parse_args()
    if (args.name == "paper") != (args.table is not None):
        parser.error("paper needs --table, and nothing else takes it.")
    args.name = tables.get(args.table, args.name)

    start, table = time.time(), Table()
    device = (
        f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    )
    print(f"{args.name}{', quick' if args.quick else ''}: jax {jax.__version__} on {device}")
    context = {
        "benchmark": args.name,
        "quick": args.quick,
        "jax": jax.__version__,
        "device": device,
    }
    benchmark = importlib.import_module(f"benchmarks.{args.name}")
    earlier = read(args.json, getattr(benchmark, "known", None))
    rows = benchmark.run(Options(args.quick, args.data, earlier))
    follow((r | context for r in rows), table, args.json, earlier)
    table.close()
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
