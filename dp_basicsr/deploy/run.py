"""Upscale the images of a command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dp_basicsr.deploy.batch import UpscaleJob
from dp_basicsr.deploy.files import read_picture, write_picture
from dp_basicsr.deploy.network import load_network
from dp_basicsr.deploy.picture import upscale_picture
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError, readable

from PIL import Image
from tqdm import tqdm


def upscaler_from(args: argparse.Namespace) -> Upscaler:
    """Load the model that the arguments name.

    Raises:
        UserError: As ``load_network`` and ``Upscaler``.
    """
    if args.tile != "auto" and not args.tile.isdecimal():
        raise UserError(f"--tile: expected auto or a number of pixels (0: no tiles), got {args.tile!r}")
    network = load_network(args.model_path, alpha_interp=args.alpha_interp, scale=args.scale, device=args.device)
    return Upscaler(
        network,
        device=args.device,
        precision=args.precision,
        tile=None if args.tile == "auto" else int(args.tile),
        overlap=args.tile_overlap,
        tell=warn,
    )


def warn(message: str) -> None:
    """Print a line on stderr, above the progress bar."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def upscale_file(job: UpscaleJob, upscaler: Upscaler, args: argparse.Namespace, bar: tqdm) -> None:
    """Upscale one image and write the result."""
    picture = read_picture(job.source)
    bar.set_postfix_str(job.source.name)
    result = upscale_picture(
        picture,
        upscaler,
        outscale=args.outscale,
        alpha_mode=args.alpha,
        on_tile=lambda done, total: bar.set_postfix_str(f"{job.source.name}, tile {done} of {total}"),
    )
    write_picture(result, job.target, args.quality)


def upscale_all(jobs: Sequence[UpscaleJob], args: argparse.Namespace) -> int:
    """Upscale every image; one that fails is named on stderr, and the others are still upscaled.

    Returns:
        How many failed.
    """
    Image.MAX_IMAGE_PIXELS = None  # the user's own files, up to 2^30 pixels
    upscaler = upscaler_from(args)
    print(upscaler.title)
    failed = 0
    with tqdm(jobs, unit="image", disable=None, dynamic_ncols=True) as bar:
        for job in bar:
            try:
                upscale_file(job, upscaler, args, bar)
            except Exception as error:  # any error concerns this image alone and is reported
                failed += 1
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                tqdm.write(readable(f"failed: {job.source} {kind}{error}").replace("\n", "\\n"), file=sys.stderr)
    return failed
