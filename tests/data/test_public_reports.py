"""Data that users of related projects reported: each trains, or is refused at the start by a message that names it."""

from __future__ import annotations

import errno
import os
import re
import zlib
from pathlib import Path
from typing import Any

from dp_basicsr.data.datasets import evaluation_loaders
from dp_basicsr.data.sources import find_sources
from dp_basicsr.data.stream import TrainStream
from dp_basicsr.errors import UserError
from dp_basicsr.images.files import BadImageError
from dp_basicsr.images.png import join
from dp_basicsr.images.read import read_picture
from dp_basicsr.images.strict import read_image

import cv2
import lmdb
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.support.fuzz import draws
from tests.support.images import noise
from tests.support.options import REAL_ESRGAN_KERNELS
from tests.support.programs import python
from tests.support.stream import evaluation_options, options, packed, take


def test_counts_that_differ_name_the_set(pairs: Path) -> None:
    """BasicSR#243: the message was the same for training and validation."""
    (pairs / "LRbicx4/image3.png").unlink()
    with pytest.raises(UserError, match="datasets: of validation: .*different number of images.*data check --gt"):
        evaluation_loaders(evaluation_options(pairs, name="of validation"), "val")
    with pytest.raises(
        UserError, match=r"^datasets: small: .*; no image in .*; give its folders one by one \(GT, LRbicx4"
    ):  # gaussian-splatting#136
        TrainStream(options(pairs, train={"dataroot_gt": str(pairs)}))
    (pairs / "GT/image3.png").rename(pairs / "GT/image3_s001.png")
    with pytest.raises(UserError, match="data check --gt .*data extract --lr-input` cuts both"):  # BasicSR#167
        TrainStream(options(pairs))


def write_again(pairs: Path, suffix: str, *folders: str) -> None:
    """Write the images of folders in another format."""
    for path in [path for folder in folders for path in (pairs / folder).iterdir()]:
        cv2.imwrite(str(path.with_suffix(suffix)), cv2.imread(str(path)))
        path.unlink()


def test_names_that_differ_name_the_file(pairs: Path) -> None:
    """CAMixerSR#13; BasicSR#92: JPEG mixed with PNG."""
    write_again(pairs, ".jpg", "GT")
    with pytest.raises(UserError, match=r"datasets: small: image\d\.jpg is not in lq_paths"):
        TrainStream(options(pairs))


def test_jpeg_pairs_train(pairs: Path) -> None:
    """BasicSR#92."""
    write_again(pairs, ".jpg", "GT", "LRbicx4")
    assert take(options(pairs), 0, 4).shape == (4, 2, 3, 32, 32)


@pytest.mark.parametrize("name", ["数学 基础.png", "a b.png", "a.b.c.png", "%s{}.png"])
def test_unusual_names_train(pairs: Path, name: str) -> None:
    """Real-ESRGAN#307: names in Chinese."""
    for folder in ("GT", "LRbicx4"):
        (pairs / folder / "image0.png").rename(pairs / folder / name)
    assert len(take(options(pairs), 0, 4)) == 4


def test_crops_larger_than_the_image(pairs: Path) -> None:
    """wav2lip-hq#17."""
    with pytest.raises(
        UserError, match=r"image\d\.png .* LQ \(40, 36\) is smaller than patch size \(.*\): lower .* gt_size"
    ):
        take(options(pairs, train={"gt_size": 256}), 0, 1)


def test_a_tiff_of_five_channels(pairs: Path) -> None:
    """BasicSR#380: the log named no file."""
    for path in [*pairs.glob("*/*.png")]:
        tifffile.imwrite(path.with_suffix(".tif"), np.zeros((*cv2.imread(str(path)).shape[:2], 5), np.uint8))
        path.unlink()
    with pytest.raises(UserError, match=r"image\d\.tif"):
        take(options(pairs), 0, 1)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1"])
def test_png_of_every_mode_trains_as_colour(pairs: Path, mode: str) -> None:
    """BasicSR#168: gray images."""
    for path in pairs.glob("*/*.png"):
        Image.open(path).convert(mode).save(path)
    assert take(options(pairs), 0, 1)[0].shape == (2, 3, 32, 32)


def test_chunks_that_libpng_warns_about_change_nothing_and_fill_no_log(
    pairs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ultralytics#339, Real-ESRGAN#234: a line for each image with an old sRGB profile, or a bad text."""
    expected = take(options(pairs), 0, 4)
    wrong = [
        (b"iCCP", b"x\0\0" + zlib.compress(bytes(200))),
        (b"sBIT", b"\t\t\t"),
        (b"bKGD", b"\0"),
        (b"zTXt", b"k\0\0x"),
        (b"gAMA", b"\0"),
        (b"PLTE", b"\0"),
        (b"tRNS", b"\0\0"),
        (b"eXIf", b"Exif\0\0II*\0"),
    ]
    for path in pairs.glob("*/*.png"):
        path.write_bytes(join(path.read_bytes(), wrong))
    pixels = cv2.imread(str(path))
    assert capfd.readouterr().err.count("libpng warning") == len(wrong)
    # One that libpng refuses, and upscaling reads.
    path.write_bytes(join(path.read_bytes(), [(b"ABCD", b"x")]))
    assert torch.equal(take(options(pairs), 0, 4), expected)
    np.testing.assert_array_equal(read_image(path), pixels)
    said = capfd.readouterr().err
    assert not any(f"libpng {kind}" in said for kind in ("warning", "error"))


def test_tags_that_opencv_does_not_know_fill_no_log() -> None:
    """rasterio#2035: a GeoTIFF, with a line for each of its tags."""
    Path("in").mkdir()
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (42113, "s", 0, "0", True)]
    tifffile.imwrite("in/a.tif", noise(16, 16, 3), photometric="rgb", extratags=tags)
    code = (
        "import os, sys; os.environ.pop('OPENCV_LOG_LEVEL', 0); from dp_basicsr.__main__ import main; sys.exit(main())"
    )
    assert python(code, "data", "lr", "-i", "in", "-o", "out").stderr == ""


@pytest.mark.parametrize("name", ["a.tif", "16.tif"])
def test_a_compression_that_opencv_lacks_gets_the_way(name: str) -> None:
    """image-tiff#198"""
    pixels = noise(16, 16, dtype=np.uint16) if name == "16.tif" else noise(16, 16, 3)
    Image.fromarray(pixels).save(name, compression="zstd")
    with pytest.raises(BadImageError, match="OpenCV can.* decode: damaged, or a TIFF's compression, save it without"):
        (read_picture if name == "16.tif" else read_image)(Path(name))


def test_keys_that_differ(pairs: Path) -> None:
    """DCLS-SR#33: an LMDB with other keys."""
    (pairs / "GT/image0.png").rename(pairs / "GT/other.png")
    with pytest.raises(UserError, match="datasets: small: Keys in lq_folder and gt_folder are different"):
        TrainStream(options(pairs, train=packed(pairs)))


def test_a_template_for_names_that_do_not_differ_is_named(pairs: Path) -> None:
    """DAT#15: one's own pairs in the option file of DIV2K."""
    way = r"image\dx4.png is not in lq_paths; the LQ have the names of the GT: filename_tmpl: '{}'"
    with pytest.raises(UserError, match=way):
        TrainStream(options(pairs, train={"filename_tmpl": "{}x4"}))


@pytest.mark.parametrize("is_lmdb", [False, True])
def test_names_that_differ_by_an_ending_get_the_way(pairs: Path, is_lmdb: bool) -> None:
    """BasicSR#462: 0001.png and 0001x4.png, as DIV2K has them."""
    for path in list((pairs / "LRbicx4").iterdir()):
        path.rename(path.with_stem(f"{path.stem}x4"))
    opt = options(pairs, train=packed(pairs)) if is_lmdb else options(pairs)
    way = "rename its images and pack them again" if is_lmdb else "filename_tmpl: '{}x4'"
    with pytest.raises(UserError, match=re.escape(f"the names of the LQ end in x4: {way}")):
        TrainStream(opt)


def test_what_is_no_lmdb_of_basicsr_is_named(pairs: Path) -> None:
    """HINet#31: no meta_info.txt; traiNNer#70, MORAN_v2#146: a folder of images, data.mdb itself."""
    train = packed(pairs)
    lmdb = Path(train["dataroot_gt"])
    meta_info, content = lmdb / "meta_info.txt", (lmdb / "meta_info.txt").read_text()
    meta_info.write_text(content.partition("\n")[0])  # truncated
    with pytest.raises(UserError, match=r"the meta_info.txt of .*GT.lmdb lacks \d records, e.g. image1: create"):
        TrainStream(options(pairs, train=train))
    meta_info.write_text(f"\n{content}")
    with pytest.raises(UserError, match=r"meta_info.txt: line 1 is empty"):
        TrainStream(options(pairs, train=train))
    meta_info.write_text("")  # BasicSR#55
    with pytest.raises(UserError, match=r"meta_info.txt cannot be read \(it is empty\): make the LMDB from its images"):
        TrainStream(options(pairs, train=train))
    meta_info.unlink()
    with pytest.raises(UserError, match=r"meta_info.txt cannot be read \(No such file.*make the LMDB from its images"):
        TrainStream(options(pairs, train=train))
    other = lmdb.rename(lmdb.with_suffix(".other"))
    for root in (other, other / "data.mdb"):
        with pytest.raises(UserError, match="expected the folder of an LMDB, whose name ends in .lmdb"):
            find_sources(root)
    (pairs / "GT").rename(lmdb)
    for _ in range(2):
        with pytest.raises(UserError, match="is no LMDB, though its name ends in .lmdb: data.mdb is missing or empty"):
            TrainStream(options(pairs, train=train))
        # py-lmdb#160: an empty one was "Bad file descriptor".
        (lmdb / "data.mdb").touch()


def test_a_file_system_that_maps_no_files_is_told(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """py-lmdb#228: "Function not implemented"."""

    def fail(*_: Any, **__: Any) -> None:
        raise lmdb.Error(f"GT.lmdb: {os.strerror(errno.ENOSYS)}")

    train = packed(pairs)
    monkeypatch.setattr(lmdb, "open", fail)
    with pytest.raises(UserError, match="GT.lmdb cannot be opened: .*: copy or create it again, on a local disk if"):
        TrainStream(options(pairs, train=train))


LISTS: dict[str, dict[str, Any]] = {
    "PairedImageDataset": {"meta_info_file": "list.txt"},
    "RealESRGANDataset": {"meta_info": "list.txt", **REAL_ESRGAN_KERNELS},
    "RealESRGANPairedDataset": {"meta_info": "list.txt"},
}


def test_a_missing_file_is_named_or_skipped_whichever_dataset_lists_it(
    pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, or when it is drawn; BasicSR's RealESRGANDataset would draw another one without a word."""
    for rng in draws(9):
        kind, on_bad_image = rng.choice(list(LISTS)), rng.choice(("stop", "skip"))
        lines = [f"image{number}.png" for number in range(4)]
        if kind == "RealESRGANPairedDataset":
            lines = [f"GT/{name}, LRbicx4/{name}" for name in lines]
        Path("list.txt").write_text("\n".join([*lines, ""]))
        train = {"type": kind, **LISTS[kind], "on_bad_image": on_bad_image, "max_bad_share": 1}
        if kind == "RealESRGANPairedDataset":
            train |= {"dataroot_gt": str(pairs), "dataroot_lq": str(pairs)}
        path = pairs / "GT" / f"image{rng.randrange(4)}.png"
        content, is_late = path.read_bytes(), rng.random() < 0.5
        caplog.clear()
        try:
            stream = TrainStream(options(pairs, train=train)) if is_late else None
            path.unlink()
            if on_bad_image == "stop":
                with pytest.raises(UserError, match=path.name):
                    list(zip(range(4), (stream or TrainStream(options(pairs, train=train))).batches(0), strict=False))
                continue
            stream = stream or TrainStream(options(pairs, train=train))
            batches = [batch for _, batch in zip(range(4), stream.batches(0), strict=False)]  # an epoch
            assert all(str(path) not in batch["gt_path"] for batch in batches)
            assert f"sample {path}" in caplog.text or f"or {path}" in caplog.text, (kind, caplog.text)
        finally:
            path.write_bytes(content)
