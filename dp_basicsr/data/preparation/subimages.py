"""Cut images into overlapping sub-images: the rule, and the work on one image.

The rule is BasicSR's (``scripts/data_preparation/extract_subimages.py``): one window every ``step`` pixels from the top
left corner, and one more flush with the far border if more than ``thresh`` pixels would be left over. On DIV2K's 800
images, 480 pixels every 240 make the 32,592 sub-images of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation.records import Record, RecordForm, make_record
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImage, BadImageError
from dp_basicsr.images.strict import read_image, size_text

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """The sliding window, in pixels of the HR image. The defaults are the paper's for DIV2K."""

    crop: int = 480
    step: int = 240
    thresh: int = 0

    def check(self, scales: Iterable[int]) -> None:
        """Raise a UserError unless the sizes are valid and every window maps to whole LR pixels at all ``scales``."""
        if self.crop < 1 or self.step < 1 or self.thresh < 0:
            raise UserError(f"expected crop and step of at least 1 and a threshold of at least 0, got {self}")
        for scale in scales:
            if scale < 1 or self.crop % scale or self.step % scale:
                raise UserError(
                    f"expected a crop size and a step that are multiples of the scale, "
                    f"got crop {self.crop}, step {self.step}, scale {scale}"
                )


@dataclass(frozen=True)
class ImageTask:
    """One HR image to cut.

    ``lr_paths`` maps a scale to the LR image to cut; for other scales, each sub-image is downsampled. ``forms`` are the
    record formats to make for each sub-image. ``check_only`` decodes and checks but produces nothing.
    """

    path: Path
    window: Window
    scales: tuple[int, ...]
    lr_paths: dict[int, Path] = field(default_factory=dict)
    compression: int = 1
    check_only: bool = False
    forms: tuple[RecordForm, ...] = ("png",)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class CutImage:
    """The sub-images of one image by scale (1 is HR) and format, in the same order and with the same keys."""

    records: dict[tuple[int, RecordForm], list[Record]]


def window_starts(size: int, window: Window) -> list[int]:
    """Return the window starts along one dimension of ``size`` pixels; [] if it is smaller than the window."""
    if size < window.crop:
        return []
    starts = list(range(0, size - window.crop + 1, window.step))
    if size - (starts[-1] + window.crop) > window.thresh:
        starts.append(size - window.crop)
    return starts


def count_subimages(sizes: Iterable[tuple[int, int]], window: Window) -> int:
    """Count the sub-images of images with the given (height, width)."""
    return sum(len(window_starts(h, window)) * len(window_starts(w, window)) for h, w in sizes)


def window_corners(shape: tuple[int, ...], window: Window) -> Iterator[tuple[int, int]]:
    """Yield the top left corners (y, x) of all windows of an ``(H, W, ...)`` image, row by row."""
    columns = window_starts(shape[1], window)
    return ((y, x) for y in window_starts(shape[0], window) for x in columns)


def subimage_key(stem: str, index: int) -> str:
    """Return BasicSR's name of the ``index``-th sub-image, counted from 0: ``0001_s001``."""
    return f"{stem}_s{index + 1:03d}"


def cut_image(task: ImageTask) -> CutImage | BadImage:
    """Decode one HR image once and make all of its records: HR sub-images and their LR at all scales."""
    try:
        hr = read_image(task.path)
        if min(hr.shape[:2]) < task.window.crop:
            raise BadImageError(f"is {size_text(hr)}, smaller than the crop of {task.window.crop}")
        given = {scale: _read_lr(path, scale, hr, task.window) for scale, path in task.lr_paths.items()}
    except BadImageError as error:
        return BadImage(task.path, str(error))
    cut = CutImage({(scale, form): [] for scale in (1, *task.scales) for form in task.forms})
    if task.check_only:
        # Whatever can be wrong with an image has been raised by now.
        return cut
    crop = task.window.crop
    for index, (y, x) in enumerate(window_corners(hr.shape, task.window)):
        key = subimage_key(task.path.stem, index)
        tile = hr[y : y + crop, x : x + crop]
        images = {1: tile}
        for scale in task.scales:
            if scale in given:
                images[scale] = given[scale][y // scale : (y + crop) // scale, x // scale : (x + crop) // scale]
            else:
                # The kernel sees a mirror image at this border; with DIV2K's own LR (above) it saw the neighbourhood.
                images[scale] = downsample(tile, scale)
        for (scale, form), records in cut.records.items():
            records.append(make_record(form, key, images[scale], task.compression))
    return cut


def _read_lr(path: Path, scale: int, hr: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Read an existing LR image and check that every window of ``hr`` maps to whole pixels of it."""
    try:
        lr = read_image(path)
    except BadImageError as error:
        raise BadImageError(f"cannot be paired: its LR {path} {error}") from error
    if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
        raise BadImageError(f"is {size_text(hr)}, expected {scale} times its LR {path} of {size_text(lr)}")
    if any(y % scale or x % scale for y, x in window_corners(hr.shape, window)):
        raise BadImageError(f"has a window that does not start at a multiple of {scale}, as its LR {path} requires")
    return lr
