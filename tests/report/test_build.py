"""The content of the report, without a browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.files import write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.report.build import collect, write_report
from dp_basicsr.report.images import data_uri

import cv2
import numpy as np
import pytest
from PIL import Image

from scripts.make_report import main


def log_line(iteration: int, rate: str, losses: str) -> str:
    """A line of BasicSR's MessageLogger."""
    head = f"INFO: [run..][epoch:  0, iter:{iteration:8,d}, lr:({rate},)] "
    return f"2026-01-01 00:00:01,000 {head}[eta: 0:00:01, time (data): 1.000 (0.100)] {losses} "


LOG = [
    "2026-01-01 00:00:00,000 WARNING: vgg19: RANDOM weights (as the options ask). Its features are not ImageNet's",
    log_line(1, "1.000e-04", "l_g_pix: 1.0e-03 l_g_vgg: 2.0e-01 l_g_resnet: 1.0e-01 dp_weight: 4.0e+00"),
    log_line(2, "5.000e-05", "l_g_pix: 0.5e-03 l_g_vgg: 1.0e-01 l_g_resnet: 1.0e-01 dp_weight: 2.0e+00"),
    "2026-01-01 00:00:03,000 INFO: Validation held_out",
    "\t # psnr_rgb: 25.0000\tBest: 25.0000 @ 2 iter",
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training's folder with a log and the option file."""
    folder = tmp_path / "experiments" / "run"
    folder.mkdir(parents=True)
    (folder / "train_run_20260101.log").write_text("\n".join(LOG))
    (folder / "run.yml").write_text("name: run  # <b>&</b>\n")
    return folder


@pytest.fixture
def evaluation(pairs: Path) -> Path:
    """An evaluation of two methods on two images."""
    for path in [*pairs.glob("*/image2.png"), *pairs.glob("*/image3.png")]:
        path.unlink()
    for sigma, method in ((1, "Sharp"), (3, "Soft <&>")):
        (pairs / method).mkdir()
        for path in (pairs / "GT").iterdir():
            cv2.imwrite(str(pairs / method / path.name), cv2.GaussianBlur(cv2.imread(str(path)), (0, 0), sigma))
    methods = [Method(name, pairs / name) for name in ("Soft <&>", "Sharp")]
    result = evaluate([find_test_set(pairs / "GT", pairs / "LRbicx4")], methods, 4, ("psnr_y", "ssim_y", "lpips_alex"))
    return write_evaluation(result, Path("evaluation"))


def test_the_page_is_complete_and_shows_the_files(run: Path, evaluation: Path, pairs: Path) -> None:
    """Every image in every version is embedded without loss, and nothing is loaded from elsewhere."""
    assert main([str(run), str(evaluation)]) == 0
    page = (evaluation / "report.html").read_text()
    images = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    assert len(images) == 2 * 5  # LR, bicubic, two methods, original
    data = np.frombuffer(base64.b64decode(images[4]), np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.imread(str(pairs / "GT/image0.png")))
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page)
    assert "Soft &lt;&amp;&gt;" in page
    assert "<b>&</b>" not in page
    assert page.count("LPIPS AlexNet is n/a: the ImageNet weights") == 1
    assert page.count("<svg") == 5  # generator, L_VGG, w, learning rate, validation; no discriminator in this log
    assert "Validation: psnr_rgb" in page


def test_the_best_is_ranked_and_random_networks_are_named(run: Path, evaluation: Path) -> None:
    report = collect([run, evaluation], 50)
    table = report.averages[0]
    assert table.name == "pairs (2 images)"
    assert [row[1].rank for row in table.rows] == [1, 0]
    assert [row[3].text for row in table.rows] == ["n/a", "n/a"]
    assert any("RANDOM weights" in note for note in report.notes)
    assert any("quality 50" in note for note in report.notes)
    assert report.better == " PSNR Y, SSIM Y: higher is better. LPIPS AlexNet: lower is better."
    assert report.facts["Iterations of run"] == "2"
    names = [source.name for source in report.viewers["pairs"][0].sources]
    assert names == ["LR (nearest)", BICUBIC, "Soft <&>", "Sharp", "Original"]


def test_an_image_that_is_too_long_for_webp_is_shown() -> None:
    """microsoft/playwright#42721"""
    for side, kind in ((16383, "webp"), (16384, "png")):
        uri = data_uri(np.zeros((1, side, 3), np.uint8), 90)
        assert uri.startswith(f"data:image/{kind};base64,")
        assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (side, 1)


def test_a_run_that_ended_after_its_baseline_has_a_report(run: Path) -> None:
    """Also without an evaluation."""
    (run / "train_run_20260101.log").write_text("\n".join(LOG[3:]).replace("@ 2 iter", "@ 0 iter"))
    page = write_report([run], Path("report.html")).read_text()
    assert "<h2>Training</h2>" in page
    assert "<h2>Images</h2>" not in page
    assert "<dt>Iterations of run</dt><dd>0</dd>" in page


def test_trainings_of_one_name_are_all_shown(run: Path) -> None:
    """detectron2#1112: the runs of several machines have one name."""
    others = [shutil.copytree(run, run.parents[1] / machine / "run") for machine in ("a", "b")]
    report = collect([run, *others], 50)
    assert report.title == ", ".join(map(str, [run, *others]))
    for folder in (run, *others):
        assert report.facts[f"Iterations of {folder}"] == "2"
    panels = [title for title in report.curves if title.startswith("Generator")]
    assert panels == [f"Generator\n{folder}" for folder in (run, *others)]
    # Whoever reads the page sees only what is drawn.
    for folder in (run, *others):
        assert f">{folder}</text>" in report.curves[f"Generator\n{folder}"]
    assert list(report.option_files) == ["run.yml", *(f"run.yml ({folder})" for folder in others)]


def test_mistakes_are_named(pairs: Path, evaluation: Path, refused: Callable[[Any, list[str]], str]) -> None:
    with pytest.raises(UserError, match="one evaluation"):
        collect([evaluation, evaluation], 50)
    assert re.search("error: .*train_.*log, or an evaluation", refused(main, [str(pairs)]))
    assert re.search("error: .*auto", refused(main, [str(evaluation), "--quality", "0"]))
    assert not list(pairs.parent.rglob("report.html*"))


def test_an_image_that_has_changed_since_it_was_measured_is_named(pairs: Path, evaluation: Path) -> None:
    """fiftyone#119: the figures of the old image would stand below the new one."""
    file = pairs / "Sharp" / "image1.png"
    image = cv2.imread(str(file))
    # The same pixels in another file are the same image.
    cv2.imwrite(str(file), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    collect([evaluation], 50)
    cv2.imwrite(str(file), 255 - image)
    with pytest.raises(UserError, match=r"Sharp/image1.png, or its original, has changed .*evaluate --overwrite"):
        collect([evaluation], 50)
    text = (evaluation / "evaluation.json").read_text()
    (evaluation / "evaluation.json").write_text(re.sub(r',\s*"checksum": \w+', "", text))  # of an earlier version
    collect([evaluation], 50)
