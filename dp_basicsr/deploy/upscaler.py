"""Running a network on images of any size: device, precision, tile size, and what to do when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from dp_basicsr.deploy.choices import OVERLAP, Precision
from dp_basicsr.deploy.loaded_network import LoadedNetwork
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import run_padded
from dp_basicsr.utils.memory import is_out_of_memory
from dp_basicsr.utils.tiles import Floats, OnTile, Pixels, to_pixels, upscale_bands

import numpy as np
import torch
from torch import Tensor

PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SMALLEST_TILE = 32
# On CPUs: larger tiles compute less twice; this one takes 1.4 GB (64 features, x4). docs/inference.md has the figures.
CPU_TILE = 384
LARGEST_AUTO_TILE = 1024
# Peak memory of RRDBNet for a pixel of the tile, in feature maps of the output's size: 2.5 measured on a CPU, and room
# for a GPU's work space.
MAPS_AT_PEAK = 4


class Upscaler:
    """Upscales images of any size with one network.

    Args:
        network: What to run. Its module is moved to the device.
        device: ``auto`` (CUDA, then MPS, then CPU) or torch's name.
        precision: Arithmetic inside the network. Where fp16 or bf16 gives values that are not finite, the tile is
            computed again in fp32, and so is all that follows.
        tile: Pixels of a tile in the input; 0 for the whole image at once; None for what suits the device.
        overlap: Pixels that neighbouring tiles share, as the network's layers see them.
        tell: Is called with a sentence where something had to be done differently.

    Raises:
        UserError: No such device or precision, or sizes that make no sense.
    """

    def __init__(
        self,
        network: LoadedNetwork,
        *,
        device: str = "auto",
        precision: str = "fp32",
        tile: int | None = None,
        overlap: int = OVERLAP,
        tell: Callable[[str], None] = warnings.warn,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        if network.runtime != "torch" and precision != "fp32":
            raise UserError(f"--precision {precision}: an ONNX file runs in the precision that it was exported in")
        if (tile is not None and tile < 0) or overlap < 0:
            raise UserError(f"expected a tile and an overlap of at least 0, got tile {tile}, overlap {overlap}")
        self.network = network
        # An ONNX session has chosen its device when it was opened, and takes its images from the CPU.
        self.device = find_device(device if network.runtime == "torch" else "cpu")
        self.precision = precision
        self.overlap = overlap * network.multiple  # a folded network sees that much farther
        self.tell = tell
        self.module = network.module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tile = self._auto_tile() if tile is None else tile

    @property
    def title(self) -> str:
        """What runs, where and how, for people."""
        place = f", on {self.device}, {self.precision}" if self.network.runtime == "torch" else ""
        return self.network.title + place

    @property
    def scale(self) -> int:
        """Output size over input size."""
        return self.network.scale

    def __call__(self, pixels: Pixels, on_tile: OnTile | None = None) -> Pixels:
        """Upscale (H, W, 3) RGB, uint8 or uint16, to (scale * H, scale * W, 3) of the same type.

        When memory runs out, the tile is halved, for this image and those after it.

        Raises:
            UserError: Not even the smallest tile fits, or the network's output is not finite.
        """
        while True:
            try:
                return self._upscale(pixels, on_tile)
            except Exception as error:  # onnxruntime has exceptions of its own
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__
            # Outside of the except block: the exception would keep the tensors of the failed attempt alive.
            self._halve(max(pixels.shape[:2]), reason)

    def _upscale(self, pixels: Pixels, on_tile: OnTile | None) -> Pixels:
        height, width = (side * self.scale for side in pixels.shape[:2])
        padded = _pad(pixels, self.network.multiple)
        result = np.empty((height, width, 3), pixels.dtype)
        top = 0
        for band in upscale_bands(
            self._forward, padded, self.scale, self.tile, self.overlap, self.network.multiple, on_tile
        ):
            rows = to_pixels(band[:, : height - top, :width], pixels.dtype)
            result[top : top + len(rows)] = rows
            top += band.shape[1]
        return result

    @torch.inference_mode()
    def _forward(self, floats: Floats) -> Floats:
        """(1, 3, h, w) in [0, 1] -> (1, 3, scale * h, scale * w), finite."""
        image = torch.from_numpy(floats).to(self.device, memory_format=torch.channels_last)
        result = self._run(image)
        if not torch.isfinite(result).all() and self.precision != "fp32":
            self.tell(f"{self.precision} gives values that are not finite: going on in fp32")
            self.precision = "fp32"
            result = self._run(image)
        if not torch.isfinite(result).all():
            raise UserError("the network gives values that are not finite, in fp32 too: its weights are not usable")
        return result.cpu().numpy()

    def _run(self, image: Tensor) -> Tensor:
        is_gray = self.network.channels == 1
        images = image.transpose(0, 1) if is_gray else image  # a gray network enlarges each colour by itself
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            result = run_padded(self.module, images, self.network.size, self.scale).float()
        return result.transpose(0, 1) if is_gray else result

    def _auto_tile(self) -> int:
        if self.device.type != "cuda" or self.network.runtime != "torch":
            return CPU_TILE
        free = torch.cuda.mem_get_info(self.device)[0]
        per_pixel = MAPS_AT_PEAK * self.network.num_feat * max(self.scale, 1) ** 2 * 4
        side = int((0.7 * free / per_pixel) ** 0.5) // 32 * 32
        return min(max(side, 2 * SMALLEST_TILE), LARGEST_AUTO_TILE)

    def _halve(self, longest: int, reason: str) -> None:
        half = min(self.tile or longest, longest) // 2
        if half < SMALLEST_TILE:
            raise UserError(f"out of memory even with tiles of {self.tile or longest} pixels ({reason})")
        self.tell(f"out of memory ({reason}): trying again with tiles of {half} pixels")
        self.tile = half
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def find_device(name: str) -> torch.device:
    """The device that ``name`` stands for: ``auto`` is CUDA, MPS or the CPU, whatever is there first.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {name}: not there ({reason}); expected auto, cpu, cuda, cuda:1 or mps") from error
    return device


def _pad(pixels: Pixels, multiple: int) -> Pixels:
    """Repeat the last row and column until both sizes are multiples of ``multiple``."""
    bottom, right = (-side % multiple for side in pixels.shape[:2])
    return np.pad(pixels, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else pixels
