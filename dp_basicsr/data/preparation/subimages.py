"""Which overlapping sub-images an image is cut into.

The rule is BasicSR's (``scripts/data_preparation/extract_subimages.py``): one window every ``step`` pixels from the top
left corner, and one more flush with the far border if more than ``thresh`` pixels would be left over. On DIV2K's 800
images, 480 pixels every 240 make the 32,592 sub-images of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dp_basicsr.errors import UserError


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
            if self.crop % scale or self.step % scale:
                raise UserError(
                    f"expected a crop size and a step that are multiples of the scale, "
                    f"got crop {self.crop}, step {self.step}, scale {scale}"
                )


def window_starts(size: int, window: Window) -> list[int]:
    """Return the window starts along one dimension of ``size`` pixels; [] if it is smaller than the window."""
    if size < window.crop:
        return []
    starts = list(range(0, size - window.crop + 1, window.step))
    if size - (starts[-1] + window.crop) > window.thresh:
        starts.append(size - window.crop)
    return starts


def window_corners(shape: tuple[int, ...], window: Window) -> list[tuple[int, int]]:
    """Return the top left corners (y, x) of all windows of an ``(H, W, ...)`` image, row by row."""
    return [(y, x) for y in window_starts(shape[0], window) for x in window_starts(shape[1], window)]


def subimage_key(stem: str, index: int) -> str:
    """Return BasicSR's name of the ``index``-th sub-image, counted from 0: ``0001_s001``."""
    return f"{stem}_s{index + 1:03d}"
