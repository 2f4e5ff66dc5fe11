"""Small photographs to cut, pack and shrink."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from tests.support.images import ImageFolder, smooth_noise


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
