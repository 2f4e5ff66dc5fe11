"""Extract sub-images and their LR from a folder of HR images. Without arguments: the paper's DIV2K data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.data.preparation.extract import DIV2K_HR, Extraction, extract_subimages
from dp_basicsr.data.preparation.jobs import add_job_arguments, job_from
from dp_basicsr.data.preparation.subimages import Window
from dp_basicsr.utils.console import data_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", type=Path, default=DIV2K_HR, help="folder of HR images, 8-bit colour")
    parser.add_argument("--output", type=Path, help="output folder (default: the parent of --input)")
    parser.add_argument("--crop-size", type=int, default=480, help="side of a sub-image in HR pixels")
    parser.add_argument("--step", type=int, default=240, help="distance between sub-images in HR pixels")
    parser.add_argument(
        "--thresh-size", type=int, default=0, help="leftover of at most this many pixels gets no sub-image"
    )
    parser.add_argument("--scale", type=int, nargs="+", default=[4], help="scales of the LR images")
    parser.add_argument(
        "--lr-input",
        type=Path,
        nargs="+",
        default=[],
        help="cut these LR folders, one per scale, instead of downsampling",
    )
    parser.add_argument(
        "--format", choices=["lmdb", "png", "both"], default="lmdb", help="LMDBs, folders of PNG files or both"
    )
    parser.add_argument(
        "--lmdb", choices=["png", "raw"], default="png", help="record format: png for BasicSR, raw for PairedRawDataset"
    )
    add_job_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse(argv)
    with data_command():
        window = Window(args.crop_size, args.step, args.thresh_size)
        scales, lr = tuple(args.scale), tuple(args.lr_input)
        what = Extraction(args.input, args.output, window, scales, lr, args.format, args.lmdb)
        print(extract_subimages(what, job_from(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
