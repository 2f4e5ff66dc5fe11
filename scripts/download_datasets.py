"""Download DIV2K and the benchmarks into datasets/: resumable, verified, safely unpacked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.data.downloads.catalogue import SOURCES
from dp_basicsr.data.downloads.datasets import download_dataset
from dp_basicsr.utils.console import data_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one or several of {', '.join(SOURCES)}")
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of the data sets")
    parser.add_argument("--base-url", help="download the archives, with the same file names, from this mirror")
    parser.add_argument("--keep-archive", action="store_true", help="keep the archives after unpacking")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    with data_command():
        for name in args.names:
            print(download_dataset(name, args.root, base_url=args.base_url, keep_archive=args.keep_archive), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
