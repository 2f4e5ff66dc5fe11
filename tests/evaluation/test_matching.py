"""Matching files to images by name."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.matching import compile_pattern, find_test_set, match_images

import cv2
import numpy as np
import pytest

NAMES = ["baby", "bird", "butterfly"]


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((8, 8, 3), np.uint8))
    return folder


@pytest.mark.parametrize("names", [["baby", "bird", "butterfly"], ["1", "11", "img_1"]])
@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        ("{}.png", ""),
        ("{}_x1.png", ""),
        ("{}_RCAN_x4.png", ""),
        ("x4-{}-EnhanceNet.png", ""),
        ("{}_RCAN_x4.png", "{}_RCAN_x4"),
        ("{}_RCAN_x4.png", "{}_RCAN_x4.png"),
        ("{}_SRF_4_HR.bmp", r"(.+)_SRF_\d_HR"),
    ],
)
def test_prefix_and_suffix_are_detected(tmp_path: Path, names: list[str], files: str, pattern: str) -> None:
    folder = make(tmp_path / "results", *(files.format(name) for name in names))
    assert match_images(folder, names, pattern) == {name: folder / files.format(name) for name in names}


def test_a_pattern_chooses_among_several_methods_in_one_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "image_SRF_4", *(f"img_001_SRF_4_{kind}.png" for kind in ("HR", "LR", "glasner")))
    found = find_test_set(folder, folder, "Urban100", "{}_SRF_4_HR", "{}_SRF_4_LR")
    assert list(found.gt) == ["img_001"]
    assert found.lr == {"img_001": folder / "img_001_SRF_4_LR.png"}
    assert list(match_images(folder, found.gt, "{}_SRF_4_glasner")) == ["img_001"]
    with pytest.raises(UserError, match="match several patterns.*--pattern"):
        match_images(folder, found.gt)


@pytest.mark.parametrize(
    ("files", "pattern", "message"),
    [
        (["baby_A.png", "bird_A.png"], "", r"named '\{\}_A'; missing: butterfly"),
        (["baby_A.png", "bird_A.png", "head_A.png"], "", "missing: butterfly; without an original: head_A.png"),
        (["Baby.png", "bird.png", "butterfly.png"], "", "missing: baby; .* differ in capital letters: rename"),
        (["1.png"], "", "no file is named like an original; found: 1; originals: baby"),
        (["baby.png"], "{}_x4", r"no file matches the pattern '\{\}_x4'; found: baby.png"),
        (["baby.png", "baby.bmp"], "{}", "baby.bmp and baby.png are both the image 'baby'"),
    ],
)
def test_missing_and_extra_images_are_named(tmp_path: Path, files: list[str], pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match_images(make(tmp_path / "results", *files), NAMES, pattern)


@pytest.mark.parametrize(
    ("further", "pattern", "said"),
    [("head_A", "", "head_A.png"), ("notes", "", "notes.png"), ("head_A", "{}_A", "head_A.png"), ("notes", "{}_A", "")],
)
def test_further_images_are_named_and_not_measured(
    further: str, pattern: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Results of a whole set, of which some originals are here."""
    folder = make(tmp_path / "results", *(f"{name}_A.png" for name in NAMES), f"{further}.png")
    assert match_images(folder, NAMES, pattern) == {name: folder / f"{name}_A.png" for name in NAMES}
    text = f"{folder}: not measured, without an original: {said}"
    assert caplog.messages == ([text] if said else [])


def test_a_number_is_no_part_of_another_beside_further_images(tmp_path: Path) -> None:
    """11 would be measured as 1, with a warning about 14 alone."""
    folder = make(tmp_path / "results", "11.png", "12.png", "14.png")
    with pytest.raises(UserError, match=r"named '1\{\}'; without an original: 14.png. For another naming"):
        match_images(folder, ["1", "2"])
    assert match_images(folder, ["1", "2"], "1{}")["1"] == folder / "11.png"


def test_a_name_may_have_line_breaks() -> None:
    found = compile_pattern("{}_x4").fullmatch("a\nb_x4")
    assert found
    assert found[1] == "a\nb"


@pytest.mark.parametrize("pattern", ["x4", "{}_{}", "(", "(a)(b)"])
def test_a_pattern_without_exactly_one_name_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="pattern"):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    ("folder", "name"), [("Set5/GT", "Set5"), ("Set14/GTmod12", "Set14"), ("Urban100", "Urban100"), ("B100/HR", "B100")]
)
def test_a_set_is_named_after_its_folder(tmp_path: Path, folder: str, name: str) -> None:
    assert find_test_set(make(tmp_path / folder, "baby.png")).name == name


def test_what_a_set_s_folder_has_beside_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path / "Set5", "baby.png")
    make(folder / "more", "bird.png")
    (folder / "list.txt").touch()
    assert list(find_test_set(folder).gt) == ["baby"]
    assert caplog.messages == [f"{folder}: ignored 2 that are not images (1 .txt, 1 folder)"]
