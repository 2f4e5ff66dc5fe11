"""The deep distance: what it must rate high and low, and that it is what its docstring says."""

from __future__ import annotations

import sys
from pathlib import Path

from dp_basicsr.data.imresize import downsample, imresize
from dp_basicsr.images.strict import read_image
from dp_basicsr.metrics import calculate_deep_distance, deep_metric, measure

import numpy as np
import pytest
import torch

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def butterfly(set5: Path) -> np.ndarray:
    return read_image(sorted((set5 / "GT").iterdir())[2])[:128, :128]


def test_identical_images_have_no_distance(butterfly: np.ndarray) -> None:
    assert calculate_deep_distance(butterfly, butterfly, 4) == 0
    gray = butterfly[..., 0]
    assert calculate_deep_distance(gray, gray // 2, 0) == calculate_deep_distance(
        *(np.dstack([image] * 3) for image in (gray, gray // 2)), 0
    )


def test_blur_and_noise_are_far_and_a_shift_of_brightness_is_near(butterfly: np.ndarray) -> None:
    """All of the same squared error as bicubic."""
    small = downsample(butterfly, 4).astype(np.float64)
    blurred = np.clip(np.round(imresize(small, 4)), 0, 255)
    error = np.sqrt(((blurred - butterfly) ** 2).mean())
    noise = RNG.normal(0, error, butterfly.shape)
    distances = {
        name: calculate_deep_distance(np.clip(image, 0, 255).astype(np.uint8), butterfly, 4)
        for name, image in (("blur", blurred), ("noise", butterfly + noise), ("shift", butterfly + error))
    }
    assert min(distances["blur"], distances["noise"]) > 10 * distances["shift"] > 0, distances


def test_it_is_the_mean_squared_difference_of_unit_features(butterfly: np.ndarray) -> None:
    """By hooks on the package's own forward pass, in float64 and position by position."""
    network = deep_metric.lite0("cpu")
    last = {0: 0, 2: 1, 4: 2, 10: 3, 15: 4}  # the last block of each resolution -> its number
    features: dict[int, list[np.ndarray]] = {number: [] for number in last.values()}
    hooks = [
        network._blocks[block].register_forward_hook(
            lambda _module, _input, output, number=number: features[number].append(output[0].double().numpy())
        )
        for block, number in last.items()
    ]
    other = np.ascontiguousarray(butterfly[::-1])
    for image in (butterfly, other):
        rgb = torch.from_numpy(image[8:-8, 8:-8, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            network.extract_features((rgb - 127 / 255) / (128 / 255))
    for hook in hooks:
        hook.remove()
    distances = []
    for one, two in features.values():
        units = [array / np.sqrt((array**2).sum(axis=0)) for array in (one, two)]
        distances.append(((units[0] - units[1]) ** 2).sum(axis=0).mean())
    assert calculate_deep_distance(butterfly, other, 8) == pytest.approx(np.mean(distances), rel=1e-5)


def test_without_its_package_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    deep_metric.lite0.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    image = np.zeros((64, 64, 3), np.uint8)
    assert measure(image, image, 4, ("deep",)) == {"deep": None}
    assert "pip install 'dp_basicsr[metrics]'" in str(deep_metric.why_not())
    deep_metric.lite0.cache_clear()
