"""Upscale images of any size: tiles, and what to do when memory runs out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

from dp_basicsr.deploy.choices import OVERLAP
from dp_basicsr.deploy.engine import Engine
from dp_basicsr.errors import UserError, first_line, is_out_of_memory
from dp_basicsr.utils.tiles import Floats, OnTile, Pixels, blend_tiles, grid, to_floats, to_pixels

import numpy as np

SMALLEST_TILE = 32
SEAM_ADVICE = "; give --tile 0 for the whole image at once, or raise --tile and --tile-overlap"


class Upscaler:
    """Upscales images of any size with one network.

    Args:
        engine: Runs the network.
        tile: Pixels of a tile in the input; 0 for the whole image at once; None for what suits the device.
        overlap: Pixels that neighbouring tiles share, as the network's layers see them.
        warn: Called with a warning when the tile gets smaller.

    Raises:
        UserError: Negative sizes.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tile: int | None = None,
        overlap: int = OVERLAP,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        if (tile is not None and tile < 0) or overlap < 0:
            raise UserError(f"expected a tile and an overlap of at least 0, got tile {tile}, overlap {overlap}")
        self.engine = engine
        self.overlap = overlap
        self.warn = warn
        self.warned = set[str]()  # warnings without their numbers, of which one is enough for all images
        self.tile = engine.tile if tile is None else tile

    @property
    def scale(self) -> int:
        """Output size over input size."""
        return self.engine.network.scale

    def count_tiles(self, height: int, width: int) -> int:
        """Return how many tiles an image of this size takes."""
        (rows, _), (columns, _) = grid(height, width, self.tile, self.overlap, self.engine.network.size)
        return len(rows) * len(columns)

    def __call__(self, pixels: Pixels, on_tile: OnTile | None = None) -> Pixels:
        """Upscale (H, W, 3) RGB, uint8 or uint16, to (scale * H, scale * W, 3) of the same type.

        When memory runs out, the tile is halved, for this image and those after it.

        Raises:
            UserError: It is no such image, not even the smallest tile fits, or the network's output is not finite.
        """
        pixels = np.asarray(pixels)
        if pixels.dtype.str[1:] not in ("u1", "u2") or pixels.shape[2:] != (3,) or not pixels.size:
            raise UserError(f"expected (H, W, 3) RGB of uint8 or uint16, got {pixels.dtype} of shape {pixels.shape}")
        while True:
            try:
                return self._upscale(pixels, on_tile)
            except Exception as error:
                # onnxruntime and OpenVINO have exceptions of their own.
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside of the except block: the exception would keep the arrays of the failed attempt alive.
            longest = max(pixels.shape[:2])
            half = min(self.tile or longest, longest) // 2
            if half < SMALLEST_TILE:
                raise UserError(f"out of memory even with tiles of {self.tile or longest} pixels ({reason})")
            self.warn(f"out of memory ({reason}): trying again with tiles of {half} pixels")
            self.tile = half
            self.engine.free_memory()

    def _run(self, tile: Floats) -> Floats:
        """Run the network on a tile; where an engine fails, the next one does, and all tiles after it."""
        while True:
            try:
                return self.engine(tile)[0]  # type: ignore[no-any-return]
            except Exception as error:
                if self.engine.open_next is None or (max(tile.shape) >= 2 * SMALLEST_TILE and is_out_of_memory(error)):
                    raise
                reason, by = first_line(error)[:200], self.engine.title.rpartition(", by ")[2].partition(" ")[0]
            self.warn(f"{by} failed ({reason}): continuing with the next engine")
            self.engine = self.engine.open_next()

    def _upscale(self, pixels: Pixels, on_tile: OnTile | None) -> Pixels:
        (height, width), size = pixels.shape[:2], self.engine.network.size

        def run_tile(rows: slice, columns: slice) -> Floats:
            return self._run(to_floats(pixels[rows, columns]))

        def tell(reason: str, advice: str = SEAM_ADVICE) -> None:
            if (kind := re.sub(r"\d", "", reason)) not in self.warned:
                self.warned.add(kind)
                self.warn(reason + advice * (not size.maximum))

        result = np.empty((height * self.scale, width * self.scale, 3), pixels.dtype)
        top = 0
        for band in blend_tiles(run_tile, height, width, self.scale, self.tile, self.overlap, size, on_tile, tell):
            result[top : top + band.shape[1]] = to_pixels(band, pixels.dtype)
            top += band.shape[1]
        few, many = pixels[::8, ::8], result[:: 8 * self.scale, :: 8 * self.scale]
        contrast = few.std((0, 1)).mean()
        # Less of it a network may take for noise.
        if contrast > np.iinfo(pixels.dtype).max / 20 and many.std((0, 1)).mean() < contrast / 50:
            tell("the result is almost one colour: the network learned nothing or collapsed: try other weights", "")
        return result
