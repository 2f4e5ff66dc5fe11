"""Upscale the images of a command line: reading, network and writing overlap."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from glob import escape

from dp_basicsr.deploy.batch import UpscaleJob
from dp_basicsr.deploy.choices import BOX, BOX_LIMIT
from dp_basicsr.deploy.open_engine import open_engine
from dp_basicsr.deploy.upscale_picture import size_of_result, upscale_picture
from dp_basicsr.deploy.upscaler import Upscaler
from dp_basicsr.errors import UserError, readable
from dp_basicsr.images.files import FORMATS, BadImageError
from dp_basicsr.images.metadata import Picture
from dp_basicsr.images.opening import header_size
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.write import refuse_unwritable, refuse_without_memory, write_picture

from PIL import Image
from tqdm import tqdm


def warn(message: str) -> None:
    """Print a warning on stderr, above the progress bar."""
    tqdm.write(readable(f"warning: {message}"), file=sys.stderr)


def upscale_all(jobs: Sequence[UpscaleJob], args: argparse.Namespace) -> int:
    """Upscale every image, and return how many failed; these are named on stderr, and the others still upscaled."""
    Image.MAX_IMAGE_PIXELS = None  # the user's own files, up to 2^30 pixels
    upscaler = _open_upscaler(args)
    print(upscaler.engine.title + (f"; {BOX_LIMIT}" if args.model_path == BOX else ""))
    failed, tiles = 0, [1] * len(jobs)
    for number, job in enumerate(jobs):
        with suppress(BadImageError):  # of the header
            width, height = header_size(job.source)
            tiles[number] = upscaler.count_tiles(height, width)

    def report(job: UpscaleJob, error: BaseException | None) -> None:
        nonlocal failed
        if error is not None:
            failed += 1
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            tqdm.write(readable(f"failed: {job.source} {kind}{error}").replace("\n", "\\n"), file=sys.stderr)

    def write(job: UpscaleJob, picture: Picture) -> None:
        write_picture(picture, job.target, args.quality, lambda text: warn(f"{job.source}: {text}"))
        # What gives a.tif its place on the map, a.tfw, a.tifw, a.wld and a.tif.aux.xml, and its XMP, in any case.
        kind = job.source.suffix.lower()
        places = (f"{kind[:2]}{kind[-1:]}w", f"{kind}w", ".wld", f"{kind}.aux.xml", ".xmp", f"{kind}.xmp")
        for beside in sorted(job.source.parent.glob(f"{escape(job.source.stem)}.*")):
            if beside.name[len(job.source.stem) :].lower() in places:
                warn(f"{job.source}: {beside.name} is of the smaller picture, and none is written for the result")

    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(2) as pool,
        tqdm(total=sum(tiles), unit="tile", disable=None, dynamic_ncols=True) as bar,
    ):
        # Pillow's, about damaged metadata; the first are of entries that are kept as they are.
        warnings.filterwarnings("ignore", "Metadata Warning")
        warnings.showwarning = lambda message, *_: warn(str(message))
        reading, writing = deque[Future[Picture]](), deque[tuple[UpscaleJob, Future[None]]]()
        for number, job in enumerate(jobs):
            # While the network runs, the next image is read and the last one is written: no more, to bound the memory.
            for ahead in jobs[number + len(reading) : number + 2]:
                reading.append(pool.submit(read_picture, ahead.source))
            try:
                result = _upscale(
                    job, reading.popleft(), (end for _, end in writing), upscaler, args, bar, tiles[number]
                )
            except Exception as error:
                # Any error concerns this image alone.
                report(job, error)
                continue
            if writing:
                before, end = writing.popleft()
                report(before, end.exception())
            writing.append((job, pool.submit(write, job, result)))
            del result  # free as soon as it is written
        for job, end in writing:
            report(job, end.exception())
    return failed


def _open_upscaler(args: argparse.Namespace) -> Upscaler:
    if args.tile != "auto" and not args.tile.isdecimal():
        raise UserError(f"--tile: expected auto or a number of pixels (0: no tiles), got {args.tile!r}")
    engine = open_engine(
        args.model_path,
        engine=args.engine,
        alpha_interp=args.alpha_interp,
        scale=args.scale,
        device=args.device,
        precision=args.precision,
        warn=warn,
    )
    tile = None if args.tile == "auto" else int(args.tile)
    return Upscaler(engine, tile=tile, overlap=args.tile_overlap, warn=warn)


def _upscale(
    job: UpscaleJob,
    reading: Future[Picture],
    writing: Iterable[Future[None]],
    upscaler: Upscaler,
    args: argparse.Namespace,
    bar: tqdm,
    expected: int,
) -> Picture:
    """Upscale an image that is being read, and show how far it is."""
    shown = 0

    def show(done: int, total: int) -> None:
        # Only the upscaler knows: tiles get smaller when memory runs out, and a uniform alpha takes none.
        nonlocal shown, expected
        bar.total = (bar.total or 0) + total - expected
        bar.set_postfix_str(job.source.name, refresh=False)
        bar.update(done - shown)
        shown, expected = done, total

    try:
        picture = reading.result()
        height, width = size_of_result(picture, upscaler, args.outscale)
        alpha = None if args.alpha == "drop" else picture.alpha
        refuse_unwritable(FORMATS[job.target.suffix.lower()], width, height, alpha)
        try:
            refuse_without_memory(width, height, picture.colour, alpha)
        except BadImageError:
            # The image before may still be in memory.
            wait(writing)
            refuse_without_memory(width, height, picture.colour, alpha)
        return upscale_picture(picture, upscaler, outscale=args.outscale, alpha_mode=args.alpha, on_tile=show)
    except Exception:
        # What failed counts as done, so that the bar reaches its end.
        show(expected, expected)
        raise
