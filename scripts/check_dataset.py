"""Check every pair of a data set, or of every set of an option file, and report what would break a training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from dp_basicsr.data.preparation.check import BadData, PairedSet, check_set, paired_sets, table
from dp_basicsr.errors import UserError
from dp_basicsr.options import add_import_argument, import_modules, read_options
from dp_basicsr.utils.console import data_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-opt", metavar="FILE", help="option file: all of its sets with dataroot_gt and dataroot_lq")
    parser.add_argument("--gt", type=Path, help="folder or LMDB of the GT, instead of -opt")
    parser.add_argument("--lq", type=Path, help="folder or LMDB of the LQ")
    parser.add_argument("--scale", type=int, default=4, help="GT size divided by LQ size")
    parser.add_argument("--gt-size", type=int, default=128, help="side of a training crop, the minimum GT size")
    parser.add_argument(
        "--test-set",
        action="store_true",
        help="full images of any size, gray allowed, GT not a multiple of scale",
    )
    add_import_argument(parser)
    parser.add_argument("--workers", type=int, help="number of processes (default: all available CPUs)")
    return parser.parse_args(argv)


def find_sets(args: argparse.Namespace) -> Iterator[tuple[str, PairedSet]]:
    """Yield the sets named on the command line."""
    if (args.opt is None) == (args.gt is None) or (args.gt is None) != (args.lq is None):
        raise UserError("expected -opt FILE, or --gt and --lq")
    if args.gt is not None:
        yield str(args.gt), PairedSet(args.gt, args.lq, args.scale, None if args.test_set else args.gt_size)
        return
    sets = list(paired_sets(read_options(args.opt)))
    if not sets:
        raise UserError(f"{args.opt}: expected a set with dataroot_gt and dataroot_lq, got none: nothing is checked")
    yield from sets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 2 if there are problems."""
    args = parse(argv)
    problems: list[BadData] = []
    with data_command():
        import_modules(args.imports)
        for name, place in find_sets(args):
            checked = check_set(place, args.workers)
            print(f"{name}: {checked}", flush=True)
            problems += checked.problems
    if problems:
        print(f"\n{table(problems)}")
    return 2 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
