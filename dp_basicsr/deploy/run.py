"""Upscale the images of a command line: reading, network and writing overlap."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
from dp_basicsr.images.write import refuse_unwritable, write_picture

from PIL import Image
from tqdm import tqdm

WAITING = 1  # images that are read ahead, and results that wait to be written: bounds the memory

T = TypeVar("T")


def upscaler_from(args: argparse.Namespace) -> Upscaler:
    """Load the model that the arguments name.

    Raises:
        UserError: See ``open_engine`` and ``Upscaler``.
    """
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


def warn(message: str) -> None:
    """Print a warning on stderr, above the progress bar."""
    tqdm.write(readable(f"warning: {message}"), file=sys.stderr)


def upscale_all(jobs: Sequence[UpscaleJob], args: argparse.Namespace) -> int:
    """Upscale every image; one that fails is named on stderr, and the others are still upscaled.

    Returns:
        How many failed.
    """
    # These are the user's own files, up to 2^30 pixels.
    Image.MAX_IMAGE_PIXELS = None
    upscaler = upscaler_from(args)
    print(upscaler.engine.title + (f"; {BOX_LIMIT}" if args.model_path == BOX else ""))
    failed, tiles = 0, [_expected_tiles(job, upscaler) for job in jobs]
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(2) as pool,
        tqdm(total=sum(tiles), unit="tile", disable=None, dynamic_ncols=True) as bar,
    ):
        # Pillow's, about damaged metadata.
        warnings.showwarning = lambda message, *_: warn(str(message))
        # Generators: while the network runs, the next image is read and the last one is written.
        reads = _lag((job, pool.submit(read_picture, job.source)) for job in jobs)
        results = ((job, _upscale(job, reading, upscaler, args, pool, bar, expected))
                   for (job, reading), expected in zip(reads, tiles, strict=True))  # fmt: skip
        for job, writing in _lag(results):
            try:
                writing.result()
            except Exception as error:
                # Any error concerns this image alone and is reported.
                failed += 1
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                tqdm.write(readable(f"failed: {job.source} {kind}{error}").replace("\n", "\\n"), file=sys.stderr)
    return failed


def _lag(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after ``WAITING`` more have been started."""
    started: deque[T] = deque()
    for item in items:
        started.append(item)
        if len(started) > WAITING:
            yield started.popleft()
    yield from started


def _expected_tiles(job: UpscaleJob, upscaler: Upscaler) -> int:
    """Return how many tiles the colours of an image take by its header; 1 if that cannot be read."""
    try:
        width, height = header_size(job.source)
    except BadImageError:
        return 1
    return upscaler.count_tiles(height, width)


def _upscale(
    job: UpscaleJob,
    reading: Future[Picture],
    upscaler: Upscaler,
    args: argparse.Namespace,
    pool: ThreadPoolExecutor,
    bar: tqdm,
    expected: int,
) -> Future[None]:
    """Upscale an image that is being read and start to write the result."""
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
        kind, has_alpha = FORMATS[job.target.suffix.lower()], picture.alpha is not None and args.alpha != "drop"
        height, width = size_of_result(picture, upscaler, args.outscale)
        refuse_unwritable(kind, width, height, has_alpha)
        result = upscale_picture(picture, upscaler, outscale=args.outscale, alpha_mode=args.alpha, on_tile=show)
    except Exception as error:
        # What failed counts as done, so that the bar reaches its end.
        show(expected, expected)
        failure: Future[None] = Future()
        failure.set_exception(error)
        return failure
    return pool.submit(write_picture, result, job.target, args.quality, lambda text: warn(f"{job.source}: {text}"))
