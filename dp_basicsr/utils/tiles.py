"""Upscale in tiles, one row of tiles at a time: memory is bounded by one tile and one band of the result.

Uses NumPy arrays, so that programs which run a network without torch need not import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from dp_basicsr.utils.input_size import InputSize

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # uint8 or uint16
Floats = NDArray[np.float32]
RunTile = Callable[[slice, slice], Floats]  # rows, columns -> result
OnTile = Callable[[int, int], None]  # finished tiles, total
OnSeam = Callable[[str], None]  # why tiles do not give what the whole image would


def spans(length: int, tile: int, overlap: int = 0, step: int = 1, minimum: int = 1) -> tuple[list[slice], int]:
    """Divide an image into tiles along one dimension: as few as possible, of the same size, evenly spaced.

    Args:
        length: Pixels of the image; the last tile ends with it.
        tile: Maximum tile size in pixels, including the overlap. With an overlap, a tile has two steps at least.
        overlap: Minimum number of pixels shared by neighbouring tiles; at most half a tile.
        step: Divisor of starts and sizes: between them, the windows and strides of a network would see other pixels
            together than in the whole image.
        minimum: Minimum tile size, if the image has as many pixels.

    Returns:
        Pixels of each tile, and the minimum number that neighbours share: ``overlap`` rounded up to steps.
    """
    largest = min(length, max(tile // step, 2 if overlap else 1) * step)
    shared = min(math.ceil(overlap / step), largest // 2 // step) * step
    count = 1 if largest == length else max(math.ceil((length - shared) / (largest - shared)), 1)
    # As many pixels as these tiles need to cover the image and share that much.
    size = max(math.ceil((length + (count - 1) * shared) / count / step) * step, min(minimum, largest))
    steps = max(math.ceil((length - size) / step), 0)
    starts = [index * steps // max(count - 1, 1) * step for index in range(count)]
    return [slice(start, min(start + size, length)) for start in starts], shared


def to_floats(pixels: Pixels) -> Floats:
    """Convert (H, W, 3) uint8 or uint16 to (1, 3, H, W) float32 in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def to_pixels(image: Floats, dtype: np.dtype) -> Pixels:
    """Convert (3, H, W) float in [0, 1] (clipped) to (H, W, 3) of ``dtype``, rounded."""
    scaled = image.clip(0, 1) * np.float32(np.iinfo(dtype).max)
    return np.rint(scaled, out=scaled).transpose(1, 2, 0).astype(dtype)


def grid(
    height: int, width: int, tile: int, overlap: int, size: InputSize
) -> tuple[tuple[list[slice], int], tuple[list[slice], int]]:
    """Return the ``spans`` of the rows and columns of tiles; see ``blend_tiles`` for the arguments."""
    # In whole steps, of which the last may be a part: an image that fits into one tile is not cut.
    largest = size.maximum or math.ceil(max(height, width) / size.step) * size.step
    tile = min(max(tile, size.minimum) if tile else largest, largest)
    sides = (height, size.taller), (width, size.wider)
    rows, columns = (
        spans(side, tile + more, overlap * size.fold, size.step, size.minimum + more) for side, more in sides
    )
    return rows, columns


def blend_tiles(
    run_tile: RunTile,
    height: int,
    width: int,
    scale: int,
    tile: int,
    overlap: int,
    size: InputSize,
    on_tile: OnTile | None = None,
    on_seam: OnSeam | None = None,
) -> Iterator[Floats]:
    """Blend the results of tiles into the result of the image, and yield one band per row of tiles.

    Args:
        run_tile: Rows and columns of the image -> their result, (C, scale * h, scale * w) float32.
        height, width: Of the image.
        scale: Of ``run_tile``.
        tile, overlap: See ``spans``; a tile of 0 is the whole image, the overlap is as the network's layers see it.
        size: What the network takes: tiles start at its steps, and are not below its minimum.
        on_tile: Called after each tile.
        on_seam: Called at the end if the result differs by more than 1 of 255 from that of the whole image, or may.

    Yields:
        (C, h, scale * width) float32; the sum of all h is scale * height.
    """
    (rows, row_overlap), (columns, column_overlap) = grid(height, width, tile, overlap, size)
    total, done, seam = len(rows) * len(columns), 0, 0.0
    carried = np.zeros((1, 0, 1), np.float32)  # rows shared with the previous row of tiles
    for index, vertical in enumerate(rows):
        band, end = np.zeros((1, 0, 0), np.float32), 0
        for horizontal in columns:
            result = run_tile(vertical, horizontal)
            if horizontal is columns[0]:
                band = np.zeros((*result.shape[:2], width * scale), np.float32)
            else:
                before = band[:, :, horizontal.start * scale : end * scale]
                seam = max(seam, _merge(before, result[:, :, : before.shape[2]], column_overlap * scale, 2))
            band[:, :, horizontal.start * scale : horizontal.stop * scale] = result
            end, done = horizontal.stop, done + 1
            if on_tile:
                on_tile(done, total)
        if index > 0:
            seam = max(seam, _merge(carried, band[:, : carried.shape[1]], row_overlap * scale, 1))
        # The next row of tiles begins above the end of this one, and still changes what lies below its start.
        finished = ([*(span.start for span in rows), height][index + 1] - vertical.start) * scale
        yield band[:, :finished]
        carried = band[:, finished:]
    is_smaller = min(height - size.taller, width - size.wider) < size.maximum
    # Small tiles share less than they should.
    overlap = min(row_overlap if len(rows) > 1 else column_overlap, column_overlap if len(columns) > 1 else row_overlap)
    if on_seam and (total > 1 or is_smaller) and (reason := _why_seams(seam, overlap // size.fold, size, is_smaller)):
        on_seam(reason)


def _merge(before: Floats, after: Floats, overlap: int, axis: int) -> float:
    """Fade from one tile to the next where both have pixels, in ``after``.

    Returns their largest difference there, in [0, 1]; 1 if they share nothing.
    """
    pixels = after.shape[axis]
    # From 0 to 1 over half of the overlap, in the middle of the shared pixels: outside of it a tile sees its border
    # instead of its neighbourhood. Tiles may also share nothing.
    weight = ((np.arange(pixels) + 0.5 - pixels / 2) / max(overlap / 2, 1e-6) + 0.5).clip(0, 1).astype(np.float32)
    weight = weight[:, None] if axis == 1 else weight
    # Both have computed these pixels, each with another border: their difference, as far as it enters the result, is
    # the error of tiling.
    share = 2 * np.minimum(weight, 1 - weight)
    difference = np.abs(before.clip(0, 1) - after.clip(0, 1)) * share
    after += (before - after) * (1 - weight)
    return float(difference.max(initial=0.0)) if share.any() else 1.0


def _why_seams(difference: float, overlap: int, size: InputSize, is_smaller: bool) -> str:
    side, way = "{} x {} pixels".format(*size.fit(1, 1)[::-1]), "its .pth or .safetensors gives the whole image's"
    if size.is_global and size.maximum:
        return f"each pixel of the result depends on all {side} that the model takes: {way}"
    if size.is_global:
        return "each pixel of the result depends on the whole image (global pooling or attention), a tile's not"
    if is_smaller:
        return f"the model takes {side} alone: a smaller image is padded, and near that its pixels differ; {way}"
    if difference <= 1 / 255:
        return ""
    if not overlap:
        return "tiles without an overlap do not give what the whole image would"
    return (
        f"neighbouring tiles differ by up to {difference * 255:.0f} of 255 where they meet, so the result is not that "
        f"of the whole image: the network sees farther than their overlap of {overlap} pixels"
    )
