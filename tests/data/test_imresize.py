"""MATLAB's bicubic, compared with images made by MATLAB and with BasicSR's float32 computation."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.data.imresize import downsample, imresize, mod_crop
from dp_basicsr.images.strict import read_image

import numpy as np
import pytest
from numpy.typing import NDArray


def random_image(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_is_matched_bit_for_bit(scale: int, set5: Path) -> None:
    differing = {}
    for path in sorted((set5 / "GT").glob("*.png")):
        reference = read_image(set5 / f"LRbicx{scale}" / path.name)
        ours = downsample(read_image(path), scale)
        assert ours.shape == reference.shape
        differing[path.name] = int(np.count_nonzero(ours != reference))
    assert len(differing) == 5
    assert sum(differing.values()) == 0, differing


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 0.7, 2, 3, 4, 1.5])
@pytest.mark.parametrize("shape", [(60, 48, 3), (48, 36)])
def test_float_equals_basicsr(scale: float, shape: tuple[int, ...]) -> None:
    from basicsr.utils.matlab_functions import imresize as basicsr_imresize

    image = (random_image(*shape) / 255).astype(np.float32)
    theirs = basicsr_imresize(image, scale)
    ours = imresize(image, scale)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    # BasicSR computes positions and weights in float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 2, 3])
def test_uint8_rounds_after_each_pass_half_away_from_zero(scale: float) -> None:
    """The two passes separately in float64, with MATLAB's rounding written out."""
    image = random_image(36, 24)
    first = np.stack([_resize_vector(column, scale) for column in image.T.astype(np.float64)], axis=1)
    first = np.clip(np.floor(first + 0.5), 0, 255)
    second = np.stack([_resize_vector(row, scale) for row in first])
    expected = np.clip(np.floor(second + 0.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(imresize(image, scale), expected)


def _resize_vector(vector: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """One dimension only: repeated sideways, so that the other pass changes nothing."""
    count = round(12 / min(scale, 1))
    return imresize(np.repeat(vector[:, None], count, axis=1), scale)[:, 0]


def test_result_does_not_depend_on_memory_layout_and_the_input_stays() -> None:
    image = random_image(48, 60, 3)
    before, window = image.copy(), image[8:40, 4:44]
    np.testing.assert_array_equal(imresize(image, 1), image)
    np.testing.assert_array_equal(imresize(window, 1 / 4), imresize(window.copy(), 1 / 4))
    np.testing.assert_array_equal(imresize(np.asfortranarray(image), 1 / 4), imresize(image, 1 / 4))
    np.testing.assert_array_equal(image, before)


def test_images_smaller_than_the_kernel() -> None:
    assert imresize(random_image(1, 1, 3), 4).shape == (4, 4, 3)
    assert imresize(random_image(2, 3), 1 / 4).shape == (1, 1)
    assert (imresize(np.full((1, 2), 200, np.uint8), 3) == 200).all()


def test_mod_crop_cuts_bottom_and_right() -> None:
    image = random_image(11, 14, 3)
    np.testing.assert_array_equal(mod_crop(image, 4), image[:8, :12])
    np.testing.assert_array_equal(downsample(image, 4), imresize(image[:8, :12], 1 / 4))


@pytest.mark.parametrize(
    ("image", "scale"),
    [
        (np.zeros((4, 4), np.uint16), 2),
        (np.zeros((4, 4), np.int64), 2),
        (np.zeros((2, 4, 4, 3), np.uint8), 2),
        (np.zeros((0, 4), np.uint8), 2),
        (np.zeros((4, 4), np.uint8), 0),
        (np.zeros((4, 4), np.uint8), -1),
        (np.zeros((4, 4), np.uint8), float("nan")),
        (np.zeros((4, 4), np.uint8), float("inf")),
    ],
)
def test_unsupported_input_is_refused(image: NDArray[np.uint8], scale: float) -> None:
    with pytest.raises(ValueError, match="imresize expects"):
        imresize(image, scale)
