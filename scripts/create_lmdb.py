"""Pack a folder of images that exists already into an LMDB of BasicSR's form."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.data.preparation.console import add_job_arguments, data_command, job_from
from dp_basicsr.data.preparation.convert import create_lmdb


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of images, 8 bit, gray or colour")
    parser.add_argument("--output", type=Path, required=True, help="the LMDB folder to make; its name ends with .lmdb")
    add_job_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    with data_command():
        print(create_lmdb(args.input, args.output, job_from(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
