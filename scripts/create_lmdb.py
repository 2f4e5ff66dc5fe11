"""Pack a folder of images into an LMDB, or convert an LMDB, with PNG records (BasicSR) or raw records."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.data.preparation.convert import create_lmdb
from dp_basicsr.data.preparation.jobs import add_job_arguments, job_from
from dp_basicsr.utils.console import data_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of images (8 bit, gray or colour) or an LMDB")
    parser.add_argument("--output", type=Path, required=True, help="the LMDB folder to make; its name ends with .lmdb")
    parser.add_argument(
        "--lmdb", choices=["png", "raw"], default="png", help="record format; raw is for PairedRawDataset"
    )
    add_job_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    with data_command():
        print(create_lmdb(args.input, args.output, job_from(args), args.lmdb))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
