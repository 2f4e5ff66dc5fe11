"""The demo's commands, measurements and picture."""

from __future__ import annotations

from pathlib import Path

from dp_basicsr.evaluation.matching import BICUBIC
from dp_basicsr.studies import demo

import cv2
import pytest

from tests.support.images import smooth_noise


def test_commands_are_found_from_any_folder(capfd: pytest.CaptureFixture[str]) -> None:
    demo.run("scripts/make_lr.py", "--help")
    out = capfd.readouterr().out
    assert "usage: python " in out
    assert "scripts/make_lr.py --help" in out.splitlines()[1]


def test_results_are_measured_and_drawn() -> None:
    for folder, side in (("datasets/demo/test/GT", 288), ("datasets/demo/test/LRbicx4", 72), ("ours", 288)):
        Path(folder).mkdir(parents=True)
        for number, name in enumerate(demo.CROPS):
            suffix = "_x4" if folder == "ours" else ""
            cv2.imwrite(f"{folder}/{name}{suffix}.png", smooth_noise(side, side, number))
    evaluation = demo.compare_results({"Ours": Path("ours")}, "a note", Path("comparison.png"))
    assert evaluation.methods == [BICUBIC, "Ours"]
    assert [image.scores["psnr_rgb"] for image in evaluation.images if image.method == "Ours"] == [float("inf")] * 2
    assert cv2.imread("comparison.png").std() > 10
