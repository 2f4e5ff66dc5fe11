"""All random states of a process, as data; and whether the device's arithmetic is the same every time."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed


def set_determinism(deterministic: bool) -> None:
    """With True, every operation has one result on a CUDA device too, or stops with torch's message; slower.

    On a CPU with a fixed number of threads it is so in any case. Must come before the first work on a GPU.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch asks for
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, as lists and tensors that ``weights_only`` loads."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), *rest],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in _cuda_devices()],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put ``random_state`` back."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for device, cuda in zip(_cuda_devices(), state["cuda"], strict=False):  # a CPU's state may be resumed on a GPU
        torch.cuda.set_rng_state(cuda, device)


@contextmanager
def same_random_state_after() -> Iterator[None]:
    """Leave the random states as they were."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def gather_random_states() -> list[dict[str, Any]]:
    """The state of each process, in order of their ranks; on the others than rank 0 only their own."""
    own = random_state()
    if not distributed.is_initialized():
        return [own]
    states: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(own, states, dst=0)
    return states or [own]


def _cuda_devices() -> list[int]:
    """Those that this process computes on: one of each process, all of a process that is alone."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.current_device()] if distributed.is_initialized() else list(range(torch.cuda.device_count()))
