"""Images to cut, pack and shrink, and damage to their files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ImageFolder = Callable[..., Path]


def smooth_noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """``(H, W, 3)`` noise with structure at several scales, so that PNG and resizing are not trivial."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(image, np.uint8) + rng.integers(0, 50, image.shape, dtype=np.uint8)


def damage(content: bytes, rng: random.Random, head: int) -> bytes:
    """Overwrite some bytes, half of them within ``head`` bytes of the start of a page of 4096; truncate one in six."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 3, 10))):
        page = 4096 * rng.randrange(len(data) // 4096 + 1)
        place = page + rng.randrange(head) if rng.random() < 0.5 else rng.randrange(len(data))
        data[min(place, len(data) - 1)] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 1 / 6 else data)
