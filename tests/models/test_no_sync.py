"""A training step never waits for the device: what it computes is read when it is logged, and two steps later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dp_basicsr.archs
import dp_basicsr.losses
import dp_basicsr.models  # noqa: F401
from dp_basicsr.models.step_guard import LAG

import pytest
import torch
from basicsr.models import build_model
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import model_options, needs_gpus, random_batch

MODELS = ("ESRGANDPModel", "SRGANDPModel", "PSNRModel")
TRAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16"},
    "all at once": {"ema_decay": 0.9, "grad_clip": 1.0, "grad_accumulation": 2, "channels_last": True},
}

# Operators and methods that make the program wait for a CUDA device: their result is on the CPU, or has a shape that
# depends on values.
WAITING_OPERATORS = {
    torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.nonzero, torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
}  # fmt: skip
WAITING_METHODS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__array__}


class RefuseWaitingOperators(TorchDispatchMode):
    """Fail at an operator that waits, whoever calls it: ``float()``, ``if tensor:``, or torch itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in WAITING_OPERATORS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class RefuseCopiesToCPU(TorchFunctionMode):
    """Fail at a copy from the device that blocks. On the CPU it copies nothing, so no operator shows it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func not in WAITING_METHODS, f"{func.__name__} waits for the device"
        if func is Tensor.to and not kwargs.get("non_blocking"):
            assert "cpu" not in (*args[1:], *kwargs.values()), 'to("cpu") waits for the device'
        return func(*args, **kwargs)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Refuse to wait for the device; on the CPU, what would make a GPU's program wait."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with RefuseCopiesToCPU(), RefuseWaitingOperators():
        yield


def build(model_type: str, folder: Path, num_gpu: int = 0, **train: Any) -> Any:
    """A model that looks at its flags as late as on a GPU."""
    model = build_model(model_options(model_type, folder, **train) | {"num_gpu": num_gpu})
    model.guard.lag = LAG
    return model


def steps(model: Any, count: int) -> None:
    batches = [random_batch(number) for number in range(count)]
    if model.device.type == "cuda":
        batches = [{name: images.pin_memory() for name, images in batch.items()} for batch in batches]
    with no_waiting(model.device):
        for iteration, batch in enumerate(batches, start=1):
            model.update_learning_rate(iteration)
            model.feed_data(batch)
            model.optimize_parameters(iteration)


@pytest.mark.parametrize("train", TRAIN.values(), ids=TRAIN)
@pytest.mark.parametrize("model_type", MODELS)
def test_a_step_does_not_wait(
    model_type: str, train: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imitated on the CPU, until the first flag is old enough to be looked at."""
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    model = build(model_type, tmp_path, **train)
    steps(model, LAG)
    assert len(model.guard.steps) == LAG
    assert all(isinstance(value, float) for value in model.get_current_log().values())  # the logging iteration waits


@needs_gpus(1, "set_sync_debug_mode")
@pytest.mark.parametrize("train", TRAIN.values(), ids=TRAIN)
@pytest.mark.parametrize("model_type", MODELS)
def test_a_step_does_not_wait_for_a_gpu(model_type: str, train: dict[str, Any], tmp_path: Path) -> None:
    """Beyond the lag too: a flag is read from pinned memory, behind an event of two steps ago."""
    model = build(model_type, tmp_path, num_gpu=1, **train)
    steps(model, 3 * LAG)
    assert model.guard.is_sound()


def test_an_optimizer_that_cannot_skip_on_the_device_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one exception, and the proof that the test above can fail: Adam that is not fused, SGD ... need the flag."""
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    adam = {"type": "Adam", "lr": 1e-3, "fused": False}
    model = build("ESRGANDPModel", tmp_path, optim_g=dict(adam), optim_d=dict(adam))
    with pytest.raises(AssertionError, match="item waits"):
        steps(model, 1)


@pytest.mark.parametrize(
    "wait", [bool, float, int, Tensor.cpu, Tensor.numpy, lambda value: value.to("cpu"), lambda value: value.nonzero()]
)
def test_what_waits_is_refused(wait: Any) -> None:
    with pytest.raises(AssertionError, match="waits"), no_waiting(torch.device("cpu")):
        wait(torch.ones(()))
