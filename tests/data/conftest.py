"""Small photographs to cut, pack and shrink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

ImageFolder = Callable[..., Path]


def smooth_noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """``(H, W, 3)`` noise with structure at several scales, so that PNG and resizing are not trivial."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(image, np.uint8) + rng.integers(0, 50, image.shape, dtype=np.uint8)


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Return a function that creates a folder of PNG files from ``name=(height, width)``."""

    def make(folder: str, **sizes: tuple[int, int]) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        for seed, (name, (height, width)) in enumerate(sizes.items()):
            assert cv2.imwrite(str(path / f"{name}.png"), smooth_noise(height, width, seed))
        return path

    return make
