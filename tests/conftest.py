"""Shared fixtures: small images, small options, and the benchmark images if available."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

from dp_basicsr.options import parse_command_line, read_given_options
from dp_basicsr.runs.start import start_run

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from tests.imitated_gpu import DEVICE as IMITATED
from tests.imitated_gpu import imitated_gpu

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
if os.environ.get("IMITATE_GPU"):
    DEVICES = ("imitated",)

OnDevice = TypeVar("OnDevice", Tensor, nn.Module)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after a shell's &; the programs under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

_current_device = torch.device("cpu")

# Files whose tests take longest, for two processes: what starts last should be short.
LONG = ("test_two_hosts", "test_gpu_report", "test_webui", "test_data_commands", "test_bench", "test_kills",
        "test_open_engine", "test_export", "test_parallel_method", "test_soak", "test_platforms")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long files first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Run a test on the CPU and, if there is one, on a GPU; with IMITATE_GPU=1 on an imitated one.

    A file takes it for all its tests by ``pytestmark = pytest.mark.usefixtures("device")``; ``on_device`` and
    ``model_options`` follow it. On the GPU float32 is float32 (no TF32), and every operation is deterministic.
    """
    global _current_device
    imitated, on_gpu = request.param == "imitated", request.param == "cuda"
    if on_gpu:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(on_gpu)
    _current_device = IMITATED if imitated else torch.device(request.param)
    with imitated_gpu() if imitated else nullcontext():
        yield _current_device
    torch.use_deterministic_algorithms(False)
    _current_device = torch.device("cpu")


def current_device() -> torch.device:
    """Return the device of the running test, for helpers that build on it."""
    return _current_device


def on_device(value: OnDevice) -> OnDevice:
    """Move a tensor or a network to the device of the running test."""
    return value.to(_current_device)


def skip_if_imitated(device: torch.device, what: str) -> None:
    """Skip a test of what the imitated GPU cannot do."""
    if device == IMITATED:
        pytest.skip(f"not imitated: {what}")


def needs_gpus(count: int, what: str) -> pytest.MarkDecorator:
    """Skip a test that needs CUDA unless there are that many GPUs."""
    return pytest.mark.skipif(torch.cuda.device_count() < count, reason=f"{what}: needs {count} CUDA GPU(s)")


@pytest.fixture(scope="session")
def set5() -> Path:
    """Set5 with MATLAB's own LR images: GT, LRbicx2, LRbicx3, LRbicx4."""
    folder = SHARED_DATA / "Set5"
    if not folder.is_dir():
        pytest.skip("Set5 with MATLAB's LR images is not at ../shared/data/Set5")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of networks that were converted for an engine, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in its own folder, offline and without this machine's pretrained weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
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


# A small version of the paper's discriminator, for images of 128 x 128 pixels.
VGG_STYLE_D: dict[str, Any] = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4, "input_size": 128}


@ARCH_REGISTRY.register()
class SmallDiscriminator(nn.Sequential):
    """Map (N, 3, 32, 32) to (N, 1) by convolutions, batch-norm and a linear layer, as VGGStyleDiscriminator does."""

    def __init__(self) -> None:
        down = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(4, 8, **down), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, **down), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(8 * 8 * 8, 1),
        )  # fmt: skip


def parse_options(argv: Sequence[str], is_train: bool = True) -> dict[str, Any]:
    """Return options as completed by train.py (test.py)."""
    args = parse_command_line("", argv, is_train)
    return start_run(read_given_options(args), args).as_dict()


def model_options(model_type: str, folder: Path, **train: Any) -> dict[str, Any]:
    """Return options of a small model on the test's device, as completed by train.py."""
    adam = {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]}
    return {
        "name": "small",
        "model_type": model_type,
        "scale": 4,
        "num_gpu": int(_current_device.type != "cpu"),
        "dist": False,
        "rank": 0,
        "world_size": 1,
        "is_train": True,
        "datasets": {},
        "network_g": {"type": "RRDBNetDP", "scale": 4, "num_feat": 8, "num_block": 1, "num_grow_ch": 4},
        "network_d": {"type": "SmallDiscriminator"},
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
        "logger": {"print_freq": 1},
    }


def random_batch(seed: int, dtype: torch.dtype = torch.float32, size: int = 32) -> dict[str, torch.Tensor]:
    """Two random pairs on the CPU: lq (2, 3, size / 4, size / 4) and gt (2, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "lq": torch.rand(2, 3, size // 4, size // 4, generator=generator, dtype=dtype),
        "gt": torch.rand(2, 3, size, size, generator=generator, dtype=dtype),
    }
