"""From HR images to the data that BasicSR trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.preparation import jobs
from dp_basicsr.data.preparation.extract import Extraction, Window, cut_image, extract_subimages
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.strict import encode_png, read_image
from dp_basicsr.metrics.scores import in_colour
from dp_basicsr.utils.pool import ordered_map

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset

from tests.support.images import ImageFolder, smooth_noise

WINDOW = Window(48, 24)
SIZES = {"0001": (72, 100), "0002": (48, 48), "0003": (96, 60)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("size", "window", "starts"),
    [
        # 2040: 0, 240 ... 1440 reach 1920; 120 are left over, so one more flush with the border
        (2040, Window(), [0, 240, 480, 720, 960, 1200, 1440, 1560]),
        (1440, Window(), [0, 240, 480, 720, 960]),  # 960 + 480 ends exactly at the border
        (1441, Window(), [0, 240, 480, 720, 960, 961]),
        (1441, Window(thresh=1), [0, 240, 480, 720, 960]),  # a remainder up to the threshold is dropped
        (1442, Window(thresh=1), [0, 240, 480, 720, 960, 962]),
        (480, Window(), [0]),
        (479, Window(), []),
        (10, Window(4, 6), [0, 6]),  # a step wider than the crop leaves gaps, as BasicSR's rule does
    ],
)
def test_windows_worked_out_by_hand(size: int, window: Window, starts: list[int]) -> None:
    assert window.starts(size) == starts


def test_every_div2k_size_gives_a_multiple_of_eight() -> None:
    """DIV2K's images are 2040 pixels on one side; BasicSR's published list has 16 to 64 an image, 40 for most."""
    counts = {len(Window().corners((height, 2040))) for height in range(648, 2041, 12)}
    assert counts == {16, 24, 32, 40, 48, 56, 64}


@pytest.mark.parametrize(("form", "suffix", "kind"), [("lmdb", ".lmdb", "lmdb"), ("png", "", "disk")])
def test_basicsr_reads_what_is_written(image_folder: ImageFolder, form: Any, suffix: str, kind: str) -> None:
    """Every window of every image, row by row, one of them gray, with an LR made by MATLAB's bicubic."""
    hr = image_folder("DIV2K_train_HR", **SIZES)
    gray = min(hr.iterdir())
    cv2.imwrite(str(gray), read_image(gray)[..., 0])
    report = extract_subimages(Extraction(hr, window=WINDOW, form=form), PrepJob())
    outputs = [f"DIV2K_train_{name}{suffix}" for name in ("HR_sub", "LR_bicubic_X4_sub")]
    assert names(hr.parent) == ["DIV2K_train_HR", *outputs]
    roots = {"dataroot_gt": str(report.written[0].final), "dataroot_lq": str(report.written[1].final)}
    dataset = PairedImageDataset({**roots, "io_backend": {"type": kind}, "phase": "val", "scale": 4})
    dataset.paths.sort(key=str)  # BasicSR keeps the order of the file system
    corners = [(path, corner) for path in sorted(hr.iterdir()) for corner in WINDOW.corners(SIZES[path.stem])]
    assert [written.images for written in report.written] == [len(dataset)] * 2 == [len(corners)] * 2
    for pair, (path, (y, x)) in zip(dataset, corners, strict=True):
        gt, lq = (
            (pair[name].permute(1, 2, 0).numpy()[:, :, ::-1] * 255).round().astype(np.uint8) for name in ("gt", "lq")
        )
        np.testing.assert_array_equal(gt, in_colour(read_image(path))[y : y + 48, x : x + 48])
        np.testing.assert_array_equal(lq, downsample(gt, 4))


def test_several_scales_and_formats_in_one_pass(image_folder: ImageFolder) -> None:
    hr = image_folder("in/HR", **SIZES)
    out = hr.parent.parent / "out"
    for lmdb in ("png", "raw"):
        extract_subimages(Extraction(hr, out, WINDOW, (2, 3), form="both", lmdb=lmdb), PrepJob(overwrite=True))
        stems = ["HR_sub", "LR_bicubic_X2_sub", "LR_bicubic_X3_sub"]
        assert names(out) == sorted(stem + suffix for stem in stems for suffix in ("", ".lmdb"))
        for stem in stems:
            for packed, file in zip(find_sources(out / f"{stem}.lmdb"), find_sources(out / stem), strict=True):
                assert (packed.key, packed.raw) == (file.key, lmdb == "raw")
                np.testing.assert_array_equal(packed.read(), file.read())
    assert file.read().shape == (16, 16, 3)


def test_the_result_does_not_depend_on_the_number_of_workers(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hr = image_folder("HR", **{f"{index:04d}": (60, 52 + index) for index in range(4)})
    for folder, pool in (("one", jobs.ordered_map), ("two", ordered_map)):
        monkeypatch.setattr(jobs, "ordered_map", pool)
        extract_subimages(Extraction(hr, hr.parent / folder, WINDOW), PrepJob(workers=2))
    one, two = (hr.parent / folder / "HR_sub.lmdb" for folder in ("one", "two"))
    for file in ("meta_info.txt", "data.mdb"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_div2ks_own_lr_is_cut_at_the_same_places(image_folder: ImageFolder) -> None:
    hr = image_folder("DIV2K_train_HR", **SIZES)
    lr = image_folder("DIV2K_train_LR_bicubic/X4", **{f"{name}x4": (h // 4, w // 4) for name, (h, w) in SIZES.items()})
    report = extract_subimages(Extraction(hr, window=WINDOW, lr=(lr,), form="png"), PrepJob())
    folder = report.written[1].final
    assert folder.name == "DIV2K_train_LR_bicubic_X4_sub"
    image = read_image(lr / "0001x4.png")  # unrelated to the HR image
    for index, (y, x) in enumerate([(y, x) for y in (0, 6) for x in (0, 6, 12, 13)], 1):
        np.testing.assert_array_equal(read_image(folder / f"0001_s{index:03d}.png"), image[y : y + 12, x : x + 12])


@pytest.mark.parametrize(
    ("hr_shape", "lr_shape", "reason"),
    [
        ((72, 100), (18, 24), "is 100 x 72, expected 4 times its LR .* of 24 x 18"),
        ((72, 102), (18, 25), "is 102 x 72, expected 4 times its LR"),
        # amule-org/amule#312: names of macOS, or others that only look alike.
        ((72, 100), None, "its LR .* cannot be read .*; names that look alike differ in capital letters"),
        ((72, 100), (), "its LR .*/lr/a.png [^;]*$"),
    ],
)
def test_unpaired_images_are_reported(
    tmp_path: Path, hr_shape: tuple[int, int], lr_shape: tuple[int, int] | None, reason: str
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*hr_shape, 3), np.uint8))
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr/A.png").touch()
    if lr_shape == ():
        (tmp_path / "lr/a.png").touch()
    elif lr_shape:
        cv2.imwrite(str(tmp_path / "lr/a.png"), np.zeros((*lr_shape, 3), np.uint8))
    with pytest.raises(BadImageError, match=reason):
        cut_image(tmp_path / "a.png", Extraction(tmp_path, window=WINDOW, lr=(tmp_path / "lr",)))


def test_all_existing_outputs_are_reported_before_any_work(image_folder: ImageFolder) -> None:
    hr = image_folder("HR", a=(48, 48))
    for name in ("HR_sub.lmdb", "LR_bicubic_X4_sub.lmdb"):
        (hr.parent / name).mkdir()
        (hr.parent / name / "data.mdb").touch()
    with pytest.raises(UserError, match=r"already exists: .*HR_sub\.lmdb, .*LR_bicubic_X4_sub\.lmdb"):
        extract_subimages(Extraction(hr, window=WINDOW), PrepJob())
    report = extract_subimages(Extraction(hr, window=WINDOW), PrepJob(overwrite=True))
    assert all((written.final / "data.mdb").stat().st_size for written in report.written)
    assert len(names(hr.parent)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (5,)}, "multiples of the scale, got crop 48, step 24, scale 5"),
        ({"window": Window(48, 0)}, "expected crop and step of at least 1"),
        ({"window": Window(thresh=-1)}, "a threshold of at least 0"),
        ({"scales": (4, 4)}, "different scales"),
        ({"scales": ()}, "different scales"),
        ({"scales": (1,)}, "at least 2"),
        ({"scales": (2, 4), "lr": (Path("LR"),)}, "one LR folder for each scale, got 1"),
        ({"lr": (Path("no such folder"),)}, "no such folder: no such folder"),
        ({"lr": (Path("b/HR"),)}, "have the same output path"),
        ({"hr": Extraction().hr}, "no such folder: datasets/DIV2K/DIV2K_train_HR; .*`dp-basicsr data download div2k`"),
    ],
)
def test_inconsistent_settings_are_refused(image_folder: ImageFolder, changes: dict[str, Any], message: str) -> None:
    hr, lr = image_folder("a/HR", x=(48, 48)), image_folder("b/HR", x=(12, 12))
    with pytest.raises(UserError, match=message):
        extract_subimages(Extraction(**{"hr": hr, "window": WINDOW, **changes}), PrepJob())
    assert names(hr.parent) == names(lr.parent) == ["HR"]


def test_names_of_outputs(image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default those of the training options; folders given as dots still have names."""
    datasets = Path("datasets/DIV2K")
    assert Extraction().outputs() == [
        (datasets / "DIV2K_train_HR_sub.lmdb", 1, "png"),
        (datasets / "DIV2K_train_LR_bicubic_X4_sub.lmdb", 4, "png"),
    ]
    lr = image_folder("set_LR/X4", a=(12, 12))
    monkeypatch.chdir(lr.parent)
    paths = [path for path, _, _ in Extraction(Path(), lr=(Path("X4"),)).outputs()]
    assert paths == [lr.parents[1] / "set_LR_sub.lmdb", lr.parents[1] / "set_LR_X4_sub.lmdb"]


def test_names_that_are_not_lmdb_keys_are_allowed_in_png_folders(tmp_path: Path) -> None:
    hr = tmp_path / "hr"
    hr.mkdir()
    for name in ("a.b.png", "a.c.png", "bäume.png"):
        (hr / name).write_bytes(encode_png(smooth_noise(16, 16, 1)))
    (hr / "notes.txt").touch()
    what = Extraction(hr, window=Window(16, 16), form="png")
    assert "ignored 1 that are not images (1 .txt)" in str(extract_subimages(what, PrepJob()))
    assert names(tmp_path / "hr_sub") == ["a.b_s001.png", "a.c_s001.png", "bäume_s001.png"]
    (hr / f"{'x' * 246}.png").touch()
    with pytest.raises(UserError, match="x.png: its sub-images' names would be longer than 255 bytes: rename it"):
        extract_subimages(what, PrepJob(overwrite=True))
    (hr / "a.b.bmp").touch()
    with pytest.raises(UserError, match=r"a\.b\.bmp and a\.b\.png would both be written as 'a\.b'"):
        extract_subimages(what, PrepJob())
