"""Whole steps on an imitated GPU: every tensor is on the right device, and the numbers are the CPU's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dp_basicsr.archs
import dp_basicsr.models  # noqa: F401
from dp_basicsr.losses import DPLoss

import pytest
import torch
from basicsr.models import build_model

from tests import conftest
from tests.support.gpu import on_device
from tests.support.imitated_gpu import DEVICE, imitated_gpu
from tests.support.options import SMALL_DP_LOSS, model_options, random_batch

SMALL = {name: value for name, value in SMALL_DP_LOSS.items() if name != "type"}


def trained(model_type: str, folder: Path, num_gpu: int, **train: Any) -> Any:
    torch.manual_seed(0)
    model = build_model(model_options(model_type, folder, **train) | {"num_gpu": num_gpu})
    for iteration in (1, 2):
        model.feed_data(random_batch(iteration))
        model.optimize_parameters(iteration)
    return model


@pytest.mark.parametrize("train", [{}, {"ema_decay": 0.9, "grad_accumulation": 2, "grad_clip": 1.0}])
@pytest.mark.parametrize("model_type", ["ESRGANDPModel", "SRGANDPModel", "PSNRModel"])
def test_steps_and_checkpoints_equal_the_cpu_s(model_type: str, train: dict[str, Any], tmp_path: Path) -> None:
    with imitated_gpu():
        model = trained(model_type, tmp_path, num_gpu=1, **train)
        assert {parameter.device for parameter in model.net_g.parameters()} == {DEVICE}
        model.save(0, 2)
    plain = trained(model_type, tmp_path, num_gpu=0, **train)
    saved = torch.load(tmp_path / "net_g_2.pth", weights_only=True)
    assert all(torch.equal(saved["params"][name], value) for name, value in plain.net_g.state_dict().items())


@pytest.mark.parametrize("released", [False, True])
def test_the_loss(released: bool) -> None:
    x, gt = torch.rand(2, 2, 3, 32, 32)
    loss = DPLoss(**SMALL, resnet_batch_stats=released, resnet_use_input_norm=not released)
    expected = loss(x, gt)[0].item()
    with imitated_gpu():
        value, _ = loss.to(DEVICE)(x.to(DEVICE), gt.to(DEVICE))
        assert value.device == DEVICE
        assert value.item() == expected


def test_helpers_follow_the_device_of_the_test(device: torch.device) -> None:
    """Otherwise files would be tested twice on the CPU: pytest must not import conftest.py under a second name."""
    copies = [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")) == conftest.__file__]
    assert copies == ["tests.conftest"]
    assert on_device(torch.ones(1)).device.type == device.type


def test_a_tensor_left_on_the_cpu_is_refused() -> None:
    with imitated_gpu(), pytest.raises(RuntimeError, match="same device"):
        DPLoss(**SMALL)(torch.rand(2, 3, 32, 32).to(DEVICE), torch.rand(2, 3, 32, 32).to(DEVICE))
