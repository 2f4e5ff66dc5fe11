"""Recognise out-of-memory errors."""

from __future__ import annotations

# Messages of allocators without an exception type: PyTorch's CPU and MPS, cuDNN, cuBLAS, oneDNN, onnxruntime.
MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "bad allocation", "allocate memory",
                   "alloc_failed")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of PyTorch, oneDNN, onnxruntime or numpy means that memory ran out."""
    # torch's own error by name, because this must not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(message in str(error).lower() for message in MEMORY_MESSAGES)
