"""Out-of-memory errors of each allocator."""

from __future__ import annotations

from dp_basicsr.utils.memory import is_out_of_memory

import pytest
import torch


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("onnxruntime: Failed to allocate memory for requested buffer of size 1"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_torch_s_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)
