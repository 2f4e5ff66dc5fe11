"""What the tests share: small images, small options, and the benchmark images where they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import dp_basicsr  # noqa: F401  (bridges BasicSR before anything imports it)

import cv2
import numpy as np
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def set5() -> Path:
    """Set5 with MATLAB's own LR images: GT, LRbicx2, LRbicx3, LRbicx4."""
    folder = SHARED_DATA / "Set5"
    if not folder.is_dir():
        pytest.skip("Set5 with MATLAB's LR images is not at ../shared/data/Set5")
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, without this machine's pretrained weights, and offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))

    download = torch.hub.download_url_to_file

    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        if "127.0.0.1" not in url:
            raise URLError(f"tests do not download {url}")
        download(url, *args, **kwargs)

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder with GT (four smooth random 160 x 144 images) and LRbicx4 of them."""
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = rng.integers(0, 256, (10, 9, 3), dtype=np.uint8)
        gt = cv2.resize(coarse, (144, 160), interpolation=cv2.INTER_CUBIC)
        for name, image in (("GT", gt), ("LRbicx4", cv2.resize(gt, (36, 40), interpolation=cv2.INTER_AREA))):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "pairs" / name / f"image{number}.png"), image)
    return tmp_path / "pairs"


SMALL_DP_LOSS: dict[str, Any] = {
    "type": "DPLoss",
    "vgg_type": "vgg11",
    "vgg_layer_weights": {"conv2_1": 1.0},
    "resnet_type": "resnet18",
    "resnet_layer_weights": {"layer1": 1.0},
    "vgg_weights": "random",
    "resnet_weights": "random",
}


def model_options(model_type: str, folder: Path, **train: Any) -> dict[str, Any]:
    """Complete options of a small model on the CPU, as options.parse_options gives them."""
    adam = {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]}
    return {
        "name": "small",
        "model_type": model_type,
        "scale": 4,
        "num_gpu": 0,
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "network_g": {"type": "RRDBNetDP", "scale": 4, "num_feat": 8, "num_block": 1, "num_grow_ch": 4},
        "network_d": {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4, "input_size": 128},
        "path": {"models": str(folder), "training_states": str(folder), "resume_state": None},
        "train": {
            "optim_g": dict(adam),
            "optim_d": dict(adam),
            "scheduler": {"type": "MultiStepLR", "milestones": [2], "gamma": 0.5},
            "total_iter": 4,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1e-2},
            "perceptual_opt": dict(SMALL_DP_LOSS),
            "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 5e-3},
            **train,
        },
        "logger": {},
    }


def random_batch(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two random pairs: lq (2, 3, 32, 32) and gt (2, 3, 128, 128) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "lq": torch.rand(2, 3, 32, 32, generator=generator, dtype=dtype),
        "gt": torch.rand(2, 3, 128, 128, generator=generator, dtype=dtype),
    }
