"""What input sizes a network takes, and the one place where images are padded. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InputSize:
    """Requirements on the height and width of a network's input, in pixels."""

    multiple: int = 1  # divisor of height and width
    minimum: int = 1
    square: bool = False  # whether height and width must be equal
    # Where a tile starts must be a multiple of this: the network's windows and strides lie on that grid, also in
    # networks that take every size because they pad it themselves.
    step: int = 1
    fold: int = 1  # factor of the pixel-unshuffle before the first layer, which sees that much farther
    # Each pixel of the result depends on the whole input (global pooling or attention), so tiles cannot give the same.
    is_global: bool = False
    maximum: int = 0  # 0: any; ONNX files may take one size alone
    taller: int = 0  # of a size that is no square: by how much the limits of its height exceed those above
    wider: int = 0  # the same of its width

    def __post_init__(self) -> None:
        # The way to set an attribute of a frozen dataclass.
        object.__setattr__(self, "step", math.lcm(self.step, self.multiple))

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest allowed size that an image of ``height`` x ``width`` can be padded to."""
        least = max(height, self.minimum + self.taller), max(width, self.minimum + self.wider)
        height, width = (math.ceil(side / self.multiple) * self.multiple for side in least)
        return (max(height, width),) * 2 if self.square else (height, width)


def run_padded(forward: Callable[[Tensor], Tensor], images: Tensor, size: InputSize, scale: int) -> Tensor:
    """Run a network on (N, C, H, W) float of any size: ``pad`` it, and crop the result.

    ``forward`` takes (N, C, h, w) of a ``size`` to (N, C', scale * h, scale * w); images of such a size are passed
    unchanged.
    """
    height, width = images.shape[-2:]
    return forward(pad(images, size))[..., : height * scale, : width * scale]


def pad(images: Any, size: InputSize) -> Any:
    """Pad (N, C, H, W) floats, of torch or NumPy, at the bottom and right until a network takes their size.

    They are mirrored there without the edge itself, as by Real-ESRGAN, and the farthest pixel is repeated beyond, as by
    spandrel's ``pad_tensor``.
    """
    sides = tuple(images.shape[-2:])
    if (fitting := size.fit(*sides)) == sides:
        return images
    both = zip(sides, fitting, strict=True)
    rows, columns = (np.maximum(old - 1 - abs(np.arange(new) - (old - 1)), 0) for old, new in both)
    if isinstance(images, np.ndarray):
        # In one block, as ncnn reads it; an index gives another order of memory.
        return images.take(rows, -2).take(columns, -1)
    return images[..., rows, :][..., columns]
