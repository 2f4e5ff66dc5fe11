"""The device of the running test; the fixture ``device`` sets it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from tests.support.imitated_gpu import DEVICE as IMITATED
from tests.support.imitated_gpu import imitated_gpu

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
if os.environ.get("IMITATE_GPU"):
    DEVICES = ("imitated",)

OnDevice = TypeVar("OnDevice", Tensor, nn.Module)

_current_device = torch.device("cpu")


@contextmanager
def use_device(name: str) -> Iterator[torch.device]:
    """Make a device that of the running test; on a GPU, every operation is deterministic."""
    global _current_device
    torch.use_deterministic_algorithms(name == "cuda")
    _current_device = IMITATED if name == "imitated" else torch.device(name)
    with imitated_gpu() if name == "imitated" else nullcontext():
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
