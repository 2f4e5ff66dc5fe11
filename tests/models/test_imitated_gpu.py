"""Whole steps on an imitated GPU: every tensor on the right device, the CPU's numbers, and no wait for the GPU.

A step's results are read for logging, or two steps later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401
from dp_basicsr.losses import DPLoss
from dp_basicsr.models.step import LAG

import pytest
import torch
from basicsr.models import build_model
from torch import Tensor

from tests import conftest
from tests.support.gpu import needs_gpus, on_device
from tests.support.imitated_gpu import DEVICE, imitated_gpu
from tests.support.models import step, train
from tests.support.options import SMALL_DP_LOSS, model_options, random_batch

SMALL = {name: value for name, value in SMALL_DP_LOSS.items() if name != "type"}
MODELS = ("ESRGANDPModel", "SRGANDPModel", "PSNRModel")
TRAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "fp16": {"amp": "fp16"},
    "balanced": {"balance": {"shares": {"pix": 0.5, "vgg": 0.5}, "start_iter": 2}},
    "all at once": {"ema_decay": 0.9, "grad_clip": 1.0, "grad_accumulation": 2, "channels_last": True},
}


def build(model_type: str, folder: Path, num_gpu: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    model = build_model(model_options(model_type, folder, **options) | {"num_gpu": num_gpu})
    model.step.guard.lag = LAG if num_gpu else 0
    images = torch.rand(2, 1, 3, 32, 32, device=model.device)
    model.cri_perceptual(*images)  # the first call checks the range of the images, and waits
    return model


@pytest.mark.parametrize("options", TRAIN.values(), ids=TRAIN)
@pytest.mark.parametrize("model_type", MODELS)
def test_steps_do_not_wait_and_checkpoints_equal_the_cpu_s(
    model_type: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first flag is old enough to be read; logging waits."""
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    with imitated_gpu() as waits:
        model = build(model_type, tmp_path, **options)
        assert {parameter.device for parameter in model.net_g.parameters()} == {DEVICE}
        waits.clear()
        train(model, LAG)
        assert waits == []
        assert len(model.step.guard.steps) == LAG
        assert all(isinstance(value, float) for value in model.get_current_log().values())
        assert len(waits) == len(model.log_dict)
        model.save(0, 2)
    if "amp" in options:
        return  # the imitated GPU has no autocast
    plain = train(build(model_type, tmp_path, num_gpu=0, **options), LAG)
    saved = torch.load(tmp_path / "net_g_2.pth", weights_only=True)
    assert all(torch.equal(saved["params"][name], value) for name, value in plain.net_g.state_dict().items())


def test_an_optimizer_that_cannot_skip_on_the_device_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception: unfused Adam, SGD and so on read the flag."""
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    adam = {"type": "Adam", "lr": 1e-3, "fused": False}
    with imitated_gpu() as waits:
        model = build("ESRGANDPModel", tmp_path, optim_g=dict(adam), optim_d=dict(adam))
        waits.clear()
        train(model, 1)
        assert waits == 2 * ["aten._local_scalar_dense.default"]


@pytest.mark.parametrize("wait", [bool, float, Tensor.cpu, Tensor.item, Tensor.nonzero, lambda value: value.to("cpu")])
def test_the_imitation_notes_what_waits(wait: Callable[[Tensor], Any]) -> None:
    with imitated_gpu() as waits:
        wait(torch.ones((), device=DEVICE))
        assert len(waits) == 1


@needs_gpus(1, "set_sync_debug_mode")
@pytest.mark.parametrize("options", TRAIN.values(), ids=TRAIN)
@pytest.mark.parametrize("model_type", MODELS)
def test_a_step_does_not_wait_for_a_gpu(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Beyond the lag too: a flag is read from pinned memory, behind an event of two steps ago."""
    model = build(model_type, tmp_path, **options)
    batches = [{name: images.pin_memory() for name, images in random_batch(number).items()} for number in range(6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for iteration, batch in enumerate(batches, start=1):
            model.update_learning_rate(iteration)
            step(model, iteration, **batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert model.step.guard.last_step_applied()


@pytest.mark.parametrize("released", [False, True])
def test_the_loss_equals_the_cpu_s_and_refuses_a_tensor_of_the_cpu(released: bool) -> None:
    x, gt = torch.rand(2, 2, 3, 32, 32)
    loss = DPLoss(**SMALL, resnet_batch_stats=released, resnet_use_input_norm=not released)
    expected = loss(x, gt)[0].item()
    with imitated_gpu():
        with pytest.raises(RuntimeError, match="same device"):
            loss(x.to(DEVICE), gt.to(DEVICE))
        value, _ = loss.to(DEVICE)(x.to(DEVICE), gt.to(DEVICE))
        assert value.device == DEVICE
        assert value.item() == expected


def test_helpers_follow_the_device_of_the_test(device: torch.device) -> None:
    """Otherwise files would be tested twice on the CPU: pytest must not import conftest.py under a second name."""
    copies = [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")) == conftest.__file__]
    assert copies == ["tests.conftest"]
    assert on_device(torch.ones(1)).device.type == device.type
