"""LPIPS: the same value as the lpips package, local backbones, and no value without a backbone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

from dp_basicsr.errors import UserError
from dp_basicsr.metrics import calculate_lpips, drop_unavailable, lpips_metric, measure

import lpips
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from torchvision import models

RNG = np.random.default_rng(0)
IMAGE, OTHER = (RNG.integers(0, 256, (48, 56, 3), dtype=np.uint8) for _ in range(2))


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """Clear the cache of networks and errors."""
    lpips_metric.lpips_network.cache_clear()


@pytest.fixture
def alexnet(tmp_path: Path) -> Path:
    """AlexNet's convolutions with random weights, as torchvision would save them, in the first folder searched."""
    with torch.device("meta"):  # its classifier would take seconds
        features = models.alexnet(weights=None).features
    generator = torch.Generator().manual_seed(0)
    state = {
        f"features.{name}": torch.randn(value.shape, generator=generator, device="cpu") * 0.03
        for name, value in features.state_dict().items()
    }
    path = tmp_path / "experiments" / "pretrained_models" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def test_it_is_the_package_s_lpips(alexnet: Path) -> None:
    """BGR to RGB, the range, the border and the linear weights: all as in the lpips package; gray is equal channels."""
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    backbone = torch.load(alexnet, weights_only=True)
    names = {name: f"features.{name.split('.', 2)[2]}" for name in reference.state_dict() if name.startswith("net.")}
    reference.load_state_dict({name: backbone[key] for name, key in names.items()}, strict=False)
    options = {"type": "calculate_lpips", "crop_border": 4, "net": "alex", "better": "lower"}
    before = torch.get_rng_state()
    for pair in ((IMAGE, OTHER), (IMAGE[..., 0], OTHER[..., 0])):
        rgb = [lpips.im2tensor(np.dstack([image] * 3)[4:-4, 4:-4, 2::-1]) for image in pair]
        with torch.no_grad():
            expected = pytest.approx(float(reference(*rgb)), rel=1e-4 if torch.cuda.is_available() else 1e-6)  # TF32
        assert calculate_metric(dict(zip(("img", "img2"), pair, strict=True)), options) == expected
        assert calculate_lpips(*pair, 4, weights=str(alexnet)) == expected
    assert calculate_lpips(IMAGE, IMAGE, 4) == 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No backbone and no network connection; records the requested URLs."""
    asked: list[str] = []

    def refuse(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return asked


def test_without_a_backbone_the_metric_is_not_available(offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN for BasicSR, None for our tables; logged and requested once, not for every image."""
    said: list[str] = []
    monkeypatch.setattr(lpips_metric, "get_root_logger", lambda: SimpleNamespace(warning=said.append))
    assert math.isnan(calculate_lpips(IMAGE, OTHER, 4))
    scores = measure(IMAGE, OTHER, 4, ("lpips_alex", "psnr_y"))
    assert scores == {"lpips_alex": None, "psnr_y": pytest.approx(12.59, abs=0.1)}
    assert len(offline) == 1
    assert len(said) == 1
    assert said[0].startswith("LPIPS (alex) is n/a")
    assert "experiments/pretrained_models" in said[0]


def test_validation_continues_with_the_other_metrics(offline: list[str]) -> None:
    psnr = {"type": "calculate_psnr", "crop_border": 4}
    opt = {"rank": 0, "val": {"metrics": {"psnr": psnr, "lpips": {"type": "calculate_lpips", "crop_border": 4}}}}
    drop_unavailable(opt)
    assert opt["val"]["metrics"] == {"psnr": psnr}
    drop_unavailable({"rank": 0, "val": None})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"img": IMAGE[:-1]}, "same shape"),
        ({"net": "squeeze"}, "alex, vgg"),
        ({"crop_border": 10}, "32 pixels"),
        ({"img": IMAGE / 255, "img2": OTHER / 255}, r"in \[0, 255\], .* multiply"),  # YuLiu-LY/SlotLifter#1
    ],
)
def test_mistakes_are_named(alexnet: Path, call: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        calculate_lpips(**{"img": IMAGE, "img2": OTHER, "crop_border": 4, "weights": str(alexnet)} | call)


def test_a_mismatched_file_is_named(alexnet: Path) -> None:
    assert "does not contain the weights of vgg16" in str(lpips_metric.why_not("vgg", str(alexnet)))
    # It was "expected imagenet, random or a file, got 'random'".
    reason = "weights of alexnet: no such file 'random'; expected one, imagenet or (losses) random"
    assert lpips_metric.why_not(weights="random") == reason
