"""Compare speed and memory with BasicSR's: `make bench`, or `python -m benchmarks [PART ...]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dp_basicsr.utils.console import data_command

# Modules of this package; each has a `measure` that returns tables.
PARTS = ("step", "operations", "data", "validation", "inference")
BY_NAME = ("soak",)  # only if requested


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = ", ".join(PARTS + BY_NAME)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"from {names}; without any, all but soak")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; at most 3 for batch 16 and validation")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16], help="pairs per training step")
    parser.add_argument("--compile", action="store_true", help="also time a compiled step (many minutes on a CPU)")
    parser.add_argument("--minutes", type=float, default=30, help="duration of each of the two soak runs")
    parser.add_argument("--quick", action="store_true", help="tiny networks: only checks that everything runs")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of bench.md and bench.json")
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in PARTS + BY_NAME]:
        parser.error(f"expected parts from {names}, got {', '.join(unknown)}")
    if args.rounds < 1 or min(args.batch) < 2:
        parser.error("expected --rounds of at least 1 and --batch of at least 2 (D has batch-norm)")
    with data_command():
        from benchmarks.measure import Settings, Table, write_report  # takes seconds: torch

        settings = Settings(args.quick, args.rounds, tuple(args.batch), args.compile, args.minutes)
        tables: list[Table] = []
        for part in args.parts or PARTS:
            start = time.perf_counter()
            tables += import_module(f"benchmarks.{part}").measure(settings)
            print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        write_report(tables, args.out / "bench")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
