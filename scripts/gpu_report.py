"""Test and measure everything on this machine's GPU: `make gpu-report` writes results/gpu/report.md and report.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.utils.console import data_command


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_report", description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny version on the CPU: checks that the report can be made"
    )
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="output folder")
    args = parser.parse_args(argv)
    with data_command():
        from scripts.bench.gpu import make_report

        make_report(args.rehearse, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
