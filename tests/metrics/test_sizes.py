"""Images that a metric cannot measure are refused at the start."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dp_basicsr.data.datasets import evaluation_loaders
from dp_basicsr.data.preparation.writers import make_record
from dp_basicsr.errors import UserError
from dp_basicsr.metrics import refuse_small_images

import cv2
import numpy as np
import pytest
from basicsr.metrics import calculate_metric

from tests.support.stream import write_lmdb

PSNR, SSIM, NIQE = ({"type": f"calculate_{name}", "crop_border": 2} for name in ("psnr", "ssim", "niqe"))


def write(name: str, height: int, width: int, lmdb: bool = False) -> None:
    """Write a random image into a folder or an LMDB."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if lmdb:
        write_lmdb(Path(f"{name}.lmdb"), make_record("png", "a", image, 1))
    else:
        Path(name).mkdir(exist_ok=True)
        cv2.imwrite(f"{name}/a.png", image)


def refuse(metric: dict[str, Any], single: bool = False, lmdb: bool = False, save_img: bool = False) -> None:
    """Look at a validation set of one image at x2, as a run does at its start."""
    suffix = ".lmdb" if lmdb else ""
    dataset = {
        "name": "set", "phase": "val", "scale": 2, "io_backend": {"type": "lmdb" if lmdb else "disk"},
        "type": "SingleImageDataset" if single else "PairedImageDataset",
        "dataroot_lq": f"lq{suffix}", "dataroot_gt": None if single else f"gt{suffix}",
    }  # fmt: skip
    opt = {"scale": 2, "num_gpu": 0, "dist": False, "datasets": {"val": dataset}, "train": {"total_iter": 1}}
    opt["val"] = {"metrics": {"m": metric}, "save_img": save_img}
    refuse_small_images(opt, evaluation_loaders(opt, "val"))


@pytest.mark.parametrize(
    ("metric", "smallest", "too_small"),
    [(PSNR, (6, 6), (4, 8)), (SSIM, (16, 16), (14, 20)), (NIQE, (196, 100), (100, 100)), (NIQE, (100, 196), (98, 600))],
)
def test_the_smallest_image_of_each_metric(
    metric: dict[str, Any], smallest: tuple[int, int], too_small: tuple[int, int]
) -> None:
    """BasicSR's functions have a value for the smallest that is taken."""
    for size, refused in ((smallest, False), (too_small, True)):
        write("gt", *size)
        write("lq", size[0] // 2, size[1] // 2)
        message = (
            r"datasets: set: .*gt/a.png with sides of .* pixels is too small for val: metrics: m, which needs \d x"
        )
        with pytest.raises(UserError, match=message) if refused else nullcontext():
            refuse(metric)
        if not refused:
            images = {name: cv2.imread("gt/a.png") for name in ("img", "img2")}
            assert not np.isnan(calculate_metric(images, metric))


def test_two_images_of_one_result_are_refused_where_results_are_saved() -> None:
    """distbe/webp#4: a.png, a.jpg and a.tiff became one a.webp."""
    write("lq", 10, 10)
    Path("lq/a.jpg").write_bytes(cv2.imencode(".jpg", cv2.imread("lq/a.png"))[1].tobytes())
    refuse(PSNR, single=True)
    with pytest.raises(UserError, match="datasets: set: lq/a.jpg and lq/a.png have one result: rename one of them"):
        refuse(PSNR, single=True, save_img=True)


def test_sizes_in_an_lmdb_are_known() -> None:
    write("gt", 14, 20, lmdb=True)
    write("lq", 7, 10, lmdb=True)
    refuse(PSNR, lmdb=True)
    with pytest.raises(UserError, match="datasets: set: a with sides of 14 and 20 pixels is too small"):
        refuse(SSIM, lmdb=True)


def test_a_set_without_originals_is_measured_by_the_result() -> None:
    write("lq", 98, 50)
    refuse(NIQE, single=True)
    write("lq", 50, 50)
    with pytest.raises(UserError, match="lq/a.png with sides of 100 and 100 pixels is too small"):
        refuse(NIQE, single=True)


def test_an_original_smaller_than_its_result_is_refused() -> None:
    write("lq", 30, 20)
    # Of either orientation, as EXIF may turn one of a pair.
    write("gt", 39, 60)
    sides = "gt/a.png with sides of 39 and 60 pixels: expected at least 40 and 60, 2 x its LQ: give"
    with pytest.raises(UserError, match=sides):
        refuse(PSNR)


def test_a_metric_of_a_library_is_tried_on_the_smallest_image() -> None:
    """SC-GS#57: MS-SSIM takes no image below 161 pixels, which the first validation found."""
    write("lq", 80, 80)
    write("gt", 160, 160)
    message = "160 and 160 pixels cannot be rated by val: metrics: .*at least 161x161.*remove"
    with pytest.raises(UserError, match=message):
        refuse({"type": "piq/MultiScaleSSIMLoss", "crop_border": 0})
    refuse({"type": "piq/MultiScaleSSIMLoss", "crop_border": 0, "kernel_size": 9})


def test_an_empty_or_unreadable_file_is_known_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    write("gt", 20, 20)
    write("lq", 10, 10)
    Path("lq/a.png").write_bytes(b"")
    with pytest.raises(UserError, match="datasets: set: .*lq/a.png has no bytes: copy it again, or remove the pair"):
        refuse(PSNR)
    # As root, all may be read.
    Path("lq/a.png").write_bytes(b"damaged")
    refuse(PSNR)
    monkeypatch.setattr(os, "access", lambda path, _: "lq" not in str(path))
    with pytest.raises(UserError, match="datasets: set: .*lq/a.png may not be read: copy it again, or remove the pair"):
        refuse(PSNR)


@pytest.mark.parametrize("paths", [None, {0: "a.png"}])
def test_paths_of_another_form_are_left_to_the_dataset(paths: Any) -> None:
    dataset = SimpleNamespace(paths=paths, opt={"name": "set"})
    refuse_small_images({"scale": 2, "val": {"metrics": {"m": PSNR}}}, [cast(Any, SimpleNamespace(dataset=dataset))])
