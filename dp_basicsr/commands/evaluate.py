"""Measure any methods' images against the originals: PSNR, SSIM and LPIPS, or other metrics by name.

Images are paired by name; a common prefix or suffix (baby_RCAN_x4.png) is detected or given with --pattern. For several
test sets give several --gt; DIR of a --result then contains one folder per set, or {set} in its name.

  %(prog)s --gt datasets/Set5/GT --result RCAN=downloads/RCAN/Set5 --bicubic
  %(prog)s --gt datasets/Set5/GT datasets/Set14/GT --result ESRGAN=downloads/ESRGAN/{set}/x4 \\
      --pattern ESRGAN={}_rlt --bicubic -o results/evaluation
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.evaluation.matching import BICUBIC, Method, TestSet, find_test_set
from dp_basicsr.options.metrics import DEFAULT, METRICS
from dp_basicsr.utils.arguments import Parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--gt", nargs="+", action="extend", default=[], metavar="[SET=]DIR",
        help="originals, one folder per test set; niqe alone needs none")  # fmt: skip
    add("--lr", nargs="+", action="extend", default=[], metavar="DIR", help="their LR, in the order of --gt")
    add("--result", action="append", default=[], metavar="NAME=DIR", help="a method's images; may be repeated")
    add("--bicubic", action="store_true",
        help="also measure bicubic, from --lr or from MATLAB-style downsampled originals")  # fmt: skip
    add("--pattern", action="append", default=[], metavar="NAME=PATTERN",
        help="file names of a method (or of GT, LR): {} is the image's name; or a regex with one group")  # fmt: skip
    add("--scale", type=int, default=4, help="crop originals to a multiple of it, and as many border pixels")
    add("--metrics", nargs="+", choices=METRICS, default=list(DEFAULT), metavar="METRIC",
        help=f"{', '.join(METRICS)} (default: the first {len(DEFAULT)})")  # fmt: skip
    parser.add_output(type=Path,
        help="folder to create with per_image.csv, evaluation.json, table.md (default: print the table)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier evaluation in --output")
    args = parser.parse_args(argv)
    if not args.gt and (args.bicubic or not args.result or args.metrics != ["niqe"]):
        parser.error("--gt is required: without originals only --result NAME=DIR --metrics niqe can be measured")
    return args


def name_and_value(text: str, what: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``; a folder that is called so has no name before it."""
    name, equals, value = text.partition("=")
    if not (name and equals and value) or (Path(text).exists() and not Path(value).exists()):
        raise UserError(f"{what}: expected NAME=VALUE, got {text!r}")
    return name, value


def methods(args: argparse.Namespace) -> tuple[list[TestSet], list[Method]]:
    """Return the test sets and the methods of the command line; most mistakes are in their names."""
    patterns = dict(name_and_value(text, "--pattern") for text in args.pattern)
    if args.lr and len(args.lr) != len(args.gt):
        raise UserError(f"--lr: expected one folder for each of the {len(args.gt)} folders of --gt, got {len(args.lr)}")
    sets, results = [], [name_and_value(text, "--result") for text in args.result]
    # NIQE compares with nothing: the first method's images only name those of the others.
    for gt, lr in zip_longest(args.gt or [results[0][1]], args.lr):
        # The set's name is optional: it is found in the folder's.
        name, folder = ("", gt) if "=" not in gt or Path(gt).is_dir() else name_and_value(gt, "--gt")
        lr_folder = Path(lr) if lr else None
        sets.append(find_test_set(Path(folder), lr_folder, name, patterns.get("GT", ""), patterns.get("LR", "")))
    unknown = patterns.keys() - {name for name, _ in results} - {"GT", "LR"}
    if unknown:
        raise UserError(f"--pattern: no --result is called {', '.join(sorted(unknown))}")
    if not (results or args.bicubic):
        raise UserError("nothing to measure: give --result NAME=DIR, --bicubic or both")
    # Bicubic first, because the others are read against it.
    first = [Method(BICUBIC, None)] if args.bicubic else []
    return sets, first + [Method(name, Path(folder), patterns.get(name, "")) for name, folder in results]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    with exit_on_user_error():
        # Before the imports, which take seconds.
        sets, measured = methods(args)
        from dp_basicsr.evaluation.evaluate import evaluate
        from dp_basicsr.evaluation.files import markdown, refuse_folder, write_evaluation

        if args.output:
            refuse_folder(args.output, overwrite=args.overwrite)
        evaluation = evaluate(sets, measured, args.scale, tuple(args.metrics))
        try:
            written = write_evaluation(evaluation, args.output, overwrite=args.overwrite) if args.output else None
        finally:
            print(markdown(evaluation), end="")
        if written:
            print(f"\nwrote {written}")
    return 0
