"""PSNR and SSIM compared with scikit-image and the published bicubic row, gray images, and errors."""

from __future__ import annotations

import math
from pathlib import Path

from dp_basicsr.data.imresize import imresize, mod_crop
from dp_basicsr.errors import UserError
from dp_basicsr.images.strict import read_image
from dp_basicsr.metrics import METRICS, measure

import numpy as np
import pytest
from basicsr.metrics import calculate_niqe
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 36, 3), dtype=np.uint8)
NEAR = np.clip(IMAGE + RNG.integers(-20, 21, IMAGE.shape), 0, 255).astype(np.uint8)
PIXELS = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")


def y_of(bgr: np.ndarray) -> np.ndarray:
    """BT.601's luma in [16, 235], MATLAB's rgb2ycbcr, unrounded."""
    return 16 + bgr.astype(np.float64) @ np.array([24.966, 128.553, 65.481]) / 255


def test_psnr_and_ssim_equal_scikit_image() -> None:
    gauss = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    inner = [image[4:-4, 4:-4] for image in (NEAR, IMAGE)]
    maps = [structural_similarity(*(x[..., c] for x in inner), full=True, **gauss)[1] for c in range(3)]
    expected = {
        "psnr_rgb": peak_signal_noise_ratio(inner[1], inner[0], data_range=255),
        "psnr_y": peak_signal_noise_ratio(y_of(inner[1]), y_of(inner[0]), data_range=255),
        "ssim_rgb": np.mean([m[5:-5, 5:-5] for m in maps]),
        "ssim_y": structural_similarity(*(y_of(x) for x in inner), full=True, **gauss)[1][5:-5, 5:-5].mean(),
    }
    assert measure(NEAR, IMAGE, 4, PIXELS) == pytest.approx(expected, abs=1e-4)


def test_gray_counts_as_three_equal_channels() -> None:
    gray, near = IMAGE[..., 0], NEAR[..., 0]
    assert measure(near, gray, 4, PIXELS) == measure(np.dstack([near] * 3), gray, 4, PIXELS)
    # transformers#36368: the channel of its own gave another Y.
    assert measure(near[..., None], gray, 4, PIXELS) == measure(near, gray, 4, PIXELS)


def test_identical_images() -> None:
    scores = measure(IMAGE, IMAGE, 4, PIXELS)
    assert scores == pytest.approx({"psnr_rgb": math.inf, "psnr_y": math.inf, "ssim_rgb": 1, "ssim_y": 1})
    assert METRICS["psnr_y"].text(scores["psnr_y"]) == "inf"
    assert METRICS["lpips_vgg"].text(None) == "n/a"


def test_another_size_is_named() -> None:
    with pytest.raises(UserError, match="36 x 40 pixels, the original's size; got 32 x 40"):
        measure(IMAGE[:, :-4], IMAGE, 4, PIXELS)
    with pytest.raises(UserError, match="crop_border: expected a number of pixels from 0, got -1"):
        measure(IMAGE, IMAGE, -1, PIXELS)
    with pytest.raises(UserError, match=r"expected images of uint8, \[0, 255\], got float64 and uint8"):
        measure(IMAGE / 255, IMAGE, 4, PIXELS)


def test_an_image_too_small_for_a_metric_is_not_available_for_it() -> None:
    """36 x 40 pixels inside a border of 13: no window of SSIM; NIQE wants a dozen of its blocks of 96 x 96."""
    scores = measure(NEAR, IMAGE, 13, (*PIXELS, "niqe"))
    assert scores["psnr_y"] is not None
    assert scores["ssim_y"] is scores["niqe"] is None


def test_niqe_is_basicsr_s_from_twelve_blocks_on() -> None:
    image = np.random.default_rng(1).integers(0, 256, (3 * 96 + 8, 4 * 96 + 8, 3), dtype=np.uint8)
    assert measure(image, image, 4, ("niqe",)) == {"niqe": pytest.approx(calculate_niqe(image, 4))}
    assert measure(image[1:], image[1:], 4, ("niqe",)) == {"niqe": None}


def test_bicubic_set5_gives_the_published_figures(set5: Path) -> None:
    """Bicubic x4 as published in many papers: 28.42 to 28.43 dB and 0.810 to 0.811 on Y; 26.69 to 26.70 on RGB."""
    total: dict[str, float] = dict.fromkeys(PIXELS, 0.0)
    for path in sorted((set5 / "GT").iterdir()):
        gt, lr = mod_crop(read_image(path), 4), read_image(set5 / "LRbicx4" / path.name)
        scores = measure(imresize(lr, 4), gt, 4, PIXELS)
        total = {name: total[name] + (scores[name] or 0) / 5 for name in PIXELS}
    assert total["psnr_rgb"] == pytest.approx(26.70, abs=0.01)
    assert total["ssim_rgb"] == pytest.approx(0.773, abs=0.001)
    assert total["psnr_y"] == pytest.approx(28.43, abs=0.01)
    assert total["ssim_y"] == pytest.approx(0.811, abs=0.001)


def test_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("shape", "metrics", "message"),
    [((3, 20, 20), ("psnr_y",), r"\(H, W, 3\).*\(3, 20, 20\)"), ((20, 20, 3), ("psnr",), "psnr_rgb.*got psnr")],
)
def test_what_cannot_be_measured_is_refused_by_name(
    shape: tuple[int, ...], metrics: tuple[str, ...], message: str
) -> None:
    image = np.zeros(shape, np.uint8)
    with pytest.raises(UserError, match=message):
        measure(image, image, 4, metrics)
