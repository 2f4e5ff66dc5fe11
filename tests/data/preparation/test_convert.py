"""Packing folders into LMDBs, and creating the LR images of test sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

from dp_basicsr.data.datasets import DiskClient
from dp_basicsr.data.imresize import downsample
from dp_basicsr.data.lmdb_records import lmdb_reader
from dp_basicsr.data.preparation.convert import create_lmdb, make_lr
from dp_basicsr.data.preparation.jobs import PrepJob
from dp_basicsr.data.sources import find_sources
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import read_image

import cv2
import numpy as np
import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from PIL import Image

from tests.support.images import ImageFolder

JOB = PrepJob()


def test_lmdbs_of_both_forms_hold_the_pixels_of_the_files(image_folder: ImageFolder) -> None:
    """From files to PNG records to raw records and back: the same pixels, and the first LMDB byte for byte."""
    folder = image_folder("images", b=(20, 30), a=(10, 12))
    cv2.imwrite(str(folder / "gray.png"), np.zeros((5, 6), np.uint8))
    png, raw, back = (folder.parent / name for name in ("png.lmdb", "raw.lmdb", "back.lmdb"))
    job = PrepJob(compression=3)
    assert create_lmdb(folder, png, job).written[0].images == 3
    create_lmdb(png, raw, job, "raw")
    create_lmdb(raw, back, job, "png")
    assert (png / "meta_info.txt").read_text() == "a.png (10,12,3) 3\nb.png (20,30,3) 3\ngray.png (5,6,1) 3\n"
    assert (raw / "meta_info.txt").read_text() == (
        "a.raw (10,12,3) planes\nb.raw (20,30,3) planes\ngray.raw (5,6,1) planes\n"
    )
    assert (back / "meta_info.txt").read_text() == (png / "meta_info.txt").read_text()
    for form in (png, raw):
        for source, path in zip(find_sources(form), sorted(folder.iterdir()), strict=True):
            np.testing.assert_array_equal(source.read(), read_image(path))
    for record in ("a", "b", "gray"):
        with lmdb_reader(png).record(record) as before, lmdb_reader(back).record(record) as after:
            assert before == after
    with lmdb_reader(raw).record("b") as pixels:  # red, green, blue, a plane each
        assert bytes(pixels) == read_image(folder / "b.png")[:, :, ::-1].transpose(2, 0, 1).tobytes()


def test_create_lmdb_refuses_dotted_names_and_bad_images(
    image_folder: ImageFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder("images", a=(10, 12))
    (folder / "b.png").write_bytes(b"no image")
    jpeg = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    (folder / "surplus.jpg").write_bytes(jpeg[:-2] + bytes(12) + jpeg[-2:])

    def in_workers(function: Any, tasks: Any, _: int) -> Iterator[Any]:
        for task in tasks:
            with redirect_stderr(None):  # as that of a worker whose reader is gone
                result = function(task)
            yield result

    monkeypatch.setattr("dp_basicsr.data.preparation.jobs.ordered_map", in_workers)
    with pytest.raises(UserError, match="1 of 3 images cannot be used"):
        create_lmdb(folder, folder.parent / "x.lmdb", JOB)
    assert f"{folder}/surplus.jpg: Corrupt JPEG data: " in capsys.readouterr().err  # ultralytics#13142
    (folder / "surplus.jpg").unlink()
    (folder / "c.1.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(UserError, match="would be looked up as 'c'"):
        create_lmdb(folder, folder.parent / "x.lmdb", JOB)
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_records_that_cannot_be_converted_are_named(image_folder: ImageFolder) -> None:
    png = image_folder("images", a=(10, 12), b=(10, 12)).parent / "png.lmdb"
    create_lmdb(png.parent / "images", png, JOB)
    (png / "meta_info.txt").write_text("a.png (10,13,3) 1\nc.png (10,12,3) 1\n")
    with pytest.raises(UserError) as caught:
        create_lmdb(png, png.parent / "raw.lmdb", JOB, "raw")
    assert f"{png}/a is 10 x 12 x 3, but its meta_info.txt says 10 x 13 x 3" in str(caught.value)
    assert f"{png}/c is not in {png}, though its meta_info.txt names it" in str(caught.value)
    assert not (png.parent / "raw.lmdb").exists()


def test_make_lr_keeps_names_and_basicsr_pairs_them(image_folder: ImageFolder) -> None:
    gt = image_folder("Set/GT", odd=(43, 50), even=(40, 48))
    cv2.imwrite(str(gt / "gray.BMP"), np.zeros((40, 44), np.uint8))
    lr = make_lr(gt, gt.parent / "LRbicx4", 4, JOB).written[0].final
    assert sorted(path.name for path in lr.iterdir()) == ["even.png", "gray.BMP", "odd.png"]
    np.testing.assert_array_equal(read_image(lr / "odd.png"), downsample(read_image(gt / "odd.png"), 4))
    options = {"dataroot_gt": str(gt), "dataroot_lq": str(lr), "io_backend": {"type": "disk"}, "phase": "val"}
    for pair in PairedImageDataset({**options, "scale": 4}):
        assert [4 * side for side in pair["lq"].shape[1:]] == list(pair["gt"].shape[1:])


def test_make_lr_refuses_lossy_formats(image_folder: ImageFolder) -> None:
    gt = image_folder("GT", a=(40, 40), tiny=(3, 40))
    cv2.imwrite(str(gt / "b.jpg"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError) as caught:
        make_lr(gt, gt.parent / "LR", 4, JOB)
    assert "2 of 3 images" in str(caught.value)
    assert "b.jpg would have a lossy LR of the same name: convert it to .png first, or cut it" in str(caught.value)
    assert "tiny.png is smaller than 4 pixels" in str(caught.value)
    with pytest.raises(UserError, match="scale of at least 2"):
        make_lr(gt, gt.parent / "LR", 1, JOB)


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff"])
def test_of_several_pictures_none_is_taken_silently(image_folder: ImageFolder, kind: str) -> None:
    """OpenCV takes the first; a phone's JPEG with a preview (MPO) has one picture."""
    folder = image_folder("images", one=(10, 12), another=(10, 12))
    first, second = (Image.open(folder / f"{name}.png") for name in ("one", "another"))
    first.save(folder / "phone.jpg", "MPO", save_all=True, append_images=[second])
    for name, others in (("both", [second.copy()]), ("single", [])):
        first.copy().save(folder / f"{name}.{kind}", save_all=True, append_images=others)
    with pytest.raises(UserError, match=r"1 of 5 images(?s:.*)both\.\w+ has 2 frames or pages"):
        create_lmdb(folder, folder.parent / "x.lmdb", JOB)
    if kind != "png":
        with pytest.raises(UserError, match="has 2 frames"):
            DiskClient().get(folder / f"both.{kind}")
    assert DiskClient().get(folder / f"single.{kind}") == (folder / f"single.{kind}").read_bytes()


@pytest.mark.parametrize("settings", [{"compression": 10}, {"compression": -1}, {"workers": 0}])
def test_job_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected"):
        PrepJob(**settings)  # type: ignore[arg-type]


def test_overwrite_never_replaces_originals_or_other_files(image_folder: ImageFolder) -> None:
    own = image_folder("own", a=(16, 16))
    before = (own / "a.png").read_bytes()
    for output in (own, own.parent, own / "LR"):
        with pytest.raises(UserError, match="overlap"):
            make_lr(own, output, 4, PrepJob(overwrite=True))
    notes = own.parent / "LR" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt is something else"):
        make_lr(own, notes.parent, 4, PrepJob(overwrite=True))
    assert notes.read_text() == "mine"
    assert (own / "a.png").read_bytes() == before
