"""Upscaling in tiles, row by row of tiles: memory is bounded by the tile and one band of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[Any]  # uint8 or uint16
Forward = Callable[[Tensor], Tensor]
OneTile = Callable[[slice, slice], Tensor]  # rows, columns -> their result
OnTile = Callable[[int, int], None]  # tiles done, of how many


@dataclass(frozen=True)
class Grid:
    """How an image is cut along one dimension.

    As few tiles as there can be, all of one size, which is no larger than it has to be. In the middle of every overlap
    one tile fades into the next over half of ``overlap``; what lies outside of the fade, where a tile sees the end of
    its picture instead of its neighbourhood, is not used.

    Args:
        length: pixels of the image.
        tile: pixels of a tile at most, the overlap included.
        overlap: pixels that neighbouring tiles share at least.
        multiple: starts and sizes are multiples of it (``length`` must be).
    """

    length: int
    tile: int
    overlap: int = 0
    multiple: int = 1

    @property
    def largest(self) -> int:
        """What ``tile`` comes to: no more than the image has, a multiple of ``multiple``."""
        return min(self.length, max(self.tile // self.multiple, 1) * self.multiple)

    @property
    def shared(self) -> int:
        """Pixels that are shared at least: no more than half a tile."""
        return min(self.overlap, self.largest // 2) // self.multiple * self.multiple

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return max(math.ceil((self.length - self.shared) / (self.largest - self.shared)), 1)

    @property
    def size(self) -> int:
        """Pixels of a tile: what that many need to cover the image and share ``shared``."""
        covered = self.length + (self.count - 1) * self.shared
        return math.ceil(covered / self.count / self.multiple) * self.multiple

    @property
    def starts(self) -> list[int]:
        """Where the tiles start: at even distances."""
        free = (self.length - self.size) // self.multiple
        return [index * free // max(self.count - 1, 1) * self.multiple for index in range(self.count)]

    def weights(self, scale: int) -> Tensor:
        """(tiles, scale * size): the share of each tile in the result; over all tiles they add up to 1 everywhere."""
        starts = torch.tensor(self.starts, dtype=torch.float64)
        middles = (starts[1:] + starts[:-1] + self.size) / 2 * scale
        fade = max(self.shared / 2 * scale, 1e-6)
        pixels = starts[:, None] * scale + torch.arange(self.size * scale) + 0.5
        ones, zeros = torch.ones(1, pixels.shape[1]), torch.zeros(1, pixels.shape[1])
        # Each tile takes over from the one before and hands over to the one after.
        enter = ((pixels[1:] - middles[:, None]) / fade + 0.5).clamp(0, 1)
        leave = ((pixels[:-1] - middles[:, None]) / fade + 0.5).clamp(0, 1)
        return (torch.cat([ones, enter]) - torch.cat([leave, zeros])).float()


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 or uint16 -> (1, 3, H, W) float32 in [0, 1]."""
    floats = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return torch.from_numpy(floats).permute(2, 0, 1).unsqueeze(0)


def to_pixels(image: Tensor, dtype: np.dtype) -> Pixels:
    """(3, H, W) float in [0, 1] (clipped) -> (H, W, 3) of ``dtype``, rounded."""
    scaled = image.clamp(0, 1).mul(np.iinfo(dtype).max).round_()
    return scaled.permute(1, 2, 0).numpy().astype(dtype)


def upscale_bands(
    forward: Forward, pixels: Pixels, scale: int, tile: int, overlap: int, multiple: int, on_tile: OnTile | None
) -> Iterator[Tensor]:
    """Upscale the pixels of an image and give the result from top to bottom, a band for each row of tiles.

    Args:
        forward: (1, 3, h, w) float32 in [0, 1] -> (1, 3, scale * h, scale * w) float32, on the CPU.
        pixels: (H, W, 3), uint8 or uint16; H and W are multiples of ``multiple``.
        scale: of ``forward``.
        tile: see ``blend_tiles``.
        overlap: see ``Grid``.
        multiple: see ``Grid``.
        on_tile: is told after each tile.

    Yields:
        (3, h, scale * W) float32; all h add up to scale * H.
    """

    def one_tile(rows: slice, columns: slice) -> Tensor:
        return forward(to_tensor(pixels[rows, columns]))[0]

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
) -> Iterator[Tensor]:
    """Put the result of an image together from those of its tiles, a band for each row of tiles.

    Args:
        one_tile: rows and columns of the image -> their result, (3, scale * h, scale * w) float32, on the CPU.
        height: of the image, a multiple of ``multiple``.
        width: likewise.
        scale: of ``one_tile``.
        tile: see ``Grid``; 0 takes the whole image at once.
        overlap: see ``Grid``.
        multiple: see ``Grid``.
        on_tile: is told after each tile.

    Yields:
        (3, h, scale * width) float32; all h add up to scale * height.
    """
    rows = Grid(height, tile or height, overlap, multiple)
    columns = Grid(width, tile or width, overlap, multiple)
    row_weights, column_weights = rows.weights(scale), columns.weights(scale)
    ends = [start * scale for start in rows.starts[1:]] + [height * scale]
    total = len(rows.starts) * len(columns.starts)
    carried = torch.zeros(3, 0, width * scale)
    for row, y in enumerate(rows.starts):
        band = torch.zeros(3, rows.size * scale, width * scale)
        band[:, : carried.shape[1]] = carried
        for column, x in enumerate(columns.starts):
            result = one_tile(slice(y, y + rows.size), slice(x, x + columns.size))
            weight = row_weights[row][:, None] * column_weights[column]
            band[:, :, x * scale : (x + columns.size) * scale].addcmul_(result, weight)
            if on_tile:
                on_tile(row * len(columns.starts) + column + 1, total)
        finished = ends[row] - y * scale
        carried = band[:, finished:].clone()
        yield band[:, :finished]
