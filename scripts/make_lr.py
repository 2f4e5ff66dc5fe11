"""Create the LR images of a test set: crop to a multiple of the scale, MATLAB's bicubic, same names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.data.preparation.convert import make_lr
from dp_basicsr.data.preparation.jobs import add_job_arguments, job_from
from dp_basicsr.utils.console import data_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of HR images, e.g. datasets/Set5/GT")
    parser.add_argument("--output", type=Path, required=True, help="folder to create, e.g. datasets/Set5/LRbicx4")
    parser.add_argument("--scale", type=int, default=4, help="HR size divided by LR size")
    add_job_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    with data_command():
        print(make_lr(args.input, args.output, args.scale, job_from(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
