"""What metrics share that run a network: its input, its device, and one image at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dp_basicsr.errors import UserError

import numpy as np
import torch
from basicsr.metrics.metric_util import reorder_image
from numpy.typing import NDArray
from torch import Tensor

# One image at a time: validation measures in threads, where loading is not safe and memory would multiply.
ALONE = threading.Lock()


def device() -> str:
    """Return the device of the networks."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def to_tensor(image: NDArray[np.uint8], crop_border: int, input_order: str) -> Tensor:
    """Convert BGR or gray uint8, ``(H, W[, C])`` or ``CHW``, to (1, 3, h, w) RGB float32 in [0, 255] without border."""
    image = reorder_image(image, input_order)
    # `or None`, because a slice to -0 would be empty.
    inner = image[crop_border or None : -crop_border or None, crop_border or None : -crop_border or None]
    rgb = np.repeat(inner, 3, axis=2) if inner.shape[2] == 1 else inner[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float()[None].to(device())


def pair_of(
    what: str, side: int, images: Sequence[NDArray[np.uint8]], crop_border: int, input_order: str
) -> list[Tensor]:
    """Convert a result and its original by ``to_tensor``; raise a UserError if their shapes differ or are too small."""
    if images[0].shape != images[1].shape:
        raise UserError(f"{what}: expected images of the same shape, got {images[0].shape} and {images[1].shape}")
    # Of one: a picture in [0, 255] may be black.
    if all(image.dtype.kind == "f" and image.max(initial=0) <= 1 and image.any() for image in images):
        raise UserError(f"{what}: expected values in [0, 255], got images in [0, 1]: multiply them by 255")
    pair = [to_tensor(image, crop_border, input_order) for image in images]
    if min(pair[0].shape[-2:]) < side:
        inside = tuple(pair[0].shape[-2:])
        raise UserError(f"{what} needs at least {side} x {side} pixels inside the border, got {inside}")
    return pair
