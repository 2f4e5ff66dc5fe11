"""What runs a network: the interface that the upscaler uses. This module does not import torch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

from dp_basicsr.deploy.choices import Precision
from dp_basicsr.errors import UserError
from dp_basicsr.utils.input_size import InputSize, pad
from dp_basicsr.utils.tiles import Floats

import numpy as np

# On CPUs: larger tiles compute less twice; this one takes 1.4 GB (64 features, x4). docs/inference.md has the figures.
CPU_TILE = 384


class Engine(ABC):
    """Runs one network on arrays.

    Args:
        title: File, network, engine, device and precision, for people.
        scale: Output size over input size.
        size: Sizes that the network takes; others are padded and cropped.
        channels: 3: RGB; 1: gray, which runs on each colour of an image.
        precision: Arithmetic within the network. If fp16 or bf16 gives values that are not finite, the input is
            computed again in fp32, and so are all after it.
        warn: Called with a warning when the precision changes.
    """

    tile = CPU_TILE  # pixels of a tile that suit the device

    def __init__(
        self,
        title: str,
        scale: int,
        size: InputSize,
        channels: int = 3,
        precision: Precision = "fp32",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.title = title
        self.scale = scale
        self.size = size
        self.channels = channels
        self.precision = precision
        self.warn = warn

    def __call__(self, image: Floats) -> Floats:
        """Upscale (1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w), finite, not clipped.

        Raises:
            UserError: The output is not finite, in fp32 either.
        """
        height, width = image.shape[2:]
        images = image.transpose(1, 0, 2, 3) if self.channels == 1 else image
        result = self._finite(pad(images, self.size))
        result = result[:, :, : height * self.scale, : width * self.scale]
        return result.transpose(1, 0, 2, 3) if self.channels == 1 else result

    @abstractmethod
    def run(self, images: Floats) -> Floats:
        """Run the network on (N, channels, h, w), a size that it takes."""

    def use_fp32(self) -> None:
        """Compute in fp32 from now on."""
        self.precision = "fp32"

    def free_memory(self) -> None:  # noqa: B027  (most engines have nothing to do)
        """Return cached memory to the device."""

    def _finite(self, images: Floats) -> Floats:
        result = self.run(images)
        if not np.isfinite(result).all() and self.precision != "fp32":
            self.warn(f"{self.precision} gives values that are not finite: continuing in fp32")
            self.use_fp32()
            result = self.run(images)
        if not np.isfinite(result).all():
            raise UserError("the network gives values that are not finite, in fp32 too: its weights are not usable")
        return result
