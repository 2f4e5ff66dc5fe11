"""Upscale images.

%(prog)s -i INPUT -o OUTPUT
%(prog)s -i INPUT -o OUTPUT -m net_g_400000.pth
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: this folder's names (data, losses ...) must not be top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence
from typing import get_args

from dp_basicsr.deploy.choices import BOX, BOX_ALPHA, OVERLAP, AlphaMode, EngineName, PrecisionChoice
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import FORMATS, QUALITY, require_paths
from dp_basicsr.utils.arguments import Parser
from dp_basicsr.utils.console import data_command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    parser.add_input(nargs="+", required=True, help="images, folders, or globs in quotes ('photos/**/*.jpg')")
    parser.add_output(type=Path, default=Path("results"), help="folder, or a file where the input is one image")
    parser.add_model(
        default=BOX,
        help=".pth, .safetensors, .onnx, or ncnn's .param; two of the first kinds (PSNR, GAN model) are interpolated "
        "(default: the two networks in the box, x4)",
    )  # fmt: skip
    add("--alpha-interp", type=float, help="share of the second model, 0 to 1 (default: 0.8, in the box 0.5)")
    add("--scale", type=int, help="only for x2 and x3 weights that do not tell which they are")
    add("-t", "--tile", default="auto", help="pixels of a tile: auto, a number, or 0 for the whole image at once")
    add("--tile-overlap", type=int, default=OVERLAP, help="pixels that neighbouring tiles share")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add(
        "--engine", choices=get_args(EngineName), default="auto",
        help="what runs the network; auto: on a CPU the fastest that is installed and gives torch's values",
    )  # fmt: skip
    add(
        "--precision", choices=get_args(PrecisionChoice), default="fp32",
        help="arithmetic within the network; auto: bf16 where the device computes in it, which is faster",
    )  # fmt: skip
    add("-s", "--outscale", type=float, help="size of the result over that of the input (default: the model's scale)")
    add("--alpha", choices=get_args(AlphaMode), default="model", help="how alpha is enlarged (data: it hides nothing)")
    add("--suffix", default="", help="put between name and extension")
    add("--ext", default="auto", help=f"auto keeps the format; or {', '.join(name[1:] for name in FORMATS)}")
    add("--quality", type=int, default=QUALITY, help="of JPEG and WebP, 1 to 100; WebP is lossless at 100")
    add("--recursive", action="store_true", help="take the folders in the input folder too")
    add("--overwrite", action="store_true", help="replace results that are there already")
    args = parser.parse_args(argv)
    if args.model_path == BOX and args.alpha_interp is None:
        args.alpha_interp = BOX_ALPHA
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see ``--help``; return 0, or 1 if an image failed. Wrong usage exits with 2."""
    args = parse(argv)
    with data_command("" if args.overwrite else "; finished images stay, and the same command does the others"):
        from dp_basicsr.deploy.batch import describe_left_out, find_jobs, refuse_unwritable  # needs Pillow

        if not 1 <= args.quality <= 100 or (args.outscale is not None and not 0 < args.outscale <= 64):
            raise UserError("expected --quality from 1 to 100 and --outscale above 0 and up to 64")
        jobs, left_out = find_jobs(
            args.input, args.output, recursive=args.recursive, suffix=args.suffix, ext=args.ext,
            overwrite=args.overwrite
        )  # fmt: skip
        todo = [job for job in jobs if args.overwrite or not os.path.exists(job.target)]
        refuse_unwritable(todo)
        require_paths(args.model_path, "model")
        from dp_basicsr.deploy.run import upscale_all  # takes seconds: torch

        failed = upscale_all(todo, args)  # without images too: whatever is wrong with the arguments is found
        summary = [f"wrote {len(todo) - failed} of {len(jobs)} images to {args.output}"]
        if len(todo) < len(jobs):
            summary.append(f"kept {len(jobs) - len(todo)} that were there (--overwrite replaces them)")
        if left_out:
            summary.append(describe_left_out(left_out))
        if failed:
            summary.append(f"{failed} FAILED, named above")
        print(", ".join(summary))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
