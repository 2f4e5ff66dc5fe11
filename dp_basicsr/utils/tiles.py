"""Upscale in tiles, one row of tiles at a time: memory is bounded by one tile and one band of the result.

Uses NumPy arrays, so that programs which run a network without torch need not import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # uint8 or uint16
Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]
OneTile = Callable[[slice, slice], Floats]  # rows, columns -> result
OnTile = Callable[[int, int], None]  # finished tiles, total


@dataclass(frozen=True)
class Grid:
    """Division of an image into tiles along one dimension.

    Uses as few tiles as possible, all of the same minimal size. Neighbouring tiles blend over half of ``overlap``, in
    the middle of their shared pixels. Pixels outside the blend are discarded, because there a tile sees its border
    instead of its neighbourhood.

    Args:
        length: Pixels of the image.
        tile: Maximum tile size in pixels, including the overlap.
        overlap: Minimum number of pixels shared by neighbouring tiles.
        multiple: Divisor of starts and sizes (and of ``length``).
    """

    length: int
    tile: int
    overlap: int = 0
    multiple: int = 1

    @property
    def largest(self) -> int:
        """``tile``, limited to the image and rounded down to a multiple of ``multiple``."""
        return min(self.length, max(self.tile // self.multiple, 1) * self.multiple)

    @property
    def shared(self) -> int:
        """Minimum number of shared pixels: at most half a tile."""
        return min(self.overlap, self.largest // 2) // self.multiple * self.multiple

    @property
    def count(self) -> int:
        """Number of tiles."""
        return max(math.ceil((self.length - self.shared) / (self.largest - self.shared)), 1)

    @property
    def size(self) -> int:
        """Pixels of a tile: as many as ``count`` tiles need to cover the image and share ``shared``."""
        covered = self.length + (self.count - 1) * self.shared
        return math.ceil(covered / self.count / self.multiple) * self.multiple

    @property
    def starts(self) -> list[int]:
        """First pixel of each tile, evenly spaced."""
        free = (self.length - self.size) // self.multiple
        return [index * free // max(self.count - 1, 1) * self.multiple for index in range(self.count)]

    def weights(self, scale: int) -> Floats:
        """Return the weight of each tile in the result, (tiles, scale * size); they sum to 1 at every pixel."""
        starts = np.array(self.starts, np.float64)
        middles = (starts[1:] + starts[:-1] + self.size) / 2 * scale
        fade = max(self.shared / 2 * scale, 1e-6)
        pixels = starts[:, None] * scale + np.arange(self.size * scale) + 0.5
        ones, zeros = np.ones_like(pixels[:1]), np.zeros_like(pixels[:1])
        # Each tile fades in from the previous one and out to the next.
        enter = ((pixels[1:] - middles[:, None]) / fade + 0.5).clip(0, 1)
        leave = ((pixels[:-1] - middles[:, None]) / fade + 0.5).clip(0, 1)
        return (np.concatenate([ones, enter]) - np.concatenate([leave, zeros])).astype(np.float32)


def to_floats(pixels: Pixels) -> Floats:
    """Convert (H, W, 3) uint8 or uint16 to (1, 3, H, W) float32 in [0, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def to_pixels(image: Floats, dtype: np.dtype) -> Pixels:
    """Convert (3, H, W) float in [0, 1] (clipped) to (H, W, 3) of ``dtype``, rounded."""
    scaled = image.clip(0, 1) * np.float32(np.iinfo(dtype).max)
    return np.rint(scaled, out=scaled).transpose(1, 2, 0).astype(dtype)


def upscale_bands(
    forward: Forward, pixels: Pixels, scale: int, tile: int, overlap: int, multiple: int, on_tile: OnTile | None
) -> Iterator[Floats]:
    """Upscale the pixels of an image and yield the result from top to bottom, one band per row of tiles.

    Args:
        forward: (1, 3, h, w) float32 in [0, 1] -> (1, 3, scale * h, scale * w) float32.
        pixels: (H, W, 3), uint8 or uint16; H and W are multiples of ``multiple``.
        scale: Scale of ``forward``.
        tile: See ``blend_tiles``.
        overlap: See ``Grid``.
        multiple: See ``Grid``.
        on_tile: Called after each tile.

    Yields:
        (3, h, scale * W) float32; the sum of all h is scale * H.
    """

    def one_tile(rows: slice, columns: slice) -> Floats:
        return forward(to_floats(pixels[rows, columns]))[0]

    height, width = pixels.shape[:2]
    yield from blend_tiles(one_tile, height, width, scale, tile, overlap, multiple, on_tile)


def blend_tiles(
    one_tile: OneTile,
    height: int,
    width: int,
    scale: int,
    tile: int,
    overlap: int,
    multiple: int = 1,
    on_tile: OnTile | None = None,
) -> Iterator[Floats]:
    """Blend the results of tiles into the result of the image, and yield one band per row of tiles.

    Args:
        one_tile: Rows and columns of the image -> their result, (C, scale * h, scale * w) float32.
        height: Height of the image, a multiple of ``multiple``.
        width: Width of the image, a multiple of ``multiple``.
        scale: Scale of ``one_tile``.
        tile: See ``Grid``; 0 processes the image in one piece.
        overlap: See ``Grid``.
        multiple: See ``Grid``.
        on_tile: Called after each tile.

    Yields:
        (C, h, scale * width) float32; the sum of all h is scale * height.
    """
    rows = Grid(height, tile or height, overlap, multiple)
    columns = Grid(width, tile or width, overlap, multiple)
    row_weights, column_weights = rows.weights(scale), columns.weights(scale)
    ends = [start * scale for start in rows.starts[1:]] + [height * scale]
    total = len(rows.starts) * len(columns.starts)
    band = np.zeros((1, 0, 1), np.float32)
    for row, y in enumerate(rows.starts):
        carried = band  # rows shared with the previous row of tiles
        for column, x in enumerate(columns.starts):
            result = one_tile(slice(y, y + rows.size), slice(x, x + columns.size))
            if column == 0:
                band = np.zeros((len(result), rows.size * scale, width * scale), np.float32)
                band[:, : carried.shape[1]] = carried
            weight = row_weights[row][:, None] * column_weights[column]
            band[:, :, x * scale : (x + columns.size) * scale] += result * weight
            if on_tile:
                on_tile(row * len(columns.starts) + column + 1, total)
        finished = ends[row] - y * scale
        yield band[:, :finished]
        band = band[:, finished:]
