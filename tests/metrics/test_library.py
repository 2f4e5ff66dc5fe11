"""Metrics of other libraries by name: the same values as theirs, known directions, and named mistakes."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any
from urllib.error import URLError

from dp_basicsr.checks.checking import find_problems
from dp_basicsr.errors import UserError
from dp_basicsr.metrics import drop_unavailable, library_metric, measure
from dp_basicsr.metrics.scores import better_of, function_of, why_not

import numpy as np
import piq
import pytest
import torch
from basicsr.metrics import calculate_metric
from torchmetrics.functional.image import structural_similarity_index_measure

RNG = np.random.default_rng(0)
GT = RNG.integers(0, 256, (72, 68, 3), dtype=np.uint8)
NEAR = np.clip(GT + RNG.integers(-20, 21, GT.shape), 0, 255).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    """The inside of an image, RGB in [0, 1]."""
    return torch.from_numpy(image[4:-4, 4:-4, ::-1].copy()).permute(2, 0, 1)[None].float() / 255


def value(kind: str, **keywords: Any) -> float:
    """A value as validation computes it."""
    function_of(kind)
    return float(calculate_metric({"img": NEAR, "img2": GT}, {"type": kind, "crop_border": 4, **keywords}))


def test_values_are_the_libraries() -> None:
    assert value("piq/GMSDLoss", better="lower") == pytest.approx(float(piq.gmsd(tensor(NEAR), tensor(GT))))
    assert measure(NEAR, GT, 4, ("gmsd",))["gmsd"] == value("piq/GMSDLoss")
    expected = 1 - float(piq.haarpsi(tensor(NEAR), tensor(GT), c=20.0))
    assert value("piq/HaarPSILoss", c=20.0) == pytest.approx(expected)
    ssim = structural_similarity_index_measure(tensor(NEAR), tensor(GT), data_range=1.0)
    assert value("torchmetrics/StructuralSimilarityIndexMeasure") == pytest.approx(float(ssim))
    # Its `normalize` is no range: SC-GS#57.
    assert why_not("torchmetrics/MultiScaleStructuralSimilarityIndexMeasure") is None
    function_of("piq/TVLoss")
    assert calculate_metric({"img": NEAR}, {"type": "piq/TVLoss"}) > 0  # needs no original


def test_the_direction_is_known() -> None:
    lower = ("piq/DISTS", "torchmetrics/TotalVariation", "calculate_lpips")
    higher = ("piq/CLIPIQA", "torchmetrics/PeakSignalNoiseRatio", "calculate_psnr", "someone_s")
    assert {better_of(kind) for kind in lower} == {"lower"}
    assert {better_of(kind) for kind in higher} == {"higher"}


def test_weights_that_cannot_be_downloaded_make_it_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("piq.perceptual.load_state_dict_from_url", refuse, raising=False)
    library_metric._why_not.cache_clear()
    opt = {"val": {"metrics": {"dists": {"type": "piq/DISTS"}, "gmsd": {"type": "piq/GMSDLoss", "crop_border": 4}}}}
    drop_unavailable(opt)
    assert list(opt["val"]["metrics"]) == ["gmsd"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "piq/Gmsd"}, "expected a metric of piq that rates single images: .*GMSDLoss"),
        ({"type": "piq/FID"}, "that rates single images"),
        ({"type": "nothing/FID"}, "expected a metric of piq, torchmetrics, pyiqa"),
        ({"type": "pyiqa/musiq"}, "pip install pyiqa .non-commercial licence"),
        ({"type": "piq/HaarPSILoss", "scale": 2}, "scales"),
        ({"type": "piq/HaarPSILoss", "crop_border": -4}, "expected a number >= 0, got -4"),
    ],
)
def test_mistakes_are_named_by_the_check(entry: dict[str, Any], message: str) -> None:
    problems = find_problems({"val": {"val_freq": 1, "metrics": {"mine": entry}}}, is_train=True)
    (text,) = [
        f"{problem.path}: {problem.text}" for problem in problems if problem.path[:3] == ("val", "metrics", "mine")
    ]
    assert re.search(message, text)


def test_a_metric_that_cannot_rate_a_pair_of_images_is_named() -> None:
    with pytest.raises(UserError, match="SpatialDistortionIndex cannot rate an image"):
        why_not("torchmetrics/SpatialDistortionIndex")


def test_a_folder_that_an_uninstall_left_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("piq")
    module.__path__ = []
    monkeypatch.setitem(sys.modules, "piq", module)
    library_metric.library_class.cache_clear()
    with pytest.raises(UserError, match="piq is not installed: pip install"):
        library_metric.library_class("piq/GMSDLoss")


def test_pyiqa_is_used_where_the_user_has_installed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a module of the same interface: pyiqa itself is not installed here."""

    class Fake(torch.nn.Module):
        lower_better, metric_mode = True, "FR"

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x - y).abs().mean()

    module = ModuleType("pyiqa")
    module.list_models, module.create_metric = lambda: ["mad"], lambda name: Fake()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    library_metric.library_class.cache_clear()
    assert value("pyiqa/mad") == pytest.approx(float((tensor(NEAR) - tensor(GT)).abs().mean()))
    assert better_of("pyiqa/mad") == "lower"
