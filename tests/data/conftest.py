"""Small photographs to cut, pack and shrink, in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dp_basicsr.data.preparation import check, jobs

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


@pytest.fixture(autouse=True)
def no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare images in this process, with what a pool would pickle; ``test_pool`` is about the pool itself."""

    def in_turn(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
        for task in tasks:
            call, argument = pickle.loads(pickle.dumps((function, task)))
            yield pickle.loads(pickle.dumps(call(argument)))

    for module in (check, jobs):
        monkeypatch.setattr(module, "ordered_map", in_turn)
