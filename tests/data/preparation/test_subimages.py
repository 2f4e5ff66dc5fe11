"""The sliding window, for sizes computed by hand, and the sub-images of one image."""

from __future__ import annotations

import re
from pathlib import Path

from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation.subimages import CutImage, ImageTask, Window, count_subimages, cut_image, window_starts
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImage

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

SMALL = Window(48, 24)


@pytest.mark.parametrize(
    ("size", "window", "starts"),
    [
        # 2040: 0, 240 ... 1440 reach 1920; 120 are left over, so one more flush with the border
        (2040, Window(), [0, 240, 480, 720, 960, 1200, 1440, 1560]),
        (1356, Window(), [0, 240, 480, 720, 876]),
        (1440, Window(), [0, 240, 480, 720, 960]),  # 960 + 480 ends exactly at the border
        (1441, Window(), [0, 240, 480, 720, 960, 961]),
        (1441, Window(thresh=1), [0, 240, 480, 720, 960]),  # a remainder up to the threshold is dropped
        (1442, Window(thresh=1), [0, 240, 480, 720, 960, 962]),
        (480, Window(), [0]),
        (481, Window(), [0, 1]),
        (479, Window(), []),
        (10, Window(4, 6), [0, 6]),  # a step wider than the crop leaves gaps, as BasicSR's rule does
    ],
)
def test_window_starts(size: int, window: Window, starts: list[int]) -> None:
    assert window_starts(size, window) == starts


def test_count_on_sizes_worked_out_by_hand() -> None:
    assert count_subimages([(1356, 2040)], Window()) == 5 * 8
    assert count_subimages([(1356, 2040), (2040, 1356), (2040, 2040), (648, 2040)], Window()) == 40 + 40 + 64 + 16
    assert count_subimages([(479, 2040), (480, 480)], Window()) == 1


def test_every_div2k_size_gives_a_multiple_of_eight() -> None:
    """DIV2K's images are 2040 pixels on one side; BasicSR's published list has 16 to 64 an image, 40 for most."""
    counts = {count_subimages([(height, 2040)], Window()) for height in range(648, 2041, 12)}
    assert counts == {16, 24, 32, 40, 48, 56, 64}


def test_count_equals_what_is_cut(tmp_path: Path) -> None:
    for index, shape in enumerate([(48, 48), (49, 71), (120, 97)]):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.zeros((*shape, 3), np.uint8))
        cut = cut_image(ImageTask(path, SMALL, (2,)))
        assert isinstance(cut, CutImage)
        assert len(cut.records[1, "png"]) == len(cut.records[2, "png"]) == count_subimages([shape], SMALL)


def decode(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)


def test_tiles_are_the_image_row_by_row_and_lr_is_each_tile_downsampled(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (72, 100, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "0001.png"), image)
    cut = cut_image(ImageTask(tmp_path / "0001.png", SMALL, (2, 4)))
    assert isinstance(cut, CutImage)
    corners = [(y, x) for y in (0, 24) for x in (0, 24, 48, 52)]
    keys = [f"0001_s{index:03d}" for index in range(1, 9)]
    for (scale, _), records in cut.records.items():
        assert [record.key for record in records] == keys
        assert {record.shape for record in records} == {(48 // scale, 48 // scale, 3)}
        for (y, x), record in zip(corners, records, strict=True):
            tile = image[y : y + 48, x : x + 48]
            np.testing.assert_array_equal(decode(record.data), tile if scale == 1 else downsample(tile, scale))


def test_a_given_lr_image_is_cut_at_the_same_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "hr.png"), rng.integers(0, 256, (72, 100, 3), dtype=np.uint8))
    lr = rng.integers(0, 256, (18, 25, 3), dtype=np.uint8)  # unrelated to the HR image
    cv2.imwrite(str(tmp_path / "lr.png"), lr)
    cut = cut_image(ImageTask(tmp_path / "hr.png", SMALL, (4,), {4: tmp_path / "lr.png"}))
    assert isinstance(cut, CutImage)
    corners = [(y, x) for y in (0, 6) for x in (0, 6, 12, 13)]
    for (y, x), record in zip(corners, cut.records[4, "png"], strict=True):
        np.testing.assert_array_equal(decode(record.data), lr[y : y + 12, x : x + 12])


@pytest.mark.parametrize(
    ("hr_shape", "lr_shape", "reason"),
    [
        ((72, 100), (18, 24), "is 100 x 72, expected 4 times its LR .* of 24 x 18"),
        ((72, 100), None, "its LR .* cannot be read"),
        ((40, 100), (10, 25), "is 100 x 40, smaller than the crop of 48"),
    ],
)
def test_unpaired_images_are_reported(
    tmp_path: Path, hr_shape: tuple[int, int], lr_shape: tuple[int, int] | None, reason: str
) -> None:
    cv2.imwrite(str(tmp_path / "hr.png"), np.zeros((*hr_shape, 3), np.uint8))
    if lr_shape:
        cv2.imwrite(str(tmp_path / "lr.png"), np.zeros((*lr_shape, 3), np.uint8))
    bad = cut_image(ImageTask(tmp_path / "hr.png", SMALL, (4,), {4: tmp_path / "lr.png"}))
    assert isinstance(bad, BadImage)
    assert bad.path == tmp_path / "hr.png"
    assert re.search(reason, str(bad))


def test_check_only_decodes_without_output(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 60, 3), np.uint8))
    cut = cut_image(ImageTask(tmp_path / "a.png", SMALL, (4,), check_only=True))
    assert isinstance(cut, CutImage)
    assert not any(cut.records.values())


@pytest.mark.parametrize(
    "window", [Window(482, 240), Window(480, 241), Window(0, 240), Window(480, 0), Window(thresh=-1)]
)
def test_windows_that_do_not_fit_the_scale_are_refused(window: Window) -> None:
    Window().check([2, 3, 4])
    with pytest.raises(UserError, match=r"expected a? ?crop"):
        window.check([4])
