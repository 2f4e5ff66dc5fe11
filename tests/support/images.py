"""Pixels, image files, and damage to such files."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageFolder = Callable[..., Path]


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    """Values of every bit depth in full range."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def write_noise(path: str | Path, height: int, width: int, channels: int = 3, seed: int = 0, **settings: Any) -> Path:
    """Write a gray image, or one of 3 or 4 channels, with Pillow's ``settings``, in a folder that may be new."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(height, width, channels, seed=seed)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, **settings)
    return Path(path)


def smooth_noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """``(H, W, 3)`` noise with structure at several scales, so that PNG and resizing are not trivial."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(image, np.uint8) + rng.integers(0, 50, image.shape, dtype=np.uint8)


def write_pairs(folder: Path, *sizes: tuple[int, int], names: tuple[str, str] = ("GT", "LRbicx4")) -> Path:
    """Write smooth ``image<n>.png`` of these (H, W), and a quarter as large, into two folders of ``folder``."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 256, (10, 9, 3), dtype=np.uint8)
        gt = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        lq = cv2.resize(gt, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        for name, image in zip(names, (gt, lq), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f"image{number}.png"), image)
    return folder


def claim(png: bytes, width: int, height: int) -> bytes:
    """The file with a header that declares so many pixels, with a valid checksum."""
    data = bytearray(png)
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def damage(content: bytes, rng: random.Random, head: int) -> bytes:
    """Overwrite some bytes, half of them within ``head`` bytes of the start of a page of 4096; truncate one in six."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 3, 10))):
        page = 4096 * rng.randrange(len(data) // 4096 + 1)
        offset = page + rng.randrange(head) if rng.random() < 0.5 else rng.randrange(len(data))
        data[min(offset, len(data) - 1)] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 1 / 6 else data)
