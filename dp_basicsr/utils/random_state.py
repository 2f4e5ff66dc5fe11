"""Save and restore the random states of a process, and set deterministic algorithms."""

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
    """Use deterministic algorithms on CUDA if True, or raise torch's error where there are none; slower.

    A CPU with a fixed number of threads is always deterministic. Must be called before the first use of a GPU.
    """
    if deterministic:
        # Without it, torch refuses to multiply matrices on a GPU deterministically.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, as lists and tensors for ``weights_only``."""
    # NumPy's and Python's own objects would need pickle's classes, which ``weights_only`` refuses.
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), *rest],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in _cuda_devices()],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state returned by ``random_state``."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    # Not strict, because a CPU's state may be restored on a GPU.
    for device, cuda in zip(_cuda_devices(), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda, device)


@contextmanager
def same_random_state_after() -> Iterator[None]:
    """Restore the random states at the end of the block."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def gather_random_states() -> list[dict[str, Any]]:
    """Return the states of all processes by rank; on ranks other than 0, only their own."""
    local = random_state()
    if not distributed.is_initialized():
        return [local]
    states: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(local, states, dst=0)
    return states or [local]


def _cuda_devices() -> list[int]:
    """Return the GPUs of this process: one in a group, all otherwise."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.current_device()] if distributed.is_initialized() else list(range(torch.cuda.device_count()))
