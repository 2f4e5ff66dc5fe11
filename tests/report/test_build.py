"""The content of the report, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

from dp_basicsr.errors import UserError
from dp_basicsr.evaluation.evaluate import evaluate
from dp_basicsr.evaluation.files import write_evaluation
from dp_basicsr.evaluation.matching import BICUBIC, Method, find_test_set
from dp_basicsr.report.build import collect, write_report

import cv2
import numpy as np
import pytest

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


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


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
    """An evaluation of two methods on four images."""
    for sigma, method in ((1, "Sharp"), (3, "Soft <&>")):
        (pairs / method).mkdir()
        for path in (pairs / "GT").iterdir():
            cv2.imwrite(str(pairs / method / path.name), blurred(cv2.imread(str(path)), sigma))
    methods = [Method(name, pairs / name) for name in ("Soft <&>", "Sharp")]
    result = evaluate([find_test_set(pairs / "GT", pairs / "LRbicx4")], methods, 4, ("psnr_y", "ssim_y", "lpips_alex"))
    return write_evaluation(result, Path("evaluation"))


def test_the_page_is_complete(run: Path, evaluation: Path) -> None:
    """Every image in every version is embedded, and nothing is loaded from elsewhere."""
    assert main([str(run), str(evaluation)]) == 0
    page = (evaluation / "report.html").read_text()
    assert page.count('src="data:image/webp;base64,') == 4 * 5  # LR, bicubic, two methods, original
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page)
    assert "Soft &lt;&amp;&gt;" in page
    assert "<b>&</b>" not in page
    assert "LPIPS AlexNet is n/a" in page
    assert page.count("<svg") == 5  # generator, L_VGG, w, learning rate, validation; no discriminator in this log
    assert "Validation: psnr_rgb" in page


def test_the_shown_image_equals_the_file(evaluation: Path, pairs: Path) -> None:
    import base64

    report = collect([evaluation], None)
    viewer = report.viewers["pairs"][0]
    assert [source.name for source in viewer.sources] == ["LR (nearest)", BICUBIC, "Soft <&>", "Sharp", "Original"]
    data = np.frombuffer(base64.b64decode(viewer.sources[-1].uri.split(",")[1]), np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.imread(str(pairs / "GT/image0.png")))


def test_the_best_is_ranked_and_random_networks_are_named(run: Path, evaluation: Path) -> None:
    report = collect([run, evaluation], 50)
    table = report.averages[0]
    assert [row[1].rank for row in table.rows] == [1, 0]
    assert [row[3].text for row in table.rows] == ["n/a", "n/a"]
    assert any("RANDOM weights" in note for note in report.notes)
    assert any("quality 50" in note for note in report.notes)
    assert report.better == " PSNR Y, SSIM Y: higher is better. LPIPS AlexNet: lower is better."
    assert report.facts["Iterations of run"] == "2"


def test_a_training_without_evaluation_has_a_report(run: Path) -> None:
    assert "<h2>Training</h2>" in write_report([run], Path("report.html")).read_text()


def test_a_run_that_ended_after_its_baseline_has_a_report(run: Path) -> None:
    (run / "train_run_20260101.log").write_text("\n".join(LOG[3:]).replace("@ 2 iter", "@ 0 iter"))
    report = collect([run], None)
    assert report.facts["Iterations of run"] == "0"
    assert list(report.curves) == ["Validation: psnr_rgb"]


def test_mistakes_are_named(pairs: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="one evaluation"):
        collect([evaluation, evaluation], None)
    for command, message in (
        ([str(pairs)], "train_.*log, or an evaluation"),
        ([str(evaluation), "--quality", "0"], "auto"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert not list(pairs.parent.rglob("report.html*"))
