"""Packing folders into LMDBs, and creating the LR images of test sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_basicsr  # noqa: F401  (makes basicsr importable)
from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.lmdb_records import lmdb_reader
from dp_basicsr.data.preparation.convert import create_lmdb, make_lr
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import read_image

import cv2
import lmdb
import numpy as np
import pytest

ONE = PrepJob(workers=1)


def test_create_lmdb_packs_every_image(image_folder: Any) -> None:
    folder = image_folder("images", b=(20, 30), a=(10, 12))
    cv2.imwrite(str(folder / "gray.png"), np.zeros((5, 6), np.uint8))
    report = create_lmdb(folder, folder.parent / "x.lmdb", ONE)
    assert (report.written[0].path / "meta_info.txt").read_text() == (
        "a.png (10,12,3) 1\nb.png (20,30,3) 1\ngray.png (5,6,1) 1\n"
    )
    with lmdb.open(str(report.written[0].path), readonly=True, lock=False) as env, env.begin() as transaction:
        (folder / "found.png").write_bytes(transaction.get(b"b") or b"")
    np.testing.assert_array_equal(read_image(folder / "found.png"), read_image(folder / "b.png"))


def test_create_lmdb_refuses_dotted_names_and_bad_images(image_folder: Any) -> None:
    folder = image_folder("images", a=(10, 12))
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 2 images cannot be used"):
        create_lmdb(folder, folder.parent / "x.lmdb", ONE)
    (folder / "c.1.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(UserError, match="would be looked up as 'c'"):
        create_lmdb(folder, folder.parent / "x.lmdb", ONE)
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_create_lmdb_converts_both_ways(image_folder: Any) -> None:
    """From PNG files to PNG records to raw records and back: the same pixels, and the first LMDB byte for byte."""
    folder = image_folder("images", b=(20, 30), a=(10, 12))
    cv2.imwrite(str(folder / "gray.png"), np.zeros((5, 6), np.uint8))
    png, raw, back = (folder.parent / name for name in ("png.lmdb", "raw.lmdb", "back.lmdb"))
    create_lmdb(folder, png, ONE)
    create_lmdb(png, raw, ONE, "raw")
    create_lmdb(raw, back, ONE, "png")
    assert (raw / "meta_info.txt").read_text() == (
        "a.raw (10,12,3) planes\nb.raw (20,30,3) planes\ngray.raw (5,6,1) planes\n"
    )
    assert (back / "meta_info.txt").read_text() == (png / "meta_info.txt").read_text()
    for form in (png, raw):
        for source, path in zip(find_sources(form), sorted(folder.iterdir()), strict=True):
            np.testing.assert_array_equal(source.read(gray=True), read_image(path, gray=True))
    for record in ("a", "b", "gray"):
        with lmdb_reader(png).record(record) as before, lmdb_reader(back).record(record) as after:
            assert before == after
    with lmdb_reader(raw).record("b") as pixels:  # red, green, blue, a plane each
        assert bytes(pixels) == read_image(folder / "b.png")[:, :, ::-1].transpose(2, 0, 1).tobytes()


def test_records_that_cannot_be_converted_are_named(image_folder: Any) -> None:
    png = image_folder("images", a=(10, 12), b=(10, 12)).parent / "png.lmdb"
    create_lmdb(png.parent / "images", png, ONE)
    (png / "meta_info.txt").write_text("a.png (10,13,3) 1\nc.png (10,12,3) 1\n")
    with pytest.raises(UserError) as caught:
        create_lmdb(png, png.parent / "raw.lmdb", ONE, "raw")
    assert f"{png}/a is 10 x 12 x 3, but its meta_info.txt says 10 x 13 x 3" in str(caught.value)
    assert f"{png}/c is not in {png}, though its meta_info.txt names it" in str(caught.value)
    assert not (png.parent / "raw.lmdb").exists()
    with pytest.raises(UserError, match="overlap"):
        create_lmdb(png, png, PrepJob(1, overwrite=True), "raw")


def test_make_lr_keeps_names_and_basicsr_pairs_them(image_folder: Any) -> None:
    from basicsr.data.paired_image_dataset import PairedImageDataset

    gt = image_folder("Set/GT", odd=(43, 50), even=(40, 48))
    cv2.imwrite(str(gt / "gray.bmp"), np.zeros((40, 44), np.uint8))
    report = make_lr(gt, gt.parent / "LRbicx4", 4, ONE)
    lr = report.written[0].path
    assert sorted(path.name for path in lr.iterdir()) == ["even.png", "gray.bmp", "odd.png"]
    np.testing.assert_array_equal(read_image(lr / "odd.png"), downsample(read_image(gt / "odd.png"), 4))
    options = {
        "dataroot_gt": str(gt),
        "dataroot_lq": str(lr),
        "io_backend": {"type": "disk"},
        "phase": "val",
        "scale": 4,
    }
    for pair in PairedImageDataset(options):
        assert [4 * side for side in pair["lq"].shape[1:]] == list(pair["gt"].shape[1:])


def test_make_lr_refuses_lossy_formats(image_folder: Any) -> None:
    gt = image_folder("GT", a=(40, 40), tiny=(3, 40))
    cv2.imwrite(str(gt / "b.jpg"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError) as caught:
        make_lr(gt, gt.parent / "LR", 4, ONE)
    assert "2 of 3 images" in str(caught.value)
    assert "b.jpg would have a lossy LR" in str(caught.value)
    assert "tiny.png is smaller than 4 pixels" in str(caught.value)
    with pytest.raises(UserError, match="scale of at least 2"):
        make_lr(gt, gt.parent / "LR", 1, ONE)


def test_make_lr_gives_the_published_set5(set5: Path, tmp_path: Path) -> None:
    make_lr(set5 / "GT", tmp_path / "LRbicx4", 4, ONE)
    for path in (set5 / "LRbicx4").iterdir():
        np.testing.assert_array_equal(read_image(tmp_path / "LRbicx4" / path.name), read_image(path))


@pytest.mark.parametrize("settings", [{"compression": 10}, {"compression": -1}, {"workers": 0}])
def test_job_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected"):
        PrepJob(**settings)  # type: ignore[arg-type]


def test_overwrite_never_replaces_originals_or_other_files(image_folder: Callable[..., Path]) -> None:
    own = image_folder("own", a=(16, 16))
    before = (own / "a.png").read_bytes()
    for output in (own, own.parent, own / "LR"):
        with pytest.raises(UserError, match="overlap"):
            make_lr(own, output, 4, PrepJob(1, overwrite=True))
    notes = own.parent / "LR" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt is something else"):
        make_lr(own, notes.parent, 4, PrepJob(1, overwrite=True))
    assert notes.read_text() == "mine"
    assert (own / "a.png").read_bytes() == before
